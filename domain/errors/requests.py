"""Refusals of a request before anybody looks at what it is about."""

from __future__ import annotations

from domain.errors.families import InvalidError, LedgerError, Retry, UnavailableError, UnprocessableError

# --------------------------------------------------------------------------- transport


class MethodNotAllowedError(LedgerError, code="method_not_allowed", status=405):
    """The resource does not answer to this method."""


class BodyTooLargeError(LedgerError, code="body_too_large", status=413):
    """The request body is larger than the service accepts."""


class UnsupportedMediaTypeError(LedgerError, code="unsupported_media_type", status=415):
    """The request body must be JSON."""


class HttpsRequiredError(LedgerError, code="https_required", status=426):
    """This service answers over HTTPS only."""


class RateLimitedError(LedgerError, code="rate_limited", status=429, retry=Retry.AS_IS):
    """Too many requests from this caller."""


class OverloadedError(UnavailableError, code="overloaded", status=503):
    """The commit queue is full; try again after the stated delay."""


class ShuttingDownError(UnavailableError, code="shutting_down", status=503):
    """The service is stopping and takes no new commands."""


# --------------------------------------------------------------------------- any command


class UnknownFieldError(InvalidError, code="unknown_field"):
    """The body has a field this command does not know."""


class MissingFieldError(InvalidError, code="missing_field"):
    """A required field is absent."""


class InvalidFieldError(InvalidError, code="invalid_field"):
    """A field has a value that is not allowed."""


class InvalidCursorError(InvalidError, code="invalid_cursor"):
    """The page cursor was not issued by this service."""


class InvalidIdempotencyKeyError(InvalidError, code="invalid_idempotency_key"):
    """An idempotency key is 1 to 255 visible ASCII characters."""


class IdempotencyKeyReusedError(UnprocessableError, code="idempotency_key_reused"):
    """The idempotency key was used before with another body."""


class VersionMismatchError(LedgerError, code="version_mismatch", status=412, retry=Retry.AFTER_READ):
    """The resource is no longer at the version named by If-Match."""


class InvalidAsOfError(InvalidError, code="invalid_as_of"):
    """`as_of` is a position in the log or an RFC 3339 time with an offset."""
