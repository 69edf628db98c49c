"""The third act of the demonstration: the persona is rented, used, given back and billed, and a line is traced down.

Somebody new rents it each time the story is told, so that a bill holds what is told here and nothing else. What is
asked are the questions of the persona's own cases, metered by their words. The day they are billed for is not over
yet; what is shown is drawn up by what draws up its invoice, from what the log holds by then.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec

from api.demo_stage import Actor, Reply, Stage, expect
from domain.log.audit_proof import verify_receipt

MINUTES = 90
DEPOSIT = "25.00"
METER = "gateway"
BOOK = "platform.demo"
PRICES = {"tokens_in": ("words asked", "0.40", "1000"), "requests": ("questions", "0.02", "1")}
PAGE = 500


class Renting(NamedTuple):
    """Who acts, and what it is about."""

    renter: Actor
    gateway: Actor
    operator: Actor
    seller: str
    persona: str
    manifest: dict[str, Any]
    questions: list[str]
    currency: str


def rent_persona(stage: Stage, capsule: str) -> None:
    """Play the act, about a capsule that is on the market."""
    renting = _cast(stage, capsule)
    rental, before = rent(stage, renting)
    first, last = use(stage, renting, rental)
    give_back(stage, renting, rental, before)
    line = bill(stage, renting, first, last)
    trace(stage, renting, rental, line)


def _cast(stage: Stage, capsule: str) -> Renting:
    operator = stage.actor("desk", "platform", "operator")
    told = sum(one["id"].startswith("readers-") for one in _all(operator, "/v1/customers"))
    tenant = f"readers-{told + 1}"
    renter = stage.actor("rhea", tenant, "owner")
    found = renter.get(f"/v1/capsules/{capsule}").body
    about, pricing = found["manifest"]["metadata"], found["manifest"]["pricing"]
    folder = stage.settings.data_dir / "demo" / f"{about['persona_id']}-{about['version']}"
    cases = json.loads((folder / "cases.json").read_text("utf-8"))["cases"]
    return Renting(
        renter=renter,
        gateway=stage.actor("gate", tenant, "service"),
        operator=operator,
        seller=found["tenant"],
        persona=about["persona_id"],
        manifest=found["manifest"],
        questions=[case["query"] for case in cases],
        currency=next(one["price"]["currency"] for one in pricing if one["model"] == "rental"),
    )


def _all(actor: Actor, path: str) -> list[Any]:
    """Read a list to its end."""
    items: list[Any] = []
    cursor: dict[str, Any] = {}
    while True:
        page = actor.get(path, limit=PAGE, **cursor).body
        items += page["items"]
        if page["next"] is None:
            return items
        cursor = {"cursor": page["next"]}


# --------------------------------------------------------------------------- 11. rent


def rent(stage: Stage, renting: Renting) -> tuple[str, dict[str, Decimal]]:
    """Ask for the price, reserve it, and let the time run; give the rental, and the balances before."""
    stage.heading(11, "Rent it")
    money = {"amount": DEPOSIT, "currency": renting.currency}
    deposit = {"tenant": renting.renter.tenant, "amount": money}
    stage.note(
        "11 rent", f"the operator deposits {_money(money)}", renting.operator.post("/v1/deposits", deposit)
    )
    _enroll(stage, renting)
    before = _balances(renting)
    wish = {"minutes": MINUTES}
    quote = renting.renter.post(f"/v1/personas/{renting.persona}/rent/quote", wish).body
    stage.say(
        f"{renting.persona} costs {_money(quote['price'])} for {quote['period_minutes']} minutes; "
        f"{MINUTES} minutes are {quote['minutes']} begun ones: [green]{_money(quote['amount'])}[/green]"
    )
    made = renting.renter.post(f"/v1/personas/{renting.persona}/rent", wish)
    stage.note("11 rent", f"rhea rents {renting.persona} for {made.body['minutes']} minutes", made)
    expect(made.body["reserved"] == quote["amount"], "what was quoted is reserved")
    rental: str = made.body["id"]
    expect(_check(renting, rental)["why"] == "not_activated", "the time does not run yet")
    active = renting.renter.post(f"/v1/rentals/{rental}/activate")
    stage.note("11 rent", "the time runs; an access token is handed out", active)
    granted = _check(renting, rental)
    expect(granted["granted"] and granted["checked_at"] < granted["expires_at"], "access is granted")
    stage.say(f"Access is granted until {granted['expires_at']}, and not at it.")
    return rental, before


def _enroll(stage: Stage, renting: Renting) -> None:
    """Publish the book of the demonstration, once, and make the renter a customer who is billed by it."""
    if BOOK not in [one["id"] for one in _all(renting.operator, "/v1/price_books")]:
        charges = [
            {
                "id": meter,
                "meter": meter,
                "description": what,
                "price": {"model": "per_unit", "price": price, "per": per},
            }
            for meter, (what, price, per) in PRICES.items()
        ]
        body = {"book": BOOK.partition(".")[2], "currency": renting.currency, "charges": charges}
        stage.note(
            "11 rent", f"the price book {BOOK} is published", renting.operator.post("/v1/price_books", body)
        )
    plan = {"tenant": renting.renter.tenant, "book": BOOK, "every": "day", "zone": "UTC"}
    enrolled = renting.operator.post("/v1/customers", plan)
    stage.note("11 rent", f"{renting.renter.tenant} is a customer, billed by the day", enrolled)


def _check(renting: Renting, rental: str) -> dict[str, Any]:
    found: dict[str, Any] = renting.renter.get(f"/v1/rentals/{rental}/entitlement", epoch=1).body
    return found


def _balances(renting: Renting) -> dict[str, Decimal]:
    """Read who has what: the renter, the seller, and the platform."""
    ours = {
        f"wallet.{renting.renter.tenant}.{renting.currency}",
        f"earnings.{renting.seller}.{renting.currency}",
        f"fees.platform.{renting.currency}",
    }
    rows = renting.operator.get("/v1/accounts").body["items"]
    found = {row["account"]: Decimal(row["balance"]) for row in rows if row["account"] in ours}
    return {account: found.get(account, Decimal()) for account in sorted(ours, reverse=True)}


# --------------------------------------------------------------------------- use


def use(stage: Stage, renting: Renting, rental: str) -> tuple[int, int]:
    """Meter the persona's own questions, one reading each, sent twice; give the first and the last position."""
    model = renting.manifest["model_box"]
    at = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    readings = [
        {
            "source": METER,
            "event_id": f"{rental}-{number}",
            "occurred_at": at,
            "provider": model["provider"],
            "model": model["model_box_id"],
            "tokens_in": len(question.split()),
            "tokens_out": 0,
            "rental_id": rental,
            "persona_id": renting.persona,
        }
        for number, question in enumerate(renting.questions)
    ]
    taken = renting.gateway.post("/v1/usage", {"readings": readings})
    expect(taken.body["inserted"] == len(readings), f"every reading is taken: {taken.body}")
    stage.note("11 use", f"{len(readings)} readings of its use", taken)
    again = renting.gateway.post("/v1/usage", {"readings": readings}).body
    expect((again["inserted"], again["duplicates"]) == (0, len(readings)), f"none is taken twice: {again}")
    stage.say(
        f"{len(readings)} questions are asked and metered; sent again, {again['duplicates']} are duplicates."
    )
    first: int = taken.body["receipt"]["position"]
    return first, first + len(readings) - 1


