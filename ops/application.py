"""The log as an application of the eventsourcing library: repository, snapshots, notification log, subscriptions.

Whoever knows the library works on the same records as the gate: the state of a stored event is the record's canonical
bytes, its topic the wire type. What is saved here is written by the same group commit, with the same current state and
the same postings; a gate in the process hears which streams were written past it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, cast

import msgspec
import psycopg
from eventsourcing.application import AggregateNotFoundError, Application, ProcessingEvent, Repository
from eventsourcing.persistence import (
    AggregateRecorder,
    ApplicationRecorder,
    EventStore,
    InfrastructureFactory,
    InfrastructureFactoryError,
    IntegrityError,
    Mapper,
    OperationalError,
    ProcessRecorder,
    Recording,
    StoredEvent,
    TrackingRecorder,
)
from eventsourcing.utils import Environment
from psycopg.rows import tuple_row
from psycopg_pool import ConnectionPool

from domain.errors import LogDamagedError
from domain.ledger import State, state_of
from domain.log.records import (
    AGGREGATES,
    Aggregate,
    Event,
    MoneyEvent,
    Record,
    address_text,
    blank,
    decode,
    digest,
    encode,
    encode_state,
)
from ops.recorder import LedgerRecorder

SNAPSHOT_TOPIC = "snapshot."
_INSERT_SNAPSHOT = (
    "INSERT INTO snapshots (originator_id, originator_version, topic, state) VALUES (%s, %s, %s, %s)"
)


class Snapshot(msgspec.Struct, frozen=True):
    """An aggregate as it stood at a version; its topic names the kind."""

    originator_id: str
    originator_version: int
    topic: str
    state: bytes

    @classmethod
    def take(cls, aggregate: Aggregate) -> Snapshot:
        """Freeze an aggregate."""
        return cls(
            aggregate.stream, aggregate.version, SNAPSHOT_TOPIC + aggregate.KIND, encode_state(aggregate)
        )

    def restored(self) -> Aggregate:
        """Thaw it again.

        Errors: log_damaged.
        """
        cls = AGGREGATES.get(self.topic.removeprefix(SNAPSHOT_TOPIC))
        if cls is None:
            raise LogDamagedError(
                f"no aggregate is known by the topic {self.topic!r}", stream=self.originator_id
            )
        return msgspec.json.decode(self.state, type=cls)


def project(aggregate: Aggregate | None, events: Iterable[Record | Snapshot]) -> Aggregate | None:
    """Rebuild an aggregate from records, on a snapshot where there is one; this is the library's projector."""
    for event in events:
        if isinstance(event, Snapshot):
            aggregate = event.restored()
        else:
            aggregate = (aggregate or blank(event.stream, event.tenant)).mutate(event)
    return aggregate


class Draft:
    """An aggregate with the records that are not saved yet, in the shape the library's `save` collects from."""

    def __init__(self, aggregate: Aggregate, previous: bytes | None) -> None:
        self.aggregate = aggregate
        self._previous = previous
        self._pending: list[Record] = []

    @property
    def id(self) -> str:
        return self.aggregate.stream

    @property
    def version(self) -> int:
        return self.aggregate.version

    def emit(self, event: Event, *, actor: str, at: str, causation: str | None = None) -> Record:
        """Write an event on top of what is there; `at` is RFC 3339 UTC with microseconds.

        Errors: not_canonical, record_too_large.
        """
        aggregate = self.aggregate
        previous = None if self._previous is None else address_text(self._previous)
        record = Record(
            actor, at, causation, None, event, previous, event.SCHEMA, aggregate.stream, aggregate.tenant,
            event.TOPIC, aggregate.version + 1,
        )  # fmt: skip
        self._previous = digest(encode(record))
        aggregate.mutate(record)
        self._pending.append(record)
        return record

    def collect_events(self) -> Sequence[Record]:
        """Hand over the records that are not saved yet."""
        pending, self._pending = self._pending, []
        return pending


