"""Signings: the request that a capsule be signed, the envelopes that came in, and what they come to.

A signing is open until what was signed is used. While it is open only the policy in force counts, and everything is
judged now: nothing is published under a threshold that was raised since. Once it is completed it stands under the
policy it was signed under, as of that moment, so a rotation breaks nothing; only revoked keys are taken out of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import msgspec

from domain.errors import (
    PayloadTypeError,
    SignatureRefusedError,
    SignatureRepeatedError,
    SigningNotFoundError,
    StatusTransitionError,
)
from domain.fields import Command
from domain.ledger import Case, allow
from domain.log.records import ADDRESS_PREFIX, Aggregate, Event, Record
from domain.trust.dsse import DsseEnvelope, Envelope
from domain.trust.pinned import PUBLICATION, PolicyVersion
from domain.trust.signers import SignerPolicy, adopted_policy, pinned_policy, policy_in_force
from domain.trust.verification import (
    PAYLOAD_TYPES,
    SignedBy,
    Statement,
    Verification,
    Wanted,
    check_verified,
    payload_of,
    sign_statement,
    verify,
)
from domain.values import moment_of, moment_text

# What others need of statements is known by these names here too.
__all__ = (
    "PAYLOAD_TYPES", "Kept", "OpenSigning", "Signing", "Statement", "SubmitSignature", "Verification",
    "capsule_address", "capsule_key", "check_verified", "complete_signing", "open_signing", "payload_of",
    "reopen_signing", "sign_statement", "submit_signature", "verification", "verify_import", "verify_signing",
)  # fmt: skip

PURPOSE = "publication"


def capsule_key(capsule: str) -> str:
    """Give the id under which trust keeps what it knows of a capsule: the hex digits of its address."""
    return capsule.removeprefix(ADDRESS_PREFIX)


def capsule_address(capsule: str) -> str:
    """Give the address of a capsule that is named by it or by its hex digits."""
    return ADDRESS_PREFIX + capsule_key(capsule)


class Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An envelope that counted when it came in."""

    envelope: Envelope
    signed: list[SignedBy]
    at: str


class Signing(Aggregate):
    """The request to sign one capsule, and the envelopes of the present round. The id is the capsule's hex digits."""

    KIND = "signing"

    capsule: str = ""
    policy_name: str = ""
    policy: str = ""
    constitution: str = ""
    not_after: str = ""
    barred: list[str] = msgspec.field(default_factory=list)
    round: int = 0
    status: str = "open"
    kept: list[Kept] = msgspec.field(default_factory=list)
    opened_at: str = ""
    completed_at: str | None = None

    class Opened(Event, frozen=True):
        """Signatures are asked for; those of an earlier round count no more."""

        TOPIC = "signing.opened"

        capsule: str
        policy_name: str
        policy: str
        constitution: str
        not_after: str
        barred: list[str]
        round: int

        def apply(self, signing: Signing, record: Record) -> None:
            for name in self.__struct_fields__:
                setattr(signing, name, getattr(self, name))
            signing.status, signing.kept = "open", []
            signing.opened_at, signing.completed_at = record.at, None

    class Signed(Event, frozen=True):
        """An envelope came in whose every signature counts."""

        TOPIC = "signing.signed"

        envelope: Envelope
        signed: list[SignedBy]

        def apply(self, signing: Signing, record: Record) -> None:
            signing.kept = [*signing.kept, Kept(self.envelope, self.signed, record.at)]

    class Completed(Event, frozen=True):
        """The threshold was met and what was signed is used from here on."""

        TOPIC = "signing.completed"

        threshold: int
        signed: list[SignedBy]

        def apply(self, signing: Signing, record: Record) -> None:
            signing.status, signing.completed_at = "completed", record.at

    def status_key(self) -> str:
        return self.status

    def party_keys(self) -> list[str] | None:
        return ["platform"]

    def envelopes(self) -> list[Envelope]:
        """List the envelopes of the present round."""
        return [kept.envelope for kept in self.kept]

    def wanted(self, policy: str) -> Wanted:
        """Say what must be signed, under a policy."""
        return Wanted(PURPOSE, self.capsule, policy, self.constitution, self.not_after)

    def statement(self) -> Statement:
        """Give the statement its signers are asked to sign."""
        return Statement(self.capsule, self.constitution, self.not_after, self.policy, PURPOSE)


# --------------------------------------------------------------------------- what is asked


class SubmitSignature(Command):
    """Bring an envelope for a capsule."""

    capsule: str
    envelope: DsseEnvelope


class OpenSigning(Command):
    """Ask for signatures anew, under the policy that is in force now."""

    capsule: str


@allow("signer")
def submit_signature(case: Case, command: SubmitSignature) -> Signing:
    """Take in an envelope; each of its signatures must count, or none is kept.

    Errors: invalid_status_transition, malformed_envelope, payload_type_unknown, signature_refused,
            signature_repeated, signing_not_found.
    """
    signing = _visible(case, command.capsule)
    if signing.status != "open":
        raise StatusTransitionError("nothing is to be signed here", status=signing.status)
    envelope = _envelope(command.envelope)
    policy = adopted_policy(case, signing.policy_name)
    in_force = policy.in_force
    found = verify(
        [envelope],
        signing.wanted(in_force.address),
        in_force.document,
        revoked=policy.revocations(),
        now=case.now,
        barred=signing.barred,
    )
    for refused in found.refused:
        facts = msgspec.to_builtins(refused)
        raise SignatureRefusedError(f"the signature does not count: {refused.reason}", **facts)
    before = {one.public_key for kept in signing.kept for one in kept.signed}
    for one in found.signed:
        if one.public_key in before:
            raise SignatureRepeatedError(name=one.name, public_key=one.public_key)
    if signing.policy != in_force.address:
        # What is completed stands under the policy its signing names, so envelopes of another one never share it.
        raise StatusTransitionError(
            "the policy was changed since signatures were asked for; have the signing opened again",
            status=signing.status,
            policy=signing.policy,
            in_force=in_force.address,
        )
    return case.emit(signing, Signing.Signed(envelope=envelope, signed=found.signed))


