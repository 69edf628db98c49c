"""Sixty-four callers at once: one release, no overdraft, one effect for a key."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from domain.errors import (
    ContractNotFundedError,
    ContractReleasedError,
    IdempotencyKeyReusedError,
    InsufficientFundsError,
    IntentNotOpenError,
    LedgerError,
    RoundNotCompletedError,
)
from domain.ledger import Answer
from domain.market.candidates import MatchPolicy
from domain.market.contracts import FundContract, ReleaseEscrow, fund_contract, release_escrow
from domain.market.intents import (
    Intent,
    MatchIntent,
    OpenIntent,
    candidate,
    match_intent,
    open_intent,
    propose,
)
from domain.market.offers import ListOffer, Offer, list_offer
from domain.market.rounds import CompleteRound, StartRound, complete_round, start_round
from ops.runtime import Runtime, open_runtime
from ops.settings import Settings
from tests.real.log.world import OPERATOR, Checked, body, check_database, give, member, pay, usd

RACERS = 64
OWNER = member("lab")

Story = Callable[[list[Runtime]], Awaitable[None]]


def race(settings: Settings, story: Story, *, writers: int = 1) -> Checked:
    """Open one or several runtimes on one database, race, and check what is left."""

    async def live() -> None:
        async with AsyncExitStack() as stack:
            await story([await stack.enter_async_context(open_runtime(settings)) for _ in range(writers)])

    asyncio.run(live())
    assert settings.database_url
    return check_database(settings.database_url.get_secret_value())


async def outcomes_of(asked: list[Awaitable[Answer]]) -> list[Answer | BaseException]:
    return await asyncio.gather(*asked, return_exceptions=True)


def won(outcomes: list[Answer | BaseException]) -> list[Answer]:
    """Give the answers; whatever else happened must be a refusal, never a bug."""
    assert all(isinstance(o, Answer | LedgerError) for o in outcomes), outcomes
    return [o for o in outcomes if isinstance(o, Answer)]


def kinds(outcomes: list[Answer | BaseException]) -> Counter[type]:
    return Counter(map(type, outcomes))


# --------------------------------------------------------------------------- one contract


Found = Callable[[], Awaitable[dict[str, Any]]]


async def open_market(rt: Runtime) -> tuple[str, Found]:
    """List two offers and open an intent; give its id, and what a match of it needs to know."""
    candidates = []
    for seller, price in (("north", "7.50"), ("south", "4.25")):
        command = ListOffer(
            seller_node_id=seller,
            dataset_fingerprint="sha3-512:" + "0" * 128,
            sample_count=100,
            quality_score="0.9",
            allowed_tasks=["triage"],
            price_per_round=usd(price),
        )
        listed = await rt.ledger.act(list_offer, command, member(seller))
        offer = (await rt.reader.load([f"offer/{body(listed)['id']}"])).popitem()[1].aggregate
        assert isinstance(offer, Offer)
        candidates.append(candidate(offer, None))
    intent = await rt.ledger.act(
        open_intent, OpenIntent(model_owner_id="lab", task_type="triage", budget_total=usd("20")), OWNER
    )

    wanted = (await rt.reader.load([f"intent/{body(intent)['id']}"])).popitem()[1].aggregate
    assert isinstance(wanted, Intent)

    async def found() -> dict[str, Any]:
        return {"proposed": propose(wanted, 3, candidates, MatchPolicy(), rt.clock(), 0), "fee_ppm": 25_000}

    return wanted.id, found


async def matched_contract(rt: Runtime) -> str:
    """Match an intent; give the contract's id."""
    intent_id, found = await open_market(rt)
    matched = await rt.ledger.act(match_intent, MatchIntent(intent_id=intent_id), OWNER, gather=found)
    assert body(matched)["agreed_price_per_round_total"] == {"amount": "11.75", "currency": "USD"}
    return str(body(matched)["id"])


async def trained(rt: Runtime, contract_id: str) -> None:
    """Bind the contract to a round and complete it."""
    started = await rt.ledger.act(start_round, StartRound(contract_id=contract_id), OWNER)
    measures = {"loss": "0.5", "accuracy": None, "auc": None, "train_rows": 1, "validation_rows": 1}
    done = CompleteRound(
        round_id=body(started)["id"], fence=1, updates=[], model_address="sha3-512:" + "1" * 128,
        broadcast_address="sha3-512:" + "2" * 128, before=measures, after=measures, history=[],
    )  # fmt: skip
    await rt.ledger.act(complete_round, done, OPERATOR)


