"""Tasks in the background end when they are stopped."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from ops.tasks import stop


def test_a_task_that_takes_its_cancellation_for_an_outage_is_stopped_all_the_same() -> None:
    async def story() -> int:
        outages = 0

        async def loop() -> None:
            nonlocal outages
            while True:
                with suppress(OSError):
                    try:
                        await asyncio.sleep(3_600)
                    except asyncio.CancelledError as cut:
                        outages += 1
                        if outages < 3:
                            raise OSError("the connection was lost") from cut
                        raise

        task = asyncio.create_task(loop())
        await asyncio.sleep(0)
        await asyncio.wait_for(stop(task, again_s=0.01), 30)
        assert task.cancelled()
        return outages

    assert asyncio.run(story()) == 3


def test_what_a_task_ended_with_by_itself_is_raised() -> None:
    async def fail() -> None:
        raise ValueError("a bug")

    async def story() -> None:
        task = asyncio.create_task(fail())
        await asyncio.wait([task])
        await stop(task)

    with pytest.raises(ValueError, match="a bug"):
        asyncio.run(story())
    asyncio.run(stop(None))
