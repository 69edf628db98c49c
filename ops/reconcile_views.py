"""The documented views as ClickHouse has them, held against how this release makes them.

A view cannot fall behind its tables, but it can be another one: left from an earlier release, changed by hand, or
replaced by a table that was filled once. Both texts are printed by ClickHouse itself before they are compared.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from ops.clickhouse import ClickHouse
from ops.clickhouse_migrate import clickhouse_migrations, on_cluster, statements

_VIEW = re.compile(r"CREATE OR REPLACE VIEW bi\.(\w+)")
_SELECT = re.compile(
    r"^AS\s+((?:SELECT|WITH)\b.*?)(?:\nCOMMENT '(?:[^'\\]|\\.|'')*')?\s*\Z", re.DOTALL | re.MULTILINE
)


class WrongView(NamedTuple):
    """A view that is not what this release makes; `there` is None where it is missing."""

    name: str
    wanted: str
    there: str | None


def view_statements(directory: Path | None = None) -> dict[str, str]:
    """Read the statement that makes each documented view; a later file replaces an earlier one's."""
    found: dict[str, str] = {}
    for file in sorted((directory or clickhouse_migrations()).glob("[0-9]*.sql")):
        for statement in statements(file.read_text(encoding="utf-8")):
            if (named := _VIEW.match(statement)) is not None:
                found[named[1]] = statement
    return found


def select_of(statement: str) -> str:
    """Take the query out of a statement that makes a view."""
    found = _SELECT.search(statement)
    assert found is not None, f"no query in {statement[:80]!r}"
    return found[1]


async def wrong_views(clickhouse: ClickHouse) -> tuple[int, list[WrongView]]:
    """Compare every documented view; give their number and those that are wrong.

    Errors: unavailable, clickhouse_refused.
    """
    rows = await clickhouse.rows("SELECT name, engine, as_select FROM system.tables WHERE database = 'bi'")
    there = {str(name): str(query) if engine == "View" else f"{engine} table" for name, engine, query in rows}
    wanted = view_statements()
    wrong = []
    for name, statement in sorted(wanted.items()):
        printed = await clickhouse.rows(
            "SELECT formatQuerySingleLine({q:String})", {"q": select_of(statement)}
        )
        if there.get(name) != printed[0][0]:
            wrong.append(WrongView(name, str(printed[0][0]), there.get(name)))
    return len(wanted), wrong


async def mend_views(clickhouse: ClickHouse, names: list[str], cluster: str | None = None) -> None:
    """Make views again as this release has them; what stands in their place is dropped.

    Errors: unavailable, clickhouse_refused.
    """
    wanted = view_statements()
    for name in names:
        rows = await clickhouse.rows(
            "SELECT engine FROM system.tables WHERE database = 'bi' AND name = {name:String}", {"name": name}
        )
        if rows and rows[0][0] != "View":
            await clickhouse.command(on_cluster(f"DROP TABLE IF EXISTS bi.{name}", cluster))
        await clickhouse.command(on_cluster(wanted[name], cluster))
