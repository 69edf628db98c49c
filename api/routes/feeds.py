"""The log as a stream of server-sent events, for those who hold a connection.

    id: 41                                       where the feed stands; sent back as Last-Event-ID to go on behind it
    event: contract.escrow_released              the wire type of the record
    data: {"position":41,"previous_position":38,"address":"sha3-512:...","record":{...}}

`record` is the last member and holds the stored bytes, so what stands between `"record":` and the final brace hashes to
the address. `previous_position` is the id before on this feed: a client that compares it with what it holds knows that
nothing was lost between. Besides records there is `position`, which only moves the id, and at the end one of
`slow_reader`, `token_expired`, `closing`, `unavailable` and `end_of_log`, each with the id to go on behind.

Source: WHATWG HTML, section 9.2, server-sent events.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from api.http import PROBLEM_SCHEMA, READ_PROBLEMS, Open, Who, sees_all
from domain.errors import ForbiddenError, PositionAheadError, UnavailableError
from domain.ledger import Caller
from domain.log.filters import WISHES_MAX, StreamWish, TypeWish, Wish
from domain.log.records import address_text
from domain.values import Tenant
from ops import telemetry
from ops.reads import Told
from ops.settings import Settings
from projections.feed import LogFeed, SlowReaderError, Subscription

log = telemetry.logger(__name__)

router = APIRouter(tags=["log"])

MEDIA_TYPE = "text/event-stream"
RETRY_MS = 2_000
CLOSING_S_MAX = 1.0
# How long a feed that only catches up waits for what the shared reader is about to hand out.
CATCH_UP_WAIT_S = 0.05
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

_PROBLEM = {"application/problem+json": {"schema": PROBLEM_SCHEMA}}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    **READ_PROBLEMS,
    422: {"description": "Behind the end of this log.", "content": _PROBLEM},
    429: {"description": "Too many feeds of this tenant; see Retry-After.", "content": _PROBLEM},
    200: {"description": "Server-sent events.", "content": {MEDIA_TYPE: {"schema": {"type": "string"}}}},
}


def record_frame(told: Told, previous: int) -> bytes:
    """Print a record as an event; its bytes are canonical JSON, which has no line break."""
    head = (
        f"id: {told.position}\nevent: {told.type}\n"
        f'data: {{"position":{told.position},"previous_position":{previous},'
        f'"address":"{address_text(told.address)}","record":'
    )
    return head.encode() + told.record + b"}\n\n"


def control_frame(name: str, position: int, previous: int) -> bytes:
    """Print an event that is about the feed itself."""
    data = f'{{"position":{position},"previous_position":{previous}}}'
    return f"id: {position}\nevent: {name}\ndata: {data}\n\n".encode()


class _EndError(Exception):
    """The feed ends, for a reason that its reader is told."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


