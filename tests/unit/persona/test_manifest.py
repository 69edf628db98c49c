"""Manifests: one address whatever they were written in, and faults that tell their author what to mend."""

from __future__ import annotations

import copy
import json
import re
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from api.schemas import written_schemas
from api.yaml import printed
from domain.canonical import seal_of
from domain.errors import ManifestInvalidError
from domain.persona.bundles import COLUMNS
from domain.persona.manifest import (
    MANIFEST_BYTES_MAX,
    PersonaManifest,
    capsule_id,
    manifest_schema,
    parse_manifest,
    read_manifest,
    read_sealed_manifest,
)
from domain.persona.manifest_faults import FAULTS_MAX
from domain.persona.manifest_fields import version_key
from domain.persona.manifest_text import SOURCE_BYTES_MAX, read_yaml
from tests.unit.persona.capsule_maker import document, part_ref

ROOT = Path(__file__).resolve().parents[3]
DOCUMENT = document()
VALIDATOR = jsonschema_rs.Draft202012Validator(manifest_schema())
Change = Callable[[dict[str, Any]], None]


def changed(*path: Any) -> dict[str, Any]:
    """Copy the document with one place set: the last argument is the value, those before it lead there."""
    copied = copy.deepcopy(DOCUMENT)
    *steps, last, value = path
    at: Any = copied
    for step in steps:
        at = at[step]
    at[last] = value
    return copied


def without(*path: Any) -> dict[str, Any]:
    """Copy the document with one place removed."""
    copied = copy.deepcopy(DOCUMENT)
    *steps, last = path
    at: Any = copied
    for step in steps:
        at = at[step]
    del at[last]
    return copied


def faults(value: Any) -> list[dict[str, Any]]:
    """Give the faults of plain values that are no manifest."""
    with pytest.raises(ManifestInvalidError) as refusal:
        parse_manifest(value)
    found: list[dict[str, Any]] = refusal.value.facts["faults"]
    return found


def fault_of(text: str | bytes) -> dict[str, Any]:
    """Give the first fault of a text."""
    with pytest.raises(ManifestInvalidError) as refusal:
        read_manifest(text if isinstance(text, bytes) else text.encode())
    found: dict[str, Any] = refusal.value.facts["faults"][0]
    assert refusal.value.message.endswith(found["why"]) or " more)" in refusal.value.message
    return found


# --------------------------------------------------------------------------- one form


