"""The documented views and every example of the page, held against figures worked out from the log in plain Python."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError

from api.reference_clickhouse import EXAMPLES, views
from ops.engine.process import EmbeddedClickHouse, Target
from tests.real.clickhouse.conftest import client_of, migrate_afresh
from tests.real.clickhouse.warehouse_world import TENANTS, Plain, follow, summed

Ask = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def shown(engine: EmbeddedClickHouse, market: str) -> Target:
    """Lend a ClickHouse into which the whole market was followed; nobody changes it."""
    asyncio.run(migrate_afresh(engine.target))
    asyncio.run(follow(engine.target, market))
    return engine.target


@pytest.fixture(scope="module")
def plain(market: str) -> Plain:
    """Read the log of the market plainly."""
    return Plain(market)


@pytest.fixture(scope="module")
def reader(shown: Target) -> Iterator[Client]:
    """Connect as those who read."""
    with client_of(shown, reader=True) as client:
        yield client


@pytest.fixture(scope="module")
def ask(reader: Client) -> Ask:
    """Ask as those who read."""
    return lambda query, **params: [tuple(row) for row in reader.query(query, parameters=params).result_rows]


# --------------------------------------------------------------------------- every example of the page


class Worked:
    """Answers to the examples, worked out from records."""

    def __init__(self, plain: Plain) -> None:
        self.plain = plain
        first = min(date.fromisoformat(record["at"][:10]) for record in plain.records)
        self.start, self.end = first - timedelta(days=45), first + timedelta(days=30)
        self.contract = plain.of("contract.dispute_opened")[0]["stream"].partition("/")[2]
        self.account = "wallet.lab.USD"

    @property
    def params(self) -> dict[str, Any]:
        return {
            "start": self.start,
            "end": self.end,
            "account": self.account,
            "contract_id": self.contract,
            "persona_id": "ward-helper",
            "position": self.plain.size,
        }

    def revenue(self) -> list[Any]:
        """Sum shares by day and currency."""
        shares = [
            ((record["at"][:10], share["paid"]["currency"]), share)
            for record in self.plain.of("contract.escrow_released")
            for share in record["data"]["shares"]
        ]
        earned = summed((key, Decimal(share["paid"]["amount"])) for key, share in shares)
        fees = summed((key, Decimal(share["fee"]["amount"])) for key, share in shares)
        return [
            (date.fromisoformat(day), currency, earned[day, currency], fees[day, currency])
            for day, currency in sorted(earned)
        ]

    def conversion(self) -> list[Any]:
        """Count steps."""
        types = Counter(record["type"] for record in self.plain.records)
        opened, matched = types["intent.opened"], types["intent.matched"]
        # The engine divides decimals downwards.
        rate = (Decimal(matched) / opened).quantize(Decimal("0.0000001"))
        counts = (types["contract.escrow_funded"], types["contract.escrow_released"])
        return [(opened, matched, *counts, pytest.approx(rate, abs=Decimal("0.0001")))]

    def renewals(self) -> list[Any]:
        """Count what happened to subscriptions, of which there are none."""
        assert not [r for r in self.plain.records if r["stream"].startswith("subscription/")]
        return []

    def escrow(self) -> list[Any]:
        """Fold contracts: which money lies there, and what it waits for."""
        state: dict[str, dict[str, Any]] = {}
        for record in self.plain.records:
            kind, _, name = record["stream"].partition("/")
            if kind == "contract":
                one = state.setdefault(name, {"disputes": 0, "steps": []})
                event = record["type"].partition(".")[2]
                one["disputes"] += (event == "dispute_opened") - (event == "dispute_resolved")
                one["steps"].append(event)
                if event == "created":
                    one["sum"] = record["data"]["agreed_price_per_round_total"]
        found = []
        for one in state.values():
            steps = set(one["steps"])
            if "escrow_funded" in steps and not steps & {
                "escrow_released",
                "escrow_refunded",
                "escrow_expired",
            }:
                risk = "disputed" if one["disputes"] else "ready" if "round_completed" in steps else "waiting"
                found.append(((risk, one["sum"]["currency"]), Decimal(one["sum"]["amount"])))
        sums, counts = summed(found), Counter(key for key, _ in found)
        return [(*key, counts[key], sums[key]) for key in sorted(sums)]

    def rejections(self) -> list[Any]:
        """Count reasons, in failures and in matches."""
        counted: Counter[str] = Counter()
        matchings: Counter[str] = Counter()
        for record in self.plain.of("intent.match_failed", "contract.created"):
            told = record["data"].get("diagnostics") or record["data"]["selection_diagnostics"]
            counted.update(told["rejection_reasons"])
            matchings.update(told["rejection_reasons"].keys())
        return sorted(((r, n, matchings[r]) for r, n in counted.items()), key=lambda row: (-row[1], row[0]))[
            :10
        ]

    def usage(self) -> list[Any]:
        """Sum readings by model."""
        rows = []
        for record in self.plain.of("usage.metered"):
            d = record["data"]
            errors = d["requests"] * (d["status"] == "error")
            rows.append(
                ((d["provider"], d["model"]), (d["requests"], errors, d["tokens_in"], d["tokens_out"]))
            )
        keys = sorted({key for key, _ in rows})
        return [(*key, *map(sum, zip(*(v for k, v in rows if k == key), strict=True))) for key in keys]

    def costs(self) -> list[Any]:
        """Sum costs by provider."""
        told = [record["data"] for record in self.plain.of("usage.metered") if record["data"]["cost"]]
        sums = summed(((d["provider"], d["cost"]["currency"]), Decimal(d["cost"]["amount"])) for d in told)
        return [(*key, sums[key]) for key in sorted(sums)]

    def listed(self) -> list[Any]:
        """Sum quantities and costs by model; readings that state no cost have none."""
        keyed = [
            ((d["provider"], d["model"], d["cost"]["currency"] if d["cost"] else ""), d)
            for d in (record["data"] for record in self.plain.of("usage.metered"))
        ]
        found = []
        for key in sorted({key for key, _ in keyed}):
            mine = [d for k, d in keyed if k == key]
            counts = [sum(d[name] for d in mine) for name in ("requests", "tokens_in", "tokens_out")]
            cost = sum(Decimal(d["cost"]["amount"]) for d in mine) if key[2] else None
            found.append((*key, *counts, cost))
        return found

    def spent(self) -> list[Any]:
        """Sum quantities and costs by day; nothing is for a persona, and nobody pays for one."""
        keyed = [
            ((date.fromisoformat(d["occurred_at"][:10]), "", d["cost"]["currency"] if d["cost"] else ""), d)
            for d in (record["data"] for record in self.plain.of("usage.metered"))
        ]
        found = []
        for key in sorted({key for key, _ in keyed}):
            mine = [d for k, d in keyed if k == key]
            tokens = sum(d["tokens_in"] + d["tokens_out"] for d in mine)
            cost = sum(Decimal(d["cost"]["amount"]) for d in mine) if key[2] else 0
            found.append((*key, sum(d["requests"] for d in mine), tokens, cost, 0, 0, 0, 0))
        return found

    def known(self) -> list[Any]:
        """Sum readings by model, none of which was put right."""
        counts = Counter(
            (d["provider"], d["model"]) for d in (r["data"] for r in self.plain.of("usage.metered"))
        )
        return [
            (p, m, counts[p, m], requests, t_in, t_out) for p, m, requests, _, t_in, t_out in self.usage()
        ]

    def balances(self) -> list[Any]:
        """Take the balances of the book the log's own database keeps."""
        moved = {leg.account for leg in self.plain.legs()}
        return [
            (account, account.rpartition(".")[2], balance)
            for account, (_, balance, _) in sorted(self.plain.accounts.items())
            if account in moved
        ]

    def entries(self) -> list[Any]:
        """List the legs of one account."""
        return [
            (leg.position, leg.leg, leg.amount, leg.op, self.plain.records[leg.position]["stream"])
            for leg in self.plain.legs()
            if leg.account == self.account
        ]

    def timeline(self) -> list[Any]:
        """Collect what names the contract, and what belongs to what names it first."""
        found, children = [], {f"contract/{self.contract}"}
        for position, record in enumerate(self.plain.records):
            names_it = record["data"].get("contract_id") == self.contract
            if (
                names_it
                and record["version"] == 1
                and record["type"].partition(".")[0] in ("round", "dispute")
            ):
                children.add(record["stream"])
            if names_it or record["stream"] in children:
                found.append((position, record["type"].partition(".")[2], record["stream"], record["actor"]))
        return found

    def persona(self) -> list[Any]:
        """Collect what is said of the persona, which is no more than a draft."""
        return [
            (position, record["type"].partition(".")[2], record["stream"], record["actor"])
            for position, record in enumerate(self.plain.records)
            if record["stream"] == "persona/ward-helper"
        ]

    def marks(self) -> list[Any]:
        """Name what follows, to the end of the log."""
        names = [
            "billing",
            "billing.rollup",
            "commerce",
            "governance",
            "market",
            "records",
            "usage",
            "usage.rollup",
        ]
        return [(f"clickhouse.{name}", self.plain.size) for name in names]


