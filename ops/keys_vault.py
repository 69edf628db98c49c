"""The keys of the vault: each wraps the data keys of objects; the newest wraps what is written from now on.

They lie in one file, in several versions, so that a rotation wraps the small data keys anew and touches no object.
Who has the file can read every object; without it none can be read, so it is backed up apart from the objects.

Source: AES-256-GCM, NIST SP 800-38D; key wrapping by an AEAD as in NIST SP 800-38F, section 3.
"""

from __future__ import annotations

import base64
import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkstemp
from typing import Literal

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from domain.errors import EncryptionKeyError, KeyFileError, LogDamagedError
from ops.keys import read_or_make

KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
SCHEMA: Literal["soma/vault-keys/1"] = "soma/vault-keys/1"


class _File(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What the key file holds: base64 of 32 bytes by version, and the version that wraps."""

    schema: Literal["soma/vault-keys/1"]
    current: int
    keys: dict[str, str]


class ObjectKey:
    """The key of one object: it seals the object's frames, each under its number and whether it is the last."""

    def __init__(self, secret: bytes | None = None) -> None:
        self.secret = os.urandom(KEY_BYTES) if secret is None else secret
        self._cipher = AESGCM(self.secret)

    def seal(self, number: int, last: bool, frame: bytes) -> bytes:
        """Encrypt a frame; a number is used once."""
        return self._cipher.encrypt(_nonce(number, last), frame, None)

    def open(self, number: int, last: bool, sealed: bytes | memoryview) -> bytes:
        """Decrypt a frame that was sealed in this place.

        Errors: log_damaged.
        """
        try:
            return self._cipher.decrypt(_nonce(number, last), sealed, None)
        except InvalidTag as error:
            raise LogDamagedError("a stored object is not what was written", frame=number) from error


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(NONCE_BYTES - 1, "big") + bytes([last])


class VaultKeys:
    """The versions of the wrapping key. A file that another process has rotated is read again by itself."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_at: tuple[int, int] | None = None
        self._current = 0
        self._keys: dict[int, AESGCM] = {}
        self._refresh()

    @classmethod
    def open(cls, path: Path) -> VaultKeys:
        """Open the keys, or make the first where there is none.

        Errors: key_file_unusable.
        """
        read_or_make(path, _printed(1, {"1": _fresh()}))
        return cls(path)

    @property
    def current(self) -> int:
        """Name the version that wraps now."""
        self._refresh()
        return self._current

    @property
    def versions(self) -> list[int]:
        """List the versions there are, the oldest first."""
        self._refresh()
        return sorted(self._keys)

    def wrap(self, data_key: bytes, bound: bytes) -> tuple[int, bytes]:
        """Wrap a data key under the current version, together with what it is for; give the version and the wrap."""
        version = self.current
        nonce = os.urandom(NONCE_BYTES)
        return version, nonce + self._keys[version].encrypt(nonce, data_key, bound)

    def unwrap(self, version: int, wrapped: bytes, bound: bytes) -> bytes:
        """Give a data key back, if it was wrapped by this version and for this.

        Errors: encryption_key_missing, log_damaged.
        """
        if version not in self._keys:
            self._refresh()
        key = self._keys.get(version)
        if key is None:
            raise EncryptionKeyError(version=version, versions=sorted(self._keys))
        try:
            return key.decrypt(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], bound)
        except (InvalidTag, ValueError) as error:
            raise LogDamagedError("the key of a stored object does not open", version=version) from error

    def rotate(self) -> int:
        """Make a new version, which wraps from now on; give its number.

        Errors: key_file_unusable.
        """
        with self._locked() as found:
            version = max(map(int, found.keys)) + 1
            self._write(_printed(version, {**found.keys, str(version): _fresh()}))
        return version

    def retire(self, versions: Iterable[int]) -> None:
        """Forget versions for good; what they alone can open is lost. The current one stays.

        Errors: key_file_unusable.
        """
        gone = set(versions)
        with self._locked() as found:
            kept = {name: key for name, key in found.keys.items() if int(name) not in gone - {found.current}}
            self._write(_printed(found.current, kept))

    @contextmanager
    def _locked(self) -> Iterator[_File]:
        """Let one process at a time change the file."""
        with self._path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield _parsed(self._path)

    def _write(self, content: bytes) -> None:
        descriptor, draft = mkstemp(prefix=f".{self._path.name}.", dir=self._path.parent)  # mode 0600
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(draft).replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self._refresh()

    def _refresh(self) -> None:
        """Read the file if it is another than the one that was read."""
        try:
            stat = self._path.stat()
        except OSError as error:
            raise KeyFileError(f"{self._path} cannot be used: {error.strerror}") from error
        mark = (stat.st_ino, stat.st_mtime_ns)
        if mark == self._read_at:
            return
        found = _parsed(self._path)
        self._keys = {int(name): AESGCM(_key(key)) for name, key in found.keys.items()}
        self._current, self._read_at = found.current, mark


def _parsed(path: Path) -> _File:
    try:
        found = msgspec.json.decode(read_or_make(path, b""), type=_File)
        sound = str(found.current) in found.keys and all(
            len(_key(key)) == KEY_BYTES for key in found.keys.values()
        )
    except (msgspec.MsgspecError, ValueError) as error:
        raise KeyFileError(f"{path} holds no keys of a vault") from error
    if not sound:
        raise KeyFileError(f"{path} holds no keys of a vault")
    return found


def _printed(current: int, keys: dict[str, str]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(_File(SCHEMA, current, keys)), indent=2) + b"\n"


def _fresh() -> str:
    return base64.b64encode(os.urandom(KEY_BYTES)).decode()


def _key(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
