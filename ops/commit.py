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
from struct import Struct
from typing import Any

import psycopg
from psycopg.rows import tuple_row

from domain.book import Account, Book, HoldState, Move, names_of
from domain.errors import LedgerError, LogDamagedError, UnavailableError
from domain.ledger import Commit, KeyKnown, Redo, Row, State, refused
from domain.log.hashes import complete_root, leaf_hash
from domain.log.tiles import level_count, partial_width
from domain.log.tree import Growth, Tree
from ops import arrays, statements
from ops.statements import HeadMode, Parts

COPY_EVENTS_MIN = 257
LOCKED_BATCHES = 64
BOOK_NAMES_MAX = 200_000
RETRIES_MAX = 6
FOREIGN_KEPT_MAX = 256


class HeadMoved(Exception):
    """Another process has written since the head was read."""


class Plan:
    """What a batch comes to when it is computed on a head: rows for every table."""

    def __init__(self, base: int) -> None:
        self.base = base
        self.commits: list[Commit] = []
        # Money refusals hold only if the batch they were computed in is the one that is written.
        self.refusals: dict[Commit, LedgerError] = {}
        self.rows: list[Row] = []
        self.growth: Growth | None = None
        self.root = b""
        self.signature = b""
        self.postings: list[tuple[int, int, Move]] = []
        self.accounts: dict[str, Account] = {}
        self.holds: dict[str, HoldState] = {}


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
        self._locked_batches = 0
        self._epoch = 0
        self._foreign: deque[tuple[int, set[str] | None]] = deque(maxlen=FOREIGN_KEPT_MAX)
        self.heads_lost = 0

    # ------------------------------------------------------------------ the batch

    def commit(self, batch: Sequence[Commit]) -> None:
        """Commit a batch; afterwards each command has a position or an error."""
        self.observe(1)
        todo = list(batch)
        for attempt in range(RETRIES_MAX):
            try:
                self._commit_once(todo)
                return
            except HeadMoved:
                self.heads_lost += 1
                self._locked_batches = LOCKED_BATCHES
            except psycopg.errors.UniqueViolation:
                self._drop_memory()
                self._sort_out(todo)
            except (psycopg.OperationalError, psycopg.InterfaceError) as outage:
                self._drop_connection()
                if attempt == RETRIES_MAX - 1:
                    raise UnavailableError("the log cannot be written now", internal=str(outage)) from outage
                time.sleep(0.05 * 2**attempt)
            except psycopg.DatabaseError:
                self._drop_memory()
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
                    plan = self._plan(cursor, todo)
                    self._write(cursor, plan, locked=True)
                    self.observe(3)
            else:
                if self._tree is None:
                    self._read_head(cursor, statements.READ_HEAD)
                plan = self._plan(cursor, todo)
                self._write(cursor, plan, locked=False)
        except (psycopg.OperationalError, psycopg.InterfaceError):
            self._drop_connection()
            if plan is None or not self._was_committed(plan):
                raise
        except BaseException:
            # The book in memory holds what this batch did to it, and nothing of that was written.
            self._drop_memory()
            raise
        self.observe(4)
        self._accept(plan)

    def _accept(self, plan: Plan) -> None:
        if plan.growth is not None:
            self._tree, self._root = plan.growth.tree, plan.root
            self._seen_size = plan.growth.tree.size
        position = plan.base
        for commit in plan.commits:
            commit.position = position
            position += len(commit.rows)
            commit.after = ()
        for commit, refusal in plan.refusals.items():
            commit.error = refusal
        from_library = {row.stream for commit in plan.commits if commit.waiter is not None for row in commit.rows}
        if from_library:
            self._note_foreign(from_library)
        if len(self._book.accounts) + len(self._book.holds) > BOOK_NAMES_MAX:
            self._book = Book()

    # ------------------------------------------------------------------ outcome of each command

    def _plan(self, cursor: psycopg.Cursor[Any], todo: list[Commit]) -> Plan:
        assert self._tree is not None
        kept = self._admit(todo)
        self._load_book(cursor, kept)
        plan = Plan(self._tree.size)
        position = plan.base
        for commit in kept:
            if any(a.error is not None or a in plan.refusals for a in commit.after):
                commit.error = Redo()
            elif commit.entries and not self._apply(commit, position, plan):
                pass
            else:
                plan.commits.append(commit)
                plan.rows.extend(commit.rows)
                position += len(commit.rows)
        if plan.rows:
            plan.growth = self._tree.extend([row.leaf for row in plan.rows])
            plan.root = plan.growth.tree.root()
            plan.signature = self._sign(plan.growth.tree.size, plan.root)
        self.observe(2)
        return plan

    def _admit(self, todo: list[Commit]) -> list[Commit]:
        """Refuse what lost its race inside the batch: first come, first served."""
        versions: set[tuple[str, int]] = set()
        keys: set[bytes] = set()
        from_library: set[str] = set()
        kept = []
        for commit in todo:
            claims = [(row.stream, row.version) for row in commit.rows]
            on_sand = any(a.error is not None for a in commit.after) or not from_library.isdisjoint(commit.reads)
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
        cursor = self._open()
        flat = [(c, row) for c in todo for row in c.rows]
        names = arrays.text([row.stream for _, row in flat]), arrays.int8([row.version for _, row in flat])
        for (n,) in cursor.execute(statements.TAKEN_VERSIONS, names, prepare=True).fetchall():
            flat[n][0].error = Redo()
        keyed = {c.key.id: c for c in todo if c.key is not None}
        ids = (arrays.fixed_bytea(list(keyed), 32),)
        for (key_id,) in cursor.execute(statements.TAKEN_KEYS, ids, prepare=True).fetchall():
            keyed[bytes(key_id)].error = KeyKnown()

    # ------------------------------------------------------------------ writing

    def _write(self, cursor: psycopg.Cursor[Any], plan: Plan, *, locked: bool) -> None:
        if not (plan.commits or plan.refusals):
            return
        if not plan.rows:
            keyed = any(commit.key for commit in plan.commits)
            self._write_statement(cursor, plan, HeadMode.KEEP if keyed else HeadMode.LOOK)
        elif len(plan.rows) < COPY_EVENTS_MIN:
            self._write_statement(cursor, plan, HeadMode.SET)
        elif locked:
            self._write_bulk(cursor, plan)
        else:
            with cursor.connection.transaction():
                self._write_bulk(cursor, plan)
                self.observe(3)

    def _write_bulk(self, cursor: psycopg.Cursor[Any], plan: Plan) -> None:
        assert plan.growth is not None
        size = plan.growth.tree.size
        cursor.execute(statements.SET_HEAD, (size, plan.root, plan.base, self._root), prepare=True)
        if cursor.rowcount != 1:
            raise HeadMoved
        with cursor.copy(statements.COPY_EVENTS) as copy:
            copy.write(_copy_rows(plan))
        self._write_statement(cursor, plan, HeadMode.DONE)

    def _write_statement(self, cursor: psycopg.Cursor[Any], plan: Plan, mode: HeadMode) -> None:
        events = bool(plan.rows) and mode is HeadMode.SET
        tiles = plan.growth.full_tiles if plan.growth is not None else []
        keyed = [c for c in plan.commits if c.key is not None]
        states = {(s.kind, s.id): s for c in plan.commits for s in c.states}
        parts = Parts(mode, events, bool(plan.rows), bool(tiles), bool(keyed), bool(plan.postings), bool(states))
        params = self._head_params(plan, mode)
        if events:
            params += _event_params(plan)
        if plan.rows:
            params += [plan.root, plan.signature]
        if tiles:
            params += [
                arrays.int2([t.level for t in tiles]),
                arrays.int8([t.index for t in tiles]),
                arrays.bytea([t.hashes for t in tiles]),
                arrays.fixed_bytea([complete_root(t.hashes) for t in tiles], 32),
            ]
        if keyed:
            params += _key_params(plan)
        if plan.postings:
            params += money_params(plan)
        if states:
            params += state_params(list(states.values()))
        if cursor.execute(statements.commit_statement(parts), params, prepare=True).fetchone() is None:
            raise HeadMoved

    def _head_params(self, plan: Plan, mode: HeadMode) -> list[Any]:
        if mode in (HeadMode.KEEP, HeadMode.LOOK):
            return [plan.base, self._root]
        assert plan.growth is not None
        size = plan.growth.tree.size
        return [size] if mode is HeadMode.DONE else [size, plan.root, plan.base, self._root]

    # ------------------------------------------------------------------ reading what commits depend on

    def _read_head(self, cursor: psycopg.Cursor[Any], statement: bytes) -> None:
        row = cursor.execute(statement, prepare=True).fetchone()
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
        rows = cursor.execute(statements.FOREIGN_STREAMS, (start, end), prepare=True).fetchall()
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

    def _load_book(self, cursor: psycopg.Cursor[Any], commits: Sequence[Commit]) -> None:
        accounts, holds = names_of(e for c in commits for _, group in c.entries for e in group)
        unknown = [h for h in holds if h not in self._book.holds]
        if unknown:
            params = (arrays.text(unknown),)
            for hold, account, amount, currency, status in cursor.execute(statements.LOAD_HOLDS, params, prepare=True):
                self._book.holds[hold] = HoldState(account, int(amount), currency, status)
                accounts.add(account)
        accounts.update(self._book.holds[h].account for h in holds if h in self._book.holds)
        unread = [a for a in accounts if a not in self._book.accounts]
        if unread:
            params = (arrays.text(unread),)
            rows = cursor.execute(statements.LOAD_ACCOUNTS, params, prepare=True)
            for name, currency, side, overdraft, balance, held in rows:
                self._book.accounts[name] = Account(currency, side, overdraft, int(balance), int(held))

    # ------------------------------------------------------------------ connection

    def _open(self) -> psycopg.Cursor[Any]:
        if self._conn is None or self._conn.closed or self._cursor is None:
            self._conn = self._connect()
            arrays.register(self._conn)
            self._cursor = self._conn.cursor(binary=True, row_factory=tuple_row)
        return self._cursor

    def _drop_connection(self) -> None:
        self._drop_memory()
        conn, self._conn, self._cursor = self._conn, None, None
        if conn is not None:
            conn.close()

    def _drop_memory(self) -> None:
        self._tree = None
        self._book = Book()

    def _was_committed(self, plan: Plan) -> bool:
        """Ask the log what became of a batch whose connection was lost while it was written."""
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
            rows = cursor.execute(statements.EDGE_RECORDS, (end - width, end), prepare=True).fetchall()
            edge.append(b"".join(leaf_hash(bytes(r)) for (r,) in rows))
        else:
            rows = cursor.execute(statements.EDGE_ROOTS, (level - 1, end - width, end), prepare=True).fetchall()
            edge.append(b"".join(bytes(r) for (r,) in rows))
    tree = Tree.from_edge(size, edge)
    if tree.root() != root:
        raise LogDamagedError("the last records do not lead to the head's root", size=size)
    return tree


