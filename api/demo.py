"""`soma demo`: the whole marketplace loop on real data, played over the public HTTP API.

Three clinics hold parts of the public breast-cancer data set; a laboratory pays them for training on it. Then a persona
is published (`api/demo_personas.py`), rented, used and billed (`api/demo_commerce.py`). Nothing here reaches past the
API: what the story shows is what a client gets.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from api.demo_commerce import rent_persona
from api.demo_data import breast_cancer_csv
from api.demo_personas import publish_persona
from api.demo_stage import Actor, Reply, Stage, StoryError, expect, service, soma
from domain.errors import LedgerError
from domain.log.audit_proof import verify_receipt
from ops.settings import Settings

TASK = "breast-cancer-diagnosis"
CLINICS = {"clinic-north": "40.00", "clinic-south": "35.50", "clinic-east": "50.00"}
BUDGET_SHORT = "20.00"
BUDGET = "130.00"
DEPOSIT = "500.00"
COMMUNICATION_ROUNDS = 20
TRAINING_S_MAX = 60
POLL_S = 0.1
HISTORY_ROWS_SHOWN = 8


class Cast(NamedTuple):
    """Who acts."""

    clinics: dict[str, Actor]
    lab: Actor
    operator: Actor
    auditor: Actor


def play(settings: Settings, url: str | None = None, *, stay: bool = False) -> int:
    """Play the story; give the exit status, 0 where all of it went as it should."""
    console = Console()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    settings = settings.model_copy(update={"data_dir": settings.data_dir.resolve()})
    try:
        with service(settings, url, console) as (found, child):
            stage = Stage(settings, found, console)
            with stage.client:
                tell(stage)
            if stay and child is not None:
                _stay(stage, child)
    except (StoryError, LedgerError, httpx.HTTPError) as problem:
        # Printed as it is: a problem document may hold brackets that rich would take for markup.
        console.print("\n[bold red]The story ended early.[/bold red]")
        console.print(f"{type(problem).__name__}: {problem}", markup=False, highlight=False)
        return 1
    return 0


def tell(stage: Stage) -> None:
    """Tell the six steps, then prove them."""
    started = time.perf_counter()
    cast = Cast(
        clinics={name: stage.actor(f"{name}-desk", name, "provider") for name in CLINICS},
        lab=stage.actor("lab-lead", "lab", "owner"),
        operator=stage.actor("desk", "platform", "operator"),
        auditor=stage.actor("outsider", "audit-office", "auditor"),
    )
    _clear(cast)
    create_offers(stage, cast)
    intent_id = create_intent(stage, cast)
    contract = match_contract(stage, cast, intent_id)
    train(stage, cast, contract)
    release(stage, cast, contract)
    inspect(stage, cast, contract)
    prove(stage, cast, contract)
    ending = "six steps, a proof, and books that sum to zero"
    if (capsule := publish_persona(stage)) is not None:
        rent_persona(stage, capsule)
        ending += "; and a persona that nobody could have published alone, rented, used and billed"
    _summary(stage, cast, time.perf_counter() - started, ending)


def _clear(cast: Cast) -> None:
    """Take earlier offers of the clinics off the market, so that each telling starts alike."""
    for clinic in cast.clinics.values():
        for offer in clinic.get("/v1/offers", status="active", task=TASK, limit=500).body["items"]:
            if offer["tenant"] == clinic.tenant:
                clinic.post(f"/v1/offers/{offer['id']}/retire")


# --------------------------------------------------------------------------- 1. offers


def create_offers(stage: Stage, cast: Cast) -> None:
    """Upload each clinic's data and put it on the market."""
    stage.heading(1, "Create offers")
    rows = []
    for (name, price), data in zip(CLINICS.items(), breast_cancer_csv(len(CLINICS)), strict=True):
        clinic = cast.clinics[name]
        dataset = clinic.upload("/v1/datasets", data)
        stage.note("1 offer", f"{name} uploads {dataset.body['row_count']} rows", dataset)
        offer = clinic.post("/v1/offers", _offer(name, price, dataset.body))
        stage.note("1 offer", f"{name} lists an offer", offer)
        rows.append((name, dataset.body["row_count"], f"{price} USD", offer.body["id"]))
    stage.table(("clinic", "rows", "price", "offer"), rows)


