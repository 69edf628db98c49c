"""An auditor with an export and a key: invoices made again from it, and each thing that is wrong with one named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from domain.billing.redrawing import Difference
from domain.errors import (
    ExportDamagedError,
    ExportTooShortError,
    InvoiceLineNotFoundError,
    InvoiceNotFoundError,
    KeyMalformedError,
    LedgerError,
)
from domain.log.tiles import decode_bundle
from domain.values import moment_of
from ops.audit_invoice import Auditor, InvoiceAudit
from ops.audit_sources import open_source
from tests.real.billing.audited import Story, tell
from tests.real.billing.billing_desk import desk
from tests.real.billing.conftest import lending
from tests.unit.log.log_maker import Signer, a_log, address, canonical

END_S_MAX = 120
ROOT = Path(__file__).resolve().parents[3]


class Taken(NamedTuple):
    """A story, and its log taken away in both forms."""

    story: Story
    file: Path
    directory: Path
    records: list[bytes]

    @property
    def vkey(self) -> str:
        return self.story.vkey

    def number(self, name: str) -> str:
        return str(self.story.invoices[name]["number"])

    def audit(self, name: str, place: Path | None = None) -> InvoiceAudit:
        """Audit an invoice of the story."""
        source = open_source(str(place or self.file))
        try:
            return Auditor(source.read, self.number(name), vkey=self.vkey).run()
        finally:
            source.close()


@pytest.fixture(scope="module")
def taken(
    server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Taken]:
    """Tell the story once for all tests of this file, and take its log away."""
    here = tmp_path_factory.mktemp("audited")
    with lending(server_url, template_database) as url, desk(url, here / "data") as opened:
        story = tell(opened)
        file, directory = story.export(here / "log.zip"), story.export(here / "log", as_directory=True)
        with zipfile.ZipFile(file) as packed:
            (name,) = [one for one in packed.namelist() if one.startswith("tile/entries/")]
            records = list(decode_bundle(packed.read(name)))
        yield Taken(story, file, directory, records)


class TestARightInvoice:
    @pytest.mark.parametrize("name", ["first", "correction", "again", "second", "bolt"])
    def test_is_made_again_from_the_export_alone_in_both_forms(self, taken: Taken, name: str) -> None:
        for place in (taken.file, taken.directory):
            audit = taken.audit(name, place)
            assert audit.differences == []
            assert audit.key_pinned
            assert audit.size == len(taken.records)

    def test_of_the_story_is_as_hard_as_they_come(self, taken: Taken) -> None:
        made = taken.story.invoices
        first, correction, again, second = (made[n] for n in ("first", "correction", "again", "second"))
        length = moment_of(first["period_end"]) - moment_of(first["period_start"])
        assert length.total_seconds() in (23 * 3_600, 25 * 3_600), "the clocks are changed in it"
        assert len(first["sheets"]) == 2
        assert len(first["bill"]["taxes"]) == 2
        assert [i["name"] for i in first["bill"]["discounts"]] == ["warm-welcome", "fifty-off-in"]
        assert len(first["bill"]["credits"]) == 2
        assert float(correction["owed"]["amount"]) != 0
        assert float(again["owed"]["amount"]) < 0
        assert second["bill"]["credits"], "what was credited is burned by the next"
        assert second["bill"]["lines"][-1]["charge"] == "commitment"

    def test_of_a_correction_comes_with_all_it_corrects(self, taken: Taken) -> None:
        audit = taken.audit("again")
        kinds = [(one.invoice, one.issued.kind) for one in audit.documents]
        ids = [taken.story.invoices[name]["id"] for name in ("again", "correction", "first")]
        assert kinds == list(zip(ids, ("correction", "correction", "invoice"), strict=True))
        assert len({one.readings for one in audit.documents}) > 1

    def test_is_found_by_its_number_or_its_name(self, taken: Taken) -> None:
        source = open_source(str(taken.file))
        made = taken.story.invoices["first"]
        for name in (made["id"], made["number"]):
            assert Auditor(source.read, name, vkey=taken.vkey).run().ok
        source.close()


# --------------------------------------------------------------------------- wrong invoices in a log that is whole


Change = Callable[[dict[str, Any]], None]


def forged(records: list[bytes], changes: dict[int, Change]) -> dict[str, bytes]:
    """Make a log with other records, whole and signed, by somebody who holds its key."""
    heads: dict[str, str] = {}
    made = []
    for position, raw in enumerate(records):
        record = json.loads(raw)
        changes.get(position, lambda _: None)(record)
        if record["version"] > 1:
            record["previous"] = heads[record["stream"]]
        again = canonical(record)
        heads[record["stream"]] = address(again)
        made.append(again)
    return a_log(made, Signer("forger"))


def wrong(records: list[bytes], number: str, changes: dict[int, Change]) -> list[Difference]:
    """Give what an audit finds wrong with an invoice of a forged log."""
    files = forged(records, changes)
    return Auditor(files.get, number, vkey=Signer("forger").vkey).run().differences


def place_of(taken: Taken, wire_type: str, stream: str = "", nth: int = 0) -> int:
    """Find a record."""
    found = []
    for position, raw in enumerate(taken.records):
        record = json.loads(raw)
        if record["type"] == wire_type and stream in (record["stream"], ""):
            found.append(position)
    return found[nth]


def issued_at(taken: Taken, name: str) -> int:
    return place_of(taken, "invoice.issued", f"invoice/{taken.story.invoices[name]['id']}")


def leaves(value: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Name every place in a document where there is a plain value."""
    if isinstance(value, dict):
        for name in value:
            yield from leaves(value[name], (*where, name))
    elif isinstance(value, list):
        for at, one in enumerate(value):
            yield from leaves(one, (*where, at))
    elif value is not None:
        yield where


