"""Measure the offline audit of one invoice of many readings against the verification of the same export.

Both run as the command does, in processes of their own, so that the memory is that of the command and of nothing else.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from domain.billing.price_books import PublishPrices, publish_prices
from domain.billing.usage import Flaw, MeterUsage, Reading, meter_usage
from domain.values import moment_text
from ops.export import DatabaseOrigin, export
from ops.runtime import Runtime
from projections.billing_run import BillingRun
from tests.bench.bench_billing_run import AT_ONCE, BOOKS, NAMES, PART, Passing, enroll_all
from tests.bench.figures import Figure, compared, open_house, run
from tests.unit.billing.billing_maker import CHARGES

READINGS = int(os.environ.get("SOMA_BENCH_AUDIT_READINGS", "200000"))
MEMORY_MB_MAX = 400.0
# One in so many readings is another customer's.
OTHERS = 20
LOOK_S = 0.05


async def use(runtime: Runtime, first: datetime) -> None:
    """Take readings of a month in, most of them of one customer."""
    draw, parts = random.Random(7), iter(range(READINGS // PART))

    def reading(number: str) -> Reading:
        at = first + timedelta(seconds=draw.randrange(26 * 86_400))
        name = draw.choice(NAMES) if not draw.randrange(OTHERS) else NAMES[0]
        return Reading(
            source="bench", event_id=number, provider="p", model=draw.choice(["m1", "m2"]), tenant=name,
            tokens_in=draw.randrange(4_000), tokens_out=draw.randrange(900), occurred_at=moment_text(at),
        )  # fmt: skip

    async def send() -> None:
        for part in parts:
            readings: list[Reading | Flaw] = [reading(f"{part}-{n}") for n in range(PART)]
            await runtime.ledger.act(meter_usage, MeterUsage(readings=readings), BOOKS)

    await asyncio.gather(*(send() for _ in range(AT_ONCE)))


class Ended(NamedTuple):
    """How a command ended. Units: seconds by the clock, megabytes at most."""

    took_s: float
    most_mb: float


def soma(*words: str) -> Ended:
    """Run a command that must end well."""
    started_s = time.perf_counter()
    command = [sys.executable, "-m", "api.cli", "audit", *words, "--json"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    most_mb = 0.0
    while child.poll() is None:
        most_mb = max(most_mb, _resident_mb(child.pid))
        time.sleep(LOOK_S)
    assert child.returncode == 0, words
    return Ended(time.perf_counter() - started_s, most_mb)


def _resident_mb(pid: int) -> float:
    """Read the most memory a process has had; what it was forked from does not count, as it does in rusage."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text("ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1_024
    return 0.0


def _memory(name: str, ours: Ended, whole: Ended) -> Figure:
    ratio = round(ours.most_mb / whole.most_mb, 3)
    return Figure(
        name, round(ours.most_mb, 1), "MB", round(whole.most_mb, 1), ratio, value_at_most=MEMORY_MB_MAX
    )


async def taken(place: Path) -> tuple[str, str]:
    """Bill a month and take the log away; give the key and the number of the large invoice."""
    async with open_house() as house:
        runtime = house.runtime
        clock = Passing(runtime)
        month = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        first = (month + timedelta(days=40)).replace(day=1)
        clock.go_to(first - timedelta(hours=1))
        prices = PublishPrices(book="standard", currency="USD", charges=CHARGES)
        await runtime.ledger.act(publish_prices, prices, BOOKS)
        clock.go_to(first + timedelta(hours=1))
        await enroll_all(runtime, first)
        clock.go_to(first + timedelta(days=27))
        await use(runtime, first)
        clock.go_to(first + timedelta(days=35))
        await BillingRun(runtime).run(collect=False)
        await export(DatabaseOrigin(runtime), place)
        return runtime.signer.key.text, f"INV-{NAMES[0]}-000001"


def audit() -> list[Figure]:
    """Measure the audit of an invoice, of one that lists and proves a whole line, and what each takes of memory."""

    async def measure() -> list[Figure]:
        with TemporaryDirectory(prefix="soma-bench-") as directory:
            place, out = Path(directory) / "log.zip", Path(directory) / "line.jsonl"
            vkey, number = await taken(place)
            pinned = ("--key", vkey)
            invoice = soma("invoice", str(place), number, *pinned)
            proof = soma("invoice", str(place), number, *pinned, "--line", "2", "--records", str(out))
            line = soma("line", str(out), *pinned)
            whole = soma("verify", str(place), *pinned)
        done = {"invoice": invoice, "invoice_line": proof, "line": line}
        took = [compared(f"billing.audit_{n}", "s", one.took_s, whole.took_s) for n, one in done.items()]
        return took + [_memory(f"billing.audit_{n}_memory", one, whole) for n, one in done.items()]

    return run(measure)


FIGURES = {"billing.audit_invoice": audit}
