"""The recorder: the queue in front of the committer, and the log in the eventsourcing library's terms.

Commands of the gate come through `submit`, on an event loop; the library's applications come through
`insert_events`, on any thread. Both wait in one queue, and one thread commits it batch by batch. To the library a
record is a stored event: its stream is the originator, its wire type the topic, its canonical bytes the state, and
its position plus one the notification id.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import msgspec
import psycopg
from eventsourcing.persistence import (
    ApplicationRecorder,
    DataError,
    IntegrityError,
    ListenNotifySubscription,
    Notification,
    OperationalError,
    StoredEvent,
    Subscription,
)
from psycopg.rows import tuple_row
from psycopg_pool import ConnectionPool

from domain.book import Entry
from domain.errors import (
    LedgerError,
    OverloadedError,
    RecordTooLargeError,
    ShuttingDownError,
    UnavailableError,
)
from domain.ledger import Commit, KeyKnown, Redo, Row, State
from domain.log.hashes import leaf_hash
from domain.log.records import RECORD_BYTES_MAX, digest
from ops import tallies, telemetry
from ops.commit import Committer

CHANNEL = "soma_log"

log = telemetry.logger(__name__)

# The share of a flight's usual time after which the next batch is taken: early enough to be computed by the landing,
# late enough to be full.
LEAD = 0.5
FLIGHT_S_MAX = 0.05

_SELECT_STREAM = "SELECT stream, version, type, record FROM events WHERE stream = %s"
_SELECT_LOG = "SELECT position + 1, stream, version, type, record FROM events WHERE position >= %s"


class LedgerRecorder(ApplicationRecorder):
    """Group commit for many callers, and a recorder of the eventsourcing library.

    Limits: a batch takes at most batch_commands_max commands and, beyond its first command, batch_events_max events.
    """

    def __init__(
        self,
        committer: Committer,
        pool: ConnectionPool[Any],
        *,
        queue_commands_max: int = 20_000,
        batch_commands_max: int = 1024,
        batch_events_max: int = 4096,
        watch_interval_s: float = 1.0,
    ) -> None:
        self._committer = committer
        self.pool = pool
        self._queue: deque[Commit] = deque()
        self._queue_max = queue_commands_max
        self._batch_commands_max = batch_commands_max
        self._batch_events_max = batch_events_max
        self._watch_interval_s = watch_interval_s
        # Commands whose batch is in flight, when it left, and how long a flight takes of late.
        self._unanswered: list[Commit] = []
        self._started_s = time.perf_counter()
        self._flight_s = 0.0
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="ledger-writer", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------ the gate's side

    def submit(self, commit: Commit) -> None:
        """Queue a commit; its future is resolved on this loop.

        Errors: overloaded, shutting_down.
        """
        commit.future = asyncio.get_running_loop().create_future()
        self._enqueue(commit)

    def _enqueue(self, commit: Commit) -> None:
        with self._wake:
            if self._closing:
                raise ShuttingDownError(retry_after_s=5)
            if len(self._queue) >= self._queue_max:
                raise OverloadedError(retry_after_s=1)
            self._queue.append(commit)
            if len(self._queue) == 1:
                self._wake.notify()

    # ------------------------------------------------------------------ the writer thread

    def _run(self) -> None:
        while True:
            batch = self._next()
            if batch or self._committer.in_flight:
                self._commit(batch)
            elif self._closing:
                return
            else:
                self._look_around()

    def _next(self) -> list[Commit]:
        """Take the next batch; with one in flight, give it most of its time before taking the next."""
        if self._committer.in_flight:
            self._committer.wait(self._flight_s * LEAD)
            with self._wake:
                return self._take()
        with self._wake:
            if not self._queue and not self._closing:
                self._wake.wait(self._watch_interval_s)
            return self._take()

    def _look_around(self) -> None:
        """While idle, notice what other processes wrote, so that nothing is decided on an old state for long."""
        try:
            telemetry.LOG_SIZE.set(self._committer.watch())
        except Exception as error:
            log.warning("log_not_readable", error=repr(error))

    def _take(self) -> list[Commit]:
        batch: list[Commit] = []
        event_count = 0
        while self._queue and len(batch) < self._batch_commands_max:
            event_count += len(self._queue[0].rows)
            if batch and event_count > self._batch_events_max:
                break
            batch.append(self._queue.popleft())
        return batch

    def _commit(self, batch: list[Commit]) -> None:
        """Hand a batch to the committer and tell the callers whose outcome is known by then."""
        waiting = [*self._unanswered, *batch]
        try:
            self._committer.advance(batch)
        except BaseException as error:
            log.error("commit_failed", error=repr(error), commands=len(waiting))
            for commit in waiting:
                if not commit.done:
                    commit.error = error
        known = [commit for commit in waiting if commit.done]
        self._unanswered = [commit for commit in waiting if not commit.done]
        if known:
            self._report(known)
            _tell(known)
            self._committer.observe(5)
        self._started_s = time.perf_counter()

    def _report(self, known: Sequence[Commit]) -> None:
        seconds = time.perf_counter() - self._started_s
        self._flight_s += (min(seconds, FLIGHT_S_MAX) - self._flight_s) / 8
        outcomes = Counter("committed" if c.position is not None else _outcome(c.error) for c in known)
        telemetry.batch_committed(
            outcomes, sum(len(c.rows) for c in known if c.position is not None), seconds
        )
        tallies.business_committed(c for c in known if c.position is not None)

    def close(self) -> None:
        """Finish what is queued, refuse the rest, and give the connections back."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()
        self._committer.close()
        self.pool.close()

    # ------------------------------------------------------------------ the library's side

    def insert_events(
        self,
        stored_events: Sequence[StoredEvent],
        *,
        states: Sequence[State] = (),
        entries: Sequence[tuple[int, Sequence[Entry]]] = (),
        **kwargs: Any,
    ) -> Sequence[int] | None:
        """Append events whose state is the bytes to be logged; wait for the commit.

        states and entries are written with them, as for a command of the gate. Gives the notification ids; raises the
        library's IntegrityError where a version is taken or leaves a gap, and the book's refusals as they are.
        Errors: overloaded, record_too_large, shutting_down.
        """
        if any(value is not None for value in kwargs.values()):
            raise TypeError(f"this recorder takes no {', '.join(kwargs)}: followers keep their own position")
        if not stored_events:
            return None
        self._check_versions(stored_events)
        commit = Commit(rows=[_row(event) for event in stored_events], entries=entries, states=states)
        commit.waiter = threading.Lock()
        commit.waiter.acquire()
        self._enqueue(commit)
        commit.waiter.acquire()
        if commit.error is not None:
            raise _library_error(commit.error) from (
                None if isinstance(commit.error, LedgerError) else commit.error
            )
        assert commit.position is not None
        return list(range(commit.position + 1, commit.position + 1 + len(stored_events)))

    def _check_versions(self, stored_events: Sequence[StoredEvent]) -> None:
        """Refuse a gap: each stream goes on from where it ends. A collision is found by the commit."""
        expected: dict[str, int] = {}
        for event in stored_events:
            stream = str(event.originator_id)
            if stream not in expected:
                last = self.select_events(stream, desc=True, limit=1) if event.originator_version > 1 else []
                expected[stream] = last[0].originator_version + 1 if last else 1
            if not 1 <= event.originator_version <= expected[stream]:
                raise IntegrityError(f"{stream} would jump to version {event.originator_version}")
            expected[stream] = event.originator_version + 1

    def select_events(
        self,
        originator_id: UUID | str,
        *,
        gt: int | None = None,
        lte: int | None = None,
        desc: bool = False,
        limit: int | None = None,
    ) -> Sequence[StoredEvent]:
        """Read a stream."""
        params: list[Any] = [originator_id]
        statement = _SELECT_STREAM
        if gt is not None:
            statement += " AND version > %s"
            params.append(gt)
        if lte is not None:
            statement += " AND version <= %s"
            params.append(lte)
        statement += " ORDER BY version DESC" if desc else " ORDER BY version"
        if limit is not None:
            statement += " LIMIT %s"
            params.append(limit)
        return [StoredEvent(*row) for row in self._rows(statement, params)]

    def select_notifications(
        self,
        start: int | None,
        limit: int,
        stop: int | None = None,
        topics: Sequence[str] = (),
        *,
        inclusive_of_start: bool = True,
    ) -> Sequence[Notification]:
        """Read the log from a notification id on."""
        first = 0 if start is None else start - 1 + (not inclusive_of_start)
        params: list[Any] = [first]
        statement = _SELECT_LOG
        if stop is not None:
            statement += " AND position < %s"
            params.append(stop)
        if topics:
            statement += " AND type = ANY(%s)"
            params.append(list(topics))
        statement += " ORDER BY position LIMIT %s"
        params.append(limit)
        rows = self._rows(statement, params)
        return [
            Notification(id=n, originator_id=s, originator_version=v, topic=t, state=r)
            for n, s, v, t, r in rows
        ]

    def max_notification_id(self) -> int | None:
        """Give the size of the log, which is the last notification id."""
        return self._rows("SELECT size FROM log_head", [])[0][0] or None

    def subscribe(
        self, gt: int | None = None, topics: Sequence[str] = ()
    ) -> Subscription[ApplicationRecorder]:
        """Follow the log: first what is there, then what comes."""
        return LogSubscription(recorder=self, gt=gt, topics=topics)

    def _rows(self, statement: str, params: Sequence[Any]) -> list[Any]:
        try:
            with self.pool.connection() as conn, conn.cursor(row_factory=tuple_row, binary=True) as cursor:
                return cursor.execute(statement, params, prepare=True).fetchall()
        except psycopg.OperationalError as outage:
            raise OperationalError(str(outage)) from outage


