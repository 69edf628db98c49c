"""The harness as a whole: what it finds, what it refuses, and that it finds the same again, wherever it is run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.errors import EvaluationSuiteError, LedgerError
from domain.memory.words import words_of
from domain.persona.evaluation import evaluators
from domain.persona.evaluation.harness import Constitution, evaluate
from domain.persona.evaluation.naming import benchmark_name, named
from domain.persona.evaluation.report import (
    Compared,
    is_report,
    paired,
    read_report,
    summary_of,
    written,
)
from domain.persona.evaluation.requests import declared, known_items
from domain.persona.evaluation.statistics import MILLION
from domain.persona.evaluation.subject import Document, subject_address
from domain.persona.evaluation.suites import BASELINE, suite_of
from tests.unit.persona.capsule_maker import a_capsule
from tests.unit.persona.evaluation_maker import (
    CONSTITUTION,
    UTILITY,
    a_memory,
    a_subject,
    cases,
    document,
    noise,
    texts,
)

ROOT = Path(__file__).resolve().parents[3]
# These are for ever: another address means that the suite or its arithmetic changed, which needs another version.
SUITE_ADDRESS = (
    "sha3-512:5456137f6010802e391c73697ff86ddcbf61e42164d2f052283ed54fe0d4c13e750c875"
    "70a2a4267aece8f01ccd283474ee01a91534d611347a307d8d82a241d"
)
COMPARED_ADDRESS = (
    "sha3-512:a0325d1af2f16354bf1a2a8a455b1d993e857f2676beb7d878bc3009fe23cc496c61239"
    "168468793d7e4f01938dc39dd502fa6f0215e2b45db22ca9cb408e3a3"
)
ELSEWHERE = """
from domain.persona.evaluation.harness import evaluate
from domain.persona.evaluation.suites import BASELINE
from tests.unit.persona.evaluation_maker import CONSTITUTION, a_subject
print(evaluate(a_subject(), BASELINE, CONSTITUTION).address)
"""


def found(**parts: Any) -> Compared:
    """Run the suite on a persona."""
    return evaluate(a_subject(**parts), BASELINE, CONSTITUTION)


class TestReproduction:
    def test_the_published_suite_is_this_one_for_ever(self) -> None:
        assert BASELINE.address == SUITE_ADDRESS

    def test_the_compared_part_of_a_fixed_persona_is_this_one_on_every_machine(self) -> None:
        assert found().address == COMPARED_ADDRESS

    @pytest.mark.parametrize(
        "varied",
        [
            {"PYTHONHASHSEED": "1", "OPENBLAS_NUM_THREADS": "1"},
            {"PYTHONHASHSEED": "2", "OPENBLAS_NUM_THREADS": "4"},
            {"OPENBLAS_CORETYPE": "Nehalem", "NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3 AVX512F"},
        ],
        ids=["one thread", "four threads", "an older processor"],
    )
    def test_another_process_finds_the_same_to_the_last_byte(self, varied: dict[str, str]) -> None:
        # Texts hash otherwise, sums are taken in other orders, and products by other instructions.
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", ELSEWHERE],
            env=os.environ | varied | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            check=True,
            text=True,
        )
        assert done.stdout.strip() == COMPARED_ADDRESS

    def test_two_reports_of_one_persona_differ_in_what_the_host_says_alone(self) -> None:
        one, other = (read_report(written(found(), {"ended_at": at})) for at in ("now", "later"))
        assert one.compared == other.compared
        assert one.address == other.address
        assert one.host != other.host

    def test_the_subject_says_what_was_evaluated_and_not_what_was_reported(self) -> None:
        plain = a_capsule().manifest
        report = a_capsule(parts={"report.json": ("evaluation_report", "application/json", b"{}")}).manifest
        prompt = a_capsule(parts={"prompts.json": ("prompts", "application/json", b'"other"')}).manifest
        assert subject_address(plain) == subject_address(report)
        assert subject_address(plain) != subject_address(prompt)


class TestWhatIsFound:
    def test_a_sound_persona_passes(self) -> None:
        report = found()
        assert report.passed, report.why
        assert report.why == []
        assert report.n == len(report.cases) == 60 + 60 + 1 + 1
        assert report.channels == ["words", "vectors"]
        assert report.failure_count == report.reward_gated_count == 0
        assert float(report.metrics["known_items.recall_at_5"].mean) > 0.7

    def test_every_case_has_its_digests_and_every_request_its_utility(self) -> None:
        for case in found().cases:
            if case.evaluator in ("known_items", "neighbours"):
                assert case.input_digest is not None
                assert case.output_digest is not None
            assert (case.utility is not None) == (case.evaluator == "known_items")

    def test_vectors_that_tell_nothing_apart_are_found_out(self) -> None:
        same = a_memory()._replace(vectors=np.ones((60, 384), dtype=np.float32))
        report = found(memory=same)
        assert not report.passed
        assert any(why.startswith("neighbours.recall_at_5") for why in report.why)

    def test_texts_that_say_the_same_are_found_out(self) -> None:
        report = found(memory=a_memory(said=["One text, again and again."] * 40))
        assert any(why.startswith("memory.is_distinct") for why in report.why)

    def test_an_item_without_words_is_found_out(self) -> None:
        report = found(memory=a_memory(said=[*texts(30), "...", ""]))
        assert any(why.startswith("memory.has_text") for why in report.why)

    @pytest.mark.parametrize(
        "data", [b"", b"  \n", b"\xff\xfe", b"a\x00b", "r\u202eight".encode(), b"word " * 40_000]
    )
    def test_an_unsound_prompt_is_found_out(self, data: bytes) -> None:
        report = found(prompts=[Document("system.txt", data)])
        assert not report.passed
        assert [case.failure is not None for case in report.cases if case.evaluator == "prompts"] == [True]

    @pytest.mark.parametrize(
        ("tools", "scopes"),
        [
            ({"tools": [{"tool": "calendar", "access_scope": "write"}]}, {"calendar": "read"}),
            ({"tools": [{"tool": "calendar"}, {"name": "shell"}]}, {"calendar": "read"}),
            ([{"type": "function", "function": {"name": "mail"}}], {"calendar": "read"}),
            ([], {"calendar": "read"}),
        ],
    )
    def test_tools_that_are_not_as_declared_are_found_out(self, tools: Any, scopes: dict[str, str]) -> None:
        report = found(tools=[document("tools.json", tools)], scopes=scopes)
        assert any(why.startswith("tools.agreement") for why in report.why)

    @pytest.mark.parametrize("data", [b"{", b'{"tools": 7}', b'[{"description": "nameless"}]', b"[7]"])
    def test_an_evaluator_that_fails_is_a_result_and_does_not_pass(self, data: bytes) -> None:
        report = found(tools=[Document("tools.json", data)])
        assert not report.passed
        assert report.failure_count == 1
        assert any(why.startswith("tools failed") for why in report.why)

    def test_an_embedding_of_others_is_searched_by_words_alone(self) -> None:
        report = found(memory=a_memory(model="example/encoder-2"))
        assert report.channels == ["words"]
        assert report.passed, report.why


class TestGuarding:
    def test_without_a_constitution_nothing_passes(self) -> None:
        report = evaluate(a_subject(), BASELINE, None)
        assert not report.passed
        assert report.utility.accepted == 0
        assert report.reward_gated_count == 60

    def test_weights_that_cannot_be_read_accept_nothing(self) -> None:
        report = evaluate(a_subject(), BASELINE, Constitution("sha3-512:00", {**UTILITY, "lam": "0"}))
        assert not report.passed
        assert report.utility.accepted == 0

    def test_a_memory_without_items_has_no_utility_and_does_not_pass(self) -> None:
        report = found(memory=a_memory(0))
        assert not report.passed
        assert report.utility.pass_rate is None
        assert "the utility of no request could be reckoned" in report.why

    def test_a_constitution_that_asks_for_more_refuses_what_another_accepts(self) -> None:
        strict = Constitution("sha3-512:11", {**UTILITY, "p_min": "0.999", "c_max": "0", "l_max": "0"})
        report = evaluate(a_subject(), BASELINE, strict)
        assert not report.passed
        assert report.utility.accepted == 0
        assert report.metrics["known_items.reward"].mean == "0.000000"

    def test_prompts_that_cost_more_are_worth_less(self) -> None:
        long = found(prompts=[Document("system.txt", b"Be careful. " * 2_000)])
        assert float(long.utility.value or "nan") < float(found().utility.value or "nan")

    def test_what_is_held_back_earns_nothing_and_stays_in_the_count(self) -> None:
        asked = [
            {"id": "free", "query": texts(60)[7], "relevant": ["item-0007"]},
            {
                "id": "reads",
                "query": texts(60)[8],
                "relevant": ["item-0008"],
                "tool": "calendar",
                "scope": "read",
            },
            {
                "id": "writes",
                "query": texts(60)[9],
                "relevant": ["item-0009"],
                "tool": "calendar",
                "scope": "write",
            },
            {"id": "unknown", "query": texts(60)[10], "relevant": ["item-0010"], "tool": "shell"},
        ]
        report = found(cases=[cases(*asked)])
        gated = {case.id: case.gated for case in report.cases if case.evaluator == "declared"}
        assert gated == {
            "declared/free": None,
            "declared/reads": None,
            "declared/writes": "the tool does not reach that far",
            "declared/unknown": "no such tool is declared",
        }
        assert report.reward_gated_count == 2
        assert report.metrics["declared.recall_at_5"].mean == "1.000000"
        assert report.metrics["declared.reward"].mean == "0.500000"
        assert report.metrics["declared.reward"].n == 4

    def test_nothing_a_caller_says_is_taken_for_a_chance(self) -> None:
        stated = document("cases.json", {
            "schema": "soma/evaluation_cases/1",
            "cases": [{"id": "sure", "query": "q", "relevant": ["item-0001"], "p": "1"}],
        })  # fmt: skip
        report = found(cases=[stated])
        assert not report.passed
        assert any(why.startswith("declared failed") for why in report.why)


class TestRequests:
    def test_a_known_item_is_asked_for_in_its_own_words_and_some_of_others(self) -> None:
        memory = a_memory(200)
        vocabulary = sorted({word for text in memory.texts for word in words_of(text)})
        asked = known_items(memory, vocabulary, "seed", BASELINE.known_items)
        own = foreign = 0
        for request in asked:
            (row,) = request.relevant
            words = words_of(memory.texts[row])
            own += sum(word in words for word in request.query.split())
            foreign += sum(word not in words for word in request.query.split())
        assert 0.70 < own / (own + foreign) < 0.95

    def test_an_item_that_joins_changes_few_other_requests(self) -> None:
        asked = []
        for count in (150, 153):
            memory = a_memory(count)
            vocabulary = {word for text in memory.texts for word in words_of(text)}
            requests = known_items(memory, sorted(vocabulary), "seed", BASELINE.known_items)
            asked.append({request.id: request.digest for request in requests})
        before, after = asked
        same = sum(before[name] == after[name] for name in before)
        assert before.keys() <= after.keys()
        assert 0.95 * len(before) <= same < len(before)

    @pytest.mark.parametrize(
        "case",
        [
            {"id": "a", "query": "q", "relevant": ["item-9999"]},
            {"id": "a", "query": "q", "relevant": []},
            {"id": "a", "query": "", "relevant": ["item-0001"]},
            {"id": "a", "relevant": ["item-0001"]},
            {"id": "a", "query": "q", "relevant": ["item-0001"], "weight": 2},
            {"id": 7, "query": "q", "relevant": ["item-0001"]},
        ],
    )
    def test_cases_that_cannot_be_run_are_refused(self, case: dict[str, Any]) -> None:
        with pytest.raises(EvaluationSuiteError):
            declared([cases(case)], a_memory(), 10)

    def test_a_case_that_occurs_twice_is_refused(self) -> None:
        case = {"id": "a", "query": "q", "relevant": ["item-0001"]}
        with pytest.raises(EvaluationSuiteError):
            declared([cases(case), cases(case)], a_memory(), 10)
        with pytest.raises(EvaluationSuiteError):
            declared([cases(*({**case, "id": str(n)} for n in range(11)))], a_memory(), 10)

    @given(st.binary(max_size=200))
    def test_bytes_that_are_no_cases_are_refused_and_nothing_else_happens(self, data: bytes) -> None:
        with pytest.raises(LedgerError):
            declared([Document("cases.json", data)], a_memory(3), 10)


class TestScores:
    @pytest.mark.parametrize(
        ("rank", "gain"), [(0, 0), (1, 1_000_000), (2, 630_930), (3, 500_000), (10, 289_065), (11, 0)]
    )
    def test_a_gain_falls_with_the_logarithm_of_the_rank(self, rank: int, gain: int) -> None:
        assert evaluators.rank_scores(rank, 5)["gain_at_10"] == gain

    def test_ranks_become_scores(self) -> None:
        assert evaluators.rank_scores(4, 5) == {
            "recall_at_1": 0, "recall_at_5": MILLION, "reciprocal_rank": 250_000, "gain_at_10": 430_677,
        }  # fmt: skip

    def test_vectors_in_all_directions_are_found_again_and_crowded_ones_are_not(self) -> None:
        spread = a_memory()._replace(vectors=noise(60, 64))
        crowded = a_memory()._replace(
            vectors=np.ones((60, 64), np.float32) + noise(60, 64) * np.float32(0.01)
        )
        assert float(found(memory=spread).metrics["neighbours.recall_at_1"].mean) == 1
        assert float(found(memory=crowded).metrics["neighbours.recall_at_1"].mean) < 0.3


class TestReport:
    def test_a_report_is_read_as_it_was_written(self) -> None:
        compared = found()
        report = read_report(written(compared, {"python": "3"}))
        assert report.compared == compared
        assert report.address == compared.address

    @given(st.integers(0, 2_000), st.integers(1, 255))
    def test_a_report_in_which_a_byte_of_the_compared_part_is_changed_is_refused(
        self, at: int, mask: int
    ) -> None:
        data = bytearray(written(evaluate(a_subject(a_memory(4)), BASELINE, CONSTITUTION), {}))
        start = data.index(b'"compared"')
        at = start + at % (data.index(b'"host"') - start)
        data[at] ^= mask
        with pytest.raises(LedgerError):
            read_report(bytes(data))

    def test_what_calls_itself_a_report_is_known_as_one(self) -> None:
        assert is_report(written(found(), {}))
        for other in (b"", b"{", b"[]", b'{"schema": "soma/other/1"}'):
            assert not is_report(other)

    def test_a_summary_fits_into_a_record_and_says_why_not(self) -> None:
        summary = summary_of(found(memory=a_memory(0)))
        assert summary["passed"] is False
        assert summary["why"]
        assert len(str(summary_of(found()))) < 8_000

    def test_an_unknown_suite_is_refused(self) -> None:
        with pytest.raises(EvaluationSuiteError):
            suite_of("of-my-own")


class TestPairing:
    def test_a_report_beside_itself_gains_and_loses_nothing(self) -> None:
        side = paired(found(), found())
        assert (side.paired, side.gained, side.lost, side.regressed, side.p_value) == (
            60,
            0,
            0,
            False,
            "1.000000",
        )

    def test_requests_that_are_refused_now_are_named(self) -> None:
        strict = Constitution("sha3-512:11", {**UTILITY, "p_min": "0.999", "c_max": "0", "l_max": "0"})
        worse = evaluate(a_subject(), BASELINE, strict)
        side = paired(found(), worse)
        assert side.regressed
        assert side.lost == 60
        assert side.lost_cases[0] in {case.id for case in worse.cases}
        assert paired(worse, found()).gained == 60
        assert not paired(worse, found()).regressed


class TestNaming:
    CAPSULE = a_capsule()

    def manifest(self, benchmark: str = "baseline", score: str = "0.92") -> Any:
        def change(plain: dict[str, Any]) -> None:
            plain["evaluations"][0].update(benchmark=benchmark, score=score)

        return a_capsule(change=change).manifest

    def test_a_report_that_is_found_again_is_equal_whatever_the_host_said(self) -> None:
        compared = found()
        report = Document("report.json", written(compared, {"ended_at": "long ago"}))
        assert named(self.manifest(), [report], compared).state == "equal"

    def test_a_report_of_another_persona_differs(self) -> None:
        other = Document("report.json", written(found(memory=a_memory(40)), {}))
        assert named(self.manifest(), [other], found()).state == "differs"

    def test_a_report_that_was_made_better_by_hand_differs(self) -> None:
        data = written(found(memory=a_memory(0)), {}).replace(b'"passed":false', b'"passed":true')
        assert (
            named(self.manifest(), [Document("report.json", data)], found(memory=a_memory(0))).state
            == "differs"
        )

    def test_reports_and_benchmarks_of_others_are_left_alone(self) -> None:
        other = document("report.json", {"schema": "example/report/1"})
        assert named(self.manifest(), [other], found()).state == "none"
        assert named(self.manifest(), [], found()).state == "none"

    def test_a_score_of_ours_that_is_not_the_measured_one_differs(self) -> None:
        compared = found()
        metric = "neighbours.recall_at_1"
        name, measured = benchmark_name(compared, metric), compared.metrics[metric].mean
        assert named(self.manifest(name, measured), [], compared).state == "none"
        assert named(self.manifest(name, "0.123"), [], compared).state == "differs"
        assert (
            named(self.manifest(benchmark_name(compared, "no.such"), "0.5"), [], compared).state == "differs"
        )
