"""The life of a persona in one log, from its first refusal to the end of its capsule."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from domain.persona import claims, transfers
from domain.trust.signers import RevokeKey, revoke_key
from ops.reads import Stored
from tests.unit.persona.persona_world import AUTHOR, OPERATOR, REVIEWER, RIVAL, World, made
from tests.unit.trust.trust_maker import pin


class Story(NamedTuple):
    """A log, and the addresses of the capsules it is about."""

    world: World
    published: str
    claimed: str

    @property
    def log(self) -> Sequence[Stored]:
        """Give the records as they would lie in a database."""
        logged = self.world.store.logged
        return [Stored(at, one.row.address, one.row.record) for at, one in enumerate(logged)]


def a_story() -> Story:
    """Tell it."""
    return asyncio.run(_told())


async def _told() -> Story:
    world = await World.begun()
    await world.created()
    await world.requested(made("0.9.0", world.constitution))
    first = await world.on_show("1.0.0")
    download = transfers.DownloadCapsule(capsule_id=first.address)
    await world.told(transfers.download_capsule, download, AUTHOR)
    second = await world.exported("1.1.0")
    await world.submitted(second)
    await world.inspected(second, "warn")
    assert await world.decided(second, "reject", REVIEWER, notes="where is the source?") == "ok"
    assert await world.decided(second, caller=OPERATOR, is_override=True, notes="found it") in (
        "ok",
        "review_closed",
    )
    opened = claims.OpenClaim(capsule_id=first.address, right="copyright", reason="these are our letters")
    claim = await world.told(claims.open_claim, opened, RIVAL)
    await world.told(claims.review_claim, claims.ReviewClaim(claim_id=claim["id"], suspend=True), OPERATOR)
    upheld = claims.UpholdClaim(claim_id=claim["id"], resolution="they are")
    await world.told(claims.uphold_claim, upheld, OPERATOR)
    revoked = RevokeKey(policy="publication", public_key=pin("ada")["public_key"], reason="lost on a train")
    await world.told(revoke_key, revoked, OPERATOR)
    return Story(world, first.address, second.address)