class TestOneAddress:
    """Equal manifests are equal bytes."""

    @pytest.mark.parametrize(
        "text",
        [
            json.dumps(DOCUMENT),
            json.dumps(DOCUMENT, indent=3, sort_keys=True),
            yaml.safe_dump(DOCUMENT, sort_keys=False),
            yaml.safe_dump(DOCUMENT, default_flow_style=True, explicit_start=True),
            "# a comment\n---\n" + yaml.safe_dump(DOCUMENT),
            printed(DOCUMENT),
        ],
        ids=[
            "json",
            "json sorted",
            "yaml",
            "yaml in flow style",
            "yaml with a comment",
            "yaml of our own printer",
        ],
    )
    def test_the_same_manifest_has_the_same_address_whatever_it_is_written_in(self, text: str) -> None:
        assert read_manifest(text.encode()).address == PersonaManifest.model_validate(DOCUMENT).address

    def test_the_address_is_the_seal_of_the_canonical_bytes_in_the_context_of_capsules(self) -> None:
        data, address = read_manifest(json.dumps(DOCUMENT).encode()).sealed()
        assert address == seal_of("soma/capsule/v1", data)
        assert capsule_id(address) == address[len("sha3-512:") :]
        assert data == json.dumps(json.loads(data), sort_keys=True, separators=(",", ":")).encode()

    def test_a_field_left_out_is_its_default_written_out(self) -> None:
        lean = without("model_box", "default_mode")
        assert parse_manifest(lean).address == parse_manifest(DOCUMENT).address

    @pytest.mark.parametrize(
        ("path", "written", "kept"),
        [
            (("model_box", "temperature"), "0.200", "0.2"),
            (("model_box", "temperature"), "1.0", "1"),
            (("evaluations", 0, "score"), "0.920", "0.92"),
            (
                ("pricing", 0, "price"),
                {"currency": "USD", "amount": "0.5"},
                {"amount": "0.50", "currency": "USD"},
            ),
            (("metadata", "created_at"), "2026-01-01T01:00:00+01:00", "2026-01-01T00:00:00.000000Z"),
        ],
    )
    def test_a_value_has_one_written_form(self, path: tuple[Any, ...], written: Any, kept: Any) -> None:
        assert parse_manifest(changed(*path, written)).address == parse_manifest(changed(*path, kept)).address

    def test_the_order_of_files_says_nothing(self) -> None:
        turned = changed("artifacts", DOCUMENT["artifacts"][::-1])
        assert parse_manifest(turned).address == parse_manifest(DOCUMENT).address
        assert [part.name for part in parse_manifest(turned).parts] == [
            "memory.parquet",
            "prompts.json",
            "report.json",
            "tools.json",
        ]

    def test_what_was_sealed_is_read_back_from_its_canonical_bytes_and_from_no_others(self) -> None:
        manifest = parse_manifest(DOCUMENT)
        data = manifest.sealed()[0]
        assert read_sealed_manifest(data) == manifest
        for other in (data + b"\n", b" " + data, json.dumps(json.loads(data)).encode()):
            with pytest.raises(ManifestInvalidError):
                read_sealed_manifest(other)

    def test_a_sealed_manifest_in_yaml_is_refused(self) -> None:
        with pytest.raises(ManifestInvalidError):
            read_sealed_manifest(yaml.safe_dump(DOCUMENT).encode())

    def test_a_manifest_cannot_be_changed(self) -> None:
        manifest = parse_manifest(DOCUMENT)
        with pytest.raises(ValidationError):
            manifest.metadata.version = "2.0.0"  # type: ignore[misc]

    def test_parts_are_found_by_name_and_by_role(self) -> None:
        manifest = parse_manifest(DOCUMENT)
        found = manifest.part("prompts.json")
        assert found is not None
        assert found.role == "prompts"
        assert manifest.part("nothing.json") is None
        assert [part.name for part in manifest.parts_of("memory")] == ["memory.parquet"]


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp", "Cf"]), max_size=40)


class TestAnyText:
    """Whatever an author writes is read back as it was written."""

    @given(summary=TEXTS, notes=TEXTS, count=st.integers(0, 1_000_000), flag=st.booleans())
    @settings(deadline=None, max_examples=60)
    def test_json_and_yaml_say_the_same(self, summary: str, notes: str, count: int, flag: bool) -> None:
        given_values = changed("metadata", "summary", summary)
        given_values["tools"][0]["notes"] = notes
        given_values["memory"]["item_count"] = count
        given_values["governance"]["kill_switch_enabled"] = flag
        as_json = read_manifest(json.dumps(given_values).encode())
        as_yaml = read_manifest(yaml.safe_dump(given_values, allow_unicode=True).encode())
        assert as_json == as_yaml
        assert as_json.metadata.summary == summary
        assert read_sealed_manifest(as_json.sealed()[0]) == as_json

    @given(
        data=st.binary(max_size=300) | st.text(max_size=200).map(lambda text: text.encode(errors="replace"))
    )
    @settings(deadline=None, max_examples=200)
    def test_no_bytes_end_in_anything_but_a_manifest_or_a_refusal_that_can_be_sent(self, data: bytes) -> None:
        with pytest.raises(ManifestInvalidError) as refusal:
            read_manifest(data)
        json.dumps(refusal.value.problem(), ensure_ascii=False).encode()

    @given(
        text=st.text(alphabet="ab:-[]{}&*!#'\"\\|>%@,?\n \t~", max_size=60),
    )
    @settings(deadline=None, max_examples=300)
    def test_no_yaml_breaks_the_reader(self, text: str) -> None:
        try:
            value, lines = read_yaml(text.encode())
        except ManifestInvalidError:
            return
        json.dumps(value)
        assert lines[""] >= 1


