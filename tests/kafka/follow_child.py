"""Followers in a process of their own that is going to be killed: ClickHouse's four and the relay."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from ops.runtime import open_runtime
from ops.settings import LogLevel
from ops.telemetry import configure_logging
from projections.runner import follow
from tests.kafka.house_child import say
from tests.kafka.world import kafka_settings


async def live(plan: dict[str, Any]) -> None:
    """Follow until killed."""
    settings = kafka_settings(
        plan["url"], Path(plan["data_dir"]), plan["bootstrap"], plan["origin"], log_level=LogLevel.ERROR
    )
    async with open_runtime(settings) as runtime:
        say(ready=True)
        await follow(runtime, ["clickhouse", "kafka.relay"])


if __name__ == "__main__":
    # What is logged goes to stderr; stdout is what the test reads.
    configure_logging(LogLevel.WARNING)
    asyncio.run(live(json.loads(sys.argv[1])))
