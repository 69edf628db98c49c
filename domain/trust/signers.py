"""Signer policies here: which were adopted, which is in force, and which keys were revoked.

The first version of a policy is adopted as it is, since there is nobody yet who could vouch for it. Every later one is
signed by the threshold of the version before, so from then on nobody exchanges the keys alone, operators included. A
rotation leaves earlier versions pinned for what was signed under them; a revocation takes a key out of all of them.
Only where fewer keys are left than the threshold do two operators recover it, a day apart, in the sight of all.
"""

from __future__ import annotations

from datetime import timedelta

import msgspec
from pydantic import Field

from domain.errors import (
    SelfReviewError,
    SignerKeyNotFoundError,
    SignerPolicyInvalidError,
    SignerPolicyMissingError,
    SignerPolicyNotFoundError,
    StatusTransitionError,
)
from domain.fields import Command, Reason
from domain.ledger import Case, allow
from domain.log.records import Aggregate, Event, Record
from domain.trust.dsse import DsseEnvelope, Envelope
from domain.trust.pinned import DAY_S, PUBLICATION, PolicyDocument, PolicyTerms, PolicyVersion, check_policy
from domain.trust.verification import SignedBy, Wanted, check_verified, verify
from domain.values import moment_of, moment_text

ENVELOPES_MAX = 32
RECOVERY_WAIT_S = DAY_S


class Revocation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key that counts no more, since when and why."""

    public_key: str
    name: str
    reason: str
    revoked_at: str
    revoked_by: str


class Recovery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A version that an operator proposes because too few keys are left to vouch for any."""

    address: str
    document: PolicyDocument
    reason: str
    proposed_by: str
    proposed_at: str


class SignerPolicy(Aggregate):
    """A policy with all its versions, the newest last and in force. Versions are numbered without gaps from 1."""

    KIND = "signer_policy"

    versions: list[PolicyVersion] = msgspec.field(default_factory=list)
    revoked: list[Revocation] = msgspec.field(default_factory=list)
    recovery: Recovery | None = None

    class Adopted(Event, frozen=True):
        """A version came into force; `signed` are those of the version before who vouched for it."""

        TOPIC = "signer_policy.adopted"

        address: str
        document: PolicyDocument
        envelopes: list[Envelope]
        signed: list[SignedBy]

        def apply(self, policy: SignerPolicy, record: Record) -> None:
            policy.come_into_force(self.address, self.document, record)

    class RecoveryProposed(Event, frozen=True):
        """An operator proposed a version without the word of the one before, which can give none any more."""

        TOPIC = "signer_policy.recovery_proposed"

        address: str
        document: PolicyDocument
        reason: str

        def apply(self, policy: SignerPolicy, record: Record) -> None:
            policy.recovery = Recovery(self.address, self.document, self.reason, record.actor, record.at)

    class Recovered(Event, frozen=True):
        """A second operator confirmed what the first had proposed, and it came into force."""

        TOPIC = "signer_policy.recovered"

        address: str
        document: PolicyDocument
        reason: str
        proposed_by: str

        def apply(self, policy: SignerPolicy, record: Record) -> None:
            policy.come_into_force(self.address, self.document, record)

    class KeyRevoked(Event, frozen=True):
        """A key counts no more, in no version."""

        TOPIC = "signer_policy.key_revoked"

        public_key: str
        name: str
        reason: str

        def apply(self, policy: SignerPolicy, record: Record) -> None:
            revocation = Revocation(self.public_key, self.name, self.reason, record.at, record.actor)
            policy.revoked = [*policy.revoked, revocation]

    def status_key(self) -> str:
        return "in_force"

    @property
    def in_force(self) -> PolicyVersion:
        """Give the version in force."""
        return self.versions[-1]

    def come_into_force(self, address: str, document: PolicyDocument, record: Record) -> None:
        """Let a version come into force; what was proposed before is void."""
        version = PolicyVersion(document.version, address, document, record.at)
        self.versions, self.recovery = [*self.versions, version], None

    def can_vouch(self, now: str) -> bool:
        """Say whether enough keys are left for a next version to be signed."""
        document, out = self.in_force.document, self.revocations()
        left = sum(key.is_valid(now) and key.public_key not in out for key in document.keys)
        return left >= document.threshold

    def revocations(self) -> dict[str, str]:
        """Map revoked keys to the moment of their revocation."""
        return {one.public_key: one.revoked_at for one in self.revoked}

    def pinned(self, address: str) -> PolicyVersion | None:
        """Find a version that was adopted by its address."""
        return next((one for one in self.versions if one.address == address), None)


# --------------------------------------------------------------------------- what is asked


class AdoptPolicy(Command):
    """Bring a version of a signer policy into force, with the envelopes of those who vouch for it."""

    document: PolicyTerms
    envelopes: list[DsseEnvelope] = Field(default_factory=list, max_length=ENVELOPES_MAX)


class RevokeKey(Command):
    """Take a key out of a policy at once."""

    policy: str
    public_key: str = Field(min_length=44, max_length=44)
    reason: Reason


class RecoverPolicy(Command):
    """Propose, or as a second operator confirm, a version where too few keys are left to vouch for one."""

    policy: str
    document: PolicyTerms
    reason: Reason