def _offer(name: str, price: str, dataset: dict[str, Any]) -> dict[str, Any]:
    return {
        "seller_node_id": name,
        "dataset_fingerprint": dataset["fingerprint"],
        "title": f"Breast masses, measured at {name}",
        "description": "Thirty measurements of cell nuclei from fine needle aspirates; the target is benign or not.",
        "modality": "tabular",
        "sample_count": dataset["row_count"],
        "quality_score": "0.8",
        "allowed_tasks": [TASK],
        "price_per_round": {"amount": price, "currency": "USD"},
        "min_rounds": 10,
    }


# --------------------------------------------------------------------------- 2. intent


def create_intent(stage: Stage, cast: Cast) -> str:
    """Open an intent that first asks for too much for its money, and amend it as the diagnosis says."""
    stage.heading(2, "Create an intent")
    deposit = cast.operator.post(
        "/v1/deposits",
        {"tenant": "lab", "amount": {"amount": DEPOSIT, "currency": "USD"}, "memo": "wire of the laboratory"},
    )
    stage.note("2 intent", f"the operator deposits {DEPOSIT} USD for lab", deposit)
    wish = {
        "model_owner_id": "lab",
        "task_type": TASK,
        "required_modalities": ["tabular"],
        "min_quality_score": "0.7",
        "budget_total": {"amount": BUDGET_SHORT, "currency": "USD"},
    }
    opened = cast.lab.post("/v1/intents", wish)
    intent_id: str = opened.body["id"]
    stage.note("2 intent", f"lab opens an intent with a budget of {BUDGET_SHORT} USD", opened)
    failed = cast.lab.post(f"/v1/intents/{intent_id}/match", {"max_offers": 3}, status=422)
    stage.note("2 intent", f"no match: {failed.body['code']}", failed, failed.body["details"]["position"])
    _diagnosis(stage, failed.body["details"]["diagnostics"])
    budget = {"amount": BUDGET, "currency": "USD"}
    looked = cast.lab.post(
        "/v1/policy/preview", {"round_intent_id": intent_id, "policy_overrides": {"budget_total": budget}}
    ).body["preview"]
    expect(looked["matched"], "the preview with the larger budget finds a match")
    stage.say(f"A preview with {BUDGET} USD would choose {len(looked['selected'])} offers; it wrote nothing.")
    amended = cast.lab.patch(f"/v1/intents/{intent_id}", {"budget_total": budget})
    stage.note("2 intent", f"lab raises the budget to {BUDGET} USD", amended)
    return intent_id


def _diagnosis(stage: Stage, diagnostics: dict[str, Any]) -> None:
    reasons = ", ".join(
        f"{reason} {count}" for reason, count in sorted(diagnostics["rejection_reasons"].items())
    )
    stage.say(
        f"{diagnostics['offers_evaluated']} offers were looked at, none matched: [yellow]{reasons}[/yellow]"
    )
    proposals = diagnostics["would_match"]
    expect(proposals, "the diagnosis says what would have matched")
    for proposal in proposals:
        bound = proposal.get("at_least") or proposal.get("at_most") or ", ".join(proposal.get("one_of") or [])
        word = "at least" if "at_least" in proposal else "at most" if "at_most" in proposal else "one of"
        stage.say(
            f"It would match with [green]{proposal['change']} {word} {bound}[/green] ({len(proposal['offers'])} offer)"
        )


# --------------------------------------------------------------------------- 3. contract


def match_contract(stage: Stage, cast: Cast, intent_id: str) -> str:
    """Match the intent; show why these offers."""
    stage.heading(3, "Match a contract")
    matched = cast.lab.post(f"/v1/intents/{intent_id}/match", {"max_offers": 3})
    contract = matched.body
    stage.note(
        "3 match",
        f"{contract['offer_count']} offers for {_money(contract['agreed_price_per_round_total'])}",
        matched,
    )
    parts = ("quality_component", "cost_component", "trust_component", "total")
    rows = [
        (
            chosen["seller"],
            _money(chosen["price_per_round"]),
            *(chosen["score_breakdown"][part] for part in parts),
        )
        for chosen in contract["selected_offers"]
    ]
    stage.table(("seller", "price", "quality", "cost", "trust", "score"), rows)
    found = contract["selection_diagnostics"]
    stage.say(
        f"Contract {contract['id']} over {_money(contract['agreed_price_per_round_total'])}; "
        f"optimal: {found['optimal']}, gap {found['gap']}, by {found['method']}."
    )
    expect(contract["offer_count"] == len(CLINICS), "all three clinics are in the contract")
    contract_id: str = contract["id"]
    return contract_id


