"""A follower or a rebuild in a process of its own, which is going to be killed; it says when it is ready and done.

Told to, it stops for good when it comes to a numbered state for the nth time, and says so.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from ops.clickhouse import ClickHouse
from ops.listen import Listener
from ops.postgres import reader_pool
from ops.reads import LogReader
from projections.follower import Follower
from projections.rebuild import rebuild
from projections.warehouse import Warehouse


def say(**facts: Any) -> None:
    """Write one line at once."""
    os.write(1, json.dumps(facts).encode() + b"\n")


def stopper(state_wanted: int | None, nth: int) -> Callable[[int], None]:
    """Stop for good at a state."""
    left = nth

    def observe(state: int) -> None:
        nonlocal left
        if state == state_wanted:
            left -= 1
            if left == 0:
                say(at=int(state))
                time.sleep(600)

    return observe


async def live(plan: dict[str, Any]) -> None:
    """Do what the plan says."""
    observe = stopper(plan.get("state"), plan.get("nth", 1))
    pool = reader_pool(plan["url"], 2)
    await pool.open()
    reader = LogReader(pool)
    size = await reader.size()

    async def follow(name: str, listener: Listener) -> None:
        clickhouse = await ClickHouse.open(*plan["service"])
        sink = Warehouse(
            name,
            plan["url"],
            clickhouse,
            reader.versions,
            observe=observe,
            rollup_pause_s=plan.get("pause_s", 0.0),
        )
        follower = Follower(name, sink, plan["url"], listener, batch_max=plan["batch_max"], linger_s=0)
        await follower.run(until=size)
        await sink.open()
        await sink.settle()
        await sink.close()
        await clickhouse.close()

    say(ready=True)
    if "rebuild" in plan:
        clickhouse = await ClickHouse.open(*plan["service"])
        report = await rebuild(clickhouse, plan["url"], plan["rebuild"], observe=observe)
        say(report=str(report))
        await clickhouse.close()
    else:
        async with Listener(plan["url"]) as listener:
            await asyncio.gather(*(follow(name, listener) for name in plan["names"]))
    await pool.close()
    say(finished=True)


if __name__ == "__main__":
    asyncio.run(live(json.loads(sys.argv[1])))
