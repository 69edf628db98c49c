"""The vault: objects of any size under the SHA3-512 of their bytes, streamed in and out, encrypted where they lie.

    capsules/objects/ab/cd/<hex>                     envelope: how large, which body, under which key
    capsules/uploads/<tenant>/<hex>/<offset>-<size>  envelope of one piece of an upload that is under way
    capsules/bodies/<random>                         the bytes, in encrypted frames

A body is written first and its envelope last, and an envelope is made once or not at all: an object is there in full
or it is not there. Two that write the same object at once write two bodies; one envelope names one of them, the other
is removed, or left to `sweep`. A rotation of keys writes envelopes anew and touches no body.

A body has a key of its own, wrapped in its envelope. It is a row of frames of 1 MiB, each sealed by AES-256-GCM under a
nonce of the frame's number and a flag on the last one, so frames can be neither moved, nor left out, nor cut off; what
the envelope says is sealed together with the key. Where encryption is off the frames are plain, and the address alone
tells whether they are whole.

Source: STREAM of Hoang, Reyhanitabar, Rogaway and Vizar 2015, in the form of age-encryption.org/v1, "Payload".
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from hashlib import sha3_512
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import msgspec
import obstore
from obstore.exceptions import AlreadyExistsError, NotFoundError
from obstore.exceptions import BaseError as StoreError

from domain.errors import (
    ArtifactMismatchError,
    EncryptionKeyError,
    LogDamagedError,
    ObjectNotFoundError,
    UnavailableError,
)
from domain.log.records import ADDRESS_PREFIX, parse_address
from ops.keys_vault import TAG_BYTES, ObjectKey, VaultKeys
from ops.objects import open_store
from ops.settings import Settings

FRAME_BYTES = 1 << 20
# What is asked of the store at once, when reading; what is collected before it is sent, when writing.
READ_FRAMES = 4
WRITE_BYTES = 5 << 20
WRITES_AT_ONCE = 2
ROOM = "capsules"


class Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the vault knows of one object.

    Units: size_bytes and frame_bytes before encryption; key is a version of the vault's keys.
    """

    schema: Literal["soma/vault-envelope/1"]
    body: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
    size_bytes: Annotated[int, msgspec.Meta(ge=0)]
    frame_bytes: Annotated[int, msgspec.Meta(ge=1)]
    cipher: Literal["aes-256-gcm", "none"]
    key: int | None = None
    wrapped: str | None = None

    def bound(self, name: str) -> bytes:
        """Give what the wrap of the key is bound to: everything said here, and where it is said."""
        facts = [self.schema, name, self.body, self.size_bytes, self.frame_bytes, self.cipher]
        return b"soma/vault/v1\0" + msgspec.json.encode(facts)


class Kept(NamedTuple):
    """An object that is in the vault now."""

    address: str
    size_bytes: int


class Stats(NamedTuple):
    """What a walk through the vault came to."""

    objects: int
    changed: int


