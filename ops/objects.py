"""The object store: bytes under the address they hash to. A directory by default, S3 and its like by URL."""

from __future__ import annotations

from contextlib import suppress
from hashlib import sha3_512
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, NotFoundError
from obstore.store import LocalStore, from_url

from domain.errors import LogDamagedError, ObjectNotFoundError
from domain.log.records import ADDRESS_PREFIX, parse_address
from ops.settings import Settings


class ObjectStore:
    """Content-addressed objects: a name is the SHA3-512 of the bytes, so an object never changes."""

    def __init__(self, store: Any) -> None:
        self._store = store

    @classmethod
    def open(cls, settings: Settings) -> ObjectStore:
        """Open the store the settings name."""
        return cls(open_store(settings))

    async def put(self, data: bytes) -> str:
        """Keep bytes; give their address. Keeping the same bytes again changes nothing."""
        name = sha3_512(data).hexdigest()
        with suppress(AlreadyExistsError):
            await obstore.put_async(self._store, _path(name), data, mode="create")
        return ADDRESS_PREFIX + name

    async def get(self, address: str) -> bytes:
        """Read bytes back, and refuse them if they do not hash to their name.

        Errors: invalid_address, log_damaged, object_not_found.
        """
        name = parse_address(address).hex()
        try:
            found = await obstore.get_async(self._store, _path(name))
        except (NotFoundError, FileNotFoundError) as error:
            raise ObjectNotFoundError(address=address) from error
        data = bytes(await found.bytes_async())
        if sha3_512(data).hexdigest() != name:
            raise LogDamagedError("a stored object does not hash to its address", address=address)
        return data


def open_store(settings: Settings) -> Any:
    """Open what the settings name: a directory, or S3 and its like by URL."""
    if settings.object_store_url is not None:
        return from_url(settings.object_store_url)
    path = Path(settings.objects_path).resolve()
    path.mkdir(parents=True, exist_ok=True)
    return LocalStore(path)


def _path(name: str) -> str:
    return f"{name[:2]}/{name[2:4]}/{name}"
