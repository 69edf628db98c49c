"""Who gets in: what is on offer, at which of its prices, and whether this caller may have it now.

Everything is read at the decision itself: the capsule must be published, verified and under the constitution in force,
the policy soma.rental must allow exactly this, and what it obliges the caller to must have been accepted.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import msgspec
from pydantic import Field

from domain.billing.periods import Every
from domain.errors import (
    ConsentRequiredError,
    PersonaNotFoundError,
    PriceNotOfferedError,
    PriceUnclearError,
    SelfDealingError,
)
from domain.fields import Command, Labels
from domain.ledger import Case
from domain.persona.capsules import Capsule, check_usable, get_capsule
from domain.persona.facts import asker, capsule_facts, constitution_in_force, signature_facts
from domain.persona.personas import SHOWN, Persona, PriceOption
from domain.rental.settling import Sale
from domain.trust.judgements import Judgement, Judgements, check_allowed, judged
from domain.trust.questions import RentalAction, rental_question
from domain.trust.signatures import verification
from domain.values import Money

PACKAGE = "soma.rental"
# Which periods of a subscription the calendar knows, in minutes; a month may be written as any of its lengths.
CALENDAR: dict[int, Every] = {1_440: "day", 10_080: "week", 525_600: "year"}
MONTH_MINUTES = range(40_320, 44_641)


class Wish(Command):
    """What is wanted of a persona: a version, or else the highest on show; and at which price, if there are several.

    Units: billing_period_minutes as the manifest writes it.
    """

    persona_id: str
    version: Annotated[str | None, Field(max_length=64)] = None
    currency: Annotated[str | None, Field(pattern=r"^[A-Z]{3}$")] = None
    billing_period_minutes: Annotated[int | None, Field(ge=1, le=525_600)] = None
    accepted: Labels = Field([], description="Obligations of the policy that the caller accepts.")


def on_offer(case: Case, persona_id: str, version: str | None) -> Capsule:
    """Find the capsule of a persona that is, or was, on show; what was never published is as good as absent.

    Errors: capsule_not_found, persona_not_found.
    """
    persona = case.get(Persona, persona_id, PersonaNotFoundError)
    known = [one for one in persona.versions if one.status in SHOWN and version in (None, one.version)]
    listed = [one for one in known if one.status == "published"] or known
    if not listed:
        raise PersonaNotFoundError(id=persona_id)
    capsule = get_capsule(case, listed[-1].capsule)
    if capsule.published_at is None:
        raise PersonaNotFoundError(id=persona_id)
    return capsule


def way_to_pay(capsule: Capsule, model: str, wish: Wish) -> PriceOption:
    """Choose the price of the manifest that a wish means.

    Errors: price_not_offered, price_unclear.
    """
    offered = [option for option in options_of(capsule) if option.model == model]
    if model == "subscription":
        offered = [option for option in offered if every_of(option) is not None]
    fitting = [
        option
        for option in offered
        if wish.currency in (None, option.price.currency)
        and wish.billing_period_minutes in (None, option.billing_period_minutes)
    ]
    told = [msgspec.to_builtins(option) for option in offered]
    if not fitting:
        raise PriceNotOfferedError(f"there is no {model} like this", model=model, offered=told)
    if len(fitting) > 1:
        raise PriceUnclearError(model=model, offered=told)
    return fitting[0]


def options_of(capsule: Capsule) -> list[PriceOption]:
    """List the ways to pay of a capsule's manifest."""
    return [
        PriceOption(option["model"], Money(**option["price"]), option["billing_period_minutes"])
        for option in capsule.manifest["pricing"]
    ]


def every_of(option: PriceOption) -> Every | None:
    """Say which period of the calendar a subscription is paid by, or None where the calendar knows none like it."""
    minutes = option.billing_period_minutes or 0
    return "month" if minutes in MONTH_MINUTES else CALENDAR.get(minutes)


def sale_of(capsule: Capsule, currency: str, fee_ppm: int) -> Sale:
    """Say what is sold, by whom, and what part is the platform's.

    Units: fee_ppm in millionths.
    """
    whole, part = divmod(fee_ppm, 1_000_000)
    return Sale(
        persona_id=capsule.persona_id,
        capsule=capsule.address,
        seller=capsule.tenant,
        currency=currency,
        fee=f"{whole}.{part:06d}",
    )


def admit(
    case: Case, capsule: Capsule, action: RentalAction, accepted: Iterable[str], judgements: Judgements
) -> Judgement:
    """Let the caller in, or say why not; the judgement says under which policy and what was accepted.

    Errors: capsule_revoked, capsule_suspended, consent_required, constitution_mismatch, invalid_status_transition,
            policy_denied, self_dealing, signer_policy_missing, threshold_not_met.
    """
    judgement = judge_entry(case, capsule, action, judgements)
    open_ones = sorted(set(judgement.obligations) - set(accepted))
    if open_ones:
        raise ConsentRequiredError(
            f"this has to be accepted first: {', '.join(open_ones)}",
            obligations=open_ones,
            tools=capsule.manifest["tools"] if "ask_consent_for_tools" in open_ones else [],
            degraded=capsule.degraded,
        )
    return judgement


def judge_entry(case: Case, capsule: Capsule, action: RentalAction, judgements: Judgements) -> Judgement:
    """Say whether the caller may come in, if what the judgement obliges to is accepted.

    Errors: capsule_revoked, capsule_suspended, constitution_mismatch, invalid_status_transition, policy_denied,
            self_dealing, signer_policy_missing, threshold_not_met.
    """
    check_usable(capsule, "activate" if action == "activate" else "rent", constitution_in_force(case))
    if capsule.tenant == case.caller.tenant:
        raise SelfDealingError(
            "a persona of one's own costs nothing and is not rented", tenant=capsule.tenant
        )
    return check_allowed(judged(judgements, PACKAGE, _question(case, capsule, action)))


def _question(case: Case, capsule: Capsule, action: RentalAction) -> dict[str, Any]:
    status = "degraded" if capsule.status == "published" and capsule.degraded else capsule.status
    return rental_question(
        who=asker(case),
        capsule=capsule_facts(capsule.manifest, capsule.address, capsule.tenant, status),
        in_force=constitution_in_force(case),
        signatures=signature_facts(verification(case, capsule.address)),
        now=case.now,
        action=action,
    )
