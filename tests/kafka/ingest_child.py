"""An ingest in a process of its own that is going to be killed: it says on stdout how far it is."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from domain.errors import BrokerUnavailableError
from ops.runtime import open_runtime
from ops.settings import LogLevel
from ops.telemetry import configure_logging
from projections.ingest import Ingest
from tests.kafka.world import kafka_settings


def say(**facts: Any) -> None:
    """Write one line at once."""
    os.write(1, json.dumps(facts).encode() + b"\n")


async def live(plan: dict[str, Any]) -> None:
    """Take messages in until killed, or stop for good at a step for the nth time."""
    configure_logging(LogLevel.ERROR)
    left = plan.get("nth", 1)

    def observe(step: int) -> None:
        nonlocal left
        say(step=step)
        if step == plan.get("step"):
            left -= 1
            if left == 0:
                say(at=step)
                time.sleep(600)

    settings = kafka_settings(
        plan["url"], Path(plan["data_dir"]), plan["bootstrap"], plan["origin"], log_level=LogLevel.ERROR
    )
    async with open_runtime(settings) as runtime:
        say(ready=True)
        ingest = Ingest(runtime, topic=plan["topic"], messages_max=plan["messages_max"], observe=observe)
        while True:
            with suppress(BrokerUnavailableError):
                await ingest.run()
            await asyncio.sleep(0.2)


if __name__ == "__main__":
    asyncio.run(live(json.loads(sys.argv[1])))
