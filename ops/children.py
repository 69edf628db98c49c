"""A child process that is kept alive: started again when it ends, and stopped with us, however we end.

The child holds the reading end of a pipe whose other end is ours alone: when we are killed, the pipe closes and the
child ends itself (`end_with_parent`).
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from ops import telemetry
from ops.tasks import stop

log = telemetry.logger(__name__)

PAUSE_S_MIN = 0.5
PAUSE_S_MAX = 30.0
# A child that ran this long was well; the next pause is short again.
WELL_S = 30.0
STOP_S_MAX = 15.0


class Child:
    """One program of ours, run beside this process until `close`."""

    def __init__(self, name: str, words: Sequence[str]) -> None:
        self.name = name
        self._words = [sys.executable, *words]
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start it, and start it again whenever it ends."""
        self._task = asyncio.get_running_loop().create_task(self._keep())

    async def close(self) -> None:
        """Ask it to end, and wait until it has."""
        await stop(self._task)
        if self._process is not None and self._process.returncode is None:
            await _stop(self._process)

    async def _keep(self) -> None:
        pause_s = PAUSE_S_MIN
        while True:
            started_s = time.monotonic()
            self._process = await asyncio.create_subprocess_exec(*self._words, stdin=subprocess.PIPE)
            telemetry.CHILD_STARTS.labels(self.name).inc()
            status = await self._process.wait()
            if time.monotonic() - started_s > WELL_S:
                pause_s = PAUSE_S_MIN
            log.warning("child_ended", child=self.name, status=status, retry_s=pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(PAUSE_S_MAX, pause_s * 2)


async def _stop(process: asyncio.subprocess.Process) -> None:
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_S_MAX)
    except TimeoutError:
        process.kill()
        await process.wait()


def end_with_parent() -> None:
    """End this process in an orderly way once the pipe from its parent closes."""

    def watch() -> None:
        while os.read(0, 1_024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