async def facts() -> dict[str, Any]:
    return {"attested": True, "scores": {}}


def release(rt: Runtime, contract_id: str, key: str | None = None) -> Awaitable[Answer]:
    return rt.ledger.act(release_escrow, ReleaseEscrow(contract_id=contract_id), OWNER, key=key, gather=facts)


@pytest.mark.parametrize("writers", [1, 2])
@pytest.mark.parametrize("keyed", [False, True])
def test_of_64_releases_of_one_contract_exactly_one_pays(
    settings: Settings, writers: int, keyed: bool
) -> None:
    async def story(rts: list[Runtime]) -> None:
        await give(rts[0].ledger, "lab", "20")
        contract_id = await matched_contract(rts[0])
        with pytest.raises(ContractNotFundedError):
            await release(rts[0], contract_id)
        await rts[0].ledger.act(fund_contract, FundContract(contract_id=contract_id), OWNER)
        with pytest.raises(RoundNotCompletedError):
            await release(rts[0], contract_id)
        await trained(rts[0], contract_id)
        asked = [release(rts[n % writers], contract_id, f"k{n}" if keyed else None) for n in range(RACERS)]
        outcomes = await outcomes_of(asked)
        assert len(won(outcomes)) == 1
        assert kinds(outcomes) == {Answer: 1, ContractReleasedError: RACERS - 1}

    checked = race(settings, story, writers=writers)
    assert sum(r["type"] == "contract.escrow_released" for r in checked.records) == 1
    nano = {name: balance for name, balance in checked.balances.items() if not name.startswith("cash")}
    assert nano == {
        "wallet.lab.USD": 8_250_000_000,
        "earnings.north.USD": 7_312_500_000,
        "earnings.south.USD": 4_143_750_000,
        "fees.platform.USD": 293_750_000,
    }


@pytest.mark.parametrize("writers", [1, 2])
def test_of_64_fundings_of_one_contract_exactly_one_holds_money(settings: Settings, writers: int) -> None:
    async def story(rts: list[Runtime]) -> None:
        await give(rts[0].ledger, "lab", "1000")
        contract_id = await matched_contract(rts[0])
        command = FundContract(contract_id=contract_id)
        outcomes = await outcomes_of(
            [rts[n % writers].ledger.act(fund_contract, command, OWNER) for n in range(RACERS)]
        )
        assert len(won(outcomes)) == 1
        balance = await rts[0].reader.balance("wallet.lab.USD")
        assert (balance.balance_nano, balance.held_nano) == (1_000_000_000_000, 11_750_000_000)

    race(settings, story, writers=writers)


@pytest.mark.parametrize("writers", [1, 2])
def test_of_64_matches_of_one_intent_exactly_one_becomes_a_contract(settings: Settings, writers: int) -> None:
    async def story(rts: list[Runtime]) -> None:
        intent_id, found = await open_market(rts[0])
        asked = [
            rts[n % writers].ledger.act(match_intent, MatchIntent(intent_id=intent_id), OWNER, gather=found)
            for n in range(RACERS)
        ]
        outcomes = await outcomes_of(asked)
        assert len(won(outcomes)) == 1
        assert kinds(outcomes) == {Answer: 1, IntentNotOpenError: RACERS - 1}

    checked = race(settings, story, writers=writers)
    assert sum(r["type"] == "contract.created" for r in checked.records) == 1


# --------------------------------------------------------------------------- one wallet


@pytest.mark.parametrize("seed", range(6))
def test_64_random_transfers_never_take_a_wallet_below_zero(settings: Settings, seed: int) -> None:
    chance = random.Random(seed)
    tenants = ["acme", "beta", "gamma", "delta"]
    amounts = [f"{chance.choice((0, 1, 5, 40))}.{chance.randrange(1, 10**9):09d}" for _ in range(RACERS)]
    pairs = [chance.sample(tenants if seed % 2 else tenants[:2], 2) for _ in range(RACERS)]
    outcomes: list[Any] = []

    async def story(rts: list[Runtime]) -> None:
        for tenant in tenants:
            await give(rts[0].ledger, tenant, "50" if tenant == "acme" else "0.000000001")
        asked = [
            pay(rts[n % len(rts)].ledger, payer, payee, amount)
            for n, ((payer, payee), amount) in enumerate(zip(pairs, amounts, strict=True))
        ]
        outcomes.extend(await outcomes_of(asked))

    checked = race(settings, story, writers=1 + seed % 2)
    assert len(won(outcomes)) + kinds(outcomes)[InsufficientFundsError] == RACERS
    # The log says in which order they went: replayed one by one, every accepted one had the money.
    wallets = dict.fromkeys(checked.balances, 0)
    for record in checked.records:
        for entry in record["data"].get("money", []):
            for posting in entry.get("postings", []):
                whole, _, part = posting["amount"].lstrip("-").partition(".")
                nano = int(whole + part.ljust(9, "0")) * (-1 if posting["amount"].startswith("-") else 1)
                wallets[posting["account"]] += nano if posting["account"].startswith("cash") else -nano
        assert min(wallets.values()) >= 0
    assert wallets == checked.balances


