"""Tasks that run in the background, and how they are stopped."""

from __future__ import annotations

import asyncio
from typing import Any

AGAIN_S = 5.0


async def stop(task: asyncio.Task[Any] | None, again_s: float = AGAIN_S) -> None:
    """Cancel a task, again and again until it has ended.

    Once is not enough: a driver may turn what it was cancelled with into an error of its own, which a loop takes for an
    outage and goes on. What a task ended with by itself is raised.
    """
    if task is None:
        return
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=again_s)
    if not task.cancelled():
        task.result()
