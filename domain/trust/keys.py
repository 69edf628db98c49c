"""Ed25519 public keys as they may be pinned, and who signs with the private ones.

A key that is pinned is canonical and of the prime-order group. Then no signature holds for a message its holder did not
sign, no two keys accept the same signature, and one key has one spelling, so that counting keys counts holders.
"""

from __future__ import annotations

from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from domain.errors import PublicKeyError
from domain.log.notes import parse_base64, print_base64

KEY_BYTES = 32
SIGNATURE_BYTES = 64

# The curve of RFC 8032, section 5.1.
_P = 2**255 - 19
_ORDER = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, -1, _P) % _P
_SQRT_M1 = pow(2, (_P - 1) // 4, _P)

# Extended coordinates (X, Y, Z, T) with x = X/Z, y = Y/Z, xy = T/Z.
_Point = tuple[int, int, int, int]
_NEUTRAL: _Point = (0, 1, 1, 0)


class Signer(Protocol):
    """Whoever holds a private key: a file, a token, a module in a rack. The key itself never leaves it."""

    @property
    def public_key(self) -> bytes:
        """Give the 32 bytes of the public key."""

    def sign(self, message: bytes) -> bytes:
        """Sign bytes as they are, by Ed25519 without pre-hashing."""


class PrivateKey:
    """A signer whose private key lies in memory."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self._public = private.public_key().public_bytes_raw()

    @classmethod
    def of_seed(cls, seed: bytes) -> PrivateKey:
        """Make the key of a seed of 32 bytes."""
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @property
    def public_key(self) -> bytes:
        """Give the 32 bytes of the public key."""
        return self._public

    def sign(self, message: bytes) -> bytes:
        """Sign bytes as they are."""
        return self._private.sign(message)


def key_text(public: bytes) -> str:
    """Write a public key as policies pin it: padded base64 of its 32 bytes."""
    return print_base64(public)


def parse_public_key(text: str) -> bytes:
    """Read a public key that is to be pinned.

    Cost:   some milliseconds: the order of the point is computed here, in the open.
    Errors: public_key_invalid.
    Source: RFC 8032, section 5.1.3; Brendel, Cremers, Jackson and Zhao 2021, section 5 (small orders).
    """
    public = parse_base64(text)
    if public is None or len(public) != KEY_BYTES:
        raise PublicKeyError("a public key is the padded base64 of 32 bytes", got=text[:64])
    point = _decompressed(public)
    if point is None:
        raise PublicKeyError("these bytes are no canonical point of the curve", got=text)
    if _is_neutral(_times(8, point)) or not _is_neutral(_times(_ORDER, point)):
        raise PublicKeyError("the point is of small or mixed order", got=text)
    return public


def is_signed(public: bytes, signature: bytes, message: bytes) -> bool:
    """Tell whether a signature over a message is of a key.

    Cost: about 0.1-0.2 ms.
    """
    if len(signature) != SIGNATURE_BYTES:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


# --------------------------------------------------------------------------- the curve


def _decompressed(public: bytes) -> _Point | None:
    encoded = int.from_bytes(public, "little")
    sign, y = encoded >> 255, encoded & ((1 << 255) - 1)
    if y >= _P:
        return None
    u, v = (y * y - 1) % _P, (_D * y * y + 1) % _P
    x = u * pow(v, 3, _P) * pow(u * pow(v, 7, _P), (_P - 5) // 8, _P) % _P
    if v * x * x % _P == -u % _P:
        x = x * _SQRT_M1 % _P
    if v * x * x % _P != u or (x == 0 and sign):
        return None
    x = x if x & 1 == sign else _P - x
    return x, y, 1, x * y % _P


def _plus(p: _Point, q: _Point) -> _Point:
    a, b = (p[1] - p[0]) * (q[1] - q[0]) % _P, (p[1] + p[0]) * (q[1] + q[0]) % _P
    c, d = 2 * p[3] * q[3] * _D % _P, 2 * p[2] * q[2] % _P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _times(scalar: int, point: _Point) -> _Point:
    found = _NEUTRAL
    while scalar:
        if scalar & 1:
            found = _plus(found, point)
        point, scalar = _plus(point, point), scalar >> 1
    return found


def _is_neutral(point: _Point) -> bool:
    return point[0] % _P == 0 and (point[1] - point[2]) % _P == 0