OF_COMMERCE = (
    "What is open", "What was billed for a period", "Revenue of personas", "Renewal rate", "Recurring revenue",
)  # fmt: skip
OF_CAPSULES = ("Who let a capsule be published", "Attempts that were refused")
ANSWERS: dict[str, Callable[[Worked], list[Any]]] = {
    "Revenue by day": Worked.revenue,
    "Conversion": Worked.conversion,
    "Renewals": Worked.renewals,
    "Escrow at risk": Worked.escrow,
    "Top rejection reasons": Worked.rejections,
    "Usage by model": Worked.usage,
    "What providers charge": Worked.costs,
    "Costs by day and persona": Worked.spent,
    "Costs by provider and model": Worked.listed,
    "Usage as it was known": Worked.known,
    "Balances as of the end of a day": Worked.balances,
    "Entries of an account": Worked.entries,
    "The books balance": lambda _: [],
    "What happened to a contract": Worked.timeline,
    "How far the tables are": Worked.marks,
    "What happened to a persona": Worked.persona,
    # There is no capsule on this market; tests/real/clickhouse/test_governance.py asks these where there are some.
    **dict.fromkeys(OF_CAPSULES, lambda _: []),
    # Nobody is billed here, and no persona is for sale; tests/real/clickhouse/test_commerce.py asks these.
    **dict.fromkeys(OF_COMMERCE, lambda _: []),
}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.title.replace(" ", "-"))
def test_an_example_of_the_page_answers_what_the_log_says(example: Any, ask: Ask, plain: Plain) -> None:
    worked = Worked(plain)
    wanted = ANSWERS[example.title](worked)
    used = {name: value for name, value in worked.params.items() if "{" + name + ":" in example.query}
    found = ask(example.query, **used)
    if example.title in (
        "Entries of an account",
        "What happened to a contract",
        "What happened to a persona",
    ):
        # Moments are left to the mirror's own test.
        place = [c.strip() for c in example.query.split("\n")[0].removeprefix("SELECT").split(",")].index(
            "at"
        )
        found = [row[:place] + row[place + 1 :] for row in found]
    assert found == wanted
    assert wanted or example.title in ("Renewals", "The books balance", *OF_CAPSULES, *OF_COMMERCE)


