"""Secrets that nobody keeps, and signatures that the reference implementation takes."""

from __future__ import annotations

import base64
import hmac
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from standardwebhooks import Webhook

from domain.errors import KeyFileError
from ops.keys_webhooks import KEY_BYTES, WebhookKeys, sign_v1, sign_v1a, signed_content

KEYS = WebhookKeys(bytes(range(KEY_BYTES)))
BODY = '{"type":"offer.listed","timestamp":"2026-01-01T00:00:00.000000Z","data":{"x":"naïve – ✓"}}'.encode()


class TestTheStandard:
    """Held against the published example, the reference implementation and the definitions."""

    # The example of the reference implementation's own tests, for message id, time, body and secret.
    SECRET = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    CONTENT = signed_content("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, b'{"test": 2432232314}')
    SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="

    def test_the_published_example_is_signed_so(self) -> None:
        assert sign_v1(base64.b64decode(self.SECRET), self.CONTENT) == self.SIGNATURE

    def test_the_reference_implementation_signs_the_same(self) -> None:
        secret = KEYS.secret("webhook-1", 1)
        at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
        ours = KEYS.sign("webhook-1", [1], "msg_1", int(at.timestamp()), BODY).split()[0]
        assert Webhook(secret).sign("msg_1", at, BODY.decode()) == ours

    def test_the_reference_implementation_takes_our_messages_and_no_others(self) -> None:
        now = int(time.time())
        headers = {
            "webhook-id": "msg_1",
            "webhook-timestamp": str(now),
            "webhook-signature": KEYS.sign("webhook-1", [2, 1], "msg_1", now, BODY),
        }
        for version in (1, 2):
            Webhook(KEYS.secret("webhook-1", version)).verify(BODY, headers)
        for secret in (KEYS.secret("webhook-1", 3), KEYS.secret("webhook-2", 1)):
            with pytest.raises(Exception, match="No matching signature"):
                Webhook(secret).verify(BODY, headers)
        with pytest.raises(Exception, match="No matching signature"):
            Webhook(KEYS.secret("webhook-1", 1)).verify(BODY + b" ", headers)

    def test_the_public_key_checks_the_other_signature(self) -> None:
        signatures = KEYS.sign("webhook-1", [1], "msg_1", 1_700_000_000, BODY).split()
        public = KEYS.public("webhook-1", 1)
        assert public.startswith("whpk_")
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(public.removeprefix("whpk_")))
        (v1a,) = [s.removeprefix("v1a,") for s in signatures if s.startswith("v1a,")]
        key.verify(base64.b64decode(v1a), signed_content("msg_1", 1_700_000_000, BODY))
        with pytest.raises(InvalidSignature):
            key.verify(base64.b64decode(v1a), signed_content("msg_2", 1_700_000_000, BODY))

    def test_ed25519_is_that_of_rfc_8032(self) -> None:
        # Section 7.1, test 2.
        seed = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
        signed = sign_v1a(Ed25519PrivateKey.from_private_bytes(seed), bytes.fromhex("72"))
        assert base64.b64decode(signed.removeprefix("v1a,")).hex() == (
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
            "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
        )


class TestDerivation:
    """One master key, a secret for each webhook and version, and nothing else."""

    def test_a_secret_is_the_same_each_time_and_another_for_each_webhook_version_and_purpose(self) -> None:
        again = WebhookKeys(bytes(range(KEY_BYTES)))
        assert KEYS.secret("w", 1) == again.secret("w", 1)
        secrets = {KEYS.secret(name, version) for name in ("w", "w1", "w-1") for version in (1, 11, 111)}
        assert len(secrets) == 9
        private = base64.b64decode(KEYS.secret("w", 1).removeprefix("whsec_"))
        derived = Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
        assert base64.b64encode(derived).decode() not in KEYS.public("w", 1)

    def test_it_is_hkdf_as_rfc_5869_has_it(self) -> None:
        info = b"soma webhook\0v1\0w\0001"
        extracted = hmac.digest(bytes(32), bytes(range(KEY_BYTES)), "sha256")
        expanded = hmac.digest(extracted, info + b"\x01", "sha256")
        assert KEYS.secret("w", 1) == "whsec_" + base64.b64encode(expanded).decode()

    def test_another_master_key_gives_other_secrets(self) -> None:
        assert WebhookKeys(bytes(KEY_BYTES)).secret("w", 1) != KEYS.secret("w", 1)


class TestFile:
    """The master key lies in a file only its owner reads."""

    def test_it_is_made_once_and_found_again(self, tmp_path: Path) -> None:
        path = tmp_path / "keys" / "webhooks.key"
        assert WebhookKeys.open(path).secret("w", 1) == WebhookKeys.open(path).secret("w", 1)
        assert path.stat().st_mode & 0o777 == 0o600

    @pytest.mark.parametrize(
        "content", [b"", b"x" * 32, b"soma-webhooks-v1:AAAA\n", b"soma-webhooks-v1:%%%%\n"]
    )
    def test_a_file_that_holds_no_such_key_is_refused(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "webhooks.key"
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(KeyFileError):
            WebhookKeys.open(path)
