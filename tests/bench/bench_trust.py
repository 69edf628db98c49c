"""How fast statements are signed and thresholds verified, against nothing but Ed25519 over the same bytes."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from domain.canonical import seal_of
from domain.trust.dsse import Envelope, Signature
from domain.trust.keys import PrivateKey, key_text, parse_public_key
from domain.trust.pinned import PinnedKey, PolicyDocument
from domain.trust.verification import Wanted, sign_statement, verify
from tests.bench.figures import Figure, compared

SIGNERS, THRESHOLD = 5, 3
ROUNDS = 7
ROUND_S = 0.4
NOW, UNTIL = "2026-01-01T00:00:00.000000Z", "2027-01-01T00:00:00.000000Z"

SEEDS = [bytes([number]) * 32 for number in range(SIGNERS)]
KEYS = [PrivateKey.of_seed(seed) for seed in SEEDS]
POLICY = PolicyDocument(
    schema="soma/signer_policy/1",
    name="publication",
    version=1,
    threshold=THRESHOLD,
    approvals_required=1,
    review_sla_s=86_400,
    statement_ttl_s=86_400,
    keys=[
        PinnedKey(f"key-{n}", f"person-{n}", "signer", key_text(key.public_key), NOW, UNTIL)
        for n, key in enumerate(KEYS)
    ],
)
CAPSULE, LAW = seal_of("soma/capsule/v1", b"1"), seal_of("soma/constitution/v1", b"1")
WANTED = Wanted("publication", CAPSULE, POLICY.address, LAW)


def per_second(work: Callable[[], object]) -> float:
    """Count how often something is done in a second."""
    count, started = 0, time.perf_counter()
    while (taken := time.perf_counter() - started) < ROUND_S:
        for _ in range(16):
            work()
        count += 16
    return count / taken


def in_turns(bare: Callable[[], object], ours: Callable[[], object]) -> tuple[float, float]:
    """Let the two take turns; give the medians, the bare one's first."""
    turns = [(per_second(bare), per_second(ours)) for _ in range(ROUNDS)]
    return statistics.median(one for one, _ in turns), statistics.median(two for _, two in turns)


def sign() -> list[Figure]:
    """Measure a statement made, written in canonical form and sealed, against signing its bytes."""
    private = Ed25519PrivateKey.from_private_bytes(SEEDS[0])
    message = sign_statement(WANTED.statement(UNTIL), KEYS[0]).message()
    bare, ours = in_turns(
        lambda: private.sign(message), lambda: sign_statement(WANTED.statement(UNTIL), KEYS[0])
    )
    return [compared("trust.sign", "statements/s", ours, bare, at_least=0.5)]


def threshold() -> list[Figure]:
    """Measure three of five signatures judged, against verifying three signatures with keys at hand."""
    envelopes = [sign_statement(WANTED.statement(UNTIL), key) for key in KEYS[2:]]
    message = envelopes[0].message()
    public = [Ed25519PublicKey.from_public_bytes(key.public_key) for key in KEYS[2:]]
    signatures = [envelope.signatures[0].sig for envelope in envelopes]

    def bare() -> None:
        for key, signature in zip(public, signatures, strict=True):
            key.verify(signature, message)

    def judged(given: list[Envelope]) -> None:
        assert verify(given, WANTED, POLICY, revoked={}, now=NOW).verified

    texts = [msgspec.json.encode(envelope) for envelope in envelopes]
    unnamed = [
        msgspec.structs.replace(one, signatures=[Signature(one.signatures[0].sig)]) for one in envelopes
    ]
    alone, ours = in_turns(bare, lambda: judged(envelopes))
    alone_again, parsed = in_turns(bare, lambda: judged([Envelope.parse(json.loads(text)) for text in texts]))
    alone_at_last, searched = in_turns(bare, lambda: judged(unnamed))
    return [
        compared("trust.verify", "thresholds/s", ours, alone, at_least=0.5),
        compared("trust.verify_from_json", "thresholds/s", parsed, alone_again),
        compared("trust.verify_without_key_ids", "thresholds/s", searched, alone_at_last),
    ]


def pinned() -> list[Figure]:
    """Measure a key examined before it is pinned, in microseconds, against one verification."""
    private, message = Ed25519PrivateKey.from_private_bytes(SEEDS[0]), b"m" * 700
    public, signature = private.public_key(), private.sign(message)
    text = key_text(KEYS[0].public_key)
    bare, ours = in_turns(lambda: public.verify(signature, message), lambda: parse_public_key(text))
    return [compared("trust.pin", "us", 1e6 / ours, 1e6 / bare)]


FIGURES = {"trust.sign": sign, "trust.verify": threshold, "trust.pin": pinned}
