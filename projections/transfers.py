"""The workers of exports and imports: they follow what was asked for, and deliver what came of it as commands.

They keep nothing of their own. What a crash interrupts is found by its status at the next start and done again from the
beginning; since an archive is a function of its manifest, the second is the first byte for byte.

    an export                                        an import
    1  asked for                                     1  asked for
    2  its memory was read and is sound              2  its archive was verified to the last byte
    3  the archive is written, under no name         3  signatures, constitution and policy allow it
    4  the archive is in the vault                   4  its parts are in the vault
    5  the log says so                               5  the log says so

Until state 5 the log knows of an attempt and of no capsule. Parts and archives are named by what they hash to, so what
a crash leaves in the vault is what the next try finds there. `observe` is told each state; crash tests use it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import msgspec

from domain.errors import CapsuleTamperedError, LedgerError, LogDamagedError, ObjectNotFoundError
from domain.ledger import Answer, Caller, UseCase
from domain.log.records import Aggregate
from domain.persona.archive import ArchiveLimits, archive_bytes, read_archive, write_archive
from domain.persona.attempts import KeptRefusal, problem_of, told
from domain.persona.imports import (
    AcceptImport,
    CapsuleImport,
    RefuseImport,
    accept_import,
    check_import,
    refuse_import,
)
from domain.persona.manifest import PartRef, PersonaManifest, parse_manifest
from domain.persona.tokens import TokenCounter, TokenEstimate
from domain.persona.transfers import CapsuleExport, CompleteExport, FailExport, complete_export, fail_export
from ops import telemetry
from ops.bundles import inspect_bundle
from ops.judging import Engine, act_judged
from ops.runtime import Runtime
from ops.vault import Kept, Vault

log = telemetry.logger(__name__)

WORKER = Caller("transfer-worker", "platform", frozenset({"service"}))
PROMPT_BYTES_MAX = 8 << 20
RETRY_S = (0.5, 2.0, 10.0, 60.0)

Kind = Literal["export", "import"]
Observe = Callable[[Kind, int], None]


class Progress(msgspec.Struct):
    """How far a transfer of this process is.

    Units: bytes of the archive; state as numbered above.
    """

    state: int = 1
    bytes_done: int = 0
    bytes_total: int | None = None

    def count(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Pass bytes on and count them."""
        self.bytes_done = 0
        for chunk in chunks:
            yield chunk
            self.bytes_done += len(chunk)


