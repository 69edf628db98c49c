"""Webhooks: where the log is sent to those who cannot hold a connection, and what is sent there.

The log holds who is told what, and since when; never a secret. What signs the messages is derived from a master key
outside the log by the webhook's id and the number of its secret, so a rotation is one event.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Annotated, Literal

import msgspec
from pydantic import Field, StringConstraints

from domain.errors import (
    ForbiddenError,
    PositionAheadError,
    StatusTransitionError,
    TooManyWebhooksError,
    WebhookNotFoundError,
    WebhookUrlError,
)
from domain.fields import Command, Kept, Reason, Text
from domain.ledger import Case, allow
from domain.log.filters import StreamWishes, TypeWishes, Wish
from domain.log.records import Aggregate, Event, Record
from domain.values import moment_of, moment_text

POSITION_MAX = 2**53
HOLDERS = ("owner", "provider", "billing", "operator", "service")

# No user or password, no fragment, nothing a second reader of the URL could take for another host.
_URL = re.compile(
    r"(?P<scheme>https?)://(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\])"
    r"(?::[0-9]{1,5})?(?:[/?][!$-;=?-Z_a-z~]*)?",
    re.ASCII,
)


class Webhook(Aggregate):
    """A URL that is sent the records its holder wants.

    It is active, paused, disabled or deleted; deleted is final. A holder pauses it, the service disables it where the
    receiver is gone or takes nothing for days; both are ended by resuming, and what came meanwhile is sent then.
    """

    KIND = "webhook"

    url: str = ""
    description: str = ""
    types: list[str] = msgspec.field(default_factory=list)
    streams: list[str] = msgspec.field(default_factory=list)
    scope: str = "own"
    start_position: int = 0
    secret_version: int = 1
    public_key: str = ""
    previous_until: str | None = None
    status: str = "active"
    status_reason: str = ""

    class Registered(Event, frozen=True):
        """Somebody asked to be told; start_position is the first that may be sent."""

        TOPIC = "webhook.registered"

        url: str
        description: str
        types: list[str]
        streams: list[str]
        scope: str
        start_position: int
        secret_version: int
        public_key: str

        def apply(self, webhook: Webhook, record: Record) -> None:
            _set(webhook, self)

    class Changed(Event, frozen=True):
        """Where it is sent, or what, is another from here on."""

        TOPIC = "webhook.changed"

        url: str
        description: str
        types: list[str]
        streams: list[str]

        def apply(self, webhook: Webhook, record: Record) -> None:
            _set(webhook, self)

    class Paused(Event, frozen=True):
        """Its holder wants nothing for now."""

        TOPIC = "webhook.paused"

        reason: str

        def apply(self, webhook: Webhook, record: Record) -> None:
            webhook.status, webhook.status_reason = "paused", self.reason

    class Resumed(Event, frozen=True):
        """It is sent what came meanwhile, and what comes."""

        TOPIC = "webhook.resumed"

        def apply(self, webhook: Webhook, record: Record) -> None:
            webhook.status, webhook.status_reason = "active", ""

    class Disabled(Event, frozen=True):
        """The service sends nothing more: the receiver said it is gone, or took nothing for too long."""

        TOPIC = "webhook.disabled"

        reason: str

        def apply(self, webhook: Webhook, record: Record) -> None:
            webhook.status, webhook.status_reason = "disabled", self.reason

    class SecretRotated(Event, frozen=True):
        """A new secret signs; the one before signs beside it until previous_until."""

        TOPIC = "webhook.secret_rotated"

        secret_version: int
        public_key: str
        previous_until: str

        def apply(self, webhook: Webhook, record: Record) -> None:
            _set(webhook, self)

    class Deleted(Event, frozen=True):
        """Its holder took it away for good."""

        TOPIC = "webhook.deleted"

        def apply(self, webhook: Webhook, record: Record) -> None:
            webhook.status, webhook.status_reason = "deleted", ""

    def status_key(self) -> str:
        return self.status

    @property
    def wish(self) -> Wish:
        """Say what it is sent: never more than its tenant may read."""
        return Wish.of(self.types, self.streams, None if self.scope == "all" else self.tenant)

    def secret_versions(self, now: str) -> list[int]:
        """Number the secrets that sign at a moment, the newest first."""
        if self.previous_until is not None and now < self.previous_until:
            return [self.secret_version, self.secret_version - 1]
        return [self.secret_version]


def _set(webhook: Webhook, event: Event) -> None:
    for name in event.__struct_fields__:
        setattr(webhook, name, getattr(event, name))


# --------------------------------------------------------------------------- what is asked

Url = Annotated[str, StringConstraints(min_length=10, max_length=2_000)]


class RegisterWebhook(Command):
    """Ask to be told. Scope `all` is for operators: every tenant's records instead of one's own."""

    url: Url
    description: Text = ""
    types: TypeWishes = Field(default_factory=list)
    streams: StreamWishes = Field(default_factory=list)
    scope: Literal["own", "all"] = "own"
    from_position: int | None = Field(None, ge=0, le=POSITION_MAX)


class ChangeWebhook(Command):
    """Change where it is sent, or what; a field that is left out stays."""

    webhook_id: str
    url: Kept[Url] = None
    description: Kept[Text] = None
    types: Kept[TypeWishes] = None
    streams: Kept[StreamWishes] = None


class WebhookStep(Command):
    """Name a webhook whose status is to change."""

    webhook_id: str
    reason: Text = ""


class DisableWebhook(Command):
    """Say why nothing is sent any more."""

    webhook_id: str
    reason: Reason


PublicKeyOf = Callable[[str, int], str]


def check_url(url: str, *, allow_http: bool) -> None:
    """Hold a URL against the rules for receivers; where its host leads is looked at when something is sent.

    Errors: webhook_url_invalid.
    """
    found = _URL.fullmatch(url)
    if found is None:
        raise WebhookUrlError(url=url[:200])
    if found["scheme"] == "http" and not allow_http:
        raise WebhookUrlError("a webhook's URL is https", url=url[:200])


@allow(*HOLDERS)
def register_webhook(
    case: Case,
    command: RegisterWebhook,
    *,
    size: int,
    count: int,
    count_max: int,
    allow_http: bool,
    public_key_of: PublicKeyOf,
) -> Webhook:
    """Begin to send; without a position, what comes from now on.

    Errors: forbidden, position_ahead, too_many_webhooks, webhook_url_invalid.
    """
    check_url(command.url, allow_http=allow_http)
    if command.scope == "all":
        _check_operator(case)
    if count >= count_max:
        raise TooManyWebhooksError(webhooks_max=count_max)
    if command.from_position is not None and command.from_position > size:
        raise PositionAheadError(position=command.from_position, size=size)
    name = case.new_id("webhook")
    registered = Webhook.Registered(
        url=command.url,
        description=command.description,
        types=command.types,
        streams=command.streams,
        scope=command.scope,
        start_position=size if command.from_position is None else command.from_position,
        secret_version=1,
        public_key=public_key_of(name, 1),
    )
    return case.create(Webhook, name, registered)


@allow(*HOLDERS)
def change_webhook(case: Case, command: ChangeWebhook, *, allow_http: bool) -> Webhook:
    """Send to another place, or other things; positions are kept.

    Errors: forbidden, invalid_status_transition, version_mismatch, webhook_not_found, webhook_url_invalid.
    """
    webhook = _own(case, command.webhook_id)
    if command.url is not None:
        check_url(command.url, allow_http=allow_http)
    _check_not_deleted(webhook)
    changed = Webhook.Changed(
        url=webhook.url if command.url is None else command.url,
        description=webhook.description if command.description is None else command.description,
        types=webhook.types if command.types is None else command.types,
        streams=webhook.streams if command.streams is None else command.streams,
    )
    same = all(getattr(webhook, name) == getattr(changed, name) for name in changed.__struct_fields__)
    return webhook if same else case.emit(webhook, changed)


@allow(*HOLDERS)
def pause_webhook(case: Case, command: WebhookStep) -> Webhook:
    """Send nothing for now; positions are kept.

    Errors: forbidden, invalid_status_transition, version_mismatch, webhook_not_found.
    """
    webhook = _own(case, command.webhook_id)
    _check_step(webhook, "paused", "active")
    return case.emit(webhook, Webhook.Paused(reason=command.reason))


@allow(*HOLDERS)
def resume_webhook(case: Case, command: WebhookStep) -> Webhook:
    """Send again, from where it stopped.

    Errors: forbidden, invalid_status_transition, version_mismatch, webhook_not_found.
    """
    webhook = _own(case, command.webhook_id)
    _check_step(webhook, "active", "paused", "disabled")
    return case.emit(webhook, Webhook.Resumed())


@allow(*HOLDERS)
def rotate_secret(
    case: Case, command: WebhookStep, *, rotation_s: int, public_key_of: PublicKeyOf
) -> Webhook:
    """Sign with a new secret from now on, and with the one before beside it for a while.

    Errors: forbidden, invalid_status_transition, version_mismatch, webhook_not_found.
    """
    webhook = _own(case, command.webhook_id)
    _check_not_deleted(webhook)
    version = webhook.secret_version + 1
    rotated = Webhook.SecretRotated(
        secret_version=version,
        public_key=public_key_of(webhook.id, version),
        previous_until=moment_text(moment_of(case.now) + timedelta(seconds=rotation_s)),
    )
    return case.emit(webhook, rotated)


@allow(*HOLDERS)
def delete_webhook(case: Case, command: WebhookStep) -> Webhook:
    """Take a webhook away for good.

    Errors: forbidden, invalid_status_transition, version_mismatch, webhook_not_found.
    """
    webhook = _own(case, command.webhook_id)
    _check_not_deleted(webhook)
    return case.emit(webhook, Webhook.Deleted())


@allow("service")
def disable_webhook(case: Case, command: DisableWebhook) -> Webhook:
    """Stop sending to a receiver that is gone or takes nothing; one that is not active stays as it is.

    Errors: webhook_not_found.
    """
    webhook = case.get(Webhook, command.webhook_id, WebhookNotFoundError)
    return (
        case.emit(webhook, Webhook.Disabled(reason=command.reason)) if webhook.status == "active" else webhook
    )


def _own(case: Case, name: str) -> Webhook:
    webhook = case.get_own(Webhook, name, WebhookNotFoundError)
    if webhook.scope == "all":
        _check_operator(case)
    case.match_version(webhook)
    return webhook


def _check_operator(case: Case) -> None:
    """Keep what every tenant's records go to in the hands of those who may read them."""
    if "operator" not in case.caller.roles:
        raise ForbiddenError("only operators have every tenant's records sent", roles=["operator"])


def _check_not_deleted(webhook: Webhook) -> None:
    if webhook.status == "deleted":
        raise StatusTransitionError("the webhook is deleted", status=webhook.status)


def _check_step(webhook: Webhook, wanted: str, *before: str) -> None:
    if webhook.status not in before:
        raise StatusTransitionError(
            f"a webhook that is {webhook.status} cannot become {wanted}", status=webhook.status
        )
