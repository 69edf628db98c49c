"""Trust policies: reading, writing, and who is missing."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.errors import NoteMalformedError, NoteUnverifiedError, PolicyMalformedError
from domain.log.notes import (
    ML_DSA_44_COSIGNATURE,
    Checkpoint,
    Cosigner,
    Signer,
    VerifierKey,
    add_signature_lines,
    sign_note,
)
from domain.log.policies import Group, Policy, parse_policy

LOG = Signer("log.example/one", bytes(range(32)))
OTHER_LOG = Signer("log.example/two", bytes(range(40, 72)))
WITNESSES = {name: Cosigner(f"{name.lower()}.example", bytes([n] * 32)) for n, name in enumerate(
    ["X1", "X2", "X3", "Y1", "Y2", "Y3"]
)}  # fmt: skip
HEAD = Checkpoint(LOG.name, 12, bytes(32))
KEY = {name: witness.key.text for name, witness in WITNESSES.items()}

# The shape of the example of c2sp.org/tlog-policy.
EXAMPLE = f"""
# two organisations
log {LOG.key.text} https://log.example/one/

witness X1 {KEY["X1"]}
witness X2 {KEY["X2"]}\thttps://x2.example/
  witness X3 {KEY["X3"]}
group X-witnesses 2 X1 X2 X3

witness Y1 {KEY["Y1"]}
witness Y2 {KEY["Y2"]}
witness Y3 {KEY["Y3"]}
group Y-witnesses any Y1 Y2 Y3