# --------------------------------------------------------------------------- faults


FAULTS: list[tuple[dict[str, Any] | Any, str, str]] = [
    (changed("schema", "soma/persona_manifest/2"), "/schema", "it must be 'soma/persona_manifest/1'"),
    (without("memory"), "/memory", "this field is required"),
    (changed("metadata", "persona_id", "Tax Advisor"), "/metadata/persona_id", "lower-case letters"),
    (changed("metadata", "persona_id", "ab"), "/metadata/persona_id", "3 to 64"),
    (changed("metadata", "persona_id", "tax-advisor\n"), "/metadata/persona_id", "3 to 64"),
    (changed("metadata", "version", "1.0"), "/metadata/version", "semantic version"),
    (changed("metadata", "version", "1.0.0+build"), "/metadata/version", "semantic version"),
    (changed("metadata", "version", "01.0.0"), "/metadata/version", "semantic version"),
    (changed("metadata", "version", 1), "/metadata/version", 'such as "1"'),
    (changed("metadata", "sumary", "x"), "/metadata/sumary", "did you mean summary?"),
    (changed("metadata", "zzz", "x"), "/metadata/zzz", "there is no such field"),
    (changed("metadata", "owners", []), "/metadata/owners", "at least 1 item"),
    (changed("metadata", "owners", 0, "subjekt", "x"), "/metadata/owners/0/subjekt", "did you mean subject?"),
    (changed("metadata", "owners", [{"subject": "a"}, {"subject": "a"}]), "/metadata/owners/1", "twice"),
    (changed("metadata", "domains", ["tax", "tax"]), "/metadata/domains/1", "twice"),
    (changed("metadata", "display_name", " x"), "/metadata/display_name", "one line"),
    (changed("metadata", "display_name", "two\nlines"), "/metadata/display_name", "one line"),
    (changed("metadata", "display_name", "turned \u202egnal"), "/metadata/display_name", "one line"),
    (changed("metadata", "summary", "hidden\u0007bell"), "/metadata/summary", "control characters"),
    (changed("metadata", "summary", "x" * 2_001), "/metadata/summary", "at most 2000 characters"),
    (changed("metadata", "created_at", "2026-01-01"), "/metadata/created_at", "at least 20 characters"),
    (changed("metadata", "created_at", "2026-02-30T00:00:00Z"), "/metadata/created_at", "RFC 3339"),
    (
        changed("metadata", "updated_at", "2025-01-01T00:00:00Z"),
        "/metadata/updated_at",
        "before it was created",
    ),
    (changed("model_box", "temperature", 0.2), "/model_box/temperature", 'such as "0.2"'),
    (changed("model_box", "temperature", "2.1"), "/model_box/temperature", 'from "0" to "2"'),
    (changed("model_box", "default_mode", "demo"), "/model_box/default_mode", "'production' or 'training'"),
    (
        changed("model_box", "capabilities", 0, "enabled", "yes"),
        "/model_box/capabilities/0/enabled",
        "true or false",
    ),
    (changed("memory", "item_count", "7"), "/memory/item_count", "a whole number, without quotation marks"),
    (changed("memory", "item_count", -1), "/memory/item_count", "greater than or equal to 0"),
    (changed("memory", "item_count", 1_000_001), "/memory/item_count", "less than or equal to 1000000"),
    (changed("memory", "dimension", 0), "/memory/dimension", "greater than or equal to 1"),
    (changed("memory", "dimension", True), "/memory/dimension", "a whole number"),
    (changed("memory", "metric", "l2"), "/memory/metric", "'cosine', 'dot' or 'euclidean'"),
    (changed("memory", "bundle", "prompts.json"), "/memory/bundle", "no part whose role is memory"),
    (changed("memory", "checksum", "00"), "/memory/checksum", "digests stand under artifacts"),
    (changed("memory", "storage_uri", "s3://x"), "/memory/storage_uri", "not part of a manifest"),
    (changed("tools", 0, "access_scope", "root"), "/tools/0/access_scope", "read, write, admin, or policy:"),
    (changed("tools", [DOCUMENT["tools"][0]] * 2), "/tools/1", "twice"),
    (changed("tools", 5), "/tools", "it must be a list"),
    (changed("tools", [5]), "/tools/0", "an object with named fields"),
    (changed("evaluations", 0, "score", "1.5"), "/evaluations/0/score", 'from "0" to "1"'),
    (changed("evaluations", 0, "report", "tools.json"), "/evaluations/0/report", "no part whose role is"),
    (changed("evaluations", 0, "reference_link", "http://x"), "/evaluations/0/reference_link", "https://"),
    (changed("governance", "constitution", "abc"), "/governance/constitution", "128 lower-case hexadecimal"),
    (
        changed("governance", "constitution_sha", "abc"),
        "/governance/constitution_sha",
        "called constitution now",
    ),
    (changed("governance", "approvals", []), "/governance/approvals", "kept by the ledger"),
    (without("governance", "kill_switch_enabled"), "/governance/kill_switch_enabled", "required"),
    (changed("pricing", []), "/pricing", "at least 1 item"),
    (
        changed("pricing", 0, "price", "5"),
        "/pricing/0/price",
        'money is {"amount": "12.50", "currency": "USD"}',
    ),
    (changed("pricing", 0, "price", {"amount": 5, "currency": "USD"}), "/pricing/0/price", "decimal string"),
    (
        changed("pricing", 0, "price", {"amount": "-1", "currency": "USD"}),
        "/pricing/0/price",
        "not be negative",
    ),
    (changed("pricing", 0, "price", {"amount": "1", "currency": "XXX"}), "/pricing/0/price", "currency code"),
    (
        changed("pricing", 0, "billing_period_minutes", None),
        "/pricing/0/billing_period_minutes",
        "names its period",
    ),
    (
        changed("pricing", 1, "billing_period_minutes", 5),
        "/pricing/1/billing_period_minutes",
        "has no period",
    ),
    (changed("pricing", [DOCUMENT["pricing"][0]] * 2), "/pricing/1", "twice"),
    (changed("artifacts", []), "/artifacts", "at least 1 item"),
    (changed("artifacts", 1, "name", "Prompts.json"), "/artifacts/1/name", "lower-case letters"),
    (changed("artifacts", 1, "name", "../prompts.json"), "/artifacts/1/name", "a file name"),
    (changed("artifacts", 1, "name", "a..b"), "/artifacts/1/name", "single dots"),
    (changed("artifacts", 1, "name", "x/y"), "/artifacts/1/name", "a file name"),
    (changed("artifacts", 1, "name", "a" * 95), "/artifacts/1/name", "at most 94 characters"),
    (changed("artifacts", 1, "name", "tools.json"), "/artifacts/3", "twice"),
    (changed("artifacts", 1, "role", "memory"), "/artifacts/1/role", "one memory bundle"),
    (changed("artifacts", 1, "role", "code"), "/artifacts/1/role", "it must be 'prompts'"),
    (changed("artifacts", 1, "digest", "sha3-256:" + "0" * 64), "/artifacts/1/digest", "sha3-512:"),
    (changed("artifacts", 1, "sha256", "A" * 64), "/artifacts/1/sha256", "64 lower-case hexadecimal"),
    (changed("artifacts", 1, "bytes", 0), "/artifacts/1/bytes", "greater than or equal to 1"),
    (changed("artifacts", 1, "bytes", 2**33), "/artifacts/1/bytes", "less than or equal to 8589934591"),
    (changed("artifacts", 1, "media_type", "text/plain; charset=x"), "/artifacts/1/media_type", "media type"),
    (changed("signature", {"algorithm": "none"}), "/signature", "travel beside the manifest"),
    ([], "", "an object with named fields"),
    (None, "", "an object with named fields"),
]


