"""A shop in memory: personas with prices on show, renters with money, and a clock the test sets."""

from __future__ import annotations

from datetime import timedelta
from inspect import signature
from typing import Any

from domain.billing.accounts import Deposit, deposit
from domain.errors import LedgerError
from domain.ledger import Answer, Caller, UseCase
from domain.persona import renting, standing
from domain.values import Money, moment_of, moment_text
from ops.judging import act_judged
from tests.unit.persona.capsule_maker import Capsule, a_capsule
from tests.unit.persona.persona_world import OPERATOR, PERSONA, World

RENTER = Caller("rick", "renters", frozenset(["owner"]))
TELLER = Caller("tess", "platform", frozenset(["billing", "operator"]))
CLOCK = Caller("timers", "platform", frozenset(["service"]))
FEE_PPM = 125_000

RENTAL = {"model": "rental", "price": {"amount": "0.50", "currency": "USD"}, "billing_period_minutes": 60}
BY_MINUTE = {"model": "rental", "price": {"amount": "0.02", "currency": "USD"}, "billing_period_minutes": 1}
IN_EURO = {"model": "rental", "price": {"amount": "0.40", "currency": "EUR"}, "billing_period_minutes": 60}
MONTHLY = {
    "model": "subscription",
    "price": {"amount": "31.00", "currency": "USD"},
    "billing_period_minutes": 43_200,
}
ODD = {"model": "subscription", "price": {"amount": "1.00", "currency": "USD"}, "billing_period_minutes": 77}
PURCHASE = {
    "model": "purchase",
    "price": {"amount": "80.00", "currency": "USD"},
    "billing_period_minutes": None,
}
ALL = (RENTAL, MONTHLY, PURCHASE)


def priced_at(option: dict[str, Any], amount: str) -> dict[str, Any]:
    """Offer the same at another price."""
    return option | {"price": option["price"] | {"amount": amount}}


class Shop(World):
    """A platform where a persona is on show, and a tenant may pay for it."""

    @classmethod
    async def opened(cls, *pricing: dict[str, Any], amount: str = "100") -> Shop:
        """Put a persona on show at these prices, and money into the renter's wallet."""
        shop = await cls.begun()
        assert isinstance(shop, Shop)
        shop.capsule = await shop.priced(*(pricing or ALL))
        await shop.do(deposit, Deposit(tenant=RENTER.tenant, amount=Money.parse(amount, "USD")), TELLER)
        return shop

    async def priced(self, *pricing: dict[str, Any], version: str = "1.0.0") -> Capsule:
        """Publish a version at these prices."""
        self.pricing = pricing
        return await self.on_show(version)

    async def exported(self, version: str = "1.0.0", *_: Any, **__: Any) -> Capsule:
        """Make a capsule at the prices of the shop."""

        def change(document: dict[str, Any]) -> None:
            blank = {"price_book": None, "notes": ""}
            document["pricing"] = [option | blank for option in self.pricing]

        capsule = a_capsule(PERSONA, version, owner="olivia", constitution=self.constitution, change=change)
        await self.uploaded(capsule)
        asked = await self.requested(capsule)
        assert asked["status"] == "requested", asked
        assert (await self.packed(asked["id"], capsule))["status"] == "completed"
        return capsule

    async def judged(self, use_case: UseCase, command: Any, caller: Caller, **how: Any) -> Answer:
        """Carry out a command, with the policy's answer and the platform's part where its use case asks for them."""
        given = {"fee_ppm": FEE_PPM} if "fee_ppm" in signature(use_case).parameters else None
        if given is None:
            return await super().judged(use_case, command, caller, **how)
        return await act_judged(self.ledger, self.engine, use_case, command, caller, given=given, **how)

    # ------------------------------------------------------------------ what renters do

    async def rented(self, minutes: int = 60, caller: Caller = RENTER, **wish: Any) -> Any:
        """Rent the persona; give the rental."""
        command = renting.RentPersona(persona_id=PERSONA, minutes=minutes, **wish)
        return await self.told(renting.rent, command, caller)

    async def activated(self, minutes: int = 60) -> Any:
        """Rent the persona and let the time run; give the rental."""
        command = renting.ActivateRental(rental_id=(await self.rented(minutes))["id"])
        return await self.told(renting.activate, command, RENTER)

    async def subscribed(self, **wish: Any) -> Any:
        """Subscribe to the persona; give the subscription."""
        command = renting.SubscribePersona(persona_id=PERSONA, **wish)
        return await self.told(renting.subscribe, command, RENTER)

    async def bought(self) -> Any:
        """Buy the persona; give the purchase."""
        return await self.told(renting.purchase, renting.PurchasePersona(persona_id=PERSONA), RENTER)

    # ------------------------------------------------------------------ what happens to them

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.now = moment_text(moment_of(self.now) + timedelta(seconds=seconds))

    def wallet(self, tenant: str = RENTER.tenant) -> tuple[str, str]:
        """Give the balance of a wallet and what is held of it."""
        return self._holds(f"wallet.{tenant}.USD")

    def earnings(self, tenant: str = "acme") -> tuple[str, str]:
        """Give what a seller was paid, and what is held of it."""
        return self._holds(f"earnings.{tenant}.USD")

    def _holds(self, account: str) -> tuple[str, str]:
        found = self.store.book.accounts.get(account)
        if found is None:
            return ("0.00", "0.00")
        return (Money.of(found.balance_nano, "USD").amount, Money.of(found.held_nano, "USD").amount)

    async def revoked(self, rentals: Any = "end") -> None:
        """End the capsule for good."""
        command = standing.RevokeCapsule(
            capsule_id=self.capsule.address, reason="it misled people", rentals=rentals
        )
        await self.told(standing.revoke_capsule, command, OPERATOR)

    async def suspended(self, rentals: Any = "end") -> None:
        """Stop the capsule for now."""
        command = standing.SuspendCapsule(
            capsule_id=self.capsule.address, reason="it is looked at", rentals=rentals
        )
        await self.told(standing.suspend_capsule, command, OPERATOR)

    async def code(self, use_case: UseCase, command: Any, caller: Caller = RENTER) -> str:
        """Ask for something; give "ok" or the code of its refusal."""
        try:
            await self.judged(use_case, command, caller)
        except LedgerError as refusal:
            return refusal.code
        return "ok"
