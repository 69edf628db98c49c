"""The timers: they write down what the clock has decided about rentals, subscriptions, purchases and grants.

Access never waits for them, since every check compares with the clock itself; what they bring is the settlement of the
money, soon after the deadline. They keep nothing of their own and follow `records.deadline`, so a crash loses nothing,
and whatever became due during an outage is done first.

One process at a time leads. The others look too, and do what is overdue for longer than a leader that lives would leave
it: one that hangs holds its lock, but nobody's money. Two that do the same thing come to one result, for each step is
a command at the gate, and the second finds nothing left to do.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import timedelta

from domain.billing.grants import GrantStep, expire_grant
from domain.errors import LedgerError
from domain.fields import Command
from domain.ledger import Answer, Caller, UseCase
from domain.persona.offboarding import FailRenewal, expire, fail, renew, settle
from domain.persona.renting import PurchaseStep, RentalStep, SubscriptionStep
from domain.values import moment_of, moment_text
from ops import telemetry
from ops.lease import Lease
from ops.reads import Deadline
from ops.runtime import Runtime
from ops.tasks import stop

log = telemetry.logger(__name__)

TIMER = Caller("timers", "platform", frozenset({"service"}))
TICK_S = 0.5
BATCH_MAX = 1_000
AT_ONCE_MAX = 64
# So long after its deadline something is done by whoever sees it, leader or not.
OVERDUE_S = 1.0
# What could not be done is left alone for so long, then twice as long, and so on.
PAUSE_S, PAUSE_S_MAX = 0.5, 60.0

STEPS: dict[str, tuple[UseCase, Callable[[str], Command]]] = {
    "rental": (expire, lambda name: RentalStep(rental_id=name)),
    "subscription": (renew, lambda name: SubscriptionStep(subscription_id=name)),
    "purchase": (settle, lambda name: PurchaseStep(purchase_id=name)),
    "grant": (expire_grant, lambda name: GrantStep(grant_id=name)),
}
# What is written down where a step is refused, because somebody cannot pay or may not be served now.
REFUSED: dict[str, tuple[UseCase, Callable[[str, str], Command]]] = {
    "subscription": (fail, lambda name, code: FailRenewal(subscription_id=name, reason=code)),
}
# Refusals that say that somebody else was faster.
OVERTAKEN = frozenset({"renewal_not_due", "subscription_ended", "conflict"})


class Timers:
    """Follows deadlines, to the moment."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._lease = Lease(runtime.url, "timers")
        self._task: asyncio.Task[None] | None = None
        # What could not be done: until when it is left alone, on the clock of the process, and how long the next time.
        self._paused: dict[str, tuple[float, float]] = {}

    @property
    def is_leader(self) -> bool:
        return self._lease.is_held

    def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Stop looking; what was not done is done at the next start, here or elsewhere."""
        await stop(self._task)
        await self._lease.close()
        telemetry.TIMER_LEADER.set(0)

    async def look(self) -> float:
        """Do what is due, as leader or where it was left undone; give how long to sleep, at most a tick."""
        is_leader = await self._lease.hold()
        telemetry.TIMER_LEADER.set(is_leader)
        now = self._runtime.clock()
        late_s = 0.0 if is_leader else OVERDUE_S
        coming = await self._runtime.reader.deadlines(
            list(STEPS), _after(now, TICK_S), BATCH_MAX, but=self._left_alone()
        )
        due = [one for one in coming if _after(one.at, late_s) <= now]
        if due:
            await self._do_all(due)
            return 0.0
        return min((_seconds(now, _after(one.at, late_s)) for one in coming), default=TICK_S)

    async def _do_all(self, due: list[Deadline]) -> None:
        """Do many things at once, so that one commit takes many of them; the longest overdue come first."""
        queue = iter(due)

        async def work() -> None:
            for one in queue:
                await self._do(one)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(AT_ONCE_MAX, len(due))):
                group.create_task(work())

    async def _do(self, one: Deadline) -> None:
        stream = f"{one.kind}/{one.id}"
        try:
            answer = await self._step(one)
            if not answer.event_count:
                # What is held here may be older than what was read, if another process wrote it.
                self._runtime.ledger.forget([stream], self._runtime.ledger.epoch)
                answer = await self._step(one)
        except LedgerError as refusal:
            # After an outage everything is tried at once.
            self._pause(stream, grows=refusal.status < 500)
            if refusal.code not in OVERTAKEN:
                telemetry.TIMER_FAILURES.labels(one.kind, refusal.code).inc()
                log.warning("timer_failed", stream=stream, code=refusal.code, detail=refusal.message)
            return
        except Exception as bug:
            self._pause(stream)
            log.error("timer_bug", stream=stream, exc_info=bug)
            return
        if answer.event_count:
            self._paused.pop(stream, None)
            lateness_s = max(0.0, _seconds(one.at, self._runtime.clock()))
            telemetry.RENTAL_LATENESS_SECONDS.labels(one.kind).observe(lateness_s)
        else:
            self._pause(stream)

    async def _step(self, one: Deadline) -> Answer:
        """Carry out what a deadline brings, or write down that it was refused."""
        use_case, command = STEPS[one.kind]
        try:
            return await self._runtime.ledger.act(use_case, command(one.id), TIMER)
        except LedgerError as refusal:
            if refusal.status >= 500 or refusal.code in OVERTAKEN or one.kind not in REFUSED:
                raise
            refused, told = REFUSED[one.kind]
            return await self._runtime.ledger.act(refused, told(one.id, refusal.code), TIMER)

    def _pause(self, stream: str, *, grows: bool = True) -> None:
        _, pause_s = self._paused.get(stream, (0.0, PAUSE_S))
        self._paused[stream] = (
            time.monotonic() + pause_s,
            min(2 * pause_s, PAUSE_S_MAX) if grows else pause_s,
        )

    def _left_alone(self) -> list[str]:
        """List what is not looked at for now, and forget what was long ago."""
        now = time.monotonic()
        for stream in [one for one, (until, _) in self._paused.items() if until + PAUSE_S_MAX < now]:
            del self._paused[stream]
        telemetry.TIMER_WAITING.set(len(self._paused))
        return [stream for stream, (until, _) in self._paused.items() if now < until]

    async def _run(self) -> None:
        while True:
            try:
                pause_s = await self.look()
            except LedgerError as outage:
                log.warning("timers_failed", code=outage.code, detail=outage.message)
                pause_s = TICK_S
            except Exception as bug:
                log.error("timers_bug", exc_info=bug)
                pause_s = TICK_S
            await asyncio.sleep(pause_s)


def _after(moment: str, seconds: float) -> str:
    return moment_text(moment_of(moment) + timedelta(seconds=seconds))


def _seconds(start: str, end: str) -> float:
    return (moment_of(end) - moment_of(start)).total_seconds()
