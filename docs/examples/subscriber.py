"""A subscriber that takes nothing on trust: it proves that it saw every record of the log, once, unchanged.

    python subscriber.py --brokers localhost:9092 --key "$(cat log.vkey)" --state seen.db

It needs confluent-kafka and cryptography, and nothing of the ledger's own code. What it checks, in this order:

    by message     SHA3-512 of the value is the message's id; a partition's sequence only grows
    by record      `previous` is the address of the stream's last record, and `version` the next one
    by checkpoint  the log's signature, and the RFC 6962 root over every record from the first one on

A record is taken in only together with the checkpoint that proves it. What was taken in, what waits, and the offsets
are one SQLite transaction, so killing this program at any moment loses and doubles nothing.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import sqlite3
import sys
import time
from collections.abc import Iterator
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

TOPIC = "marketplace.events"
CHECKPOINT = "soma.checkpoint"
READ_MAX = 2_000
# How far one partition may be read ahead of the others; more than one transaction of the relay.
AHEAD_MAX = 100_000
# How long a record may be missing before it is called a gap.
GAP_S = 30.0

TABLES = """
CREATE TABLE IF NOT EXISTS offsets (partition INTEGER PRIMARY KEY, next INTEGER NOT NULL, sequence INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS waiting (position INTEGER PRIMARY KEY, address TEXT NOT NULL, value BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS checkpoints (size INTEGER PRIMARY KEY, root BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS streams (stream TEXT PRIMARY KEY, version INTEGER NOT NULL, address TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS tree (width INTEGER NOT NULL, hash BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS taken (position INTEGER PRIMARY KEY, address TEXT NOT NULL, type TEXT NOT NULL);
"""


class NotTheLogError(Exception):
    """What came is not what the log says it holds."""


def expect(truth: bool, what: str) -> None:
    """Stop where a promise is broken."""
    if not truth:
        raise NotTheLogError(what)


# --------------------------------------------------------------------------- what is your own


def take(db: sqlite3.Connection, position: int, address: str, record: dict[str, Any]) -> None:
    """Do something with a record; write to `db`, and it happens exactly once."""
    db.execute("INSERT INTO taken VALUES (?, ?, ?)", (position, address, record["type"]))


# --------------------------------------------------------------------------- proofs


class Tree:
    """The roots of the largest full subtrees from the left: all that is needed to go on hashing (RFC 6962)."""

    def __init__(self, peaks: list[tuple[int, bytes]]) -> None:
        self.peaks = peaks

    def add(self, record: bytes) -> None:
        """Append a leaf."""
        self.peaks.append((1, hashlib.sha256(b"\0" + record).digest()))
        while len(self.peaks) > 1 and self.peaks[-1][0] == self.peaks[-2][0]:
            (width, right), (_, left) = self.peaks.pop(), self.peaks.pop()
            self.peaks.append((2 * width, hashlib.sha256(b"\1" + left + right).digest()))

    def root(self) -> bytes:
        """Give the root over everything so far."""
        if not self.peaks:
            return hashlib.sha256(b"").digest()
        root = self.peaks[-1][1]
        for _, left in reversed(self.peaks[:-1]):
            root = hashlib.sha256(b"\1" + left + root).digest()
        return root


class LogKey:
    """The key of the log, as `name+key id+base64`; with it the name is known, and every checkpoint can be verified."""

    def __init__(self, text: str) -> None:
        self.name, key_id, key = text.strip().split("+", 2)
        self._id = bytes.fromhex(key_id)
        self._key = Ed25519PublicKey.from_public_bytes(base64.b64decode(key)[1:])

    def open(self, note: bytes) -> tuple[int, bytes]:
        """Verify a checkpoint (C2SP signed note); give its size and root."""
        text, _, signatures = note.decode().rpartition("\n\n")
        text += "\n"
        for line in signatures.splitlines():
            dash, name, encoded = line.split(" ")
            raw = base64.b64decode(encoded)
            if dash == "\u2014" and name == self.name and raw[:4] == self._id:
                self._verify(raw[4:], text)
                origin, size, root = text.splitlines()
                expect(origin == self.name, f"the checkpoint is of the log {origin}")
                return int(size), base64.b64decode(root)
        raise NotTheLogError("the checkpoint is not signed by the log")

    def _verify(self, signature: bytes, text: str) -> None:
        try:
            self._key.verify(signature, text.encode())
        except InvalidSignature:
            raise NotTheLogError("the signature of a checkpoint is bad") from None


# --------------------------------------------------------------------------- the subscriber


class Subscriber:
    """Everything it knows is in one SQLite file; each `step` is one transaction on it."""

    def __init__(self, brokers: str, key: LogKey, state: str, options: dict[str, Any]) -> None:
        self._key = key
        self._db = sqlite3.connect(state, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.executescript(TABLES)
        self._consumer = Consumer(
            {
                **options,
                "bootstrap.servers": brokers,
                "group.id": "soma-subscriber",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
            }
        )
        known = dict(self._db.execute("SELECT partition, next FROM offsets").fetchall())
        self._partitions = sorted(self._consumer.list_topics(TOPIC, 30).topics[TOPIC].partitions)
        self._consumer.assign(
            [TopicPartition(TOPIC, n, known.get(n, OFFSET_BEGINNING)) for n in self._partitions]
        )
        self._paused: list[TopicPartition] = []
        self._missing_since: float | None = None

    @property
    def size(self) -> int:
        """Count the records that were taken in."""
        return int(self._db.execute("SELECT coalesce(max(position) + 1, 0) FROM taken").fetchone()[0])

    def step(self, timeout_s: float = 0.5) -> int:
        """Read what is there, take in what is proved, and keep all of it at once; give the number taken in."""
        messages = self._consumer.consume(READ_MAX, timeout_s)
        if messages:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                for message in messages:
                    self._keep(message)
                taken = self._take_proved()
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
        else:
            taken = 0
        self._hold_back()
        self._see_gaps(read=len(messages), taken=taken)
        return taken

    def _keep(self, message: Any) -> None:
        expect(message.error() is None, str(message.error()))
        headers = {name: (value or b"").decode() for name, value in message.headers() or []}
        partition, sequence = message.partition(), -1
        if headers.get("ce_source") == self._key.name:
            if headers["ce_type"] == CHECKPOINT:
                self._db.execute(
                    "INSERT OR IGNORE INTO checkpoints VALUES (?, ?)", self._key.open(message.value())
                )
            else:
                sequence = self._keep_record(message, headers)
        self._db.execute(
            "INSERT INTO offsets VALUES (?, ?, ?) ON CONFLICT (partition) DO UPDATE"
            " SET next = excluded.next, sequence = max(sequence, excluded.sequence)",
            (partition, message.offset() + 1, sequence),
        )

    def _keep_record(self, message: Any, headers: dict[str, str]) -> int:
        value, sequence = message.value(), int(headers["ce_sequence"])
        address = "sha3-512:" + hashlib.sha3_512(value).hexdigest()
        expect(address == headers["ce_id"], f"the record at {sequence} is not what its id says")
        last = self._db.execute(
            "SELECT sequence FROM offsets WHERE partition = ?", (message.partition(),)
        ).fetchone()
        expect(last is None or sequence > last[0], f"the record at {sequence} came twice, or too late")
        kept = self._db.execute("INSERT OR IGNORE INTO waiting VALUES (?, ?, ?)", (sequence, address, value))
        expect(kept.rowcount == 1 and sequence >= self.size, f"the record at {sequence} came twice")
        return sequence

    def _take_proved(self) -> int:
        """Take in the records before the largest checkpoint of which none is missing."""
        start = self.size
        held, covered = start, 0
        for (position,) in self._db.execute(
            "SELECT position FROM waiting WHERE position >= ? ORDER BY position", (start,)
        ):
            if position != held:
                break
            held += 1
        found = self._db.execute(
            "SELECT size, root FROM checkpoints WHERE size > ? AND size <= ? ORDER BY size", (start, held)
        ).fetchall()
        tree = Tree(self._db.execute("SELECT width, hash FROM tree ORDER BY width DESC").fetchall())
        for size, root in found:
            for position, address, record in self._waiting(start + covered, size):
                self._link(position, address, record)
                tree.add(record)
                covered += 1
            expect(tree.root() == root, f"the records before {size} do not have the root that the log signed")
        if covered:
            self._db.execute("DELETE FROM waiting WHERE position < ?", (start + covered,))
            self._db.execute("DELETE FROM tree")
            self._db.executemany("INSERT INTO tree VALUES (?, ?)", tree.peaks)
        self._db.execute("DELETE FROM checkpoints WHERE size <= ?", (start + covered,))
        return covered

    def _waiting(self, start: int, end: int) -> Iterator[tuple[int, str, bytes]]:
        yield from self._db.execute(
            "SELECT position, address, value FROM waiting WHERE position >= ? AND position < ? ORDER BY position",
            (start, end),
        ).fetchall()

    def _link(self, position: int, address: str, value: bytes) -> None:
        record = json.loads(value)
        last = self._db.execute(
            "SELECT version, address FROM streams WHERE stream = ?", (record["stream"],)
        ).fetchone() or (0, None)
        expect(
            (record["version"] - 1, record["previous"]) == last,
            f"the chain of {record['stream']} breaks at {position}",
        )
        self._db.execute(
            "INSERT OR REPLACE INTO streams VALUES (?, ?, ?)", (record["stream"], record["version"], address)
        )
        take(self._db, position, address, record)

    def _hold_back(self) -> None:
        """Let partitions that are far ahead wait for the others, so that what waits stays small."""
        size = self.size
        ahead = [
            TopicPartition(TOPIC, n)
            for (n,) in self._db.execute(
                "SELECT partition FROM offsets WHERE sequence > ?", (size + AHEAD_MAX,)
            )
        ]
        if ahead != self._paused:
            self._consumer.resume(self._paused)
            self._consumer.pause(ahead)
            self._paused = ahead

    def _see_gaps(self, read: int, taken: int) -> None:
        """Tell where a record is missing: every partition is past it, or nothing has come for long."""
        ((first, count),) = self._db.execute("SELECT min(position), count(*) FROM waiting").fetchall()
        size = self.size
        if not count or first == size:
            # Nothing waits, or only for a checkpoint.
            self._missing_since = None
            return
        ((past,),) = self._db.execute("SELECT count(*) FROM offsets WHERE sequence > ?", (size,)).fetchall()
        expect(past < len(self._partitions), f"the record at {size} is missing: every partition is past it")
        if read or taken or self._missing_since is None:
            self._missing_since = time.monotonic()
        expect(
            time.monotonic() - self._missing_since < GAP_S,
            f"the record at {size} is missing; {count} wait for it",
        )

    def close(self) -> None:
        """Let go; what is not committed is read again."""
        self._consumer.close()
        self._db.close()


def main() -> int:
    """Follow the log until stopped, or until a number of records was taken in."""
    asked = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    asked.add_argument("--brokers", required=True, help="host:port, by commas")
    asked.add_argument("--key", required=True, help="the log's verifier key: name+key id+base64")
    asked.add_argument("--state", required=True, help="SQLite file of what was taken in")
    asked.add_argument("--options", default="{}", help="further librdkafka options, as JSON")
    asked.add_argument("--until", type=int, help="stop once this many records were taken in")
    given = asked.parse_args()
    subscriber = Subscriber(given.brokers, LogKey(given.key), given.state, json.loads(given.options))
    print(json.dumps({"resumed_at": subscriber.size}), flush=True)
    try:
        while given.until is None or subscriber.size < given.until:
            if subscriber.step():
                print(json.dumps({"proved": subscriber.size}), flush=True)
    except NotTheLogError as broken:
        print(json.dumps({"broken": str(broken)}), flush=True)
        return 1
    except KeyboardInterrupt:
        pass
    finally:
        subscriber.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
