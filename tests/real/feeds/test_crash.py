"""Processes killed in the middle: who follows the feed misses nothing, and every webhook message arrives, in order."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import httpx

from ops.tokens import LocalIssuer
from tests.real.api.world import World
from tests.real.feeds.delivering import events, register, webhook_settings, write
from tests.real.feeds.reader import FeedReader
from tests.real.feeds.receiver import OK, Answer, Received, receiving
from tests.real.service import serving, settings_on

SERVICE_KILLS = 3
WORKER_KILLS = int(os.environ.get("SOMA_WEBHOOK_KILLS", "4"))
STARTING_S_MAX = 60.0


@contextmanager
def started(root: Path, words: list[str], **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a process; give it with the first line it says, and kill it at the end."""
    with subprocess.Popen(
        [sys.executable, "-m", *words],
        cwd=root,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as running:
        try:
            assert running.stdout is not None
            yield running, running.stdout.readline().strip()
        finally:
            running.kill()


def writing(world: World, stop: threading.Event) -> threading.Thread:
    """Write one record after the other until told to stop."""

    def work() -> None:
        with world.service.client() as client:
            mine = World(world.service, client)
            while not stop.is_set():
                write(mine, 1)
                time.sleep(0.03)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_reader_of_a_killed_service_has_every_record_once(
    database_url: str, tmp_path: Path, repository_root: Path
) -> None:
    settings = settings_on(database_url, tmp_path)
    environment = {"SOMA_DATABASE_URL": database_url, "SOMA_DATA_DIR": str(tmp_path), "SOMA_PORT": "0"}
    stop = threading.Event()
    chance = random.Random(7)
    with serving(settings) as service, service.client() as client:
        world = World(service, client)
        follower = FeedReader("", world.token("platform", "operator"), type="intent.*", **{"from": 0})
        writer = writing(world, stop)
        try:
            for _ in range(SERVICE_KILLS):
                with started(repository_root, ["api.cli", "serve"], **environment) as (running, url):
                    follower.url = url
                    killer = threading.Timer(chance.uniform(0.1, 0.6), running.kill)
                    with (
                        httpx.Client(timeout=STARTING_S_MAX, trust_env=False) as line,
                        suppress(httpx.HTTPError),
                    ):
                        for _event in follower.events(line):
                            if not killer.is_alive() and not killer.finished.is_set():
                                killer.start()
        finally:
            stop.set()
            writer.join()
        follower.url = service.url
        follower.params = follower.params | {"follow": "false"}
        heard = len(follower.records)
        with httpx.Client(timeout=STARTING_S_MAX, trust_env=False) as line:
            list(follower.events(line))
        wanted = [e["position"] for e in events(world, None, type="intent.opened")]
    assert heard > SERVICE_KILLS
    assert follower.positions == wanted


def test_a_stopped_service_ends_its_feeds_and_goes(
    database_url: str, tmp_path: Path, repository_root: Path
) -> None:
    environment = {"SOMA_DATABASE_URL": database_url, "SOMA_DATA_DIR": str(tmp_path), "SOMA_PORT": "0"}
    issuer = LocalIssuer(settings_on(database_url, tmp_path))
    token = issuer.mint("anna", "platform", ["operator"])
    with started(repository_root, ["api.cli", "serve"], SOMA_SHUTDOWN_GRACE_S="60", **environment) as (
        running,
        url,
    ):
        follower = FeedReader(url, token)
        with httpx.Client(timeout=STARTING_S_MAX, trust_env=False) as line:
            for event in follower.events(line):
                if event.name == "position":
                    running.terminate()
        # Well before the grace is over: nothing holds it up.
        assert running.wait(30) == 0
    assert follower.end == "closing"


def test_messages_of_killed_workers_arrive_at_least_once_under_one_id_and_in_order(
    database_url: str, tmp_path: Path, repository_root: Path
) -> None:
    settings = webhook_settings(database_url, tmp_path)
    chance = random.Random(11)

    def moody(received: Received) -> Answer:
        time.sleep(chance.uniform(0, 0.01))
        return chance.choice([OK, OK, OK, OK, (500, {})])

    stop = threading.Event()
    worker = ["tests.real.feeds.worker_child", database_url, str(tmp_path)]
    with serving(settings) as service, service.client() as client, receiving() as receiver:
        world = World(service, client)
        receiver.answer = moody
        webhook = register(world.owner("acme"), receiver.url, types=["intent.*"])
        writer = writing(world, stop)
        with started(repository_root, worker) as (other, _):
            # Two at once: one leads, the other waits for its lock.
            for _ in range(WORKER_KILLS):
                with started(repository_root, worker) as (running, word):
                    assert word == "working"
                    time.sleep(chance.uniform(0.1, 0.7))
                    chance.choice([running, other]).kill()
        stop.set()
        writer.join()
        receiver.answer = lambda received: OK
        with started(repository_root, worker):
            wanted = [e["position"] for e in events(world, "acme", type="intent.opened")]
            receiver.wait(lambda seen: {r.position for r in seen} >= set(wanted))
        lanes = world.owner("acme").read(f"/v1/webhooks/{webhook['id']}")["lanes"]
    positions = receiver.positions()
    assert list(dict.fromkeys(positions)) == wanted
    assert all(one <= two for one, two in pairwise(positions)), "a message came before one it follows"
    ids = {received.position: received.id for received in receiver.seen}
    assert all(received.id == ids[received.position] for received in receiver.seen)
    assert len(set(ids.values())) == len(wanted)
    assert lanes[0]["redelivery"] == 0
