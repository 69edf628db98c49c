"""Pages that quote the code quote it as it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
ROOMS = ("domain", "ops", "projections", "api")


def quotes(page: str) -> list[str]:
    """Read the Python quotes of a page: what two empty lines set apart may come from different places."""
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return [quote.strip("\n") for block in blocks for quote in block.split("\n\n\n")]


@pytest.mark.parametrize(
    "quote",
    quotes((ROOT / "docs" / "howto" / "add-a-command.md").read_text(encoding="utf-8")),
    ids=lambda quote: quote.strip().splitlines()[0],
)
def test_what_the_how_to_quotes_is_in_the_code(quote: str) -> None:
    sources = [path.read_text(encoding="utf-8") for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    assert any(quote in source for source in sources), f"quoted, but not in the code:\n{quote}"


def test_a_quote_that_is_not_in_the_code_would_be_seen() -> None:
    assert quotes("```python\nx = 1\n\n\ny = 2\n```\n") == ["x = 1", "y = 2"]
