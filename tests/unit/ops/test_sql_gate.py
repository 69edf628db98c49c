"""The walk over statements is closed: what it does not know is refused, wherever it stands."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.routes.sql_hello import hello
from ops.sql_allowed import AGGREGATES, FUNCTIONS, FUNCTIONS_ANY_CASE, HIGHER_ORDER, SETTINGS
from ops.sql_errors import SqlRefusal
from ops.sql_gate import Gate, Limits, format_name
from ops.sql_nodes import NODES
from ops.sql_tree import ROWS_ALL, Node, Scope, Walk, function, is_type, literal, union_of
from ops.sql_upstream import refusal_of

FOREIGN = frozenset({"file", "url", "sleep", "dictget"})
SHOWN = {"settings": union_of({"type": "SelectQuery"})}
LIMITS = Limits(time_s_max=30, rows_max=1_000, memory_bytes_max=10_000_000, result_bytes_max=100_000)


def named(name: str, *parts: str, **more: Any) -> Node:
    node: Node = {"type": "Identifier", "name": ".".join((name, *parts)), **more}
    return node | {"name_parts": [name, *parts]} if parts else node


def listed(*nodes: Node) -> Node:
    return {"type": "ExpressionList", "children": list(nodes)}


def table(name: str, *parts: str, **more: Any) -> Node:
    return {
        "type": "TableExpression",
        "database_and_table_name": {**named(name, *parts), "type": "TableIdentifier", **more},
    }


def source(expression: Node, **more: Any) -> Node:
    return {"type": "TablesInSelectQueryElement", "table_expression": expression, **more}


def select(*columns: Node, tables: list[Node] | None = None, **more: Any) -> Node:
    query: Node = {"type": "SelectQuery", "select": listed(*columns), **more}
    return query | ({"tables": {"type": "TablesInSelectQuery", "children": tables}} if tables else {})


def subquery(query: Node, **more: Any) -> Node:
    return {"type": "Subquery", "children": [union_of(query)], **more}


def rich() -> Node:
    """Make a statement with most kinds of nodes."""
    ordered = {
        "type": "OrderByElement", "direction": 1, "nulls_direction": 1, "expression": named("a"), "with_fill": True,
        "fill_from": literal(1),
    }  # fmt: skip
    window = {
        "type": "WindowDefinition", "partition_by": listed(named("a")), "order_by": listed(ordered),
        "frame_is_default": False, "frame_type": "ROWS", "frame_begin_type": "Offset", "frame_begin_preceding": True,
        "frame_begin_offset": literal(3), "frame_end_type": "Current", "frame_end_preceding": False,
    }  # fmt: skip
    apply = {"type": "ColumnsApplyTransformer", "func_name": "sum"}
    replaced = {
        "type": "ColumnsReplaceTransformerReplacement",
        "name": "b",
        "children": [function("lower", named("b"))],
    }
    star = {
        "type": "Asterisk",
        "transformers": {
            "type": "ColumnsTransformerList",
            "children": [apply, {"type": "ColumnsReplaceTransformer", "children": [replaced]}],
        },
    }
    element = {
        "type": "WithElement",
        "name": "c",
        "subquery": subquery(select(literal(1), tables=[source(table("t"))])),
    }
    join = {
        "type": "TableJoin",
        "kind": "LEFT",
        "strictness": "ANY",
        "using_expression_list": listed(named("a")),
    }
    numbers = {"type": "TableExpression", "table_function": function("numbers", literal(3)) | {"alias": "n"}}
    within = function("in", named("a"), subquery(select(named("b"), tables=[source(table("bi", "u"))])))
    counted = source(numbers, table_join=join)
    query = select(
        star,
        function("sum", named("a")) | {"window_definition": window, "kind": "WINDOW_FUNCTION"},
        function("CAST", named("a"), literal("Decimal(10, 2)")) | {"alias": "d"},
        {"type": "QueryParameter", "name": "p", "param_type": "Array(String)"},
        {"type": "QualifiedAsterisk", "qualifier": named("t")},
        tables=[source(table("c")), source(table("bi", "t", alias="t"), table_join=join), counted],
        **{"with": listed(element, literal("x") | {"alias": "w"})},
        where=function("and", within, function("greater", named("t", "a"), literal(1))),
        group_by=listed(named("a")),
        having=function("greater", function("count"), literal(0)),
        window=listed({"type": "WindowListElement", "name": "v", "definition": {"type": "WindowDefinition"}}),
        order_by=listed(ordered),
        limit_length=literal(10),
    )  # fmt: skip
    return union_of(query)


def nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Find every object of a tree."""
    if isinstance(tree, dict):
        yield tree
        for value in tree.values():
            yield from nodes(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from nodes(value)


def walked(tree: Node, tenant: str | None = "alpha") -> Node:
    return Walk(Scope(tenant), SHOWN, FOREIGN).select(tree)


COUNT = len(list(nodes(rich())))


def changed(place: int) -> tuple[Node, dict[str, Any]]:
    tree = rich()
    return tree, list(nodes(tree))[place]


def test_a_rich_statement_is_let_through() -> None:
    assert walked(rich())["type"] == "SelectWithUnionQuery"


@given(
    st.integers(0, COUNT - 1),
    st.text(min_size=1, max_size=12),
    st.one_of(st.none(), st.booleans(), st.text()),
)
def test_an_unknown_key_is_refused_wherever_it_stands(place: int, key: str, value: Any) -> None:
    tree, node = changed(place)
    known = NODES.get(node.get("type", ""), {}).keys() | node.keys() | {"children"}
    node[f"{key}_unknown" if key in known else key] = value
    with pytest.raises(SqlRefusal):
        walked(tree)


@given(st.integers(0, COUNT - 1), st.text(max_size=20))
def test_an_unknown_type_is_refused_wherever_it_stands(place: int, kind: str) -> None:
    tree, node = changed(place)
    key = "type" if "type" in node else "field_type"
    node[key] = kind if kind not in NODES else f"{kind}_unknown"
    with pytest.raises(SqlRefusal):
        walked(tree)


@given(st.integers(0, COUNT - 1), st.sampled_from(["file", "FILE", "__scoped", "a.__b", "url", ""]))
def test_a_name_that_is_nobody_s_to_use_is_refused_wherever_it_stands(place: int, name: str) -> None:
    tree, node = changed(place)
    if not node.keys() & {"name", "func_name"} or node["type"] in ("TableIdentifier", "WithElement"):
        return
    if node["type"] in ("QueryParameter", "WindowListElement", "ColumnsReplaceTransformerReplacement"):
        return
    node["func_name" if "func_name" in node else "name"] = name
    node.pop("name_parts", None)
    with pytest.raises(SqlRefusal):
        walked(tree)


@given(
    st.recursive(
        st.none() | st.booleans() | st.text(max_size=5),
        lambda each: (
            st.lists(each)
            | st.dictionaries(
                st.sampled_from(["type", "children", "name", "select", "tables", "list_of_selects", "value"]),
                each | st.sampled_from(sorted(NODES)),
            )
        ),
    )
)
def test_any_other_object_is_refused(tree: Any) -> None:
    with pytest.raises(SqlRefusal):
        walked(tree)


def tables_of(tree: Node) -> list[Node]:
    return [node for node in nodes(tree) if node.get("type") == "TableIdentifier"]


def test_every_view_is_read_through_the_rows_of_one_tenant() -> None:
    tree = walked(rich())
    read = [node for node in nodes(tree) if node.get("type") == "SelectQuery" and "limit_length" in node]
    scoped = [node for node in read if node["limit_length"] == literal(ROWS_ALL)]
    views = [node for node in tables_of(tree) if node.get("name_parts", [""])[0] == "bi"]
    assert len(views) == len(scoped) == 3
    assert {node["alias"] for node in views} == {"__scoped"}
    for query in scoped:
        left, right = query["where"]["arguments"]["children"]
        assert left["name_parts"] == ["__scoped", "tenant"]
        assert right == literal("alpha")


@given(st.text(max_size=30))
def test_a_tenant_is_a_literal_and_nothing_else(tenant: str) -> None:
    tree = walked(union_of(select(literal(1), tables=[source(table("t"))])), tenant)
    assert [node for node in nodes(tree) if node == literal(tenant)]
    assert sum(1 for node in nodes(tree) if node.get("type") == "Function") == 1


def test_readers_of_all_read_the_views_themselves() -> None:
    tree = walked(rich(), None)
    assert not [node for node in nodes(tree) if node == literal(ROWS_ALL)]
    assert {node["name"] for node in tables_of(tree)} == {"bi.t", "bi.u", "__with1"}


def test_a_common_table_expression_gets_a_name_nobody_else_has() -> None:
    inner = select(named("x"), tables=[source(table("t"))])
    element = {"type": "WithElement", "name": "t", "subquery": subquery(inner)}
    tree = walked(
        union_of(select(named("x"), tables=[source(table("t"))], **{"with": listed(element)})), None
    )
    # Inside, the name is the view's; outside, the expression's.
    assert {(node["name"], node["alias"]) for node in tables_of(tree)} == {("bi.t", "t"), ("__with1", "t")}
    assert tables_of(tree["list_of_selects"]["children"][0]["tables"])[0]["name"] == "__with1"


def test_a_name_defined_elsewhere_is_a_view() -> None:
    element = {"type": "WithElement", "name": "c", "subquery": subquery(select(literal(1)))}
    beside = subquery(select(literal(1), **{"with": listed(element)}))
    tree = walked(
        union_of(
            select(
                literal(1),
                tables=[source({"type": "TableExpression", "subquery": beside}), source(table("c"))],
            )
        )
    )
    assert [node["name"] for node in tables_of(tree)] == ["bi.c"]


@pytest.mark.parametrize(
    "reference",
    [
        table("vault", "secrets"), table("bi", "t", "u"), table("bi.t"), table("system", "processes"), table("a b"),
        table("BI", "t"), table("t", uuid="x"), table("{x}"), table("\u0435ntries"),
        {"type": "TableExpression"},
        {"type": "TableExpression", "table_function": function("merge", literal("bi"), literal(".*"))},
        {"type": "TableExpression", "table_function": function("view", subquery(select(literal(1))))},
        {**table("t"), "table_function": function("numbers", literal(1))},
        {**table("t"), "stream_settings": {"type": "StreamSettings"}},
    ],
)  # fmt: skip
def test_a_reference_to_anything_else_is_refused(reference: Node) -> None:
    with pytest.raises(SqlRefusal):
        walked(union_of(select(literal(1), tables=[source(reference)])), None)


@pytest.mark.parametrize(
    "call",
    [
        function("file", literal("x")), function("nullIn", named("a"), named("t")), function("exists", named("t")),
        function("in", named("a"), named("vault", "secrets")), function("in", named("a"), named("t", alias="x")),
        function("in", named("a"), function("merge", literal("bi"), literal(".*"))),
        function("in", named("a"), function("format", named("TSV"), literal("x"))), function("in", named("a")),
        function("arrayMap", named("upper"), function("array", literal("x"))),
        function("arrayMap", named("file"), function("array", literal("x"))),
        function("CAST", named("a"), literal("AggregateFunction(sum, UInt8)")),
        function("CAST", named("a"), function("concat", literal("String"), literal(""))), function("CAST", named("a")),
        function("sumMerge", named("a")), function("uniqState", named("a")), function("sumIfIfIfIf", named("a")),
        function("arrayReduce", literal("sum"), named("a")), function("IfArray", named("a")), function("", named("a")),
        function("currentDatabase", literal(1)), named("file"), named("FILE"), named("in"), named("cast"),
    ],
    ids=str,
)  # fmt: skip
def test_a_call_that_is_not_permitted_is_refused(call: Node) -> None:
    with pytest.raises(SqlRefusal):
        walked(union_of(select(call)))


@pytest.mark.parametrize(
    "name", ["sum", "SUM", "sumIf", "countDistinct", "sumOrNullIf", "uniqExactArray", "COUNT"]
)
def test_aggregates_and_their_combinations_are_permitted(name: str) -> None:
    assert walked(union_of(select(function(name, named("a")))))


def test_a_statement_too_deep_or_too_long_is_refused() -> None:
    deep = named("a")
    for _ in range(200):
        deep = function("not", deep)
    with pytest.raises(SqlRefusal, match="deep"):
        walked(union_of(select(deep)))
    with pytest.raises(SqlRefusal, match="elements"):
        walked(union_of(select(*[literal(1)] * 20_000)))


def test_without_the_engine_s_catalogue_nothing_is_permitted() -> None:
    with pytest.raises(SqlRefusal):
        Walk(Scope(None), SHOWN, frozenset())


def test_a_walk_leaves_its_tree_as_it_was() -> None:
    tree = rich()
    kept = copy.deepcopy(tree)
    walked(tree)
    assert tree == kept


# --------------------------------------------------------------------------- lists


def test_no_list_holds_what_reaches_out() -> None:
    reaching = {
        "file", "url", "eval", "sleep", "sleepEachRow", "dictGet", "joinGet", "getSetting", "getServerSetting",
        "getMacro", "hasColumnInTable", "catboostEvaluate", "arrayReduce", "initializeAggregation", "throwIf",
        "addressToSymbol", "filesystemAvailable", "formatQuery", "parseQueryToJSON", "arrayFold", "uptime",
    }  # fmt: skip
    assert not reaching & (FUNCTIONS | AGGREGATES)
    assert not {name.lower() for name in reaching} & FUNCTIONS_ANY_CASE
    assert {name.lower() for name in FUNCTIONS} >= HIGHER_ORDER


@pytest.mark.parametrize(
    "text", ["UInt8", "Array(Nullable(String))", "DateTime64(3, 'UTC')", "Enum8('a' = 1)", "DECIMAL(38,9)"]
)
def test_a_type_made_of_permitted_types_is_one(text: str) -> None:
    assert is_type(text)


@pytest.mark.parametrize(
    "text",
    ["", "Identifier", "JSON", "Dynamic", "AggregateFunction(sum, UInt8)", "Array(Object('json'))", "UInt8;",
     "a UInt8", "1", "Tuple(x UInt8)", "String\0"],
)  # fmt: skip
def test_any_other_type_is_refused(text: str) -> None:
    assert not is_type(text)


@given(st.text(max_size=40), st.text(max_size=20))
def test_a_setting_is_on_the_list_and_within_bounds_or_refused(name: str, value: str) -> None:
    for asked in (name, *SETTINGS):
        into: dict[str, str] = {}
        with contextlib.suppress(SqlRefusal):
            Gate(None, LIMITS).set(asked, value, into)  # type: ignore[arg-type]
        for taken, chosen in into.items():
            bounds = SETTINGS.get(taken, frozenset({chosen}))
            if isinstance(bounds, frozenset):
                assert chosen in bounds
            else:
                assert bounds[0] <= int(chosen) <= (bounds[1] or LIMITS.bound_of(taken))


@pytest.mark.parametrize(
    ("asked", "got"), [("0", "30"), ("5", "5"), ("1e9", None), ("99999", "30"), ("-1", None), ("1.5", "1")]
)
def test_no_limit_means_ours(asked: str, got: str | None) -> None:
    into: dict[str, str] = {}
    if got is None:
        with pytest.raises(SqlRefusal):
            Gate(None, LIMITS).set("max_execution_time", asked, into)  # type: ignore[arg-type]
    else:
        Gate(None, LIMITS).set("max_execution_time", asked, into)  # type: ignore[arg-type]
        assert into == {"max_execution_time": got}


def test_a_format_is_known_by_any_case_and_others_are_refused() -> None:
    assert format_name("jsoneachrow") == "JSONEachRow"
    for name in ("Template", "Protobuf", "JSON x", "", "CapnProto", "SQLInsert"):
        with pytest.raises(SqlRefusal):
            format_name(name)


# --------------------------------------------------------------------------- words


def test_an_error_of_the_engine_is_told_without_its_asides() -> None:
    text = (
        "Code: 60. DB::Exception: Unknown table expression identifier 'bi.nope'. Maybe you meant vault.secrets? "
        "In scope SELECT * FROM bi.nope AS __scoped. (UNKNOWN_TABLE) (embedded engine)\n"
    )
    refusal = refusal_of(404, text)
    assert (
        refusal.text
        == "Code: 60. DB::Exception: Unknown table expression identifier 'bi.nope'. (UNKNOWN_TABLE)\n"
    )
    assert refusal.status == 404


def test_an_engine_that_does_not_know_us_is_away_for_others() -> None:
    refusal = refusal_of(
        401, "Code: 516. DB::Exception: service: Authentication failed. (AUTHENTICATION_FAILED)"
    )
    assert (refusal.code, refusal.status) == (210, 503)
    assert refusal_of(502, "<html>").code == 210


def test_the_first_answer_to_the_go_client_is_one_block_of_one_row() -> None:
    block = hello("soma", "26.9.2.1", "UTC")
    assert block.startswith(
        b"\x01\x00\x02\xff\xff\xff\xff\x00\x04\x01\x0ddisplayName()\x06String\x00\x04soma"
    )
    assert block.endswith(b"\x0atimezone()\x06String\x00\x03UTC")
