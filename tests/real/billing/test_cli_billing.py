"""`soma billing run | quote | import-prices` as processes, against a service and its database."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.real.billing.billing_desk import Desk

END_S_MAX = 60
LIST = """{
    "acme/small": {"litellm_provider": "acme", "input_cost_per_token": 1.5e-07, "output_cost_per_token": 6e-07,
                   "output_cost_per_image": 0.04},
    "large": {"litellm_provider": "bolt", "input_cost_per_token": 3e-06, "output_cost_per_token": 1.5e-05}
}"""


def soma(office: Desk, *words: str, token: str = "", **given: str) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SOMA_")}
    env = inherited | {"COLUMNS": "160", "SOMA_URL": office.service.url, "SOMA_TOKEN": token} | given
    return subprocess.run(
        [sys.executable, "-m", "api.cli", "billing", *words], cwd=Path(__file__).resolve().parents[3], env=env,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=END_S_MAX, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def price_list(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a price list."""
    file = tmp_path_factory.mktemp("lists") / "prices.json"
    file.write_text(LIST)
    return file


def test_a_price_list_is_published_and_quoted_by(office: Desk, price_list: Path) -> None:
    operator = office.token("platform", "operator")
    words = ("import-prices", str(price_list), "--book", "lists", "--factor", "1.2")
    dry = soma(office, *words, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert len(json.loads(dry.stdout)["version"]["charges"]) == 4
    done = soma(office, *words, token=operator)
    assert done.returncode == 0, done.stderr
    assert "left out: acme small: no reading counts output_cost_per_image" in done.stdout
    assert "platform.lists version 1: 4 charges" in done.stdout
    quoted = soma(
        office, "quote", "--book", "platform.lists", "--use", "acme small in=1000000 out=1000000",
        "--use", "bolt large in=500000", "--json", token=office.token("anybody", "owner"),
    )  # fmt: skip
    assert quoted.returncode == 0, quoted.stderr
    # 0.18 and 0.72 for a million, and half a million at 3.60.
    assert json.loads(quoted.stdout)["bill"]["due"]["amount"] == "2.70"


def test_what_is_no_price_list_or_too_long_is_refused_by_name(office: Desk, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.json"
    wrong.write_text("{")
    ended = soma(office, "import-prices", str(wrong), "--book", "lists", "--dry-run")
    assert (ended.returncode, ended.stderr.split(":")[0]) == (2, "price_list_invalid"), ended.stderr
    ended = soma(office, "import-prices", str(tmp_path / "none.json"), "--book", "lists", "--dry-run")
    assert ended.stderr.startswith("invalid_request")


def test_a_customer_is_quoted_for_what_the_log_says_in_a_table(office: Desk) -> None:
    one = office.customer()
    office.use(one, {"tokens_out": 100_000})
    token = office.token(one.tenant, "owner")
    shown = soma(office, "quote", "--customer", one.tenant, token=token)
    assert shown.returncode == 0, shown.stderr
    due = next(line for line in shown.stdout.splitlines() if line.strip().startswith("due"))
    assert due.split()[-1] == "13.50"
    refused = soma(office, "quote", "--customer", one.tenant, "--use", "nonsense", token=token)
    assert refused.returncode == 2
    assert soma(office, "quote", "--customer", "nobody", token=token).stderr.startswith("customer_not_found")


def test_a_run_by_hand_says_what_it_did(office: Desk, tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "SOMA_DATABASE_URL": office.service.runtime.url,
        "SOMA_DATA_DIR": str(office.service.settings.data_dir),
    }
    ended = soma(office, "run", "--json", **given)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout[ended.stdout.index("{") :])["billed"] == 0
    assert "billed 0, corrected 0" in soma(office, "run", **given).stdout


def test_limits_are_set_and_shown_on_the_command_line(office: Desk) -> None:
    somebody = office.customer()
    operator = office.token("platform", "operator")
    limits = ("--limit", "all 500 USD", "--limit", "big 50 USD soft model=m1 at=0.5,1 no-fees")
    done = soma(office, "quota", "set", somebody.tenant, *limits, token=operator)
    assert done.returncode == 0, done.stderr
    office.use(somebody, {"tokens_in": 3_000_000})
    shown = soma(office, "quota", "show", somebody.tenant, token=somebody.token)
    assert shown.returncode == 0, shown.stderr
    assert "model=m1" in shown.stdout
    state = json.loads(soma(office, "quota", "show", somebody.tenant, "--json", token=operator).stdout)
    assert [(one["id"], one["mode"], one["fees"]) for one in state["limits"]] == [
        ("all", "hard", True),
        ("big", "soft", False),
    ]
    wrong = soma(office, "quota", "set", somebody.tenant, "--limit", "all 5 USD sometimes", token=operator)
    assert wrong.returncode == 2
    assert "sometimes" in wrong.stderr
