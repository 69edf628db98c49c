"""Every test that the page of guarantees names is there, so that no promise is kept by a name alone."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "guarantees.md"
ROW = re.compile(r"^\| (?P<promise>[^|]+) \| (?P<tests>[^|]+) \|$", re.MULTILINE)
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")


def promises(page: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """Read the rows of the page: a promise, and the tests that keep it."""
    rows = [(row["promise"].strip(), NAMED.findall(row["tests"])) for row in ROW.finditer(page)]
    return [row for row in rows if row[0] != "Promise"]


def names_of(tree: ast.Module) -> Iterator[str]:
    """Name the tests and the classes of tests of a module."""
    for node in tree.body:
        if is_test(node) or (isinstance(node, ast.ClassDef) and holds_tests(node)):
            yield node.name


def is_test(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")


def holds_tests(node: ast.ClassDef) -> bool:
    """Tell whether a class has tests, its own or those of the class it is made from."""
    return any(map(is_test, node.body)) or (node.name.startswith("Test") and bool(node.bases))


@cache
def names_in(path: str) -> frozenset[str]:
    file = ROOT / "tests" / path
    return frozenset(names_of(ast.parse(file.read_text("utf-8")))) if file.exists() else frozenset()


def test_every_test_the_page_names_is_there() -> None:
    named = [test for _, tests in promises(PAGE.read_text("utf-8")) for test in tests]
    assert named
    assert [f"{path}::{name}" for path, name in named if name not in names_in(path)] == []


def test_every_promise_names_a_test() -> None:
    assert [promise for promise, tests in promises(PAGE.read_text("utf-8")) if not tests] == []


def test_everything_that_looks_like_a_test_on_the_page_is_read_as_one() -> None:
    page = PAGE.read_text("utf-8")
    assert page.count("::") == sum(len(tests) for _, tests in promises(page))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("def test_a():\n    pass\n", {"test_a"}),
        ("async def test_a():\n    pass\n", {"test_a"}),
        ("class TestA:\n    def test_b(self):\n        pass\n", {"TestA"}),
        ("class TestA(Promises):\n    world = 1\n", {"TestA"}),
        ("class World:\n    def size(self):\n        pass\n\ndef a_test():\n    pass\n", set()),
    ],
)
def test_only_what_runs_as_a_test_counts(text: str, names: set[str]) -> None:
    assert set(names_of(ast.parse(text))) == names
