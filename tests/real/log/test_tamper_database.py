"""A superuser spoils the database in every way we could think of; verifying it finds and names each."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from hashlib import sha3_512
from typing import Any, NamedTuple

import msgspec
import psycopg
import pytest

from domain.log.audit_findings import Finding
from domain.log.hashes import complete_root, leaf_hash
from domain.log.notes import Checkpoint, Signer
from domain.log.tree import Tree
from ops.runtime import open_runtime
from ops.verify import DatabaseReport, verify_connection, verify_database
from tests.real.conftest import lend
from tests.real.log.test_rebuild import busy
from tests.real.log.world import Add, OpenTally, add, give, member, open_tally, settings_for

SIZE_MIN = 600
# Beyond every position, for moving rows about.
FAR = 1_000_000
SEEDS = range(6)
MIA = member("acme")


class Written(NamedTuple):
    """A log of some six hundred records, its key, a forger's key, and an earlier checkpoint somebody kept."""

    url: str
    vkey: str
    origin: str
    kept: str
    size: int


@pytest.fixture(scope="module")
def written(
    server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Written]:
    lent = lend(server_url, template_database)
    url = next(lent)

    async def write() -> Written:
        async with open_runtime(settings_for(url, tmp_path_factory.mktemp("keys"))) as rt:
            await busy(rt, 1, steps=40)
            kept = rt.note(await rt.reader.head()).decode()
            await rt.ledger.act(open_tally, OpenTally(name="long"), MIA)
            await rt.ledger.act(add, Add(name="long", times=300), MIA)
            for n in range(150):
                await rt.ledger.act(open_tally, OpenTally(start=n), MIA, key=f"t{n}")
            await give(rt.ledger, "acme", "1", key="last")
            return Written(url, rt.signer.key.text, rt.signer.name, kept, await rt.reader.size())

    yield asyncio.run(write())
    assert next(lent, None) is None


