"""`soma billing invoice | statement | export` as processes, against a service."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pyarrow.parquet as pq

from domain.billing.statements import seal_account
from tests.real.billing.billing_desk import Desk
from tests.real.billing.test_cli_billing import soma


def test_documents_are_shown_and_written_to_files(office: Desk, tmp_path: Path) -> None:
    one = office.customer()
    office.use(one, {"tokens_out": 100_000})
    office.next_day()
    made = office.operator.made("/v1/invoices", {"tenant": one.tenant})
    body = {"amount": {"amount": "1", "currency": "USD"}, "reason": "[red]an outage[/]"}
    note = office.operator.made(f"/v1/invoices/{made['id']}/credit_notes", body)
    token = office.token(one.tenant, "owner")
    shown = soma(office, "invoice", made["number"], token=token)
    assert shown.returncode == 0, shown.stderr
    assert "13.50" in next(line for line in shown.stdout.splitlines() if line.strip().startswith("due"))
    about = soma(office, "invoice", note["number"], token=token)
    assert "[red]an outage[/]" in about.stdout, about.stderr
    for form in ("html", "csv", "parquet", "json"):
        file = tmp_path / f"one.{form}"
        done = soma(office, "invoice", made["number"], "--out", str(file), token=token)
        assert done.returncode == 0, done.stderr
        asked = one.get(f"/v1/invoices/{made['id']}/document?format={form}")
        assert form == "parquet" or file.read_bytes() == asked.content
    assert pq.read_table(tmp_path / "one.parquet").num_rows == len(made["bill"]["lines"])
    assert not list(tmp_path.glob("*.part"))


def test_a_statement_is_written_with_its_address(office: Desk, tmp_path: Path) -> None:
    one = office.customer()
    token, file = office.token(one.tenant, "owner"), tmp_path / "s.json"
    name = f"wallet.{one.tenant}.USD"
    done = soma(office, "statement", name, "--as-of", str(office.size - 1), "--out", str(file), token=token)
    assert done.returncode == 0, done.stderr
    data, address = seal_account(json.loads(file.read_bytes()))
    assert (file.read_bytes(), f"its address is {address}") == (data, done.stderr.strip())
    rows = soma(office, "statement", "--customer", one.tenant, "--format", "csv", token=token)
    assert rows.stdout.startswith("tenant,currency,position"), rows.stderr
    assert soma(office, "statement", token=token).returncode == 2
    assert soma(office, "statement", "wallet.nobody.USD", token=token).stderr.startswith("account_not_found")


def test_a_period_is_exported_and_a_refusal_leaves_no_file(office: Desk, tmp_path: Path) -> None:
    one = office.customer()
    office.next_day()
    office.run()
    operator = office.token("platform", "billing")
    got = soma(office, "export", "invoices", "--customer", one.tenant, token=operator)
    assert got.returncode == 0, got.stderr
    assert [row["tenant"] for row in csv.DictReader(io.StringIO(got.stdout, newline=""))] == [one.tenant]
    file = tmp_path / "lines.parquet"
    assert soma(office, "export", "invoice_lines", "--out", str(file), token=operator).returncode == 0
    assert pq.read_table(file).num_rows >= 1
    nothing = tmp_path / "none.csv"
    refused = soma(office, "export", "invoices", "--as-of", "99999999", "--out", str(nothing), token=operator)
    assert refused.stderr.startswith("position_not_found")
    assert not list(tmp_path.glob("none*"))
    assert (
        soma(office, "export", "invoices", "--out", str(tmp_path / "x.doc"), token=operator).returncode == 2
    )
