"""The words `soma rental`, `soma subscription` and `soma purchase`: what they print, and each way out."""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import Any, NamedTuple
from unittest.mock import patch

import jwt

from api.cli import main
from domain.ledger import Caller
from tests.real.persona.test_publication_http import until
from tests.real.rental.shop import HOUR_S, RENTER, SELLER, STRANGER, Shop
from tests.real.test_cli import soma

POOR = Caller("paul", "poor", frozenset({"owner"}))


class Ended(NamedTuple):
    """How a word ended, and what it printed."""

    returncode: int | str | None
    stdout: str
    stderr: str


def say(shop: Shop, who: Caller, *words: str) -> Ended:
    """Speak to the shop as somebody, in this process: a new one for each word would take most of the time."""
    out, err = io.StringIO(), io.StringIO()
    there = ["--url", shop.service.url, "--token", shop.service.token(who)]
    with patch.object(sys, "argv", ["soma", *words, *there]), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as ended:
            return Ended(ended.code or 0, out.getvalue(), err.getvalue())
    return Ended(0, out.getvalue(), err.getvalue())


def done(shop: Shop, *words: str) -> str:
    """Speak as the renter, and be understood; give what was printed for other programs."""
    ended = say(shop, RENTER, *words)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def told(shop: Shop, *words: str) -> Any:
    """Speak as the renter, and read the answer as JSON."""
    return json.loads(done(shop, *words, "--json"))


def refused(ended: Any) -> tuple[int, str]:
    """Give the status and the code of a refusal, which says what to do."""
    assert "\n  -> " in ended.stderr
    return ended.returncode, ended.stderr.split(":")[0]


def test_a_rental_from_its_quote_to_its_end(shop: Shop) -> None:
    quoted = say(shop, RENTER, "rental", "quote", "harbour-pilot", "--minutes", "90")
    assert (quoted.returncode, quoted.stdout.strip()) == (0, "1.00 USD")
    assert "120 minutes, 0.50 USD for 60" in quoted.stderr
    made = say(shop, RENTER, "rental", "rent", "harbour-pilot", "--minutes", "90")
    name = made.stdout.strip()
    for words in ("harbour-pilot", "acme", "requested", "1.00 USD"):
        assert words in made.stderr
    check = say(shop, RENTER, "rental", "check", name)
    assert (check.returncode, check.stdout.strip()) == (1, "not_activated")

    token = done(shop, "rental", "activate", name, "--key", "once")
    again = json.loads(done(shop, "rental", "activate", name, "--key", "once", "--json"))
    assert again["receipt"]["repeated"]
    keys = jwt.PyJWKSet.from_dict(shop.read(RENTER, "/.well-known/jwks.json"))
    (key,) = keys.keys
    claims = jwt.decode(token, key, ["EdDSA"], audience="soma-ledger/access", issuer="soma-ledger")
    assert (claims["rental"], claims["epoch"], claims["expires_at"]) == (name, 1, again["expires_at"])

    check = say(shop, RENTER, "rental", "check", name, "--epoch", "1")
    assert (check.returncode, check.stdout.strip()) == (0, "granted")
    before = told(shop, "rental", "show", name)
    assert done(shop, "rental", "extend", name, "--minutes", "60") == name
    after = told(shop, "rental", "show", name)
    assert (after["minutes"], after["reserved"]["amount"]) == (180, "1.50")
    assert after["expires_at"] > before["expires_at"]
    ended = told(shop, "rental", "end", name)
    assert (ended["status"], ended["charged"]["amount"]) == ("ended", "0.50")
    check = say(shop, RENTER, "rental", "check", name, "--epoch", "1")
    assert (check.returncode, check.stdout.strip()) == (1, "over")
    shown = done(shop, "rental", "show", name)
    for words in (name, "harbour-pilot", "ended", "0.50 USD"):
        assert words in shown


def test_rentals_are_listed_by_status_a_few_or_all_of_them(shop: Shop) -> None:
    made = [done(shop, "rental", "rent", "harbour-pilot", "--minutes", "1") for _ in range(3)]
    few = told(shop, "rental", "list", "--status", "requested", "--limit", "2")
    assert [one["id"] for one in few["items"]] == made[:0:-1]
    assert few["next"]
    table = done(shop, "rental", "list", "--status", "requested", "--persona", "harbour-pilot")
    for name in made:
        assert name in table
        done(shop, "rental", "end", name)
    left = [one["id"] for one in told(shop, "rental", "list", "--status", "requested")["items"]]
    assert not set(made) & set(left)
    assert json.loads(say(shop, STRANGER, "rental", "list", "--json").stdout)["items"] == []