class TransferRunner:
    """Carries exports and imports out in the background, one after the other, so that memory stays bounded."""

    def __init__(self, runtime: Runtime, engine: Engine, observe: Observe | None = None) -> None:
        self._runtime = runtime
        self._engine = engine
        self._observe = observe
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._progress: dict[str, Progress] = {}
        self._one_at_a_time = asyncio.Semaphore(1)

    def start(self, kind: Kind, name: str, causation: str | None = None) -> None:
        """Carry out what was just asked for; one that runs already is left to itself."""
        if name not in self._tasks:
            self._progress[name] = Progress()
            self._tasks[name] = asyncio.get_running_loop().create_task(self._run(kind, name, causation))
            self._tasks[name].add_done_callback(lambda _: self._forget(name))

    async def resume(self) -> int:
        """Take up what a crash interrupted; give the number."""
        left = [
            (kind, found.id)
            for kind in ("export", "import")
            for found in await self._runtime.reader.all_of(kind, "requested")
        ]
        for kind, name in left:
            self.start(kind, name)  # type: ignore[arg-type]
            log.info("transfer_resumed", kind=kind, id=name)
        return len(left)

    def progress(self, name: str) -> dict[str, Any] | None:
        """Tell how far a transfer is, if it is under way here."""
        found = self._progress.get(name)
        return None if found is None else msgspec.to_builtins(found)

    async def close(self) -> None:
        """Let what runs finish, but not for ever: what is cut off is taken up again at the next start."""
        tasks = list(self._tasks.values())
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=self._runtime.settings.shutdown_grace_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _forget(self, name: str) -> None:
        del self._tasks[name], self._progress[name]

    async def _run(self, kind: Kind, name: str, causation: str | None) -> None:
        async with self._one_at_a_time:
            started = time.perf_counter()
            carry_out = self._export if kind == "export" else self._import
            for wait_s in (*RETRY_S, None):
                try:
                    status = await carry_out(name, self._progress[name], causation)
                    telemetry.TRANSFERS.labels(kind, status).inc()
                    telemetry.TRANSFER_SECONDS.labels(kind).observe(time.perf_counter() - started)
                    return
                except LedgerError as outage:
                    # The log, the store or the policy engine is away; asked for it stays, and a start takes it up.
                    log.warning(
                        "transfer_not_delivered", kind=kind, id=name, code=outage.code, detail=outage.message
                    )
                    if wait_s is not None:
                        await asyncio.sleep(wait_s)
                except Exception as bug:
                    log.error("transfer_bug", kind=kind, id=name, exc_info=bug)
                    return

    def _reached(self, kind: Kind, progress: Progress, state: int) -> None:
        progress.state = state
        if self._observe is not None:
            self._observe(kind, state)

    # ------------------------------------------------------------------ what goes out

    async def _export(self, name: str, progress: Progress, causation: str | None) -> str:
        """Deliver an export or fail it; only an outage leaves it as it is."""
        export = await self._read(CapsuleExport, name)
        if export.status != "requested":
            return export.status
        self._reached("export", progress, 1)
        try:
            kept, estimate = await asyncio.to_thread(self._pack, export.manifest, progress)
        except Exception as error:  # noqa: BLE001 - a bug fails this export and no other
            why = _problem(error)
            command = FailExport(export_id=name, code=why.code, detail=why.detail, facts=why.facts)
            return await self._act(fail_export, command, causation)
        completed = CompleteExport(
            export_id=name,
            archive=kept.address,
            archive_bytes=kept.size_bytes,
            token_estimate=msgspec.to_builtins(estimate),
        )
        status = await self._act(complete_export, completed, causation)
        self._reached("export", progress, 5)
        return status

    def _pack(self, document: dict[str, Any], progress: Progress) -> tuple[Kept, TokenEstimate]:
        vault = self._runtime.vault
        manifest = parse_manifest(document)
        estimate = examine(vault, manifest)
        self._reached("export", progress, 2)
        progress.bytes_total = archive_bytes(manifest)
        with vault.writing() as body:
            for chunk in progress.count(write_archive(manifest, lambda part: open_part(vault, part))):
                body.write(chunk)
            self._reached("export", progress, 3)
            kept = body.keep()
        self._reached("export", progress, 4)
        return kept, estimate

    # ------------------------------------------------------------------ what comes in

    async def _import(self, name: str, progress: Progress, causation: str | None) -> str:
        """Deliver an import or refuse it; only an outage leaves it as it is."""
        asked = await self._read(CapsuleImport, name)
        if asked.status != "requested":
            return asked.status
        self._reached("import", progress, 1)
        try:
            manifest = await asyncio.to_thread(self._verify, asked, progress)
        except Exception as error:  # noqa: BLE001 - a bug refuses this import and no other
            return await self._refuse(name, _problem(error), None, causation)
        self._reached("import", progress, 2)
        document = manifest.document()
        accept = AcceptImport(import_id=name, manifest=document)
        status = await self._judged(check_import, accept, causation)
        if status != "requested":
            return status
        self._reached("import", progress, 3)
        try:
            estimate = await asyncio.to_thread(self._keep, asked.archive, manifest, progress)
        except Exception as error:  # noqa: BLE001 - as above
            return await self._refuse(name, _problem(error), document, causation)
        self._reached("import", progress, 4)
        accept = AcceptImport(import_id=name, manifest=document, token_estimate=msgspec.to_builtins(estimate))
        status = await self._judged(accept_import, accept, causation)
        self._reached("import", progress, 5)
        return status

    def _verify(self, asked: CapsuleImport, progress: Progress) -> PersonaManifest:
        """Read an archive to its end, as the capsule its attestations are about, and keep nothing of it."""
        vault = self._runtime.vault
        assert asked.attestations is not None, "an import that was requested has attestations"
        progress.bytes_total = vault.size_bytes(asked.archive)
        limits = ArchiveLimits(archive_bytes_max=self._runtime.settings.artifact_bytes_max)
        chunks, address = progress.count(vault.read(asked.archive)), asked.attestations.capsule
        return read_archive(chunks, _leave, address=address, limits=limits)

    def _keep(self, archive: str, manifest: PersonaManifest, progress: Progress) -> TokenEstimate:
        """Put the parts into the vault, each under what it hashes to; then look into them."""
        vault = self._runtime.vault

        def keep(part: PartRef, pieces: Iterator[bytes]) -> None:
            if not vault.has(part.digest):
                vault.put(pieces, part.digest)

        read_archive(progress.count(vault.read(archive)), keep, address=manifest.address)
        return examine(vault, manifest)

    async def _refuse(
        self, name: str, why: KeptRefusal, document: dict[str, Any] | None, causation: str | None
    ) -> str:
        command = RefuseImport(
            import_id=name, code=why.code, detail=why.detail, facts=why.facts, manifest=document
        )
        return await self._act(refuse_import, command, causation)

    # ------------------------------------------------------------------ the log

    async def _read(self, cls: type[Aggregate], name: str) -> Any:
        stream = f"{cls.KIND}/{name}"
        return (await self._runtime.reader.load([stream]))[stream].aggregate

    async def _act(self, use_case: UseCase, command: Any, causation: str | None) -> str:
        return _status(await self._runtime.ledger.act(use_case, command, WORKER, causation=causation))

    async def _judged(self, use_case: UseCase, command: Any, causation: str | None) -> str:
        answer = await act_judged(
            self._runtime.ledger, self._engine, use_case, command, WORKER, causation=causation
        )
        return _status(answer)


