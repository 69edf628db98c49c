"""Personas as files: a folder is completed from what lies in it, and an archive is read to its last byte."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from api.persona_files import chunks_of, measured, named_address, open_folder, opened, verify_archive
from domain.errors import (
    ArchiveInvalidError,
    ArtifactMismatchError,
    ArtifactNotFoundError,
    CapsuleTamperedError,
    InvalidError,
    LedgerError,
    ManifestInvalidError,
)
from tests.unit.persona import tamper_corpus
from tests.unit.persona.capsule_maker import CONSTITUTION, Capsule, a_capsule, address_of, memory_bundle

RECKONED = ("digest", "sha256", "bytes", "media_type")
OTHER = "sha3-512:" + "0d" * 64


def a_folder(place: Path, change: Callable[[dict[str, Any]], None] | None = None) -> tuple[Path, Capsule]:
    """Write a persona as its author keeps it: nothing in the manifest that its files say themselves."""
    capsule = a_capsule()
    document = capsule.manifest.document()
    for part in document["artifacts"]:
        for member in RECKONED:
            del part[member]
    del document["governance"]["constitution"], document["schema"]
    if change is not None:
        change(document)
    for name, data in capsule.data.items():
        (place / name).write_bytes(data)
    (place / "persona.json").write_text(json.dumps(document))
    return place, capsule


def fault_of(error: pytest.ExceptionInfo[LedgerError], name: str) -> Any:
    return error.value.facts[name]


class TestFolders:
    def test_what_the_files_say_need_not_be_written(self, tmp_path: Path) -> None:
        folder, capsule = a_folder(tmp_path)
        found = open_folder(folder, CONSTITUTION)
        assert found.manifest.address == capsule.address
        assert {part.name: found.read(part) for part in found.manifest.parts} == capsule.data
        part = found.manifest.parts[0]
        assert b"".join(found.chunks(part)) == capsule.data[part.name]

    def test_the_same_persona_in_yaml_has_the_same_address(self, tmp_path: Path) -> None:
        folder, capsule = a_folder(tmp_path)
        written = json.loads((folder / "persona.json").read_text())
        (folder / "persona.json").unlink()
        # JSON with a comment before it is YAML, and no JSON.
        (folder / "persona.yaml").write_text("# A persona.\n" + json.dumps(written, indent=2))
        assert open_folder(folder, CONSTITUTION).manifest.address == capsule.address

    def test_a_constitution_that_is_named_stays(self, tmp_path: Path) -> None:
        folder, _ = a_folder(tmp_path, lambda document: document["governance"].update(constitution=OTHER))
        assert open_folder(folder, CONSTITUTION).manifest.governance.constitution == OTHER

    def test_without_a_constitution_its_place_is_named(self, tmp_path: Path) -> None:
        folder, _ = a_folder(tmp_path)
        with pytest.raises(ManifestInvalidError) as refused:
            open_folder(folder)
        assert [fault["path"] for fault in fault_of(refused, "faults")] == ["/governance/constitution"]

    @pytest.mark.parametrize(
        ("member", "wrong"), [("digest", OTHER), ("sha256", "0d" * 32), ("bytes", 1)], ids=str
    )
    def test_what_a_manifest_says_of_a_file_is_held_against_it(
        self, member: str, wrong: object, tmp_path: Path
    ) -> None:
        folder, _ = a_folder(tmp_path, lambda document: document["artifacts"][1].update({member: wrong}))
        with pytest.raises(ArtifactMismatchError) as refused:
            open_folder(folder, CONSTITUTION)
        assert fault_of(refused, "part") == "prompts.json"
        assert fault_of(refused, "expected") == wrong
        assert fault_of(refused, "found") == measured(folder / "prompts.json")[member]

    def test_a_file_that_changed_after_it_was_described_is_named(self, tmp_path: Path) -> None:
        capsule = a_capsule()
        for name, data in capsule.data.items():
            (tmp_path / name).write_bytes(data)
        (tmp_path / "manifest.json").write_bytes(capsule.manifest.sealed()[0])
        assert open_folder(tmp_path).manifest.address == capsule.address
        (tmp_path / "memory.parquet").write_bytes(memory_bundle(seed=8))
        with pytest.raises(ArtifactMismatchError) as refused:
            open_folder(tmp_path)
        assert fault_of(refused, "part") == "memory.parquet"

    @pytest.mark.parametrize(
        "name",
        [
            "../secret.txt",
            "/etc/hostname",
            "below/secret.txt",
            "..",
            ".",
            "",
            "nowhere.txt",
            "x" * 300,
            "a\0b",
        ],
    )
    def test_a_name_that_leads_out_of_the_folder_is_no_file_of_it(self, name: str, tmp_path: Path) -> None:
        (tmp_path / "secret.txt").write_text("not the author's")
        place = tmp_path / "persona"
        (place / "below").mkdir(parents=True)
        (place / "below" / "secret.txt").write_text("not beside the manifest")
        folder, _ = a_folder(place, lambda document: document["artifacts"][1].update(name=name))
        with pytest.raises(ArtifactNotFoundError) as refused:
            open_folder(folder, CONSTITUTION)
        assert "not the author's" not in str(refused.value.facts)

    def test_a_link_out_of_the_folder_is_read_only_if_its_bytes_are_the_named_ones(
        self, tmp_path: Path
    ) -> None:
        # The author's own disk is the author's: a link is as good as the file, and its digest is sealed.
        folder, capsule = a_folder(tmp_path)
        (tmp_path / "elsewhere").write_bytes(capsule.data["tools.json"])
        (folder / "tools.json").unlink()
        (folder / "tools.json").symlink_to(tmp_path / "elsewhere")
        assert open_folder(folder, CONSTITUTION).manifest.address == capsule.address

    def test_one_manifest_is_there_and_no_second(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidError, match="none of them is there"):
            open_folder(tmp_path)
        folder, _ = a_folder(tmp_path)
        (folder / "persona.yaml").write_text("{}")
        with pytest.raises(InvalidError, match=r"persona\.yaml, persona\.json"):
            open_folder(folder, CONSTITUTION)

    @pytest.mark.parametrize(
        "text", ["[]", "7", '{"artifacts": 7}', '{"artifacts": [7]}', '{"artifacts": [{"name": 7}]}', "{"]
    )
    def test_whatever_else_stands_there_is_refused_with_its_faults(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "persona.json").write_text(text)
        with pytest.raises(ManifestInvalidError) as refused:
            open_folder(tmp_path, CONSTITUTION)
        assert fault_of(refused, "faults")

    def test_a_file_that_cannot_be_read_is_said_with_its_reason(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidError, match="No such file"):
            list(chunks_of(tmp_path / "nothing"))


class TestArchives:
    def test_an_archive_is_verified_without_a_service(self, tmp_path: Path) -> None:
        capsule = a_capsule()
        archive = tmp_path / "persona.tar"
        archive.write_bytes(capsule.archive())
        assert verify_archive(archive).address == capsule.address
        assert verify_archive(archive, capsule.address) == capsule.manifest
        assert measured(archive)["digest"] == address_of(capsule.archive())

    def test_a_folder_and_its_archive_are_opened_alike(self, tmp_path: Path) -> None:
        folder, capsule = a_folder(tmp_path)
        archive = tmp_path / "sealed.tar"
        archive.write_bytes(capsule.archive())
        for source in (folder, archive):
            with opened(source, CONSTITUTION) as files:
                assert files.manifest == capsule.manifest
                assert {part.name: files.read(part) for part in files.manifest.parts} == capsule.data
        assert not any(path.exists() for path in files.paths.values()), "what was unpacked is gone again"

    def test_nothing_of_a_tampered_archive_is_left_behind(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.setattr("tempfile.tempdir", None)
        archive = tmp_path / "bad.tar"
        archive.write_bytes(a_capsule().archive().replace(b"careful", b"carefil", 1))
        with pytest.raises(CapsuleTamperedError) as refused, opened(archive):
            pass
        assert fault_of(refused, "part") == "prompts.json"
        assert list(tmp_path.iterdir()) == [archive]

    def test_the_one_that_was_asked_for_is_told_from_another(self, tmp_path: Path) -> None:
        capsule, other = a_capsule(), a_capsule(version="1.0.1")
        archive = tmp_path / "other.tar"
        archive.write_bytes(other.archive())
        with pytest.raises(CapsuleTamperedError) as refused:
            verify_archive(archive, capsule.address)
        assert fault_of(refused, "part") == "manifest.json"
        assert named_address(other.manifest, other.address.removeprefix("sha3-512:")) == other.address
        with pytest.raises(ManifestInvalidError):
            named_address(other.manifest, capsule.address)

    def test_a_file_that_is_no_archive_is_said_to_be_none(self, tmp_path: Path) -> None:
        for data in (b"", b"\x00" * 10_240, b"hello", b"PK\x03\x04" + b"\x00" * 600):
            archive = tmp_path / "none.tar"
            archive.write_bytes(data)
            with pytest.raises(ArchiveInvalidError):
                verify_archive(archive)

    @pytest.mark.parametrize("case", tamper_corpus.CASES, ids=lambda case: case.name)
    def test_the_whole_corpus_is_refused_from_a_file_too(
        self, case: tamper_corpus.Case, tmp_path: Path
    ) -> None:
        archive = tmp_path / "case.tar"
        archive.write_bytes(case.archive())
        with pytest.raises(LedgerError) as refused:
            verify_archive(archive, tamper_corpus.capsule().address if case.knows_address else None)
        assert refused.value.code == case.code