# --------------------------------------------------------------------------- 4. training


def train(stage: Stage, cast: Cast, contract_id: str) -> None:
    """Put the money in escrow and train; show the model getting better."""
    stage.heading(4, "Trigger a training round")
    before = _balance(cast.lab, "wallet.lab.USD")
    funded = cast.lab.post(f"/v1/contracts/{contract_id}/fund")
    after = _balance(cast.lab, "wallet.lab.USD")
    stage.note("4 train", "lab puts the agreed sum into escrow", funded)
    shown = ("balance", "held", "available")
    stage.table(
        ("wallet.lab.USD", *shown),
        [(w, *(b[n] for n in shown)) for w, b in (("before", before), ("after", after))],
    )
    total = Decimal(funded.body["agreed_price_per_round_total"]["amount"])
    expect(Decimal(before["available"]) - Decimal(after["available"]) == total, "the agreed sum is on hold")
    ask = {"contract_id": contract_id, "communication_rounds": COMMUNICATION_ROUNDS}
    started = cast.lab.post("/v1/rounds", ask)
    stage.note("4 train", "a training round starts", started)
    training = _await_round(stage, cast.lab, started.body["id"])
    stage.note(
        "4 train",
        f"the round is {training.body['status']}",
        training,
        _last_position(cast, started.body["id"]),
    )
    _history(stage, training.body)


def _await_round(stage: Stage, lab: Actor, round_id: str) -> Reply:
    began = time.monotonic()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=stage.console, transient=True) as progress:
        progress.add_task(
            f"federated averaging over {len(CLINICS)} clinics, {COMMUNICATION_ROUNDS} communication rounds"
        )
        while True:
            found = lab.get(f"/v1/rounds/{round_id}")
            if found.body["status"] not in ("created", "started"):
                break
            expect(time.monotonic() - began < TRAINING_S_MAX, f"training ends within {TRAINING_S_MAX} s")
            time.sleep(POLL_S)
    expect(found.body["status"] == "completed", f"the round completes: {found.body['failure']}")
    return found._replace(elapsed_ms=(time.monotonic() - began) * 1_000)


