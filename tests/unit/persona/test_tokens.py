"""The rule by which tokens are estimated."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from domain.persona.tokens import TokenCounter, token_count


@given(st.text(max_size=200))
def test_tokens_are_a_quarter_of_the_bytes_rounded_up(text: str) -> None:
    size = len(text.encode("utf-8", "surrogatepass"))
    assert 4 * token_count(text) - 4 < size <= 4 * token_count(text)


def test_known_texts_have_these_tokens() -> None:
    assert [token_count(text) for text in ("", "a", "word", "words", "Straße", "学校")] == [0, 1, 1, 2, 2, 2]


@given(st.lists(st.text(max_size=40), max_size=8), st.lists(st.text(max_size=40), min_size=1, max_size=30))
def test_an_item_costs_its_mean_to_the_nearest_tenth(prompts: list[str], items: list[str]) -> None:
    counter = TokenCounter()
    for text in prompts:
        counter.add_prompt(text)
    counter.add_memories(sum(map(token_count, items)), len(items))
    found = counter.estimate()
    assert found.prompt_tokens == sum(map(token_count, prompts))
    exact = Fraction(sum(map(token_count, items)), len(items))
    assert abs(Fraction(found.memory_tokens_per_item) - exact) <= Fraction(1, 20)


def test_a_memory_without_items_costs_nothing() -> None:
    assert TokenCounter().estimate().memory_tokens_per_item == "0.0"
