"""A match is made again from the log alone: whatever the market did since, it leads to the same contract."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import orjson
import psycopg
import pytest

from api.routes.market import POLICY
from projections.rematch import Rematch, rematch
from tests.real.api.world import UNSEEN, Speaker, World
from tests.real.service import serving, settings_on
from tests.real.test_cli import soma

TILE_WIDTH = 256
SELLERS = ("north", "south", "east", "west")


@pytest.fixture
def world(database_url: str, tmp_path: Path) -> Iterator[World]:
    """Run a service for one test."""
    with serving(settings_on(database_url, tmp_path)) as service, service.client() as client:
        yield World(service, client)


def a_market(world: World) -> tuple[Speaker, list[dict[str, Any]]]:
    """Fill a market in which one seller has a history, and one offer is too dear."""
    owner = world.owner("lab")
    offers = [world.offer(world.provider("north"))]
    first = world.completed(owner, max_offers=1)
    owner.made(f"/v1/contracts/{first['id']}/release")
    offers += [
        world.offer(world.provider(name), dataset_fingerprint=UNSEEN, price_per_round=amount(price))
        for name, price in zip(SELLERS[1:], ("7.50", "9", "200"), strict=True)
    ]
    return owner, offers


def amount(price: str) -> dict[str, str]:
    return {"amount": price, "currency": "USD"}


def chosen(contract: dict[str, Any]) -> list[str]:
    return [one["offer_id"] for one in contract["selected_offers"]]


def again(world: World, contract_id: str, **changes: Any) -> Rematch:
    policy = msgspec.structs.replace(POLICY, **changes)
    return world.service.run(rematch(world.service.runtime.reader, contract_id, policy))


def test_a_match_made_again_from_the_log_is_the_same(world: World) -> None:
    owner, _ = a_market(world)
    contract = world.contract(owner)
    found = again(world, contract["id"])
    assert found.is_same
    assert [one.offer_id for one in found.recomputed] == chosen(contract)
    assert len(found.recomputed) == 3
    assert any(one.successes for one in found.recomputed), "a history has a part in it"


def test_what_the_market_did_since_has_no_part_in_it(world: World) -> None:
    owner, offers = a_market(world)
    contract = world.contract(owner)
    first = again(world, contract["id"])
    for name, offer in zip(SELLERS, offers, strict=True):
        world.provider(name).patch(f"/v1/offers/{offer['id']}", {"price_per_round": amount("99")})
    world.provider("south").made(f"/v1/offers/{offers[1]['id']}/retire")
    world.offer(world.provider("late"), dataset_fingerprint=UNSEEN, price_per_round=amount("0.01"))
    assert chosen(world.contract(owner)) != chosen(contract)
    assert again(world, contract["id"]) == first
    assert first.is_same


def test_under_another_policy_it_is_not_the_same(world: World) -> None:
    owner, _ = a_market(world)
    found = again(world, world.contract(owner)["id"], w_cost=0, w_quality=800_000)
    assert not found.same_policy
    assert not found.is_same


def test_the_command_line_says_so_and_ends_with_zero(world: World, database_url: str, tmp_path: Path) -> None:
    owner, _ = a_market(world)
    contract = world.contract(owner)
    words = ("ledger", "rematch", contract["id"], "--data-dir", str(tmp_path))
    done = soma(*words, database_url=database_url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the same match" in done.stdout
    assert "differs" not in done.stdout
    told = orjson.loads(soma(*words, "--json", database_url=database_url).stdout)
    assert told["same"] is True
    assert [one["offer_id"] for one in told["recomputed"]] == chosen(contract)


def test_an_offer_changed_behind_the_logs_back_leads_to_another_match_and_ends_with_one(
    world: World, database_url: str, tmp_path: Path
) -> None:
    owner, offers = a_market(world)
    contract = world.contract(owner)
    # A service that opens a log looks at its last, incomplete tile; this record is to lie before that.
    while world.size < TILE_WIDTH + 1:
        world.deposit("lab", "1")
    with psycopg.connect(database_url) as conn:
        conn.execute("SET session_replication_role = replica")
        changed = conn.execute(
            "UPDATE events SET record = convert_to("
            "replace(convert_from(record, 'UTF8'), '\"7.50\"', '\"88.00\"'), 'UTF8')"
            " WHERE stream = %s AND version = 1",
            (f"offer/{offers[1]['id']}",),
        )
        assert changed.rowcount == 1
    done = soma("ledger", "rematch", contract["id"], "--data-dir", str(tmp_path), database_url=database_url)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "not the same match" in done.stdout
    assert "differs" in done.stdout


def test_a_contract_nobody_made_is_refused(world: World, database_url: str, tmp_path: Path) -> None:
    done = soma(
        "ledger", "rematch", "contract-nothing", "--data-dir", str(tmp_path), database_url=database_url
    )
    assert done.returncode == 2
    assert done.stderr.startswith("contract_not_found: ")
