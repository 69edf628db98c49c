"""What signatures come to: every reason for which one does not count, and that nothing but distinct holders does."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.canonical import encode_record
from domain.errors import EnvelopeMalformedError, ThresholdNotMetError
from domain.trust.dsse import Envelope, Signature, seal_envelope
from domain.trust.keys import key_text
from domain.trust.pinned import PolicyDocument, PolicyTerms
from domain.trust.verification import (
    PAYLOAD_TYPE,
    Statement,
    Verification,
    Wanted,
    check_verified,
    payload_of,
    read_statement,
    sign_statement,
    verify,
)
from tests.unit.trust.trust_maker import (
    FAR,
    LATER,
    START,
    a_capsule,
    constitution,
    envelope,
    key_of,
    pin,
    policy,
    policy_terms,
)

POLICY = policy(("ada", "ben", "cleo", "dan"), threshold=2)
LAW = constitution().sealed()[1]
WANTED = Wanted("publication", a_capsule(), POLICY.address, LAW)


def came_to(*envelopes: Envelope, document: PolicyDocument = POLICY, **how: Any) -> Verification:
    """Verify under the policy of these tests."""
    given_: dict[str, Any] = {"revoked": {}, "now": START} | how
    return verify(envelopes, WANTED, document, **given_)


def reasons(found: Verification) -> list[str]:
    """List why signatures were refused."""
    return [one.reason for one in found.refused]


def named(found: Verification) -> list[str]:
    """List who signed."""
    return [one.name for one in found.signed]


def text(name: str) -> str:
    """Give somebody's public key as it is pinned."""
    return key_text(key_of(name).public_key)


# --------------------------------------------------------------------------- what counts


def test_the_threshold_is_met_by_two_of_four_and_the_answer_names_everybody() -> None:
    found = came_to(envelope(WANTED, "ben"), envelope(WANTED, "ada"))
    assert found.verified
    assert named(found) == ["ada", "ben"]
    assert found.missing == ["cleo", "dan"]
    assert found.refused == []
    assert check_verified(found) is found


def test_one_signature_is_too_few_and_the_refusal_names_who_is_missing() -> None:
    with pytest.raises(ThresholdNotMetError) as refusal:
        check_verified(came_to(envelope(WANTED, "ben"), envelope(WANTED, "mallory")))
    facts = refusal.value.facts
    assert (facts["signed"], facts["missing"]) == (["ben"], ["ada", "cleo", "dan"])
    assert [one["reason"] for one in facts["refused"]] == ["unknown_key"]


def test_one_envelope_may_carry_the_signatures_of_several() -> None:
    assert came_to(envelope(WANTED, "ada", "dan")).verified


def test_signatures_without_key_ids_count_as_well() -> None:
    signed = envelope(WANTED, "ada", "ben")
    bare = msgspec.structs.replace(signed, signatures=[Signature(s.sig) for s in signed.signatures])
    assert came_to(bare).verified


def test_a_key_id_that_lies_changes_nothing() -> None:
    signed = envelope(WANTED, "ada")
    lies = [Signature(signed.signatures[0].sig, keyid) for keyid in (text("ben"), text("mallory"), "ada", "")]
    found = came_to(msgspec.structs.replace(signed, signatures=lies))
    assert named(found) == ["ada"]
    assert reasons(found) == ["duplicate_key"] * 3


def test_one_key_under_two_names_counts_once() -> None:
    keys = [pin("ada"), pin("ada", name="ada2", subject="ada2")]
    # No such policy is ever adopted; it is built here as a thief of a database might.
    twice = PolicyTerms.model_validate(policy_terms() | {"keys": keys}).document()
    wanted = WANTED._replace(policy=twice.address)
    both = [envelope(wanted, "ada"), envelope(wanted, "ada")]
    found = verify(both, wanted, twice, revoked={}, now=START)
    assert not found.verified
    assert reasons(found) == ["duplicate_key"]


def test_one_person_with_two_keys_counts_once() -> None:
    keys = [pin("ada"), pin("ben", subject="ada@platform")]
    twice = PolicyTerms.model_validate(policy_terms() | {"keys": keys}).document()
    wanted = WANTED._replace(policy=twice.address)
    found = verify([envelope(wanted, "ada", "ben")], wanted, twice, revoked={}, now=START)
    assert not found.verified
    assert reasons(found) == ["duplicate_subject"]


# --------------------------------------------------------------------------- what does not


def said(**changes: str) -> Envelope:
    """Have ada sign another statement than the one that is wanted."""
    statement = WANTED.statement(FAR)
    return sign_statement(msgspec.structs.replace(statement, **changes), key_of("ada"))


