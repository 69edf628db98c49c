"""The walk over a parsed statement: everything in it is permitted by name, and every table in it is scoped.

Pure: a tree goes in, another tree comes out, or a refusal. Tables are replaced in the tree itself: a view becomes a
subquery over its rows of one tenant, with the tenant as a literal node. Three things keep that subquery closed. Its
names begin with two underscores, which no statement of a caller may use, so that no alias of theirs can stand in for
them. Names of common table expressions are replaced by fresh ones, so a name we mistook for one leads nowhere. And it
ends in a LIMIT that cuts nothing off, below which the engine moves no condition of the outside: a caller's expression
is never evaluated on rows of another tenant, where its error would show them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ops.sql_allowed import (
    AGGREGATES,
    AGGREGATES_ANY_CASE,
    ANSWERED,
    CALLED_ONLY,
    COMBINATORS,
    COMBINED_MAX,
    DATABASE,
    FUNCTIONS,
    FUNCTIONS_ANY_CASE,
    HIGHER_ORDER,
    IN_FUNCTIONS,
    PLAIN_SYSTEM_TABLES,
    SHOWN_SYSTEM_TABLES,
    TABLE_FUNCTIONS,
    TYPE_ARGUMENT,
    TYPES,
)
from ops.sql_errors import SqlRefusal, denied
from ops.sql_nodes import LITERALS, NODES, Key

Node = dict[str, Any]
Names = Mapping[str, str]

DEPTH_MAX = 150
NODES_MAX = 10_000
NAME_CHARS_MAX = 256
RESERVED = "__"
SCOPED = "__scoped"
ROWS_ALL = 2**63 - 1

_TABLE = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,127}", re.ASCII)
_DIGITS = re.compile(r"[0-9]{1,40}", re.ASCII)
_TYPE_TOKEN = re.compile(
    r"\s*(?:([A-Za-z][A-Za-z0-9]*)|('(?:[^'\\]|\\['\\])*')|([(),=-])|([0-9]+))", re.ASCII
)
_TYPE_CHARS_MAX = 1_000
_COLUMN = re.compile(r"\s*[A-Za-z][A-Za-z0-9_]*\s+(.+)", re.ASCII | re.DOTALL)


@dataclass(frozen=True)
class Scope:
    """Whose rows a caller may read; tenant None means everybody's."""

    tenant: str | None


