"""The groups of tables that each have a follower of their own: what they are made of, and what is recomputed from them.

The tables themselves are told in migrations/clickhouse: 0001_tables.sql, 0003_personas.sql and 0004_commerce.sql.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import projections.kinds  # noqa: F401 - the groups choose among all events there are
from domain.billing.usage import Usage
from domain.errors import FollowerUnknownError
from domain.log.records import EVENTS, Event, MoneyEvent
from ops.reads import Stored
from ops.reconcile_warehouse import LATENCY_MAX
from projections import (
    columns,
    columns_billing,
    columns_commerce,
    columns_governance,
    columns_market,
    columns_usage,
)
from projections.columns import Earlier, Shape, Subject, Tables, Version


class Known(NamedTuple):
    """What a batch is told with besides itself: what its streams belong to, and earlier records it refers to."""

    parents: Mapping[str, Sequence[Subject]] = {}
    earlier: Mapping[Version, Earlier] = {}


NOTHING = Known()


@dataclass(frozen=True)
class Rollup:
    """A table of sums over another one, recomputed for the keys that were touched and replaced.

    Every row says by `upto` which records it counts: those before that position. A row is a pure function of its key,
    of upto and of the log, so it does not matter how often, or by whom, it is computed.
    """

    table: str
    source: str
    key: tuple[str, ...]
    sums: Mapping[str, str]

    def statement(self, table: str, source: str, start: int, end: int) -> str:
        """Recompute the keys that records from one position to another touch, from all records before the latter."""
        key = ", ".join(self.key)
        # Without names: a sum named like the column it sums up would be taken for that column in the next one.
        sums = ", ".join(self.sums.values())
        names = ", ".join([*self.key, *self.sums, "upto"])
        return (
            f"INSERT INTO {table} ({names})"
            f" SELECT {key}, {sums}, {end} FROM {source} FINAL"
            f" WHERE ({key}) IN (SELECT DISTINCT {key} FROM {source} WHERE position >= {start} AND position < {end})"
            f" AND position < {end} GROUP BY {key}"
        )


@dataclass(frozen=True)
class Group:
    """Tables that one follower keeps."""

    name: str
    shapes: tuple[Shape, ...]
    read: Callable[[Sequence[Stored]], Any]
    tell: Callable[[Any, Known], Tables]
    rollup: Rollup | None = None
    has_parents: bool = False
    # Which earlier records the records of a batch are told with.
    refers_to: Callable[[Any], Sequence[Version]] = lambda _: ()
    # Whether an event class that is known concerns these tables; what is not known is always looked at.
    concerns: Callable[[type[Event]], bool] = lambda _: True

    @property
    def skips(self) -> list[str]:
        """Name the wire types that are known and change nothing here."""
        return sorted(wire_type for wire_type, event in EVENTS.items() if not self.concerns(event))

    @property
    def tables(self) -> tuple[str, ...]:
        """Name the tables in the order in which they are written."""
        return (*(shape.name for shape in self.shapes), *([self.rollup.table] if self.rollup else []))

    @property
    def rollup_name(self) -> str:
        return f"{self.name}.rollup"


def _of(*kinds: str) -> Callable[[type[Event]], bool]:
    """Choose the events of some kinds of streams: a wire type begins with its kind."""
    return lambda event: event.TOPIC.partition(".")[0] in kinds


def _log(rows: Any, known: Known) -> Tables:
    return {"records": columns.records(rows), "timelines": columns.timelines(rows, known.parents)}


def _word(number: int) -> str:
    """Give eight bytes of the address as a signed number; addresses are hashes, so this is one too."""
    return f"reinterpretAsInt64(reverse(substring(address, {8 * number + 1}, 8)))"


def _signed(column: str, where: str = "") -> str:
    """Sum a count up, less what was taken back."""
    said = f"toInt128({column}) * sign"
    return f"toUInt64(sumIf({said}, {where}))" if where else f"toUInt64(sum({said}))"


RECORDS = Group(
    "clickhouse.records",
    (columns.RECORDS, columns.TIMELINES),
    columns.RECORD_ROWS.read,
    _log,
    has_parents=True,
)
BILLING = Group(
    "clickhouse.billing",
    (columns_billing.ENTRIES, columns_billing.ACCOUNTS, columns_billing.HOLDS),
    columns_billing.BILLING_ROWS.read,
    lambda rows, _: columns_billing.billing(rows),
    concerns=lambda event: issubclass(event, MoneyEvent),
    rollup=Rollup(
        "entries_daily",
        "entries",
        ("tenant", "account", "currency", "day"),
        {
            "purpose": "any(purpose)",
            "entries": "count()",
            "debits": "sumIf(toDecimal256(amount, 9), amount > 0)",
            "credits": "-sumIf(toDecimal256(amount, 9), amount < 0)",
            "net": "sum(toDecimal256(amount, 9))",
            "x0": f"groupBitXor({_word(0)})",
            "x1": f"groupBitXor({_word(1)})",
            "s2": f"sum(toInt128({_word(2)}))",
            "weighted": "sum(toInt256(toDecimal256(amount, 9) * 1000000000) * toInt256(position + 1))",
        },
    ),
)
USAGE = Group(
    "clickhouse.usage",
    (columns_usage.USAGE,),
    columns_usage.USAGE_ROWS.read,
    lambda rows, known: columns_usage.usage(rows, known.earlier),
    refers_to=columns_usage.corrected_versions,
    concerns=_of(Usage.KIND),
    rollup=Rollup(
        "usage_hourly",
        "usage",
        ("tenant", "provider", "model", "currency", "hour"),
        {
            # Nothing is taken back before it was added, so no sum of an hour is below zero.
            "readings": "toUInt64(sum(sign))",
            "requests": _signed("requests"),
            "errors": _signed("requests", "status = 'error'"),
            "tokens_in": _signed("tokens_in"),
            "tokens_out": _signed("tokens_out"),
            "tokens_cached": _signed("tokens_cached"),
            "timed": _signed("requests", "latency_ms IS NOT NULL"),
            "latency_ms": _signed("ifNull(latency_ms, 0)"),
            "latency_max": LATENCY_MAX,
            "cost": "sum(toDecimal256(cost, 9) * sign)",
            "x0": f"groupBitXor({_word(0)})",
            "s2": f"sum(toInt128({_word(2)}))",
        },
    ),
)
MARKET = Group(
    "clickhouse.market",
    columns_market.SHAPES,
    columns_market.MARKET_ROWS.read,
    lambda rows, _: columns_market.market(rows),
    concerns=_of(*columns_market.KINDS),
)

GOVERNANCE = Group(
    "clickhouse.governance",
    (columns_governance.GOVERNANCE_EVENTS,),
    columns_governance.GOVERNANCE_ROWS.read,
    lambda rows, known: columns_governance.governance(rows, known.parents),
    has_parents=True,
    concerns=_of(*columns_governance.KINDS),
)

COMMERCE = Group(
    "clickhouse.commerce",
    columns_commerce.SHAPES,
    columns_commerce.COMMERCE_ROWS.read,
    lambda rows, known: columns_commerce.commerce(rows, known.earlier),
    refers_to=columns_commerce.earlier_versions,
    concerns=_of(*columns_commerce.KINDS),
)

GROUPS: dict[str, Group] = {
    group.name: group for group in (RECORDS, BILLING, USAGE, MARKET, GOVERNANCE, COMMERCE)
}


def group_of(name: str) -> Group:
    """Find a group by the name of its follower.

    Errors: follower_unknown.
    """
    try:
        return GROUPS[name]
    except KeyError:
        raise FollowerUnknownError(f"there is no group of tables {name!r}", known=sorted(GROUPS)) from None
