"""The words `soma billing run | quote | import-prices`: bills made, foretold, and what they are made by."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from api.cli_remote import URL, Json, Remote, Token, Url, print_json, read_document

# Everything else is imported where it is used, so that other words do not wait for it.
if TYPE_CHECKING:
    from domain.billing.price_lists import Imported
    from ops.settings import Settings
    from projections.billing_run import Tally

_USE = re.compile(r"(?P<provider>\S+) (?P<model>\S+)(?P<counts>(?: (?:in|out|cached|requests)=[0-9]{1,13})+)")
_COUNTS = {"in": "tokens_in", "out": "tokens_out", "cached": "cached_tokens", "requests": "requests"}


def run_billing(
    data_dir: Annotated[
        Path | None, typer.Option(help="Directory of everything embedded; SOMA_DATA_DIR otherwise.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Bill every customer whose period is over, enter late usage, and take what is due.

    Again with nothing new it changes nothing. What could not be done ends with status 1 and is named.
    """
    from api.cli import load_settings

    tally = asyncio.run(_run(load_settings(data_dir=data_dir)))
    if as_json:
        print_json(tally._asdict())
    else:
        print(
            f"billed {tally.billed}, corrected {tally.corrected} ({tally.waiting} wait for their grace), "
            f"paid {tally.paid}, not paid {tally.unpaid}"
        )
        for name, code in tally.refused:
            print(f"not billed: {name}: {code}")
    raise typer.Exit(1 if tally.refused else 0)


async def _run(settings: Settings) -> Tally:
    from ops.runtime import open_runtime
    from projections.billing_run import BillingRun

    async with open_runtime(settings) as runtime:
        return await BillingRun(runtime).run()


# --------------------------------------------------------------------------- quotes


def ask_quote(
    book: Annotated[str | None, typer.Option(help="A price book, such as platform.standard.")] = None,
    customer: Annotated[str | None, typer.Option(help="A customer, whose next period is quoted.")] = None,
    use: Annotated[
        list[str] | None,
        typer.Option(help="What is used, such as 'openai gpt-4o-mini in=150000 out=2000 requests=30'."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="A quote asked for in JSON, as POST /v1/quotes takes it; - is stdin.")
    ] = None,
    url: Url = URL,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Say what a period comes to: for the same usage it is the invoice, digit by digit.

    A customer without usage is quoted for what the log says was used so far.
    """
    asked: dict[str, Any] = dict(read_document(file)) if file is not None else {}
    asked |= {k: v for k, v in {"book": book, "tenant": customer}.items() if v is not None}
    if use:
        asked["usage"] = [*asked.get("usage", []), *map(_used, use)]
    with Remote(url, token) as remote:
        quoted = remote.post("/v1/quotes", asked)
    if as_json:
        print_json(quoted)
    else:
        _show(quoted)


def _used(text: str) -> dict[str, Any]:
    found = _USE.fullmatch(text)
    if found is None:
        raise typer.BadParameter(
            f"{text!r} is not like 'openai gpt-4o-mini in=150000 out=2000'", param_hint="--use"
        )
    counts = (one.split("=") for one in found["counts"].split())
    named = {"provider": found["provider"], "model": found["model"]}
    return named | {_COUNTS[name]: int(count) for name, count in counts}


def _show(quoted: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console, bill = Console(highlight=False), quoted["bill"]
    console.print(f"{quoted['period_start']} to {quoted['period_end']}, by {escape(quoted['book'])}")
    table = Table("charge", "quantity", "steps", box=None)
    table.add_column(bill["currency"], justify="right")
    for line in bill["lines"]:
        steps = "; ".join(f"{s['quantity']} {s['what']} at {s['price']}" for s in line["steps"])
        table.add_row(escape(line["charge"]), line["quantity"], escape(steps), line["amount"]["amount"])
    for item in bill["discounts"]:
        table.add_row(escape(item["name"]), "", "discount", "-" + item["amount"]["amount"])
    for item in bill["taxes"]:
        table.add_row(escape(item["name"]), "", "tax", item["amount"]["amount"])
    for item in bill["credits"]:
        table.add_row("credit", "", escape(item["name"]), "-" + item["amount"]["amount"])
    table.add_row("rounding carried", "", "", bill["rounding"]["amount"])
    table.add_row("[bold]due[/]", "", "", bill["due"]["amount"])
    console.print(table)


# --------------------------------------------------------------------------- price lists


def import_price_list(
    file: Annotated[Path, typer.Argument(help="A price list in JSON; - is stdin.")],
    book: Annotated[str, typer.Option(help="The price book that gets a new version.")],
    provider: Annotated[
        list[str] | None, typer.Option(help="Take this provider only; repeat for more.")
    ] = None,
    model: Annotated[list[str] | None, typer.Option(help="Take this model only; repeat for more.")] = None,
    factor: Annotated[str, typer.Option(help="What every price is multiplied with, such as 1.2.")] = "1",
    cached: Annotated[
        str, typer.Option(help="How readings count cached tokens: `among` the tokens in, or `beside` them.")
    ] = "among",
    currency: Annotated[str, typer.Option(help="The currency the list is in.")] = "USD",
    starts: Annotated[
        str | None, typer.Option("--from", help="When the version comes into force; now without it.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the version and publish nothing.")
    ] = False,
    url: Url = URL,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Publish the list prices of providers as a version of a price book.

    Prices become charges for a million tokens, exactly; what no reading counts is named and left out.
    """
    if cached not in ("among", "beside"):
        raise typer.BadParameter("it is `among` or `beside`", param_hint="--cached")
    found = _imported(file, provider, model, factor, "beside" if cached == "beside" else "among")
    import msgspec

    body = {
        "book": book,
        "currency": currency,
        "description": f"List prices from {file.name}",
        "charges": msgspec.to_builtins(found.charges),
    } | ({} if starts is None else {"effective_from": starts})
    if dry_run:
        print_json({"version": body, "left_out": found.left_out})
        return
    with Remote(url, token) as remote:
        sheet = remote.post("/v1/price_books", body)
    if as_json:
        print_json({"sheet": sheet, "left_out": found.left_out})
        return
    for name, why in found.left_out:
        print(f"left out: {name}: {why}")
    print(
        f"{sheet['book']} version {sheet['number']}: {len(found.charges)} charges, {sheet['address'][:25]}..."
    )


def _imported(
    file: Path,
    provider: list[str] | None,
    model: list[str] | None,
    factor: str,
    cached: Literal["among", "beside"],
) -> Imported:
    from domain.billing.price_lists import Wanted, import_prices, read_price_list
    from domain.billing.prices import decimal_of

    wanted = Wanted(
        frozenset(provider) if provider else None,
        frozenset(model) if model else None,
        decimal_of(factor),
        cached,
    )
    return import_prices(read_price_list(_exact(file)), wanted)


def _exact(file: Path) -> Any:
    """Read JSON with its numbers as decimals: a price such as 1.5e-07 is no binary fraction.

    Errors: invalid_request, price_list_invalid.
    """
    import json
    import sys
    from decimal import Decimal

    from domain.errors import InvalidError, PriceListInvalidError

    try:
        data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        return json.loads(data, parse_float=Decimal)
    except OSError as error:
        raise InvalidError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise PriceListInvalidError(f"{file} is no JSON: {error}") from error
