"""The words of a text, as every index here counts them."""

from __future__ import annotations

import re
import unicodedata

_WORD = re.compile(r"\w+")


def words_of(text: str) -> list[str]:
    """Cut a text into words, all alike in case and in form."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
