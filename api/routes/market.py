"""The market over HTTP: offers, intents, matches, contracts, disputes and datasets."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import Field

from api import timelines
from api.http import (
    WRITE_PROBLEMS,
    AsOf,
    Cursor,
    Id,
    JsonRoute,
    Limit,
    Open,
    Sent,
    Who,
    Wish,
    act,
    answers,
    before_of,
    body_of,
    completed,
    json_response,
    lists,
    need_role,
    object_of,
    page,
    printed,
    reads,
    sees_all,
    shows,
    size_as_of,
)
from domain.errors import (
    ContractNotFoundError,
    DisputeNotFoundError,
    IntentNotFoundError,
    IntentRequiredError,
    NoCompatibleOffersError,
    NotFoundError,
    OfferNotFoundError,
)
from domain.fields import Command, Labels, Share, share_ppm
from domain.ledger import Caller
from domain.log.records import Aggregate
from domain.market import contracts, disputes, intents, offers
from domain.market.candidates import Candidate, MatchPolicy
from domain.market.contracts import Contract
from domain.market.datasets import dataset_fingerprint, parse_csv
from domain.market.disputes import Dispute
from domain.market.intents import Intent, OpenIntent, Proposed, candidate, propose, want_of
from domain.market.matching import MatchResult, match
from domain.market.offers import DataSet, ListOffer, Offer, OfferStep, ReviseOffer
from domain.market.rounds import Round
from domain.values import Money
from ops import telemetry
from ops.reads import RecordFilter
from ops.runtime import Runtime
from projections.rounds import attest

router = APIRouter(prefix="/v1", tags=["market"], route_class=JsonRoute)

POLICY = MatchPolicy()

OfferRevision = body_of(ReviseOffer, "offer_id")
IntentAmendment = body_of(intents.AmendIntent, "intent_id")
MatchBody = body_of(intents.MatchIntent, "intent_id")
FundBody = body_of(contracts.FundContract, "contract_id")
RefundBody = body_of(contracts.RefundEscrow, "contract_id")
DisputeBody = body_of(disputes.OpenDispute, "contract_id")
ResolveBody = body_of(disputes.ResolveDispute, "dispute_id")
RejectBody = body_of(disputes.RejectDispute, "dispute_id")


async def seen(
    opened: Runtime,
    who: Caller,
    cls: type[Aggregate],
    name: str,
    missing: type[NotFoundError],
    size: int | None,
) -> Aggregate:
    """Read an aggregate the caller may see, now or in the log of a size; anything else is as good as absent.

    Errors: the `missing` given.
    """
    stream = f"{cls.KIND}/{name}"
    if size is None:
        loaded = (await opened.reader.load([stream])).get(stream)
        found = loaded.aggregate if loaded else None
    else:
        found = await opened.reader.state_at(stream, size)
    if found is None or not may_see(who, found):
        raise missing(id=name)
    aggregate: Aggregate = found
    return aggregate


async def show(
    opened: Runtime,
    who: Caller,
    cls: type[Aggregate],
    name: str,
    missing: type[NotFoundError],
    as_of: str | None,
) -> Response:
    """Print an aggregate the caller may see, now or as it was."""
    found = await seen(opened, who, cls, name, missing, await size_as_of(opened, as_of))
    return json_response(msgspec.to_builtins(found), headers={"ETag": f'"{found.version}"'})


def may_see(who: Caller, found: Aggregate) -> bool:
    """Offers are on show; everything else belongs to its tenant and the parties named in it.

    Reviewers see disputes, since they decide them.
    """
    if isinstance(found, Offer) or sees_all(who) or found.tenant == who.tenant:
        return True
    if isinstance(found, Dispute) and "reviewer" in who.roles:
        return True
    return who.tenant in (found.party_keys() or [])


async def listed(
    opened: Runtime, wanted: RecordFilter, cursor: str | None, limit: int, who: Caller | None = None
) -> Response:
    """Print a page of current states, the newest first, narrowed to what the caller may see."""
    if who is not None and not sees_all(who):
        wanted = wanted._replace(party=who.tenant)
    items = await opened.reader.records(wanted, before=before_of(cursor), limit=limit + 1)
    return json_response(page(items, limit))


Words = Annotated[
    str | None, Query(max_length=200, pattern=r"^[^\x00-\x1f]*$", description="Words to look for.")
]
PayoutStatus = Literal["pending", "released", "refunded"]

# --------------------------------------------------------------------------- datasets


@router.post("/datasets", status_code=201, responses=shows(DataSet, 201), openapi_extra={
    "requestBody": {"required": True, "content": {"text/csv": {"schema": {"type": "string"}}}}
})  # fmt: skip
async def upload_dataset(request: Request, opened: Open, who: Who, sent: Sent) -> Response:
    """Upload a dataset as CSV: a header, numbers, and a binary column `target`."""
    need_role(who, *offers.register_dataset.roles)  # type: ignore[attr-defined]
    data = await request.body()
    dataset = await asyncio.to_thread(parse_csv, data)
    await opened.objects.put(data)
    command = offers.RegisterDataset(
        fingerprint=dataset_fingerprint(data),
        row_count=len(dataset.target),
        columns=list(dataset.columns),
        size_bytes=len(data),
    )
    return await act(opened, offers.register_dataset, command, who, sent, status=201)


@router.get("/datasets", responses=lists(DataSet))
async def list_datasets(opened: Open, who: Who, limit: Limit = 100, cursor: Cursor = None) -> Response:
    """List the caller's datasets."""
    wanted = RecordFilter("dataset", tenant=None if sees_all(who) else who.tenant)
    return await listed(opened, wanted, cursor, limit)


