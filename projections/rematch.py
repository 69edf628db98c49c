"""Matches made again from the log: the same offers and histories, at the same position, must give the same contract."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from domain.errors import ContractNotFoundError
from domain.log.records import Aggregate, blank, decode
from domain.market.candidates import MatchPolicy
from domain.market.contracts import Contract
from domain.market.intents import Intent, candidate, want_of
from domain.market.matching import SelectedOffer, match
from domain.market.offers import Offer, Seller
from ops.reads import LogReader

PAGE = 5_000


class Rematch(NamedTuple):
    """What a match came to when it was made again."""

    contract_id: str
    as_of_position: int
    same_policy: bool
    recorded: list[SelectedOffer]
    recomputed: list[SelectedOffer]

    @property
    def is_same(self) -> bool:
        return self.same_policy and self.recorded == self.recomputed


async def rematch(reader: LogReader, contract_id: str, policy: MatchPolicy) -> Rematch:
    """Make the match behind a contract again from nothing but the log up to the position it names.

    Cost:   one pass over the records of offers, sellers and the intent before that position.
    Errors: contract_not_found.
    """
    stored = await reader.stream(f"contract/{contract_id}", limit=1)
    if not stored:
        raise ContractNotFoundError(id=contract_id)
    created = decode(stored[0].record).data
    assert isinstance(created, Contract.Created)
    diagnostics = created.selection_diagnostics
    size = int(diagnostics["as_of_position"]) + 1
    market = await _market_at(reader, size)
    # The intent is read as the match saw it: it cannot have changed between its reading and the contract.
    intent = await reader.state_at(f"intent/{created.round_intent_id}", stored[0].position)
    assert isinstance(intent, Intent)
    sellers = {a.id: a for a in market.values() if isinstance(a, Seller)}
    offers = [a for a in market.values() if isinstance(a, Offer) and a.status != "retired"]
    candidates = [candidate(offer, sellers.get(offer.tenant)) for offer in offers]
    result = match(want_of(intent, created.max_offers), candidates, policy, created.matched_at, size - 1)
    recorded = msgspec.convert(created.selected_offers, list[SelectedOffer])
    return Rematch(
        contract_id, size - 1, diagnostics["policy_digest"] == policy.digest, recorded, list(result.selected)
    )


async def _market_at(reader: LogReader, size: int) -> dict[str, Aggregate]:
    """Rebuild every offer and every seller's history as they were in the log of a size."""
    found: dict[str, Aggregate] = {}
    after = -1
    while page := await reader.kinds(("offer", "seller"), after=after, size=size, limit=PAGE):
        for stored in page:
            record = decode(stored.record)
            aggregate = found.get(record.stream) or blank(record.stream, record.tenant)
            found[record.stream] = aggregate.mutate(record)
        after = page[-1].position
    return found
