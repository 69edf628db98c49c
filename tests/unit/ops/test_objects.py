"""Objects are kept under the address they hash to, and are refused where they no longer do."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest

from domain.errors import AddressInvalidError, LogDamagedError, ObjectNotFoundError
from ops.objects import ObjectStore
from ops.settings import Settings


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore.open(Settings(data_dir=tmp_path))


def files(place: Path) -> list[Path]:
    """List the objects on disk."""
    return [path for path in place.rglob("*") if path.is_file()]


@pytest.mark.parametrize("data", [b"", b"x", b"\0" * 1_000_000, bytes(range(256))])
def test_what_was_put_is_got_under_its_hash(store, data):
    address = asyncio.run(store.put(data))
    assert address == "sha3-512:" + hashlib.sha3_512(data).hexdigest()
    assert asyncio.run(store.get(address)) == data


def test_putting_twice_keeps_one_object(store, tmp_path):
    async def scene() -> set[str]:
        return {await store.put(b"x"), *await asyncio.gather(*(store.put(b"x") for _ in range(10)))}

    assert len(asyncio.run(scene())) == 1
    assert len(files(tmp_path)) == 1


def test_another_opening_of_the_store_reads_what_was_put(store, tmp_path):
    address = asyncio.run(store.put(b"kept"))
    assert asyncio.run(ObjectStore.open(Settings(data_dir=tmp_path)).get(address)) == b"kept"


@pytest.mark.parametrize("damage", [b"", b"changes", b"change", b"Change!", b"change!!"])
def test_an_object_that_was_tampered_with_is_refused(store, tmp_path, damage):
    address = asyncio.run(store.put(b"change!"))
    (path,) = files(tmp_path)
    path.chmod(0o600)
    path.write_bytes(damage)
    with pytest.raises(LogDamagedError):
        asyncio.run(store.get(address))


def test_what_was_never_put_is_not_found(store):
    with pytest.raises(ObjectNotFoundError):
        asyncio.run(store.get("sha3-512:" + "ab" * 64))


@pytest.mark.parametrize("address", ["", "x", "ab" * 64, "sha3-512:../../etc", "sha3-512:" + "AB" * 64])
def test_what_is_no_address_is_refused(store, address):
    with pytest.raises(AddressInvalidError):
        asyncio.run(store.get(address))