class Walk:
    """One walk over one statement."""

    def __init__(self, scope: Scope, shown: Mapping[str, Node], foreign: frozenset[str]) -> None:
        """Begin a walk; `foreign` are the engine's functions that are not permitted, in small letters."""
        if not foreign:
            raise denied("The engine's catalogue of functions is not known")
        self._scope = scope
        self._shown = shown
        self._foreign = foreign | CALLED_ONLY
        self._nodes = 0
        self._fresh = 0
        self._first_names: Names = {}

    def select(self, node: Any) -> Node:
        """Check and scope a SelectWithUnionQuery."""
        return self._node(node, frozenset({"SelectWithUnionQuery"}), {}, 0)

    # ------------------------------------------------------------------- nodes

    def _node(self, node: Any, kinds: frozenset[str], names: Names, depth: int) -> Node:
        self._nodes += 1
        if depth > DEPTH_MAX:
            raise SqlRefusal(167, f"The statement is nested more than {DEPTH_MAX} levels deep")
        if self._nodes > NODES_MAX:
            raise SqlRefusal(168, f"The statement has more than {NODES_MAX} elements")
        kind = node.get("type") if isinstance(node, dict) else None
        if not isinstance(kind, str) or kind not in NODES or kind not in kinds:
            raise denied(f"{_shown(kind)} is not allowed at this place")
        special = _SPECIAL.get(kind)
        checked = special(self, node, names, depth) if special else self._plain(node, names, depth)
        if "type" not in checked:
            raise denied(f"{kind} is incomplete")
        return checked

    def _plain(self, node: Node, names: Names, depth: int) -> Node:
        """Check a node key by key."""
        kind = node["type"]
        keys = NODES[kind]
        checked: Node = {"type": kind}
        for name, value in node.items():
            if name == "type":
                continue
            key = keys.get(name)
            if key is None:
                raise denied(f"{_shown(name)} of {kind} is not allowed here")
            checked[name] = self._value(key, value, names, depth + 1)
        return checked

    def _value(self, key: Key, value: Any, names: Names, depth: int) -> Any:
        match key.form:
            case "node":
                return self._node(value, key.kinds, names, depth)
            case "list":
                return self._list(value, key.kinds, names, depth)
            case "nodes" | "only":
                if not isinstance(value, list) or (key.form == "only" and len(value) != 1):
                    raise denied("A list of elements is expected")
                return [self._node(each, key.kinds, names, depth) for each in value]
            case "qualifier":
                return _unqualified(self._node(value, key.kinds, names, depth), 2)
            case _:
                return _leaf(key, value)

    def _list(self, node: Any, kinds: frozenset[str], names: Names, depth: int) -> Node:
        if not isinstance(node, dict) or node.get("type") != "ExpressionList" or node.keys() - _LIST_KEYS:
            raise denied("A list of expressions is expected")
        if "children" not in node:
            return {"type": "ExpressionList"}
        children = self._value(Key("nodes", kinds), node["children"], names, depth + 1)
        return {"type": "ExpressionList", "children": children}

    # ------------------------------------------------------------------- queries and their names

    def _union(self, node: Node, names: Names, depth: int) -> Node:
        """Check a union; what its first query names, the others know."""
        selects = node.get("list_of_selects")
        if not isinstance(selects, dict) or not isinstance(selects.get("children"), list):
            raise denied("A query without SELECT is not allowed")
        checked = self._plain(node | {"list_of_selects": {"type": "ExpressionList"}}, names, depth)
        if selects.keys() - _LIST_KEYS or selects.get("type") != "ExpressionList":
            raise denied("A list of queries is expected")
        kinds = NODES["SelectWithUnionQuery"]["list_of_selects"].kinds
        queries: list[Node] = []
        for each in selects["children"]:
            query = self._node(each, kinds, names, depth + 2)
            names = self._first_names if not queries and query["type"] == "SelectQuery" else names
            queries.append(query)
        checked["list_of_selects"] = {"type": "ExpressionList", "children": queries}
        return checked

    def _query(self, node: Node, names: Names, depth: int) -> Node:
        elements = node.get("with")
        if elements is None:
            checked = self._plain(node, names, depth)
        else:
            listed, names = self._with(elements, names, bool(node.get("recursive_with")), depth + 1)
            rest = {key: value for key, value in node.items() if key != "with"}
            checked = self._plain(rest, names, depth)
            checked["with"] = listed
        self._first_names = names
        return checked

    def _with(self, node: Any, names: Names, recursive: bool, depth: int) -> tuple[Node, Names]:
        """Check the elements of WITH in order; each knows those before it, and itself only if recursive."""
        if (
            not isinstance(node, dict)
            or node.keys() - _LIST_KEYS
            or not isinstance(node.get("children"), list)
        ):
            raise denied("A list after WITH is expected")
        if node.get("type") != "ExpressionList":
            raise denied("A list after WITH is expected")
        kinds = NODES["SelectQuery"]["with"].kinds
        children = []
        for each in node["children"]:
            if not isinstance(each, dict) or each.get("type") != "WithElement":
                children.append(self._node(each, kinds, names, depth + 1))
                continue
            called = _leaf(NODES["WithElement"]["name"], each.get("name"))
            self._fresh += 1
            with_it = {**names, called: f"{RESERVED}with{self._fresh}"}
            element = self._node(each, kinds, with_it if recursive else names, depth + 1)
            children.append(element | {"name": with_it[called]})
            names = with_it
        return {"type": "ExpressionList", "children": children}, names

    # ------------------------------------------------------------------- tables

    def _table_expression(self, node: Node, names: Names, depth: int) -> Node:
        sources = node.keys() & {"database_and_table_name", "table_function", "subquery"}
        if len(sources) != 1:
            raise denied("Exactly one table is expected")
        if "table_function" in sources:
            rest = {key: value for key, value in node.items() if key != "table_function"}
            function = self._table_function(node["table_function"], names, depth + 1)
            return self._plain(rest, names, depth) | {"table_function": function}
        checked = self._plain(node, names, depth)
        if "subquery" in sources:
            return checked
        return self._reference(checked, names)

    def _reference(self, expression: Node, names: Names) -> Node:
        """Replace a reference to a table by what this caller may see of it."""
        table = expression.pop("database_and_table_name")
        parts = _parts(table)
        alias = table.get("alias", parts[-1])
        if len(parts) == 1 and parts[0] in names:
            identifier = {"type": "TableIdentifier", "name": names[parts[0]], "alias": alias}
            return expression | {"database_and_table_name": identifier}
        if not all(_TABLE.fullmatch(part) for part in parts) or len(parts) > 2:
            raise denied(f"{_shown(table['name'])} is not the name of a view")
        database = parts[0] if len(parts) == 2 else DATABASE
        if database == "system":
            return expression | self._system_table(parts[-1], alias)
        if database != DATABASE:
            raise denied(f"Database {_shown(database)} is not available here; views are in {DATABASE}")
        identifier = _identifier("TableIdentifier", [DATABASE, parts[-1]])
        if self._scope.tenant is None:
            return expression | {"database_and_table_name": identifier | {"alias": alias}}
        inner = {key: expression.pop(key) for key in _TABLE_MODIFIERS if key in expression}
        return expression | {"subquery": _scoped(identifier, inner, self._scope.tenant, alias)}

    def _system_table(self, name: str, alias: str) -> Node:
        if name in PLAIN_SYSTEM_TABLES:
            identifier = _identifier("TableIdentifier", ["system", name]) | {"alias": alias}
            return {"database_and_table_name": identifier}
        if name not in SHOWN_SYSTEM_TABLES:
            raise denied(f"Table system.{name} is not available here")
        return {"subquery": {"type": "Subquery", "alias": alias, "children": [self._shown[name]]}}

    def _table_function(self, node: Any, names: Names, depth: int) -> Node:
        name = node.get("name") if isinstance(node, dict) else None
        if name not in TABLE_FUNCTIONS or node.get("type") != "Function":
            raise denied(f"Table function {_shown(name)} is not allowed here")
        if node.keys() - {"type", "name", "arguments", "alias", "is_operator"}:
            raise denied(f"Table function {name} takes arguments only")
        checked = self._plain(node, names, depth)
        given = checked.get("arguments", {}).get("children", [])
        if name == "values" and len(given) > 1:
            _check_values(given[0])
        return checked

    # ------------------------------------------------------------------- functions

    def _function(self, node: Node, names: Names, depth: int) -> Node:
        name = _leaf(NODES["Function"]["name"], node.get("name"))
        _check_function(name)
        low = name.lower()
        if low in IN_FUNCTIONS:
            node = _in(node)
        checked = self._plain(node, names, depth)
        given = checked.get("arguments", {}).get("children", [])
        if low == "exists" and [each["type"] for each in given] != ["Subquery"]:
            raise denied("EXISTS takes a subquery")
        if low in HIGHER_ORDER and len(given) > 1 and given[0].get("name") != "lambda":
            raise denied(f"{name} of several arguments takes a lambda first, such as x -> x + 1")
        if low in TYPE_ARGUMENT:
            _check_type_argument(name, given, TYPE_ARGUMENT[low])
        if low in ANSWERED:
            return _answered(checked, ANSWERED[low])
        return checked

    def _apply(self, node: Node, names: Names, depth: int) -> Node:
        """Check APPLY, whose function is a name or a lambda."""
        if ("func_name" in node) == ("lambda" in node):
            raise denied("APPLY takes one function")
        if "func_name" in node:
            name = _leaf(Key("text"), node["func_name"])
            _check_function(name)
            if name.lower() in ANSWERED or name.lower() in TYPE_ARGUMENT or name.lower() in IN_FUNCTIONS:
                raise denied(f"Function {name} is not allowed in APPLY")
        return self._plain(node, names, depth)

    def _name(self, node: Node, names: Names, depth: int) -> Node:
        """Check the name of a column: where there is none of it, the engine takes a function of that name."""
        checked = self._plain(node, names, depth)
        parts = _parts(checked)
        if len(parts) == 1 and parts[0].lower() in self._foreign:
            raise denied(
                f"{_shown(parts[0])} is the name of a function; write a column of that name as table.column"
            )
        return _unqualified(checked, 3)


