"""Keys, policies, constitutions and signed envelopes to test with, the same on every run; and a ledger to use them on.

Nothing here signs what the house would not let be signed: use `envelope` for what is right, `forged` for what is not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import wraps
from hashlib import sha256
from itertools import count
from typing import Any

import msgspec

from domain.canonical import seal_of
from domain.errors import LedgerError
from domain.ledger import Caller, Case, Ledger, UseCase
from domain.trust import constitutions, reviews, signatures, signers
from domain.trust.constitutions import (
    AdoptConstitution,
    ConstitutionDocument,
    ConstitutionTerms,
    constitution_wanted,
)
from domain.trust.dsse import DsseEnvelope, Envelope
from domain.trust.keys import PrivateKey, key_text
from domain.trust.pinned import PolicyDocument, PolicyTerms
from domain.trust.signers import AdoptPolicy, SignerPolicy, policy_wanted
from domain.trust.verification import Wanted, sign_statement
from tests.unit.memory_log import MemoryLog, MemoryStore

START = "2026-01-01T00:00:00.000000Z"
LATER = "2026-02-01T00:00:00.000000Z"
FAR = "2027-01-01T00:00:00.000000Z"
VALID_FROM, VALID_UNTIL = "2025-01-01T00:00:00.000000Z", "2030-01-01T00:00:00.000000Z"
DAY_S = 86_400

SIGNERS = ("ada", "ben", "cleo")
OWNER = Caller("olivia", "acme", frozenset(["owner"]))
OPERATOR = Caller("oscar", "platform", frozenset(["operator"]))
REVIEWER = Caller("rita", "platform", frozenset(["reviewer"]))
SERVICE = Caller("sweeper", "platform", frozenset(["service"]))
COURIER = Caller("sid", "platform", frozenset(["signer"]))


def story(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Let a test be told as a coroutine."""

    @wraps(test)
    def told(*given: Any, **more: Any) -> None:
        asyncio.run(test(*given, **more))

    return told


def key_of(name: str) -> PrivateKey:
    """Give the key of a name."""
    return PrivateKey.of_seed(sha256(f"a test key of {name}".encode()).digest())


def pin(whose: str, **terms: Any) -> dict[str, Any]:
    """Pin somebody's key."""
    return {
        "name": whose,
        "subject": f"{whose}@platform",
        "role": "signer",
        "public_key": key_text(key_of(whose).public_key),
        "valid_from": VALID_FROM,
        "valid_until": VALID_UNTIL,
    } | terms


def policy_terms(names: Iterable[str] = SIGNERS, **terms: Any) -> dict[str, Any]:
    """Write a policy that pins the keys of these names, two of which are needed."""
    return {
        "schema": "soma/signer_policy/1",
        "name": "publication",
        "version": 1,
        "threshold": 2,
        "approvals_required": 1,
        "review_sla_s": 3 * DAY_S,
        "statement_ttl_s": 90 * DAY_S,
        "keys": [pin(name) for name in names],
    } | terms


def policy(names: Iterable[str] = SIGNERS, **terms: Any) -> PolicyDocument:
    """Make the document of a policy."""
    return PolicyTerms.model_validate(policy_terms(names, **terms)).document()


def constitution_terms(version: int = 1, **terms: Any) -> dict[str, Any]:
    """Write a constitution."""
    return {
        "schema": "soma/constitution/1",
        "version": version,
        "title": "What personas may do",
        "articles": [{"title": "Truth", "text": "A persona says what it knows, and that it is a persona."}],
        "utility": {"lam": "1", "mu": "0.5", "nu": "0.1", "p_min": "0.6", "c_max": "0.05", "l_max": "2"},
    } | terms


def constitution(version: int = 1, **terms: Any) -> ConstitutionDocument:
    """Make the document of a constitution."""
    return ConstitutionTerms.model_validate(constitution_terms(version, **terms)).document()


def a_capsule(number: int = 1) -> str:
    """Give the address of a capsule that is only named here."""
    return seal_of("soma/capsule/v1", b"%d" % number)


def envelope(wanted: Wanted, *names: str, not_after: str = "") -> Envelope:
    """Have somebody sign what is wanted."""
    statement = wanted.statement(not_after or wanted.not_after_max or FAR)
    return sign_statement(statement, *(key_of(name) for name in names))


def sent(sealed: Envelope) -> dict[str, Any]:
    """Write an envelope as it is sent."""
    found: dict[str, Any] = msgspec.to_builtins(sealed)
    return found


