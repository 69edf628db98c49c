"""Deadlines that pass: the sweeper writes down what is already so, once, and gives what expired back."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from domain.ledger import Caller
from domain.market import intents, offers
from domain.values import Money, moment_text
from ops.runtime import open_runtime
from ops.settings import Settings
from projections.sweeper import Sweeper

SELLER = Caller("s", "clinic", frozenset({"provider"}))
OWNER = Caller("o", "lab", frozenset({"owner"}))


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
