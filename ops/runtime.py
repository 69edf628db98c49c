"""Putting the house together: settings in, an open ledger out; and everything closed again, in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import psycopg

from domain.errors import LogIdentityError, UnavailableError
from domain.ledger import Commit, Ledger, Loaded, Remembered
from domain.log.hashes import EMPTY_ROOT
from domain.log.notes import Checkpoint, Signer, add_signature_lines, print_signature_line
from ops import postgres, telemetry
from ops.clock import Clock, next_id
from ops.commit import Committer
from ops.embedded import EmbeddedPostgres
from ops.interpreter import settle
from ops.keys import log_signer
from ops.migrate import migrate
from ops.objects import ObjectStore
from ops.reads import Head, LogReader
from ops.recorder import LedgerRecorder
from ops.settings import Settings
from ops.vault import Vault

log = telemetry.logger(__name__)

WATCH_INTERVAL_S = 1.0


@dataclass
class Runtime:
    """An open ledger of this process."""

    settings: Settings
    url: str
    signer: Signer
    recorder: LedgerRecorder
    reader: LogReader
    ledger: Ledger
    objects: ObjectStore
    clock: Clock
    vault: Vault

    def note(self, head: Head) -> bytes:
        """Write the signed checkpoint of a committed head; the same head always gives the same bytes."""
        text = Checkpoint(self.signer.name, head.size, head.root).text
        line = print_signature_line(self.signer.name, self.signer.key.key_id, head.signature)
        return f"{text}\n{line}".encode()

    async def cosigned_note(self, head: Head) -> bytes:
        """Write the checkpoint with the cosignatures of witnesses under it."""
        lines = await self.reader.cosignatures(head.size)
        note = self.note(head)
        return add_signature_lines(note, lines) if lines else note


class _GateLog:
    """The log as the gate sees it: commits through the recorder, reads through the pool."""

    def __init__(self, recorder: LedgerRecorder, reader: LogReader) -> None:
        self.submit: Callable[[Commit], None] = recorder.submit
        self._reader = reader

    async def load(self, streams: Sequence[str]) -> dict[str, Loaded]:
        return await self._reader.load(streams)

    async def remembered(self, key_id: bytes) -> Remembered | None:
        return await self._reader.remembered(key_id)


@asynccontextmanager
async def database(settings: Settings) -> AsyncIterator[str]:
    """Give the URL of a migrated database; without one in the settings, of the embedded server."""
    if settings.database_url is not None:
        url = settings.database_url.get_secret_value()
        await asyncio.to_thread(migrate, url)
        yield url
        return
    embedded = await asyncio.to_thread(EmbeddedPostgres.start, settings.data_dir)
    try:
        await asyncio.to_thread(migrate, embedded.url)
        yield embedded.url
    finally:
        await asyncio.to_thread(embedded.stop)


@asynccontextmanager
async def open_runtime(
    settings: Settings, observe: Callable[[int], None] | None = None, clock: Clock | None = None
) -> AsyncIterator[Runtime]:
    """Open the ledger; on leaving, finish the queue and close.

    observe is called at each numbered state of a commit (ops/commit.py); crash tests use it, and may set the clock.
    Errors: database_start_failed, key_file_unusable, log_identity_mismatch, unavailable.
    """
    async with database(settings) as url:
        runtime = await _assemble(settings, url, observe, clock or Clock())
        settle()
        try:
            yield runtime
        finally:
            await asyncio.to_thread(runtime.recorder.close)
            await runtime.reader.close()


async def _assemble(
    settings: Settings, url: str, observe: Callable[[int], None] | None, clock: Clock
) -> Runtime:
    signer = log_signer(settings.log_key_path, settings.log_origin)
    await asyncio.to_thread(_claim, url, signer)
    loop = asyncio.get_running_loop()
    gates: list[Ledger] = []

    def on_foreign(streams: set[str] | None, epoch: int) -> None:
        def forget() -> None:
            for gate in gates:
                gate.forget(streams, epoch)

        loop.call_soon_threadsafe(forget)

    committer = Committer(
        lambda: postgres.connect_writer(url),
        lambda size, root: signer.sign(Checkpoint(signer.name, size, root).text.encode()),
        on_foreign,
        observe,
    )
    # From here on the committer notices what others write, before any decision is made on what is read.
    await asyncio.to_thread(committer.watch)
    recorder = LedgerRecorder(
        committer,
        postgres.library_pool(url),
        queue_commands_max=settings.queue_commands_max,
        batch_commands_max=settings.batch_commands_max,
        batch_events_max=settings.batch_events_max,
        watch_interval_s=WATCH_INTERVAL_S,
    )
    pool = postgres.reader_pool(url, settings.database_pool_max)
    await pool.open(wait=True)
    reader = LogReader(pool)
    gate = Ledger(
        _GateLog(recorder, reader), clock=clock, next_id=next_id, resident_max=settings.resident_max
    )
    gates.append(gate)
    objects, vault = ObjectStore.open(settings), Vault.open(settings)
    return Runtime(settings, url, signer, recorder, reader, gate, objects, clock, vault)


def _claim(url: str, signer: Signer) -> None:
    """Bind the database to this log's name and key, or refuse one that is bound to another.

    Errors: log_identity_mismatch, unavailable.
    """
    empty = signer.sign(Checkpoint(signer.name, 0, EMPTY_ROOT).text.encode())
    try:
        with postgres.connect_writer(url) as conn:
            conn.execute(
                "INSERT INTO log_identity (origin, vkey) VALUES (%s, %s) ON CONFLICT DO NOTHING",
                (signer.name, signer.key.text),
            )
            row = conn.execute("SELECT origin, vkey FROM log_identity").fetchone()
            if row != (signer.name, signer.key.text):
                raise LogIdentityError(database=row[0] if row else None, settings=signer.name)
            conn.execute(
                "INSERT INTO checkpoints (size, root, signature) VALUES (0, %s, %s) ON CONFLICT DO NOTHING",
                (EMPTY_ROOT, empty),
            )
    except psycopg.OperationalError as outage:
        raise UnavailableError("the database does not answer", internal=str(outage)) from outage
