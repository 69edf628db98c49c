"""The page about auditing an invoice is followed to the letter, against a service whose first day is over."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.real.billing.billing_desk import Desk
from tests.real.test_first_ten_minutes import a_path, blocks

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs/howto/audit-an-invoice.md"
END_S_MAX = 300


def test_the_page_is_followed_to_the_letter(fresh: Desk, tmp_path: Path) -> None:
    acme = fresh.customer("acme")
    fresh.use(acme, *[{"model": "gpt-4o-mini", "tokens_out": 900 + n, "tokens_in": 5} for n in range(7)])
    fresh.next_day()
    made = fresh.operator.made("/v1/invoices", {"tenant": "acme"})
    assert made["bill"]["lines"][2]["charge"] == "calls"
    place = tmp_path / "auditor"
    place.mkdir()
    script = "set -euo pipefail\n" + "\n".join(blocks(PAGE.read_text("utf-8")))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SOMA_")}
    environment = inherited | {
        "PATH": a_path(tmp_path / "bin", ROOT),
        "SOMA_DATA_DIR": str(fresh.service.settings.data_dir),
        "COLUMNS": "160",
    }
    done = subprocess.run(
        ["bash", "-c", script.replace("http://127.0.0.1:8080", fresh.service.url)],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=END_S_MAX,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    told = (
        "every promise holds",
        "every line, amount and posting is what the log comes to",
        "line 2: calls, 7 requests, 0.50 USD",
        "every promise holds",
        "7 on 1 pages",
        "every promise holds",
        "inclusion_invalid",
    )
    at = 0
    for words in told:
        assert words in done.stdout[at:], f"{words!r} is not said after {done.stdout[:at][-500:]}"
        at = done.stdout.index(words, at) + len(words)
    assert {one.name for one in place.iterdir()} == {
        "log.zip", "log.vkey", "line-2.jsonl", "line.json", "forged.json",
    }  # fmt: skip
