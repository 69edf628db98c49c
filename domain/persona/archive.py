"""The archive of a capsule: one tar file that is a pure function of the manifest and its parts.

    manifest.json     the canonical bytes of the manifest
    parts/<name>      each part, in the order of their names' bytes
    1,024 zero bytes

Every header says the same but for name and size: a plain file, mode 0644, owner 0, time 0, in the plain ustar form.
So a reader needs no tar library, and trusts none: once it has the manifest it knows every following header byte for
byte, and where each part ends before it reads it. Nothing is extracted under a name that came from the archive.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha3_512, sha256

import msgspec

from domain.canonical import seal_of
from domain.errors import ArchiveInvalidError, ArchiveLimitError, CapsuleTamperedError
from domain.persona.archive_faults import told
from domain.persona.manifest import (
    CONTEXT,
    MANIFEST_BYTES_MAX,
    PART_BYTES_MAX,
    PartRef,
    PersonaManifest,
    read_sealed_manifest,
)

MANIFEST_NAME = "manifest.json"
BLOCK_BYTES = 512
END = bytes(2 * BLOCK_BYTES)
PIECE_BYTES_MAX = 1024 * 1024
_SIZE_AT = slice(124, 136)

OpenPart = Callable[[PartRef], Iterable[bytes]]
KeepPart = Callable[[PartRef, Iterator[bytes]], None]


class ArchiveLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much is taken in of an archive."""

    archive_bytes_max: int = 4 * 1024**3
    part_bytes_max: int = PART_BYTES_MAX
    part_count_max: int = 64


# --------------------------------------------------------------------------- form


def header(name: str, size: int) -> bytes:
    """Write the header of a file.

    Source: POSIX.1-1988 (ustar), pax, section "ustar Interchange Format".
    """
    fields = (
        name.encode("ascii").ljust(100, b"\0")
        + b"0000644\0"  # mode
        + b"0000000\0" * 2  # user, group
        + b"%011o\0" % size
        + b"00000000000\0"  # time
        + b" " * 8  # the checksum counts itself as spaces
        + b"0"  # a plain file
        + bytes(100)
        + b"ustar\x0000"
        + bytes(247)  # no names of owners, no device, no second part of the name
    )
    return fields[:148] + b"%06o\0 " % sum(fields) + fields[156:]


def entry_name(part: PartRef) -> str:
    """Name a part's place in the archive."""
    return f"parts/{part.name}"


def archive_bytes(manifest: PersonaManifest) -> int:
    """Tell how large the archive of a manifest is; the manifest alone decides it.

    Units: bytes.
    """
    sizes = [len(manifest.sealed()[0]), *(part.bytes for part in manifest.parts)]
    return sum(BLOCK_BYTES + size + _padding(size) for size in sizes) + len(END)


def _padding(size: int) -> int:
    return -size % BLOCK_BYTES


# --------------------------------------------------------------------------- writing


def write_archive(manifest: PersonaManifest, open_part: OpenPart) -> Iterator[bytes]:
    """Write the archive, piece by piece; a part that is not what the manifest says stops it.

    Cost:   one pass over the parts; memory of one piece.
    Errors: capsule_tampered.
    """
    data = manifest.sealed()[0]
    yield header(MANIFEST_NAME, len(data)) + data + bytes(_padding(len(data)))
    for part in manifest.parts:
        yield header(entry_name(part), part.bytes)
        yield from verified(part, open_part(part))
        if padding := _padding(part.bytes):
            yield bytes(padding)
    yield END


