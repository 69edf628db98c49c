"""The watch over stopped capsules: where one is revoked or suspended with what runs on it, that is ended and settled.

Nobody has access from the moment the capsule was stopped, since every check looks at the capsule; here the money
follows. What was seen to is in the log, as a note about the version of the capsule's stream; whatever was stopped
since, or was not noted because of a crash, is looked at again. Ending twice changes nothing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from domain.errors import LedgerError
from domain.ledger import Caller
from domain.persona.offboarding import NoteOffboarding, StopUse, note_offboarding, stop_use
from ops import telemetry
from ops.runtime import Runtime
from ops.tasks import stop

log = telemetry.logger(__name__)

WATCH = Caller("revocation-watch", "platform", frozenset({"service"}))
INTERVAL_S = 1.0
PAGE = 200
CAPSULES_MAX = 100


class RevocationWatch:
    """Looks once a second."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Stop looking; what was not ended is ended at the next start."""
        await stop(self._task)

    async def sweep(self) -> int:
        """End what runs on stopped capsules; give the number of capsules that were seen to."""
        stopped = await self._runtime.reader.stopped_capsules(CAPSULES_MAX)
        for capsule_id, version, persona_id in stopped:
            try:
                await self._see_to(capsule_id, version, persona_id)
            except LedgerError as refusal:
                if refusal.status >= 500:
                    raise
                # One capsule that cannot be seen to must not keep the others from it.
                log.error("not_offboarded", capsule=capsule_id, code=refusal.code, detail=refusal.message)
        return len(stopped)

    async def _see_to(self, capsule_id: str, version: int, persona_id: str) -> None:
        # Another process may have stopped it, and here it may still look as it did before.
        self._forget(f"capsule/{capsule_id}")
        ended = await self._end_all(persona_id, f"sha3-512:{capsule_id}")
        note = NoteOffboarding(
            capsule_id=capsule_id,
            capsule_version=version,
            rentals=ended["rental"],
            subscriptions=ended["subscription"],
            purchases=ended["purchase"],
        )
        # From here on a crash ends nothing again that was ended.
        await self._runtime.ledger.act(note_offboarding, note, WATCH)
        log.info("capsule_offboarded", capsule=capsule_id, **ended)

    def _forget(self, stream: str) -> None:
        self._runtime.ledger.forget([stream], self._runtime.ledger.epoch)

    async def _end_all(self, persona_id: str, capsule: str) -> Counter[str]:
        """End what runs on a capsule, a page at a time; what goes on all the same is met once."""
        ended: Counter[str] = Counter()
        seen: set[tuple[str, str]] = set()
        while True:
            limit = PAGE + len(seen)
            found = await self._runtime.reader.uses_of(persona_id, capsule, limit)
            fresh = [use for use in found if use not in seen]
            if not fresh:
                return ended
            for kind, is_over in await asyncio.gather(*(self._end(kind, name) for kind, name in fresh)):
                ended[kind] += is_over
            seen.update(fresh)

    async def _end(self, kind: Any, name: str) -> tuple[str, bool]:
        command = StopUse(kind=kind, id=name)
        answer = await self._runtime.ledger.act(stop_use, command, WATCH)
        if not answer.event_count:
            self._forget(f"{kind}/{name}")
            answer = await self._runtime.ledger.act(stop_use, command, WATCH)
        if answer.event_count:
            telemetry.OFFBOARDINGS.labels(kind).inc()
        return kind, answer.event_count > 0

    async def _run(self) -> None:
        while True:
            try:
                await self.sweep()
            except LedgerError as outage:
                log.warning("offboarding_failed", code=outage.code, detail=outage.message)
            except Exception as bug:
                log.error("offboarding_bug", exc_info=bug)
            await asyncio.sleep(INTERVAL_S)
