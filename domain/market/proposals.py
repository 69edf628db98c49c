"""What would have matched: for a want that finds nothing, the single changes after which it finds something."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from domain.market.candidates import Columns, Want
from domain.market.standing import ppm_of, ppm_text
from domain.values import Money

# What a record can hold, together with the rest of the diagnostics.
PROPOSED_OFFERS_MAX = 10
PROPOSED_VALUES_MAX = 20


class Proposal(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A single change of the want after which there is a match, and offers that then match.

    `at_least` is an amount of the currency of the want, `at_most` a quality with six digits or a moment.
    """

    change: str
    offers: tuple[str, ...]
    at_least: str | None = None
    at_most: str | None = None
    one_of: tuple[str, ...] | None = None


def propose(want: Want, columns: Columns, only: Callable[[str], list[int]], now: str) -> tuple[Proposal, ...]:
    """Find the single changes that make a match; `only` gives the places of offers with one reason against them."""
    found = (
        _budget_proposal(want, columns, only("budget_rejected")),
        _quality_proposal(columns, only("quality_below_threshold")),
        _modality_proposal(columns, only("modality_mismatch")),
        _task_proposal(columns, only("task_not_supported")),
        _deadline_proposal(columns, only("offer_expired"), now),
    )
    return tuple(one for one in found if one is not None)


def adopted(want: Want, proposal: Proposal) -> list[Want]:
    """Apply a proposal to the want it was made for: one changed want per value it offers."""
    change = msgspec.structs.replace
    if proposal.change == "budget" and proposal.at_least is not None:
        return [change(want, budget=Money.parse(proposal.at_least, want.currency))]
    if proposal.change == "min_quality" and proposal.at_most is not None:
        return [change(want, min_quality_ppm=ppm_of(proposal.at_most))]
    if proposal.change == "deadline":
        return [change(want, deadline=proposal.at_most)]
    if proposal.change == "required_modalities":
        return [change(want, required_modalities=(one,)) for one in proposal.one_of or ()]
    return [change(want, task_type=one) for one in proposal.one_of or ()]


def _named(columns: Columns, places: Iterable[int]) -> tuple[str, ...]:
    return tuple(columns.offers[at].offer_id for at in places)[:PROPOSED_OFFERS_MAX]


def _budget_proposal(want: Want, columns: Columns, places: list[int]) -> Proposal | None:
    if not places:
        return None
    nano = {at: int(columns.nano[at]) for at in places}
    least = min(nano.values())
    offers = _named(columns, (at for at in places if nano[at] == least))
    return Proposal("budget", offers, at_least=Money.of(least, want.currency).amount)


def _quality_proposal(columns: Columns, places: list[int]) -> Proposal | None:
    if not places:
        return None
    best = int(columns.threshold[places].max())
    offers = _named(columns, (at for at in places if columns.threshold[at] == best))
    return Proposal("min_quality", offers, at_most=ppm_text(best))


def _modality_proposal(columns: Columns, places: list[int]) -> Proposal | None:
    if not places:
        return None
    values = sorted({columns.modality[at] for at in places})[:PROPOSED_VALUES_MAX]
    offers = _named(columns, (at for at in places if columns.modality[at] in values))
    return Proposal("required_modalities", offers, one_of=tuple(values))


def _task_proposal(columns: Columns, places: list[int]) -> Proposal | None:
    if not places:
        return None
    values = sorted({task for at in places for task in columns.allowed_tasks[at]})[:PROPOSED_VALUES_MAX]
    offers = _named(columns, (at for at in places if set(columns.allowed_tasks[at]) & set(values)))
    return Proposal("task_type", offers, one_of=tuple(values))


def _deadline_proposal(columns: Columns, places: list[int], now: str) -> Proposal | None:
    """Propose an earlier deadline; nothing brings back an offer that has expired by now."""
    until = {at: columns.expires_at[at] or "" for at in places}
    latest = max(until.values(), default="")
    if latest <= now:
        return None
    return Proposal("deadline", _named(columns, (at for at in places if until[at] == latest)), at_most=latest)
