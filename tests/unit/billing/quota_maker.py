"""A customer with limits on a log in memory, its usage metered for real, and a plain recount of all of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from hypothesis import strategies as st

from domain.billing.budgeting import (
    PastUsage,
    QuotaStep,
    ReleaseReservation,
    Reserve,
    SetQuota,
    count_quota,
    release_reservation,
    reserve,
    set_quota,
    show_quota,
    tend_quota,
)
from domain.billing.customers import Customer
from domain.billing.invoices import Counted
from domain.billing.limits import EVERYTHING, Row, Scope, added
from domain.billing.metering import Used
from domain.billing.price_books import PriceBook
from domain.billing.prices import Flat, Graduated, Package, PerUnit, Tier, Volume
from domain.billing.quotas import Quota, stretches
from domain.billing.quotes import AskQuote, quote
from domain.billing.rating import Charge, Match
from domain.billing.usage import CorrectUsage, MeterUsage, Usage, correct_usage, meter_usage
from domain.ledger import Answer, Caller
from domain.values import Money, moment_of, moment_text
from tests.unit.billing.billing_maker import Billed
from tests.unit.market.market_maker import OPERATOR, SERVICE

GATEWAY = Caller("gateway", "acme", frozenset({"service"}))
PERSON = Caller("olivia", "acme", frozenset({"owner"}))


def limit(name: str = "all", amount: str = "100", **members: Any) -> dict[str, Any]:
    """Write a limit as it is sent."""
    return {"id": name, "amount": {"amount": amount, "currency": "USD"}} | members


class Limited(Billed):
    """A customer with a quota."""

    sent = 0

    # ------------------------------------------------------------------ doing

    async def set_limits(self, *limits: dict[str, Any], caller: Caller = OPERATOR, **more: Any) -> Any:
        """Set limits, and count what was used before."""
        command = SetQuota.model_validate({"tenant": "acme", "limits": list(limits)} | more)
        await self.do(set_quota, command, caller)
        await self.count_past()

    async def count_past(self) -> None:
        """Have counted what was used before the counting began, as often as it takes."""

        async def gather() -> dict[str, Any]:
            await self.ledger.act(tend_quota, QuotaStep(tenant="acme"), SERVICE)
            return {"past": self.past()}

        await self.ledger.act(count_quota, QuotaStep(tenant="acme"), SERVICE, gather=gather)

    def past(self) -> PastUsage | None:
        """Count what the log said before the record that began the counting, record by record."""
        quota = self.quota
        if quota.counting is None:
            return None
        records = [msgspec.json.decode(one.row.record) for one in self.store.logged]
        bound = next(
            n
            for n, one in enumerate(records)
            if one["stream"] == "quota/acme" and one["version"] == quota.counting
        )
        latest = {r["stream"]: r["data"] for r in records[:bound] if r["stream"].startswith("usage/")}
        rows: list[Row] = []
        for data in latest.values():
            if (start := quota.place(data["occurred_at"])) is not None:
                rental = data["rental_id"] if data["rental_id"] in quota.rentals else None
                counts = [data["tokens_in"], data["tokens_out"], data["cached_tokens"] or 0, data["requests"]]
                names = [data["provider"], data["model"], data["persona_id"], rental]
                rows.append(Row(start, data["occurred_at"], *names, *counts))
        return PastUsage(quota.counting, bound, stretches(quota), added([], rows))

    async def meter(self, *readings: dict[str, Any]) -> Any:
        """Send readings of now, or of when they say."""
        return await self.do(
            meter_usage,
            MeterUsage.model_validate({"readings": [self.reading(**r) for r in readings]}),
            GATEWAY,
        )

    def reading(self, **members: Any) -> dict[str, Any]:
        """Write a reading of now."""
        self.sent += 1
        made = {"source": "gw", "event_id": f"e{self.sent}", "occurred_at": self.now, "provider": "p"}
        return made | {"model": "m1", "tokens_in": 0, "tokens_out": 0} | members

    async def put_right(self, usage: Usage, **members: Any) -> Any:
        """Correct a reading."""
        command = CorrectUsage(usage_id=usage.id, replaces=usage.version, reason="r", **members)
        return await self.do(correct_usage, command, GATEWAY)

    async def reserve(self, caller: Caller = GATEWAY, **members: Any) -> Any:
        """Reserve usage; what is not counted yet is counted first, as the service does."""
        command = Reserve.model_validate({"tenant": "acme", "provider": "p", "model": "m1"} | members)
        first = True

        async def gather() -> dict[str, Any]:
            nonlocal first
            if not first:
                await self.count_past()
            first = False
            return {}

        answer: Answer = await self.ledger.act(reserve, command, caller, gather=gather)
        return msgspec.json.decode(answer.body)

    async def release(self, name: str) -> Any:
        """Let a reservation go."""
        return await self.do(
            release_reservation, ReleaseReservation(tenant="acme", reservation_id=name), GATEWAY
        )

    async def tend(self) -> Any:
        """Write down what the clock has decided."""
        return await self.do(tend_quota, QuotaStep(tenant="acme"), SERVICE)

    # ------------------------------------------------------------------ looking

    @property
    def quota(self) -> Quota:
        found: Quota = self.loaded(Quota, "acme")
        return found

    async def shown(self) -> Any:
        """Show how the quota stands."""
        return await self.do(show_quota, QuotaStep(tenant="acme"), PERSON, stored=self.quota)

    async def limit(self, name: str = "all") -> dict[str, Any]:
        """Show how one limit stands, amounts as decimals."""
        (found,) = [one for one in (await self.shown())["limits"] if one["id"] == name]
        amounts = ("amount", "spent", "reserved", "left", "over")
        return found | {k: found[k] and found[k]["amount"] for k in amounts}

    def usages(self) -> list[Usage]:
        """List all readings as they stand."""
        return self.aggregate("usage", Usage)

    def counted_for(self, scope: Scope, start: str, end: str) -> Counted:
        """Sum up what is used in a period within a scope, cut where the customer's book is cut."""
        book = self.loaded(PriceBook, self.loaded(Customer, "acme").agreed.book)
        return Counted(0, [(a, b, _sums(self.usages(), scope, a, b)) for a, b, _ in book.between(start, end)])

    async def quoted(self, scope: Scope = EVERYTHING) -> str:
        """Give the subtotal of a quote for the customer's next period and the usage in a scope."""
        period = self.loaded(Customer, "acme").next_period()
        counted = self.counted_for(scope, moment_text(period.start), moment_text(period.end))
        made = await self.do(quote, AskQuote(tenant="acme"), OPERATOR, counted=counted)
        return str(made["bill"]["subtotal"]["amount"])

    async def bill_due(self) -> None:
        """Bill every period that is over."""
        while (customer := self.loaded(Customer, "acme")).ready_at <= self.now:
            before = customer.billed_to
            await self.bill()
            assert self.loaded(Customer, "acme").billed_to > before

    def count(self, cuts: Sequence[tuple[str, str]]) -> Counted:
        """Sum up all that is known now, part by part."""
        return Counted(
            len(self.store.logged), [(a, b, _sums(self.usages(), EVERYTHING, a, b)) for a, b in cuts]
        )

    @property
    def in_next_period(self) -> bool:
        """Say whether it is the period that is billed next."""
        return moment_of(self.now) in self.loaded(Customer, "acme").next_period()


