"""The gate for people's SQL: what reaches the engine is printed from a checked tree, never what they wrote.

The engine's own parser turns a statement into a tree; the walk of `ops.sql_tree` permits it by name and scopes its
tables; the engine prints it again, and parses what it printed: only if that is the very tree that was checked, the
text is let through. So there is no second grammar here to disagree with the first.

Source: ClickHouse 26.9, functions parseQueryToJSON and formatQueryFromJSON.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ops.sql_allowed import (
    AGGREGATES,
    AGGREGATES_ANY_CASE,
    DATABASE,
    DATABASE_NAMES,
    FORMATS,
    FUNCTIONS,
    FUNCTIONS_ANY_CASE,
    HARMLESS_NAMES,
    IGNORED_SETTINGS,
    SETTINGS,
    SHOWN_SYSTEM_TABLES,
    TIMEZONE_SETTING,
)
from ops.sql_errors import SqlRefusal, denied
from ops.sql_tree import Node, Scope, Walk, function, literal, shown_names

STATEMENT_CHARS_MAX = 200_000
TREE_BYTES_MAX = 5_000_000
REMEMBERED_MAX = 1_000
REMEMBERED_CHARS_MAX = 20_000

_NAME = r"(?:`(?P<{0}q>[A-Za-z]\w{{0,127}})`|\"(?P<{0}d>[A-Za-z]\w{{0,127}})\"|(?P<{0}>[A-Za-z]\w{{0,127}}))"
_QUALIFIED = rf"(?:{_NAME.format('db')}\.)?{_NAME.format('table')}"
_FLAGS = re.IGNORECASE | re.ASCII | re.DOTALL
_TAIL = re.compile(r"\s+FORMAT\s+(\w{1,64})\s*$", _FLAGS)
_DESCRIBE = re.compile(rf"(?:DESCRIBE|DESC)\s+(?:TABLE\s+)?{_QUALIFIED}", _FLAGS)
_EXISTS = re.compile(rf"EXISTS\s+(?:(?:TABLE|VIEW)\s+)?(?!DATABASE\s){_QUALIFIED}", _FLAGS)
_COLUMNS_OF = """
    SELECT name, type, '' AS default_type, '' AS default_expression, comment, '' AS codec_expression,
           '' AS ttl_expression
    FROM system.columns ORDER BY position"""
_BEGINS_OTHERWISE = re.compile(r"(?:DESCRIBE|DESC|EXISTS)\b", _FLAGS)
_TIMEZONE = re.compile(r"[A-Za-z0-9_/+-]{1,64}", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,18}(?:\.[0-9]{1,9})?", re.ASCII)

# Differences of a printed tree that change how it looks and not what it means.
_COSMETIC = frozenset({"is_operator", "nulls_direction_was_explicitly_specified"})


class Engine(Protocol):
    """What the gate asks of the engine, through the service's account."""

    async def parse(self, statement: str) -> str:
        """Give the tree of a statement as JSON.

        A statement the engine cannot parse, or has no tree for, is a SqlRefusal.
        """

    async def functions(self) -> Sequence[str]:
        """List the names of all functions of the engine."""

    async def print(self, tree: str) -> tuple[str, str]:
        """Print a tree, and give the tree of what was printed."""


@dataclass(frozen=True)
class Limits:
    """The most a statement may take.

    Units: time in seconds, memory and result in bytes, rows counted.
    """

    time_s_max: int
    rows_max: int
    memory_bytes_max: int
    result_bytes_max: int

    def bound_of(self, setting: str) -> int:
        """Give the upper bound of a setting that is bounded by us."""
        return {
            "max_execution_time": self.time_s_max,
            "max_result_rows": self.rows_max,
            "max_memory_usage": self.memory_bytes_max,
            "max_result_bytes": self.result_bytes_max,
        }[setting]


@dataclass(frozen=True)
class Checked:
    """A statement that may run: printed anew, with the format and the settings taken out of it."""

    sql: str
    format: str | None
    settings: Mapping[str, str] = field(default_factory=dict)
    # The same for statements that differ in their literals only, and telling nothing of them.
    shape: str = ""


