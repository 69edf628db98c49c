"""Rentals on a log in memory, with wallets that can pay and a clock the test sets."""

from __future__ import annotations

from typing import Any

from domain.billing.prices import PerMinute
from domain.fields import Command
from domain.ledger import Case, allow
from domain.rental.rentals import (
    Rental,
    Terms,
    activate_rental,
    end_rental,
    expire_rental,
    extend_rental,
    reason_of,
    request_rental,
)
from domain.rental.settling import Sale

SALE = Sale(persona_id="atlas", capsule="sha3-512:" + "cd" * 64, seller="maker", currency="USD", fee="0.125")
TERMS = Terms(SALE, PerMinute("0.10", "up", "5"))


class Ask(Command):
    """What a test asks of a rental."""

    rental_id: str = ""
    minutes: int = 0


@allow()
def rent(case: Case, command: Ask, *, terms: Terms = TERMS) -> Rental:
    """Rent the maker's persona."""
    return request_rental(case, terms, command.minutes)


@allow()
def activate(case: Case, command: Ask) -> Rental:
    """Start the time."""
    return activate_rental(case, case.get(Rental, command.rental_id))


@allow()
def extend(case: Case, command: Ask) -> Rental:
    """Add time."""
    return extend_rental(case, case.get(Rental, command.rental_id), command.minutes)


@allow()
def give_back(case: Case, command: Ask) -> Rental:
    """End it as its renter does."""
    rental = case.get(Rental, command.rental_id)
    return end_rental(case, rental, reason_of(rental, case.now))


@allow()
def revoke(case: Case, command: Ask) -> Rental:
    """End it by rule."""
    return end_rental(case, case.get(Rental, command.rental_id), "revoked")


@allow()
def expire(case: Case, command: Ask) -> Any:
    """Let a timer look at it."""
    return expire_rental(case, command.rental_id)