class TestFaults:
    """A fault says where, why, and what stands there."""

    @pytest.mark.parametrize(
        ("value", "path", "why"), FAULTS, ids=[f"{path} {why}" for _, path, why in FAULTS]
    )
    def test_a_fault_names_its_place_and_its_reason(self, value: Any, path: str, why: str) -> None:
        assert [one for one in faults(value) if one["path"] == path and why in one["why"]]

    def test_all_faults_are_told_at_once(self) -> None:
        bad = changed("metadata", "version", "one")
        bad["memory"]["dimension"] = 0
        del bad["governance"]
        assert {one["path"] for one in faults(bad)} == {
            "/metadata/version",
            "/memory/dimension",
            "/governance",
        }

    def test_only_the_first_faults_of_many_are_told(self) -> None:
        assert len(faults(changed("metadata", {f"field_{n}": n for n in range(200)}))) == FAULTS_MAX

    def test_what_stands_there_is_told_and_cut_short(self) -> None:
        assert faults(changed("metadata", "version", "one"))[0]["got"] == "one"
        assert len(faults(changed("metadata", "version", "9" * 60_000))[0]["got"]) == 80

    def test_what_cannot_be_seen_is_shown(self) -> None:
        assert faults(changed("metadata", "display_name", "a\u202eb"))[0]["got"] == "a\\u202eb"

    def test_a_fault_in_yaml_names_its_line(self) -> None:
        text = yaml.safe_dump(DOCUMENT, sort_keys=False).replace("version: 1.0.0", "version: one")
        line = text[: text.index("version: one")].count("\n") + 1
        assert fault_of(text) == {
            "path": "/metadata/version",
            "why": 'it must be a semantic version without build metadata, such as "1.4.0" or "2.0.0-rc.1"',
            "got": "one",
            "line": line,
        }

    def test_a_field_missing_in_yaml_is_on_the_line_of_what_should_hold_it(self) -> None:
        text = yaml.safe_dump(without("memory", "dimension"), sort_keys=False)
        line = text[: text.index("snapshot_id")].count("\n") + 1
        assert fault_of(text)["line"] == line

    def test_a_manifest_that_is_too_large_is_refused(self) -> None:
        many = [{"tool": f"tool-{n}", "access_scope": "read", "notes": "x" * 600} for n in range(60)]
        found = faults(changed("tools", many))
        assert found == [
            {"path": "", "why": f"a manifest holds {MANIFEST_BYTES_MAX:,} bytes at most in canonical form"}
            | {"got": found[0]["got"]}
        ]
        assert found[0]["got"] > MANIFEST_BYTES_MAX

    def test_a_text_that_is_too_large_is_not_even_read(self) -> None:
        assert fault_of(b"[" * (SOURCE_BYTES_MAX + 1))["got"] == SOURCE_BYTES_MAX + 1


