"""Training over HTTP: rounds, their objects, training mode, and the status pages of the older API."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import Response

from api.http import (
    AsOf,
    Cursor,
    Id,
    JsonRoute,
    Limit,
    Open,
    Sent,
    Who,
    act,
    answers,
    json_response,
    lists,
    object_of,
    reads,
    sees_all,
    shows,
)
from api.routes.market import listed, show
from domain.errors import ForbiddenError, RoundNotFoundError
from domain.ledger import Caller
from domain.market import rounds
from domain.market.rounds import Round
from domain.trust import training
from domain.trust.training import TrainingMode
from domain.values import print_nano
from ops.reads import RecordFilter
from ops.runtime import Runtime

router = APIRouter(prefix="/v1", tags=["training"], route_class=JsonRoute)


@router.post("/rounds", status_code=202, responses=shows(Round, 202))
async def start_round(
    command: rounds.StartRound, opened: Open, who: Who, sent: Sent, request: Request
) -> Response:
    """Start a training round under a funded contract; it runs in the background."""
    response = await act(opened, rounds.start_round, command, who, sent, status=202)
    started = msgspec.json.decode(response.body)
    if not started["receipt"]["repeated"]:
        request.app.state.rounds.start(started["id"])
    return response


@router.get("/rounds", responses=lists(Round))
async def list_rounds(
    opened: Open,
    who: Who,
    status: Literal["created", "started", "completed", "failed"] | None = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response:
    """List rounds, the newest first."""
    return await listed(opened, RecordFilter("round", status=status), cursor, limit, who)


@router.get("/rounds/{round_id}", responses=reads(Round))
async def get_round(round_id: Id, opened: Open, who: Who, as_of: AsOf = None) -> Response:
    """Show a round with its updates and measures."""
    return await show(opened, who, Round, round_id, RoundNotFoundError, as_of)


@router.post("/training/enable", responses=shows(TrainingMode))
async def enable_training(command: training.EnableTraining, opened: Open, who: Who, sent: Sent) -> Response:
    """Switch training mode on; the answer carries the fence."""
    return await act(opened, training.enable_training, command, who, sent)


@router.post("/training/disable", responses=shows(TrainingMode))
async def disable_training(command: training.DisableTraining, opened: Open, who: Who, sent: Sent) -> Response:
    """Switch training mode off."""
    return await act(opened, training.disable_training, command, who, sent)


STATUS = object_of(
    status={"enum": ["training", "idle"]},
    active="boolean",
    round=["string", "null"],
    current_metrics=["object", "null"],
    marketplace_pending_contract=["object", "null"],
)


@router.get("/training/status", responses=answers(STATUS))
async def training_status(opened: Open, who: Who) -> Response:
    """Say what trains now, how the latest round went, and which contract waits for its money."""
    running = await _newest(opened, who, RecordFilter("round", status="started"))
    latest = running or await _newest(opened, who, RecordFilter("round"))
    pending = await _newest(opened, who, RecordFilter("contract", contains={"payout_status": "pending"}))
    return json_response(
        {
            "status": "training" if running else "idle",
            "active": running is not None,
            "round": latest["id"] if latest else None,
            "current_metrics": latest["after"] if latest else None,
            "marketplace_pending_contract": None
            if pending is None
            else {
                "contract_id": pending["id"],
                "round_id": pending["execution_round"] or pending["round_id"],
                "offer_count": pending["offer_count"],
                "agreed_price_per_round_total": pending["agreed_price_per_round_total"],
                "status": pending["status"],
            },
        }
    )


@router.get("/training/status/{tenant}", responses=reads(TrainingMode))
async def training_mode(tenant: Id, opened: Open, who: Who) -> Response:
    """Show the training lock of a tenant."""
    if tenant != who.tenant and not sees_all(who):
        raise ForbiddenError("this is another tenant's lock", tenant=tenant)
    stream = f"training/{tenant}"
    loaded = (await opened.reader.load([stream])).get(stream)
    mode = loaded.aggregate if loaded else TrainingMode(id=tenant, tenant=tenant)
    assert isinstance(mode, TrainingMode)
    return json_response(msgspec.to_builtins(mode) | {"enabled": mode.is_on(opened.clock())})


SUMMARY = object_of(
    marketplace=object_of(
        offers_total="integer",
        open_intents="integer",
        contracts_total="integer",
        locked_escrow_total="object",
        released_payout_total="object",
    ),
    governance=object_of(disputes_total="integer", disputes_open="integer"),
    federated_learning=object_of(
        current_round=["string", "null"],
        current_accuracy=["string", "null"],
        current_loss=["string", "null"],
        histories="array",
    ),
    log=object_of(size="integer"),
)


@router.get("/metrics_summary", responses=answers(SUMMARY))
async def metrics_summary(opened: Open, who: Who) -> Response:
    """Sum the market up: offers, intents, contracts, escrow, payouts, disputes and the latest training."""
    party = None if sees_all(who) else who.tenant
    counts = await opened.reader.market_counts(party)
    latest = await _newest(opened, who, RecordFilter("round", status="completed"))
    after = latest["after"] if latest else None
    totals = await opened.reader.contract_totals(party)
    return json_response(
        {
            "marketplace": {
                "offers_total": counts.get(("offer", None), 0),
                "open_intents": counts.get(("intent", "open"), 0),
                "contracts_total": counts.get(("contract", None), 0),
                "locked_escrow_total": _by_currency(totals, "locked"),
                "released_payout_total": _by_currency(totals, "released"),
            },
            "governance": {
                "disputes_total": counts.get(("dispute", None), 0),
                "disputes_open": counts.get(("dispute", "open"), 0)
                + counts.get(("dispute", "under_review"), 0),
            },
            "federated_learning": {
                "current_round": latest["id"] if latest else None,
                "current_accuracy": after["accuracy"] if after else None,
                "current_loss": after["loss"] if after else None,
                "histories": latest["history"] if latest else [],
            },
            "log": {"size": await opened.reader.size()},
        }
    )


def _by_currency(totals: list[tuple[str, str, int]], status: str) -> dict[str, str]:
    return {currency: print_nano(nano, currency) for state, currency, nano in totals if state == status}


async def _newest(opened: Runtime, who: Caller, wanted: RecordFilter) -> dict[str, Any] | None:
    if not sees_all(who):
        wanted = wanted._replace(party=who.tenant)
    found = await opened.reader.records(wanted, before=None, limit=1)
    return found[0] if found else None
