"""Purchases: a version of a persona for good. The price is reserved until the time to give it back is over.

held -> settled
  \\-> refunded | revoked
"""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

import msgspec

from domain.errors import PurchaseNotFoundError, RefundClosedError
from domain.ledger import Case
from domain.log.records import Aggregate, MoneyEvent, Record
from domain.rental.settling import Reserved, Sale, fee_nano, held_by, hold_on, settle
from domain.trust.judgements import Judgement
from domain.values import Money, moment_of, moment_text

REFUND_WITHIN_S = 14 * 86_400


class Purchase(Aggregate):
    """A capsule that was bought. Its price is paid once, or given back once."""

    KIND = "purchase"

    sale: Sale | None = None
    buyer: str = ""
    price: Money | None = None
    status: str = "held"
    reserved: list[Reserved] = msgspec.field(default_factory=list)
    refundable_until: str | None = None
    ended_at: str | None = None
    access_epoch: int = 1

    class Made(MoneyEvent, frozen=True):
        """The price was reserved, and the capsule may be used."""

        TOPIC = "purchase.made"

        persona_id: str
        sale: Sale
        buyer: str
        price: Money
        refundable_until: str
        judgement: Judgement | None = None

        def apply(self, purchase: Purchase, record: Record) -> None:
            purchase.sale = self.sale
            purchase.buyer = self.buyer
            purchase.price = self.price
            purchase.refundable_until = self.refundable_until
            purchase.reserved = held_by(self.money)

    class Settled(MoneyEvent, frozen=True):
        """The seller was paid."""

        TOPIC = "purchase.settled"

        charged: Money
        fee: Money

        def apply(self, purchase: Purchase, record: Record) -> None:
            purchase.status = "settled"

    class Refunded(MoneyEvent, frozen=True):
        """It was given back, or taken back, before the seller was paid."""

        TOPIC = "purchase.refunded"

        amount: Money
        reason: Literal["returned", "revoked"]

        def apply(self, purchase: Purchase, record: Record) -> None:
            purchase.status = "refunded" if self.reason == "returned" else "revoked"
            purchase.ended_at = record.at
            purchase.access_epoch += 1

    def owner_key(self) -> str | None:
        return self.sale.persona_id if self.sale else None

    def status_key(self) -> str:
        return self.status

    def party_keys(self) -> list[str] | None:
        return [self.sale.seller] if self.sale else None

    def deadline_key(self) -> str | None:
        return self.refundable_until if self.status == "held" else None

    def is_usable(self, now: str) -> bool:
        """Say whether the buyer may use the capsule; what was bought and not given back may be used for good."""
        return self.status in ("held", "settled")


def make_purchase(case: Case, sale: Sale, price: Money, judgement: Judgement | None = None) -> Purchase:
    """Buy for the caller's tenant.

    Errors: account_not_found, insufficient_funds.
    """
    name, buyer = case.new_id("purchase"), case.caller.tenant
    made = Purchase.Made(
        persona_id=sale.persona_id,
        sale=sale,
        buyer=buyer,
        price=price,
        refundable_until=moment_text(moment_of(case.now) + timedelta(seconds=REFUND_WITHIN_S)),
        judgement=judgement,
        money=hold_on(f"{name}.1", buyer, price),
    )
    return case.create(Purchase, name, made)


def settle_purchase(case: Case, name: str) -> Purchase:
    """Pay the seller once the time to give it back is over; asking again changes nothing.

    Errors: purchase_not_found.
    """
    purchase = case.get(Purchase, name, PurchaseNotFoundError)
    deadline = purchase.deadline_key()
    if deadline is None or case.now < deadline:
        return purchase
    assert purchase.sale is not None
    assert purchase.price is not None
    charged, sale = purchase.price.nano, purchase.sale
    settled = Purchase.Settled(
        charged=purchase.price,
        fee=Money.of(fee_nano(sale, charged), sale.currency),
        money=settle(case, sale, purchase.buyer, purchase.reserved, charged) if charged else [],
    )
    return case.emit(purchase, settled)


def refund_purchase(case: Case, purchase: Purchase, reason: Literal["returned", "revoked"]) -> Purchase:
    """Give the price back, in the time that is for it; what is revoked is given back until the seller was paid.

    Errors: refund_closed.
    """
    until = purchase.refundable_until
    is_late = reason == "returned" and until is not None and case.now >= until
    if purchase.status != "held" or is_late:
        raise RefundClosedError(status=purchase.status, refundable_until=purchase.refundable_until)
    assert purchase.sale is not None
    assert purchase.price is not None
    money = settle(case, purchase.sale, purchase.buyer, purchase.reserved, 0)
    return case.emit(purchase, Purchase.Refunded(amount=purchase.price, reason=reason, money=money))
