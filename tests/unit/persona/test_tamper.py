"""Tampered capsules are refused, each with its code, and the part named: the corpus is in tamper_corpus.py."""

from __future__ import annotations

import json
from typing import Any

import pytest

from domain.canonical import encode_record
from domain.errors import LedgerError, ManifestInvalidError
from domain.persona.archive import read_archive
from domain.persona.manifest import PersonaManifest, read_sealed_manifest
from tests.unit.persona.tamper_corpus import (
    CASES,
    Case,
    Path,
    built,
    capsule,
    document,
    field_cases,
    files,
    leaves,
    otherwise,
    pointer,
    put,
)


def read(archive: bytes, address: str | None) -> tuple[PersonaManifest, dict[str, bytes]]:
    """Take a capsule in, as an import does: what was kept counts only if nothing was refused."""
    data: dict[str, bytes] = {}
    chunks = (archive[start : start + 4_096] for start in range(0, len(archive), 4_096))
    manifest = read_archive(
        chunks, lambda part, pieces: data.update({part.name: b"".join(pieces)}), address=address
    )
    return manifest, data


def named_by(refusal: LedgerError) -> list[str]:
    """List what a refusal names: the part, or the paths of a manifest's faults."""
    if refusal.code == "manifest_invalid":
        return [fault["path"] for fault in refusal.facts["faults"]]
    return [refusal.facts.get("part", "")]


def test_the_honest_capsule_is_taken_in() -> None:
    assert read(capsule().archive(), capsule().address) == (capsule().manifest, capsule().data)
    assert built(files()) == capsule().archive()


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_tampered_capsule_is_refused_and_the_part_named(case: Case) -> None:
    with pytest.raises(LedgerError) as refusal:
        read(case.archive(), capsule().address if case.knows_address else None)
    assert refusal.value.code == case.code, refusal.value.facts
    assert case.named in named_by(refusal.value), refusal.value.facts
    json.dumps(refusal.value.problem(), ensure_ascii=False).encode()


def test_the_corpus_is_as_large_as_promised_and_names_no_case_twice() -> None:
    assert len(CASES) >= 150
    assert len({case.name for case in CASES}) == len(CASES)
    touched = {case.name.removesuffix(" changed") for case in field_cases()}
    assert touched == {pointer(path) for path, _ in leaves(document())}


def test_every_field_of_the_schema_is_in_the_document_that_is_tampered_with() -> None:
    def fields(schema: dict[str, Any]) -> set[str]:
        return {name for model in [schema, *schema["$defs"].values()] for name in model.get("properties", {})}

    told = {step for path, _ in leaves(document()) for step in path if isinstance(step, str)}
    assert fields(PersonaManifest.model_json_schema(by_alias=True)) <= told


@pytest.mark.parametrize("path", [path for path, _ in leaves(document())], ids=pointer)
def test_every_field_changes_the_address(path: Path) -> None:
    value = put(document(), path, otherwise(path, dict(leaves(document()))[path]))
    try:
        changed = read_sealed_manifest(encode_record(value)).address
    except ManifestInvalidError:
        # What one field says of another is refused even before its address is compared.
        return
    assert changed != capsule().address
