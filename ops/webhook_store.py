"""Where webhooks stand, and how each message fared: tables beside the log, which nothing else depends on."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

from psycopg_pool import AsyncConnectionPool

from domain.errors import FollowerSupersededError
from ops.outbound import Outcome
from ops.postgres import reading
from ops.reads import Told

LIVE = 0
TRIM_ROWS_MAX = 10_000

_LANE = (
    "webhook, lane, position, end_position, attempt,"
    " greatest(0, extract(epoch FROM next_attempt_at - clock_timestamp()))::float8, dead_in_row"
)
_MOVE = (
    "UPDATE webhook_positions SET position = %s, attempt = %s, dead_in_row = %s, last_error = %s,"
    " next_attempt_at = clock_timestamp() + make_interval(secs => %s), updated_at = clock_timestamp()"
    " WHERE webhook = %s AND lane = %s AND position = %s AND attempt = %s"
    f" RETURNING {_LANE}"
)
# The move and what moved it, in one statement; where the lane had moved already nothing is noted.
_SETTLE = (
    f"WITH moved AS ({_MOVE}), noted AS ("
    "INSERT INTO webhook_deliveries (webhook, position, lane, type, message_id, status, attempts, http_status, error,"
    " duration_ms) SELECT %s, %s, %s, %s, %s, %s, 1, %s::smallint, %s, %s FROM moved"
    " ON CONFLICT (webhook, position, lane) DO UPDATE SET"
    " status = excluded.status, attempts = webhook_deliveries.attempts + 1, http_status = excluded.http_status,"
    " error = excluded.error, duration_ms = excluded.duration_ms, last_at = clock_timestamp()), healed AS ("
    "UPDATE webhook_deliveries SET status = 'redelivered' WHERE %s AND webhook = %s AND position = %s"
    " AND lane <> %s AND status = 'dead' AND EXISTS (SELECT FROM moved)) SELECT * FROM moved"
)
# Columns, and what they are called where they are shown.
_STANDING = {
    "lane": "redelivery",
    "position": "position",
    "end_position": "end_position",
    "attempt": "failed_attempts",
    "next_attempt_at": "next_attempt_at",
    "last_error": "last_error",
    "requested_by": "requested_by",
    "updated_at": "updated_at",
}
_DELIVERY = {"position": "position", "lane": "redelivery"} | {
    name: name
    for name in "type message_id status attempts http_status error duration_ms first_at last_at".split()
}


class Lane(NamedTuple):
    """A way of a webhook through the log.

    Units: position is the first that is not settled; end is not included; wait_s until the next attempt.
    """

    webhook: str
    lane: int
    position: int
    end: int | None
    attempt: int
    wait_s: float
    dead_in_row: int

    @classmethod
    def of(cls, row: Any) -> Self:
        """Read a row."""
        webhook, lane, position, end, attempt, wait_s, dead_in_row = row
        return cls(webhook, lane, position, end, attempt, float(wait_s or 0), dead_in_row)


class Message(NamedTuple):
    """A record on its way to a webhook."""

    told: Told
    id: str
    body: bytes


class WebhookStore:
    """Keeps positions and deliveries. Every move is a compare-and-set, so that a second worker changes nothing."""

    def __init__(self, pool: AsyncConnectionPool[Any]) -> None:
        self._pool = pool

    async def _all(self, statement: str, *params: Any) -> list[Any]:
        async with reading(self._pool) as cursor:
            await cursor.execute(statement, params)
            return await cursor.fetchall()

    async def _run(self, statement: str, *params: Any) -> None:
        async with reading(self._pool) as cursor:
            await cursor.execute(statement, params)

    # ------------------------------------------------------------------ lanes

    async def lane(self, webhook: str, lane: int, start: int) -> Lane | None:
        """Read a lane; the live one is made at its first use. None where a redelivery is done."""
        if lane == LIVE:
            await self._run(
                "INSERT INTO webhook_positions (webhook, position) VALUES (%s, %s) ON CONFLICT DO NOTHING",
                webhook,
                start,
            )
        rows = await self._all(
            f"SELECT {_LANE} FROM webhook_positions WHERE webhook = %s AND lane = %s", webhook, lane
        )
        return Lane.of(rows[0]) if rows else None

    async def lanes(self) -> list[Lane]:
        """List every lane there is."""
        return [
            Lane.of(row) for row in await self._all(f"SELECT {_LANE} FROM webhook_positions ORDER BY 1, 2")
        ]

    async def advance(self, lane: Lane, position: int) -> Lane:
        """Pass what is not wanted.

        Errors: follower_superseded, unavailable.
        """
        return await self._moved(lane, lane._replace(position=position), None)

    async def finish(self, lane: Lane) -> None:
        """Take a redelivery away that is done."""
        await self._run(
            "DELETE FROM webhook_positions WHERE webhook = %s AND lane = %s AND lane > 0",
            lane.webhook,
            lane.lane,
        )

    async def redeliver(self, webhook: str, first: int, end: int, by: str) -> int:
        """Send a range of positions again, the end not included; give the number of the redelivery."""
        rows = await self._all(
            "INSERT INTO webhook_positions (webhook, lane, position, end_position, requested_by)"
            " VALUES (%s, nextval('webhook_lanes'), %s, %s, %s) RETURNING lane",
            webhook,
            first,
            end,
            by,
        )
        return int(rows[0][0])

    async def start_over(self, webhook: str) -> None:
        """Forget failures, so that the next attempt is a first one, and made at once."""
        await self._run(
            "UPDATE webhook_positions SET attempt = 0, next_attempt_at = NULL, dead_in_row = 0 WHERE webhook = %s",
            webhook,
        )

    # ------------------------------------------------------------------ messages

    async def delivered(self, lane: Lane, message: Message, outcome: Outcome) -> Lane:
        """Settle a message that arrived."""
        after = lane._replace(position=message.told.position + 1, attempt=0, dead_in_row=0)
        return await self._moved(lane, after, ("delivered", message, outcome))

    async def failed(self, lane: Lane, message: Message, outcome: Outcome, wait_s: float) -> Lane:
        """Note a failed attempt, and when the next one is due."""
        after = lane._replace(attempt=lane.attempt + 1, wait_s=wait_s)
        return await self._moved(lane, after, ("failing", message, outcome))

    async def dead(self, lane: Lane, message: Message, outcome: Outcome) -> Lane:
        """Settle a message that is given up."""
        after = lane._replace(position=message.told.position + 1, attempt=0, dead_in_row=lane.dead_in_row + 1)
        return await self._moved(lane, after, ("dead", message, outcome))

    async def _moved(self, lane: Lane, after: Lane, noted: tuple[str, Message, Outcome] | None) -> Lane:
        """Move a lane, and note the message that moved it, as one.

        Errors: follower_superseded, unavailable.
        """
        error = noted[2].error if noted else ""
        wait_s = after.wait_s if after.attempt else None
        moves = (after.position, after.attempt, after.dead_in_row, error, wait_s, *lane[:3], lane.attempt)
        rows = await (
            self._all(_SETTLE, *moves, *_noted(lane, *noted)) if noted else self._all(_MOVE, *moves)
        )
        if not rows:
            raise FollowerSupersededError(follower="webhooks", webhook=lane.webhook)
        return Lane.of(rows[0])

    # ------------------------------------------------------------------ what is shown

    async def standing(self, webhook: str) -> list[dict[str, Any]]:
        """Show where a webhook stands, its redeliveries included."""
        rows = await self._all(
            f"SELECT {', '.join(_STANDING)} FROM webhook_positions WHERE webhook = %s ORDER BY lane", webhook
        )
        return [dict(zip(_STANDING.values(), row, strict=True)) for row in rows]

    async def deliveries(
        self, webhook: str, *, status: str | None, before: tuple[int, int], limit: int
    ) -> list[dict[str, Any]]:
        """List messages, the latest position first, before a position and a lane."""
        rows = await self._all(
            f"SELECT {', '.join(_DELIVERY)} FROM webhook_deliveries WHERE webhook = %s"
            " AND (position, lane) < (%s, %s) AND (%s::text IS NULL OR status = %s)"
            " ORDER BY position DESC, lane DESC LIMIT %s",
            webhook,
            *before,
            status,
            status,
            limit,
        )
        return [dict(zip(_DELIVERY.values(), row, strict=True)) for row in rows]

    async def trim(self, keep_s: int) -> None:
        """Forget deliveries that arrived long ago, some at a time, and where deleted webhooks stood."""
        await self._run(
            "DELETE FROM webhook_positions USING records"
            " WHERE kind = 'webhook' AND id = webhook AND status = 'deleted'"
        )
        await self._run(
            "DELETE FROM webhook_deliveries WHERE ctid IN (SELECT ctid FROM webhook_deliveries"
            " WHERE status IN ('delivered', 'redelivered')"
            " AND last_at < clock_timestamp() - make_interval(secs => %s) LIMIT %s)",
            keep_s,
            TRIM_ROWS_MAX,
        )


def _noted(lane: Lane, status: str, message: Message, outcome: Outcome) -> tuple[Any, ...]:
    """Give what is written about an attempt; one that arrived also settles what other lanes gave up."""
    position = message.told.position
    return (
        lane.webhook, position, lane.lane, message.told.type, message.id, status,
        outcome.status, outcome.error, round(outcome.seconds * 1_000),
        status == "delivered", lane.webhook, position, lane.lane,
    )  # fmt: skip
