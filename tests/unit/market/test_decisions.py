"""What the market decides, through the gate: every status against every wish, besides contracts (test_contracts.py)."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from domain.billing.accounts import (
    Deposit,
    OpenAccount,
    TransferMoney,
    Withdraw,
    deposit,
    open_wallet,
    transfer,
    withdraw,
)
from domain.log.records import address_text
from domain.market import intents, offers, rounds
from domain.market.standing import ValidationScore
from domain.trust import training
from domain.values import Money
from tests.unit.market.market_maker import (
    ADDRESS,
    LATER,
    OPERATOR,
    OWNER,
    REVIEWER,
    SERVICE,
    START,
    STRANGER,
    Market,
    play,
    seller,
    table,
    usd,
)

# --------------------------------------------------------------------------- offers and intents

OFFERS = table("""
            | pause                     | resume                    | retire                    | revise                    | expire
    active  | ok                        | invalid_status_transition | ok                        | ok                        | ok
    paused  | invalid_status_transition | ok                        | ok                        | ok                        | ok
    retired | invalid_status_transition | invalid_status_transition | invalid_status_transition | invalid_status_transition | retired
    expired | invalid_status_transition | invalid_status_transition | invalid_status_transition | invalid_status_transition | expired
""")  # noqa: E501
INTENTS = table("""
              | cancel                    | close                     | amend                 | match                 | expire
    open      | ok                        | ok                        | ok                    | ok                    | expired
    matched   | invalid_status_transition | ok                        | round_intent_not_open | round_intent_not_open | matched
    cancelled | invalid_status_transition | invalid_status_transition | round_intent_not_open | round_intent_not_open | cancelled
    closed    | invalid_status_transition | invalid_status_transition | round_intent_not_open | round_intent_not_open | closed
    expired   | invalid_status_transition | invalid_status_transition | round_intent_not_open | round_intent_not_open | expired
