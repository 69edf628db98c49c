"""Quotas by hand: limits, reservations, thresholds, late and corrected readings, and money that is paid ahead."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from domain.billing.budgeting import (
    RESERVATIONS_MAX,
    PastUsage,
    QuotaStep,
    SetQuota,
    count_quota,
    set_quota,
    show_quota,
)
from domain.billing.customers import Enroll, enroll, replan
from domain.billing.limits import ROWS_MAX, Scope
from domain.billing.price_books import PublishPrices, publish_prices
from domain.errors import QuotaExceededError
from domain.ledger import Caller
from domain.values import moment_of
from tests.unit.billing.billing_maker import BOOK
from tests.unit.billing.quota_maker import GATEWAY, PERSON, Limited, limit
from tests.unit.market.market_maker import OPERATOR, SERVICE, STRANGER

# One dollar for a thousand tokens in, and nothing else, so that sums can be read.
PLAIN = [{"id": "in", "meter": "tokens_in", "price": {"model": "per_unit", "price": "1", "per": "1000"}}]
Scene = Callable[[Limited], Awaitable[None]]


def play(scene: Scene, charges: Any = PLAIN, **plan: Any) -> None:
    """Play a scene with a customer under some prices."""

    async def played() -> None:
        world = Limited()
        await world.publish(charges)
        await world.do(enroll, Enroll(tenant="acme", book=BOOK, **plan), OPERATOR)
        world.wait(hours=1)
        await scene(world)

    asyncio.run(played())


async def refused(doing: Awaitable[Any]) -> QuotaExceededError:
    with pytest.raises(QuotaExceededError) as refusal:
        await doing
    return refusal.value


class TestLimits:
    def test_what_is_spent_is_counted_by_the_commit_that_takes_it_in(self):
        async def scene(world: Limited) -> None:
            await world.set_limits(limit())
            size = len(world.store.logged)
            await world.meter({"tokens_in": 30_000}, {"tokens_in": 12_000})
            assert world.topics()[size:] == ["usage.metered", "usage.metered", "quota.spent"]
            found = await world.limit()
            assert (found["spent"], found["left"], found["over"]) == ("42.00", "58.00", "0.00")
            assert found["spent"] == await world.quoted()

        play(scene)

    def test_usage_before_there_was_a_quota_counts_too(self):
        async def scene(world: Limited) -> None:
            await world.meter({"tokens_in": 30_000})
            command = SetQuota.model_validate({"tenant": "acme", "limits": [limit()]})
            await world.do(set_quota, command, OPERATOR)
            # Until the past is counted nobody is told a number, and what comes meanwhile is not lost.
            await world.meter({"tokens_in": 5_000})
            found = await world.limit()
            assert (found["spent"], found["left"]) == (None, None)
            await world.count_past()
            assert (await world.limit())["spent"] == "35.00" == await world.quoted()
            size = len(world.store.logged)
            await world.count_past()
            assert len(world.store.logged) == size

        play(scene)

    def test_a_tenant_without_a_quota_writes_nothing_more_than_its_readings(self):
        async def scene(world: Limited) -> None:
            await world.meter({"tokens_in": 30_000})
            assert not world.topics("quota")

        play(scene)

    def test_usage_beyond_a_limit_is_taken_and_shown_as_over_it(self):
        async def scene(world: Limited) -> None:
            await world.set_limits(limit(amount="10"))
            assert (await world.meter({"tokens_in": 12_500}))["inserted"] == 1
            found = await world.limit()
            assert (found["spent"], found["left"], found["over"]) == ("12.50", "0.00", "2.50")
            await refused(world.reserve(requests=1))

        play(scene)

    def test_a_limit_counts_what_is_in_its_scope(self):
        async def scene(world: Limited) -> None:
            limits = [
                limit("m2", model="m2"),
                limit("q", provider="q"),
                limit("rented", rental_id="r1"),
                limit("persona", persona_id="mia"),
            ]
            await world.set_limits(*limits)
            await world.meter(
                {"tokens_in": 1_000, "model": "m2", "rental_id": "r1"},
                {"tokens_in": 2_000, "provider": "q"},
                {"tokens_in": 4_000, "rental_id": "r2", "persona_id": "mia"},
            )
            spent = {one["id"]: one["spent"]["amount"] for one in (await world.shown())["limits"]}
            assert spent == {"m2": "1.00", "q": "2.00", "rented": "1.00", "persona": "4.00"}

        play(scene)

    def test_fees_count_as_on_the_invoice_unless_a_limit_leaves_them_out(self):
        fee = {"id": "base", "meter": "period", "price": {"model": "flat", "price": "10"}}

        async def scene(world: Limited) -> None:
            await world.set_limits(limit("bill"), limit("usage", fees=False))
            await world.meter({"tokens_in": 1_000})
            spent = {one["id"]: one["spent"]["amount"] for one in (await world.shown())["limits"]}
            assert spent == {"bill": "11.00", "usage": "1.00"}
            assert spent["bill"] == await world.quoted()

        play(scene, [fee, *PLAIN], every="day")

    def test_each_side_keeps_its_own_limits(self):
        async def scene(world: Limited) -> None:
            await world.set_limits(limit("cap"))
            await world.set_limits(limit("mine", mode="soft"), caller=PERSON)
            await world.set_limits(limit("cap", "50"))
            shown = (await world.shown())["limits"]
            assert [(one["id"], one["by"], one["amount"]["amount"]) for one in shown] == [
                ("cap", "platform", "50.00"),
                ("mine", "tenant", "100.00"),
            ]
            await world.set_limits(caller=PERSON)
            assert [one["id"] for one in (await world.shown())["limits"]] == ["cap"]

        play(scene)

    @pytest.mark.parametrize(
        ("sent", "caller", "code"),
        [
            ({"limits": [limit()]}, PERSON, "forbidden"),
            ({"limits": [], "prepaid": True}, PERSON, "forbidden"),
            ({"limits": [limit(mode="soft")]}, STRANGER, "customer_not_found"),
            ({"limits": [limit(), limit()]}, OPERATOR, "invalid_field"),
            (
                {"limits": [limit() | {"amount": {"amount": "1", "currency": "EUR"}}]},
                OPERATOR,
                "currency_mismatch",
            ),
            ({"tenant": "nobody", "limits": [limit()]}, OPERATOR, "customer_not_found"),
            ({"limits": []}, GATEWAY, "forbidden"),
        ],
    )
    def test_limits_are_set_by_whoever_may_and_make_sense(
        self, sent: dict[str, Any], caller: Caller, code: str
    ) -> None:
        async def scene(world: Limited) -> None:
            command = SetQuota.model_validate({"tenant": "acme"} | sent)
            assert await world.heard(set_quota, command, caller) == code

        play(scene)

    @pytest.mark.parametrize("thresholds", [["1", "0.5"], ["0.5", "0.50"], ["-1"], ["1000"], ["x"]])
    def test_thresholds_that_do_not_ascend_are_no_thresholds(self, thresholds: list[str]) -> None:
        with pytest.raises(ValueError, match="thresholds"):
            SetQuota.model_validate({"tenant": "acme", "limits": [limit(thresholds=thresholds)]})

    def test_others_do_not_see_a_quota(self):
        async def scene(world: Limited) -> None:
            await world.set_limits(limit())
            step = QuotaStep(tenant="acme")
            assert await world.heard(show_quota, step, STRANGER, stored=world.quota) == "quota_not_found"
            assert await world.heard(show_quota, step, OPERATOR, stored=world.quota) == "ok"
            assert await world.code(world.reserve(caller=STRANGER)) == "quota_not_found"

        play(scene)

    def test_without_limits_nothing_is_counted_and_nothing_reserved(self):
        async def scene(world: Limited) -> None:
            assert await world.code(world.reserve()) == "quota_not_found"
            await world.set_limits(limit())
            await world.set_limits()
            size = len(world.store.logged)
            await world.meter({"tokens_in": 1_000})
            assert world.topics()[size:] == ["usage.metered"]
            assert await world.code(world.reserve()) == "quota_not_found"
            # What was used meanwhile is counted from the log when limits are set again.
            await world.set_limits(limit())
            assert (await world.limit())["spent"] == "1.00"

        play(scene)

    def test_very_many_names_are_counted_exactly_in_few_rows(self):
        async def scene(world: Limited) -> None:
            await world.set_limits(limit(), limit("one", model="m7"))
            readings = [{"tokens_in": 1_000, "model": f"m{n}"} for n in range(ROWS_MAX + 50)]
            await world.meter(*readings)
            await world.meter(*readings)
            assert len(world.quota.rows) <= ROWS_MAX + 2
            assert (await world.limit())["spent"] == f"{2 * len(readings)}.00" == await world.quoted()
            assert (await world.limit("one"))["spent"] == "2.00" == await world.quoted(Scope(model="m7"))

        play(scene)

    def test_sums_beyond_what_money_can_be_never_refuse_a_reading(self):
        dear = [{"id": "in", "meter": "tokens_in", "price": {"model": "per_unit", "price": "1000000"}}]

        async def scene(world: Limited) -> None:
            await world.set_limits(limit(), prepaid=True)
            assert (await world.meter({"tokens_in": 10**12}))["inserted"] == 1

        play(scene, dear)


class TestReservations:
    def test_a_reservation_fits_or_is_refused_with_what_would_fit(self):
        async def scene(world: Limited) -> None:
            await world.set_limits(limit(amount="10"))
            await world.meter({"tokens_in": 4_000})
            made = await world.reserve(tokens_in=5_000)
            assert made["reservation"]["cost"] == {"amount": "5.00", "currency": "USD"}
            assert (await world.limit())["left"] == "1.00"
            refusal = await refused(world.reserve(tokens_in=2_000, tokens_out=100))
            facts = refusal.facts
            assert (refusal.status, facts["limit"], facts["left"]["amount"]) == (402, "all", "1.00")
            assert (facts["spent"]["amount"], facts["reserved"]["amount"]) == ("4.00", "5.00")
            assert facts["fits_tokens_out"] is None
            assert facts["resets_at"] == world.quota.period_end
            await world.reserve(tokens_in=1_000)

        play(scene)

    def test_the_largest_answer_that_would_fit_is_named(self):
        out = {"id": "out", "meter": "tokens_out", "price": {"model": "per_unit", "price": "0.01"}}

        async def scene(world: Limited) -> None:
            await world.set_limits(limit(amount="10"))
            refusal = await refused(world.reserve(tokens_in=3_000, tokens_out=5_000))
            most = refusal.facts["fits_tokens_out"]
            assert most == 700
            await refused(world.reserve(tokens_in=3_000, tokens_out=most + 1))
            await world.reserve(tokens_in=3_000, tokens_out=most)

        play(scene, [*PLAIN, out])

    def test_a_reading_that_names_its_reservation_puts_an_end_to_it(self):
        async def scene(world: Limited) -> None:
            await world.set_limits(limit(amount="10"))
            made = await world.reserve(tokens_in=10_000)
            reading = world.reading(tokens_in=3_000, reservation_id=made["reservation"]["id"])
            await world.meter(reading)
            found = await world.limit()
            assert (found["spent"], found["reserved"], found["left"]) == ("3.00", "0.00", "7.00")
            (usage,) = world.usages()
            assert not hasattr(usage, "reservation_id")
            # The same reading again is a duplicate, and whatever it names is left alone.
            again = await world.reserve(tokens_in=7_000)
            await world.meter(reading | {"reservation_id": again["reservation"]["id"]})
            assert (await world.limit())["reserved"] == "7.00"

        play(scene)

    def test_a_reservation_is_let_go_once(self):
        async def scene(world: Limited) -> None:
            await world.set_limits(limit(amount="10"))
            made = await world.reserve(tokens_in=10_000)
            await world.release(made["reservation"]["id"])
            assert (await world.limit())["left"] == "10.00"
            assert await world.code(world.release(made["reservation"]["id"])) == "reservation_not_found"

        play(scene)

    def test_an_expired_reservation_counts_for_nothing_at_the_check_whoever_wrote_it_down(self):
        async def scene(world: Limited) -> None:
            await world.set_limits(limit(amount="10"))
            made = await world.reserve(tokens_in=10_000, ttl_s=60)
            assert world.quota.deadline_key() == made["reservation"]["expires_at"]
            world.wait(seconds=60)
            assert (await world.limit())["left"] == "10.00"
            await world.reserve(tokens_in=10_000)
            assert world.topics("quota.rel") == ["quota.released"]
            assert await world.code(world.release(made["reservation"]["id"])) == "reservation_not_found"

        play(scene)

    def test_soft_limits_refuse_nothing(self):
        async def scene(world: Limited) -> None:
            await world.set_limits(limit(amount="10", mode="soft"))
            await world.reserve(tokens_in=50_000)

        play(scene)

    def test_a_price_that_falls_with_the_volume_is_reserved_at_its_dearest(self):
        tiers = [{"price": "1", "up_to": "99"}, {"price": "0.5"}]
        volume = [{"id": "in", "meter": "tokens_in", "price": {"model": "volume", "tiers": tiers}}]

        async def scene(world: Limited) -> None:
            # A hundred tokens are 50.00, but ninety-nine of them are 99.00.
            await world.set_limits(limit(amount="60"))
            refusal = await refused(world.reserve(tokens_in=100))
            assert refusal.facts["left"]["amount"] == "60.00"
            await world.reserve(tokens_in=60)

        play(scene, volume)

    def test_there_is_an_end_to_open_reservations(self):
        async def scene(world: Limited) -> None:
            await world.set_limits(limit())
            for _ in range(RESERVATIONS_MAX):
                await world.reserve(tokens_in=1)
            assert await world.code(world.reserve(tokens_in=1)) == "too_many_reservations"
            world.wait(days=1)
            await world.reserve(tokens_in=1)

        play(scene)

    def test_where_no_price_is_in_force_yet_nothing_can_be_reserved(self):
        async def scene(world: Limited) -> None:
            later = "2026-01-04T00:00:00Z"
            body = {"book": "other", "currency": "USD", "charges": PLAIN, "effective_from": later}
            await world.do(publish_prices, PublishPrices.model_validate(body), OPERATOR)
            await world.do(enroll, Enroll(tenant="later", book="platform.other"), OPERATOR)
            limits = SetQuota.model_validate({"tenant": "later", "limits": [limit()]})
            await world.do(set_quota, limits, OPERATOR)
            step = QuotaStep(tenant="later")
            await world.ledger.act(count_quota, step, SERVICE, gather=nothing_yet)
            assert await world.code(world.reserve(caller=OPERATOR, tenant="later")) == "price_not_in_force"

        async def nothing_yet() -> dict[str, Any]:
            starts = ["2026-01-04T00:00:00.000000Z", "2026-02-01T00:00:00.000000Z"]
            return {"past": PastUsage(1, 0, starts, [])}

        play(scene)


class TestThresholds:
    def test_a_threshold_is_crossed_once_a_period_and_told_by_an_event(self):
        async def scene(world: Limited) -> None:
            await world.set_limits(limit(amount="10", thresholds=["0.5", "0.8", "1.2"]))
            await world.meter({"tokens_in": 4_990})
            assert not world.topics("quota.thr")
            await world.meter({"tokens_in": 3_010})
            told = [r["data"] for r in records(world, "quota.threshold_crossed")]
            assert [(one["threshold"], one["spent"]["amount"]) for one in told] == [
                ("0.5", "8.00"),
                ("0.8", "8.00"),
            ]
            # Taken back and used again: it was told already.
            (first, _) = sorted(world.usages(), key=lambda one: one.tokens_in, reverse=True)
            await world.put_right(first, tokens_in=0)
            await world.meter({"tokens_in": 5_000})
            assert len(world.topics("quota.thr")) == 2
            await world.meter({"tokens_in": 5_000})
            assert (await world.limit())["crossed"] == ["0.5", "0.8", "1.2"]
            world.wait(days=1)
            await world.meter({"tokens_in": 5_000})
            assert (await world.limit())["crossed"] == ["0.5"]

        play(scene, every="day")

    def test_another_amount_may_be_crossed_again(self):
        async def scene(world: Limited) -> None:
            await world.set_limits(limit(amount="10", thresholds=["0.8"]))
            await world.meter({"tokens_in": 8_000})
            await world.set_limits(limit(amount="20", thresholds=["0.8"]))
            assert (await world.limit())["crossed"] == []
            await world.meter({"tokens_in": 8_000})
            assert len(world.topics("quota.thr")) == 2

        play(scene)

    def test_a_new_limit_that_is_reached_already_says_so(self):
        async def scene(world: Limited) -> None:
            await world.meter({"tokens_in": 8_000})
            await world.set_limits(limit(amount="10"))
            assert (await world.limit())["crossed"] == ["0.5", "0.8"]

        play(scene)


class TestPeriods:
    def test_a_late_reading_of_an_earlier_period_is_not_counted_to_the_present_one(self):
        async def scene(world: Limited) -> None:
            await world.set_limits(limit())
            yesterday = world.now
            world.wait(days=1)
            await world.meter({"tokens_in": 1_000, "occurred_at": yesterday}, {"tokens_in": 2_000})
            assert (await world.limit())["spent"] == "2.00"

        play(scene, every="day")

    def test_a_clock_that_is_ahead_sends_usage_of_the_next_period(self):
        async def scene(world: Limited) -> None:
            await world.set_limits(limit())
            world.go_to(moment_of("2026-01-01T23:55:00.000000Z"))
            await world.meter(
                {"tokens_in": 1_000, "occurred_at": "2026-01-02T00:02:00Z"}, {"tokens_in": 2_000}
            )
            assert (await world.limit())["spent"] == "2.00"
            world.wait(minutes=6)
            assert (await world.limit())["spent"] == "1.00"
            await world.tend()
            assert world.topics("quota.period") == ["quota.period_began"] * 2
            assert world.quota.counting is None

        play(scene, every="day")

    def test_a_price_change_between_readings_already_sent_is_counted_from_the_log(self):
        async def scene(world: Limited) -> None:
            await world.set_limits(limit())
            await world.meter({"tokens_in": 1_000})
            await world.meter({"tokens_in": 2_000, "occurred_at": "2026-01-01T01:09:00Z"})
            dear = [
                {
                    "id": "in",
                    "meter": "tokens_in",
                    "price": {"model": "per_unit", "price": "5", "per": "1000"},
                }
            ]
            await world.publish(dear, at="2026-01-01T01:05:00Z")
            # A reading finds the cut: the counters cannot tell what lies on which side of it.
            await world.meter({"tokens_in": 4_000})
            assert world.quota.counting is not None
            await world.count_past()
            assert (await world.limit())["spent"] == "15.00" == await world.quoted()

        play(scene)

    def test_a_period_goes_by_the_plan_agreed_for_it_though_the_one_before_is_not_billed(self):
        async def scene(world: Limited) -> None:
            await world.set_limits(limit())
            await world.do(replan, Enroll(tenant="acme", book=BOOK, every="week"), OPERATOR)
            world.wait(days=1)
            await world.tend()
            expected = ("2026-01-02T00:00:00.000000Z", "2026-01-08T00:00:00.000000Z")
            assert (world.quota.period_start, world.quota.period_end) == expected

        play(scene, every="day")

    def test_a_day_of_23_hours_is_a_period(self):
        async def scene(world: Limited) -> None:
            await world.set_limits(limit())
            world.go_to(moment_of("2026-03-08T05:00:00.000000Z"))
            await world.tend()
            assert (world.quota.period_start, world.quota.period_end) == (
                "2026-03-08T05:00:00.000000Z",
                "2026-03-09T04:00:00.000000Z",
            )

        play(scene, every="day", zone="America/New_York")


class TestPaidAhead:
    def test_a_reservation_holds_money_and_its_usage_becomes_credit_that_the_invoice_burns(self):
        async def scene(world: Limited) -> None:
            await paid_in(world, "100")
            await world.set_limits(limit(), prepaid=True)
            first = await world.reserve(tokens_in=10_000)
            second = await world.reserve(tokens_in=20_000)
            assert world.balances()["wallet.acme.USD"] == "100.00 held"
            await world.meter({"tokens_in": 8_000, "reservation_id": first["reservation"]["id"]})
            await world.meter({"tokens_in": 20_000, "reservation_id": second["reservation"]["id"]})
            await world.meter({"tokens_in": 5_000})
            assert world.balances() == {
                "cash.platform.USD": "100.00",
                "wallet.acme.USD": "72.00",
                "credits.acme.USD": "28.00",
            }
            # One grant a period, however many reservations.
            assert world.topics("grant") == ["grant.granted", "grant.grown"]
            world.wait(days=1, hours=2)
            await world.bill_due()
            (invoice,) = [s for n, s in world.store.states.items() if n.startswith("invoice/")]
            assert world.loaded_nano(world.state("invoice", invoice.id)["due"]) == 5 * 10**9

        play(scene, every="day")

    def test_no_money_no_reservation(self):
        async def scene(world: Limited) -> None:
            await paid_in(world, "5")
            await world.set_limits(limit(), prepaid=True)
            assert await world.code(world.reserve(tokens_in=6_000)) == "insufficient_funds"
            await world.reserve(tokens_in=5_000)
            assert await world.code(world.reserve(tokens_in=1)) == "ok"  # less than a cent is no money
            assert await world.code(world.reserve(tokens_in=1_000)) == "insufficient_funds"

        play(scene)

    def test_a_hold_is_let_go_with_its_reservation_and_never_pays_more_than_it_holds(self):
        async def scene(world: Limited) -> None:
            await paid_in(world, "100")
            await world.set_limits(prepaid=True)
            made = [(await world.reserve(tokens_in=10_000, ttl_s=60))["reservation"]["id"] for _ in range(3)]
            await world.release(made[0])
            await world.meter({"tokens_in": 25_000, "reservation_id": made[1]})
            world.wait(minutes=2)
            await world.tend()
            assert world.balances()["wallet.acme.USD"] == "90.00"
            assert world.balances()["credits.acme.USD"] == "10.00"
            statuses = {name: hold.status for name, hold in world.store.book.holds.items()}
            assert statuses == dict(zip(made, ("void", "posted", "expired"), strict=True))

        play(scene)

    def test_a_reading_that_names_an_expired_reservation_takes_nothing_from_its_hold(self):
        async def scene(world: Limited) -> None:
            await paid_in(world, "100")
            await world.set_limits(prepaid=True)
            made = (await world.reserve(tokens_in=10_000, ttl_s=60))["reservation"]["id"]
            world.wait(seconds=60)
            await world.meter({"tokens_in": 5_000, "reservation_id": made})
            assert world.store.book.holds[made].status == "pending"
            await world.tend()
            assert world.store.book.holds[made].status == "expired"
            assert world.balances()["wallet.acme.USD"] == "100.00"
            assert not world.topics("grant")

        play(scene)

    def test_what_is_held_is_let_go_though_paying_ahead_was_given_up(self):
        async def scene(world: Limited) -> None:
            await paid_in(world, "100")
            await world.set_limits(prepaid=True)
            used = await world.reserve(tokens_in=10_000)
            await world.reserve(tokens_in=10_000)
            await world.set_limits(prepaid=False)
            await world.meter({"tokens_in": 5_000, "reservation_id": used["reservation"]["id"]})
            world.wait(hours=1)
            await world.tend()
            assert "held" not in world.balances()["wallet.acme.USD"]

        play(scene)


async def paid_in(world: Limited, amount: str) -> None:
    from domain.billing.accounts import Deposit, deposit
    from tests.unit.market.market_maker import usd

    await world.do(deposit, Deposit(tenant="acme", amount=usd(amount)), OPERATOR)


def records(world: Limited, topic: str) -> list[Any]:
    import msgspec

    found = [msgspec.json.decode(one.row.record) for one in world.store.logged]
    return [one for one in found if one["type"] == topic]