_LIST_KEYS = {"type", "children"}
_TABLE_MODIFIERS = ("final", "sample_size", "sample_offset")
_SPECIAL = {
    "SelectWithUnionQuery": Walk._union,
    "SelectQuery": Walk._query,
    "TableExpression": Walk._table_expression,
    "Function": Walk._function,
    "ColumnsApplyTransformer": Walk._apply,
    "Identifier": Walk._name,
}


# --------------------------------------------------------------------------- leaves


def _leaf(key: Key, value: Any) -> Any:
    """Check a value that holds no nodes."""
    if not _fits(key, value):
        raise denied(f"{_shown(value)} is not allowed at this place")
    return value


def _fits(key: Key, value: Any) -> bool:
    match key.form:
        case "flag":
            return isinstance(value, bool)
        case "off":
            return value is False
        case "whole":
            return type(value) is int
        case "word":
            return isinstance(value, str) and value in key.kinds
        case "words":
            return isinstance(value, list) and all(
                isinstance(each, str) and each in key.kinds for each in value
            )
        case "name":
            return _is_name(value)
        case "names":
            return isinstance(value, list) and bool(value) and all(_is_name(each) for each in value)
        case "text":
            return isinstance(value, str)
        case "digits":
            return isinstance(value, str) and _DIGITS.fullmatch(value) is not None
        case "type":
            return isinstance(value, str) and is_type(value)
        case "literal":
            return _is_literal(value, 0)
        case _:
            return False


