"""Usage: what requests to models consumed, one event a reading, counted once whoever sends it how often.

A reading is known by its tenant, its source and the source's own event id; the three make the name of its stream, so
the log itself holds each reading at most once. The same reading again is a duplicate and changes nothing. Another
reading under the same id is refused, since one of the two would be lost. A reading that was wrong is corrected: the
next version of its stream names the one it replaces and says all of it anew, and the earlier one stays in the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import cached_property
from hashlib import sha256
from typing import Annotated, Any, Literal, Protocol

import msgspec
from pydantic import Field, StringConstraints, ValidationError, WrapValidator

from domain.billing.accounts import PLATFORM
from domain.billing.spending import quota_streams, spend, spend_corrected
from domain.errors import (
    AmountInvalidError,
    CurrencyUnknownError,
    ForbiddenError,
    InvalidFieldError,
    LedgerError,
    MissingFieldError,
    UnknownFieldError,
    UsageConflictError,
    UsageInFutureError,
    UsageNotFoundError,
    UsageTooOldError,
    VersionMismatchError,
)
from domain.fields import Command, Id, Kept, Label, Moment, Reason
from domain.ledger import Case, allow
from domain.log.records import Aggregate, Event, Record
from domain.values import Money, Tenant, moment_of, moment_text

READINGS_MAX = 10_000
COUNT_MAX = 10**12
# How far the clock of a source may be ahead of ours, and how late a reading may come.
AHEAD_S_MAX = 600
AGE_DAYS_MAX = 400

# Who may send the readings of other tenants: the platform's own programs and people.
FOR_OTHERS = frozenset({"service", "billing", "operator"})


class AsTaken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a corrected reading said at first, by which the same reading sent again is known."""

    occurred_at: str
    provider: str
    model: str
    rental_id: str | None
    persona_id: str | None
    tokens_in: int
    tokens_out: int
    cached_tokens: int | None
    requests: int
    latency_ms: int | None
    cost: Money | None
    status: str


class Usage(Aggregate):
    """A reading that was taken into the log; what holds is its latest version, and `as_taken` what it was at first."""

    KIND = "usage"
    LASTING = False

    source: str = ""
    event_id: str = ""
    occurred_at: str = ""
    provider: str = ""
    model: str = ""
    rental_id: str | None = None
    persona_id: str | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    cached_tokens: int | None = None
    requests: int = 0
    latency_ms: int | None = None
    cost: Money | None = None
    status: str = ""
    reason: str | None = None
    as_taken: AsTaken | None = None

    class Metered(Event, frozen=True):
        """A reading was taken."""

        TOPIC = "usage.metered"

        source: str
        event_id: str
        occurred_at: str
        provider: str
        model: str
        rental_id: str | None
        persona_id: str | None
        tokens_in: int
        tokens_out: int
        cached_tokens: int | None
        requests: int
        latency_ms: int | None
        cost: Money | None
        status: Literal["ok", "error"]

        def apply(self, usage: Usage, record: Record) -> None:
            usage.source, usage.event_id, usage.occurred_at = self.source, self.event_id, self.occurred_at
            usage.provider, usage.model = self.provider, self.model
            usage.rental_id, usage.persona_id = self.rental_id, self.persona_id
            usage.tokens_in, usage.tokens_out = self.tokens_in, self.tokens_out
            usage.cached_tokens, usage.requests = self.cached_tokens, self.requests
            usage.latency_ms, usage.cost, usage.status = self.latency_ms, self.cost, self.status

    class Corrected(Event, frozen=True):
        """A reading was put right: this holds in place of the version named.

        Units: replaces is a version of the same stream; the rest is as in a reading, all of it anew.
        """

        TOPIC = "usage.corrected"

        replaces: int
        reason: str
        occurred_at: str
        provider: str
        model: str
        rental_id: str | None
        persona_id: str | None
        tokens_in: int
        tokens_out: int
        cached_tokens: int | None
        requests: int
        latency_ms: int | None
        cost: Money | None
        status: Literal["ok", "error"]

        def apply(self, usage: Usage, record: Record) -> None:
            if usage.as_taken is None:
                usage.as_taken = AsTaken(*(getattr(usage, name) for name in AsTaken.__struct_fields__))
            for name in ("reason", *AsTaken.__struct_fields__):
                setattr(usage, name, getattr(self, name))

    def owner_key(self) -> str:
        return self.provider

    def status_key(self) -> str:
        return self.status


