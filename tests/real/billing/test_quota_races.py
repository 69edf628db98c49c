"""Many want the last of a limit at once, at one gate, at two, and in two processes: the right number get it."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from domain.billing.budgeting import QuotaState, SetQuota
from domain.billing.customers import Enroll, enroll
from domain.billing.price_books import PublishPrices, publish_prices
from domain.billing.quotes import AskQuote, quote
from domain.billing.usage import MeterUsage, meter_usage
from domain.values import Money
from ops.runtime import Runtime, open_runtime
from projections.billing_counts import count_next
from projections.quotas import set_limits, show
from tests.real.billing.quota_child import GATEWAY, wish
from tests.real.log.world import OPERATOR, check_database, settings_for

RACERS = 64
PLAIN = [{"id": "in", "meter": "tokens_in", "price": {"model": "per_unit", "price": "1", "per": "1000"}}]

Story = Callable[[list[Runtime]], Awaitable[None]]


def on(url: str, data_dir: Path, story: Story, writers: int = 1, amount: str = "7") -> None:
    """Open one or several gates on one log, with a customer and its limit, play, and check what is left."""

    async def live() -> None:
        async with AsyncExitStack() as stack:
            gates = [
                await stack.enter_async_context(open_runtime(settings_for(url, data_dir)))
                for _ in range(writers)
            ]
            await begin(gates[0], amount)
            await story(gates)

    asyncio.run(live())
    check_database(url)


async def begin(runtime: Runtime, amount: str) -> None:
    act = runtime.ledger.act
    prices = {"book": "plain", "currency": "USD", "charges": PLAIN}
    await act(publish_prices, PublishPrices.model_validate(prices), OPERATOR)
    await act(enroll, Enroll(tenant="acme", book="platform.plain"), OPERATOR)
    limits = [{"id": "all", "amount": {"amount": amount, "currency": "USD"}}]
    await set_limits(runtime, SetQuota.model_validate({"tenant": "acme", "limits": limits}), OPERATOR)


async def stands(runtime: Runtime) -> Any:
    """Show the limit as the log has it."""
    (found,) = msgspec.json.decode(await show(runtime, "acme", GATEWAY), type=QuotaState).limits
    return found


def usd(amount: str) -> Money:
    return Money.parse(amount, "USD")


@pytest.mark.parametrize("writers", [1, 2])
def test_of_64_who_want_the_last_seven_seven_get_one(database_url: str, tmp_path: Path, writers: int) -> None:
    async def story(gates: list[Runtime]) -> None:
        heard = await asyncio.gather(*(wish(gates[n % writers]) for n in range(RACERS)))
        assert Counter(heard) == {"ok": 7, "quota_exceeded": RACERS - 7}
        found = await stands(gates[0])
        assert (found.reserved, found.left, found.over) == (usd("7"), usd("0"), usd("0"))

    on(database_url, tmp_path, story, writers)


def test_of_64_in_two_processes_seven_get_one(
    database_url: str, tmp_path: Path, repository_root: Path
) -> None:
    async def story(gates: list[Runtime]) -> None:
        asked = {"url": database_url, "data_dir": str(tmp_path), "wishes": RACERS // 2}
        command = ["-m", "tests.real.billing.quota_child", json.dumps(asked)]
        programs = [
            await asyncio.create_subprocess_exec(sys.executable, *command, stdout=PIPE, cwd=repository_root)
            for _ in range(2)
        ]
        said = [json.loads((await program.communicate())[0]) for program in programs]
        assert [program.returncode for program in programs] == [0, 0]
        assert sum(map(Counter, said), Counter()) == {"ok": 7, "quota_exceeded": RACERS - 7}
        assert (await stands(gates[0])).left == usd("0")

    on(database_url, tmp_path, story)


@pytest.mark.parametrize("writers", [1, 2])
def test_readings_at_two_gates_are_counted_each_once_and_come_to_the_quote(
    database_url: str, tmp_path: Path, writers: int
) -> None:
    async def story(gates: list[Runtime]) -> None:
        now = gates[0].clock()

        async def send(number: int) -> None:
            reading = {
                "source": "gw", "event_id": f"e{number % 40}", "occurred_at": now, "provider": "p", "model": "m",
                "tokens_in": 100, "tokens_out": 0,
            }  # fmt: skip
            command = MeterUsage.model_validate({"readings": [reading]})
            await gates[number % writers].ledger.act(meter_usage, command, GATEWAY)

        # Some of them twice, at both gates, and reservations between them.
        wishes = [wish(gates[n % writers], tokens_in=100) for n in range(8)]
        await asyncio.gather(*(send(n) for n in range(60)), *wishes)
        found = await stands(gates[0])
        assert (found.spent, found.reserved) == (usd("4"), usd("0.8"))
        counted = (await count_next(gates[0].reader, ["acme"]))["acme"]

        async def gather() -> dict[str, Any]:
            return {"counted": counted}

        answer = await gates[0].ledger.act(quote, AskQuote(tenant="acme"), OPERATOR, gather=gather)
        assert msgspec.json.decode(answer.body)["bill"]["subtotal"] == msgspec.to_builtins(found.spent)

    on(database_url, tmp_path, story, writers)


def test_limits_set_while_readings_come_in_miss_none_and_count_none_twice(
    database_url: str, tmp_path: Path
) -> None:
    async def story(gates: list[Runtime]) -> None:
        now = gates[0].clock()

        async def send(number: int) -> None:
            reading = {
                "source": "gw", "event_id": f"e{number}", "occurred_at": now, "provider": "p", "model": "m",
                "tokens_in": 100, "tokens_out": 0, "rental_id": f"r{number % 3}",
            }  # fmt: skip
            command = MeterUsage.model_validate({"readings": [reading]})
            await gates[number % 2].ledger.act(meter_usage, command, GATEWAY)

        async def limit(number: int) -> None:
            # Each names another rental, so each begins to count anew.
            limits = [
                {"id": f"r{n}", "amount": {"amount": "99", "currency": "USD"}, "rental_id": f"r{n}"}
                for n in range(number + 1)
            ]
            command = SetQuota.model_validate({"tenant": "acme", "limits": limits})
            await set_limits(gates[number % 2], command, OPERATOR)

        await asyncio.gather(*(send(n) for n in range(90)), *(limit(n) for n in range(3)))
        await limit(2)
        state = msgspec.json.decode(await show(gates[1], "acme", GATEWAY), type=QuotaState)
        assert [one.spent for one in state.limits] == [usd("3")] * 3

    on(database_url, tmp_path, story, writers=2)
