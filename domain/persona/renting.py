"""Renting, subscribing to and buying personas: what callers ask, at the price the published manifest names.

What runs is a rental, a subscription or a purchase (domain.rental); here is who may have one. The seller is the tenant
of the capsule, and the price is the one its reviewers and signers saw. What ends things by the clock or by rule is in
`offboarding`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from pydantic import Field

from domain.billing.customers import Customer, Day, Zone
from domain.billing.periods import Every, zone_of
from domain.billing.prices import Package, PerMinute
from domain.errors import (
    PriceNotOfferedError,
    PurchaseNotFoundError,
    RentalNotFoundError,
    SubscriptionNotFoundError,
)
from domain.fields import Command, Labels
from domain.ledger import Case, allow
from domain.persona.admission import (
    Wish,
    admit,
    every_of,
    judge_entry,
    on_offer,
    options_of,
    sale_of,
    way_to_pay,
)
from domain.persona.capsules import Capsule, get_capsule
from domain.persona.personas import PriceOption
from domain.rental.purchases import Purchase, make_purchase, refund_purchase
from domain.rental.rentals import (
    MINUTES_MAX,
    Rental,
    Terms,
    activate_rental,
    check_length,
    cost_nano,
    end_rental,
    extend_rental,
    reason_of,
    request_rental,
)
from domain.rental.subscriptions import (
    Plan,
    Subscription,
    cancel_at_end,
    change_subscription,
    end_subscription,
    resume_subscription,
    start_subscription,
)
from domain.trust.judgements import Judgements
from domain.values import Money, moment_of

RENTERS = ("owner", "provider")

Minutes = Annotated[int, Field(ge=1, le=MINUTES_MAX)]


# --------------------------------------------------------------------------- rentals


class RentPersona(Wish):
    """Rent a persona for a time, which is rounded up to whole periods, since one begun is one paid."""

    minutes: Minutes


class RentalStep(Command):
    """Name a rental."""

    rental_id: str


class ActivateRental(RentalStep):
    """Let the time of a rental run."""

    accepted: Labels = Field([], description="Obligations the policy has come up with since the rental.")


class ExtendRental(ActivateRental):
    """Add time to a rental, rounded up to whole periods."""

    minutes: Minutes


@allow(*RENTERS)
def rent(case: Case, command: RentPersona, *, judgements: Judgements, fee_ppm: int) -> Rental:
    """Rent a persona: the price of the whole time is reserved on the wallet of the caller's tenant.

    Units:  fee_ppm is the platform's part, in millionths.
    Errors: account_not_found, capsule_revoked, capsule_suspended, consent_required, constitution_mismatch,
            insufficient_funds, invalid_status_transition, persona_not_found, policy_denied, price_not_offered,
            price_unclear, rental_too_long, self_dealing, threshold_not_met.
    """
    capsule = on_offer(case, command.persona_id, command.version)
    option = way_to_pay(capsule, "rental", command)
    judgement = admit(case, capsule, "rent", command.accepted, judgements)
    terms = Terms(sale_of(capsule, option.price.currency, fee_ppm), _by_time(option))
    return request_rental(case, terms, _whole(command.minutes, terms), judgement)


class RentalQuote(msgspec.Struct, frozen=True):
    """What a rental would reserve, and at most cost, if it were asked for now."""

    persona_id: str
    version: str
    capsule: str
    seller: str
    minutes: int
    period_minutes: int
    price: Money
    amount: Money
    # What has to be accepted by name, and was not.
    obligations: list[str]


@allow(*RENTERS)
def quote_rental(case: Case, command: RentPersona, *, judgements: Judgements) -> RentalQuote:
    """Say what a rental would reserve, with everything `rent` looks at but the wallet; nothing is written.

    Errors: capsule_revoked, capsule_suspended, constitution_mismatch, invalid_status_transition, persona_not_found,
            policy_denied, price_not_offered, price_unclear, rental_too_long, self_dealing, threshold_not_met.
    """
    capsule = on_offer(case, command.persona_id, command.version)
    option = way_to_pay(capsule, "rental", command)
    judgement = judge_entry(case, capsule, "rent", judgements)
    # The platform's part is the seller's matter; what is reserved does not depend on it.
    terms = Terms(sale_of(capsule, option.price.currency, 0), _by_time(option))
    minutes = check_length(_whole(command.minutes, terms))
    return RentalQuote(
        persona_id=capsule.persona_id,
        version=str(capsule.manifest["metadata"]["version"]),
        capsule=capsule.address,
        seller=capsule.tenant,
        minutes=minutes,
        period_minutes=terms.period_minutes,
        price=option.price,
        amount=Money.of(cost_nano(terms, minutes * 60), terms.sale.currency),
        obligations=sorted(set(judgement.obligations) - set(command.accepted)),
    )


@allow(*RENTERS)
def activate(case: Case, command: ActivateRental, *, judgements: Judgements) -> Rental:
    """Let the time run; the capsule has to be in good standing at this moment too.

    Errors: capsule_revoked, capsule_suspended, consent_required, constitution_mismatch, invalid_status_transition,
            policy_denied, rental_active, rental_lapsed, rental_not_found, rental_not_open, threshold_not_met,
            version_mismatch.
    """
    rental = _own_rental(case, command.rental_id)
    if rental.status != "requested":
        return activate_rental(case, rental)
    accepted = [*rental.accepted, *command.accepted]
    capsule = get_capsule(case, rental.agreed.sale.capsule)
    return activate_rental(case, rental, admit(case, capsule, "activate", accepted, judgements))


@allow(*RENTERS)
def extend(case: Case, command: ExtendRental, *, judgements: Judgements) -> Rental:
    """Add time at the price that was agreed; what may not be rented any more is not extended either.

    Errors: capsule_revoked, capsule_suspended, consent_required, constitution_mismatch, insufficient_funds,
            invalid_status_transition, policy_denied, rental_not_active, rental_not_found, rental_not_open,
            rental_too_long, threshold_not_met, version_mismatch.
    """
    rental = _own_rental(case, command.rental_id)
    terms = rental.agreed
    capsule = get_capsule(case, terms.sale.capsule)
    admit(case, capsule, "rent", [*rental.accepted, *command.accepted], judgements)
    return extend_rental(case, rental, _whole(command.minutes, terms))


@allow(*RENTERS, "operator")
def end(case: Case, command: RentalStep) -> Rental:
    """Give a rental back before its time is over: what was used is paid, the rest is free again.

    Errors: rental_not_found, rental_not_open, version_mismatch.
    """
    rental = _own_rental(case, command.rental_id)
    return end_rental(case, rental, reason_of(rental, case.now))


def _own_rental(case: Case, name: str) -> Rental:
    rental = case.get_own(Rental, name, RentalNotFoundError)
    case.match_version(rental)
    return rental


def _by_time(option: PriceOption) -> PerMinute | Package:
    """Write the price of a rental as one for seconds: periods begun are paid whole."""
    minutes = option.billing_period_minutes or 1
    if minutes == 1:
        return PerMinute(option.price.amount)
    return Package(option.price.amount, str(minutes * 60))


def _whole(minutes: int, terms: Terms) -> int:
    """Round a time up to what is paid for it anyway."""
    return -(-minutes // terms.period_minutes) * terms.period_minutes


# --------------------------------------------------------------------------- purchases


class PurchasePersona(Wish):
    """Buy a version of a persona for good."""


class PurchaseStep(Command):
    """Name a purchase."""

    purchase_id: str


@allow(*RENTERS)
def purchase(case: Case, command: PurchasePersona, *, judgements: Judgements, fee_ppm: int) -> Purchase:
    """Buy a version of a persona: the price is reserved until the time to give it back is over.

    Units:  fee_ppm is the platform's part, in millionths.
    Errors: account_not_found, capsule_revoked, capsule_suspended, consent_required, constitution_mismatch,
            insufficient_funds, invalid_status_transition, persona_not_found, policy_denied, price_not_offered,
            price_unclear, self_dealing, threshold_not_met.
    """
    capsule = on_offer(case, command.persona_id, command.version)
    option = way_to_pay(capsule, "purchase", command)
    judgement = admit(case, capsule, "purchase", command.accepted, judgements)
    sale = sale_of(capsule, option.price.currency, fee_ppm)
    return make_purchase(case, sale, option.price, judgement)


@allow(*RENTERS, "operator")
def give_back(case: Case, command: PurchaseStep) -> Purchase:
    """Give a purchase back in the time that is for it; its price is free again.

    Errors: purchase_not_found, refund_closed, version_mismatch.
    """
    bought = case.get_own(Purchase, command.purchase_id, PurchaseNotFoundError)
    case.match_version(bought)
    return refund_purchase(case, bought, "returned")


# --------------------------------------------------------------------------- subscriptions


class SubscribePersona(Wish):
    """Subscribe to a persona; periods begin at local midnights, counted from the anchored day, or else from today."""

    zone: Zone | None = None
    anchor: Day | None = None


class SubscriptionStep(Command):
    """Name a subscription."""

    subscription_id: str


class CancelSubscription(SubscriptionStep):
    """Cancel a subscription: now, or with the end of what is paid for."""

    when: Literal["now", "period_end"] = "period_end"


class ChangePlan(SubscriptionStep):
    """Change to what another version of the persona costs for the same period, or to what it costs now."""

    version: Annotated[str | None, Field(max_length=64)] = None
    accepted: Labels = Field([], description="Obligations of the policy that the caller accepts.")


@allow(*RENTERS)
def subscribe(case: Case, command: SubscribePersona, *, judgements: Judgements, fee_ppm: int) -> Subscription:
    """Subscribe to a persona: the rest of the present period is reserved, its part of the price.

    Units:  fee_ppm is the platform's part, in millionths.
    Errors: account_not_found, capsule_revoked, capsule_suspended, consent_required, constitution_mismatch,
            insufficient_funds, invalid_status_transition, persona_not_found, policy_denied, price_not_offered,
            price_unclear, self_dealing, threshold_not_met, time_zone_unknown.
    """
    capsule = on_offer(case, command.persona_id, command.version)
    option = way_to_pay(capsule, "subscription", command)
    judgement = admit(case, capsule, "subscribe", command.accepted, judgements)
    zone = command.zone or _zone_of(case)
    today = moment_of(case.now).astimezone(zone_of(zone)).date().isoformat()
    plan = Plan(
        sale=sale_of(capsule, option.price.currency, fee_ppm),
        price=option.price,
        every=_every(option),
        zone=zone,
        anchor=command.anchor or today,
    )
    return start_subscription(case, plan, judgement)


@allow(*RENTERS, "operator")
def cancel(case: Case, command: CancelSubscription) -> Subscription:
    """Cancel a subscription; where nothing is paid for any more, it ends at once.

    Errors: subscription_ended, subscription_not_found, version_mismatch.
    """
    subscription = _own_subscription(case, command.subscription_id)
    if command.when == "now" or case.now >= subscription.period_end:
        return end_subscription(case, subscription, "cancelled")
    return cancel_at_end(case, subscription)


@allow(*RENTERS)
def resume(case: Case, command: SubscriptionStep) -> Subscription:
    """Take back that a subscription shall not be renewed.

    Errors: subscription_ended, subscription_not_found, version_mismatch.
    """
    return resume_subscription(case, _own_subscription(case, command.subscription_id))


@allow(*RENTERS)
def change_plan(case: Case, command: ChangePlan, *, judgements: Judgements, fee_ppm: int) -> Subscription:
    """Change to another version, or to the price of today: the old price up to now, the new one from now on.

    Units:  fee_ppm is the platform's part, in millionths.
    Errors: capsule_revoked, capsule_suspended, consent_required, constitution_mismatch, insufficient_funds,
            invalid_status_transition, persona_not_found, policy_denied, price_not_offered, renewal_not_due,
            subscription_ended, subscription_not_found, threshold_not_met, version_mismatch.
    """
    subscription = _own_subscription(case, command.subscription_id)
    old = subscription.agreed
    capsule = on_offer(case, old.sale.persona_id, command.version)
    option = _same_rhythm(capsule, old)
    judgement = admit(case, capsule, "subscribe", command.accepted, judgements)
    sale = sale_of(capsule, option.price.currency, fee_ppm)
    plan = Plan(sale=sale, price=option.price, every=old.every, zone=old.zone, anchor=old.anchor)
    return change_subscription(case, subscription, plan, judgement)


def _own_subscription(case: Case, name: str) -> Subscription:
    subscription = case.get_own(Subscription, name, SubscriptionNotFoundError)
    case.match_version(subscription)
    return subscription


def _zone_of(case: Case) -> str:
    """Give the zone a tenant is billed in; whoever is not billed yet lives in UTC."""
    customer = case.find(Customer, case.caller.tenant)
    return customer.agreed.zone if customer is not None else "UTC"


def _every(option: PriceOption) -> Every:
    every = every_of(option)
    assert every is not None, "a way to pay was chosen that the calendar knows"
    return every


def _same_rhythm(capsule: Capsule, old: Plan) -> PriceOption:
    """Choose the price in the currency and for the period of a plan.

    Errors: price_not_offered.
    """
    for option in options_of(capsule):
        if (option.model, option.price.currency, every_of(option)) == (
            "subscription",
            old.sale.currency,
            old.every,
        ):
            return option
    raise PriceNotOfferedError(
        "this version has no such subscription", currency=old.sale.currency, every=old.every
    )