class LogSubscription(ListenNotifySubscription[LedgerRecorder]):
    """A subscription woken by NOTIFY; it looks again every second, since a notification can be lost."""

    def __init__(self, recorder: LedgerRecorder, gt: int | None = None, topics: Sequence[str] = ()) -> None:
        super().__init__(recorder=recorder, gt=gt, topics=topics)
        self._listener = threading.Thread(target=self._listen, name="log-subscription", daemon=True)
        self._listener.start()

    def __exit__(self, *args: object, **kwargs: Any) -> None:
        try:
            super().__exit__(*args, **kwargs)
        finally:
            self._listener.join()

    def _listen(self) -> None:
        while not self._has_been_stopped and not self._thread_error:
            try:
                with self._recorder.pool.connection() as conn:
                    conn.execute(f"LISTEN {CHANNEL}")
                    self._wait(conn)
                    conn.execute(f"UNLISTEN {CHANNEL}")
            except psycopg.OperationalError:
                # The connection broke; a new one listens on, and the look below finds what was missed.
                time.sleep(0.2)
            except BaseException as error:
                self._thread_error = error
                self.stop()
            self._has_been_notified.set()

    def _wait(self, conn: psycopg.Connection[Any]) -> None:
        waits = 0
        while not self._has_been_stopped and not self._thread_error:
            for _ in conn.notifies(timeout=0.1, stop_after=1):
                self._has_been_notified.set()
            waits += 1
            if waits % 10 == 0:
                self._has_been_notified.set()


