"""Renting, subscribing and buying: who may, at which price, and how it ends by the clock and by rule."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from domain.persona import offboarding, publication, renting
from domain.persona.capsules import Capsule
from domain.persona.offboarding import FailRenewal, StopUse, entitlement
from domain.rental.purchases import REFUND_WITHIN_S, Purchase
from domain.rental.rentals import Rental
from domain.rental.subscriptions import GRACE_S, Subscription
from domain.trust.judgements import Judgement
from domain.values import moment_of
from tests.unit.persona.persona_world import (
    AUDITOR,
    AUTHOR,
    BILLING,
    INSPECTOR,
    OPERATOR,
    OTHER_OPERATOR,
    PERSONA,
    REVIEWER,
    RIVAL,
    Ruling,
)
from tests.unit.persona.renting_maker import (
    ALL,
    BY_MINUTE,
    CLOCK,
    IN_EURO,
    MONTHLY,
    ODD,
    PURCHASE,
    RENTAL,
    RENTER,
    Shop,
)
from tests.unit.trust.trust_maker import COURIER, story

DAY_S = 86_400
RENT = renting.RentPersona(persona_id=PERSONA, minutes=60)
BUY = renting.PurchasePersona(persona_id=PERSONA)
SUBSCRIBE = renting.SubscribePersona(persona_id=PERSONA)
WAYS = [(renting.rent, RENT), (renting.purchase, BUY), (renting.subscribe, SUBSCRIBE)]


class Obliging(Ruling):
    """A policy that allows everything, under an obligation."""

    async def judge(self, package: str, question: dict[str, Any], digest: str) -> Judgement:
        """Allow it, with something to accept."""
        found = await super().judge(package, question, digest)
        return msgspec.structs.replace(found, obligations=["ask_consent_for_tools"])


def use_of(shop: Shop, kind: str, name: str) -> Any:
    """Read what runs."""
    cls = {"rental": Rental, "subscription": Subscription, "purchase": Purchase}[kind]
    return msgspec.convert(shop.state(kind, name), cls)


def entitled(shop: Shop, kind: str, name: str, epoch: int | None = None) -> str:
    """Ask whether somebody may use the persona; give why, or why not."""
    digits = shop.capsule.address.removeprefix("sha3-512:")
    capsule = msgspec.convert(shop.state("capsule", digits), Capsule)
    found = entitlement(use_of(shop, kind, name), capsule, shop.now, epoch)
    assert found.granted == (found.why == "granted")
    return found.why


class TestWhoMay:
    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize(
        ("caller", "code"),
        [
            (RENTER, "ok"), (RIVAL, "account_not_found"), (AUTHOR, "self_dealing"), (OPERATOR, "forbidden"),
            (REVIEWER, "forbidden"), (AUDITOR, "forbidden"), (BILLING, "forbidden"), (INSPECTOR, "forbidden"),
            (COURIER, "forbidden"),
        ],
    )  # fmt: skip
    @story
    async def test_who_may_have_a_persona(self, way, caller, code):
        shop = await Shop.opened()
        assert await shop.code(*way, caller) == code

    @story
    async def test_what_is_another_s_is_as_good_as_absent(self):
        shop = await Shop.opened(amount="200")
        rental, purchase, subscription = await shop.rented(), await shop.bought(), await shop.subscribed()
        step = renting.RentalStep(rental_id=rental["id"])
        assert await shop.code(renting.end, step, RIVAL) == "rental_not_found"
        activation = renting.ActivateRental(rental_id=rental["id"])
        assert await shop.code(renting.activate, activation, RIVAL) == "rental_not_found"
        extension = renting.ExtendRental(rental_id=rental["id"], minutes=1)
        assert await shop.code(renting.extend, extension, RIVAL) == "rental_not_found"
        back = renting.PurchaseStep(purchase_id=purchase["id"])
        assert await shop.code(renting.give_back, back, RIVAL) == "purchase_not_found"
        for use_case, command in (
            (renting.cancel, renting.CancelSubscription(subscription_id=subscription["id"])),
            (renting.resume, renting.SubscriptionStep(subscription_id=subscription["id"])),
            (renting.change_plan, renting.ChangePlan(subscription_id=subscription["id"])),
        ):
            assert await shop.code(use_case, command, RIVAL) == "subscription_not_found"

    @pytest.mark.parametrize("way", WAYS)
    @story
    async def test_nobody_gets_what_the_policy_denies(self, way):
        shop = await Shop.opened()
        shop.engine.allow = False
        assert await shop.code(*way) == "policy_denied"

    @story
    async def test_the_policy_is_asked_what_is_wanted_of_which_capsule_and_the_log_says_what_it_answered(
        self,
    ):
        shop = await Shop.opened(amount="200")
        rental = await shop.activated()
        await shop.subscribed()
        await shop.bought()
        asked = [
            question
            for judgement, question in shop.engine.given.values()
            if judgement.package == "soma.rental"
        ]
        assert [one["action"] for one in asked] == ["rent", "activate", "subscribe", "purchase"]
        assert {one["capsule"]["address"] for one in asked} == {shop.capsule.address}
        assert {one["who"]["tenant"] for one in asked} == {RENTER.tenant}
        assert all(one["signatures"]["verified"] for one in asked)
        judged = [
            msgspec.json.decode(logged.row.record)["data"]["judgement"]
            for logged in shop.store.logged
            if logged.row.type
            in ("rental.requested", "rental.activated", "subscription.started", "purchase.made")
        ]
        assert all(one["allow"] and one["package"] == "soma.rental" for one in judged)
        assert rental["status"] == "active"

    @story
    async def test_obligations_of_the_policy_have_to_be_accepted_once(self):
        shop = await Shop.opened()
        shop.engine = Obliging()
        assert await shop.code(renting.rent, RENT) == "consent_required"
        rental = await shop.rented(accepted=["ask_consent_for_tools"])
        activation = renting.ActivateRental(rental_id=rental["id"])
        assert await shop.code(renting.activate, activation) == "ok"


class TestQuotes:
    """What a rental would reserve, before anybody rents."""

    @story
    async def test_a_quote_is_what_is_reserved_and_writes_nothing(self):
        shop = await Shop.opened(RENTAL, IN_EURO)
        wish = renting.RentPersona(persona_id=PERSONA, minutes=61, currency="USD")
        size = len(shop.store.logged)
        quoted = msgspec.json.decode((await shop.judged(renting.quote_rental, wish, RENTER)).body)
        assert len(shop.store.logged) == size
        assert (quoted["minutes"], quoted["period_minutes"], quoted["amount"]["amount"]) == (120, 60, "1.00")
        assert (quoted["capsule"], quoted["version"]) == (shop.capsule.address, "1.0.0")
        made = msgspec.json.decode((await shop.judged(renting.rent, wish, RENTER)).body)
        assert (made["reserved"], made["minutes"]) == (quoted["amount"], quoted["minutes"])

    @story
    async def test_what_the_policy_obliges_to_is_named_and_not_refused(self):
        shop = await Shop.opened()
        shop.engine = Obliging()
        quoted = msgspec.json.decode((await shop.judged(renting.quote_rental, RENT, RENTER)).body)
        assert quoted["obligations"] == ["ask_consent_for_tools"]
        willing = renting.RentPersona(persona_id=PERSONA, minutes=60, accepted=["ask_consent_for_tools"])
        quoted = msgspec.json.decode((await shop.judged(renting.quote_rental, willing, RENTER)).body)
        assert quoted["obligations"] == []

    @story
    async def test_nobody_is_quoted_what_they_may_not_rent(self):
        shop = await Shop.opened()
        assert await shop.code(renting.quote_rental, RENT, AUTHOR) == "self_dealing"
        shop.engine.allow = False
        assert await shop.code(renting.quote_rental, RENT, RENTER) == "policy_denied"
        assert await shop.code(renting.quote_rental, RENT, CLOCK) == "forbidden"


class TestWhatIsOnOffer:
    @story
    async def test_a_draft_is_as_good_as_absent(self):
        shop = await Shop.begun()
        shop.pricing = ALL
        await shop.ready()
        assert await shop.code(renting.rent, RENT) == "persona_not_found"
        unknown = renting.RentPersona(persona_id="nobody-at-all", minutes=1)
        assert await shop.code(renting.rent, unknown) == "persona_not_found"

    @pytest.mark.parametrize(
        ("step", "code"),
        [("revoked", "capsule_revoked"), ("suspended", "capsule_suspended")],
    )
    @pytest.mark.parametrize("way", WAYS)
    @story
    async def test_a_stopped_capsule_is_neither_rented_nor_bought(self, way, step, code):
        shop = await Shop.opened()
        await getattr(shop, step)("let_run")
        assert await shop.code(*way) == code

    @story
    async def test_what_was_rented_is_not_activated_or_extended_once_its_capsule_is_suspended(self):
        shop = await Shop.opened()
        rental, active = await shop.rented(), await shop.activated()
        await shop.suspended("let_run")
        activation = renting.ActivateRental(rental_id=rental["id"])
        assert await shop.code(renting.activate, activation) == "capsule_suspended"
        extension = renting.ExtendRental(rental_id=active["id"], minutes=5)
        assert await shop.code(renting.extend, extension) == "capsule_suspended"

    @story
    async def test_a_version_may_be_named_and_otherwise_it_is_the_highest(self):
        shop = await Shop.opened(RENTAL)
        first = shop.capsule.address
        second = (await shop.priced(BY_MINUTE, version="1.1.0")).address
        assert (await shop.rented())["terms"]["sale"]["capsule"] == second
        assert (await shop.rented(version="1.0.0"))["terms"]["sale"]["capsule"] == first
        nowhere = renting.RentPersona(persona_id=PERSONA, minutes=1, version="9.0.0")
        assert await shop.code(renting.rent, nowhere) == "persona_not_found"

    @pytest.mark.parametrize(
        ("wish", "code"),
        [
            ({}, "price_unclear"),
            ({"currency": "EUR"}, "account_not_found"),
            ({"billing_period_minutes": 1}, "ok"),
            ({"currency": "USD", "billing_period_minutes": 60}, "ok"),
            ({"currency": "USD"}, "price_unclear"),
            ({"currency": "GBP"}, "price_not_offered"),
            ({"currency": "EUR", "billing_period_minutes": 1}, "price_not_offered"),
        ],
    )
    @story
    async def test_the_price_is_one_of_the_manifest_s(self, wish, code):
        shop = await Shop.opened(RENTAL, BY_MINUTE, IN_EURO)
        assert (
            await shop.code(renting.rent, renting.RentPersona(persona_id=PERSONA, minutes=60, **wish)) == code
        )

    @story
    async def test_a_way_that_is_not_offered_is_refused(self):
        shop = await Shop.opened(RENTAL, ODD)
        assert await shop.code(renting.purchase, BUY) == "price_not_offered"
        assert await shop.code(renting.subscribe, SUBSCRIBE) == "price_not_offered"


class TestMoney:
    @story
    async def test_periods_begun_are_paid_whole_and_given_whole(self):
        shop = await Shop.opened()
        rental = await shop.activated(61)
        assert (rental["minutes"], rental["reserved"]["amount"]) == (120, "1.00")
        assert shop.wallet() == ("100.00", "1.00")
        shop.wait(90 * 60)
        ended = await shop.told(renting.end, renting.RentalStep(rental_id=rental["id"]), RENTER)
        assert (ended["status"], ended["charged"]["amount"]) == ("ended", "1.00")
        assert shop.wallet() == ("99.00", "0.00")
        # An eighth of a dollar is 12.5 cents, half to even.
        assert (shop.earnings(), shop.wallet("acme")) == (("0.88", "0.00"), ("0.00", "0.00"))

    @story
    async def test_an_extension_is_rounded_up_too(self):
        shop = await Shop.opened()
        rental = await shop.activated(60)
        command = renting.ExtendRental(rental_id=rental["id"], minutes=1)
        longer = await shop.told(renting.extend, command, RENTER)
        assert (longer["minutes"], longer["reserved"]["amount"]) == (120, "1.00")
        assert (moment_of(longer["expires_at"]) - moment_of(shop.now)).total_seconds() == 7_200

    @story
    async def test_a_price_for_the_minute_is_paid_by_the_minute(self):
        shop = await Shop.opened(BY_MINUTE)
        rental = await shop.activated(10)
        shop.wait(61)
        ended = await shop.told(renting.end, renting.RentalStep(rental_id=rental["id"]), RENTER)
        assert ended["charged"]["amount"] == "0.04"

    @story
    async def test_a_purchase_is_held_and_given_back_or_settled(self):
        shop = await Shop.opened(PURCHASE, amount="200")
        kept, returned = await shop.bought(), await shop.bought()
        assert shop.wallet() == ("200.00", "160.00")
        await shop.told(renting.give_back, renting.PurchaseStep(purchase_id=returned["id"]), RENTER)
        shop.wait(REFUND_WITHIN_S)
        late = renting.PurchaseStep(purchase_id=kept["id"])
        assert await shop.code(renting.give_back, late) == "refund_closed"
        await shop.told(offboarding.settle, late, CLOCK)
        assert shop.wallet() == ("120.00", "0.00")
        assert entitled(shop, "purchase", kept["id"]) == "granted"
        assert entitled(shop, "purchase", returned["id"]) == "over"


class TestSubscriptions:
    @story
    async def test_a_subscription_begins_at_local_midnight_and_pays_for_the_rest_of_the_period(self):
        shop = await Shop.opened(MONTHLY)
        shop.wait(12 * 3_600)
        found = await shop.subscribed()
        assert found["period_end"] == "2026-02-01T00:00:00.000000Z"
        assert found["reserved"]["amount"]["amount"] == "30.50"

    @story
    async def test_the_zone_is_the_customer_s_wish(self):
        shop = await Shop.opened(MONTHLY)
        found = await shop.subscribed(zone="Asia/Tokyo", anchor="2026-01-15")
        assert found["period_end"] == "2026-01-14T15:00:00.000000Z"

    @story
    async def test_it_is_cancelled_at_the_end_and_taken_back_and_renewed(self):
        shop = await Shop.opened(MONTHLY)
        found = await shop.subscribed()
        name = found["id"]
        asked = await shop.told(renting.cancel, renting.CancelSubscription(subscription_id=name), RENTER)
        assert asked["cancel_at_end"] is True
        await shop.told(renting.resume, renting.SubscriptionStep(subscription_id=name), RENTER)
        shop.wait(31 * DAY_S)
        renewed = await shop.told(offboarding.renew, renting.SubscriptionStep(subscription_id=name), CLOCK)
        assert (renewed["status"], renewed["renewals"]) == ("active", 1)
        ended = await shop.told(
            renting.cancel, renting.CancelSubscription(subscription_id=name, when="now"), RENTER
        )
        assert ended["status"] == "ended"
        assert shop.wallet() == ("69.00", "0.00")

    @story
    async def test_a_timer_that_comes_too_early_renews_nothing(self):
        shop = await Shop.opened(MONTHLY)
        found = await shop.subscribed()
        size = len(shop.store.logged)
        await shop.told(offboarding.renew, renting.SubscriptionStep(subscription_id=found["id"]), CLOCK)
        assert len(shop.store.logged) == size

    @story
    async def test_what_cannot_be_paid_is_tried_again_while_access_goes_on_for_the_grace(self):
        shop = await Shop.opened(MONTHLY, amount="40")
        name = (await shop.subscribed())["id"]
        step = renting.SubscriptionStep(subscription_id=name)
        shop.wait(31 * DAY_S)
        assert await shop.code(offboarding.renew, step, CLOCK) == "insufficient_funds"
        failed = await shop.told(
            offboarding.fail, FailRenewal(subscription_id=name, reason="insufficient_funds"), CLOCK
        )
        assert (failed["status"], entitled(shop, "subscription", name)) == ("past_due", "granted")
        assert await shop.code(offboarding.renew, step, CLOCK) == "ok"
        assert shop.state("subscription", name)["status"] == "past_due"
        shop.wait(GRACE_S)
        assert entitled(shop, "subscription", name) == "over"

    @pytest.mark.parametrize(("how", "code"), [("suspended", "capsule_suspended"), ("revoked", "ok")])
    @story
    async def test_what_is_not_for_sale_any_more_is_not_renewed(self, how, code):
        shop = await Shop.opened(MONTHLY)
        name = (await shop.subscribed())["id"]
        await getattr(shop, how)("let_run")
        assert entitled(shop, "subscription", name) == "granted"
        shop.wait(31 * DAY_S)
        step = renting.SubscriptionStep(subscription_id=name)
        assert await shop.code(offboarding.renew, step, CLOCK) == code
        assert shop.state("subscription", name)["status"] == ("active" if how == "suspended" else "ended")
        assert shop.wallet()[0] == ("100.00" if how == "suspended" else "69.00")

    @story
    async def test_a_plan_changes_to_what_a_newer_version_costs_for_the_same_period(self):
        shop = await Shop.opened(MONTHLY)
        name = (await shop.subscribed())["id"]
        dearer = MONTHLY | {"price": {"amount": "62.00", "currency": "USD"}}
        newer = await shop.priced(dearer, version="2.0.0")
        shop.wait(15 * DAY_S + DAY_S / 2)
        changed = await shop.told(renting.change_plan, renting.ChangePlan(subscription_id=name), RENTER)
        assert changed["plan"]["sale"]["capsule"] == newer.address
        assert (changed["paid"]["amount"], changed["reserved"]["amount"]["amount"]) == ("15.50", "31.00")

    @story
    async def test_a_plan_does_not_change_to_another_period(self):
        shop = await Shop.opened(MONTHLY)
        name = (await shop.subscribed())["id"]
        await shop.priced(MONTHLY | {"billing_period_minutes": 525_600}, version="2.0.0")
        assert (
            await shop.code(renting.change_plan, renting.ChangePlan(subscription_id=name))
            == "price_not_offered"
        )


class TestTheEnd:
    @story
    async def test_access_is_half_open_and_the_epoch_decides_too(self):
        shop = await Shop.opened()
        rental = await shop.rented()
        assert entitled(shop, "rental", rental["id"]) == "not_activated"
        await shop.told(renting.activate, renting.ActivateRental(rental_id=rental["id"]), RENTER)
        assert entitled(shop, "rental", rental["id"], epoch=1) == "granted"
        assert entitled(shop, "rental", rental["id"], epoch=2) == "stale_epoch"
        shop.wait(3_599.999999)
        assert entitled(shop, "rental", rental["id"]) == "granted"
        shop.wait(0.000001)
        assert entitled(shop, "rental", rental["id"]) == "over"

    @pytest.mark.parametrize("how", ["revoked", "suspended"])
    @story
    async def test_a_stopped_capsule_lets_nobody_in_from_that_moment_and_nothing_after_it_is_paid(self, how):
        shop = await Shop.opened(BY_MINUTE, MONTHLY, PURCHASE, amount="200")
        rental, subscription, purchase = (
            await shop.activated(60),
            await shop.subscribed(),
            await shop.bought(),
        )
        shop.wait(600)
        await getattr(shop, how)("end")
        assert entitled(shop, "rental", rental["id"]) == "revoked"
        assert entitled(shop, "subscription", subscription["id"]) == "revoked"
        is_final = how == "revoked"
        assert entitled(shop, "purchase", purchase["id"]) == ("revoked" if is_final else "granted")
        # The worker comes late; what was used is counted up to the stop all the same.
        shop.wait(1_200)
        for kind, name in (
            ("rental", rental["id"]), ("subscription", subscription["id"]), ("purchase", purchase["id"]),
        ):  # fmt: skip
            await shop.told(offboarding.stop_use, StopUse(kind=kind, id=name), CLOCK)
            size = len(shop.store.logged)
            await shop.told(offboarding.stop_use, StopUse(kind=kind, id=name), CLOCK)
            assert len(shop.store.logged) == size, "it ended twice"
        found = shop.state("rental", rental["id"])
        assert (found["status"], found["used_s"], found["charged"]["amount"]) == ("revoked", 600, "0.20")
        assert shop.state("subscription", subscription["id"])["paid"]["amount"] == "0.01"
        assert shop.state("purchase", purchase["id"])["status"] == ("revoked" if is_final else "held")
        assert shop.wallet() == ("199.79", "0.00" if is_final else "80.00")

    @pytest.mark.parametrize("kind", ["rental", "subscription", "purchase"])
    @story
    async def test_a_timer_that_finds_a_stopped_capsule_ends_by_rule(self, kind):
        shop = await Shop.opened(amount="200")
        if kind == "rental":
            name = (await shop.activated())["id"]
            use_case, step = offboarding.expire, renting.RentalStep(rental_id=name)
        elif kind == "subscription":
            name = (await shop.subscribed())["id"]
            use_case, step = offboarding.renew, renting.SubscriptionStep(subscription_id=name)
        else:
            name = (await shop.bought())["id"]
            use_case, step = offboarding.settle, renting.PurchaseStep(purchase_id=name)
        await shop.revoked("end")
        shop.wait(60 * DAY_S)
        await shop.told(use_case, step, CLOCK)
        assert shop.state(kind, name)["status"] in ("revoked", "ended")
        assert shop.wallet() == ("200.00", "0.00")

    @story
    async def test_a_capsule_that_lets_rentals_run_ends_none(self):
        shop = await Shop.opened()
        rental = await shop.activated()
        await shop.revoked("let_run")
        assert entitled(shop, "rental", rental["id"]) == "granted"
        await shop.told(offboarding.stop_use, StopUse(kind="rental", id=rental["id"]), CLOCK)
        assert shop.state("rental", rental["id"])["status"] == "active"

    @story
    async def test_a_reinstated_capsule_lets_in_again_whom_nobody_had_ended(self):
        shop = await Shop.opened()
        rental = await shop.activated()
        await shop.suspended("end")
        assert shop.state("capsule", shop.capsule.address.removeprefix("sha3-512:"))["stopped_at"] == shop.now
        shop.wait(60)
        assert entitled(shop, "rental", rental["id"]) == "revoked"
        command = publication.ReinstateCapsule(capsule_id=shop.capsule.address, reason="it was nothing")
        await shop.told(publication.reinstate_capsule, command, OTHER_OPERATOR)
        assert entitled(shop, "rental", rental["id"]) == "granted"

    @pytest.mark.parametrize("caller", [RENTER, OPERATOR, RIVAL, AUTHOR])
    @story
    async def test_only_the_service_acts_for_the_clock(self, caller):
        shop = await Shop.opened()
        name = (await shop.activated())["id"]
        shop.wait(3_600)
        assert await shop.code(offboarding.expire, renting.RentalStep(rental_id=name), caller) == "forbidden"
        assert await shop.code(offboarding.stop_use, StopUse(kind="rental", id=name), caller) == "forbidden"
