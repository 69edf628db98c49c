"""Rating: from what was used in a period to lines whose amounts can be paid, the same for a quote and an invoice.

A line's amount is exact until its very end and then rounded once, half to even, to the digits of its currency. What
rounding gave or took is on the line, and is carried to the customer's next invoice until it makes a whole minor unit;
so over time nobody gains or loses by rounding, and every difference can be seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from math import ceil
from typing import Literal, NamedTuple

import msgspec

from domain.billing.prices import Flat, Price, Step, decimal_of, nano_of, steps_of, total_of
from domain.values import CURRENCY_DIGITS, NANO, Money

ONE = Fraction(1)

Meter = Literal["period", "tokens_in", "tokens_out", "cached_tokens", "requests", "seconds", "amount"]


class Match(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which usage a charge is for; a member left out is met by any."""

    provider: str | None = None
    model: str | None = None
    persona_id: str | None = None

    def fits(self, provider: str, model: str, persona_id: str | None) -> bool:
        """Say whether usage of these names is meant."""
        return (
            self.provider in (None, provider)
            and self.model in (None, model)
            and self.persona_id in (None, persona_id)
        )


class Charge(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A line of a price book: what is counted, what it costs, and its bounds for a period.

    Units: free in units of the meter, minimum and maximum in units of the currency, all for one whole period; where
           `prorate` is set, a part of a period has its part of them.
    """

    id: str
    meter: Meter
    price: Price
    description: str = ""
    match: Match = Match()
    free: str = "0"
    minimum: str | None = None
    maximum: str | None = None
    prorate: bool = True


class ShownStep(msgspec.Struct, frozen=True):
    """A step as a line shows it.

    Units: amount is an exact decimal or fraction of the currency's unit.
    """

    what: str
    quantity: str
    price: str
    amount: str


class Line(msgspec.Struct, frozen=True):
    """One line of a quote or an invoice; `exact - amount` is what rounding took, and is carried.

    Units: quantity in units of the meter; exact and rounding in units of the currency, as decimal or fraction.
    """

    charge: str
    meter: str
    description: str
    quantity: str
    steps: list[ShownStep]
    exact: str
    amount: Money
    rounding: str


class Rated(NamedTuple):
    """A line with its exact amount beside it.

    Units: exact_nano in nano-units.
    """

    line: Line
    exact_nano: Fraction


# --------------------------------------------------------------------------- one line


def rate(charge: Charge, quantity: Fraction, currency: str, share: Fraction = ONE) -> Rated:
    """Charge a quantity of one period.

    Units: quantity in units of the meter, ignored for a flat fee; share is the part of the period, from 0 to 1.
    """
    part = share if charge.prorate else ONE
    if isinstance(charge.price, Flat):
        quantity, steps = part, steps_of(charge.price, part)
    else:
        steps = _beyond_free(charge, quantity, part)
    steps += _bounds(charge, total_of(steps), part)
    return line_of(charge.id, charge.meter, charge.description, quantity, steps, currency)


def _beyond_free(charge: Charge, quantity: Fraction, part: Fraction) -> list[Step]:
    free = min(quantity, decimal_of(charge.free) * part)
    freed = [Step("free", free, "0", Fraction(0))] if free else []
    return freed + steps_of(charge.price, quantity - free)


def _bounds(charge: Charge, nano: Fraction, part: Fraction) -> list[Step]:
    """Lift an amount to the charge's minimum, or cut it at its maximum; both show as steps of their own."""
    if charge.minimum is not None and nano < (least := nano_of(charge.minimum) * part):
        return [Step("minimum true-up", part, charge.minimum, least - nano)]
    if charge.maximum is not None and nano > (most := nano_of(charge.maximum) * part):
        return [Step("maximum", part, charge.maximum, most - nano)]
    return []


def line_of(
    charge: str, meter: str, description: str, quantity: Fraction, steps: Sequence[Step], currency: str
) -> Rated:
    """Write a line: its steps, its exact sum, and the sum rounded once."""
    exact = total_of(steps)
    amount = round_nano(exact, currency)
    shown = [ShownStep(s.what, print_exact(s.quantity), s.price, print_exact(s.nano / NANO)) for s in steps]
    line = Line(
        charge=charge,
        meter=meter,
        description=description,
        quantity=print_exact(quantity),
        steps=shown,
        exact=print_exact(exact / NANO),
        amount=Money.of(amount, currency),
        rounding=print_exact((exact - amount) / NANO),
    )
    return Rated(line, exact)


# --------------------------------------------------------------------------- rounding


def minor_nano(currency: str) -> int:
    """Give the smallest payable amount of a currency, in nano-units."""
    minors_in_one: int = 10 ** CURRENCY_DIGITS[currency]
    return NANO // minors_in_one


def round_nano(exact: Fraction, currency: str) -> int:
    """Round an exact amount to what can be paid, half to even.

    Units: nano-units in and out.
    """
    minor = minor_nano(currency)
    return round(exact / minor) * minor


def round_up_nano(exact: Fraction, currency: str) -> int:
    """Round an exact amount up to what can be paid: where no later bill carries what rounding took.

    Else use that is cut into pieces small enough would cost nothing at all.
    Units: nano-units in and out.
    """
    minor = minor_nano(currency)
    return ceil(exact / minor) * minor


def carry(carried_in: Fraction, rated: Iterable[Rated], currency: str) -> tuple[int, Fraction]:
    """Settle what rounding took so far: whole minor units now, the rest next time.

    Units: nano-units. Returns the amount of the rounding line, and what is carried on (within half a minor unit).
    """
    taken = sum((one.exact_nano - one.line.amount.nano for one in rated), carried_in)
    settled = round_nano(taken, currency)
    return settled, taken - settled


def print_exact(value: Fraction) -> str:
    """Print a number exactly: as a decimal where it ends, else as a fraction."""
    twos, rest = _without(value.denominator, 2)
    fives, rest = _without(rest, 5)
    if rest != 1:
        return f"{value.numerator}/{value.denominator}"
    digits = max(twos, fives)
    scaled = value.numerator * 10**digits // value.denominator
    sign, text = "-" if scaled < 0 else "", str(abs(scaled)).rjust(digits + 1, "0")
    return sign + (f"{text[:-digits]}.{text[-digits:]}" if digits else text)


def read_exact(text: str) -> Fraction:
    """Read what `print_exact` wrote."""
    return Fraction(text)


def _without(number: int, prime: int) -> tuple[int, int]:
    count = 0
    while number % prime == 0:
        number, count = number // prime, count + 1
    return count, number


# --------------------------------------------------------------------------- all of a period
