"""A bearer token is believed only as it was signed, for us, by whom we trust, and until it expires."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from domain.errors import KeyFileError, UnauthorizedError
from ops.settings import Settings
from ops.tokens import SKEW_S, TOKEN_BYTES_MAX, LocalIssuer, TokenGate


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path)


@pytest.fixture
def issuer(settings: Settings) -> LocalIssuer:
    return LocalIssuer(settings)


@pytest.fixture
def gate(settings: Settings, issuer: LocalIssuer) -> TokenGate:
    return TokenGate(settings, issuer)


@pytest.fixture
def claims(settings: Settings) -> dict[str, Any]:
    return {
        "iss": settings.jwt_issuer, "aud": settings.jwt_audience, "sub": "anna", "tenant": "acme",
        "roles": ["owner"], "iat": int(time.time()), "exp": int(time.time()) + 600,
    }  # fmt: skip


def private_key(settings: Settings) -> Any:
    """Read the key the issuer wrote."""
    return serialization.load_pem_private_key(settings.issuer_key_path.read_bytes(), password=None)


def b64(data: bytes) -> str:
    """Write unpadded base64url."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class TestBelieved:
    def test_a_minted_token_names_its_caller(self, issuer, gate):
        token = issuer.mint("anna", "acme", ["owner", "provider"])
        assert gate.recall(token) is None
        caller = gate.verify(token)
        assert caller == ("anna", "acme", {"owner", "provider"})
        assert gate.recall(token) == caller
        assert not gate.blocks

    def test_another_issuer_object_of_the_installation_mints_for_the_same_gate(self, settings, gate):
        assert gate.verify(LocalIssuer(settings).mint("anna", "acme", [])).tenant == "acme"

    def test_roles_nobody_knows_give_nothing(self, issuer, gate):
        token = issuer.mint("anna", "acme", ["owner", "root", "OWNER", "operator "])
        assert gate.verify(token).roles == {"owner"}

    def test_an_outsider_verifies_with_the_published_keys(self, issuer, settings):
        (published,) = issuer.jwks()["keys"]
        assert "d" not in published
        token = issuer.mint("anna", "acme", ["owner"])
        assert jwt.get_unverified_header(token)["kid"] == published["kid"]
        key = jwt.PyJWK.from_dict(published)
        read = jwt.decode(token, key, algorithms=["EdDSA"], audience=settings.jwt_audience)
        assert (read["sub"], read["tenant"], read["roles"]) == ("anna", "acme", ["owner"])

    def test_a_clock_may_be_a_little_behind(self, issuer, gate):
        assert gate.verify(issuer.mint("anna", "acme", [], ttl_s=-SKEW_S + 5)).subject == "anna"


