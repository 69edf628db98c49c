"""Prices, bills and calendars computed a second time, in plain fractions, by nobody who billed.

What an auditor would write who has read the documentation and no code of the ledger: numbers come from the JSON of the
log, time from the zone database of the standard library. Nothing of the house is imported here.
"""

from __future__ import annotations

from calendar import monthrange
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from math import ceil, floor
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

Json = Mapping[str, Any]

DIGITS = {"USD": 2, "EUR": 2, "JPY": 0, "KWD": 3}
METERS = ("tokens_in", "tokens_out", "cached_tokens", "requests")
ZERO = Fraction(0)


# --------------------------------------------------------------------------- numbers


def number(text: str | None) -> Fraction:
    """Read a decimal or a fraction; nothing is zero."""
    return Fraction(text or "0")


def payable(exact: Fraction, currency: str) -> Fraction:
    """Round to the digits of a currency, half to even."""
    return rounded(exact, DIGITS[currency])


def payable_up(exact: Fraction, currency: str) -> Fraction:
    """Round up to the digits of a currency."""
    return Fraction(ceil(exact * 10 ** DIGITS[currency]), 10 ** DIGITS[currency])


def rounded(exact: Fraction, digits: int) -> Fraction:
    """Round half to even."""
    scaled = exact * 10**digits
    low = floor(scaled)
    above = scaled - low
    is_up = above > Fraction(1, 2) or (above == Fraction(1, 2) and low % 2 == 1)
    return Fraction(low + is_up, 10**digits)


# --------------------------------------------------------------------------- prices


def cost(price: Json, quantity: Fraction) -> Fraction:
    """Price a quantity, exactly, in units of the currency."""
    found: Fraction = _MODELS[price["model"]](price, quantity)
    return found


def _tiered(price: Json, quantity: Fraction) -> Fraction:
    """Add up, tier by tier, what lies in each."""
    sum_, below = ZERO, ZERO
    for tier in price["tiers"]:
        if quantity > below:
            top = quantity if tier["up_to"] is None else min(quantity, number(tier["up_to"]))
            sum_ += (top - below) / number(price["per"]) * number(tier["price"]) + number(tier["flat"])
            below = top
    return sum_


def _volume(price: Json, quantity: Fraction) -> Fraction:
    for tier in price["tiers"]:
        if quantity and (tier["up_to"] is None or quantity <= number(tier["up_to"])):
            return quantity / number(price["per"]) * number(tier["price"]) + number(tier["flat"])
    return ZERO


def _by_minute(price: Json, seconds: Fraction) -> Fraction:
    if not seconds:
        return ZERO
    minutes = seconds / 60 if price["rounding"] == "exact" else Fraction(ceil(seconds / 60))
    return max(minutes, number(price["minutes_min"])) * number(price["price"])


def _share(price: Json, amount: Fraction) -> Fraction:
    fee = max(amount * number(price["share"]), number(price["fee_min"])) if amount else ZERO
    return fee if price["fee_max"] is None else min(fee, number(price["fee_max"]))


_MODELS: dict[str, Callable[[Json, Fraction], Fraction]] = {
    "flat": lambda p, q: q * number(p["price"]),
    "per_unit": lambda p, q: q / number(p["per"]) * number(p["price"]),
    "graduated": _tiered,
    "volume": _volume,
    "package": lambda p, q: ceil(q / number(p["size"])) * number(p["price"]),
    "per_minute": _by_minute,
    "percentage": _share,
}


class HandLine(NamedTuple):
    """A line as it should be: what it counts, what it exactly costs, and the readings behind each."""

    charge: str
    quantity: Fraction
    exact: Fraction
    readings: frozenset[str] | None

    def paid(self, currency: str) -> Fraction:
        """Give what is paid for it."""
        return payable(self.exact, currency)


class HandPart(NamedTuple):
    """A part of a period: the charges in force, its share of a whole period, and the readings in it by name."""

    charges: Sequence[Json]
    share: Fraction
    readings: Mapping[str, Json]


def lines_of(part: HandPart) -> list[HandLine]:
    """Charge all readings of a part. A meter of a reading is counted by the first charge that is meant for it."""
    counted: dict[str, set[str]] = {charge["id"]: set() for charge in part.charges}
    unpriced: dict[tuple[str, str, str], set[str]] = {}
    for name, reading in part.readings.items():
        mine = [
            found["id"] for meter in METERS if (found := _first(part.charges, meter, reading)) is not None
        ]
        for charge_id in mine:
            counted[charge_id].add(name)
        if not mine:
            group = (reading["provider"], reading["model"], reading["persona_id"] or "")
            unpriced.setdefault(group, set()).add(name)
    lines = [
        line for charge in part.charges if (line := _line(charge, part, counted[charge["id"]])) is not None
    ]
    for _, names in sorted(unpriced.items()):
        asked = sum((Fraction(part.readings[name]["requests"]) for name in names), ZERO)
        lines.append(HandLine("unpriced", asked, ZERO, frozenset(names)))
    return lines


def _first(charges: Sequence[Json], meter: str, reading: Json) -> Json | None:
    for charge in charges:
        wanted = {k: v for k, v in charge["match"].items() if v is not None}
        if charge["meter"] == meter and all(reading[k] == v for k, v in wanted.items()):
            return charge
    return None


def _line(charge: Json, part: HandPart, names: set[str]) -> HandLine | None:
    share = part.share if charge["prorate"] else Fraction(1)
    is_flat = charge["price"]["model"] == "flat"
    if is_flat:
        quantity, exact = share, cost(charge["price"], share)
    else:
        quantity = sum((Fraction(part.readings[n][charge["meter"]] or 0) for n in names), ZERO)
        exact = cost(charge["price"], max(ZERO, quantity - number(charge["free"]) * share))
    if charge["minimum"] is not None:
        exact = max(exact, number(charge["minimum"]) * share)
    if charge["maximum"] is not None:
        exact = min(exact, number(charge["maximum"]) * share)
    if not (exact or names or is_flat):
        return None
    return HandLine(charge["id"], quantity, exact, frozenset(names) if names else None)


