"""The workers of transfers in a process that is going to be killed: it stops for good at one of their states."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from ops.rego import open_engine
from ops.runtime import open_runtime
from projections.transfers import TransferRunner
from tests.real.service import settings_on


def say(**facts: Any) -> None:
    """Write one line at once."""
    os.write(1, json.dumps(facts).encode() + b"\n")


async def work(plan: dict[str, Any]) -> None:
    """Take up what was asked for, and stop at the state of the plan."""

    def observe(kind: str, state: int) -> None:
        if (kind, state) == (plan["kind"], plan["state"]):
            say(at=state)
            time.sleep(600)

    settings = settings_on(plan["database_url"], Path(plan["data_dir"]))
    async with open_runtime(settings) as runtime:
        runner = TransferRunner(runtime, open_engine(settings), observe)
        say(resumed=await runner.resume())
        await asyncio.sleep(600)


if __name__ == "__main__":
    asyncio.run(work(json.loads(sys.argv[1])))
