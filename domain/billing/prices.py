"""Prices: what a quantity costs, exactly, in one place for quotes and for invoices.

A price turns a quantity into steps, each so many units at so much. Amounts are exact fractions of a nano-unit until a
whole line is rounded (domain.billing.rating), so no order of adding and no number of steps changes what is owed.
Prices are parts of price books, which never change once they are in force; checking one is done when a book is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from math import ceil
from typing import Any, Literal, NamedTuple

import msgspec

from domain.errors import AmountInvalidError, PriceBookInvalidError
from domain.values import parse_nano

TIERS_MAX = 100


class Tier(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A step of a scale: what lies above the tier before, up to and with `up_to`; the last one is open.

    Units: price for `per` units of the meter; flat once where the tier is entered; decimal strings.
    """

    price: str
    up_to: str | None = None
    flat: str = "0"


class Flat(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="model", tag="flat"):
    """A fee for a period, whatever was used in it.

    Units: the quantity is in periods: one, or the part of one that is charged.
    """

    price: str


class PerUnit(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="model", tag="per_unit"):
    """One price for each `per` units, such as a million tokens; a part of them costs its part."""

    price: str
    per: str = "1"


class Graduated(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="model", tag="graduated"):
    """Each part of the quantity at the price of the tier it lies in."""

    tiers: list[Tier]
    per: str = "1"


class Volume(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="model", tag="volume"):
    """The whole quantity at the price of the one tier it reaches."""

    tiers: list[Tier]
    per: str = "1"


class Package(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="model", tag="package"):
    """Whole packages of `size` units: one begun is one paid."""

    price: str
    size: str


class PerMinute(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="model", tag="per_minute"):
    """Seconds at a price for the minute: minutes begun or exact seconds, and at least so many minutes.

    Units: the quantity is in seconds.
    """

    price: str
    rounding: Literal["up", "exact"] = "up"
    minutes_min: str = "0"


class Percentage(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="model", tag="percentage"
):
    """A share of an amount of money, never less or more than given fees.

    Units: the quantity is an amount in units of the currency; share from 0 to 1.
    """

    share: str
    fee_min: str = "0"
    fee_max: str | None = None


Price = Flat | PerUnit | Graduated | Volume | Package | PerMinute | Percentage


class Step(NamedTuple):
    """One part of a line: so many units, what they are charged at, and what that comes to.

    Units: nano is an exact amount in nano-units of the book's currency.
    """

    what: str
    quantity: Fraction
    price: str
    nano: Fraction


def decimal_of(text: str) -> Fraction:
    """Read a decimal string exactly.

    Errors: invalid_amount.
    """
    return Fraction(parse_nano(text), 10**9)


def nano_of(text: str) -> Fraction:
    """Read a price as nano-units.

    Errors: invalid_amount.
    """
    return Fraction(parse_nano(text))


# --------------------------------------------------------------------------- what a quantity costs


def steps_of(price: Price, quantity: Fraction) -> list[Step]:
    """Price a quantity; its amount is the sum of the steps.

    Units: quantity in units of the meter; periods for a flat fee, seconds for minutes, money for a percentage.
    Cost:  O(tiers), in exact fractions.
    """
    assert quantity >= 0, "a quantity is never negative; corrections credit whole lines"
    rule: Callable[[Any, Fraction], Iterator[Step]] = _RULES[type(price)]
    return list(rule(price, quantity))


def total_of(steps: Sequence[Step]) -> Fraction:
    """Add steps up.

    Units: exact nano-units.
    """
    return sum((step.nano for step in steps), Fraction(0))


def _flat(price: Flat, periods: Fraction) -> Iterator[Step]:
    if periods:
        yield Step("period", periods, price.price, periods * nano_of(price.price))


def _per_unit(price: PerUnit, quantity: Fraction) -> Iterator[Step]:
    if quantity:
        yield Step("unit", quantity, price.price, quantity / decimal_of(price.per) * nano_of(price.price))


def _graduated(price: Graduated, quantity: Fraction) -> Iterator[Step]:
    below = Fraction(0)
    for number, tier in enumerate(price.tiers, 1):
        if quantity <= below:
            return
        top = quantity if tier.up_to is None else min(quantity, decimal_of(tier.up_to))
        yield from _tier(number, tier, top - below, price.per)
        below = top


def _volume(price: Volume, quantity: Fraction) -> Iterator[Step]:
    for number, tier in enumerate(price.tiers, 1):
        if quantity and (tier.up_to is None or quantity <= decimal_of(tier.up_to)):
            yield from _tier(number, tier, quantity, price.per)
            return


