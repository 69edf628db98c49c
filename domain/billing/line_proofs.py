"""Proofs of one line of an invoice: its raw readings, its price and the invoice itself, each with its way to the root.

A proof comes in pages, each complete in itself: a signed checkpoint, the record of the invoice, the record of the
prices, and some of the readings, every record with the hashes that lead from it to the checkpoint. A page has one
spelling, so no byte of it can be another without being noticed. Whoever holds all pages of a line checks them offline
with the log's key alone: that each record is in the log, that each reading belongs to the line, that together they are
exactly as many as the invoice counted and have its fingerprint, and that the price makes of them what was charged.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from hashlib import sha256
from typing import Any

import msgspec

from domain.billing.bills import COMMITMENT
from domain.billing.invoices import Invoice, SheetUsed
from domain.billing.metering import METERS, UNPRICED, Evidence
from domain.billing.price_books import PriceSheet
from domain.billing.prices import Step, decimal_of
from domain.billing.rating import Charge, Line, line_of, rate, read_exact
from domain.billing.recounting import READINGS, Read
from domain.errors import LedgerError
from domain.log.audit_findings import Finding
from domain.log.audit_notes import (
    Checkpoint,
    Policy,
    VerifierKey,
    check_cosignatures,
    check_log_signature,
    read_checkpoint,
    read_policy,
    read_vkey,
    unbase64,
)
from domain.log.audit_proof import HASHES_MAX, inclusion_root
from domain.log.audit_records import address, form_faults
from domain.log.records import Record, decode
from domain.values import NANO

SCHEMA = "soma/line_proof/1"
FINDINGS_MAX = 100

# Every code a finding about a line can have, and the promise it says is broken.
LINE_CODES: dict[str, str] = {
    "page_malformed": "a page is JSON of the members of a page, in its one spelling",
    "page_missing": "the pages of a line follow one another without a gap, up to the last",
    "page_foreign": "all pages are of one line of one invoice",
    "key_refused": "the checkpoint is signed by the pinned key",
    "quorum_missing": "enough witnesses have cosigned",
    "address_altered": "an address is the SHA3-512 of the record",
    "record_malformed": "a record has the form of a record",
    "inclusion_invalid": "the proof leads from the record to the signed root",
    "invoice_foreign": "the record of the invoice is one that issued it",
    "line_altered": "the line is the one the invoice's record has",
    "price_foreign": "the prices are those the invoice names",
    "reading_foreign": "a reading is one the line counts",
    "reading_doubled": "a reading is listed once, in the order of the log",
    "replaced_foreign": "what a correction put right is the version before it",
    "evidence_mismatch": "the readings are as many as the invoice counted, and have its fingerprint",
    "quantity_mismatch": "the readings add up to the quantity of the line",
    "amount_mismatch": "the price makes of the quantity what was charged",
}


class ProvenRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A record as it lies in the log, and the hashes from its leaf to the root, its neighbour's first.

    Units: record is the exact text; proof in base64.
    """

    position: int
    address: str
    record: str
    proof: list[str]

    @property
    def raw(self) -> bytes:
        """Give the exact bytes."""
        return self.record.encode("utf-8", "surrogatepass")


