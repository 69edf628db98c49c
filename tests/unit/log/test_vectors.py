"""Published vectors through the very functions we use: SHA3-512 for addresses, Ed25519 for notes."""

from __future__ import annotations

import hashlib
import re

import pytest

from domain.log.notes import ED25519, Signer, VerifierKey

vectors = pytest.importorskip(
    "cryptography_vectors", reason="the package cryptography_vectors is not installed"
)


def nist_cases(name):
    with vectors.open_vector_file(f"hashes/SHA3/{name}", "r") as file:
        text = file.read()
    for bits, message, digest in re.findall(r"Len = (\d+)\s+Msg = ([0-9a-f]+)\s+MD = ([0-9a-f]+)", text):
        yield bytes.fromhex(message)[: int(bits) // 8], digest


@pytest.mark.parametrize(("name", "count"), [("SHA3_512ShortMsg.rsp", 73), ("SHA3_512LongMsg.rsp", 100)])
def test_sha3_512_gives_the_digests_nist_published(name, count):
    cases = list(nist_cases(name))
    assert len(cases) == count
    for message, digest in cases:
        assert hashlib.sha3_512(message).hexdigest() == digest


def test_sha3_512_stands_the_monte_carlo_test_of_nist():
    with vectors.open_vector_file("hashes/SHA3/SHA3_512Monte.rsp", "r") as file:
        text = file.read()
    digest = bytes.fromhex(re.search(r"Seed = ([0-9a-f]+)", text)[1])
    expected = re.findall(r"MD = ([0-9a-f]+)", text)
    assert len(expected) == 100
    for wanted in expected:
        for _ in range(1_000):
            digest = hashlib.sha3_512(digest).digest()
        assert digest.hex() == wanted


def test_the_signer_gives_the_published_ed25519_signatures():
    with vectors.open_vector_file("asymmetric/Ed25519/sign.input", "r") as file:
        lines = file.read().splitlines()
    assert len(lines) == 1_024
    for line in lines:
        secret, public, message, signed = (bytes.fromhex(part) for part in line.split(":")[:4])
        signer = Signer("vectors.example", secret[:32])
        assert signer.key == VerifierKey("vectors.example", ED25519, public)
        assert signer.sign(message) == signed[:64]


def test_the_two_published_signatures_over_texts_verify_and_changed_ones_do_not():
    with vectors.open_vector_file("asymmetric/Ed25519/sign.input", "r") as file:
        lines = file.read().splitlines()
    text_count = 0
    for line in lines:
        _, public, message, signed = (bytes.fromhex(part) for part in line.split(":")[:4])
        try:
            text = message.decode()
        except UnicodeDecodeError:
            continue
        text_count += 1
        key = VerifierKey("vectors.example", ED25519, public)
        assert key.verifies(text, signed[:64])
        assert not key.verifies(text + "x", signed[:64])
        assert not key.verifies(text, signed[1:64] + signed[:1])
    assert text_count == 2
