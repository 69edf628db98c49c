"""What reconciliation does without any server: merging, telling differences together, and the hours of nights."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import accumulate

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.billing.fingerprints import ENTRIES, Totals, totals_of
from domain.billing.reconciliation import FINDINGS_MAX, Change, Difference
from ops.reconcile_views import select_of, view_statements
from ops.reconcile_warehouse import RollupRow
from projections.nightly import last_hour, night_name
from projections.reconcile import agrees, merged
from projections.reconcile_search import Differences, units
from projections.reconciliations import DIFFERENCES_BYTES_MAX, kept

rows = st.lists(
    st.tuples(st.integers(0, 2**40), st.integers(-(2**70), 2**70), st.binary(min_size=64, max_size=64), st.integers())
)  # fmt: skip


def a_difference(
    position: int = 0, kind: str = "missing", *, words: str = "", harmless: bool = False
) -> Difference:
    return Difference(
        kind, "entries", "wallet.acme.USD", position, position, 1, f"address {position}", "stream",  # type: ignore[arg-type]
        [Change(words, words, words)] if words else [], harmless,
    )  # fmt: skip


class TestFingerprints:
    @given(rows, st.randoms())
    def test_the_order_of_rows_does_not_matter(self, found: list, chance) -> None:  # type: ignore[no-untyped-def]
        shuffled = list(found)
        chance.shuffle(shuffled)
        assert totals_of(shuffled) == totals_of(found)

    @given(rows.filter(bool))
    def test_a_row_that_lies_there_twice_is_seen(self, found: list) -> None:  # type: ignore[type-arg]
        assert totals_of([*found, found[0]]) != totals_of(found)
        assert totals_of([*found, found[0], found[0]]) != totals_of(found)

    @given(st.integers(0, 2**40), st.integers(1, 2**40), st.integers(1, 2**60))
    def test_two_alterations_that_cancel_in_the_sum_do_not_cancel_when_weighted(
        self, position: int, apart: int, by: int
    ) -> None:
        address = bytes(64)
        was = totals_of([(position, 5, address, 0), (position + apart, 7, address, 0)])
        now = totals_of([(position, 5 + by, address, 0), (position + apart, 7 - by, address, 0)])
        assert was.amount == now.amount
        assert was.weighted != now.weighted


class TestMerging:
    @given(st.lists(st.dictionaries(st.tuples(st.text(max_size=2), st.text(max_size=2)), st.integers(), max_size=8),
                    min_size=1, max_size=3))  # fmt: skip
    def test_every_key_comes_once_in_order_with_what_each_side_has(self, sides: list) -> None:  # type: ignore[type-arg]
        found = list(merged(iter(sorted(side.items())) for side in sides))
        assert [key for key, _ in found] == sorted({key for side in sides for key in side})
        assert all(values == [side.get(key) for side in sides] for key, values in found)

    def test_a_group_without_rows_needs_no_row_of_the_rollup(self) -> None:
        assert agrees(ENTRIES, Totals(), None)
        assert not agrees(ENTRIES, Totals(rows=1), None)

    def test_a_row_of_the_rollup_must_say_all_it_says_rightly(self) -> None:
        right = Totals(2, 5, 11, 1, 2, 3, 4, (9, 4))
        said = {"rows": 2, "amount": 5, "weighted": 11, "x0": 1, "x1": 2, "s2": 3, "debits": 9, "credits": 4}
        assert agrees(ENTRIES, right, RollupRow(("a", "USD", "2026-01-01"), said, 7))
        for name, value in said.items():
            wrong = said | {name: value + 1}
            assert not agrees(ENTRIES, right, RollupRow(("a", "USD", "2026-01-01"), wrong, 7))


class TestTelling:
    def test_what_follows_without_anything_right_between_is_told_together(self) -> None:
        found = Differences()
        for position in (3, 4, 9):
            found.extend(a_difference(position))
        found.settle()
        (told,) = found.listed
        assert (told.position, told.last, told.rows, told.address) == (3, 9, 3, "address 3")

    def test_a_right_row_another_kind_or_a_harmless_one_ends_what_is_told_together(self) -> None:
        found = Differences()
        found.extend(a_difference(1))
        found.settle()
        found.extend(a_difference(2))
        found.extend(a_difference(3, "extra"))
        found.extend(a_difference(4, "extra", harmless=True))
        found.add(a_difference(5, "altered"))
        assert [(d.position, d.last) for d in found.listed] == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5)]
        assert (found.count, found.harmful_count) == (5, 4)

    @given(st.integers(0, 60), st.integers(0, 30_000))
    def test_what_an_event_keeps_fits_into_a_record(self, count: int, length: int) -> None:
        fitting = kept([a_difference(n, "altered", words="ü" * (length % 3_000)) for n in range(count)])
        assert len(fitting) <= min(count, FINDINGS_MAX)
        assert len(msgspec.json.encode(fitting)) <= DIFFERENCES_BYTES_MAX + FINDINGS_MAX + 2

    @pytest.mark.parametrize(
        ("nano", "text"), [(0, "0"), (-1, "-0.000000001"), (12_500_000_000, "12.5"), (-(10**9), "-1")]
    )
    def test_nano_units_are_printed_exactly(self, nano: int, text: str) -> None:
        assert units(nano) == text


class TestViews:
    def test_every_view_of_the_release_has_a_query(self) -> None:
        found = view_statements()
        assert {"ledger_entries", "balances_daily", "revenue_daily"} <= found.keys()
        for statement in found.values():
            query = select_of(statement)
            assert query.startswith(("SELECT", "WITH"))
            assert "\nCOMMENT '" not in query


moments = st.datetimes(datetime(2020, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
hours = st.builds(lambda h, m: f"{h:02d}:{m:02d}", st.integers(0, 23), st.integers(0, 59))


class TestNights:
    @given(hours, moments)
    def test_the_last_hour_is_at_most_a_day_ago(self, at_utc: str, now: datetime) -> None:
        due = last_hour(at_utc, now)
        assert timedelta(0) <= now - due < timedelta(days=1)
        assert due.strftime("%H:%M:%S") == f"{at_utc}:00"

    @given(hours, moments, st.lists(st.integers(1, 5_000), max_size=60))
    def test_no_night_is_repeated_or_skipped_however_often_somebody_looks(
        self, at_utc: str, start: datetime, pauses_min: list[int]
    ) -> None:
        looks = list(accumulate(pauses_min, lambda at, pause: at + timedelta(minutes=pause), initial=start))
        nights = [last_hour(at_utc, now) for now in looks]
        names = list(dict.fromkeys(map(night_name, nights)))
        assert len(names) == len(set(nights))
        assert names == sorted(names)
        # A look at least once a day misses no night.
        if all(pause <= 24 * 60 for pause in pauses_min):
            assert len(names) == (nights[-1] - nights[0]).days + 1