class Gate:
    """Checks statements, one by one, against the lists."""

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self._engine = engine
        self._limits = limits
        self._shown: dict[str, Node] = {}
        self._foreign: frozenset[str] = frozenset()
        # Dashboards ask the same again and again.
        self._known: OrderedDict[tuple[str, Scope], Checked] = OrderedDict()

    async def check(self, statement: str, scope: Scope) -> Checked:
        """Permit a statement for a scope, or refuse it with a SqlRefusal.

        Cost: two questions to the engine, a dozen more the first time; none for a statement that was permitted before.
        """
        known = self._known.get((statement, scope))
        if known is None:
            known = await self._checked(statement, scope)
        if len(statement) <= REMEMBERED_CHARS_MAX:
            self._known[statement, scope] = known
            self._known.move_to_end((statement, scope))
        while len(self._known) > REMEMBERED_MAX:
            self._known.popitem(last=False)
        return known

    async def _checked(self, statement: str, scope: Scope) -> Checked:
        text = _tidied(statement)
        await self._learn()
        if _BEGINS_OTHERWISE.match(text):
            return await self._described(text, scope)
        tree = await self._parsed(text)
        form = format_name(_popped_format(tree))
        settings: dict[str, str] = {}
        for name, value in _popped_settings(tree):
            self.set(name, value, settings)
        walk = Walk(scope, self._shown, self._foreign)
        checked = _root(tree, walk)
        return Checked(await self._printed(checked), form, settings, _shape(checked))

    def set(self, name: str, value: str, into: dict[str, str]) -> None:
        """Take a setting if it is permitted, clamped to its bounds."""
        if name in IGNORED_SETTINGS:
            return
        bounds = SETTINGS.get(name)
        if name == TIMEZONE_SETTING and _TIMEZONE.fullmatch(value):
            into[name] = value
        elif isinstance(bounds, tuple) and _NUMBER.fullmatch(value):
            most = self._limits.bound_of(name) if bounds[1] is None else bounds[1]
            # Zero means no limit in ClickHouse; here it means ours.
            asked = int(float(value))
            into[name] = str(most if asked == 0 else max(bounds[0], min(asked, most)))
        elif isinstance(bounds, frozenset) and (word := _SWITCHED.get(value.lower(), value)) in bounds:
            into[name] = word
        else:
            raise SqlRefusal(452, f"Setting {name[:80]!r} cannot be set to that value here, or not at all")

    # ------------------------------------------------------------------- the engine

    async def _parsed(self, text: str) -> Node:
        answer = await self._engine.parse(text)
        if len(answer) > TREE_BYTES_MAX:
            raise SqlRefusal(168, "The statement is too big")
        try:
            tree = json.loads(answer)
        except (ValueError, RecursionError) as error:
            raise SqlRefusal(167, "The statement is nested too deeply") from error
        if not isinstance(tree, dict):
            raise denied("The statement has no tree")
        return tree

    async def _printed(self, tree: Node) -> str:
        """Print a checked tree, and make sure that the text means that tree and no other."""
        sql, again = await self._engine.print(json.dumps(tree))
        if _bare(json.loads(again)) != _bare(tree):
            raise denied("The statement cannot be printed without a change of meaning")
        return sql

    async def _shown_tables(self) -> dict[str, Node]:
        trees = {}
        for name, sql in SHOWN_SYSTEM_TABLES.items():
            text = sql.format(
                settings=_quoted(SETTINGS.keys() | {TIMEZONE_SETTING}),
                functions=_quoted(FUNCTIONS | AGGREGATES),
                functions_any_case=_quoted(FUNCTIONS_ANY_CASE | AGGREGATES_ANY_CASE),
                formats=_quoted(FORMATS.values()),
            )
            trees[name] = await self._parsed(text)
        return trees

    async def _learn(self) -> None:
        """Ask once what stays the same while the engine does."""
        if self._foreign:
            return
        self._shown = await self._shown_tables()
        known = {name.lower() for name in FUNCTIONS | AGGREGATES} | FUNCTIONS_ANY_CASE | AGGREGATES_ANY_CASE
        catalogue = frozenset(name.lower() for name in await self._engine.functions())
        self._foreign = catalogue - known - HARMLESS_NAMES

    # ------------------------------------------------------------------- statements the parser has no tree for

    async def _described(self, text: str, scope: Scope) -> Checked:
        """Answer DESCRIBE and EXISTS of a view by queries of ours; of other forms nothing is known here."""
        tail = _TAIL.search(text)
        form = format_name(tail[1] if tail else None)
        plain = text[: tail.start()] if tail else text
        if found := _EXISTS.fullmatch(plain):
            tree = _exists(_database(found), _named(found, "table"))
        elif found := _DESCRIBE.fullmatch(plain):
            tree = await self._columns_of(_database(found), _named(found, "table"))
        else:
            raise denied("Only EXISTS and DESCRIBE of one view are allowed")
        checked = Walk(scope, self._shown, self._foreign).select(tree)
        return Checked(await self._printed(checked), form, {}, _shape(checked))

    async def _columns_of(self, database: str, table: str) -> Node:
        if database != DATABASE:
            raise denied(f"Database {database} is not available here; views are in {DATABASE}")
        tree = await self._parsed(_COLUMNS_OF)
        select = tree["list_of_selects"]["children"][0]
        select["where"] = function("equals", {"type": "Identifier", "name": "table"}, literal(table))
        return tree


def _exists(database: str, table: str) -> Node:
    """Ask whether a view exists; of another database nothing does."""
    where = [
        function("equals", {"type": "Identifier", "name": "name"}, literal(table)),
        function("equals", literal(database), literal(DATABASE)),
    ]
    tree = shown_names("tables", "name", where)
    select = tree["list_of_selects"]["children"][0]
    select.pop("order_by")
    counted = function("toUInt8", function("greater", function("count"), literal(0))) | {"alias": "result"}
    select["select"] = {"type": "ExpressionList", "children": [counted]}
    return tree


