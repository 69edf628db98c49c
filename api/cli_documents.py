"""The words `soma billing invoice | statement | export`: documents and tables, on the screen or as files."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from api.cli_remote import URL, Remote, Token, Url, refusal_of

# Everything else is imported where it is used, so that other words do not wait for it.
if TYPE_CHECKING:
    from rich.table import Table

Out = Annotated[
    Path | None,
    typer.Option("--out", help="The file to write; its ending chooses the form. Else standard output."),
]
From = Annotated[
    str | None, typer.Option("--from", help="A time, or a day of the zone; the beginning otherwise.")
]
To = Annotated[str | None, typer.Option("--to", help="Where it ends, itself not included.")]
Zone = Annotated[str, typer.Option(help="The zone in which days begin.")]
OwnZone = Annotated[
    str | None,
    typer.Option("--zone", help="The zone in which days begin; the customer's own, or UTC, without it."),
]
AsOf = Annotated[
    str | None, typer.Option("--as-of", help="A position of the log, that record included; now without it.")
]


def show_invoice(
    number: Annotated[
        str, typer.Argument(help="Of an invoice, a correction (INV-...) or a credit note (CN-...).")
    ],
    form: Annotated[
        str | None,
        typer.Option("--format", help="html, csv, parquet or json; a table on the screen without it."),
    ] = None,
    out: Out = None,
    url: Url = URL,
    token: Token = None,
) -> None:
    """Show a document as it was issued, or write it to a file."""
    name = number.lower()
    kind = "credit_notes" if name.startswith("cn-") else "invoices"
    chosen = _chosen(form, out, ("html", "csv", "parquet", "json"))
    with Remote(url, token) as remote:
        path = f"/v1/{kind}/{_word(name)}/document"
        if chosen is None:
            _print_document(remote.get(path, format="json"))
        else:
            _fetch(remote, path, {"format": chosen}, out)


def show_statement(
    account: Annotated[str | None, typer.Argument(help="An account, such as wallet.acme.USD.")] = None,
    customer: Annotated[str | None, typer.Option(help="A customer instead of an account.")] = None,
    starts: From = None,
    ends: To = None,
    zone: OwnZone = None,
    as_of: AsOf = None,
    form: Annotated[str | None, typer.Option("--format", help="json, html or csv; json without it.")] = None,
    out: Out = None,
    url: Url = URL,
    token: Token = None,
) -> None:
    """Write a statement; the same position gives the same bytes for ever, and their address is told beside them."""
    if (account is None) == (customer is None):
        raise typer.BadParameter("name an account, or a customer by --customer", param_hint="ACCOUNT")
    whose = f"accounts/{_word(account or '')}" if account else f"customers/{_word(customer or '')}"
    asked = {"from": starts, "to": ends, "zone": zone, "as_of": as_of}
    chosen = _chosen(form, out, ("json", "html", "csv")) or "json"
    with Remote(url, token) as remote:
        address = _fetch(remote, f"/v1/{whose}/statement", asked | {"format": chosen}, out)
    if address:
        print(f"its address is {address}", file=sys.stderr)


def export_documents(
    table: Annotated[str, typer.Argument(help="invoices, invoice_lines or credit_notes.")],
    starts: From = None,
    ends: To = None,
    zone: Zone = "UTC",
    as_of: AsOf = None,
    customer: Annotated[str | None, typer.Option(help="Of this customer alone.")] = None,
    form: Annotated[str | None, typer.Option("--format", help="csv or parquet; csv without it.")] = None,
    out: Out = None,
    url: Url = URL,
    token: Token = None,
) -> None:
    """Write all documents issued in a period, or their lines, as one table."""
    asked = {"from": starts, "to": ends, "zone": zone, "as_of": as_of, "tenant": customer}
    chosen = _chosen(form, out, ("csv", "parquet")) or "csv"
    with Remote(url, token) as remote:
        _fetch(remote, f"/v1/billing/exports/{_word(table)}", asked | {"format": chosen}, out)


def _word(name: str) -> str:
    """Put a name into a path as one of its parts."""
    from urllib.parse import quote

    return quote(name, safe="")


def _chosen(form: str | None, out: Path | None, known: tuple[str, ...]) -> str | None:
    chosen = form or (out.suffix.removeprefix(".").lower() if out is not None else None)
    if chosen is not None and chosen not in known:
        raise typer.BadParameter(f"it is one of {', '.join(known)}", param_hint="--format")
    if chosen == "parquet" and out is None and sys.stdout.isatty():
        raise typer.BadParameter("a terminal shows no Parquet; name a file by --out", param_hint="--format")
    return chosen


def _fetch(remote: Remote, path: str, asked: dict[str, Any], out: Path | None) -> str | None:
    """Write what a path answers as it comes in; give its address, where it has one.

    Errors: those of the service, unavailable, invalid_request.
    """
    import httpx

    from domain.errors import UnavailableError

    params = {name: value for name, value in asked.items() if value is not None}
    try:
        with remote.client.stream("GET", path, params=params) as answer:
            if not answer.is_success:
                answer.read()
                raise refusal_of(answer)
            with _target(out) as file:
                for part in answer.iter_bytes():
                    file.write(part)
            return answer.headers.get("etag", "").strip('"') or None
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise UnavailableError(f"{remote.client.base_url} did not answer to the end: {error}") from error


@contextmanager
def _target(out: Path | None) -> Iterator[BinaryIO]:
    """Open where to write to; a file has its name once it is whole.

    Errors: invalid_request.
    """
    from domain.errors import InvalidError

    if out is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    partial = out.with_name(out.name + ".part")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(out)
    except OSError as error:
        raise InvalidError(f"{out} cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


# --------------------------------------------------------------------------- on the screen


def _print_document(document: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape

    from api.documents import local, visible

    console = Console(highlight=False)
    console.print(
        f"{visible(document['number'])} to {document['tenant']}, {document['kind'].replace('_', ' ')}"
    )
    period = document.get("period") or document["invoice"]["period"]
    console.print(
        f"period {local(period['from'], period['zone'])} to before {local(period['to'], period['zone'])}"
    )
    if "lines" in document:
        console.print(_lines(document))
    else:
        console.print(f"about {document['invoice']['number']}: {escape(visible(document['reason']))}")
        console.print(f"credited {document['amount']} {document['currency']}, tax {document['tax']}")
    console.print(f"position {document['position']}, {document['address']}", soft_wrap=True)


def _lines(document: dict[str, Any]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    from api.documents import visible

    corrects = document["corrects"] is not None
    table = Table("line", box=None)
    for name in ("quantity", *(["was", "is", "difference"] if corrects else ["exact", document["currency"]])):
        table.add_column(name, justify="right")
    for line in document["lines"]:
        said = escape(visible(line["description"] or line["charge"]))
        numbers = (
            (line["was"], line["amount"], line["difference"]) if corrects else (line["exact"], line["amount"])
        )
        table.add_row(said, line["quantity"], *numbers)
    for item in document["totals"]:
        said = escape(visible(f"{item['what']} {item['name']}".strip()))
        numbers = (item["was"], item["amount"], item["difference"]) if corrects else ("", item["amount"])
        table.add_row(said, "", *numbers)
    if corrects:
        table.add_row("[bold]owed[/]", "", "", "", document["owed"])
    return table
