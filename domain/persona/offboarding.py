"""How the use of a persona ends: by the clock, by rule, and at the check itself.

Access is decided at the moment it is asked for: `now` before the end, the epoch that was handed out still the present
one, and the capsule not stopped. Whatever is written down later, by the timers or by the watch over revocations, only
says what was so already, and settles the money once.

A capsule that is revoked, or suspended, with `rentals` "end" ends what runs on it from that moment on: rentals and
subscriptions are paid up to then, and purchases whose seller was not paid yet are given back if it was revoked.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from domain.errors import (
    CapsuleSuspendedError,
    LedgerError,
    PurchaseNotFoundError,
    RentalNotFoundError,
    SubscriptionNotFoundError,
    ThresholdNotMetError,
)
from domain.fields import Command
from domain.ledger import Case, allow
from domain.log.records import Aggregate, Event, Record
from domain.persona.capsules import Capsule, CapsuleStep, check_usable, get_capsule
from domain.persona.facts import constitution_in_force
from domain.persona.renting import PurchaseStep, RentalStep, SubscriptionStep
from domain.rental.purchases import Purchase, refund_purchase, settle_purchase
from domain.rental.rentals import OPEN, Rental, end_rental, expire_rental
from domain.rental.settling import Sale
from domain.rental.subscriptions import (
    Subscription,
    end_subscription,
    fail_renewal,
    renew_subscription,
)

Use = Rental | Subscription | Purchase
Why = Literal["granted", "not_activated", "over", "revoked", "stale_epoch"]


class Entitlement(msgspec.Struct, frozen=True):
    """What a look at a right of use came to, at one moment and for one epoch."""

    granted: bool
    why: Why
    checked_at: str
    expires_at: str | None
    access_epoch: int
    persona_id: str
    capsule: str


class Offboarding(Aggregate):
    """That everything that ran on a stopped capsule was ended; id as the capsule's."""

    KIND = "offboarding"

    persona_id: str = ""
    capsule_version: int = 0

    class Completed(Event, frozen=True):
        """Nothing runs any more on a stopped capsule; the version says which record of its stream was known."""

        TOPIC = "offboarding.completed"

        persona_id: str
        capsule: str
        capsule_version: int
        rentals: int
        subscriptions: int
        purchases: int

        def apply(self, offboarding: Offboarding, record: Record) -> None:
            offboarding.persona_id = self.persona_id
            offboarding.capsule_version = self.capsule_version

    def owner_key(self) -> str:
        return self.persona_id


# --------------------------------------------------------------------------- at the check


def entitlement(use: Use, capsule: Capsule | None, now: str, epoch: int | None = None) -> Entitlement:
    """Decide whether somebody may use a persona now; with an epoch, whether what was handed out at it still counts."""
    sale = sale_behind(use)
    why = _why(use, sale, capsule, now)
    if why == "granted" and epoch is not None and epoch != use.access_epoch:
        why = "stale_epoch"
    return Entitlement(
        granted=why == "granted",
        why=why,
        checked_at=now,
        expires_at=expiry_of(use),
        access_epoch=use.access_epoch,
        persona_id=sale.persona_id,
        capsule=sale.capsule,
    )


def expiry_of(use: Use) -> str | None:
    """Give the first moment without access if nothing more happens; a purchase has none."""
    if isinstance(use, Rental):
        return use.expires_at
    return use.usable_until if isinstance(use, Subscription) else None


def sale_behind(use: Use) -> Sale:
    """Give what was sold."""
    if isinstance(use, Rental | Subscription):
        return use.agreed.sale
    assert use.sale is not None, "a purchase starts with its sale"
    return use.sale


def stopped_since(capsule: Capsule | None, use: Use) -> str | None:
    """Say since when what runs on a capsule is over by rule, or None where it goes on."""
    if capsule is None or capsule.rentals != "end" or capsule.status not in ("suspended", "revoked"):
        return None
    if isinstance(use, Purchase) and (capsule.status != "revoked" or use.status != "held"):
        return None
    return capsule.stopped_at or capsule.updated_at


def _why(use: Use, sale: Sale, capsule: Capsule | None, now: str) -> Why:
    assert capsule is None or capsule.address == sale.capsule
    if stopped_since(capsule, use) is not None or use.status == "revoked":
        return "revoked"
    if use.status == "requested":
        return "not_activated"
    return "granted" if use.is_usable(now) else "over"


# --------------------------------------------------------------------------- by the clock


class FailRenewal(SubscriptionStep):
    """Tell why a renewal could not be paid."""

    reason: str


@allow("service")
def expire(case: Case, command: RentalStep) -> Rental:
    """Write down that a rental's time has run out, or was over by rule before; asking again changes nothing.

    Errors: rental_not_found.
    """
    rental = case.get(Rental, command.rental_id, RentalNotFoundError)
    deadline = rental.deadline_key()
    if deadline is None or case.now < deadline:
        return rental
    since = stopped_since(_capsule(case, rental), rental)
    if since is not None and since < deadline:
        return end_rental(case, rental, "revoked", since)
    return expire_rental(case, rental.id)


