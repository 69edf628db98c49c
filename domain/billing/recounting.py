"""Recounting: usage added up again from the raw bytes of records, for whoever does not trust what added it up first.

It knows nothing of databases. A reading counts by the latest version of it below a bound, in the stretch of time it
occurred in. Records are taken from the last to the first: then what replaces a reading is known before the reading
itself is met, and memory grows with what was put right, not with what was used.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b, sha3_512
from typing import NamedTuple

import msgspec
import orjson

from domain.billing.invoices import Counted, Source
from domain.billing.metering import Used
from domain.errors import LogDamagedError

READINGS = frozenset({"usage.metered", "usage.corrected"})


class Stated(msgspec.Struct, frozen=True):
    """What a record says about itself, its data unread."""

    stream: str
    tenant: str
    type: str
    version: int
    data: msgspec.Raw


class Read(msgspec.Struct, frozen=True):
    """What of a reading is counted.

    Units: counts.
    """

    occurred_at: str
    provider: str
    model: str
    tokens_in: int
    tokens_out: int
    requests: int
    persona_id: str | None = None
    cached_tokens: int | None = None


class Sums:
    """What was used of one model in one stretch, and which records say so.

    Units: counts; first and last are positions; mark is the sum of the first eight bytes of addresses.
    """

    __slots__ = ("cached_tokens", "events", "first", "last", "mark", "requests", "tokens_in", "tokens_out")

    def __init__(self) -> None:
        self.tokens_in = self.tokens_out = self.cached_tokens = self.requests = 0
        self.events = self.mark = self.last = 0
        self.first = -1

    def add(self, position: int, address: bytes, read: Read) -> None:
        """Add a reading; positions come from the last to the first."""
        self.tokens_in += read.tokens_in
        self.tokens_out += read.tokens_out
        self.cached_tokens += read.cached_tokens or 0
        self.requests += read.requests
        self.events += 1
        self.mark += int.from_bytes(address[:8], "big")
        self.last = max(self.last, position)
        self.first = position

    def used(self, source: Source) -> Used:
        """Write the sums as a bill counts them."""
        return Used(
            provider=source.provider,
            model=source.model,
            persona_id=source.persona_id,
            tokens_in=self.tokens_in,
            tokens_out=self.tokens_out,
            cached_tokens=self.cached_tokens,
            requests=self.requests,
            events=self.events,
            first=self.first,
            last=self.last,
            fingerprint=f"{self.mark % 2**64:016x}",
        )


class Found(NamedTuple):
    """A reading that was met: what it says, which usage it is, and where the record that replaces it stands."""

    stated: Stated
    read: Read
    source: Source
    replaced_at: int | None

    def counts_below(self, position: int, bound: int) -> bool:
        """Say whether it is the latest version of its stream in the log of a size."""
        return position < bound and (self.replaced_at is None or self.replaced_at >= bound)


_stated = msgspec.json.Decoder(Stated)
_read = msgspec.json.Decoder(Read)


def stated(position: int, raw: bytes) -> Stated:
    """Read what a record says about itself.

    Errors: log_damaged.
    """
    try:
        return _stated.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise LogDamagedError(
            f"the record at position {position} cannot be read", position=position, internal=str(error)
        ) from error


def reading_of(position: int, raw: bytes, one: Stated) -> Read:
    """Read a reading, which has its one spelling, so that nobody reads it in another way.

    Errors: log_damaged.
    """
    try:
        if orjson.dumps(orjson.loads(raw), option=orjson.OPT_SORT_KEYS) == raw:
            return _read.decode(one.data)
        why = "it is not written in its one way"
    except (ValueError, msgspec.MsgspecError) as error:
        why = str(error)
    raise LogDamagedError(
        f"the reading at position {position} cannot be read", position=position, internal=why
    )


class Recount:
    """Counts a tenant's readings in stretches of time, as known at several bounds at once.

    Memory: sums by provider, model and persona; for each reading that was put right its name and two positions; and
            sixteen bytes for each reading counted, by which one that stands in the log twice is known.
    """

    def __init__(self, tenant: str, cuts: Sequence[tuple[str, str]], bounds: Sequence[int]) -> None:
        self.tenant = tenant
        self.cuts = list(cuts)
        self.bounds = list(bounds)
        self.doubled: list[int] = []
        # Where the record stands that replaces a version of a stream, and where the replaced one stands itself.
        self._replaced: dict[tuple[str, int], int] = {}
        self._earlier: dict[tuple[str, int], int] = {}
        self._sums: dict[tuple[int, Source], Sums] = {}
        self._seen: set[bytes] = set()

    def find(self, position: int, raw: bytes) -> Found | None:
        """Read a record, if it is a reading of this tenant in one of the stretches.

        Errors: log_damaged.
        """
        one = self._own(position, raw)
        return None if one is None else self._found(position, raw, one)

    def take(self, position: int, raw: bytes) -> None:
        """Count a record; they come from the last to the first.

        Errors: log_damaged.
        """
        one = self._own(position, raw)
        if one is None:
            return
        self._follow(position, one)
        found = self._found(position, raw, one)
        if found is None:
            return
        self._once(position, one)
        address = sha3_512(raw).digest()
        for bound in self.bounds:
            if found.counts_below(position, bound):
                self._sums.setdefault((bound, found.source), Sums()).add(position, address, found.read)

    def _own(self, position: int, raw: bytes) -> Stated | None:
        one = stated(position, raw)
        return one if one.tenant == self.tenant and one.type in READINGS else None

    def _found(self, position: int, raw: bytes, one: Stated) -> Found | None:
        read = reading_of(position, raw, one)
        cut = next(((a, b) for a, b in self.cuts if a <= read.occurred_at < b), None)
        if cut is None:
            return None
        source = Source(*cut, read.provider, read.model, read.persona_id)
        return Found(one, read, source, self._replaced.get((one.stream, one.version)))

    def earlier_at(self, stream: str, version: int) -> int | None:
        """Give the position of a version that was replaced."""
        return self._earlier.get((stream, version))

    def counted(self, bound: int) -> Counted:
        """Give what was used as known at a bound, stretch by stretch, in the order in which bills count."""
        found = sorted(
            ((source, sums) for (at, source), sums in self._sums.items() if at == bound), key=_in_order
        )
        return Counted(
            bound,
            [(a, b, [sums.used(s) for s, sums in found if (s.start, s.end) == (a, b)]) for a, b in self.cuts],
        )

    def _follow(self, position: int, one: Stated) -> None:
        if (one.stream, one.version) in self._replaced:
            self._earlier[one.stream, one.version] = position
        if one.version > 1:
            self._replaced[one.stream, one.version - 1] = position

    def _once(self, position: int, one: Stated) -> None:
        mark = blake2b(f"{one.stream} {one.version}".encode(), digest_size=16).digest()
        if mark in self._seen:
            self.doubled.append(position)
        self._seen.add(mark)


def _in_order(one: tuple[Source, Sums]) -> tuple[str, str, str, bool, str]:
    source = one[0]
    return source.start, source.provider, source.model, source.persona_id is not None, source.persona_id or ""
