"""What the reader's account may say at all: one statement that reads, and nothing that reaches files.

The second line of defence behind the gate for people. What it lets through still meets the role, `readonly`, the
limits, and the kernel.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from ops.engine.database import Database
from ops.engine.refusals import Refused
from ops.engine.statements import Insert, Statement

_ALLOWED = frozenset(
    "SelectWithUnionQuery SelectIntersectExceptQuery ShowTablesQuery ShowColumnsQuery DescribeQuery "
    "ExistsTableQuery ExistsViewQuery ExistsDatabaseQuery".split()
)
# These reach files without asking for any right, or tell what a reader has no use for.
_FUNCTIONS = frozenset(
    "file filesystemavailable filesystemcapacity filesystemunreserved getserversetting getosskernelversion "
    "catboostevaluate".split()
)
_TABLE_FUNCTIONS = frozenset(
    "numbers numbers_mt zeros zeros_mt generate_series generateseries values null view".split()
)


def check_reader(database: Database, statement: Statement) -> None:
    """Refuse what is not one plain reading."""
    if isinstance(statement, Insert):
        raise Refused(497, "reader: Not enough privileges", "ACCESS_DENIED")
    tree = json.loads(database.tree(statement.sql))
    if tree.get("type") not in _ALLOWED:
        raise Refused(497, f"reader: {tree.get('type')} is not for readers", "ACCESS_DENIED")
    for node in _nodes(tree):
        _check_node(node)


def _check_node(node: dict[str, Any]) -> None:
    if node.get("out_file") is not None:
        raise Refused(497, "reader: INTO OUTFILE is not for readers", "ACCESS_DENIED")
    for key in ("name", "func_name", "function_name"):
        name = node.get(key)
        if isinstance(name, str) and name.lower() in _FUNCTIONS and node.get("type") != "Identifier":
            raise Refused(497, f"reader: the function {name} is not for readers", "ACCESS_DENIED")
    function = node.get("table_function")
    if isinstance(function, dict) and str(function.get("name", "")).lower() not in _TABLE_FUNCTIONS:
        raise Refused(
            497, f"reader: the table function {function.get('name')} is not for readers", "ACCESS_DENIED"
        )


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)