# --------------------------------------------------------------------------- views


def test_each_view_says_what_it_shows_and_has_a_tenant(ask: Ask) -> None:
    documented = {view.name: [(c.name, c.type) for c in view.columns] for view in views()}
    there = {}
    for name in documented:
        there[name] = [tuple(row[:2]) for row in ask(f"DESCRIBE TABLE bi.{name}")]
    assert there == documented
    assert all(columns[0][0] == "tenant" for columns in documented.values())
    assert len(documented) >= 22


def test_those_who_read_have_no_right_on_the_tables_behind_the_views(ask: Ask) -> None:
    for table in ("records", "entries", "entries_daily", "watermarks"):
        with pytest.raises(DatabaseError):
            ask(f"SELECT count() FROM soma.{table}")
    assert ask("SELECT count() FROM bi.ledger_entries")[0][0] > 100


def test_every_view_can_be_read_and_splits_into_tenants_without_a_rest(ask: Ask) -> None:
    for view in views():
        whole = ask(f"SELECT count() FROM bi.{view.name}")[0][0]
        tenants = [tenant for (tenant,) in ask(f"SELECT DISTINCT tenant FROM bi.{view.name}")]
        parts = [
            ask(
                f"SELECT count() FROM (SELECT * FROM bi.{view.name} WHERE tenant = {{t:String}}) AS x",
                t=tenant,
            )[0][0]
            for tenant in tenants
        ]
        assert sum(parts) == whole, view.name
        assert set(tenants) <= {*TENANTS, "platform"}, view.name


def test_a_tenant_sees_its_own_records_accounts_and_contracts_only(ask: Ask, plain: Plain) -> None:
    for tenant in TENANTS:
        narrowed = f"(SELECT * FROM bi.{{}} WHERE tenant = '{tenant}') AS x"
        mine = [n for n, record in enumerate(plain.records) if record["tenant"] == tenant]
        assert [
            p for (p,) in ask(f"SELECT position FROM {narrowed.format('records')} ORDER BY position")
        ] == mine
        legs = [leg for leg in plain.legs() if leg.account.split(".")[1] == tenant]
        assert ask(f"SELECT count(), sum(amount) FROM {narrowed.format('ledger_entries')}") == [
            (len(legs), sum(leg.amount for leg in legs))
        ]
        contracts = {
            r["stream"].partition("/")[2] for r in plain.of("contract.created") if r["tenant"] == tenant
        }
        assert {c for (c,) in ask(f"SELECT contract_id FROM {narrowed.format('matches')}")} == contracts


