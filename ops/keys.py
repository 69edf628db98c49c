"""Private keys on disk: made once, readable by their owner only, never printed."""

from __future__ import annotations

import os
from pathlib import Path

from domain.errors import KeyFileError
from domain.log.notes import Signer


def read_or_make(path: Path, make: bytes) -> bytes:
    """Read a key file, or write this content where there is none; of two racers one wins and both read the same.

    Errors: key_file_unusable.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        if not path.exists():
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(make)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(draft, path)
            except FileExistsError:
                pass
            draft.unlink()
        if path.stat().st_mode & 0o077:
            raise KeyFileError(f"{path} can be read by others; chmod 600 it")
        return path.read_bytes()
    except OSError as error:
        raise KeyFileError(f"{path} cannot be used: {error.strerror}") from error


def log_signer(path: Path, origin: str) -> Signer:
    """Open the key that signs checkpoints of the log named origin.

    Errors: key_file_unusable, log_identity_mismatch.
    """
    fresh = Signer(origin, os.urandom(32)).secret_text()
    signer = Signer.parse(read_or_make(path, fresh.encode() + b"\n").decode().strip())
    if signer.name != origin:
        raise KeyFileError(f"{path} belongs to the log {signer.name!r}, the settings name {origin!r}")
    return signer
