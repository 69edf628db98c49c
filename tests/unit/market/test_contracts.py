"""Contracts and disputes, through the gate: every state against every wish, and where the money goes."""

from __future__ import annotations

import asyncio
from fractions import Fraction
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domain.billing.accounts import Deposit, deposit, ensure
from domain.ledger import Case, allow
from domain.market import contracts, disputes, offers, rounds
from domain.market.contracts import PPM, Contract, Share, split
from domain.market.matching import ScoreBreakdown, SelectedOffer
from domain.values import CURRENCY_DIGITS, Money, parse_nano
from tests.unit.market.market_maker import (
    ADDRESS,
    OPERATOR,
    OWNER,
    REVIEWER,
    SERVICE,
    STRANGER,
    Market,
    play,
    seller,
    table,
    usd,
)

# --------------------------------------------------------------------------- contracts

CONTRACTS = table("""
                            | fund                      | start                     | release                   | refund                    | dispute
    created                 | ok                        | contract_not_funded       | contract_not_funded       | contract_not_funded       | ok
    funded                  | contract_already_funded   | ok                        | round_not_completed       | ok                        | ok
    bound                   | contract_already_funded   | round_already_bound       | round_not_completed       | refund_not_allowed        | ok
    completed               | contract_already_funded   | round_already_bound       | ok                        | refund_not_allowed        | ok
    round_failed            | contract_already_funded   | round_already_bound       | round_failed              | ok                        | ok
    released                | contract_already_released | contract_already_released | contract_already_released | contract_already_released | contract_already_released
    refunded                | contract_already_refunded | contract_already_refunded | contract_already_refunded | contract_already_refunded | contract_already_refunded
    disputed while funded   | contract_already_funded   | dispute_open              | dispute_open              | dispute_open              | ok
    disputed when completed | contract_already_funded   | round_already_bound       | dispute_open              | dispute_open              | ok
    condemned               | contract_already_funded   | round_already_bound       | refund_not_allowed        | ok                        | ok
    halved                  | contract_already_funded   | round_already_bound       | ok                        | refund_not_allowed        | ok
""")  # noqa: E501


WISHES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "fund": (contracts.fund_contract, contracts.FundContract, {}),
    "start": (rounds.start_round, rounds.StartRound, {}),
    "release": (contracts.release_escrow, contracts.ReleaseEscrow, {"attested": True, "scores": {}}),
    "refund": (contracts.refund_escrow, contracts.RefundEscrow, {}),
    "dispute": (disputes.open_dispute, partial(disputes.OpenDispute, reason="x"), {}),
}


