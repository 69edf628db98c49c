"""Bearer tokens: JWT signed with Ed25519, by the local issuer or by an outside one whose keys are fetched.

A verified token is remembered until it expires, since a signature check costs more than everything else a request
does before it reaches the gate.
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm

from domain.errors import KeyFileError, UnauthorizedError, UnavailableError
from domain.ledger import Caller
from domain.values import moment_of
from ops.keys import read_or_make
from ops.settings import Settings

ROLES = frozenset({"provider", "owner", "operator", "reviewer", "signer", "auditor", "billing", "service"})
SKEW_S = 30
REMEMBERED_MAX = 10_000
TOKEN_BYTES_MAX = 8_192
ACCESS_TYPE = "soma-access+jwt"

_TENANT = re.compile(r"[a-z0-9][a-z0-9-]{1,62}\Z", re.ASCII)
_SUBJECT = re.compile(r"[\x21-\x7e]{1,128}\Z", re.ASCII)


class LocalIssuer:
    """Mints tokens with a key of this installation."""

    def __init__(self, settings: Settings) -> None:
        fresh = Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        pem = read_or_make(settings.issuer_key_path, fresh)
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except ValueError as error:
            raise KeyFileError(f"{settings.issuer_key_path} is not a PEM private key") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise KeyFileError(f"{settings.issuer_key_path} is not an Ed25519 key")
        self._key = key
        self._settings = settings
        self.public = key.public_key()

    @property
    def key_id(self) -> str:
        """Name the key by the first half of its public bytes."""
        return self.public.public_bytes_raw()[:16].hex()

    def mint(self, subject: str, tenant: str, roles: Sequence[str], ttl_s: int | None = None) -> str:
        """Make a token.

        Units: ttl_s in seconds; the settings' token_ttl_s where it is None.
        """
        now = int(time.time())
        claims = {
            "iss": self._settings.jwt_issuer,
            "aud": self._settings.jwt_audience,
            "sub": subject,
            "tenant": tenant,
            "roles": sorted(roles),
            "iat": now,
            "exp": now + (self._settings.token_ttl_s if ttl_s is None else ttl_s),
        }
        return jwt.encode(claims, self._key, algorithm="EdDSA", headers={"kid": self.key_id})

    def mint_access(self, tenant: str, use: Mapping[str, Any], expires_at: str | None) -> str:
        """Make a token by which a right of use is shown: for its audience only, and never valid past its end.

        Units: it expires at the start of the second in which access ends; where nothing ends, after token_ttl_s.
        """
        now = int(time.time())
        until = now + self._settings.token_ttl_s
        if expires_at is not None:
            until = int(moment_of(expires_at).timestamp())
        claims = dict(use) | {
            "iss": self._settings.jwt_issuer,
            "aud": self._access_audience,
            "sub": tenant,
            "tenant": tenant,
            "iat": now,
            "exp": until,
        }
        headers = {"kid": self.key_id, "typ": ACCESS_TYPE}
        return jwt.encode(claims, self._key, algorithm="EdDSA", headers=headers)

    def read_access(self, token: str) -> dict[str, Any]:
        """Check whose and what a token of access is; whether it still counts is decided by what it names.

        Errors: unauthorized.
        """
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                self.public,
                algorithms=["EdDSA"],
                audience=self._access_audience,
                issuer=self._settings.jwt_issuer,
                options={"require": ["exp", "sub", "aud", "iss"], "verify_exp": False, "verify_iat": False},
            )
        except jwt.PyJWTError as error:
            raise UnauthorizedError(f"the token of access is not valid: {error}") from error
        return claims

    @property
    def _access_audience(self) -> str:
        """Name the audience of access, so that no such token opens the API."""
        return f"{self._settings.jwt_audience}/access"

    def jwks(self) -> dict[str, Any]:
        """Publish the key, for services that check our tokens."""
        key = OKPAlgorithm.to_jwk(self.public, as_dict=True)
        return {"keys": [key | {"use": "sig", "alg": "EdDSA", "kid": self.key_id}]}


class TokenGate:
    """Turns bearer tokens into callers."""

    def __init__(self, settings: Settings, issuer: LocalIssuer) -> None:
        self._settings = settings
        self._issuer = issuer
        self._outside = (
            jwt.PyJWKClient(settings.jwks_url, cache_keys=True, timeout=5) if settings.jwks_url else None
        )
        self._known: OrderedDict[str, tuple[Caller, float]] = OrderedDict()

    def recall(self, token: str) -> Caller | None:
        """Give the caller of a token that was verified before and has not expired."""
        known = self._known.get(token)
        return known[0] if known is not None and time.time() < known[1] else None

    def expires_at(self, token: str) -> float:
        """Give the moment, in seconds since 1970, at which a token that was verified expires; 0 for any other."""
        known = self._known.get(token)
        return known[1] if known is not None else 0.0

    def verify(self, token: str) -> Caller:
        """Check a token. With an outside issuer this may fetch its keys, so call it off the event loop.

        Errors: unauthorized, unavailable.
        """
        if len(token) > TOKEN_BYTES_MAX:
            raise UnauthorizedError("the token is too long")
        try:
            key: Any = (
                self._outside.get_signing_key_from_jwt(token).key if self._outside else self._issuer.public
            )
            claims = jwt.decode(
                token,
                key,
                algorithms=["EdDSA"] if self._outside is None else ["EdDSA", "ES256", "RS256"],
                audience=self._settings.jwt_audience,
                issuer=self._settings.jwt_issuer,
                leeway=SKEW_S,
                options={"require": ["exp", "sub", "aud", "iss"]},
            )
        except jwt.PyJWKClientConnectionError as outage:
            raise UnavailableError(
                "the token issuer's keys cannot be fetched", internal=str(outage)
            ) from outage
        except jwt.PyJWTError as error:
            raise UnauthorizedError(f"the token is not valid: {error}") from error
        caller = _caller(claims)
        self._known[token] = (caller, float(claims["exp"]))
        while len(self._known) > REMEMBERED_MAX:
            self._known.popitem(last=False)
        return caller

    @property
    def blocks(self) -> bool:
        """Say whether verifying may wait for the network."""
        return self._outside is not None


def _caller(claims: dict[str, Any]) -> Caller:
    tenant, roles, subject = claims.get("tenant"), claims.get("roles"), claims["sub"]
    if not isinstance(tenant, str) or not _TENANT.match(tenant):
        raise UnauthorizedError("the token names no tenant")
    if not isinstance(subject, str) or not _SUBJECT.match(subject):
        raise UnauthorizedError("the token names no subject")
    if not isinstance(roles, list) or not all(isinstance(role, str) for role in roles):
        raise UnauthorizedError("the token's roles are not a list of names")
    return Caller(subject, tenant, ROLES & frozenset(roles))