class ProvenReading(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A reading that counts, and the one it put right, if it did."""

    reading: ProvenRecord
    replaced: ProvenRecord | None


class LineProof(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A page of the proof of a line.

    Units: number is the line's (0 is the first); sheet is null for what no price of a book made, such as a commitment.
    """

    schema: str
    checkpoint: str
    invoice: ProvenRecord
    number: int
    line: Line
    evidence: Evidence | None
    sheet: ProvenRecord | None
    readings: list[ProvenReading]
    next: str | None


_page = msgspec.json.Decoder(LineProof)
print_page = msgspec.json.Encoder().encode


def cursor_of(position: int, size: int) -> str:
    """Name the page that starts behind a position, in the tree of a size."""
    return base64.urlsafe_b64encode(f"{position}:{size}".encode()).decode()


def proven(position: int, raw: bytes, proof: Iterable[bytes]) -> ProvenRecord:
    """Put a record and its proof together."""
    hashes = [base64.b64encode(one).decode() for one in proof]
    return ProvenRecord(position, address(raw), raw.decode(), hashes)


# --------------------------------------------------------------------------- which price made a line


def sheet_of_line(
    line: Line, used: Sequence[SheetUsed], sheets: Sequence[PriceSheet], start: str | None
) -> int | None:
    """Find which of an invoice's sheets made a line; None where no price did.

    `start` is where the part of the period begins in which its usage was, None where it counts none.
    """
    for at, (one, sheet) in enumerate(zip(used, sheets, strict=True)):
        if start is not None and one.start == start:
            return at
        if start is None and _rated(sheet, one, line, Fraction(0)) == line:
            return at
    return None


def _rated(sheet: PriceSheet, used: SheetUsed, line: Line, quantity: Fraction) -> Line | None:
    charge = _charge(sheet, line.charge)
    if charge is None:
        return None
    return rate(charge, quantity, sheet.currency, Fraction(used.share)).line


def _charge(sheet: PriceSheet, name: str) -> Charge | None:
    return next((charge for charge in sheet.charges if charge.id == name), None)


# --------------------------------------------------------------------------- checking


@dataclass
class LineReport:
    """What checking the pages of a line came to; `ok` exactly when there is no finding.

    Units: size of the tree; position of the invoice; readings is how many are proven.
    """

    origin: str = ""
    size: int = 0
    root: str = ""
    invoice: str = ""
    position: int | None = None
    number: int | None = None
    line: Line | None = None
    evidence: Evidence | None = None
    pages: int = 0
    readings: int = 0
    quorum: bool | None = None
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.findings


class _Refused(Exception):
    """What follows cannot be judged."""


def check_line(pages: Iterable[bytes], vkey: str, policy: str | None = None) -> LineReport:
    """Say whether these pages are a whole proof of one line under the key of a log; never raise.

    Cost:   a page at a time is in memory; some twenty hashes a record.
    Errors: none; what is wrong is in the findings.
    """
    report = LineReport()
    check = _Check(report)
    try:
        check.trust(vkey, policy)
        for data in pages:
            check.page(data)
        check.close()
    except _Refused:
        pass
    except (ArithmeticError, KeyError, LedgerError, ValueError) as error:
        report.findings.append(
            Finding("amount_mismatch", f"what was signed cannot be reckoned with: {error}")
        )
    return report


class _Check:
    """One check: what the pages before have said, and what they came to."""

    def __init__(self, report: LineReport) -> None:
        self._report = report
        self._key: VerifierKey | None = None
        self._policy: Policy | None = None
        self._first: LineProof | None = None
        self._issued: Invoice.Issued | None = None
        self._tenant = ""
        self._sheet: PriceSheet | None = None
        self._part: SheetUsed | None = None
        self._awaited: str | None = None
        self._last = -1
        self._lowest: int | None = None
        self._mark = 0
        self._quantity = 0
        self._streams: set[str] = set()

    def _say(self, code: str, message: str, position: int | None = None, stream: str | None = None) -> None:
        assert code in LINE_CODES, code
        if len(self._report.findings) < FINDINGS_MAX:
            self._report.findings.append(Finding(code, message, position, stream))

    def _refuse(self, code: str, message: str, position: int | None = None) -> _Refused:
        self._say(code, message, position)
        return _Refused()

    # ------------------------------------------------------------------ whom to trust

    def trust(self, vkey: str, policy: str | None) -> None:
        """Read the key and the policy."""
        try:
            self._key = read_vkey(vkey)
        except ValueError as error:
            raise self._refuse("key_refused", f"the verifier key cannot be read: {error}") from error
        try:
            self._policy = read_policy(policy) if policy is not None else None
        except ValueError as error:
            raise self._refuse("quorum_missing", f"the policy cannot be read: {error}") from error

    def _checkpoint(self, page: LineProof) -> Checkpoint:
        try:
            checkpoint = read_checkpoint(page.checkpoint)
        except ValueError as error:
            raise self._refuse("key_refused", f"the checkpoint cannot be read: {error}") from error
        assert self._key is not None, "it is read first"
        broken = check_log_signature(checkpoint, self._key)
        if broken is not None:
            raise self._refuse("key_refused", broken[1])
        if self._policy is not None:
            outcome = check_cosignatures(checkpoint, self._policy)
            self._report.quorum = outcome.quorum
            if outcome.quorum is False or outcome.refused:
                raise self._refuse("quorum_missing", "the witnesses of the policy have not cosigned")
        return checkpoint

    # ------------------------------------------------------------------ a page

    def page(self, data: bytes) -> None:
        """Check one page, and that it follows the one before."""
        page = self._read(data)
        checkpoint = self._checkpoint(page)
        for one in (page.invoice, *([page.sheet] if page.sheet else [])):
            self._in_log(one, checkpoint)
        if self._report.findings:
            # What is not in the log says nothing about the readings.
            raise _Refused
        if self._first is None:
            self._begin(page, checkpoint)
        else:
            self._follow(page)
        self._report.pages += 1
        for reading in page.readings:
            self._reading(reading, checkpoint)
        last = page.readings[-1].reading.position if page.readings else -1
        if page.next is not None and page.next != cursor_of(last, checkpoint.size):
            self._say("page_malformed", "'next' is not where this page ends")
        self._awaited = page.next

    def _read(self, data: bytes) -> LineProof:
        try:
            page = _page.decode(data)
            if print_page(page) != data:
                raise ValueError("it is not in its one spelling")
        except (ValueError, RecursionError, UnicodeError, msgspec.MsgspecError) as error:
            raise self._refuse("page_malformed", f"page {self._report.pages}: {error}") from error
        if page.schema != SCHEMA:
            raise self._refuse("page_malformed", f"its schema is {page.schema!r} instead of {SCHEMA}")
        return page

    def _begin(self, page: LineProof, checkpoint: Checkpoint) -> None:
        report = self._report
        self._first, report.number = page, page.number
        report.origin, report.size = checkpoint.origin, checkpoint.size
        report.root = base64.b64encode(checkpoint.root).decode()
        report.position, report.line, report.evidence = page.invoice.position, page.line, page.evidence
        record = self._decoded(page.invoice, "invoice_foreign")
        if not isinstance(record.data, Invoice.Issued) or record.version != 1:
            raise self._refuse("invoice_foreign", f"it is {record.type}", page.invoice.position)
        report.invoice = record.stream.partition("/")[2]
        self._issued, self._tenant = record.data, record.tenant
        self._check_line(page, record.data)
        self._check_sheet(page, record.data)

    def _follow(self, page: LineProof) -> None:
        assert self._first is not None, "it follows another"
        if self._awaited is None:
            raise self._refuse("page_foreign", "a page comes after the last one")
        for name in ("number", "line", "evidence"):
            if getattr(page, name) != getattr(self._first, name):
                raise self._refuse("page_foreign", f"{name!r} is not that of the first page")
        sides = [(one.invoice, one.sheet) for one in (page, self._first)]
        said = [[(r.position, r.record) if r else None for r in side] for side in sides]
        if said[0] != said[1]:
            raise self._refuse("page_foreign", "the invoice or the prices are not those of the first page")

    def _check_line(self, page: LineProof, issued: Invoice.Issued) -> None:
        count = len(issued.bill.lines)
        if not 0 <= page.number < count:
            raise self._refuse(
                "line_altered", f"the invoice has {count} lines, and none of number {page.number}"
            )
        for name, stated in (("line", issued.bill.lines), ("evidence", issued.evidence)):
            if getattr(page, name) != stated[page.number]:
                raise self._refuse("line_altered", f"{name!r} is not what the invoice's record says of it")

    def _check_sheet(self, page: LineProof, issued: Invoice.Issued) -> None:
        """See that the prices are those of the part of the period in which the line's usage was."""
        if page.sheet is None:
            last = page.number == len(issued.bill.lines) - 1
            if page.evidence is not None or page.line.charge != COMMITMENT or not last:
                raise self._refuse("price_foreign", "the prices of the line are not there")
            return
        record = self._decoded(page.sheet, "price_foreign")
        if not isinstance(record.data, PriceSheet.Written):
            raise self._refuse("price_foreign", f"it is {record.type}", page.sheet.position)
        sheet = PriceSheet(id=record.stream.partition("/")[2], tenant=record.tenant)
        record.data.apply(sheet, record)
        self._sheet = sheet
        named = [one for one in issued.sheets if (one.sheet, one.address) == (sheet.id, sheet.address)]
        self._part = self._part_of(page, named)
        if self._part is None:
            raise self._refuse("price_foreign", f"the line was not made by {sheet.id}", page.sheet.position)

    def _part_of(self, page: LineProof, named: Sequence[SheetUsed]) -> SheetUsed | None:
        sheet = self._sheet
        assert sheet is not None, "it was read before"
        if page.evidence is None:
            return next((u for u in named if _rated(sheet, u, page.line, Fraction(0)) == page.line), None)
        if not page.readings:
            raise self._refuse("evidence_mismatch", "a line that counts readings lists none")
        at = self._read_data(page.readings[0].reading)
        return next((u for u in named if at is not None and u.start <= at.occurred_at < u.end), None)

    # ------------------------------------------------------------------ records

    def _in_log(self, one: ProvenRecord, checkpoint: Checkpoint) -> None:
        """See that a record is in the log, at its place."""
        raw, position = one.raw, one.position
        if address(raw) != one.address:
            self._say("address_altered", f"the record's address is {address(raw)}", position)
        for _, message in form_faults(raw)[0]:
            self._say("record_malformed", message, position)
        try:
            hashes = tuple(unbase64(text) for text in one.proof)
            if len(hashes) > HASHES_MAX or any(len(node) != 32 for node in hashes):
                raise ValueError(f"a proof has at most {HASHES_MAX} hashes of 32 bytes")
        except ValueError as error:
            self._say("inclusion_invalid", f"the proof cannot be read: {error}", position)
            return
        leaf = sha256(b"\x00" + raw).digest()
        if inclusion_root(leaf, position, checkpoint.size, hashes) != checkpoint.root:
            self._say(
                "inclusion_invalid", "the proof does not lead from this record to the signed root", position
            )

    def _decoded(self, one: ProvenRecord, code: str) -> Record:
        try:
            return decode(one.raw)
        except (LedgerError, UnicodeError) as error:
            raise self._refuse(code, f"the record cannot be read: {error}", one.position) from error

    def _read_data(self, one: ProvenRecord) -> Read | None:
        try:
            record = msgspec.json.decode(one.raw, type=_Reading)
        except (msgspec.MsgspecError, UnicodeError) as error:
            self._say("record_malformed", f"the reading cannot be read: {error}", one.position)
            return None
        return record.data

    # ------------------------------------------------------------------ readings

    def _reading(self, one: ProvenReading, checkpoint: Checkpoint) -> None:
        record = one.reading
        self._in_log(record, checkpoint)
        stated = self._stated(record)
        if stated is None:
            return
        for why in self._foreign(stated, record.position):
            self._say("reading_foreign", why, record.position, stated.stream)
        if record.position <= self._last:
            self._say("reading_doubled", f"it stands behind {self._last}", record.position, stated.stream)
        elif stated.stream in self._streams:
            self._say(
                "reading_doubled", "another version of it is listed too", record.position, stated.stream
            )
        self._streams.add(stated.stream)
        self._replaced(one.replaced, stated, record.position, checkpoint)
        self._count(record, stated)

    def _stated(self, record: ProvenRecord) -> _Reading | None:
        try:
            return msgspec.json.decode(record.raw, type=_Reading)
        except (msgspec.MsgspecError, UnicodeError) as error:
            self._say("reading_foreign", f"it is no reading: {error}", record.position)
            return None

    def _foreign(self, one: _Reading, position: int) -> Iterator[str]:
        """Say why the line does not count a reading."""
        issued, part, line = self._issued, self._part, self._line
        assert issued is not None, "the invoice is read first"
        if one.type not in READINGS:
            yield f"it is {one.type}"
        if one.tenant != self._tenant:
            yield f"it is of {one.tenant}, the invoice of {self._tenant}"
        if position >= issued.known_at:
            yield f"it came after position {issued.known_at}, up to which the invoice counts"
        if part is None or self._sheet is None:
            yield "the line counts no readings"
            return
        if not part.start <= one.data.occurred_at < part.end:
            yield f"it occurred at {one.data.occurred_at}, outside of {part.start} to {part.end}"
        fitting = _fitting(self._sheet.charges, one.data)
        counts = not fitting if _is_unpriced(self._sheet, line) else line.charge in fitting.values()
        if not counts:
            yield f"{line.charge} is not the charge for {one.data.provider} {one.data.model}"

    @property
    def _line(self) -> Line:
        assert self._first is not None, "the line is read first"
        return self._first.line

    def _replaced(
        self, replaced: ProvenRecord | None, one: _Reading, position: int, checkpoint: Checkpoint
    ) -> None:
        if replaced is None:
            if one.version != 1:
                self._say("replaced_foreign", "the version it put right is not there", position, one.stream)
            return
        self._in_log(replaced, checkpoint)
        before = self._stated(replaced)
        said = (one.stream, one.version - 1, one.previous)
        if before is None or (before.stream, before.version, replaced.address) != said:
            self._say("replaced_foreign", "it is not the version before", replaced.position, one.stream)

    def _count(self, record: ProvenRecord, one: _Reading) -> None:
        self._report.readings += 1
        self._last = max(self._last, record.position)
        self._lowest = record.position if self._lowest is None else min(self._lowest, record.position)
        self._mark += int(address(record.raw).partition(":")[2][:16], 16)
        name = self._line.meter
        self._quantity += (getattr(one.data, name) or 0) if name in METERS else 0

    # ------------------------------------------------------------------ the whole

    def close(self) -> None:
        """See that nothing is missing, and that the price makes of it what was charged."""
        if self._first is None:
            raise self._refuse("page_missing", "there is no page")
        if self._awaited is not None:
            raise self._refuse("page_missing", f"a page follows, under the cursor {self._awaited}")
        evidence = self._first.evidence
        listed = None
        if self._lowest is not None:
            fingerprint = f"{self._mark % 2**64:016x}"
            listed = Evidence(self._report.readings, self._lowest, self._last, fingerprint)
        if listed != evidence:
            self._say(
                "evidence_mismatch", f"the invoice counted {_told(evidence)}; listed are {_told(listed)}"
            )
        if not self._report.findings:
            self._check_amount()

    def _check_amount(self) -> None:
        line, issued, counted = self._line, self._issued, self._report.evidence is not None
        assert issued is not None, "the invoice is read first"
        quantity = Fraction(self._quantity)
        if counted and read_exact(line.quantity) != quantity:
            message = f"the readings add up to {quantity}, the line says {line.quantity}"
            self._say("quantity_mismatch", message)
        again = self._again(line, quantity, issued)
        if again != line:
            said = "nothing" if again is None else f"{again.exact} {again.amount.currency}"
            message = f"the price makes {said} of {quantity}, the line says {line.exact}"
            self._say("amount_mismatch", message)

    def _again(self, line: Line, quantity: Fraction, issued: Invoice.Issued) -> Line | None:
        """Make the line again."""
        currency = issued.bill.currency
        if self._sheet is None or self._part is None:
            return _commitment(issued)
        if _is_unpriced(self._sheet, line):
            return line_of(UNPRICED, line.meter, line.description, quantity, [], currency).line
        return _rated(self._sheet, self._part, line, quantity)


class _Reading(msgspec.Struct, frozen=True):
    """What of a reading's record is looked at."""

    stream: str
    tenant: str
    type: str
    version: int
    previous: str | None
    data: Read


def _is_unpriced(sheet: PriceSheet, line: Line) -> bool:
    """Say whether a line shows what no charge is for; a charge may have its name."""
    return line.charge == UNPRICED and _charge(sheet, UNPRICED) is None


def _fitting(charges: Sequence[Charge], read: Read) -> dict[str, str]:
    """Name the charge that counts each meter of a reading: the first that fits."""
    found: dict[str, str] = {}
    for charge in charges:
        if charge.meter in METERS and charge.match.fits(read.provider, read.model, read.persona_id):
            found.setdefault(charge.meter, charge.id)
    return found


def _commitment(issued: Invoice.Issued) -> Line | None:
    """Make the line of a commitment again from the lines above it."""
    agreed = issued.terms.commitment
    if agreed is None:
        return None
    others = sum((read_exact(line.exact) * NANO for line in issued.bill.lines[:-1]), Fraction(0))
    missing = decimal_of(agreed) * NANO - others
    step = Step("commitment true-up", Fraction(1), agreed, missing)
    return line_of(COMMITMENT, "period", "Minimum commitment", Fraction(1), [step], issued.bill.currency).line


def _told(one: Evidence | None) -> Any:
    if one is None:
        return "none"
    return f"{one.events} from {one.first} to {one.last} with the fingerprint {one.fingerprint}"