# --------------------------------------------------------------------------- what is not read


REFUSED_TEXTS: list[tuple[str | bytes, str]] = [
    ("", "the text is empty"),
    ("# only a comment", "the text is empty"),
    ('{"schema": 1, "schema": 2}', "'schema' occurs twice"),
    ('{"a": NaN}', "NaN is not a number"),
    ('{"a": Infinity}', "Infinity is not a number"),
    ('{"a": "\\ud800"}', "a surrogate stands alone"),
    ('{"a": 1} {"b": 2}', "Extra data"),
    ('{"a": 1,}', "not JSON"),
    ('{"a":' * 200 + "1" + "}" * 200, "16 levels deep"),
    ('{"a":' * 10_000, "nested too deeply"),
    (b'{"a": "\xff"}', "not UTF-8"),
    (b"a: \xff", "not UTF-8"),
    (b"\xff\xfea\x00:\x00", "not UTF-8"),
    ("a: 1\na: 2", "the name 'a' stands here twice"),
    ("a: {b: 1, b: 2}", "the name 'b' stands here twice"),
    ("a: &x 1", "anchors and aliases"),
    ("a: *x", "anchors and aliases"),
    ("a: &a [1]\nb: [*a, *a]", "anchors and aliases"),
    ("a: !!python/object/apply:os.system ['x']", "tags such as"),
    ("a: !!binary aGVsbG8=", "tags such as"),
    ("a: !local x", "tags such as !local"),
    ("a: !!str 5", "tags such as"),
    ("a: ! x", "tags such as !"),
    ("? [a, b]\n: 1", "a name is plain text"),
    ("? {a: 1}\n: 1", "a name is plain text"),
    ("--- a\n--- b", "found another document"),
    ('"\\UFFFFFFFF": 1', "not YAML"),
    ('a: "\\U00110000"', "not YAML"),
    ("[" + "1," * 12_000 + "]", "more than 10,000 names and values"),
    ("a: [1, 2", "not YAML at line 1"),
    ("a: 'x", "not YAML at line 1"),
    ("\ta: 1", "not YAML at line 1"),
    ("a: \x07", "special characters are not allowed"),
    ('a: "\\ud800"', "half of a character"),
    ('"\\ud800": 1', "half of a character"),
    ("a: " + "[" * 40, "16 levels deep"),
    ("%YAML 3.0\n---\na: 1", "not YAML"),
]