def _tier(number: int, tier: Tier, quantity: Fraction, per: str) -> Iterator[Step]:
    yield Step(f"tier {number}", quantity, tier.price, quantity / decimal_of(per) * nano_of(tier.price))
    if nano_of(tier.flat):
        yield Step(f"tier {number} flat", Fraction(1), tier.flat, nano_of(tier.flat))


def _package(price: Package, quantity: Fraction) -> Iterator[Step]:
    count = ceil(quantity / decimal_of(price.size))
    if count:
        yield Step("package", Fraction(count), price.price, count * nano_of(price.price))


def _per_minute(price: PerMinute, seconds: Fraction) -> Iterator[Step]:
    minutes = seconds / 60
    used = Fraction(ceil(minutes)) if price.rounding == "up" else minutes
    charged = max(used, decimal_of(price.minutes_min)) if seconds else Fraction(0)
    if charged:
        yield Step("minute", charged, price.price, charged * nano_of(price.price))


def _percentage(price: Percentage, amount: Fraction) -> Iterator[Step]:
    fee = amount * 10**9 * decimal_of(price.share)
    fee = max(fee, nano_of(price.fee_min)) if amount else Fraction(0)
    if price.fee_max is not None:
        fee = min(fee, nano_of(price.fee_max))
    if fee:
        yield Step("share", amount, price.share, fee)


_RULES: dict[type, Callable[[Any, Fraction], Iterator[Step]]] = {
    Flat: _flat,
    PerUnit: _per_unit,
    Graduated: _graduated,
    Volume: _volume,
    Package: _package,
    PerMinute: _per_minute,
    Percentage: _percentage,
}


# --------------------------------------------------------------------------- what a price must be


def check_price(price: Price, where: str) -> None:
    """Hold a price against what makes it one; `where` is its place in the book.

    Errors: price_book_invalid.
    """
    for name, least in _AMOUNTS[type(price)]:
        check_amount(getattr(price, name), f"{where}.{name}", more_than_zero=least)
    if isinstance(price, Graduated | Volume):
        _check_tiers(price.tiers, f"{where}.tiers")
    if isinstance(price, Percentage):
        _check_percentage(price, where)


_AMOUNTS: dict[type, tuple[tuple[str, bool], ...]] = {
    Flat: (("price", False),),
    PerUnit: (("price", False), ("per", True)),
    Graduated: (("per", True),),
    Volume: (("per", True),),
    Package: (("price", False), ("size", True)),
    PerMinute: (("price", False), ("minutes_min", False)),
    Percentage: (("share", False), ("fee_min", False)),
}


def check_amount(text: str, where: str, *, more_than_zero: bool = False) -> None:
    """Hold a decimal of a book against its bounds; `where` is its place in the book.

    Errors: price_book_invalid.
    """
    try:
        nano = parse_nano(text)
    except AmountInvalidError as error:
        raise PriceBookInvalidError(f"{where}: {error.message}", where=where) from error
    if nano < 0 or (more_than_zero and not nano):
        wanted = "more than zero" if more_than_zero else "not negative"
        raise PriceBookInvalidError(f"{where} must be {wanted}", where=where, got=text)


def _check_tiers(tiers: Sequence[Tier], where: str) -> None:
    if not 1 <= len(tiers) <= TIERS_MAX:
        raise PriceBookInvalidError(f"{where} must be 1 to {TIERS_MAX}", where=where)
    below = Fraction(0)
    for number, tier in enumerate(tiers):
        at = f"{where}[{number}]"
        check_amount(tier.price, f"{at}.price")
        check_amount(tier.flat, f"{at}.flat")
        if (tier.up_to is None) != (number == len(tiers) - 1):
            raise PriceBookInvalidError(f"{at}.up_to: the last tier, and only it, is open", where=at)
        if tier.up_to is not None:
            check_amount(tier.up_to, f"{at}.up_to", more_than_zero=True)
            if decimal_of(tier.up_to) <= below:
                raise PriceBookInvalidError(f"{at}.up_to must lie above the tier before", where=at)
            below = decimal_of(tier.up_to)


def _check_percentage(price: Percentage, where: str) -> None:
    if decimal_of(price.share) > 1:
        raise PriceBookInvalidError(f"{where}.share is at most 1", where=f"{where}.share", got=price.share)
    if price.fee_max is not None:
        check_amount(price.fee_max, f"{where}.fee_max")
        if nano_of(price.fee_max) < nano_of(price.fee_min):
            raise PriceBookInvalidError(f"{where}.fee_max is below fee_min", where=f"{where}.fee_max")
