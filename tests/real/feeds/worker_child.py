"""A webhook worker in a process of its own, that is going to be killed."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from ops.listen import Listener
from ops.runtime import open_runtime
from projections.webhooks import WebhookWorker
from tests.real.feeds.delivering import webhook_settings


async def work(url: str, data_dir: Path) -> None:
    """Deliver until killed."""
    settings = webhook_settings(url, data_dir, webhook_retry_delays_s=",".join(["0.02"] * 20))
    async with open_runtime(settings) as runtime, Listener(runtime.url) as listener:
        print("working", flush=True)
        await WebhookWorker(runtime, listener).run()


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1], Path(sys.argv[2])))
