"""A reading that was wrong is put right in its own stream: what holds is the latest, and nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.billing.usage import CorrectUsage, correct_usage, usage_name
from domain.errors import LedgerError
from domain.ledger import Caller
from tests.unit.billing.usage_maker import GATEWAY, PLATFORM, Till, a_reading, at, codes

NAME = usage_name("acme", "gateway-eu", "e1")


async def correct(till: Till, caller: Caller = GATEWAY, **members: Any) -> Any:
    """Put the reading right."""
    command = CorrectUsage(**({"usage_id": NAME, "replaces": 1, "reason": "counted twice"} | members))
    return msgspec.json.decode((await till.ledger.act(correct_usage, command, caller)).body)


async def code(doing: Awaitable[Any]) -> str:
    """Give "ok", or the code of a refusal."""
    try:
        await doing
    except LedgerError as refusal:
        return refusal.code
    return "ok"


def play(story: Callable[[Till], Awaitable[None]]) -> None:
    """Play a story on a log with one reading."""

    async def run() -> None:
        till = Till()
        await till.meter(a_reading())
        await story(till)

    asyncio.run(run())


def test_a_correction_is_the_next_version_and_names_what_it_replaces() -> None:
    async def story(till: Till) -> None:
        made = await correct(till, tokens_in=600, latency_ms=None)
        first, second = till.records
        assert (second["type"], second["version"], second["stream"]) == (
            "usage.corrected",
            2,
            first["stream"],
        )
        assert second["data"] == {
            **{k: v for k, v in first["data"].items() if k not in ("source", "event_id")},
            "replaces": 1, "reason": "counted twice", "tokens_in": 600, "latency_ms": None,
        }  # fmt: skip
        assert (made["tokens_in"], made["as_taken"]["tokens_in"], made["source"]) == (
            600,
            1_200,
            "gateway-eu",
        )

    play(story)


def test_the_same_correction_again_writes_nothing_and_another_must_know_the_latest() -> None:
    async def story(till: Till) -> None:
        await correct(till, tokens_in=600)
        await correct(till, tokens_in=600)
        assert len(till.records) == 2
        assert await code(correct(till, tokens_in=500)) == "version_mismatch"
        await correct(till, replaces=2, tokens_in=500)
        assert await code(correct(till, tokens_in=500)) == "version_mismatch"
        await correct(till, replaces=3, tokens_in=500)
        assert [record["version"] for record in till.records] == [1, 2, 3]

    play(story)


def test_the_reading_sent_again_is_known_by_what_it_said_at_first() -> None:
    async def story(till: Till) -> None:
        await correct(till, tokens_in=600)
        await correct(till, replaces=2, tokens_in=601)
        assert (await till.meter(a_reading())).duplicates == 1
        counted = await till.meter(a_reading(tokens_in=601))
        assert codes(counted) == [(0, "usage_conflict")]

    play(story)


@pytest.mark.parametrize(
    ("caller", "heard"),
    [
        (PLATFORM, "ok"),
        (Caller("ola", "elsewhere", frozenset({"operator"})), "ok"),
        (Caller("gateway", "bolt", frozenset({"service"})), "usage_not_found"),
        (Caller("olivia", "acme", frozenset({"owner"})), "forbidden"),
    ],
)
def test_who_may_correct_is_who_may_measure_for_the_tenant(caller: Caller, heard: str) -> None:
    async def story(till: Till) -> None:
        assert await code(correct(till, caller, tokens_in=600)) == heard

    play(story)


@pytest.mark.parametrize(
    ("moment", "heard"),
    [(at(days=-399), "ok"), (at(days=-401), "usage_too_old"), (at(minutes=11), "usage_in_future")],
)
def test_a_moment_is_moved_within_what_readings_are_taken_for(moment: str, heard: str) -> None:
    async def story(till: Till) -> None:
        assert await code(correct(till, occurred_at=moment)) == heard

    play(story)


def test_a_reading_is_taken_back_by_nothing_used() -> None:
    async def story(till: Till) -> None:
        made = await correct(till, tokens_in=0, tokens_out=0, requests=0)
        assert (made["tokens_in"], made["requests"]) == (0, 0)

    play(story)


@given(
    st.lists(
        st.fixed_dictionaries({}, optional={"tokens_in": st.integers(0, 3), "model": st.sampled_from("ab")})
    )
)
def test_what_holds_is_the_last_word_on_each_member(changes: list[dict[str, Any]]) -> None:
    async def story(till: Till) -> None:
        expected = {"tokens_in": 1_200, "model": "gpt-4o-mini"}
        version, made = 1, None
        for change in changes:
            made = await correct(till, replaces=version, **change)
            expected |= change
            version = made["version"]
        assert len(till.records) == version
        if made is not None:
            assert {name: made[name] for name in expected} == expected

    play(story)
