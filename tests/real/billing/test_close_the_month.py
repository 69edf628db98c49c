"""The page about closing a month is followed: its blocks, as they stand but for the port, once a month has passed."""

from __future__ import annotations

import csv
import json
import os
import subprocess
from pathlib import Path

import pyarrow.parquet as pq

from domain.billing.statements import seal_customer
from tests.real.billing.billing_desk import Desk
from tests.real.test_first_ten_minutes import a_path
from tests.real.test_howto_pages import curls

ROOT = Path(__file__).resolve().parents[3]
END_S_MAX = 300


def test_the_page_about_closing_the_month_is_followed(fresh: Desk, tmp_path: Path) -> None:
    one = fresh.customer("acme", every="month", zone="Europe/Berlin")
    fresh.use(one, {"tokens_in": 150_000, "tokens_out": 90_000, "requests": 12})
    fresh.go(days=40)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SOMA_")}
    environment = inherited | {
        "PATH": a_path(tmp_path / "bin", ROOT),
        "SOMA_DATA_DIR": str(fresh.service.settings.data_dir),
        "TMPDIR": str(tmp_path),
        "COLUMNS": "160",
    }
    port = fresh.service.url.rpartition(":")[2]
    fails = 'curl() { command curl --silent --show-error --fail-with-body --max-time 60 "$@"; }\n'
    script = curls(ROOT / "docs/howto/close-the-month.md").replace(":8080", f":{port}")
    done = subprocess.run(
        ["bash", "-c", f"set -euo pipefail\n{fails}{script}\necho\npwd"], env=environment, cwd=ROOT,
        capture_output=True, text=True, timeout=END_S_MAX, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    made = Path(done.stdout.splitlines()[-1])
    data = (made / "acme.json").read_bytes()
    statement = json.loads(data)
    assert seal_customer(statement)[0] == data
    assert f"its address is {seal_customer(statement)[1]}" in done.stderr
    assert seal_customer(statement)[1] in done.stdout
    (part,) = statement["currencies"]
    assert [movement["kind"] for movement in part["movements"]] == ["invoice", "payment", "credit_note"]
    assert part["closing"]["owed"] == "0.00"
    with (made / "invoices.csv").open(newline="") as file:
        assert [row["number"] for row in csv.DictReader(file)] == ["INV-acme-000001"]
    assert pq.read_table(made / "invoice_lines.parquet").num_rows >= 4
    for name in ("invoice", "credit_note", "acme", "wallet"):
        assert "default-src &#39;none&#39;" in (made / f"{name}.html").read_text(encoding="utf-8")
    assert '"balanced":true' in done.stdout
