"""The watch over trust: when a key is revoked, every published capsule is held against what is left of its signatures.

How far it came is in the log: a sweep is noted with the version of the policy's stream that it knew. Whatever was
revoked later than that is swept again, at the next look or after a crash, so no revocation is ever passed over. A
capsule that is published after a revocation needs no sweep, since publishing looks at the revocations itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import msgspec

from domain.errors import LedgerError
from domain.ledger import Caller
from domain.persona.capsules import Capsule, CapsuleStep
from domain.persona.reviewing import NoteSweep, TrustSweep, note_sweep, reverify_trust
from domain.trust.pinned import PUBLICATION
from domain.trust.signers import SignerPolicy
from ops import telemetry
from ops.reads import RecordFilter
from ops.runtime import Runtime
from ops.tasks import stop

log = telemetry.logger(__name__)

WATCH = Caller("trust-watch", "platform", frozenset({"service"}))
LOOK_INTERVAL_S = 60.0
PAGE = 500
# Capsules that are, or may again be, on show; the others trust nobody's signature any more.
WATCHED = ("published", "suspended")


class _Trust(msgspec.Struct):
    """What an answer says of a capsule's trust."""

    trust: str


class TrustWatch:
    """Looks now and then, and at once when it is told of a revocation."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._task: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()

    def start(self) -> None:
        """Begin to look."""
        self._wanted.set()
        self._task = asyncio.get_running_loop().create_task(self._run())

    def look(self) -> None:
        """Look soon: a key was revoked."""
        self._wanted.set()

    async def close(self) -> None:
        """Stop looking; what was not swept is swept at the next start."""
        await stop(self._task)

    async def sweep(self) -> int | None:
        """Hold what is published against the revocations, if there are any that were not looked at; give the lost."""
        reader = self._runtime.reader
        streams = [f"{SignerPolicy.KIND}/{PUBLICATION}", f"{TrustSweep.KIND}/{PUBLICATION}"]
        loaded = await reader.load(streams)
        policy = loaded[streams[0]].aggregate if streams[0] in loaded else None
        swept = loaded[streams[1]].aggregate if streams[1] in loaded else None
        known = swept.policy_version if isinstance(swept, TrustSweep) else 0
        if not isinstance(policy, SignerPolicy) or not policy.revoked or policy.version <= known:
            return None
        count = lost = 0
        async for capsule_id in self._watched():
            count += 1
            lost += await self._loses(capsule_id)
        # From here on a crash sweeps nothing again that was swept.
        note = NoteSweep(policy_version=policy.version, capsules=count, lost=lost)
        await self._runtime.ledger.act(note_sweep, note, WATCH)
        log.info("trust_swept", policy_version=policy.version, capsules=count, lost=lost)
        return lost

    async def _watched(self) -> AsyncIterator[str]:
        """Name the capsules to be looked at, a page at a time; what comes on show meanwhile looks for itself."""
        for status in WATCHED:
            last, wanted = None, RecordFilter(Capsule.KIND, status=status)
            while page := await self._runtime.reader.records(wanted, before=last, limit=PAGE):
                for found in page:
                    yield str(found["id"])
                last = str(page[-1]["id"])

    async def _loses(self, capsule_id: str) -> bool:
        """Hold one capsule against the revocations; say whether it lost its trust by it."""
        command = CapsuleStep(capsule_id=capsule_id)
        try:
            answer = await self._runtime.ledger.act(reverify_trust, command, WATCH)
        except LedgerError as refusal:
            if refusal.status >= 500:
                raise
            # One capsule that cannot be looked at must not keep the others from it.
            log.error("trust_not_verified", capsule=capsule_id, code=refusal.code, detail=refusal.message)
            return False
        is_lost = answer.event_count > 0 and msgspec.json.decode(answer.body, type=_Trust).trust != "verified"
        if is_lost:
            telemetry.TRUST_LOST.inc()
        return is_lost

    async def _run(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_INTERVAL_S):
                    await self._wanted.wait()
            self._wanted.clear()
            try:
                await self.sweep()
            except LedgerError as outage:
                log.warning("trust_sweep_failed", code=outage.code, detail=outage.message)
