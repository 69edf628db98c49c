"""The one gate: every change of the ledger passes `Ledger.act`, and nothing else writes.

    act(use case, command, caller)
      1  may this caller do this?              roles named by the use case
      2  was this key answered before?         then the same answer again
      3  decide                                the use case, a plain function over a `Case`
      4  commit                                one group commit; the log has the last word

Aggregates stay resident, so a busy one is decided on top of events that are still on their way to the disk.
Between a decision and its submission there is no await, so the order of decisions is the order of versions.
If the log refuses a commit, everything decided on top of it is refused too and decided again.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from hashlib import sha256
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec

from domain.book import Entry
from domain.commits import Commit, Key, KeyKnown, Loaded, Log, Redo, Remembered, Row, State, refused, state_of
from domain.errors import (
    ConflictError,
    ForbiddenError,
    IdempotencyKeyReusedError,
    InvalidIdempotencyKeyError,
    LedgerError,
    NotFoundError,
    VersionMismatchError,
)
from domain.log.hashes import leaf_hash
from domain.log.records import (
    Aggregate,
    Event,
    MoneyEvent,
    Record,
    address_text,
    digest,
    encode,
    encode_state,
)

# What passes between the gate and the log is told in domain.commits and known by these names here too.
__all__ = (
    "Answer", "Ask", "Caller", "Case", "Commit", "Final", "Key", "KeyKnown", "Ledger", "Loaded", "Log", "Redo",
    "Remembered", "Row", "State", "UseCase", "allow", "refused", "state_of",
)  # fmt: skip

ATTEMPTS_MAX = 64
REMEMBERED_MAX = 50_000
_PRESENT = -1

A = TypeVar("A", bound=Aggregate)


class Caller(NamedTuple):
    """Who asks: a subject of a tenant, with roles."""

    subject: str
    tenant: str
    roles: frozenset[str]


class Final(Exception):
    """The log has spoken: the cause is the caller's answer, and deciding again would not change it."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Answer(NamedTuple):
    """What a command came to.

    Units: position is of its first record, or None where it wrote nothing.
    """

    body: bytes
    position: int | None
    event_count: int
    repeated: bool = False


class _Resident:
    __slots__ = ("address", "aggregate", "commit")

    def __init__(self, aggregate: Aggregate | None, address: bytes | None) -> None:
        self.aggregate = aggregate  # None: spoiled, to be read again once `commit` is done
        self.address = address
        self.commit: Commit | None = None


class _Watch:
    """Counts the changes of a stream while decisions look at what the log holds of it.

    However many of them wait for a stream, one read is under way; `read` names the changes it knows of.
    """

    __slots__ = ("changes", "read", "watchers")

    def __init__(self) -> None:
        self.changes = 0
        self.watchers = 0
        self.read: tuple[int, asyncio.Task[bool]] | None = None


class _Missing(Exception):
    def __init__(self, *streams: str) -> None:
        self.streams = streams


UseCase = Callable[..., Any]


class Asked(Protocol):
    """What a use case is asked: a model, or what can say in the same bytes what was asked."""

    def model_dump_json(self, *, exclude_unset: bool = False) -> str:
        """Write what was asked; a key that is used again is held against it, for ever."""


class Ask(NamedTuple):
    """A request on its way through the gate."""

    use_case: UseCase
    command: Asked
    caller: Caller
    mark: Key | None
    if_match: int | None
    correlation: str | None
    causation: str | None
    gather: Callable[[], Awaitable[dict[str, Any]]] | None


def allow(*roles: str) -> Callable[[UseCase], UseCase]:
    """Name the roles that may call a use case; without any, every caller with a token may."""

    def mark(use_case: UseCase) -> UseCase:
        use_case.roles = frozenset(roles)  # type: ignore[attr-defined]
        return use_case

    return mark


