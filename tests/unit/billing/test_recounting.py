"""Recounting: whatever was metered, put right and when, the count is that of a plain reading of the log."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.billing.metering import Evidence, together
from domain.billing.recounting import Recount
from domain.errors import LogDamagedError
from tests.unit.log.log_maker import a_record, address, canonical

CUTS = [("2026-01-01T", "2026-01-03T"), ("2026-01-03T", "2026-01-05T")]


def reading(stream: str, version: int, day: int, **members: Any) -> bytes:
    """Write a reading's record."""
    data = {
        "occurred_at": f"2026-01-0{day}T00:00:00.000000Z", "provider": "p", "model": "m", "persona_id": None,
        "tokens_in": 1, "tokens_out": 2, "cached_tokens": None, "requests": 1,
    }  # fmt: skip
    tenant = members.pop("tenant", "acme")
    kind = "usage.metered" if version == 1 else "usage.corrected"
    return canonical(
        a_record(version, stream=f"usage/{stream}", type=kind, tenant=tenant, data=data | members)
    )


@st.composite
def logs(draw: st.DrawFn) -> list[bytes]:
    """Draw a log of readings, corrections and records of others."""
    versions: dict[tuple[str, str], int] = {}
    found = []
    for _ in range(draw(st.integers(0, 30))):
        tenant = draw(st.sampled_from(["acme", "acme", "acme", "bolt"]))
        name = (tenant, f"{tenant}-{draw(st.integers(0, 5))}")
        versions[name] = versions.get(name, 0) + 1
        found.append(
            reading(
                name[1],
                versions[name],
                draw(st.integers(1, 6)),
                tenant=tenant,
                model=draw(st.sampled_from(["m", "n"])),
                persona_id=draw(st.sampled_from([None, "x"])),
                tokens_in=draw(st.integers(0, 10**12)),
                cached_tokens=draw(st.sampled_from([None, 0, 7])),
            )
        )
        if draw(st.booleans()):
            found.append(canonical(a_record(stream=f"note/{len(found)}")))
    return found


def plainly(records: list[bytes], bound: int) -> dict[tuple[Any, ...], list[Any]]:
    """Count forwards, with the latest version of every stream in hand."""
    latest: dict[str, tuple[int, bytes, dict[str, Any]]] = {}
    for position, raw in enumerate(records[:bound]):
        record = json.loads(raw)
        if record["type"].startswith("usage.") and record["tenant"] == "acme":
            latest[record["stream"]] = (position, raw, record["data"])
    found: dict[tuple[Any, ...], list[Any]] = {}
    for position, raw, data in latest.values():
        for cut in CUTS:
            if cut[0] <= data["occurred_at"] < cut[1]:
                name = (*cut, data["provider"], data["model"], data["persona_id"])
                sums = found.setdefault(name, [0, 0, 0, 0, None])
                for at, member in enumerate(("tokens_in", "tokens_out", "cached_tokens", "requests")):
                    sums[at] += data[member] or 0
                mark = address(raw).removeprefix("sha3-512:")[:16]
                sums[4] = together(sums[4], Evidence(1, position, position, mark))
    return found


def recounted(records: list[bytes], bounds: list[int]) -> Recount:
    recount = Recount("acme", CUTS, bounds)
    for position in range(len(records) - 1, -1, -1):
        recount.take(position, records[position])
    return recount


@given(logs(), st.data())
def test_the_count_is_that_of_a_plain_reading_at_every_bound(
    records: list[bytes], data: st.DataObject
) -> None:
    bounds = data.draw(st.lists(st.integers(0, len(records)), min_size=1, max_size=3, unique=True))
    recount = recounted(records, bounds)
    assert not recount.doubled
    for bound in bounds:
        counted = recount.counted(bound)
        assert counted.known_at == bound
        found = {
            (a, b, u.provider, u.model, u.persona_id): [
                u.tokens_in, u.tokens_out, u.cached_tokens, u.requests,
                Evidence(u.events, u.first, u.last, u.fingerprint),
            ]
            for a, b, part in counted.parts
            for u in part
        }  # fmt: skip
        assert found == plainly(records, bound)
        for _, _, part in counted.parts:
            names = [(u.provider, u.model, u.persona_id or "") for u in part]
            assert names == sorted(names)


def test_a_version_that_stands_in_the_log_twice_is_told() -> None:
    records = [reading("a", 1, 1), reading("b", 1, 1), reading("a", 1, 2, tokens_in=5)]
    assert recounted(records, [3]).doubled == [0]


def test_what_a_correction_put_right_is_found() -> None:
    records = [reading("a", 1, 6), reading("b", 1, 1), reading("a", 2, 1)]
    recount = recounted(records, [3])
    assert (recount.earlier_at("usage/a", 1), recount.earlier_at("usage/b", 1)) == (0, None)
    assert [u.events for _, _, part in recount.counted(3).parts for u in part] == [2]


@pytest.mark.parametrize(
    "raw",
    [
        b"{}",
        b"nothing",
        reading("a", 1, 1).replace(b'"tokens_in":1', b'"tokens_in": 1'),
        reading("a", 1, 1).replace(b'"tokens_in":1', b'"tokens_in":1.0'),
        reading("a", 1, 1).replace(b'"tokens_in":1', b'"tokens_in":1,"tokens_in":2'),
        reading("a", 1, 1, tokens_in="1"),
        reading("a", 1, 1, provider=None),
    ],
)
def test_a_reading_that_can_be_read_in_two_ways_or_in_none_is_refused(raw: bytes) -> None:
    with pytest.raises(LogDamagedError):
        Recount("acme", CUTS, [1]).take(0, raw)