# --------------------------------------------------------------------------- commands

Given = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[\x21-\x7e]+$")]
Count = Annotated[int, Field(ge=0, le=COUNT_MAX)]


class Reading(Command):
    """What one request to a model consumed, or several that a source has summed up.

    Units: latency_ms is the sum over the requests, in milliseconds; cost is what the provider charges, if known.
    """

    source: Given = Field(description="Who measured, such as a gateway; event ids are its own.")
    event_id: Given = Field(description="The reading's id at its source; the same id again is a duplicate.")
    occurred_at: Moment
    provider: Label
    model: Label
    tokens_in: Count
    tokens_out: Count
    cached_tokens: Count | None = None
    requests: int = Field(1, ge=1, le=COUNT_MAX)
    latency_ms: Count | None = None
    cost: Money | None = None
    status: Literal["ok", "error"] = "ok"
    rental_id: Id | None = None
    persona_id: Id | None = None
    tenant: Tenant | None = Field(
        None, description="Whose usage it is, named by the platform's own; the caller's without it."
    )
    reservation_id: Id | None = Field(
        None, description="The reservation of the tenant's quota that this reading puts an end to."
    )


class CorrectUsage(Command):
    """Put a reading right: what is given holds from now on, what is left out stays as it was.

    Units: as in a reading; no requests and no tokens take a reading back.
    """

    usage_id: Id
    replaces: int = Field(ge=1, description="The version of the reading that is wrong: the latest one.")
    reason: Reason
    occurred_at: Kept[Moment] = None
    provider: Kept[Label] = None
    model: Kept[Label] = None
    rental_id: Id | None = None
    persona_id: Id | None = None
    tokens_in: Kept[Count] = None
    tokens_out: Kept[Count] = None
    cached_tokens: Count | None = None
    requests: Kept[Count] = None
    latency_ms: Count | None = None
    cost: Money | None = None
    status: Kept[Literal["ok", "error"]] = None


class Flaw(Command):
    """What was sent in place of a reading, and why it is none."""

    code: str
    detail: str
    given: str


def read_reading(value: Any) -> Reading | Flaw:
    """Read one reading by itself, so that one that is none does not take others with it.

    Errors: none; a flaw carries invalid_amount, invalid_currency, invalid_field, missing_field or unknown_field.
    """
    if isinstance(value, Reading | Flaw):
        return value
    try:
        return Reading.model_validate(value)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in fault["loc"])
    # What was given is only compared, when a key is used again.
    given = sha256(repr(value).encode("utf-8", "backslashreplace")).hexdigest()
    detail = f"{where}: {fault['msg']}" if where else fault["msg"]
    return Flaw(code=_code(fault["type"], where), detail=_printable(detail), given=given)


def _one(value: Any, _: Any) -> Reading | Flaw:
    return read_reading(value)


def _printable(text: str) -> str:
    """Make a text printable: a member may be named by anything a caller can write."""
    return "".join(char if " " <= char <= "~" else "?" for char in text[:400])


def _code(kind: str, where: str) -> str:
    if kind == "currency":
        return CurrencyUnknownError.code
    if kind == "money" and where == "cost":
        return AmountInvalidError.code
    known = {"missing": MissingFieldError.code, "extra_forbidden": UnknownFieldError.code}
    return known.get(kind, InvalidFieldError.code)


