"""The sweeper follows deadlines: it writes down that offers, intents, escrows and reviews have expired.

Nothing depends on it for being right, since every decision compares with the clock itself; it makes lists and
timelines say what is already so. It works from `records.deadline`, so a crash loses nothing.
"""

from __future__ import annotations

import asyncio

import msgspec

from domain.errors import LedgerError
from domain.ledger import Caller
from domain.market.contracts import ExpireEscrow, expire_escrow
from domain.market.intents import IntentStep, expire_intent
from domain.market.offers import OfferStep, expire_offer
from domain.persona.reviewing import expire
from domain.trust.reviews import Review, ReviewStep
from domain.values import moment_of
from ops import telemetry
from ops.runtime import Runtime
from ops.tasks import stop

log = telemetry.logger(__name__)

SWEEPER = Caller("sweeper", "platform", frozenset({"service"}))
INTERVAL_S = 1.0
BATCH_MAX = 500
# What runs on personas has timers of its own, which are punctual (projections.timers).
KINDS = ("offer", "intent", "contract", "review")


class Sweeper:
    """Looks for due deadlines once a second."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Stop looking."""
        await stop(self._task)

    async def sweep(self) -> int:
        """Write down what is due now; give the number of aggregates looked at."""
        due = await self._runtime.reader.due(KINDS, BATCH_MAX)
        for kind, name in due:
            ledger = self._runtime.ledger
            if kind == "offer":
                await ledger.act(expire_offer, OfferStep(offer_id=name), SWEEPER)
            elif kind == "intent":
                await ledger.act(expire_intent, IntentStep(intent_id=name), SWEEPER)
            elif kind == "contract":
                await ledger.act(expire_escrow, ExpireEscrow(contract_id=name), SWEEPER)
            elif kind == "review":
                await self._expire_review(name)
        return len(due)

    async def _expire_review(self, name: str) -> None:
        answer = await self._runtime.ledger.act(expire, ReviewStep(capsule=name), SWEEPER)
        if answer.event_count:
            review = msgspec.json.decode(answer.body, type=Review)
            age = moment_of(review.updated_at) - moment_of(review.opened_at)
            telemetry.REVIEW_SECONDS.labels("expired").observe(age.total_seconds())

    async def _run(self) -> None:
        while True:
            try:
                await self.sweep()
            except LedgerError as outage:
                log.warning("sweep_failed", code=outage.code, detail=outage.message)
            await asyncio.sleep(INTERVAL_S)