def verified(part: PartRef, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Pass on the bytes of a part, and refuse at the end what is not the part.

    Whoever keeps the bytes makes them count only when this has ended without a refusal.
    Errors: capsule_tampered.
    """
    long, short, size = sha3_512(), sha256(), 0
    for piece in pieces:
        size += len(piece)
        if size > part.bytes:
            break
        long.update(piece)
        short.update(piece)
        yield piece
    if size != part.bytes:
        raise _tampered(part, "bytes", part.bytes, size)
    if (found := "sha3-512:" + long.hexdigest()) != part.digest:
        raise _tampered(part, "digest", part.digest, found)
    if short.hexdigest() != part.sha256:
        raise _tampered(part, "sha256", part.sha256, short.hexdigest())


def _tampered(part: PartRef, what: str, expected: object, found: object) -> CapsuleTamperedError:
    return CapsuleTamperedError(
        f"the part {part.name} is not the one the manifest names: its {what} differs",
        part=part.name,
        what=what,
        expected=expected,
        found=found,
    )


# --------------------------------------------------------------------------- reading


def read_archive(
    chunks: Iterable[bytes],
    keep: KeepPart,
    *,
    address: str | None = None,
    limits: ArchiveLimits | None = None,
) -> PersonaManifest:
    """Read an archive as it streams by, verify every byte of it, and hand each part to `keep`.

    `keep` is given the part and its bytes; reading them to the end raises if they are not the part. What `keep`
    leaves unread is verified all the same. Without an `address`, any well-formed capsule is read, and the caller
    compares the manifest's own.
    Cost:   one pass; memory of one chunk.
    Errors: archive_invalid, archive_limit, capsule_tampered, manifest_invalid.
    """
    limits = limits or ArchiveLimits()
    source = _Source(chunks)
    manifest = _read_manifest(source, address)
    check_limits(manifest, limits)
    for index, part in enumerate(manifest.parts):
        found = source.take(BLOCK_BYTES, part.name)
        if found != header(entry_name(part), part.bytes):
            raise _invalid(told(found, part, manifest.parts[:index], manifest.parts), part.name)
        pieces = verified(part, source.pieces(part.bytes, part.name))
        keep(part, pieces)
        deque(pieces, maxlen=0)
        source.skip_zeros(_padding(part.bytes), part.name)
    source.skip_zeros(len(END), "", told_end=True)
    source.expect_end()
    return manifest


def check_limits(manifest: PersonaManifest, limits: ArchiveLimits) -> None:
    """Refuse a capsule that is larger than is taken in, before any of its parts is read.

    Errors: archive_limit.
    """
    size = archive_bytes(manifest)
    if size > limits.archive_bytes_max:
        raise ArchiveLimitError(what="archive_bytes", limit=limits.archive_bytes_max, found=size)
    if len(manifest.parts) > limits.part_count_max:
        raise ArchiveLimitError(what="part_count", limit=limits.part_count_max, found=len(manifest.parts))
    for part in manifest.parts:
        if part.bytes > limits.part_bytes_max:
            raise ArchiveLimitError(
                what="part_bytes", part=part.name, limit=limits.part_bytes_max, found=part.bytes
            )


def _read_manifest(source: _Source, address: str | None) -> PersonaManifest:
    found = source.take(BLOCK_BYTES, MANIFEST_NAME)
    digits = found[_SIZE_AT]
    size = int(digits[:11], 8) if digits[:11].isdigit() and not set(digits[:11]) & set(b"89") else -1
    if size < 0 or found != header(MANIFEST_NAME, size):
        raise _invalid(told(found, None, [], []), MANIFEST_NAME)
    if size > MANIFEST_BYTES_MAX:
        raise ArchiveLimitError(
            what="manifest_bytes", part=MANIFEST_NAME, limit=MANIFEST_BYTES_MAX, found=size
        )
    data = source.take(size, MANIFEST_NAME)
    if address is not None and (sealed := seal_of(CONTEXT, data)) != address:
        raise CapsuleTamperedError(
            "the manifest is not the one this capsule was sealed with",
            part=MANIFEST_NAME,
            what="address",
            expected=address,
            found=sealed,
        )
    manifest = read_sealed_manifest(data)
    source.skip_zeros(_padding(size), MANIFEST_NAME)
    return manifest


def _invalid(why: str, part: str) -> ArchiveInvalidError:
    return ArchiveInvalidError(f"the archive is not in the form of a capsule: {why}", why=why, part=part)


class _Source:
    """The stream of an archive, taken in counted bites."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._held = memoryview(b"")

    def pieces(self, count: int, part: str) -> Iterator[bytes]:
        """Give the next bytes as they come, in pieces that are never large."""
        while count:
            if not len(self._held) and not self._more():
                raise _invalid("it ends too early", part)
            size = min(count, len(self._held), PIECE_BYTES_MAX)
            piece, self._held = bytes(self._held[:size]), self._held[size:]
            count -= size
            yield piece

    def take(self, count: int, part: str) -> bytes:
        """Give the next bytes at once; only for what is known to be small."""
        return b"".join(self.pieces(count, part))

    def skip_zeros(self, count: int, part: str, *, told_end: bool = False) -> None:
        """Pass over zero bytes, and refuse others."""
        if any(any(piece) for piece in self.pieces(count, part)):
            raise _invalid(
                "something follows the last part" if told_end else "the padding is not of zeros", part
            )

    def expect_end(self) -> None:
        """Refuse bytes after the end."""
        if len(self._held) or self._more():
            raise _invalid("bytes follow its end", "")

    def _more(self) -> bool:
        for chunk in self._chunks:
            if len(chunk):
                self._held = memoryview(chunk)
                return True
        return False
