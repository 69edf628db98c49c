"""The words `soma audit invoice` and `soma audit line`: an invoice, and one of its lines, checked without its issuer.

Both end with 0 where everything is as it should be, with 1 where something is not, and with 2 where that cannot be
told, such as for an export that is damaged or ends too early.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli_log import Json, Key, PolicyFile, key_text, print_findings, print_json, print_rows, text_of

if TYPE_CHECKING:
    from domain.billing.line_proofs import LineProof, LineReport, ProvenReading, ProvenRecord
    from domain.billing.redrawing import Difference
    from ops.audit_invoice import Audited, Auditor, InvoiceAudit

SHOWN_MAX = 100
PAGE_BYTES_MAX = 64_000_000

Progress = Callable[[str, int, int], None]


def audit_invoice(
    source: Annotated[str, typer.Argument(metavar="EXPORT", help="An export: the file, or the directory.")],
    invoice: Annotated[str, typer.Argument(help="Its number, such as INV-acme-000001.")],
    line: Annotated[
        int | None,
        typer.Option(min=0, help="List the readings of this line with their proofs; 0 is the first."),
    ] = None,
    key: Key = None,
    records: Annotated[
        Path | None,
        typer.Option(help="Write all readings of the line with their proofs here, for `soma audit line`."),
    ] = None,
    policy: PolicyFile = None,
    as_json: Json = False,
) -> None:
    """Make an invoice again from an export alone, and compare every line, amount and posting with the one issued."""
    from ops.audit_invoice import Auditor
    from ops.audit_sources import open_source

    if records is not None and line is None:
        raise typer.BadParameter("they are those of one line; name it with --line", param_hint="--records")
    if records is not None and records.exists():
        raise typer.BadParameter("there is something already", param_hint="--records")
    if source.startswith(("http://", "https://")):
        raise typer.BadParameter("an invoice is audited offline; export the log first", param_hint="EXPORT")
    try:
        opened = open_source(source)
    except OSError as error:
        raise typer.BadParameter(str(error), param_hint="EXPORT") from error
    try:
        with _bar(as_json) as progress:
            auditor = Auditor(
                opened.read, invoice, vkey=key_text(key), policy=text_of(policy), progress=progress
            )
            audit = auditor.run()
        listed = [] if line is None else _listed(auditor, audit, line, records)
    finally:
        opened.close()
    if as_json:
        print_json(_told(audit, listed))
    else:
        _show(audit, listed)
    raise typer.Exit(0 if audit.ok else 1)


def audit_line(
    pages: Annotated[
        list[Path],
        typer.Argument(exists=True, dir_okay=False, help="The pages of a line's proof, in their order."),
    ],
    key: Annotated[str, typer.Option(help="The log's verifier key, or a file that holds it.")],
    policy: PolicyFile = None,
    as_json: Json = False,
) -> None:
    """Check the proof of a line of an invoice offline: its readings, its price and the invoice, under a signed root."""
    from domain.billing.line_proofs import LINE_CODES, check_line

    report = check_line(chain.from_iterable(map(_pages, pages)), key_text(key) or "", text_of(policy))
    if as_json:
        import msgspec

        print_json({"ok": report.ok} | msgspec.to_builtins(report))
    else:
        _show_line(report)
        print_findings(report.findings, LINE_CODES, 0)
    raise typer.Exit(0 if report.ok else 1)


def _pages(file: Path) -> Iterator[bytes]:
    """Read the pages in a file: one a line, so that one answer of the service is a file of one."""
    with file.open("rb") as opened:
        # A page longer than any is cut, and no page any more.
        while data := opened.readline(PAGE_BYTES_MAX):
            yield data.removesuffix(b"\n")


# --------------------------------------------------------------------------- the readings of a line


def _listed(auditor: Auditor, audit: InvoiceAudit, number: int, out: Path | None) -> list[LineProof]:
    """Give the first page of the line's proof, and of the line it takes the place of; write all pages of the line."""
    from domain.billing.line_proofs import print_page

    pages = auditor.pages(number)
    first = next(pages)
    if out is not None:
        with out.open("xb") as file:
            for page in chain([first], pages):
                file.write(print_page(page) + b"\n")
    shown = [first]
    for of, document in islice(enumerate(audit.documents), 1, 2):
        earlier = _same_line(audit.documents[0], document, number)
        shown += [] if earlier is None else [next(auditor.pages(earlier, of=of))]
    return shown


def _same_line(later: Audited, earlier: Audited, number: int) -> int | None:
    """Find the line of what is corrected that a line takes the place of: of the same charge, and of the same part."""
    name = (later.issued.bill.lines[number].charge, _start(later, number))
    lines = earlier.issued.bill.lines
    return next((n for n, one in enumerate(lines) if (one.charge, _start(earlier, n)) == name), None)


