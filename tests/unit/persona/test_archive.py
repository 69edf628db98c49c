"""Archives: a pure function of the manifest and its parts, read without believing a byte."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import tracemalloc
from collections.abc import Iterator
from functools import cache
from hashlib import sha3_512
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.errors import ArchiveInvalidError, ArchiveLimitError, CapsuleTamperedError, LedgerError
from domain.persona.archive import (
    BLOCK_BYTES,
    PIECE_BYTES_MAX,
    ArchiveLimits,
    archive_bytes,
    header,
    read_archive,
    verified,
    write_archive,
)
from domain.persona.manifest import PART_BYTES_MAX, PartRef, PersonaManifest, parse_manifest
from tests.unit.persona.capsule_maker import Capsule, a_capsule, document, part_ref

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = Path(__file__).parent / "golden" / "capsule_1.tar"

# For ever: a change of these is another format, with another schema name.
GOLDEN_CAPSULE = (
    "sha3-512:ce010f5ceb6bf94fde2633ae04889ab6515260047fee1738bf3118978c48c6d8"
    "e9be6997002e4804245889c6e64a243aa54531362b0346f156aaa722c36c6810"
)
GOLDEN_ARCHIVE = (
    "sha3-512:12ca1e72d5500caf10ceb00437676622b268c07b2e5445616b0078aa70c0838a"
    "3d2f72664ab38247789927151912da007edc1699789ee7d0e33c891c34584d2e"
)


def golden_capsule() -> Capsule:
    """Make the capsule whose archive is kept for ever; its memory is no Parquet, since no archive looks inside."""
    data = {
        "memory.parquet": b"a stand-in for vectors\n" * 30,
        "prompts.json": b'{"system":"Answer from memory."}',
        "report.json": b'{"metrics":{}}',
        "tools.json": b"[]",
    }
    return Capsule(parse_manifest(document("golden-persona", "1.0.0-rc.1", data=data)), data)


def kept(
    archive: bytes, step: int = 0, address: str | None = None
) -> tuple[PersonaManifest, dict[str, bytes]]:
    """Read an archive, cut in pieces of `step` bytes."""
    data: dict[str, bytes] = {}
    size = step or len(archive) or 1
    chunks = (archive[start : start + size] for start in range(0, len(archive), size))
    manifest = read_archive(
        chunks, lambda part, pieces: data.update({part.name: b"".join(pieces)}), address=address
    )
    return manifest, data


@cache
def small() -> tuple[Capsule, bytes]:
    """Make the smallest capsule there is, once."""

    def lean(given_values: dict[str, Any]) -> None:
        given_values["artifacts"] = [part_ref("m", "memory", b"memory")]
        given_values["memory"]["bundle"] = "m"
        given_values["evaluations"] = given_values["tools"] = []

    made = a_capsule(change=lean)
    capsule = Capsule(made.manifest, {"m": b"memory"})
    return capsule, capsule.archive()


class TestForm:
    """The form of the archive."""

    def test_the_golden_archive_is_written_byte_for_byte(self) -> None:
        capsule = golden_capsule()
        assert capsule.address == GOLDEN_CAPSULE
        assert capsule.archive() == GOLDEN.read_bytes()
        assert "sha3-512:" + sha3_512(GOLDEN.read_bytes()).hexdigest() == GOLDEN_ARCHIVE

    def test_the_golden_archive_is_read(self) -> None:
        manifest, data = kept(GOLDEN.read_bytes(), address=GOLDEN_CAPSULE)
        assert (manifest, data) == (golden_capsule().manifest, golden_capsule().data)

    def test_another_process_with_another_order_of_hashing_writes_the_same_bytes(self) -> None:
        program = (
            "import hashlib, sys; from tests.unit.persona.test_archive import golden_capsule; "
            "sys.stdout.write(hashlib.sha3_512(golden_capsule().archive()).hexdigest())"
        )
        for seed in ("1", "2"):
            environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
            done = subprocess.run(
                [sys.executable, "-c", program], env=environment, cwd=ROOT, capture_output=True, check=True
            )
            assert "sha3-512:" + done.stdout.decode() == GOLDEN_ARCHIVE

    def test_a_library_for_tar_writes_the_same_bytes(self) -> None:
        capsule = a_capsule()
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            files = {"manifest.json": capsule.manifest.sealed()[0]}
            files |= {f"parts/{name}": data for name, data in sorted(capsule.data.items())}
            for name, data in files.items():
                told = tarfile.TarInfo(name)
                told.size = len(data)
                tar.addfile(told, io.BytesIO(data))
        ours = capsule.archive()
        # The library fills its last record of 10,240 bytes with zeros.
        assert out.getvalue()[: len(ours)] == ours
        assert not any(out.getvalue()[len(ours) :])

    def test_a_library_for_tar_reads_what_we_write(self) -> None:
        capsule = a_capsule()
        with tarfile.open(fileobj=io.BytesIO(capsule.archive())) as tar:
            read = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        assert read.pop("manifest.json") == capsule.manifest.sealed()[0]
        assert read == {f"parts/{name}": data for name, data in capsule.data.items()}

    def test_the_largest_size_has_a_header(self) -> None:
        told = tarfile.TarInfo.frombuf(header("parts/a", PART_BYTES_MAX), "ascii", "strict")
        assert (told.name, told.size) == ("parts/a", PART_BYTES_MAX)

    def test_the_manifest_alone_tells_the_size(self) -> None:
        for items in (0, 1, 50):
            capsule = a_capsule(items=items)
            assert archive_bytes(capsule.manifest) == len(capsule.archive())

    def test_the_same_bytes_may_be_two_parts(self) -> None:
        twin = {"a.txt": ("other", "text/plain", b"same"), "b.txt": ("other", "text/plain", b"same")}
        capsule = a_capsule(parts=twin)
        assert kept(capsule.archive())[1] == capsule.data


PARTS = st.dictionaries(
    st.from_regex(r"\A[a-z0-9]{1,8}(?:[._-][a-z0-9]{1,8}){0,3}\Z"),
    st.binary(min_size=1, max_size=1_600),
    max_size=6,
)


class TestThereAndBack:
    """What is written is what is read."""

    @given(parts=PARTS, step=st.integers(1, 2_000))
    @settings(deadline=None, max_examples=60)
    def test_an_archive_gives_back_what_went_in_however_it_is_cut(
        self, parts: dict[str, bytes], step: int
    ) -> None:
        more = {name: ("other", "application/octet-stream", data) for name, data in parts.items()}
        capsule, archive = small()
        given_values = capsule.manifest.document()
        given_values["artifacts"] += [
            part_ref(name, role, data, kind) for name, (role, kind, data) in more.items() if name != "m"
        ]
        data = {**parts, **capsule.data}
        made = Capsule(parse_manifest(given_values), data)
        archive = made.archive()
        assert len(archive) == archive_bytes(made.manifest)
        assert kept(archive, step, made.address) == (made.manifest, data)

    def test_writing_twice_gives_the_same_bytes(self) -> None:
        assert a_capsule().archive() == a_capsule().archive()

    def test_what_nobody_keeps_is_verified_all_the_same(self) -> None:
        capsule = a_capsule()
        archive = capsule.archive()
        assert read_archive([archive], lambda part, pieces: None) == capsule.manifest
        at = archive.index(capsule.data["tools.json"])
        with pytest.raises(CapsuleTamperedError) as refusal:
            read_archive([_flipped(archive, at)], lambda part, pieces: None)
        assert refusal.value.facts["part"] == "tools.json"

    def test_empty_chunks_are_passed_over(self) -> None:
        capsule, archive = small()
        chunks = [b"", archive[:700], b"", b"", archive[700:], b""]
        assert read_archive(chunks, lambda part, pieces: None) == capsule.manifest


def _flipped(data: bytes, at: int, bit: int = 0) -> bytes:
    return data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]


class TestEveryByte:
    """No byte of an archive may differ, and none may be missing."""

    def test_every_single_byte_flipped_is_refused(self) -> None:
        capsule, archive = small()
        taken = []
        for at in range(len(archive)):
            try:
                kept(_flipped(archive, at, at % 8), address=capsule.address)
            except (ArchiveInvalidError, ArchiveLimitError, CapsuleTamperedError):
                continue
            taken.append(at)
        assert taken == []

    def test_every_shorter_archive_is_refused(self) -> None:
        capsule, archive = small()
        for size in range(0, len(archive), 61):
            with pytest.raises(LedgerError) as refusal:
                kept(archive[:size], address=capsule.address)
            assert refusal.value.code in {"archive_invalid", "capsule_tampered"}

    @given(tail=st.binary(min_size=1, max_size=600))
    @settings(deadline=None, max_examples=30)
    def test_nothing_may_follow_the_end(self, tail: bytes) -> None:
        with pytest.raises(ArchiveInvalidError):
            kept(small()[1] + tail)

    @given(noise=st.binary(max_size=2_000))
    @settings(deadline=None, max_examples=100)
    def test_noise_is_no_archive(self, noise: bytes) -> None:
        with pytest.raises(ArchiveInvalidError):
            kept(noise)

    @given(at=st.integers(0, 10_000), noise=st.binary(min_size=1, max_size=40), step=st.integers(1, 600))
    @settings(deadline=None, max_examples=150)
    def test_bytes_written_over_an_archive_are_refused_or_the_same(
        self, at: int, noise: bytes, step: int
    ) -> None:
        capsule, archive = small()
        at %= len(archive)
        spoiled = (archive[:at] + noise + archive[at + len(noise) :])[: len(archive)]
        if spoiled == archive:
            return
        with pytest.raises(LedgerError) as refusal:
            kept(spoiled, step, capsule.address)
        assert refusal.value.code in {"archive_invalid", "archive_limit", "capsule_tampered"}


class TestLimits:
    """What is too large is refused before it is read."""

    def test_an_archive_of_the_largest_size_is_taken_in(self) -> None:
        capsule, archive = small()
        limits = ArchiveLimits(len(archive), capsule.manifest.parts[0].bytes, 1)
        assert read_archive([archive], lambda part, pieces: None, limits=limits) == capsule.manifest

    @pytest.mark.parametrize(
        ("limits", "facts"),
        [
            (ArchiveLimits(archive_bytes_max=5_000), {"what": "archive_bytes", "limit": 5_000}),
            (ArchiveLimits(part_count_max=3), {"what": "part_count", "limit": 3, "found": 4}),
            (
                ArchiveLimits(part_bytes_max=100),
                {"what": "part_bytes", "limit": 100, "part": "memory.parquet"},
            ),
        ],
        ids=["archive", "parts", "part"],
    )
    def test_the_manifest_is_enough_to_refuse(self, limits: ArchiveLimits, facts: dict[str, Any]) -> None:
        archive = a_capsule().archive()
        read = []

        def chunks() -> Iterator[bytes]:
            for start in range(0, len(archive), BLOCK_BYTES):
                read.append(start)
                yield archive[start : start + BLOCK_BYTES]

        with pytest.raises(ArchiveLimitError) as refusal:
            read_archive(chunks(), lambda part, pieces: None, limits=limits)
        assert facts.items() <= refusal.value.facts.items()
        assert read[-1] <= 8 * BLOCK_BYTES

    def test_a_part_as_large_as_memory_streams_by_in_little_of_it(self) -> None:
        size, piece = 48 * 1024 * 1024, bytes(256 * 1024)
        whole = bytes(size)
        part = part_ref("memory.parquet", "memory", whole)
        del whole
        given_values = small()[0].manifest.document()
        given_values["artifacts"] = [part]
        given_values["memory"]["bundle"] = "memory.parquet"
        manifest = parse_manifest(given_values)
        largest = 0

        def keep(part: PartRef, pieces: Iterator[bytes]) -> None:
            nonlocal largest
            largest = max(largest, *map(len, pieces))

        tracemalloc.start()
        written = write_archive(manifest, lambda part: (piece for _ in range(size // len(piece))))
        assert read_archive(written, keep, address=manifest.address) == manifest
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert largest <= PIECE_BYTES_MAX
        assert peak < 8 * 1024 * 1024

    def test_a_chunk_of_the_whole_is_handed_on_in_pieces(self) -> None:
        big = bytes(3 * PIECE_BYTES_MAX)
        capsule = a_capsule(parts={"big.bin": ("other", "application/octet-stream", big)})
        sizes: list[int] = []
        read_archive([capsule.archive()], lambda part, pieces: sizes.extend(map(len, pieces)))
        assert max(sizes) == PIECE_BYTES_MAX


class TestWriting:
    """Nothing is written that is not what the manifest says."""

    @pytest.mark.parametrize(
        ("data", "what"),
        [(b"memorx", "digest"), (b"memor", "bytes"), (b"memory!", "bytes"), (b"", "bytes")],
        ids=["changed", "short", "long", "empty"],
    )
    def test_a_part_that_is_not_the_one_stops_the_export(self, data: bytes, what: str) -> None:
        capsule, _ = small()
        with pytest.raises(CapsuleTamperedError) as refusal:
            list(write_archive(capsule.manifest, lambda part: [data]))
        assert refusal.value.facts["part"] == "m"
        assert refusal.value.facts["what"] == what

    def test_a_part_without_end_is_stopped_at_its_size(self) -> None:
        part = small()[0].manifest.parts[0]

        def endless() -> Iterator[bytes]:
            while True:
                yield b"m"

        assert len(list(_until_refused(verified(part, endless())))) == part.bytes

    def test_a_wrong_second_digest_is_seen(self) -> None:
        part = small()[0].manifest.parts[0].model_copy(update={"sha256": "0" * 64})
        with pytest.raises(CapsuleTamperedError) as refusal:
            list(verified(part, [b"memory"]))
        assert refusal.value.facts["what"] == "sha256"


def _until_refused(pieces: Iterator[bytes]) -> Iterator[bytes]:
    with pytest.raises(CapsuleTamperedError):
        yield from pieces
