"""Reading what statements are made of: movements of accounts with the records behind them, in the order of the log.

All of it is bounded by positions, so that what is read for a statement today is what is read for it in ten years.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import msgspec
from psycopg import AsyncCursor
from psycopg_pool import AsyncConnectionPool

from domain.billing.statements import Event, Movement, Owing, Standing, Sums, Told
from domain.book import Entry
from domain.values import moment_of, moment_text
from ops.postgres import reading
from ops.usage_totals import CLOCKS_S_MAX

# Movements read at a time. A record holds 64 KiB at most, so a page is some 30 MB where it is worst.
PAGE = 500

_AT = "convert_from(e.record, 'UTF8')::json ->> 'at'"
_OF_ACCOUNT = "SELECT p.position FROM postings p WHERE p.account = %(account)s"
# What a customer owes moves with its accounts. An invoice that comes to nothing moves none, and a credit note that
# gives back to the wallet moves others; both are told all the same.
_OF_CUSTOMER = """
    SELECT p.position FROM postings p
    WHERE p.account IN (%(receivable)s, %(credits)s) AND p.amount_nano <> 0
    UNION
    SELECT i.position FROM records r JOIN events i ON i.stream = r.kind || '/' || r.id AND i.version = 1
    WHERE r.kind IN ('invoice', 'credit_note') AND r.tenant = %(tenant)s
        AND coalesce(r.state #>> '{owed,currency}', r.state #>> '{amount,currency}') = %(currency)s
"""
_SUMS = """
    SELECT count(*), coalesce(sum(amount_nano) FILTER (WHERE amount_nano > 0), 0)::text,
        coalesce(-sum(amount_nano) FILTER (WHERE amount_nano < 0), 0)::text
    FROM postings WHERE account = %(account)s AND position >= %(start)s AND position < %(end)s
"""
_LEGS = """
    SELECT e.position, e.address, e.record, p.leg, p.amount_nano::text, p.hold, p.balance_nano::text,
        p.held_nano::text
    FROM postings p JOIN events e USING (position)
    WHERE p.account = %(account)s AND (p.position, p.leg) > (%(after)s, %(leg)s)
        AND p.position >= %(start)s AND p.position < %(end)s
    ORDER BY p.position, p.leg LIMIT %(limit)s
"""
_EVENTS = f"""
    SELECT e.position, e.address, e.record,
        (SELECT coalesce(sum(amount_nano), 0)::text FROM postings
            WHERE account = %(receivable)s AND position = e.position),
        (SELECT coalesce(-sum(amount_nano), 0)::text FROM postings
            WHERE account = %(credits)s AND position = e.position)
    FROM ({_OF_CUSTOMER}) AS c JOIN events e USING (position)
    WHERE e.position > %(after)s AND e.position >= %(start)s AND e.position < %(end)s
    ORDER BY e.position LIMIT %(limit)s
"""
_BALANCE = """
    SELECT balance_nano::text, held_nano::text FROM postings WHERE account = %(account)s AND position < %(bound)s
    ORDER BY position DESC, leg DESC LIMIT 1
"""


class Account(NamedTuple):
    """Whose movements are read: those of an account."""

    account: str

    @property
    def positions(self) -> str:
        return _OF_ACCOUNT

    @property
    def names(self) -> dict[str, str]:
        return {"account": self.account}


class Customer(NamedTuple):
    """Whose events are read: those of a customer in a currency."""

    tenant: str
    currency: str

    @property
    def positions(self) -> str:
        return _OF_CUSTOMER

    @property
    def names(self) -> dict[str, str]:
        accounts = {name: f"{name}.{self.tenant}.{self.currency}" for name in ("receivable", "credits")}
        return self._asdict() | accounts


class Range(NamedTuple):
    """Positions from one on and before another."""

    start: int
    end: int


async def range_of(
    pool: AsyncConnectionPool[Any], whose: Account | Customer, start: str | None, end: str | None, bound: int
) -> Range:
    """Cut a period in the order of the log: from the first of these recorded at its start, before the first at its end.

    Cost:   a look-up for each halving of the log, and the movements of a day on either side.
    Errors: unavailable.
    """
    async with reading(pool) as cursor:
        first = 0 if start is None else await _first(cursor, whose, start, bound)
        last = bound if end is None else await _first(cursor, whose, end, bound)
    return Range(first, max(first, last))


async def _first(cursor: AsyncCursor[Any], whose: Account | Customer, moment: str, bound: int) -> int:
    low = await _recorded_before(cursor, moment, bound)
    await cursor.execute(
        f"SELECT e.position FROM ({whose.positions}) AS c JOIN events e USING (position)"
        f' WHERE e.position >= %(low)s AND e.position < %(bound)s AND ({_AT}) COLLATE "C" >= %(moment)s'
        " ORDER BY e.position LIMIT 1",
        whose.names | {"low": low, "bound": bound, "moment": moment},
    )
    row = await cursor.fetchone()
    return bound if row is None else int(row[0])


async def _recorded_before(cursor: AsyncCursor[Any], moment: str, bound: int) -> int:
    """Find a position before which everything was recorded earlier, however far two clocks were apart."""
    try:
        earliest = moment_text(moment_of(moment) - timedelta(seconds=CLOCKS_S_MAX))
    except OverflowError:
        return 0
    low, high = 0, bound
    while low < high:
        middle = (low + high) // 2
        await cursor.execute(f"SELECT {_AT} FROM events e WHERE position = %s", (middle,))
        row = await cursor.fetchone()
        if row is not None and row[0] < earliest:
            low = middle + 1
        else:
            high = middle
    return low


async def standing(pool: AsyncConnectionPool[Any], account: str, bound: int) -> Standing:
    """Read an account as it stood before a position; nothing where it was not open yet.

    Errors: unavailable.
    """
    async with reading(pool) as cursor:
        await cursor.execute(_BALANCE, {"account": account, "bound": bound})
        row = await cursor.fetchone()
    return Standing(int(row[0]), int(row[1])) if row else Standing(0, 0)


async def owing(pool: AsyncConnectionPool[Any], whose: Customer, bound: int) -> Owing:
    """Read what a customer owed, and had as credit, before a position.

    Errors: unavailable.
    """
    names = whose.names
    owed = await standing(pool, names["receivable"], bound)
    credit = await standing(pool, names["credits"], bound)
    return Owing(owed.balance_nano, credit.balance_nano)


async def sums(pool: AsyncConnectionPool[Any], account: str, within: Range) -> Sums:
    """Add up the movements of an account between positions.

    Cost:   one scan of an index.
    Errors: unavailable.
    """
    async with reading(pool) as cursor:
        await cursor.execute(_SUMS, {"account": account, **within._asdict()})
        row = await cursor.fetchone()
    assert row is not None
    return Sums(int(row[0]), int(row[1]), int(row[2]))


async def event_count(pool: AsyncConnectionPool[Any], whose: Customer, within: Range) -> int:
    """Count the events of a customer between positions.

    Errors: unavailable.
    """
    async with reading(pool) as cursor:
        await cursor.execute(
            f"SELECT count(*) FROM ({_OF_CUSTOMER}) AS c WHERE position >= %(start)s AND position < %(end)s",
            whose.names | within._asdict(),
        )
        row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def moment_at(
    pool: AsyncConnectionPool[Any], whose: Account | Customer, within: Range, number: int
) -> str:
    """Say when the n-th movement between positions was recorded; 0 is the first.

    Errors: unavailable.
    """
    async with reading(pool) as cursor:
        await cursor.execute(
            f"SELECT {_AT} FROM (SELECT position FROM ({whose.positions}) AS c"
            " WHERE position >= %(start)s AND position < %(end)s"
            " ORDER BY position OFFSET %(number)s LIMIT 1) AS c JOIN events e USING (position)",
            whose.names | within._asdict() | {"number": number},
        )
        row = await cursor.fetchone()
    assert row is not None, "who asks has counted them"
    return str(row[0])


# --------------------------------------------------------------------------- pages


async def movements(
    pool: AsyncConnectionPool[Any], account: str, within: Range, page: int = PAGE
) -> AsyncIterator[list[Movement]]:
    """Read the movements of an account between positions, a page at a time.

    Cost:   one index scan a page, and memory for one page of records.
    Errors: unavailable.
    """
    after, leg = -1, -1
    while True:
        given = {"account": account, "after": after, "leg": leg, "limit": page, **within._asdict()}
        async with reading(pool) as cursor:
            await cursor.execute(_LEGS, given)
            rows = await cursor.fetchall()
        if rows:
            yield [_movement(row) for row in rows]
        if len(rows) < page:
            return
        after, leg = rows[-1][0], rows[-1][3]


async def events(
    pool: AsyncConnectionPool[Any], whose: Customer, within: Range, page: int = PAGE
) -> AsyncIterator[list[Event]]:
    """Read the events of a customer between positions, a page at a time.

    Errors: unavailable.
    """
    after = -1
    while True:
        async with reading(pool) as cursor:
            await cursor.execute(_EVENTS, whose.names | {"after": after, "limit": page} | within._asdict())
            rows = await cursor.fetchall()
        if rows:
            yield [Event(_told(row), Owing(int(row[3]), int(row[4]))) for row in rows]
        if len(rows) < page:
            return
        after = rows[-1][0]


class _Facts(msgspec.Struct):
    """The members of an event that a statement tells; other events may mean something else by such a name."""

    money: list[Entry] = []
    kind: Any = None
    number: Any = None
    invoice: Any = None
    period_start: Any = None
    period_end: Any = None
    amount: Any = None
    owed: Any = None


class _Said(msgspec.Struct):
    at: str
    type: str
    stream: str
    data: _Facts


_said = msgspec.json.Decoder(_Said)
_FACTS = ("kind", "number", "invoice", "period_start", "period_end")


def _told(row: Sequence[Any]) -> Told:
    said = _said.decode(row[2])
    facts = {name: value for name in _FACTS if isinstance(value := getattr(said.data, name), str)}
    # A document says what it made owed, everything else what it moved.
    money = said.data.amount if said.data.owed is None else said.data.owed
    if isinstance(money, dict) and isinstance(money.get("amount"), str):
        facts["amount"] = money["amount"]
    return Told(row[0], bytes(row[1]), said.at, said.type, said.stream, said.data.money, facts)


def _movement(row: Sequence[Any]) -> Movement:
    return Movement(_told(row), row[3], int(row[4]), row[5], Standing(int(row[6]), int(row[7])))
