"""Where batches are cut: a function of the position and nothing else, so that what is sent again is the same."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from projections.follower import cut

positions = st.integers(min_value=0, max_value=10**12)
widths = st.integers(min_value=1, max_value=10**5)


@given(positions, positions, widths)
def test_a_batch_holds_something_and_never_more_than_its_width(position: int, more: int, width: int) -> None:
    """A follower that is behind always makes a step, and a bounded one."""
    end = cut(position, position + more + 1, width)
    assert position < end <= position + width


@given(positions, positions, positions, widths)
def test_a_full_batch_ends_at_the_same_place_however_long_the_log_has_become(
    position: int, grown: int, later: int, width: int
) -> None:
    """A batch sent again after a crash has the same bounds, unless it was the last of the log then."""
    first = cut(position, position + grown + 1, width)
    again = cut(position, position + grown + later + 1, width)
    assert first == again or first == position + grown + 1


@given(positions, st.integers(min_value=1, max_value=3_000), st.integers(min_value=1, max_value=64))
def test_batches_cover_the_log_without_gap_or_overlap(start: int, length: int, width: int) -> None:
    """Each record is in exactly one batch."""
    position, ends = start, []
    while position < start + length:
        position = cut(position, start + length, width)
        ends.append(position)
    assert ends == sorted(set(ends))
    assert ends[-1] == start + length
    assert all(end % width == 0 for end in ends[:-1])