# --------------------------------------------------------------------------- parameters


def _event_params(plan: Plan) -> list[Any]:
    rows = plan.rows
    return [
        plan.base,
        arrays.int8([r.version for r in rows]),
        arrays.text([r.stream for r in rows]),
        arrays.text([r.type for r in rows]),
        arrays.text([r.tenant for r in rows]),
        arrays.fixed_bytea([r.address for r in rows], 64),
        arrays.bytea([r.record for r in rows]),
    ]


def _key_params(plan: Plan) -> list[Any]:
    ids, digests, statuses, positions, counts, answers = [], [], [], [], [], []
    position = plan.base
    for commit in plan.commits:
        if commit.key is not None:
            ids.append(commit.key.id)
            digests.append(commit.key.digest)
            statuses.append(commit.key.status)
            positions.append(position if commit.rows else None)
            counts.append(len(commit.rows))
            answers.append(commit.key.answer)
        position += len(commit.rows)
    return [
        arrays.fixed_bytea(ids, 32),
        arrays.fixed_bytea(digests, 32),
        arrays.int2(statuses),
        arrays.nullable_int8(positions),
        arrays.int4(counts),
        arrays.bytea(answers),
    ]


def money_params(plan: Plan) -> list[Any]:
    """Pack postings, accounts and holds for the statement."""
    moves = [move for _, _, move in plan.postings]
    accounts, holds = plan.accounts, plan.holds
    return [
        arrays.text([m.account for m in moves]),
        arrays.int8([position for position, _, _ in plan.postings]),
        arrays.int4([leg for _, leg, _ in plan.postings]),
        arrays.text([str(m.amount_nano) for m in moves]),
        arrays.text([m.hold for m in moves]),
        arrays.text([str(m.balance_nano) for m in moves]),
        arrays.text([str(m.held_nano) for m in moves]),
        arrays.text(list(accounts)),
        arrays.text([a.currency for a in accounts.values()]),
        arrays.text([a.side for a in accounts.values()]),
        arrays.text(["t" if a.overdraft else "f" for a in accounts.values()]),
        arrays.text([str(a.balance_nano) for a in accounts.values()]),
        arrays.text([str(a.held_nano) for a in accounts.values()]),
        arrays.text(list(holds)),
        arrays.text([h.account for h in holds.values()]),
        arrays.text([h.currency for h in holds.values()]),
        arrays.text([str(h.amount_nano) for h in holds.values()]),
        arrays.text([h.status for h in holds.values()]),
    ]