class _Ended(msgspec.Struct):
    status: str


def _status(answer: Answer) -> str:
    return msgspec.json.decode(answer.body, type=_Ended).status


def _leave(part: PartRef, pieces: Iterator[bytes]) -> None:
    """Keep nothing of a part; it is verified all the same."""


def open_part(vault: Vault, part: PartRef) -> Iterator[bytes]:
    """Read a part; one that is gone or damaged is told by its name.

    Errors: capsule_tampered, encryption_key_missing, unavailable.
    """
    with _named(part):
        yield from vault.read(part.digest)


@contextmanager
def _named(part: PartRef) -> Iterator[None]:
    """Tell damage of the vault by the part it is in."""
    try:
        yield
    except (LogDamagedError, ObjectNotFoundError) as error:
        raise CapsuleTamperedError(
            f"the part {part.name} is not in the vault as it was kept",
            part=part.name,
            expected=part.digest,
            found=error.code,
        ) from error


def examine(vault: Vault, manifest: PersonaManifest) -> TokenEstimate:
    """Read the memory bundle and the prompts in the vault; give what they cost a model to read.

    Cost:   10,000 memories in about a second, most of it the process that reads the bundle.
    Errors: capsule_tampered, memory_bundle_invalid.
    """
    counter = TokenCounter()
    for part in manifest.parts_of("prompts"):
        if part.bytes <= PROMPT_BYTES_MAX:
            counter.add_prompt(b"".join(open_part(vault, part)).decode(errors="replace"))
    bundle = manifest.part(manifest.memory.bundle)
    assert bundle is not None, "a manifest names a bundle that is a part of it"
    # Bytes from outside are read by a confined process: no library for them runs in here.
    facts = inspect_bundle(open_part(vault, bundle), manifest.memory)
    counter.add_memories(facts.text_tokens, facts.item_count)
    return counter.estimate()


def _problem(error: Exception) -> KeptRefusal:
    """Say why a transfer came to nothing; an outage is no reason, and is raised again.

    Errors: unavailable.
    """
    if not isinstance(error, LedgerError):
        log.error("transfer_bug", exc_info=error)
        return told("internal", "the service made a mistake", {})
    if error.status >= 500 and not isinstance(error, LogDamagedError):
        raise error
    return problem_of(error)