class TestContracts:
    @pytest.mark.parametrize(("state", "wish", "expected"), CONTRACTS)
    def test_a_contract_allows_in_each_state_what_it_must(self, state, wish, expected):
        use_case, command, given = WISHES[wish]

        async def scene(market: Market) -> None:
            name = await market.contract_that_is(state)
            await market.do(deposit, Deposit(tenant="acme", amount=usd("1000")), OPERATOR)
            before = market.balances()
            assert await market.heard(use_case, command(contract_id=name), OWNER, **given) == expected
            assert expected == "ok" or market.balances() == before
            for stranger in (STRANGER, STRANGER._replace(roles=frozenset(["owner", "provider", "reviewer"]))):
                assert await market.heard(use_case, command(contract_id=name), stranger, **given) == (
                    "contract_not_found"
                )
            assert (
                await market.heard(use_case, command(contract_id="none"), OWNER, **given)
                == "contract_not_found"
            )

        play(scene)

    def test_the_loop_writes_its_events_in_order_and_pays(self):
        async def scene(market: Market) -> None:
            name = await market.contract_that_is("released")
            assert market.topics("contract") == [
                "contract.created", "contract.escrow_funded", "contract.bound_to_round", "contract.round_completed",
                "contract.escrow_released",
            ]  # fmt: skip
            assert market.balances() == {
                "cash.platform.USD": "15.00", "earnings.bolt.USD": "9.75", "earnings.cord.USD": "4.875",
                "fees.platform.USD": "0.375",
            }  # fmt: skip
            contract = market.state("contract", name)
            assert contract["payout_amount"] == {"amount": "14.625", "currency": "USD"}
            assert (contract["status"], contract["escrow_status"], contract["payout_status"]) == (
                "released",
            ) * 3

        play(scene)

    def test_a_seller_whose_offer_is_older_than_earnings_is_paid_into_them_all_the_same(self):
        async def scene(market: Market) -> None:
            @allow()
            def list_as_before(case: Case, command: offers.ListOffer) -> offers.Offer:
                ensure(case, "wallet", case.caller.tenant, command.price_per_round.currency)
                members = offers.Offer.Listed.__struct_fields__
                listed = offers.Offer.Listed(**{name: getattr(command, name) for name in members})
                return case.create(offers.Offer, case.new_id("offer"), listed)

            for tenant, price in (("bolt", "10"), ("cord", "5")):
                command = offers.ListOffer(
                    seller_node_id=tenant, price_per_round=usd(price), allowed_tasks=["classification"],
                    dataset_fingerprint=ADDRESS,
                )  # fmt: skip
                await market.do(list_as_before, command, seller(tenant))
            assert "earnings.bolt.USD" not in market.store.book.accounts
            await market.contract_that_is("released", prices=[])
            assert market.balances() == {
                "cash.platform.USD": "15.00", "earnings.bolt.USD": "9.75", "earnings.cord.USD": "4.875",
                "fees.platform.USD": "0.375",
            }  # fmt: skip

        play(scene)

    def test_a_refund_gives_everything_back(self):
        async def scene(market: Market) -> None:
            name = await market.contract_that_is("round_failed")
            assert market.balances()["wallet.acme.USD"] == "15.00 held"
            await market.refund(name)
            assert market.balances() == {"cash.platform.USD": "15.00", "wallet.acme.USD": "15.00"}

        play(scene)

    def test_funding_needs_the_agreed_sum_and_the_money(self):
        async def scene(market: Market) -> None:
            name = await market.contract()
            fund = contracts.FundContract
            for wrong in (usd("14.99"), usd("15.01"), Money.parse("15", "EUR")):
                command = fund(contract_id=name, amount=wrong)
                assert await market.heard(contracts.fund_contract, command, OWNER) == "escrow_amount_mismatch"
            command = fund(contract_id=name, amount=usd("15"))
            assert await market.heard(contracts.fund_contract, command, OWNER) == "insufficient_funds"
            await market.do(deposit, Deposit(tenant="acme", amount=usd("14.999999999")), OPERATOR)
            assert await market.heard(contracts.fund_contract, command, OWNER) == "insufficient_funds"
            await market.do(deposit, Deposit(tenant="acme", amount=usd("0.000000001")), OPERATOR)
            assert (
                await market.heard(contracts.fund_contract, command, OWNER, if_match=9) == "version_mismatch"
            )
            assert await market.heard(contracts.fund_contract, command, OWNER, if_match=1) == "ok"

        play(scene)

    def test_an_escrow_goes_back_by_itself_when_no_round_took_it_on_in_time(self):
        async def scene(market: Market) -> None:
            name = await market.contract()
            await market.do(deposit, Deposit(tenant="acme", amount=usd("15")), OPERATOR)
            soon, later = "2026-02-01T00:00:00Z", "2026-02-01T00:00:00.000001Z"
            past = contracts.FundContract(contract_id=name, expires_at="2020-01-01T00:00:00Z")
            assert await market.heard(contracts.fund_contract, past, OWNER) == "invalid_expires_at"
            await market.do(
                contracts.fund_contract, contracts.FundContract(contract_id=name, expires_at=soon), OWNER
            )
            expire = contracts.ExpireEscrow(contract_id=name)
            await market.do(contracts.expire_escrow, expire, SERVICE)
            assert market.balances()["wallet.acme.USD"] == "15.00 held"
            market.now = later
            start = rounds.StartRound(contract_id=name)
            assert await market.heard(rounds.start_round, start, OWNER) == "escrow_expired"
            for _ in range(2):
                await market.do(contracts.expire_escrow, expire, SERVICE)
            assert market.topics("contract")[-1] == "contract.escrow_expired"
            assert market.topics("contract").count("contract.escrow_expired") == 1
            assert market.balances() == {"cash.platform.USD": "15.00", "wallet.acme.USD": "15.00"}
            release = contracts.ReleaseEscrow(contract_id=name)
            heard = await market.heard(contracts.release_escrow, release, OWNER, attested=True, scores={})
            assert heard == "contract_already_refunded"

        play(scene)

    def test_a_release_needs_an_attestation_that_holds(self):
        async def scene(market: Market) -> None:
            name = await market.contract_that_is("completed")
            command = contracts.ReleaseEscrow(contract_id=name)
            for attested, code in ((False, "attestation_invalid"), (None, "conflict")):
                given = {"attested": attested, "scores": {}}
                assert await market.heard(contracts.release_escrow, command, OWNER, **given) == code
            as_seller = await market.heard(
                contracts.release_escrow, command, seller("bolt"), attested=True, scores={}
            )
            assert as_seller == "forbidden"

        play(scene)

    def test_of_several_racing_releases_one_pays(self):
        async def scene(market: Market) -> None:
            name = await market.contract_that_is("completed")
            command = contracts.ReleaseEscrow(contract_id=name)
            size = len(market.store.logged)

            async def release() -> str:
                try:
                    await market.do(contracts.release_escrow, command, OWNER, attested=True, scores={})
                except contracts.ContractReleasedError as refusal:
                    return refusal.code
                return "ok"

            heard = await asyncio.gather(*(release() for _ in range(16)))
            assert sorted(heard) == ["contract_already_released"] * 15 + ["ok"]
            # The release, the fee account, and an outcome for each of the two sellers.
            assert len(market.store.logged) == size + 4

        play(scene)

    def test_several_offers_of_one_seller_are_paid_as_one(self):
        async def scene(market: Market) -> None:
            name = await market.contract_that_is(
                "released", prices=[("bolt", "10"), ("bolt", "5"), ("cord", "1")]
            )
            (released,) = [r for r in market.store.logged if r.row.type == "contract.escrow_released"]
            assert released.row.record.count(b'"seller":') == 2
            assert market.balances()["earnings.bolt.USD"] == "14.625"
            assert market.state("seller", "bolt")["successes"] == 1
            assert market.state("contract", name)["offer_count"] == 3

        play(scene)

    @pytest.mark.parametrize("end", ["released", "refunded", "condemned", "halved"])
    def test_a_contract_for_nothing_goes_its_way_without_money(self, end):
        async def scene(market: Market) -> None:
            name = await market.contract_that_is(end, prices=[("bolt", "0"), ("cord", "0.00")])
            if end == "condemned":
                await market.refund(name)
            elif end == "halved":
                await market.release(name)
            assert market.balances() == {}
            assert not market.store.book.holds

        play(scene)

    def test_the_greatest_prices_can_be_agreed_paid_in_and_paid_out(self):
        async def scene(market: Market) -> None:
            prices = [(f"bolt{n}", "1000000000000") for n in range(25)]
            contract_id = await market.contract(prices)
            for _ in range(25):
                await market.do(deposit, Deposit(tenant="acme", amount=usd("1000000000000")), OPERATOR)
            await market.do(contracts.fund_contract, contracts.FundContract(contract_id=contract_id), OWNER)
            await market.complete(await market.start(contract_id))
            await market.release(contract_id)
            assert market.balances()["earnings.bolt3.USD"] == "975000000000.00"

        play(scene)

    @given(
        prices=st.lists(
            st.tuples(st.sampled_from(["bolt", "cord", "dune"]), st.integers(0, 10**12)),
            min_size=1,
            max_size=6,
        ),
        fee_ppm=st.integers(0, PPM),
        share=st.none() | st.integers(1, PPM),
    )
    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def test_no_money_is_made_or_lost_whatever_the_terms(self, prices, fee_ppm, share):
        async def scene(market: Market) -> None:
            listed = [(tenant, Money.of(nano, "USD").amount) for tenant, nano in prices]
            state = "completed" if share is None else "disputed when completed"
            name = await market.contract_that_is(state, prices=listed, fee_ppm=fee_ppm)
            if share is not None:
                text = f"{share // PPM}.{share % PPM:06d}"
                await market.resolve(market.state("contract", name)["open_disputes"][0], "split", text)
            await market.release(name)
            total = sum(nano for _, nano in prices)
            accounts = market.store.book.accounts
            earned = {n: a.balance_nano for n, a in accounts.items() if n != "cash.platform.USD"}
            assert sum(earned.values()) == total
            assert not any(a.held_nano for a in accounts.values())
            for tenant in {tenant for tenant, _ in prices}:
                price = sum(nano for who, nano in prices if who == tenant)
                payable = half_even(Fraction(price * (PPM if share is None else share), PPM))
                assert earned[f"earnings.{tenant}.USD"] == payable - half_even(
                    Fraction(payable * fee_ppm, PPM)
                )

        play(scene)


