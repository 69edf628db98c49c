"""Which Ed25519 keys may be pinned, and which signatures hold."""

from __future__ import annotations

import base64
import json

import cryptography_vectors
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from domain.errors import PublicKeyError
from domain.trust import keys
from domain.trust.keys import PrivateKey, is_signed, key_text, parse_public_key

P = 2**255 - 19
SEEDS = st.binary(min_size=32, max_size=32)

# The eight points whose order divides eight, as RFC 8032 encodes them (y, and the sign of x in the top bit).
Y8 = int.from_bytes(
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little"
)
SMALL = [1, P - 1, 0, 1 << 255, Y8, Y8 | 1 << 255, P - Y8, (P - Y8) | 1 << 255]
# The same points, and others, with y not below the prime: a second spelling.
SECOND = [P, P + 1, P | 1 << 255, (P + 1) | 1 << 255, *(P + y for y in range(2, 19))]
# x = 0 has no sign; with one it is no point at all.
SIGNLESS = [1 | 1 << 255, (P - 1) | 1 << 255]


def text(encoded: int) -> str:
    """Write an encoded point as a key."""
    return key_text(encoded.to_bytes(32, "little"))


def refused(key: str) -> bool:
    """Say whether a key is refused."""
    try:
        parse_public_key(key)
    except PublicKeyError:
        return True
    return False


@pytest.mark.parametrize("encoded", SMALL)
def test_a_point_of_small_order_is_no_key(encoded: int) -> None:
    point = keys._decompressed(encoded.to_bytes(32, "little"))
    assert point, "this is no point, so it would be refused for that"
    assert keys._is_neutral(keys._times(8, point))
    assert refused(text(encoded))


@pytest.mark.parametrize("encoded", SECOND)
def test_a_second_spelling_of_a_point_is_no_key(encoded: int) -> None:
    assert refused(text(encoded))


@pytest.mark.parametrize("encoded", SIGNLESS)
def test_a_sign_where_there_is_none_is_no_key(encoded: int) -> None:
    assert refused(text(encoded))


def test_a_point_of_mixed_order_is_no_key() -> None:
    point = keys._decompressed(PrivateKey.of_seed(bytes(32)).public_key)
    torsion = keys._decompressed(Y8.to_bytes(32, "little"))
    assert point
    assert torsion
    x, y, z, _ = keys._plus(point, torsion)
    inverse = pow(z, -1, P)
    x, y = x * inverse % P, y * inverse % P
    mixed = y | (x & 1) << 255
    Ed25519PublicKey.from_public_bytes(mixed.to_bytes(32, "little"))  # the library would take it
    assert refused(text(mixed))


@given(SEEDS)
def test_a_key_that_was_made_may_be_pinned(seed: bytes) -> None:
    public = PrivateKey.of_seed(seed).public_key
    assert parse_public_key(key_text(public)) == public


@given(st.binary(min_size=32, max_size=32))
def test_what_may_be_pinned_the_library_takes_too(public: bytes) -> None:
    if not refused(key_text(public)):
        Ed25519PublicKey.from_public_bytes(public)


@pytest.mark.parametrize(
    "spelling",
    [
        "",
        "AAAA",
        "a" * 43,
        key_text(bytes(31)),
        key_text(bytes(33)),
        "é" * 44,
        key_text(bytes(32))[:-1] + "A",
    ],
)
def test_what_is_not_32_bytes_in_padded_base64_is_no_key(spelling: str) -> None:
    assert refused(spelling)


def test_one_key_has_one_spelling() -> None:
    public = PrivateKey.of_seed(bytes(32)).public_key
    url_safe = base64.urlsafe_b64encode(public).decode()
    unpadded = key_text(public).rstrip("=")
    loose = key_text(public)[:-2] + chr(ord(key_text(public)[-2]) + 1) + "="
    assert [refused(s) for s in (key_text(public), unpadded, key_text(public) + "\n", loose)] == [
        False,
        True,
        True,
        True,
    ]
    assert url_safe == key_text(public) or refused(url_safe)


# --------------------------------------------------------------------------- vectors of others


def rfc_8032() -> list[tuple[bytes, bytes, bytes, bytes]]:
    """Read seed, public key, message and signature of each line of the RFC's test file."""
    with cryptography_vectors.open_vector_file("asymmetric/Ed25519/sign.input", "r") as file:
        fields = [line.strip().split(":") for line in file]
    return [
        (bytes.fromhex(f[0][:64]), bytes.fromhex(f[1]), bytes.fromhex(f[2]), bytes.fromhex(f[3][:128]))
        for f in fields
    ]


def test_the_vectors_of_rfc_8032_sign_and_verify_as_printed() -> None:
    vectors = rfc_8032()
    assert len(vectors) == 1_024
    for seed, public, message, signature in vectors:
        key = PrivateKey.of_seed(seed)
        assert key.public_key == public
        assert key.sign(message) == signature
        assert is_signed(public, signature, message)
        assert not is_signed(public, signature, message + b"\0")
    for _, public, _, _ in vectors[::64]:
        assert parse_public_key(key_text(public)) == public


def test_a_signature_whose_scalar_is_not_reduced_does_not_hold() -> None:
    key, message = PrivateKey.of_seed(bytes(32)), b"hello"
    signature = key.sign(message)
    order = 2**252 + 27742317777372353535851937790883648493
    scalar = int.from_bytes(signature[32:], "little") + order
    malleated = signature[:32] + scalar.to_bytes(32, "little")
    assert is_signed(key.public_key, signature, message)
    assert not is_signed(key.public_key, malleated, message)


@pytest.mark.parametrize("length", [0, 1, 63, 65, 128])
def test_a_signature_of_another_length_does_not_hold(length: int) -> None:
    key = PrivateKey.of_seed(bytes(32))
    assert not is_signed(key.public_key, (key.sign(b"m") * 2)[:length], b"m")


def test_no_signature_is_made_twice_for_two_keys() -> None:
    message = json.dumps({"a": 1}).encode()
    signatures = {PrivateKey.of_seed(bytes([n]) * 32).sign(message) for n in range(64)}
    assert len(signatures) == 64
