"""Workers in a process that may be killed or stopped: it says when it is up, and works until its end."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from ops.children import end_with_parent
from ops.runtime import open_runtime
from projections.revocations import RevocationWatch
from projections.timers import Timers
from tests.real.service import settings_on


async def work(kind: str, database_url: str, data_dir: Path) -> None:
    """Work for ever."""
    async with open_runtime(settings_on(database_url, data_dir)) as runtime:
        worker = Timers(runtime) if kind == "timers" else RevocationWatch(runtime)
        worker.start()
        os.write(1, b"up\n")
        await asyncio.sleep(3_600)


if __name__ == "__main__":
    end_with_parent()
    asyncio.run(work(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
