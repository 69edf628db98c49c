"""A log in memory, as strict as the recorder: it commits in batches on the event loop, and two nodes may share it.

It is held to the same promises as the recorder with PostgreSQL under it, see gate_promises.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from domain.book import Book
from domain.commits import Commit, KeyKnown, Loaded, Redo, Remembered, Row, State, refused
from domain.errors import LedgerError, OverloadedError
from domain.log.records import AGGREGATES


class Logged(NamedTuple):
    """A row, and the node that wrote it."""

    row: Row
    node: MemoryLog


class MemoryStore:
    """What a database would hold."""

    def __init__(self) -> None:
        self.logged: list[Logged] = []
        self.versions: dict[str, int] = {}
        self.states: dict[str, State] = {}
        self.keys: dict[bytes, Remembered] = {}
        self.book = Book()


class MemoryLog:
    """One node's way to the store."""

    def __init__(self, store: MemoryStore, queue_commands_max: int = 20_000) -> None:
        self.store = store
        self.on_foreign: Callable[[set[str], int], None] = lambda streams, epoch: None
        self.on_load: Callable[[Sequence[str]], None] = lambda streams: None
        self.outage: LedgerError | None = None
        self.batches: list[int] = []
        self._queue: list[Commit] = []
        self._queue_max = queue_commands_max
        self._paused = False
        self._due = False
        self._epoch = 0
        self._foreign: list[tuple[int, set[str]]] = []
        self._seen = 0

    # ------------------------------------------------------------------ what the gate asks

    def submit(self, commit: Commit) -> None:
        """Queue a commit.

        Errors: overloaded.
        """
        commit.future = asyncio.get_running_loop().create_future()
        if len(self._queue) >= self._queue_max:
            raise OverloadedError(retry_after_s=1)
        self._queue.append(commit)
        self._arrange()

    async def load(self, streams: Sequence[str]) -> dict[str, Loaded]:
        """Read aggregates; what they are was true when the reading began."""
        found = {s: self.store.states[s] for s in streams if s in self.store.states}
        self.on_load(streams)
        await asyncio.sleep(0)
        return {
            stream: Loaded(msgspec.json.decode(state.state, type=AGGREGATES[state.kind]), state.address)
            for stream, state in found.items()
        }

    async def remembered(self, key_id: bytes) -> Remembered | None:
        """Read what was answered under a key."""
        await asyncio.sleep(0)
        return self.store.keys.get(key_id)

    # ------------------------------------------------------------------ committing

    def pause(self) -> None:
        """Let commits wait."""
        self._paused = True

    def go_on(self) -> None:
        """Commit what has waited."""
        self._paused = False
        self._arrange()

    def _arrange(self) -> None:
        if self._queue and not self._due and not self._paused:
            self._due = True
            asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        self._due = False
        if self._paused:
            return
        batch, self._queue = self._queue, []
        self.batches.append(len(batch))
        self._look_around()
        outage, self.outage = self.outage, None
        for commit in batch:
            if outage is not None:
                commit.error = outage
            else:
                self._commit(commit)
        self._seen = len(self.store.logged)
        for commit in batch:
            assert commit.done
            if commit.future is not None and not commit.future.done():
                commit.future.set_result(None)

    def _look_around(self) -> None:
        foreign = {logged.row.stream for logged in self.store.logged[self._seen :] if logged.node is not self}
        self._seen = len(self.store.logged)
        if foreign:
            self._epoch += 1
            self._foreign.append((self._epoch, foreign))
            asyncio.get_running_loop().call_soon(self.on_foreign, foreign, self._epoch)

    def _commit(self, commit: Commit) -> None:
        store = self.store
        if any(a.error is not None for a in commit.after) or self._is_outdated(commit):
            commit.error = Redo()
        elif commit.key is not None and commit.key.id in store.keys:
            commit.error = KeyKnown()
        elif not self._follows(commit.rows):
            commit.error = Redo()
        else:
            try:
                store.book.apply([entry for _, group in commit.entries for entry in group])
            except LedgerError as refusal:
                commit.error = refusal
                if commit.key is not None:
                    key = refused(commit.key, refusal)
                    store.keys[key.id] = Remembered(key.digest, key.status, key.answer, None, 0)
                return
            self._write(commit)

    def _is_outdated(self, commit: Commit) -> bool:
        return any(
            epoch > commit.epoch and not streams.isdisjoint(commit.reads) for epoch, streams in self._foreign
        )

    def _follows(self, rows: Sequence[Row]) -> bool:
        ends: dict[str, int] = {}
        for row in rows:
            if row.version != ends.get(row.stream, self.store.versions.get(row.stream, 0)) + 1:
                return False
            ends[row.stream] = row.version
        return True

    def _write(self, commit: Commit) -> None:
        store = self.store
        commit.position = len(store.logged)
        store.logged += [Logged(row, self) for row in commit.rows]
        store.versions.update((row.stream, row.version) for row in commit.rows)
        store.states.update((f"{state.kind}/{state.id}", state) for state in commit.states)
        if (key := commit.key) is not None:
            position = commit.position if commit.rows else None
            store.keys[key.id] = Remembered(key.digest, key.status, key.answer, position, len(commit.rows))