class RecordMapper(Mapper[str]):
    """Keeps records as their canonical bytes: no transcoder comes near them."""

    def __init__(self, **_: Any) -> None:
        pass

    def to_stored_event(self, domain_event: Any) -> StoredEvent:
        """Write a record's bytes."""
        return StoredEvent(domain_event.stream, domain_event.version, domain_event.type, encode(domain_event))

    def to_domain_event(self, stored_event: StoredEvent) -> Any:
        """Read a record back."""
        return decode(stored_event.state)


class SnapshotMapper(RecordMapper):
    """Keeps snapshots as the state they hold."""

    def to_stored_event(self, domain_event: Any) -> StoredEvent:
        """Write a snapshot."""
        event: Snapshot = domain_event
        return StoredEvent(event.originator_id, event.originator_version, event.topic, event.state)

    def to_domain_event(self, stored_event: StoredEvent) -> Any:
        """Read a snapshot back."""
        e = stored_event
        return Snapshot(str(e.originator_id), e.originator_version, e.topic, e.state)


class SnapshotRecorder(AggregateRecorder):
    """The snapshots table as the library's aggregate recorder. Snapshots are a cache; the log does not need them."""

    def __init__(self, pool: ConnectionPool[Any]) -> None:
        self._pool = pool

    def insert_events(self, stored_events: Sequence[StoredEvent], **_: Any) -> Sequence[int] | None:
        """Keep snapshots, all or none; one of the same version is refused with IntegrityError."""
        rows = [(str(e.originator_id), e.originator_version, e.topic, e.state) for e in stored_events]
        try:
            with self._pool.connection() as conn, conn.transaction(), conn.cursor() as cursor:
                for row in rows:
                    cursor.execute(_INSERT_SNAPSHOT, row)
        except psycopg.IntegrityError as error:
            raise IntegrityError(str(error)) from error
        except psycopg.OperationalError as outage:
            raise OperationalError(str(outage)) from outage
        return None

    def select_events(
        self,
        originator_id: Any,
        *,
        gt: int | None = None,
        lte: int | None = None,
        desc: bool = False,
        limit: int | None = None,
    ) -> Sequence[StoredEvent]:
        """Read the snapshots of a stream."""
        order = "DESC" if desc else "ASC"
        statement = (
            "SELECT originator_id, originator_version, topic, state FROM snapshots WHERE originator_id = %s"
            " AND (%s::bigint IS NULL OR originator_version > %s) AND (%s::bigint IS NULL OR originator_version <= %s)"
            f" ORDER BY originator_version {order} LIMIT %s"
        )
        try:
            with self._pool.connection() as conn, conn.cursor(row_factory=tuple_row, binary=True) as cursor:
                rows = cursor.execute(statement, (str(originator_id), gt, gt, lte, lte, limit)).fetchall()
        except psycopg.OperationalError as outage:
            raise OperationalError(str(outage)) from outage
        return [StoredEvent(*row) for row in rows]


class LedgerFactory(InfrastructureFactory[TrackingRecorder]):
    """Gives the library the recorder that is open already."""

    def __init__(self, env: Environment, recorder: LedgerRecorder) -> None:
        super().__init__(env)
        self._recorder = recorder

    def aggregate_recorder(self, purpose: str = "events") -> AggregateRecorder:
        """Give the recorder of snapshots, or of events."""
        return SnapshotRecorder(self._recorder.pool) if purpose == "snapshots" else self._recorder

    def application_recorder(self) -> ApplicationRecorder:
        return self._recorder

    def tracking_recorder(self, *_: Any, **__: Any) -> TrackingRecorder:
        raise InfrastructureFactoryError("followers keep their own position, beside what they write")

    def process_recorder(self) -> ProcessRecorder:
        raise InfrastructureFactoryError("followers keep their own position, beside what they write")


class LedgerRepository(Repository[str]):
    """The library's repository; our records are projected unless another projector is named."""

    def get(self, aggregate_id: str, *, projector_func: Any = project, **more: Any) -> Any:
        """Rebuild the aggregate of a stream such as `offer/offer-0199...`, at a version or at its latest."""
        return super().get(aggregate_id, projector_func=projector_func, **more)


