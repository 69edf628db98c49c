"""Webhooks follow the log: every record an endpoint wants is sent to it, in order, at least once.

    1  the lane says which position is next, which attempt this is, and when it is due
    2  send                       a crash from here on sends the same message again, under the same id
    3  arrived, or given up       the lane moves and the delivery is noted, in one transaction
       failed                     the attempt is counted and the next one is due later

One process leads, by the lock of the follower `webhooks`; a lane moves by compare-and-set, so a leader that lost its
lock without noticing moves nothing. Behind a message that fails the others wait, since an endpoint is told in order.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

from domain.errors import LedgerError, WebhookKeyError
from domain.feeds.messages import message_body, message_id
from domain.feeds.webhooks import DisableWebhook, Webhook, disable_webhook
from domain.ledger import Caller
from ops import telemetry
from ops.keys_webhooks import WebhookKeys
from ops.listen import Listener
from ops.outbound import Outbound, Outcome
from ops.positions import Place
from ops.reads import Told
from ops.runtime import Runtime
from ops.webhook_store import LIVE, Lane, Message, WebhookStore
from projections.feed import Limits, LogFeed

log = telemetry.logger(__name__)

WORKER = Caller("webhooks", "platform", frozenset({"service"}))
NAME = "webhooks"
USER_AGENT = "soma-ledger-webhooks/1"
REFRESH_S = 0.5
IDLE_S = 1.0
TROUBLE_S_MAX = 30.0
TRIM_S = 3_600.0
JITTER = 0.2
LIMITS = Limits(buffer_records_max=500, buffer_bytes_max=2_000_000)

Key = tuple[str, int]
"""A lane: webhook and number."""


class _StoppedError(Exception):
    """Nothing more is to be sent on this lane; the log says why."""


class WebhookWorker:
    """Sends to every active webhook, from the one process that leads."""

    def __init__(
        self, runtime: Runtime, listener: Listener, outbound: Callable[[], Outbound] | None = None
    ) -> None:
        self.runtime = runtime
        self.settings = runtime.settings
        self.store = WebhookStore(runtime.reader.pool)
        self.keys = WebhookKeys.open(self.settings.webhook_key_path)
        self.sending = asyncio.Semaphore(self.settings.webhook_concurrency_max)
        self.outbound = outbound or self._outbound
        self._listener = listener
        self._couriers: dict[Key, _Courier] = {}
        self._trimmed_s = 0.0

    def _outbound(self) -> Outbound:
        return Outbound(
            timeout_s=self.settings.webhook_timeout_s, allow_private=self.settings.webhooks_allow_private
        )

    async def run(self) -> None:
        """Wait to lead, then send for ever.

        Errors: follower_superseded, key_file_unusable, unavailable.
        """
        while True:
            place = await Place.open(self.runtime.url, NAME)
            try:
                await place.lead()
                log.info("webhooks_led")
                async with LogFeed(self.runtime.reader, self._listener, LIMITS) as feed:
                    try:
                        await self._lead(place, feed)
                    finally:
                        await self._dismiss(list(self._couriers))
            finally:
                await place.close()

    async def _lead(self, place: Place, feed: LogFeed) -> None:
        """Keep one courier for each lane of each active webhook, until somebody else shall lead."""
        while not place.handover:
            webhooks = {hook.id: hook for hook in await self.runtime.reader.all_of("webhook", "active")}
            lanes = await self.store.lanes()
            wanted: set[Key] = {(name, LIVE) for name in webhooks}
            wanted |= {(lane.webhook, lane.lane) for lane in lanes if lane.webhook in webhooks}
            await self._dismiss([key for key in self._couriers if key not in wanted])
            for key in sorted(wanted):
                await self._send_out(key, webhooks[key[0]], feed)
            await self._report(place, [lane for lane in lanes if (lane.webhook, lane.lane) in wanted])
            await asyncio.sleep(REFRESH_S)

    async def _send_out(self, key: Key, webhook: Webhook, feed: LogFeed) -> None:
        courier = self._couriers.get(key)
        if courier is not None and (courier.task.done() or courier.webhook.wish != webhook.wish):
            await self._dismiss([key])
            courier = None
        if courier is None:
            self._couriers[key] = _Courier(self, webhook, key[1], feed)
        else:
            courier.webhook = webhook

    async def _dismiss(self, keys: list[Key]) -> None:
        tasks = [self._couriers.pop(key).task for key in keys]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _report(self, place: Place, lanes: list[Lane]) -> None:
        """Say how far all have come, which also tells whether the lock is still held.

        Errors: follower_superseded, unavailable.
        """
        size = self._listener.size
        furthest_behind = min([lane.position for lane in lanes if lane.lane == LIVE], default=size)
        telemetry.WEBHOOK_LAG_RECORDS.set(max(0, size - furthest_behind))
        await place.advance(furthest_behind)
        if time.monotonic() - self._trimmed_s > TRIM_S:
            self._trimmed_s = time.monotonic()
            await self.store.trim(self.settings.webhook_keep_s)


class _Courier:
    """Carries one lane's messages, one after the other."""

    def __init__(self, worker: WebhookWorker, webhook: Webhook, lane: int, feed: LogFeed) -> None:
        self.webhook = webhook
        self._worker = worker
        self._store = worker.store
        self._number = lane
        self._feed = feed
        self.task = asyncio.get_running_loop().create_task(self._run(), name=f"webhook-{webhook.id}-{lane}")

    async def _run(self) -> None:
        """Carry until the lane ends; trouble of our own is waited out, and costs the receiver no attempt."""
        pause_s = REFRESH_S
        async with self._worker.outbound() as outbound:
            while True:
                try:
                    await self._carry(outbound)
                    return
                except _StoppedError:
                    return
                except LedgerError as trouble:
                    log.warning(
                        "webhook_waits", webhook=self.webhook.id, code=trouble.code, detail=trouble.message
                    )
                except Exception as trouble:  # noqa: BLE001 - one webhook's trouble is not its neighbours'
                    log.error("webhook_waits", webhook=self.webhook.id, error=repr(trouble))
                await asyncio.sleep(pause_s)
                pause_s = min(TROUBLE_S_MAX, pause_s * 2)

    async def _carry(self, outbound: Outbound) -> None:
        lane = await self._store.lane(self.webhook.id, self._number, self.webhook.start_position)
        if lane is None:
            return
        subscription = self._feed.subscribe(self.webhook.wish, lane.position - 1, patient=True)
        try:
            while lane.end is None or lane.position < lane.end:
                batch = await subscription.read(IDLE_S)
                for told in batch.records:
                    if lane.end is None or told.position < lane.end:
                        lane = await self._deliver(lane, told, outbound)
                passed = batch.position + 1 if lane.end is None else min(batch.position + 1, lane.end)
                if passed > lane.position:
                    lane = await self._store.advance(lane, passed)
        finally:
            subscription.close()
        await self._store.finish(lane)

    async def _deliver(self, lane: Lane, told: Told, outbound: Outbound) -> Lane:
        """Send one record until it is settled; give the lane behind it."""
        message = message_of(told)
        delays = self._worker.settings.webhook_retry_delays
        while True:
            await asyncio.sleep(lane.wait_s if lane.attempt else 0)
            outcome = await self._attempt(message, outbound)
            if outcome.delivered:
                return await self._store.delivered(lane, message, outcome)
            if outcome.is_gone:
                await self._disable("the receiver answered 410: it is gone")
                raise _StoppedError
            if lane.attempt >= len(delays):
                return await self._give_up(lane, message, outcome)
            wait_s = pause_of(delays[lane.attempt], outcome.retry_after_s, random.random())
            lane = await self._store.failed(lane, message, outcome, wait_s)

    async def _attempt(self, message: Message, outbound: Outbound) -> Outcome:
        webhook = self.webhook
        headers = signed_headers(
            self._worker.keys, webhook, message.id, message.body, self._worker.runtime.clock()
        )
        async with self._worker.sending:
            outcome = await outbound.post(webhook.url, headers, message.body)
        telemetry.WEBHOOK_ATTEMPTS.labels("delivered" if outcome.delivered else "failed").inc()
        telemetry.WEBHOOK_SECONDS.observe(outcome.seconds)
        return outcome

    async def _give_up(self, lane: Lane, message: Message, outcome: Outcome) -> Lane:
        lane = await self._store.dead(lane, message, outcome)
        telemetry.WEBHOOK_DEAD_LETTERS.inc()
        log.warning("webhook_dead_letter", webhook=self.webhook.id, position=message.told.position)
        if lane.dead_in_row >= self._worker.settings.webhook_dead_in_row_max:
            await self._disable(f"{lane.dead_in_row} messages in a row were given up: {outcome.error}")
            raise _StoppedError
        return lane

    async def _disable(self, reason: str) -> None:
        log.warning("webhook_disabled", webhook=self.webhook.id, reason=reason)
        command = DisableWebhook(webhook_id=self.webhook.id, reason=reason)
        await self._worker.runtime.ledger.act(disable_webhook, command, WORKER)


def message_of(told: Told) -> Message:
    """Make the message of a record."""
    body = message_body(
        position=told.position,
        address=told.address,
        wire_type=told.type,
        stream=told.stream,
        tenant=told.tenant,
        record=told.record,
    )
    return Message(told, message_id(told.address), body)


def signed_headers(keys: WebhookKeys, webhook: Webhook, name: str, body: bytes, now: str) -> dict[str, str]:
    """Sign a message as of now.

    Errors: webhook_key_mismatch.
    """
    if keys.public(webhook.id, webhook.secret_version) != webhook.public_key:
        raise WebhookKeyError(webhook=webhook.id)
    timestamp_s = int(time.time())
    return {
        "Content-Type": "application/json",
        "User-Agent": USER_AGENT,
        "webhook-id": name,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": keys.sign(webhook.id, webhook.secret_versions(now), name, timestamp_s, body),
    }


def pause_of(delay_s: float, wish_s: float | None, chance: float) -> float:
    """Spread a pause by a fifth to either side, so that many do not come back at once; a receiver's wish outranks it.

    Units: chance from 0 to 1.
    """
    spread_s = delay_s * (1 - JITTER + 2 * JITTER * chance)
    return max(spread_s, wish_s or 0.0)