@allow("service")
def renew(case: Case, command: SubscriptionStep) -> Subscription:
    """Renew a subscription whose period is over, or end it where its capsule is not for sale any more.

    A capsule that may come back, because it is suspended or lacks a signature, is a renewal that failed.
    Errors: account_not_found, capsule_suspended, insufficient_funds, renewal_not_due, subscription_ended,
            subscription_not_found, threshold_not_met.
    """
    subscription = case.get(Subscription, command.subscription_id, SubscriptionNotFoundError)
    if subscription.status == "ended" or case.now < (subscription.deadline_key() or case.now):
        return subscription
    capsule = _capsule(case, subscription)
    since = stopped_since(capsule, subscription)
    if since is not None:
        return end_subscription(case, subscription, "revoked", since)
    if not subscription.cancel_at_end and not _is_for_sale(case, capsule):
        return end_subscription(case, subscription, "not_renewed")
    return renew_subscription(case, subscription.id)


@allow("service")
def fail(case: Case, command: FailRenewal) -> Subscription:
    """Write down that a renewal failed: it is tried again, and ends when the grace is over.

    Errors: renewal_not_due, subscription_ended, subscription_not_found.
    """
    return fail_renewal(case, command.subscription_id, command.reason)


@allow("service")
def settle(case: Case, command: PurchaseStep) -> Purchase:
    """Pay the seller of a purchase that can no longer be given back; asking again changes nothing.

    Errors: purchase_not_found.
    """
    bought = case.get(Purchase, command.purchase_id, PurchaseNotFoundError)
    if stopped_since(_capsule(case, bought), bought) is not None:
        return refund_purchase(case, bought, "revoked")
    return settle_purchase(case, bought.id)


def _is_for_sale(case: Case, capsule: Capsule | None) -> bool:
    """Say whether a capsule may be sold again for a period.

    Errors: capsule_suspended, threshold_not_met.
    """
    try:
        if capsule is not None:
            check_usable(capsule, "rent", constitution_in_force(case))
    except (CapsuleSuspendedError, ThresholdNotMetError):
        raise
    except LedgerError:
        return False
    return capsule is not None


# --------------------------------------------------------------------------- by rule


class StopUse(Command):
    """Name what runs on a stopped capsule."""

    kind: Literal["rental", "subscription", "purchase"]
    id: str


class NoteOffboarding(CapsuleStep):
    """Tell that everything on a stopped capsule was ended, as it stood at a version of its stream."""

    capsule_version: int
    rentals: int
    subscriptions: int
    purchases: int


@allow("service")
def stop_use(case: Case, command: StopUse) -> Use:
    """End what runs on a capsule that was stopped, as of that moment; what is over or goes on is left as it is.

    Errors: purchase_not_found, rental_not_found, subscription_not_found.
    """
    if command.kind == "rental":
        return _stop_rental(case, case.get(Rental, command.id, RentalNotFoundError))
    if command.kind == "subscription":
        return _stop_subscription(case, case.get(Subscription, command.id, SubscriptionNotFoundError))
    bought = case.get(Purchase, command.id, PurchaseNotFoundError)
    if stopped_since(_capsule(case, bought), bought) is not None:
        return refund_purchase(case, bought, "revoked")
    return bought


@allow("service")
def note_offboarding(case: Case, command: NoteOffboarding) -> Offboarding:
    """Remember that a stopped capsule was seen to.

    Errors: capsule_not_found.
    """
    capsule = get_capsule(case, command.capsule_id)
    done = Offboarding.Completed(
        persona_id=capsule.persona_id,
        capsule=capsule.address,
        capsule_version=command.capsule_version,
        rentals=command.rentals,
        subscriptions=command.subscriptions,
        purchases=command.purchases,
    )
    known = case.find(Offboarding, capsule.id)
    if known is None:
        return case.create(Offboarding, capsule.id, done, tenant=capsule.tenant)
    return known if known.capsule_version >= command.capsule_version else case.emit(known, done)


def _stop_rental(case: Case, rental: Rental) -> Rental:
    since = stopped_since(_capsule(case, rental), rental)
    if since is None or rental.status not in OPEN:
        return rental
    deadline = rental.deadline_key()
    if deadline is not None and deadline <= since:
        return expire_rental(case, rental.id)
    return end_rental(case, rental, "revoked", since)


def _stop_subscription(case: Case, subscription: Subscription) -> Subscription:
    since = stopped_since(_capsule(case, subscription), subscription)
    if since is None or subscription.status == "ended":
        return subscription
    return end_subscription(case, subscription, "revoked", since)


def _capsule(case: Case, use: Use) -> Capsule | None:
    return case.find(Capsule, sale_behind(use).capsule.removeprefix("sha3-512:"))
