"""A month of several customers with everything that makes an invoice hard, exported as an auditor takes it away."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import httpx

from domain.values import moment_of, moment_text
from ops.export import DatabaseOrigin, export
from tests.real.api.world import Speaker, money
from tests.real.billing.billing_desk import CHARGES, Desk

ZONE = "Europe/Berlin"
VAT = [{"name": "VAT", "share": "0.19"}, {"name": "levy", "share": "0.015"}]
# Another price for tokens going out, a volume scale for calls, and a minimum.
LATER = [
    CHARGES[0] | {"price": {"model": "flat", "price": "12.5"}},
    CHARGES[1],
    CHARGES[2] | {"price": {"model": "per_unit", "price": "0.0333333", "per": "1000"}, "minimum": "0.25"},
    {
        "id": "calls",
        "meter": "requests",
        "price": {
            "model": "volume",
            "tiers": [{"price": "0.01", "up_to": "10"}, {"price": "0.005", "flat": "1"}],
        },
    },
]


class Story(NamedTuple):
    """What was done: the customers, and by what name their documents go."""

    desk: Desk
    acme: Speaker
    bolt: Speaker
    invoices: dict[str, dict[str, Any]]

    @property
    def vkey(self) -> str:
        """The key an auditor was given beforehand."""
        return self.desk.service.runtime.signer.key.text

    def export(self, target: Path, *, as_directory: bool = False) -> Path:
        """Take the whole log away."""
        origin = DatabaseOrigin(self.desk.service.runtime)
        self.desk.service.run(export(origin, target, as_directory=as_directory))
        return target

    def bundles(self, invoice: str, line: int) -> list[bytes]:
        """Take one page with all of a line."""
        (page,) = self.pages(self.invoices[invoice]["id"], line, 500)
        return [page]

    def pages(self, invoice: str, line: int, limit: int = 100) -> list[bytes]:
        """Take the pages of a line's proof away."""
        found: list[bytes] = []
        cursor: str | None = ""
        while cursor is not None:
            path = f"/v1/invoices/{invoice}/lines/{line}/proof?limit={limit}{cursor and '&cursor=' + cursor}"
            answer: httpx.Response = self.desk.operator.get(path)
            assert answer.is_success, answer.text
            found.append(answer.content)
            cursor = answer.json()["next"]
        return found


def to_summer_time(desk: Desk) -> None:
    """Let time pass until the local day before the clocks are changed next."""
    zone, day = ZoneInfo(ZONE), desk.now + timedelta(days=2)
    while _offset(day, zone) == _offset(day + timedelta(days=1), zone):
        day += timedelta(days=1)
    midnight = datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)
    desk.go(seconds=(midnight - desk.now).total_seconds(), minutes=5)


def _offset(day: datetime, zone: ZoneInfo) -> timedelta | None:
    return datetime(day.year, day.month, day.day, tzinfo=zone).utcoffset()