def _history(stage: Stage, training: dict[str, Any]) -> None:
    history = [("before", training["before"])] + [(str(i), m) for i, m in enumerate(training["history"], 1)]
    every = -(-len(history) // HISTORY_ROWS_SHOWN)
    rows = [(n, m["loss"], m["accuracy"], m["auc"]) for n, m in [*history[:-1:every], history[-1]]]
    stage.say("The model after each communication round, on held-out rows of all three clinics:")
    stage.table(("round", "loss", "accuracy", "AUC"), rows)
    updates = [
        (u["seller"], u["row_count"], u["loss_before"], u["loss_after"], _short(u["update_address"]))
        for u in training["updates"]
    ]
    stage.table(("clinic", "rows", "loss before", "after", "update"), updates)
    stage.say(f"Result: {_short(training['model_address'])}, a content-addressed object like every update.")
    expect(
        Decimal(training["after"]["loss"]) < Decimal(training["before"]["loss"]), "training lowers the loss"
    )


# --------------------------------------------------------------------------- 5. release


def release(stage: Stage, cast: Cast, contract_id: str) -> None:
    """Pay the clinics, once and never twice."""
    stage.heading(5, "Release the escrow")
    path, key = f"/v1/contracts/{contract_id}/release", f"demo-release-{contract_id}"
    paid = cast.lab.post(path, key=key)
    entry = _released(cast, contract_id)
    shares = entry["data"]["shares"]
    stage.note("5 release", "the clinics are paid", paid, entry["position"])
    stage.table(
        ("seller", "paid", "fee"), [(s["seller"], _money(s["paid"]), _money(s["fee"])) for s in shares]
    )
    total = Decimal(paid.body["agreed_price_per_round_total"]["amount"])
    split = sum((Decimal(share[part]["amount"]) for share in shares for part in ("paid", "fee")), Decimal())
    expect(split == total, f"shares and fees come to the agreed sum: {split} of {total}")
    again = cast.lab.post(path, key=f"{key}-again", status=409)
    expect(
        again.body["code"] == "contract_already_released",
        f"a second release is refused: {again.body['code']}",
    )
    stage.note("5 release", f"a second release is refused: {again.status} {again.body['code']}", again)
    repeat = cast.lab.post(path, key=key)
    expect(repeat.body["receipt"]["repeated"], "the same key hears the first answer")
    expect(_said(repeat) == _said(paid), "the repeated answer is the first one")
    stage.note("5 release", "the same Idempotency-Key hears the first answer", repeat, entry["position"])
    stage.say(
        f"Again with another key: [yellow]{again.status} {again.body['code']}[/yellow]. "
        "With the same key: the first answer."
    )
    _books(stage, cast)


def _said(reply: Reply) -> dict[str, Any]:
    return {name: value for name, value in reply.body.items() if name != "receipt"}


def _released(cast: Cast, contract_id: str) -> dict[str, Any]:
    entries = cast.lab.get(f"/v1/contracts/{contract_id}/timeline").body["entries"]
    found: dict[str, Any] = next(entry for entry in entries if entry["event"] == "escrow_released")
    return found


def _books(stage: Stage, cast: Cast) -> None:
    accounts = cast.operator.get("/v1/accounts").body["items"]
    ours = {f"earnings.{clinic}.USD" for clinic in CLINICS} | {
        "wallet.lab.USD",
        "fees.platform.USD",
        "cash.platform.USD",
    }
    rows = [(a["account"], a["side"], a["balance"], a["held"]) for a in accounts if a["account"] in ours]
    stage.table(("account", "side", "balance", "held"), rows)
    books = cast.operator.get("/v1/trial_balance").body
    for row in books["currencies"]:
        left = Decimal(row["debits"]) - Decimal(row["credits"])
        stage.say(
            f"All books in {row['currency']}: debits {row['debits']} - credits {row['credits']} = [green]{left}[/green]"
        )
        expect(left == 0, f"the books in {row['currency']} sum to zero")
    expect(books["balanced"], "the service says so too")


# --------------------------------------------------------------------------- 6. timeline and metrics


def inspect(stage: Stage, cast: Cast, contract_id: str) -> None:
    """Show what happened to the contract, to whoever is a party to it, and what the market came to."""
    stage.heading(6, "Inspect timeline and metrics")
    timeline = cast.lab.get(f"/v1/contracts/{contract_id}/timeline")
    entries = timeline.body["entries"]
    stage.note("6 inspect", f"timeline of {len(entries)} entries", timeline)
    stage.table(
        ("position", "at", "event", "actor", "address"),
        [(e["position"], e["at"][11:23], e["event"], e["actor"], _short(e["address"])) for e in entries],
    )
    told = [e["event"] for e in entries]
    expect(
        told == ["created", "escrow_funded", "bound_to_round", "round_completed", "escrow_released"],
        f"the timeline is whole: {told}",
    )
    seller = next(iter(cast.clinics.values()))
    same = seller.get(f"/v1/contracts/{contract_id}/timeline").body == timeline.body
    expect(same, f"{seller.tenant} is told the same as lab")
    status = cast.lab.get("/v1/training/status")
    pending = status.body["marketplace_pending_contract"]
    stage.note("6 inspect", f"training is {status.body['status']}", status)
    waiting = pending["contract_id"] if pending else "none"
    stage.say(f"Training: {status.body['status']}; contract waiting for its money: {waiting}.")
    summary = cast.operator.get("/v1/metrics_summary")
    stage.note("6 inspect", "summary of the market", summary)
    market, learning = summary.body["marketplace"], summary.body["federated_learning"]
    rows = [(name, _flat(value)) for name, value in market.items()]
    rows += [(name, learning[name]) for name in ("current_accuracy", "current_loss")]
    stage.table(("metric", "value"), rows)


def _flat(value: object) -> object:
    return ", ".join(f"{v} {k}" for k, v in value.items()) or "0" if isinstance(value, dict) else value


# --------------------------------------------------------------------------- proof


def prove(stage: Stage, cast: Cast, contract_id: str) -> None:
    """Check one record offline by its receipt, then export the whole log and verify the file."""
    stage.heading(7, "Prove it, without trusting the service")
    entries = cast.lab.get(f"/v1/contracts/{contract_id}/timeline").body["entries"]
    position = entries[-1]["position"]
    place = stage.settings.data_dir / "proofs"
    place.mkdir(parents=True, exist_ok=True)
    record = cast.lab.get(f"/v1/log/records/{position}")
    receipt = cast.lab.get(f"/v1/log/receipts/{position}")
    vkey = cast.lab.get("/log.vkey").content.decode().strip()
    (place / f"{position}.json").write_bytes(record.content)
    (place / f"{position}.tlog-proof").write_bytes(receipt.content)
    report = verify_receipt(receipt.content, record.content, vkey)
    expect(report.ok and report.position == position, f"the receipt proves its record: {report.findings}")
    expect(report.address == entries[-1]["address"], "the address is the hash of the bytes")
    stage.note("proof", "the receipt of the release is checked offline", receipt, position)
    stage.say(
        f"Receipt of position {position}: [green]in the log[/green] of {report.size} records with root {report.root}"
    )
    spoiled = record.content.replace(b"escrow_released", b"escrow_refunded", 1)
    found = [finding.code for finding in verify_receipt(receipt.content, spoiled, vkey).findings]
    expect(found, "a changed record is found out")
    stage.say(f"The same receipt with one word of the record changed: [yellow]{', '.join(found)}[/yellow]")
    _audit(stage, vkey, place)


def _audit(stage: Stage, vkey: str, place: Path) -> None:
    """Let the command line export the log over HTTP and verify the file, as an outsider would."""
    file = place / f"log-{datetime.now(UTC):%Y%m%d-%H%M%S}.zip"
    token = stage.token("outsider", "audit-office", "auditor")
    exported = soma("audit", "export", str(file), "--url", stage.url, token=token)
    stage.note("proof", f"the log is exported to {file.name}", exported)
    verified = soma("audit", "verify", str(file), "--key", vkey)
    stage.note("proof", f"soma audit verify {file.name}: no broken promise", verified)
    stage.console.print(verified.content.decode().strip(), markup=False, highlight=False)


# --------------------------------------------------------------------------- the end


def _summary(stage: Stage, cast: Cast, elapsed_s: float, ending: str) -> None:
    """Print what happened, each line with its place in the log."""
    addresses = _addresses(
        cast.auditor, [event.position for event in stage.events if event.position is not None]
    )
    stage.console.print()
    stage.console.rule("[bold]What happened[/bold]", align="left")
    stage.table(
        ("step", "what", "position", "address", "ms"),
        [
            (
                e.step,
                e.what,
                "" if e.position is None else e.position,
                addresses.get(e.position, ""),
                f"{e.elapsed_ms:.1f}",
            )
            for e in stage.events
        ],
    )
    steps = {event.step.partition(" ")[0] for event in stage.events}
    expect(steps >= set("123456"), "all six steps were played")
    stage.say(f"\n[bold green]The loop is closed[/bold green] in {elapsed_s:.1f} s: {ending}.")


def _addresses(auditor: Actor, positions: Sequence[int]) -> dict[int | None, str]:
    return {p: _short(auditor.get(f"/v1/log/events/{p}").body["address"]) for p in set(positions)}


def _last_position(cast: Cast, round_id: str) -> int:
    position: int = cast.lab.get(f"/v1/log/timeline/round/{round_id}").body["entries"][-1]["position"]
    return position


def _balance(actor: Actor, account: str) -> dict[str, str]:
    balance: dict[str, str] = actor.get(f"/v1/accounts/{account}").body
    return balance


def _money(money: dict[str, str]) -> str:
    return f"{money['amount']} {money['currency']}"


def _short(address: str) -> str:
    return f"{address[:17]}…"


def _stay(stage: Stage, child: subprocess.Popen[str]) -> None:
    """Keep the service up until somebody stops it."""
    words = f"soma token --data-dir {stage.settings.data_dir} --tenant lab --role owner"
    with suppress(KeyboardInterrupt):
        stage.say(f"\nThe service stays up at [bold]{stage.url}[/bold]; a token: [bold]{words}[/bold]")
        stage.say("Ctrl-C ends it.")
        # Asked again and again: a signal another thread took would not wake a wait without end.
        while child.poll() is None:
            time.sleep(POLL_S)
        raise StoryError(f"the service ended by itself, with {child.returncode}")