@pytest.mark.parametrize(
    "view", ["records", "ledger_entries", "accounts", "balances", "balances_daily", "payouts", "usage",
             "usage_hourly", "forecast_inputs", "offers", "intents", "matches", "rejection_reasons", "usage_entries",
             "costs", "costs_daily"]
)  # fmt: skip
def test_the_tenant_reaches_the_primary_key_through_a_view(view: str, shown: Target) -> None:
    with client_of(shown) as service:
        plan = service.query(
            f"EXPLAIN indexes = 1 SELECT * FROM (SELECT * FROM bi.{view} WHERE tenant = 'lab') AS x"
        ).result_rows
    assert any("tenant in ['lab', 'lab']" in line for (line,) in plan), "\n".join(line for (line,) in plan)


def test_offers_and_intents_stand_as_they_were_last_changed(ask: Ask, plain: Plain) -> None:
    ((retired, status, price, currency, tasks, modality, quality, version),) = ask(
        "SELECT offer_id, status, price, currency, tasks, modality, quality, version FROM bi.offers WHERE version > 1"
    )
    assert (status, price, currency, tasks, modality) == ("retired", 0, "USD", [], "tabular")
    assert quality == Decimal("0.9")
    assert version == len([r for r in plain.records if r["stream"] == f"offer/{retired}"])
    assert ask("SELECT budget, task, currency FROM bi.intents WHERE status = 'cancelled'") == [
        (None, "detection", "USD")
    ]
    found = dict(ask("SELECT status, count() FROM bi.intents GROUP BY status"))
    assert found["matched"] == len(plain.of("intent.matched"))
    assert ask("SELECT sum(match_failures) FROM bi.intents") == [(len(plain.of("intent.match_failed")),)]


def test_contracts_tell_their_money_and_their_disputes(ask: Ask, plain: Plain) -> None:
    found = Counter(ask("SELECT status, escrow FROM bi.matches"))
    created = found["created", "unfunded"]
    assert found == {
        ("released", "released"): 3,
        ("refunded", "refunded"): 1,
        ("funded", "locked"): 1,
        ("created", "unfunded"): created,
    }
    assert ask("SELECT sum(disputes), sum(disputes_open) FROM bi.matches") == [(1, 0)]
    paid = sum(Decimal(r["data"]["payout_amount"]["amount"]) for r in plain.of("contract.escrow_released"))
    assert ask("SELECT sum(paid) FROM bi.matches") == [(paid,)] == ask("SELECT sum(paid) FROM bi.payouts")


def test_revenue_agrees_with_the_ledger_of_fees(ask: Ask) -> None:
    fees = ask("SELECT sum(credits) - sum(debits) FROM bi.balances_daily WHERE purpose = 'fees'")
    assert ask("SELECT sum(fees) FROM bi.revenue_daily WHERE tenant = 'platform'") == fees
    assert ask(
        "SELECT sum(earned) + (SELECT sum(fees) FROM bi.revenue_daily) - sum(spent) FROM bi.revenue_daily"
    ) == [(0,)]


def test_holds_end_once_and_say_how(ask: Ask) -> None:
    assert dict(ask("SELECT status, count() FROM bi.holds GROUP BY status")) == {
        "posted": 3,
        "void": 1,
        "pending": 1,
    }
    assert ask("SELECT count() FROM bi.holds WHERE paid > amount OR tenant = '' OR amount = 0") == [(0,)]


def test_governance_shows_the_lock_rounds_and_disputes(ask: Ask, plain: Plain) -> None:
    found = Counter(kind for (kind,) in ask("SELECT kind FROM bi.governance_activity"))
    wanted = Counter(r["stream"].partition("/")[0] for r in plain.records)
    assert found == {kind: wanted[kind] for kind in ("training", "round", "dispute")}
    assert ask("SELECT reason FROM bi.governance_activity WHERE kind = 'training'") == [("quarterly run",)]
    assert ask("SELECT count() FROM bi.rental_activity") == ask("SELECT count() FROM bi.renewals") == [(0,)]


def test_a_record_is_found_by_its_address(ask: Ask, plain: Plain) -> None:
    address = plain.addresses[7]
    query = "SELECT position, address FROM bi.records WHERE address_bytes = unhex({a:String})"
    assert ask(query, a=address.hex()) == [(7, f"sha3-512:{address.hex()}")]
