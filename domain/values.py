"""Values the whole house shares: money, moments, names. Nothing here reads a clock or rolls dice."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, StringConstraints
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from domain.errors import AmountInvalidError, CurrencyMismatchError, CurrencyUnknownError

NANO = 1_000_000_000

# The largest amount a caller may name, and the largest that may come of adding amounts up.
AMOUNT_NANO_MAX = 10**12 * NANO
SUM_NANO_MAX = 10**15 * NANO

# ISO 4217 codes and their minor-unit digits (ISO 4217:2015, list one; the currencies this market serves).
CURRENCY_DIGITS: dict[str, int] = {
    "AED": 2, "ARS": 2, "AUD": 2, "BGN": 2, "BHD": 3, "BRL": 2, "CAD": 2, "CHF": 2, "CLP": 0,
    "CNY": 2, "COP": 2, "CZK": 2, "DKK": 2, "EGP": 2, "EUR": 2, "GBP": 2, "HKD": 2, "HUF": 2,
    "IDR": 2, "ILS": 2, "INR": 2, "ISK": 0, "JOD": 3, "JPY": 0, "KES": 2, "KRW": 0, "KWD": 3,
    "MAD": 2, "MXN": 2, "MYR": 2, "NGN": 2, "NOK": 2, "NZD": 2, "OMR": 3, "PEN": 2, "PHP": 2,
    "PKR": 2, "PLN": 2, "QAR": 2, "RON": 2, "SAR": 2, "SEK": 2, "SGD": 2, "THB": 2, "TND": 3,
    "TRY": 2, "TWD": 2, "UAH": 2, "USD": 2, "UYU": 2, "VND": 0, "ZAR": 2,
}  # fmt: skip

_AMOUNT = re.compile(r"-?(?:0|[1-9][0-9]{0,15})(?:\.[0-9]{1,9})?\Z", re.ASCII)


def parse_nano(text: str) -> int:
    """Read a decimal string as nano-units, exactly.

    Units:  1 unit of currency = 10^9 nano.
    Errors: invalid_amount.
    """
    if not isinstance(text, str) or not _AMOUNT.match(text):
        raise AmountInvalidError(
            'an amount is a decimal string such as "12.50" with at most nine decimals',
            got=str(text)[:64],
        )
    whole, _, part = text.partition(".")
    # The sign stands before all digits, so it also holds for an amount such as -0.5.
    nano = int(whole + part.ljust(9, "0"))
    if not -SUM_NANO_MAX <= nano <= SUM_NANO_MAX:
        raise AmountInvalidError("an amount is too large to be kept", got=text)
    return nano


def print_nano(nano: int, currency: str) -> str:
    """Print nano-units with the digits of the currency, and more only where they are not zero."""
    digits = CURRENCY_DIGITS[currency]
    whole, part = divmod(abs(nano), NANO)
    decimals = f"{part:09d}"
    kept = decimals[:digits] + decimals[digits:].rstrip("0")
    return ("-" if nano < 0 else "") + (f"{whole}.{kept}" if kept else str(whole))


class Money(msgspec.Struct, frozen=True, forbid_unknown_fields=True, order=False):
    """An amount of one currency, in the form it has on the wire and in records.

    The amount is a canonical decimal string; arithmetic happens on its nano-units.
    """

    amount: str
    currency: str

    @classmethod
    def of(cls, nano: int, currency: str) -> Money:
        """Make money from nano-units."""
        return cls(print_nano(nano, currency), currency)

    @classmethod
    def parse(cls, amount: str, currency: str) -> Money:
        """Read money that came from outside and give it its canonical form.

        Errors: invalid_amount, invalid_currency.
        """
        if currency not in CURRENCY_DIGITS:
            raise CurrencyUnknownError(f"{str(currency)[:16]!r} is not a known currency code")
        return cls.of(parse_nano(amount), currency)

    @property
    def nano(self) -> int:
        return parse_nano(self.amount)

    def __add__(self, other: Money) -> Money:
        if other.currency != self.currency:
            raise CurrencyMismatchError(left=self.currency, right=other.currency)
        return Money.of(self.nano + other.nano, self.currency)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            _money_from_wire, serialization=core_schema.plain_serializer_function_ser_schema(_money_to_wire)
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {
            "type": "object",
            "title": "Money",
            "additionalProperties": False,
            "required": ["amount", "currency"],
            "properties": {
                "amount": {
                    "type": "string",
                    "pattern": r"^((0|[1-9][0-9]{0,11})(\.[0-9]{1,9})?|1000000000000(\.0{1,9})?)$",
                    "examples": ["12.50"],
                },
                "currency": {"type": "string", "enum": sorted(CURRENCY_DIGITS)},
            },
            "example": {"amount": "12.50", "currency": "USD"},
        }


def _money_from_wire(value: Any) -> Money:
    if isinstance(value, Money):
        return value
    if not isinstance(value, dict) or set(value) != {"amount", "currency"}:
        raise PydanticCustomError("money", 'money is {"amount": "12.50", "currency": "USD"}')
    try:
        money = Money.parse(value["amount"], value["currency"])
    except CurrencyUnknownError as error:
        raise PydanticCustomError("currency", "{why}", {"why": str(error)}) from error
    except (AmountInvalidError, TypeError) as error:
        raise PydanticCustomError("money", "{why}", {"why": str(error)}) from error
    if value["amount"].startswith("-"):
        raise PydanticCustomError("money", "an amount must not be negative")
    if money.nano > AMOUNT_NANO_MAX:
        raise PydanticCustomError("money", "an amount is at most 10^12 units")
    return money


def _money_to_wire(money: Money) -> dict[str, str]:
    return {"amount": money.amount, "currency": money.currency}


# --------------------------------------------------------------------------- moments


def moment_text(at: datetime) -> str:
    """Write a moment as RFC 3339 in UTC with exactly six decimals, so that text order is time order."""
    return at.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def moment_of(text: str) -> datetime:
    """Read a moment that `moment_text` wrote."""
    return datetime.fromisoformat(text)


# --------------------------------------------------------------------------- names

Name = Annotated[
    str, StringConstraints(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$")
]
Tenant = Annotated[str, StringConstraints(min_length=2, max_length=63, pattern=r"^[a-z0-9][a-z0-9-]*$")]
