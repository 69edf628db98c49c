"""What is wrong with a header that is not the expected one, told in a sentence; nothing is decided by it."""

from __future__ import annotations

from collections.abc import Sequence

from domain.persona.manifest import PartRef

_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"5": "a directory",
    b"6": "a pipe",
    b"7": "a contiguous file",
    b"g": "a pax header for all that follows",
    b"x": "a pax header",
    b"K": "a long link name of another tar form",
    b"L": "a long name of another tar form",
    b"M": "a file continued from another volume",
    b"S": "a sparse file",
    b"V": "a volume label",
}
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
    b"\x04\x22\x4d\x18": "lz4",
}


def told(found: bytes, part: PartRef | None, before: Sequence[PartRef], parts: Sequence[PartRef]) -> str:
    """Say why a header is not the one that was expected: the manifest's, or that of a part."""
    wanted = f"parts/{part.name}" if part else "manifest.json"
    if not any(found):
        return f"it ends before {wanted}"
    for magic, name in _COMPRESSED.items():
        if found.startswith(magic):
            return f"it is compressed with {name}; an archive is hashed as it is, uncompressed"
    if found[257:263] != b"ustar\0":
        return f"at {wanted} stands no header of the plain ustar form"
    if found[156:157] != b"0":
        return f"at {wanted} stands {_KINDS.get(found[156:157], 'something else than a plain file')}"
    name = found[:100].rstrip(b"\0").decode("ascii", "backslashreplace")
    if found[345:500].strip(b"\0"):
        return f"the name at {wanted} is continued in a second field"
    return _misnamed(name, wanted, before, parts) if name != wanted else _misfilled(found, wanted, part)


def _misnamed(name: str, wanted: str, before: Sequence[PartRef], parts: Sequence[PartRef]) -> str:
    shown = repr(name[:100])
    if name.startswith(("/", "\\")) or name[1:2] == ":":
        return f"{shown} is an absolute name"
    if ".." in name.replace("\\", "/").split("/"):
        return f"{shown} leads out of the archive"
    if name == "manifest.json" or name in {f"parts/{part.name}" for part in before}:
        return f"{shown} stands there twice"
    known = {f"parts/{part.name}" for part in parts}
    if name in known:
        return f"{shown} stands where {wanted} belongs: parts stand in the order of their names"
    if name.lower() in known or name.lower() == wanted:
        return f"{shown} differs from a name of the manifest only in upper and lower case"
    return f"{shown} stands where {wanted} belongs, and the manifest does not name it"


def _misfilled(found: bytes, wanted: str, part: PartRef | None) -> str:
    if part is not None and found[124:136] != b"%011o\0" % part.bytes:
        return f"the size in the header of {wanted} is not the manifest's, {part.bytes:,} bytes"
    return f"the header of {wanted} is not the one all capsules have: mode 0644, owner 0, time 0, and its checksum"