\t # both must have seen it
group X-and-Y all X-witnesses Y-witnesses
quorum X-and-Y
"""


def cosigned(*names):
    return add_signature_lines(
        HEAD.sign(LOG), [WITNESSES[name].cosignature_line(HEAD.text, 9) for name in names]
    )


class TestReading:
    def test_the_example_of_the_standard_is_read(self):
        policy = parse_policy(EXAMPLE.encode())
        assert [(log.key, log.url) for log in policy.logs] == [(LOG.key, "https://log.example/one/")]
        assert [witness.name for witness in policy.witnesses] == list(WITNESSES)
        assert policy.groups == (
            Group("X-witnesses", 2, ("X1", "X2", "X3")),
            Group("Y-witnesses", 1, ("Y1", "Y2", "Y3")),
            Group("X-and-Y", 2, ("X-witnesses", "Y-witnesses")),
        )
        assert policy.quorum == "X-and-Y"

    def test_what_is_written_reads_back(self):
        for text in (EXAMPLE, "quorum none\n", "quorum none"):
            policy = parse_policy(text.encode())
            assert parse_policy(policy.print()) == policy

    def test_names_are_octets(self):
        text = (
            b"witness \xe2\x84\xaa %b\ngroup \xff\xfe any \xe2\x84\xaa\nquorum \xff\xfe\n"
            % KEY["X1"].encode()
        )
        policy = parse_policy(text)
        assert policy.witnesses[0].name != "K"
        assert b"quorum \xff\xfe\n" in policy.print()
        assert parse_policy(policy.print()) == policy

    def test_groups_may_name_witnesses_of_later_written_groups_in_any_order_of_lines(self):
        text = f"witness a {KEY['X1']}\nquorum a\nlog {LOG.key.text}\nwitness b {KEY['X2']}\n"
        assert parse_policy(text.encode()).quorum == "a"

    @pytest.mark.parametrize(
        "text",
        [
            "", "# nothing", "quorum", "quorum a", "quorum none none", "quorum none\nquorum none",
            "Quorum none",
            "log\nquorum none", f"log {LOG.key.text} u v\nquorum none", "log nonsense\nquorum none",
            f"log {LOG.key.text}\nlog {LOG.key.text}\nquorum none",
            f"log {LOG.key.text}\nlog {Signer('renamed', bytes(range(32))).key.text}\nquorum none",
            f"log {KEY['X1']}\nquorum none", f"witness a {LOG.key.text}\nquorum none",
            "witness a\nquorum none",
            f"witness a {KEY['X1']}\nwitness b {KEY['X1']}\nquorum none",
            f"witness a {KEY['X1']}\nwitness a {KEY['X2']}\nquorum a",
            f"witness none {KEY['X1']}\nquorum none",
            f"quorum a\nwitness a {KEY['X1']}", f"witness a {KEY['X1']} u v\nquorum a",
            f"witness a {KEY['X1']}\ngroup g any\nquorum g",
            f"witness a {KEY['X1']}\ngroup g any b\nquorum g",
            f"witness a {KEY['X1']}\ngroup g any a a\nquorum g",
            f"witness a {KEY['X1']}\ngroup a any a\nquorum a",
            f"witness a {KEY['X1']}\ngroup g any a\ngroup h any a\nquorum g",
            f"witness a {KEY['X1']}\ngroup g any g\nquorum g",
            f"witness a {KEY['X1']}\ngroup g any none\nquorum g",
            f"witness a {KEY['X1']}\ngroup none any a\nquorum none",
            f"witness a {KEY['X1']}\ngroup g 0 a\nquorum g",
            f"witness a {KEY['X1']}\ngroup g 2 a\nquorum g", f"witness a {KEY['X1']}\ngroup g 01 a\nquorum g",
            f"witness a {KEY['X1']}\ngroup g -1 a\nquorum g",
            f"witness a {KEY['X1']}\ngroup g most a\nquorum g",
            "quorum\u00a0none", "quorum none\r", "quorum none\x00", "quorum none\x7f",
            "quorum none # comment",
            "# " + "x" * 1_000_000 + "\nquorum none", f"witness a {KEY['X1'][:-2]}\nquorum a",
        ],
    )  # fmt: skip
    def test_what_is_no_policy_is_refused(self, text):
        with pytest.raises(PolicyMalformedError):
            parse_policy(text.encode())

    @given(st.binary(max_size=60) | st.from_regex(rb"((log|witness|group|quorum) [a-z0-9 ]{1,9}\n){1,4}"))
    def test_reading_raises_nothing_else(self, data):
        try:
            policy = parse_policy(data)
        except PolicyMalformedError:
            return
        assert parse_policy(policy.print()) == policy

    def test_the_line_at_fault_is_named(self):
        with pytest.raises(PolicyMalformedError, match="line 3") as refusal:
            parse_policy(b"# one\n\nnonsense\n")
        assert refusal.value.facts == {"line": 3}


class TestEvaluation:
    def test_every_subset_of_witnesses_is_judged_as_the_rule_says(self):
        policy = parse_policy(EXAMPLE.encode())
        for present in product([False, True], repeat=6):
            names = [name for name, here in zip(WITNESSES, present, strict=True) if here]
            expected = sum(present[:3]) >= 2 and any(present[3:])
            assert policy.is_quorum(names) is expected

    @pytest.mark.parametrize("names", [(), ("X1",), ("X1", "Y2"), ("X1", "X3", "Y2"), tuple(WITNESSES)])
    def test_a_checkpoint_is_judged_by_its_cosignatures(self, names):
        verdict = parse_policy(EXAMPLE.encode()).evaluate(cosigned(*names))
        assert verdict.checkpoint == HEAD
        assert verdict.log == LOG.key
        assert verdict.cosigned == names
        assert verdict.missing == tuple(name for name in WITNESSES if name not in names)
        assert verdict.is_satisfied is (len(names) >= 3)

    def test_witnesses_the_quorum_does_not_reach_are_not_missing(self):
        text = f"log {LOG.key.text}\nwitness a {KEY['X1']}\nwitness b {KEY['X2']}\nquorum a\n"
        verdict = parse_policy(text.encode()).evaluate(cosigned())
        assert (verdict.is_satisfied, verdict.missing) == (False, ("a",))

    def test_without_a_quorum_the_log_alone_is_enough(self):
        policy = Policy(logs=parse_policy(EXAMPLE.encode()).logs)
        assert policy.evaluate(cosigned()).is_satisfied
        assert policy.evaluate(cosigned("X1")).is_satisfied

    def test_a_log_the_policy_does_not_list_is_refused(self):
        policy = parse_policy(f"log {OTHER_LOG.key.text}\nwitness a {KEY['X1']}\nquorum none".encode())
        for note in (cosigned(), cosigned("X1"), sign_note(HEAD.text, OTHER_LOG)):
            with pytest.raises(NoteUnverifiedError):
                policy.evaluate(note)

    def test_a_forged_cosignature_spoils_the_checkpoint(self):
        forged = WITNESSES["X1"].cosignature_line(HEAD._replace(size=13).text, 9)
        with pytest.raises(NoteUnverifiedError):
            parse_policy(EXAMPLE.encode()).evaluate(add_signature_lines(HEAD.sign(LOG), [forged]))

    def test_one_witness_twice_counts_once(self):
        text = f"log {LOG.key.text}\nwitness a {KEY['X1']}\nwitness b {KEY['X2']}\ngroup g 2 a b\nquorum g\n"
        verdict = parse_policy(text.encode()).evaluate(cosigned("X1", "X1"))
        assert (verdict.is_satisfied, verdict.missing) == (False, ("b",))

    def test_a_post_quantum_witness_is_always_missing_here(self):
        key = VerifierKey("pq.example", ML_DSA_44_COSIGNATURE, bytes(1_312))
        policy = parse_policy(f"log {LOG.key.text}\nwitness pq {key.text}\nquorum pq".encode())
        assert policy.evaluate(cosigned()).missing == ("pq",)

    def test_a_signed_text_that_is_no_checkpoint_is_refused(self):
        with pytest.raises(NoteMalformedError):
            parse_policy(EXAMPLE.encode()).evaluate(sign_note("hello\n", LOG))
