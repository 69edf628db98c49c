"""Personas as files: a folder that an author writes, and an archive that was sealed.

A folder holds a manifest (`manifest.json`, `persona.yaml` or `persona.json`) and the files it names. What can be
reckoned from the files need not be written: digests, sizes, media types, and the constitution that is in force.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha3_512, sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from domain.errors import ArtifactMismatchError, ArtifactNotFoundError, InvalidError, ManifestInvalidError
from domain.persona.archive import read_archive
from domain.persona.manifest import PartRef, PersonaManifest, parse_manifest
from domain.persona.manifest_text import read_document

MANIFESTS = ("manifest.json", "persona.yaml", "persona.yml", "persona.json")
MEDIA_TYPES = {
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".md": "text/markdown",
    ".parquet": "application/vnd.apache.parquet",
    ".txt": "text/plain",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
}
CHUNK_BYTES = 1 << 20


class PersonaFiles(NamedTuple):
    """A manifest, and where the bytes of its parts are."""

    manifest: PersonaManifest
    paths: Mapping[str, Path]

    def read(self, part: PartRef) -> bytes:
        """Read a part whole."""
        return self.paths[part.name].read_bytes()

    def chunks(self, part: PartRef) -> Iterator[bytes]:
        """Read a part piece by piece."""
        return chunks_of(self.paths[part.name])


def chunks_of(path: Path) -> Iterator[bytes]:
    """Read a file piece by piece.

    Errors: invalid_request.
    """
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
    except OSError as error:
        raise InvalidError(f"{path} cannot be read: {error.strerror}") from error


def open_folder(folder: Path, constitution: str | None = None) -> PersonaFiles:
    """Read a folder: its manifest is completed from its files, and held against them where it says something.

    Errors: artifact_mismatch, artifact_not_found, invalid_request, manifest_invalid.
    """
    value, lines = read_document(_manifest_of(folder))
    if isinstance(value, dict):
        value = _completed(value, folder, constitution)
    manifest = parse_manifest(value, lines)
    return PersonaFiles(manifest, {part.name: _file(folder, part.name) for part in manifest.parts})


def _manifest_of(folder: Path) -> bytes:
    found = [folder / name for name in MANIFESTS if (folder / name).is_file()]
    if len(found) != 1:
        there = ", ".join(path.name for path in found) or "none of them is there"
        raise InvalidError(f"{folder} must hold one manifest, {' or '.join(MANIFESTS)}: {there}")
    return found[0].read_bytes()


def _completed(document: dict[str, Any], folder: Path, constitution: str | None) -> dict[str, Any]:
    """Add what the files say, and the constitution in force where the manifest names none."""
    completed = {"schema": "soma/persona_manifest/1"} | document
    governance = completed.get("governance", {})
    if isinstance(governance, dict) and constitution is not None:
        completed["governance"] = {"constitution": constitution} | governance
    parts = completed.get("artifacts")
    if isinstance(parts, list):
        completed["artifacts"] = [
            _described(part, folder) if isinstance(part, dict) else part for part in parts
        ]
    return completed


def _described(part: dict[str, Any], folder: Path) -> dict[str, Any]:
    name = part.get("name")
    if not isinstance(name, str):
        return part
    reckoned = measured(_file(folder, name))
    for member, there in reckoned.items():
        if part.get(member, there) != there:
            raise ArtifactMismatchError(
                f"{name} is not the file the manifest names: its {member} differs",
                part=name,
                expected=part[member],
                found=there,
            )
    kind = MEDIA_TYPES.get(Path(name).suffix)
    return ({"media_type": kind} if kind else {}) | part | reckoned


def measured(path: Path) -> dict[str, Any]:
    """Give the digests and the size of a file, as a manifest has them."""
    long, short, size = sha3_512(), sha256(), 0
    for chunk in chunks_of(path):
        long.update(chunk)
        short.update(chunk)
        size += len(chunk)
    return {"digest": "sha3-512:" + long.hexdigest(), "sha256": short.hexdigest(), "bytes": size}


def _file(folder: Path, name: str) -> Path:
    # Looked up among what the folder holds: a name that is not checked yet can lead nowhere else.
    for path in folder.iterdir():
        if path.name == name and path.is_file():
            return path
    raise ArtifactNotFoundError(f"{name[:200]!r} is not a file of {folder}", part=name[:200])


# --------------------------------------------------------------------------- archives


def verify_archive(archive: Path, address: str | None = None) -> PersonaManifest:
    """Read an archive to its end, keeping nothing: every header, size, digest and padding is checked.

    Errors: archive_invalid, archive_limit, capsule_tampered, invalid_request, manifest_invalid.
    """
    # What is left unread is verified all the same.
    return read_archive(chunks_of(archive), lambda _part, _pieces: None, address=address)


@contextmanager
def opened(source: Path, constitution: str | None = None) -> Iterator[PersonaFiles]:
    """Open a folder, or unpack an archive for as long as it is looked at.

    Errors: those of `open_folder` and of `verify_archive`.
    """
    if source.is_dir():
        yield open_folder(source, constitution)
        return
    with TemporaryDirectory(prefix="soma-capsule-") as folder:
        yield _unpacked(source, Path(folder))


def _unpacked(archive: Path, folder: Path) -> PersonaFiles:
    paths: dict[str, Path] = {}

    def keep(part: PartRef, pieces: Iterator[bytes]) -> None:
        # The reader has checked the name: no path, no link, one of the manifest's.
        paths[part.name] = folder / f"part-{len(paths)}"
        with paths[part.name].open("wb") as file:
            for piece in pieces:
                file.write(piece)

    return PersonaFiles(read_archive(chunks_of(archive), keep), paths)


def named_address(manifest: PersonaManifest, wanted: str | None) -> str:
    """Give the address of a manifest, which must be the one that was asked for, if one was.

    Errors: manifest_invalid.
    """
    address = manifest.address
    if wanted is not None and address.removeprefix("sha3-512:") != wanted.removeprefix("sha3-512:"):
        raise ManifestInvalidError("this is another capsule", faults=[], expected=wanted, found=address)
    return address