def written(payload: bytes, kind: str = PAYLOAD_TYPE) -> Envelope:
    """Have ada sign any bytes."""
    return seal_envelope(kind, payload, key_of("ada"))


STATEMENT = msgspec.to_builtins(WANTED.statement(FAR))
OTHER = a_capsule(2)

REFUSED: dict[str, tuple[Callable[[], Verification], str]] = {
    "of another capsule": (lambda: came_to(said(capsule=OTHER)), "wrong_statement"),
    "under another constitution": (lambda: came_to(said(constitution=OTHER)), "wrong_statement"),
    "for another purpose": (lambda: came_to(said(purpose="policy")), "wrong_statement"),
    "under another policy": (lambda: came_to(said(policy=OTHER)), "wrong_policy"),
    "of another capsule and policy": (lambda: came_to(said(policy=OTHER, capsule=OTHER)), "wrong_statement"),
    "past its time": (lambda: came_to(said(not_after=START)), "expired"),
    "looked at after its time": (lambda: came_to(said(not_after=LATER), now=LATER), "expired"),
    "not in canonical form": (lambda: came_to(written(json.dumps(STATEMENT).encode())), "wrong_statement"),
    "with a member more": (lambda: came_to(written(encode_record(STATEMENT | {"x": 1}))), "wrong_statement"),
    "with a member less": (
        lambda: came_to(written(encode_record({k: v for k, v in STATEMENT.items() if k != "purpose"}))),
        "wrong_statement",
    ),
    "with another shape of time": (
        lambda: came_to(written(encode_record(STATEMENT | {"not_after": "2027-01-01"}))),
        "wrong_statement",
    ),
    "that is no JSON": (lambda: came_to(written(b"\xff")), "wrong_statement"),
    "that is empty": (lambda: came_to(written(b"")), "wrong_statement"),
    "of another payload type": (
        lambda: came_to(written(encode_record(STATEMENT), "application/json")),
        "wrong_type",
    ),
    "of the type of documents": (
        lambda: came_to(written(encode_record(STATEMENT), "application/vnd.soma.trust-document.v1+json")),
        "wrong_type",
    ),
    "by a key that is not pinned": (lambda: came_to(envelope(WANTED, "mallory")), "unknown_key"),
    "by a revoked key": (
        lambda: came_to(envelope(WANTED, "ada"), revoked={text("ada"): START}),
        "revoked_key",
    ),
    "by an owner": (
        lambda: came_to(envelope(WANTED, "ada"), barred=["ada@platform"]),
        "self_signed",
    ),
    "whose bytes were changed": (
        lambda: came_to(
            msgspec.structs.replace(envelope(WANTED, "ada"), payload=payload_of(WANTED.statement(LATER)))
        ),
        "bad_signature",
    ),
    "that is empty itself": (
        lambda: came_to(
            msgspec.structs.replace(envelope(WANTED, "ada"), signatures=[Signature(b"", text("ada"))])
        ),
        "bad_signature",
    ),
    "of all zeros": (
        lambda: came_to(
            msgspec.structs.replace(envelope(WANTED, "ada"), signatures=[Signature(bytes(64), text("ada"))])
        ),
        "bad_signature",
    ),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_a_signature_does_not_count(case: tuple[Callable[[], Verification], str]) -> None:
    make, reason = case
    found = make()
    assert reasons(found) == [reason]
    assert named(found) == []
    assert not found.verified


@pytest.mark.parametrize(("now", "counts"), [("2024-12-31T23:59:59.999999Z", False), (START, True)])
def test_a_key_counts_from_its_first_moment(now: str, counts: bool) -> None:
    found = came_to(envelope(WANTED, "ada", not_after="2031-01-01T00:00:00.000000Z"), now=now)
    assert named(found) == (["ada"] if counts else [])
    assert reasons(found) == ([] if counts else ["key_expired"])


def test_a_key_counts_until_just_before_its_last_moment() -> None:
    signed = envelope(WANTED, "ada", not_after="2031-01-01T00:00:00.000000Z")
    assert named(came_to(signed, now="2029-12-31T23:59:59.999999Z")) == ["ada"]
    assert reasons(came_to(signed, now="2030-01-01T00:00:00.000000Z")) == ["key_expired"]


def test_a_statement_may_not_hold_for_longer_than_was_asked() -> None:
    wanted = WANTED._replace(not_after_max=LATER)
    short, long = (envelope(wanted, "ada", not_after=until) for until in (LATER, FAR))
    assert named(verify([short], wanted, POLICY, revoked={}, now=START)) == ["ada"]
    assert reasons(verify([long], wanted, POLICY, revoked={}, now=START)) == ["wrong_statement"]


def test_a_revoked_key_counts_in_history_and_not_now() -> None:
    both, out = envelope(WANTED, "ada", "ben"), {text("ada"): LATER}
    assert came_to(both, revoked=out, known_at=START).verified
    now = came_to(both, revoked=out)
    assert not now.verified
    assert reasons(now) == ["revoked_key"]
    assert "ada" not in now.missing


def test_whoever_cannot_sign_is_not_missing() -> None:
    found = came_to(revoked={text("ada"): START}, barred=["ben@platform"])
    assert found.missing == ["cleo", "dan"]


def test_a_changed_threshold_is_another_policy_and_voids_what_was_signed() -> None:
    both = envelope(WANTED, "ada", "ben")
    lower = policy(("ada", "ben", "cleo", "dan"), threshold=3)
    found = verify([both], WANTED._replace(policy=lower.address), lower, revoked={}, now=START)
    assert reasons(found) == ["wrong_policy", "wrong_policy"]


def test_statements_about_documents_are_no_statements_about_capsules() -> None:
    vouched = Wanted("constitution", WANTED.address, POLICY.address)
    assert reasons(came_to(envelope(vouched, "ada"))) == ["wrong_type"]
    assert verify([envelope(vouched, "ada", "ben")], vouched, POLICY, revoked={}, now=START).verified


def test_more_signatures_than_are_counted_are_refused_before_any_is_looked_at() -> None:
    many = msgspec.structs.replace(envelope(WANTED, "ada"), signatures=[Signature(bytes(64))] * 33)
    with pytest.raises(EnvelopeMalformedError):
        came_to(many, many)


def test_a_statement_is_read_back_from_what_was_signed() -> None:
    statement = WANTED.statement(FAR)
    assert isinstance(statement, Statement)
    assert read_statement(sign_statement(statement, key_of("ada"))) == statement


# --------------------------------------------------------------------------- against a plain reference


class Try(NamedTuple):
    """A signature somebody made: by whom, over what, and with which key id."""

    name: str
    capsule: int
    policy: bool
    late: bool
    spoiled: bool
    hint: str


NAMES = ("ada", "ben", "cleo", "dan")
TRIES = st.lists(
    st.builds(
        Try,
        st.sampled_from([*NAMES, "mallory"]),
        st.sampled_from([1, 1, 1, 2]),
        st.sampled_from([True, True, True, False]),
        st.sampled_from([False, False, False, True]),
        st.sampled_from([False, False, False, True]),
        st.sampled_from(["own", "", "ada", "mallory"]),
    ),
    max_size=8,
)


def made(one: Try) -> Envelope:
    """Make the envelope of a try."""
    wanted = WANTED._replace(
        address=a_capsule(one.capsule), policy=POLICY.address if one.policy else a_capsule(9)
    )
    signed = envelope(wanted, one.name, not_after=START if one.late else FAR)
    sig = signed.signatures[0].sig
    keyid = text(one.name) if one.hint == "own" else text(one.hint) if one.hint else ""
    spoiled = sig[:-1] + bytes([sig[-1] ^ 1]) if one.spoiled else sig
    return msgspec.structs.replace(signed, signatures=[Signature(spoiled, keyid)])


@given(TRIES, st.sets(st.sampled_from(NAMES)), st.sets(st.sampled_from(NAMES)))
def test_who_counts_is_who_signed_this_and_was_free_to(
    tries: list[Try], revoked: set[str], barred: set[str]
) -> None:
    found = came_to(
        *(made(one) for one in tries),
        revoked={text(name): START for name in revoked},
        barred=[f"{name}@platform" for name in barred],
    )
    good = {one.name for one in tries if one.capsule == 1 and one.policy and not one.late and not one.spoiled}
    expected = (good & set(NAMES)) - revoked - barred
    assert set(named(found)) == expected
    assert found.verified == (len(expected) >= 2)
    assert set(found.missing) == set(NAMES) - expected - revoked - barred
    assert len(found.signed) + len(found.refused) == len(tries)


@given(TRIES, st.randoms(use_true_random=False))
def test_the_order_of_envelopes_does_not_matter(tries: list[Try], chance: Any) -> None:
    envelopes = [made(one) for one in tries]
    before = came_to(*envelopes)
    chance.shuffle(envelopes)
    after = came_to(*envelopes)
    assert (before.signed, before.missing) == (after.signed, after.missing)
    assert sorted(reasons(before)) == sorted(reasons(after))


@given(TRIES, TRIES)
def test_more_envelopes_never_take_a_signature_away(few: list[Try], more: list[Try]) -> None:
    before, after = came_to(*map(made, few)), came_to(*map(made, few + more))
    assert set(named(before)) <= set(named(after))
