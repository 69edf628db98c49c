"""Usage over HTTP on a real database: counted once in every race, and whatever is no reading is told and set aside."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from domain.ledger import Caller
from domain.values import moment_text
from ops.dead_letters import DeadLetters, Letter
from projections.ingest import TOPIC, Intake
from tests.real.api.world import Speaker, World

RACERS = 64


def a_reading(event_id: str | None = None, **members: Any) -> dict[str, Any]:
    """Make a reading of now."""
    found = {
        "source": "gateway-eu", "event_id": event_id or uuid4().hex, "occurred_at": moment_text(datetime.now(UTC)),
        "provider": "openai", "model": "gpt-4o-mini", "tokens_in": 10, "tokens_out": 5,
    } | members  # fmt: skip
    return {name: value for name, value in found.items() if value is not ...}


def sent(speaker: Speaker, *readings: Any, **more: Any) -> dict[str, Any]:
    return speaker.made("/v1/usage", {"readings": list(readings)}, **more)


def counts(answer: dict[str, Any]) -> tuple[int, int, int]:
    return answer["inserted"], answer["duplicates"], len(answer["rejected"])


@pytest.fixture
def gateway(world: World) -> Speaker:
    """Give a program of a tenant that nobody else is in."""
    return world.speaker(f"t-{uuid4().hex[:12]}", "service")


@pytest.fixture
def stored(world: World) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(world.service.runtime.url) as conn:
        yield conn


def usage_events(conn: psycopg.Connection[Any], tenant: str) -> int:
    query = "SELECT count(*) FROM events WHERE tenant = %s AND type = 'usage.metered'"
    return conn.execute(query, [tenant]).fetchone()[0]


class TestUsage:
    def test_readings_are_taken_listed_and_shown(self, world, gateway):
        readings = [a_reading(f"e{n}", tokens_in=n) for n in range(5)]
        answer = sent(gateway, *readings, a_reading(tokens_in=-1))
        assert counts(answer) == (5, 0, 1)
        assert answer["rejected"][0]["index"] == 5
        assert answer["rejected"][0]["code"] == "invalid_field"
        assert answer["receipt"]["event_count"] == 5
        first = gateway.read("/v1/usage?limit=3")
        second = gateway.read(f"/v1/usage?limit=3&cursor={first['next']}")
        items = first["items"] + second["items"]
        assert [item["event_id"] for item in items] == ["e4", "e3", "e2", "e1", "e0"]
        assert second["next"] is None
        shown = gateway.read(f"/v1/usage/{items[0]['id']}")
        assert (shown["tokens_in"], shown["status"], shown["tenant"]) == (4, "ok", gateway.tenant)

    def test_another_tenant_neither_lists_nor_sees_them(self, world, gateway):
        sent(gateway, a_reading())
        (item,) = gateway.read("/v1/usage")["items"]
        other = world.speaker(f"t-{uuid4().hex[:12]}", "service", "owner")
        assert other.read("/v1/usage")["items"] == []
        assert other.get(f"/v1/usage?tenant={gateway.tenant}").status_code == 403
        assert other.get(f"/v1/usage/{item['id']}").json()["code"] == "usage_not_found"
        assert world.operator.read(f"/v1/usage?tenant={gateway.tenant}")["items"] == [item]

    def test_a_role_that_does_not_measure_is_refused(self, world):
        assert world.owner("lab").post("/v1/usage", {"readings": [a_reading()]}).status_code == 403

    @pytest.mark.parametrize(
        ("body", "code"),
        [({}, "missing_field"), ({"readings": []}, "invalid_field"), ([], "invalid_request"),
         ({"readings": [1], "more": 1}, "unknown_field")],
    )  # fmt: skip
    def test_a_body_of_another_shape_is_a_problem(self, gateway, body, code):
        answer = gateway.post("/v1/usage", body)
        assert (answer.status_code, answer.json()["code"]) == (400, code)

    def test_a_body_that_is_not_json_or_not_called_so_is_a_problem(self, gateway):
        for content, kind, status in [
            (b'{"readings":[NaN]}', "application/json", 400),
            (b'{"readings":[1],"readings":[2]}', "application/json", 400),
            (b"\xff", "application/json", 400),
            (b"{}", "text/plain", 415),
            (b"", "application/json", 400),
        ]:
            answer = gateway.ask("POST", "/v1/usage", content=content, headers={"Content-Type": kind})
            assert answer.status_code == status, (content, answer.text)

    def test_ten_thousand_at_once_are_taken_and_the_same_again_are_duplicates(self, gateway, stored):
        readings = [a_reading(f"e{n}") for n in range(10_000)]
        readings[2_500] = a_reading(tokens_out=...)
        readings[9_999] = readings[0]
        answer = sent(gateway, *readings, key="bulk")
        assert counts(answer) == (9_998, 1, 1)
        assert answer["rejected"][0]["index"] == 2_500
        again = sent(gateway, *readings, key="bulk")
        assert again["receipt"] == answer["receipt"] | {"repeated": True}
        assert counts(again) == (9_998, 1, 1)
        assert counts(sent(gateway, *readings)) == (0, 9_999, 1)
        assert usage_events(stored, gateway.tenant) == 9_998
        changed = gateway.post("/v1/usage", {"readings": readings[:-1]}, key="bulk")
        assert changed.json()["code"] == "idempotency_key_reused"
        readings[9_998] = a_reading()
        changed = gateway.post("/v1/usage", {"readings": readings}, key="bulk")
        assert (changed.status_code, changed.json()["code"]) == (422, "idempotency_key_reused")
        assert usage_events(stored, gateway.tenant) == 9_998
        assert gateway.post("/v1/usage", {"readings": [*readings, a_reading()]}).status_code == 400

    def test_sixty_four_senders_of_the_same_readings_insert_each_once(self, gateway, stored):
        same = [a_reading(f"e{n}") for n in range(20)]
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda _: sent(gateway, *same), range(RACERS)))
        assert sum(answer["inserted"] for answer in answers) == 20
        assert sum(answer["duplicates"] for answer in answers) == 20 * (RACERS - 1)
        assert usage_events(stored, gateway.tenant) == 20

    def test_sixty_four_senders_of_different_readings_under_one_id_insert_one(self, gateway, stored):
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda n: sent(gateway, a_reading("e", tokens_in=n)), range(RACERS)))
        assert sum(answer["inserted"] for answer in answers) == 1
        codes = [bad["code"] for answer in answers for bad in answer["rejected"]]
        assert codes == ["usage_conflict"] * (RACERS - 1)
        assert usage_events(stored, gateway.tenant) == 1

    def test_one_key_in_a_race_has_one_answer(self, gateway):
        reading = a_reading()
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda _: sent(gateway, reading, key="k"), range(RACERS)))
        assert {counts(answer) for answer in answers} == {(1, 0, 0)}
        assert sum(not answer["receipt"]["repeated"] for answer in answers) == 1


# --------------------------------------------------------------------------- dead letters


def a_letter(payload: bytes | None, **members: Any) -> Letter:
    found = {
        "kind": "message", "source": "kafka.ingest", "topic": TOPIC, "partition": 0,
        "offset": uuid4().int >> 70, "payload": payload, "code": "message_not_json", "detail": "x",
    } | members  # fmt: skip
    return Letter(**found)


class TestDeadLetters:
    @pytest.fixture
    def letters(self, world: World) -> DeadLetters:
        return DeadLetters(world.service.runtime.reader.pool)

    def added(self, world: World, letters: DeadLetters, letter: Letter) -> int:
        world.service.run(letters.add([letter]))
        (found, *_) = world.service.run(letters.list(state=None, limit=1))
        return found.id

    def test_a_letter_is_kept_once_and_each_sighting_is_counted(self, world, letters):
        odd = a_letter(
            b"\0\xff" * 40_000, key=b"\0k", detail="a\0b\ud800", headers=[("h\0", b"\0\xff"), ("n", None)]
        )
        for _ in range(3):
            name = self.added(world, letters, odd)
        found = world.service.run(letters.get(name))
        assert (found.attempts, found.payload_bytes, len(found.payload or b"")) == (3, 80_000, 65_536)
        assert not found.is_whole
        assert found.detail == "a\ufffdb?"
        assert found.headers == [("h\ufffd", "\ufffd\ufffd"), ("n", None)]
        # A topic made anew has other messages at the same offsets.
        assert self.added(world, letters, odd._replace(payload=None)) != name

    def test_only_the_platform_sees_and_settles_them(self, world, letters):
        name = self.added(world, letters, a_letter(b"{"))
        for roles in (["owner"], ["billing"], ["service", "provider"]):
            stranger = world.speaker("acme", *roles)
            assert stranger.get("/v1/dead_letters").status_code == 403
            assert stranger.get(f"/v1/dead_letters/{name}").status_code == 403
            assert stranger.post(f"/v1/dead_letters/{name}/requeue").status_code == 403
            assert stranger.post(f"/v1/dead_letters/{name}/discard", {"reason": "x"}).status_code == 403
        auditor = world.speaker("platform", "auditor")
        assert auditor.read(f"/v1/dead_letters/{name}")["payload"] == "{"
        assert auditor.post(f"/v1/dead_letters/{name}/requeue").status_code == 403
        assert world.speaker("platform", "billing").get("/v1/dead_letters").status_code == 200

    def test_a_letter_whose_reason_has_passed_is_taken_in_once(self, world, letters, gateway, stored):
        reading = a_reading("late", tenant=gateway.tenant)
        name = self.added(world, letters, a_letter(json.dumps(reading).encode(), code="usage_in_future"))
        path = f"/v1/dead_letters/{name}/requeue"
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: world.operator.post(path), range(8)))
        assert sorted({answer.status_code for answer in answers}) in ([200], [200, 409])
        assert [a.status_code for a in answers].count(200) == 1
        assert {a.json()["code"] for a in answers if a.status_code == 409} == {"dead_letter_closed"}
        assert usage_events(stored, gateway.tenant) == 1
        record = stored.execute(
            "SELECT convert_from(record, 'UTF8')::jsonb FROM events WHERE tenant = %s", [gateway.tenant]
        ).fetchone()[0]
        assert record["correlation"] == f"dead-letter-{name}"
        assert world.operator.read(f"/v1/dead_letters/{name}")["state"] == "requeued"

    def test_a_letter_that_is_still_wrong_stays_open_and_one_that_is_mended_is_taken(
        self, world, letters, gateway, stored
    ):
        wrong = a_reading("m", tenant=gateway.tenant, tokens_in="many")
        name = self.added(world, letters, a_letter(json.dumps(wrong).encode()))
        answer = world.operator.post(f"/v1/dead_letters/{name}/requeue")
        assert (answer.status_code, answer.json()["code"]) == (422, "dead_letter_not_taken")
        assert answer.json()["details"]["reason"] == "invalid_field"
        found = world.operator.read(f"/v1/dead_letters/{name}")
        assert (found["state"], found["attempts"], found["code"]) == ("open", 2, "invalid_field")
        done = world.operator.made(f"/v1/dead_letters/{name}/requeue", {"reading": wrong | {"tokens_in": 7}})
        assert (done["state"], done["note"]) == ("requeued", "mended")
        assert usage_events(stored, gateway.tenant) == 1

    def test_a_discarded_letter_is_kept_and_never_taken(self, world, letters):
        name = self.added(world, letters, a_letter(b"{}"))
        done = world.operator.made(f"/v1/dead_letters/{name}/discard", {"reason": "a test of theirs"})
        assert (done["state"], done["note"]) == ("discarded", "a test of theirs")
        again = world.operator.post(f"/v1/dead_letters/{name}/requeue")
        assert (again.status_code, again.json()["code"]) == (409, "dead_letter_closed")
        assert name not in [one["id"] for one in world.operator.read("/v1/dead_letters")["items"]]
        listed = world.operator.read("/v1/dead_letters?state=discarded&limit=1")["items"]
        assert [one["id"] for one in listed] == [name]

    def test_a_projection_is_put_right_by_a_rebuild_and_not_by_requeueing(self, world, letters):
        name = self.added(world, letters, a_letter(b"{}", kind="projection", topic="clickhouse.usage"))
        answer = world.operator.post(f"/v1/dead_letters/{name}/requeue")
        assert answer.json()["code"] == "dead_letter_not_requeueable"

    def test_what_was_cut_is_not_taken_as_if_it_were_whole(self, world, letters, gateway):
        whole = json.dumps(a_reading(tenant=gateway.tenant)).encode()
        name = self.added(world, letters, a_letter(whole + b" " * 65_536))
        answer = world.operator.post(f"/v1/dead_letters/{name}/requeue")
        assert answer.json()["details"]["reason"] == "message_too_large"

    def test_an_unknown_letter_is_not_found(self, world):
        for path in ("", "/requeue"):
            answer = world.operator.ask("POST" if path else "GET", f"/v1/dead_letters/999999999{path}")
            assert answer.json()["code"] == "dead_letter_not_found"


def test_a_fault_of_ours_on_one_message_sets_that_one_aside_and_takes_the_rest(world, gateway, monkeypatch):
    """A real fault is made: the encoder of records falls over one event id."""
    from domain import ledger as gate
    from ops.kafka import Arrived

    encode = gate.encode

    def falling(record: Any) -> bytes:
        if record.data.event_id == "cursed":
            raise ZeroDivisionError
        return encode(record)

    readings = [a_reading("cursed" if n == 37 else f"e{n}", tenant=gateway.tenant) for n in range(100)]
    offset = uuid4().int >> 70
    messages = [
        Arrived(TOPIC, 0, offset + n, None, json.dumps(reading).encode(), [], None)
        for n, reading in enumerate(readings)
    ]
    runtime = world.service.runtime
    letters = DeadLetters(runtime.reader.pool)
    with monkeypatch.context() as patch:
        patch.setattr(gate, "encode", falling)
        tally = world.service.run(Intake(runtime.ledger, letters).take(messages))
    assert tally == (99, 0, 1)
    (found,) = world.service.run(letters.list(code="internal"))
    assert found.offset == offset + 37
    assert world.operator.made(f"/v1/dead_letters/{found.id}/requeue")["state"] == "requeued"
    assert world.service.run(Intake(runtime.ledger, letters).take(messages)) == (0, 100, 0)


def test_headers_of_cloud_events_say_what_the_value_does_not(world, gateway):
    from ops.kafka import Arrived

    bare = a_reading(tenant=gateway.tenant, event_id=..., source=..., occurred_at=...)
    headers = [
        ("ce_id", b"from-header"), ("ce_source", b"/gateways/eu"), ("ce_specversion", b"1.0"),
        ("ce_time", moment_text(datetime.now(UTC) - timedelta(hours=1)).encode()),
    ]  # fmt: skip
    message = Arrived(TOPIC, 0, uuid4().int >> 70, None, json.dumps(bare).encode(), headers, None)
    runtime = world.service.runtime
    intake = Intake(runtime.ledger, DeadLetters(runtime.reader.pool))
    assert world.service.run(intake.take([message])) == (1, 0, 0)
    (item,) = gateway.read("/v1/usage")["items"]
    assert (item["event_id"], item["source"]) == ("from-header", "/gateways/eu")
    assert Caller("x", gateway.tenant, frozenset())