""")  # noqa: E501


OFFER_STEPS = {"pause": offers.pause_offer, "resume": offers.resume_offer, "retire": offers.retire_offer}
INTENT_STEPS = {"cancel": intents.cancel_intent, "close": intents.close_intent}


class TestOffers:
    async def brought_to(self, market: Market, state: str) -> str:
        name = await market.offer("bolt", expires_at=LATER)
        step = {"paused": "pause", "retired": "retire"}.get(state)
        if step:
            await market.do(OFFER_STEPS[step], offers.OfferStep(offer_id=name), seller("bolt"))
        if state == "expired":
            market.now = LATER
            await market.do(offers.expire_offer, offers.OfferStep(offer_id=name), SERVICE)
        return name

    @pytest.mark.parametrize(("state", "wish", "expected"), OFFERS)
    def test_an_offer_changes_its_status_only_as_allowed(self, state, wish, expected):
        async def scene(market: Market) -> None:
            name = await self.brought_to(market, state)
            if wish == "expire":
                market.now = LATER
                answer = await market.do(offers.expire_offer, offers.OfferStep(offer_id=name), SERVICE)
                assert answer["status"] == ("expired" if expected == "ok" else expected)
            elif wish == "revise":
                command = offers.ReviseOffer(offer_id=name, title="new")
                assert await market.heard(offers.revise_offer, command, seller("bolt")) == expected
            else:
                command = offers.OfferStep(offer_id=name)
                assert await market.heard(OFFER_STEPS[wish], command, seller("bolt")) == expected
            assert market.state("offer", name)["status"] in ("active", "paused", "retired", "expired")

        play(scene)

    def test_an_offer_does_not_expire_before_its_time(self):
        async def scene(market: Market) -> None:
            name = await market.offer("bolt", expires_at=LATER)
            answer = await market.do(offers.expire_offer, offers.OfferStep(offer_id=name), SERVICE)
            assert answer["status"] == "active"
            for past in (START, "2025-01-01T00:00:00.000000Z", "0300-01-01T00:00:00Z"):
                with_past = offers.ReviseOffer(offer_id=name, expires_at=past)
                assert (
                    await market.heard(offers.revise_offer, with_past, seller("bolt")) == "invalid_expires_at"
                )
            assert market.state("offer", name)["expires_at"] == LATER
            forever = offers.ReviseOffer(offer_id=name, expires_at=None)
            assert (await market.do(offers.revise_offer, forever, seller("bolt")))["expires_at"] is None

        play(scene)

    def test_a_revision_changes_what_it_names_and_opens_the_account_it_needs(self):
        async def scene(market: Market) -> None:
            name = await market.offer("bolt")
            before = market.state("offer", name)
            command = offers.ReviseOffer(
                offer_id=name, price_per_round=Money.parse("7", "EUR"), label_schema={"x": 1}, status="paused"
            )
            after = await market.do(offers.revise_offer, command, seller("bolt"), if_match=1)
            assert after["price_per_round"] == {"amount": "7.00", "currency": "EUR"}
            assert (after["status"], after["version"]) == ("paused", 3)
            same = set(before) - {"price_per_round", "label_schema", "status", "version", "updated_at"}
            assert {k: before[k] for k in same} == {k: after[k] for k in same}
            assert "earnings.bolt.EUR" in market.store.book.accounts
            assert market.topics("offer") == ["offer.listed", "offer.revised", "offer.paused"]

        play(scene)

    def test_an_offer_is_its_seller_s(self):
        async def scene(market: Market) -> None:
            name = await market.offer("bolt")
            step = offers.OfferStep(offer_id=name)
            assert await market.heard(offers.pause_offer, step, seller("cord")) == "offer_not_found"
            assert await market.heard(offers.pause_offer, step, OWNER) == "forbidden"
            assert await market.heard(offers.pause_offer, offers.OfferStep(offer_id="x"), seller("bolt")) == (
                "offer_not_found"
            )
            assert (
                await market.heard(offers.pause_offer, step, seller("bolt"), if_match=7) == "version_mismatch"
            )
            assert await market.heard(offers.pause_offer, step, OPERATOR) == "ok"

        play(scene)

    def test_a_dataset_is_registered_once_per_tenant(self):
        async def scene(market: Market) -> None:
            command = offers.RegisterDataset(
                fingerprint=address_text(b"\1" * 64), row_count=1, columns=["a"], size_bytes=2
            )
            for tenant in ("bolt", "bolt", "cord"):
                await market.do(offers.register_dataset, command, seller(tenant))
            assert market.topics("dataset") == ["dataset.uploaded"] * 2

        play(scene)


class TestIntents:
    async def brought_to(self, market: Market, state: str) -> str:
        await market.offer("bolt")
        name = await market.intent(deadline_ts=LATER)
        if state == "matched":
            await market.match(name)
        elif state in ("cancelled", "closed"):
            step = INTENT_STEPS[{"cancelled": "cancel", "closed": "close"}[state]]
            await market.do(step, intents.IntentStep(intent_id=name), OWNER)
        elif state == "expired":
            market.now = LATER
            await market.do(intents.expire_intent, intents.IntentStep(intent_id=name), SERVICE)
        assert market.state("intent", name)["status"] == state
        return name

    @pytest.mark.parametrize(("state", "wish", "expected"), INTENTS)
    def test_an_intent_changes_its_status_only_as_allowed(self, state, wish, expected):
        async def scene(market: Market) -> None:
            name = await self.brought_to(market, state)
            if wish == "expire":
                market.now = LATER
                answer = await market.do(intents.expire_intent, intents.IntentStep(intent_id=name), SERVICE)
                assert answer["status"] == expected
            elif wish == "match":
                command = intents.MatchIntent(intent_id=name)
                given = {"proposed": market.proposed(name), "fee_ppm": 0}
                assert await market.heard(intents.match_intent, command, OWNER, **given) == expected
            elif wish == "amend":
                command = intents.AmendIntent(intent_id=name, min_quality_score="0.2")
                assert await market.heard(intents.amend_intent, command, OWNER) == expected
            else:
                command = intents.IntentStep(intent_id=name)
                assert await market.heard(INTENT_STEPS[wish], command, OWNER) == expected

        play(scene)

    @pytest.mark.parametrize("status", ["open", "matched", "expired"])
    def test_an_amendment_leads_only_where_a_step_leads(self, status):
        async def scene(market: Market) -> None:
            name = await market.intent()
            command = intents.AmendIntent(intent_id=name, status=status, task_type="other")
            assert await market.heard(intents.amend_intent, command, OWNER) == "invalid_status_transition"
            assert market.state("intent", name)["task_type"] == "classification"

        play(scene)

    @pytest.mark.parametrize("command", [offers.ReviseOffer, intents.AmendIntent])
    def test_null_is_a_change_only_where_null_is_a_value(self, command):
        name = "offer_id" if command is offers.ReviseOffer else "intent_id"
        nullable = set()
        for field in set(command.model_fields) - {name}:
            try:
                command.model_validate({name: "x", field: None})
            except ValidationError:
                continue
            nullable.add(field)
        assert nullable == {"offer_id": {"expires_at"}, "intent_id": {"budget_total", "max_per_seller"}}[name]

    def test_an_intent_is_open_for_an_hour_unless_it_says_otherwise(self):
        async def scene(market: Market) -> None:
            name = await market.intent(deadline_ts=None)
            assert market.state("intent", name)["deadline_ts"] == "2026-01-01T01:00:00.000000Z"
            past = intents.OpenIntent(model_owner_id="acme", task_type="x", deadline_ts=START)
            assert await market.heard(intents.open_intent, past, OWNER) == "invalid_deadline_ts"
            early = intents.AmendIntent(intent_id=name, deadline_ts=START)
            assert await market.heard(intents.amend_intent, early, OWNER) == "invalid_deadline_ts"

        play(scene)

    def test_the_currency_is_the_budget_s(self):
        async def scene(market: Market) -> None:
            euros = Money.parse("5", "EUR")
            assert market.state("intent", await market.intent(budget_total=euros))["currency"] == "EUR"
            for wrong, code in (
                ({"budget_total": euros, "currency": "USD"}, "currency_mismatch"),
                ({"currency": "XXX"}, "invalid_currency"),
                ({"currency": "usd"}, "invalid_currency"),
            ):
                command = intents.OpenIntent(model_owner_id="acme", task_type="x", **wrong)
                assert await market.heard(intents.open_intent, command, OWNER) == code
            name = await market.intent(budget_total=usd("5"))
            command = intents.AmendIntent(intent_id=name, budget_total=euros)
            assert await market.heard(intents.amend_intent, command, OWNER) == "currency_mismatch"
            unlimited = intents.AmendIntent(intent_id=name, budget_total=None)
            assert (await market.do(intents.amend_intent, unlimited, OWNER))["budget_total"] is None

        play(scene)

    def test_a_match_after_the_deadline_is_refused(self):
        async def scene(market: Market) -> None:
            await market.offer("bolt")
            name = await market.intent(deadline_ts=LATER)
            market.now = LATER
            given = {"proposed": market.proposed(name), "fee_ppm": 0}
            command = intents.MatchIntent(intent_id=name)
            assert await market.heard(intents.match_intent, command, OWNER, **given) == "intent_expired"

        play(scene)

    def test_a_match_that_finds_nothing_is_written_down_and_leaves_the_intent_open(self):
        async def scene(market: Market) -> None:
            await market.offer("bolt", "10")
            await market.offer("acme", "1")
            name = await market.intent(budget_total=usd("9.99"))
            failure = await market.match(name)
            assert failure["intent_id"] == name
            assert failure["diagnostics"]["rejection_reasons"] == {"budget_rejected": 1, "self_dealing": 1}
            assert market.topics("intent") == ["intent.opened", "intent.match_failed"]
            assert market.state("intent", name)["status"] == "open"

        play(scene)

    def test_an_offer_that_changed_after_the_proposal_is_not_contracted(self):
        async def scene(market: Market) -> None:
            offer = await market.offer("bolt")
            name = await market.intent()
            stale = market.proposed(name)
            revise = offers.ReviseOffer(offer_id=offer, price_per_round=usd("99"))
            await market.do(offers.revise_offer, revise, seller("bolt"))
            given = {"proposed": stale, "fee_ppm": 0}
            command = intents.MatchIntent(intent_id=name)
            assert await market.heard(intents.match_intent, command, OWNER, **given) == "conflict"
            assert (await market.match(name))["agreed_price_per_round_total"] == {
                "amount": "99.00", "currency": "USD",
            }  # fmt: skip

        play(scene)


# --------------------------------------------------------------------------- rounds and training mode

ROUNDS = table("""
              | complete                  | fail                      | resume
    started   | ok                        | ok                        | started
    completed | invalid_status_transition | invalid_status_transition | completed
    failed    | invalid_status_transition | invalid_status_transition | failed