# --------------------------------------------------------------------------- offers


@router.post("/offers", status_code=201, responses=shows(Offer, 201))
async def list_offer(command: ListOffer, opened: Open, who: Who, sent: Sent) -> Response:
    """List an offer."""
    answer = await opened.ledger.act(
        offers.list_offer, command, who, key=sent.key, if_match=sent.if_match, correlation=sent.correlation
    )
    if not answer.repeated:
        telemetry.MARKET_OFFERS.inc()
    return printed(answer, 201)


@router.get("/offers", responses=lists(Offer))
async def find_offers(
    opened: Open,
    who: Who,  # noqa: ARG001 - offers are on show to everybody with a token
    status: Literal["active", "paused", "retired", "expired"] | None = None,
    seller_node_id: Wish = None,
    modality: Wish = None,
    task: Wish = None,
    q: Words = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response:
    """List offers, the newest first."""
    contains: dict[str, Any] = {}
    if modality is not None:
        contains["modality"] = modality
    if task is not None:
        contains["allowed_tasks"] = [task]
    wanted = RecordFilter("offer", owner=seller_node_id, status=status, text=q, contains=contains or None)
    return await listed(opened, wanted, cursor, limit)


@router.get("/offers/{offer_id}", responses=reads(Offer))
async def get_offer(offer_id: Id, opened: Open, who: Who, as_of: AsOf = None) -> Response:
    """Show an offer."""
    return await show(opened, who, Offer, offer_id, OfferNotFoundError, as_of)


@router.patch("/offers/{offer_id}", responses=shows(Offer))
async def revise_offer(offer_id: Id, body: OfferRevision, opened: Open, who: Who, sent: Sent) -> Response:  # type: ignore[valid-type]
    """Change fields of an offer."""
    return await act(opened, offers.revise_offer, completed(ReviseOffer, body, offer_id=offer_id), who, sent)


@router.post("/offers/{offer_id}/pause", responses=shows(Offer))
async def pause_offer(offer_id: Id, opened: Open, who: Who, sent: Sent) -> Response:
    """Take an offer off the market for a while."""
    return await act(opened, offers.pause_offer, OfferStep(offer_id=offer_id), who, sent)


@router.post("/offers/{offer_id}/resume", responses=shows(Offer))
async def resume_offer(offer_id: Id, opened: Open, who: Who, sent: Sent) -> Response:
    """Put a paused offer back on the market."""
    return await act(opened, offers.resume_offer, OfferStep(offer_id=offer_id), who, sent)


@router.post("/offers/{offer_id}/retire", responses=shows(Offer))
async def retire_offer(offer_id: Id, opened: Open, who: Who, sent: Sent) -> Response:
    """Take an offer off the market for good."""
    return await act(opened, offers.retire_offer, OfferStep(offer_id=offer_id), who, sent)


# --------------------------------------------------------------------------- intents


@router.post("/intents", status_code=201, responses=shows(Intent, 201))
async def open_intent(command: OpenIntent, opened: Open, who: Who, sent: Sent) -> Response:
    """Open an intent."""
    return await act(opened, intents.open_intent, command, who, sent, status=201)


@router.get("/intents", responses=lists(Intent))
async def find_intents(
    opened: Open,
    who: Who,
    status: Literal["open", "matched", "cancelled", "closed", "expired"] | None = None,
    model_owner_id: Wish = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response:
    """List the caller's intents, the newest first."""
    return await listed(
        opened, RecordFilter("intent", owner=model_owner_id, status=status), cursor, limit, who
    )


@router.get("/intents/{intent_id}", responses=reads(Intent))
async def get_intent(intent_id: Id, opened: Open, who: Who, as_of: AsOf = None) -> Response:
    """Show an intent."""
    return await show(opened, who, Intent, intent_id, IntentNotFoundError, as_of)


@router.patch("/intents/{intent_id}", responses=shows(Intent))
async def amend_intent(intent_id: Id, body: IntentAmendment, opened: Open, who: Who, sent: Sent) -> Response:  # type: ignore[valid-type]
    """Change fields of an open intent, or its status."""
    command = completed(intents.AmendIntent, body, intent_id=intent_id)
    return await act(opened, intents.amend_intent, command, who, sent)


@router.post("/intents/{intent_id}/cancel", responses=shows(Intent))
async def cancel_intent(intent_id: Id, opened: Open, who: Who, sent: Sent) -> Response:
    """Give an intent up."""
    return await act(opened, intents.cancel_intent, intents.IntentStep(intent_id=intent_id), who, sent)


@router.post("/intents/{intent_id}/close", responses=shows(Intent))
async def close_intent(intent_id: Id, opened: Open, who: Who, sent: Sent) -> Response:
    """Close an intent."""
    return await act(opened, intents.close_intent, intents.IntentStep(intent_id=intent_id), who, sent)


# --------------------------------------------------------------------------- matching


async def _market(opened: Runtime) -> tuple[list[Candidate], int]:
    """Read every offer on the market beside its seller's history, and the position this is true for."""
    size, found, sellers = await opened.reader.market()
    return [candidate(offer, sellers.get(offer.tenant)) for offer in found], size - 1


async def _proposed(opened: Runtime, who: Caller, command: intents.MatchIntent) -> Proposed | None:
    stream = f"intent/{command.intent_id}"
    loaded = (await opened.reader.load([stream])).get(stream)
    if loaded is None or not may_see(who, loaded.aggregate) or not isinstance(loaded.aggregate, Intent):
        return None
    candidates, position = await _market(opened)
    now = opened.clock()
    return await asyncio.to_thread(
        propose, loaded.aggregate, command.max_offers, candidates, POLICY, now, position
    )


@router.post("/intents/{intent_id}/match", status_code=201, responses=shows(Contract, 201))
async def match_intent(
    intent_id: Id,
    opened: Open,
    who: Who,
    sent: Sent,
    request: Request,
    body: MatchBody | None = None,  # type: ignore[valid-type]
) -> Response:
    """Match an intent: a contract, or 422 with the reasons and what would have matched."""
    fee_ppm = request.app.state.settings.platform_fee_ppm
    command = completed(intents.MatchIntent, body, intent_id=intent_id)

    async def gather() -> dict[str, Any]:
        return {"proposed": await _proposed(opened, who, command), "fee_ppm": fee_ppm}

    started = time.perf_counter()
    answer = await opened.ledger.act(
        intents.match_intent,
        command,
        who,
        key=sent.key,
        if_match=sent.if_match,
        correlation=sent.correlation,
        gather=gather,
    )
    result = msgspec.json.decode(answer.body)
    if not answer.repeated:
        _measure_match(result, time.perf_counter() - started)
    if "selected_offers" not in result:
        raise NoCompatibleOffersError(diagnostics=result["diagnostics"], position=answer.position)
    return printed(answer, 201)


def _measure_match(result: dict[str, Any], seconds: float) -> None:
    telemetry.MARKET_MATCH_SECONDS.observe(seconds)
    if "selected_offers" in result:
        telemetry.MARKET_MATCHES.inc()
        telemetry.MARKET_MATCH_GAP.observe(float(result["selection_diagnostics"]["gap"]))
        return
    for reason, count in result["diagnostics"]["rejection_reasons"].items():
        telemetry.MARKET_MATCH_FAILURES.labels(reason).inc(count)


class Overrides(Command):
    """What a preview tries instead of the intent's own values."""

    budget_total: Money | None = None
    min_quality_score: Share | None = None
    required_modalities: Labels | None = None


class Preview(Command):
    """A match that is only looked at: of an intent by id, or in full."""

    round_intent_id: str | None = Field(None, max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]*$")
    intent: OpenIntent | None = None
    max_offers: int = Field(3, ge=1, le=25)
    policy_overrides: Overrides = Overrides()


PREVIEWED = object_of(
    preview="object", intent={"$ref": "#/components/schemas/Intent"}, overrides="object", preview_ts="string"
)


@router.post("/policy/preview", responses=answers(PREVIEWED, WRITE_PROBLEMS))
async def preview_policy(command: Preview, opened: Open, who: Who) -> Response:
    """Say what a match would choose, and why; nothing is written."""
    now = opened.clock()
    intent = await _intent_of(opened, who, command, now)
    want = want_of(intent, command.max_offers)
    tried = command.policy_overrides
    if "budget_total" in tried.model_fields_set:
        budget = tried.budget_total
        want = msgspec.structs.replace(
            want, budget=budget, currency=budget.currency if budget else want.currency
        )
    if tried.min_quality_score is not None:
        want = msgspec.structs.replace(want, min_quality_ppm=share_ppm(tried.min_quality_score))
    if tried.required_modalities is not None:
        want = msgspec.structs.replace(want, required_modalities=tuple(tried.required_modalities))
    candidates, position = await _market(opened)
    result: MatchResult = await asyncio.to_thread(match, want, candidates, POLICY, now, position)
    return json_response(
        {
            "preview": result.as_data() | {"matched": bool(result.selected)},
            "intent": msgspec.to_builtins(intent),
            "overrides": tried.model_dump(mode="json", exclude_unset=True),
            "preview_ts": now,
        }
    )


async def _intent_of(opened: Runtime, who: Caller, command: Preview, now: str) -> Intent:
    if command.round_intent_id is not None:
        stream = f"intent/{command.round_intent_id}"
        loaded = (await opened.reader.load([stream])).get(stream)
        if loaded is None or not may_see(who, loaded.aggregate):
            raise IntentNotFoundError(id=command.round_intent_id)
        assert isinstance(loaded.aggregate, Intent)
        return loaded.aggregate
    if command.intent is None:
        raise IntentRequiredError
    opening = msgspec.structs.asdict(intents.opening(command.intent, now))
    return Intent(id="preview", tenant=who.tenant, **opening)


# --------------------------------------------------------------------------- contracts


@router.get("/contracts", responses=lists(Contract))
async def find_contracts(
    opened: Open,
    who: Who,
    round_intent_id: Wish = None,
    payout_status: PayoutStatus | None = None,
    status: Literal["created", "funded", "bound", "completed", "round_failed", "released", "refunded"]
    | None = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response:
    """List the contracts the caller is a party of, the newest first."""
    contains = {"payout_status": payout_status} if payout_status is not None else None
    wanted = RecordFilter("contract", owner=round_intent_id, status=status, contains=contains)
    return await listed(opened, wanted, cursor, limit, who)


@router.get("/contracts/{contract_id}", responses=reads(Contract))
async def get_contract(contract_id: Id, opened: Open, who: Who, as_of: AsOf = None) -> Response:
    """Show a contract with its timeline."""
    size = await size_as_of(opened, as_of)
    contract = await seen(opened, who, Contract, contract_id, ContractNotFoundError, size)
    told = {"timeline": await _timeline(opened, contract, size)}
    return json_response(msgspec.to_builtins(contract) | told, headers={"ETag": f'"{contract.version}"'})


@router.get(
    "/contracts/{contract_id}/timeline",
    responses=answers(
        object_of(stream={"type": "string"}, entries={"type": "array", "items": {"type": "object"}})
    ),
)
async def get_timeline(contract_id: Id, opened: Open, who: Who, as_of: AsOf = None) -> Response:
    """Tell a contract's parties what happened to it, in order."""
    size = await size_as_of(opened, as_of)
    contract = await seen(opened, who, Contract, contract_id, ContractNotFoundError, size)
    return json_response({"stream": contract.stream, "entries": await _timeline(opened, contract, size)})


async def _timeline(opened: Runtime, contract: Aggregate, size: int | None) -> list[dict[str, Any]]:
    return [timelines.entry(stored) for stored in await opened.reader.stream(contract.stream, size=size)]


@router.post("/contracts/{contract_id}/fund", responses=shows(Contract))
async def fund_contract(
    contract_id: Id,
    opened: Open,
    who: Who,
    sent: Sent,
    body: FundBody | None = None,  # type: ignore[valid-type]
) -> Response:
    """Put the agreed sum into escrow."""
    command = completed(contracts.FundContract, body, contract_id=contract_id)
    return await act(opened, contracts.fund_contract, command, who, sent)


@router.post("/contracts/{contract_id}/release", responses=shows(Contract))
async def release_escrow(contract_id: Id, opened: Open, who: Who, sent: Sent) -> Response:
    """Pay the sellers; the round's stored objects are checked again first."""

    async def gather() -> dict[str, Any]:
        training = await _round_of(opened, who, contract_id)
        if training is None:
            return {"attested": None, "scores": {}}
        return {"attested": await attest(opened, training), "scores": training.scores()}

    command = contracts.ReleaseEscrow(contract_id=contract_id)
    response = await act(opened, contracts.release_escrow, command, who, sent, gather=gather)
    _count_release(msgspec.json.decode(response.body))
    return response


async def _round_of(opened: Runtime, who: Caller, contract_id: str) -> Round | None:
    """Read the completed round of a contract the caller may release; checking any other would be work for nothing."""
    stream = f"contract/{contract_id}"
    loaded = (await opened.reader.load([stream])).get(stream)
    contract = loaded.aggregate if loaded else None
    if (
        not isinstance(contract, Contract)
        or contract.status != "completed"
        or contract.execution_round is None
    ):
        return None
    if contract.tenant != who.tenant and "operator" not in who.roles:
        return None
    stream = f"round/{contract.execution_round}"
    training = (await opened.reader.load([stream]))[stream].aggregate
    return training if isinstance(training, Round) else None


def _count_release(contract: dict[str, Any]) -> None:
    if contract["receipt"]["repeated"]:
        return
    paid = msgspec.convert(contract["payout_amount"], Money)
    telemetry.MARKET_PAYOUT.labels(paid.currency).inc(paid.nano / 1e9)


@router.post("/contracts/{contract_id}/refund", responses=shows(Contract))
async def refund_escrow(
    contract_id: Id,
    opened: Open,
    who: Who,
    sent: Sent,
    body: RefundBody | None = None,  # type: ignore[valid-type]
) -> Response:
    """Give the escrow back to the owner."""
    command = completed(contracts.RefundEscrow, body, contract_id=contract_id)
    return await act(opened, contracts.refund_escrow, command, who, sent)


# --------------------------------------------------------------------------- disputes


@router.post("/contracts/{contract_id}/disputes", status_code=201, responses=shows(Dispute, 201))
async def open_dispute(contract_id: Id, body: DisputeBody, opened: Open, who: Who, sent: Sent) -> Response:  # type: ignore[valid-type]
    """Dispute a contract; its money stays where it is until somebody decides."""
    command = completed(disputes.OpenDispute, body, contract_id=contract_id)
    return await act(opened, disputes.open_dispute, command, who, sent, status=201)


@router.get("/disputes", responses=lists(Dispute))
async def find_disputes(
    opened: Open,
    who: Who,
    status: Literal["open", "under_review", "resolved", "rejected"] | None = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response:
    """List the disputes the caller is a party of, the newest first."""
    everybodys = "reviewer" in who.roles
    return await listed(
        opened, RecordFilter("dispute", status=status), cursor, limit, None if everybodys else who
    )


@router.get("/disputes/{dispute_id}", responses=reads(Dispute))
async def get_dispute(dispute_id: Id, opened: Open, who: Who, as_of: AsOf = None) -> Response:
    """Show a dispute."""
    return await show(opened, who, Dispute, dispute_id, DisputeNotFoundError, as_of)


@router.post("/disputes/{dispute_id}/review", responses=shows(Dispute))
async def review_dispute(dispute_id: Id, opened: Open, who: Who, sent: Sent) -> Response:
    """Take a dispute up."""
    return await act(opened, disputes.review_dispute, disputes.DisputeStep(dispute_id=dispute_id), who, sent)


@router.post("/disputes/{dispute_id}/resolve", responses=shows(Dispute))
async def resolve_dispute(dispute_id: Id, body: ResolveBody, opened: Open, who: Who, sent: Sent) -> Response:  # type: ignore[valid-type]
    """Uphold a dispute, with an outcome for the money."""
    command = completed(disputes.ResolveDispute, body, dispute_id=dispute_id)
    return await act(opened, disputes.resolve_dispute, command, who, sent)


@router.post("/disputes/{dispute_id}/reject", responses=shows(Dispute))
async def reject_dispute(dispute_id: Id, body: RejectBody, opened: Open, who: Who, sent: Sent) -> Response:  # type: ignore[valid-type]
    """Find a dispute groundless."""
    command = completed(disputes.RejectDispute, body, dispute_id=dispute_id)
    return await act(opened, disputes.reject_dispute, command, who, sent)