def _tell(batch: Sequence[Commit]) -> None:
    """Tell every caller, with one hop per event loop and batch."""
    loops: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for commit in batch:
        if commit.future is not None:
            loops.setdefault(commit.future.get_loop(), []).append(commit.future)
        elif commit.waiter is not None:
            commit.waiter.release()
    for loop, futures in loops.items():
        try:
            loop.call_soon_threadsafe(_resolve, futures)
        except RuntimeError:
            continue  # the loop is closed and nobody waits there any more


def _resolve(futures: Sequence[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


def _outcome(error: BaseException | None) -> str:
    if isinstance(error, Redo):
        return "redone"
    if isinstance(error, KeyKnown):
        return "repeated"
    return "refused" if isinstance(error, LedgerError) and error.status < 500 else "failed"


class _Tenant(msgspec.Struct):
    tenant: str = ""


_tenants = msgspec.json.Decoder(_Tenant)


def _row(event: StoredEvent) -> Row:
    state, stream = event.state, str(event.originator_id)
    if len(state) > RECORD_BYTES_MAX:
        raise RecordTooLargeError(bytes=len(state), bytes_max=RECORD_BYTES_MAX, type=event.topic)
    try:
        tenant = _tenants.decode(state).tenant
    except msgspec.DecodeError:
        tenant = ""  # the library stores any bytes; what is no record belongs to nobody
    return Row(stream, event.originator_version, event.topic, tenant, digest(state), leaf_hash(state), state)


def _library_error(error: BaseException) -> Exception:
    if isinstance(error, UnavailableError):
        return OperationalError(error.message)
    if isinstance(error, LedgerError):
        return error
    if isinstance(error, psycopg.DataError):
        return DataError(str(error))
    return IntegrityError("the version is taken")