class LedgerApplication(Application[str]):
    """The library's application over an open recorder, which stays open when the application is closed.

    `save` takes drafts, or records themselves. Subclasses may set `snapshotting_intervals` by aggregate class.
    """

    name = "soma-ledger"
    is_snapshotting_enabled = True
    snapshot_class = cast(Any, Snapshot)
    log_section_size = 1_000
    env: ClassVar[dict[str, str]] = {}

    def __init__(self, recorder: LedgerRecorder, env: dict[str, str] | None = None) -> None:
        self._open_recorder = recorder
        super().__init__(env)

    def construct_env(self, name: str, env: Any = None) -> Environment:
        """Take what is given and nothing else: the library would read the environment of the process."""
        return Environment(name, {"IS_SNAPSHOTTING_ENABLED": "y"} | type(self).env | dict(env or {}))

    def construct_factory(self, env: Environment) -> InfrastructureFactory:
        return LedgerFactory(env, self._open_recorder)

    def construct_mapper(self) -> Mapper[str]:
        return RecordMapper()

    def construct_snapshot_store(self) -> EventStore[str]:
        return EventStore(SnapshotMapper(), self.factory.aggregate_recorder(purpose="snapshots"))

    def construct_repository(self) -> Repository[str]:
        return LedgerRepository(self.events, snapshot_store=self.snapshots)

    def start(self, cls: type[Aggregate], name: str, tenant: str) -> Draft:
        """Begin a new stream."""
        return Draft(cls(id=name, tenant=tenant), None)

    def draft(self, stream: str) -> Draft:
        """Go on with a stream that exists; raises the library's AggregateNotFoundError."""
        aggregate: Aggregate = self.repository.get(stream)
        return Draft(aggregate, self._address(stream, aggregate.version))

    def take_snapshot(
        self, aggregate_id: str, version: int | None = None, projector_func: Any = project
    ) -> None:
        """Keep a snapshot of a stream at a version, or at its latest."""
        super().take_snapshot(aggregate_id, version, projector_func)

    def _record(self, processing_event: ProcessingEvent[str]) -> list[Recording[str]]:
        records = cast(list[Record], processing_event.events)
        entries = [
            (n, r.data.money)
            for n, r in enumerate(records)
            if isinstance(r.data, MoneyEvent) and r.data.money
        ]
        return self.events.put(cast(Any, records), states=self._states(records), entries=entries)

    def _take_snapshots(self, processing_event: ProcessingEvent[str]) -> None:
        for event in processing_event.events:
            draft = processing_event.aggregates.get(event.originator_id)
            interval = (
                self.snapshotting_intervals.get(type(draft.aggregate)) if isinstance(draft, Draft) else None
            )
            if interval and event.originator_version % interval == 0:
                self.take_snapshot(event.originator_id, event.originator_version)

    def _states(self, records: Sequence[Record]) -> list[State]:
        """Compute the current state each stream has after these records; they must go on where the stream ends."""
        heads: dict[str, tuple[Aggregate, bytes | None]] = {}
        for record in records:
            aggregate, previous = heads.get(record.stream) or self._before(record)
            if record.previous != (None if previous is None else address_text(previous)):
                raise IntegrityError(
                    f"{record.stream} version {record.version} does not name its previous record"
                )
            if record.version != aggregate.version + 1:
                raise IntegrityError(f"{record.stream} would jump to version {record.version}")
            heads[record.stream] = aggregate.mutate(record), digest(encode(record))
        return [state_of(aggregate, address) for aggregate, address in heads.values() if address is not None]

    def _before(self, record: Record) -> tuple[Aggregate, bytes | None]:
        if record.version == 1:
            return blank(record.stream, record.tenant), None
        before = record.version - 1
        try:
            return self.repository.get(record.stream, version=before), self._address(record.stream, before)
        except AggregateNotFoundError:
            raise IntegrityError(f"{record.stream} would start at version {record.version}") from None

    def _address(self, stream: str, version: int) -> bytes:
        return digest(self.recorder.select_events(stream, gt=version - 1, lte=version)[0].state)