@allow("operator")
def adopt_policy(case: Case, command: AdoptPolicy) -> SignerPolicy:
    """Bring a version into force: the first as it is, every later one signed by the threshold of the one before.

    Errors: malformed_envelope, public_key_invalid, signer_policy_invalid, threshold_not_met.
    """
    document = command.document.document()
    policy = case.find(SignerPolicy, document.name)
    _check_next(case, policy, document)
    if policy is None:
        first = SignerPolicy.Adopted(address=document.address, document=document, envelopes=[], signed=[])
        return case.create(SignerPolicy, document.name, first, tenant="platform")
    envelopes = [Envelope.parse(sent) for sent in command.envelopes]
    signed = vouched(policy, policy_wanted(policy, document), envelopes, case.now)
    adopted = SignerPolicy.Adopted(
        address=document.address, document=document, envelopes=envelopes, signed=signed
    )
    return case.emit(policy, adopted)


@allow("operator")
def recover_policy(case: Case, command: RecoverPolicy) -> SignerPolicy:
    """Replace a policy that can vouch for nothing any more: proposed by one operator, confirmed by another a day later.

    Errors: invalid_status_transition, public_key_invalid, self_review, signer_policy_invalid, signer_policy_not_found.
    """
    document = command.document.document()
    policy = case.get(SignerPolicy, command.policy, SignerPolicyNotFoundError)
    if document.name != policy.id:
        raise SignerPolicyInvalidError("the document is of another policy", why="name", name=document.name)
    if policy.can_vouch(case.now):
        raise StatusTransitionError("the keys of this policy can vouch for the next version themselves")
    _check_next(case, policy, document)
    proposed = policy.recovery
    if proposed is None or proposed.address != document.address:
        proposal = SignerPolicy.RecoveryProposed(
            address=document.address, document=document, reason=command.reason
        )
        return case.emit(policy, proposal)
    if proposed.proposed_by == case.caller.subject:
        raise SelfReviewError("another operator confirms this", subject=case.caller.subject)
    not_before = moment_text(moment_of(proposed.proposed_at) + timedelta(seconds=RECOVERY_WAIT_S))
    if case.now < not_before:
        raise StatusTransitionError(
            "a proposal is confirmed a day later at the earliest", not_before=not_before
        )
    recovered = SignerPolicy.Recovered(
        address=document.address,
        document=document,
        reason=proposed.reason,
        proposed_by=proposed.proposed_by,
    )
    return case.emit(policy, recovered)


def _check_next(case: Case, policy: SignerPolicy | None, document: PolicyDocument) -> None:
    following = 1 if policy is None else policy.in_force.version + 1
    if document.version != following:
        raise SignerPolicyInvalidError(
            f"the next version of this policy is {following}", why="version", version=document.version
        )
    check_policy(document, policy.revocations() if policy else (), case.now)


@allow("operator")
def revoke_key(case: Case, command: RevokeKey) -> SignerPolicy:
    """Take a key out of every version of a policy, at this position and for good; once is enough.

    Errors: signer_key_not_found, signer_policy_not_found.
    """
    policy = case.get(SignerPolicy, command.policy, SignerPolicyNotFoundError)
    named = [
        key
        for version in reversed(policy.versions)
        for key in version.document.keys
        if key.public_key == command.public_key
    ]
    if not named:
        raise SignerKeyNotFoundError(policy=command.policy, public_key=command.public_key)
    if command.public_key in policy.revocations():
        return policy
    revoked = SignerPolicy.KeyRevoked(
        public_key=command.public_key, name=named[0].name, reason=command.reason
    )
    return case.emit(policy, revoked)


# --------------------------------------------------------------------------- what others ask


def policy_in_force(case: Case, name: str = PUBLICATION) -> PolicyVersion:
    """Give the version of a policy that is in force.

    Errors: signer_policy_missing.
    """
    return adopted_policy(case, name).in_force


def adopted_policy(case: Case, name: str = PUBLICATION) -> SignerPolicy:
    """Give a policy with its versions and revocations.

    Errors: signer_policy_missing.
    """
    policy = case.find(SignerPolicy, name)
    if policy is None:
        raise SignerPolicyMissingError(policy=name)
    return policy


def pinned_policy(case: Case, address: str, name: str = PUBLICATION) -> PolicyVersion:
    """Give a version that was adopted here, by its address, whether it is in force still or not.

    Errors: signer_policy_missing, signer_policy_not_found.
    """
    found = adopted_policy(case, name).pinned(address)
    if found is None:
        raise SignerPolicyNotFoundError("no such version of the policy was adopted here", address=address)
    return found


def policy_wanted(policy: SignerPolicy, document: PolicyDocument) -> Wanted:
    """Say what vouches for the next version of a policy."""
    return Wanted("policy", document.address, policy.in_force.address)


def vouched(policy: SignerPolicy, wanted: Wanted, envelopes: list[Envelope], now: str) -> list[SignedBy]:
    """Give those who vouch for a document under the version in force; they are at least its threshold.

    Errors: malformed_envelope, threshold_not_met.
    """
    found = verify(envelopes, wanted, policy.in_force.document, revoked=policy.revocations(), now=now)
    return check_verified(found).signed
