"""Training mode: a fenced lock per tenant. It says who may change models now, and its number makes latecomers fail."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field

from domain.errors import ForbiddenError, StaleFenceError, TrainingModeOffError, TrainingModeOnError
from domain.fields import Command, Reason
from domain.ledger import Case, allow
from domain.log.records import Aggregate, Event, Record
from domain.values import Tenant, moment_of, moment_text

LOCK_S_MAX = 86_400


class TrainingMode(Aggregate):
    """The training lock of a tenant. The fence is the number of the event that enabled it, so it only grows."""

    KIND = "training"

    enabled: bool = False
    locked_by: str | None = None
    locked_at: str | None = None
    expires_at: str | None = None
    reason: str = ""
    fence: int = 0

    class Enabled(Event, frozen=True):
        """Training mode was switched on."""

        TOPIC = "training.enabled"

        user: str
        reason: str
        expires_at: str

        def apply(self, mode: TrainingMode, record: Record) -> None:
            mode.enabled = True
            mode.locked_by = self.user
            mode.locked_at = record.at
            mode.expires_at = self.expires_at
            mode.reason = self.reason
            mode.fence = record.version

    class Disabled(Event, frozen=True):
        """Training mode was switched off."""

        TOPIC = "training.disabled"

        user: str
        reason: str

        def apply(self, mode: TrainingMode, record: Record) -> None:
            mode.enabled = False
            mode.locked_by = mode.locked_at = mode.expires_at = None
            mode.reason = self.reason

    def status_key(self) -> str:
        return "enabled" if self.enabled else "disabled"

    def is_on(self, now: str) -> bool:
        """Say whether the lock holds at a moment; its expiry needs nobody to write it down."""
        return self.enabled and self.expires_at is not None and now < self.expires_at


class EnableTraining(Command):
    """Switch training mode on; the user is the token's subject."""

    tenant: Tenant | None = None
    reason: Reason
    duration_s: int = Field(LOCK_S_MAX, ge=60, le=LOCK_S_MAX)


class DisableTraining(Command):
    """Switch training mode off."""

    tenant: Tenant | None = None
    reason: str = Field("", max_length=1_000)


@allow("owner", "operator")
def enable_training(case: Case, command: EnableTraining) -> TrainingMode:
    """Take the training lock; the answer carries the fence that rounds and exports must show.

    Errors: forbidden, training_mode_enabled.
    """
    tenant = _tenant(case, command.tenant)
    mode = case.find(TrainingMode, tenant)
    if mode is not None and mode.is_on(case.now):
        raise TrainingModeOnError(locked_by=mode.locked_by, expires_at=mode.expires_at)
    until = moment_text(moment_of(case.now) + timedelta(seconds=command.duration_s))
    enabled = TrainingMode.Enabled(user=case.caller.subject, reason=command.reason, expires_at=until)
    if mode is None:
        return case.create(TrainingMode, tenant, enabled, tenant=tenant)
    return case.emit(mode, enabled)


@allow("owner", "operator")
def disable_training(case: Case, command: DisableTraining) -> TrainingMode:
    """Give the training lock back; only its holder and operators may.

    Errors: forbidden, training_mode_disabled.
    """
    tenant = _tenant(case, command.tenant)
    mode = case.find(TrainingMode, tenant)
    if mode is None or not mode.is_on(case.now):
        raise TrainingModeOffError(tenant=tenant)
    if mode.locked_by != case.caller.subject and "operator" not in case.caller.roles:
        raise ForbiddenError("the lock is held by somebody else", locked_by=mode.locked_by)
    return case.emit(mode, TrainingMode.Disabled(user=case.caller.subject, reason=command.reason))


def check_fence(case: Case, tenant: str, fence: int | None) -> None:
    """Hold a fence against the tenant's lock: needed while it is on, useless once it is not.

    Errors: stale_fence, training_mode_disabled.
    """
    mode = case.find(TrainingMode, tenant)
    is_on = mode is not None and mode.is_on(case.now)
    if is_on and mode is not None and fence != mode.fence:
        raise StaleFenceError("training mode is on: show its fence", fence_given=fence)
    if not is_on and fence is not None:
        raise TrainingModeOffError("the lock this fence belongs to is gone", fence_given=fence)


def _tenant(case: Case, tenant: str | None) -> str:
    if tenant is None or tenant == case.caller.tenant:
        return case.caller.tenant
    if "operator" not in case.caller.roles:
        raise ForbiddenError("only operators act for another tenant", tenant=tenant)
    return tenant
