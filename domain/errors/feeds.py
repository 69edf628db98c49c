"""Refusals of those who follow the log over HTTP: feeds and webhooks."""

from __future__ import annotations

from domain.errors.families import (
    ConflictError,
    InvalidError,
    LedgerError,
    NotFoundError,
    Retry,
    UnavailableError,
    UnprocessableError,
)

# --------------------------------------------------------------------------- the feed


class TooManySubscribersError(LedgerError, code="too_many_subscribers", status=429, retry=Retry.AS_IS):
    """This tenant holds as many feeds as it may; close one, or try again after the stated delay."""


class FeedFullError(UnavailableError, code="feed_full", status=503):
    """The service holds as many feeds as it can; try again after the stated delay."""


class PositionAheadError(UnprocessableError, code="position_ahead"):
    """The position is behind the end of this log: it was read from another log, or from a later state of this one."""


# --------------------------------------------------------------------------- webhooks


class WebhookNotFoundError(NotFoundError, code="webhook_not_found"):
    """There is no such webhook."""


class WebhookUrlError(InvalidError, code="webhook_url_invalid"):
    """A webhook's URL is https, with a public host, and without user, password or fragment."""


class WebhookAddressError(UnprocessableError, code="webhook_address_refused"):
    """The webhook's host leads to an address that nothing is sent to."""


class TooManyWebhooksError(ConflictError, code="too_many_webhooks"):
    """This tenant has as many webhooks as it may; delete one."""


class WebhookRangeError(InvalidError, code="webhook_range_invalid"):
    """A redelivery names one position, or a range whose end is not before its beginning."""


class WebhookKeyError(UnavailableError, code="webhook_key_mismatch", status=503, retry=Retry.NEVER):
    """The master key of this process is not the one the webhook's secret was derived from."""
