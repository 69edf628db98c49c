"""What the reader's account may say at all: one statement that reads, and nothing that reaches files.

The second line of defence behind the gate for people. What it lets through still meets the role, `readonly`, the
limits, and the kernel.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from ops.engine.database import Database
from ops.engine.refusals import Refused
from ops.engine.statements import Insert, Statement

_ALLOWED = frozenset(
    "SelectWithUnionQuery SelectIntersectExceptQuery ShowTablesQuery ShowColumnsQuery".split()
)
# The engine's parser has no tree for these; a name of a table is all they may hold.
_NAMING = re.compile(
    r"\s*(?:DESCRIBE|DESC|EXISTS)\s+(?:TABLE\s+|VIEW\s+)?(?P<name>\w+(?:\.\w+)?)\s*(?:FORMAT\s+\w+\s*)?;?\s*\Z",
    re.IGNORECASE | re.ASCII,
)
# These reach files without asking for any right, or tell what a reader has no use for.
_FUNCTIONS = re.compile(
    r"(?:file\w*|get(?:serversetting|oskernelversion|mergetreesetting)|oskernel\w*|catboost\w*|joinget\w*|dict\w+"
    r"|addressto\w+|demangle|tcpport|serveruuid|sleep\w*)\Z",
    re.IGNORECASE,
)
_TABLE_FUNCTIONS = frozenset(
    "numbers numbers_mt zeros zeros_mt generate_series generateseries values null view".split()
)
# The rest of `system` tells about the machine, the paths and the queries of others.
_SYSTEM_TABLES = frozenset(
    "one numbers numbers_mt zeros zeros_mt settings functions formats data_type_families keywords time_zones "
    "tables columns databases".split()
)


def check_reader(database: Database, statement: Statement) -> None:
    """Refuse what is not one plain reading."""
    if isinstance(statement, Insert):
        raise _denied("INSERT")
    naming = _NAMING.match(statement.sql)
    if naming:
        _check_table(naming["name"].split("."))
        return
    tree = json.loads(database.tree(statement.sql))
    if tree.get("type") not in _ALLOWED:
        raise _denied(str(tree.get("type")))
    for node in _nodes(tree):
        _check_node(node)


def check_reader_database(name: str) -> None:
    """Refuse a reader that wants to work in a database of others."""
    if name not in {"", "bi", "default", "__default__"}:
        raise Refused(497, f"reader: the database {name[:64]} is not for readers", "ACCESS_DENIED")


def _check_node(node: dict[str, Any]) -> None:
    kind = node.get("type")
    if node.get("out_file") is not None:
        raise _denied("INTO OUTFILE")
    if kind == "QueryParameter" and node.get("param_type") == "Identifier":
        raise _denied("a name given as a parameter")
    if "name_parts" in node:
        _check_table(node["name_parts"])
    # A bare name too: where no column has it, the engine takes it for the function, as in arrayMap(file, ['...']).
    if kind != "TableIdentifier":
        for key in ("name", "func_name", "function_name"):
            if _FUNCTIONS.match(str(node.get(key, ""))):
                raise _denied(f"the function {node[key]}")
    function = node.get("table_function")
    if isinstance(function, dict) and str(function.get("name", "")).lower() not in _TABLE_FUNCTIONS:
        raise _denied(f"the table function {function.get('name')}")


def _check_table(parts: list[str]) -> None:
    if parts[0] == "system" and len(parts) > 1 and parts[1] not in _SYSTEM_TABLES:
        raise _denied(f"the table system.{parts[1]}")


def _denied(what: str) -> Refused:
    return Refused(497, f"reader: {what} is not for readers", "ACCESS_DENIED")


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)
