"""The example personas: built the same again, sound, and what they say of themselves is found again."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from functools import cache
from hashlib import sha3_256
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from domain.memory import ngrams
from domain.persona.archive import read_archive, write_archive
from domain.persona.evaluation.harness import Constitution
from domain.persona.evaluation.naming import named
from domain.persona.evaluation.report import read_report
from domain.persona.evaluation.subject import Document
from domain.persona.manifest import PartRef, PersonaManifest, read_manifest
from ops.evaluation_child import evaluated, memory_of

HERE = Path(__file__).resolve().parents[3] / "docs" / "examples" / "persona_capsules"
EXAMPLES = ("house_guide", "harbour_pilot")
# The sentences of the pilot and the embedding of the house do not change; a page of the documentation may.
PILOT_VECTORS = "e71e6eaff1782b8e1da7553f1a03af64a0f02d5ef5cf3dbd99f2b45b79cf614c"


@cache
def builder() -> ModuleType:
    """Load the script as a person runs it."""
    spec = importlib.util.spec_from_file_location("example_personas", HERE / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@cache
def terms() -> dict[str, Any]:
    """Read the constitution the examples are made under."""
    read: dict[str, Any] = json.loads((HERE / "constitution.json").read_text("utf-8"))
    return read


@cache
def built(example: str) -> tuple[PersonaManifest, dict[str, bytes]]:
    """Build an example once for all tests."""
    made: tuple[PersonaManifest, dict[str, bytes]] = builder().build(example, "olivia", terms())
    return made


@pytest.mark.parametrize("example", EXAMPLES)
class TestExamples:
    def test_built_again_it_has_the_same_address(self, example: str) -> None:
        again, data = builder().build(example, "olivia", terms())
        assert again.address == built(example)[0].address
        assert data == built(example)[1]

    def test_its_evaluation_passes_and_is_found_again(self, example: str) -> None:
        manifest, data = built(example)
        memory = memory_of(manifest, data["memory.parquet"])
        in_force = Constitution(manifest.governance.constitution, terms()["utility"])
        compared, _ = evaluated(manifest, memory, data, "baseline", in_force)
        assert compared.passed, compared.why
        assert named(manifest, [Document("report.json", data["report.json"])], compared).state == "equal"

    def test_its_own_questions_find_their_answers(self, example: str) -> None:
        compared = read_report(built(example)[1]["report.json"]).compared
        assert float(compared.metrics["declared.recall_at_5"].mean) >= 0.8

    def test_it_is_packed_and_unpacked_whole(self, example: str) -> None:
        manifest, data = built(example)

        def open_part(part: PartRef) -> list[bytes]:
            return [data[part.name]]

        kept: dict[str, bytes] = {}

        def keep(part: PartRef, chunks: Any) -> None:
            kept[part.name] = b"".join(chunks)

        read = read_archive(write_archive(manifest, open_part), keep)
        assert read.address == manifest.address
        assert kept == data

    def test_the_script_writes_what_it_builds(
        self, example: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert builder().main([example, str(tmp_path)]) == 0
        manifest, data = built(example)
        assert capsys.readouterr().out.strip() == manifest.address
        assert read_manifest((tmp_path / "manifest.json").read_bytes()).address == manifest.address
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.name != "manifest.json"} == data


def test_the_vectors_of_the_pilot_are_these_on_every_machine() -> None:
    texts = [item.text for item in builder().remembered("harbour_pilot")]
    assert sha3_256(ngrams.embed(texts).astype("<f4").tobytes()).hexdigest() == PILOT_VECTORS


def test_the_guide_remembers_every_page_of_the_documentation() -> None:
    pages = {item.id.partition("#")[0] for item in builder().remembered("house_guide")}
    docs = HERE.parents[1]
    written = {path.relative_to(docs).as_posix().removesuffix(".md") for path in docs.rglob("*.md")}
    assert pages == {page for page in written if not page.startswith(("examples/", "reference/"))}
    assert len(builder().remembered("house_guide")) > 150


def test_a_question_whose_page_is_gone_stops_the_build() -> None:
    with pytest.raises(SystemExit):
        builder()._answers(
            {"id": "lost", "sections": ["decisions/9999"]}, builder().remembered("house_guide")
        )


def test_a_folder_of_ones_own_is_built_as_ours_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = shutil.copytree(HERE / "harbour_pilot", tmp_path / "harbour_pilot")
    assert builder().main([str(own), str(tmp_path / "same")]) == 0
    assert capsys.readouterr().out.strip() == built("harbour_pilot")[0].address
    with (own / "memories.txt").open("a") as file:
        file.write("The ferry leaves from the north quay at seven.\n")
    assert builder().main([str(own), str(tmp_path / "more")]) == 0
    assert capsys.readouterr().out.strip() != built("harbour_pilot")[0].address
    assert read_manifest((tmp_path / "more" / "manifest.json").read_bytes()).memory.item_count == 31
    with pytest.raises(SystemExit):
        builder().main([str(tmp_path / "nowhere"), str(tmp_path / "none")])
