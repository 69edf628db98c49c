"""Governance as billing teams and auditors read it: over the log of a persona's life, through the views."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from api.reference_clickhouse import EXAMPLES
from ops.engine.process import EmbeddedClickHouse, Target
from projections.rebuild import rebuild
from tests.real.clickhouse.conftest import client_of, migrate_afresh
from tests.real.clickhouse.warehouse_world import ask, connected, follow, prints
from tests.real.conftest import lend
from tests.unit.persona.persona_world import PERSONA
from tests.unit.projections.persona_story import Story, a_story

Ask = Callable[..., list[Any]]
OURS = ("clickhouse.governance", "clickhouse.records")


@pytest.fixture(scope="module")
def story() -> Story:
    return a_story()


def write(url: str, story: Story) -> None:
    """Lay a log that was written in memory down where followers read it."""
    with psycopg.connect(url) as connection:
        for at, one in enumerate(story.world.store.logged):
            row = one.row
            connection.execute(
                "INSERT INTO events (position, version, stream, type, tenant, address, record)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s)",
                (at, row.version, row.stream, row.type, row.tenant, row.address, row.record),
            )
        connection.execute("UPDATE log_head SET size = %s", (len(story.log),))


@pytest.fixture(scope="module")
def url(server_url: str, template_database: str, story: Story) -> Iterator[str]:
    """Lend a database whose log holds the story."""
    with contextmanager(lend)(server_url, template_database) as lent:
        write(lent, story)
        yield lent


@pytest.fixture(scope="module")
def shown(engine: EmbeddedClickHouse, url: str) -> Target:
    """Lend a ClickHouse that followed the story."""
    asyncio.run(migrate_afresh(engine.target))
    asyncio.run(follow(engine.target, url, OURS))
    return engine.target


@pytest.fixture(scope="module")
def asked(shown: Target) -> Iterator[Ask]:
    with client_of(shown, reader=True) as client:
        yield lambda query, **given: [tuple(row) for row in client.query(query, given).result_rows]


def answer(asked: Ask, title: str, **given: Any) -> list[Any]:
    """Ask an example of the reference."""
    query = next(example.query for example in EXAMPLES if example.title == title)
    return asked(query, **given)


SPAN = {"start": "2020-01-01", "end": "2040-01-01"}


def test_the_timeline_of_a_persona_is_what_the_log_says_of_it(asked: Ask, story: Story) -> None:
    digits = [address.removeprefix("sha3-512:") for address in (story.published, story.claimed)]
    begun = {}
    wanted = []
    for at, stored in enumerate(story.log):
        record = json.loads(stored.record)
        kind, _, name = record["stream"].partition("/")
        begun.setdefault(record["stream"], record["data"])
        of_capsule = kind in ("capsule", "review", "signing") and name in digits
        names_it = PERSONA in (record["data"].get("persona_id"), begun[record["stream"]].get("persona_id"))
        if of_capsule or names_it or (kind, name) == ("persona", PERSONA):
            wanted.append((at, record["type"].partition(".")[2], record["stream"], record["actor"]))
    rows = answer(asked, "What happened to a persona", persona_id=PERSONA)
    assert [(position, event, stream, actor) for position, _, event, stream, actor in rows] == wanted
    assert {stream.partition("/")[0] for _, _, stream, _ in wanted} >= {
        "persona", "export", "capsule", "review", "signing", "claim",
    }  # fmt: skip


def test_a_publication_says_who_vouched_for_it(asked: Ask, story: Story) -> None:
    ((_, persona, version, capsule, signed, threshold, override, policy, constitution, judged),) = answer(
        asked, "Who let a capsule be published", **SPAN
    )
    assert (persona, version, capsule) == (PERSONA, "1.0.0", story.published)
    assert (sorted(signed), threshold, override) == (["ada", "ben"], 2, False)
    assert constitution == story.world.constitution
    assert policy.startswith("sha3-512:")
    assert judged.startswith("sha3-512:")


def test_refused_attempts_are_counted_by_their_code(asked: Ask) -> None:
    assert answer(asked, "Attempts that were refused", **SPAN) == [("export", "artifact_not_found", 1)]


def test_every_record_of_governance_has_one_row_under_its_address(asked: Ask, story: Story) -> None:
    rows = asked("SELECT position, address FROM bi.governance ORDER BY position")
    assert rows == [(at, f"sha3-512:{story.log[at].address.hex()}") for at, _ in rows]
    told = asked(
        "SELECT count() FROM bi.records WHERE kind IN ('persona', 'capsule', 'export', 'import', 'download',"
        " 'evaluation', 'review', 'signing', 'signer_policy', 'constitution', 'claim')"
    )
    assert told == [(len(rows),)]


def test_a_tenant_sees_its_own_governance(asked: Ask, story: Story) -> None:
    (mine,) = asked("SELECT count() FROM (SELECT * FROM bi.governance WHERE tenant = 'strange') AS x")
    assert mine[0] == len([s for s in story.log if json.loads(s.record)["stream"].startswith("claim/")])


def test_small_batches_and_a_rebuild_give_the_same_rows(shown: Target, url: str) -> None:
    """Last in the file: the tables are made anew."""
    before = prints(shown)

    async def again() -> None:
        async with connected(shown) as clickhouse:
            for name in OURS:
                report = await rebuild(clickhouse, url, name)
                assert all(difference.same for difference in report.tables.values())

    asyncio.run(again())
    assert prints(shown) == before
    asyncio.run(migrate_afresh(shown))
    with psycopg.connect(url) as connection:
        connection.execute("DELETE FROM followers")
    asyncio.run(follow(shown, url, OURS, batch_max=3))
    assert prints(shown) == before
    assert asyncio.run(ask(shown, "SELECT count() FROM bi.governance"))[0][0] > 20