""")


class TestRounds:
    @pytest.mark.parametrize(("state", "wish", "expected"), ROUNDS)
    def test_a_round_ends_once(self, state, wish, expected):
        async def scene(market: Market) -> None:
            round_id = await market.start(await market.contract_that_is("funded"))
            if state != "started":
                await (market.complete(round_id) if state == "completed" else market.fail(round_id))
            if wish == "resume":
                answer = await market.do(rounds.resume_round, rounds.ResumeRound(round_id=round_id), SERVICE)
                assert (answer["status"], answer["fence"]) == (expected, 2 if state == "started" else 1)
            elif wish == "complete":
                command = market.completion(round_id)
                assert await market.heard(rounds.complete_round, command, SERVICE) == expected
            else:
                command = rounds.FailRound(round_id=round_id, fence=1, reason="x", detail="")
                assert await market.heard(rounds.fail_round, command, SERVICE) == expected

        play(scene)

    def test_a_runner_that_was_overtaken_delivers_nothing(self):
        async def scene(market: Market) -> None:
            round_id = await market.start(await market.contract_that_is("funded"))
            await market.do(rounds.resume_round, rounds.ResumeRound(round_id=round_id), SERVICE)
            late = market.completion(round_id, fence=1)
            assert await market.heard(rounds.complete_round, late, SERVICE) == "stale_fence"
            fail = rounds.FailRound(round_id=round_id, fence=1, reason="x", detail="")
            assert await market.heard(rounds.fail_round, fail, SERVICE) == "stale_fence"
            assert (
                await market.heard(rounds.complete_round, market.completion(round_id, fence=2), SERVICE)
                == "ok"
            )
            assert await market.heard(rounds.complete_round, late, OWNER) == "forbidden"

        play(scene)

    def test_the_seller_at_fault_and_no_other_carries_a_failed_round(self):
        async def scene(market: Market) -> None:
            name = await market.contract_that_is("bound")
            contract = market.state("contract", name)
            (guilty,) = [o["offer_id"] for o in contract["selected_offers"] if o["seller"] == "cord"]
            await market.fail(contract["execution_round"], guilty)
            assert market.state("seller", "cord")["failures"] == 1
            assert "seller/bolt" not in market.store.states

        play(scene)

    def test_a_round_reaches_every_offer_s_least_number_of_rounds(self):
        async def scene(market: Market) -> None:
            await market.offer("bolt", min_rounds=30)
            name = str((await market.match(await market.intent()))["id"])
            await market.fund(name)
            short = rounds.StartRound(contract_id=name, communication_rounds=29)
            assert await market.heard(rounds.start_round, short, OWNER) == "invalid_min_rounds"
            enough = rounds.StartRound(contract_id=name, communication_rounds=30)
            assert await market.heard(rounds.start_round, enough, OWNER) == "ok"

        play(scene)

    def test_success_and_score_enter_the_history_when_the_sellers_are_paid(self):
        async def scene(market: Market) -> None:
            name = await market.contract_that_is("completed")
            (done,) = market.aggregate("round", rounds.Round)
            scores = done.scores()
            assert scores == {tenant: ValidationScore(900_000, 20) for tenant in ("bolt", "cord")}
            assert "seller/bolt" not in market.store.states
            await market.release(name, scores=scores)
            assert market.state("seller", "bolt") | {"created_at": "", "updated_at": ""} == {
                "id": "bolt", "tenant": "bolt", "version": 1, "created_at": "", "updated_at": "",
                "successes": 1, "failures": 0, "scores": [{"score_ppm": 900_000, "rows": 20}],
            }  # fmt: skip

        play(scene)

    def test_of_several_offers_of_a_seller_the_weakest_score_counts(self):
        def update(accuracy: str | None, rows: int = 10) -> rounds.AcceptedUpdate:
            return rounds.AcceptedUpdate("o", "bolt", ADDRESS, 1, "1", "1", "1", rows, accuracy)

        def scored(*updates: rounds.AcceptedUpdate) -> dict[str, ValidationScore]:
            return rounds.Round(id="r", tenant="t", updates=list(updates)).scores()

        assert scored(update("0.9"), update("0.75"), update("1.000000")) == {
            "bolt": ValidationScore(750_000, 10)
        }
        assert scored(update(None), update("0.5", 0)) == {}


class TestTrainingMode:
    enable = training.EnableTraining(reason="work", duration_s=3_600)

    def test_the_lock_is_taken_once_given_back_once_and_its_fence_only_grows(self):
        async def scene(market: Market) -> None:
            fences = []
            for _ in range(3):
                fences.append((await market.do(training.enable_training, self.enable, OWNER))["fence"])
                assert (
                    await market.heard(training.enable_training, self.enable, OWNER)
                    == "training_mode_enabled"
                )
                await market.do(training.disable_training, training.DisableTraining(), OWNER)
                again = await market.heard(training.disable_training, training.DisableTraining(), OWNER)
                assert again == "training_mode_disabled"
            assert fences == sorted(set(fences))

        play(scene)

    def test_the_lock_ends_at_its_time_without_anybody_writing_it_down(self):
        async def scene(market: Market) -> None:
            first = await market.do(training.enable_training, self.enable, OWNER)
            assert first["expires_at"] == "2026-01-01T01:00:00.000000Z"
            market.now = "2026-01-01T00:59:59.999999Z"
            assert await market.heard(training.enable_training, self.enable, OWNER) == "training_mode_enabled"
            market.now = first["expires_at"]
            assert await market.heard(training.disable_training, training.DisableTraining(), OWNER) == (
                "training_mode_disabled"
            )
            assert (await market.do(training.enable_training, self.enable, OWNER))["fence"] > first["fence"]

        play(scene)

    def test_the_lock_is_given_back_by_its_holder_or_an_operator(self):
        async def scene(market: Market) -> None:
            await market.do(training.enable_training, self.enable, OWNER)
            colleague = OWNER._replace(subject="otto")
            disable = training.DisableTraining()
            assert await market.heard(training.disable_training, disable, colleague) == "forbidden"
            for_acme = training.DisableTraining(tenant="acme")
            assert await market.heard(training.disable_training, for_acme, STRANGER) == "forbidden"
            assert await market.heard(training.disable_training, for_acme, OPERATOR) == "ok"

        play(scene)

    def test_a_round_shows_the_fence_while_training_mode_is_on_and_none_when_it_is_off(self):
        async def scene(market: Market) -> None:
            name = await market.contract_that_is("funded")

            async def start(fence: int | None) -> str:
                command = rounds.StartRound(contract_id=name, fence=fence)
                return await market.heard(rounds.start_round, command, OWNER)

            assert await start(1) == "training_mode_disabled"
            fence = (await market.do(training.enable_training, self.enable, OWNER))["fence"]
            assert [await start(f) for f in (None, fence + 1)] == ["stale_fence"] * 2
            assert await start(fence) == "ok"

        play(scene)


# --------------------------------------------------------------------------- accounts


class TestAccounts:
    def test_money_comes_in_moves_and_goes_out(self):
        async def scene(market: Market) -> None:
            await market.do(open_wallet, OpenAccount(currency="USD"), seller("bolt"))
            await market.do(open_wallet, OpenAccount(currency="USD"), seller("bolt"))
            await market.do(deposit, Deposit(tenant="acme", amount=usd("10")), OPERATOR)
            await market.do(transfer, TransferMoney(to_tenant="bolt", amount=usd("4")), OWNER)
            await market.do(withdraw, Withdraw(tenant="bolt", amount=usd("3")), OPERATOR)
            assert market.balances() == {
                "cash.platform.USD": "7.00", "wallet.acme.USD": "6.00", "wallet.bolt.USD": "1.00",
            }  # fmt: skip
            assert market.topics("account") == ["account.opened"] * 3

        play(scene)

    @pytest.mark.parametrize(
        ("use_case", "command", "caller", "code"),
        [
            (open_wallet, OpenAccount(currency="XXX"), OWNER, "invalid_currency"),
            (open_wallet, OpenAccount(currency="USD"), REVIEWER, "forbidden"),
            (deposit, Deposit(tenant="acme", amount=usd("0")), OPERATOR, "invalid_amount"),
            (deposit, Deposit(tenant="acme", amount=usd("1")), OWNER, "forbidden"),
            (withdraw, Withdraw(tenant="acme", amount=usd("10.01")), OPERATOR, "insufficient_funds"),
            (withdraw, Withdraw(tenant="nobody", amount=usd("1")), OPERATOR, "account_not_found"),
            (withdraw, Withdraw(tenant="acme", amount=usd("1")), OWNER, "forbidden"),
            (transfer, TransferMoney(to_tenant="bolt", amount=usd("10.01")), OWNER, "insufficient_funds"),
            (transfer, TransferMoney(to_tenant="bolt", amount=usd("0")), OWNER, "invalid_amount"),
            (transfer, TransferMoney(to_tenant="acme", amount=usd("1")), OWNER, "same_account"),
            (transfer, TransferMoney(to_tenant="platform", amount=usd("1")), OWNER, "forbidden"),
            (transfer, TransferMoney(to_tenant="nobody", amount=usd("1")), OWNER, "account_not_found"),
            (
                transfer,
                TransferMoney(to_tenant="bolt", amount=Money.parse("1", "EUR")),
                OWNER,
                "account_not_found",
            ),
            (transfer, TransferMoney(to_tenant="bolt", amount=usd("1")), OPERATOR, "ok"),
        ],
    )
    def test_what_cannot_be_paid_is_refused_with_its_code(self, use_case, command, caller, code):
        async def scene(market: Market) -> None:
            for tenant in ("acme", "bolt", "platform"):
                await market.do(deposit, Deposit(tenant=tenant, amount=usd("10")), OPERATOR)
            before = market.balances()
            assert await market.heard(use_case, command, caller) == code
            assert code == "ok" or market.balances() == before

        play(scene)