# --------------------------------------------------------------------------- end


def give_back(stage: Stage, renting: Renting, rental: str, before: dict[str, Decimal]) -> None:
    """Give the rental back; see that access is over, and that the money went where it should."""
    ended = renting.renter.post(f"/v1/rentals/{rental}/end")
    stage.note("11 end", f"rhea gives it back: {_money(ended.body['charged'])} paid", ended)
    over = _check(renting, rental)
    expect(not over["granted"], "access is over at once")
    after = _balances(renting)
    rows = [(account, before[account], after[account], after[account] - before[account]) for account in after]
    stage.table(("account", "before", "after", "change"), rows)
    changes = [change for *_, change in rows]
    charged = Decimal(ended.body["charged"]["amount"])
    expect(sum(changes) == 0, f"what one has less the others have more: {changes}")
    expect(-changes[0] == charged > 0, f"the renter paid what was charged: {charged}")
    reserved = Decimal(ended.body["reserved"]["amount"])
    stage.say(
        f"Given back: access is [yellow]{over['why']}[/yellow] at once; of {reserved} reserved "
        f"[green]{charged}[/green] were paid and {reserved - charged} are free again."
    )


# --------------------------------------------------------------------------- 12. bill


def bill(stage: Stage, renting: Renting, first: int, last: int) -> dict[str, Any]:
    """Draw the renter's bill up; give a line with its evidence."""
    stage.heading(12, "Bill it, and trace a line")
    drawn = renting.renter.post("/v1/quotes", {"tenant": renting.renter.tenant})
    stage.note("12 bill", f"its bill so far: {_money(drawn.body['bill']['due'])}", drawn)
    lines = drawn.body["bill"]["lines"]
    stage.table(
        ("line", "quantity", "price", drawn.body["bill"]["currency"]),
        [(one["charge"], one["quantity"], _steps(one), one["amount"]["amount"]) for one in lines],
    )
    stage.say(
        f"Due: [green]{_money(drawn.body['bill']['due'])}[/green], as known at {drawn.body['known_at']} records. "
        f"The invoice of this day is drawn up by the same function after {drawn.body['period_end']}."
    )
    quantities = {one["charge"]: Decimal(one["quantity"]) for one in lines}
    words = sum(len(question.split()) for question in renting.questions)
    expect(
        quantities == {"tokens_in": Decimal(words), "requests": Decimal(len(renting.questions))},
        f"what is billed is what was used: {quantities}",
    )
    number = next(i for i, one in enumerate(lines) if one["charge"] == "tokens_in")
    evidence = drawn.body["evidence"][number]
    expect((evidence["first"], evidence["last"]) == (first, last), f"the line names its records: {evidence}")
    return {"line": lines[number], "evidence": evidence}


