"""The constitution: adopted by many, addressed in full, and held against what capsules name."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import ValidationError

from domain.errors import REGISTRY
from domain.ledger import Caller
from domain.trust import constitutions
from domain.trust.constitutions import AdoptConstitution, ConstitutionTerms, constitution_wanted
from domain.trust.verification import Wanted
from tests.unit.trust.trust_maker import (
    OPERATOR,
    START,
    Trust,
    a_capsule,
    brought,
    constitution,
    constitution_terms,
    envelope,
    policy,
    policy_terms,
    story,
)


async def ready() -> Trust:
    """Adopt a policy."""
    trust = Trust()
    await trust.adopt(policy_terms())
    return trust


@story
async def test_a_constitution_is_adopted_by_the_threshold_and_is_in_force() -> None:
    trust = await ready()
    assert await trust.constitute(names=["ada"]) == "threshold_not_met"
    assert await trust.constitute(names=["ada", "mallory"]) == "threshold_not_met"
    address = await trust.constitute(names=["ada", "ben"])
    found = await trust.ask(constitutions.current_constitution)
    assert (found["address"], found["version"], found["adopted_at"]) == (address, 1, START)
    assert found["document"]["utility"]["p_min"] == "0.6"


@story
async def test_without_signers_there_is_no_constitution_and_without_it_no_comparison() -> None:
    trust = Trust()
    terms = ConstitutionTerms.model_validate(constitution_terms())
    heard = await trust.heard(constitutions.adopt_constitution, AdoptConstitution(document=terms), OPERATOR)
    assert heard == "signer_policy_missing"
    with pytest.raises(REGISTRY["constitution_missing"]):
        await trust.ask(lambda case: constitutions.check_constitution(case, a_capsule()))


@story
async def test_what_names_another_constitution_hears_both_addresses() -> None:
    trust = await ready()
    first = await trust.constitute()
    second = await trust.constitute(2, title="What personas may do, amended")
    assert (await trust.ask(lambda case: constitutions.check_constitution(case, second)))["version"] == 2
    with pytest.raises(REGISTRY["constitution_mismatch"]) as refusal:
        await trust.ask(lambda case: constitutions.check_constitution(case, first))
    assert refusal.value.facts == {"expected": second, "found": first}


@pytest.mark.parametrize("version", [1, 3])
@story
async def test_versions_follow_each_other_without_a_gap(version: int) -> None:
    trust = await ready()
    await trust.constitute()
    assert await trust.constitute(version) == "constitution_invalid"


@story
async def test_votes_for_a_policy_or_another_text_adopt_no_constitution() -> None:
    trust = await ready()
    document = constitution()
    address = document.sealed()[1]
    current = policy().address
    for wanted in [
        Wanted("policy", address, current),
        constitution_wanted(constitution(title="Another").sealed()[1], current),
        constitution_wanted(address, a_capsule()),
        Wanted("constitution", address, current, constitution=address),
    ]:
        votes = [brought(envelope(wanted, name)) for name in ("ada", "ben")]
        command = AdoptConstitution(
            document=ConstitutionTerms.model_validate(constitution_terms()), envelopes=votes
        )
        assert await trust.heard(constitutions.adopt_constitution, command, OPERATOR) == "threshold_not_met"


@story
async def test_a_document_larger_than_its_limit_is_refused() -> None:
    trust = await ready()
    articles = [{"title": f"{n}", "text": "x" * 4_000} for n in range(9)]
    assert await trust.constitute(articles=articles) == "constitution_invalid"


@pytest.mark.parametrize("role", ["owner", "provider", "reviewer", "signer", "auditor", "service"])
def test_only_operators_adopt(role: str) -> None:
    async def scene() -> str:
        trust = await ready()
        terms = ConstitutionTerms.model_validate(constitution_terms())
        caller = Caller("x", "platform", frozenset([role]))
        return await trust.heard(constitutions.adopt_constitution, AdoptConstitution(document=terms), caller)

    assert asyncio.run(scene()) == "forbidden"


UTILITY = constitution_terms()["utility"]


@pytest.mark.parametrize(
    "terms",
    [
        {"title": ""},
        {"title": "   "},
        {"articles": []},
        {"articles": [{"title": "a", "text": ""}]},
        {"utility": UTILITY | {"lam": 1}},
        {"utility": UTILITY | {"lam": "-1"}},
        {"utility": UTILITY | {"lam": "1e3"}},
        {"utility": UTILITY | {"lam": "01"}},
        {"utility": UTILITY | {"p_min": "0"}},
        {"utility": UTILITY | {"p_min": "0.0"}},
        {"utility": UTILITY | {"p_min": "1.1"}},
        {"utility": UTILITY | {"more": "1"}},
        {"schema": "soma/constitution/2"},
        {"more": 1},
    ],
    ids=repr,
)
def test_terms_outside_their_bounds_are_no_constitution(terms: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ConstitutionTerms.model_validate(constitution_terms(**terms))


@pytest.mark.parametrize(
    "terms",
    [
        {"title": "Another"},
        {"articles": [{"title": "Truth", "text": "A persona says what it likes."}]},
        *({"utility": UTILITY | {name: "0.123"}} for name in UTILITY),
    ],
    ids=repr,
)
def test_every_member_is_in_the_address(terms: dict[str, Any]) -> None:
    assert constitution(**terms).sealed()[1] != constitution().sealed()[1]


def test_two_versions_of_one_text_have_two_addresses() -> None:
    assert constitution(1).sealed()[1] != constitution(2).sealed()[1]
