"""The feed over real sockets: complete, in order, resumable anywhere, bounded, and everybody's own."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.real.api.world import World, refused
from tests.real.conftest import lend
from tests.real.feeds.delivering import events, write, write_large
from tests.real.feeds.reader import FeedReader
from tests.real.service import serving, settings_on

FAR_S = 40.0
lending = contextmanager(lend)


@pytest.fixture(scope="module")
def world(
    server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """Run a service whose quiet feeds speak often."""
    with lending(server_url, template_database) as url:
        settings = settings_on(url, tmp_path_factory.mktemp("service"), feed_heartbeat_s=0.2)
        with serving(settings) as service, service.client() as client:
            yield World(service, client)


@contextmanager
def line(world: World) -> Iterator[httpx.Client]:
    """Give a client of its own, since a feed holds its connection."""
    with httpx.Client(timeout=FAR_S, trust_env=False) as client:
        yield client


def reader(
    world: World, of: str = "platform", *roles: str, ttl_s: int | None = None, **params: object
) -> FeedReader:
    """Make a reader with a token."""
    return FeedReader(world.service.url, world.token(of, *(roles or ("operator",)), ttl_s=ttl_s), **params)


def test_a_feed_from_the_start_is_the_log(world: World) -> None:
    write(world, 10)
    everything = reader(world, **{"from": 0, "follow": "false"})
    with line(world) as client:
        list(everything.events(client))
    assert everything.end == "end_of_log"
    assert [json.loads(e.record) for e in everything.records] == [e["record"] for e in events(world, None)]
    assert everything.positions == list(range(world.size))


def test_a_feed_dropped_at_every_point_goes_on_without_gap_or_repetition(world: World) -> None:
    start = world.size
    written = threading.Thread(target=write, args=(world, 60))
    written.start()
    follower = reader(world, type="intent.*", **{"from": start})
    with line(world) as client:
        drops = 0
        while len(follower.records) < 60:
            for _event in follower.events(client):
                # Each connection is dropped one event later than the one before, at positions and at records alike.
                drops += 1
                if drops % 3 == 0 or len(follower.records) >= 60:
                    break
    written.join()
    wanted = [e["position"] for e in events(world, None, type="intent.opened", after=start - 1)]
    assert follower.positions == wanted
    assert drops > 20


def test_live_and_caught_up_readers_hear_the_same_under_many_writers(world: World) -> None:
    start = world.size
    follower, late = reader(world, type="intent.*"), reader(world, type="intent.*", **{"from": start})
    ready = threading.Event()

    def follow(one: FeedReader, count: int) -> None:
        with line(world) as client:
            for _ in one.events(client):
                ready.set()
                if len(one.records) >= count:
                    return

    first = threading.Thread(target=follow, args=(follower, 160))
    first.start()
    assert ready.wait(FAR_S)

    def some() -> None:
        with world.service.client() as client:
            write(World(world.service, client), 40)

    writers = [threading.Thread(target=some) for _ in range(4)]
    for writer in writers:
        writer.start()
    time.sleep(0.1)
    second = threading.Thread(target=follow, args=(late, 160))
    second.start()
    for thread in (*writers, first, second):
        thread.join(FAR_S)
    wanted = [e["position"] for e in events(world, None, type="intent.opened", after=start - 1)]
    assert len(wanted) == 160
    assert follower.positions == late.positions == wanted


def test_where_nothing_fits_the_id_moves_on_all_the_same(world: World) -> None:
    follower = reader(world, type="offer.*")
    with line(world) as client:
        events_ = follower.events(client)
        assert next(events_).name == "position"
        write(world, 3)
        for event in events_:
            assert event.name == "position"
            if event.id == world.size - 1:
                break
    assert follower.records == []


def test_a_tenant_hears_its_own_records_and_names_no_other(world: World) -> None:
    write(world, 3, tenant="acme")
    write(world, 3, tenant="other")
    own = reader(world, "acme", "owner", **{"from": 0, "follow": "false"})
    with line(world) as client:
        list(own.events(client))
    assert own.positions == [e["position"] for e in events(world, "acme")]
    assert {json.loads(e.record)["tenant"] for e in own.records} == {"acme"}
    stranger = world.owner("acme")
    refused(stranger.get("/v1/log/feed", params={"tenant": "other"}), 403, "forbidden")
    auditor = FeedReader(
        world.service.url, world.token("office", "auditor"), tenant="other", **{"from": 0, "follow": "false"}
    )
    with line(world) as client:
        list(auditor.events(client))
    assert auditor.positions == [e["position"] for e in events(world, "other")]


def test_a_stream_and_several_types_narrow_a_feed(world: World) -> None:
    owner = world.owner("acme")
    one, two = world.intent(owner), world.intent(owner)
    owner.made(f"/v1/intents/{one['id']}/cancel")
    owner.made(f"/v1/intents/{two['id']}/cancel")
    told = reader(world, stream=f"intent/{one['id']}", **{"from": 0, "follow": "false"})
    both = reader(world, type=["intent.cancelled", "account.*"], **{"from": 0, "follow": "false"})
    with line(world) as client:
        list(told.events(client))
        list(both.events(client))
    assert [json.loads(e.record)["type"] for e in told.records] == ["intent.opened", "intent.cancelled"]
    assert {json.loads(e.record)["type"] for e in both.records} <= {"intent.cancelled", "account.opened"}
    assert [e.name for e in both.records].count("intent.cancelled") == 2


def test_an_id_this_log_does_not_have_is_refused(world: World) -> None:
    write(world, 1)
    ahead = {"Last-Event-ID": str(world.size)}
    refused(world.operator.get("/v1/log/feed", headers=ahead), 422, "position_ahead")
    refused(world.operator.get("/v1/log/feed", params={"from": world.size + 1}), 422, "position_ahead")
    for headers, params in (
        ({"Last-Event-ID": "x"}, {}),
        ({}, {"from": "-1"}),
        ({}, {"type": "%"}),
        ({}, {"stream": "x"}),
    ):
        assert world.operator.get("/v1/log/feed", headers=headers, params=params).status_code == 400
    assert world.client.get("/v1/log/feed").status_code == 401


def test_a_feed_ends_with_its_token_and_says_so(world: World) -> None:
    follower = reader(world, ttl_s=2)
    with line(world) as client:
        list(follower.events(client))
    assert follower.end == "token_expired"


def test_so_many_feeds_are_held_and_no_more(database_url: str, tmp_path: Path) -> None:
    settings = settings_on(
        database_url,
        tmp_path,
        feed_subscribers_max=200,
        feed_subscribers_per_tenant_max=150,
        feed_heartbeat_s=5,
    )
    with serving(settings) as service, service.client() as client:
        world = World(service, client)
        limits = httpx.Limits(max_connections=None)
        with httpx.Client(base_url=service.url, timeout=FAR_S, trust_env=False, limits=limits) as many:
            open_ = []

            def follow(tenant: str) -> httpx.Response:
                headers = {"Authorization": f"Bearer {world.token(tenant, 'owner')}"}
                answer = many.send(many.build_request("GET", "/v1/log/feed", headers=headers), stream=True)
                if answer.status_code != 200:
                    answer.read()
                return answer

            for count, tenant in ((150, "acme"), (50, "other")):
                for _ in range(count):
                    open_.append(follow(tenant))
                    assert open_[-1].status_code == 200
                if tenant == "acme":
                    problem = follow("acme")
                    refused(problem, 429, "too_many_subscribers")
                    assert problem.headers["retry-after"] == "10"
            full = follow("third")
            refused(full, 503, "feed_full")
            assert full.headers["retry-after"] == "10"
            write(world, 1)
            for answer in open_[:3]:
                heard = b""
                for chunk in answer.iter_raw():
                    heard += chunk
                    if b"\nevent: intent.opened\n" in heard:
                        break
            for answer in open_:
                answer.close()
            until = time.monotonic() + FAR_S
            while (answer := follow("third")).status_code != 200:
                assert time.monotonic() < until, "places are not given back"
                time.sleep(0.05)
            answer.close()


def test_a_reader_that_takes_too_little_is_told_and_closed(database_url: str, tmp_path: Path) -> None:
    settings = settings_on(database_url, tmp_path, feed_buffer_records_max=20, feed_heartbeat_s=5)
    with serving(settings) as service, service.client() as client:
        world = World(service, client)
        place = urlsplit(service.url)
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            slow.connect((place.hostname, place.port))
            token = world.token("acme", "owner")
            slow.sendall(
                f"GET /v1/log/feed HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
            )
            slow.settimeout(FAR_S)
            assert slow.recv(4_096).startswith(b"HTTP/1.1 200")
            write_large(world, 600)
            heard = b""
            while chunk := slow.recv(1_000_000):
                heard += chunk
                if b"slow_reader" in heard and heard.endswith(b"0\r\n\r\n"):
                    break
        assert b"event: slow_reader" in heard
        end = json.loads(heard[heard.index(b"event: slow_reader") :].split(b"data: ")[1].split(b"\n")[0])
        assert 0 < end["position"] < world.size - 1
        # What comes behind the position it was told is all the rest.
        rest = FeedReader(service.url, token, follow="false")
        rest.last_id = end["position"]
        with line(world) as fresh:
            list(rest.events(fresh))
        wanted = [e["position"] for e in events(world, "acme", after=end["position"])]
        assert rest.positions == wanted


def test_a_reader_that_takes_nothing_loses_its_place(database_url: str, tmp_path: Path) -> None:
    settings = settings_on(database_url, tmp_path, feed_send_s_max=0.5)
    with serving(settings) as service, service.client() as client, socket.socket() as stuck:
        world = World(service, client)
        place = urlsplit(service.url)
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        stuck.connect((place.hostname, place.port))
        token = world.token("acme", "owner")
        stuck.sendall(
            f"GET /v1/log/feed HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
        )
        assert stuck.recv(4_096).startswith(b"HTTP/1.1 200")
        until = time.monotonic() + FAR_S
        while 'soma_feed_ends_total{reason="stuck"}' not in client.get("/metrics").text:
            write_large(world, 100)
            assert time.monotonic() < until, "the place is held for ever"


def test_a_stopping_service_tells_its_readers(database_url: str, tmp_path: Path) -> None:
    with (
        serving(settings_on(database_url, tmp_path, feed_heartbeat_s=30)) as service,
        service.client() as client,
    ):
        world = World(service, client)
        follower = reader(world)

        def follow() -> None:
            with line(world) as own:
                list(follower.events(own))

        thread = threading.Thread(target=follow)
        thread.start()
        while follower.last_id is None:
            time.sleep(0.01)
        service.loop.call_soon_threadsafe(service.app.state.feed.end)
        thread.join(FAR_S)
        assert not thread.is_alive()
        assert follower.end == "closing"