class Case:
    """One decision in the making: what it reads, and the events it leads to."""

    __slots__ = (
        "_causation", "_correlation", "_ledger", "_looked", "_missed", "_reads", "_touched", "caller", "entries",
        "if_match", "now", "rows",
    )  # fmt: skip

    def __init__(self, ledger: Ledger, ask: Ask, now: str, looked: dict[str, int]) -> None:
        self.caller = ask.caller
        self.now = now
        self.if_match = ask.if_match
        self.rows: list[Row] = []
        self.entries: list[tuple[int, Sequence[Entry]]] = []
        self._ledger = ledger
        self._looked = looked
        self._missed: list[str] = []
        self._correlation = ask.correlation
        self._causation = ask.causation
        self._reads: dict[str, _Resident] = {}
        self._touched: dict[str, _Resident] = {}

    def find(self, cls: type[A], name: str) -> A | None:
        """Read an aggregate, or None where there is none."""
        stream = f"{cls.KIND}/{name}"
        resident = self._reads.get(stream)
        if resident is None:
            resident = self._ledger.resident(stream)
            if resident is None:
                if self._ledger.is_absent(stream, self._looked):
                    self._missed.append(stream)
                    return None
                raise _Missing(stream)
            self._reads[stream] = resident
        return resident.aggregate  # type: ignore[return-value]

    def look(self, cls: type[A], names: Iterable[str], also: Iterable[str] = ()) -> None:
        """Have many aggregates, and further streams, read in one go before they are asked for one by one.

        Cost: one read for all of them, where `find` alone would take one each and decide anew after each.
        """
        ledger, looked = self._ledger, self._looked
        streams = [*(f"{cls.KIND}/{name}" for name in names), *also]
        missing = [
            s
            for s in streams
            if s not in self._reads and ledger.resident(s) is None and not ledger.is_absent(s, looked)
        ]
        if missing:
            raise _Missing(*missing)

    def get(self, cls: type[A], name: str, missing: type[NotFoundError] = NotFoundError) -> A:
        """Read an aggregate that must exist."""
        aggregate = self.find(cls, name)
        if aggregate is None:
            raise missing(id=name)
        return aggregate

    def get_own(self, cls: type[A], name: str, missing: type[NotFoundError] = NotFoundError) -> A:
        """Read an aggregate of the caller's tenant; another tenant's is as good as absent."""
        aggregate = self.get(cls, name, missing)
        if aggregate.tenant != self.caller.tenant and "operator" not in self.caller.roles:
            raise missing(id=name)
        return aggregate

    def match_version(self, aggregate: Aggregate) -> None:
        """Hold the caller's If-Match against an aggregate.

        Errors: version_mismatch.
        """
        if self.if_match is not None and self.if_match != aggregate.version:
            raise VersionMismatchError(version=aggregate.version, if_match=self.if_match)

    def new_id(self, kind: str) -> str:
        """Give a fresh, time-ordered id such as `offer-0199...`."""
        return f"{kind}-{self._ledger.next_id()}"

    def create(self, cls: type[A], name: str, event: Event, tenant: str | None = None) -> A:
        """Start a stream with its first event."""
        aggregate = cls(id=name, tenant=tenant or self.caller.tenant)
        stream = aggregate.stream
        resident = self._reads[stream] = _Resident(aggregate, None)
        self._write(stream, resident, aggregate, event)
        return aggregate

    def emit(self, aggregate: A, event: Event) -> A:
        """Write an event: it becomes a record, and the aggregate changes at once."""
        stream = aggregate.stream
        self._write(stream, self._reads[stream], aggregate, event)
        return aggregate

    def _write(self, stream: str, resident: _Resident, aggregate: Aggregate, event: Event) -> None:
        record = Record(
            self.caller.subject,
            self.now,
            self._causation,
            self._correlation,
            event,
            None if resident.address is None else address_text(resident.address),
            event.SCHEMA,
            stream,
            aggregate.tenant,
            event.TOPIC,
            aggregate.version + 1,
        )
        data = encode(record)
        # From here on the aggregate is ahead of the log; if the decision ends in a refusal it is read again.
        self._touched[stream] = resident
        aggregate.mutate(record)
        resident.address = digest(data)
        if isinstance(event, MoneyEvent) and event.money:
            self.entries.append((len(self.rows), event.money))
        self.rows.append(
            Row(
                stream, record.version, event.TOPIC, aggregate.tenant, resident.address, leaf_hash(data), data
            )
        )

    def commit(self, key: Key | None) -> Commit:
        """Make the commit of what was decided; it falls with the pending ones it was decided on."""
        # One that the writer has just refused counts too: it was still pending when this was decided on top of it.
        after = [r.commit for r in self._reads.values() if r.commit is not None and r.commit.position is None]
        states = [
            state_of(r.aggregate, r.address) for r in self._touched.values() if r.aggregate and r.address
        ]
        return Commit(
            self.rows, self.entries, states, key, (*self._reads, *self._missed), after, self._ledger.epoch
        )

    def withdraw(self) -> None:
        """Take back what was decided; aggregates that had changed are read again."""
        for resident in self._touched.values():
            resident.aggregate = None
        self.rows, self.entries, self._touched = [], [], {}

    def reread(self) -> None:
        """Have what was read here read again, as far as no commit of it is under way."""
        for resident in self._reads.values():
            if resident.commit is None or resident.commit.done:
                resident.aggregate = None


