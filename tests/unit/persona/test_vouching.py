"""Who vouches for a capsule, offline: what travels beside an archive is believed only as far as its signatures go."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from domain.errors import (
    AttestationsMalformedError,
    CapsuleTamperedError,
    ConstitutionMismatchError,
    EnvelopeMalformedError,
    LedgerError,
    SignatureRefusedError,
)
from domain.persona.vouching import vouched
from domain.trust.dsse import Envelope
from domain.trust.signatures import PURPOSE
from domain.trust.verification import Verification, Wanted
from tests.unit.persona.capsule_maker import Capsule, a_capsule
from tests.unit.trust.trust_maker import (
    FAR,
    LATER,
    VALID_UNTIL,
    constitution,
    envelope,
    key_of,
    pin,
    policy,
    sent,
)

CONSTITUTION = constitution()
NAMED = CONSTITUTION.sealed()[1]
POLICY = policy()
Sent = dict[str, Any]


def capsule(**how: Any) -> Capsule:
    """Make a capsule under the constitution of these tests."""
    return a_capsule(constitution=NAMED, **how)


def wanted(sealed: Capsule, under: str = POLICY.address) -> Wanted:
    return Wanted(PURPOSE, sealed.address, under, NAMED)


def beside(sealed: Capsule, *envelopes: Envelope) -> Sent:
    """Write what travels beside a capsule."""
    return {
        "schema": "soma/attestations/1",
        "capsule": sealed.address,
        "policy": msgspec.to_builtins(POLICY),
        "constitution": msgspec.to_builtins(CONSTITUTION),
        "envelopes": [sent(one) for one in envelopes],
    }


def honest(sealed: Capsule) -> Sent:
    return beside(sealed, envelope(wanted(sealed), "ada"), envelope(wanted(sealed), "ben"))


def judged(sealed: Capsule, given: Any, under: str = POLICY.address, now: str = LATER) -> Verification:
    return vouched(sealed.manifest, given, under, now)


def names(found: Verification) -> tuple[list[str], list[str], list[str]]:
    """Give who signed, who is missing, and why others do not count."""
    return [one.name for one in found.signed], found.missing, [one.reason for one in found.refused]


def test_enough_signatures_under_the_trusted_policy_verify() -> None:
    found = judged(capsule(), honest(capsule()))
    assert found.verified
    assert names(found) == (["ada", "ben"], ["cleo"], [])


def test_one_envelope_with_two_signatures_is_as_good_as_two_envelopes() -> None:
    sealed = capsule()
    assert judged(sealed, beside(sealed, envelope(wanted(sealed), "cleo", "ben"))).verified


class TestThresholds:
    def test_stripped_signatures_are_missing(self) -> None:
        given = honest(capsule())
        given["envelopes"].pop()
        found = judged(capsule(), given)
        assert (found.verified, names(found)) == (False, (["ada"], ["ben", "cleo"], []))

    def test_without_any_everybody_is_missing(self) -> None:
        found = judged(capsule(), beside(capsule()))
        assert (found.verified, found.missing) == (False, ["ada", "ben", "cleo"])

    def test_one_key_twice_counts_once(self) -> None:
        sealed = capsule()
        once, again = envelope(wanted(sealed), "ada"), envelope(wanted(sealed), "ada", not_after=VALID_UNTIL)
        found = judged(sealed, beside(sealed, once, once, again))
        assert (found.verified, names(found)) == (False, (["ada"], ["ben", "cleo"], ["duplicate_key"] * 2))

    def test_one_key_under_two_ids_counts_once(self) -> None:
        sealed = capsule()
        given = beside(sealed, envelope(wanted(sealed), "ada"), envelope(wanted(sealed), "ada"))
        for keyid in (pin("ben")["public_key"], "ben", "", "an id of its own"):
            given["envelopes"][1]["signatures"][0]["keyid"] = keyid
            found = judged(sealed, given)
            assert (found.verified, names(found)) == (False, (["ada"], ["ben", "cleo"], ["duplicate_key"]))

    def test_a_lowered_threshold_is_another_policy(self) -> None:
        given = honest(capsule())
        given["envelopes"].pop()
        given["policy"]["threshold"] = 1
        with pytest.raises(LedgerError) as refused:
            judged(capsule(), given)
        assert refused.value.facts["reason"] == "wrong_policy"

    def test_more_signatures_than_are_counted_are_refused_before_any_is_checked(self) -> None:
        sealed = capsule()
        many = beside(sealed, envelope(wanted(sealed), "ada"))
        many["envelopes"][0]["signatures"] *= 16
        many["envelopes"] *= 8
        with pytest.raises((EnvelopeMalformedError, AttestationsMalformedError)):
            judged(sealed, many)


class TestSigners:
    def test_a_stranger_counts_for_nothing(self) -> None:
        sealed = capsule()
        given = beside(sealed, envelope(wanted(sealed), "ada"), envelope(wanted(sealed), "mallory"))
        assert names(judged(sealed, given)) == (["ada"], ["ben", "cleo"], ["unknown_key"])

    def test_a_stranger_under_a_pinned_id_counts_for_nothing(self) -> None:
        sealed = capsule()
        given = beside(sealed, envelope(wanted(sealed), "ada"), envelope(wanted(sealed), "mallory"))
        given["envelopes"][1]["signatures"][0]["keyid"] = pin("ben")["public_key"]
        assert names(judged(sealed, given))[2] == ["bad_signature"]

    def test_an_owner_of_the_persona_does_not_vouch_for_it(self) -> None:
        sealed = capsule(owner="ada@platform")
        found = judged(sealed, honest(sealed))
        assert (found.verified, names(found)) == (False, (["ben"], ["cleo"], ["self_signed"]))

    def test_a_key_counts_in_its_time_only(self) -> None:
        found = judged(capsule(), honest(capsule()), now=VALID_UNTIL)
        assert not found.verified
        assert {one.reason for one in found.refused} == {"key_expired"}

    def test_a_statement_counts_until_its_day(self) -> None:
        found = judged(capsule(), honest(capsule()), now=FAR)
        assert not found.verified
        assert {one.reason for one in found.refused} == {"expired"}

    @pytest.mark.parametrize("place", range(64))
    def test_a_signature_with_a_changed_byte_counts_for_nothing(self, place: int) -> None:
        sealed = capsule()
        other = envelope(wanted(sealed), "ben")
        spoiled = bytearray(other.signatures[0].sig)
        spoiled[place] ^= 1
        changed = msgspec.structs.replace(other.signatures[0], sig=bytes(spoiled))
        given = beside(
            sealed, envelope(wanted(sealed), "ada"), msgspec.structs.replace(other, signatures=[changed])
        )
        assert names(judged(sealed, given)) == (["ada"], ["ben", "cleo"], ["bad_signature"])


class TestStatements:
    def test_signatures_of_another_capsule_do_not_count(self) -> None:
        sealed, other = capsule(), capsule(version="1.0.1")
        given = beside(sealed, envelope(wanted(other), "ada"), envelope(wanted(sealed), "ben"))
        found = judged(sealed, given)
        assert (found.verified, names(found)[2]) == (False, ["wrong_statement"])

    def test_signatures_under_another_policy_do_not_count(self) -> None:
        sealed = capsule()
        before = policy(version=2)
        given = beside(sealed, *(envelope(wanted(sealed, before.address), name) for name in ("ada", "ben")))
        found = judged(sealed, given)
        assert (found.verified, set(names(found)[2])) == (False, {"wrong_policy"})

    def test_signatures_for_another_purpose_do_not_count(self) -> None:
        sealed = capsule()
        aside = Wanted("import", sealed.address, POLICY.address, NAMED)
        given = beside(sealed, envelope(aside, "ada", "ben"))
        assert set(names(judged(sealed, given))[2]) == {"wrong_statement"}

    def test_a_vote_for_a_document_is_no_vote_for_a_capsule(self) -> None:
        sealed = capsule()
        voted = Wanted("policy", sealed.address, POLICY.address)
        assert set(names(judged(sealed, beside(sealed, envelope(voted, "ada", "ben"))))[2]) == {"wrong_type"}

    def test_a_payload_of_another_type_is_no_statement(self) -> None:
        given = honest(capsule())
        given["envelopes"][0]["payloadType"] = "text/plain"
        assert names(judged(capsule(), given)) == (["ben"], ["ada", "cleo"], ["bad_signature"])

    def test_a_changed_payload_is_signed_by_nobody(self) -> None:
        given = honest(capsule())
        other = sent(envelope(wanted(capsule()), "ada", not_after=LATER))
        given["envelopes"][0]["payload"] = other["payload"]
        assert names(judged(capsule(), given))[2] == ["bad_signature"]


def swapped(**changes: Any) -> Callable[[Sent], None]:
    """Give a change of the policy that travels beside."""
    return lambda given: given["policy"].update(copy.deepcopy(changes))


def _without(name: str) -> Callable[[Sent], None]:
    return lambda given: given.pop(name)


class TestDocuments:
    @pytest.mark.parametrize(
        "change",
        [
            swapped(threshold=1),
            swapped(version=2),
            swapped(keys=[pin("mallory"), pin("trudy")]),
            swapped(keys=[pin("ada"), pin("ada", name="ben", subject="ben@platform")]),
            swapped(statement_ttl_s=60),
            lambda given: given.update(policy=[]),
        ],
    )
    def test_a_swapped_policy_is_not_the_trusted_one(self, change: Callable[[Sent], None]) -> None:
        given = honest(capsule())
        change(given)
        with pytest.raises(SignatureRefusedError) as refused:
            judged(capsule(), given)
        assert refused.value.facts["reason"] == "wrong_policy"
        assert refused.value.facts["expected"] == POLICY.address

    def test_a_forgers_own_policy_is_not_the_trusted_one(self) -> None:
        sealed = capsule()
        own = policy(("mallory", "trudy"))
        given = beside(sealed, envelope(wanted(sealed, own.address), "mallory", "trudy"))
        given["policy"] = msgspec.to_builtins(own)
        assert judged(sealed, given, own.address).verified, "whoever trusts the forger believes the forger"
        with pytest.raises(SignatureRefusedError):
            judged(sealed, given)

    def test_attestations_of_another_capsule_are_told_by_their_part(self) -> None:
        with pytest.raises(CapsuleTamperedError) as refused:
            judged(capsule(), honest(capsule(version="1.0.1")))
        assert refused.value.facts["part"] == "attestations"

    def test_another_constitution_than_the_manifest_names_is_refused(self) -> None:
        given = honest(capsule())
        given["constitution"]["title"] = "What personas get away with"
        with pytest.raises(ConstitutionMismatchError) as refused:
            judged(capsule(), given)
        assert refused.value.facts["expected"] == NAMED

    @pytest.mark.parametrize(
        "change",
        [
            *map(_without, ("schema", "capsule", "policy", "constitution", "envelopes")),
            lambda given: given.update(schema="soma/attestations/2"),
            lambda given: given.update(more=1),
            lambda given: given.update(envelopes={}),
            lambda given: given.update(policy=POLICY.address),
            lambda given: given["envelopes"].append(7),
            lambda given: given["envelopes"][0].pop("signatures"),
            lambda given: given["envelopes"][0].update(payload="not base64!"),
        ],
    )
    def test_what_has_another_form_is_refused(self, change: Callable[[Sent], None]) -> None:
        given = honest(capsule())
        change(given)
        with pytest.raises(LedgerError) as refused:
            judged(capsule(), given)
        assert refused.value.code in ("attestations_malformed", "malformed_envelope", "payload_type_unknown")

    @pytest.mark.parametrize("given", [None, [], 7, "text"])
    def test_what_is_no_object_is_refused(self, given: Any) -> None:
        with pytest.raises(AttestationsMalformedError):
            judged(capsule(), given)

    def test_a_policy_that_is_trusted_and_is_none_is_refused(self) -> None:
        from domain.canonical import sealed as seal

        strange = {"schema": "soma/signer_policy/1"}
        given = honest(capsule()) | {"policy": strange}
        with pytest.raises(AttestationsMalformedError, match="the policy in it is none"):
            judged(capsule(), given, seal("soma/signer-policy/v1", strange)[1])


def test_the_makers_sign_with_distinct_keys() -> None:
    assert len({key_of(name).public_key for name in ("ada", "ben", "cleo", "mallory", "trudy")}) == 5
