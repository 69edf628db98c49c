"""Price lists of providers, as they are passed around in JSON, turned into charges of a price book.

Two shapes are read, each by its members. A table of models by name, with costs for one token; and models of one vendor
with a history of prices for a million tokens. Numbers are read as they are written, never through binary fractions.
Only what a reading counts becomes a charge: tokens in, tokens out, and cached tokens where a list says how they count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal, NamedTuple

from domain.billing.price_books import CHARGES_MAX
from domain.billing.prices import PerUnit
from domain.billing.rating import Charge, Match, print_exact
from domain.errors import PriceListInvalidError

MILLION = Fraction(1_000_000)
# What a price can be written with; the ninth digit of a price for a million tokens is a quadrillionth a token.
DIGITS_MAX = 9

# How cached tokens count: not charged by themselves, since they are among the tokens in; or counted beside these.
Cached = Literal["among", "beside"]
TokenMeter = Literal["tokens_in", "tokens_out", "cached_tokens"]

_BY_TOKEN: tuple[tuple[TokenMeter, str], ...] = (
    ("tokens_in", "input_cost_per_token"),
    ("tokens_out", "output_cost_per_token"),
    ("cached_tokens", "cache_read_input_token_cost"),
)
_BY_MILLION: tuple[tuple[TokenMeter, str], ...] = (
    ("tokens_in", "input"),
    ("tokens_out", "output"),
    ("cached_tokens", "input_cached"),
)


class Listed(NamedTuple):
    """A model of a price list. Units: prices for a million tokens, by meter, exact."""

    provider: str
    model: str
    prices: dict[TokenMeter, Fraction]
    # Members with a price that no reading counts, such as images, or prompts above a length.
    uncounted: tuple[str, ...] = ()


class Wanted(NamedTuple):
    """What of a list is imported; None means all of it."""

    providers: frozenset[str] | None = None
    models: frozenset[str] | None = None
    factor: Fraction = Fraction(1)
    cached: Cached = "among"


class Imported(NamedTuple):
    """Charges, and what was left out of them with its reason."""

    charges: list[Charge]
    left_out: list[tuple[str, str]]


def read_price_list(document: Any) -> list[Listed]:
    """Read a price list whose numbers are decimals.

    Errors: price_list_invalid.
    """
    if not isinstance(document, Mapping):
        raise PriceListInvalidError("a price list is a JSON object")
    if isinstance(document.get("vendor"), str) and isinstance(document.get("models"), list):
        return list(_of_vendor(document["vendor"], document["models"]))
    found = list(_of_table(document))
    if not found:
        raise PriceListInvalidError("it names no model with a price for its tokens")
    return found


def _of_table(document: Mapping[str, Any]) -> Iterator[Listed]:
    for name, entry in document.items():
        provider = entry.get("litellm_provider") if isinstance(entry, Mapping) else None
        # A list may hold a specimen of itself, in which members are told in words.
        if not isinstance(provider, str) or " " in provider:
            continue
        prices = _prices(entry, _BY_TOKEN, MILLION, name)
        if "tokens_in" in prices or "tokens_out" in prices:
            yield Listed(provider, _plain(provider, name), prices, _uncounted(entry))


def _of_vendor(vendor: str, models: Sequence[Any]) -> Iterator[Listed]:
    for entry in models:
        history = entry.get("price_history") if isinstance(entry, Mapping) else None
        if not isinstance(history, list) or not isinstance(entry.get("id"), str):
            raise PriceListInvalidError("a model of a vendor has an id and a price_history")
        present = [one for one in history if isinstance(one, Mapping) and one.get("to_date") is None]
        if present:
            yield Listed(vendor, entry["id"], _prices(present[-1], _BY_MILLION, Fraction(1), entry["id"]))


def _plain(provider: str, name: str) -> str:
    """Take the provider's name off a model's: readings name both apart."""
    return name.removeprefix(f"{provider}/")


def _prices(
    entry: Mapping[str, Any], members: Sequence[tuple[TokenMeter, str]], per: Fraction, name: str
) -> dict[TokenMeter, Fraction]:
    found: dict[TokenMeter, Fraction] = {}
    for meter, member in members:
        value = entry.get(member)
        if value is None:
            continue
        if isinstance(value, bool | float) or not isinstance(value, int | Decimal):
            raise PriceListInvalidError(f"{name}: {member} is no number", model=name, member=member)
        if not Decimal(value).is_finite() or value < 0:
            raise PriceListInvalidError(f"{name}: {member} is no price", model=name, member=member)
        found[meter] = Fraction(value) * per
    return found


def _uncounted(entry: Mapping[str, Any]) -> tuple[str, ...]:
    known = {member for _, member in _BY_TOKEN}
    priced = (
        n for n, value in entry.items() if "cost" in n and n not in known and isinstance(value, Decimal | int)
    )
    return tuple(sorted(n for n in priced if not n.endswith(("_batches", "_priority", "_flex"))))


# --------------------------------------------------------------------------- charges of them


def import_prices(listed: Sequence[Listed], wanted: Wanted) -> Imported:
    """Make charges of a price list: one for each model and meter, matched by provider and model.

    Errors: price_list_invalid.
    """
    charges: list[Charge] = []
    left_out: list[tuple[str, str]] = []
    seen: set[tuple[str, str]] = set()
    for one in listed:
        if not _is_wanted(one, wanted):
            continue
        name = f"{one.provider} {one.model}"
        if (one.provider, one.model) in seen:
            left_out.append((name, "the list names it before"))
            continue
        seen.add((one.provider, one.model))
        left_out += [(name, f"no reading counts {member}") for member in one.uncounted]
        charges += _charges(one, wanted, len(charges))
    if not 1 <= len(charges) <= CHARGES_MAX:
        raise PriceListInvalidError(
            f"it comes to {len(charges)} charges, and a book has 1 to {CHARGES_MAX}; name providers or models",
            charges=len(charges),
        )
    return Imported(charges, left_out)


def _is_wanted(one: Listed, wanted: Wanted) -> bool:
    return (wanted.providers is None or one.provider in wanted.providers) and (
        wanted.models is None or one.model in wanted.models
    )


def _charges(one: Listed, wanted: Wanted, count: int) -> Iterator[Charge]:
    for meter, price in one.prices.items():
        if meter == "cached_tokens" and wanted.cached == "among":
            continue
        count += 1
        yield Charge(
            id=f"{count:03d}-{meter}",
            meter=meter,
            price=PerUnit(_text(price * wanted.factor, one), "1000000"),
            description=f"{one.provider} {one.model}, a million {meter.replace('_', ' ')}",
            match=Match(provider=one.provider, model=one.model),
        )


def _text(price: Fraction, one: Listed) -> str:
    """Write a price as a book can hold it; one with more digits is refused and not rounded."""
    text = print_exact(price)
    if "/" in text or len(text.partition(".")[2]) > DIGITS_MAX:
        raise PriceListInvalidError(
            f"{one.provider} {one.model}: {text[:40]} for a million tokens has more than {DIGITS_MAX} digits",
            model=one.model,
        )
    return text
