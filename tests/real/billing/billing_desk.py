"""A service whose clock the test sets, with prices and customers; and a plain reading of its log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from domain.billing.metering import Evidence, Used, together
from domain.log.records import decode
from domain.values import moment_text
from ops.clock import Clock
from ops.runtime import Runtime
from ops.usage_totals import Stretch
from projections.billing_run import Tally
from tests.real.api.world import Speaker, World
from tests.real.service import serving, settings_on

CHARGES: list[dict[str, Any]] = [
    {"id": "base", "meter": "period", "price": {"model": "flat", "price": "10"}, "description": "Base fee"},
    {
        "id": "in",
        "meter": "tokens_in",
        "price": {
            "model": "graduated",
            "per": "1000",
            "tiers": [{"price": "0.01", "up_to": "100000"}, {"price": "0.007"}],
        },
        "match": {"model": "m1"},
        "free": "500",
    },
    {"id": "out", "meter": "tokens_out", "price": {"model": "per_unit", "price": "0.03", "per": "1000"}},
    {"id": "calls", "meter": "requests", "price": {"model": "package", "price": "0.5", "size": "100"}},
]


class Desk(World):
    """A world with a clock: `go` lets time pass."""

    ahead: list[int]

    @property
    def now(self) -> datetime:
        """Give the moment it is here."""
        return datetime.now(UTC) + timedelta(microseconds=self.ahead[0] // 1000)

    def go(self, **time_: float) -> None:
        """Let time pass."""
        self.ahead[0] += int(timedelta(**time_).total_seconds() * 10**9)

    def next_day(self, hours: float = 1) -> None:
        """Let time pass until so long after the next midnight."""
        midnight = (self.now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
        self.go(seconds=(midnight - self.now).total_seconds(), hours=hours)

    def publish(self, book: str = "standard", **members: Any) -> dict[str, Any]:
        """Publish a version of a book of the platform."""
        body = {"book": book, "currency": "USD", "charges": CHARGES} | members
        return self.operator.made("/v1/price_books", body)

    def customer(self, tenant: str | None = None, *, money: str = "1000", **plan: Any) -> Speaker:
        """Make a customer by the day, with money; give somebody of its own."""
        tenant = tenant or f"t-{uuid4().hex[:10]}"
        plan = {"tenant": tenant, "book": "platform.standard", "every": "day", "grace_s": 0} | plan
        self.operator.made("/v1/customers", plan)
        self.deposit(tenant, money)
        return self.speaker(tenant, "service", "owner")

    def use(self, speaker: Speaker, *readings: dict[str, Any]) -> dict[str, Any]:
        """Send readings of now, or of when they say."""
        return speaker.made("/v1/usage", {"readings": [self.reading(**one) for one in readings]})

    def reading(self, **members: Any) -> dict[str, Any]:
        """Make a reading of now."""
        said = {
            "source": "gw",
            "event_id": uuid4().hex,
            "occurred_at": moment_text(self.now),
            "provider": "p",
        }
        return said | {"model": "m1", "tokens_in": 0, "tokens_out": 0} | members

    def run(self, **how: Any) -> Tally:
        """Have everything billed that is due."""
        tally: Tally = self.service.run(self.service.app.state.billing.run(**how))
        return tally

    def known(self, stretch: Stretch, bound: int) -> list[Used]:
        """Sum up what was used in a stretch by reading the whole log, record by record."""
        return plain_totals(self.service, [stretch], bound)[stretch]


@contextmanager
def desk(database_url: str, data_dir: Path) -> Iterator[Desk]:
    """Open a desk; its runner runs only when it is asked to."""
    ahead = [0]
    clock = Clock(lambda: time.time_ns() + ahead[0])
    with serving(settings_on(database_url, data_dir), clock) as service, service.client() as client:
        opened = Desk(service, client)
        opened.ahead = ahead
        service.run(service.app.state.billing.close())
        service.run(service.app.state.timers.close())
        opened.publish()
        # Customers begin with the day, so that their first period is a whole one of these prices.
        opened.next_day()
        yield opened


def plain_totals(service: Any, stretches: list[Stretch], bound: int) -> dict[Stretch, list[Used]]:
    """Sum up usage the slow way: the latest version of each stream before a position, one record after another."""
    return service.run(_plain_totals(service.runtime, stretches, bound))


async def _plain_totals(runtime: Runtime, stretches: list[Stretch], bound: int) -> dict[Stretch, list[Used]]:
    latest: dict[str, tuple[int, bytes, Any]] = {}
    for stored in await runtime.reader.span(0, bound):
        record = decode(stored.record)
        if record.type in ("usage.metered", "usage.corrected"):
            latest[record.stream] = (stored.position, bytes(stored.address), record)
    return {stretch: _summed(latest.values(), stretch) for stretch in stretches}


def _summed(latest: Any, stretch: Stretch) -> list[Used]:
    groups: dict[tuple[str, str, str], list[Any]] = {}
    for one in latest:
        data = one[2].data
        if one[2].tenant == stretch.tenant and stretch.start <= data.occurred_at < stretch.end:
            groups.setdefault((data.provider, data.model, data.persona_id or ""), []).append(one)
    return [_group(name, ones) for name, ones in sorted(groups.items())]


def _group(name: tuple[str, str, str], ones: list[Any]) -> Used:
    evidence: Evidence | None = None
    for position, address, _ in ones:
        evidence = together(evidence, Evidence(1, position, position, address[:8].hex()))
    assert evidence is not None
    return Used(
        provider=name[0],
        model=name[1],
        persona_id=name[2] or None,
        tokens_in=sum(one[2].data.tokens_in for one in ones),
        tokens_out=sum(one[2].data.tokens_out for one in ones),
        cached_tokens=sum(one[2].data.cached_tokens or 0 for one in ones),
        requests=sum(one[2].data.requests for one in ones),
        events=evidence.events,
        first=evidence.first,
        last=evidence.last,
        fingerprint=evidence.fingerprint,
    )