def _start(document: Audited, number: int) -> str | None:
    sources = document.drawn.drawn.sources
    found = sources[number] if number < len(sources) else []
    return found[0].start if found else None


# --------------------------------------------------------------------------- what is shown


@contextmanager
def _bar(quiet: bool) -> Iterator[Progress]:
    """Show a progress bar on stderr, one for each pass."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, console=Console(stderr=True), disable=quiet) as bars:
        tasks: dict[str, Any] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=None)
            bars.update(tasks[what], completed=done, total=total)

        yield progress


def _told(audit: InvoiceAudit, listed: Sequence[LineProof]) -> dict[str, Any]:
    """Tell everything as one object; of the readings the first page."""
    import base64

    import msgspec

    return {
        "ok": audit.ok,
        "origin": audit.origin,
        "size": audit.size,
        "root": base64.b64encode(audit.root).decode(),
        "key_pinned": audit.key_pinned,
        "quorum": audit.quorum,
        "documents": [
            {
                "invoice": one.invoice,
                "kind": one.issued.kind,
                "issued_at": one.at,
                "record": msgspec.to_builtins(one.record),
                "known_at": one.issued.known_at,
                "readings": one.readings,
                "lines": len(one.issued.bill.lines),
                "owed": msgspec.to_builtins(one.issued.owed),
                "differences": [difference._asdict() for difference in one.differences],
            }
            for one in audit.documents
        ],
        "line": msgspec.to_builtins(listed),
    }


def _show(audit: InvoiceAudit, listed: Sequence[LineProof]) -> None:
    import base64

    rows: list[tuple[str, Any]] = [
        ("log", audit.origin),
        ("tree size", f"{audit.size:,}"),
        ("root", base64.b64encode(audit.root).decode()),
        (
            "key",
            "pinned" if audit.key_pinned else "[yellow]the export's own word: pin it with --key[/yellow]",
        ),
    ]
    for one in audit.documents:
        owed, period = one.issued.owed, f"{one.issued.period_start} to {one.issued.period_end}"
        rows += [
            (one.issued.kind, f"{one.issued.number}, at position {one.record.position:,}, proven"),
            ("period", f"{period} ({one.issued.zone}), known at {one.issued.known_at:,}"),
            ("counted again", f"{one.readings:,} readings, {len(one.issued.bill.lines)} lines"),
            ("owed", f"{owed.amount} {owed.currency}"),
        ]
    print_rows(rows)
    for page in listed:
        _show_readings(page)
    _show_differences(audit.differences)


def _show_differences(found: Sequence[Difference]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    if not found:
        console.print("[green]every line, amount and posting is what the log comes to[/]")
        return
    console.print(f"[red]{len(found):,} differences[/]")
    table = Table("invoice", "line", "what", box=None)
    table.add_column("expected", overflow="fold")
    table.add_column("found", overflow="fold")
    for one in found[:SHOWN_MAX]:
        line = "" if one.line is None else str(one.line)
        table.add_row(one.invoice, line, *(escape(str(x)) for x in (one.where, one.expected, one.found)))
    console.print(table)


def _show_readings(page: LineProof) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    line, evidence = page.line, page.evidence
    console.print(
        f"line {page.number}: {line.charge}, {line.quantity} {line.meter}, "
        f"{line.amount.amount} {line.amount.currency}",
        markup=False,
    )
    for reading in page.readings[:SHOWN_MAX]:
        _show_record(console, reading.reading)
        if reading.replaced is not None:
            console.print("  in place of", markup=False)
            _show_record(console, reading.replaced)
    _show_rest(console, page.readings, 0 if evidence is None else evidence.events)


def _show_record(console: Any, one: ProvenRecord) -> None:
    console.print(f"  {one.position} {one.address}", markup=False, soft_wrap=True)
    console.print(f"    proof {' '.join(one.proof)}", markup=False, soft_wrap=True)
    console.print(f"    {one.record}", markup=False, soft_wrap=True)


def _show_rest(console: Any, shown: Sequence[ProvenReading], count: int) -> None:
    left = count - len(shown[:SHOWN_MAX])
    if left > 0:
        console.print(f"  and {left:,} more: --records writes them all", markup=False)


def _show_line(report: LineReport) -> None:
    line = report.line
    rows: list[tuple[str, Any]] = [
        ("log", report.origin),
        ("tree size", f"{report.size:,}"),
        ("root", report.root),
        ("invoice", f"{report.invoice}, at position {report.position}"),
        ("line", report.number),
    ]
    if line is not None:
        rows += [
            ("charge", f"{line.charge}, {line.quantity} {line.meter}"),
            ("amount", f"{line.amount.amount} {line.amount.currency}, exactly {line.exact}"),
        ]
    print_rows([*rows, ("readings", f"{report.readings:,} on {report.pages:,} pages")])
