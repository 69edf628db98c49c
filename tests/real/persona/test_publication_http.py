"""From a draft to the catalogue and back, over HTTP: with the real policies, the real inspection, and the watch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import httpx
import msgspec
import pytest

from domain.ledger import Caller
from domain.trust.keys import key_text
from domain.trust.verification import Statement, sign_statement
from tests.real.persona.capsule_world import AUDITOR, OLIVIA, OPERATOR, RIVAL, CapsuleWorld, made
from tests.real.service import Service
from tests.unit.persona.capsule_maker import Capsule
from tests.unit.trust.trust_maker import key_of, sent

REVIEWER = Caller("rita", "platform", frozenset({"reviewer"}))
SIGNER = Caller("sid", "platform", frozenset({"signer"}))
OTHER_OPERATOR = Caller("opal", "platform", frozenset({"operator"}))
WAIT_S_MAX = 60.0


class Stage:
    """What the people around a capsule do, each with a token of their own."""

    def __init__(self, world: CapsuleWorld) -> None:
        self.world = world
        self.clients = {
            who: world.client(who)
            for who in (OLIVIA, RIVAL, OPERATOR, OTHER_OPERATOR, REVIEWER, SIGNER, AUDITOR)
        }

    def post(self, who: Caller, path: str, body: Any = None) -> httpx.Response:
        return self.clients[who].post(path, json={} if body is None else body)

    def get(self, who: Caller, path: str) -> httpx.Response:
        return self.clients[who].get(path)

    def exported(self, capsule: Capsule) -> str:
        """Export a capsule; give its path."""
        self.world.prepare(capsule)
        assert self.world.export(capsule)["status"] == "completed"
        return f"/v1/capsules/{capsule.address}"

    def inspected(self, path: str) -> dict[str, Any]:
        """Submit a capsule and wait for its inspection."""
        answer = self.post(OLIVIA, f"{path}/submit")
        assert answer.status_code == 202, answer.text
        return until(lambda: self.get(OLIVIA, path).json(), lambda found: found["status"] != "submitted")

    def approved(self, capsule: Capsule, notes: str = "") -> None:
        decision = {"decision": "approve", "notes": notes}
        answer = self.post(REVIEWER, f"/v1/reviews/{capsule.address}/decisions", decision)
        assert answer.status_code == 200, answer.text

    def signed(self, capsule: Capsule, *names: str) -> None:
        request = self.get(SIGNER, f"/v1/signings/{capsule.address}/request").json()
        assert request["statement"]["capsule"] == capsule.address
        statement = msgspec.convert(request["statement"], Statement)
        envelope = sent(sign_statement(statement, *(key_of(name) for name in names)))
        answer = self.post(SIGNER, f"/v1/signings/{capsule.address}/signatures", {"envelope": envelope})
        assert answer.status_code == 200, answer.text


def until(read: Callable[[], Any], is_so: Callable[[Any], bool]) -> Any:
    """Read until it is so."""
    end = time.monotonic() + WAIT_S_MAX
    while not is_so(found := read()):
        assert time.monotonic() < end, found
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def stage(service: Service) -> Iterator[Stage]:
    world = CapsuleWorld(service)
    world.found()
    opened = Stage(world)
    yield opened
    for client in opened.clients.values():
        client.close()


def test_a_persona_goes_from_a_draft_to_the_catalogue_and_back(stage: Stage) -> None:
    capsule = stage.world.capsule("harbour-pilot", items=40)
    path = stage.exported(capsule)
    assert stage.post(OLIVIA, f"{path}/publish").json()["code"] == "invalid_status_transition"
    found = stage.inspected(path)
    assert (found["scan"]["verdict"], found["evaluation"]["passed"]) == ("pass", True)
    assert (
        stage.get(RIVAL, path).status_code
        == stage.get(RIVAL, "/v1/personas/harbour-pilot").status_code
        == 404
    )
    looked = stage.get(OLIVIA, f"{path}/preflight").json()
    assert [one["code"] for one in looked["missing"]] == [
        "not_approved",
        "threshold_not_met",
        "policy_denied",
    ]
    stage.approved(capsule)
    stage.signed(capsule, "ada")
    refused = stage.post(OLIVIA, f"{path}/publish")
    assert (refused.status_code, refused.json()["code"]) == (422, "threshold_not_met")
    assert "ben" in refused.json()["details"]["missing"]
    stage.signed(capsule, "ben")
    assert stage.get(REVIEWER, f"{path}/preflight").json()["publishable"] is True
    answer = stage.post(OLIVIA, f"{path}/publish")
    assert (answer.status_code, answer.json()["status"]) == (200, "published")

    told_once = stage.clients[OLIVIA].patch("/v1/personas/harbour-pilot", json={"summary": "late"})
    assert told_once.json()["code"] == "invalid_status_transition"
    persona = stage.get(RIVAL, "/v1/personas/harbour-pilot").json()
    assert (persona["status"], persona["published"]["capsule"]) == ("listed", capsule.address)
    listed = stage.get(RIVAL, "/v1/personas").json()["items"]
    assert "harbour-pilot" in [one["persona_id"] for one in listed]
    assert stage.get(RIVAL, path).json()["manifest"] == capsule.manifest.document()
    assert stage.get(RIVAL, f"{path}/timeline").status_code == 404
    told = [one["event"] for one in stage.get(AUDITOR, f"{path}/timeline").json()["entries"]]
    assert told == ["exported", "submitted", "scanned", "evaluated", "published"]
    assert stage.get(RIVAL, f"{path}/archive").status_code == 200

    assert stage.post(OPERATOR, f"{path}/suspend", {"reason": "a doubt"}).status_code == 200
    assert stage.get(RIVAL, f"{path}/archive").json()["code"] == "capsule_suspended"
    assert stage.post(OPERATOR, f"{path}/reinstate", {"reason": "none"}).json()["code"] == "forbidden"
    assert stage.post(OTHER_OPERATOR, f"{path}/reinstate", {"reason": "none"}).status_code == 200
    revoked = stage.post(OPERATOR, f"{path}/revoke", {"reason": "harm", "rentals": "end"})
    assert (revoked.status_code, revoked.json()["rentals"]) == (200, "end")
    assert stage.get(RIVAL, "/v1/personas/harbour-pilot").json()["status"] == "revoked"
    attestations = stage.world.attestations(capsule.address)
    imported = stage.world.import_(capsule.archive(), attestations)
    assert imported["problem"]["code"] == "capsule_revoked"


def test_the_version_of_a_persona_is_its_etag_and_guards_its_changes(stage: Stage) -> None:
    olivia = stage.clients[OLIVIA]
    made_ = olivia.post("/v1/personas", json={"persona_id": "guarded-one", "display_name": "Guarded"})
    assert (made_.status_code, made_.headers["etag"]) == (201, '"1"')
    path = "/v1/personas/guarded-one"
    changed = olivia.patch(path, json={"summary": "one"}, headers={"If-Match": made_.headers["etag"]})
    assert (changed.status_code, changed.headers["etag"]) == (200, '"2"')
    late = olivia.patch(path, json={"summary": "two"}, headers={"If-Match": '"1"'})
    assert (late.status_code, late.json()["code"]) == (412, "version_mismatch")
    assert olivia.get(path).headers["etag"] == '"2"'
    assert stage.get(RIVAL, path).json()["code"] == "persona_not_found"


def test_a_name_that_holds_nul_is_the_name_of_nothing(stage: Stage) -> None:
    refused = stage.post(OLIVIA, "/v1/exports", {"persona_id": "tax\0advisor", "manifest": {}})
    assert (refused.status_code, refused.json()["code"]) == (404, "persona_not_found")
    attempt = stage.get(OLIVIA, "/v1/exports?status=refused").json()["items"][0]
    assert (attempt["persona_id"], attempt["problem"]["code"]) == ("tax\ufffdadvisor", "persona_not_found")


def test_an_idempotency_key_publishes_once(stage: Stage) -> None:
    capsule = stage.world.capsule("keyed-one", items=40)
    path = stage.exported(capsule)
    stage.inspected(path)
    stage.approved(capsule)
    stage.signed(capsule, "ada", "ben")
    key = {"Idempotency-Key": "publish-1"}
    first, second = (stage.clients[OLIVIA].post(f"{path}/publish", headers=key) for _ in range(2))
    assert (first.json()["receipt"]["repeated"], second.json()["receipt"]["repeated"]) == (False, True)
    assert first.json()["receipt"]["position"] == second.json()["receipt"]["position"]


FIRST_CLOSED = {
    (False, False, False): "not_approved", (False, False, True): "not_approved",
    (False, True, False): "threshold_not_met", (False, True, True): "policy_denied",
    (True, False, False): "not_approved", (True, False, True): "not_approved",
    (True, True, False): "threshold_not_met", (True, True, True): "ok",
}  # fmt: skip


@pytest.mark.parametrize("there", list(product([False, True], repeat=3)), ids=str)
def test_the_real_policy_approvals_and_signatures_are_needed_all_three(
    stage: Stage, there: tuple[bool, bool, bool]
) -> None:
    is_allowed, is_approved, is_signed = there
    name = "combination-" + "".join("ny"[held] for held in there)

    def with_admin_scope(document: dict[str, Any]) -> None:
        document["tools"][0]["access_scope"] = "admin"

    capsule = stage.world.capsule(name, items=20, change=with_admin_scope)
    path = stage.exported(capsule)
    stage.inspected(path)
    if is_approved:
        # The policy asks that an approval names a tool that reaches so far.
        stage.approved(capsule, "calculator may do that" if is_allowed else "looks fine")
    stage.signed(capsule, *(("ada", "ben") if is_signed else ("ada",)))
    answer = stage.post(OLIVIA, f"{path}/publish")
    code = FIRST_CLOSED[there]
    assert answer.status_code == (200 if code == "ok" else 422)
    assert code in ("ok", answer.json().get("code"))
    listed = stage.get(RIVAL, f"/v1/personas?q={name}").json()["items"]
    assert bool(listed) is all(there)


def test_a_claim_is_decided_by_operators_and_ends_a_capsule(stage: Stage) -> None:
    capsule = stage.world.capsule("claimed-one", items=40)
    path = stage.exported(capsule)
    body = {"right": "copyright", "reason": "these are our texts", "asks_suspension": True}
    assert stage.post(RIVAL, f"{path}/claims", body).status_code == 404
    stage.inspected(path)
    stage.approved(capsule)
    stage.signed(capsule, "ada", "ben")
    assert stage.post(OLIVIA, f"{path}/publish").status_code == 200
    claim = made(stage.clients[RIVAL], f"{path}/claims", body)
    claims = f"/v1/claims/{claim['id']}"
    assert stage.get(OLIVIA, claims).json()["status"] == "open"
    with stage.world.client(RIVAL._replace(subject="tom", tenant="third")) as third:
        assert third.get(claims).status_code == 404
        assert third.get("/v1/claims").json()["items"] == []
    assert stage.post(OLIVIA, f"{claims}/reject", {"resolution": "no"}).status_code == 403
    assert (
        stage.post(OPERATOR, f"{claims}/review", {"suspend": True, "rentals": "let_run"}).status_code == 200
    )
    assert stage.get(OLIVIA, path).json()["status"] == "suspended"
    upheld = stage.post(OPERATOR, f"{claims}/uphold", {"resolution": "they are"})
    assert (upheld.status_code, upheld.json()["status"]) == (200, "upheld")
    ended = stage.get(RIVAL, path).json()
    assert (ended["status"], ended["rentals"], ended["claims"]) == ("revoked", "end", [])


def test_a_revoked_key_is_noticed_by_itself_and_new_signatures_are_too(
    service: Service, stage: Stage
) -> None:
    capsule = stage.world.capsule("trusted-one", items=40)
    path = stage.exported(capsule)
    stage.inspected(path)
    stage.approved(capsule)
    stage.signed(capsule, "ada", "cleo")
    assert stage.post(OLIVIA, f"{path}/publish").status_code == 200
    body = {"public_key": key_text(key_of("cleo").public_key), "reason": "stolen"}
    assert stage.post(OPERATOR, "/v1/signer-policies/publication/revocations", body).status_code == 200
    until(lambda: stage.get(RIVAL, path).json()["trust"], lambda trust: trust == "needs_signatures")
    assert stage.get(RIVAL, "/v1/personas/trusted-one").json()["published"]["trust"] == "needs_signatures"
    watch = service.app.state.trust_watch
    swept = until(lambda: service.run(watch.sweep()), lambda lost: lost is None)
    assert swept is None, "what was swept is swept again"
    assert stage.post(OLIVIA, f"/v1/signings/{capsule.address}/reopen").status_code == 200
    stage.signed(capsule, "ada", "ben")
    assert stage.get(RIVAL, "/v1/personas/trusted-one").json()["published"]["trust"] == "verified"