class TestRefused:
    def refuse(self, gate: TokenGate, token: str) -> None:
        with pytest.raises(UnauthorizedError):
            gate.verify(token)
        assert gate.recall(token) is None

    def test_one_that_has_expired(self, issuer, gate):
        self.refuse(gate, issuer.mint("anna", "acme", [], ttl_s=-SKEW_S - 5))

    def test_one_that_expires_after_it_was_believed(self, issuer, gate, monkeypatch):
        token = issuer.mint("anna", "acme", [], ttl_s=60)
        gate.verify(token)
        later = time.time() + 61
        monkeypatch.setattr("time.time", lambda: later)
        assert gate.recall(token) is None

    def test_one_with_a_changed_claim_or_signature(self, issuer, gate):
        head, body, signature = issuer.mint("anna", "acme", ["owner"]).split(".")
        changed = json.loads(base64.urlsafe_b64decode(body + "==")) | {"roles": ["operator"]}
        self.refuse(gate, f"{head}.{b64(json.dumps(changed).encode())}.{signature}")
        raw = bytearray(base64.urlsafe_b64decode(signature + "=="))
        raw[7] ^= 1
        self.refuse(gate, f"{head}.{body}.{b64(bytes(raw))}")
        self.refuse(gate, f"{head}.{body}.")
        self.refuse(gate, f"{head}.{body}")

    def test_one_signed_by_another_key(self, gate, claims):
        self.refuse(gate, jwt.encode(claims, Ed25519PrivateKey.generate(), algorithm="EdDSA"))

    @pytest.mark.parametrize("alg", ["none", "None", "NONE", ""])
    def test_one_without_a_signature(self, gate, claims, alg):
        head, body = b64(json.dumps({"alg": alg, "typ": "JWT"}).encode()), b64(json.dumps(claims).encode())
        for end in ("", "AAAA"):
            self.refuse(gate, f"{head}.{body}.{end}")

    @pytest.mark.parametrize("alg", ["HS256", "HS384", "HS512"])
    def test_one_signed_with_the_public_key_as_a_shared_secret(self, issuer, gate, claims, alg):
        forms = [
            issuer.public.public_bytes_raw(),
            issuer.public.public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            ),
        ]
        hashes = {"HS256": hashlib.sha256, "HS384": hashlib.sha384, "HS512": hashlib.sha512}
        text = ".".join(
            b64(json.dumps(part).encode()) for part in ({"alg": alg, "kid": issuer.key_id}, claims)
        )
        for secret in forms:
            signature = hmac.new(secret, text.encode(), hashes[alg]).digest()
            self.refuse(gate, f"{text}.{b64(signature)}")

    @pytest.mark.parametrize(
        "change",
        [
            {"aud": "somebody-else"}, {"aud": None}, {"aud": []}, {"iss": "somebody-else"}, {"iss": None},
            {"exp": None}, {"exp": "soon"}, {"sub": None}, {"sub": ""}, {"sub": 1}, {"sub": "a b"}, {"sub": "a\n"},
            {"sub": "é"}, {"sub": "x" * 129}, {"tenant": None}, {"tenant": ""}, {"tenant": "A"}, {"tenant": "a"},
            {"tenant": "acme\n"}, {"tenant": ["acme"]}, {"tenant": "-acme"}, {"tenant": "x" * 64},
            {"roles": None}, {"roles": "operator"}, {"roles": [1]}, {"roles": {"operator": True}},
            {"nbf": 4_000_000_000}, {"iat": 4_000_000_000},
        ],
    )  # fmt: skip
    def test_one_whose_claims_are_wrong_or_missing(self, settings, gate, claims, change):
        body = {name: value for name, value in (claims | change).items() if value is not None}
        key = private_key(settings)
        head = b64(b'{"alg":"EdDSA","typ":"JWT"}')
        text = f"{head}.{b64(json.dumps(body).encode())}"
        self.refuse(gate, f"{text}.{b64(key.sign(text.encode()))}")

    @pytest.mark.parametrize("exp", ["1e400", "NaN", "-Infinity", "Infinity"])
    def test_one_that_expires_at_no_number(self, settings, gate, claims, exp):
        body = json.dumps(claims | {"exp": 0}).replace('"exp": 0', f'"exp": {exp}')
        text = ".".join([b64(b'{"alg":"EdDSA"}'), b64(body.encode())])
        self.refuse(gate, f"{text}.{b64(private_key(settings).sign(text.encode()))}")

    @pytest.mark.parametrize(
        "token",
        ["", ".", "..", "a.b.c", "Bearer x", "é.é.é", "\0", "x" * (TOKEN_BYTES_MAX + 1), "ey" * 4_000],
    )
    def test_what_is_no_token(self, gate, token):
        self.refuse(gate, token)

    def test_a_long_token_is_not_even_looked_at(self, issuer, gate):
        self.refuse(gate, issuer.mint("anna", "acme", ["x" * TOKEN_BYTES_MAX]))


class TestIssuerKey:
    def test_the_key_file_is_the_owner_s_alone(self, settings, issuer):
        assert settings.issuer_key_path.stat().st_mode & 0o777 == 0o600

    @pytest.mark.parametrize(
        "content", [b"", b"no pem", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
    )
    def test_what_is_no_key_is_refused(self, settings, content):
        settings.issuer_key_path.parent.mkdir(parents=True, exist_ok=True)
        settings.issuer_key_path.write_bytes(content)
        settings.issuer_key_path.chmod(0o600)
        with pytest.raises(KeyFileError):
            LocalIssuer(settings)
