"""What the followers of ClickHouse leave unread: only what they know, and know to be no concern of theirs."""

from __future__ import annotations

import pytest

import api.app  # noqa: F401 - brings in every event of the house
from domain.log.records import AGGREGATES, EVENTS, MoneyEvent
from projections.groups import GROUPS

ours = {wire_type: event for wire_type, event in EVENTS.items() if event.__module__.startswith("domain.")}


@pytest.mark.parametrize("wire_type", sorted(ours))
def test_a_wire_type_begins_with_the_kind_of_its_stream(wire_type: str) -> None:
    """Groups choose by that beginning."""
    kind = wire_type.partition(".")[0]
    holder = ours[wire_type].__qualname__.partition(".")[0]
    assert AGGREGATES[kind].__name__ == holder


def test_the_mirror_reads_everything() -> None:
    assert GROUPS["clickhouse.records"].skips == []


def test_billing_reads_every_event_that_moves_money() -> None:
    skipped = set(GROUPS["clickhouse.billing"].skips)
    assert skipped == {wire_type for wire_type, event in EVENTS.items() if not issubclass(event, MoneyEvent)}
    assert skipped


@pytest.mark.parametrize("name", sorted(GROUPS))
def test_a_type_of_a_newer_release_is_never_skipped(name: str) -> None:
    """Nobody here knows what it is about, so it is looked at, and told if it cannot be kept."""
    assert set(GROUPS[name].skips) <= set(EVENTS)
