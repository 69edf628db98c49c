"""Every attempt to get out of the SQL endpoint is refused or stays inside, and nothing comes out."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.real.clickhouse.escapes import ATTEMPTS, REFUSALS, Attempt
from tests.real.clickhouse.sql_world import FETCHED, IN_ENVIRONMENT, IN_FILE, OTHER, PRIVATE, SqlWorld

# What the limits of a statement answer: rows, time, memory, and sizes of arguments.
LIMITS = frozenset({158, 159, 160, 241, 128, 131, 307, 396, 306, 69, 497, 36, 394})
NEVER = [
    each.encode() for each in (PRIVATE, OTHER, IN_FILE, IN_ENVIRONMENT, FETCHED, "root:x:0", "4242424242")
]


def _name(attempt: Attempt) -> str:
    return f"{attempt.family}: {attempt.statement or attempt.body!r}"[:70]


def _filled(world: SqlWorld, text: str) -> str:
    places = {
        "@FILE@": str(world.file),
        "@OUT@": str(world.place / "out"),
        "@PORT@": str(world.listener.server_port),
    }
    for mark, place in places.items():
        text = text.replace(mark, place)
    return text


def _tried(world: SqlWorld, attempt: Attempt) -> httpx.Response:
    """Try; an answer that a limit cut off in the middle counts as stopped."""
    try:
        return _asked(world, attempt)
    except httpx.RemoteProtocolError:
        assert attempt.kind == "bounded"
        return httpx.Response(500, headers={"X-ClickHouse-Exception-Code": "158"})


def _asked(world: SqlWorld, attempt: Attempt) -> httpx.Response:
    statement = None if attempt.statement is None else _filled(world, attempt.statement)
    fields = {name: _filled(world, value) for name, value in attempt.fields.items()}
    more = {} if attempt.body is None else {"content": attempt.body}
    return world.ask(
        statement, attempt.who, fields=fields, headers=attempt.headers, method=attempt.method, **more
    )


@pytest.fixture(scope="module", autouse=True)
def nothing_was_changed(sql_world: SqlWorld) -> Iterator[None]:
    yield
    counts = "SELECT (SELECT count() FROM vault.secrets), (SELECT count() FROM vault.entries FINAL)"
    assert sql_world.direct(counts) == b"(3,3000)\n" or sql_world.direct(counts) == b"3\t3000\n"
    assert (
        sql_world.direct("SELECT name FROM system.tables WHERE database = 'bi' ORDER BY 1")
        == b"daily\nentries\n"
    )


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=_name)
def test_an_attempt_to_get_out_stays_inside(sql_world: SqlWorld, attempt: Attempt) -> None:
    hits = sql_world.listener.hits
    answer = _tried(sql_world, attempt)
    told = answer.content + repr(answer.headers).encode()
    # A caller may be told what it sent, so what it sent is not taken for a leak.
    sent = _filled(sql_world, f"{attempt.statement}{attempt.fields}").encode()
    assert not [word for word in NEVER if word in told and word not in sent]
    assert sql_world.listener.hits == hits
    assert not Path(sql_world.place / "out").exists()
    code = int(answer.headers.get("x-clickhouse-exception-code", "0"))
    if attempt.kind == "refused":
        assert code in REFUSALS, (answer.status_code, answer.text[:300])
        assert answer.status_code >= 400
        assert answer.text.startswith(f"Code: {code}. DB::Exception: ")
        # We refused it, and not the second line behind us.
        assert "reader: " not in answer.text
    elif attempt.kind == "bounded":
        assert code in LIMITS or answer.status_code == 200, answer.text[:300]
    else:
        assert answer.status_code in (200, 400, 404, 500), answer.text[:300]
        assert b"beta" not in answer.content or b"beta" in sent


def test_the_corpus_is_as_large_as_promised() -> None:
    assert len({(a.statement, str(a.fields), str(a.headers), a.body, a.who) for a in ATTEMPTS}) == len(
        ATTEMPTS
    )
    assert len(ATTEMPTS) >= 170
    assert min(Counter(attempt.family for attempt in ATTEMPTS).values()) >= 20


def test_a_bomb_of_compression_is_refused(sql_world: SqlWorld) -> None:
    bomb = gzip.compress(b"SELECT '" + b" " * 500_000_000, 9)
    answer = sql_world.ask(None, content=bomb, headers={"Content-Encoding": "gzip"})
    assert answer.headers["x-clickhouse-exception-code"] == "131"


def test_a_scoped_reader_gets_own_rows_and_all_of_them(sql_world: SqlWorld) -> None:
    counted = "SELECT count(), uniqExact(tenant), any(tenant) FROM entries"
    assert sql_world.ask(counted, "alpha").content == b"2000\t1\talpha\n"
    assert sql_world.ask(counted, "beta").content == b"1000\t1\tbeta\n"
    for everybody in ("auditor", "platform"):
        assert sql_world.ask(counted, everybody).content.startswith(b"3000\t2\t")


def test_no_statistics_tell_a_scoped_reader_how_much_others_have(sql_world: SqlWorld) -> None:
    answer = sql_world.ask("SELECT count() FROM entries FORMAT JSON")
    assert "statistics" not in answer.json()
    assert "x-clickhouse-summary" not in answer.headers
    assert "statistics" in sql_world.ask("SELECT count() FROM entries FORMAT JSON", "auditor").json()