def tell(desk: Desk) -> Story:
    """Bill two days of two customers, and put right what came to be known later."""
    to_summer_time(desk)
    acme = desk.customer("acme-2", zone=ZONE, taxes=VAT)
    bolt = desk.customer("bolt", book="platform.standard", taxes=VAT[:1])
    operator = desk.operator
    operator.made("/v1/customers/acme-2/coupons", {"code": "warm-welcome", "share": "0.1", "periods": 1})
    fifty = {"code": "fifty-off-in", "amount": money("0.05"), "charges": ["in"], "periods": 5}
    operator.made("/v1/customers/acme-2/coupons", fifty)
    operator.made("/v1/customers/acme-2/credits", {"amount": money("3")})
    operator.made(
        "/v1/customers/acme-2/credits", {"amount": money("2"), "source": "promotion", "priority": 5}
    )
    changed = desk.now + timedelta(hours=6)
    desk.publish("standard", charges=LATER, effective_from=moment_text(changed), commitment="30")
    day_one = desk.now
    first = _use(desk, acme, bolt, changed)
    desk.next_day()
    made = {"first": operator.made("/v1/invoices", {"tenant": "acme-2"})}
    operator.made("/v1/invoices", {"tenant": "bolt"})
    operator.post(f"/v1/invoices/{made['first']['id']}/pay")
    _late(desk, acme, day_one, first)
    made["correction"] = operator.made(f"/v1/invoices/{made['first']['id']}/correct")
    note = {"amount": money("1.5"), "target": "credits", "reason": "an outage"}
    operator.made(f"/v1/invoices/{made['first']['id']}/credit_notes", note)
    _take_back(desk, acme, first)
    made["again"] = operator.made(f"/v1/invoices/{made['correction']['id']}/correct")
    desk.use(acme, {"tokens_out": 4_000, "cached_tokens": 7}, {"model": "m9", "persona_id": "persona-x"})
    desk.next_day(hours=3)
    made["second"] = operator.made("/v1/invoices", {"tenant": "acme-2"})
    made["bolt"] = operator.made("/v1/invoices", {"tenant": "bolt"})
    return Story(desk, acme, bolt, made)


def _use(desk: Desk, acme: Speaker, bolt: Speaker, changed: datetime) -> list[str]:
    """Use something on both sides of the change of prices; give the names of readings."""
    before, after = (
        moment_text(changed - timedelta(hours=1)),
        moment_text(changed + timedelta(microseconds=1)),
    )
    at = moment_text(changed)
    desk.go(hours=7)
    desk.use(
        acme,
        *[
            {"occurred_at": before, "tokens_in": 40_000 + n, "tokens_out": 3, "event_id": f"b{n}"}
            for n in range(5)
        ],
        *[
            {"occurred_at": at, "tokens_in": 1_001, "tokens_out": 30_333 + n, "event_id": f"a{n}"}
            for n in range(9)
        ],
        {"occurred_at": after, "model": "m2", "tokens_out": 1, "persona_id": "persona-x"},
        {"occurred_at": after, "model": "m2", "tokens_out": 5, "event_id": "wrong"},
    )
    desk.use(bolt, *[{"tokens_in": 777, "tokens_out": 9} for _ in range(6)])
    items = {item["event_id"]: item["id"] for item in acme.read("/v1/usage")["items"]}
    # Put right before it is billed.
    body = {"replaces": 1, "reason": "another model", "model": "m1", "tokens_in": 12}
    acme.made(f"/v1/usage/{items['wrong']}/corrections", body)
    return [items["b0"], items["a0"]]


def _late(desk: Desk, acme: Speaker, day_one: datetime, names: list[str]) -> None:
    """Have usage come after its period was billed, and a reading moved out of the period."""
    desk.use(acme, *[{"occurred_at": moment_text(day_one), "tokens_out": 50_000} for _ in range(3)])
    moved = moment_text(moment_of(moment_text(desk.now)) - timedelta(minutes=1))
    body = {"replaces": 1, "reason": "the clock of the source was wrong", "occurred_at": moved}
    acme.made(f"/v1/usage/{names[0]}/corrections", body)


def _take_back(desk: Desk, acme: Speaker, names: list[str]) -> None:
    """Take a reading back, and put it right once more."""
    none = {"requests": 0, "tokens_in": 0, "tokens_out": 0}
    acme.made(f"/v1/usage/{names[1]}/corrections", {"replaces": 1, "reason": "never happened"} | none)
    acme.made(
        f"/v1/usage/{names[1]}/corrections", {"replaces": 2, "reason": "it did, a little", "requests": 1}
    )
    late = [one for one in acme.read("/v1/usage")["items"] if one.get("tokens_out") == 50_000]
    for one in late:
        body = {"replaces": 1, "reason": "counted twice", "tokens_out": 10}
        acme.made(f"/v1/usage/{one['id']}/corrections", body)
