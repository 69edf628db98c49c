"""A service under load that is going to be killed: money, offers and usage, as fast as it is told."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from domain.billing.usage import MeterUsage, meter_usage
from domain.errors import LedgerError
from domain.market.offers import ListOffer, list_offer
from domain.values import moment_text
from ops.runtime import Runtime, open_runtime
from ops.settings import LogLevel
from tests.kafka.world import kafka_settings
from tests.real.log.world import give, member, pay

TENANTS = [f"w{n}" for n in range(6)]
WRITERS = 6
PAUSE_S = 0.01


def say(**facts: Any) -> None:
    """Write one line at once."""
    os.write(1, json.dumps(facts).encode() + b"\n")


def offered(chance: random.Random) -> ListOffer:
    """Make up an offer."""
    price = Decimal(chance.randrange(1, 10**6)) / 10**4
    return ListOffer.model_validate(
        {
            "seller_node_id": f"node-{chance.randrange(50)}",
            "dataset_fingerprint": "sha3-512:" + chance.randbytes(64).hex(),
            "title": f"offer {chance.randrange(10**9)}",
            "sample_count": chance.randrange(1, 10_000),
            "quality_score": str(Decimal(chance.randrange(100)) / 100),
            "allowed_tasks": ["classification"],
            "price_per_round": {"amount": str(price), "currency": "EUR"},
        }
    )


def read(chance: random.Random) -> MeterUsage:
    """Make up some readings, now and then one that was sent before."""
    reading = {
        "source": "gateway",
        "occurred_at": moment_text(datetime.now(UTC)),
        "provider": chance.choice(["north", "south"]),
        "model": chance.choice(["small", "large"]),
        "tokens_in": chance.randrange(10_000),
        "tokens_out": chance.randrange(10_000),
        "cost": {"amount": str(Decimal(chance.randrange(10**6)) / 10**8), "currency": "USD"},
    }
    return MeterUsage.model_validate(
        {"readings": [reading | {"event_id": str(chance.randrange(10**7))} for _ in range(4)]}
    )


async def write(runtime: Runtime, chance: random.Random) -> None:
    """Ask for one thing."""
    payer, payee = chance.sample(TENANTS, 2)
    kind = chance.randrange(10)
    if kind < 6:
        await pay(runtime.ledger, payer, payee, f"0.{chance.randrange(1, 10**9):09d}")
    elif kind < 8:
        await runtime.ledger.act(meter_usage, read(chance), member(payer))
    elif kind < 9:
        await give(runtime.ledger, payee, f"{chance.randrange(1, 10)}.5")
    else:
        await runtime.ledger.act(list_offer, offered(chance), member(payer))


async def live(plan: dict[str, Any]) -> None:
    """Write until killed, or until there is a file named `stop`."""
    place = Path(plan["data_dir"])
    settings = kafka_settings(plan["url"], place, plan["bootstrap"], plan["origin"], log_level=LogLevel.ERROR)
    async with open_runtime(settings) as runtime:
        for tenant in TENANTS:
            await give(runtime.ledger, tenant, "1000")
        say(ready=True)

        async def writer(number: int) -> None:
            chance = random.Random(f"{plan['run']}-{number}")
            while not (place / "stop").exists():
                try:
                    await write(runtime, chance)
                except LedgerError as refusal:
                    if refusal.status >= 500:
                        raise
                await asyncio.sleep(PAUSE_S)

        await asyncio.gather(*(writer(number) for number in range(WRITERS)))
    say(finished=True)


if __name__ == "__main__":
    asyncio.run(live(json.loads(sys.argv[1])))
