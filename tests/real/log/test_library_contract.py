"""The eventsourcing library's own promises for recorders, held against ours on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from eventsourcing import cryptography
from eventsourcing.persistence import IntegrityError, StoredEvent

from domain.errors import RecordTooLargeError
from domain.log.notes import Checkpoint, Signer
from ops import postgres
from ops.application import SnapshotRecorder
from ops.commit import Committer
from ops.recorder import LedgerRecorder

# The library's cases import its older cipher, which wants a package of its own; the newer one has the same names.
sys.modules.setdefault("eventsourcing.cipher", cryptography)
from eventsourcing.tests import persistence as contract  # noqa: E402


def open_recorder(url: str, kind: type[LedgerRecorder] = LedgerRecorder) -> LedgerRecorder:
    """Open a recorder alone, without a gate."""
    signer = Signer("contract.example/log", bytes(32))
    committer = Committer(
        lambda: postgres.connect_writer(url),
        lambda size, root: signer.sign(Checkpoint(signer.name, size, root).text.encode()),
        lambda streams, epoch: None,
    )
    return kind(committer, postgres.library_pool(url, 8))


class FromZero(LedgerRecorder):
    """Counts versions from 0, as some of the library's tests do; our log counts from 1."""

    def insert_events(self, stored_events: Sequence[StoredEvent], **more: Any) -> Sequence[int] | None:
        return super().insert_events(
            [StoredEvent(e.originator_id, e.originator_version + 1, e.topic, e.state) for e in stored_events],
            **more,
        )


class OnOurDatabase(contract.RecorderTestCase):
    """Hands the test's database to the library's cases, and closes what they opened."""

    recorder_class: type[LedgerRecorder] = LedgerRecorder

    @pytest.fixture(autouse=True)
    def _database(self, database_url: str) -> Iterator[None]:
        self.url = database_url
        self.opened: list[LedgerRecorder] = []
        yield
        for recorder in self.opened:
            recorder.close()

    def new_originator_id(self) -> str:
        return f"thing/{uuid4()}"

    def create_recorder(self) -> LedgerRecorder:
        self.opened.append(open_recorder(self.url, self.recorder_class))
        return self.opened[-1]


class TestApplicationRecorder(OnOurDatabase, contract.ApplicationRecorderTestCase[LedgerRecorder]):
    """Everything the library asks of an application's recorder, subscriptions included."""

    test_concurrent_no_conflicts = None
    test_concurrent_throughput = None

    def test_insert_subscribe(self) -> None:
        self.optional_test_insert_subscribe()


class TestConcurrentWriters(OnOurDatabase, contract.ApplicationRecorderTestCase[LedgerRecorder]):
    """The cases that write from many threads, and begin at version 0."""

    recorder_class = FromZero
    test_insert_select = None
    test_performance = None


class TestNotificationIDs(OnOurDatabase, contract.NonInterleavingNotificationIDsBaseCase):
    """What is saved together lies together in the log."""

    recorder_class = FromZero


class TestSnapshotRecorder(OnOurDatabase, contract.AggregateRecorderTestCase):
    """Everything the library asks of a recorder of aggregates, which is what keeps the snapshots."""

    def create_recorder(self) -> SnapshotRecorder:
        return SnapshotRecorder(super().create_recorder().pool)


# --------------------------------------------------------------------------- what the library leaves open


@pytest.fixture
def recorder(database_url: str) -> Iterator[LedgerRecorder]:
    recorder = open_recorder(database_url)
    yield recorder
    recorder.close()


def events(stream: str, *versions: int, state: bytes = b"state") -> list[StoredEvent]:
    return [StoredEvent(stream, version, "topic", state) for version in versions]


def test_a_save_that_would_leave_a_gap_is_refused_and_moves_nothing(recorder: LedgerRecorder) -> None:
    assert recorder.insert_events(events("thing/a", 1)) == [1]
    for gap in (events("thing/a", 3), events("thing/a", 2, 4), events("thing/a", 0), events("thing/b", 2)):
        with pytest.raises(IntegrityError):
            recorder.insert_events(gap)
    assert recorder.insert_events(events("thing/a", 2)) == [2]


def test_a_save_that_is_refused_does_not_hurt_those_in_the_same_batch(recorder: LedgerRecorder) -> None:
    recorder.insert_events(events("thing/0", 1))

    async def save(stream: str, *versions: int) -> Sequence[int] | BaseException | None:
        try:
            return await asyncio.to_thread(recorder.insert_events, events(stream, *versions))
        except IntegrityError as error:
            return error

    async def all_at_once() -> list[Any]:
        return await asyncio.gather(*(save(f"thing/{n % 20}", 1) for n in range(40)))

    outcomes = asyncio.run(all_at_once())
    written = sorted(ids[0] for ids in outcomes if not isinstance(ids, IntegrityError))
    assert written == list(range(2, 21))


def test_state_the_database_itself_refuses_does_not_hurt_neighbours(recorder: LedgerRecorder) -> None:
    streams = [f"thing/{n}" for n in range(12)] + ["thing/\x00"]

    async def save(stream: str) -> Any:
        try:
            return await asyncio.to_thread(recorder.insert_events, events(stream, 1))
        except Exception as error:  # noqa: BLE001  (the kind of failure is what is looked at)
            return error

    async def all_at_once() -> list[Any]:
        return await asyncio.gather(*map(save, streams))

    outcomes = asyncio.run(all_at_once())
    assert isinstance(outcomes[-1], Exception)
    assert sorted(ids[0] for ids in outcomes[:-1]) == list(range(1, 13))


def test_a_record_beyond_the_limit_is_refused_before_it_is_queued(recorder: LedgerRecorder) -> None:
    with pytest.raises(RecordTooLargeError):
        recorder.insert_events(events("thing/a", 1, state=b"x" * 65_536))
    assert recorder.insert_events(events("thing/a", 1, state=b"x" * 65_535)) == [1]


def test_the_tenant_column_is_what_the_record_says(recorder: LedgerRecorder) -> None:
    state = msgspec.json.encode({"tenant": "acme", "stream": "thing/a"})
    recorder.insert_events(events("thing/a", 1, state=state))
    with recorder.pool.connection() as conn:
        assert conn.execute("SELECT tenant FROM events").fetchall() == [("acme",)]


def test_one_save_of_50_000_events_works(recorder: LedgerRecorder) -> None:
    stored = events("thing/a", *range(1, 50_001), state=b"s" * 200)
    assert recorder.insert_events(stored) == list(range(1, 50_001))
    assert recorder.max_notification_id() == 50_000
    assert recorder.select_notifications(start=49_999, limit=10)[-1].originator_version == 50_000


def test_tracking_is_refused_since_followers_keep_their_own_position(recorder: LedgerRecorder) -> None:
    with pytest.raises(TypeError):
        recorder.insert_events(events("thing/a", 1), tracking=object())
    assert recorder.insert_events(events("thing/a", 1), tracking=None) == [1]