def _is_name(value: Any) -> bool:
    # What begins with two underscores is ours, or the engine's own.
    return (
        isinstance(value, str)
        and 0 < len(value) <= NAME_CHARS_MAX
        and not value.startswith(RESERVED)
        and f".{RESERVED}" not in value
    )


def _is_literal(value: Any, depth: int) -> bool:
    if not isinstance(value, dict) or value.keys() != {"field_type", "value"} or depth > DEPTH_MAX:
        return False
    kind, held = value["field_type"], value["value"]
    if not isinstance(kind, str) or not isinstance(held, LITERALS.get(kind, ())):
        return False
    return not isinstance(held, list) or all(_is_literal(each, depth + 1) for each in held)


def _parts(node: Node) -> list[str]:
    """Give the parts of a name, which must agree with the name in one piece."""
    name = node.get("name")
    parts = node.get("name_parts", [name])
    if not isinstance(name, str) or ".".join(parts) != name:
        raise denied(f"{_shown(name)} is not a plain name")
    return list(parts)


def _unqualified(node: Node, length_min: int) -> Node:
    """Take the database off a column's name: behind its subquery a table has none."""
    parts = node.get("name_parts", [])
    if len(parts) < length_min or parts[0] != DATABASE:
        return node
    short = _identifier("Identifier", parts[1:])
    return short | ({"alias": node["alias"]} if "alias" in node else {})


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else type(value).__name__
    return repr(text[:80])


# --------------------------------------------------------------------------- functions and types


def _check_function(name: str) -> None:
    """Refuse a function that is not on the list.

    Errors: none of the registry; a SqlRefusal.
    """
    if name in FUNCTIONS or name.lower() in FUNCTIONS_ANY_CASE:
        return
    base, combined = name, 0
    while not (base in AGGREGATES or base.lower() in AGGREGATES_ANY_CASE):
        ending = next((each for each in COMBINATORS if base.endswith(each) and base != each), None)
        combined += 1
        if ending is None or combined > COMBINED_MAX:
            raise denied(f"Function {_shown(name)} is not allowed here")
        base = base[: -len(ending)]


def is_type(text: str) -> bool:
    """Say whether a text names a type made of permitted types only."""
    place, words = 0, 0
    if len(text) > _TYPE_CHARS_MAX:
        return False
    while place < len(text.rstrip()):
        token = _TYPE_TOKEN.match(text, place)
        if token is None or (token[1] and token[1].lower() not in TYPES):
            return False
        words += bool(token[1])
        place = token.end()
    return words > 0


def _in(node: Node) -> Node:
    """Turn a table on the right of IN into a query over it, which is then scoped like any other."""
    arguments = node.get("arguments")
    if not isinstance(arguments, dict) or arguments.keys() != _LIST_KEYS:
        raise denied("IN takes two arguments")
    given = arguments["children"]
    if arguments["type"] != "ExpressionList" or not isinstance(given, list) or len(given) != 2:
        raise denied("IN takes two arguments")
    if not isinstance(given[1], dict):
        raise denied("IN takes two arguments")
    right = given[1]
    if right.get("type") == "Function" and str(right.get("name")).lower() == "format":
        raise denied("A table function on the right of IN is not allowed")
    if right.get("type") != "Identifier":
        return node
    if right.keys() - {"type", "name", "name_parts"}:
        raise denied("An alias on the right of IN is not allowed")
    table = {**right, "type": "TableIdentifier"}
    query = _subquery(_select({"type": "TableExpression", "database_and_table_name": table}))
    return node | {"arguments": {"type": "ExpressionList", "children": [given[0], query]}}