def test_writers_of_two_processes_never_take_a_wallet_below_zero(
    settings: Settings, repository_root: Path, database_url: str
) -> None:
    asked = {
        "url": database_url,
        "data_dir": str(settings.data_dir),
        "writers": RACERS,
        "steps": 12,
        "mode": "pay",
    }
    programs = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.real.log.crash_child", json.dumps(asked | {"run": f"p{n}"})],
            stdout=subprocess.PIPE, cwd=repository_root, text=True,
        )
        for n in range(2)
    ]  # fmt: skip
    said = [
        [json.loads(line) for line in program.communicate(timeout=120)[0].splitlines()]
        for program in programs
    ]
    assert [program.returncode for program in programs] == [0, 0]
    checked = check_database(database_url)
    acknowledged = [line for lines in said for line in lines if "key" in line]
    assert len(acknowledged) == 2 * RACERS * 13
    assert {line.get("refused") for line in acknowledged} == {None, "insufficient_funds"}
    assert min(checked.balances.values()) >= 0
    paid = [r["data"]["memo"] for r in checked.records if r["type"] == "transfer.posted"]
    assert sorted(paid) == sorted(line["key"] for line in acknowledged if "refused" not in line)


# --------------------------------------------------------------------------- one key


@pytest.mark.parametrize("writers", [1, 2])
def test_one_key_sent_64_times_has_one_effect_and_one_answer(settings: Settings, writers: int) -> None:
    async def story(rts: list[Runtime]) -> None:
        await give(rts[0].ledger, "acme", "3")
        await give(rts[0].ledger, "beta", "3")
        outcomes = await outcomes_of(
            [pay(rts[n % writers].ledger, "acme", "beta", "2", key="once") for n in range(RACERS)]
        )
        answers = won(outcomes)
        assert len(answers) == RACERS
        assert len({(a.body, a.position, a.event_count) for a in answers}) == 1
        assert sum(not a.repeated for a in answers) == 1

    checked = race(settings, story, writers=writers)
    assert checked.balances["wallet.acme.USD"] == 1_000_000_000


@pytest.mark.parametrize("writers", [1, 2])
def test_one_key_sent_64_times_hears_one_refusal(settings: Settings, writers: int) -> None:
    async def story(rts: list[Runtime]) -> None:
        await give(rts[0].ledger, "acme", "1")
        await give(rts[0].ledger, "beta", "1")
        asked = [pay(rts[n % writers].ledger, "acme", "beta", "2", key="once") for n in range(RACERS)]
        asked += [give(rt.ledger, "acme", "10") for rt in rts]
        asked += [pay(rts[n % writers].ledger, "acme", "beta", "2", key="once") for n in range(RACERS)]
        outcomes = await outcomes_of(asked)
        # Decided once, before or after the money came in; all of them hear that one decision.
        said = {
            o.body if isinstance(o, Answer) else json.dumps(o.problem())
            for o in outcomes[:RACERS] + outcomes[-RACERS:]
        }
        assert len(said) == 1

    race(settings, story, writers=writers)


def test_one_key_with_two_bodies_has_one_effect_and_the_other_is_told(settings: Settings) -> None:
    async def story(rts: list[Runtime]) -> None:
        await give(rts[0].ledger, "acme", "100")
        await give(rts[0].ledger, "beta", "1")
        asked = [
            pay(rts[n % 2].ledger, "acme", "beta", "1" if n % 4 < 2 else "2", key="once")
            for n in range(RACERS)
        ]
        outcomes = await outcomes_of(asked)
        assert kinds(outcomes) == {Answer: RACERS // 2, IdempotencyKeyReusedError: RACERS // 2}
        assert len({a.body for a in won(outcomes)}) == 1

    checked = race(settings, story, writers=2)
    assert checked.balances["wallet.beta.USD"] in (2_000_000_000, 3_000_000_000)
