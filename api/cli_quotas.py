"""The words `soma billing quota ...`: limits on what is spent, and how they stand, on a running service."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from api.cli_remote import URL, Json, Remote, Token, Url, print_json, read_document

quota_app = typer.Typer(help="Limits on what tenants spend.", no_args_is_help=True)

_LIMIT = re.compile(r"(?P<id>\S+) (?P<amount>[0-9.]+) (?P<currency>[A-Z]{3})(?P<more>(?: \S+)*)")
_SCOPES = {"provider": "provider", "model": "model", "persona": "persona_id", "rental": "rental_id"}

Tenant = Annotated[str, typer.Argument(help="Whose quota.")]


@quota_app.command("show")
def show_quota(tenant: Tenant, url: Url = URL, token: Token = None, as_json: Json = False) -> None:
    """Show what is spent, reserved and left of each limit."""
    with Remote(url, token) as remote:
        state = remote.get(f"/v1/quotas/{tenant}")
    _print(state, as_json=as_json)


@quota_app.command("set")
def set_quota(
    tenant: Tenant,
    limit: Annotated[
        list[str] | None,
        typer.Option(
            help="A limit, such as 'all 500 USD' or 'big 50 USD soft model=gpt-4o at=0.5,0.9,1'; repeat for more."
        ),
    ] = None,
    prepaid: Annotated[
        bool | None,
        typer.Option("--prepaid/--no-prepaid", help="Whether reservations hold money of the wallet."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="Limits in JSON, as PUT /v1/quotas/{tenant} takes them; - is stdin.")
    ] = None,
    url: Url = URL,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Set a tenant's limits in place of those set before; without any, take them away."""
    asked: dict[str, Any] = dict(read_document(file)) if file is not None else {"limits": []}
    asked["limits"] = [*asked.get("limits", []), *map(limit_of, limit or [])]
    if prepaid is not None:
        asked["prepaid"] = prepaid
    with Remote(url, token) as remote:
        state = remote.ask("PUT", f"/v1/quotas/{tenant}", json=asked)
    _print(state, as_json=as_json)


def limit_of(text: str) -> dict[str, Any]:
    """Read a limit as it is written on a line."""
    found = _LIMIT.fullmatch(text)
    if found is None:
        raise typer.BadParameter(f"{text!r} is not like 'all 500 USD hard model=m'", param_hint="--limit")
    made: dict[str, Any] = {
        "id": found["id"],
        "amount": {"amount": found["amount"], "currency": found["currency"]},
    }
    for word in found["more"].split():
        name, _, value = word.partition("=")
        if word in ("hard", "soft"):
            made["mode"] = word
        elif word == "no-fees":
            made["fees"] = False
        elif name == "at" and value:
            made["thresholds"] = value.split(",")
        elif name in _SCOPES and value:
            made[_SCOPES[name]] = value
        else:
            raise typer.BadParameter(f"a limit has no {word!r}", param_hint="--limit")
    return made


def _print(state: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(state)
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    paid = ", paid ahead" if state["prepaid"] else ""
    console.print(f"{escape(state['tenant'])}: {state['period_start']} to {state['period_end']}{paid}")
    table = Table("limit", "for", "mode", box=None)
    for name in ("amount", "spent", "reserved", "left", "over"):
        table.add_column(name, justify="right")
    table.add_column("reached")
    for one in state["limits"]:
        scope = " ".join(f"{name}={value}" for name, value in one["scope"].items() if value) or "everything"
        sums = [one[n]["amount"] if one[n] else "?" for n in ("amount", "spent", "reserved", "left", "over")]
        table.add_row(escape(one["id"]), escape(scope), one["mode"], *sums, ", ".join(one["crossed"]))
    console.print(table)
