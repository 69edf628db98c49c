"""`soma marketplace list-personas` as a process, against a running service."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from tests.real.catalogue.shelf import member
from tests.real.catalogue.test_search import STRANGER, a_shelf
from tests.real.service import Service
from tests.real.test_cli import soma


class Terminal:
    """Somebody at a terminal, with the service and a token in the environment."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def type(self, *words: str, token: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run `soma marketplace list-personas`."""
        given = token if token is not None else self._service.token(STRANGER)
        return soma("marketplace", "list-personas", *words, url=self._service.url, token=given)

    def found(self, *words: str) -> dict[str, Any]:
        """Give what is printed as JSON."""
        done = self.type("--json", *words)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))


@pytest.fixture
def terminal(service: Service) -> Terminal:
    service.run(a_shelf(service.runtime))
    return Terminal(service)


def ids(found: dict[str, Any]) -> list[str]:
    return [one["persona_id"] for one in found["items"]]


def test_facets_of_the_service_are_options_of_the_word(terminal: Terminal) -> None:
    found = terminal.found("--domain", "finance", "--domain=travel", "--tenant", "agency")
    assert ids(found) == ["old-clerk", "travel-clerk"]
    assert found["total"] == 2
    table = terminal.type("--query", "taxes")
    assert table.returncode == 0
    assert table.stdout.index("tax-adviser") < table.stdout.index("night-nurse")
    assert "rental 2 USD / hour" in table.stdout
    assert "2 of 2" in table.stdout


def test_as_many_pages_are_read_as_are_asked_for(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(ids(terminal.found("--limit", "3"))) == 3
    found = terminal.found("--limit", "3", "--sort", "name")
    assert ids(found) == ["bookkeeper", "night-nurse", "old-clerk"]
    assert (found["total"], bool(found["next"])) == (5, True)


def test_filters_are_shown_with_the_values_there_are(terminal: Terminal) -> None:
    shown = terminal.type("--filters")
    assert shown.returncode == 0
    assert "--badge" in shown.stdout
    facets = {one["name"]: one for one in json.loads(terminal.type("--filters", "--json").stdout)}
    assert {"value": "travel", "count": 2} in facets["domain"]["values"]


def test_nothing_found_ends_with_one_and_a_refusal_with_two(terminal: Terminal) -> None:
    nobody = terminal.type("--domain", "nothing", "--json")
    assert (nobody.returncode, json.loads(nobody.stdout)["items"]) == (1, [])
    for words, code in (
        (("--colour", "red"), "unknown_field"),
        (("stray",), "unknown_field"),
        (("--domain",), "missing_field"),
        (("--domain", "--badge"), "missing_field"),
        (("--sort", "price"), "invalid_field"),
    ):
        refused = terminal.type(*words)
        assert (refused.returncode, refused.stdout) == (2, ""), words
        assert refused.stderr.startswith(f"{code}:"), refused.stderr
    assert terminal.type(token="nonsense").stderr.startswith("unauthorized:")


def test_owners_see_their_drafts(terminal: Terminal, service: Service) -> None:
    mine = service.token(member("acme"))
    assert terminal.type("--status", "draft", "--json", token=mine).returncode == 1
