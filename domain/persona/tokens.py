"""How many tokens a text is likely to cost a language model, by a rule that anybody can apply again.

Tokenizers differ from model to model and are not ours to ship. The estimate is the size of the text in UTF-8 divided by
four, rounded up: the rule of thumb of the field for English prose and code, and on the high side for neither by much.
"""

from __future__ import annotations

import msgspec

METHOD = "utf8-bytes-over-4/1"
BYTES_PER_TOKEN = 4


class TokenEstimate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a persona costs a model to read.

    Units: tokens; per item as a decimal with one digit.
    """

    prompt_tokens: int
    memory_tokens_per_item: str
    method: str


def token_count(text: str) -> int:
    """Estimate the tokens of a text."""
    return token_count_of(len(text.encode("utf-8", "surrogatepass")))


def token_count_of(size_bytes: int) -> int:
    """Estimate the tokens of a text of so many bytes in UTF-8."""
    return -(-size_bytes // BYTES_PER_TOKEN)


class TokenCounter:
    """Adds up the tokens of prompts and memory items, seen one by one."""

    def __init__(self) -> None:
        self._prompt_tokens = 0
        self._memory_tokens = 0
        self._item_count = 0

    def add_prompt(self, text: str) -> None:
        """Count a prompt."""
        self._prompt_tokens += token_count(text)

    def add_memory(self, text: str) -> None:
        """Count a memory item."""
        self.add_memories(token_count(text), 1)

    def add_memories(self, tokens: int, item_count: int) -> None:
        """Count memory items whose tokens were added up already."""
        self._memory_tokens += tokens
        self._item_count += item_count

    def estimate(self) -> TokenEstimate:
        """Give what was counted so far; without items, an item costs nothing."""
        tenths = (20 * self._memory_tokens + self._item_count) // max(2 * self._item_count, 1)
        return TokenEstimate(self._prompt_tokens, f"{tenths // 10}.{tenths % 10}", METHOD)
