"""Dead letters: messages that could not be taken in, and records that could not be projected, kept in PostgreSQL.

A letter is known by where it lay and what it said, so that adding it again only counts the attempt. It is open until
somebody has it taken in again (requeued) or gives it up (discarded); neither is ever undone.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from hashlib import sha256
from typing import Any, Literal, NamedTuple

import msgspec
from psycopg.rows import tuple_row
from psycopg_pool import AsyncConnectionPool

from domain.errors import DeadLetterClosedError, DeadLetterNotFoundError
from ops import telemetry
from ops.postgres import reading

PAYLOAD_BYTES_MAX = 65_536
KEY_BYTES_MAX = 1_024
HEADERS_MAX = 64
TEXT_MAX = 1_000

Kind = Literal["message", "projection"]
LetterState = Literal["open", "requeued", "discarded"]


class Letter(NamedTuple):
    """A message or record that could not be taken, and why.

    A record that could not be projected has its follower as topic, partition 0 and its position as offset.
    """

    kind: Kind
    source: str
    topic: str
    partition: int
    offset: int
    payload: bytes | None
    code: str
    detail: str
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes | None]] = ()


class DeadLetter(msgspec.Struct, frozen=True):
    """A letter as it is kept.

    Units: payload is cut at 65,536 bytes; payload_bytes counts what there was, None for no value at all.
    """

    id: int
    kind: str
    source: str
    topic: str
    partition: int
    offset: int
    key: bytes | None
    headers: list[tuple[str, str | None]]
    payload: bytes | None
    payload_bytes: int | None
    code: str
    detail: str
    attempts: int
    first_seen_at: datetime
    last_seen_at: datetime
    state: str
    closed_by: str | None
    note: str | None

    @property
    def is_whole(self) -> bool:
        """Say whether the payload was kept to its last byte."""
        return self.payload is None or len(self.payload) == self.payload_bytes


_COLUMNS = (
    'id, kind, source, topic, partition, "offset", key, headers::text, payload, payload_bytes, code, detail, attempts,'
    " first_seen_at, last_seen_at, state, closed_by, note"
)
_ADD = (
    'INSERT INTO dead_letters (kind, source, topic, partition, "offset", digest, key, headers, payload, payload_bytes,'
    " code, detail) SELECT k, s, t, p, o, d, y, h::jsonb, l, b, c, w FROM unnest(%s::text[], %s::text[], %s::text[],"
    " %s::int[], %s::bigint[], %s::bytea[], %s::bytea[], %s::text[], %s::bytea[], %s::bigint[], %s::text[],"
    " %s::text[]) AS u(k, s, t, p, o, d, y, h, l, b, c, w)"
    " ON CONFLICT ON CONSTRAINT dead_letters_place DO UPDATE SET attempts = dead_letters.attempts + 1,"
    " last_seen_at = clock_timestamp(),"
    " code = CASE dead_letters.state WHEN 'open' THEN excluded.code ELSE dead_letters.code END,"
    " detail = CASE dead_letters.state WHEN 'open' THEN excluded.detail ELSE dead_letters.detail END"
)


class DeadLetters:
    """The letters of one database, through a pool."""

    def __init__(self, pool: AsyncConnectionPool[Any]) -> None:
        self._pool = pool

    async def add(self, letters: Sequence[Letter]) -> None:
        """Keep letters; one that is kept already counts an attempt and takes on the reason of now.

        Errors: unavailable.
        """
        distinct = {(one.topic, one.partition, one.offset, _digest(one)): one for one in letters}
        if not distinct:
            return
        rows = [_row(letter) for letter in distinct.values()]
        await self._all(_ADD, *(list(column) for column in zip(*rows, strict=True)))
        for letter in distinct.values():
            telemetry.DEAD_LETTERS.labels(letter.source, letter.code).inc()

    async def list(
        self,
        *,
        state: LetterState | None = "open",
        source: str | None = None,
        code: str | None = None,
        before: int | None = None,
        limit: int = 100,
    ) -> list[DeadLetter]:
        """List letters, the latest first, before an id.

        Errors: unavailable.
        """
        rows = await self._all(
            f"SELECT {_COLUMNS} FROM dead_letters WHERE (%s::text IS NULL OR state = %s)"
            " AND (%s::text IS NULL OR source = %s) AND (%s::text IS NULL OR code = %s) AND id < %s"
            " ORDER BY id DESC LIMIT %s",
            state, state, source, source, code, code, 2**62 if before is None else before, limit,
        )  # fmt: skip
        return [_letter(row) for row in rows]

    async def get(self, letter_id: int) -> DeadLetter:
        """Read one letter.

        Errors: dead_letter_not_found, unavailable.
        """
        rows = await self._all(f"SELECT {_COLUMNS} FROM dead_letters WHERE id = %s", letter_id)
        if not rows:
            raise DeadLetterNotFoundError(id=letter_id)
        return _letter(rows[0])

    async def mark(self, letter_id: int, state: LetterState, by: str, note: str | None = None) -> DeadLetter:
        """Close an open letter for good.

        Errors: dead_letter_closed, dead_letter_not_found, unavailable.
        """
        rows = await self._all(
            "UPDATE dead_letters SET state = %s, closed_by = %s, note = %s, last_seen_at = clock_timestamp()"
            f" WHERE id = %s AND state = 'open' RETURNING {_COLUMNS}",
            state,
            by,
            None if note is None else _text(note),
            letter_id,
        )
        if not rows:
            found = await self.get(letter_id)
            raise DeadLetterClosedError(id=letter_id, state=found.state, closed_by=found.closed_by)
        return _letter(rows[0])

    async def failed_again(self, letter_id: int, code: str, detail: str) -> None:
        """Count an attempt that failed, with its reason.

        Errors: unavailable.
        """
        await self._all(
            "UPDATE dead_letters SET attempts = attempts + 1, last_seen_at = clock_timestamp(), code = %s, detail = %s"
            " WHERE id = %s AND state = 'open' RETURNING id",
            code,
            _text(detail),
            letter_id,
        )

    async def counts(self) -> dict[str, int]:
        """Count the letters by state.

        Errors: unavailable.
        """
        return dict(await self._all("SELECT state, count(*) FROM dead_letters GROUP BY state"))

    async def _all(self, statement: str, *params: Any) -> Sequence[Any]:
        async with reading(self._pool) as cursor:
            cursor.row_factory = tuple_row
            await cursor.execute(statement, params)
            return await cursor.fetchall() if cursor.description else []


def _row(letter: Letter) -> tuple[Any, ...]:
    payload = letter.payload
    return (
        letter.kind,
        letter.source,
        _text(letter.topic),
        letter.partition,
        letter.offset,
        _digest(letter),
        None if letter.key is None else letter.key[:KEY_BYTES_MAX],
        msgspec.json.encode(_headers(letter.headers)).decode(),
        None if payload is None else payload[:PAYLOAD_BYTES_MAX],
        None if payload is None else len(payload),
        letter.code,
        _text(letter.detail),
    )


def _digest(letter: Letter) -> bytes:
    key = letter.key or b""
    said = b"-" if letter.payload is None else b"+" + letter.payload
    return sha256(b"%d:%b%b" % (len(key), key, said)).digest()


def _headers(headers: Sequence[tuple[str, bytes | None]]) -> list[tuple[str, str | None]]:
    shown = headers[:HEADERS_MAX]
    return [
        (_text(name), None if value is None else _text(value.decode("utf-8", "replace")))
        for name, value in shown
    ]


def _text(text: str) -> str:
    """Make any text one that PostgreSQL keeps."""
    return text[:TEXT_MAX].replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def _letter(row: Sequence[Any]) -> DeadLetter:
    values = dict(zip(DeadLetter.__struct_fields__, row, strict=True))
    values["headers"] = msgspec.json.decode(values["headers"], type=list[tuple[str, str | None]])
    return DeadLetter(**values)
