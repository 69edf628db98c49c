"""What the tests of the log share: an aggregate of their own, callers, short forms, and a check of a whole database.

The check is naive on purpose: hashlib and the definition of RFC 6962, nothing of the writer's.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
import threading
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from select import select
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

import msgspec
import psycopg
from pydantic import SecretStr

from domain.billing.accounts import Deposit, TransferMoney, deposit, transfer
from domain.errors import NotFoundError
from domain.fields import Command
from domain.ledger import Answer, Caller, Case, Ledger
from domain.log.records import Aggregate, Event, Record
from domain.values import Money
from ops.settings import Settings

OPERATOR = Caller("olga", "platform", frozenset(["operator", "billing", "service"]))


def member(tenant: str, subject: str = "mia") -> Caller:
    """Make a caller who may do what providers and owners may."""
    return Caller(subject, tenant, frozenset(["provider", "owner"]))


def settings_for(url: str, data_dir: Path, **more: Any) -> Settings:
    """Make the settings of a runtime on a database that is there."""
    return Settings(database_url=SecretStr(url), data_dir=data_dir, **more)


class Tally(Aggregate):
    """A sum of whole numbers; whoever adds says what it saw."""

    KIND = "tally"

    total: int = 0
    notes: int = 0

    class Opened(Event):
        TOPIC = "tally.opened"

        start: int

        def apply(self, tally: Tally, record: Record) -> None:
            tally.total = self.start

    class Added(Event):
        TOPIC = "tally.added"

        count: int
        seen: int
        note: str = ""

        def apply(self, tally: Tally, record: Record) -> None:
            tally.total += self.count
            tally.notes += 1

    def status_key(self) -> str:
        return "even" if self.total % 2 == 0 else "odd"

    def search_text(self) -> str:
        return f"tally of {self.tenant}"


class OpenTally(Command):
    """Open a tally."""

    name: str | None = None
    start: int = 0


class Add(Command):
    """Add to a tally, several times where asked."""

    name: str
    count: int = 1
    times: int = 1
    note: str = ""


class Copy(Command):
    """Open a tally with the total of another one."""

    source: str
    name: str


def open_tally(case: Case, command: OpenTally) -> Tally:
    """Open a tally."""
    return case.create(Tally, command.name or case.new_id("tally"), Tally.Opened(start=command.start))


def add(case: Case, command: Add) -> Tally:
    """Add to a tally."""
    tally = case.get(Tally, command.name)
    for _ in range(command.times):
        case.emit(tally, Tally.Added(count=command.count, seen=tally.total, note=command.note))
    return tally


def copy_total(case: Case, command: Copy) -> Tally:
    """Open a tally with what another one says now; only the new one is written."""
    seen = case.get(Tally, command.source).total
    return case.create(Tally, command.name, Tally.Opened(start=seen))


def refuse(case: Case, command: Add) -> Tally:
    """Refuse, always."""
    raise NotFoundError("there is no such tally", id=command.name)


def body(answer: Answer) -> dict[str, Any]:
    """Read an answer."""
    return msgspec.json.decode(answer.body)


def usd(amount: str) -> Money:
    """Make dollars."""
    return Money.parse(amount, "USD")


async def give(ledger: Ledger, tenant: str, amount: str, key: str | None = None) -> Answer:
    """Put money into a tenant's wallet."""
    return await ledger.act(deposit, Deposit(tenant=tenant, amount=usd(amount)), OPERATOR, key=key)


async def pay(ledger: Ledger, payer: str, payee: str, amount: str, key: str | None = None) -> Answer:
    """Pay from one tenant's wallet to another's."""
    return await ledger.act(
        transfer, TransferMoney(to_tenant=payee, amount=usd(amount)), member(payer), key=key
    )


# --------------------------------------------------------------------------- the whole database, checked


class Checked(NamedTuple):
    """What a database holds, once everything in it was found consistent."""

    size: int
    roots: dict[int, bytes]
    addresses: list[bytes]
    records: list[dict[str, Any]]
    balances: dict[str, int]


def check_database(url: str) -> Checked:
    """Check that positions, chains, tree, checkpoints, current state and money of a database agree."""
    with psycopg.connect(url) as conn:
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        addresses, records, roots = _check_tree(conn)
        _check_streams(conn, records, addresses)
        balances = _check_money(conn, records)
        _check_keys(conn, len(records))
    return Checked(len(records), roots, addresses, records, balances)


def _check_tree(conn: psycopg.Connection[Any]) -> tuple[list[bytes], list[dict[str, Any]], dict[int, bytes]]:
    rows = conn.execute("SELECT position, address, record FROM events ORDER BY position").fetchall()
    heads = {s: bytes(r) for s, r in conn.execute("SELECT size, root FROM checkpoints").fetchall()}
    assert [position for position, _, _ in rows] == list(range(len(rows)))
    roots, peaks = {0: hashlib.sha256(b"").digest()}, []
    for position, address, record in rows:
        assert hashlib.sha3_512(record).digest() == bytes(address)
        peaks.append((1, hashlib.sha256(b"\x00" + record).digest()))
        while len(peaks) > 1 and peaks[-1][0] == peaks[-2][0]:
            (width, right), (_, left) = peaks.pop(), peaks.pop()
            peaks.append((2 * width, hashlib.sha256(b"\x01" + left + right).digest()))
        if position + 1 in heads:
            roots[position + 1] = _folded(peaks)
    assert heads == {size: roots.get(size) for size in heads}
    if rows:
        assert conn.execute("SELECT size, root FROM log_head").fetchone() == (len(rows), roots[len(rows)])
    tiles = conn.execute("SELECT level, count(*) FROM tiles GROUP BY level ORDER BY level").fetchall()
    assert dict(tiles) == {n: len(rows) >> 8 * (n + 1) for n in range(3) if len(rows) >> 8 * (n + 1)}
    return [bytes(a) for _, a, _ in rows], [msgspec.json.decode(r) for _, _, r in rows], roots


