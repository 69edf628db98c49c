"""The words `soma follow` and `soma rebuild`: what reads the log and keeps it elsewhere."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ops.settings import Settings

DataDir = Annotated[
    Path | None, typer.Option(help="Directory of everything embedded; SOMA_DATA_DIR otherwise.")
]
Embedded = Annotated[bool, typer.Option("--embedded", help="Use the data directory even where URLs are set.")]
Names = Annotated[
    list[str] | None,
    typer.Argument(
        help="Followers by name, such as kafka.relay, or by kind, such as clickhouse; all otherwise."
    ),
]
MetricsPort = Annotated[
    int | None, typer.Option(help="Port for /metrics of this process, 0 for any; none otherwise.")
]


def follow(
    names: Names = None,
    data_dir: DataDir = None,
    embedded: Embedded = False,
    metrics_port: MetricsPort = None,
    owned: Annotated[bool, typer.Option("--owned", hidden=True)] = False,
) -> None:
    """Run followers of the log until stopped: ClickHouse, Kafka, webhooks, nightly reconciliation."""
    from api.cli import load_settings
    from ops.children import end_with_parent
    from ops.telemetry import configure_logging, serve_metrics
    from projections.runner import chosen

    settings = load_settings(data_dir=data_dir, embedded=embedded)
    configure_logging(settings.log_level, settings.log_format)
    wanted = chosen(settings, names or [])
    if metrics_port is not None:
        print(f"metrics on http://127.0.0.1:{serve_metrics(metrics_port)}/metrics", file=sys.stderr)
    if owned:
        end_with_parent()
    asyncio.run(_follow(settings, wanted))


async def _follow(settings: Settings, wanted: list[str]) -> None:
    from ops.runtime import open_runtime
    from ops.telemetry import logger
    from projections.runner import follow as run

    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    stopping = False

    def stop() -> None:
        nonlocal stopping
        if not stopping:
            stopping = True
            task.cancel()
            # A call to a broker that is gone cannot be cancelled. Followers lose nothing by being cut off.
            last_word = threading.Timer(settings.shutdown_grace_s, os._exit, [0])
            last_word.daemon = True
            last_word.start()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    log = logger(__name__)
    try:
        async with open_runtime(settings) as runtime:
            log.info("following", followers=wanted)
            await run(runtime, wanted)
    except asyncio.CancelledError:
        if not stopping:
            raise
    log.info("followers_stopped")


def rebuild(
    name: Annotated[str, typer.Argument(help="A follower of ClickHouse, such as clickhouse.billing.")],
    data_dir: DataDir = None,
) -> None:
    """Rebuild a projection from the log beside the live one, compare, and swap them; readers see one or the other."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from api.cli import load_settings
    from projections.groups import group_of

    settings = load_settings(data_dir=data_dir)
    group_of(name)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(name, total=None)

        def progress(position: int, size: int) -> None:
            bar.update(task, completed=position, total=size)

        report = asyncio.run(_rebuild(settings, name, progress))
    print(report)


async def _rebuild(settings: Settings, name: str, progress: Callable[[int, int], None]) -> str:
    from ops.clickhouse import open_clickhouse
    from ops.clickhouse_migrate import migrate_clickhouse
    from ops.runtime import database
    from projections.rebuild import rebuild as run

    async with database(settings) as url, open_clickhouse(settings) as clickhouse:
        await migrate_clickhouse(clickhouse, settings.clickhouse_cluster)
        return str(await run(clickhouse, url, name, progress))
