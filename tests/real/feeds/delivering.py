"""A webhook worker inside a running service's process, and the steps tests take around it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from domain.ledger import Caller
from domain.market.offers import ListOffer, list_offer
from domain.values import Money
from ops.listen import Listener
from ops.settings import Settings
from projections.webhooks import WebhookWorker
from tests.real.api.world import UNSEEN, Speaker, World, offer_body
from tests.real.service import Service, settings_on

QUICK = "0.05,0.05,0.1"


def webhook_settings(database_url: str, data_dir: Path, **more: Any) -> Settings:
    """Make settings whose webhooks may lead to this machine and are tried again at once."""
    chosen = {
        "webhooks_allow_http": True,
        "webhooks_allow_private": True,
        "webhook_retry_delays_s": QUICK,
        "webhook_timeout_s": 5.0,
    }
    return settings_on(database_url, data_dir, **(chosen | more))


@contextmanager
def delivering(service: Service) -> Iterator[WebhookWorker]:
    """Run a worker on the loop of a service until the block is left."""
    workers: list[WebhookWorker] = []

    async def work() -> None:
        async with Listener(service.runtime.url) as listener:
            workers.append(WebhookWorker(service.runtime, listener))
            await workers[0].run()

    running = asyncio.run_coroutine_threadsafe(work(), service.loop)
    try:
        yield workers[0] if workers else None  # type: ignore[misc]
    finally:
        running.cancel()
        service.run(_settled())


async def _settled() -> None:
    """Let what was cancelled close its connections."""
    await asyncio.sleep(0.2)


def write(world: World, count: int, tenant: str = "acme") -> list[int]:
    """Write one record of a tenant after the other; give their positions."""
    owner = world.owner(tenant)
    return [int(world.intent(owner)["receipt"]["position"]) for _ in range(count)]


def write_large(world: World, count: int, tenant: str = "acme") -> None:
    """Write many large records of a tenant at once, past HTTP."""
    command = ListOffer(
        **offer_body(tenant) | {"price_per_round": Money.parse("10", "USD")},
        label_schema={"x": "y" * 15_000},
        dataset_fingerprint=UNSEEN,
    )
    caller = Caller("clinic", tenant, frozenset({"provider"}))

    async def write_all() -> None:
        ledger = world.service.runtime.ledger
        await asyncio.gather(*(ledger.act(list_offer, command, caller) for _ in range(count)))

    world.service.run(write_all())


def register(who: Speaker, url: str, **fields: Any) -> dict[str, Any]:
    """Register a webhook."""
    return who.made("/v1/webhooks", {"url": url} | fields)


def events(world: World, tenant: str | None, **params: Any) -> list[dict[str, Any]]:
    """Read a tenant's records from the log, or everybody's, as the operator may."""
    asked = {"limit": 500} | ({"tenant": tenant} if tenant else {}) | params
    found: list[dict[str, Any]] = []
    while True:
        page = world.operator.read("/v1/log/events", params=asked)
        found += page["items"]
        if page["next"] is None:
            return found
        asked["after"] = page["next"]
