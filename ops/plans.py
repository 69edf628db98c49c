"""Plans: what a batch comes to when it is computed on a head, and the parameters that write it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from struct import Struct
from typing import Any

from domain.book import Account, HoldState, Move
from domain.errors import LedgerError
from domain.ledger import Commit, Row, State
from domain.log.hashes import complete_root
from domain.log.tree import Growth
from ops import arrays
from ops.statements import HeadMode, Parts, commit_statement
from ops.wire import Parameter

COPY_EVENTS_MIN = 257
COPY_CHUNK_ROWS = 128


class Plan:
    """A batch computed on a head: rows for every table.

    `todo` are the commands it was asked for; `commits` those that will be written, in order.
    """

    def __init__(self, todo: Sequence[Commit], base: int, base_root: bytes) -> None:
        self.todo = todo
        self.base = base
        self.base_root = base_root
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

    @property
    def is_bulk(self) -> bool:
        """Say whether the records go in by COPY."""
        return len(self.rows) >= COPY_EVENTS_MIN

    @property
    def mode(self) -> HeadMode | None:
        """Say how the head is treated; None means that there is nothing to write or to look at."""
        if self.rows:
            return HeadMode.DONE if self.is_bulk else HeadMode.SET
        if not (self.commits or self.refusals):
            return None
        return HeadMode.KEEP if any(commit.key for commit in self.commits) else HeadMode.LOOK

    @cached_property
    def states(self) -> list[State]:
        """Give the state of each changed aggregate as the whole batch leaves it."""
        return list({(s.kind, s.id): s for c in self.commits for s in c.states}.values())

    def statement(self, mode: HeadMode) -> tuple[bytes, list[Parameter]]:
        """Give the statement that writes the plan, with its parameters."""
        events = bool(self.rows) and mode is HeadMode.SET
        tiles = self.growth.full_tiles if self.growth is not None else []
        keyed = any(c.key is not None for c in self.commits)
        states = self.states if mode is not HeadMode.DONE else [s for s in self.states if not _is_plain(s)]
        params: list[Parameter] = self._head_params(mode)
        if events:
            params += _event_params(self)
        if self.rows:
            params += [self.root, self.signature]
        if tiles:
            params += [
                arrays.int2([t.level for t in tiles]),
                arrays.int8([t.index for t in tiles]),
                arrays.bytea([t.hashes for t in tiles]),
                arrays.fixed_bytea([complete_root(t.hashes) for t in tiles], 32),
            ]
        if keyed:
            params += _key_params(self)
        if self.postings:
            params += money_params(self)
        if states:
            params += state_params(states)
        parts = Parts(mode, events, bool(self.rows), bool(tiles), keyed, bool(self.postings), bool(states))
        return commit_statement(parts), params

    def _head_params(self, mode: HeadMode) -> list[Parameter]:
        if mode in (HeadMode.KEEP, HeadMode.LOOK):
            return [self.base, self.base_root]
        assert self.growth is not None
        size = self.growth.tree.size
        return [size] if mode is HeadMode.DONE else [size, self.root, self.base, self.base_root]


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
_ROW_HEAD = Struct(
    "!hiqiqi"
).pack  # seven fields; position and version, eight bytes each; length of the stream
_ADDRESS_HEAD = _FIELD(64)
_STATE_HEAD = Struct("!hi").pack
_VERSION_AND_ADDRESS = Struct("!iqi").pack
_JSONB_HEAD = Struct("!iB").pack
_COPY_HEAD = b"PGCOPY\n\xff\r\n\0" + _FIELD(0) + _FIELD(0)
_COPY_END = b"\xff\xff"


def event_chunks(plan: Plan) -> Iterator[bytes]:
    """Write the records of a bulk batch as one binary COPY stream, in pieces, each read while the next is packed.

    Source: PostgreSQL documentation, COPY, binary format.
    """
    yield _COPY_HEAD
    for start in range(0, len(plan.rows), COPY_CHUNK_ROWS):
        rows = plan.rows[start : start + COPY_CHUNK_ROWS]
        yield b"".join([part for n, row in enumerate(rows, plan.base + start) for part in _copy_row(n, row)])
    yield _COPY_END


def state_chunks(plan: Plan) -> Iterator[bytes]:
    """Write the states of a bulk batch that can be copied in the same way; nothing where there are none."""
    states = [state for state in plan.states if _is_plain(state)]
    if not states:
        return
    yield _COPY_HEAD
    for start in range(0, len(states), COPY_CHUNK_ROWS):
        yield b"".join([part for s in states[start : start + COPY_CHUNK_ROWS] for part in _copy_state(s)])
    yield _COPY_END


def _is_plain(state: State) -> bool:
    """Say whether a state is the first of its stream and needs only the columns that are copied."""
    return state.version == 1 and state.deadline is None and state.parties is None and state.search is None


def _copy_row(position: int, row: Row) -> tuple[bytes, ...]:
    stream, topic, tenant = row.stream.encode(), row.type.encode(), row.tenant.encode()
    return (
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


def _copy_state(state: State) -> tuple[bytes, ...]:
    kind, name, tenant = state.kind.encode(), state.id.encode(), state.tenant.encode()
    status, owner = state.status.encode(), None if state.owner is None else state.owner.encode()
    return (
        _STATE_HEAD(8, len(kind)),
        kind,
        _FIELD(len(name)),
        name,
        _VERSION_AND_ADDRESS(8, state.version, 64),
        state.address,
        _FIELD(len(tenant)),
        tenant,
        _FIELD(-1 if owner is None else len(owner)),
        owner or b"",
        _FIELD(len(status)),
        status,
        # The first byte is the version of the binary form of jsonb.
        _JSONB_HEAD(1 + len(state.state), 1),
        state.state,
    )
