"""Price books: what charges are in force, from when on. A version never changes once it is published.

A book is a name with a list of versions; each version is a document of its own, known by its address, in a stream of
its own. In force at a moment is the version with the latest start that is not after it. A version starts in the future
or now, never in the past: what was used before it was priced, and stays so.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated, Any

import msgspec
from pydantic import AfterValidator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from domain.billing.prices import Flat, Percentage, PerMinute, check_amount, check_price, nano_of
from domain.billing.rating import Charge
from domain.canonical import sealed
from domain.errors import (
    PriceBookInvalidError,
    PriceNotInForceError,
    StartsInPastError,
)
from domain.fields import Command, Id, Moment, Text
from domain.ledger import Case, allow
from domain.log.records import Aggregate, Event, Record
from domain.values import CURRENCY_DIGITS

CONTEXT = "soma/price-book/v1"
CHARGES_MAX = 200
VERSIONS_MAX = 1_000
# Calendars end in the year 9999, and what begins later than this is a mistake.
AHEAD_YEARS_MAX = 100
# It is on the line of every invoice.
DESCRIPTION_MAX = 500


class Version(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A version of a book, without its charges."""

    number: int
    address: str
    effective_from: str


class PriceBook(Aggregate):
    """A price book: its versions in the order in which they were published."""

    KIND = "price_book"

    currency: str = ""
    description: str = ""
    versions: list[Version] = msgspec.field(default_factory=list)

    class Published(Event, frozen=True):
        """A version was published."""

        TOPIC = "price_book.published"

        currency: str
        description: str
        number: int
        address: str
        effective_from: str

        def apply(self, book: PriceBook, record: Record) -> None:
            book.currency = self.currency
            book.description = self.description
            book.versions = [*book.versions, Version(self.number, self.address, self.effective_from)]

    def status_key(self) -> str:
        return "published" if self.versions else ""

    @property
    def first_in_force(self) -> str:
        """Give the moment from which on there are prices at all."""
        return min(version.effective_from for version in self.versions)

    def in_force(self, moment: str) -> Version:
        """Give the version in force at a moment.

        Errors: price_not_in_force.
        """
        begun = [version for version in self.versions if version.effective_from <= moment]
        if not begun:
            raise PriceNotInForceError(book=self.id, at=moment)
        return max(begun, key=lambda version: (version.effective_from, version.number))

    def between(self, start: str, end: str) -> list[tuple[str, str, Version]]:
        """Cut a half-open stretch of time where another version comes into force.

        Errors: price_not_in_force.
        """
        cuts = sorted({start, *(v.effective_from for v in self.versions if start < v.effective_from < end)})
        return [(a, b, self.in_force(a)) for a, b in zip(cuts, [*cuts[1:], end], strict=True) if a < b]


class PriceSheet(Aggregate):
    """One version of a book with its charges; one event, never changed."""

    KIND = "price_sheet"

    book: str = ""
    number: int = 0
    address: str = ""
    currency: str = ""
    effective_from: str = ""
    charges: list[Charge] = msgspec.field(default_factory=list)
    commitment: str | None = None

    class Written(Event, frozen=True):
        """The charges of a version were written down."""

        TOPIC = "price_sheet.written"

        book: str
        number: int
        address: str
        currency: str
        effective_from: str
        charges: list[Charge]
        commitment: str | None

        def apply(self, sheet: PriceSheet, record: Record) -> None:
            for name in self.__struct_fields__:
                setattr(sheet, name, getattr(self, name))

    def owner_key(self) -> str:
        return self.book


# --------------------------------------------------------------------------- commands


