"""The words `soma rental`, `soma subscription` and `soma purchase`: personas for a time, by the period, or for good.

What makes or changes something prints what it is now; `check` says whether the persona may be used at this moment, and
ends with 1 if not. A refusal ends with 2 and names what to do.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from api.cli_remote import URL, Json, Remote, Token, Url, print_json

if TYPE_CHECKING:
    from rich.console import Console

rental_app = typer.Typer(
    help="Rent a persona by the minute: quote, rent, activate, extend, end.", no_args_is_help=True
)
subscription_app = typer.Typer(
    help="Subscribe to a persona: start, change, cancel, resume.", no_args_is_help=True
)
purchase_app = typer.Typer(help="Buy a version of a persona for good: buy, return.", no_args_is_help=True)

WIDTH = 160
PAGE = 100
FEW = 20
LISTED = ("id", "persona", "status", "until", "price")

Persona = Annotated[str, typer.Argument(help="The id of a persona on the market.")]
Name = Annotated[str, typer.Argument(help="Its id, as `rent`, `start` or `buy` printed it.")]
Minutes = Annotated[
    int, typer.Option(min=1, help="How long; rounded up to the periods the persona is priced by.")
]
Version = Annotated[
    str | None, typer.Option(help="A version of the persona; the highest one on show without it.")
]
Currency = Annotated[str | None, typer.Option(help="Which price, where there are several currencies.")]
Period = Annotated[
    int | None,
    typer.Option(min=1, help="Which price, by its billing period in minutes, where there are several."),
]
Accept = Annotated[
    list[str] | None,
    typer.Option(help="An obligation of the policy that you accept; repeat for more. `quote` names them."),
]
Epoch = Annotated[int | None, typer.Option(min=1, help="Whether an access token of this epoch still counts.")]
Limit = Annotated[int, typer.Option(min=1, max=100_000, help="How many at most.")]
OfPersona = Annotated[str | None, typer.Option("--persona", help="Of this persona only.")]
Key = Annotated[
    str | None, typer.Option("--key", help="An Idempotency-Key: the same key again hears the first answer.")
]


@rental_app.callback()
def rental() -> None:
    """Rent personas by the minute."""


@subscription_app.callback()
def subscription() -> None:
    """Subscribe to personas."""


@purchase_app.callback()
def purchase() -> None:
    """Buy personas."""


# --------------------------------------------------------------------------- rentals


@rental_app.command("quote")
def quote_rental(
    persona: Persona,
    minutes: Minutes,
    version: Version = None,
    currency: Currency = None,
    period: Period = None,
    accept: Accept = None,
    url: Url = URL,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Say what a rental would reserve, and what has to be accepted for it; nothing is written."""
    body = _wish(version, currency, period, accept) | {"minutes": minutes}
    with Remote(url, token) as remote:
        found = remote.post(f"/v1/personas/{persona}/rent/quote", body)
    if as_json:
        print_json(found)
        return
    print(_money(found["amount"]))
    about = (
        f"{found['persona_id']} {found['version']} of {found['seller']}: {found['minutes']:,} minutes,"
        f" {_money(found['price'])} for {found['period_minutes']:,}"
    )
    print(about, file=sys.stderr)
    for obligation in found["obligations"]:
        print(f"  has to be accepted: --accept {obligation}", file=sys.stderr)


