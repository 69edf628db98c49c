"""A child process of the house: started again when it dies, stopped with its parent, however that ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from ops.children import Child

CHILD = (
    "import os, sys, time\n"
    "from ops.children import end_with_parent\n"
    "end_with_parent()\n"
    "open(sys.argv[1], 'a').write(f'{os.getpid()}\\n')\n"
    "time.sleep(600)\n"
)
PARENT = (
    "import asyncio, sys\n"
    "from ops.children import Child\n"
    "async def live():\n"
    "    Child('test', ['-c', sys.argv[1], sys.argv[2]]).start()\n"
    "    await asyncio.sleep(600)\n"
    "asyncio.run(live())\n"
)
WAIT_S_MAX = 20.0


def pids(place: Path, count: int) -> list[int]:
    """Wait until so many children have said who they are."""
    until = time.monotonic() + WAIT_S_MAX
    while True:
        found = [int(line) for line in place.read_text().split()] if place.exists() else []
        if len(found) >= count:
            return found
        assert time.monotonic() < until, f"{found} came, {count} were awaited"
        time.sleep(0.05)


def gone(pid: int) -> bool:
    """Wait for the end of a process."""
    until = time.monotonic() + WAIT_S_MAX
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def test_a_child_that_dies_is_started_again_and_ends_when_it_is_closed(tmp_path: Path) -> None:
    place = tmp_path / "pids"

    async def story() -> None:
        child = Child("test", ["-c", CHILD, str(place)])
        child.start()
        (first,) = await asyncio.to_thread(pids, place, 1)
        os.kill(first, signal.SIGKILL)
        second = (await asyncio.to_thread(pids, place, 2))[-1]
        assert second != first
        await child.close()
        assert await asyncio.to_thread(gone, second)

    asyncio.run(story())


def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path, repository_root: Path) -> None:
    place = tmp_path / "pids"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD, str(place)], cwd=repository_root)
    try:
        (child,) = pids(place, 1)
    finally:
        parent.kill()
        parent.wait()
    assert gone(child)
