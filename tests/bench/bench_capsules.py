"""Measure export and import of a persona with 10,000 memories of 384 numbers, over HTTP, and the memory they take.

The service is a process of its own, as an operator runs it; the process that looks at a memory bundle first is counted
to its memory, the server of the database is not.
"""

from __future__ import annotations

import io
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha3_512, sha256
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil

from domain.ledger import Caller
from ops.settings import Settings
from ops.tokens import LocalIssuer
from tests.bench.figures import Figure, compared
from tests.real.persona.capsule_world import RIVAL, CapsuleWorld, ended, made, upload
from tests.unit.persona.capsule_maker import Capsule

ITEMS, DIMENSION = 10_000, 384
TURNS = 3
EXPORT_S_MAX = IMPORT_S_MAX = 10.0
MEMORY_MB_MAX = 300.0
LOOK_S = 0.02
_MB = 1_000_000


class Times(NamedTuple):
    """Seconds of each turn: ours, and those of the plain way."""

    ours: list[float]
    plain: list[float]


def plain_tar(capsule: Capsule, place: Path) -> None:
    """Hash the parts and pack them with the tar of Python's library, into a file that is kept through a power cut."""
    path = place / "plain.tar"
    with path.open("wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as packed:
        for name, data in {"manifest.json": capsule.manifest.sealed()[0], **capsule.data}.items():
            sha3_512(data).digest(), sha256(data).digest()
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            packed.addfile(entry, io.BytesIO(data))
        file.flush()
        os.fsync(file.fileno())


def plain_untar(archive: bytes, place: Path) -> None:
    """Unpack an archive with the tar of Python's library, hash each part and keep it through a power cut."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
        for number, entry in enumerate(packed):
            found = packed.extractfile(entry)
            assert found is not None
            data = found.read()
            sha3_512(data).digest(), sha256(data).digest()
            with (place / f"part-{number}").open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())


def seconds(act: Callable[[], Any]) -> float:
    """Measure one call."""
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def pss_bytes(pid: int) -> int:
    """Read how much memory a process holds, what it shares with others counted in shares."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(next(line for line in rollup.splitlines() if line.startswith("Pss:")).split()[1]) * 1_024


class Apart:
    """The service in a process of its own, as an operator runs it, and the memory it takes while something is done.

    Units: megabytes of resident memory, of the service and of whoever it starts, each shared page counted once; the
           database's server is not counted.
    """

    def __init__(self, settings: Settings) -> None:
        self._issuer = LocalIssuer(settings)
        environment = os.environ | {"SOMA_DATA_DIR": str(settings.data_dir), "SOMA_PORT": "0"}
        words = [sys.executable, "-m", "api.cli", "serve", "--embedded"]
        self._running = subprocess.Popen(
            words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._running.stdout is not None
        self._url = self._running.stdout.readline().strip()
        assert self._url.startswith("http://"), "the service did not start"
        self._peak_mb = 0.0
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._look)
        self._watch.start()

    def client(self, caller: Caller | None = None) -> httpx.Client:
        """Give a client that speaks for a caller."""
        assert caller is not None
        token = self._issuer.mint(caller.subject, caller.tenant, sorted(caller.roles), None)
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.Client(base_url=self._url, headers=headers, timeout=120, trust_env=False)

    def peak_mb(self) -> float:
        """Give the largest memory since this was asked last."""
        peak_mb, self._peak_mb = self._peak_mb, 0.0
        return peak_mb

    def close(self) -> None:
        """Stop the service."""
        self._ended.set()
        self._watch.join()
        self._running.terminate()
        self._running.wait(60)

    def _look(self) -> None:
        process = psutil.Process(self._running.pid)
        while not self._ended.wait(LOOK_S):
            with suppress(psutil.Error, OSError, StopIteration):
                ours = [p for p in (process, *process.children()) if p.name().startswith("python")]
                taken = sum(pss_bytes(p.pid) for p in ours) / _MB
                self._peak_mb = max(self._peak_mb, taken)


def figures(name: str, service: Apart, idle_mb: float, times: Times, most_s: float) -> list[Figure]:
    """Make the figures of one direction: its time, and the memory it took."""
    taken = compared(name, "s", statistics.median(times.ours), statistics.median(times.plain))
    memory = compared(f"{name}_peak", "MB", service.peak_mb(), idle_mb)
    return [taken._replace(value_at_most=most_s), memory._replace(value_at_most=MEMORY_MB_MAX)]


def capsules() -> list[Figure]:
    """Measure exports, then imports, each three times; exported again it is the same bytes."""
    with tempfile.TemporaryDirectory(prefix="soma-bench-") as directory:
        place = Path(directory)
        service = Apart(Settings(data_dir=place / "data", database_url=None, object_store_url=None))
        try:
            world = CapsuleWorld(service)
            world.found()
            capsule = world.capsule(items=ITEMS, dimension=DIMENSION)
            idle_mb = service.peak_mb()
            world.prepare(capsule)
            found = figures("persona.export", service, idle_mb, _exports(world, capsule, place), EXPORT_S_MAX)
            return found + figures("persona.import", service, idle_mb, _imports(world, place), IMPORT_S_MAX)
        finally:
            service.close()


def _exports(world: CapsuleWorld, capsule: Capsule, place: Path) -> Times:
    ours, plain, archives = [], [], set()

    def export() -> None:
        sealed = world.export(capsule)
        assert sealed["status"] == "completed", sealed
        archives.add(sealed["archive"])

    for _ in range(TURNS):
        plain.append(seconds(lambda: plain_tar(capsule, place)))
        ours.append(seconds(export))
    assert len(archives) == 1, "exported again it is the same"
    return Times(ours, plain)


def _imports(world: CapsuleWorld, place: Path) -> Times:
    ours, plain = [], []
    for turn in range(TURNS):
        foreign = world.capsule(f"expert-{turn}", items=ITEMS, dimension=DIMENSION, seed=turn + 100)
        archive, attestations = foreign.archive(), world.attestations(foreign.address)
        plain.append(seconds(lambda archive=archive: plain_untar(archive, place)))
        with world.client(RIVAL) as client:
            body = {"archive": upload(client, None, archive), "attestations": attestations}

            def import_(client: Any = client, body: Any = body) -> None:
                taken = ended(client, f"/v1/imports/{made(client, '/v1/imports', body, 202)['id']}")
                assert taken["status"] == "completed", taken

            ours.append(seconds(import_))
    return Times(ours, plain)


FIGURES = {"persona.export": capsules}