class Ledger:
    """The gate. One per process and event loop.

    clock gives RFC 3339 text that never goes back; next_id gives time-ordered unique text.
    """

    def __init__(
        self, log: Log, *, clock: Callable[[], str], next_id: Callable[[], str], resident_max: int = 10_000
    ) -> None:
        self._log = log
        self._clock = clock
        self.next_id = next_id
        self._resident_max = resident_max
        self._residents: OrderedDict[str, _Resident] = OrderedDict()
        # Residents that are hardly ever read again, the oldest first. An ordered one: what is taken from the front of a
        # plain dict leaves holes there, over which every later look at the front has to step.
        self._passing: OrderedDict[str, None] = OrderedDict()
        self._watched: dict[str, _Watch] = {}
        self._inflight: dict[bytes, asyncio.Future[None]] = {}
        self._remembered: OrderedDict[bytes, Remembered] = OrderedDict()
        self.epoch = 0

    async def act(
        self,
        use_case: UseCase,
        command: Asked,
        caller: Caller,
        *,
        key: str | None = None,
        if_match: int | None = None,
        correlation: str | None = None,
        causation: str | None = None,
        gather: Callable[[], Awaitable[dict[str, Any]]] | None = None,
    ) -> Answer:
        """Carry out a command, once.

        `gather` reads what the use case needs beyond single aggregates; it is asked again at each attempt.
        Errors: forbidden, idempotency_key_reused, invalid_idempotency_key, conflict; the use case's own;
                unavailable, overloaded, shutting_down.
        """
        roles: frozenset[str] = getattr(use_case, "roles", frozenset())
        if roles and not roles & caller.roles:
            raise ForbiddenError(
                f"this needs one of the roles {', '.join(sorted(roles))}", roles=sorted(roles)
            )
        mark = None if key is None else _mark(key, caller, use_case, command, if_match)
        ask = Ask(use_case, command, caller, mark, if_match, correlation, causation, gather)
        try:
            return await (self._attempt(ask) if mark is None else self._once(ask, mark))
        except Final as final:
            raise final.error from None

    async def _once(self, ask: Ask, mark: Key) -> Answer:
        """Let one request of a key through at a time; the others hear its answer."""
        while (running := self._inflight.get(mark.id)) is not None:
            await asyncio.wait([running])
        if (known := self._remembered.get(mark.id)) is not None:
            return _repeat(known, mark)
        self._inflight[mark.id] = future = asyncio.get_running_loop().create_future()
        try:
            return await self._attempt(ask)
        finally:
            del self._inflight[mark.id]
            future.set_result(None)

    async def _attempt(self, ask: Ask) -> Answer:
        for _ in range(ATTEMPTS_MAX):
            given = await ask.gather() if ask.gather else {}
            try:
                case, body, refusal = await self._decide(ask, given)
            except Redo:
                continue
            try:
                if refusal is None:
                    answer = await self._commit(case, body, ask.mark)
                else:
                    answer = await self._refuse(case, refusal, ask.mark)
            except BaseException:
                case.withdraw()
                raise
            if answer is not None:
                return answer
        raise ConflictError("the command lost against others too many times; send it again")

    async def _decide(self, ask: Ask, given: dict[str, Any]) -> tuple[Case, bytes, LedgerError | None]:
        """Run the use case until all it reads is in memory; the last run and what follows are one step."""
        looked: dict[str, int] = {}
        try:
            while True:
                case = Case(self, ask, self._clock(), looked)
                try:
                    result = ask.use_case(case, ask.command, **given)
                    return case, b"null" if result is None else encode_state(result), None
                except _Missing as missing:
                    case.withdraw()
                    await self._load_all(missing.streams, looked)
                except LedgerError as refusal:
                    case.withdraw()
                    return case, b"", refusal
                except Redo:
                    # The use case was given something newer than what is held here; another process wrote it.
                    case.withdraw()
                    case.reread()
                    raise
                except BaseException:
                    case.withdraw()
                    raise
        finally:
            for stream in looked:
                self._unwatch(stream)

    async def _commit(self, case: Case, body: bytes, mark: Key | None) -> Answer | None:
        commit = case.commit(mark._replace(status=200, answer=body) if mark else None)
        self._install(case, commit)
        return await self._settle(commit, body)

    async def _refuse(self, case: Case, refusal: LedgerError, mark: Key | None) -> Answer | None:
        """Raise a refusal, once it is remembered and what it was decided on stands; None means: decide again."""
        if refusal.status >= 500:
            raise refusal
        known = await self._settle(case.commit(refused(mark, refusal) if mark else None), b"", refusing=True)
        if known is None or known.repeated:
            return known
        raise refusal

    async def _settle(self, commit: Commit, body: bytes, *, refusing: bool = False) -> Answer | None:
        """Wait for the log's word: an answer, the answer of an earlier request, or None for: decide again.

        A refusal asks the log even where it writes nothing: another process may have changed what it was decided on.
        """
        if not (commit.rows or commit.key or commit.after or (refusing and commit.reads)):
            return Answer(body, None, 0)
        try:
            self._log.submit(commit)
        except BaseException as refusal:
            # It never reached the queue, and nobody may wait for it.
            commit.error, commit.future = refusal, None
            raise
        assert commit.future is not None
        await commit.future
        key, error = commit.key, commit.error
        if isinstance(error, Redo):
            return None
        if isinstance(error, KeyKnown):
            assert key is not None
            return _repeat(await self._known(key.id), key)
        if key is not None and (error is None or (isinstance(error, LedgerError) and error.status < 500)):
            self._remember(key, commit, error)
        if error is not None:
            raise Final(error)
        return Answer(body, commit.position if commit.rows else None, len(commit.rows))

    # ------------------------------------------------------------------ residents

    def resident(self, stream: str) -> _Resident | None:
        """Give the aggregate held in memory, unless what it stands on was refused."""
        resident = self._residents.get(stream)
        if resident is None or resident.aggregate is None:
            return None
        if resident.commit is not None and resident.commit.error is not None:
            return None
        return resident

    def forget(self, streams: Iterable[str] | None, epoch: int) -> None:
        """Drop aggregates that another process changed (all of them without names)."""
        self.epoch = epoch
        for stream in [*self._residents, *self._watched] if streams is None else streams:
            self._note_change(stream)
            resident = self._residents.get(stream)
            if resident is not None:
                resident.aggregate = None

    def is_absent(self, stream: str, looked: dict[str, int]) -> bool:
        """Say whether the log had no such stream when a decision looked, and still has none."""
        return stream in looked and self._watched[stream].changes == looked[stream]

    def _install(self, case: Case, commit: Commit) -> None:
        residents = self._residents
        for stream, resident in case._touched.items():
            resident.commit = commit
            residents[stream] = resident
            residents.move_to_end(stream)
            self._passing.pop(stream, None)
            if resident.aggregate is not None and not resident.aggregate.LASTING:
                self._passing[stream] = None
            self._note_change(stream)
        self._make_room()

    def _make_room(self) -> None:
        """Let go of what is hardly ever read again, then of what was longest not written; never of what is pending."""
        residents = self._residents
        while len(residents) > self._resident_max:
            stream = next(iter(self._passing), None) or next(iter(residents))
            if (oldest := residents.get(stream)) is not None:
                if oldest.commit is not None and not oldest.commit.done:
                    residents.move_to_end(stream)
                    return
                del residents[stream]
            self._passing.pop(stream, None)

    async def _load_all(self, streams: Sequence[str], looked: dict[str, int]) -> None:
        """Look streams up in the log: many in one read, those with a past of their own here one by one."""
        together = [s for s in streams if s not in self._residents] if len(streams) > 1 else []
        watches = {stream: self._watch(stream, looked) for stream in together}
        changes = {stream: watch.changes for stream, watch in watches.items()}
        found = await self._log.load(together) if together else {}
        for stream, watch in watches.items():
            if watch.changes != changes[stream]:
                continue  # not looked up yet, as far as this decision knows: it will be missed again
            if (there := found.get(stream)) is None:
                looked[stream] = changes[stream]
            elif self.resident(stream) is None:
                self._residents[stream] = _Resident(there.aggregate, there.address)
        for stream in streams:
            if stream not in watches:
                await self._load(stream, looked)

    def _watch(self, stream: str, looked: dict[str, int]) -> _Watch:
        watch = self._watched.setdefault(stream, _Watch())
        if stream not in looked:
            watch.watchers += 1
        looked[stream] = _PRESENT
        return watch

    async def _load(self, stream: str, looked: dict[str, int]) -> None:
        """Look a stream up in the log; what changes meanwhile is looked up again."""
        watch = self._watch(stream, looked)
        while self.resident(stream) is None:
            await self._quiet(stream)
            changes = watch.changes
            if watch.read is None or watch.read[0] != changes:
                watch.read = changes, asyncio.ensure_future(self._read(stream, watch, changes))
            there = await asyncio.shield(watch.read[1])
            if watch.changes == changes:
                looked[stream] = _PRESENT if there else changes
                return
        looked[stream] = _PRESENT

    async def _read(self, stream: str, watch: _Watch, changes: int) -> bool:
        """Read a stream for all who wait for it; say whether it is there."""
        try:
            found = (await self._log.load([stream])).get(stream)
        finally:
            if watch.read is not None and watch.read[0] == changes:
                watch.read = None
        fresh = watch.changes == changes and self._watched.get(stream) is watch
        if found is not None and fresh and self.resident(stream) is None:
            self._residents[stream] = _Resident(found.aggregate, found.address)
        return found is not None

    def _unwatch(self, stream: str) -> None:
        watch = self._watched[stream]
        watch.watchers -= 1
        if not watch.watchers:
            del self._watched[stream]

    def _note_change(self, stream: str) -> None:
        if (watch := self._watched.get(stream)) is not None:
            watch.changes += 1

    async def _quiet(self, stream: str) -> None:
        """Wait until no commit of a spoiled aggregate is under way.

        A refusal is known before the rest of its batch is written; its future is resolved after that.
        """
        spoiled = self._residents.get(stream)
        while spoiled is not None and spoiled.commit is not None:
            future = spoiled.commit.future
            if future is not None and not future.done():
                await asyncio.wait([future])
            elif not spoiled.commit.done:
                await asyncio.sleep(0.001)  # its caller went away; the commit is still under way
            else:
                return

    # ------------------------------------------------------------------ keys

    async def _known(self, key_id: bytes) -> Remembered:
        row = await self._log.remembered(key_id)
        assert row is not None, "the log refused a key it does not hold"
        self._keep(key_id, row)
        return row

    def _remember(self, key: Key, commit: Commit, error: LedgerError | None) -> None:
        if error is not None:
            key = refused(key, error)
        position = commit.position if commit.rows and error is None else None
        count = len(commit.rows) if error is None else 0
        self._keep(key.id, Remembered(key.digest, key.status, key.answer, position, count))

    def _keep(self, key_id: bytes, row: Remembered) -> None:
        self._remembered[key_id] = row
        if len(self._remembered) > REMEMBERED_MAX:
            self._remembered.popitem(last=False)


def _mark(key: str, caller: Caller, use_case: UseCase, command: Asked, if_match: int | None) -> Key:
    """Make the identity of a keyed request: keys of different callers never meet."""
    if not 1 <= len(key) <= 255 or not key.isascii() or not key.isprintable():
        raise InvalidIdempotencyKeyError
    scope = f"{len(caller.tenant)}:{caller.tenant}{len(caller.subject)}:{caller.subject}{key}"
    asked = f"{use_case.__module__}.{use_case.__name__}\n{if_match}\n{command.model_dump_json(exclude_unset=True)}"
    return Key(sha256(scope.encode()).digest(), sha256(asked.encode()).digest(), 0, b"")


def _repeat(row: Remembered, mark: Key) -> Answer:
    if row.digest != mark.digest:
        raise Final(IdempotencyKeyReusedError())
    if row.status >= 400:
        raise Final(LedgerError.from_problem(msgspec.json.decode(row.answer)))
    return Answer(row.answer, row.position, row.event_count, repeated=True)
