"""What signs webhook messages: secrets derived from one master key, and signatures by the Standard Webhooks rules.

Nobody keeps a webhook's secret: it follows from the master key, the webhook's id and the number of its secret. Who has
the master key has all of them, so its file is guarded like the log's own key; without it no message can be signed.

Source: Standard Webhooks 1.0 (https://www.standardwebhooks.com); HKDF is RFC 5869.
"""

from __future__ import annotations

import base64
import hmac
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from domain.errors import KeyFileError
from ops.keys import read_or_make

KEY_BYTES = 32
SECRET_PREFIX = "whsec_"  # noqa: S105 - the name of the form, not a secret
PUBLIC_PREFIX = "whpk_"
_FILE_PREFIX = b"soma-webhooks-v1:"


class WebhookKeys:
    """Derives the secrets of webhooks from a master key."""

    def __init__(self, master: bytes) -> None:
        assert len(master) == KEY_BYTES, "a master key has 32 bytes"
        self._master = master
        self._derive = lru_cache(maxsize=4_096)(self._derived)

    @classmethod
    def open(cls, path: Path) -> WebhookKeys:
        """Open the master key, or make one where there is none.

        Errors: key_file_unusable.
        """
        fresh = _FILE_PREFIX + base64.b64encode(os.urandom(KEY_BYTES)) + b"\n"
        text = read_or_make(path, fresh).strip()
        try:
            if not text.startswith(_FILE_PREFIX):
                raise ValueError(text[:8])
            return cls(base64.b64decode(text.removeprefix(_FILE_PREFIX), validate=True))
        except (ValueError, AssertionError) as error:
            raise KeyFileError(f"{path} holds no master key of webhooks") from error

    def secret(self, webhook_id: str, version: int) -> str:
        """Print the secret a receiver checks `v1` signatures with."""
        return SECRET_PREFIX + _base64(self._derive(b"v1", webhook_id, version))

    def public(self, webhook_id: str, version: int) -> str:
        """Print the public key a receiver checks `v1a` signatures with."""
        return PUBLIC_PREFIX + _base64(self._private(webhook_id, version).public_key().public_bytes_raw())

    def sign(
        self, webhook_id: str, versions: Sequence[int], message_id: str, timestamp_s: int, body: bytes
    ) -> str:
        """Sign a message with each of these secrets, in both ways, as the header `webhook-signature` holds it."""
        content = signed_content(message_id, timestamp_s, body)
        signatures = [sign_v1(self._derive(b"v1", webhook_id, version), content) for version in versions]
        signatures += [sign_v1a(self._private(webhook_id, version), content) for version in versions]
        return " ".join(signatures)

    def _private(self, webhook_id: str, version: int) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self._derive(b"v1a", webhook_id, version))

    def _derived(self, purpose: bytes, webhook_id: str, version: int) -> bytes:
        # NUL cannot stand in an id, so no two of these read alike.
        info = b"\0".join([b"soma webhook", purpose, webhook_id.encode(), str(version).encode()])
        return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(self._master)


def signed_content(message_id: str, timestamp_s: int, body: bytes) -> bytes:
    """Give the bytes that are signed: id, time and body, with dots between."""
    return b"%b.%d.%b" % (message_id.encode(), timestamp_s, body)


def sign_v1(secret: bytes, content: bytes) -> str:
    """Sign with a shared secret: HMAC with SHA-256."""
    return "v1," + _base64(hmac.digest(secret, content, "sha256"))


def sign_v1a(private: Ed25519PrivateKey, content: bytes) -> str:
    """Sign with a private key: Ed25519."""
    return "v1a," + _base64(private.sign(content))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
