"""Deadlines that pass: the sweeper writes down what is already so, once, and gives what expired back."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import psycopg

from domain.billing.accounts import Deposit, deposit
from domain.ledger import Caller
from domain.market import contracts, intents, offers
from domain.market.matching import MatchPolicy
from domain.values import Money, moment_text
from ops.runtime import open_runtime
from ops.settings import Settings
from projections.sweeper import Sweeper

SELLER = Caller("s", "clinic", frozenset({"provider"}))
OWNER = Caller("o", "lab", frozenset({"owner"}))
TELLER = Caller("t", "platform", frozenset({"billing"}))


def test_what_is_overdue_expires_once_and_a_second_sweep_changes_nothing(
    database_url: str, tmp_path: Path
) -> None:
    async def story() -> None:
        async with open_runtime(Settings(data_dir=tmp_path, database_url=database_url)) as rt:
            soon = moment_text(datetime.now(UTC) + timedelta(milliseconds=300))
            listing = offers.ListOffer(
                seller_node_id="n",
                dataset_fingerprint="f",
                price_per_round=Money.parse("1", "USD"),
                expires_at=soon,
            )
            opening = intents.OpenIntent(model_owner_id="lab", task_type="t", deadline_ts=soon)
            listed = msgspec.json.decode((await rt.ledger.act(offers.list_offer, listing, SELLER)).body)
            opened = msgspec.json.decode((await rt.ledger.act(intents.open_intent, opening, OWNER)).body)
            sweeper = Sweeper(rt)
            assert await sweeper.sweep() == 0
            await asyncio.sleep(0.4)
            assert await sweeper.sweep() == 2
            size = await rt.reader.size()
            assert await sweeper.sweep() == 0
            assert await rt.reader.size() == size
            streams = [f"offer/{listed['id']}", f"intent/{opened['id']}"]
            states = await rt.reader.load(streams)
            assert {s: states[s].aggregate.status_key() for s in streams} == dict.fromkeys(streams, "expired")

    asyncio.run(story())


def test_an_escrow_that_is_overdue_goes_back_to_its_owner_and_its_hold_has_expired(
    database_url: str, tmp_path: Path
) -> None:
    async def story() -> None:
        async with open_runtime(Settings(data_dir=tmp_path, database_url=database_url)) as rt:
            act, price = rt.ledger.act, Money.parse("5", "USD")
            listing = offers.ListOffer(seller_node_id="n", dataset_fingerprint="f", price_per_round=price)
            await act(offers.list_offer, listing, SELLER)
            await act(deposit, Deposit(tenant="lab", amount=price), TELLER)
            opening = intents.OpenIntent(model_owner_id="lab", task_type="t")
            wish = msgspec.json.decode(
                (await act(intents.open_intent, opening, OWNER)).body, type=intents.Intent
            )
            size, found, _ = await rt.reader.market()
            candidates = [intents.candidate(offer, None) for offer in found]

            async def gather() -> dict[str, object]:
                proposed = intents.propose(wish, 3, candidates, MatchPolicy(), rt.clock(), size - 1)
                return {"proposed": proposed, "fee_ppm": 0}

            matching = intents.MatchIntent(intent_id=wish.id)
            agreed = msgspec.json.decode(
                (await act(intents.match_intent, matching, OWNER, gather=gather)).body
            )
            soon = moment_text(datetime.now(UTC) + timedelta(milliseconds=300))
            await act(
                contracts.fund_contract,
                contracts.FundContract(contract_id=agreed["id"], expires_at=soon),
                OWNER,
            )
            assert (await rt.reader.balance("wallet.lab.USD")).held_nano == price.nano
            await asyncio.sleep(0.4)
            assert await Sweeper(rt).sweep() == 1
            balance = await rt.reader.balance("wallet.lab.USD")
            assert (balance.balance_nano, balance.held_nano) == (price.nano, 0)
        with psycopg.connect(database_url) as conn:
            assert conn.execute("SELECT status FROM holds").fetchall() == [("expired",)]

    asyncio.run(story())