def told(where: tuple[Any, ...]) -> str:
    """Write a place as a difference names it."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where)
    return text.lstrip(".")


def another(value: Any) -> Any:
    """Give another value of the same form."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    digits = [at for at, char in enumerate(value) if char.isdigit()]
    if not digits:
        return value + "x"
    at = digits[-1]
    return value[:at] + str((int(value[at]) + 1) % 10) + value[at + 1 :]


def put(where: tuple[Any, ...], value: Any) -> Change:
    """Make a change of one place of a record's data."""

    def change(record: dict[str, Any]) -> None:
        inner = record["data"]
        for part in where[:-1]:
            inner = inner[part]
        inner[where[-1]] = value

    return change


class TestAWrongInvoice:
    def test_in_a_forged_log_that_was_not_changed_is_right(self, taken: Taken) -> None:
        for name in taken.story.invoices:
            assert wrong(taken.records, taken.number(name), {}) == []

    @pytest.mark.parametrize("name", ["first", "correction", "second"])
    def test_is_named_whichever_member_of_it_was_altered(self, taken: Taken, name: str) -> None:
        at = issued_at(taken, name)
        data = json.loads(taken.records[at])["data"]
        places = [where for where in leaves(data) if where not in {("known_at",), ("corrects",)}]
        assert len(places) > 100
        for where in places:
            value = data
            for part in where:
                value = value[part]
            try:
                found = wrong(taken.records, taken.number(name), {at: put(where, another(value))})
            except LedgerError:
                # An amount that is none, a currency that is unknown: no record of an invoice at all.
                continue
            named = [one.where for one in found]
            assert any(one.startswith(told(where)) or told(where).startswith(one) for one in named), told(
                where
            )

    def test_line_is_named_with_its_number_and_both_values(self, taken: Taken) -> None:
        at = issued_at(taken, "first")
        line = json.loads(taken.records[at])["data"]["bill"]["lines"][2]
        (found,) = wrong(
            taken.records,
            taken.number("first"),
            {at: put(("bill", "lines", 2, "amount", "amount"), "99.99")},
        )
        assert (found.line, found.where) == (2, "bill.lines[2].amount.amount")
        assert (found.expected, found.found) == (line["amount"]["amount"], "99.99")

    def test_with_a_line_too_many_or_too_few_is_named(self, taken: Taken) -> None:
        at, number = issued_at(taken, "first"), taken.number("first")

        def without(record: dict[str, Any]) -> None:
            del record["data"]["bill"]["lines"][-1]

        def more(record: dict[str, Any]) -> None:
            record["data"]["bill"]["lines"].append(record["data"]["bill"]["lines"][0])

        count = len(taken.story.invoices["first"]["bill"]["lines"])
        assert {one.line for one in wrong(taken.records, number, {at: without})} == {count - 1}
        assert {one.line for one in wrong(taken.records, number, {at: more})} == {count}

    def test_that_leaves_a_reading_out_is_named_by_its_lines(self, taken: Taken) -> None:
        at = place_of(taken, "usage.metered", nth=7)
        for member, lines in (("tokens_out", {"out"}), ("requests", {"calls"})):
            value = json.loads(taken.records[at])["data"][member] + 1_000
            found = wrong(taken.records, taken.number("first"), {at: put((member,), value)})
            made = taken.story.invoices["first"]["bill"]["lines"]
            quantities = {made[one.line]["charge"] for one in found if one.where.endswith(".quantity")}
            assert quantities == lines

    def test_that_forgets_a_correction_of_its_usage_is_named(self, taken: Taken) -> None:
        """The correction is there, of another tenant's: so what the invoice counted was replaced by nobody."""
        at = place_of(taken, "usage.corrected")
        found = wrong(taken.records, taken.number("first"), {at: lambda record: record.update(tenant="bolt")})
        assert any(one.where.startswith("evidence[") for one in found)

    def test_whose_price_was_another_is_named(self, taken: Taken) -> None:
        at = place_of(taken, "price_sheet.written", "price_sheet/platform.standard.v2")
        where = ("charges", 2, "price", "price")
        found = wrong(taken.records, taken.number("first"), {at: put(where, "0.04")})
        named = {one.where for one in found}
        assert "sheets[1].address" in named
        assert any(one.line is not None and one.where.endswith(".exact") for one in found)

    @pytest.mark.parametrize(
        ("wire_type", "where", "named"),
        [
            ("grant.burned", ("amount", "amount"), "credits."),
            ("grant.burned", ("money", 0, "postings", 0, "account"), "credits."),
            ("customer.billed", ("carried",), "customer[0].carried"),
            ("customer.enrolled", ("plan", "taxes", 0, "share"), "bill.taxes[0].amount.amount"),
            ("customer.enrolled", ("plan", "zone"), "period_end"),
            ("customer.coupon_redeemed", ("redeemed", "coupon", "share"), "bill.discounts[0].amount.amount"),
            ("grant.granted", ("amount", "amount"), "terms.credits[0].amount.amount"),
            ("price_book.published", ("effective_from",), "sheets[0].end"),
        ],
    )
    def test_is_one_that_does_not_follow_from_the_terms_or_is_not_followed(
        self, taken: Taken, wire_type: str, where: tuple[Any, ...], named: str
    ) -> None:
        nth = 1 if wire_type == "price_book.published" else 0
        of = "customer/acme-2" if wire_type.startswith("customer.") else ""
        at = place_of(taken, wire_type, of, nth)
        value: Any = json.loads(taken.records[at])["data"]
        for part in where:
            value = value[part]
        other = {"zone": "America/New_York", "share": "0.2"}.get(str(where[-1])) or another(value)
        found = wrong(taken.records, taken.number("first"), {at: put(where, other)})
        assert any(one.where.startswith(named) for one in found), [one.where for one in found]

    def test_that_counts_a_reading_twice_since_the_log_does_is_named(self, taken: Taken) -> None:
        at = place_of(taken, "usage.metered", nth=7)
        records = [*taken.records[: at + 1], taken.records[at], *taken.records[at + 1 :]]
        assert any(one.where == "readings" for one in wrong(records, taken.number("first"), {}))

    def test_that_counts_what_came_after_it_is_named(self, taken: Taken) -> None:
        at, size = issued_at(taken, "first"), len(taken.records)
        found = wrong(taken.records, taken.number("first"), {at: put(("known_at",), at + 1)})
        assert [one.where for one in found] == ["known_at"]
        with pytest.raises(ExportTooShortError) as refused:
            wrong(taken.records, taken.number("first"), {at: put(("known_at",), size + 1)})
        assert refused.value.facts == {"known_at": size + 1, "size": size}