def _folded(peaks: list[tuple[int, bytes]]) -> bytes:
    root = peaks[-1][1]
    for _, left in reversed(peaks[:-1]):
        root = hashlib.sha256(b"\x01" + left + root).digest()
    return root


def _check_streams(
    conn: psycopg.Connection[Any], records: list[dict[str, Any]], addresses: list[bytes]
) -> None:
    last: dict[str, tuple[int, bytes]] = {}
    for record, address in zip(records, addresses, strict=True):
        version, before = last.get(record["stream"], (0, None))
        assert record["version"] == version + 1
        assert record["previous"] == (None if before is None else f"sha3-512:{before.hex()}")
        last[record["stream"]] = (version + 1, address)
    rows = conn.execute("SELECT kind || '/' || id, version, address FROM records").fetchall()
    assert {stream: (version, bytes(address)) for stream, version, address in rows} == last


def _check_money(conn: psycopg.Connection[Any], records: list[dict[str, Any]]) -> dict[str, int]:
    accounts = conn.execute(
        "SELECT account, currency, side, overdraft, balance_nano, held_nano FROM accounts"
    ).fetchall()
    summed = dict(conn.execute("SELECT account, sum(amount_nano) FROM postings GROUP BY account").fetchall())
    last = {
        a: (b, h)
        for a, b, h in conn.execute(
            "SELECT DISTINCT ON (account) account, balance_nano, held_nano FROM postings"
            " ORDER BY account, position DESC, leg DESC"
        ).fetchall()
    }
    pending = dict(
        conn.execute(
            "SELECT account, sum(amount_nano) FROM holds WHERE status = 'pending' GROUP BY account"
        ).fetchall()
    )
    zero: dict[str, int] = defaultdict(int)
    for account, currency, side, overdraft, balance, held in accounts:
        assert balance == (summed[account] if side == "debit" else -summed[account])
        assert last[account] == (balance, held)
        assert held == pending.get(account, 0)
        assert overdraft or balance >= held
        zero[currency] += balance if side == "debit" else -balance
    assert not any(zero.values())
    (beyond,) = conn.execute("SELECT count(*) FROM postings WHERE position >= %s", [len(records)]).fetchone()
    assert beyond == 0
    return {account: int(balance) for account, _, _, _, balance, _ in accounts}


def _check_keys(conn: psycopg.Connection[Any], size: int) -> None:
    rows = conn.execute(
        "SELECT position, event_count FROM keys WHERE position IS NOT NULL ORDER BY position"
    ).fetchall()
    end = 0
    for position, event_count in rows:
        assert position >= end
        end = position + event_count
    assert end <= size


# --------------------------------------------------------------------------- the writer, stopped and watched


class States:
    """An observer of commits: does what is asked at a numbered state of the world, once."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self._asked: dict[int, Callable[[], None]] = {}

    def __call__(self, state: int) -> None:
        self.seen.append(state)
        asked = self._asked.pop(state, None)
        if asked is not None:
            asked()

    def at(self, state: int, do: Callable[[], None]) -> None:
        """Do something the next time the writer comes to a state."""
        self._asked[state] = do

    def hold(self) -> Held:
        """Stop the writer at its next batch."""
        held = Held()
        self.at(1, held.wait)
        return held


class Held:
    """A writer that was stopped; batches gather behind it until it is let go."""

    def __init__(self) -> None:
        self._reached, self._released = threading.Event(), threading.Event()

    def wait(self) -> None:
        self._reached.set()
        assert self._released.wait(30), "nobody let the writer go"

    async def reached(self) -> None:
        assert await asyncio.to_thread(self._reached.wait, 30), "the writer did not come"

    def release(self) -> None:
        self._released.set()


class Wire:
    """A wire between client and server that can be cut at the worst moment."""

    def __init__(self, url: str) -> None:
        with psycopg.connect(url) as conn:
            self._server = (conn.info.host, conn.info.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = urlsplit(url)._replace(
            query=urlencode({"host": "127.0.0.1", "port": self._listener.getsockname()[1]})
        )
        self.url = self.url._replace(netloc=self.url.netloc.rpartition("@")[0] + "@").geturl()
        self._lose: str | None = None
        self.cut_count = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def lose(self, what: str) -> None:
        """Lose the next request before it arrives, or the reply to it."""
        assert what in ("request", "reply")
        self._lose = what

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        host, port = self._server
        unix = host.startswith("/")
        server = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
        with client, server, suppress(OSError):
            server.connect(f"{host}/.s.PGSQL.{port}" if unix else (host, port))
            while True:
                for ready in select([client, server], [], [])[0]:
                    data = ready.recv(1 << 16)
                    if not data:
                        return
                    if ready is client and self._lose is not None:
                        self._cut(client, server, data)
                        return
                    (server if ready is client else client).sendall(data)

    def _cut(self, client: socket.socket, server: socket.socket, data: bytes) -> None:
        lost, self._lose = self._lose, None
        self.cut_count += 1
        if lost == "reply":
            server.sendall(data)
            while True:
                # A request may come in several pieces; the reply is lost once there is one.
                ready = select([client, server], [], [])[0]
                if server in ready:
                    server.recv(1 << 16)
                    return
                server.sendall(client.recv(1 << 16))
