"""Private keys on disk: made once, readable by their owner only, never printed."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import mkstemp

from domain.errors import KeyFileError, KeyMalformedError
from domain.log.notes import Signer


def read_or_make(path: Path, make: bytes) -> bytes:
    """Read a key file, or write this content where there is none; of two racers one wins and both read the same.

    Errors: key_file_unusable.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            _write_once(path, make)
        if path.stat().st_mode & 0o077:
            raise KeyFileError(f"{path} can be read by others; chmod 600 it")
        return path.read_bytes()
    except OSError as error:
        raise KeyFileError(f"{path} cannot be used: {error.strerror}") from error


def write_new(path: Path, content: bytes) -> None:
    """Write a key file where there is none; one that is there stays as it is and is a refusal.

    Errors: key_file_unusable.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not _write_once(path, content):
            raise KeyFileError(f"{path} is there already; a key is never written over")
    except OSError as error:
        raise KeyFileError(f"{path} cannot be written: {error.strerror}") from error


def _write_once(path: Path, content: bytes) -> bool:
    """Write a file that is either there in full or not at all; one that is there already stays, which is False."""
    descriptor, draft = mkstemp(prefix=f".{path.name}.", dir=path.parent)  # made with mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
            fresh = True
        except FileExistsError:
            fresh = False
    finally:
        Path(draft).unlink()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return fresh


def log_signer(path: Path, origin: str) -> Signer:
    """Open the key that signs checkpoints of the log named origin.

    Errors: key_file_unusable.
    """
    fresh = Signer(origin, os.urandom(32)).secret_text()
    text = read_or_make(path, fresh.encode() + b"\n")
    try:
        signer = Signer.parse(text.decode().strip())
    except (KeyMalformedError, UnicodeDecodeError) as error:
        raise KeyFileError(f"{path} holds no key of a log") from error
    if signer.name != origin:
        raise KeyFileError(f"{path} belongs to the log {signer.name!r}, the settings name {origin!r}")
    return signer
