"""Readings are taken once, whoever sends them how often and in what order; what is wrong with one harms no other."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.billing.accounts import Deposit, deposit
from domain.billing.usage import AGE_DAYS_MAX, AHEAD_S_MAX, READINGS_MAX, MeterUsage, meter_usage, usage_name
from domain.errors import REGISTRY, ForbiddenError, IdempotencyKeyReusedError
from domain.ledger import Caller
from domain.values import Money
from tests.unit.billing.usage_maker import GATEWAY, PLATFORM, Till, a_reading, at, codes
from tests.unit.memory_log import MemoryStore


def counts(counted: Any) -> tuple[int, int, int]:
    return counted.inserted, counted.duplicates, len(counted.rejected)


class TestTaking:
    def test_a_reading_becomes_one_record_of_its_tenant(self):
        till = Till()
        counted = asyncio.run(till.meter(a_reading(persona_id="persona-1", rental_id="rental-1")))
        assert counts(counted) == (1, 0, 0)
        (record,) = till.records
        assert record["type"] == "usage.metered"
        assert (record["tenant"], record["actor"]) == ("acme", "gateway")
        assert record["stream"] == f"usage/{usage_name('acme', 'gateway-eu', 'e1')}"
        assert record["data"] == {
            "source": "gateway-eu", "event_id": "e1", "occurred_at": at(), "provider": "openai",
            "model": "gpt-4o-mini", "rental_id": "rental-1", "persona_id": "persona-1", "tokens_in": 1_200,
            "tokens_out": 350, "cached_tokens": None, "requests": 1, "latency_ms": 830,
            "cost": {"amount": "0.000123", "currency": "USD"}, "status": "ok",
        }  # fmt: skip

    def test_the_same_reading_again_is_a_duplicate_and_writes_nothing(self):
        async def story() -> None:
            till = Till()
            await till.meter(a_reading())
            assert counts(await till.meter(a_reading())) == (0, 1, 0)
            # The same moment and amount in other words is the same reading.
            same = a_reading(
                occurred_at=at().replace("12:00:00.000000Z", "13:00:00+01:00"),
                cost={"amount": "0.000123000", "currency": "USD"},
                requests=1,
                rental_id=None,
            )
            assert counts(await till.meter(same, same)) == (0, 2, 0)
            assert len(till.records) == 1

        asyncio.run(story())

    @pytest.mark.parametrize(
        "changed",
        [
            {"tokens_in": 1}, {"tokens_out": 0}, {"cached_tokens": 0}, {"requests": 2}, {"latency_ms": ...},
            {"cost": ...}, {"cost": {"amount": "0.000123", "currency": "EUR"}}, {"status": "error"},
            {"model": "gpt-4o"}, {"provider": "azure"}, {"occurred_at": at(seconds=1)}, {"rental_id": "r"},
            {"persona_id": "p"},
        ],
    )  # fmt: skip
    def test_another_reading_under_the_same_id_is_rejected_and_changes_nothing(self, changed):
        async def story() -> None:
            till = Till()
            await till.meter(a_reading())
            counted = await till.meter(a_reading(**changed), a_reading("e2"))
            assert (counts(counted), codes(counted)) == ((1, 0, 1), [(0, "usage_conflict")])
            assert next(iter(changed)) in counted.rejected[0].detail
            assert len(till.records) == 2

        asyncio.run(story())

    def test_the_same_id_of_another_source_or_tenant_is_another_reading(self):
        async def story() -> None:
            till = Till()
            await till.meter(a_reading())
            assert counts(await till.meter(a_reading(source="gateway-us"))) == (1, 0, 0)
            other = Caller("gateway", "bolt", frozenset({"service"}))
            assert counts(await till.meter(a_reading(), caller=other)) == (1, 0, 0)

        asyncio.run(story())

    def test_names_of_streams_do_not_run_into_each_other(self):
        names = {
            usage_name(*parts)
            for parts in [("ab", "c", "d"), ("a", "bc", "d"), ("a", "b", "cd"), ("ab", "cd", "")]
        }
        assert len(names) == 4

    def test_a_repeat_under_a_key_hears_the_first_answer_word_for_word(self):
        async def story() -> None:
            till = Till()
            sent = [a_reading("e1"), a_reading("e2", tokens_in=-1)]
            first = await till.meter(*sent, key="k")
            assert await till.meter(*sent, key="k") == first
            assert counts(first) == (1, 0, 1)
            for other in ([a_reading("e3")], [a_reading("e1"), a_reading("e2", tokens_in=-2)]):
                with pytest.raises(IdempotencyKeyReusedError):
                    await till.meter(*other, key="k")

        asyncio.run(story())

    def test_sixty_four_senders_of_one_reading_insert_it_once(self):
        async def story() -> None:
            store = MemoryStore()
            tills = [Till(store) for _ in range(2)]
            answers = await asyncio.gather(
                *(tills[n % 2].meter(a_reading(), a_reading(f"own-{n}")) for n in range(64))
            )
            assert sum(one.inserted for one in answers) == 65
            assert sum(one.duplicates for one in answers) == 63
            assert len(tills[0].records) == 65

        asyncio.run(story())

    def test_a_thousand_readings_are_looked_up_in_one_read(self):
        async def story() -> None:
            till, reads = Till(resident_max=10), []
            till.log.on_load = reads.append
            sent = [a_reading(f"e{n}") for n in range(1_000)]
            assert (await till.meter(*sent)).inserted == 1_000
            # And with them whether the tenant has a quota.
            assert [len(streams) for streams in reads] == [1_001]
            assert (await till.meter(*sent)).duplicates == 1_000
            # What is written once makes room first: all but a few are read again, in one go or one by one if held.
            assert len(till.ledger._residents) <= 1_011

        asyncio.run(story())

    def test_what_is_held_in_memory_is_bounded_however_many_readings_come(self):
        async def story() -> None:
            till = Till(resident_max=50)
            for n in range(20):
                await till.meter(*[a_reading(f"e{n}-{m}") for m in range(40)])
                assert len(till.ledger._residents) <= 90
                assert len(till.ledger._passing) <= 90

        asyncio.run(story())

    def test_readings_make_room_before_anything_that_lasts(self):
        async def story() -> None:
            till = Till(resident_max=50)
            money = Deposit(tenant="alpha", amount=Money.parse("5", "USD"))
            await till.ledger.act(deposit, money, Caller("tess", "platform", frozenset({"billing"})))
            for n in range(10):
                await till.meter(*[a_reading(f"e{n}-{m}") for m in range(40)])
            assert till.ledger.resident("account/wallet.alpha.USD") is not None

        asyncio.run(story())


class TestRejecting:
    @pytest.mark.parametrize(
        ("changed", "code"),
        [
            ({"tokens_in": -1}, "invalid_field"),
            ({"tokens_in": 1.0}, "invalid_field"),
            ({"tokens_in": "1"}, "invalid_field"),
            ({"tokens_in": True}, "invalid_field"),
            ({"tokens_in": None}, "invalid_field"),
            ({"tokens_in": 10**12 + 1}, "invalid_field"),
            ({"tokens_out": ...}, "missing_field"),
            ({"requests": 0}, "invalid_field"),
            ({"latency_ms": -5}, "invalid_field"),
            ({"cost": {"amount": "-1", "currency": "USD"}}, "invalid_amount"),
            ({"cost": {"amount": 0.1, "currency": "USD"}}, "invalid_amount"),
            ({"cost": {"amount": "NaN", "currency": "USD"}}, "invalid_amount"),
            ({"cost": {"amount": "0.0000000001", "currency": "USD"}}, "invalid_amount"),
            ({"cost": {"amount": "1", "currency": "XXX"}}, "invalid_currency"),
            ({"cost": "1 USD"}, "invalid_amount"),
            ({"occurred_at": "yesterday"}, "invalid_field"),
            ({"occurred_at": "2026-03-01T12:00:00"}, "invalid_field"),
            ({"occurred_at": at(seconds=AHEAD_S_MAX + 1)}, "usage_in_future"),
            ({"occurred_at": at(days=-AGE_DAYS_MAX, seconds=-1)}, "usage_too_old"),
            ({"event_id": ""}, "invalid_field"),
            ({"event_id": "a\0b"}, "invalid_field"),
            ({"event_id": "a b"}, "invalid_field"),
            ({"source": "x" * 201}, "invalid_field"),
            ({"model": "\ud800"}, "invalid_field"),
            ({"provider": " openai"}, "invalid_field"),
            ({"status": "meh"}, "invalid_field"),
            ({"tenant": "Acme!"}, "invalid_field"),
            ({"colour": "red"}, "unknown_field"),
            ({"\0": 1}, "unknown_field"),
            ({"\ud800": 1}, "invalid_field"),
        ],
    )
    def test_a_reading_that_is_wrong_is_listed_with_its_reason_and_its_neighbours_are_taken(
        self, changed, code
    ):
        till = Till()
        counted = asyncio.run(till.meter(a_reading("before"), a_reading(**changed), a_reading("after")))
        assert (counts(counted), codes(counted)) == ((2, 0, 1), [(1, code)])
        assert code in REGISTRY
        assert counted.rejected[0].detail.isprintable()
        assert len(till.records) == 2

    @pytest.mark.parametrize("value", [None, 1, "text", [], [1], True, {}])
    def test_what_is_no_object_is_rejected_alone(self, value):
        counted = asyncio.run(Till().meter(value, a_reading()))
        assert counts(counted) == (1, 0, 1)

    def test_the_edges_of_the_window_are_inside(self):
        edges = [
            a_reading("a", occurred_at=at(seconds=AHEAD_S_MAX)),
            a_reading("b", occurred_at=at(days=-AGE_DAYS_MAX)),
        ]
        assert counts(asyncio.run(Till().meter(*edges))) == (2, 0, 0)

    def test_what_was_taken_stays_a_duplicate_when_it_has_grown_old(self):
        async def story() -> None:
            from datetime import timedelta

            till = Till()
            await till.meter(a_reading())
            till.now += timedelta(days=AGE_DAYS_MAX + 1)
            assert counts(await till.meter(a_reading())) == (0, 1, 0)
            assert codes(await till.meter(a_reading("e2"))) == [(0, "usage_too_old")]

        asyncio.run(story())

    def test_only_the_platform_names_other_tenants(self):
        async def story() -> None:
            till = Till()
            sent = [a_reading("own", tenant="acme"), a_reading("other", tenant="bolt")]
            assert codes(await till.meter(*sent)) == [(1, "forbidden")]
            assert counts(await till.meter(*sent, caller=PLATFORM)) == (1, 1, 0)
            assert [record["tenant"] for record in till.records] == ["acme", "bolt"]
            with pytest.raises(ForbiddenError):
                await till.meter(*sent, caller=Caller("olive", "platform", frozenset({"owner"})))

        asyncio.run(story())

    def test_no_reading_and_too_many_are_no_command(self):
        for readings in ([], [a_reading(str(n)) for n in range(READINGS_MAX + 1)]):
            with pytest.raises(ValueError, match="readings"):
                MeterUsage.model_validate({"readings": readings})


# Few ids and few bodies, so that most of what is generated meets itself again.
sendings = st.lists(
    st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from([0, 1, -1])), min_size=1, max_size=6),
    max_size=6,
)


class TestProperties:
    @given(sendings, st.integers(0, 2**32), st.integers(1, 8))
    def test_the_counts_add_up_and_each_id_is_taken_at_most_once(self, sent, seed, resident_max):
        """Whatever is sent, in whatever order, several times over and together."""

        async def story() -> None:
            till = Till(resident_max=resident_max)
            batches = [[a_reading(name, tokens_in=count) for name, count in batch] for batch in sent] * 2
            random.Random(seed).shuffle(batches)
            answers = await asyncio.gather(*(till.meter(*batch) for batch in batches))
            for batch, counted in zip(batches, answers, strict=True):
                assert counted.inserted + counted.duplicates + len(counted.rejected) == len(batch)
            taken = [record["data"]["event_id"] for record in till.records]
            assert len(set(taken)) == len(taken) == sum(one.inserted for one in answers)
            assert set(taken) == {name for batch in sent for name, count in batch if count >= 0}
            again = [await till.meter(*batch) for batch in batches]
            assert sum(one.inserted for one in again) == 0

        asyncio.run(story())

    @given(st.permutations(range(8)), st.lists(st.integers(1, 7), max_size=3))
    def test_the_log_holds_the_same_readings_in_whatever_order_and_cuts_they_come(self, order, cuts):
        async def story() -> None:
            till = Till()
            readings = [a_reading(f"e{n}", tokens_in=n) for n in order]
            edges = [0, *sorted(set(cuts)), len(readings)]
            for start, end in itertools.pairwise(edges):
                await till.meter(*readings[start:end])
            found = {record["data"]["event_id"]: record["data"]["tokens_in"] for record in till.records}
            assert found == {f"e{n}": n for n in range(8)}

        asyncio.run(story())

    def test_the_use_case_is_open_to_those_who_measure_and_those_who_keep_the_books(self):
        assert meter_usage.roles == {"service", "provider", "billing", "operator"}
        assert GATEWAY.roles <= meter_usage.roles
