"""Readings by the thousand, read from the bytes of a request in one pass.

The models of `domain.billing.usage` say what a reading is, and take some fifteen microseconds for each. Here a whole
request is read at once, and only where nothing about it is out of the ordinary: each reading well formed, nothing
escaped, no name twice. Whatever else comes is left to the models. What is read here, they would have read the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from functools import lru_cache
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType
from pydantic import TypeAdapter, ValidationError

from domain.billing.usage import COUNT_MAX, READINGS_MAX, Offered, Reading, Usage, names_of
from domain.fields import Moment
from domain.values import CURRENCY_DIGITS, Money

Count = Annotated[int, Meta(ge=0, le=COUNT_MAX)]
Times = Annotated[int, Meta(ge=1, le=COUNT_MAX)]
Given = Annotated[str, Meta(min_length=1, max_length=200)]
Label = Annotated[str, Meta(min_length=1, max_length=128)]
Name = Annotated[str, Meta(min_length=1, max_length=200)]
Tenant = Annotated[str, Meta(min_length=2, max_length=63)]

_VISIBLE = re.compile(r"[\x21-\x7e]*")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._:/@+-]*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*")
_TENANT = re.compile(r"[a-z0-9][a-z0-9-]*")
# A moment as records hold it, but for the days of its month.
_MOMENT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]\.[0-9]{6}Z", re.ASCII
)
_WHOLE = r"(?:0|[1-9][0-9]{0,11})"
# By a currency's digits: an amount as records hold it, less than 10^12.
_AMOUNTS = {
    digits: re.compile(
        rf"{_WHOLE}(?:\.[0-9]{{0,8}}[1-9])?"
        if digits == 0
        else rf"{_WHOLE}\.[0-9]{{{digits}}}(?:[0-9]{{0,{8 - digits}}}[1-9])?"
    )
    for digits in set(CURRENCY_DIGITS.values())
}
_AMOUNT_OF = {code: _AMOUNTS[digits].fullmatch for code, digits in CURRENCY_DIGITS.items()}

_moments = TypeAdapter(Moment)
_moneys = TypeAdapter(Money)


class Sent(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A reading as it was sent: the fields of `Reading` in their order, those left out unset."""

    source: Given
    event_id: Given
    occurred_at: str
    provider: Label
    model: Label
    tokens_in: Count
    tokens_out: Count
    cached_tokens: Count | UnsetType | None = UNSET
    requests: Times | UnsetType = UNSET
    latency_ms: Count | UnsetType | None = UNSET
    cost: Money | UnsetType | None = UNSET
    status: Literal["ok", "error"] | UnsetType = UNSET
    rental_id: Name | UnsetType | None = UNSET
    persona_id: Name | UnsetType | None = UNSET
    tenant: Tenant | UnsetType | None = UNSET
    reservation_id: Name | UnsetType | None = UNSET


class _Body(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    readings: Annotated[list[Sent], Meta(min_length=1, max_length=READINGS_MAX)]


assert Sent.__struct_fields__ == tuple(Reading.model_fields), "readings are told twice, and the same"

_decode = msgspec.json.Decoder(_Body).decode
_encode = msgspec.json.Encoder().encode


class Readings:
    """Readings of one request, all of them well formed: a command like `MeterUsage`.

    A part knows how many readings there were in all, so that a key used again for something else is seen in every part.
    """

    __slots__ = ("_count", "_names", "_part", "_sent", "offered")

    def __init__(self, sent: Sequence[Sent], offered: Sequence[Offered], part: int, count: int) -> None:
        self.offered = offered
        self._sent = sent
        self._part = part
        self._count = count
        self._names: tuple[str, Sequence[str | None]] | None = None

    def names(self, tenant: str) -> Sequence[str | None]:
        """Name the stream of each reading; the caller's tenant is given."""
        if self._names is None or self._names[0] != tenant:
            self._names = tenant, names_of(self.offered, tenant)
        return self._names[1]

    def model_dump_json(self, *, exclude_unset: bool = True) -> str:
        """Write what was asked, in the bytes that the models write of it; what was left out stays out."""
        asked = {"readings": self._sent, "part": self._part, "count": self._count}
        return _encode(asked).decode()


def read_readings(data: bytes, part_max: int) -> list[Readings] | None:
    """Read the readings of a request in parts; None where the models have to have a look.

    Cost: some three microseconds a reading.
    """
    # Without escapes no string holds a quote, so the quotes tell whether any name stood twice in an object.
    if not data.isascii() or b"\\" in data:
        return None
    try:
        body = _decode(data)
        sent = body.readings
        if data.count(b'"') != _encode(body).count(b'"') or not _well_formed(sent):
            return None
        offered = [_offered(one) for one in sent]
    except (msgspec.MsgspecError, ValidationError, ValueError):
        return None
    return [
        Readings(sent[start : start + part_max], offered[start : start + part_max], part, len(sent))
        for part, start in enumerate(range(0, len(sent), part_max))
    ]


def _well_formed(sent: Sequence[Sent]) -> bool:
    """Hold the texts of all readings against their patterns: one by one where most are alike, or all in one go."""
    reserved = {one.reservation_id for one in sent}
    named = [{one.rental_id for one in sent}, {one.persona_id for one in sent}]
    return (
        _VISIBLE.fullmatch("".join([one.event_id for one in sent])) is not None
        and _all(_VISIBLE, {one.source for one in sent})
        and _all(_LABEL, {one.provider for one in sent} | {one.model for one in sent})
        and _all(_NAME, named[0] | named[1] | reserved)
        and _all(_TENANT, {one.tenant for one in sent})
    )


def _all(pattern: re.Pattern[str], texts: Iterable[Any]) -> bool:
    return all(text is None or text is UNSET or pattern.fullmatch(text) for text in texts)


def _offered(sent: Sent) -> Offered:
    """Give what a reading offers, and put what was sent into the words of records.

    Errors: ValueError where a moment or an amount is none.
    """
    if not _is_moment(sent.occurred_at):
        sent.occurred_at = _moments.validate_python(sent.occurred_at, strict=True)
    cost = sent.cost
    if cost and not _is_amount(cost):
        sent.cost = cost = _moneys.validate_python({"amount": cost.amount, "currency": cost.currency})
    metered = Usage.Metered(
        source=sent.source,
        event_id=sent.event_id,
        occurred_at=sent.occurred_at,
        provider=sent.provider,
        model=sent.model,
        rental_id=sent.rental_id or None,
        persona_id=sent.persona_id or None,
        tokens_in=sent.tokens_in,
        tokens_out=sent.tokens_out,
        cached_tokens=None if (cached := sent.cached_tokens) is UNSET else cached,
        requests=1 if (requests := sent.requests) is UNSET else requests,
        latency_ms=None if (latency := sent.latency_ms) is UNSET else latency,
        cost=cost or None,
        status=sent.status or "ok",
    )
    return Offered(sent.tenant or None, metered, sent.reservation_id or None)


def _is_moment(text: str) -> bool:
    return _MOMENT.fullmatch(text) is not None and _is_day(text[:10])


@lru_cache(4_096)
def _is_day(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def _is_amount(money: Money) -> bool:
    known: Callable[[str], Any] | None = _AMOUNT_OF.get(money.currency)
    return known is not None and known(money.amount) is not None
