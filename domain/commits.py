"""What passes between the gate and the log: a commit on its way in, and what is read back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from domain.book import Entry
from domain.errors import LedgerError
from domain.log.records import Aggregate, encode_state


class Row(msgspec.Struct, frozen=True, gc=False):
    """A record on its way to the log."""

    # Made by the ten thousand: the collector need not look at it, since nothing in it can lead back to it.

    stream: str
    version: int
    type: str
    tenant: str
    address: bytes
    leaf: bytes
    record: bytes


class State(msgspec.Struct, frozen=True, gc=False):
    """The current state of a changed aggregate."""

    kind: str
    id: str
    version: int
    address: bytes
    tenant: str
    owner: str | None
    status: str
    deadline: str | None
    parties: list[str] | None
    state: bytes
    search: str | None


class Key(NamedTuple):
    """An idempotency key with what was asked and what was answered."""

    id: bytes
    digest: bytes
    status: int
    answer: bytes


class Commit:
    """What a command asks of the log: all of it, or none.

    The recorder sets `position` (of the first row) or `error`, then resolves `future`; the error is never put
    into the future, so that a caller who went away leaves no unread exception. `reads` are the streams the
    decision looked at, and `epoch` says how much the gate knew then of what other processes wrote.
    """

    __slots__ = (
        "after", "entries", "epoch", "error", "future", "key", "position", "reads", "rows", "states", "waiter",
    )  # fmt: skip

    def __init__(
        self,
        rows: Sequence[Row] = (),
        entries: Sequence[tuple[int, Sequence[Entry]]] = (),
        states: Sequence[State] = (),
        key: Key | None = None,
        reads: Sequence[str] = (),
        after: Sequence[Commit] = (),
        epoch: int = 0,
    ) -> None:
        self.rows = rows
        self.entries = entries
        self.states = states
        self.key = key
        self.reads = reads
        self.after = after
        self.epoch = epoch
        self.position: int | None = None
        self.error: BaseException | None = None
        self.future: asyncio.Future[None] | None = None
        self.waiter: Any = None

    @property
    def done(self) -> bool:
        return self.position is not None or self.error is not None


class Redo(Exception):
    """The log moved under a decision: decide again."""


class KeyKnown(Exception):
    """The log holds an answer for this key."""


class Loaded(NamedTuple):
    """An aggregate as the log last committed it."""

    aggregate: Aggregate
    address: bytes


class Remembered(NamedTuple):
    """The stored row of a key."""

    digest: bytes
    status: int
    answer: bytes
    position: int | None
    event_count: int


class Log(Protocol):
    """What the gate needs of the place that holds the log."""

    def submit(self, commit: Commit) -> None:
        """Queue a commit and give it a future of the running loop."""

    async def load(self, streams: Sequence[str]) -> dict[str, Loaded]:
        """Read the aggregates that exist among these streams."""

    async def remembered(self, key_id: bytes) -> Remembered | None:
        """Read what was answered under a key."""


def state_of(aggregate: Aggregate, address: bytes) -> State:
    """Give the current-state row of an aggregate whose latest record has this address."""
    a = aggregate
    return State(
        a.KIND, a.id, a.version, address, a.tenant, a.owner_key(), a.status_key(), a.deadline_key(),
        a.party_keys(), encode_state(a), a.search_text(),
    )  # fmt: skip


def refused(key: Key, error: LedgerError) -> Key:
    """Give the key under which a refusal is remembered."""
    return key._replace(status=error.status, answer=msgspec.json.encode(error.problem()))