def _check_type_argument(name: str, given: list[Node], place: int) -> None:
    """Refuse a type that is computed, or not on the list."""
    argument = given[place] if len(given) > max(place, 0) else None
    value = argument["value"] if argument is not None and argument["type"] == "Literal" else {}
    if value.get("field_type") != "String" or not is_type(value["value"]):
        raise denied(f"{name} takes a type that is written out and on the list of types")


def _check_values(first: Node) -> None:
    """Refuse a structure of values() that is computed, or holds a type that is not on the list."""
    if first["type"] == "Function" and first["name"] == "tuple":
        return
    value = first.get("value", {}) if first["type"] == "Literal" else {}
    if value.get("field_type") in ("UInt64", "Int64", "Float64", "Null", "Tuple"):
        return
    columns = re.split(r",(?![^(]*\))", value["value"]) if value.get("field_type") == "String" else [""]
    for column in columns:
        found = _COLUMN.fullmatch(column)
        if found is None or not is_type(found[1]):
            raise denied("values() takes a structure that is written out, such as 'a UInt64, b String'")


def _answered(node: Node, answer: str) -> Node:
    """Answer a question about the server ourselves, under the name its column would have had."""
    if node.get("arguments", {}).get("children"):
        raise denied(f"Function {node['name']} takes no arguments")
    return literal(answer) | {"alias": node.get("alias", f"{node['name']}()")}


# --------------------------------------------------------------------------- nodes of our own


def literal(value: str | int) -> Node:
    """Make a literal; this is how a tenant gets into a tree."""
    kind = "String" if isinstance(value, str) else "UInt64"
    return {"type": "Literal", "value": {"field_type": kind, "value": value}}


def function(name: str, *arguments: Node) -> Node:
    """Make a call."""
    listed: Node = {"type": "ExpressionList"}
    if arguments:
        listed["children"] = list(arguments)
    return {"type": "Function", "name": name, "arguments": listed}


def _identifier(kind: str, parts: list[str]) -> Node:
    named: Node = {"type": kind, "name": ".".join(parts)}
    return named | {"name_parts": parts} if len(parts) > 1 else named


def _select(table: Node, **more: Node) -> Node:
    """Make the query SELECT * over one table."""
    element = {"type": "TablesInSelectQueryElement", "table_expression": table}
    return {
        "type": "SelectQuery",
        "select": {"type": "ExpressionList", "children": [{"type": "Asterisk"}]},
        "tables": {"type": "TablesInSelectQuery", "children": [element]},
        **more,
    }


def _subquery(select: Node, **more: str) -> Node:
    return {"type": "Subquery", "children": [union_of(select)], **more}


def union_of(select: Node) -> Node:
    """Make a whole statement of one query."""
    return {
        "type": "SelectWithUnionQuery",
        "union_mode": "UNION_DEFAULT",
        "list_of_selects": {"type": "ExpressionList", "children": [select]},
        "is_outfile_append": False,
        "is_outfile_truncate": False,
        "is_into_outfile_with_stdout": False,
    }


def _scoped(identifier: Node, modifiers: Node, tenant: str, alias: str) -> Node:
    """Make the rows of one tenant: (SELECT * FROM bi.x AS __scoped WHERE __scoped.tenant = '...' LIMIT all) AS x."""
    table = {
        "type": "TableExpression",
        "database_and_table_name": identifier | {"alias": SCOPED},
        **modifiers,
    }
    own = function("equals", _identifier("Identifier", [SCOPED, "tenant"]), literal(tenant))
    select = _select(table, where=own | {"is_operator": True}, limit_length=literal(ROWS_ALL))
    return _subquery(select, alias=alias)


def shown_names(database: str, column: str, conditions: list[Node], length: Node | None = None) -> Node:
    """Make the statement that lists names of a system table we show, in order; it is still to be checked."""
    table = {
        "type": "TableExpression",
        "database_and_table_name": _identifier("TableIdentifier", ["system", database]),
    }
    more: Node = {}
    if conditions:
        more["where"] = conditions[0] if len(conditions) == 1 else function("and", *conditions)
    named = {"type": "Identifier", "name": column}
    order = {"type": "OrderByElement", "direction": 1, "nulls_direction": 1, "expression": named}
    more["order_by"] = {"type": "ExpressionList", "children": [order]}
    if length is not None:
        more["limit_length"] = length
    select = _select(table, **more)
    return union_of(select | {"select": {"type": "ExpressionList", "children": [named]}})
