"""Whoever asks for rentals, invoices or payouts by the beginning of a type is told of each, on feeds and by webhook."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.api.world import World
from tests.real.billing.trading import Trade
from tests.real.feeds.delivering import delivering, events, register, webhook_settings
from tests.real.feeds.reader import FeedReader
from tests.real.feeds.receiver import receiving
from tests.real.service import serving

WANTED = [
    "rental.*",
    "subscription.*",
    "purchase.*",
    "invoice.*",
    "credit_note.issued",
    "grant.*",
    "usage.corrected",
]
TOLD = {
    "rental.requested", "rental.activated", "rental.extended", "rental.ended", "subscription.started",
    "subscription.period_settled", "subscription.renewed", "subscription.ended", "purchase.made", "purchase.settled",
    "purchase.refunded", "invoice.issued", "invoice.payment_failed", "invoice.paid", "invoice.credited",
    "invoice.corrected", "credit_note.issued", "grant.granted", "grant.burned", "grant.expired", "usage.corrected",
}  # fmt: skip


@pytest.fixture
def trade() -> Trade:
    return Trade()


@pytest.fixture
def world(database_url: str, tmp_path: Path, trade: Trade) -> Iterator[World]:
    """Run a service whose clock the story moves; what works in its background leaves the story alone."""
    settings = webhook_settings(database_url, tmp_path)
    with serving(settings, trade.clock) as service, service.client() as client, delivering(service):
        for worker in ("billing", "timers", "revocations"):
            service.run(getattr(service.app.state, worker).close())
        yield World(service, client)


def test_a_subscriber_by_the_beginning_of_a_type_is_told_all_of_it_and_nothing_else(
    world: World, trade: Trade
) -> None:
    buyer = world.owner("acme")
    with receiving() as receiver:
        register(buyer, receiver.url, types=WANTED)
        seller = register(world.provider("maker"), receiver.url, types=["payout.*"])
        world.service.run(trade.play(world.service.runtime))
        beginnings = tuple(name.removesuffix("*") for name in WANTED)
        logged = [e for e in events(world, "acme") if e["record"]["type"].startswith(beginnings)]
        payouts = [e for e in events(world, "maker") if e["record"]["type"].startswith("payout.")]
        assert {e["record"]["type"] for e in logged} >= TOLD
        assert [e["record"]["type"] for e in payouts].count("payout.requested") == 2
        receiver.wait(lambda seen: len(seen) >= len(logged) + len(payouts))
        assert sorted(receiver.positions()) == sorted(e["position"] for e in (*logged, *payouts))
        assert seller["types"] == ["payout.*"]
    feed = FeedReader(world.service.url, buyer.token, type=WANTED, follow="false", **{"from": 0})
    told = list(feed.events(world.client))
    assert feed.positions == [e["position"] for e in logged]
    assert {event.name for event in told} >= TOLD
