"""Verifying a database: the independent audit over what lies in it, and the promises only a database can break.

The tables are read as the files of a public log and handed to the verifier, which shares no code with the writer. On
the way every row is held against the record it is about. Everything is read in one snapshot, so a log that grows
meanwhile is verified as it was at the beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha3_512
from typing import Any

import msgspec
import psycopg
from psycopg.rows import tuple_row

from domain.errors import KeyMalformedError, UnavailableError
from domain.log.audit import Report, audit
from domain.log.audit_findings import FINDINGS_MAX, Finding
from domain.log.hashes import complete_root, leaf_hash
from domain.log.notes import Checkpoint, VerifierKey, print_signature_line
from domain.log.tiles import ENTRIES, TILE_WIDTH, Tile, encode_bundle, parse_tile_path
from ops.postgres import connect_owner

# The promises of the tables themselves; those of the log are in domain/log/audit_findings.py.
DATABASE_CODES: dict[str, str] = {
    "address_altered": "the address column is the SHA3-512 of the record",
    "column_altered": "stream, version, type and tenant are those the record states",
    "head_mismatch": "the head is the latest checkpoint",
    "identity_mismatch": "the database belongs to the log of this key",
    "key_beyond": "a remembered key points into the log",
    "position_extra": "no record lies beyond the latest checkpoint",
    "position_gap": "positions are gap-free",
    "state_beyond": "current state follows from records of the log",
    "tile_extra": "there is no tile the tree does not have",
    "tile_root_altered": "the root column of a tile is the root of its hashes",
}

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class DatabaseReport:
    """What verifying a database found: the audit of the log, and the findings about its tables."""

    audit: Report
    findings: list[Finding]

    @property
    def ok(self) -> bool:
        """Say whether no promise is broken."""
        return self.audit.ok and not self.findings

    @property
    def all_findings(self) -> list[Finding]:
        """List every broken promise, those of the log first."""
        return [*self.audit.findings, *self.findings]


class _Columns(msgspec.Struct):
    stream: str
    version: int
    type: str
    tenant: str


_columns = msgspec.json.Decoder(_Columns)


def verify_database(
    url: str,
    vkey: str,
    *,
    since: Iterable[str] = (),
    policy: str | None = None,
    progress: Progress | None = None,
) -> DatabaseReport:
    """Verify the log in a database against the log's public key; nothing is changed.

    since are checkpoints kept outside: without one, a log cut off at its end together with its last checkpoints looks
    like a shorter log. policy is the text of a witness policy.
    Cost:   every record and tile is read once.
    Errors: malformed_key, unavailable.
    """
    try:
        with connect_owner(url) as conn, conn.transaction():
            conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            return verify_connection(conn, vkey, since=since, policy=policy, progress=progress)
    except psycopg.OperationalError as outage:
        raise UnavailableError("the database does not answer", internal=str(outage)) from outage


def verify_connection(
    conn: psycopg.Connection[Any],
    vkey: str,
    *,
    since: Iterable[str] = (),
    policy: str | None = None,
    progress: Progress | None = None,
) -> DatabaseReport:
    """Verify what a connection sees; its transaction decides what that is.

    Errors: malformed_key.
    """
    key = VerifierKey.parse(vkey)
    if not key.can_verify:
        raise KeyMalformedError("the log's key must be one that can be verified", key=vkey[:200])
    tables = _Tables(conn.cursor(binary=True, row_factory=tuple_row), key)
    report = audit(tables.read, vkey=vkey, since=since, policy=policy, progress=progress)
    tables.check_rest()
    return DatabaseReport(report, tables.findings)


class _Tables:
    """The tables in the shape of a public log, each row checked when it is read."""

    def __init__(self, cursor: psycopg.Cursor[Any], key: VerifierKey) -> None:
        self._cursor = cursor
        self._key = key
        self._bundles: set[int] = set()
        self.findings: list[Finding] = []
        row = self._one("SELECT size, root, signature FROM checkpoints ORDER BY size DESC LIMIT 1")
        self._latest = row
        self._size: int = row[0] if row else 0

    def _one(self, statement: str, *params: Any) -> Any:
        return self._cursor.execute(statement, params, prepare=True).fetchone()

    def _all(self, statement: str, *params: Any) -> list[Any]:
        return self._cursor.execute(statement, params, prepare=True).fetchall()

    def _find(self, code: str, message: str, **where: Any) -> None:
        assert code in DATABASE_CODES, code
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(Finding(code, message, **where))

    # ------------------------------------------------------------------ the public files

    def read(self, path: str) -> bytes | None:
        """Read one file of the public layout."""
        if path == "checkpoint":
            return self._cosigned(self._note(*self._latest)) if self._latest else None
        if path == "checkpoints":
            return b"".join(self._history())
        tile = parse_tile_path(path)
        if tile is None:
            return None
        return self._bundle(tile) if tile.level == ENTRIES else self._hashes(tile)

    def _note(self, size: int, root: bytes, signature: bytes) -> bytes:
        text = Checkpoint(self._key.name, size, bytes(root)).text
        return f"{text}\n{print_signature_line(self._key.name, self._key.key_id, bytes(signature))}".encode()

    def _cosigned(self, note: bytes) -> bytes:
        lines = self._all("SELECT line FROM cosignatures WHERE size = %s ORDER BY at, vkey", self._size)
        return note + b"".join(line.rstrip("\n").encode() + b"\n" for (line,) in lines)

    def _history(self) -> Iterator[bytes]:
        for size, root, signature in self._all("SELECT size, root, signature FROM checkpoints ORDER BY size"):
            note = self._note(size, root, signature).decode()
            yield msgspec.json.encode({"size": size, "note": note}) + b"\n"

    def _hashes(self, tile: Tile) -> bytes | None:
        """Read a hash tile: stored where it is full, else computed from what lies below, as it is served."""
        if tile.is_full:
            row = self._one(
                "SELECT hashes FROM tiles WHERE level = %s AND index = %s", tile.level, tile.index
            )
            return bytes(row[0]) if row else None
        first = tile.index * TILE_WIDTH
        end = first + tile.width
        if tile.level == 0:
            rows = self._all(
                "SELECT record FROM events WHERE position >= %s AND position < %s ORDER BY position",
                first,
                end,
            )
            hashes = [leaf_hash(bytes(record)) for (record,) in rows]
        else:
            rows = self._all(
                "SELECT root FROM tiles WHERE level = %s AND index >= %s AND index < %s ORDER BY index",
                tile.level - 1, first, end,
            )  # fmt: skip
            hashes = [bytes(root) for (root,) in rows]
        return b"".join(hashes)

    def _bundle(self, tile: Tile) -> bytes | None:
        first = tile.index * TILE_WIDTH
        rows = self._rows_of(first, first + tile.width)
        self._bundles.add(tile.index)
        self._check_rows(rows, first, first + tile.width)
        return encode_bundle([bytes(row[6]) for row in rows]) if rows else None

    def _rows_of(self, first: int, end: int) -> list[Any]:
        return self._all(
            "SELECT position, address, stream, version, type, tenant, record FROM events"
            " WHERE position >= %s AND position < %s ORDER BY position",
            first, end,
        )  # fmt: skip

    # ------------------------------------------------------------------ rows against their records

    def _check_rows(self, rows: list[Any], first: int, end: int) -> None:
        if len(rows) != end - first:
            there = {row[0] for row in rows}
            for position in range(first, end):
                if position not in there:
                    self._find(
                        "position_gap", f"there is no record at position {position}", position=position
                    )
        for row in rows:
            self._check_row(*row)

    def _check_row(
        self, position: int, address: bytes, stream: str, version: int, topic: str, tenant: str, record: bytes
    ) -> None:
        where = {"position": position, "stream": stream}
        if sha3_512(record).digest() != bytes(address):
            self._find(
                "address_altered", f"the address of record {position} is not that of its bytes", **where
            )
        try:
            stated = _columns.decode(record)
        except msgspec.DecodeError:
            self._find(
                "column_altered", f"record {position} states no stream, version, type and tenant", **where
            )
            return
        columns = _Columns(stream, version, topic, tenant)
        for name in _Columns.__struct_fields__:
            there, said = getattr(columns, name), getattr(stated, name)
            if there != said:
                message = f"{name} of record {position} is {there!r}; the record states {said!r}"
                self._find("column_altered", message, **where)

    # ------------------------------------------------------------------ what no file shows

    def check_rest(self) -> None:
        """Check what the public files do not show."""
        self._check_unread()
        self._check_head()
        self._check_tiles()
        self._check_identity()
        self._check_references()

    def _check_unread(self) -> None:
        """Check the rows the audit had no reason to read."""
        for index in range(-(-self._size // TILE_WIDTH)):
            if index not in self._bundles:
                first, end = index * TILE_WIDTH, min(self._size, (index + 1) * TILE_WIDTH)
                rows = self._rows_of(first, end)
                self._check_rows(rows, first, end)
                if not rows and not self._one("SELECT 1 FROM events WHERE position >= %s LIMIT 1", first):
                    break  # the checkpoint promises more than any record reaches; the gap is named
        statement = "SELECT position, stream FROM events WHERE position >= %s ORDER BY position LIMIT 1000"
        for position, stream in self._all(statement, self._size):
            message = f"record {position} lies beyond the latest checkpoint, which has {self._size} records"
            self._find("position_extra", message, position=position, stream=stream)

    def _check_head(self) -> None:
        head = self._one("SELECT size, root FROM log_head")
        latest = (self._size, bytes(self._latest[1])) if self._latest else None
        if head is None or (head[0], bytes(head[1])) != latest:
            shown = f"{head[0]} records" if head else "nothing"
            message = (
                f"the head says {shown}, the latest checkpoint {self._size} records, or the roots differ"
            )
            self._find("head_mismatch", message, position=head[0] if head else None)

    def _check_tiles(self) -> None:
        for level, index, hashes, root in self._cursor.stream(
            "SELECT level, index, hashes, root FROM tiles ORDER BY level, index"
        ):
            path = Tile(level, index).path
            if complete_root(bytes(hashes)) != bytes(root):
                self._find("tile_root_altered", f"the root of {path} is not that of its hashes", path=path)
            if (index + 1) * TILE_WIDTH > self._size >> (8 * level):
                self._find(
                    "tile_extra",
                    f"{path} is there, and the tree of {self._size} records has no such",
                    path=path,
                )

    def _check_identity(self) -> None:
        row = self._one("SELECT origin, vkey FROM log_identity")
        if row != (self._key.name, self._key.text):
            shown = row[0] if row else "no log"
            self._find(
                "identity_mismatch", f"the database says that it belongs to {shown!r}, or to another key"
            )

    def _check_references(self) -> None:
        """Check that keys and current states point into the log: a log cut off at its end leaves them dangling."""
        statement = (
            "SELECT encode(id, 'hex'), position FROM keys"
            " WHERE position + event_count > %s ORDER BY position LIMIT 100"
        )
        for name, position in self._all(statement, self._size):
            self._find(
                "key_beyond", f"the key {name} was answered by a record that is not there", position=position
            )
        statement = (
            "SELECT r.kind || '/' || r.id, r.version FROM records r LEFT JOIN events e"
            " ON e.stream = r.kind || '/' || r.id AND e.version = r.version AND e.address = r.address"
            " WHERE e.position IS NULL ORDER BY 1 LIMIT 100"
        )
        for stream, version in self._all(statement):
            message = f"{stream} stands at version {version}, which no record with that address led to"
            self._find("state_beyond", message, stream=stream)
