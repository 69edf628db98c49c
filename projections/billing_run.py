"""The billing run: every customer whose period is over is billed, late usage is entered in corrections, dues are paid.

    1  bill       who is due follows from `records.deadline`; all of them are counted in one pass of the log
    2  correct    usage that came too late for its period waits for the customer's grace, then makes one correction
    3  pay        what is due is taken from wallets; what cannot be is written down and tried again on its days

Each document is one commit, and billing a period moves the customer to its next one in that same commit. So a run that
was killed goes on where it stopped, and a run with nothing new writes nothing. One process at a time leads; the lead is
a saving and no safeguard, since two that bill the same period come to one invoice.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple

from domain.billing.customers import Customer
from domain.billing.invoices import (
    CorrectInvoice,
    Counted,
    FailPayment,
    Invoice,
    InvoiceStep,
    IssueInvoice,
    correct_invoice,
    fail_payment,
    issue_invoice,
    pay_invoice,
)
from domain.errors import BillingRunningError, LedgerError
from domain.ledger import Caller
from domain.log.records import decode
from domain.values import moment_of, moment_text
from ops import telemetry
from ops.positions import Place
from ops.reads import RecordFilter
from ops.runtime import Runtime
from ops.tasks import stop
from ops.usage_totals import late_usage
from projections.billing_counts import NOTHING, count_again, count_next

log = telemetry.logger(__name__)

BILLING = Caller("billing-run", "platform", frozenset({"service"}))
PLACE = "billing.late"
LEAD_S = 1.0
LOOK_S = 5.0
# How often late usage is looked for while nobody's period ends; what waits for its grace is read again each time.
LATE_S = 300.0
BATCH_MAX = 1_000
AT_ONCE_MAX = 32
# Somebody else did it, or there is nothing to do any more.
DONE = frozenset({"period_open", "nothing_to_correct", "invoice_settled"})
CANNOT_PAY = frozenset({"insufficient_funds", "account_not_found"})


class Tally(NamedTuple):
    """What a run came to. `refused` names what could not be done, with the code of the refusal."""

    billed: int = 0
    corrected: int = 0
    waiting: int = 0
    paid: int = 0
    unpaid: int = 0
    refused: tuple[tuple[str, str], ...] = ()


class BillingRun:
    """Bills, corrects and collects; as often as it is asked to, or by itself while a service runs."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._task: asyncio.Task[None] | None = None
        self._refused: dict[str, str] = {}

    async def run(self, *, collect: bool = True) -> Tally:
        """Do all that is due now.

        Cost:   one pass over the usage since the oldest period that is due began, for each 1,000 customers.
        Errors: billing_running, unavailable.
        """
        started_s = time.perf_counter()
        place = await Place.open(self._runtime.url, PLACE)
        try:
            try:
                await place.lead(LEAD_S)
            except TimeoutError as error:
                raise BillingRunningError from error
            self._refused = {}
            billed = await self._bill()
            corrected, waiting = await self._correct(place)
            paid, unpaid = await self._collect() if collect else (0, 0)
        finally:
            await place.close()
        tally = Tally(billed, corrected, waiting, paid, unpaid, tuple(sorted(self._refused.items())))
        if any(tally):
            log.info("billed", **tally._asdict())
        telemetry.BILLING_RUN_SECONDS.observe(time.perf_counter() - started_s)
        telemetry.BILLING_REFUSED.set(len(tally.refused))
        telemetry.BILLING_RUN_AT.set_to_current_time()
        return tally

    # ------------------------------------------------------------------ 1  bill

    async def _bill(self) -> int:
        """Bill whoever is due; a customer who was not billed for several periods is due again at once."""
        billed = 0
        while names := await self._due(Customer.KIND):
            counted = await count_next(self._runtime.reader, names)
            done = await self._each(names, partial(self._issue, counted))
            billed += done["done"]
            if not done["done"] and not done["refused"]:
                # What is due was done by others; what is read here has it in a moment.
                break
        return billed

    async def _issue(self, all_counted: Mapping[str, Counted], tenant: str) -> bool:
        counted = all_counted.get(tenant, NOTHING)

        async def again() -> Counted:
            return (await count_next(self._runtime.reader, [tenant])).get(tenant, NOTHING)

        answer = await self._runtime.ledger.act(
            issue_invoice, IssueInvoice(tenant=tenant), BILLING, gather=_first(counted, again)
        )
        return bool(answer.event_count)

    # ------------------------------------------------------------------ 2  correct

    async def _correct(self, place: Place) -> tuple[int, int]:
        """Correct what late usage came for; give how many were, and how many still wait for their grace."""
        reader, bound = self._runtime.reader, await self._runtime.reader.size()
        late = await late_usage(reader.pool, place.position, bound)
        now = self._runtime.clock()
        ready = [name for name, position in late.items() if await self._ready_at(name, position) <= now]
        done = await self._each(ready, self._correct_one)
        waiting = {name: position for name, position in late.items() if name not in ready}
        left = waiting | {name: late[name] for name in ready if f"{Invoice.KIND}/{name}" in self._refused}
        # From here on a crash looks at nothing again that was corrected; what waits or was refused is found again.
        await place.advance(max(place.position, min(left.values(), default=bound)))
        return done["done"], len(waiting)

    async def _ready_at(self, name: str, position: int) -> str:
        """Give the moment until which late usage waits for more of its kind."""
        invoice = await self._loaded(Invoice, name)
        customer = await self._loaded(Customer, invoice.tenant)
        came_at = decode((await self._runtime.reader.at(position)).record).at
        return moment_text(moment_of(came_at) + timedelta(seconds=customer.agreed.grace_s))

    async def _correct_one(self, name: str) -> bool:
        invoice = await self._loaded(Invoice, name)

        async def gather() -> dict[str, Any]:
            return {"counted": await count_again(self._runtime.reader, invoice)}

        answer = await self._runtime.ledger.act(
            correct_invoice, CorrectInvoice(invoice_id=name), BILLING, gather=gather
        )
        return bool(answer.event_count)

    async def _loaded(self, cls: Any, name: str) -> Any:
        stream = f"{cls.KIND}/{name}"
        return (await self._runtime.reader.load([stream]))[stream].aggregate

    # ------------------------------------------------------------------ 3  pay

    async def _collect(self) -> tuple[int, int]:
        """Take what is due from wallets; give how many were paid, and how many could not be."""
        paid = unpaid = 0
        while names := await self._due(Invoice.KIND):
            done = await self._each(names, self._pay)
            paid, unpaid = paid + done["done"], unpaid + done["nothing"]
            if not done["done"] and not done["nothing"] and not done["refused"]:
                break
        return paid, unpaid

    async def _pay(self, name: str) -> bool:
        try:
            answer = await self._runtime.ledger.act(pay_invoice, InvoiceStep(invoice_id=name), BILLING)
        except LedgerError as refusal:
            if refusal.code not in CANNOT_PAY:
                raise
            failed = FailPayment(invoice_id=name, reason=refusal.code)
            await self._runtime.ledger.act(fail_payment, failed, BILLING)
            return False
        return bool(answer.event_count)

    # ------------------------------------------------------------------ all of them

    async def _due(self, kind: str) -> list[str]:
        now = self._runtime.clock()
        found = await self._runtime.reader.deadlines([kind], now, BATCH_MAX, but=list(self._refused))
        return [one.id for one in found if one.at <= now]

    async def _each(self, names: Iterable[str], act: Callable[[str], Awaitable[bool]]) -> Counter[str]:
        """Do something for many at once, so that one commit takes many of them; a refusal of one stops no other."""
        queue, outcomes = iter(list(names)), Counter[str]()

        async def work() -> None:
            for name in queue:
                outcomes[await self._outcome(name, act)] += 1

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(AT_ONCE_MAX):
                    group.create_task(work())
        except ExceptionGroup as several:
            # They are all of one outage; the first says it.
            raise several.exceptions[0] from None
        return outcomes

    async def _outcome(self, name: str, act: Callable[[str], Awaitable[bool]]) -> str:
        try:
            return "done" if await act(name) else "nothing"
        except LedgerError as refusal:
            if refusal.status >= 500:
                raise
            if refusal.code in DONE:
                return "overtaken"
            kind = Invoice.KIND if name.startswith("inv-") else Customer.KIND
            self._refused[f"{kind}/{name}"] = refusal.code
            log.error("not_billed", name=name, code=refusal.code, detail=refusal.message)
            return "refused"

    # ------------------------------------------------------------------ by itself

    def start(self) -> None:
        """Begin to look whose period is over."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Stop looking; what is under way is taken up by the next run, here or elsewhere."""
        await stop(self._task)

    async def _run(self) -> None:
        waited_s = LATE_S
        while True:
            try:
                waited_s = 0.0 if await self._look(waited_s >= LATE_S) else waited_s
            except BillingRunningError:
                pass
            except LedgerError as outage:
                log.warning("billing_run_failed", code=outage.code, detail=outage.message)
            except Exception as bug:
                log.error("billing_run_bug", exc_info=bug)
            await asyncio.sleep(LOOK_S)
            waited_s += LOOK_S

    async def _look(self, for_late: bool) -> bool:
        """Run if a period is over, a payment is due, or it is time to look for late usage."""
        due = await self._due(Customer.KIND) or await self._due(Invoice.KIND)
        some = bool(due) or (for_late and bool(await self._any_invoice()))
        if some:
            await self.run()
        return some or for_late

    async def _any_invoice(self) -> Sequence[Any]:
        return await self._runtime.reader.records(RecordFilter(Invoice.KIND), before=None, limit=1)


def _first(
    counted: Counted, again: Callable[[], Awaitable[Counted]]
) -> Callable[[], Awaitable[dict[str, Any]]]:
    """Give what was counted for all the first time, and count for one alone where that does not fit any more."""
    left = [counted]

    async def gather() -> dict[str, Any]:
        return {"counted": left.pop() if left else await again()}

    return gather