@rental_app.command("rent")
def rent(
    persona: Persona,
    minutes: Minutes,
    version: Version = None,
    currency: Currency = None,
    period: Period = None,
    accept: Accept = None,
    activate: Annotated[
        bool,
        typer.Option("--activate", help="Let the time run at once, and print the access token with --json."),
    ] = False,
    key: Key = None,
    url: Url = URL,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Reserve the price of a time on your wallet; the time runs once it is activated, within seven days."""
    body = _wish(version, currency, period, accept) | {"minutes": minutes}
    with Remote(url, token) as remote:
        made = _send(remote, f"/v1/personas/{persona}/rent", body, key)
        if activate:
            # A key is for one command.
            second = None if key is None else f"{key}.activate"
            made = _send(remote, f"/v1/rentals/{made['id']}/activate", {}, second)
    _tell_made(made, as_json)


@rental_app.command("activate")
def activate_rental(
    rental_id: Name,
    accept: Accept = None,
    key: Key = None,
    url: Url = URL,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Let the time run from now on; prints the access token, which ends with the rental."""
    with Remote(url, token) as remote:
        made = _send(remote, f"/v1/rentals/{rental_id}/activate", {"accepted": accept or []}, key)
    _tell_token(made, as_json)


@rental_app.command("extend")
def extend_rental(
    rental_id: Name,
    minutes: Minutes,
    accept: Accept = None,
    key: Key = None,
    url: Url = URL,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Add time before it has run out; what the longer time costs more is reserved, at the price that was agreed."""
    body = {"minutes": minutes, "accepted": accept or []}
    with Remote(url, token) as remote:
        _tell_made(_send(remote, f"/v1/rentals/{rental_id}/extend", body, key), as_json)


@rental_app.command("end")
def end_rental(
    rental_id: Name, key: Key = None, url: Url = URL, token: Token = None, as_json: Json = False
) -> None:
    """Give it back: what was used is paid, the rest is free again, and its access tokens are void."""
    with Remote(url, token) as remote:
        _tell_made(_send(remote, f"/v1/rentals/{rental_id}/end", None, key), as_json)


@rental_app.command("show")
def show_rental(rental_id: Name, url: Url = URL, token: Token = None, as_json: Json = False) -> None:
    """Show a rental: its time, what is reserved, and what was paid."""
    _show(f"/v1/rentals/{rental_id}", url, token, as_json)


@rental_app.command("list")
def list_rentals(
    status: Annotated[
        Literal["requested", "active", "ended", "expired", "revoked", "cancelled", "lapsed"] | None,
        typer.Option(help="Where they stand."),
    ] = None,
    persona: OfPersona = None,
    limit: Limit = FEW,
    url: Url = URL,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """List your rentals and those of your personas, the newest first."""
    _list("/v1/rentals", status, persona, limit, url, token, as_json)


@rental_app.command("check")
def check_rental(
    rental_id: Name, epoch: Epoch = None, url: Url = URL, token: Token = None, as_json: Json = False
) -> None:
    """Say whether the persona may be used at this moment; ends with 1 if not."""
    _check(f"/v1/rentals/{rental_id}", epoch, url, token, as_json)


# --------------------------------------------------------------------------- subscriptions


@subscription_app.command("start")
def start_subscription(
    persona: Persona,
    version: Version = None,
    currency: Currency = None,
    period: Period = None,
    accept: Accept = None,
    zone: Annotated[
        str | None, typer.Option(help="Time zone in which periods begin, such as Europe/Berlin.")
    ] = None,
    anchor: Annotated[
        str | None,
        typer.Option(help="A day from which periods are counted, such as 2026-11-01; today without it."),
    ] = None,
    key: Key = None,
    url: Url = URL,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Subscribe: the rest of the present period is reserved, and the persona may be used at once."""
    body = _wish(version, currency, period, accept) | _given(zone=zone, anchor=anchor)
    with Remote(url, token) as remote:
        _tell_made(_send(remote, f"/v1/personas/{persona}/subscribe", body, key), as_json)


@subscription_app.command("cancel")
def cancel_subscription(
    subscription_id: Name,
    now: Annotated[
        bool, typer.Option("--now", help="At once; without it, with the end of what is paid for.")
    ] = False,
    key: Key = None,
    url: Url = URL,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Cancel a subscription, with the end of its period or now; what was not used is free again."""
    body = {"when": "now" if now else "period_end"}
    with Remote(url, token) as remote:
        _tell_made(_send(remote, f"/v1/subscriptions/{subscription_id}/cancel", body, key), as_json)


@subscription_app.command("resume")
def resume_subscription(
    subscription_id: Name, key: Key = None, url: Url = URL, token: Token = None, as_json: Json = False
) -> None:
    """Take a cancellation back before the period is over."""
    with Remote(url, token) as remote:
        _tell_made(_send(remote, f"/v1/subscriptions/{subscription_id}/resume", None, key), as_json)


@subscription_app.command("change")
def change_subscription(
    subscription_id: Name,
    version: Version = None,
    accept: Accept = None,
    key: Key = None,
    url: Url = URL,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Change to another version, or to the price of today: the old price up to now, the new one from now on."""
    body = _given(version=version) | {"accepted": accept or []}
    with Remote(url, token) as remote:
        _tell_made(_send(remote, f"/v1/subscriptions/{subscription_id}/change", body, key), as_json)


@subscription_app.command("show")
def show_subscription(
    subscription_id: Name, url: Url = URL, token: Token = None, as_json: Json = False
) -> None:
    """Show a subscription: its period, what is reserved, and what was paid."""
    _show(f"/v1/subscriptions/{subscription_id}", url, token, as_json)


@subscription_app.command("list")
def list_subscriptions(
    status: Annotated[
        Literal["active", "past_due", "ended"] | None, typer.Option(help="Where they stand.")
    ] = None,
    persona: OfPersona = None,
    limit: Limit = FEW,
    url: Url = URL,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """List your subscriptions and those to your personas, the newest first."""
    _list("/v1/subscriptions", status, persona, limit, url, token, as_json)


@subscription_app.command("check")
def check_subscription(
    subscription_id: Name, epoch: Epoch = None, url: Url = URL, token: Token = None, as_json: Json = False
) -> None:
    """Say whether the persona may be used at this moment; ends with 1 if not."""
    _check(f"/v1/subscriptions/{subscription_id}", epoch, url, token, as_json)


# --------------------------------------------------------------------------- purchases


@purchase_app.command("buy")
def buy(
    persona: Persona,
    version: Version = None,
    currency: Currency = None,
    accept: Accept = None,
    key: Key = None,
    url: Url = URL,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Buy a version for good; the price is reserved while it can be given back, and then paid."""
    body = _wish(version, currency, None, accept)
    with Remote(url, token) as remote:
        _tell_made(_send(remote, f"/v1/personas/{persona}/purchase", body, key), as_json)


@purchase_app.command("return")
def return_purchase(
    purchase_id: Name, key: Key = None, url: Url = URL, token: Token = None, as_json: Json = False
) -> None:
    """Give it back in the time that is for it; its price is free again."""
    with Remote(url, token) as remote:
        _tell_made(_send(remote, f"/v1/purchases/{purchase_id}/return", None, key), as_json)


@purchase_app.command("show")
def show_purchase(purchase_id: Name, url: Url = URL, token: Token = None, as_json: Json = False) -> None:
    """Show a purchase: its price, and until when it can be given back."""
    _show(f"/v1/purchases/{purchase_id}", url, token, as_json)


@purchase_app.command("list")
def list_purchases(
    status: Annotated[
        Literal["held", "settled", "refunded", "revoked"] | None, typer.Option(help="Where they stand.")
    ] = None,
    persona: OfPersona = None,
    limit: Limit = FEW,
    url: Url = URL,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """List your purchases and those of your personas, the newest first."""
    _list("/v1/purchases", status, persona, limit, url, token, as_json)


@purchase_app.command("check")
def check_purchase(
    purchase_id: Name, epoch: Epoch = None, url: Url = URL, token: Token = None, as_json: Json = False
) -> None:
    """Say whether the persona may be used at this moment; ends with 1 if not."""
    _check(f"/v1/purchases/{purchase_id}", epoch, url, token, as_json)


# --------------------------------------------------------------------------- steps


def _wish(
    version: str | None, currency: str | None, period: int | None, accept: list[str] | None
) -> dict[str, Any]:
    given = _given(version=version, currency=currency, billing_period_minutes=period)
    return given | {"accepted": accept or []}


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _send(remote: Remote, path: str, body: Any, key: str | None) -> Any:
    headers = {} if key is None else {"Idempotency-Key": key}
    return remote.ask("POST", path, json=body, headers=headers)


def _show(path: str, url: str, token: str | None, as_json: bool) -> None:
    with Remote(url, token) as remote:
        found = remote.get(path)
    if as_json:
        print_json(found)
    else:
        _print_one(found)


def _list(
    path: str, status: str | None, persona: str | None, limit: int, url: str, token: str | None, as_json: bool
) -> None:
    """Read as many pages as are asked for; the rest is said."""
    items: list[Any] = []
    cursor = None
    with Remote(url, token) as remote:
        while cursor or not items:
            wanted = min(PAGE, limit - len(items))
            page = remote.get(path, status=status, persona_id=persona, limit=wanted, cursor=cursor)
            items += page["items"]
            cursor = page["next"]
            if len(items) >= limit or not page["items"]:
                break
    if as_json:
        print_json({"items": items, "next": cursor})
    else:
        _print_many(items, bool(cursor))


def _check(path: str, epoch: int | None, url: str, token: str | None, as_json: bool) -> None:
    with Remote(url, token) as remote:
        found = remote.get(f"{path}/entitlement", epoch=epoch)
    if as_json:
        print_json(found)
    else:
        print(found["why"])
        until = f"until {found['expires_at']}, and not at it" if found["expires_at"] else "without an end"
        if found["granted"]:
            print(f"{found['persona_id']} may be used {until}", file=sys.stderr)
        else:
            print(f"{found['persona_id']} may not be used at {found['checked_at']}", file=sys.stderr)
    raise typer.Exit(0 if found["granted"] else 1)


# --------------------------------------------------------------------------- what is shown


def _tell_made(made: Any, as_json: bool) -> None:
    """Print the id for other programs, and to people what it is now."""
    if as_json:
        print_json(made)
        return
    print(made["id"])
    for name, value in _facts(made):
        print(f"  {name:<9} {value}", file=sys.stderr)


def _tell_token(made: Any, as_json: bool) -> None:
    if as_json:
        print_json(made)
        return
    print(made["access_token"])
    print(f"{made['id']} is {made['status']} until {made['expires_at']}, and not at it", file=sys.stderr)


def _print_one(found: Any) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False, box=None)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in [("id", found["id"]), *_facts(found)]:
        table.add_row(name, escape(value))
    _console().print(table)


def _print_many(items: list[Any], has_more: bool) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None)
    for title in LISTED:
        table.add_column(title, no_wrap=True)
    for one in items:
        cells = (one["id"], _sale(one)["persona_id"], one["status"], _until(one) or "", _price(one))
        table.add_row(*map(escape, cells))
    console = _console()
    console.print(table)
    console.print(f"{len(items)}, and there are more: --limit" if has_more else f"{len(items)}")


def _facts(found: Any) -> Iterable[tuple[str, str]]:
    """Tell of a rental, a subscription or a purchase what somebody would ask."""
    yield "persona", _sale(found)["persona_id"]
    yield "seller", _sale(found)["seller"]
    yield "status", found["status"] + (", not renewed" if found.get("cancel_at_end") else "")
    if found.get("minutes"):
        yield "minutes", f"{found['minutes']:,}"
    if found.get("period_start"):
        yield "period", f"{found['period_start']} to {found['period_end']}"
    if _until(found):
        yield "until", str(_until(found))
    yield "price", _price(found)
    if _reserved(found):
        yield "reserved", str(_reserved(found))
    for name in ("charged", "paid"):
        if found.get(name):
            yield name, _money(found[name])
    if found.get("next_attempt_at"):
        yield "again", f"paid for at {found['next_attempt_at']}, attempt {found['attempts'] + 1}"
    if found.get("ended_at"):
        yield "ended", found["ended_at"]
    yield "epoch", str(found["access_epoch"])


def _sale(found: Any) -> Any:
    agreed = found.get("terms") or found.get("plan") or found
    return agreed["sale"]


def _until(found: Any) -> str | None:
    """Give the moment that decides next: the end of the time, or of the time to activate it or to give it back."""
    if "minutes" in found:
        until = found["activate_by"] if found["status"] == "requested" else found["expires_at"]
    else:
        until = found.get("period_end") or found.get("refundable_until")
    return None if until is None else str(until)


def _price(found: Any) -> str:
    """Say the price that was agreed."""
    if "terms" not in found:
        plan = found.get("plan")
        return _money(found["price"]) if plan is None else f"{_money(plan['price'])} a {plan['every']}"
    price = found["terms"]["price"]
    minutes = int(price["size"]) // 60 if "size" in price else 1
    each = price["price"]
    return f"{each} {_sale(found)['currency']} for {minutes:,} min"


def _reserved(found: Any) -> str | None:
    """Say what is reserved in all: an amount, a hold, or several of them."""
    held = found.get("reserved")
    if isinstance(held, list):
        held = held[0] if held else None
    if not held:
        return None
    return _money(held["amount"] if "hold" in held else held)


def _money(money: Any) -> str:
    return f"{money['amount']} {money['currency']}"


def _console() -> Console:
    from rich.console import Console

    # Where nobody looks, nothing needs to be narrow.
    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
