"""The shape of a permitted tree: for each type of node, the keys it may have and what may stand under each.

It describes the trees that `parseQueryToJSON` of ClickHouse 26.9 gives for reading statements. A key or a type that is
not here is refused wherever it occurs, so what a later version adds stays closed until it is added here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Key:
    """What may stand under one key: a form, and the types or words it may take."""

    form: str
    kinds: frozenset[str] = frozenset()


def _key(form: str, kinds: str = "") -> Key:
    return Key(form, frozenset(kinds.split()))


EXPRESSION: Final = (
    "Function Identifier Literal Subquery QueryParameter Asterisk QualifiedAsterisk ColumnsRegexpMatcher "
    "ColumnsListMatcher"
)
SELECTS: Final = "SelectQuery SelectWithUnionQuery"
BOUND: Final = "Literal QueryParameter Function Identifier"

FLAG, OFF, NAME, TEXT, WHOLE = (_key(form) for form in ("flag", "off", "name", "text", "whole"))
ONE, MANY = _key("node", EXPRESSION), _key("list", EXPRESSION)
NUMBER = _key("node", BOUND)
ORDERED = _key("list", "OrderByElement")
TRANSFORMERS = _key("node", "ColumnsTransformerList")

NODES: Final[Mapping[str, Mapping[str, Key]]] = {
    "SelectWithUnionQuery": {
        "union_mode": _key("word", "UNION_DEFAULT"),
        "list_of_modes": _key(
            "words",
            "UNION_DEFAULT UNION_ALL UNION_DISTINCT EXCEPT_DEFAULT EXCEPT_ALL EXCEPT_DISTINCT "
            "INTERSECT_DEFAULT INTERSECT_ALL INTERSECT_DISTINCT",
        ),
        "list_of_selects": _key("list", SELECTS),
        "is_outfile_append": OFF,
        "is_outfile_truncate": OFF,
        "is_into_outfile_with_stdout": OFF,
    },
    "SelectQuery": {
        "with": _key("list", f"WithElement {EXPRESSION}"),
        "recursive_with": FLAG,
        "select": MANY,
        "distinct": FLAG,
        "tables": _key("node", "TablesInSelectQuery"),
        "prewhere": ONE,
        "where": ONE,
        "group_by": _key("list", f"ExpressionList {EXPRESSION}"),
        "group_by_all": FLAG,
        "group_by_with_totals": FLAG,
        "group_by_with_rollup": FLAG,
        "group_by_with_cube": FLAG,
        "group_by_with_grouping_sets": FLAG,
        "having": ONE,
        "window": _key("list", "WindowListElement"),
        "qualify": ONE,
        "order_by": ORDERED,
        "order_by_all": FLAG,
        "interpolate": _key("list", "InterpolateElement"),
        "limit_by": MANY,
        "limit_by_length": NUMBER,
        "limit_by_offset": NUMBER,
        "limit_length": NUMBER,
        "limit_offset": NUMBER,
        "limit_with_ties": FLAG,
    },
    "WithElement": {
        "name": NAME,
        "subquery": _key("node", "Subquery"),
        "aliases": _key("list", "Identifier"),
        "is_materialized": FLAG,
    },
    "Subquery": {"alias": NAME, "children": _key("only", "SelectWithUnionQuery")},
    "ExpressionList": {"children": _key("nodes", EXPRESSION)},
    "TablesInSelectQuery": {"children": _key("nodes", "TablesInSelectQueryElement")},
    "TablesInSelectQueryElement": {
        "table_expression": _key("node", "TableExpression"),
        "table_join": _key("node", "TableJoin"),
        "array_join": _key("node", "ArrayJoin"),
    },
    "TableExpression": {
        "database_and_table_name": _key("node", "TableIdentifier"),
        "table_function": _key("node", "Function"),
        "subquery": _key("node", "Subquery"),
        "column_aliases": _key("list", "Identifier"),
        "final": FLAG,
        "sample_size": _key("node", "SampleRatio"),
        "sample_offset": _key("node", "SampleRatio"),
    },
    "TableIdentifier": {"name": NAME, "name_parts": _key("names"), "alias": NAME},
    "TableJoin": {
        "kind": _key("word", "COMMA CROSS FULL INNER LEFT RIGHT PASTE"),
        "strictness": _key("word", "ALL ANY ASOF SEMI ANTI"),
        "locality": _key("word", "GLOBAL LOCAL"),
        "using_expression_list": _key("list", "Identifier"),
        "on_expression": ONE,
        "is_natural": FLAG,
    },
    "ArrayJoin": {"kind": _key("word", "Inner Left"), "expression_list": MANY},
    "SampleRatio": {"numerator": _key("digits"), "denominator": _key("digits")},
    "Function": {
        "name": TEXT,
        "arguments": MANY,
        "parameters": _key("list", "Literal QueryParameter"),
        "alias": NAME,
        "is_operator": FLAG,
        "is_lambda_function": FLAG,
        "is_window_function": FLAG,
        "kind": _key("word", "LAMBDA_FUNCTION WINDOW_FUNCTION"),
        "window_name": NAME,
        "window_definition": _key("node", "WindowDefinition"),
        "nulls_action": _key("word", "IGNORE_NULLS RESPECT_NULLS"),
    },
    "Identifier": {"name": NAME, "name_parts": _key("names"), "alias": NAME},
    "Literal": {"value": _key("literal"), "alias": NAME},
    "QueryParameter": {"name": NAME, "param_type": _key("type"), "alias": NAME},
    "OrderByElement": {
        "direction": WHOLE,
        "nulls_direction": WHOLE,
        "nulls_direction_was_explicitly_specified": FLAG,
        "expression": ONE,
        "collation": _key("node", "Literal"),
        "with_fill": FLAG,
        "fill_from": NUMBER,
        "fill_to": NUMBER,
        "fill_step": NUMBER,
        "fill_staleness": NUMBER,
    },
    "InterpolateElement": {"column": NAME, "expr": ONE},
    "WindowListElement": {"name": NAME, "definition": _key("node", "WindowDefinition")},
    "WindowDefinition": {
        "parent_window_name": NAME,
        "partition_by": MANY,
        "order_by": ORDERED,
        "frame_is_default": FLAG,
        "frame_type": _key("word", "ROWS RANGE GROUPS"),
        "frame_begin_type": _key("word", "Current Offset Unbounded"),
        "frame_begin_preceding": FLAG,
        "frame_begin_offset": NUMBER,
        "frame_end_type": _key("word", "Current Offset Unbounded"),
        "frame_end_preceding": FLAG,
        "frame_end_offset": NUMBER,
    },
    "Asterisk": {"transformers": TRANSFORMERS},
    "QualifiedAsterisk": {"qualifier": _key("qualifier", "Identifier"), "transformers": TRANSFORMERS},
    "ColumnsRegexpMatcher": {"pattern": TEXT, "transformers": TRANSFORMERS},
    "ColumnsListMatcher": {"column_list": _key("list", "Identifier"), "transformers": TRANSFORMERS},
    "ColumnsTransformerList": {
        "children": _key(
            "nodes", "ColumnsApplyTransformer ColumnsExceptTransformer ColumnsReplaceTransformer"
        )
    },
    "ColumnsApplyTransformer": {
        "func_name": TEXT,
        "parameters": _key("list", "Literal"),
        "lambda": _key("node", "Function"),
        "lambda_arg": NAME,
    },
    "ColumnsExceptTransformer": {
        "children": _key("nodes", "Identifier"),
        "pattern": TEXT,
        "is_strict": FLAG,
    },
    "ColumnsReplaceTransformer": {
        "children": _key("nodes", "ColumnsReplaceTransformerReplacement"),
        "is_strict": FLAG,
    },
    "ColumnsReplaceTransformerReplacement": {"name": NAME, "children": _key("only", EXPRESSION)},
}

# Types of literals, and what Python makes of their values.
LITERALS: Final[Mapping[str, tuple[type, ...]]] = {
    "UInt64": (int,),
    "Int64": (int,),
    "UInt128": (int, str),
    "Int128": (int, str),
    "UInt256": (int, str),
    "Int256": (int, str),
    "Float64": (int, float, str),
    "String": (str,),
    "Bool": (bool, int),
    "Null": (type(None), str),
    "Array": (list,),
    "Tuple": (list,),
}