class Vault:
    """Content-addressed objects, streamed. Its calls block: the service makes them in threads."""

    def __init__(
        self, store: Any, keys: VaultKeys | None, *, encrypting: bool, folder: Path | None = None
    ) -> None:
        self._store = store
        self.keys = keys
        self._encrypting = encrypting
        self._folder = folder

    @classmethod
    def open(cls, settings: Settings) -> Vault:
        """Open the vault the settings name; its keys are made the first time they are needed.

        Errors: key_file_unusable.
        """
        encrypting, path = settings.vault_encryption, settings.vault_key_path
        keys = VaultKeys.open(path) if encrypting or path.exists() else None
        folder = None if settings.object_store_url else settings.objects_path.resolve()
        return cls(open_store(settings), keys, encrypting=encrypting, folder=folder)

    # ------------------------------------------------------------------ objects

    def put(self, chunks: Iterable[bytes], expected: str | None = None) -> Kept:
        """Keep bytes under what they hash to; where an address is expected, nothing else is kept.

        Cost:   one pass, some 20 MB of memory whatever the size; keeping the same again changes nothing.
        Errors: artifact_mismatch, invalid_address.
        """
        with self.writing(expected) as body:
            for chunk in chunks:
                body.write(chunk)
            return body.keep()

    def writing(self, expected: str | None = None) -> Writing:
        """Begin to write an object in portions.

        Errors: invalid_address.
        """
        if expected is not None:
            parse_address(expected)
        return Writing(self, expected)

    def has(self, address: str) -> bool:
        """Tell whether an object is there.

        Errors: invalid_address.
        """
        with suppress(ObjectNotFoundError):
            self._envelope(_name(address))
            return True
        return False

    def size_bytes(self, address: str) -> int:
        """Tell how large an object is.

        Errors: invalid_address, object_not_found.
        """
        return self._envelope(_name(address)).size_bytes

    def read(self, address: str, start: int = 0) -> Iterator[bytes]:
        """Read an object from a byte on, in portions of a frame; it is looked up at once, not at the first portion.

        It is held against its address, and its last portion is given once that is done. Read from further on, the
        frames of an encrypted object are authentic one by one; a plain one is read from its beginning all the same,
        for whoever writes to the store could put a plain object in the place of an encrypted one.

        Errors: encryption_key_missing, invalid_address, log_damaged, object_not_found.
        """
        name = _name(address)
        envelope = self._envelope(name)
        if start and envelope.cipher != "none":
            frames = self._frames(name, envelope, start // envelope.frame_bytes)
            return _from(frames, start % envelope.frame_bytes)
        return _from(_checked(self._frames(name, envelope, 0), address), start)

    # ------------------------------------------------------------------ uploads

    def put_piece(self, tenant: str, address: str, offset: int, data: bytes) -> bool:
        """Keep one piece of an upload; False where one that begins there is kept already.

        Errors: invalid_address.
        """
        with Writing(self, None) as body:
            body.write(data)
            return body.keep_as(_piece(tenant, address, offset, len(data)))

    def pieces(self, tenant: str, address: str) -> list[tuple[int, int]]:
        """List the pieces of an upload that follow each other from byte 0 on: offset and size of each.

        Cost:   one listing; the names say it.
        Errors: invalid_address.
        """
        found = []
        end = 0
        for path in sorted(self._list(_upload(tenant, address))):
            offset, _, size = path.rpartition("/")[2].partition("-")
            if int(offset) == end:
                found.append((end, int(size)))
                end += int(size)
        return found

    def read_pieces(self, tenant: str, address: str) -> Iterator[bytes]:
        """Read what was uploaded so far."""
        for offset, size in self.pieces(tenant, address):
            name = _piece(tenant, address, offset, size)
            yield from self._frames(name, self._envelope(name), 0)

    def drop_pieces(self, tenant: str, address: str) -> None:
        """Forget an upload: it is done, or was of other bytes."""
        for path in self._list(_upload(tenant, address)):
            self._drop(path)

    # ------------------------------------------------------------------ keys, and what is left over

    def rewrap(self) -> Stats:
        """Wrap every data key under the current version of the vault's keys; no body is touched.

        Errors: encryption_key_missing, log_damaged.
        """
        assert self.keys is not None, "nothing is wrapped where there are no keys"
        current = self.keys.current
        count = changed = 0
        for name in self.names():
            with suppress(ObjectNotFoundError):  # an upload that was finished meanwhile
                envelope = self._envelope(name)
                count += 1
                if envelope.key not in (None, current):
                    self._put_envelope(
                        name, self._wrapped(name, envelope, self._data_key(name, envelope)), "overwrite"
                    )
                    changed += 1
        return Stats(count, changed)

    def keys_in_use(self) -> set[int]:
        """List the versions of keys that some envelope still needs."""
        found = set()
        for name in self.names():
            with suppress(ObjectNotFoundError):
                key = self._envelope(name).key
                if key is not None:
                    found.add(key)
        return found

    def sweep(self, older_than: timedelta) -> Stats:
        """Remove what crashes and given-up uploads left: old pieces, and old bodies no envelope names.

        Cost: reads every envelope.
        """
        before = datetime.now(UTC) - older_than
        removed = 0
        for path in list(self._list(f"{ROOM}/uploads", before)):
            self._drop(path)
            removed += 1
        # Listed before the envelopes are read: a body that is written meanwhile is young.
        old = list(self._list(f"{ROOM}/bodies", before))
        named = set()
        for name in self.names():
            with suppress(ObjectNotFoundError):
                named.add(_body(self._envelope(name)))
        for path in set(old) - named:
            self._delete(path)
            removed += 1
        return Stats(len(named), removed)

    def names(self) -> Iterator[str]:
        """List every envelope by its path."""
        yield from self._list(f"{ROOM}/objects")
        yield from self._list(f"{ROOM}/uploads")

    # ------------------------------------------------------------------ inside

    def _list(self, prefix: str, before: datetime | None = None) -> Iterator[str]:
        with _answering():
            for page in obstore.list(self._store, prefix=prefix):
                for found in page:
                    if before is None or found["last_modified"] < before:
                        yield str(found["path"])

    def _envelope(self, name: str) -> Envelope:
        try:
            with _answering():
                data = bytes(obstore.get(self._store, name).bytes())
        except FileNotFoundError as error:
            raise ObjectNotFoundError(address=ADDRESS_PREFIX + name.rpartition("/")[2]) from error
        try:
            return msgspec.json.decode(data, type=Envelope)
        except msgspec.MsgspecError as error:
            raise LogDamagedError("an envelope of the vault cannot be read", name=name) from error

    def _is_whole(self, name: str) -> bool:
        """Say whether an envelope can be read and its body has the size it says; the bytes are not looked at."""
        try:
            envelope = self._envelope(name)
            with _answering():
                found = obstore.head(self._store, _body(envelope))["size"]
        except (LogDamagedError, ObjectNotFoundError, FileNotFoundError):
            return False
        return found == _stored_bytes(envelope)

    def _put_envelope(self, name: str, envelope: Envelope, mode: Literal["create", "overwrite"]) -> None:
        with _answering():
            obstore.put(self._store, name, msgspec.json.encode(envelope), mode=mode)
        self._settle(name)

    def _settle(self, path: str) -> None:
        """Have a directory keep a file through a power cut, as other stores do by themselves."""
        if self._folder is None:
            return
        file = self._folder / path
        for place in (file, *file.relative_to(self._folder).parents):
            descriptor = os.open(self._folder / place, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _wrapped(self, name: str, envelope: Envelope, data_key: ObjectKey | None) -> Envelope:
        if data_key is None:
            return envelope
        assert self.keys is not None
        key, wrapped = self.keys.wrap(data_key.secret, envelope.bound(name))
        return msgspec.structs.replace(envelope, key=key, wrapped=base64.b64encode(wrapped).decode())

    def _data_key(self, name: str, envelope: Envelope) -> ObjectKey | None:
        if envelope.cipher == "none":
            return None
        if envelope.key is None or envelope.wrapped is None:
            raise LogDamagedError("an envelope of the vault holds no key", name=name)
        if self.keys is None:
            raise EncryptionKeyError(version=envelope.key, versions=[])
        wrapped = base64.b64decode(envelope.wrapped)
        return ObjectKey(self.keys.unwrap(envelope.key, wrapped, envelope.bound(name)))

    def _frames(self, name: str, envelope: Envelope, first: int) -> Iterator[bytes]:
        """Open a body; its frames are read from a number on. An empty body is one empty frame."""
        return self._read_frames(envelope, self._data_key(name, envelope), first)

    def _read_frames(self, envelope: Envelope, data_key: ObjectKey | None, first: int) -> Iterator[bytes]:
        frame_bytes = envelope.frame_bytes + (TAG_BYTES if data_key else 0)
        count = max(1, -(-envelope.size_bytes // envelope.frame_bytes))
        whole = _stored_bytes(envelope)
        for number in range(first, count, READ_FRAMES):
            start, end = number * frame_bytes, min(whole, (number + READ_FRAMES) * frame_bytes)
            block = memoryview(self._range(_body(envelope), start, end))
            for at in range(max(1, -(-len(block) // frame_bytes))):
                frame, last = block[at * frame_bytes : (at + 1) * frame_bytes], number + at == count - 1
                yield data_key.open(number + at, last, frame) if data_key else bytes(frame)

    def _range(self, path: str, start: int, end: int) -> bytes:
        if start == end:
            return b""
        try:
            with _answering():
                found = bytes(obstore.get_range(self._store, path, start=start, end=end))
        except FileNotFoundError as error:
            raise LogDamagedError("the body of a stored object is gone", body=path) from error
        if len(found) != end - start:
            raise LogDamagedError("a stored object was cut short", body=path)
        return found

    def _drop(self, name: str) -> None:
        """Remove an envelope, then the body it names."""
        with suppress(ObjectNotFoundError):
            body = _body(self._envelope(name))
            self._delete(name)
            self._delete(body)

    def _delete(self, path: str) -> None:
        with suppress(FileNotFoundError), _answering():
            obstore.delete(self._store, path)


class Writing:
    """One object on its way into the vault; left without `keep`, nothing of it stays."""

    def __init__(self, vault: Vault, expected: str | None) -> None:
        self._vault = vault
        self._expected = expected
        self._id = os.urandom(16).hex()
        self._path = f"{ROOM}/bodies/{self._id}"
        self._key = ObjectKey() if vault._encrypting else None
        self._hash = sha3_512()
        self._waiting = bytearray()
        self._frame = 0
        self._size = 0
        self._file = obstore.open_writer(
            vault._store, self._path, buffer_size=WRITE_BYTES, max_concurrency=WRITES_AT_ONCE
        )
        self._open = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.drop()

    def write(self, data: bytes) -> None:
        """Take in a portion of any size."""
        self._hash.update(data)
        self._size += len(data)
        self._waiting += data
        # One frame stays behind: which is the last is known at the end only.
        while len(self._waiting) > FRAME_BYTES:
            self._seal(bytes(self._waiting[:FRAME_BYTES]), last=False)
            del self._waiting[:FRAME_BYTES]

    def keep(self) -> Kept:
        """Finish the object; from here on it is there.

        Errors: artifact_mismatch.
        """
        address = ADDRESS_PREFIX + self._hash.hexdigest()
        if self._expected not in (None, address):
            raise ArtifactMismatchError(expected=self._expected, found=address)
        self.keep_as(_name(address))
        return Kept(address, self._size)

    def keep_as(self, name: str) -> bool:
        """Finish the object under a name; False where there is one already, which stays as it is."""
        self._seal(bytes(self._waiting), last=True)
        with _answering():
            self._file.close()
        self._open = False
        self._vault._settle(self._path)
        # State 1: the body is there in full, and nothing names it.
        cipher: Literal["aes-256-gcm", "none"] = "aes-256-gcm" if self._key else "none"
        plain = Envelope("soma/vault-envelope/1", self._id, self._size, FRAME_BYTES, cipher)
        envelope = self._vault._wrapped(name, plain, self._key)
        try:
            self._vault._put_envelope(name, envelope, "create")
        except FileExistsError:
            if self._vault._is_whole(name):
                self._vault._delete(self._path)
                return False
            # What is there cannot be read; these are its bytes, so they mend it.
            self._vault._put_envelope(name, envelope, "overwrite")
        # State 2: the object is there.
        return True

    def drop(self) -> None:
        """Give up what was not finished."""
        if self._open:
            self._open = False
            gone = InterruptedError("given up")
            with suppress(Exception):
                # Told of an error, the writer takes back what it has sent.
                self._file.__exit__(type(gone), gone, None)

    def _seal(self, frame: bytes, *, last: bool) -> None:
        with _answering():
            self._file.write(self._key.seal(self._frame, last, frame) if self._key else frame)
        self._frame += 1


@contextmanager
def _answering() -> Iterator[None]:
    """Tell an outage of the store from what it says of one object.

    Errors: unavailable.
    """
    try:
        yield
    except NotFoundError as error:
        raise FileNotFoundError from error
    except AlreadyExistsError as error:
        raise FileExistsError from error
    except (FileNotFoundError, FileExistsError):
        raise
    except (StoreError, OSError) as error:
        raise UnavailableError("the object store does not answer", internal=str(error)) from error


def _from(frames: Iterator[bytes], skipped: int) -> Iterator[bytes]:
    for frame in frames:
        if skipped < len(frame) or not frame:
            yield frame[skipped:]
        skipped = max(0, skipped - len(frame))


def _checked(frames: Iterator[bytes], address: str) -> Iterator[bytes]:
    """Give frames one behind, so that the last is given only if all of them hash to their address."""
    hashed = sha3_512()
    held: bytes | None = None
    for frame in frames:
        if held is not None:
            yield held
        hashed.update(frame)
        held = frame
    if ADDRESS_PREFIX + hashed.hexdigest() != address:
        raise LogDamagedError("a stored object does not hash to its address", address=address)
    if held is not None:
        yield held


def _name(address: str) -> str:
    hexed = parse_address(address).hex()
    return f"{ROOM}/objects/{hexed[:2]}/{hexed[2:4]}/{hexed}"


def _upload(tenant: str, address: str) -> str:
    return f"{ROOM}/uploads/{tenant}/{parse_address(address).hex()}"


def _piece(tenant: str, address: str, offset: int, size_bytes: int) -> str:
    return f"{_upload(tenant, address)}/{offset:016d}-{size_bytes}"


def _stored_bytes(envelope: Envelope) -> int:
    count = max(1, -(-envelope.size_bytes // envelope.frame_bytes))
    return envelope.size_bytes + (0 if envelope.cipher == "none" else TAG_BYTES * count)


def _body(envelope: Envelope) -> str:
    return f"{ROOM}/bodies/{envelope.body}"
