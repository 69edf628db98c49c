"""How well moderation finds what it should, and leaves in peace what it should, on data that is not ours."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from domain.trust.moderation.personal_data import find_personal_data
from domain.trust.moderation.secrets import find_secrets
from ops.secret_scanner import SecretScanner
from tests.unit.trust.moderation.reference_rules import draw

# Our kinds, and what the labelled data calls them.
KINDS = {
    "phone_number": "PHONE_NUMBER",
    "credit_card": "CREDIT_CARD",
    "email": "EMAIL_ADDRESS",
    "ip_address": "IP_ADDRESS",
    "us_ssn": "US_SSN",
    "iban": "IBAN_CODE",
    "identity_number": "US_DRIVER_LICENSE",
}


LIBRARY = SecretScanner()


def secrets_of(text: str) -> list[tuple[int, int]]:
    return [(match.start, match.end) for match in [*find_secrets(text), *LIBRARY(text)]]


def texts(value: Any) -> Iterator[str]:
    """Give every text in a document."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for inner in value.values() for text in texts(inner))
    elif isinstance(value, list):
        yield from (text for inner in value for text in texts(inner))


@pytest.fixture(scope="module")
def prose(shared_dir: Path) -> list[str]:
    """Read conversations and abstracts: text as personas remember it, with nothing to find in it."""
    names = ["locomo/locomo_dev.json", "cisi/cisi_docs.json", "cranfield/cranfield_docs.json"]
    lines = [text for name in names for text in texts(json.loads((shared_dir / "data" / name).read_text()))]
    return ["\n".join(lines[at : at + 500]) for at in range(0, len(lines), 2_000)]


class TestPersonalData:
    def test_labelled_sentences_are_read_to_the_character(self, shared_dir: Path) -> None:
        rows = json.loads((shared_dir / "data" / "presidio_pii" / "generated_small.json").read_text())
        right, wrong, missed = Counter[str](), Counter[str](), Counter[str]()
        for row in rows:
            spans = [span for span in find_personal_data(row["full_text"]) if span.kind in KINDS]
            ours = {(KINDS[span.kind], span.start, span.end) for span in spans}
            theirs = {
                (span["entity_type"], span["start_position"], span["end_position"])
                for span in row["spans"]
                if span["entity_type"] in KINDS.values()
            }
            right.update(kind for kind, *_ in ours & theirs)
            wrong.update(kind for kind, *_ in ours - theirs)
            missed.update(kind for kind, *_ in theirs - ours)
        assert (wrong, missed) == (Counter(), Counter())
        assert right.total() >= 28

    def test_prose_is_left_in_peace(self, prose: list[str]) -> None:
        found = Counter(span.kind for text in prose for span in find_personal_data(text))
        assert found.total() <= 3, found


class TestSecrets:
    def test_nine_of_ten_secrets_of_the_reference_are_found(self, shared_dir: Path) -> None:
        drawn = list(draw(shared_dir / "data" / "gitleaks" / "gitleaks.toml", 5, seed=20_261))
        found = [
            one.rule for one in drawn if any(a < one.end and one.start < b for a, b in secrets_of(one.text))
        ]
        rules = {one.rule for one in drawn}
        assert len(rules) > 200
        assert len(found) >= 0.9 * len(drawn)
        assert len(set(found)) >= 0.97 * len(rules)

    def test_the_library_alone_would_find_one_in_six(self, shared_dir: Path) -> None:
        """Hold the reason for rules of our own; should the library learn, this test says so."""
        drawn = list(draw(shared_dir / "data" / "gitleaks" / "gitleaks.toml", 1, seed=7))
        found = sum(any(True for _ in LIBRARY(one.text)) for one in drawn)
        assert found < 0.25 * len(drawn)

    def test_prose_is_left_in_peace(self, prose: list[str]) -> None:
        assert [text[a - 20 : b] for text in prose for a, b in secrets_of(text)] == []
