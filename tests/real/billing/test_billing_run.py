"""The billing run on a real database: each period once, late usage in corrections, dues collected, killed or not."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from domain.errors import BillingRunningError
from domain.values import moment_text
from ops.positions import Place
from projections.billing_run import PLACE
from tests.real.api.world import Speaker
from tests.real.billing.billing_desk import Desk

STOPS = (3, 11, 24, 42)


def invoices(one: Speaker) -> list[dict]:
    """List the documents of a customer, the first first."""
    return one.read("/v1/invoices")["items"][::-1]


def test_everybody_whose_period_is_over_is_billed_once_and_again_changes_nothing(fresh: Desk) -> None:
    customers = [fresh.customer() for _ in range(7)]
    for one in customers:
        fresh.use(one, {"tokens_in": 150_500, "tokens_out": 2_000})
    assert fresh.run() == (0, 0, 0, 0, 0, ())
    fresh.go(days=1)
    assert fresh.run()._asdict() == {
        "billed": 7, "corrected": 0, "waiting": 0, "paid": 7, "unpaid": 0, "refused": ()
    }  # fmt: skip
    size = fresh.size
    assert fresh.run() == (0, 0, 0, 0, 0, ())
    assert fresh.size == size
    for one in customers:
        (made,) = invoices(one)
        # 100,000 at 0.01 and 50,000 at 0.007 a thousand, 500 of them free; 2,000 at 0.03; one package.
        assert (made["status"], made["bill"]["due"]["amount"]) == ("paid", "11.91")
        assert one.read(f"/v1/accounts/wallet.{one.tenant}.USD")["balance"] == "988.09"
    assert fresh.operator.read("/v1/trial_balance")["balanced"]


def test_a_running_service_bills_and_collects_by_itself(fresh: Desk) -> None:
    one, poor = fresh.customer(), fresh.customer(money="1")
    fresh.go(days=1)

    async def start() -> None:
        fresh.service.app.state.billing.start()

    fresh.service.run(start())
    end = time.monotonic() + 60

    def tried(who: Speaker) -> bool:
        made = invoices(who)
        return bool(made) and (made[0]["status"] == "paid" or made[0]["attempts"] > 0)

    while not (tried(one) and tried(poor)):
        assert time.monotonic() < end, "nobody was billed"
        time.sleep(0.05)
    assert [invoices(who)[0]["status"] for who in (one, poor)] == ["paid", "issued"]
    fresh.deposit(poor.tenant, "100")
    # It is tried again on its day, though no period of anybody ends then.
    fresh.service.run(fresh.service.app.state.billing.close())
    fresh.go(days=1, hours=1)
    fresh.run(collect=False)
    fresh.service.run(start())
    while invoices(poor)[0]["status"] != "paid":
        assert time.monotonic() < end, "nobody collected"
        time.sleep(0.05)


def test_a_customer_who_was_not_billed_for_days_gets_one_invoice_for_each(fresh: Desk) -> None:
    one = fresh.customer()
    fresh.go(days=4)
    assert fresh.run().billed == 4
    made = invoices(one)
    assert [m["number"][-6:] for m in made] == ["000001", "000002", "000003", "000004"]
    assert [m["period_end"] for m in made[:-1]] == [m["period_start"] for m in made[1:]]


def test_late_usage_waits_for_its_grace_and_makes_one_correction(fresh: Desk) -> None:
    one = fresh.customer(grace_s=3_600)
    early = moment_text(fresh.now)
    fresh.use(one, {"tokens_out": 100_000})
    fresh.go(days=1, hours=1)
    assert fresh.run().billed == 1
    fresh.use(one, {"tokens_out": 200_000, "occurred_at": early})
    assert fresh.run()[:3] == (0, 0, 1)
    fresh.use(one, {"tokens_out": 50_000, "occurred_at": early})
    fresh.go(hours=1)
    assert fresh.run()[:3] == (0, 1, 0)
    first, second = invoices(one)
    assert (second["kind"], second["corrects"]) == ("correction", first["id"])
    assert (second["owed"]["amount"], second["period_start"]) == ("7.50", first["period_start"])
    size = fresh.size
    assert fresh.run() == (0, 0, 0, 0, 0, ())
    assert fresh.size == size


def test_usage_that_was_put_right_after_its_period_comes_back_as_credit(fresh: Desk) -> None:
    one = fresh.customer()
    fresh.use(one, {"tokens_out": 1_000_000})
    fresh.go(days=1)
    fresh.run()
    (item,) = one.read("/v1/usage")["items"]
    # It is also moved out of its period, so only what it was says that the period is concerned.
    body = {"replaces": 1, "reason": "a test run", "occurred_at": moment_text(fresh.now), "tokens_out": 0}
    one.made(f"/v1/usage/{item['id']}/corrections", body)
    assert fresh.run()[:3] == (0, 1, 0)
    _, back = invoices(one)
    assert (back["owed"]["amount"], back["due"]["amount"]) == ("-30.50", "0.00")
    (credit,) = one.read(f"/v1/customers/{one.tenant}/credits")["items"]
    assert (credit["source"], credit["left"]["amount"]) == ("correction", "30.50")
    assert fresh.operator.read("/v1/trial_balance")["balanced"]


def test_what_cannot_be_paid_is_tried_on_its_days_and_then_overdue(fresh: Desk) -> None:
    one = fresh.customer(money="1", every="year")
    fresh.go(days=366)
    assert fresh.run()[3:5] == (0, 1)
    for days in (1, 3, 7):
        assert fresh.run()[3:5] == (0, 0)
        fresh.go(days=days)
        assert fresh.run()[3:5] == (0, 1)
    fresh.go(days=30)
    assert fresh.run()[3:5] == (0, 0)
    (made,) = invoices(one)
    assert (made["status"], made["attempts"]) == ("overdue", 4)
    fresh.deposit(one.tenant, "100")
    assert fresh.operator.made(f"/v1/invoices/{made['id']}/pay")["status"] == "paid"


def test_one_at_a_time_leads(fresh: Desk) -> None:
    other = fresh.service.run(Place.open(fresh.service.runtime.url, PLACE))
    fresh.service.run(other.lead(1.0))
    with pytest.raises(BillingRunningError):
        fresh.run()
    fresh.service.run(other.close())
    assert fresh.run() == (0, 0, 0, 0, 0, ())


def test_one_customer_who_cannot_be_billed_keeps_nobody_else_from_it(fresh: Desk) -> None:
    fees = [
        {"id": f"fee{number}", "meter": "period", "price": {"model": "flat", "price": "1"}}
        for number in range(160)
    ]
    fresh.publish("wide", charges=fees)
    strange, plain = fresh.customer(book="platform.wide"), fresh.customer()
    fresh.go(days=1)
    tally = fresh.run()
    assert tally.billed == 1
    assert tally.refused == ((f"customer/{strange.tenant}", "invoice_too_large"),)
    assert len(invoices(plain)) == 1


def test_a_run_that_is_killed_anywhere_is_finished_by_the_next(fresh: Desk, repository_root: Path) -> None:
    customers = [fresh.customer() for _ in range(5)]
    for one in customers:
        fresh.use(one, {"tokens_out": 10_000})
    fresh.go(days=1, hours=1)
    for stop in STOPS:
        child = [
            sys.executable, "-m", "tests.real.billing.billing_child", fresh.service.runtime.url,
            str(fresh.service.settings.data_dir), str(fresh.ahead[0]), str(stop),
        ]  # fmt: skip
        ended = subprocess.run(
            child, cwd=repository_root, capture_output=True, text=True, timeout=120, check=False
        )
        assert ended.returncode in (-9, 0), ended.stderr[-2_000:]
    fresh.run()
    for one in customers:
        (made,) = invoices(one)
        assert (made["status"], made["bill"]["due"]["amount"]) == ("paid", "10.80")
        assert one.read(f"/v1/accounts/wallet.{one.tenant}.USD")["balance"] == "989.20"
    assert fresh.operator.read("/v1/trial_balance")["balanced"]
    assert datetime.now(UTC) < fresh.now - timedelta(days=1)
