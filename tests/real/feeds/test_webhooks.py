"""Webhooks over real sockets: what a tenant may read arrives in order, signed, and again after failures."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook as Receiving

from ops.webhook_store import WebhookStore
from tests.real.api.world import Speaker, World, refused
from tests.real.feeds.delivering import delivering, events, register, webhook_settings, write
from tests.real.feeds.receiver import OK, Received, Receiver, receiving
from tests.real.service import serving

INTENTS = {"types": ["intent.*"]}


@pytest.fixture
def world(database_url: str, tmp_path: Path) -> Iterator[World]:
    """Run a service that delivers."""
    with (
        serving(webhook_settings(database_url, tmp_path)) as service,
        service.client() as client,
        delivering(service),
    ):
        yield World(service, client)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


@pytest.fixture
def holder(world: World) -> Speaker:
    return world.owner("acme")


def until(check: Callable[[], bool], why: str) -> None:
    """Wait for something that happens behind a request."""
    end = time.monotonic() + 15
    while not check():
        assert time.monotonic() < end, why
        time.sleep(0.02)


def deliveries(holder: Speaker, webhook: dict[str, Any], **params: Any) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = holder.read(f"/v1/webhooks/{webhook['id']}/deliveries", params=params)[
        "items"
    ]
    return items


def is_passed(holder: Speaker, webhook: dict[str, Any]) -> bool:
    """Tell whether a webhook has come to the end of the log."""
    found = holder.read(f"/v1/webhooks/{webhook['id']}")
    return bool(found["lanes"]) and found["lanes"][0]["position"] == found["log_size"]


def test_every_record_a_tenant_may_read_arrives_once_in_order_and_signed(
    world: World, receiver: Receiver, holder: Speaker
) -> None:
    write(world, 5)
    webhook = register(holder, receiver.url, from_position=0)
    write(world, 5)
    write(world, 5, tenant="other")
    wanted = events(world, "acme")
    receiver.wait(lambda seen: len(seen) >= len(wanted))
    assert receiver.positions() == [event["position"] for event in wanted]
    checks = Receiving(webhook["secret"])
    for received, event in zip(receiver.seen, wanted, strict=True):
        message = checks.verify(received.body, received.headers)
        assert message["type"] == event["record"]["type"]
        assert message["timestamp"] == event["record"]["at"]
        assert message["data"]["address"] == event["address"]
        assert message["data"]["record"] == event["record"]
        record = received.body[received.body.index(b'"record":') + 9 : -2]
        assert "sha3-512:" + hashlib.sha3_512(record).hexdigest() == event["address"]
        assert received.id == "msg_" + event["address"].removeprefix("sha3-512:")[:64]
    assert len({received.id for received in receiver.seen}) == len(wanted)


def test_only_what_was_asked_for_is_sent(world: World, receiver: Receiver, holder: Speaker) -> None:
    register(holder, receiver.url, **INTENTS)
    holder.made("/v1/accounts", {"currency": "USD"})
    positions = write(world, 2)
    holder.made("/v1/accounts", {"currency": "EUR"})
    positions += write(world, 2)
    receiver.wait(lambda seen: len(seen) >= 4)
    assert receiver.positions() == positions


def test_a_receiver_that_fails_gets_the_same_message_again_and_the_rest_behind_it(
    world: World, receiver: Receiver, holder: Speaker
) -> None:
    failures = iter([(500, {}), (302, {"location": "http://127.0.0.1:1/"}), (429, {"retry-after": "0"})])
    receiver.answer = lambda received: next(failures, OK)
    webhook = register(holder, receiver.url, **INTENTS)
    write(world, 3)
    receiver.wait(lambda seen: len(seen) >= 6)
    assert len({received.id for received in receiver.seen[:4]}) == 1
    assert len({received.body for received in receiver.seen[:4]}) == 1
    assert receiver.positions()[3:] == sorted(set(receiver.positions()))
    until(lambda: len(deliveries(holder, webhook, status="delivered")) == 3, "not all are delivered")
    first = deliveries(holder, webhook)[-1]
    assert (first["attempts"], first["http_status"], first["error"]) == (4, 204, "")


def test_a_receiver_that_was_down_for_a_while_gets_what_it_missed(world: World, holder: Speaker) -> None:
    with receiving() as gone:
        url, port = gone.url, gone.port
    webhook = register(holder, url, **INTENTS)
    write(world, 3)
    until(lambda: deliveries(holder, webhook, status="failing") != [], "no attempt was made")
    with receiving(port) as receiver:
        receiver.wait(lambda seen: len(seen) >= 3)
        assert receiver.positions() == [e["position"] for e in events(world, "acme", type="intent.opened")]


def test_what_is_given_up_is_a_dead_letter_and_can_be_sent_again(
    world: World, receiver: Receiver, holder: Speaker
) -> None:
    refusing = True
    poisoned: set[int] = set()

    def answer(received: Received) -> Any:
        poisoned.add(received.position)
        return (400, {}) if refusing and received.position == min(poisoned) else OK

    receiver.answer = answer
    webhook = register(holder, receiver.url, **INTENTS)
    write(world, 3)
    receiver.wait(lambda seen: len({r.position for r in seen}) >= 3)
    until(lambda: deliveries(holder, webhook, status="dead") != [], "nothing was given up")
    (dead,) = deliveries(holder, webhook, status="dead")
    assert (dead["position"], dead["attempts"], dead["http_status"]) == (min(poisoned), 4, 400)
    refusing = False
    before = len(receiver.seen)
    again = holder.made(f"/v1/webhooks/{webhook['id']}/redeliver", {"position": dead["position"]})
    receiver.wait(lambda seen: len(seen) > before)
    assert receiver.seen[before].id == receiver.seen[0].id
    until(lambda: deliveries(holder, webhook, status="dead") == [], "the dead letter is not settled")
    assert {
        (d["status"], d["redelivery"])
        for d in deliveries(holder, webhook)
        if d["position"] == dead["position"]
    } == {
        ("redelivered", 0),
        ("delivered", again["redelivery"]),
    }


def test_a_range_is_sent_again_and_what_is_new_is_not_held_up(
    world: World, receiver: Receiver, holder: Speaker
) -> None:
    webhook = register(holder, receiver.url, **INTENTS)
    write(world, 3)
    receiver.wait(lambda seen: len(seen) >= 3)
    wanted = receiver.positions()
    holder.made(
        f"/v1/webhooks/{webhook['id']}/redeliver", {"from_position": wanted[0], "to_position": wanted[-1]}
    )
    receiver.wait(lambda seen: len(seen) >= 6)
    assert receiver.positions()[3:] == wanted
    write(world, 1)
    receiver.wait(lambda seen: len(seen) >= 7)
    until(lambda: len(holder.read(f"/v1/webhooks/{webhook['id']}")["lanes"]) == 1, "the redelivery stays")


def test_a_receiver_that_takes_nothing_is_disabled_and_resumes_where_it_stopped(
    database_url: str, tmp_path: Path, receiver: Receiver
) -> None:
    settings = webhook_settings(
        database_url, tmp_path, webhook_retry_delays_s="0.01", webhook_dead_in_row_max=2
    )
    with serving(settings) as service, service.client() as client, delivering(service):
        world = World(service, client)
        holder = world.owner("acme")
        receiver.answer = lambda received: (503, {})
        webhook = register(holder, receiver.url, **INTENTS)
        write(world, 4)
        path = f"/v1/webhooks/{webhook['id']}"
        until(lambda: holder.read(path)["status"] == "disabled", "the webhook is not disabled")
        assert "2 messages in a row were given up" in holder.read(path)["status_reason"]
        seen = len(receiver.seen)
        receiver.answer = lambda received: OK
        assert holder.made(f"{path}/resume")["status"] == "active"
        receiver.wait(lambda found: len(found) >= seen + 2)
        settled = ["delivered"] * 2 + ["dead"] * 2
        until(lambda: [d["status"] for d in deliveries(holder, webhook)] == settled, "not all are settled")


def test_a_receiver_that_is_gone_is_asked_no_more(world: World, receiver: Receiver, holder: Speaker) -> None:
    receiver.answer = lambda received: (410, {})
    webhook = register(holder, receiver.url, **INTENTS)
    write(world, 2)
    until(lambda: holder.read(f"/v1/webhooks/{webhook['id']}")["status"] == "disabled", "it is not disabled")
    assert len(set(receiver.positions())) == 1
    types = [e["record"]["type"] for e in events(world, "acme") if e["record"]["type"].startswith("webhook.")]
    assert types == ["webhook.registered", "webhook.disabled"]


def test_while_a_secret_is_rotated_both_are_good_and_then_the_new_one_alone(
    database_url: str, tmp_path: Path, receiver: Receiver
) -> None:
    settings = webhook_settings(database_url, tmp_path, webhook_rotation_s=2)
    with serving(settings) as service, service.client() as client, delivering(service):
        world = World(service, client)
        holder = world.owner("acme")
        webhook = register(holder, receiver.url, **INTENTS)
        rotated = holder.made(f"/v1/webhooks/{webhook['id']}/rotate")
        assert rotated["secret"] != webhook["secret"]
        assert rotated["public_key"] != webhook["public_key"]
        write(world, 1)
        receiver.wait(lambda seen: len(seen) >= 1)
        (received,) = receiver.seen
        assert [part[:3] for part in received.headers["webhook-signature"].split()] == [
            "v1,",
            "v1,",
            "v1a",
            "v1a",
        ]
        for secret in (webhook["secret"], rotated["secret"]):
            Receiving(secret).verify(received.body, received.headers)
        time.sleep(2.2)
        write(world, 1)
        receiver.wait(lambda seen: len(seen) >= 2)
        Receiving(rotated["secret"]).verify(receiver.seen[1].body, receiver.seen[1].headers)
        with pytest.raises(Exception, match="No matching signature"):
            Receiving(webhook["secret"]).verify(receiver.seen[1].body, receiver.seen[1].headers)


def test_a_paused_webhook_hears_later_what_came_meanwhile(
    world: World, receiver: Receiver, holder: Speaker
) -> None:
    webhook = register(holder, receiver.url, **INTENTS)
    path = f"/v1/webhooks/{webhook['id']}"
    write(world, 1)
    receiver.wait(lambda seen: len(seen) >= 1)
    holder.made(f"{path}/pause", {"reason": "night"})
    time.sleep(1.2)
    write(world, 2)
    time.sleep(0.5)
    assert len(receiver.seen) == 1
    holder.made(f"{path}/resume")
    receiver.wait(lambda seen: len(seen) >= 3)
    assert receiver.positions() == sorted(set(receiver.positions()))


def test_a_change_of_what_is_wanted_holds_from_then_on(
    world: World, receiver: Receiver, holder: Speaker
) -> None:
    webhook = register(holder, receiver.url, types=["offer.*"])
    write(world, 2)
    until(lambda: is_passed(holder, webhook), "what is not wanted is not passed")
    changed = holder.patch(f"/v1/webhooks/{webhook['id']}", {"types": ["intent.*"]}, if_match="1")
    assert changed.json()["version"] == 2
    positions = write(world, 2)
    receiver.wait(lambda seen: len(seen) >= 2)
    assert receiver.positions() == positions


def test_a_ping_tells_what_came_of_it(world: World, receiver: Receiver, holder: Speaker) -> None:
    webhook = register(holder, receiver.url)
    found = holder.made(f"/v1/webhooks/{webhook['id']}/ping")
    assert (found["delivered"], found["http_status"], found["error"]) == (True, 204, "")
    ping = next(r for r in receiver.seen if r.id == found["message_id"])
    assert Receiving(webhook["secret"]).verify(ping.body, ping.headers)["type"] == "webhook.ping"


def test_a_record_too_large_for_a_message_comes_as_a_link(world: World, receiver: Receiver) -> None:
    clinic = world.provider("acme")
    register(clinic, receiver.url, types=["offer.listed"])
    words = "\N{SEEDLING}" * 2_000
    offer = world.offer(clinic, label_schema={"note": "x" * 16_000}, description=words)
    receiver.wait(lambda seen: len(seen) >= 1)
    (received,) = receiver.seen
    assert len(received.body) < 20_000
    assert received.data["record"] is None
    assert clinic.read(received.data["link"])["data"]["description"] == words
    assert received.data["stream"] == f"offer/{offer['id']}"


def test_another_tenants_webhook_is_as_good_as_absent(
    world: World, receiver: Receiver, holder: Speaker
) -> None:
    webhook = register(holder, receiver.url)
    stranger = world.speaker("omega", "owner", "billing", "service")
    path = f"/v1/webhooks/{webhook['id']}"
    for method, end, body in (
        ("GET", "", None), ("PATCH", "", {"types": []}), ("DELETE", "", None), ("POST", "/pause", None),
        ("POST", "/rotate", None), ("POST", "/ping", None), ("POST", "/redeliver", {"position": 0}),
        ("GET", "/deliveries", None),
    ):  # fmt: skip
        refused(stranger.ask(method, path + end, body), 404, "webhook_not_found")
    assert stranger.read("/v1/webhooks")["items"] == []
    refused(world.speaker("acme", "reviewer").get(path), 403, "forbidden")


def test_every_tenants_records_go_to_operators_only(
    world: World, receiver: Receiver, holder: Speaker
) -> None:
    refused(holder.post("/v1/webhooks", {"url": receiver.url, "scope": "all"}), 403, "forbidden")
    webhook = register(world.operator, receiver.url, scope="all", **INTENTS)
    colleague = world.speaker("platform", "billing")
    path = f"/v1/webhooks/{webhook['id']}"
    refused(colleague.patch(path, {"url": "https://example.com/"}), 403, "forbidden")
    refused(colleague.post(f"{path}/rotate"), 403, "forbidden")
    refused(colleague.post(f"{path}/ping"), 403, "forbidden")
    positions = write(world, 1, tenant="one") + write(world, 1, tenant="two")
    receiver.wait(lambda seen: len(seen) >= 2)
    assert receiver.positions() == positions


def test_no_secret_is_ever_in_the_log_or_in_a_second_look(
    world: World, receiver: Receiver, holder: Speaker
) -> None:
    first = holder.post("/v1/webhooks", {"url": receiver.url}, key="once")
    again = holder.post("/v1/webhooks", {"url": receiver.url}, key="once")
    assert first.json()["secret"] == again.json()["secret"]
    assert again.json()["receipt"]["repeated"] is True
    assert first.headers["cache-control"] == "no-store"
    secret = first.json()["secret"]
    path = f"/v1/webhooks/{first.json()['id']}"
    for text in (
        holder.get(path).text,
        holder.get("/v1/webhooks").text,
        world.operator.get("/v1/log/events", params={"limit": 500, "raw": True}).text,
        world.operator.get(f"/v1/log/streams/webhook/{first.json()['id']}").text,
    ):
        assert "whsec_" not in text
        assert secret.removeprefix("whsec_") not in text
    kept = world.service.run(
        world.service.runtime.reader._all("SELECT convert_from(answer, 'UTF8') FROM keys")
    )
    assert kept
    assert not [row for row in kept if "whsec_" in row[0]]


def test_places_and_positions_that_make_no_sense_are_refused(world: World, holder: Speaker) -> None:
    for url in (
        "ftp://example.com/",
        "https://user:pass@example.com/",
        "https://example.com/#x",
        "https:///x",
        "http://a b/",
    ):
        refused(holder.post("/v1/webhooks", {"url": url}), 400, "webhook_url_invalid")
    ahead = {"url": "https://example.com/", "from_position": 10**9}
    refused(holder.post("/v1/webhooks", ahead), 422, "position_ahead")
    webhook = register(holder, "https://example.com/hook", types=["nothing.at_all"])
    path = f"/v1/webhooks/{webhook['id']}"
    for body in ({}, {"from_position": 3}, {"from_position": 3, "to_position": 2}, {"position": 10**9}):
        refused(holder.post(f"{path}/redeliver", body), 400, "webhook_range_invalid")
    refused(holder.post(f"{path}/resume"), 409, "invalid_status_transition")
    assert holder.ask("DELETE", path).json()["status"] == "deleted"
    refused(holder.post(f"{path}/pause"), 409, "invalid_status_transition")
    refused(holder.post(f"{path}/ping"), 404, "webhook_not_found")


def test_a_tenant_has_so_many_webhooks_and_no_more(database_url: str, tmp_path: Path) -> None:
    settings = webhook_settings(database_url, tmp_path, webhooks_per_tenant_max=2)
    with serving(settings) as service, service.client() as client:
        holder = World(service, client).owner("acme")
        made = [register(holder, "https://example.com/") for _ in range(2)]
        refused(holder.post("/v1/webhooks", {"url": "https://example.com/"}), 409, "too_many_webhooks")
        holder.ask("DELETE", f"/v1/webhooks/{made[0]['id']}")
        register(holder, "https://example.com/")


def test_nothing_is_sent_to_an_address_that_is_not_the_publics(
    database_url: str, tmp_path: Path, receiver: Receiver
) -> None:
    settings = webhook_settings(database_url, tmp_path, webhooks_allow_private=False)
    with serving(settings) as service, service.client() as client:
        holder = World(service, client).owner("acme")
        for host in ("127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]"):
            webhook = register(holder, f"http://{host}:{receiver.port}/")
            found = holder.made(f"/v1/webhooks/{webhook['id']}/ping")
            assert (found["delivered"], found["http_status"]) == (False, None)
            assert "127.0.0.1" not in found["error"]
        assert receiver.seen == []


def test_what_was_delivered_long_ago_is_forgotten_and_dead_letters_stay(
    world: World, receiver: Receiver, holder: Speaker
) -> None:
    refuse: set[int] = set()
    receiver.answer = lambda received: (400, {}) if received.position in refuse else OK
    webhook = register(holder, receiver.url, **INTENTS)
    refuse.update(range(world.size, world.size + 1))
    write(world, 3)
    until(lambda: len(deliveries(holder, webhook, status="delivered")) == 2, "not all are delivered")
    assert len(deliveries(holder, webhook, status="dead")) == 1
    store = WebhookStore(world.service.runtime.reader.pool)
    world.service.run(store.trim(3_600))
    assert len(deliveries(holder, webhook)) == 3
    world.service.run(store.trim(0))
    assert [d["status"] for d in deliveries(holder, webhook)] == ["dead"]


def test_pages_of_deliveries_hold_each_one_once(world: World, receiver: Receiver, holder: Speaker) -> None:
    webhook = register(holder, receiver.url, **INTENTS)
    positions = write(world, 3)
    span = {"from_position": positions[0], "to_position": positions[-1]}
    holder.made(f"/v1/webhooks/{webhook['id']}/redeliver", span)
    until(lambda: len(deliveries(holder, webhook)) == 6, "not all are delivered")
    found: list[tuple[int, int]] = []
    cursor = None
    while True:
        page = holder.read(
            f"/v1/webhooks/{webhook['id']}/deliveries",
            params={"limit": 4} | ({"cursor": cursor} if cursor else {}),
        )
        found += [(d["position"], d["redelivery"]) for d in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert found == sorted(set(found), reverse=True)
    assert len(found) == 6
