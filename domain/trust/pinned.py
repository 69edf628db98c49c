"""Signer policies as documents: which keys are pinned, whose they are, and how many of them it takes.

The address of a policy is inside every statement signed under it, so a policy with another threshold or another key is
another policy, and no signature moves from one to the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from typing import Any, Literal

import msgspec
from pydantic import Field

from domain.canonical import sealed
from domain.errors import SignerPolicyInvalidError
from domain.fields import Command, Label, Moment
from domain.trust.keys import parse_public_key

POLICY_CONTEXT = "soma/signer-policy/v1"
POLICY_SCHEMA = "soma/signer_policy/1"
PUBLICATION = "publication"

KEYS_MAX = 32
THRESHOLD_MIN = 2
DAY_S = 86_400


class PinnedKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A public key under the name and the person it belongs to.

    Units: it counts from valid_from until just before valid_until.
    """

    name: str
    subject: str
    role: str
    public_key: str
    valid_from: str
    valid_until: str

    def is_valid(self, at: str) -> bool:
        """Say whether the key counts at a moment."""
        return self.valid_from <= at < self.valid_until


class PolicyDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """One version of a signer policy.

    Units: review_sla_s and statement_ttl_s are seconds from submission.
    """

    schema: str
    name: str
    version: int
    threshold: int
    approvals_required: int
    review_sla_s: int
    statement_ttl_s: int
    keys: list[PinnedKey]

    @cached_property
    def address(self) -> str:
        """Give the address of the document."""
        return sealed(POLICY_CONTEXT, msgspec.to_builtins(self))[1]


class PolicyVersion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A version of a policy that was adopted here."""

    version: int
    address: str
    document: PolicyDocument
    adopted_at: str


class KeyTerms(Command):
    """A key that is to be pinned."""

    name: Label
    subject: str = Field(min_length=1, max_length=128, pattern=r"^[!-~]+$")
    role: Label = "signer"
    public_key: str = Field(min_length=44, max_length=44, description="Padded base64 of 32 bytes.")
    valid_from: Moment
    valid_until: Moment


class PolicyTerms(Command):
    """A signer policy as it is proposed; its address is taken over all of it, moments in UTC with six decimals."""

    schema_name: Literal["soma/signer_policy/1"] = Field(alias="schema")
    name: str = Field(min_length=2, max_length=63, pattern=r"^[a-z0-9][a-z0-9-]*$")
    version: int = Field(ge=1, le=1_000_000)
    threshold: int = Field(ge=THRESHOLD_MIN, le=KEYS_MAX)
    approvals_required: int = Field(ge=1, le=10)
    review_sla_s: int = Field(ge=60, le=90 * DAY_S)
    statement_ttl_s: int = Field(ge=60, le=366 * DAY_S)
    keys: list[KeyTerms] = Field(min_length=THRESHOLD_MIN, max_length=KEYS_MAX)

    def document(self) -> PolicyDocument:
        """Give the document these terms are."""
        return msgspec.convert(self.model_dump(by_alias=True), PolicyDocument)


def check_policy(document: PolicyDocument, revoked: Iterable[str], now: str) -> None:
    """Refuse a policy that counts a person or a key twice, pins what must not be pinned, or can never be met.

    Errors: public_key_invalid, signer_policy_invalid.
    """
    for what in ("name", "subject", "public_key"):
        counted = Counter(getattr(key, what) for key in document.keys)
        if twice := [value for value, count in counted.items() if count > 1]:
            raise _contradiction(f"each {what} may occur once", **{what: twice[0]})
    for key in document.keys:
        parse_public_key(key.public_key)
        if key.valid_from >= key.valid_until:
            raise _contradiction("a key is valid from before until after", key=key.name)
    if again := sorted(set(revoked) & {key.public_key for key in document.keys}):
        raise _contradiction("a revoked key is not pinned again", public_key=again[0])
    usable = sum(key.is_valid(now) for key in document.keys)
    if usable < document.threshold:
        raise _contradiction("fewer keys are valid now than the threshold asks for", usable=usable)


def _contradiction(why: str, **facts: Any) -> SignerPolicyInvalidError:
    return SignerPolicyInvalidError(f"the signer policy contradicts itself: {why}", why=why, **facts)