# --------------------------------------------------------------------------- bills


class HandTerms(NamedTuple):
    """What is agreed beside the prices. Units: of the currency; carried exact."""

    currency: str
    commitment: Fraction | None = None
    coupons: Sequence[Json] = ()
    taxes: Sequence[Json] = ()
    credits: Sequence[Json] = ()
    carried: Fraction = ZERO


class HandBill(NamedTuple):
    """A bill as it should be. Units: of the currency."""

    lines: list[HandLine]
    subtotal: Fraction
    discounts: list[Fraction]
    net: Fraction
    taxes: list[Fraction]
    total: Fraction
    rounding: Fraction
    credits: list[tuple[str, Fraction]]
    due: Fraction
    carried: Fraction


def bill_of(lines: Sequence[HandLine], terms: HandTerms, at: str) -> HandBill:
    """Make the bill: lines, commitment, coupons, taxes, what rounding took before, credits."""
    every, currency = list(lines), terms.currency
    missing = (terms.commitment or ZERO) - sum((line.exact for line in every), ZERO)
    if missing > 0:
        every.append(HandLine("commitment", Fraction(1), missing, None))
    paid = [line.paid(currency) for line in every]
    discounts = _discounts(every, paid, terms)
    net = sum(paid, ZERO) - sum(discounts, ZERO)
    taxes = [payable(net * number(tax["share"]), currency) for tax in terms.taxes]
    total = net + sum(taxes, ZERO)
    left = terms.carried + sum((line.exact for line in every), ZERO) - sum(paid, ZERO)
    rounding = payable(left, currency)
    if total + rounding < 0:
        rounding = ZERO
    burned = _burned(terms, total + rounding, at)
    due = total + rounding - sum((amount for _, amount in burned), ZERO)
    return HandBill(
        every, sum(paid, ZERO), discounts, net, taxes, total, rounding, burned, due, left - rounding
    )


def _discounts(lines: Sequence[HandLine], paid: Sequence[Fraction], terms: HandTerms) -> list[Fraction]:
    left, taken = list(paid), []
    for coupon in terms.coupons:
        meant = [
            i for i, line in enumerate(lines) if coupon["charges"] is None or line.charge in coupon["charges"]
        ]
        base = sum((left[i] for i in meant), ZERO)
        if coupon["amount"] is not None:
            unit = Fraction(1, 10 ** DIGITS[terms.currency])
            off = min(base, number(coupon["amount"]["amount"]) // unit * unit)
        else:
            off = payable(base * number(coupon["share"]), terms.currency)
        taken.append(off)
        for i in meant:
            part = min(left[i], off)
            left[i], off = left[i] - part, off - part
    return taken


def _burned(terms: HandTerms, due: Fraction, at: str) -> list[tuple[str, Fraction]]:
    unit, found = Fraction(1, 10 ** DIGITS[terms.currency]), []
    order = sorted(terms.credits, key=lambda c: (c["priority"], c["expires_at"] or "~", c["at"], c["id"]))
    for credit in order:
        part = min(due, credit["left"] // unit * unit)
        if part > 0 and not (credit["expires_at"] and credit["expires_at"] <= at):
            found.append((credit["id"], part))
            due -= part
    return found


# --------------------------------------------------------------------------- calendars


def moment(text: str) -> datetime:
    """Read a moment of the log."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)


def text_of(at: datetime) -> str:
    """Write a moment as the log does."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f") + "Z"


def midnight(day: date, zone: str) -> datetime:
    """Find the first moment at which calendars in a zone show a day, by looking at every quarter of an hour.

    Clocks of our time are only ever changed at whole quarters of UTC, so no moment between them is a first one.
    """
    at = datetime(day.year, day.month, day.day, tzinfo=UTC) - timedelta(hours=15)
    there = ZoneInfo(zone)
    while at.astimezone(there).date() < day:
        at += timedelta(minutes=15)
    return at


def stretch(every: str, anchor: str, zone: str, at: datetime) -> tuple[datetime, datetime]:
    """Find the period that a moment lies in, by listing periods around it."""
    local, first = at.astimezone(ZoneInfo(zone)).date(), date.fromisoformat(anchor)
    starts = [midnight(day, zone) for day in _days(every, first, local)]
    begun = max(start for start in starts if start <= at)
    return begun, min(start for start in starts if start > at)


def _days(every: str, first: date, around: date) -> Iterable[date]:
    if every in ("day", "week"):
        step = 1 if every == "day" else 7
        base = around - timedelta(days=(around - first).days % step)
        return [base + timedelta(days=step * n) for n in (-1, 0, 1, 2)]
    if every == "year":
        return [_anchored(year, first.month, first.day) for year in range(around.year - 2, around.year + 3)]
    months = [around.year * 12 + around.month - 1 + n for n in (-2, -1, 0, 1, 2)]
    return [_anchored(m // 12, m % 12 + 1, first.day) for m in months]


def _anchored(year: int, month: int, day: int) -> date:
    return date(year, month, min(day, monthrange(year, month)[1]))


def share_of(start: datetime, end: datetime, whole: tuple[datetime, datetime]) -> Fraction:
    """Give the part of a whole stretch that passes between two moments in it, exactly."""
    tick = timedelta(microseconds=1)
    return Fraction((end - start) // tick, (whole[1] - whole[0]) // tick)
