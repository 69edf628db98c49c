"""A market on a log in memory, and the ways that lead a contract, a dispute or a round into a state."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from typing import Any

import msgspec

from domain.billing.accounts import Deposit, deposit
from domain.errors import LedgerError
from domain.ledger import Caller, Ledger, UseCase
from domain.log.records import Aggregate
from domain.market import contracts, disputes, intents, offers, rounds
from domain.market.candidates import MatchPolicy
from domain.values import Money
from tests.unit.memory_log import MemoryLog, MemoryStore

START = "2026-01-01T00:00:00.000000Z"
LATER = "2026-02-01T00:00:00.000000Z"
FAR = "2027-01-01T00:00:00.000000Z"

OWNER = Caller("olivia", "acme", frozenset(["owner"]))
OPERATOR = Caller("oscar", "platform", frozenset(["operator", "billing"]))
REVIEWER = Caller("rita", "platform", frozenset(["reviewer"]))
SERVICE = Caller("runner", "platform", frozenset(["service"]))
STRANGER = Caller("sam", "strange", frozenset(["owner", "provider"]))

ADDRESS = "sha3-512:" + "ab" * 64


def seller(tenant: str) -> Caller:
    """Make a provider."""
    return Caller("pia", tenant, frozenset(["provider"]))


def usd(amount: str) -> Money:
    """Make dollars."""
    return Money.parse(amount, "USD")


class Market:
    """A ledger whose clock the test sets."""

    def __init__(self) -> None:
        self.now = START
        self.store = MemoryStore()
        numbers = count(1)
        self.ledger = Ledger(
            MemoryLog(self.store), clock=lambda: self.now, next_id=lambda: f"{next(numbers):04d}"
        )

    async def do(
        self, use_case: UseCase, command: Any, caller: Caller, if_match: int | None = None, **given: Any
    ) -> Any:
        """Carry out a command; give what it answered."""

        async def gather() -> dict[str, Any]:
            return given

        answer = await self.ledger.act(use_case, command, caller, if_match=if_match, gather=gather)
        return msgspec.json.decode(answer.body)

    async def heard(self, use_case: UseCase, command: Any, caller: Caller, **given: Any) -> str:
        """Carry out a command; give "ok" or the code of its refusal."""
        size = len(self.store.logged)
        try:
            await self.do(use_case, command, caller, **given)
        except LedgerError as refusal:
            assert len(self.store.logged) == size, "a refusal was written down"
            return refusal.code
        return "ok"

    def state(self, kind: str, name: str) -> Any:
        """Read the current state of an aggregate."""
        return msgspec.json.decode(self.store.states[f"{kind}/{name}"].state)

    def balances(self) -> dict[str, str]:
        """Print what each account has and holds."""
        return {
            name: Money.of(a.balance_nano, a.currency).amount + (" held" if a.held_nano else "")
            for name, a in self.store.book.accounts.items()
            if a.balance_nano or a.held_nano
        }

    def topics(self, kind: str = "") -> list[str]:
        """List the wire types that were logged."""
        return [logged.row.type for logged in self.store.logged if logged.row.type.startswith(kind)]

    def aggregate(self, kind: str, cls: type[Aggregate]) -> list[Any]:
        """Read all aggregates of a kind."""
        found = [s.state for s in self.store.states.values() if s.kind == kind]
        return [msgspec.json.decode(state, type=cls) for state in found]

    # ------------------------------------------------------------------ making

    async def offer(self, tenant: str = "bolt", price: str = "10", **fields: Any) -> str:
        """List an offer; give its id."""
        fields = {"allowed_tasks": ["classification"], "dataset_fingerprint": ADDRESS} | fields
        command = offers.ListOffer(seller_node_id=tenant, price_per_round=usd(price), **fields)
        return str((await self.do(offers.list_offer, command, seller(tenant)))["id"])

    async def intent(self, **fields: Any) -> str:
        """Open an intent; give its id."""
        fields = {"model_owner_id": "acme", "task_type": "classification", "deadline_ts": FAR} | fields
        return str((await self.do(intents.open_intent, intents.OpenIntent(**fields), OWNER))["id"])

    def proposed(self, intent_id: str, max_offers: int = 25) -> intents.Proposed:
        """Compute a match, as the service does before it asks the gate."""
        histories = {one.id: one for one in self.aggregate("seller", offers.Seller)}
        candidates = [
            intents.candidate(one, histories.get(one.tenant)) for one in self.aggregate("offer", offers.Offer)
        ]
        (wish,) = [one for one in self.aggregate("intent", intents.Intent) if one.id == intent_id]
        return intents.propose(wish, max_offers, candidates, MatchPolicy(), self.now, len(self.store.logged))

    async def match(self, intent_id: str, fee_ppm: int = 25_000) -> Any:
        """Match an intent with all offers there are."""
        command = intents.MatchIntent(intent_id=intent_id, max_offers=25)
        proposed = self.proposed(intent_id)
        return await self.do(intents.match_intent, command, OWNER, proposed=proposed, fee_ppm=fee_ppm)

    async def contract(
        self, prices: Sequence[tuple[str, str]] = (("bolt", "10"), ("cord", "5")), fee_ppm: int = 25_000
    ) -> str:
        """Agree on a contract with a seller for each price; give its id."""
        for tenant, price in prices:
            await self.offer(tenant, price)
        return str((await self.match(await self.intent(), fee_ppm))["id"])

    # ------------------------------------------------------------------ the ways of a contract

    async def fund(self, contract_id: str) -> Any:
        """Put the agreed sum into escrow, with money that is paid in for it."""
        agreed = self.state("contract", contract_id)["agreed_price_per_round_total"]
        if Money.parse(**agreed).nano:
            await self.do(deposit, Deposit(tenant="acme", amount=Money.parse(**agreed)), OPERATOR)
        return await self.do(contracts.fund_contract, contracts.FundContract(contract_id=contract_id), OWNER)

    async def start(self, contract_id: str) -> str:
        """Start a round; give its id."""
        command = rounds.StartRound(contract_id=contract_id)
        return str((await self.do(rounds.start_round, command, OWNER))["id"])

    async def complete(self, round_id: str, accuracy: str | None = "0.900000") -> Any:
        """Deliver the result of a round."""
        return await self.do(rounds.complete_round, self.completion(round_id, accuracy), SERVICE)

    def completion(
        self, round_id: str, accuracy: str | None = "0.900000", fence: int = 1
    ) -> rounds.CompleteRound:
        """Write down a result."""
        measures = {"loss": "0.5", "accuracy": accuracy, "auc": None, "train_rows": 80, "validation_rows": 20}
        tasks = self.state("round", round_id)["tasks"]
        updates = [
            {
                "offer_id": task["offer_id"], "seller": task["seller"], "update_address": ADDRESS, "row_count": 40,
                "norm": "1.0", "loss_before": "0.7", "loss_after": "0.5", "validation_rows": 20, "accuracy": accuracy,
            }
            for task in tasks
        ]  # fmt: skip
        return rounds.CompleteRound(
            round_id=round_id, fence=fence, updates=updates, model_address=ADDRESS, broadcast_address=ADDRESS,
            before=measures, after=measures, history=[measures],
        )  # fmt: skip

    async def fail(self, round_id: str, offer_id: str | None = None) -> Any:
        """Give a round up."""
        command = rounds.FailRound(
            round_id=round_id, fence=1, reason="dataset_missing", detail="gone", offer_id=offer_id
        )
        return await self.do(rounds.fail_round, command, SERVICE)

    async def release(self, contract_id: str, **given: Any) -> Any:
        """Pay the sellers."""
        command = contracts.ReleaseEscrow(contract_id=contract_id)
        given = {"attested": True, "scores": {}} | given
        return await self.do(contracts.release_escrow, command, OWNER, **given)

    async def refund(self, contract_id: str) -> Any:
        """Give the money back."""
        return await self.do(contracts.refund_escrow, contracts.RefundEscrow(contract_id=contract_id), OWNER)

    async def dispute(self, contract_id: str) -> str:
        """Open a dispute; give its id."""
        command = disputes.OpenDispute(contract_id=contract_id, reason="late")
        return str((await self.do(disputes.open_dispute, command, OWNER))["id"])

    async def resolve(self, dispute_id: str, outcome: Any, share: str | None = None) -> Any:
        """Uphold a dispute."""
        command = disputes.ResolveDispute(
            dispute_id=dispute_id, outcome=outcome, sellers_share=share, resolution="so it is"
        )
        return await self.do(disputes.resolve_dispute, command, REVIEWER)

    async def contract_that_is(self, state: str, **terms: Any) -> str:
        """Lead a new contract into a state; give its id."""
        contract_id = await self.contract(**terms)
        if state == "created":
            return contract_id
        await self.fund(contract_id)
        if state == "refunded":
            await self.refund(contract_id)
        elif state == "disputed while funded":
            await self.dispute(contract_id)
        if state in ("funded", "refunded", "disputed while funded"):
            return contract_id
        round_id = await self.start(contract_id)
        if state == "bound":
            return contract_id
        await (self.fail(round_id) if state == "round_failed" else self.complete(round_id))
        if state == "released":
            await self.release(contract_id)
        elif state == "disputed when completed":
            await self.dispute(contract_id)
        elif state in ("condemned", "halved"):
            outcome = {"condemned": "refund", "halved": "split"}[state]
            await self.resolve(await self.dispute(contract_id), outcome)
        return contract_id


Scene = Callable[[Market], Awaitable[None]]


def play(scene: Scene) -> None:
    """Play a scene on a market of its own."""
    asyncio.run(scene(Market()))


def table(text: str) -> list[tuple[str, str, str]]:
    """Read a table of states and wishes: one line per state, one column per wish."""
    head, *lines = [[cell.strip() for cell in line.split("|")] for line in text.strip().splitlines()]
    return [(line[0], wish, code) for line in lines for wish, code in zip(head[1:], line[1:], strict=True)]
