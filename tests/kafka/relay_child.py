"""A relay in a process of its own that is going to be killed: it says on stdout how far it is."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ops.listen import Listener
from ops.runtime import open_runtime
from ops.settings import LogLevel
from ops.telemetry import configure_logging
from projections.follower import Batch, Follower
from projections.relay import NAME, Relay
from tests.kafka.world import kafka_settings


def say(**facts: Any) -> None:
    """Write one line at once."""
    os.write(1, json.dumps(facts).encode() + b"\n")


class Speaking(Relay):
    """A relay that says what it has done."""

    async def open(self) -> int:
        position = await super().open()
        say(opened=position)
        return position

    async def apply(self, batch: Batch) -> None:
        await super().apply(batch)
        say(applied=batch.end)


def stopper(state_wanted: int | None, nth: int) -> Callable[[int], None]:
    """Stop the relay for good when it comes to a state for the nth time, and say so."""
    left = nth

    def observe(state: int) -> None:
        nonlocal left
        if state == state_wanted:
            left -= 1
            if left == 0:
                say(at=state)
                time.sleep(600)

    return observe


async def live(plan: dict[str, Any]) -> None:
    """Relay until killed, or until the log was relayed up to a position."""
    configure_logging(LogLevel.ERROR)
    settings = kafka_settings(
        plan["url"], Path(plan["data_dir"]), plan["bootstrap"], plan["origin"], log_level=LogLevel.ERROR
    )
    async with open_runtime(settings) as rt, Listener(rt.url) as listener:
        relay = Speaking(rt, stopper(plan.get("state"), plan.get("nth", 1)))
        follower = Follower(NAME, relay, rt.url, listener, batch_max=plan["batch_max"], linger_s=0)
        await follower.run(until=plan.get("until"))
        say(finished=True)


if __name__ == "__main__":
    asyncio.run(live(json.loads(sys.argv[1])))