@allow("owner", "provider", "operator")
def reopen_signing(case: Case, command: OpenSigning) -> Signing:
    """Ask for signatures anew, where those there are do not suffice any more: out of time, rotated, or revoked.

    Errors: invalid_status_transition, signer_policy_missing, signing_not_found.
    """
    signing = case.get_own(Signing, capsule_key(command.capsule), SigningNotFoundError)
    policy = policy_in_force(case, signing.policy_name)
    if verification(case, signing.capsule).verified:
        raise StatusTransitionError("the signatures there are suffice", status=signing.status)
    if signing.status == "open" and signing.policy == policy.address and case.now < signing.not_after:
        raise StatusTransitionError("this can be signed as it is", status=signing.status)
    return case.emit(
        signing, _opened(case, signing.capsule, policy, signing.constitution, signing.barred, signing)
    )


# --------------------------------------------------------------------------- what others ask


def open_signing(
    case: Case, capsule: str, policy: PolicyVersion, constitution: str, owners: Sequence[str], tenant: str
) -> Signing:
    """Ask that a capsule be signed under a policy; whoever owns or submits it may not sign.

    Where signatures were asked for already, a round that can still be signed, or that stands, stays as it is.
    """
    signing = case.find(Signing, capsule_key(capsule))
    barred = sorted({*owners, case.caller.subject})
    if signing is None:
        opened = _opened(case, capsule_address(capsule), policy, constitution, barred, None)
        return case.create(Signing, capsule_key(capsule), opened, tenant=tenant)
    current = signing.policy == policy.address and signing.constitution == constitution
    barred = sorted({*barred, *signing.barred})
    if (
        current
        and barred == signing.barred
        and (case.now < signing.not_after or signing.status == "completed")
    ):
        return signing
    return case.emit(signing, _opened(case, signing.capsule, policy, constitution, barred, signing))


def verification(case: Case, capsule: str) -> Verification:
    """Say what the signatures over a capsule come to now; where none were asked for, everybody is missing.

    Errors: signer_policy_missing.
    """
    signing = case.find(Signing, capsule_key(capsule))
    policy = adopted_policy(case, signing.policy_name if signing else PUBLICATION)
    if signing is None:
        nothing = Wanted(PURPOSE, capsule_address(capsule), policy.in_force.address, "")
        return verify([], nothing, policy.in_force.document, revoked=policy.revocations(), now=case.now)
    return verify_signing(signing, policy, case.now)


def verify_signing(signing: Signing, policy: SignerPolicy, now: str) -> Verification:
    """Say what the signatures of a signing come to, from what is known of it and of its policy."""
    version = policy.in_force
    if signing.completed_at is not None:
        version = policy.pinned(signing.policy) or version
    return verify(
        signing.envelopes(),
        signing.wanted(version.address),
        version.document,
        revoked=policy.revocations(),
        now=signing.completed_at or now,
        barred=signing.barred,
    )


def complete_signing(case: Case, capsule: str) -> Signing:
    """Write down that the threshold is met and that what was signed is used from here on; once is enough.

    Errors: signer_policy_missing, signing_not_found, threshold_not_met.
    """
    signing = case.get(Signing, capsule_key(capsule), SigningNotFoundError)
    found = check_verified(verification(case, capsule))
    if signing.status == "completed":
        return signing
    return case.emit(signing, Signing.Completed(threshold=found.threshold, signed=found.signed))


def verify_import(
    case: Case,
    capsule: str,
    constitution: str,
    policy_address: str,
    envelopes: Sequence[Any],
    owners: Sequence[str],
) -> Verification:
    """Say what envelopes that came with a capsule come to, under a policy version that was adopted here.

    Errors: malformed_envelope, payload_type_unknown, signer_policy_missing, signer_policy_not_found.
    """
    version = pinned_policy(case, policy_address)
    revoked = adopted_policy(case).revocations()
    wanted = Wanted(PURPOSE, capsule_address(capsule), version.address, constitution)
    parsed = [_envelope(sent) for sent in envelopes]
    return verify(parsed, wanted, version.document, revoked=revoked, now=case.now, barred=owners)


def _envelope(sent: Any) -> Envelope:
    envelope = Envelope.parse(sent)
    if envelope.payload_type not in PAYLOAD_TYPES:
        raise PayloadTypeError(got=envelope.payload_type, known=list(PAYLOAD_TYPES))
    return envelope


def _visible(case: Case, capsule: str) -> Signing:
    """Read a signing that the caller may see: its tenant's, or any of them from the platform."""
    signing = case.get(Signing, capsule_key(capsule), SigningNotFoundError)
    if case.caller.tenant not in (signing.tenant, "platform"):
        raise SigningNotFoundError(id=signing.id)
    return signing


def _opened(
    case: Case,
    capsule: str,
    policy: PolicyVersion,
    constitution: str,
    barred: list[str],
    before: Signing | None,
) -> Signing.Opened:
    until = moment_of(case.now) + timedelta(seconds=policy.document.statement_ttl_s)
    return Signing.Opened(
        capsule=capsule,
        policy_name=policy.document.name,
        policy=policy.address,
        constitution=constitution,
        not_after=moment_text(until),
        barred=barred,
        round=1 if before is None else before.round + 1,
    )
