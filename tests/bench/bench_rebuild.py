"""Measure how fast the state is rebuilt from the log, against nothing but reading the same records in log order."""

from __future__ import annotations

import asyncio
import time

from ops.postgres import connect_owner
from ops.rebuild import rebuild
from tests.bench.bench_log import ledger_creates, ledger_uses_one
from tests.bench.bench_transfers import fill, through_gate
from tests.bench.figures import Figure, compared, open_house, run


def plain_read(url: str) -> float:
    """Read every record once; give records a second."""
    started, count = time.perf_counter(), 0
    with (
        connect_owner(url) as connection,
        connection.transaction(),
        connection.cursor("all", binary=True) as cursor,
    ):
        cursor.itersize = 10_000
        for _ in cursor.execute("SELECT record FROM events ORDER BY position"):
            count += 1
    return count / (time.perf_counter() - started)


def rebuild_log() -> list[Figure]:
    """Measure a rebuild with comparison over creations, changes of one aggregate, and transfers."""

    async def measure() -> list[Figure]:
        async with open_house() as house:
            await fill(house)
            for turn in (ledger_creates(house), await ledger_uses_one(house), through_gate(house)):
                await turn()
            url = house.runtime.url
            read = await asyncio.to_thread(plain_read, url)
            report = await asyncio.to_thread(rebuild, url)
        assert report.identical, report
        return [compared("log.rebuild", "events/s", report.events_per_s, read)]

    return run(measure)


FIGURES = {"log.rebuild": rebuild_log}