def state_params(states: Sequence[State]) -> list[Any]:
    """Pack current states for the statement."""
    return [
        arrays.text([s.kind for s in states]),
        arrays.text([s.id for s in states]),
        arrays.int8([s.version for s in states]),
        arrays.fixed_bytea([s.address for s in states], 64),
        arrays.text([s.tenant for s in states]),
        arrays.text([s.owner for s in states]),
        arrays.text([s.status for s in states]),
        arrays.text([s.deadline for s in states]),
        arrays.text([None if s.parties is None else ",".join(s.parties) for s in states]),
        arrays.text_bytes([s.state for s in states]),
        arrays.text([s.search for s in states]),
    ]


_FIELD = Struct("!i").pack
_ROW_HEAD = Struct("!hiqiqi").pack  # seven fields; position and version, eight bytes each; length of the stream
_ADDRESS_HEAD = _FIELD(64)


def _copy_rows(plan: Plan) -> bytes:
    """Write the rows of a bulk batch as one binary COPY stream.

    Source: PostgreSQL documentation, COPY, binary format.
    """
    parts = [b"PGCOPY\n\xff\r\n\0", _FIELD(0), _FIELD(0)]
    for position, row in enumerate(plan.rows, plan.base):
        stream, topic, tenant = row.stream.encode(), row.type.encode(), row.tenant.encode()
        parts += (
            _ROW_HEAD(7, 8, position, 8, row.version, len(stream)),
            stream,
            _FIELD(len(topic)),
            topic,
            _FIELD(len(tenant)),
            tenant,
            _ADDRESS_HEAD,
            row.address,
            _FIELD(len(row.record)),
            row.record,
        )
    parts.append(b"\xff\xff")
    return b"".join(parts)