class _Charges:
    """Lets charges be msgspec structs in a pydantic command, read strictly and described as they are."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            _read_charges, serialization=core_schema.plain_serializer_function_ser_schema(msgspec.to_builtins)
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"type": "array", "minItems": 1, "maxItems": CHARGES_MAX, "items": {"type": "object"}}


def _read_charges(value: Any) -> list[Charge]:
    try:
        return msgspec.convert(value, list[Charge])
    except msgspec.ValidationError as error:
        raise PydanticCustomError("charges", "{why}", {"why": str(error)}) from error


def _currency(code: str) -> str:
    if code not in CURRENCY_DIGITS:
        raise PydanticCustomError(
            "currency", "{code} is not a known currency code", {"code": repr(code[:16])}
        )
    return code


Currency = Annotated[str, Field(max_length=16), AfterValidator(_currency)]


class PublishPrices(Command):
    """Publish a version of a price book; the first makes the book."""

    book: Id
    currency: Currency
    description: Text = ""
    effective_from: Moment | None = Field(None, description="When it comes into force; now if left out.")
    charges: Annotated[list[Any], _Charges()]
    commitment: str | None = Field(
        None, description="The least a customer pays for a period, in units of the currency."
    )


@allow("provider", "owner", "billing", "operator")
def publish_prices(case: Case, command: PublishPrices) -> PriceSheet:
    """Publish a version. The book's currency is that of its first version, for ever.

    Errors: forbidden, price_book_invalid, starts_in_past, price_book_not_found.
    """
    name = book_name(case.caller.tenant, command.book)
    book = case.find(PriceBook, name)
    starts = command.effective_from or case.now
    _check_version(case, book, command, starts)
    number = len(book.versions) + 1 if book is not None else 1
    document = {
        "schema": "soma/price-book/1",
        "book": name,
        "number": number,
        "currency": command.currency,
        "effective_from": starts,
        "charges": msgspec.to_builtins(command.charges),
        "commitment": command.commitment,
    }
    _, address = sealed(CONTEXT, document)
    published = PriceBook.Published(
        currency=command.currency,
        description=command.description,
        number=number,
        address=address,
        effective_from=starts,
    )
    if book is None:
        case.create(PriceBook, name, published)
    else:
        case.emit(book, published)
    written = PriceSheet.Written(
        book=name,
        number=number,
        address=address,
        currency=command.currency,
        effective_from=starts,
        charges=command.charges,
        commitment=command.commitment,
    )
    return case.create(PriceSheet, sheet_name(name, number), written)


def book_name(tenant: str, book: str) -> str:
    """Name a tenant's book."""
    return book if book.startswith(f"{tenant}.") else f"{tenant}.{book}"


def sheet_name(book: str, number: int) -> str:
    """Name a version of a book."""
    return f"{book}.v{number}"


def _check_version(case: Case, book: PriceBook | None, command: PublishPrices, starts: str) -> None:
    if starts < case.now:
        raise StartsInPastError(effective_from=starts, now=case.now)
    if int(starts[:4]) > int(case.now[:4]) + AHEAD_YEARS_MAX:
        raise PriceBookInvalidError(
            f"a version begins in at most {AHEAD_YEARS_MAX} years", where="effective_from", got=starts
        )
    if book is not None and book.currency != command.currency:
        raise PriceBookInvalidError("a book keeps its currency", where="currency", currency=book.currency)
    if book is not None and len(book.versions) >= VERSIONS_MAX:
        raise PriceBookInvalidError(f"a book has {VERSIONS_MAX} versions at most", where="book")
    check_charges(command.charges)
    if command.commitment is not None:
        _check_nano(command.commitment, "commitment")


# --------------------------------------------------------------------------- what charges must be

_METERS: dict[type, frozenset[str]] = {
    Flat: frozenset({"period"}),
    PerMinute: frozenset({"seconds"}),
    Percentage: frozenset({"amount"}),
}
_COUNTED = frozenset({"tokens_in", "tokens_out", "cached_tokens", "requests", "seconds"})


def check_charges(charges: Sequence[Charge]) -> None:
    """Hold the charges of a version against what makes them ones that can be billed.

    Errors: price_book_invalid.
    """
    if not 1 <= len(charges) <= CHARGES_MAX:
        raise PriceBookInvalidError(f"a book has 1 to {CHARGES_MAX} charges", where="charges")
    seen: set[str] = set()
    for number, charge in enumerate(charges):
        where = f"charges[{number}]"
        if not charge.id or len(charge.id) > 64 or charge.id in seen:
            raise PriceBookInvalidError(
                f"{where}.id must be there once, in 64 characters", where=f"{where}.id"
            )
        seen.add(charge.id)
        if len(charge.description) > DESCRIPTION_MAX:
            raise PriceBookInvalidError(
                f"{where}.description has {DESCRIPTION_MAX} characters at most", where=f"{where}.description"
            )
        _check_charge(charge, where)


def _check_charge(charge: Charge, where: str) -> None:
    check_price(charge.price, f"{where}.price")
    if charge.meter not in _METERS.get(type(charge.price), _COUNTED):
        kind = type(charge.price).__struct_config__.tag
        raise PriceBookInvalidError(
            f"{where}: a {kind} price cannot count {charge.meter}", where=f"{where}.meter", meter=charge.meter
        )
    _check_nano(charge.free, f"{where}.free")
    given = {"minimum": charge.minimum, "maximum": charge.maximum}
    bounds = [_check_nano(text, f"{where}.{name}") for name, text in given.items() if text is not None]
    if len(bounds) == 2 and bounds[0] > bounds[1]:
        raise PriceBookInvalidError(f"{where}.maximum is below its minimum", where=f"{where}.maximum")


def _check_nano(text: str, where: str) -> Fraction:
    check_amount(text, where)
    return nano_of(text)
