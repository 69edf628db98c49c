"""Refusals about usage readings, and about messages that could not be taken in."""

from __future__ import annotations

from domain.errors.families import ConflictError, InvalidError, NotFoundError, Retry, UnprocessableError


class UsageConflictError(ConflictError, code="usage_conflict", retry=Retry.NEVER):
    """Another reading was taken before under the same source and event id."""


class UsageInFutureError(UnprocessableError, code="usage_in_future"):
    """The reading occurs later than the clocks of two honest parties can differ."""


class UsageTooOldError(UnprocessableError, code="usage_too_old"):
    """The reading occurred longer ago than readings are taken in."""


class UsageNotFoundError(NotFoundError, code="usage_not_found"):
    """There is no such usage reading."""


class MessageEmptyError(InvalidError, code="message_empty"):
    """The message has no value."""


class MessageTooLargeError(InvalidError, code="message_too_large"):
    """The message is larger than a usage reading can be."""


class MessageNotJsonError(InvalidError, code="message_not_json"):
    """The value of the message is not JSON, strictly read."""


class DeadLetterNotFoundError(NotFoundError, code="dead_letter_not_found"):
    """There is no such dead letter."""


class DeadLetterClosedError(ConflictError, code="dead_letter_closed", retry=Retry.NEVER):
    """The dead letter was taken in or discarded before."""


class DeadLetterNotTakenError(UnprocessableError, code="dead_letter_not_taken"):
    """The dead letter still cannot be taken in; it stays open, with the reason of now."""


class DeadLetterKindError(UnprocessableError, code="dead_letter_not_requeueable"):
    """Dead letters of this kind are put right by a rebuild of the follower, not one by one."""
