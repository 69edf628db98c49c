"""A batch large enough to be copied leaves the same current states as a small one, whatever is in it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import psycopg

from domain.billing.usage import CorrectUsage, MeterUsage, Usage, correct_usage, meter_usage, usage_name
from domain.ledger import Caller
from domain.market.intents import OpenIntent, open_intent
from domain.values import Money, moment_text
from ops.plans import COPY_EVENTS_MIN
from ops.rebuild import rebuild
from ops.runtime import open_runtime
from ops.settings import Settings
from tests.real.log.world import Add, OpenTally, States, add, check_database, give, member, open_tally

MIA = member("acme")
GATEWAY = Caller("gateway", "acme", frozenset({"service", "owner"}))


def sent(count: int, start: int = 0) -> MeterUsage:
    reading = {
        "source": "s", "occurred_at": moment_text(datetime.now(UTC)), "provider": "openai", "model": "m",
        "tokens_in": 1, "tokens_out": 2, "cost": Money("0.01", "USD"),
    }  # fmt: skip
    return MeterUsage.model_validate(
        {"readings": [reading | {"event_id": f"e{n}"} for n in range(start, start + count)]}
    )


def test_streams_that_begin_go_on_and_need_every_column_are_all_there_after_one_copied_batch(
    settings: Settings,
) -> None:
    corrected = usage_name("acme", "s", "e7")

    async def live() -> None:
        states = States()
        async with open_runtime(settings, states) as rt:
            ledger, queue = rt.ledger, rt.recorder._queue
            await ledger.act(open_tally, OpenTally(name="old"), MIA)
            await ledger.act(meter_usage, sent(1, start=10**6), GATEWAY)
            held = states.hold()
            tasks = [asyncio.create_task(ledger.act(open_tally, OpenTally(), MIA))]
            await held.reached()

            async def queued(coroutine: Any) -> None:
                tasks.append(asyncio.create_task(coroutine))
                while len(queue) < len(tasks) - 1:
                    assert not tasks[-1].done(), tasks[-1]
                    await asyncio.sleep(0.001)

            await queued(ledger.act(meter_usage, sent(COPY_EVENTS_MIN + 100), GATEWAY))
            # A stream that begins and goes on in one batch, one that was there before, ones with words and an owner.
            correction = CorrectUsage(usage_id=corrected, replaces=1, reason="twice", tokens_in=0)
            await queued(ledger.act(correct_usage, correction, GATEWAY))
            earlier = correction.model_copy(update={"usage_id": usage_name("acme", "s", "e1000000")})
            await queued(ledger.act(correct_usage, earlier, GATEWAY))
            await queued(ledger.act(add, Add(name="old", times=2), MIA))
            await queued(ledger.act(open_tally, OpenTally(name="new"), MIA))
            intent = OpenIntent.model_validate(
                {
                    "model_owner_id": "acme-models", "task_type": "classification", "round_id": "round-1",
                    "required_modalities": ["tabular"], "min_quality_score": "0.6",
                    "budget_total": {"amount": "120.00", "currency": "USD"}, "max_per_seller": 2,
                }
            )  # fmt: skip
            await queued(ledger.act(open_intent, intent, GATEWAY))
            held.release()
            first, metered, *_ = await asyncio.gather(*tasks)
            assert metered.position is not None
            assert first.position is not None
            await give(ledger, "acme", "1")

    asyncio.run(live())
    assert settings.database_url
    url = settings.database_url.get_secret_value()
    check_database(url)
    report = rebuild(url)
    assert report.identical, report.differences
    with psycopg.connect(url) as conn:
        row = conn.execute(
            "SELECT version, state ->> 'tokens_in' FROM records WHERE id = %s", [corrected]
        ).fetchone()
        # All of it was one batch: no checkpoint lies between the first reading and the correction.
        (start,) = conn.execute(
            "SELECT min(position) FROM events WHERE type = 'usage.metered' AND position > 2"
        ).fetchone() or (0,)
        (size,) = conn.execute("SELECT min(size) FROM checkpoints WHERE size > %s", [start]).fetchone() or (
            0,
        )
        (at,) = conn.execute(
            "SELECT max(position) FROM events WHERE type = 'usage.corrected'"
        ).fetchone() or (0,)
    assert row == (2, "0")
    assert start < at < size
    assert Usage.KIND == "usage"


def test_a_reading_that_another_process_took_meanwhile_is_found_though_its_state_is_copied(
    settings: Settings,
) -> None:
    """The other's row of current state would be met by COPY; the version in the log is met first."""

    async def live() -> None:
        async with open_runtime(settings) as one, open_runtime(settings) as other:
            asked = sent(COPY_EVENTS_MIN + 50)
            answers = await asyncio.gather(
                *(rt.ledger.act(meter_usage, asked, GATEWAY) for rt in (one, other) for _ in range(2))
            )
            assert sum(answer.event_count for answer in answers) == COPY_EVENTS_MIN + 50

    asyncio.run(live())
    assert settings.database_url
    url = settings.database_url.get_secret_value()
    assert check_database(url).size == COPY_EVENTS_MIN + 50
    assert rebuild(url).identical
