"""The word `soma billing`: holding what billing teams read against the log.

A difference ends with status 1, and is named by the records it is about.
"""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

# Everything else is imported where it is used, so that other words do not wait for it.
if TYPE_CHECKING:
    from domain.billing.reconciliation import Difference
    from ops.settings import Settings
    from projections.reconcile import Comparison, Progress, Scope
    from projections.reconciliations import Reconciled

billing_app = typer.Typer(help="What billing teams read, held against the log.", no_args_is_help=True)


@billing_app.callback()
def billing() -> None:
    """Hold what billing teams read against the log."""


@billing_app.command("reconcile")
def reconcile_followers(
    data_dir: Annotated[
        Path | None, typer.Option(help="Directory of everything embedded; SOMA_DATA_DIR otherwise.")
    ] = None,
    as_of: Annotated[int | None, typer.Option(min=0, help="The last position to look at.")] = None,
    account: Annotated[str | None, typer.Option(help="One account alone, such as wallet.acme.USD.")] = None,
    deep: Annotated[bool, typer.Option("--deep", help="Hash every mirrored record again.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Compare only: write no record of it.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Rebuild what differs from the log, and compare again.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Compare the log with ClickHouse by account, currency and day, and name every difference."""
    from api.cli import load_settings
    from projections.reconcile import Scope

    if repair and (dry_run or account or as_of is not None):
        raise typer.BadParameter("a repair is about everything, and is written down", param_hint="--repair")
    settings = load_settings(data_dir=data_dir)
    with _watched(as_json) as progress:
        done, repaired = asyncio.run(
            _reconciled(settings, Scope(as_of, account, deep), not dry_run, repair, progress)
        )
    if as_json:
        _print_json(done, repaired)
    else:
        _show(done, repaired, account)
    raise typer.Exit(0 if done.comparison.is_clean else 1)


async def _reconciled(
    settings: Settings, scope: Scope, written: bool, repairing: bool, progress: Progress
) -> tuple[Reconciled, list[str]]:
    from domain.ledger import Caller
    from ops.clickhouse import open_clickhouse
    from ops.clickhouse_migrate import migrate_clickhouse
    from ops.runtime import open_runtime
    from projections.reconciliations import reconcile, repair

    caller = Caller(getpass.getuser(), "platform", frozenset({"operator"}))
    async with open_runtime(settings) as runtime, open_clickhouse(settings) as clickhouse:
        await migrate_clickhouse(clickhouse, settings.clickhouse_cluster)
        done = await reconcile(runtime, clickhouse, scope, caller, progress=progress, written=written)
        if not repairing or done.comparison.is_clean:
            return done, []
        repaired = await repair(runtime, clickhouse, done.comparison)
        return await reconcile(runtime, clickhouse, scope, caller, progress=progress), repaired


# --------------------------------------------------------------------------- what is shown


@contextmanager
def _watched(quiet: bool) -> Iterator[Progress]:
    """Say on stderr what is being compared."""
    from rich.console import Console

    with Console(stderr=True, quiet=quiet).status("comparing") as status:
        yield lambda what, done: status.update(f"comparing {what}, {done:,} rows")


def _show(done: Reconciled, repaired: list[str], account: str | None) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    found = done.comparison
    console = Console(highlight=False)
    for what in repaired:
        console.print(f"[yellow]put right[/]: {what}")
    table = Table("table", "below position", "rows", "groups", box=None)
    for name, bound in found.bounds.items():
        rows, groups = found.rows.get(name, 0), found.groups.get(name, 0)
        table.add_row(name, f"{bound:,}", f"{rows:,}", f"{groups:,}")
    console.print(table)
    console.print(
        f"log {found.log_size:,} records; {found.accounts:,} balances, {found.views} views; {found.seconds:.2f} s"
    )
    if done.record is not None and done.position is not None:
        console.print(f"written down as {done.record.id} at position {done.position:,}")
    if account and not found.rows.get("entries"):
        console.print(f"[yellow]no entry[/]: the log knows nothing of the account {escape(account)}")
    if found.is_clean:
        console.print("[green]clean[/]: ClickHouse agrees with the log to the last digit")
    else:
        _show_differences(console, found)


def _show_differences(console: Any, found: Comparison) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("kind", "table", "where", box=None)
    table.add_column("log -> ClickHouse", overflow="fold")
    for difference in found.found.listed:
        words = "; ".join(f"{c.column}: {c.log} -> {c.follower}" for c in difference.changes)
        colour = "yellow" if difference.harmless else "red"
        table.add_row(
            f"[{colour}]{difference.kind}[/]", difference.table, escape(_where(difference)), escape(words)
        )
    console.print(table)
    unlisted = found.found.count - len(found.found.listed)
    if unlisted > 0:
        console.print(f"and {unlisted:,} more")
    if not found.found.harmful_count:
        console.print("[yellow]no figure is wrong[/]: rows that were sent twice collapse with the next merge")
    console.print("`soma billing reconcile --repair` fills what differs again from the log")


def _where(difference: Difference) -> str:
    places = ""
    if difference.position is not None:
        more = f"-{difference.last}" if difference.last != difference.position else ""
        places = f"position {difference.position}{more}"
    rows = f"{difference.rows:,} rows" if difference.rows > 1 else ""
    address = f"{difference.address[:25]}..." if difference.address else ""
    return ", ".join(
        part for part in (places, rows, difference.key, difference.stream or "", address) if part
    )


def _print_json(done: Reconciled, repaired: list[str]) -> None:
    import msgspec
    import orjson

    found = done.comparison
    shown = {
        "clean": found.is_clean,
        "bound": found.bound,
        "bounds": found.bounds,
        "log_size": found.log_size,
        "rows": found.rows,
        "groups": found.groups,
        "accounts": found.accounts,
        "views": found.views,
        "seconds": round(found.seconds, 3),
        "difference_count": found.found.count,
        "harmful_count": found.found.harmful_count,
        "differences": msgspec.to_builtins(found.found.listed),
        "repaired": repaired,
        "id": done.record.id if done.record else None,
        "position": done.position,
    }
    print(orjson.dumps(shown, option=orjson.OPT_INDENT_2).decode())
