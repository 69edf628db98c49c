"""What tests of the projections share: a market with everything in it, followers of its log, and the log read plainly.

The plain reading knows nothing of projections: records are decoded with `json`, amounts with `decimal`.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any, NamedTuple

import psycopg

from ops.clickhouse import ClickHouse, as_reader, as_service
from ops.engine.process import Target
from ops.listen import Listener
from ops.postgres import reader_pool
from ops.reads import LogReader
from projections.follower import BATCH_MAX, Follower
from projections.groups import GROUPS
from projections.warehouse import PROJECTIONS, Warehouse
from tests.real.api.world import World, money

TENANTS = ("lab", "shop", "clinic", "ward")


# --------------------------------------------------------------------------- the market


def tell_market(world: World) -> None:
    """Play every part of the market: matches and failures, escrow that is paid, given back, split and disputed."""
    clinic, ward = world.provider("clinic"), world.provider("ward")
    lab, shop = world.owner("lab"), world.owner("shop")
    for seller, price in ((clinic, "10"), (ward, "12.345678901"), (clinic, "7.5")):
        world.offer(seller, price_per_round=money(price))
    _change_offers(world)
    for tenant in TENANTS:
        world.deposit(tenant, "250.25")
    world.deposit("lab", "1000", "JPY")
    _release(world, lab)
    _release(world, shop)
    _give_back(world, lab)
    _dispute(world, shop)
    waiting = world.funded(lab)
    assert waiting["escrow_status"] == "locked"
    world.contract(shop)
    _fail_to_match(world)
    _pay(world)
    _meter(world)
    lab.made(
        "/v1/personas", {"persona_id": "ward-helper", "display_name": "Ward helper", "domains": ["health"]}
    )
    lab.patch("/v1/personas/ward-helper", {"summary": "Finds the bed that is free."})
    world.operator.made("/v1/training/enable", {"tenant": "lab", "reason": "quarterly run"})


def _change_offers(world: World) -> None:
    ward = world.provider("ward")
    offer = world.offer(ward, price_per_round=money("99"))
    ward.patch(f"/v1/offers/{offer['id']}", {"price_per_round": money("0"), "allowed_tasks": []})
    ward.made(f"/v1/offers/{offer['id']}/pause")
    ward.made(f"/v1/offers/{offer['id']}/resume")
    ward.made(f"/v1/offers/{offer['id']}/retire")


def _release(world: World, owner: Any) -> None:
    contract = world.completed(owner)
    owner.made(f"/v1/contracts/{contract['id']}/release", {})


def _give_back(world: World, owner: Any) -> None:
    contract = world.funded(owner)
    owner.made(f"/v1/contracts/{contract['id']}/refund", {"reason": "no round was found"})


def _dispute(world: World, owner: Any) -> None:
    contract = world.completed(owner)
    dispute = owner.made(f"/v1/contracts/{contract['id']}/disputes", {"reason": "half of it is missing"})
    world.operator.made(f"/v1/disputes/{dispute['id']}/review", {})
    decided = {"outcome": "split", "sellers_share": "0.333333", "resolution": "a third is due"}
    world.operator.made(f"/v1/disputes/{dispute['id']}/resolve", decided)
    owner.made(f"/v1/contracts/{contract['id']}/release", {})


def _fail_to_match(world: World) -> None:
    lab = world.owner("lab")
    for wish in ({"budget_total": money("0.01")}, {"task_type": "translation"}, {"budget_total": None}):
        intent = world.intent(lab, **wish)
        lab.post(f"/v1/intents/{intent['id']}/match", {"max_offers": 3})
        if wish.get("task_type"):
            lab.patch(f"/v1/intents/{intent['id']}", {"budget_total": None, "task_type": "detection"})
            lab.made(f"/v1/intents/{intent['id']}/cancel")


def _pay(world: World) -> None:
    for n in range(40):
        payer, payee = TENANTS[n % 4], TENANTS[(n + 1) % 4]
        body = {"to_tenant": payee, "amount": money(f"{n % 7}.{n + 1:09d}")}
        world.owner(payer).made("/v1/transfers", body)


def _meter(world: World) -> None:
    readings = [
        {
            "source": "gateway", "event_id": f"e{n}", "occurred_at": f"2026-1{n % 2}-1{n % 9}T0{n % 5}:59:59.999999Z",
            "provider": f"p{n % 2}", "model": f"m{n % 3}", "tokens_in": n * 7, "tokens_out": n * 11 + 1,
            "requests": n % 3 + 1, "status": "error" if n % 6 == 0 else "ok",
        } | ({"cost": money(f"0.{n + 1:09d}")} if n % 4 else {}) | ({"latency_ms": n * 3} if n % 3 else {})
        for n in range(30)
    ]  # fmt: skip
    for tenant in ("lab", "shop"):
        world.speaker(tenant, "billing").made("/v1/usage", {"readings": readings})


# --------------------------------------------------------------------------- followers


@asynccontextmanager
async def connected(target: Target, *, reader: bool = False) -> AsyncIterator[ClickHouse]:
    """Connect as one of the two accounts."""
    clickhouse = await ClickHouse.open(*(as_reader if reader else as_service)(target))
    try:
        yield clickhouse
    finally:
        await clickhouse.close()


@asynccontextmanager
async def log_of(url: str) -> AsyncIterator[LogReader]:
    """Read a log."""
    pool = reader_pool(url, 2)
    await pool.open()
    try:
        yield LogReader(pool)
    finally:
        await pool.close()


@asynccontextmanager
async def sink_of(target: Target, url: str, name: str, **options: Any) -> AsyncIterator[Warehouse]:
    """Lead one group of tables."""
    async with log_of(url) as log, connected(target) as clickhouse:
        sink = Warehouse(name, url, clickhouse, log.versions, **options)
        try:
            await sink.open()
            yield sink
        finally:
            await sink.close()


async def follow(
    target: Target,
    url: str,
    names: Sequence[str] = PROJECTIONS,
    *,
    batch_max: int = BATCH_MAX,
    until: int | None = None,
    **options: Any,
) -> None:
    """Follow the log of a database to its end, and settle what may wait."""
    async with log_of(url) as log, Listener(url) as listener:
        size = await log.size() if until is None else until
        for name in names:
            async with connected(target) as clickhouse:
                sink = Warehouse(name, url, clickhouse, log.versions, **options)
                await Follower(name, sink, url, listener, batch_max=batch_max, linger_s=0).run(until=size)
            async with sink_of(target, url, name, **options) as sink:
                await sink.settle()


async def ask(target: Target, query: str, *, reader: bool = False) -> list[tuple[Any, ...]]:
    """Ask one thing."""
    async with connected(target, reader=reader) as clickhouse:
        return await clickhouse.rows(query)


def prints(target: Target) -> dict[str, Any]:
    """Take the fingerprint of every table as it is read: how many rows, and a sum over hashes of all their columns.

    Up to where a sum was counted is left out: it says where batches were cut, not what was counted.
    """
    found = {}
    for group in GROUPS.values():
        for table in group.tables:
            is_rollup = group.rollup is not None and table == group.rollup.table
            columns = "* EXCEPT upto" if is_rollup else "*"
            query = f"SELECT count(), sum(toUInt128(sipHash64(tuple({columns})))) FROM soma.{table} FINAL"
            found[table] = asyncio.run(ask(target, query))[0]
    return found


# --------------------------------------------------------------------------- the log, read plainly


class Leg(NamedTuple):
    """One movement of money, as the record says it."""

    position: int
    leg: int
    day: str
    account: str
    currency: str
    amount: Decimal
    op: str


class Plain:
    """A log read with the standard library only."""

    def __init__(self, url: str) -> None:
        with psycopg.connect(url) as connection:
            found = connection.execute(
                "SELECT position, address, record FROM events ORDER BY position"
            ).fetchall()
            self.accounts = {
                name: (side, Decimal(int(balance)).scaleb(-9), Decimal(int(held)).scaleb(-9))
                for name, side, balance, held in connection.execute(
                    "SELECT account, side, balance_nano, held_nano FROM accounts"
                )
            }
        self.addresses = [bytes(address) for _, address, _ in found]
        self.records: list[dict[str, Any]] = [json.loads(bytes(record)) for _, _, record in found]
        self.bytes = [bytes(record) for _, _, record in found]

    @property
    def size(self) -> int:
        return len(self.records)

    def of(self, *types: str) -> list[dict[str, Any]]:
        """Give the records of some types."""
        return [record for record in self.records if record["type"] in types]

    def legs(self) -> list[Leg]:
        """Give every movement of money, numbered as the book numbers its moves."""
        found = []
        for position, record in enumerate(self.records):
            leg = 0
            for entry in record["data"].get("money", []):
                if entry["op"] not in ("transfer", "post"):
                    leg += 1
                    continue
                leg += entry["op"] == "post"
                for posting in entry["postings"]:
                    found.append(
                        Leg(
                            position,
                            leg,
                            record["at"][:10],
                            posting["account"],
                            entry["currency"],
                            Decimal(posting["amount"]),
                            entry["op"],
                        )
                    )
                    leg += 1
        return found


def summed(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """Sum values by key."""
    sums: dict[Any, Any] = defaultdict(int)
    for key, value in pairs:
        sums[key] += value
    return dict(sums)
