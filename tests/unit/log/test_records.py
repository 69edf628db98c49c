"""Records are canonical bytes; what any release wrote is read by every later one."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.canonical import encode as encode_canonical
from domain.canonical import is_canonical
from domain.errors import AddressInvalidError, LogDamagedError, NotCanonicalError, RecordTooLargeError
from domain.log.records import (
    AGGREGATES,
    EVENTS,
    RECORD_BYTES_MAX,
    Aggregate,
    Event,
    Record,
    address_text,
    blank,
    decode,
    digest,
    encode,
    encode_state,
    parse_address,
)
from tests.unit.log.golden_events import GOLDEN, event_classes, golden_path

OURS = event_classes()
GOLDEN_FILES = sorted(GOLDEN.glob("*.json"))

# Members that hold any JSON object, and where it is checked before it becomes an event.
JSON_MEMBERS = {
    "capsule.evaluated: evaluation": "cleaned by domain.persona.attempts.recordable",
    "capsule.exported: manifest": "the document of domain.persona.manifest, whose fields are strict",
    "capsule.imported: manifest": "the document of domain.persona.manifest, whose fields are strict",
    "claim.opened: evidence": "fields.JsonObject",
    "download.refused: problem": "cleaned by domain.persona.attempts.recordable",
    "evaluation.completed: evaluation": "made by domain.persona.evaluation, whose numbers are decimal texts",
    "evaluation.requested: manifest": "the document of domain.persona.manifest, whose fields are strict",
    "export.failed: problem": "cleaned by domain.persona.attempts.recordable",
    "export.refused: problem": "cleaned by domain.persona.attempts.recordable",
    "export.requested: manifest": "the document of domain.persona.manifest, whose fields are strict",
    "import.refused: problem": "cleaned by domain.persona.attempts.recordable",
    "persona.described: changes": "fields of the command, checked one by one",
    "contract.created: selection_diagnostics": "made by domain.market.matching, no input",
    "dispute.opened: evidence": "fields.JsonObject",
    "intent.amended: changes": "fields of the command, checked one by one",
    "intent.match_failed: diagnostics": "made by domain.market.matching, no input",
    "offer.listed: label_schema": "fields.JsonObject",
    "offer.revised: changes": "fields of the command, checked one by one",
}

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
keys = st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)


class Leaf(Aggregate):
    """A leaf on which anything may be written, twice changed in its shape."""

    KIND = "leaf"

    text: str = ""
    size_mm: int = 0

    class Written(Event, frozen=True):
        """Something was written on a leaf."""

        TOPIC = "leaf.written"

        text: str
        data: Any = None

        def apply(self, leaf: Leaf, record: Record) -> None:
            leaf.text = self.text

    class Grown(Event, frozen=True):
        """A leaf grew; the first release counted in centimetres."""

        TOPIC = "leaf.grown"
        SCHEMA = 2

        size_mm: int

        @staticmethod
        def upcast_1(data: dict[str, Any]) -> dict[str, Any]:
            return {"size_mm": data["size_cm"] * 10}

        def apply(self, leaf: Leaf, record: Record) -> None:
            leaf.size_mm = self.size_mm


def a_record(event: Event, version: int = 1, **members: Any) -> Record:
    """Make a record of a leaf."""
    known: dict[str, Any] = {
        "actor": "anna", "at": "2026-01-31T12:00:00.000000Z", "causation": None, "correlation": None, "data": event,
        "previous": None, "schema": event.SCHEMA, "stream": "leaf/1", "tenant": "acme", "type": event.TOPIC,
        "version": version,
    }  # fmt: skip
    return Record(**(known | members))


class TestEncoding:
    @given(texts, json_values, texts, st.none() | texts)
    def test_the_bytes_of_a_record_are_canonical(self, text, data, actor, correlation):
        if "\\u0000" in json.dumps([text, data, actor, correlation]):
            return
        record = a_record(Leaf.Written(text=text, data=data), actor=actor, correlation=correlation)
        raw = encode(record)
        assert is_canonical(raw)
        assert raw == encode_canonical(json.loads(raw))
        assert decode(raw) == record
        assert encode(decode(raw)) == raw

    @pytest.mark.parametrize("text", ["a\0b", "\0", "\\u0000", "x\\u0000"])
    def test_nul_is_refused_and_so_is_its_spelling(self, text):
        with pytest.raises(NotCanonicalError):
            encode(a_record(Leaf.Written(text=text)))
        with pytest.raises(NotCanonicalError):
            encode(a_record(Leaf.Written(text="", data={"k": [text]})))

    def test_half_a_surrogate_pair_is_refused(self):
        with pytest.raises(NotCanonicalError):
            encode(a_record(Leaf.Written(text="\ud800")))

    def test_a_record_of_the_greatest_size_is_taken_and_one_byte_more_is_not(self):
        room = RECORD_BYTES_MAX - len(encode(a_record(Leaf.Written(text=""))))
        assert len(encode(a_record(Leaf.Written(text="x" * room)))) == RECORD_BYTES_MAX
        for text in ("x" * (room + 1), "é" * (room // 2 + 1), "\n" * room):
            with pytest.raises(RecordTooLargeError):
                encode(a_record(Leaf.Written(text=text)))

    @given(texts)
    def test_the_state_of_an_aggregate_reads_back(self, text):
        leaf = Leaf(id="1", tenant="acme", text=text)
        assert msgspec.json.decode(encode_state(leaf), type=Leaf) == leaf


class TestDecoding:
    raw = encode(a_record(Leaf.Written(text="x")))

    @pytest.mark.parametrize(
        "change",
        [
            {"type": "leaf.burnt"}, {"type": ""}, {"type": None}, {"schema": 2}, {"schema": 0}, {"schema": -1},
            {"schema": "1"}, {"version": "1"}, {"version": 1.5}, {"data": {}}, {"data": {"text": 1}}, {"data": None},
            {"data": {"text": "x", "more": 1}}, {"more": 1}, {"stream": 1}, {"at": None},
        ],
    )  # fmt: skip
    def test_a_record_that_cannot_be_read_is_damage(self, change):
        with pytest.raises(LogDamagedError):
            decode(msgspec.json.encode(msgspec.json.decode(self.raw) | change))

    @pytest.mark.parametrize("member", sorted(msgspec.json.decode(raw)))
    def test_a_record_without_one_of_its_members_is_damage(self, member):
        rest = msgspec.json.decode(self.raw)
        del rest[member]
        with pytest.raises(LogDamagedError):
            decode(msgspec.json.encode(rest))

    @given(st.binary(max_size=60) | st.integers(0, len(raw) - 1).map(lambda n: TestDecoding.raw[:n]))
    def test_bytes_that_are_no_record_are_damage(self, data):
        with pytest.raises(LogDamagedError):
            decode(data)

    def test_an_older_schema_is_lifted_to_the_present_one(self):
        old = msgspec.json.decode(encode(a_record(Leaf.Grown(size_mm=0))))
        old |= {"schema": 1, "data": {"size_cm": 7}}
        record = decode(msgspec.json.encode(old, order="sorted"))
        assert record.data == Leaf.Grown(size_mm=70)
        leaf = Leaf(id="1", tenant="acme").mutate(record)
        assert (leaf.size_mm, leaf.version) == (70, 1)

    def test_a_newer_schema_is_damage_to_an_older_release(self):
        new = msgspec.json.decode(encode(a_record(Leaf.Grown(size_mm=0)))) | {"schema": 3}
        with pytest.raises(LogDamagedError):
            decode(msgspec.json.encode(new))


class TestAggregates:
    def test_events_are_applied_in_order(self):
        leaf = Leaf(id="1", tenant="acme")
        leaf.mutate(a_record(Leaf.Written(text="a"), 1, at="2026-01-01T00:00:00.000000Z"))
        leaf.mutate(a_record(Leaf.Written(text="b"), 2, at="2026-01-02T00:00:00.000000Z"))
        assert (leaf.text, leaf.version) == ("b", 2)
        assert (leaf.created_at[:10], leaf.updated_at[:10]) == ("2026-01-01", "2026-01-02")

    @pytest.mark.parametrize("version", [0, 2, 3, -1])
    def test_a_jump_of_versions_is_damage(self, version):
        leaf = Leaf(id="1", tenant="acme")
        with pytest.raises(LogDamagedError):
            leaf.mutate(a_record(Leaf.Written(text="a"), version))
        assert leaf == Leaf(id="1", tenant="acme")

    def test_a_stream_names_its_aggregate(self):
        assert blank("leaf/a/b", "acme") == Leaf(id="a/b", tenant="acme")
        for stream in ("tree/1", "", "/1"):
            with pytest.raises(LogDamagedError):
                blank(stream, "acme")

    def test_a_wire_type_is_given_once(self):
        with pytest.raises(TypeError, match="taken"):

            class Again(Event, frozen=True):
                TOPIC = "leaf.written"

    def test_every_kind_begins_the_wire_types_of_its_events(self):
        for kind, cls in AGGREGATES.items():
            for event in vars(cls).values():
                if (
                    isinstance(event, type)
                    and issubclass(event, Event)
                    and cls.__module__.startswith("domain.")
                ):
                    assert event.TOPIC.partition(".")[0] == kind
                    assert EVENTS[event.TOPIC] is event


class TestAddress:
    @given(st.binary(max_size=100))
    def test_an_address_is_the_sha3_512_of_the_bytes(self, data):
        text = address_text(digest(data))
        assert text == "sha3-512:" + hashlib.sha3_512(data).hexdigest()
        assert parse_address(text) == digest(data)

    @pytest.mark.parametrize(
        "text",
        [
            "", "sha3-512:", "ab" * 64, "sha3-512:" + "AB" * 64, "sha3-512:" + "ab" * 63, "sha3-512:" + "ab" * 65,
            "sha3-256:" + "ab" * 64, "sha3-512:" + "ab" * 63 + "a ", "SHA3-512:" + "ab" * 64,
            "sha3-512:" + "ab" * 63 + "a\n", "sha3-512:" + "١" * 128, "sha3-512:sha3-512:" + "ab" * 60,
        ],
    )  # fmt: skip
    def test_an_address_has_one_spelling(self, text):
        with pytest.raises(AddressInvalidError):
            parse_address(text)


class TestGoldenRecords:
    @pytest.mark.parametrize(("topic", "cls"), OURS.items())
    def test_every_event_has_a_golden_record_of_every_schema(self, topic, cls):
        for schema in range(1, cls.SCHEMA + 1):
            assert golden_path(topic, schema).exists(), "python -m tests.unit.log.golden_events writes it"
            assert schema == cls.SCHEMA or callable(getattr(cls, f"upcast_{schema}", None))

    @pytest.mark.parametrize("path", GOLDEN_FILES, ids=lambda path: path.stem)
    def test_a_golden_record_is_read_applied_and_written_again(self, path):
        raw = path.read_bytes()
        assert is_canonical(raw)
        record = decode(raw)
        topic, _, schema = path.stem.rpartition(".v")
        assert (record.type, record.schema) == (topic, int(schema))
        aggregate = blank(record.stream, record.tenant)
        aggregate.version = record.version - 1
        aggregate.mutate(record)
        assert msgspec.json.decode(encode_state(aggregate), type=type(aggregate)) == aggregate
        if record.schema == OURS[topic].SCHEMA:
            assert encode(record) == raw

    def test_there_is_no_golden_record_of_an_unknown_event(self):
        assert GOLDEN_FILES
        for path in GOLDEN_FILES:
            topic, _, schema = path.stem.rpartition(".v")
            assert 1 <= int(schema) <= OURS[topic].SCHEMA

    def test_no_event_holds_a_float_or_an_undocumented_any(self):
        found = {line for topic, cls in OURS.items() for line in loose_members(topic, cls)}
        assert found == set(JSON_MEMBERS)

    @pytest.mark.parametrize("cls", OURS.values(), ids=OURS)
    def test_an_event_is_frozen_strict_and_ascii(self, cls):
        assert cls.__struct_config__.frozen
        assert cls.__struct_config__.forbid_unknown_fields
        assert all(field.encode_name.isascii() for field in msgspec.structs.fields(cls))
        assert cls.TOPIC.isascii()
        assert cls.apply is not Event.apply


def loose_members(topic: str, cls: type[Event]) -> list[str]:
    """Name the members of an event, however deep, that may hold a float or anything at all."""
    found = []
    for field in msgspec.inspect.type_info(cls).fields:
        kinds = {type(inner).__name__ for inner in within(field.type, set())}
        assert not kinds & {"FloatType", "DecimalType", "CustomType", "RawType"}, (topic, field.name)
        if "AnyType" in kinds:
            found.append(f"{topic}: {field.name}")
    return found


def within(info: Any, seen: set[type]) -> list[Any]:
    """Walk a type and all types inside it."""
    found = [info]
    if isinstance(info, msgspec.inspect.StructType):
        if info.cls in seen:
            return found
        seen.add(info.cls)
        inner = [field.type for field in info.fields]
    elif isinstance(info, msgspec.inspect.UnionType):
        inner = list(info.types)
    else:
        inner = [
            getattr(info, name) for name in ("item_type", "key_type", "value_type") if hasattr(info, name)
        ]
        inner += list(getattr(info, "item_types", ()))
    for one in inner:
        found += within(one, seen)
    return found
