"""Auditing an invoice from an export alone: no service, no database, no network, and no trust but in one key.

    1  the walk    every record and every hash under the signed checkpoint (ops/audit_files.py)
    2  the recount what was used, added up again from the raw readings, from the last to the first
    3  the redraw  what the invoice should have been, from the prices, the terms and the credits in the log before it
    4  a line      its readings, each with its way to the signed root

Memory holds digests of files, sums, and what was put right; of readings no more than a page.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from domain.billing.customers import Customer
from domain.billing.grants import Grant
from domain.billing.invoices import Invoice, Source
from domain.billing.line_proofs import (
    SCHEMA,
    LineProof,
    ProvenReading,
    ProvenRecord,
    cursor_of,
    sheet_of_line,
)
from domain.billing.price_books import PriceBook, PriceSheet
from domain.billing.recounting import Recount
from domain.billing.redrawing import Before, Difference, Drawn, cuts_of, differences, redraw, seal_of_sheet
from domain.errors import (
    ExportTooShortError,
    InvoiceLineNotFoundError,
    InvoiceNotFoundError,
    LogDamagedError,
)
from domain.log.audit_tree import TILE_WIDTH
from domain.log.records import Aggregate, Record, blank
from ops.audit_files import LogFiles, Places, Progress, ReadPath

PAGE_READINGS = 500


class Audited(NamedTuple):
    """A document that was audited: the record that issued it, and in what it differs from what the log comes to.

    Units: position and known_at are places in the log; readings is how many were counted.
    """

    invoice: str
    issued: Invoice.Issued
    at: str
    record: ProvenRecord
    drawn: Drawn
    readings: int
    differences: list[Difference]


class InvoiceAudit(NamedTuple):
    """What an audit came to; documents are the invoice, and before it what it corrects.

    Units: size is the tree's; records is how many were read.
    """

    origin: str
    size: int
    root: bytes
    key_pinned: bool
    quorum: bool | None
    documents: list[Audited]

    @property
    def differences(self) -> list[Difference]:
        """List what differs, the latest document first."""
        return [one for document in self.documents for one in document.differences]

    @property
    def ok(self) -> bool:
        return not self.differences


# --------------------------------------------------------------------------- the audit


def tenant_of(invoice_id: str) -> str:
    """Read whose an invoice is from its name, such as inv-acme-000001.

    Errors: invoice_not_found.
    """
    kind, _, rest = invoice_id.partition("-")
    tenant, _, number = rest.rpartition("-")
    if kind != "inv" or not tenant or not number.isdigit():
        raise InvoiceNotFoundError(f"{invoice_id[:200]!r} is no name of an invoice, such as inv-acme-000001")
    return tenant


def _silent(what: str, done: int, total: int) -> None:
    """Say nothing about progress."""


class Auditor:
    """One audit of one invoice. `run` says whether it is right; `pages` then gives the proof of any of its lines."""

    def __init__(
        self, read: ReadPath, invoice: str, *, vkey: str | None, policy: str | None = None,
        progress: Progress | None = None,
    ) -> None:  # fmt: skip
        self.invoice_id = invoice.lower()
        self._places = Places(tenant_of(self.invoice_id))
        self._progress = progress or _silent
        self._files = LogFiles(read, vkey, policy)
        self._recount: Recount | None = None
        self._audited: list[Audited] = []

    def run(self) -> InvoiceAudit:
        """Audit the invoice, and what it corrects.

        Cost:   two passes over the export; some 17 s of one core for a million records, half of them counted.
        Errors: export_damaged, export_too_short, invoice_not_found, log_damaged, price_not_in_force.
        """
        self._files.walk(self._places, self._progress)
        try:
            self._follow()
        except (ArithmeticError, AssertionError, KeyError, ValueError) as error:
            # Such as a share of nothing: signed, but by no rule of this house.
            raise LogDamagedError("what was signed cannot be reckoned with", internal=repr(error)) from error
        files = self._files
        return InvoiceAudit(
            origin=files.checkpoint.origin,
            size=files.checkpoint.size,
            root=files.checkpoint.root,
            key_pinned=files.key_pinned,
            quorum=files.quorum,
            documents=self._audited,
        )

    def _follow(self) -> None:
        """Count and draw up again what was issued, and compare."""
        chain = list(self._chain())
        places = {name: self._before(record, position) for name, position, record in chain}
        cuts = cuts_of(places[chain[-1][0]])
        bounds = [record.data.known_at for _, _, record in chain]
        self._recount = self._counted(chain[0][2].tenant, cuts, bounds)
        self._audited = [
            self._audit(name, position, record, places[name]) for name, position, record in chain
        ]

    def _chain(self) -> Iterator[tuple[str, int, Record]]:
        """Give the record that issued the invoice, and those of what it corrects, the latest first."""
        name: str | None = self.invoice_id
        below = self._files.checkpoint.size
        while name is not None:
            position, record = self._issued(name, below)
            yield name, position, record
            name, below = record.data.corrects, position

    def _issued(self, name: str, below: int) -> tuple[int, Record]:
        size = self._files.checkpoint.size
        stream = f"{Invoice.KIND}/{name}"
        if stream not in self._places.documents:
            raise InvoiceNotFoundError(
                f"the export, which ends at position {size}, has no invoice {name}", id=name, size=size
            )
        position = self._places.documents[stream][0]
        record = self._files.record(position)
        if not isinstance(record.data, Invoice.Issued) or position >= below:
            raise LogDamagedError(f"{name} does not begin by being issued", position=position)
        if record.data.known_at > size:
            raise ExportTooShortError(
                f"the invoice counts what came before position {record.data.known_at}, the export ends at {size}",
                known_at=record.data.known_at,
                size=size,
            )
        return position, record

    # ------------------------------------------------------------------ what stood in the log before

    def _fold(self, stream: str, below: int) -> Any:
        """Rebuild an aggregate as it was before a position; None where there was none."""
        positions = [at for at in self._places.documents.get(stream, ()) if at < below]
        made: Aggregate | None = None
        for at in positions:
            record = self._files.record(at)
            made = (made or blank(stream, record.tenant)).mutate(record)
        return made

    def _before(self, issued: Record, position: int) -> Before:
        data: Invoice.Issued = issued.data
        customer = self._fold(f"{Customer.KIND}/{issued.tenant}", position)
        if not isinstance(customer, Customer) or customer.plan is None:
            raise LogDamagedError("the customer was not enrolled before the invoice", tenant=issued.tenant)
        book = self._fold(f"{PriceBook.KIND}/{customer.agreed.book}", position)
        grants = [self._fold(f"{Grant.KIND}/{name}", position) for name in customer.grants]
        if None in grants:
            raise LogDamagedError("a credit of the customer is not in the log", tenant=issued.tenant)
        documents = self._documents(data.corrects, position)
        books = {customer.agreed.book}
        books |= {used.sheet.rpartition(".v")[0] for one in documents[-1:] for used in one.sheets}
        return Before(customer, book, self._sheets(books, position), grants, documents)

    def _documents(self, last: str | None, below: int) -> list[Invoice]:
        """Give the documents of a period as they stood before a position, the first one first."""
        found: list[Invoice] = []
        while last is not None:
            one = self._fold(f"{Invoice.KIND}/{last}", below)
            if not isinstance(one, Invoice):
                raise LogDamagedError("what the invoice corrects was not issued before it", invoice=last)
            found.insert(0, one)
            last = one.corrects
        return found

    def _sheets(self, books: set[str], below: int) -> dict[str, PriceSheet]:
        found = {}
        for stream in list(self._places.documents):
            kind, _, name = stream.partition("/")
            if kind == PriceSheet.KIND and name.rpartition(".v")[0] in books:
                sheet = self._fold(stream, below)
                if sheet is not None:
                    found[name] = sheet
        return found

    # ------------------------------------------------------------------ counting and comparing

    def _counted(self, tenant: str, cuts: Sequence[tuple[str, str]], bounds: Sequence[int]) -> Recount:
        recount = Recount(tenant, cuts, bounds)
        indices = [i for i in sorted(self._places.bundles, reverse=True) if i * TILE_WIDTH < max(bounds)]
        for done, index in enumerate(indices):
            records = self._files.bundle(index)
            for at in range(len(records) - 1, -1, -1):
                recount.take(index * TILE_WIDTH + at, records[at])
            self._progress("counting", done + 1, len(indices))
        return recount

    def _audit(self, name: str, position: int, record: Record, before: Before) -> Audited:
        assert self._recount is not None, "it was counted before"
        issued: Invoice.Issued = record.data
        counted = self._recount.counted(issued.known_at)
        drawn = redraw(before, counted, record.at, name)
        found = differences(name, drawn.issued, issued)
        found += differences(name, drawn.beside, self._beside(issued, name))
        found += self._sealed(name, before, drawn)
        if issued.known_at > position:
            found.append(Difference(name, "known_at", None, f"at most {position}", issued.known_at))
        for at in self._recount.doubled:
            if at < issued.known_at:
                found.append(
                    Difference(name, "readings", None, "each version of a reading once", f"again at {at}")
                )
        readings = sum(used.events for _, _, part in counted.parts for used in part)
        return Audited(name, issued, record.at, self._files.proven(position), drawn, readings, found)

    def _sealed(self, name: str, before: Before, drawn: Drawn) -> Iterator[Difference]:
        """See that the prices are those their address was made of."""
        for number, used in enumerate(drawn.issued.sheets):
            seal = seal_of_sheet(before.sheet(used.sheet))
            if seal != used.address:
                yield Difference(name, f"sheets[{number}].address", None, seal, used.address)

    def _beside(self, issued: Invoice.Issued, name: str) -> dict[str, Any]:
        """Find what went with a document in other streams."""
        burned: dict[str, list[Any]] = {}
        given: list[Any] = []
        for stream in [one for one in self._places.documents if one.startswith(f"{Grant.KIND}/")]:
            if found := list(self._naming(stream, "invoice", name)):
                burned[stream.partition("/")[2]] = found
            given += self._naming(stream, "reference", name)
        owner = f"{Customer.KIND}/{tenant_of(name)}"
        corrected = self._naming(f"{Invoice.KIND}/{issued.corrects}", "by", name) if issued.corrects else []
        return {
            "credits": burned,
            "given": given,
            "customer": list(self._naming(owner, "invoice", name)),
            "corrected": [found["by"] for found in corrected],
        }

    def _naming(self, stream: str, member: str, name: str) -> Iterator[dict[str, Any]]:
        """Give the data of a stream's records that name an invoice."""
        for at in self._places.documents.get(stream, ()):
            data = msgspec.to_builtins(self._files.record(at).data)
            if data.get(member) == name:
                yield data

    # ------------------------------------------------------------------ a line

    def pages(self, number: int, *, of: int = 0, page_readings: int = PAGE_READINGS) -> Iterator[LineProof]:
        """Give the proof of a line of a document that was audited, page by page; 0 is the invoice itself.

        Cost:   one pass over what lies between the line's first and last record; some twenty hashes a reading.
        Errors: export_damaged, invoice_line_not_found.
        """
        document = self._audited[of]
        issued, lines = document.issued, document.issued.bill.lines
        if not 0 <= number < len(lines):
            raise InvoiceLineNotFoundError(invoice=document.invoice, line=number, line_count=len(lines))
        drawn = document.drawn.drawn
        sources = drawn.sources[number] if number < len(drawn.sources) else []
        page = LineProof(
            schema=SCHEMA,
            checkpoint=self._files.note.decode(),
            invoice=document.record,
            number=number,
            line=lines[number],
            evidence=issued.evidence[number],
            sheet=self._sheet(issued, number, sources),
            readings=[],
            next=None,
        )
        waiting: list[ProvenReading] = []
        for reading in self._readings(document, sources):
            if len(waiting) == page_readings:
                following = cursor_of(waiting[-1].reading.position, self._files.checkpoint.size)
                yield msgspec.structs.replace(page, readings=waiting, next=following)
                waiting = []
            waiting.append(reading)
        yield msgspec.structs.replace(page, readings=waiting)

    def _sheet(self, issued: Invoice.Issued, number: int, sources: Sequence[Source]) -> ProvenRecord | None:
        streams = [f"{PriceSheet.KIND}/{one.sheet}" for one in issued.sheets]
        if not all(stream in self._places.documents for stream in streams):
            return None
        sheets = [self._fold(stream, self._files.checkpoint.size) for stream in streams]
        at = sheet_of_line(
            issued.bill.lines[number], issued.sheets, sheets, sources[0].start if sources else None
        )
        return None if at is None else self._files.proven(self._places.documents[streams[at]][0])

    def _readings(self, document: Audited, sources: Sequence[Source]) -> Iterator[ProvenReading]:
        """Give the readings of a line in the order of the log."""
        recount, wanted, bound = self._recount, frozenset(sources), document.issued.known_at
        assert recount is not None, "it was counted before"
        for index in sorted(self._places.bundles) if wanted else ():
            for at, raw in enumerate(self._files.bundle(index), index * TILE_WIDTH):
                if at >= bound:
                    return
                found = recount.find(at, raw)
                if found is None or found.source not in wanted or not found.counts_below(at, bound):
                    continue
                stated = found.stated
                earlier = recount.earlier_at(stated.stream, stated.version - 1)
                yield ProvenReading(
                    self._files.proven(at), None if earlier is None else self._files.proven(earlier)
                )
