"""The word `soma timers`: what the clock decided about rentals, subscriptions, purchases and grants, written down."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING

from api.cli_follow import DataDir, Embedded, MetricsPort

if TYPE_CHECKING:
    from ops.settings import Settings


def timers(data_dir: DataDir = None, embedded: Embedded = False, metrics_port: MetricsPort = None) -> None:
    """Run the timers in a process of their own until stopped: what is over is ended and settled, what is due renewed.

    A service does this too, unless SOMA_TIMERS is off. Of all processes one leads and the others stand by.
    """
    from api.cli import load_settings
    from ops.telemetry import configure_logging, serve_metrics

    settings = load_settings(data_dir=data_dir, embedded=embedded)
    configure_logging(settings.log_level, settings.log_format)
    if metrics_port is not None:
        print(f"metrics on http://127.0.0.1:{serve_metrics(metrics_port)}/metrics", file=sys.stderr)
    asyncio.run(_run(settings))


async def _run(settings: Settings) -> None:
    from ops.runtime import open_runtime
    from ops.telemetry import logger
    from projections.revocations import RevocationWatch
    from projections.timers import Timers

    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    log = logger(__name__)
    async with open_runtime(settings) as runtime:
        workers = Timers(runtime), RevocationWatch(runtime)
        for worker in workers:
            worker.start()
        log.info("timers_started", pid=os.getpid())
        await stopping.wait()
        for worker in workers:
            await worker.close()
    log.info("timers_stopped")
