"""Who vouches for a capsule, from what travels beside it alone: for those who verify without any service."""

from __future__ import annotations

from typing import Any

import msgspec

from domain.errors import (
    AttestationsMalformedError,
    CapsuleTamperedError,
    ConstitutionMismatchError,
    SignatureRefusedError,
)
from domain.persona.imports import read_attestations
from domain.persona.manifest import PersonaManifest
from domain.trust.pinned import PolicyDocument
from domain.trust.signatures import PURPOSE
from domain.trust.verification import Verification, Wanted, verify


def vouched(manifest: PersonaManifest, sent: Any, policy: str, now: str) -> Verification:
    """Verify the signatures beside a capsule under the one policy that is trusted, given by its address.

    Keys that were revoked since are not known here; a service that pins the policy knows them.
    Errors: attestations_malformed, capsule_tampered, constitution_mismatch, malformed_envelope, signature_refused.
    """
    if not isinstance(sent, dict):
        raise AttestationsMalformedError("attestations are a JSON object")
    attestations = read_attestations(sent)
    if attestations.policy != policy:
        raise SignatureRefusedError(
            "the attestations are under another policy than the one that is trusted",
            reason="wrong_policy",
            expected=policy,
            found=attestations.policy,
        )
    if attestations.capsule != manifest.address:
        raise CapsuleTamperedError(
            "the attestations are about another capsule",
            part="attestations",
            expected=attestations.capsule,
            found=manifest.address,
        )
    named = manifest.governance.constitution
    if attestations.constitution != named:
        raise ConstitutionMismatchError(expected=named, found=attestations.constitution)
    wanted = Wanted(PURPOSE, manifest.address, policy, named)
    owners = [owner.subject for owner in manifest.metadata.owners]
    return verify(
        attestations.envelopes, wanted, _document(sent["policy"]), revoked={}, now=now, barred=owners
    )


def _document(policy: Any) -> PolicyDocument:
    try:
        return msgspec.convert(policy, PolicyDocument)
    except msgspec.ValidationError as error:
        raise AttestationsMalformedError(f"the policy in it is none: {error}") from error