class TestWhatIsNotRead:
    """Texts that two readers might read in two ways are refused."""

    @pytest.mark.parametrize(("text", "why"), REFUSED_TEXTS, ids=range(len(REFUSED_TEXTS)))
    def test_a_doubtful_text_is_refused(self, text: str | bytes, why: str) -> None:
        assert why in fault_of(text)["why"]

    @pytest.mark.parametrize(
        ("written", "read"),
        [
            ("no", "no"),
            ("yes", "yes"),
            ("on", "on"),
            ("True", "True"),
            ("NULL", "NULL"),
            ("1.10", "1.10"),
            ("1e3", "1e3"),
            (".inf", ".inf"),
            ("2026-01-31", "2026-01-31"),
            ("12:30:45", "12:30:45"),
            ("0x1F", "0x1F"),
            ("010", "010"),
            ("1_000", "1_000"),
            ("+5", "+5"),
            ("-0", 0),
            ("-7", -7),
            ("12", 12),
            ("'12'", "12"),
            ("true", True),
            ("'true'", "true"),
            ("null", None),
            ("~", None),
            ("", None),
            ("99999999999999999999", "99999999999999999999"),
            ("|\n  two\n  lines\n", "two\nlines\n"),
        ],
    )
    def test_a_word_of_yaml_is_text_unless_it_is_plainly_something_else(
        self, written: str, read: Any
    ) -> None:
        assert read_yaml(f"a: {written}".encode())[0] == {"a": read}

    def test_a_merge_is_a_name_like_any_other(self) -> None:
        assert read_yaml(b"<<: {a: 1}")[0] == {"<<": {"a": 1}}

    def test_a_bomb_of_aliases_is_refused_before_it_is_spread_out(self) -> None:
        levels = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40)]
        assert "anchors" in fault_of("\n".join(levels))["why"]


# --------------------------------------------------------------------------- the published schema


