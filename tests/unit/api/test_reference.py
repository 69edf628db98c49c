"""The reference pages say what the program says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from api.reference import PROMISE, api_page, cli_page, errors_page, events_page, written_pages
from domain.errors import REGISTRY, InvalidError
from domain.log.records import AGGREGATES, EVENTS, Aggregate, Event

ROOT = Path(__file__).resolve().parents[3]
REFERENCE = ROOT / "docs" / "reference"
NAMES = (
    "api.md", "baseline_suite.json", "cli.md", "clickhouse.md", "errors.md", "evaluations.md", "events.md",
    "openapi.json", "settings.md",
)  # fmt: skip


@pytest.fixture(scope="module")
def printed() -> dict[str, str]:
    """Print every page once."""
    return written_pages()


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_page_is_the_printed_one(name: str, printed: dict[str, str]) -> None:
    committed = REFERENCE / name
    assert committed.exists(), f"docs/reference/{name} is not there: run `make docs` and commit it"
    assert committed.read_text(encoding="utf-8") == printed[name], (
        f"docs/reference/{name} is not what the code says: run `make docs` and commit it"
    )


def test_the_printed_pages_are_these(printed: dict[str, str]) -> None:
    assert sorted(printed) == sorted(NAMES)


def test_every_page_opens_with_the_promise(printed: dict[str, str]) -> None:
    assert all(text.startswith(f"{PROMISE}\n\n# ") for name, text in printed.items() if name.endswith(".md"))


def test_every_code_is_on_the_page_of_errors_once() -> None:
    page = errors_page()
    codes = [code for code, error in REGISTRY.items() if error.__module__.startswith("domain.")]
    assert [code for code in codes if page.count(f"\n| `{code}` | {REGISTRY[code].status} |") != 1] == []


def test_every_event_has_a_heading_on_the_page_of_events() -> None:
    page = events_page()
    ours = [topic for topic, event in EVENTS.items() if event.__module__.startswith("domain.")]
    assert ours
    assert [topic for topic in ours if page.count(f"\n### {topic}\n") != 1] == []


def test_every_structure_an_event_names_is_on_the_page() -> None:
    page = events_page()
    named = {part.split("](#")[0] for part in page.split("[")[1:] if "](#" in part}
    assert named
    assert [name for name in named if f"\n### {name}\n" not in page] == []


def test_every_path_is_on_the_page_of_http(printed: dict[str, str]) -> None:
    document = json.loads(printed["openapi.json"])
    page = api_page(document)
    wanted = [f"{method.upper()} {path}" for path, found in document["paths"].items() for method in found]
    assert "POST /v1/contracts/{contract_id}/release" in wanted
    assert [line for line in wanted if page.count(f"\n### {line}\n") != 1] == []


def test_every_word_of_the_command_line_is_on_its_page() -> None:
    page = cli_page()
    wanted = "up serve demo migrate doctor settings token docs ledger audit".split()
    assert [word for word in wanted if f"## soma {word}" not in page] == []
    assert "## soma ledger rebuild" in page
    assert "## soma audit verify" in page


@pytest.fixture
def a_stranger() -> Iterator[None]:
    """Define an event, an aggregate and an error outside the domain, as a test elsewhere may have done."""

    class Stranger(Aggregate):
        """A stranger."""

        KIND: ClassVar[str] = "stranger"

        class Came(Event):
            """It came."""

            TOPIC: ClassVar[str] = "stranger.came"

    class StrangerError(InvalidError, code="stranger_error"):
        """A stranger erred."""

    assert Stranger.KIND in AGGREGATES
    assert StrangerError.code in REGISTRY
    yield
    del AGGREGATES["stranger"], EVENTS["stranger.came"], REGISTRY["stranger_error"]


def test_what_is_defined_outside_the_domain_is_on_no_page(a_stranger: None) -> None:
    assert not [name for name, text in written_pages().items() if "stranger" in text]
