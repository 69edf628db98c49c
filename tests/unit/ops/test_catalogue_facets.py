"""Sets of personas as bits, held against plain Python sets."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ops.catalogue_facets import FacetBits, array_of, count, keys_of

WORDS = ("domain:tax", "domain:law", "badge:verified", "badge:override", "scope:read:all")
keys = st.integers(-(2**63), 2**63 - 1)
worn = st.frozensets(st.sampled_from(WORDS))
changes = st.lists(st.tuples(keys | st.integers(0, 40), worn), max_size=150)


def wearing(made: list[tuple[int, frozenset[str]]]) -> tuple[FacetBits, dict[int, frozenset[str]]]:
    """Say one after another what personas wear, in bits and in a dictionary."""
    bits, plain = FacetBits(), dict[int, frozenset[str]]()
    for key, words in made:
        bits.put(key, words)
        plain[key] = words
    return bits, plain


@given(changes, st.lists(st.sampled_from(WORDS), max_size=3), st.lists(keys, max_size=5))
def test_bits_say_what_sets_say(
    made: list[tuple[int, frozenset[str]]], asked: list[str], strangers: list[int]
) -> None:
    bits, plain = wearing(made)
    assert count(bits.everybody()) == len(plain)
    found = {key for key, words in plain.items() if words & set(asked)}
    assert count(bits.any_of(asked)) == len(found)
    some = [key for key in plain if key % 3 == 0] + [key for key in strangers if key not in plain]
    chosen = bits.those(array_of(some))
    assert count(chosen) == len({key for key in some if key in plain})
    assert count(chosen & bits.any_of(asked)) == len(found & set(some))
    counted = Counter(word for key in plain if key in set(some) for word in plain[key])
    for facet in ("domain", "badge", "scope"):
        assert dict(bits.counts(facet, chosen)) == {
            word.partition(":")[2]: n for word, n in counted.items() if word.startswith(f"{facet}:")
        }


@given(changes)
def test_all_at_once_is_the_same_as_one_by_one(made: list[tuple[int, frozenset[str]]]) -> None:
    bits, plain = wearing(made)
    whole = FacetBits()
    sets = {word: array_of(key for key, words in plain.items() if word in words) for word in WORDS}
    whole.add_all(list(sets.values()))
    for word, found in sets.items():
        whole.mark(word, found)
    for word in WORDS:
        assert count(whole.any_of([word])) == count(bits.any_of([word]))
    assert count(whole.everybody()) == len([words for words in plain.values() if words])


def test_a_thousand_personas_more_than_there_was_room_for_are_all_counted() -> None:
    bits = FacetBits()
    for key in range(5_000):
        bits.put(key * 7 - 9_000, [f"domain:{key % 100}", f"tenant:{key}"])
    assert count(bits.everybody()) == 5_000
    assert dict(bits.counts("domain", bits.everybody())) == {str(n): 50 for n in range(100)}
    assert list(bits.counts("nothing", bits.everybody())) == []
    assert bits.width * 64 >= 5_000


def test_keys_are_read_as_the_database_writes_them() -> None:
    numbers = [0, 1, -1, 2**63 - 1, -(2**63)]
    data = b"".join(n.to_bytes(8, "big", signed=True) for n in numbers)
    assert keys_of(data).tolist() == numbers
    assert keys_of(None).tolist() == keys_of(b"").tolist() == []
    assert keys_of(data).dtype == np.int64
