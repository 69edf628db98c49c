"""The word `soma marketplace`: what is on the market, for whoever looks around.

Filters are not written down here: they are those the service's own discovery (`/v1/catalog/schema`) tells of, so that a
new facet is a new option at once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli_remote import URL, Json, Remote, Token, Url, print_json
from domain.errors import InvalidFieldError, MissingFieldError, UnknownFieldError

if TYPE_CHECKING:
    from rich.console import Console

marketplace_app = typer.Typer(
    help="What is on the market: personas and how to find them.", no_args_is_help=True
)

PAGE = 100
VALUES_SHOWN = 8
WIDTH = 160


@marketplace_app.callback()
def marketplace() -> None:
    """Look around the market."""


@marketplace_app.command(
    "list-personas", context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)
def list_personas(
    ctx: typer.Context,
    url: Url = URL,
    token: Token = None,
    query: Annotated[
        str | None, typer.Option("--query", "-q", help="Words to look for in name, summary and domains.")
    ] = None,
    sort: Annotated[
        str | None, typer.Option(help="newest, name or relevance; relevance where words are given.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many at most.")] = 20,
    filters: Annotated[
        bool, typer.Option("--filters", help="Show what can be filtered by, with the values there are.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Search personas; every facet the service knows is an option, as --domain tax is; ends with 1 if none is found."""
    with Remote(url, token) as remote:
        schema = remote.get("/v1/catalog/schema")
        if filters:
            _show_filters(schema, as_json)
            return
        chosen = chosen_from(ctx.args, schema)
        found = _gathered(remote, {"q": query, "sort": sort, **chosen}, limit)
    if as_json:
        print_json(found)
    else:
        _show(found)
    raise typer.Exit(0 if found["items"] else 1)


def chosen_from(words: Sequence[str], schema: dict[str, Any]) -> dict[str, list[str]]:
    """Read filters from the words that are left: `--facet value` or `--facet=value`, any of them again.

    Errors: invalid_field, missing_field, unknown_field.
    """
    known = {facet["name"]: facet for facet in schema["facets"]}
    chosen: dict[str, list[str]] = {}
    for name, value in _pairs(words):
        if name not in known:
            raise UnknownFieldError(f"there is no filter --{name}", field=name, known=sorted(known))
        if name in chosen and not known[name]["multiple"]:
            raise InvalidFieldError(f"--{name} is given once", field=name)
        chosen.setdefault(name, []).append(value)
    return chosen


def _pairs(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    left = iter(words)
    for word in left:
        if not word.startswith("--"):
            raise UnknownFieldError(f"{word!r} belongs to no filter; words to look for go after --query")
        name, equals, value = word[2:].partition("=")
        if not equals:
            value = next(left, "--")
            if value.startswith("--"):
                raise MissingFieldError(f"--{name} needs a value", field=name)
        yield name, value


def _gathered(remote: Remote, asked: dict[str, Any], limit: int) -> dict[str, Any]:
    """Read as many pages as are asked for; what the first one counts holds for all."""
    items: list[Any] = []
    first: dict[str, Any] | None = None
    cursor = None
    while first is None or (cursor and len(items) < limit):
        page = remote.get("/v1/catalog/list", **asked, limit=min(PAGE, limit - len(items)), cursor=cursor)
        first = first or page
        items += page["items"]
        cursor = page["next"]
    return {"items": items, "next": cursor, "total": first["total"], "facets": first["facets"]}


# --------------------------------------------------------------------------- what is shown


def _show(found: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    console = _console()
    table = Table(box=None)
    # What one would copy is never cut; the other words may break.
    for title in ("persona", "version", "name", "seller", "status", "price"):
        table.add_column(title, overflow="fold", no_wrap=title in ("persona", "version", "seller", "status"))
    for one in found["items"]:
        cells = (
            one["persona_id"], one["version"] or "", one["display_name"], one["tenant"], _status(one),
            "\n".join(map(_price, one["pricing"])),
        )  # fmt: skip
        table.add_row(*map(escape, cells))
    console.print(table)
    console.print(f"{len(found['items'])} of {found['total']:,}")
    for facet, values in found["facets"].items():
        if len(values) > 1:
            shown = ", ".join(f"{one['value']} {one['count']:,}" for one in values[:VALUES_SHOWN])
            console.print(f"  --{facet}: {escape(shown)}{', ...' if len(values) > VALUES_SHOWN else ''}")


def _status(one: dict[str, Any]) -> str:
    """Say where a persona stands, and below it whatever speaks against taking it as it is."""
    badge = (one["compliance"] or {}).get("badge", "verified")
    doubts = [*one["degraded"], *([badge] if badge != "verified" else [])]
    doubts += [one["trust"]] if one["trust"] not in (None, "verified") else []
    return "\n".join([one["status"], *doubts])


def _price(option: dict[str, Any]) -> str:
    price = option["price"]
    minutes = option.get("billing_period_minutes")
    return f"{option['model']} {price['amount']} {price['currency']}" + (
        f" / {_span(minutes)}" if minutes else ""
    )


def _span(minutes: int) -> str:
    """Say how long a billing period is, in the largest unit that divides it."""
    for unit, size in (("day", 1_440), ("hour", 60)):
        if minutes % size == 0:
            return unit if minutes == size else f"{minutes // size} {unit}s"
    return f"{minutes} min"


def _show_filters(schema: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(schema["facets"])
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table("filter", "what it is", box=None)
    table.add_column("values", overflow="fold")
    for facet in schema["facets"]:
        values = ", ".join(f"{one['value']} {one['count']:,}" for one in facet["values"])
        table.add_row(f"--{facet['name']}", escape(facet["meaning"]), escape(values))
    _console().print(table)


def _console() -> Console:
    from rich.console import Console

    # Where nobody looks, nothing needs to be narrow.
    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