def _steps(line: dict[str, Any]) -> str:
    return "; ".join(f"{step['quantity']} {step['what']} at {step['price']}" for step in line["steps"])


def trace(stage: Stage, renting: Renting, rental: str, billed: dict[str, Any]) -> None:
    """Go from a line of the bill down to its records, add them up, and prove one of them without the service."""
    evidence = billed["evidence"]
    found = _records(renting, evidence["first"], evidence["last"])
    words = sum(one["record"]["data"]["tokens_in"] for one in found)
    mark = sum(int.from_bytes(bytes.fromhex(one["address"].removeprefix("sha3-512:"))[:8]) for one in found)
    added = (len(found), f"{mark % 2**64:016x}", Decimal(words))
    named = (evidence["events"], evidence["fingerprint"], Decimal(billed["line"]["quantity"]))
    expect(added == named, f"the records add up to the line: {added}, {named}")
    longest = max(found, key=lambda one: one["record"]["data"]["tokens_in"])
    position = longest["position"]
    record, receipt = (renting.renter.get(f"/v1/log/{kind}/{position}") for kind in ("records", "receipts"))
    report = verify_receipt(receipt.content, record.content, _key(renting))
    expect(report.ok and report.address == longest["address"], f"the record is in the log: {report.findings}")
    said = msgspec.json.decode(record.content)["data"]
    expect(said["rental_id"] == rental, "the record names the rental")
    stage.note("12 trace", f"a line, its {len(found)} records, and the proof of one", receipt, position)
    stage.say(
        f"The line's {evidence['events']} records, positions {evidence['first']} to {evidence['last']}, add up to it: "
        f"{words} words, fingerprint {added[1]}."
    )
    stage.say(
        f"One of them, position {position}: {said['tokens_in']} words for {said['persona_id']}, "
        f"[green]proven in the log[/green] of {report.size} records, without the service."
    )


def _records(renting: Renting, first: int, last: int) -> list[dict[str, Any]]:
    """Read the renter's records from a position to another."""
    found: list[dict[str, Any]] = []
    after: int | None = first - 1
    while after is not None and after < last:
        page = renting.renter.get("/v1/log/events", after=after, limit=PAGE).body
        found += [one for one in page["items"] if one["position"] <= last]
        after = page["next"]
    return found


def _key(renting: Renting) -> str:
    reply: Reply = renting.renter.get("/log.vkey")
    return reply.content.decode().strip()


def _money(money: dict[str, str]) -> str:
    return f"{money['amount']} {money['currency']}"
