"""Billing periods: half-open stretches of time between local midnights of the customer, whatever the clocks do there.

A period starts and ends at the first moment of a local day, so a day may have 23 or 25 hours, and a month with a change
of the clocks is an hour shorter or longer in seconds. A customer anchored to the 31st is billed on the last day of
shorter months and on the 31st again after them. Zones and their history come from the IANA database as data.
"""

from __future__ import annotations

from calendar import monthrange
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from fractions import Fraction
from functools import lru_cache
from typing import Literal, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from domain.errors import TimeZoneUnknownError

Every = Literal["day", "week", "month", "year"]
MICROSECOND = timedelta(microseconds=1)


class Period(NamedTuple):
    """A half-open stretch of time: `start` belongs to it, `end` does not. Both are aware moments in UTC."""

    start: datetime
    end: datetime

    def __contains__(self, moment: object) -> bool:
        return isinstance(moment, datetime) and self.start <= moment < self.end

    @property
    def microseconds(self) -> int:
        """Give the length, exactly."""
        return (self.end - self.start) // MICROSECOND

    def share_of(self, whole: Period) -> Fraction:
        """Give the part of a whole period that this one covers, exactly.

        Units: from 0 to 1, by time that really passed.
        """
        start, end = max(self.start, whole.start), min(self.end, whole.end)
        return Fraction(max(end - start, timedelta(0)) // MICROSECOND, whole.microseconds)


@lru_cache(1_024)
def zone_of(name: str) -> ZoneInfo:
    """Find a time zone by its IANA name; what a machine calls its own time, or counts otherwise, is none.

    Errors: time_zone_unknown.
    """
    if name.lower().startswith(("right/", "posix/", "localtime", "posixrules")):
        raise TimeZoneUnknownError(f"{name[:64]!r} means another time elsewhere", zone=name[:64])
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise TimeZoneUnknownError(
            f"{name[:64]!r} is no zone of the IANA database", zone=name[:64]
        ) from error


def day_start(day: date, zone: str) -> datetime:
    """Give the first moment of a local day, in UTC.

    Where the clocks skip midnight the day starts when they have been put forward; where they show it twice, at the
    first of the two.
    Errors: time_zone_unknown.
    """
    local = datetime.combine(day, time.min, zone_of(zone))
    moment = local.astimezone(UTC)
    if moment.astimezone(zone_of(zone)).replace(tzinfo=None) == local.replace(tzinfo=None):
        return moment
    return _after_gap(local)


def _after_gap(local: datetime) -> datetime:
    """Find the moment at which clocks that skipped a local time were put forward."""
    zone = local.tzinfo
    low, high = local.astimezone(UTC) - timedelta(hours=3), local.astimezone(UTC) + timedelta(hours=3)
    wanted = local.replace(tzinfo=None)
    while high - low > MICROSECOND:
        middle = low + (high - low) // 2
        if middle.astimezone(zone).replace(tzinfo=None) < wanted:
            low = middle
        else:
            high = middle
    return high


def month_day(year: int, month: int, anchor_day: int) -> date:
    """Give the anchored day of a month, or its last day where it has none."""
    return date(year, month, min(anchor_day, monthrange(year, month)[1]))


def boundary(every: Every, anchor: date, number: int) -> date:
    """Give the local day on which the n-th period since the anchor starts; negative numbers lie before it."""
    if every == "day":
        return anchor + timedelta(days=number)
    if every == "week":
        return anchor + timedelta(weeks=number)
    months = anchor.year * 12 + anchor.month - 1 + number * (1 if every == "month" else 12)
    return month_day(months // 12, months % 12 + 1, anchor.day)


def period_at(every: Every, anchor: date, zone: str, moment: datetime) -> Period:
    """Give the period in which a moment lies.

    Cost:   O(1) look-ups of the zone.
    Errors: time_zone_unknown.
    """
    number = _guess(every, anchor, moment.astimezone(zone_of(zone)).date())
    while day_start(boundary(every, anchor, number), zone) > moment:
        number -= 1
    while day_start(boundary(every, anchor, number + 1), zone) <= moment:
        number += 1
    return period_of(every, anchor, zone, number)


def period_of(every: Every, anchor: date, zone: str, number: int) -> Period:
    """Give the n-th period since the anchor."""
    start, end = boundary(every, anchor, number), boundary(every, anchor, number + 1)
    return Period(day_start(start, zone), day_start(end, zone))


def periods(every: Every, anchor: date, zone: str, start: datetime, end: datetime) -> Iterator[Period]:
    """List the periods that have a part between two moments, in order; they touch and never overlap."""
    while start < end:
        period = period_at(every, anchor, zone, start)
        yield period
        start = period.end


def _guess(every: Every, anchor: date, day: date) -> int:
    if every in ("day", "week"):
        return (day - anchor).days // (1 if every == "day" else 7)
    months = (day.year - anchor.year) * 12 + day.month - anchor.month
    return months if every == "month" else months // 12
