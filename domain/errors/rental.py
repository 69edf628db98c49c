"""Refusals about rentals, subscriptions and purchases."""

from __future__ import annotations

from domain.errors.families import ConflictError, InvalidError, NotFoundError, Retry, UnprocessableError


class RentalNotFoundError(NotFoundError, code="rental_not_found"):
    """There is no such rental."""


class RentalNotOpenError(ConflictError, code="rental_not_open"):
    """The rental has ended already."""


class RentalNotActiveError(ConflictError, code="rental_not_active"):
    """The rental was not activated, or its time has run out."""


class RentalActiveError(ConflictError, code="rental_active", retry=Retry.NEVER):
    """The rental was activated before."""


class RentalLapsedError(UnprocessableError, code="rental_lapsed"):
    """The rental was not activated in time."""


class RentalTooLongError(InvalidError, code="rental_too_long"):
    """A rental lasts a bounded number of minutes in all, extensions included."""


class SubscriptionNotFoundError(NotFoundError, code="subscription_not_found"):
    """There is no such subscription."""


class SubscriptionEndedError(ConflictError, code="subscription_ended"):
    """The subscription has ended already."""


class RenewalNotDueError(ConflictError, code="renewal_not_due"):
    """The period that was paid for is not over yet."""


class PurchaseNotFoundError(NotFoundError, code="purchase_not_found"):
    """There is no such purchase."""


class RefundClosedError(ConflictError, code="refund_closed", retry=Retry.NEVER):
    """The purchase is settled; it can no longer be given back."""


class PriceNotOfferedError(UnprocessableError, code="price_not_offered"):
    """The persona is not offered in this way."""


class PriceUnclearError(InvalidError, code="price_unclear"):
    """Several prices fit; name the currency and the period."""


class ConsentRequiredError(UnprocessableError, code="consent_required"):
    """The policy allows it under obligations that have to be accepted."""
