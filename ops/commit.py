"""Group commit: many commands, one transaction, one outcome each.

The committer is the only writer of this process. It keeps the right edge of the tree and the balances it has read in
memory; both are true as long as the head row says what it said before, and every commit compares and sets that row.
If another process wrote in between, nothing was written here, and everything is read again.

The states of the world, in order (a crash test stops at each):

    1  a batch was taken from the queue; nothing is written
    2  its outcome is computed and the new head signed, in memory only
    3  the database has executed it and not committed (bulk batches and contended heads)
    4  it is committed; no caller knows
    5  the callers were told

A crash before 4 leaves no trace. From 4 on the log holds the batch, and a caller who asks again under the same key
hears the answer of the first time. Start-up reads the head as every reload does: recovery is the normal path.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
from psycopg.rows import tuple_row

from domain.book import Account, Book, HoldState, names_of
from domain.errors import LedgerError, LogDamagedError, UnavailableError
from domain.ledger import Commit, KeyKnown, Redo, refused
from domain.log.hashes import leaf_hash
from domain.log.tiles import level_count, partial_width
from domain.log.tree import Tree
from ops import arrays, statements
from ops.plans import COPY_EVENTS_MIN, Plan, event_chunks, state_chunks
from ops.statements import HeadMode
from ops.wire import Wire

LOCKED_BATCHES = 64
REPEATS_BATCHES = 16
BOOK_NAMES_MAX = 200_000
RETRIES_MAX = 6
FOREIGN_KEPT_MAX = 256


class HeadMoved(Exception):
    """Another process has written since the head was read."""


class Committer:
    """Writes batches. Used by one thread.

    connect opens a writer connection; sign makes the log's signature over (size, root); on_foreign hears the streams
    another process wrote (None: too many) and the new epoch; observe is called at each state of the world.
    """

    def __init__(
        self,
        connect: Callable[[], psycopg.Connection[Any]],
        sign: Callable[[int, bytes], bytes],
        on_foreign: Callable[[set[str] | None, int], None],
        observe: Callable[[int], None] | None = None,
    ) -> None:
        self._connect = connect
        self._sign = sign
        self._on_foreign = on_foreign
        self.observe = observe or (lambda _: None)
        self._conn: psycopg.Connection[Any] | None = None
        self._cursor: psycopg.Cursor[Any] | None = None
        self._tree: Tree | None = None
        self._root = b""
        self._seen_size: int | None = None
        self._book = Book()
        # Names that were looked for and do not exist; an `open` or a `hold` puts them into the book.
        self._absent: set[str] = set()
        self._flight: Plan | None = None
        self._doubt: Plan | None = None
        self._wire: Wire | None = None
        self._locked_batches = 0
        self._repeats_batches = 0
        self._epoch = 0
        self._foreign: deque[tuple[int, set[str] | None]] = deque(maxlen=FOREIGN_KEPT_MAX)
        self.heads_lost = 0

    # ------------------------------------------------------------------ batches, one after the other

    @property
    def in_flight(self) -> bool:
        """Say whether a batch is with the database and its outcome not fetched."""
        return self._flight is not None

    def advance(self, batch: Sequence[Commit]) -> Sequence[Commit]:
        """Compute a batch while the one before it is being written, then send it; without a batch, bring one home.

        Gives the commands whose outcome is known now: each has a position or an error.
        """
        known: list[Commit] = []
        plan = self._prepare(batch) if batch else None
        if self._flight is not None:
            flight, self._flight = self._flight, None
            if not self._land(flight):
                plan = None  # it was computed on what did not come true
            known += flight.todo
        if plan is not None and self._launch(plan):
            self._flight = plan
        elif batch:
            self.commit(batch)
            known += batch
        return known

    def wait(self, seconds: float) -> None:
        """Wait until the batch in flight has an outcome, at most so long."""
        if self._wire is not None:
            self._wire.wait(seconds)

    def _prepare(self, batch: Sequence[Commit]) -> Plan | None:
        """Compute a batch ahead, if it needs nothing read and is an ordinary one; otherwise it has to wait."""
        if self._tree is None or self._wire is None or self._locked_batches or self._repeats_batches:
            return None
        if self._is_book_full():
            return None
        if sum(len(commit.rows) for commit in batch) >= COPY_EVENTS_MIN or self._unread(batch) != ([], []):
            return None
        self.observe(1)
        try:
            return self._plan(batch)
        except Exception:
            # A fault of ours must not reach the batch in flight: this one meets it again when it is alone.
            self._drop_memory()
            return None

    def _launch(self, plan: Plan) -> bool:
        mode = plan.mode
        if mode is None or self._wire is None:
            return False
        try:
            self._wire.send(*plan.statement(mode))
        except (psycopg.OperationalError, psycopg.InterfaceError):
            self._doubt_about(plan)
            return False
        return True

    def _land(self, flight: Plan) -> bool:
        """Bring a batch home. Where anything went wrong it is committed again from the start.

        Gives whether what was computed on top of it still stands.
        """
        try:
            assert self._wire is not None
            if self._wire.receive():
                self.observe(4)
                return self._accept(flight)
        except (psycopg.OperationalError, psycopg.InterfaceError):
            self._doubt_about(flight)
        except psycopg.DatabaseError:
            pass  # the batch is sorted out below, by the same path as any other
        self._drop_memory()
        self.commit(flight.todo)
        return False

    # ------------------------------------------------------------------ one batch at a time

    def commit(self, batch: Sequence[Commit]) -> None:
        """Commit a batch and wait for it; afterwards each command has a position or an error."""
        self.observe(1)
        todo = [c for c in batch if not c.done]
        if self._repeats_batches:
            self._repeats_batches -= 1
            todo = self._without_known(todo)
        try:
            self._try_again(todo)
        finally:
            self._doubt = None

    def _try_again(self, todo: list[Commit]) -> None:
        """Commit what is left of a batch, until nothing is."""
        for attempt in range(RETRIES_MAX):
            try:
                if self._doubt is None or not self._settle(self._doubt):
                    self._commit_once(todo)
                return
            except HeadMoved:
                self.heads_lost += 1
                self._locked_batches = LOCKED_BATCHES
            except psycopg.errors.UniqueViolation:
                self._sort_out(todo)
            except (psycopg.OperationalError, psycopg.InterfaceError) as outage:
                self._drop_connection()
                if attempt == RETRIES_MAX - 1:
                    raise UnavailableError("the log cannot be written now", internal=str(outage)) from outage
                time.sleep(0.05 * 2**attempt)
            except psycopg.DatabaseError:
                if len(todo) == 1:
                    raise
                self._one_by_one(todo)
                return
            todo = [c for c in todo if c.error is None]
        raise UnavailableError("the log is too busy")

    def _one_by_one(self, todo: list[Commit]) -> None:
        """Find the command the database itself refuses, so that its neighbours are not refused with it."""
        for commit in todo:
            try:
                self.commit([commit])
            except psycopg.DatabaseError as refusal:
                commit.error = refusal

    def _commit_once(self, todo: list[Commit]) -> None:
        plan: Plan | None = None
        try:
            cursor = self._open()
            if self._locked_batches:
                # Another process is writing too: take the head first, then compute.
                self._locked_batches -= 1
                with cursor.connection.transaction():
                    self._read_head(cursor, statements.LOCK_HEAD)
                    self._load_book(cursor, todo)
                    plan = self._plan(todo)
                    self._write(cursor, plan, locked=True)
                    self.observe(3)
            else:
                if self._tree is None:
                    self._read_head(cursor, statements.READ_HEAD)
                self._load_book(cursor, todo)
                plan = self._plan(todo)
                self._write(cursor, plan, locked=False)
        except (psycopg.OperationalError, psycopg.InterfaceError):
            if plan is not None:
                self._doubt_about(plan)
            raise
        except BaseException:
            # The book in memory holds what this batch did to it, and nothing of that was written.
            self._drop_memory()
            raise
        self.observe(4)
        self._accept(plan)

    def _accept(self, plan: Plan) -> bool:
        """Tell each command what came of it; the plan has been written."""
        position = plan.base
        for commit in plan.commits:
            commit.position = position
            position += len(commit.rows)
            commit.after = ()
        for commit, refusal in plan.refusals.items():
            commit.error = refusal
        if plan.growth is not None:
            self._seen_size = plan.growth.tree.size
        from_library = {
            row.stream for commit in plan.commits if commit.waiter is not None for row in commit.rows
        }
        if from_library:
            self._note_foreign(from_library)
        return True

    # ------------------------------------------------------------------ outcome of each command

    def _plan(self, todo: Sequence[Commit]) -> Plan:
        """Compute a batch on the head in memory, and move that head on: what follows is computed on top of it."""
        assert self._tree is not None
        plan = Plan(todo, self._tree.size, self._root)
        pending = self._flight.refusals if self._flight is not None else {}
        position = plan.base
        for commit in self._admit(todo):
            if any(a.error is not None or a in plan.refusals or a in pending for a in commit.after):
                commit.error = Redo()
            elif not commit.entries or self._apply(commit, position, plan):
                plan.commits.append(commit)
                plan.rows.extend(commit.rows)
                position += len(commit.rows)
        if plan.rows:
            plan.growth = self._tree.extend([row.leaf for row in plan.rows])
            plan.root = plan.growth.tree.root()
            plan.signature = self._sign(plan.growth.tree.size, plan.root)
            self._tree, self._root = plan.growth.tree, plan.root
        self.observe(2)
        return plan

    def _admit(self, todo: Sequence[Commit]) -> list[Commit]:
        """Refuse what lost its race inside the batch: first come, first served."""
        versions: set[tuple[str, int]] = set()
        keys: set[bytes] = set()
        from_library: set[str] = set()
        kept = []
        for commit in todo:
            claims = [(row.stream, row.version) for row in commit.rows]
            on_sand = any(a.error is not None for a in commit.after) or not from_library.isdisjoint(
                commit.reads
            )
            taken = not versions.isdisjoint(claims) or len(set(claims)) < len(claims)
            asked = commit.key is not None and commit.key.id in keys
            if on_sand or taken or asked or self._outdated(commit):
                commit.error = Redo()
            else:
                versions.update(claims)
                if commit.key is not None:
                    keys.add(commit.key.id)
                if commit.waiter is not None:
                    from_library.update(row.stream for row in commit.rows)
                kept.append(commit)
        return kept

    def _outdated(self, commit: Commit) -> bool:
        """Say whether another process wrote what this decision read, after it was read."""
        if commit.epoch >= self._epoch or not commit.reads:
            return False
        for epoch, streams in self._foreign:
            if epoch > commit.epoch and (streams is None or not streams.isdisjoint(commit.reads)):
                return True
        return len(self._foreign) == FOREIGN_KEPT_MAX and commit.epoch < self._foreign[0][0] - 1

    def _apply(self, commit: Commit, position: int, plan: Plan) -> bool:
        """Put a command's entries into the book; a refused one leaves only its remembered refusal."""
        entries = [entry for _, group in commit.entries for entry in group]
        at = [position + row for row, group in commit.entries for _ in group]
        try:
            moves = self._book.apply(entries)
        except LedgerError as refusal:
            plan.refusals[commit] = refusal
            if commit.key is not None:
                plan.commits.append(Commit(key=refused(commit.key, refusal)))
            return False
        legs: dict[int, int] = {}
        for where, group in zip(at, moves, strict=True):
            for move in group:
                leg = legs.get(where, 0)
                legs[where] = leg + 1
                plan.postings.append((where, leg, move))
                plan.accounts[move.account] = self._book.accounts[move.account]
                if move.hold is not None:
                    plan.holds[move.hold] = self._book.holds[move.hold]
        return True

    def _sort_out(self, todo: list[Commit]) -> None:
        """After a unique violation: find the commands whose version or key is taken."""
        self._drop_memory()
        cursor = self._open()
        flat = [(c, row) for c in todo for row in c.rows]
        names = arrays.text([row.stream for _, row in flat]), arrays.int8([row.version for _, row in flat])
        for (n,) in cursor.execute(statements.TAKEN_VERSIONS, names).fetchall():
            flat[n][0].error = Redo()
        self._without_known(todo)
        if any(isinstance(c.error, KeyKnown) for c in todo):
            self._repeats_batches = REPEATS_BATCHES

    def _without_known(self, todo: list[Commit]) -> list[Commit]:
        """Answer the commands whose key is in the log; give the others.

        Repeats come in storms: after a first one keys are looked up ahead for a while, since a batch that runs into
        a known key has to be computed again, with everything that was decided on top of it.
        """
        keyed = {c.key.id: c for c in todo if c.key is not None}
        if keyed:
            ids = (arrays.fixed_bytea(list(keyed), 32),)
            try:
                for (key_id,) in self._open().execute(statements.TAKEN_KEYS, ids).fetchall():
                    keyed[bytes(key_id)].error = KeyKnown()
            except (psycopg.OperationalError, psycopg.InterfaceError):
                self._drop_connection()  # only a look ahead: the commit finds the outage, and the keys, again
        return [c for c in todo if c.error is None]

    # ------------------------------------------------------------------ writing

    def _write(self, cursor: psycopg.Cursor[Any], plan: Plan, *, locked: bool) -> None:
        if plan.mode is None:
            return
        if not plan.is_bulk:
            self._run(plan, plan.mode)
        elif locked:
            self._write_bulk(cursor, plan)
        else:
            with cursor.connection.transaction():
                self._write_bulk(cursor, plan)
                self.observe(3)

    def _write_bulk(self, cursor: psycopg.Cursor[Any], plan: Plan) -> None:
        assert plan.growth is not None
        size = plan.growth.tree.size
        cursor.execute(statements.SET_HEAD, (size, plan.root, plan.base, plan.base_root))
        if cursor.rowcount != 1:
            raise HeadMoved
        for statement, chunks in (
            (statements.COPY_EVENTS, event_chunks(plan)),
            (statements.COPY_STATES, state_chunks(plan)),
        ):
            first = next(chunks, None)
            if first is not None:
                with cursor.copy(statement) as copy:
                    copy.write(first)
                    for chunk in chunks:
                        copy.write(chunk)
        self._run(plan, HeadMode.DONE)

    def _run(self, plan: Plan, mode: HeadMode) -> None:
        assert self._wire is not None
        if not self._wire.run(*plan.statement(mode)):
            raise HeadMoved

    # ------------------------------------------------------------------ reading what commits depend on

    def _read_head(self, cursor: psycopg.Cursor[Any], statement: bytes) -> None:
        row = cursor.execute(statement).fetchone()
        assert row is not None, "the migrations write the head row"
        size, root = row[0], bytes(row[1])
        if self._tree is not None and (size, root) == (self._tree.size, self._root):
            return
        self._drop_memory()
        self._tree, self._root = load_tree(cursor, size, root), root
        if self._seen_size is not None and size > self._seen_size:
            self._tell_foreign(cursor, self._seen_size, size)
        self._seen_size = size

    def _tell_foreign(self, cursor: psycopg.Cursor[Any], start: int, end: int) -> None:
        rows = cursor.execute(statements.FOREIGN_STREAMS, (start, end)).fetchall()
        self._note_foreign({row[0] for row in rows} if len(rows) <= 5000 else None)

    def _note_foreign(self, streams: set[str] | None) -> None:
        """Remember streams that were written past the gate, and tell it."""
        self._epoch += 1
        self._foreign.append((self._epoch, streams))
        self._on_foreign(streams, self._epoch)

    def watch(self) -> int:
        """Look whether another process wrote; give the size of the log. Called when the log is idle."""
        cursor = self._open()
        self._read_head(cursor, statements.READ_HEAD)
        assert self._tree is not None
        return self._tree.size

    def _unread(self, commits: Sequence[Commit]) -> tuple[list[str], list[str]]:
        """Name the accounts and holds these commands touch that are not in memory."""
        accounts, holds = names_of(e for c in commits for _, group in c.entries for e in group)
        book = self._book
        accounts.update(book.holds[h].account for h in holds if h in book.holds)
        return (
            [a for a in accounts if a not in book.accounts and a not in self._absent],
            [h for h in holds if h not in book.holds and h not in self._absent],
        )

    def _is_book_full(self) -> bool:
        return len(self._book.accounts) + len(self._book.holds) + len(self._absent) > BOOK_NAMES_MAX

    def _load_book(self, cursor: psycopg.Cursor[Any], commits: Sequence[Commit]) -> None:
        if self._is_book_full():
            self._book, self._absent = Book(), set()
        _, holds = self._unread(commits)
        if holds:
            params = (arrays.text(holds),)
            for hold, account, amount, currency, status in cursor.execute(statements.LOAD_HOLDS, params):
                self._book.holds[hold] = HoldState(account, int(amount), currency, status)
        accounts, _ = self._unread(commits)
        if accounts:
            params = (arrays.text(accounts),)
            for name, currency, side, overdraft, balance, held in cursor.execute(
                statements.LOAD_ACCOUNTS, params
            ):
                self._book.accounts[name] = Account(currency, side, overdraft, int(balance), int(held))
        self._absent.update([*accounts, *holds])

    # ------------------------------------------------------------------ connection

    def _open(self) -> psycopg.Cursor[Any]:
        if self._conn is None or self._conn.closed or self._cursor is None:
            self._conn = self._connect()
            # psycopg answers a rollback with DEALLOCATE ALL if it has prepared anything; the wire's would go with it.
            self._conn.prepare_threshold = None
            arrays.register(self._conn)
            self._wire = Wire(self._conn)
            self._cursor = self._conn.cursor(binary=True, row_factory=tuple_row)
        return self._cursor

    def _drop_connection(self) -> None:
        self._drop_memory()
        conn, self._conn, self._cursor, self._wire = self._conn, None, None, None
        if conn is not None:
            conn.close()

    def _drop_memory(self) -> None:
        self._tree = None
        self._book = Book()
        self._absent = set()

    def _doubt_about(self, plan: Plan) -> None:
        """Mark a batch whose connection was lost while it was written; the log itself is asked before anything else."""
        self._drop_connection()
        self._doubt = plan

    def _settle(self, plan: Plan) -> bool:
        """Find out about a batch in doubt; if the log has it, its commands are told so."""
        is_committed = self._was_committed(plan)
        self._doubt = None
        if is_committed:
            self.observe(4)
            self._accept(plan)
        return is_committed

    def _was_committed(self, plan: Plan) -> bool:
        """Ask the log whether it has a batch."""
        cursor = self._open()
        with cursor.connection.transaction():
            # The row lock waits until a backend that is still at work on the batch has finished.
            cursor.execute(statements.LOCK_HEAD)
            if plan.growth is not None:
                size = plan.growth.tree.size
                return cursor.execute(statements.WAS_COMMITTED, (size, plan.root)).fetchone() is not None
            ids = [c.key.id for c in plan.commits if c.key is not None]
            found = cursor.execute(statements.TAKEN_KEYS, (arrays.fixed_bytea(ids, 32),)).fetchall()
            return bool(ids) and len(found) == len(ids)

    def close(self) -> None:
        """Give the connection back."""
        self._drop_connection()


def load_tree(cursor: psycopg.Cursor[Any], size: int, root: bytes) -> Tree:
    """Read the right edge of the tree: the records of the last partial tile, and roots of full tiles above.

    Cost:   at most 255 records and 255 hashes per level.
    Errors: log_damaged.
    """
    edge: list[bytes] = []
    for level in range(level_count(size)):
        width = partial_width(level, size)
        end = size >> (8 * level)
        if level == 0:
            rows = cursor.execute(statements.EDGE_RECORDS, (end - width, end)).fetchall()
            edge.append(b"".join(leaf_hash(bytes(r)) for (r,) in rows))
        else:
            rows = cursor.execute(statements.EDGE_ROOTS, (level - 1, end - width, end)).fetchall()
            edge.append(b"".join(bytes(r) for (r,) in rows))
    tree = Tree.from_edge(size, edge)
    if tree.root() != root:
        raise LogDamagedError("the last records do not lead to the head's root", size=size)
    return tree
