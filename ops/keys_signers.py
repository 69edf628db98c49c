"""Key files of signers: PEM PKCS8, made once, readable by their owner only, with a passphrase where one is given.

Nothing else is read: a file of 32 raw bytes cannot be told from a damaged one, and is damaged by whoever trims it.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from domain.errors import KeyFileError
from domain.trust.keys import PrivateKey
from ops.keys import write_new

FILE_BYTES_MAX = 16_384


def make_signer(path: Path, passphrase: str | None = None) -> PrivateKey:
    """Make a key and write its file; a file that is there already is never written over.

    Errors: key_file_unusable.
    """
    private = Ed25519PrivateKey.generate()
    lock = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock)
    write_new(path, pem)
    return PrivateKey(private)


def open_signer(path: Path, passphrase: str | None = None) -> PrivateKey:
    """Open the key of a file.

    Errors: key_file_unusable.
    """
    try:
        if path.stat().st_mode & 0o077:
            raise KeyFileError(f"{path} can be read by others; chmod 600 it")
        with path.open("rb") as file:
            pem = file.read(FILE_BYTES_MAX)
        private = load_pem_private_key(pem, passphrase.encode() if passphrase else None)
    except OSError as error:
        raise KeyFileError(f"{path} cannot be used: {error.strerror}") from error
    except TypeError as error:
        raise KeyFileError(f"{path}: a passphrase is needed, or was given for a file without one") from error
    except ValueError as error:
        raise KeyFileError(f"{path} holds no private key in PEM, or its passphrase is another") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise KeyFileError(f"{path} holds a key of another kind than Ed25519")
    return PrivateKey(private)
