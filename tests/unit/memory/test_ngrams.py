"""The embedding of the house: the same bytes everywhere, and nearer where more is shared."""

from __future__ import annotations

from hashlib import sha3_256

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from domain.memory.ngrams import DIMENSION, embed

SAID = ["The quick brown fox jumps over the lazy dog.", "Straße, ÉCOLE, школа", "", "12 34 12 12"]


def test_the_bytes_are_these_for_ever() -> None:
    data = embed(SAID).astype("<f4").tobytes()
    assert sha3_256(data).hexdigest() == "74c1358ed1e9128945de7cdc5e6637ee688a0ded20b0a4cc4c01fae37cfdc317"


@given(st.lists(st.text(max_size=40), max_size=5))
def test_a_text_with_words_has_length_one_and_none_else_has_any(said: list[str]) -> None:
    vectors = embed(said)
    assert vectors.shape == (len(said), DIMENSION)
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    assert all(abs(length - 1) < 1e-6 or length == 0 for length in lengths.tolist())


def test_a_text_is_nearer_to_one_that_shares_its_words() -> None:
    asked, near, far = embed(
        ["opening hours of the library", "The library has opening hours.", "Snow fell on hills."]
    )
    assert asked @ near > 0.5 > asked @ far


def test_case_and_form_of_a_word_do_not_matter() -> None:
    one, other = embed(["CAFÉ Ⅳ", "cafe\u0301 iv"])
    assert (one == other).all()


def test_a_text_does_not_hang_on_the_texts_beside_it() -> None:
    assert (embed(SAID)[3] == embed([SAID[3]])[0]).all()