_SWITCHED = {"true": "1", "false": "0"}


# --------------------------------------------------------------------------- parts of statements


def format_name(name: str | None) -> str | None:
    """Give the format of this name as the engine spells it."""
    if name is None:
        return None
    known = FORMATS.get(name.lower())
    if known is None:
        raise SqlRefusal(73, f"Unknown format {name[:80]}, or one that is not offered here")
    return known


def _tidied(statement: str) -> str:
    text = statement.strip()
    while text.endswith(";"):
        text = text[:-1].rstrip()
    if not text:
        raise SqlRefusal(62, "Empty query")
    if len(text) > STATEMENT_CHARS_MAX:
        raise SqlRefusal(62, f"The statement is longer than {STATEMENT_CHARS_MAX} characters")
    if "\0" in text:
        raise SqlRefusal(62, "The statement holds a zero byte")
    return text


def _named(found: re.Match[str], group: str) -> str:
    return found[group] or found[f"{group}q"] or found[f"{group}d"] or ""


def _database(found: re.Match[str]) -> str:
    return _named(found, "db") or DATABASE


def _popped_format(tree: Node) -> str | None:
    """Take the format off a statement."""
    given = tree.pop("format_ast", None)
    if given is None:
        return None
    if not isinstance(given, dict) or given.keys() != {"type", "name"} or not isinstance(given["name"], str):
        raise denied("FORMAT takes a name")
    return given["name"]


def _popped_settings(tree: Node) -> list[tuple[str, str]]:
    """Take the settings off a statement and its outermost queries; deeper ones stay, and are refused."""
    given = [tree.pop("settings_ast", None)]
    if tree.get("type") == "SelectWithUnionQuery" and isinstance(tree.get("list_of_selects"), dict):
        given += [
            select.pop("settings", None)
            for select in tree["list_of_selects"].get("children", [])
            if isinstance(select, dict) and select.get("type") == "SelectQuery"
        ]
    return [pair for each in given if each is not None for pair in _changes(each)]


def _changes(node: Any) -> list[tuple[str, str]]:
    if not isinstance(node, dict) or node.keys() != {"type", "changes"} or node["type"] != "SetQuery":
        raise SqlRefusal(452, "SETTINGS takes names with values here, and nothing else")
    pairs = []
    for change in node["changes"]:
        value = change.get("value") if isinstance(change, dict) else None
        if not isinstance(value, dict) or value.get("field_type") not in _SETTING_VALUES:
            raise SqlRefusal(452, "SETTINGS takes numbers and short texts here")
        pairs.append((str(change.get("name")), str(value.get("value"))))
    return pairs


_SETTING_VALUES = frozenset({"UInt64", "Int64", "Float64", "String", "Bool"})


def _root(tree: Node, walk: Walk) -> Node:
    """Check a whole statement: a query, or a list of names."""
    match tree.get("type"):
        case "SelectWithUnionQuery":
            return walk.select(tree)
        case "ShowTablesQuery":
            return walk.select(_shown_list(tree))
        case kind:
            raise denied(
                f"{str(kind)[:80]} is not allowed; statements read with SELECT, DESCRIBE, EXISTS and SHOW"
            )


def _shown_list(tree: Node) -> Node:
    """Turn SHOW DATABASES and SHOW TABLES into queries of ours."""
    given = {key: value for key, value in tree.items() if value is not False and key != "type"}
    if given.keys() - {"databases", "from", "like", "not_like", "case_insensitive_like", "limit_length"}:
        raise denied("SHOW takes DATABASES or TABLES here")
    if given.keys() & {"databases"} and "from" in given:
        raise denied("SHOW DATABASES takes no database")
    conditions = []
    if (source := given.get("from")) is not None:
        if not isinstance(source, dict) or source.get("name") not in DATABASE_NAMES - {""}:
            raise SqlRefusal(81, "Database does not exist, or is not available here")
    if (like := given.get("like")) is not None:
        name = ("notI" if given.get("case_insensitive_like") else "notL") if given.get("not_like") else None
        word = {"notI": "notILike", "notL": "notLike", None: "like"}[name]
        word = "ilike" if name is None and given.get("case_insensitive_like") else word
        conditions.append(function(word, {"type": "Identifier", "name": "name"}, literal(str(like))))
    return shown_names(
        "databases" if given.get("databases") else "tables", "name", conditions, given.get("limit_length")
    )


# --------------------------------------------------------------------------- trees


def _bare(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _bare(value) for key, value in node.items() if key not in _COSMETIC}
    return [_bare(each) for each in node] if isinstance(node, list) else node


def _shape(tree: Node) -> str:
    """Give a short name to the shape of a statement."""
    text = json.dumps(_without_values(tree), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _without_values(node: Any) -> Any:
    if isinstance(node, dict):
        if node.get("type") == "Literal":
            return "?"
        return {key: _without_values(value) for key, value in node.items()}
    return [_without_values(each) for each in node] if isinstance(node, list) else node


def _quoted(words: Any) -> str:
    return ", ".join(f"'{word}'" for word in sorted(words))