class Offered(msgspec.Struct, frozen=True, gc=False):
    """A reading that is well formed: whose, None for the caller's, its event, and the reservation it names."""

    tenant: str | None
    metered: Usage.Metered
    reservation_id: str | None = None


class MeterUsage(Command):
    """Take readings in. Each stands for itself: what is wrong with one is no fault of its neighbours."""

    readings: list[Annotated[Reading | Flaw, WrapValidator(_one, json_schema_input_type=Reading)]] = Field(
        min_length=1, max_length=READINGS_MAX
    )

    @cached_property
    def offered(self) -> Sequence[Offered | Flaw]:
        """Give what is offered by each reading, in their order."""
        return [one if isinstance(one, Flaw) else offered(one) for one in self.readings]

    def names(self, tenant: str) -> Sequence[str | None]:
        """Name the stream of each reading, where it is one; the caller's tenant is given."""
        return self._names.get(tenant) or self._names.setdefault(tenant, names_of(self.offered, tenant))

    @cached_property
    def _names(self) -> dict[str, Sequence[str | None]]:
        return {}


class Offers(Protocol):
    """A command that offers readings; `MeterUsage` is one."""

    @property
    def offered(self) -> Sequence[Offered | Flaw]:
        """Give what is offered by each reading, in their order."""

    def names(self, tenant: str) -> Sequence[str | None]:
        """Name the stream of each reading, where it is one; the caller's tenant is given."""


class Rejected(msgspec.Struct, frozen=True):
    """A reading that was not taken, by its place in what was sent (0-based)."""

    index: int
    code: str
    detail: str


class Metered(msgspec.Struct, frozen=True):
    """What came of readings: each was inserted, was there already, or was rejected."""

    inserted: int
    duplicates: int
    rejected: list[Rejected]


# --------------------------------------------------------------------------- use case


@allow("service", "provider", "billing", "operator")
def meter_usage(case: Case, command: Offers) -> Metered:
    """Take readings in, all that are good in one commit; the others are listed with their reasons.

    Errors: forbidden, usage_conflict, usage_in_future, usage_too_old (each of a reading, listed with its place).
    """
    names = command.names(case.caller.tenant)
    tenants = {one.tenant or case.caller.tenant for one in command.offered if isinstance(one, Offered)}
    # Each once, however often it was sent.
    case.look(Usage, dict.fromkeys(name for name in names if name is not None), quota_streams(tenants))
    window = _window(case.now)
    duplicates, rejected = 0, []
    taken: list[tuple[str, Usage.Metered, str | None]] = []
    for index, (reading, name) in enumerate(zip(command.offered, names, strict=True)):
        if isinstance(reading, Flaw) or name is None:
            assert isinstance(reading, Flaw), "every reading has a name"
            rejected.append(Rejected(index, reading.code, reading.detail))
            continue
        try:
            tenant = _tenant(case, reading.tenant)
            if _meter(case, name, tenant, reading.metered, window):
                taken.append((tenant, reading.metered, reading.reservation_id))
            else:
                duplicates += 1
        except LedgerError as refusal:
            rejected.append(Rejected(index, refusal.code, refusal.message))
    spend(case, taken)
    return Metered(len(taken), duplicates, rejected)


def usage_name(tenant: str, source: str, event_id: str) -> str:
    """Name the stream of a reading: a pure function of what identifies it."""
    scope = f"{len(tenant)}:{tenant}{len(source)}:{source}{event_id}"
    return f"usage-{sha256(scope.encode()).hexdigest()[:40]}"


def names_of(offered: Sequence[Offered | Flaw], tenant: str) -> list[str | None]:
    """Name the streams of readings whose tenant is the one given, unless they name another."""
    return [
        None
        if isinstance(one, Flaw)
        else usage_name(one.tenant or tenant, one.metered.source, one.metered.event_id)
        for one in offered
    ]