def brought(sealed: Envelope) -> DsseEnvelope:
    """Write an envelope as the member of a command."""
    return DsseEnvelope.model_validate(sent(sealed))


class Trust:
    """A ledger whose clock the test sets, with the commands of trust."""

    def __init__(self) -> None:
        self.now = START
        self.store = MemoryStore()
        numbers = count(1)
        self.ledger = Ledger(
            MemoryLog(self.store), clock=lambda: self.now, next_id=lambda: f"{next(numbers):04d}"
        )

    async def do(self, use_case: UseCase, command: Any, caller: Caller, **how: Any) -> Any:
        """Carry out a command; give what it answered."""
        answer = await self.ledger.act(use_case, command, caller, **how)
        return msgspec.json.decode(answer.body)

    async def heard(self, use_case: UseCase, command: Any, caller: Caller) -> str:
        """Carry out a command; give "ok" or the code of its refusal, which writes nothing."""
        size = len(self.store.logged)
        try:
            await self.do(use_case, command, caller)
        except LedgerError as refusal:
            assert len(self.store.logged) == size, "a refusal was written down"
            return refusal.code
        return "ok"

    async def ask(self, question: Any, caller: Caller = OWNER) -> Any:
        """Have a question answered that a use case would ask; what it gives must be a record or a list of them."""

        def asked(case: Case, command: Any) -> Any:
            return question(case)

        return await self.do(asked, signatures.OpenSigning(capsule="any"), caller)

    def state(self, kind: str, name: str) -> Any:
        """Read the current state of an aggregate."""
        return msgspec.json.decode(self.store.states[f"{kind}/{name}"].state)

    def topics(self) -> list[str]:
        """List the wire types that were logged."""
        return [logged.row.type for logged in self.store.logged]

    # ------------------------------------------------------------------ making

    async def adopt(self, document: dict[str, Any], *names: str) -> str:
        """Adopt a version of a policy with the votes of these; give its address or the code of the refusal."""
        terms = PolicyTerms.model_validate(document)
        envelopes = []
        if names:
            current = self.store.states[f"signer_policy/{terms.name}"].state
            wanted = policy_wanted(msgspec.json.decode(current, type=SignerPolicy), terms.document())
            envelopes = [brought(envelope(wanted, name)) for name in names]
        heard = await self.heard(
            signers.adopt_policy, AdoptPolicy(document=terms, envelopes=envelopes), OPERATOR
        )
        return terms.document().address if heard == "ok" else heard

    async def constitute(self, version: int = 1, names: Sequence[str] = SIGNERS[:2], **terms: Any) -> str:
        """Adopt a version of the constitution with the votes of these; give its address or the refusal's code."""
        proposed = ConstitutionTerms.model_validate(constitution_terms(version, **terms))
        address = proposed.document().sealed()[1]
        policy_address = self.state("signer_policy", "publication")["versions"][-1]["address"]
        wanted = constitution_wanted(address, policy_address)
        envelopes = [brought(envelope(wanted, name)) for name in names]
        command = AdoptConstitution(document=proposed, envelopes=envelopes)
        heard = await self.heard(constitutions.adopt_constitution, command, OPERATOR)
        return address if heard == "ok" else heard

    async def opened(self, capsule: str, owners: Sequence[str] = ("olivia",), caller: Caller = OWNER) -> Any:
        """Submit a capsule, as far as trust is concerned: ask for signatures and for a review."""

        def submit(case: Case, command: Any) -> Any:
            in_force = signers.policy_in_force(case)
            named = constitutions.current_constitution(case).address
            reviews.open_review(case, capsule, in_force, owners, caller.tenant)
            return signatures.open_signing(case, capsule, in_force, named, owners, caller.tenant)

        return await self.do(submit, signatures.OpenSigning(capsule=capsule), caller)

    async def sign(self, capsule: str, *names: str, courier: Caller = COURIER) -> str:
        """Have these sign a capsule; give "ok" or the code of the refusal."""
        signing = msgspec.convert(
            self.state("signing", signatures.capsule_key(capsule)), signatures.Signing, strict=False
        )
        sealed = envelope(signing.wanted(signing.policy), *names)
        return await self.heard(
            signatures.submit_signature,
            signatures.SubmitSignature(capsule=capsule, envelope=brought(sealed)),
            courier,
        )

    async def verified(self, capsule: str) -> Any:
        """Say what the signatures over a capsule come to."""
        return await self.ask(lambda case: signatures.verification(case, capsule))