class Spoiler:
    """A superuser with the triggers off, inside a transaction that is never committed for long."""

    def __init__(self, conn: psycopg.Connection[Any], log: Written, seed: int) -> None:
        self.conn = conn
        self.log = log
        self.chance = random.Random(seed)

    def run(self, statement: str, *params: Any) -> None:
        """Change something; a statement that changes nothing proves nothing."""
        assert self.conn.execute(statement, params).rowcount > 0, statement  # type: ignore[call-overload]

    def one(self, statement: str, *params: Any) -> Any:
        row = self.conn.execute(statement, params).fetchone()  # type: ignore[call-overload]
        assert row is not None
        return row[0]

    def position(self, *, before: int | None = None) -> int:
        return self.chance.randrange(before or self.log.size)

    def flipped(self, data: bytes) -> bytes:
        """Flip one bit."""
        at = self.chance.randrange(len(data) * 8)
        spoiled = bytearray(data)
        spoiled[at // 8] ^= 1 << at % 8
        return bytes(spoiled)


Found = Callable[[Finding], bool]


def at(position: int, *codes: str) -> Found:
    return lambda f: f.position == position and (not codes or f.code in codes)


def named(*codes: str) -> Found:
    return lambda f: f.code in codes


# --------------------------------------------------------------------------- the ways to spoil a log


def flip_record(s: Spoiler) -> Found:
    p = s.position()
    s.run(
        "UPDATE events SET record = %s WHERE position = %s",
        s.flipped(s.one("SELECT record FROM events WHERE position = %s", p)),
        p,
    )
    return at(p)


def flip_record_and_address(s: Spoiler) -> Found:
    p = s.position()
    record = s.flipped(s.one("SELECT record FROM events WHERE position = %s", p))
    s.run(
        "UPDATE events SET record = %s, address = %s WHERE position = %s",
        record,
        sha3_512(record).digest(),
        p,
    )
    return lambda f: f.position in (p, p - p % 256) or f.code in ("root_mismatch", "range_altered")


def rewrite_amount(s: Spoiler) -> Found:
    """A record made over with all that hangs on it in its own row."""
    p = s.one(
        "SELECT position FROM events WHERE type = 'transfer.posted' ORDER BY position OFFSET %s LIMIT 1",
        s.chance.randrange(5),
    )
    value = msgspec.json.decode(s.one("SELECT record FROM events WHERE position = %s", p))
    value["data"]["memo"] = "made over"
    record = msgspec.json.encode(value, order="sorted")
    s.run(
        "UPDATE events SET record = %s, address = %s WHERE position = %s",
        record,
        sha3_512(record).digest(),
        p,
    )
    return at(p, "record_altered")


def flip_address(s: Spoiler) -> Found:
    p = s.position()
    s.run(
        "UPDATE events SET address = %s WHERE position = %s",
        s.flipped(s.one("SELECT address FROM events WHERE position = %s", p)),
        p,
    )
    return at(p, "address_altered")


def column(name: str, value: str) -> Callable[[Spoiler], Found]:
    def spoil(s: Spoiler) -> Found:
        p = s.position()
        s.run(f"UPDATE events SET {name} = {value} WHERE position = %s", p)
        return at(p, "column_altered")

    spoil.__name__ = f"change_{name}"
    return spoil


def delete_record(s: Spoiler) -> Found:
    p = s.position()
    s.run("DELETE FROM events WHERE position = %s", p)
    return at(p, "position_gap")


def delete_and_close_the_gap(s: Spoiler) -> Found:
    p = s.position(before=s.log.size - 1)
    s.run("DELETE FROM events WHERE position = %s", p)
    s.run("UPDATE events SET position = position + %s WHERE position > %s", FAR, p)
    s.run("UPDATE events SET position = position - %s - 1 WHERE position > %s", FAR, FAR)
    return at(p) if p < s.log.size - s.log.size % 256 else named("root_mismatch", "position_gap")


def insert_record(s: Spoiler) -> Found:
    p = s.position()
    s.run("UPDATE events SET position = position + %s WHERE position >= %s", FAR, p)
    s.run("UPDATE events SET position = position - %s + 1 WHERE position >= %s", FAR, FAR)
    s.run(
        "INSERT INTO events SELECT %s, version, stream || 'x', type, tenant, address, record FROM events"
        " WHERE position = %s",
        p, 0 if p else 1,
    )  # fmt: skip
    return at(p)


def append_record(s: Spoiler) -> Found:
    s.run(
        "INSERT INTO events SELECT %s, 1, 'tally/ghost', type, tenant, address, record FROM events WHERE position = 0",
        s.log.size,
    )
    return at(s.log.size, "position_extra")


def append_record_and_move_head(s: Spoiler) -> Found:
    append_record(s)
    s.run("UPDATE log_head SET size = size + 1")
    return at(s.log.size, "position_extra")


def swap_records(s: Spoiler) -> Found:
    p, q = s.chance.sample(range(s.log.size), 2)
    s.run("UPDATE events SET position = %s WHERE position = %s", FAR, p)
    s.run("UPDATE events SET position = %s WHERE position = %s", p, q)
    s.run("UPDATE events SET position = %s WHERE position = %s", q, FAR)
    full = s.log.size - s.log.size % 256
    return at(p) if p < full else (at(q) if q < full else named("root_mismatch"))


def swap_bytes(s: Spoiler) -> Found:
    """Two records change places, rows and all, except for the positions."""
    p, q = s.chance.sample(range(512), 2)
    rows = {
        n: s.conn.execute("SELECT address, record FROM events WHERE position = %s", [n]).fetchone() or ()
        for n in (p, q)
    }
    s.run("UPDATE events SET address = %s, record = %s WHERE position = %s", *rows[q], p)
    s.run("UPDATE events SET address = %s, record = %s WHERE position = %s", *rows[p], q)
    return at(p)


def cut_tail(s: Spoiler) -> Found:
    p = s.chance.randrange(s.log.size - 200, s.log.size)
    s.run("DELETE FROM events WHERE position >= %s", p)
    return at(p, "position_gap")


def cut_tail_and_everything_after(s: Spoiler) -> Found:
    """The log as it was at an earlier checkpoint that somebody kept the successor of."""
    size = s.one(
        "SELECT max(size) FROM checkpoints WHERE size < %s",
        Checkpoint.parse(s.log.kept.partition("\n\n")[0] + "\n").size,
    )
    s.run("DELETE FROM events WHERE position >= %s", size)
    s.run("DELETE FROM checkpoints WHERE size > %s", size)
    s.conn.execute("DELETE FROM tiles WHERE (index + 1) << (8 * (level + 1)) > %s", [size])
    s.conn.execute("DELETE FROM keys WHERE position + event_count > %s", [size])
    s.conn.execute(
        "DELETE FROM records r WHERE NOT EXISTS (SELECT 1 FROM events e WHERE e.address = r.address)"
    )
    s.run("UPDATE log_head SET size = c.size, root = c.root FROM checkpoints c WHERE c.size = %s", size)
    return at(size, "truncated")


def cut_last_commit(s: Spoiler) -> Found:
    """The last commit taken back together with its checkpoint; what it left elsewhere gives it away."""
    size = s.one("SELECT max(size) FROM checkpoints WHERE size < %s", s.log.size)
    s.run("DELETE FROM events WHERE position >= %s", size)
    s.run("DELETE FROM checkpoints WHERE size > %s", size)
    s.run("UPDATE log_head SET size = c.size, root = c.root FROM checkpoints c WHERE c.size = %s", size)
    return at(size, "key_beyond")


def flip_tile(s: Spoiler) -> Found:
    n = s.chance.randrange(2)
    s.run(
        "UPDATE tiles SET hashes = %s WHERE index = %s",
        s.flipped(s.one("SELECT hashes FROM tiles WHERE index = %s", n)),
        n,
    )
    return lambda f: (
        f.code in ("tile_altered", "record_altered", "range_altered")
        and (f.path == f"tile/0/00{n}" or (f.position or 0) // 256 == n)
    )


def flip_tile_and_its_root(s: Spoiler) -> Found:
    n = s.chance.randrange(2)
    hashes = s.flipped(s.one("SELECT hashes FROM tiles WHERE index = %s", n))
    s.run("UPDATE tiles SET hashes = %s, root = %s WHERE index = %s", hashes, complete_root(hashes), n)
    return named("tile_altered", "record_altered", "range_altered")


def flip_tile_root(s: Spoiler) -> Found:
    n = s.chance.randrange(2)
    s.run(
        "UPDATE tiles SET root = %s WHERE index = %s",
        s.flipped(s.one("SELECT root FROM tiles WHERE index = %s", n)),
        n,
    )
    return lambda f: f.code == "tile_root_altered" and f.path == f"tile/0/00{n}"


def delete_tile(s: Spoiler) -> Found:
    n = s.chance.randrange(2)
    s.run("DELETE FROM tiles WHERE index = %s", n)
    return lambda f: f.code == "tile_missing" and f.path == f"tile/0/00{n}"


def insert_tile(s: Spoiler) -> Found:
    s.run("INSERT INTO tiles SELECT level, 2, hashes, root FROM tiles WHERE index = 0")
    return named("tile_extra")


def swap_tiles(s: Spoiler) -> Found:
    s.run("UPDATE tiles SET index = 9 WHERE index = 0")
    s.run("UPDATE tiles SET index = 0 WHERE index = 1")
    s.run("UPDATE tiles SET index = 1 WHERE index = 9")
    return named("tile_altered", "record_altered", "range_altered")


def a_checkpoint(s: Spoiler) -> int:
    return int(s.one("SELECT size FROM checkpoints WHERE size > 0 ORDER BY random() LIMIT 1"))


def flip_checkpoint_root(s: Spoiler) -> Found:
    size = a_checkpoint(s)
    s.run(
        "UPDATE checkpoints SET root = %s WHERE size = %s",
        s.flipped(s.one("SELECT root FROM checkpoints WHERE size = %s", size)),
        size,
    )
    return named("signature_invalid")


def flip_checkpoint_signature(s: Spoiler) -> Found:
    size = a_checkpoint(s)
    spoiled = s.flipped(s.one("SELECT signature FROM checkpoints WHERE size = %s", size))
    s.run("UPDATE checkpoints SET signature = %s WHERE size = %s", spoiled, size)
    return named("signature_invalid")


def move_checkpoint(s: Spoiler) -> Found:
    size = a_checkpoint(s)
    s.run("UPDATE checkpoints SET size = size + 100000 WHERE size = %s", size)
    return named("signature_invalid")


def forged_by_another_key(s: Spoiler) -> Found:
    """A checkpoint of this very log, right in everything but the key that signed it."""
    size = a_checkpoint(s)
    root = s.one("SELECT root FROM checkpoints WHERE size = %s", size)
    forger = Signer(s.log.origin, s.chance.randbytes(32))
    s.run(
        "UPDATE checkpoints SET signature = %s WHERE size = %s",
        forger.sign(Checkpoint(s.log.origin, size, root).text.encode()),
        size,
    )
    return named("signature_invalid")


def rewrite_the_whole_log(s: Spoiler) -> Found:
    """A record made over, and every hash above it, and the last checkpoint signed by another key."""
    p = s.position()
    record = s.flipped(s.one("SELECT record FROM events WHERE position = %s", p))
    s.run(
        "UPDATE events SET record = %s, address = %s WHERE position = %s",
        record,
        sha3_512(record).digest(),
        p,
    )
    rows = s.conn.execute("SELECT record FROM events ORDER BY position").fetchall()
    growth = Tree.from_edge(0, []).extend([leaf_hash(r) for (r,) in rows])
    for tile in growth.full_tiles:
        s.run(
            "UPDATE tiles SET hashes = %s, root = %s WHERE index = %s",
            tile.hashes,
            complete_root(tile.hashes),
            tile.index,
        )
    root = growth.tree.root()
    forger = Signer(s.log.origin, s.chance.randbytes(32))
    signature = forger.sign(Checkpoint(s.log.origin, s.log.size, root).text.encode())
    s.run("UPDATE checkpoints SET root = %s, signature = %s WHERE size = %s", root, signature, s.log.size)
    s.run("UPDATE log_head SET root = %s", root)
    return named("signature_invalid")


def delete_all_checkpoints(s: Spoiler) -> Found:
    s.run("DELETE FROM checkpoints")
    return named("checkpoint_malformed")


def flip_head(s: Spoiler) -> Found:
    s.run("UPDATE log_head SET root = %s", s.flipped(s.one("SELECT root FROM log_head")))
    return named("head_mismatch")


def move_head(s: Spoiler) -> Found:
    s.run("UPDATE log_head SET size = %s", s.position())
    return named("head_mismatch")


def delete_head(s: Spoiler) -> Found:
    s.run("DELETE FROM log_head")
    return named("head_mismatch")


def another_identity(s: Spoiler) -> Found:
    s.run("UPDATE log_identity SET vkey = %s", Signer(s.log.origin, s.chance.randbytes(32)).key.text)
    return named("identity_mismatch")


def state_of_nothing(s: Spoiler) -> Found:
    s.run("UPDATE records SET address = %s WHERE id = 'long'", s.chance.randbytes(64))
    return lambda f: f.code == "state_beyond" and f.stream == "tally/long"


WAYS: list[Callable[[Spoiler], Found]] = [
    flip_record,
    flip_record_and_address,
    rewrite_amount,
    flip_address,
    column("stream", "stream || 'x'"),
    column("version", "version + 1000"),
    column("type", "type || '.x'"),
    column("tenant", "'evil'"),
    delete_record,
    delete_and_close_the_gap,
    insert_record,
    append_record,
    append_record_and_move_head,
    swap_records,
    swap_bytes,
    cut_tail,
    cut_tail_and_everything_after,
    cut_last_commit,
    flip_tile,
    flip_tile_and_its_root,
    flip_tile_root,
    delete_tile,
    insert_tile,
    swap_tiles,
    flip_checkpoint_root,
    flip_checkpoint_signature,
    move_checkpoint,
    forged_by_another_key,
    rewrite_the_whole_log,
    delete_all_checkpoints,
    flip_head,
    move_head,
    delete_head,
    another_identity,
    state_of_nothing,
]


def verified(written: Written) -> DatabaseReport:
    return verify_database(written.url, written.vkey, since=[written.kept])


def test_an_untouched_database_has_no_finding(written: Written) -> None:
    heard: list[tuple[int, int]] = []
    report = verify_database(
        written.url, written.vkey, progress=lambda done, total: heard.append((done, total))
    )
    assert report.ok
    assert report.all_findings == []
    assert report.audit.records == written.size >= SIZE_MIN
    assert report.audit.key_pinned
    assert heard[-1] == (written.size, written.size)
    assert verified(written).ok


def test_there_are_enough_ways_and_seeds() -> None:
    assert len(WAYS) * len(SEEDS) >= 200


@pytest.mark.parametrize("spoil", WAYS, ids=lambda spoil: spoil.__name__)
def test_what_was_spoiled_is_found_and_named(written: Written, spoil: Callable[[Spoiler], Found]) -> None:
    for seed in SEEDS:
        with psycopg.connect(written.url) as conn:
            conn.execute("SET session_replication_role = replica")
            sought = spoil(Spoiler(conn, written, seed))
            report = verify_connection(conn, written.vkey, since=[written.kept])
            conn.rollback()
        assert not report.ok, f"seed {seed} was not found"
        assert any(sought(f) for f in report.all_findings), (seed, report.all_findings[:5])
        assert all(f.message for f in report.all_findings)
    assert verified(written).ok


def test_another_logs_key_verifies_nothing(written: Written) -> None:
    other = Signer(written.origin, bytes(32)).key.text
    codes = {f.code for f in verify_database(written.url, other).all_findings}
    assert {"identity_mismatch", "signature_invalid"} <= codes or {
        "identity_mismatch",
        "key_unknown",
    } <= codes
