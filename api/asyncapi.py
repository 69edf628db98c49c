"""The AsyncAPI document: what is in Kafka, for those who read it there.

It is printed from the event classes and from the code that writes the messages; its examples are the golden records as
that code writes them, and the example of a checkpoint is the signed head over exactly these records.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from api import yaml
from domain.billing.usage import Reading
from domain.log.hashes import leaf_hash
from domain.log.notes import Checkpoint, Signer
from domain.log.records import EVENTS, Event, digest
from domain.log.tree import Frontier
from ops.kafka import Message
from ops.reads import Stored
from projections import cloud_events
from projections.cloud_events import (
    ATTRIBUTES,
    CHECKPOINT_TYPE,
    FOUND,
    TRAINING_KINDS,
    CloudEvents,
    is_billing,
)
from projections.ingest import CLOUD_EVENTS
from projections.ingest import TOPIC as METRICS

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
OURS = "domain."
EXAMPLE_ORIGIN = "soma-ledger.local/log"
# The examples' checkpoint is signed with this key, which is nobody's.
EXAMPLE_SIGNER = Signer(EXAMPLE_ORIGIN, bytes(range(32)))
BINDING = "0.5.0"
READING = "usage.reading"

TITLES = {
    cloud_events.EVENTS: "Every record of the log, and its signed checkpoints",
    cloud_events.BILLING: "Records that move money, and all of billing, with the amounts in headers",
    cloud_events.TRAINING: "Training mode and training rounds",
}
ADDRESS = {"type": "string", "pattern": "^sha3-512:[0-9a-f]{128}$"}
MOMENT = {"type": "string", "format": "date-time", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$"}
TEXT = {"type": "string", "minLength": 1}
AMOUNTS = {"type": "string", "pattern": r"^-?\d+(\.\d{1,9})?(,-?\d+(\.\d{1,9})?)*$"}


class Kind(NamedTuple):
    """A wire type, its event class and a record of it."""

    topic: str
    event: type[Event]
    golden: bytes | None
    position: int

    @property
    def channels(self) -> list[str]:
        group = self.topic.partition(".")[0]
        return [
            cloud_events.EVENTS,
            *([cloud_events.BILLING] if is_billing(self.topic) else []),
            *([cloud_events.TRAINING] if group in TRAINING_KINDS else []),
        ]


def page(version: str) -> str:
    """Print `docs/asyncapi.yaml`."""
    return yaml.printed(document(version))


def document(version: str) -> dict[str, Any]:
    """Write the document.

    Source: AsyncAPI 3.0.0; its Kafka bindings 0.5.0.
    """
    kinds = _kinds()
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Soma Ledger",
            "version": version,
            "description": (
                "Every record of the log as a CloudEvent 1.0 in binary mode, once and in order by stream for readers"
                " with isolation.level read_committed. The value is the record's own bytes: their SHA3-512 is ce_id."
                " ce_sequence is the record's position; positions have no gaps, and each checkpoint proves it."
            ),
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": cloud_events.RECORD_MEDIA,
        "servers": {"kafka": _server()},
        "channels": {topic: _channel(topic, kinds) for topic in cloud_events.TOPICS} | {METRICS: _metrics()},
        "operations": {f"relay.{topic}": _operation(topic) for topic in cloud_events.TOPICS}
        | {f"ingest.{METRICS}": _ingest()},
        "components": {
            "messages": _messages(kinds) | {READING: _reading(kinds)},
            "schemas": _schemas(kinds) | {READING: _reading_schema()},
        },
    }


def _kinds() -> list[Kind]:
    found: list[Kind] = []
    for topic, event in sorted(EVENTS.items()):
        if event.__module__.startswith(OURS):
            path = GOLDEN / f"{topic}.v{event.SCHEMA}.json"
            golden = path.read_bytes() if path.exists() else None
            position = sum(kind.golden is not None for kind in found)
            found.append(Kind(topic, event, golden, position))
    return found


# --------------------------------------------------------------------------- channels


def _server() -> dict[str, Any]:
    return {
        "host": "{brokers}",
        "protocol": "kafka",
        "description": "The cluster that SOMA_KAFKA_BOOTSTRAP_SERVERS names.",
        "variables": {"brokers": {"default": "localhost:9092", "description": "host:port, by commas"}},
    }


def _channel(topic: str, kinds: Sequence[Kind]) -> dict[str, Any]:
    names = [_name(kind.topic, topic) for kind in kinds if topic in kind.channels]
    if topic == cloud_events.EVENTS:
        names.append(CHECKPOINT_TYPE)
    return {
        "address": topic,
        "title": TITLES[topic],
        "description": (
            "Keyed by stream, so a stream's records are in one partition and in order. Times are the broker's"
            " (LogAppendTime); the topic is never compacted; the number of partitions is fixed when it is made."
        ),
        "messages": {name: _ref("messages", name) for name in names},
        "bindings": {
            "kafka": {
                "topic": topic,
                "topicConfiguration": {"cleanup.policy": ["delete"], "retention.ms": -1},
                "bindingVersion": BINDING,
            }
        },
    }


def _operation(topic: str) -> dict[str, Any]:
    return {
        "action": "send",
        "channel": {"$ref": f"#/channels/{topic}"},
        "title": "Relay",
        "summary": "Each batch is one transaction: its messages, a signed checkpoint and the relay's own position.",
    }


def _name(topic: str, channel: str) -> str:
    """Name a message; on the billing topic it has more headers, so it is another one."""
    return f"{topic}.billing" if channel == cloud_events.BILLING else topic


def _ref(kind: str, name: str) -> dict[str, str]:
    return {"$ref": f"#/components/{kind}/{name}"}


# --------------------------------------------------------------------------- messages


def _messages(kinds: Sequence[Kind]) -> dict[str, Any]:
    events = CloudEvents(EXAMPLE_ORIGIN)
    found: dict[str, Any] = {}
    for kind in kinds:
        written = {message.topic: message for message in _written(events, kind)}
        for channel in kind.channels:
            name = _name(kind.topic, channel)
            billing = channel == cloud_events.BILLING
            found[name] = {
                "name": kind.topic,
                "title": kind.topic,
                "summary": (kind.event.__doc__ or kind.topic).strip().splitlines()[0],
                "contentType": cloud_events.RECORD_MEDIA,
                "headers": _ref("schemas", "BillingHeaders" if billing else "RecordHeaders"),
                "payload": _ref("schemas", kind.topic),
                "bindings": _key("the record's stream"),
                **_example(written.get(channel)),
            }
    return dict(sorted(found.items())) | {CHECKPOINT_TYPE: _checkpoint(events, kinds)}


def _written(events: CloudEvents, kind: Kind) -> Iterable[Message]:
    if kind.golden is None:
        return ()
    return events.messages(Stored(kind.position, digest(kind.golden), kind.golden))


def _example(message: Message | None) -> dict[str, Any]:
    if message is None:
        return {}
    return {"examples": [{"headers": dict(message.headers), "payload": json.loads(message.value)}]}


def _checkpoint(events: CloudEvents, kinds: Sequence[Kind]) -> dict[str, Any]:
    """Describe the message that proves completeness; its example covers the records of all other examples."""
    leaves = [leaf_hash(kind.golden) for kind in kinds if kind.golden is not None]
    head = Checkpoint(EXAMPLE_ORIGIN, len(leaves), Frontier().extend(leaves)[0].root())
    message = events.checkpoint(len(leaves), head.sign(EXAMPLE_SIGNER), "2026-01-31T12:00:00.000001Z")
    return {
        "name": CHECKPOINT_TYPE,
        "title": "Signed checkpoint",
        "summary": "The log's signature over its size and the RFC 6962 root of all records before it.",
        "description": (
            "ce_sequence is the size. A C2SP signed note; the example's key is"
            f" {EXAMPLE_SIGNER.key.text}, and its tree holds the examples of this page by ce_sequence."
        ),
        "contentType": cloud_events.CHECKPOINT_MEDIA,
        "headers": _ref("schemas", "CheckpointHeaders"),
        "payload": _ref("schemas", "Checkpoint"),
        "bindings": _key("the log's origin"),
        "examples": [{"headers": dict(message.headers), "payload": message.value.decode()}],
    }


def _key(meaning: str) -> dict[str, Any]:
    key = {"type": "string", "description": meaning}
    return {"kafka": {"key": key, "bindingVersion": BINDING}}


# --------------------------------------------------------------------------- what is taken in


def _metrics() -> dict[str, Any]:
    return {
        "address": METRICS,
        "title": "Usage readings that services send in",
        "description": (
            "Each reading becomes a `usage.metered` record once, however often it comes; what cannot be taken becomes a"
            " dead letter with its reason and stops nothing behind it."
        ),
        "messages": {READING: _ref("messages", READING)},
        "bindings": {"kafka": {"topic": METRICS, "bindingVersion": BINDING}},
    }


def _ingest() -> dict[str, Any]:
    return {
        "action": "receive",
        "channel": {"$ref": f"#/channels/{METRICS}"},
        "title": "Ingest",
        "summary": "Readings are metered in batches; the group's offsets are kept after their effect.",
    }


def _reading(kinds: Sequence[Kind]) -> dict[str, Any]:
    """Describe a reading; its example is the one that the golden record was made of."""
    golden = next((kind.golden for kind in kinds if kind.topic == "usage.metered"), None)
    record = json.loads(golden or "{}")
    example = [{"headers": {}, "payload": {"tenant": record["tenant"], **record["data"]}}] if golden else []
    return {
        "name": READING,
        "title": "Usage reading",
        "summary": "What one request to a model consumed, or several that a source has summed up.",
        "contentType": cloud_events.RECORD_MEDIA,
        "headers": {
            "type": "object",
            "description": "As a CloudEvent in binary mode they say what the value leaves out.",
            "properties": {
                name: {"type": "string", "description": f"`{member}`, where the value has none."}
                for name, member in CLOUD_EVENTS.items()
            },
        },
        "payload": _ref("schemas", READING),
        "examples": example,
    }


def _reading_schema() -> dict[str, Any]:
    schema: dict[str, Any] = _plain(Reading.model_json_schema(), {})
    by_header = set(CLOUD_EVENTS.values())
    required = [name for name in schema["required"] if name not in by_header]
    tenant = {"type": "string", "description": "Whose usage it is."}
    return schema | {
        "required": [*required, "tenant"],
        "properties": schema["properties"] | {"tenant": tenant},
    }


# --------------------------------------------------------------------------- schemas


def _schemas(kinds: Sequence[Kind]) -> dict[str, Any]:
    refs, components = msgspec.json.schema_components(
        [kind.event for kind in kinds], ref_template="#/components/schemas/{name}"
    )
    # An event's members are named by its wire type, which lasts, not by its class.
    names = {
        ref["$ref"].rpartition("/")[2]: f"{kind.topic}.data" for kind, ref in zip(kinds, refs, strict=True)
    }
    data = {names.get(name, name): _plain(schema, names) for name, schema in components.items()}
    envelopes = {kind.topic: _envelope(kind) for kind in kinds}
    return dict(sorted((data | envelopes | _headers()).items()))


def _plain(schema: Any, names: dict[str, str]) -> Any:
    """Write a schema as AsyncAPI has it: a discriminator is a name there, and alternatives tell themselves apart."""
    if isinstance(schema, list):
        return [_plain(inner, names) for inner in schema]
    if not isinstance(schema, dict):
        return " ".join(schema.split()) if isinstance(schema, str) else schema
    found = {key: _plain(inner, names) for key, inner in schema.items() if key != "discriminator"}
    if "$ref" in found:
        place, _, name = found["$ref"].rpartition("/")
        found["$ref"] = f"{place}/{names.get(name, name)}"
    return found


def _envelope(kind: Kind) -> dict[str, Any]:
    nullable = {"type": ["string", "null"]}
    members = {
        "actor": {"type": "string"},
        "at": MOMENT,
        "causation": nullable,
        "correlation": nullable,
        "data": _ref("schemas", f"{kind.topic}.data"),
        "previous": {**ADDRESS, "type": ["string", "null"]},
        "schema": {"const": kind.event.SCHEMA},
        "stream": {"type": "string", "pattern": "^[^/]+/.+$"},
        "tenant": {"type": "string"},
        "type": {"const": kind.topic},
        "version": {"type": "integer", "minimum": 1},
    }
    return {
        "$id": f"{cloud_events.SCHEMA_BASE}{kind.topic}/{kind.event.SCHEMA}",
        "type": "object",
        "description": "The record, as RFC 8785 canonical JSON.",
        "required": list(members),
        "properties": members,
        "additionalProperties": False,
    }


def _headers() -> dict[str, Any]:
    always = {
        "ce_id": {**ADDRESS, "description": "The record's address: SHA3-512 of the value."},
        "ce_specversion": {"const": "1.0"},
        "content-type": {"const": cloud_events.RECORD_MEDIA},
        "ce_source": {**TEXT, "description": "The log's origin."},
        "ce_type": TEXT,
        "ce_dataschema": {"type": "string", "format": "uri"},
        "ce_subject": {**TEXT, "description": "The record's stream; the message's key."},
        "ce_time": MOMENT,
        "ce_sequence": {
            "type": "string",
            "pattern": r"^\d{20}$",
            "description": "The record's position in the log.",
        },
        "ce_partitionkey": TEXT,
        "ce_tenant": {"type": "string"},
    }
    sometimes = {"ce_correlationid": {"type": "string"}, "ce_causationid": {"type": "string"}}
    billing = {
        "ce_recordedtime": {**MOMENT, "description": "When the log took it in."},
        "ce_occurredtime": {**MOMENT, "description": "When it happened, which for usage may be long before."},
        "ce_operations": {
            **TEXT,
            "description": "What is done to the book, by commas: open, transfer, hold, ...",
        },
        "ce_accounts": {**TEXT, "description": "The accounts it touches, by commas."},
        "ce_holds": {
            **TEXT,
            "description": "The holds it places or ends, by commas; what is given back names its hold and no account.",
        },
        "ce_currency": {"type": "string", "pattern": "^[A-Z]{3}(,[A-Z]{3})*$"},
        "ce_amount": {
            **AMOUNTS,
            "description": "What is moved, held or stated, in units of ce_currency, in its order.",
        },
        **{attribute: {"type": "string"} for attribute in ATTRIBUTES.values()},
        **{attribute: {**TEXT, "description": meaning} for attribute, meaning in FOUND.items()},
    }
    timed = {name: billing.pop(name) for name in ("ce_recordedtime", "ce_occurredtime")}
    noted = {name: schema for name, schema in always.items() if name not in ("ce_dataschema", "ce_tenant")}
    noted |= {
        "ce_id": {"type": "string", "pattern": r"^.+@\d+$"},
        "content-type": {"const": cloud_events.CHECKPOINT_MEDIA},
        "ce_type": {"const": CHECKPOINT_TYPE},
        "ce_sequence": {
            "type": "string",
            "pattern": r"^\d{20}$",
            "description": "The size the checkpoint is over.",
        },
    }
    return {
        "RecordHeaders": _object(always, sometimes),
        "BillingHeaders": _object(always | timed, sometimes | billing),
        "CheckpointHeaders": _object(noted, {}),
        "Checkpoint": {
            "type": "string",
            "pattern": "^[^\n]+\n\\d+\n[A-Za-z0-9+/]{43}=\n\n(\u2014 [^\n]+\n)+$",
        },
    }


def _object(required: dict[str, Any], optional: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": list(required),
        "properties": required | optional,
        "additionalProperties": False,
    }
