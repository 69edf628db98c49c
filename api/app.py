"""The HTTP application: routes, problems, limits and metrics around one open ledger."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import openapi, problems
from api.routes import (
    artifacts,
    attestations,
    billing,
    capsules,
    catalog,
    claims,
    dead_letters,
    documents,
    evaluations,
    feeds,
    invoices,
    market,
    money,
    personas,
    policies,
    proofs,
    quotas,
    reconciliations,
    rentals,
    sql,
    system,
    training,
    transfers,
    trust,
    usage,
    webhooks,
)
from api.routes import log as log_routes
from domain.errors import BodyTooLargeError
from ops import telemetry
from ops.catalogue import Catalogue
from ops.clock import Clock
from ops.keys_webhooks import WebhookKeys
from ops.listen import Listener
from ops.rego import open_engine
from ops.runtime import Runtime, open_runtime
from ops.settings import Settings
from ops.tokens import LocalIssuer, TokenGate
from projections.billing_run import BillingRun
from projections.feed import LogFeed, feed_limits
from projections.inspections import Inspections
from projections.quotas import QuotaWatch
from projections.reconciliations import Asked
from projections.revocations import RevocationWatch
from projections.rounds import RoundRunner
from projections.sweeper import Sweeper
from projections.timers import Timers
from projections.transfers import TransferRunner
from projections.trust_watch import TrustWatch

VERSION = "0.1.0"
# What is counted by name; anything a caller may invent is counted as one.
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
ROUTERS = (
    market.router, money.router, usage.router, training.router, trust.router, log_routes.router, feeds.router,
    webhooks.router, dead_letters.router, reconciliations.router, policies.router, system.router, artifacts.router,
    transfers.router, catalog.router, evaluations.router, personas.router, capsules.router, claims.router,
    attestations.router, rentals.router, billing.router, invoices.router, documents.router,
    proofs.router, quotas.router,
)  # fmt: skip


def create_app(
    settings: Settings, observe: Callable[[int], None] | None = None, clock: Clock | None = None
) -> FastAPI:
    """Make the application; it opens the ledger when it starts and closes it when it stops.

    Tests may observe the states of a commit, and set the clock.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with (
            open_runtime(settings, observe, clock) as opened,
            Listener(opened.url) as listener,
            LogFeed(opened.reader, listener, feed_limits(settings)) as feed,
        ):
            app.state.runtime = opened
            app.state.feed = feed
            app.state.engine = open_engine(settings)
            async with _at_work(app.state, opened):
                yield

    app = FastAPI(
        title="Soma Ledger",
        version=VERSION,
        description="An event-sourced ledger for a marketplace of AI personas. Every change is one immutable event.",
        lifespan=lifespan,
        openapi_url="/openapi.json",
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    issuer = LocalIssuer(settings)
    app.state.settings = settings
    app.state.webhook_keys = WebhookKeys.open(settings.webhook_key_path)
    app.state.issuer = issuer
    app.state.tokens = TokenGate(settings, issuer)
    for router in ROUTERS:
        app.include_router(router)
    app.router.routes.extend(sql.routes)
    problems.install(app)
    app.openapi = lambda: openapi.document(app)  # type: ignore[method-assign]
    app.add_middleware(
        _Limits,
        bytes_max=settings.body_bytes_max,
        larger={
            "/v1/datasets": settings.dataset_bytes_max,
            "/v1/usage": settings.usage_bytes_max,
            artifacts.PREFIX: settings.artifact_bytes_max,
        },
    )
    app.add_middleware(_Meter)
    return app


@asynccontextmanager
async def _at_work(state: Any, opened: Runtime) -> AsyncIterator[None]:
    """Run everything that works in the background, and take up what was left undone."""
    state.catalogue = Catalogue(opened.reader.pool)
    state.rounds = RoundRunner(opened)
    state.sweeper = Sweeper(opened)
    state.reconciliations = Asked(opened)
    state.inspections = Inspections(opened)
    state.transfers = TransferRunner(opened, state.engine)
    state.trust_watch = TrustWatch(opened)
    state.billing = BillingRun(opened)
    state.quotas = QuotaWatch(opened)
    state.timers = Timers(opened)
    state.revocations = RevocationWatch(opened)
    await state.rounds.resume()
    await state.transfers.resume()
    await state.inspections.resume()
    state.inspections.look()
    state.sweeper.start()
    state.catalogue.start()
    state.trust_watch.start()
    state.billing.start()
    state.quotas.start()
    if opened.settings.timers:
        state.timers.start()
        state.revocations.start()
    try:
        yield
    finally:
        await sql.sql_app(state).close()
        await state.reconciliations.close()
        await state.catalogue.close()
        await state.timers.close()
        await state.revocations.close()
        await state.sweeper.close()
        await state.trust_watch.close()
        await state.billing.close()
        await state.quotas.close()
        await state.inspections.close()
        await state.transfers.close()
        await state.rounds.close()
        await state.engine.close()


class _Limits:
    """Refuses bodies over the limit, by their stated length or while they come in."""

    def __init__(self, app: ASGIApp, bytes_max: int, larger: Mapping[str, int]) -> None:
        self._app = app
        self._bytes_max = bytes_max
        self._larger = larger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        bytes_max = self._larger.get(path) or self._larger.get(path.rpartition("/")[0], self._bytes_max)
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        if stated.isdigit() and (len(stated) > 18 or int(stated) > bytes_max):
            await problems.respond(BodyTooLargeError(bytes_max=bytes_max))(scope, receive, send)
            return
        seen = 0

        async def bounded() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > bytes_max:
                raise BodyTooLargeError(bytes_max=bytes_max)
            return message

        await self._app(scope, bounded, send)


class _Meter:
    """Counts requests and their time, by route template and never by raw path."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._children: dict[tuple[str, str, str], Any] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = "500"

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._count(route, method, status, time.perf_counter() - started)

    def _count(self, route: str, method: str, status: str, seconds: float) -> None:
        key = (route, method, status)
        children = self._children.get(key)
        if children is None:
            children = self._children[key] = (
                telemetry.HTTP_REQUESTS.labels(*key),
                telemetry.HTTP_REQUEST_SECONDS.labels(route),
            )
        children[0].inc()
        children[1].observe(seconds)
