"""The clock writes moments as records do and never goes back; ids are unique and sort by time."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest

from domain.values import moment_of, moment_text
from ops.clock import Clock, next_id


class TestClock:
    def test_the_time_is_told_as_records_print_it(self):
        before = time.time()
        text = Clock()()
        assert moment_text(moment_of(text)) == text
        assert before - 1e-5 <= moment_of(text).timestamp() <= time.time()

    def test_it_never_goes_back_when_the_machine_s_clock_does(self):
        at = iter((5 * 10**18, 4 * 10**18, 5 * 10**18 - 1, 5 * 10**18 + 1_000, 5 * 10**18 + 999))
        clock = Clock(lambda: next(at), lambda: 0)
        told = [clock() for _ in range(5)]
        assert told == sorted(told)
        assert told[0] == told[1] == told[2] < told[3] == told[4]

    def test_time_goes_on_as_it_passes_when_the_machine_s_clock_is_set_back_and_is_followed_forward(self):
        hour_ns, second_ns = 3_600 * 10**9, 10**9
        steps = [
            # The machine's clock, the time that has passed, and what is told; seconds after the first.
            (0, 0, 0),
            (second_ns, second_ns, 1),
            (2 * second_ns - hour_ns, 2 * second_ns, 2),
            (90 * second_ns - hour_ns, 90 * second_ns, 90),
            (91 * second_ns, 91 * second_ns, 91),
            (92 * second_ns + hour_ns, 92 * second_ns, 3_692),
            (93 * second_ns, 93 * second_ns, 3_693),
        ]
        now, passed = 0, 0
        clock = Clock(lambda: 10**18 + now, lambda: passed)
        start = moment_of(clock())
        for now, passed, expected_s in steps:  # noqa: B007 - the clocks read them
            assert (moment_of(clock()) - start).total_seconds() == expected_s

    @pytest.mark.parametrize(
        ("ns", "text"),
        [
            (0, "1970-01-01T00:00:00.000000Z"),
            (1_999, "1970-01-01T00:00:00.000001Z"),
            (1_709_208_000_123_456_789, "2024-02-29T12:00:00.123456Z"),
            (951_782_399_999_999_999, "2000-02-28T23:59:59.999999Z"),
            (4_102_444_800_000_000_000, "2100-01-01T00:00:00.000000Z"),
        ],
    )
    def test_known_moments(self, monkeypatch, ns, text):
        monkeypatch.setattr("time.time_ns", lambda: ns)
        assert Clock()() == text

    def test_text_order_is_time_order_over_the_turn_of_a_second(self, monkeypatch):
        clock = Clock()
        told = []
        for ns in range(10**18 - 5_000, 10**18 + 5_000, 1_000):
            monkeypatch.setattr("time.time_ns", lambda ns=ns: ns)
            told.append(clock())
        assert all(left < right for left, right in pairwise(told))


class TestIds:
    def test_ids_are_unique_and_of_one_form(self):
        ids = {next_id() for _ in range(20_000)}
        assert len(ids) == 20_000
        assert all(len(one) == 32 and set(one) <= set("0123456789abcdef") for one in ids)

    def test_ids_of_later_milliseconds_sort_behind(self, monkeypatch):
        ids = []
        for ms in (0, 1, 999, 1_000, 1_700_000_000_000, 1_700_000_000_001, 4_102_444_800_000):
            monkeypatch.setattr("time.time_ns", lambda ms=ms: ms * 1_000_000 + 999_999)
            ids.append(next_id())
        assert ids == sorted(ids)
        assert int(ids[4][:12], 16) == 1_700_000_000_000
