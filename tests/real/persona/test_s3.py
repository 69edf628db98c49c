"""The vault on a real S3 server, and everything that server was asked for held against the log."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from hashlib import sha3_512
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgspec
import obstore
import pytest

from domain.errors import ArtifactMismatchError, LogDamagedError, ObjectNotFoundError, UnavailableError
from domain.persona.imports import CapsuleImport
from ops.keys_vault import VaultKeys
from ops.reads import RecordFilter
from ops.vault import FRAME_BYTES, Vault
from tests.real.persona.capsule_world import OLIVIA, RIVAL, CapsuleWorld, upload
from tests.real.persona.s3_server import Access, S3Server, s3_server
from tests.real.service import Service, serving, settings_on
from tests.unit.persona.capsule_maker import address_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def vault(s3: S3Server, tmp_path: Path) -> Vault:
    return Vault(s3.store(), VaultKeys.open(tmp_path / "vault.json"), encrypting=True)


def listed(s3: S3Server, prefix: str) -> set[str]:
    """List what lies in the bucket."""
    return {found["path"] for page in obstore.list(s3.store(), prefix=prefix) for found in page}


class TestTheVaultOnS3:
    @pytest.mark.parametrize(
        "size", [0, 1, FRAME_BYTES, 25 * FRAME_BYTES + 3], ids=["nothing", "byte", "frame", "multipart"]
    )
    def test_what_goes_in_comes_out(self, vault: Vault, size: int) -> None:
        data = os.urandom(size)
        kept = vault.put([data])
        assert b"".join(vault.read(kept.address)) == data
        assert b"".join(vault.read(kept.address, size // 2)) == data[size // 2 :]

    def test_writers_at_once_keep_one_object(self, vault: Vault, s3: S3Server) -> None:
        before = listed(s3, "capsules/bodies")
        data = os.urandom(2 * FRAME_BYTES)
        writers = [threading.Thread(target=vault.put, args=([data],)) for _ in range(6)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert len(listed(s3, "capsules/bodies") - before) == 1
        assert b"".join(vault.read("sha3-512:" + sha3_512(data).hexdigest())) == data

    def test_a_refused_object_leaves_nothing_and_no_upload_open(self, vault: Vault, s3: S3Server) -> None:
        before = listed(s3, "capsules")
        with pytest.raises(ArtifactMismatchError):
            vault.put([os.urandom(30 * FRAME_BYTES)], address_of(b"another"))
        assert listed(s3, "capsules") == before
        begun = [a for a in s3.accesses() if a.act == "CreateMultipartUpload"]
        ended = [a for a in s3.accesses() if a.act in ("CompleteMultipartUpload", "AbortMultipartUpload")]
        assert Counter(a.key for a in begun) == Counter(a.key for a in ended)

    def test_damage_and_absence_are_told(self, vault: Vault, s3: S3Server) -> None:
        with pytest.raises(ObjectNotFoundError):
            vault.read(address_of(b"never kept"))
        before = listed(s3, "capsules/bodies")
        kept = vault.put([os.urandom(6)])
        body = (listed(s3, "capsules/bodies") - before).pop()
        obstore.put(s3.store(), body, b"x" * 22)
        with pytest.raises(LogDamagedError):
            list(vault.read(kept.address))

    def test_keys_rotate_and_what_is_left_over_is_swept(self, vault: Vault, s3: S3Server) -> None:
        own = Vault(s3.store(), vault.keys, encrypting=True)
        for path in listed(s3, "capsules"):
            obstore.delete(s3.store(), path)
        kept = own.put([b"a text"])
        own.put_piece("acme", kept.address, 0, b"a te")
        assert own.keys is not None
        own.keys.rotate()
        assert own.rewrap() == (2, 2)
        own.keys.retire([1])
        assert own.sweep(timedelta(seconds=-60)) == (1, 1)
        assert b"".join(own.read(kept.address)) == b"a text"

    def test_a_store_that_does_not_answer_is_an_outage(self, tmp_path: Path) -> None:
        from obstore.store import S3Store

        gone = S3Store(
            "soma",
            endpoint="http://127.0.0.1:9",
            access_key_id="a",
            secret_access_key="b",
            region="us-east-1",
            client_options={"allow_http": True},
            retry_config={"max_retries": 0},
        )
        vault = Vault(gone, VaultKeys.open(tmp_path / "vault.json"), encrypting=True)
        with pytest.raises(UnavailableError):
            vault.has(address_of(b"a"))
        with pytest.raises(UnavailableError):
            vault.put([b"a"])


# --------------------------------------------------------------------------- the store's access equals the log


class Told(NamedTuple):
    """What the log says was written to the store and read from it, by address."""

    written: Counter[str]
    read: set[str]
    sent: Counter[str]


def logged(service: Service) -> list[dict[str, Any]]:
    """Read every record."""
    reader = service.runtime.reader
    size = service.run(reader.size())
    return [msgspec.json.decode(row.record) for row in service.run(reader.span(0, size))]


def told(records: list[dict[str, Any]]) -> Told:
    """Sum up what the log says about the store."""
    written: Counter[str] = Counter()
    read: set[str] = set()
    sent: Counter[str] = Counter()
    for record in records:
        data = record["data"]
        match record["type"]:
            case "artifact.uploaded" | "artifact.received":
                written[data["address"]] = 1
            case "export.requested":
                read |= {part["digest"] for part in data["manifest"]["artifacts"]}
            case "export.completed":
                written[data["archive"]] = 1
            case "download.granted":
                sent[data["archive"]] += 1
            case "import.requested":
                read.add(data["archive"])
            case "capsule.imported":
                read |= {part["digest"] for part in data["manifest"]["artifacts"]}
    return Told(written, read | set(sent), sent)


def named(accesses: list[Access], *acts: str) -> Counter[str]:
    """Count the objects that were asked for with success, by address."""
    room = "/capsules/objects/"
    return Counter(
        "sha3-512:" + a.key.rpartition("/")[2]
        for a in accesses
        if a.act in acts and a.status < 300 and room in "/" + a.key
    )


def test_everything_the_store_was_asked_for_is_in_the_log(
    s3: S3Server, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    settings = settings_on(database_url, tmp_path, object_store_url="s3://soma/ledger")
    before = len(s3.accesses())
    with serving(settings) as service:
        world = CapsuleWorld(service)
        world.found()
        _trade(world)
        records = logged(service)
        size = service.run(service.runtime.reader.count(RecordFilter(CapsuleImport.KIND)))
    assert not list((tmp_path / "objects").glob("**/*")), "a service with a store keeps nothing beside it"
    accesses = [a for a in s3.accesses()[before:] if a.key.startswith("ledger/")]
    said = told(records)
    # What was written is what the log names, each once, and nothing else.
    assert named(accesses, "PutObject") == said.written
    # What was read is what an export, an import or a download in the log had to read, and nothing else.
    assert set(named(accesses, "GetObject")) == said.read
    # Archives of capsules left as often as the log says they were sent; one packed again looks at what is there.
    packed = Counter(r["data"]["archive"] for r in records if r["type"] == "export.completed")
    reads = named(accesses, "GetObject")
    assert {a: reads[a] for a in packed} == {a: said.sent[a] + packed[a] - 1 for a in packed}
    # Every attempt has its event, and its end.
    types = Counter(record["type"] for record in records)
    assert types["export.requested"] == types["export.completed"] + types["export.failed"]
    assert (types["export.refused"], types["export.failed"]) == (1, 1)
    assert types["import.requested"] + 1 == types["import.accepted"] + types["import.refused"] == size
    assert (types["import.accepted"], types["download.granted"], types["download.refused"]) == (1, 3, 1)


def _trade(world: CapsuleWorld) -> None:
    """Export, download and import, with success and without."""
    first, second = world.capsule(), world.capsule("small-talker", seed=5)
    for capsule in (first, second):
        world.prepare(capsule)
        assert world.export(capsule)["status"] == "completed"
    assert world.export(first)["status"] == "completed"
    blank = world.capsule(
        "blank-mind", parts={"memory.parquet": ("memory", "application/vnd.apache.parquet", b"x")}
    )
    world.prepare(blank)
    assert world.export(blank)["status"] == "failed"
    with world.client(OLIVIA) as client:
        refused = client.post("/v1/exports", json=world.asked(world.capsule(version="9.0.0", seed=9)))
        assert refused.status_code == 404
        for capsule, times in ((first, 1), (second, 2)):
            for _ in range(times):
                assert client.get(f"/v1/capsules/{capsule.address}/archive").content == capsule.archive()
    with world.client(RIVAL) as client:
        assert client.get(f"/v1/capsules/{first.address}/archive").status_code == 404
        body = {"archive": address_of(b"absent"), "attestations": world.attestations(first.address)}
        assert client.post("/v1/imports", json=body).status_code == 404
        upload(client, None, b"an artifact that nobody imports")
    foreign = world.capsule("foreign-expert", seed=6)
    archive = foreign.archive()
    unsigned = world.import_(archive, world.attestations(foreign.address, ["ada"]))
    assert unsigned["status"] == "refused"
    changed = archive[:2_000] + bytes([archive[2_000] ^ 1]) + archive[2_001:]
    assert world.import_(changed, world.attestations(foreign.address))["status"] == "refused"
    taken = world.import_(archive, world.attestations(foreign.address))
    assert taken["status"] == "completed", taken


def test_a_stopped_store_is_an_outage_to_callers_and_not_the_end(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server(tmp_path / "s3") as gone:
        environment = gone.environment
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = settings_on(database_url, tmp_path, object_store_url="s3://soma/ledger")
    with serving(settings) as service, service.client(OLIVIA) as client:
        client.timeout = httpx.Timeout(300)
        assert client.head(f"/v1/artifacts/{address_of(b'a')}").status_code == 503
        refused = client.put(f"/v1/artifacts/{address_of(b'a')}", content=b"a")
        assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