def _sums(usages: Iterable[Usage], scope: Scope, start: str, end: str) -> list[Used]:
    found: dict[tuple[str, str, str], list[int]] = {}
    for one in usages:
        meant = all(
            wanted in (None, getattr(one, name)) for name, wanted in msgspec.structs.asdict(scope).items()
        )
        if meant and start <= one.occurred_at < end:
            sums = found.setdefault((one.provider, one.model, one.persona_id or ""), [0, 0, 0, 0])
            for n, more in enumerate((one.tokens_in, one.tokens_out, one.cached_tokens or 0, one.requests)):
                sums[n] += more
    return [
        Used(name[0], name[1], name[2] or None, *sums, 0, 0, 0, "0" * 16)
        for name, sums in sorted(found.items())
    ]


def nano(money: Any) -> int:
    """Read money of an answer."""
    return Money(**money).nano


# --------------------------------------------------------------------------- at random

MODELS = st.sampled_from(["m1", "m2", "m3"])
PERSONAS = st.sampled_from([None, "p1"])
RENTALS = st.sampled_from([None, "r1", "r2"])
COUNTS = st.one_of(st.integers(1_000, 30_000), st.integers(0, 50))
# Mostly of now or a little earlier, sometimes of an earlier period, sometimes by a clock that is ahead.
MINUTES_AGO = st.one_of(st.integers(0, 60), st.just(0), st.integers(0, 3_000), st.integers(-9, 0))
# Prices that cost something: most that are drawn from a range are next to nothing, and no limit is ever reached.
_amounts = st.one_of(
    st.sampled_from(["0.75", "2.5", "1.333333333"]),
    st.integers(1, 3 * 10**9).map(lambda n: f"{n // 10**9}.{n % 10**9:09d}"),
)
_pers = st.sampled_from(["1000", "1000", "7000", "77"])


@st.composite
def _tiers(draw: st.DrawFn) -> list[Tier]:
    tops = sorted(draw(st.sets(st.integers(1, 20_000), max_size=3)))
    return [
        Tier(draw(_amounts), None if top is None else str(top), draw(st.sampled_from(["0", "1", "0.005"])))
        for top in [*tops, None]
    ]


_counted = st.one_of(
    st.builds(PerUnit, _amounts, _pers),
    st.builds(Graduated, _tiers(), _pers),
    st.builds(Volume, _tiers(), _pers),
    st.builds(Package, _amounts, st.sampled_from(["100", "1000"])),
)


@st.composite
def charges(draw: st.DrawFn) -> list[Charge]:
    """Draw the charges of a version: all ways to count usage, with free units and bounds."""
    # The first is for all tokens in, so that nearly all usage costs something; the others as it comes.
    made = [Charge("c0", "tokens_in", draw(_counted), "", Match(), draw(st.sampled_from(["0", "500"])))]
    for number in range(1, draw(st.integers(1, 4))):
        meter = draw(st.sampled_from(["tokens_in", "tokens_out", "requests", "period"]))
        price = draw(st.builds(Flat, _amounts) if meter == "period" else _counted)
        bounds = sorted(draw(st.lists(st.integers(0, 30), min_size=2, max_size=2)))
        least, most = draw(st.sampled_from([(None, None), (str(bounds[0]), None), (None, str(bounds[1]))]))
        match = draw(st.builds(Match, model=st.one_of(st.none(), MODELS)))
        free = draw(st.sampled_from(["0", "0", "500", "0.5"]))
        one = Charge(f"c{number}", meter, price, "", match, free, least, most, draw(st.booleans()))
        # What is for one model stands before what is for all.
        made = [one, *made] if match.model else [*made, one]
    return made


commitments = st.sampled_from([None, None, None, "5", "40.005"])