class FeedResponse(Response):
    """One open feed. It holds a place among the subscribers while it lasts."""

    def __init__(
        self, feed: LogFeed, tenant: str, subscription: Subscription, expires_s: float,
        settings: Settings, until: int | None,
    ) -> None:  # fmt: skip
        super().__init__(None, 200, HEADERS, MEDIA_TYPE)
        del self.headers["content-length"]
        self._feed = feed
        self._tenant = tenant
        self._subscription = subscription
        self._expires_s = expires_s
        self._settings = settings
        self._until = until
        self._sent_id = subscription.after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - as ASGI calls it
        """Send until the reader leaves or the feed ends.

        Errors: feed_full, too_many_subscribers.
        """
        self._feed.admit(self._tenant)
        reason = "left"
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            reason = await self._raced(receive, send)
        finally:
            self._subscription.close()
            self._feed.leave(self._tenant)
            telemetry.FEED_ENDS.labels(reason).inc()

    async def _raced(self, receive: Receive, send: Send) -> str:
        """Write until done, until the reader has left, or until a stopping service has waited long enough."""
        writing = asyncio.create_task(self._write(send))
        others = [asyncio.create_task(_left(receive)), asyncio.create_task(self._stopped())]
        try:
            await asyncio.wait([writing, *others], return_when=asyncio.FIRST_COMPLETED)
            return writing.result() if writing.done() else "left"
        finally:
            for task in (writing, *others):
                task.cancel()
            await asyncio.gather(writing, *others, return_exceptions=True)

    async def _stopped(self) -> None:
        await self._feed.ending.wait()
        await asyncio.sleep(CLOSING_S_MAX)

    async def _write(self, send: Send) -> str:
        start = self._subscription.after
        try:
            await self._put(send, f"retry: {RETRY_MS}\n\n".encode() + control_frame("position", start, start))
            while True:
                await self._step(send)
        except _EndError as end:
            await self._put(send, self._control(end.reason), more=False)
            return end.reason
        except TimeoutError:
            # Nothing can be told to one that takes nothing; its connection is closed in the middle of the answer.
            log.info("feed_stuck", tenant=self._tenant, position=self._sent_id)
            return "stuck"

    async def _step(self, send: Send) -> None:
        """Send what there is, or a sign of life."""
        batch = await self._next()
        if batch:
            frames = []
            for told in batch:
                frames.append(record_frame(told, self._sent_id))
                self._sent_id = told.position
            await self._put(send, b"".join(frames))
            telemetry.FEED_RECORDS.inc(len(frames))
        elif self._subscription.after > self._sent_id:
            await self._put(send, self._control("position"))
        elif self._until is None:
            await self._put(send, b": alive\n\n")

    async def _next(self) -> Sequence[Told]:
        left_s = self._expires_s - time.time()
        if left_s <= 0:
            raise _EndError("token_expired")
        if self._feed.ending.is_set():
            raise _EndError("closing")
        if self._until is not None and self._subscription.after >= self._until:
            raise _EndError("end_of_log")
        idle_s = self._settings.feed_heartbeat_s if self._until is None else CATCH_UP_WAIT_S
        try:
            return (await self._subscription.read(min(idle_s, left_s))).records
        except SlowReaderError as slow:
            raise _EndError("slow_reader") from slow
        except UnavailableError as outage:
            raise _EndError("unavailable") from outage

    def _control(self, name: str) -> bytes:
        previous, self._sent_id = self._sent_id, self._subscription.after
        return control_frame(name, self._sent_id, previous)

    async def _put(self, send: Send, body: bytes, *, more: bool = True) -> None:
        async with asyncio.timeout(self._settings.feed_send_s_max):
            await send({"type": "http.response.body", "body": body, "more_body": more})


async def _left(receive: Receive) -> None:
    """Wait until the reader has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


Types = Annotated[
    list[TypeWish],
    Query(alias="type", max_length=WISHES_MAX, description="Wire types, or beginnings such as `contract.*`."),
]
Streams = Annotated[
    list[StreamWish],
    Query(alias="stream", max_length=WISHES_MAX, description="Streams, such as `contract/...`."),
]
Start = Annotated[
    str,
    Query(
        alias="from",
        pattern=r"^(?:now|[0-9]{1,15})$",
        description="The first position to be sent, or `now`; Last-Event-ID outranks it.",
    ),
]
LastEventId = Annotated[
    str | None,
    Header(
        alias="Last-Event-ID",
        pattern=r"^(?:-1|[0-9]{1,15})$",
        description="The id of the last event that arrived; the feed goes on behind it.",
    ),
]
Follow = Annotated[bool, Query(description="Whether to wait for more at the end of the log.")]


@router.get("/v1/log/feed", responses=_ANSWERS, response_class=Response)
async def follow_log(
    request: Request, opened: Open, who: Who,
    types: Types = [], streams: Streams = [],  # noqa: B006 - FastAPI copies defaults
    tenant: Annotated[Tenant | None, Query(description="For readers of all: one tenant's records.")] = None,
    start: Start = "now", last_event_id: LastEventId = None, follow: Follow = True,
) -> Response:  # fmt: skip
    """Follow the log as server-sent events: catch up from a position, then hear of every record as it is written.

    Each event has the position as `id`, the wire type as `event`, and `position`, `previous_position`, `address` and
    `record` as `data`. `event: position` moves the id where nothing fits. A feed ends with `slow_reader`,
    `token_expired`, `closing`, `unavailable` or `end_of_log`; go on with `Last-Event-ID`.
    """
    wish = Wish.of(types, streams, _tenant(who, tenant))
    size = await opened.reader.size()
    after = int(last_event_id) if last_event_id else size - 1 if start == "now" else int(start) - 1
    if after >= size:
        raise PositionAheadError(position=after, size=size)
    feed: LogFeed = request.app.state.feed
    token = request.headers["authorization"].partition(" ")[2]
    return FeedResponse(
        feed,
        who.tenant,
        feed.subscribe(wish, after),
        request.app.state.tokens.expires_at(token),
        request.app.state.settings,
        None if follow else size - 1,
    )


def _tenant(who: Caller, tenant: str | None) -> str | None:
    """Say whose records a caller follows: its own tenant's, unless it may read all.

    Errors: forbidden.
    """
    if sees_all(who) or tenant == who.tenant:
        return tenant
    if tenant is not None:
        raise ForbiddenError("only operators and auditors follow another tenant", tenant=tenant)
    return who.tenant