def _meter(case: Case, name: str, tenant: str, metered: Usage.Metered, window: tuple[str, str]) -> bool:
    """Take one reading in; say whether it is new.

    What is in the log already is a duplicate however old it has become, so that a retry never changes its answer.
    """
    known = case.find(Usage, name)
    if known is not None:
        _check_same(known, metered)
        return False
    _check_window(metered.occurred_at, *window)
    case.create(Usage, name, metered, tenant=tenant)
    return True


def _check_window(occurred_at: str, earliest: str, latest: str) -> None:
    if occurred_at > latest:
        raise UsageInFutureError(f"it occurs at {occurred_at}, after {latest}")
    if occurred_at < earliest:
        raise UsageTooOldError(f"it occurred at {occurred_at}, before {earliest}")


def offered(reading: Reading) -> Offered:
    """Give what a reading offers."""
    metered = Usage.Metered(
        source=reading.source,
        event_id=reading.event_id,
        occurred_at=reading.occurred_at,
        provider=reading.provider,
        model=reading.model,
        rental_id=reading.rental_id,
        persona_id=reading.persona_id,
        tokens_in=reading.tokens_in,
        tokens_out=reading.tokens_out,
        cached_tokens=reading.cached_tokens,
        requests=reading.requests,
        latency_ms=reading.latency_ms,
        cost=reading.cost,
        status=reading.status,
    )
    return Offered(reading.tenant, metered, reading.reservation_id)


def _check_same(known: Usage, metered: Usage.Metered) -> None:
    # Its name has its source and event id in it; the rest is held against what was taken, not what was put right.
    taken = known.as_taken or known
    differing = [n for n in AsTaken.__struct_fields__ if getattr(taken, n) != getattr(metered, n)]
    if differing:
        raise UsageConflictError(
            f"{known.id} was taken before with another {', '.join(differing)}",
            id=known.id,
            differing=differing,
        )


def _tenant(case: Case, tenant: str | None) -> str:
    caller = case.caller
    if tenant is None or tenant == caller.tenant:
        return caller.tenant
    if "operator" in caller.roles or (caller.tenant == PLATFORM and caller.roles & FOR_OTHERS):
        return tenant
    raise ForbiddenError("only the platform sends the usage of other tenants")


def _window(now: str) -> tuple[str, str]:
    """Give the earliest and the latest moment at which a reading that comes now may have occurred."""
    at = moment_of(now)
    return moment_text(at - timedelta(days=AGE_DAYS_MAX)), moment_text(at + timedelta(seconds=AHEAD_S_MAX))


@allow("service", "billing", "operator")
def correct_usage(case: Case, command: CorrectUsage) -> Usage:
    """Put a reading right; the same correction again, or one that changes nothing, writes nothing.

    Errors: usage_in_future, usage_not_found, usage_too_old, version_mismatch.
    """
    usage = case.get(Usage, command.usage_id, UsageNotFoundError)
    if not _may_correct(case, usage):
        raise UsageNotFoundError(id=usage.id)
    values = {name: getattr(usage, name) for name in AsTaken.__struct_fields__}
    given = {name: getattr(command, name) for name in command.model_fields_set if name in values}
    changed = any(values[name] != value for name, value in given.items())
    if command.replaces != usage.version and (changed or command.replaces != usage.version - 1):
        raise VersionMismatchError(version=usage.version, replaces=command.replaces)
    if not changed:
        return usage
    if given.get("occurred_at", usage.occurred_at) != usage.occurred_at:
        _check_window(given["occurred_at"], *_window(case.now))
    # Before anything is emitted: what is missed after that takes back a reading whose own commit is still under way.
    case.look(Usage, (), quota_streams([usage.tenant]))
    corrected = Usage.Corrected(replaces=usage.version, reason=command.reason, **(values | given))
    before = AsTaken(**values)
    case.emit(usage, corrected)
    spend_corrected(case, usage.tenant, before, corrected)
    return usage


def _may_correct(case: Case, usage: Usage) -> bool:
    caller = case.caller
    return usage.tenant == caller.tenant or caller.tenant == PLATFORM or "operator" in caller.roles
