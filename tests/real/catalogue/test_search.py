"""The catalogue over HTTP: who finds what, by which words and facets, in which order, and how it is counted."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import psycopg
import pytest

from domain.ledger import Caller
from ops import catalogue
from ops.catalogue import FACET_NAMES
from tests.real.catalogue.shelf import capsule_of, draft, listed, member, shown, submitted, unlisted
from tests.real.service import Service

STRANGER = member("lab")
OPERATOR = member("platform", "operator")
REVIEWER = member("platform", "reviewer")


def ask(
    service: Service, who: Caller = STRANGER, path: str = "/v1/catalog/list", **query: Any
) -> dict[str, Any]:
    """Search, and expect an answer."""
    with service.client(who) as client:
        answer = client.get(path, params=query)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def ids(page: dict[str, Any]) -> list[str]:
    return [one["persona_id"] for one in page["items"]]


def counted(page: dict[str, Any], facet: str) -> dict[str, int]:
    return {one["value"]: one["count"] for one in page["facets"][facet]}


async def a_shelf(rt: Any) -> None:
    """Put five personas on show, of three tenants."""
    await listed(rt, "tax-adviser", domains=["finance", "tax"], summary="Fills in forms, patiently.")
    await listed(
        rt,
        "night-nurse",
        "clinic",
        domains=["health"],
        summary="Answers patients' questions about taxes too.",
        listing={"compliance": {"badge": "warnings", "notes": ["one finding"]}},
    )
    await listed(
        rt,
        "bookkeeper",
        domains=["finance"],
        listing={
            "pricing": [
                {
                    "model": "purchase",
                    "price": {"amount": "40", "currency": "EUR"},
                    "billing_period_minutes": None,
                }
            ]
        },
    )
    await listed(
        rt,
        "travel-clerk",
        "agency",
        domains=["travel"],
        listing={
            "model": {"model_box_id": "box-2", "provider": "south"},
            "tools": [{"tool": "mail", "access_scope": "write"}, {"tool": "search", "access_scope": "read"}],
        },
    )
    await listed(
        rt, "old-clerk", "agency", domains=["travel", "finance"], listing={"degraded": ["model_price_rise"]}
    )


@pytest.fixture
def shelf(service: Service) -> Service:
    service.run(a_shelf(service.runtime))
    return service


class TestFinding:
    def test_words_are_found_in_any_form_those_in_names_first(self, shelf: Service) -> None:
        assert ids(ask(shelf, q="taxes")) == ["tax-adviser", "night-nurse"]
        assert ids(ask(shelf, q="taxes", sort="newest")) == ["night-nurse", "tax-adviser"]
        assert ids(ask(shelf, q="taxes -patient")) == []
        assert ids(ask(shelf, q='"fills in forms"')) == ["tax-adviser"]
        assert ids(ask(shelf, q="nurse or bookkeeper")) == ["bookkeeper", "night-nurse"]

    def test_a_word_nobody_says_finds_nobody(self, shelf: Service) -> None:
        found = ask(shelf, q="quux")
        assert (found["items"], found["total"], found["next"]) == ([], 0, None)
        assert not any(found["facets"].values())

    def test_values_of_a_facet_are_alternatives_and_facets_all_hold(self, shelf: Service) -> None:
        assert ids(ask(shelf, domain=["tax", "travel"])) == ["old-clerk", "travel-clerk", "tax-adviser"]
        assert ids(ask(shelf, domain=["tax", "travel"], tenant="agency")) == ["old-clerk", "travel-clerk"]
        assert ids(ask(shelf, domain="finance", tenant="agency", q="clerk")) == ["old-clerk"]

    def test_every_facet_narrows(self, shelf: Service) -> None:
        wanted = {
            "domain": "health", "status": "degraded", "badge": "warnings", "degraded": "model_price_rise",
            "pricing": "purchase", "currency": "EUR", "provider": "south", "model": "box-2", "tool": "mail",
            "scope": "write", "tenant": "clinic",
        }  # fmt: skip
        for facet, value in wanted.items():
            assert len(ids(ask(shelf, **{facet: value}))) == 1, facet
        for facet, value in {"review": "approved", "trust": "verified", "embedding": "hashed"}.items():
            assert len(ids(ask(shelf, **{facet: value}))) == 5, facet
        assert {*wanted, "review", "trust", "embedding"} == set(FACET_NAMES)

    def test_both_paths_answer_alike(self, shelf: Service) -> None:
        assert ask(shelf, path="/v1/personas") == ask(shelf)


class TestCounting:
    def test_a_facet_that_is_filtered_by_is_counted_as_if_it_were_not(self, shelf: Service) -> None:
        found = ask(shelf, domain="tax")
        assert found["total"] == 1
        assert counted(found, "domain") == {"finance": 3, "travel": 2, "health": 1, "tax": 1}
        assert counted(found, "pricing") == {"rental": 1}

    def test_counts_are_of_everything_found_and_not_of_the_page(self, shelf: Service) -> None:
        found = ask(shelf, limit=1)
        assert len(found["items"]) == 1
        assert found["total"] == 5
        assert counted(found, "status") == {"listed": 4, "degraded": 1}

    def test_counts_agree_with_what_is_found_by_each_value(self, shelf: Service) -> None:
        for query in ({}, {"domain": "finance"}, {"q": "clerk"}, {"q": "tax", "badge": "verified"}):
            found = ask(shelf, **query)
            for facet, values in found["facets"].items():
                for one in values:
                    assert ask(shelf, **query | {facet: one["value"]})["total"] == one["count"], (
                        query,
                        facet,
                        one,
                    )

    def test_later_pages_are_not_counted_unless_asked(self, shelf: Service) -> None:
        first = ask(shelf, limit=2)
        second = ask(shelf, limit=2, cursor=first["next"])
        assert (second["total"], second["facets"]) == (None, None)
        assert ask(shelf, limit=2, cursor=first["next"], counts=True)["total"] == 5
        assert ask(shelf, counts=False)["facets"] is None


class TestPages:
    @pytest.mark.parametrize(
        "query", [{}, {"sort": "name"}, {"q": "finance or travel"}, {"domain": "finance"}]
    )
    def test_pages_hold_everybody_once_in_the_order_of_one_page(
        self, shelf: Service, query: dict[str, Any]
    ) -> None:
        whole = ids(ask(shelf, **query))
        gathered: list[str] = []
        cursor: dict[str, str] = {}
        while cursor is not None:
            page = ask(shelf, limit=1, **query, **cursor)
            gathered += ids(page)
            cursor = {"cursor": page["next"]} if page["next"] else None  # type: ignore[assignment]
        assert gathered == whole
        assert len(set(whole)) == len(whole) > 1

    def test_names_are_in_order(self, shelf: Service) -> None:
        assert ids(ask(shelf, sort="name")) == sorted(ids(ask(shelf)))

    @pytest.mark.parametrize(
        "cursor",
        ["x", "WyJuZXdlc3QiXQ==", "WyJuZXdlc3QiLDAsIm5vdyIsIngiXQ==", "WyJuYW1lIiwwLCJhIiwiYiJd", "%00"],
    )
    def test_a_cursor_of_nobodys_making_or_of_another_order_is_refused(
        self, shelf: Service, cursor: str
    ) -> None:
        with shelf.client(STRANGER) as client:
            answer = client.get("/v1/catalog/list", params={"cursor": cursor})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_cursor")


class TestSeeing:
    def test_strangers_see_what_is_on_show_and_owners_their_drafts_too(self, shelf: Service) -> None:
        shelf.run(draft(shelf.runtime, "secret-plan"))
        assert "secret-plan" not in ids(ask(shelf))
        assert ask(shelf, q="secret")["total"] == 0
        assert "draft" not in counted(ask(shelf), "status")
        assert ids(ask(shelf, member("acme"), status="draft")) == ["secret-plan"]
        assert ids(ask(shelf, OPERATOR, status="draft")) == ["secret-plan"]
        assert ids(ask(shelf, member("platform", "auditor"), status="draft")) == ["secret-plan"]

    def test_reviewers_of_the_platform_see_what_waits_for_them(self, shelf: Service) -> None:
        shelf.run(draft(shelf.runtime, "secret-plan"))
        shelf.run(draft(shelf.runtime, "other-plan"))
        shelf.run(submitted(shelf.runtime, "other-plan"))
        assert ids(ask(shelf, REVIEWER, status="draft")) == ["other-plan"]
        assert ids(ask(shelf, REVIEWER, review="pending")) == ["other-plan"]
        assert ids(ask(shelf, member("clinic", "reviewer"), status="draft")) == []

    @pytest.mark.parametrize("status", ["withdrawn", "revoked", "suspended"])
    def test_what_is_no_longer_published_is_its_tenants_alone(self, shelf: Service, status: str) -> None:
        shelf.run(unlisted(shelf.runtime, "night-nurse", status, "clinic"))
        assert "night-nurse" not in ids(ask(shelf))
        assert ask(shelf)["total"] == 4
        assert ids(ask(shelf, member("clinic"), status=status)) == ["night-nurse"]

    def test_a_card_says_what_was_reviewed_and_what_it_costs(self, shelf: Service) -> None:
        (card,) = ask(shelf, q="night nurse")["items"]
        assert card["attestation_hash"] == capsule_of("night-nurse", "1.0.0")
        assert card["compliance"] == {"badge": "warnings", "notes": ["one finding"]}
        assert (card["review"], card["trust"], card["version"]) == ("approved", "verified", "1.0.0")
        assert card["pricing"][0]["price"] == {"amount": "2", "currency": "USD"}

    def test_strangers_see_no_version_that_was_never_published(self, shelf: Service) -> None:
        shelf.run(submitted(shelf.runtime, "night-nurse", "clinic", "2.0.0"))
        for who, versions in (
            (STRANGER, ["1.0.0"]),
            (member("clinic"), ["1.0.0", "2.0.0"]),
            (REVIEWER, ["1.0.0", "2.0.0"]),
        ):
            (card,) = ask(shelf, who, q="night nurse")["items"]
            assert [v["version"] for v in card["versions"]] == versions
            assert card["version"] == "1.0.0"

    def test_nobody_searches_without_a_token(self, shelf: Service) -> None:
        with shelf.client() as client:
            assert client.get("/v1/catalog/list").status_code == 401
            assert client.get("/v1/catalog/schema").status_code == 401


async def restarted(shelf: Service) -> None:
    """Let the catalogue read again what a process reads at its start."""
    found = shelf.app.state.catalogue
    await found.close()
    found.start()
    await found._warming


class TestFollowing:
    def test_every_change_is_in_the_next_answer(self, shelf: Service) -> None:
        assert ask(shelf, q="clerk", provider="south")["total"] == 1
        shelf.run(shown(shelf.runtime, "old-clerk", "agency", version="1.1.0",
                        model={"model_box_id": "box-2", "provider": "south"}))  # fmt: skip
        found = ask(shelf, q="clerk")
        assert counted(found, "provider") == {"south": 2}
        assert counted(found, "status") == {"listed": 2}
        shelf.run(listed(shelf.runtime, "third-clerk", summary="brand new"))
        assert ids(ask(shelf, q="clerk"))[0] == "third-clerk"
        assert ask(shelf, q="clerk")["total"] == 3

    def test_words_that_many_say_are_kept_and_kept_up_to_date(
        self, shelf: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(catalogue, "TEXT_KEYS_MIN", 1)
        monkeypatch.setattr(catalogue, "TEXTS_MAX", 2)
        for word, total in (("clerk", 2), ("tax", 2), ("finance", 3), ("clerk", 2)):
            assert ask(shelf, q=word)["total"] == total
        shelf.run(listed(shelf.runtime, "third-clerk"))
        shelf.run(shown(shelf.runtime, "old-clerk", "agency", display_name="Pensioner", summary="",
                        domains=["travel"]))  # fmt: skip
        assert ask(shelf, q="clerk")["total"] == 3, "the id still says it"
        assert ask(shelf, q="finance")["total"] == 2
        assert ask(shelf, q="pensioner")["total"] == 1

    def test_a_process_reads_at_its_start_what_most_say(
        self, shelf: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(catalogue, "TEXT_KEYS_MIN", 2)
        with psycopg.connect(shelf.runtime.url, autocommit=True) as connection:
            connection.execute("ANALYZE catalogue")
        shelf.run(restarted(shelf))
        kept = shelf.app.state.catalogue._texts
        assert {"'clerk'", "'tax'"} <= set(kept)
        shelf.run(listed(shelf.runtime, "third-clerk", summary="a 'quoted' word"))
        assert ask(shelf, q="clerk")["total"] == 3
        assert ask(shelf, q="clerk tax")["total"] == 0
        assert ask(shelf, q="third CLERKS")["total"] == 1

    def test_more_changes_than_are_taken_up_one_by_one_are_read_anew(
        self, shelf: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert ask(shelf)["total"] == 5
        monkeypatch.setattr(catalogue, "CHANGES_MAX", 1)
        for name in ("first-more", "second-more", "third-more"):
            shelf.run(listed(shelf.runtime, name))
        assert ask(shelf)["total"] == 8

    def test_memory_agrees_with_the_table_after_many_changes(self, shelf: Service) -> None:
        ask(shelf)
        for number in range(70):
            shelf.run(listed(shelf.runtime, f"clerk-{number}", domains=[f"kind-{number % 7}"]))
            if number % 10 == 0:
                ask(shelf)
        found = ask(shelf, OPERATOR)
        with psycopg.connect(shelf.runtime.url) as connection:
            rows = connection.execute("SELECT facets FROM catalogue").fetchall()
        table = Counter(word for (words,) in rows for word in words)
        assert found["total"] == len(rows) == 75
        for facet in found["facets"]:
            said = {f"{facet}:{value}": count for value, count in counted(found, facet).items()}
            assert said == {word: n for word, n in table.items() if word.startswith(f"{facet}:")}


class TestAsking:
    @pytest.mark.parametrize(
        ("query", "code"),
        [
            ({"colour": "red"}, "unknown_field"),
            ({"sort": "price"}, "invalid_field"),
            ({"limit": 0}, "invalid_field"),
            ({"domain": [str(n) for n in range(21)]}, "invalid_field"),
            ({"q": "a\x00b"}, "invalid_field"),
            ({"domain": ""}, "invalid_field"),
        ],
    )
    def test_what_cannot_be_searched_by_is_refused(
        self, shelf: Service, query: dict[str, Any], code: str
    ) -> None:
        with shelf.client(STRANGER) as client:
            answer = client.get("/v1/catalog/list", params=query)
        assert (answer.status_code, answer.json()["code"]) == (400, code)

    @pytest.mark.parametrize(
        "q", ["'", "!!!", "a & | !", "\\", "%", "-", '"', "(", "or or", " ", "тест", "日本"]
    )
    def test_odd_words_are_only_words(self, shelf: Service, q: str) -> None:
        assert ask(shelf, q=q)["total"] in (0, 5)


class TestDiscovery:
    def test_the_schema_lists_every_facet_with_the_values_there_are(self, shelf: Service) -> None:
        schema = ask(shelf, path="/v1/catalog/schema")
        assert [facet["name"] for facet in schema["facets"]] == list(FACET_NAMES)
        by_name = {f["name"]: {v["value"]: v["count"] for v in f["values"]} for f in schema["facets"]}
        assert by_name["domain"] == {"finance": 3, "travel": 2, "health": 1, "tax": 1}
        assert by_name["badge"] == {"verified": 4, "warnings": 1, "override": 0}
        assert schema["total"] == 5

    def test_the_schema_names_the_members_a_card_has(self, shelf: Service) -> None:
        schema = ask(shelf, path="/v1/catalog/schema")
        for card in ask(shelf)["items"]:
            assert set(card) == {field["name"] for field in schema["fields"]}

    def test_every_facet_of_the_schema_is_a_parameter_of_the_search(self, shelf: Service) -> None:
        for facet in ask(shelf, path="/v1/catalog/schema")["facets"]:
            ask(shelf, **{facet["name"]: "anything"})
        for sort in ask(shelf, path="/v1/catalog/schema")["sorts"]:
            ask(shelf, sort=sort["name"])

    def test_every_action_is_a_request_the_service_answers_to(self, shelf: Service) -> None:
        paths = ask(shelf, path="/openapi.json")["paths"]
        for action in ask(shelf, path="/v1/catalog/schema")["actions"]:
            shape = re.sub(r"{\w+}", "{}", action["path"])
            there = {re.sub(r"{\w+}", "{}", path): set(methods) for path, methods in paths.items()}
            assert action["method"].lower() in there[shape], action

    def test_actions_are_told_by_the_roles_of_who_asks(self, shelf: Service) -> None:
        allowed = {}
        for role in ("owner", "reviewer", "signer", "operator", "auditor", "billing"):
            schema = ask(shelf, member("platform", role), "/v1/catalog/schema")
            allowed[role] = {action["name"] for action in schema["actions"] if action["allowed"]}
            assert all(action["roles"] and action["meaning"] for action in schema["actions"])
        assert {"create", "export", "submit", "publish", "claim"} <= allowed["owner"]
        assert not {"decide", "sign", "revoke"} & allowed["owner"]
        assert {"decide"} <= allowed["reviewer"]
        assert {"sign"} <= allowed["signer"]
        assert not {"publish", "decide", "create"} & allowed["signer"]
        assert {"revoke", "reinstate", "uphold a claim"} <= allowed["operator"]
        assert allowed["billing"] == set()
