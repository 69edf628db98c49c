"""Periods in local time: they touch, they cover everything, and the clocks may do what they like."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.billing.periods import Period, boundary, day_start, month_day, period_at, period_of, periods
from domain.errors import TimeZoneUnknownError

# Zones with changes at midnight, half hours, a skipped day, and none at all.
ZONES = [
    "UTC", "Europe/Berlin", "America/New_York", "America/Sao_Paulo", "Australia/Lord_Howe", "Pacific/Apia",
    "Asia/Beirut", "Asia/Kathmandu", "America/Havana", "Africa/Cairo",
]  # fmt: skip
anchors = st.dates(date(2000, 1, 1), date(2030, 12, 31))
moments = st.datetimes(datetime(2005, 1, 1), datetime(2035, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
every = st.sampled_from(["day", "week", "month", "year"])


@given(every, anchors, st.sampled_from(ZONES), moments)
def test_every_moment_lies_in_exactly_one_period(kind, anchor, zone, moment):
    period = period_at(kind, anchor, zone, moment)
    assert moment in period
    assert moment not in period_at(kind, anchor, zone, period.end)
    assert period_at(kind, anchor, zone, period.start) == period
    assert period_at(kind, anchor, zone, period.end - timedelta(microseconds=1)) == period


@given(every, anchors, st.sampled_from(ZONES), moments, st.timedeltas(timedelta(0), timedelta(days=400)))
def test_periods_touch_and_leave_nothing_out(kind, anchor, zone, start, length):
    found = list(periods(kind, anchor, zone, start, start + length))
    for before, after in pairwise(found):
        assert before.end == after.start
    if found:
        assert found[0].start <= start
        assert found[-1].end >= start + length


@given(anchors, st.integers(-60, 60))
def test_a_month_is_anchored_to_its_day_or_to_its_last(anchor, number):
    day = boundary("month", anchor, number)
    assert day.day == anchor.day or (day + timedelta(days=1)).month != day.month


def test_the_31st_comes_back_after_a_short_month():
    days = [boundary("month", date(2026, 1, 31), n) for n in range(4)]
    assert days == [date(2026, 1, 31), date(2026, 2, 28), date(2026, 3, 31), date(2026, 4, 30)]


def test_a_leap_day_is_the_28th_in_other_years():
    assert boundary("year", date(2024, 2, 29), 1) == date(2025, 2, 28)
    assert boundary("year", date(2024, 2, 29), 4) == date(2028, 2, 29)
    assert month_day(2100, 2, 31) == date(2100, 2, 28)


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Europe/Berlin", date(2026, 3, 29), 23),
        ("Europe/Berlin", date(2026, 10, 25), 25),
        ("America/Sao_Paulo", date(2018, 11, 4), 23),
        ("Australia/Lord_Howe", date(2026, 10, 4), 23.5),
        ("Asia/Kathmandu", date(2026, 6, 1), 24),
    ],
)
def test_a_day_has_the_hours_its_clocks_give_it(zone, day, hours):
    assert period_of("day", day, zone, 0).microseconds == hours * 3_600_000_000


def test_a_day_whose_midnight_was_skipped_starts_when_the_clocks_were_put_forward():
    assert day_start(date(2018, 11, 4), "America/Sao_Paulo") == datetime(2018, 11, 4, 3, tzinfo=UTC)


def test_a_midnight_that_came_twice_is_the_first():
    assert day_start(date(2026, 11, 1), "America/Havana") == datetime(2026, 11, 1, 4, tzinfo=UTC)


def test_a_day_that_never_was_is_empty_and_the_days_around_it_touch():
    skipped = period_of("day", date(2011, 12, 30), "Pacific/Apia", 0)
    assert skipped.microseconds == 0
    assert period_of("day", date(2011, 12, 29), "Pacific/Apia", 0).end == skipped.start


@given(st.sampled_from(ZONES), moments, st.lists(st.floats(0, 1), max_size=6))
def test_the_parts_of_a_period_add_up_to_it(zone, moment, cuts):
    whole = period_at("month", date(2026, 1, 31), zone, moment)
    marks = sorted({whole.start, whole.end, *(whole.start + (whole.end - whole.start) * cut for cut in cuts)})
    parts = [Period(a, b) for a, b in pairwise(marks)]
    assert sum((part.share_of(whole) for part in parts), Fraction(0)) == 1


def test_an_unknown_zone_is_refused():
    for zone in ("Mars/Olympus", "../etc/passwd", "", "localtime", "right/Europe/Berlin", "posix/UTC"):
        with pytest.raises(TimeZoneUnknownError):
            day_start(date(2026, 1, 1), zone)