class TestPublishedSchema:
    """The JSON Schema that is published says what the models say."""

    def test_the_committed_schema_is_the_printed_one(self) -> None:
        committed = (ROOT / "docs/schemas/persona_manifest.schema.json").read_text(encoding="utf-8")
        assert committed == written_schemas()["persona_manifest.schema.json"], "run `make docs` and commit it"

    def test_the_schema_is_one(self) -> None:
        jsonschema_rs.meta.validate(manifest_schema())

    def test_nothing_is_open(self) -> None:
        schema = manifest_schema()
        objects = [schema, *(one for one in schema["$defs"].values() if one.get("type") == "object")]
        assert len(objects) > 10
        assert [one["title"] for one in objects if one.get("additionalProperties") is not False] == []

    def test_what_is_sealed_satisfies_it(self) -> None:
        VALIDATOR.validate(parse_manifest(DOCUMENT).document())
        VALIDATOR.validate(json.loads(parse_manifest(DOCUMENT).sealed()[0]))

    # What one field says of another, dates that do not exist, and the size of the whole cannot be said in a schema.
    SHAPELESS = (
        "twice",
        "before it was created",
        "no part whose role",
        "one memory bundle",
        "period",
        "RFC 3339",
    )

    @pytest.mark.parametrize(
        ("value", "path", "why"), FAULTS, ids=[f"{path} {why}" for _, path, why in FAULTS]
    )
    def test_it_refuses_what_the_models_refuse(self, value: Any, path: str, why: str) -> None:
        if not any(word in why for word in self.SHAPELESS):
            assert not VALIDATOR.is_valid(value)

    @given(name=st.text(string.printable, min_size=1, max_size=12))
    @settings(deadline=None, max_examples=100)
    def test_names_of_files_are_the_same_to_both(self, name: str) -> None:
        given_values = changed("artifacts", 1, part_ref(name, "prompts", b"x"))
        try:
            PersonaManifest.model_validate(given_values)
        except ValidationError as error:
            taken = any(one["type"] == "contradiction" for one in error.errors())
            assert taken or not VALIDATOR.is_valid(given_values)
        else:
            assert VALIDATOR.is_valid(given_values)


# --------------------------------------------------------------------------- versions


class TestVersions:
    """Versions are ordered as semantic versioning orders them."""

    def test_the_order_of_the_specification_holds(self) -> None:
        ordered = (
            "0.9.9 1.0.0-alpha 1.0.0-alpha.1 1.0.0-alpha.beta 1.0.0-beta 1.0.0-beta.2 1.0.0-beta.11 1.0.0-rc.1 "
            "1.0.0 1.0.1 1.2.0 1.10.0 2.0.0-1 2.0.0-a 2.0.0 10.0.0"
        ).split()
        keys = [version_key(one) for one in ordered]
        assert sorted(keys) == keys
        assert len(set(keys)) == len(keys)

    @pytest.mark.parametrize("version", ["1.0.0-01", "1.0.0-", "1.0.0-a..b", "v1.0.0", "1.0.0-ä", "1.0.0.0"])
    def test_what_is_no_version_is_refused(self, version: str) -> None:
        assert faults(changed("metadata", "version", version))[0]["path"] == "/metadata/version"


# --------------------------------------------------------------------------- the page for authors


class TestPageForAuthors:
    """What docs/howto/write-a-manifest.md shows is what happens."""

    PAGE = (ROOT / "docs/howto/write-a-manifest.md").read_text(encoding="utf-8")

    def block(self, language: str) -> str:
        """Give the first block of a language."""
        return self.PAGE.split(f"```{language}\n")[1].split("```")[0]

    def test_its_manifest_is_one(self) -> None:
        assert read_manifest(self.block("yaml").encode()).metadata.persona_id == "tax-advisor"

    def test_its_faults_are_what_is_answered(self) -> None:
        spoiled = (
            self.block("yaml").replace("tax-advisor ", "Tax Advisor ").replace("temperature", "temprature")
        )
        with pytest.raises(ManifestInvalidError) as refusal:
            read_manifest(spoiled.encode())
        assert refusal.value.facts["faults"] == json.loads(self.block("json"))

    def test_its_columns_are_those_of_a_bundle(self) -> None:
        assert re.findall(r"^\| `([a-z_]+)` \|", self.PAGE, re.MULTILINE) == list(COLUMNS)
