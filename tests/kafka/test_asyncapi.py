"""The AsyncAPI document is valid by the standard's own schema, and what the relay sends is what it promises."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from domain.log.records import EVENTS
from domain.trust.training import EnableTraining, enable_training
from ops.runtime import open_runtime
from projections.cloud_events import BILLING, CHECKPOINT_TYPE, TOPICS
from tests.kafka.broker import Broker
from tests.kafka.world import kafka_settings, new_origin, read_topic, relay_all, write_some
from tests.real.billing.trading import Trade
from tests.real.log.world import member
from tests.tools import CACHE, building

TRADED = {
    "rental", "subscription", "purchase", "payout", "invoice", "credit_note", "grant", "customer", "usage",
    "price_book", "price_sheet",
}  # fmt: skip
# What the story does not come to: a renewal that fails, and credit a quota adds to.
UNTOLD = {"subscription.renewal_failed", "grant.grown"}
TRADED_TYPES = {
    topic
    for topic, event in EVENTS.items()
    if topic.partition(".")[0] in TRADED and event.__module__.startswith("domain.")
} - UNTOLD
ROOT = Path(__file__).resolve().parents[2]
SPECS = CACHE / "asyncapi-specs-6.11.1"


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """Read the committed document."""
    return yaml.safe_load((ROOT / "docs" / "asyncapi.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def standard() -> dict[str, Any]:
    """Read the schema of AsyncAPI 3.0 as its authors publish it; npm fetches it once."""
    schema = SPECS / "node_modules" / "@asyncapi" / "specs" / "schemas" / "3.0.0.json"
    with building("asyncapi-specs"):
        if not schema.exists():
            if shutil.which("npm") is None:
                pytest.skip("the official schema comes by npm, which is not here")
            words = ["npm", "install", "--prefix", str(SPECS), "--no-audit", "--no-fund", "--ignore-scripts"]
            done = subprocess.run(
                [*words, "@asyncapi/specs@6.11.1"], capture_output=True, text=True, check=False
            )
            if done.returncode:
                pytest.skip(f"npm could not fetch the official schema: {done.stderr[-500:]}")
    return json.loads(schema.read_text(encoding="utf-8"))


def test_the_document_is_valid_by_the_official_schema(
    document: dict[str, Any], standard: dict[str, Any]
) -> None:
    validator = jsonschema_rs.Draft7Validator(standard)
    assert [str(error)[:500] for error in validator.iter_errors(document)] == []
    assert not validator.is_valid(document | {"channels": {"a": {"adress": "a"}}})


def test_every_message_the_relay_sends_is_as_the_document_says(
    broker: Broker, database_url: str, tmp_path: Path, document: dict[str, Any]
) -> None:
    settings = kafka_settings(database_url, tmp_path, broker.bootstrap, new_origin())

    trade = Trade()

    async def play() -> None:
        async with open_runtime(settings, clock=trade.clock) as rt:
            await write_some(rt, 20)
            await rt.ledger.act(enable_training, EnableTraining(reason="a round"), member("acme"))
            await trade.play(rt)
            await relay_all(rt, batch_max=32)

    asyncio.run(play())
    checked: dict[str, set[str]] = {}
    for topic in TOPICS:
        for one in read_topic(broker.bootstrap, topic, settings.log_origin):
            headers = one.text
            if headers["ce_type"].startswith("tally."):
                continue  # the tests' own; the document has the house's
            name = headers["ce_type"] + (".billing" if topic == BILLING else "")
            message = document["components"]["messages"][name]
            assert name in document["channels"][topic]["messages"]
            note = headers["ce_type"] == CHECKPOINT_TYPE
            payload = one.value.decode() if note else json.loads(one.value)
            for part, value in (("headers", headers), ("payload", payload)):
                schema = {**message[part], "components": document["components"]}
                jsonschema_rs.Draft7Validator(schema).validate(value)
            assert headers["content-type"] == message["contentType"]
            checked.setdefault(topic, set()).add(headers["ce_type"])
    assert set(checked) == set(TOPICS)
    assert CHECKPOINT_TYPE in checked[TOPICS[0]]
    assert {name for name in checked[BILLING] if name.partition(".")[0] in TRADED} == TRADED_TYPES
