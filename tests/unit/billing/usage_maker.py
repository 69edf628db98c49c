"""Readings, and a ledger in memory to take them into."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from domain.billing.usage import Metered, MeterUsage, meter_usage
from domain.ledger import Caller, Ledger
from domain.values import moment_text
from tests.unit.memory_log import MemoryLog, MemoryStore

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
GATEWAY = Caller("gateway", "acme", frozenset({"service"}))
PLATFORM = Caller("ingest", "platform", frozenset({"service"}))


def at(**delta: float) -> str:
    """Name a moment beside now."""
    return moment_text(NOW + timedelta(**delta))


def a_reading(event_id: str = "e1", **members: Any) -> dict[str, Any]:
    """Make a reading as it is sent."""
    found = {
        "source": "gateway-eu",
        "event_id": event_id,
        "occurred_at": at(),
        "provider": "openai",
        "model": "gpt-4o-mini",
        "tokens_in": 1_200,
        "tokens_out": 350,
        "latency_ms": 830,
        "cost": {"amount": "0.000123", "currency": "USD"},
    } | members
    return {name: value for name, value in found.items() if value is not ...}


class Till:
    """A gate on a log in memory, at a moment of its own."""

    def __init__(self, store: MemoryStore | None = None, **options: Any) -> None:
        self.log = MemoryLog(store or MemoryStore())
        self.now = NOW
        ids = (str(n) for n in itertools.count())
        self.ledger = Ledger(
            self.log, clock=lambda: moment_text(self.now), next_id=lambda: next(ids), **options
        )
        self.log.on_foreign = self.ledger.forget

    async def meter(self, *readings: Any, caller: Caller = GATEWAY, key: str | None = None) -> Metered:
        """Take readings in."""
        command = MeterUsage.model_validate({"readings": list(readings)})
        answer = await self.ledger.act(meter_usage, command, caller, key=key)
        return msgspec.json.decode(answer.body, type=Metered)

    @property
    def records(self) -> list[dict[str, Any]]:
        return [msgspec.json.decode(logged.row.record) for logged in self.log.store.logged]


def codes(counted: Metered) -> Sequence[tuple[int, str]]:
    """List what was rejected."""
    return [(one.index, one.code) for one in counted.rejected]
