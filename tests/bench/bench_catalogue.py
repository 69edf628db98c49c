"""Search over 100,000 personas, over HTTP, against a request of the same service that searches nothing.

The service is a process of its own, as it is in production. Searches are a mix from a fixed seed: no words and words
drawn as often as they are said, no facets and up to three, all orders, first pages (which are counted) and later ones.
`catalog.search` is the 95th percentile of one caller after another; `catalog.search.four` the same with four callers at
once. The baseline is /ready, which asks the database for one row.

The states of the personas are written where the commit writes them, and the trigger keeps the catalogue as it does
there; the records of the log that led to them are not there, and nothing of a search reads those.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from ops.postgres import connect_owner
from tests.bench.figures import Figure
from tests.bench.personas import DOMAINS, states, vocabulary, write_states

PERSONAS = 100_000
SEARCHES = 1_000
WARM = 20
P95_MS_MAX = 50.0
START_S_MAX = 60.0


class Served(NamedTuple):
    """A running service with its personas."""

    url: str
    token: str

    def client(self) -> httpx.Client:
        """Make a client with a token."""
        headers = {"Authorization": f"Bearer {self.token}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False)


@contextmanager
def served(count: int = PERSONAS) -> Iterator[Served]:
    """Run the service on a database with that many personas."""
    with tempfile.TemporaryDirectory(prefix="soma-bench-") as directory:
        command = [sys.executable, "-m", "tests.bench.http_server", directory]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                url, token = process.stdout.readline().split()
                _await(url)
                _fill(Path(directory), count)
                yield Served(url, token)
            finally:
                process.terminate()
                process.wait(START_S_MAX)


def _await(url: str) -> None:
    until = time.monotonic() + START_S_MAX
    while time.monotonic() < until:
        try:
            if httpx.get(f"{url}/ready", timeout=60, trust_env=False).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise TimeoutError("the service does not start")


def _fill(directory: Path, count: int) -> None:
    url = f"postgresql://postgres@/soma?host={directory}/postgres"
    with connect_owner(url) as connection:
        write_states(connection, states(count))
        connection.execute("VACUUM ANALYZE catalogue")
        connection.execute("VACUUM ANALYZE records")


def searches(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Draw what is searched for."""
    chance = random.Random(seed)
    words, weights = vocabulary()
    narrowing: list[tuple[str, Callable[[], str]]] = [
        ("domain", lambda: chance.choice(DOMAINS)),
        ("badge", lambda: chance.choice(["verified", "warnings", "override"])),
        ("provider", lambda: chance.choice(["north", "south", "east"])),
        ("pricing", lambda: chance.choice(["purchase", "rental"])),
        ("scope", lambda: chance.choice(["read", "admin"])),
        ("status", lambda: "degraded"),
        ("tenant", lambda: f"tenant-{chance.randint(0, 999)}"),
    ]
    for _ in range(count):
        asked: dict[str, Any] = {}
        if chance.random() < 0.6:
            asked["q"] = " ".join(chance.choices(words, weights, k=chance.choice((1, 1, 2, 3))))
        for name, value in chance.sample(narrowing, chance.choice((0, 0, 1, 1, 2, 3))):
            asked[name] = value()
        if chance.random() < 0.2:
            asked["sort"] = chance.choice(["newest", "name", "relevance"])
        yield asked


def _time(client: httpx.Client, path: str, asked: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    started = time.perf_counter()
    answer = client.get(path, params=asked)
    taken = time.perf_counter() - started
    assert answer.status_code == 200, answer.text
    return taken * 1e3, answer.json()


def measured(place: Served, count: int, seed: int) -> tuple[list[float], list[float]]:
    """Search, now and then turn the page, and now and then ask for nothing; give the times of searches and of the rest.

    Units: milliseconds.
    """
    taken: list[float] = []
    ready: list[float] = []
    chance = random.Random(seed)
    with place.client() as client:
        for asked in searches(count, seed):
            ms, page = _time(client, "/v1/catalog/list", asked)
            taken.append(ms)
            if chance.random() < 0.2:
                ready.append(_time(client, "/ready", {})[0])
            if page["next"] and chance.random() < 0.2:
                taken.append(_time(client, "/v1/catalog/list", asked | {"cursor": page["next"]})[0])
    return taken, ready


def at_once(place: Served, callers: int) -> list[float]:
    """Let several callers search as fast as they are answered."""
    gathered: list[list[float]] = [[] for _ in range(callers)]

    def work(number: int) -> None:
        gathered[number], _ = measured(place, SEARCHES // callers, seed=100 + number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [one for each in gathered for one in each]


def p(taken: list[float], share: float) -> float:
    """Give a percentile."""
    return sorted(taken)[min(len(taken) - 1, int(len(taken) * share))]


def measure() -> list[Figure]:
    """Measure searches."""
    with served() as place:
        with place.client() as client:
            first_ms, _ = _time(client, "/v1/catalog/list", {})
        measured(place, WARM, seed=1)
        alone, ready = measured(place, SEARCHES, seed=2)
        four = at_once(place, 4)
    base = p(ready, 0.95)

    def figure(name: str, value: float, at_most: float | None = None) -> Figure:
        value = float(f"{value:.4g}")
        return Figure(name, value, "ms", float(f"{base:.4g}"), round(value / base, 3), value_at_most=at_most)

    return [
        figure("catalog.search", p(alone, 0.95), P95_MS_MAX),
        figure("catalog.search.p50", p(alone, 0.5)),
        figure("catalog.search.p99", p(alone, 0.99)),
        figure("catalog.search.four", p(four, 0.95)),
        figure("catalog.search.first", first_ms),
    ]


FIGURES = {"catalog.search": measure}