def half_even(exact: Fraction) -> int:
    """Round as the books do, the long way."""
    floor = exact.numerator // exact.denominator
    rest = exact - floor
    if rest == Fraction(1, 2):
        return floor + floor % 2
    return floor + (rest > Fraction(1, 2))


def chosen(tenant: str, nano: int, currency: str) -> SelectedOffer:
    """Make a chosen offer of which only seller and price count."""
    nothing = ScoreBreakdown("0", "0", "0", "0")
    return SelectedOffer("o", 1, tenant, Money.of(nano, currency), 1, "0", "0", "0", 0, 0, nothing)


class TestSplit:
    @given(
        prices=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 10**21)), min_size=1, max_size=25),
        fee_ppm=st.integers(0, PPM),
        payable_ppm=st.sampled_from([0, 1, PPM // 2, PPM]) | st.integers(0, PPM),
        currency=st.sampled_from(sorted(CURRENCY_DIGITS)),
    )
    def test_shares_and_fees_add_up_to_what_is_payable(self, prices, fee_ppm, payable_ppm, currency):
        total = Money.of(sum(nano for _, nano in prices), currency)
        contract = Contract(
            id="c", tenant="t", selected_offers=[chosen(*price, currency) for price in prices],
            agreed_price_per_round_total=total, fee_ppm=fee_ppm, payable_ppm=payable_ppm,
        )  # fmt: skip
        shares = split(contract)
        assert [share.seller for share in shares] == sorted({tenant for tenant, _ in prices})
        for share in shares:
            price = sum(nano for tenant, nano in prices if tenant == share.seller)
            assert share.paid.nano >= 0
            assert share.fee.nano >= 0
            assert share.paid.nano + share.fee.nano == half_even(Fraction(price * payable_ppm, PPM))
            assert share.fee.nano == half_even(Fraction((share.paid.nano + share.fee.nano) * fee_ppm, PPM))
        spent = sum(share.paid.nano + share.fee.nano for share in shares)
        assert spent <= total.nano
        assert payable_ppm < PPM or spent == total.nano

    @pytest.mark.parametrize(
        ("nano", "fee_ppm", "fee"),
        [
            (1, 500_000, 0),
            (3, 500_000, 2),
            (5, 500_000, 2),
            (7, 500_000, 4),
            (10, 250_000, 2),
            (1, 500_001, 1),
        ],
    )
    def test_half_a_nano_goes_to_the_even_side(self, nano, fee_ppm, fee):
        contract = Contract(
            id="c", tenant="t", selected_offers=[chosen("a", nano, "USD")],
            agreed_price_per_round_total=Money.of(nano, "USD"), fee_ppm=fee_ppm,
        )  # fmt: skip
        assert split(contract) == [Share("a", Money.of(nano - fee, "USD"), Money.of(fee, "USD"))]


# --------------------------------------------------------------------------- disputes

DISPUTES = table("""
                 | review                    | resolve        | reject
    open         | ok                        | ok             | ok
    under_review | invalid_status_transition | ok             | ok
    resolved     | invalid_status_transition | dispute_closed | dispute_closed
    rejected     | invalid_status_transition | dispute_closed | dispute_closed
""")


class TestDisputes:
    async def ask(self, market: Market, wish: str, name: str, caller: Any = REVIEWER) -> str:
        use_case, command = {
            "review": (disputes.review_dispute, disputes.DisputeStep(dispute_id=name)),
            "resolve": (
                disputes.resolve_dispute,
                disputes.ResolveDispute(dispute_id=name, outcome="refund", resolution="x"),
            ),
            "reject": (disputes.reject_dispute, disputes.RejectDispute(dispute_id=name, resolution="x")),
        }[wish]
        return await market.heard(use_case, command, caller)

    @pytest.mark.parametrize(("state", "wish", "expected"), DISPUTES)
    def test_a_dispute_is_decided_once(self, state, wish, expected):
        async def scene(market: Market) -> None:
            name = await market.dispute(await market.contract_that_is("completed"))
            step = {"under_review": "review", "resolved": "resolve", "rejected": "reject"}.get(state)
            assert step is None or await self.ask(market, step, name) == "ok"
            assert market.state("dispute", name)["status"] == state
            assert await self.ask(market, wish, name) == expected
            assert await self.ask(market, wish, "none") == "dispute_not_found"
            assert await self.ask(market, wish, name, OWNER) == "forbidden"

        play(scene)

    @pytest.mark.parametrize(
        ("outcome", "share", "bolt", "failures"),
        [
            ("release", None, "9.75", 0),
            ("refund", None, None, 1),
            ("split", None, "4.875", 1),
            ("split", "0.25", "2.4375", 1),
            ("split", "1", "9.75", 0),
            ("split", "0", None, 1),
        ],
    )
    def test_the_outcome_says_where_the_money_goes(self, outcome, share, bolt, failures):
        async def scene(market: Market) -> None:
            name = await market.contract_that_is("completed")
            await market.resolve(await market.dispute(name), outcome, share)
            await (market.refund(name) if bolt is None else market.release(name))
            assert market.balances().get("earnings.bolt.USD") == bolt
            paid = parse_nano(bolt or "0") * 3 // 2
            left = market.store.book.accounts["wallet.acme.USD"]
            fees = market.store.book.accounts.get("fees.platform.USD")
            assert left.balance_nano + paid + (fees.balance_nano if fees else 0) == 15 * 10**9
            assert left.held_nano == 0
            histories = {s.id: (s.successes, s.failures) for s in market.aggregate("seller", offers.Seller)}
            assert histories == dict.fromkeys(("bolt", "cord"), (1 - failures, failures))

        play(scene)

    def test_a_rejected_dispute_changes_nothing_about_the_money(self):
        async def scene(market: Market) -> None:
            name = await market.contract_that_is("completed")
            assert await self.ask(market, "reject", await market.dispute(name)) == "ok"
            await market.release(name)
            assert market.balances()["earnings.bolt.USD"] == "9.75"

        play(scene)

    def test_every_dispute_must_be_decided_before_money_moves(self):
        async def scene(market: Market) -> None:
            name = await market.contract_that_is("completed")
            first = await market.dispute(name)
            command = disputes.OpenDispute(contract_id=name, reason="mine", evidence={"rows": [1]})
            second = str((await market.do(disputes.open_dispute, command, seller("bolt")))["id"])
            release = contracts.ReleaseEscrow(contract_id=name)
            given = {"attested": True, "scores": {}}
            for dispute in (first, second):
                assert await market.heard(contracts.release_escrow, release, OWNER, **given) == "dispute_open"
                await market.resolve(dispute, "release")
            assert await market.heard(contracts.release_escrow, release, OWNER, **given) == "ok"

        play(scene)

    def test_a_second_dispute_that_takes_nothing_more_is_no_second_failure(self):
        async def scene(market: Market) -> None:
            name = await market.contract_that_is("halved")
            await market.resolve(await market.dispute(name), "release")
            assert market.state("seller", "bolt")["failures"] == 1
            assert market.state("contract", name)["payable_ppm"] == PPM // 2

        play(scene)