def test_rented_with_activation_it_runs_at_once_and_a_key_repeats_both(shop: Shop) -> None:
    words = ("rental", "rent", "harbour-pilot", "--minutes", "60", "--activate", "--key", "both", "--json")
    first, again = (json.loads(done(shop, *words)) for _ in range(2))
    assert (first["status"], first["id"]) == ("active", again["id"])
    assert again["receipt"]["repeated"]
    done(shop, "rental", "end", first["id"])


def test_a_rental_that_has_run_out_says_so_and_cannot_be_made_longer(shop: Shop) -> None:
    name = done(shop, "rental", "rent", "harbour-pilot", "--minutes", "60", "--activate")
    shop.wait(HOUR_S)
    check = say(shop, RENTER, "rental", "check", name)
    assert (check.returncode, check.stdout.strip()) == (1, "over")
    until(lambda: told(shop, "rental", "show", name), lambda found: found["status"] == "expired")
    late = say(shop, RENTER, "rental", "extend", name, "--minutes", "60")
    assert refused(late) == (2, "rental_not_open")
    assert "Rent it again" in late.stderr


def test_refusals_name_a_code_and_a_remedy(shop: Shop) -> None:
    rent = ("rental", "rent", "harbour-pilot", "--minutes", "60")
    assert refused(say(shop, SELLER, *rent)) == (2, "self_dealing")
    assert refused(say(shop, POOR, *rent))[0] == 2
    assert refused(say(shop, RENTER, "rental", "rent", "nobody-here", "--minutes", "1")) == (
        2, "persona_not_found",
    )  # fmt: skip
    other = say(shop, RENTER, *rent, "--currency", "EUR")
    assert refused(other) == (2, "price_not_offered")
    assert "0.50" in other.stderr
    for kind in ("rental", "subscription", "purchase"):
        missing = say(shop, RENTER, kind, "show", "nothing")
        assert refused(missing) == (2, f"{kind}_not_found")
        assert f"`soma {kind} list`" in missing.stderr
    name = done(shop, *rent)
    assert refused(say(shop, STRANGER, "rental", "activate", name)) == (2, "rental_not_found")
    assert refused(soma("rental", "list", url=shop.service.url)) == (2, "unauthorized")


def test_a_subscription_is_started_cancelled_resumed_changed_and_ended(shop: Shop) -> None:
    started = say(shop, RENTER, "subscription", "start", "harbour-pilot", "--zone", "Europe/Berlin")
    name = started.stdout.strip()
    for words in ("active", "30.00 USD a month", "reserved"):
        assert words in started.stderr
    assert done(shop, "subscription", "check", name) == "granted"
    cancelled = say(shop, RENTER, "subscription", "cancel", name)
    assert "not renewed" in cancelled.stderr
    assert told(shop, "subscription", "resume", name)["cancel_at_end"] is False
    assert told(shop, "subscription", "change", name)["status"] == "active"
    assert name in done(shop, "subscription", "list", "--status", "active")
    ended = told(shop, "subscription", "cancel", name, "--now")
    assert (ended["status"], ended["reserved"]) == ("ended", None)
    assert "ended" in done(shop, "subscription", "show", name)
    check = say(shop, RENTER, "subscription", "check", name)
    assert (check.returncode, check.stdout.strip()) == (1, "over")
    assert refused(say(shop, RENTER, "subscription", "resume", name)) == (2, "subscription_ended")


def test_a_purchase_is_made_and_given_back_and_not_twice(shop: Shop) -> None:
    bought = say(shop, RENTER, "purchase", "buy", "harbour-pilot")
    name = bought.stdout.strip()
    assert "90.00 USD" in bought.stderr
    assert done(shop, "purchase", "check", name) == "granted"
    assert "until" in done(shop, "purchase", "show", name)
    assert told(shop, "purchase", "return", name)["status"] == "refunded"
    assert refused(say(shop, RENTER, "purchase", "return", name)) == (2, "refund_closed")
    assert name in done(shop, "purchase", "list", "--status", "refunded")
