"""A billing run in a process of its own, which kills itself at the n-th state of its commits."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

from ops.clock import Clock
from ops.runtime import open_runtime
from projections.billing_run import BillingRun
from tests.real.service import settings_on


async def run(url: str, data_dir: str, ahead_ns: str, stop: str) -> None:
    """Bill until the stop is reached."""
    left = [int(stop)]

    def observe(_: int) -> None:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    clock = Clock(lambda: time.time_ns() + int(ahead_ns))
    async with open_runtime(settings_on(url, Path(data_dir)), observe, clock) as runtime:
        await BillingRun(runtime).run()


if __name__ == "__main__":
    asyncio.run(run(*sys.argv[1:]))
