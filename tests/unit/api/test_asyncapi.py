"""The AsyncAPI document is what the code says, holds together, and its examples keep what it promises."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import yaml
from api.app import VERSION
from api.asyncapi import EXAMPLE_SIGNER, READING, document, page
from domain.log.notes import open_checkpoint
from domain.log.records import EVENTS
from projections.cloud_events import BILLING, CHECKPOINT_TYPE, TOPICS, TRAINING
from projections.ingest import read_message

schemas = pytest.importorskip("jsonschema_rs", reason="it comes with the development dependencies")
parser = pytest.importorskip("yaml", reason="it comes with uvicorn")

COMMITTED = Path(__file__).resolve().parents[3] / "docs" / "asyncapi.yaml"


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    """Write the document once."""
    return document(VERSION)


def references(value: Any) -> Iterator[str]:
    """List every reference in a value, but not what examples happen to contain."""
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for name, inner in value.items():
            if name != "examples":
                yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_the_committed_document_is_the_printed_one() -> None:
    assert COMMITTED.read_text(encoding="utf-8") == page(VERSION), (
        "docs/asyncapi.yaml is not what the code says: run `make docs` and commit it"
    )


def test_the_printed_yaml_means_the_document(written: dict[str, Any]) -> None:
    assert parser.safe_load(page(VERSION)) == written


TEXTS = st.text(max_size=12) | st.sampled_from(
    ["yes", "no", "1", "1.5", "~", "null", "a: b", "- a", "#", "&a", "2026-01-01"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(TEXTS, VALUES, min_size=1, max_size=3))
def test_any_value_is_printed_so_that_a_reader_of_yaml_gets_it_back(value: dict[str, Any]) -> None:
    assert parser.safe_load(yaml.printed(value)) == value


def test_every_reference_leads_somewhere(written: dict[str, Any]) -> None:
    found = set(references(written))
    assert found
    for reference in found:
        place: Any = written
        for step in reference.removeprefix("#/").split("/"):
            assert step in place, f"{reference} leads nowhere"
            place = place[step]


def test_every_event_is_on_the_channel_of_all_records(written: dict[str, Any]) -> None:
    ours = {topic for topic, event in EVENTS.items() if event.__module__.startswith("domain.")}
    assert set(written["channels"]["marketplace.events"]["messages"]) == ours | {CHECKPOINT_TYPE}


def test_the_channels_are_the_topics_the_relay_writes(written: dict[str, Any]) -> None:
    assert tuple(written["channels"]) == (*TOPICS, "slm.metrics")
    assert "usage.metered.billing" in written["channels"][BILLING]["messages"]
    assert "round.completed" in written["channels"][TRAINING]["messages"]


def test_every_message_has_an_example_that_fits_its_schemas(written: dict[str, Any]) -> None:
    for name, message in written["components"]["messages"].items():
        (example,) = message["examples"]
        for part in ("headers", "payload"):
            schema = {**message[part], "components": written["components"]}
            schemas.Draft7Validator(schema).validate(example[part])
        assert example["headers"].get("ce_type", READING) == message["name"], name


def test_the_example_of_a_reading_would_be_taken_in(written: dict[str, Any]) -> None:
    (example,) = written["components"]["messages"][READING]["examples"]
    assert read_message(json.dumps(example["payload"]).encode()).event_id == example["payload"]["event_id"]


def test_an_example_that_does_not_fit_would_be_seen(written: dict[str, Any]) -> None:
    schema = {"$ref": "#/components/schemas/transfer.posted", "components": written["components"]}
    example = written["components"]["messages"]["transfer.posted"]["examples"][0]["payload"]
    with pytest.raises(schemas.ValidationError):
        schemas.Draft7Validator(schema).validate(example | {"data": example["data"] | {"memo": 1}})


def test_the_example_of_a_checkpoint_proves_the_other_examples(written: dict[str, Any]) -> None:
    messages = written["components"]["messages"]
    examples = {
        int(one["examples"][0]["headers"]["ce_sequence"]): one["examples"][0]["payload"]
        for name, one in messages.items()
        if name not in (CHECKPOINT_TYPE, READING)
    }
    note = messages[CHECKPOINT_TYPE]["examples"][0]["payload"].encode()
    checkpoint, _ = open_checkpoint(note, [EXAMPLE_SIGNER.key])
    records = [
        json.dumps(examples[n], sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        for n in range(checkpoint.size)
    ]
    assert naive_root(records) == checkpoint.root
    assert base64.b64encode(checkpoint.root).decode() in messages[CHECKPOINT_TYPE]["examples"][0]["payload"]


def naive_root(leaves: list[bytes]) -> bytes:
    """Compute a root by the definition of RFC 6962."""
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\1" + naive_root(leaves[:split]) + naive_root(leaves[split:])).digest()
