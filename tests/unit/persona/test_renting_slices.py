"""Use that is cut into slices, or left unpaid, costs no less than use in one piece."""

from __future__ import annotations

import pytest

from domain.persona import offboarding, renting
from domain.persona.offboarding import FailRenewal
from tests.unit.persona.renting_maker import BY_MINUTE, CLOCK, MONTHLY, RENTER, Shop, priced_at
from tests.unit.persona.test_renting import DAY_S, entitled, story

CENTS = 10_000_000
SLICE_S, SLICES = 430, 100
# 31 dollars for 31 days, exactly.
FAIR_CENTS = SLICE_S * SLICES * 100 / DAY_S


def paid_cents(shop: Shop, before: int) -> int:
    """Say what the renter's wallet has paid."""
    return (before - shop.store.book.accounts["wallet.renters.USD"].balance_nano) // CENTS


@story
async def test_a_plan_that_is_changed_every_few_minutes_is_not_free():
    shop = await Shop.opened(MONTHLY)
    name = (await shop.subscribed())["id"]
    for _ in range(SLICES):
        shop.wait(SLICE_S)
        await shop.told(renting.change_plan, renting.ChangePlan(subscription_id=name), RENTER)
    assert paid_cents(shop, 10_000 * CENTS) >= FAIR_CENTS


@story
async def test_a_subscription_that_is_cancelled_and_begun_every_few_minutes_is_not_free():
    shop = await Shop.opened(MONTHLY)
    for _ in range(SLICES):
        name = (await shop.subscribed())["id"]
        shop.wait(SLICE_S)
        now = renting.CancelSubscription(subscription_id=name, when="now")
        await shop.told(renting.cancel, now, RENTER)
    assert paid_cents(shop, 10_000 * CENTS) >= FAIR_CENTS


@story
async def test_minutes_that_cost_less_than_a_cent_are_not_free():
    shop = await Shop.opened(priced_at(BY_MINUTE, "0.001"))
    for _ in range(10):
        rental = await shop.activated(5)
        shop.wait(300)
        await shop.told(offboarding.expire, renting.RentalStep(rental_id=rental["id"]), CLOCK)
    assert paid_cents(shop, 10_000 * CENTS) >= 5


@pytest.mark.parametrize("price", ["31.005", "31.015", "0.001"])
@story
async def test_a_price_finer_than_the_currency_is_reserved_and_paid(price):
    shop = await Shop.opened(priced_at(MONTHLY, price), amount="200")
    name = (await shop.subscribed())["id"]
    for _ in range(2):
        shop.now = shop.state("subscription", name)["period_end"]
        await shop.told(offboarding.renew, renting.SubscriptionStep(subscription_id=name), CLOCK)
    found = shop.state("subscription", name)
    assert (found["status"], found["renewals"]) == ("active", 2)
    assert paid_cents(shop, 20_000 * CENTS) >= 2 * float(price) * 100


@pytest.mark.parametrize("lasted_s", [60, 3_600, 6 * DAY_S, 8 * DAY_S])
@story
async def test_the_grace_is_no_longer_than_what_was_subscribed_to(lasted_s):
    shop = await Shop.opened(MONTHLY, amount="9")
    shop.wait(31 * DAY_S - lasted_s)
    name = (await shop.subscribed(anchor="2026-01-01"))["id"]
    shop.wait(lasted_s)
    assert await shop.code(offboarding.renew, renting.SubscriptionStep(subscription_id=name), CLOCK) != "ok"
    failed = FailRenewal(subscription_id=name, reason="insufficient_funds")
    await shop.told(offboarding.fail, failed, CLOCK)
    grace_s = min(lasted_s, 7 * DAY_S)
    shop.wait(grace_s - 1)
    assert entitled(shop, "subscription", name) == "granted"
    shop.wait(1)
    assert entitled(shop, "subscription", name) == "over"
    await shop.told(offboarding.fail, failed, CLOCK)
    assert shop.state("subscription", name)["status"] == "ended"