# --------------------------------------------------------------------------- exports that cannot be relied on


def files_of(place: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(place) as packed:
        return {name: packed.read(name) for name in packed.namelist()}


class TestAnExport:
    def test_that_was_altered_anywhere_is_refused_and_the_place_named(self, taken: Taken) -> None:
        files = files_of(taken.file)
        for name in [
            one for one in files if one.startswith(("tile/", "checkpoint")) and one != "checkpoints"
        ]:
            body = files[name]
            for at in {0, len(body) // 3, len(body) // 2, len(body) - 1}:
                spoiled = body[:at] + bytes([body[at] ^ 4]) + body[at + 1 :]
                with pytest.raises(ExportDamagedError) as refused:
                    Auditor((files | {name: spoiled}).get, taken.number("first"), vkey=taken.vkey).run()
                assert refused.value.facts["findings"]

    def test_that_lacks_a_file_is_refused(self, taken: Taken) -> None:
        files = files_of(taken.file)
        for name in [one for one in files if one.startswith("tile/")] + ["checkpoint"]:
            left = {path: body for path, body in files.items() if path != name}
            with pytest.raises(ExportDamagedError):
                Auditor(left.get, taken.number("first"), vkey=taken.vkey).run()

    def test_whose_file_changes_while_it_is_audited_is_refused(self, taken: Taken) -> None:
        files, seen = files_of(taken.file), dict[str, int]()

        def read(path: str) -> bytes | None:
            seen[path] = seen.get(path, 0) + 1
            body = files.get(path)
            if path.startswith("tile/entries/") and seen[path] > 1 and body is not None:
                return body.replace(b'"tokens_out":3}', b'"tokens_out":4}')
            return body

        with pytest.raises(ExportDamagedError, match="has changed"):
            Auditor(read, taken.number("first"), vkey=taken.vkey).run()

    def test_of_another_log_is_refused_by_its_key(self, taken: Taken) -> None:
        files = files_of(taken.file)
        with pytest.raises(ExportDamagedError):
            Auditor(files.get, taken.number("first"), vkey=Signer("forger").vkey).run()
        with pytest.raises(KeyMalformedError):
            Auditor(files.get, taken.number("first"), vkey="no key")

    def test_without_a_pinned_key_is_believed_on_its_own_word_and_says_so(self, taken: Taken) -> None:
        audit = Auditor(files_of(taken.file).get, taken.number("first"), vkey=None).run()
        assert audit.ok
        assert not audit.key_pinned

    def test_that_ends_before_the_invoice_has_none(self, taken: Taken) -> None:
        at = issued_at(taken, "first")
        files = a_log(taken.records[:at], Signer("forger"))
        for number in (taken.number("first"), "INV-nobody-000001", "INV-acme-2-000099"):
            with pytest.raises(InvoiceNotFoundError):
                Auditor(files.get, number, vkey=Signer("forger").vkey).run()
        for number in ("", "first", "INV-000001", "inv-acme-x"):
            with pytest.raises(InvoiceNotFoundError, match="no name of an invoice"):
                Auditor(files.get, number, vkey=Signer("forger").vkey)

    def test_with_a_quorum_that_is_not_reached_is_refused(self, taken: Taken) -> None:
        witness = Signer("witness", "witness.example", 4)
        policy = f"log {taken.vkey}\nwitness w {witness.vkey}\nquorum w\n"
        with pytest.raises(ExportDamagedError, match="have not cosigned"):
            Auditor(files_of(taken.file).get, taken.number("first"), vkey=taken.vkey, policy=policy)


# --------------------------------------------------------------------------- the command


def soma(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run one command to its end, in a place where there is no service and no database."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SOMA_")}
    env = inherited | {"COLUMNS": "160", "SOMA_URL": "http://127.0.0.1:9", "PYTHONPATH": str(ROOT)} | more
    return subprocess.run(
        [sys.executable, "-m", "api.cli", "audit", *words], cwd=ROOT, env=env,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=END_S_MAX, check=False,
    )  # fmt: skip


class TestTheCommand:
    def test_says_that_an_invoice_is_right_and_lists_a_line(self, taken: Taken, tmp_path: Path) -> None:
        out = tmp_path / "line.jsonl"
        words = ("invoice", str(taken.file), taken.number("again"), "--key", taken.vkey)
        ended = soma(*words, "--line", "6", "--records", str(out))
        assert ended.returncode == 0, ended.stderr
        assert "every line, amount and posting is what the log comes to" in ended.stdout
        evidence = taken.story.invoices["again"]["evidence"][6]
        assert f"  {evidence['first']} sha3-512:" in ended.stdout
        assert "in place of" in ended.stdout
        checked = soma("line", str(out), "--key", taken.vkey, "--json")
        assert checked.returncode == 0, checked.stdout
        assert json.loads(checked.stdout)["readings"] == evidence["events"]
        again = soma(*words, "--line", "6", "--records", str(out))
        assert (again.returncode, "there is something already" in again.stderr) == (2, True)

    def test_names_what_is_wrong_and_ends_with_one(self, taken: Taken, tmp_path: Path) -> None:
        at = issued_at(taken, "first")
        where = ("bill", "lines", 2, "amount", "amount")
        for path, body in forged(taken.records, {at: put(where, "99.99")}).items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(body)
        words = ("invoice", str(tmp_path), taken.number("first"), "--key", Signer("forger").vkey)
        ended = soma(*words)
        assert ended.returncode == 1, ended.stderr
        assert "bill.lines[2].amount.amount" in ended.stdout
        told_ = json.loads(soma(*words, "--json").stdout)
        assert (told_["ok"], told_["documents"][0]["differences"][0]["line"]) == (False, 2)

    def test_tells_what_it_cannot_tell_by_its_code_and_ends_with_two(self, taken: Taken) -> None:
        export, number, key = str(taken.file), taken.number("first"), ("--key", taken.vkey)
        ended = soma("invoice", export, "INV-nobody-000001", *key)
        assert (ended.returncode, "invoice_not_found: " in ended.stderr) == (2, True), ended.stderr
        ended = soma("invoice", export, number, "--key", Signer("forger").vkey)
        assert (ended.returncode, "export_damaged: " in ended.stderr) == (2, True), ended.stderr
        ended = soma("invoice", export, number, *key, "--line", "99")
        assert (ended.returncode, "invoice_line_not_found" in ended.stderr) == (2, True), ended.stderr
        for words in ((export, number, "--records", "x"), ("http://x", number), ("nowhere", number)):
            assert soma("invoice", *words, *key).returncode == 2


# --------------------------------------------------------------------------- lines


class TestALine:
    @pytest.mark.parametrize("name", ["first", "correction", "again", "second", "bolt"])
    def test_leads_to_its_readings_each_proven_and_in_the_order_of_the_log(
        self, taken: Taken, name: str
    ) -> None:
        source = open_source(str(taken.file))
        auditor = Auditor(source.read, taken.number(name), vkey=taken.vkey)
        auditor.run()
        made = taken.story.invoices[name]
        for number, evidence in enumerate(made["evidence"]):
            listed = [one.reading for page in auditor.pages(number, page_readings=3) for one in page.readings]
            assert len(listed) == (evidence["events"] if evidence else 0)
            assert all(a.position < b.position for a, b in pairwise(listed))
            assert all(taken.records[one.position].decode() == one.record for one in listed)
        with pytest.raises(InvoiceLineNotFoundError):
            next(auditor.pages(len(made["evidence"])))
        source.close()
