"""The corpus of tampered capsules: every field, every part, every trick, each with the code and part it is refused by.

A capsule arrives as the bytes of an archive and the address it is known by. The forger here can do everything but find
a second manifest with the same address: change a field and write the archive anew around it, change a part, or build
any archive there is a tool for.
"""

from __future__ import annotations

import bz2
import copy
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

from domain.canonical import encode_record
from domain.persona.archive import END, header
from tests.unit.persona.capsule_maker import Capsule, a_capsule, address_of, part_ref

MANIFEST = "manifest.json"
Path = tuple[str | int, ...]


class Case(NamedTuple):
    """One tampered capsule: what was done, the bytes, the code, and the part or path the refusal names."""

    name: str
    archive: Callable[[], bytes]
    code: str
    named: str
    knows_address: bool = True


@cache
def capsule() -> Capsule:
    """Make the capsule that is tampered with, once."""
    return a_capsule()


@cache
def other() -> Capsule:
    """Make another valid capsule, of the same persona and owner."""
    turned = capsule().data["prompts.json"][::-1]
    return a_capsule(version="1.0.1", parts={"prompts.json": ("prompts", "application/json", turned)})


def manifest_bytes() -> bytes:
    """Give the honest manifest as it stands in the archive."""
    return capsule().manifest.sealed()[0]


def document() -> dict[str, Any]:
    """Give the honest manifest as plain values, to be spoiled."""
    return copy.deepcopy(capsule().manifest.document())


# --------------------------------------------------------------------------- building what a forger builds


def padded(data: bytes) -> bytes:
    """Fill the last block of a file."""
    return data + bytes(-len(data) % 512)


def entry(name: str, data: bytes) -> bytes:
    """Write one file as our own writer does."""
    return header(name, len(data)) + padded(data)


def files(manifest: bytes | None = None, data: dict[str, bytes] | None = None) -> list[tuple[str, bytes]]:
    """List the files of an honest archive, the manifest or some parts replaced."""
    parts = {**capsule().data, **(data or {})}
    return [
        (MANIFEST, manifest_bytes() if manifest is None else manifest),
        *((f"parts/{name}", parts[name]) for name in sorted(parts)),
    ]


def built(entries: list[tuple[str, bytes]], end: bytes = END) -> bytes:
    """Write an archive of any files."""
    return b"".join(entry(name, data) for name, data in entries) + end


def forged(value: Any, data: dict[str, bytes] | None = None) -> bytes:
    """Write the archive around a changed manifest, in its canonical form."""
    return built(files(encode_record(value), data))


def patched(name: str, at: int, new: bytes, *, right_sum: bool = True) -> bytes:
    """Change bytes of one file's header, and its checksum with them."""
    out = b""
    for entry_name, data in files():
        block = bytearray(header(entry_name, len(data)))
        if entry_name == name:
            block[at : at + len(new)] = new
            if right_sum:
                block[148:156] = b" " * 8
                block[148:156] = b"%06o\0 " % sum(block)
        out += bytes(block) + padded(data)
    return out + END


def with_tarfile(kind: int, change: Callable[[tarfile.TarInfo], None] | None = None) -> bytes:
    """Write an honest capsule with the tar library in one of its forms."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=kind) as tar:
        for name, data in files():
            told = tarfile.TarInfo(name)
            told.size = len(data)
            if change is not None:
                change(told)
            tar.addfile(told, io.BytesIO(data))
    return out.getvalue()


# --------------------------------------------------------------------------- every field of the manifest


# Another value that is valid in its place, so that nothing but the address tells.
OTHER_VALUES: dict[str, Any] = {
    "persona_id": "tax-adviser", "version": "1.0.1", "created_at": "2025-12-31T00:00:00.000000Z",
    "updated_at": "2026-01-03T00:00:00.000000Z", "subject": "mallory", "default_mode": "training",
    "temperature": "0.9", "metric": "dot", "access_scope": "admin", "score": "1", "captured_at":
    "2026-01-03T00:00:00.000000Z", "reference_link": "https://example.org/other", "model": "subscription",
    "amount": "0.01", "currency": "EUR", "digest": "sha3-512:" + "0" * 128, "sha256": "0" * 64,
    "constitution": "sha3-512:" + "1" * 128, "media_type": "text/plain", "schema": "soma/persona_manifest/2",
    "report": None, "name": "other.bin", "bundle": "tools.json",
}  # fmt: skip


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """List every field of a document that holds no others."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, (*path, name))
    elif isinstance(value, list) and value:
        for index, inner in enumerate(value):
            yield from leaves(inner, (*path, index))
    else:
        yield path, value


def put(value: Any, path: Path, new: Any) -> Any:
    """Set one place of a document."""
    at = value
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = new
    return value


def otherwise(path: Path, value: Any) -> Any:
    """Give another value for a field."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if value is None:
        return 60 if path[-1] == "billing_period_minutes" else "something"
    return OTHER_VALUES.get(str(path[-1]), value + "x")


def pointer(path: Path) -> str:
    """Write a place as a fault does."""
    return "".join(f"/{step}" for step in path)


def field_cases() -> Iterator[Case]:
    """Give every field another value, and write the archive anew around it."""
    for path, value in leaves(document()):
        changed = otherwise(path, value)
        yield Case(
            f"{pointer(path)} changed",
            lambda path=path, changed=changed: forged(put(document(), path, changed)),
            "capsule_tampered",
            MANIFEST,
        )


def broken_field_cases() -> Iterator[Case]:
    """Even where nobody knows the address, a field that cannot be is refused by its path."""
    for path, _ in leaves(document()):
        yield Case(
            f"{pointer(path)} made a list in a list",
            lambda path=path: forged(put(document(), path, [[]])),
            "manifest_invalid",
            pointer(path[:-1] if path[-1] in {"amount", "currency"} else path),
            False,
        )


def removed(path: Path) -> bytes:
    """Write the archive around a manifest that lacks a field."""
    value = at = document()
    for step in path[:-1]:
        at = at[step]
    del at[path[-1]]
    return forged(value)


def block_cases() -> Iterator[Case]:
    """Remove, empty and add blocks and fields."""
    blocks = ("schema", "metadata", "model_box", "memory", "governance", "pricing", "artifacts")
    for name in blocks:
        yield Case(f"{name} removed", lambda n=name: removed((n,)), "manifest_invalid", f"/{name}", False)
    for name in ("tools", "evaluations"):
        yield Case(
            f"{name} emptied", lambda n=name: forged(put(document(), (n,), [])), "capsule_tampered", MANIFEST
        )
    # A default left out is the same manifest in other bytes, and other bytes are another capsule.
    yield Case("a default left out", lambda: removed(("tools",)), "manifest_invalid", "", False)
    for name in ("signature", "approvals", "$schema", "__proto__"):
        yield Case(
            f"{name} added",
            lambda n=name: forged(put(document(), (n,), {})),
            "manifest_invalid",
            f"/{name}",
            False,
        )


def manifest_text_cases() -> Iterator[Case]:
    """Write the same manifest, or nearly, in other bytes."""
    honest = manifest_bytes()
    pretty = json.dumps(json.loads(honest), indent=1).encode()
    doubled = honest[:-1] + b',"schema":"soma/persona_manifest/1"}'
    unsorted = json.dumps(
        {"schema": 0, **json.loads(honest)} | {"schema": json.loads(honest)["schema"]}
    ).encode()
    texts = {
        "with spaces": pretty,
        "with a byte order mark": b"\xef\xbb\xbf" + honest,
        "with a line end": honest + b"\n",
        "with a name twice": doubled,
        "with names in another order": unsorted,
        "with an escape nobody needs": honest.replace(b'"schema"', b'"\\u0073chema"'),
        "with a float": honest.replace(b'"item_count":8', b'"item_count":8.0'),
        "with an exponent": honest.replace(b'"item_count":8', b'"item_count":8e0'),
        "with NaN": honest.replace(b'"item_count":8', b'"item_count":NaN'),
        "in YAML": b"schema: soma/persona_manifest/1\n",
        "in UTF-16": honest.decode().encode("utf-16"),
        "cut short": honest[:-1],
        "empty": b"",
        "null": b"null",
        "a list": b"[]",
        "nested without end": b"[" * 30_000,
    }
    for name, text in texts.items():
        yield Case(f"a manifest {name}", lambda t=text: built(files(t)), "capsule_tampered", MANIFEST)
        named = "/memory/item_count" if name in {"with a float", "with an exponent"} else ""
        yield Case(
            f"a manifest {name}, address unknown",
            lambda t=text: built(files(t)),
            "manifest_invalid",
            named,
            False,
        )


def swapped_manifest_cases() -> Iterator[Case]:
    """Take the manifests of other capsules."""
    theirs = other().manifest.sealed()[0]
    yield Case("the manifest of another version", lambda: built(files(theirs)), "capsule_tampered", MANIFEST)
    yield Case(
        "the manifest of another version, address unknown",
        lambda: built(files(theirs)),
        "capsule_tampered",
        "prompts.json",
        False,
    )
    yield Case("another valid capsule as a whole", lambda: other().archive(), "capsule_tampered", MANIFEST)


# --------------------------------------------------------------------------- every part


def part_cases() -> Iterator[Case]:
    """Change every part in many ways."""
    for part in capsule().manifest.parts:
        data, name = capsule().data[part.name], part.name
        same_size = {
            "its first byte flipped": bytes([data[0] ^ 1]) + data[1:],
            "its middle byte flipped": data[: len(data) // 2]
            + bytes([data[len(data) // 2] ^ 128])
            + data[len(data) // 2 + 1 :],
            "its last byte flipped": data[:-1] + bytes([data[-1] ^ 1]),
            "zeros in its place": bytes(len(data)),
            "its bytes turned round": data[::-1],
        }
        for what, spoiled in same_size.items():
            yield Case(
                f"{name}: {what}",
                lambda n=name, s=spoiled: built(files(data={n: s})),
                "capsule_tampered",
                name,
            )
        other_size = {
            "a byte short": data[:-1],
            "a byte long": data + b"\0",
            "empty": b"",
            "doubled": data * 2,
        }
        for what, spoiled in other_size.items():
            yield Case(
                f"{name}: {what}",
                lambda n=name, s=spoiled: built(files(data={n: s})),
                "archive_invalid",
                name,
            )
        yield from told_otherwise(part.name, data)


def told_otherwise(name: str, data: bytes) -> Iterator[Case]:
    """A changed part, and a manifest that tells what the part now is."""
    spoiled = bytes([data[0] ^ 1]) + data[1:]
    index = [part.name for part in capsule().manifest.parts].index(name)
    kept = document()["artifacts"][index]
    yield Case(
        f"{name}: changed, and described anew",
        lambda: forged(
            put(document(), ("artifacts", index), part_ref(name, kept["role"], spoiled, kept["media_type"])),
            {name: spoiled},
        ),
        "capsule_tampered",
        MANIFEST,
    )
    yield Case(
        f"{name}: changed, only its first digest described anew",
        lambda: forged(put(document(), ("artifacts", index, "digest"), address_of(spoiled)), {name: spoiled}),
        "capsule_tampered",
        name,
        False,
    )


def two_parts_cases() -> Iterator[Case]:
    """Put parts in the places of others."""
    data = capsule().data
    pairs = [
        ("prompts.json", "tools.json"),
        ("prompts.json", "report.json"),
        ("memory.parquet", "prompts.json"),
    ]
    for first, second in pairs:
        yield Case(
            f"{first} and {second} change places",
            lambda a=first, b=second: built(files(data={a: data[b], b: data[a]})),
            "archive_invalid",
            min(first, second),
        )
    yield Case(
        "a part of another capsule",
        lambda: built(files(data={"prompts.json": other().data["prompts.json"]})),
        "capsule_tampered",
        "prompts.json",
    )


# --------------------------------------------------------------------------- tricks with archives


NAMES = {
    "an absolute name": "/parts/prompts.json",
    "a name that leads out": "../prompts.json",
    "a name that leads out further in": "parts/../../etc/passwd",
    "a name with a turned stroke": "..\\prompts.json",
    "a drive": "c:\\prompts.json",
    "a name in capitals": "PARTS/PROMPTS.JSON",
    "a name that differs in case": "parts/Prompts.json",
    "a name nobody described": "parts/backdoor.py",
    "a name with a dot before it": "./parts/prompts.json",
    "a name with a stroke too many": "parts//prompts.json",
    "a name with a stroke after it": "parts/prompts.json/",
    "a name with a space after it": "parts/prompts.json ",
    "a name without its folder": "prompts.json",
    "a name that hides its end": "parts/prompts.json\0.exe",
    "the manifest's name": MANIFEST,
    "the name before it": "parts/memory.parquet",
    "the name after it": "parts/tools.json",
}
KINDS = {
    "a hard link": b"1", "a symbolic link": b"2", "a character device": b"3", "a block device": b"4",
    "a directory": b"5", "a pipe": b"6", "a contiguous file": b"7", "a pax header": b"x",
    "a pax header for all": b"g", "a long name": b"L", "a long link": b"K", "a sparse file": b"S",
    "a volume label": b"V", "a continued file": b"M", "an old plain file": b"\0", "a kind nobody knows": b"Z",
}  # fmt: skip
FIELDS = {
    "another mode": (100, b"0000755\0"),
    "a mode with the set-user bit": (100, b"0004755\0"),
    "an owner": (108, b"0001750\0"),
    "a group": (116, b"0001750\0"),
    "a size with spaces": (124, b"         40\0"),
    "a size in another base": (124, b"\x80" + bytes(11)),
    "a size of eight gigabytes": (124, b"77777777777\0"),
    "a size of nothing": (124, b"00000000000\0"),
    "a size below zero": (124, b"-0000000001\0"),
    "a time": (136, b"14700000000\0"),
    "a link's target": (157, b"/etc/passwd"),
    "another magic": (257, b"ustar  \0"),
    "another version": (263, b"01"),
    "a name of an owner": (265, b"root\0"),
    "a name of a group": (297, b"root\0"),
    "a device": (329, b"0000001\0"),
    "a second part of the name": (345, b"/etc"),
    "bytes in its last corner": (500, b"hidden"),
}
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "a bomb in gzip": lambda data: gzip.compress(bytes(20_000_000)),
}


def header_cases() -> Iterator[Case]:
    """Write headers that say something else than all capsules say."""
    wanted = "parts/prompts.json"
    for what, name in NAMES.items():
        field = name.encode().ljust(100, b"\0")
        yield Case(
            f"prompts.json under {what}",
            lambda f=field: patched(wanted, 0, f),
            "archive_invalid",
            "prompts.json",
        )
    for what, kind in KINDS.items():
        yield Case(
            f"prompts.json as {what}",
            lambda k=kind: patched(wanted, 156, k),
            "archive_invalid",
            "prompts.json",
        )
    for what, (at, new) in FIELDS.items():
        yield Case(
            f"prompts.json with {what}",
            lambda a=at, n=new: patched(wanted, a, n),
            "archive_invalid",
            "prompts.json",
        )
        code = "archive_limit" if what == "a size of eight gigabytes" else "archive_invalid"
        if what == "a size of nothing":
            continue
        yield Case(f"the manifest with {what}", lambda a=at, n=new: patched(MANIFEST, a, n), code, MANIFEST)
    yield Case(
        "a checksum that is wrong",
        lambda: patched(wanted, 148, b"000000\0 ", right_sum=False),
        "archive_invalid",
        "prompts.json",
    )
    yield Case(
        "a checksum written otherwise",
        lambda: patched(wanted, 154, b" \0", right_sum=False),
        "archive_invalid",
        "prompts.json",
    )
    yield Case(
        "the manifest under another name",
        lambda: patched(MANIFEST, 0, b"MANIFEST"),
        "archive_invalid",
        MANIFEST,
    )


def order_cases() -> Iterator[Case]:
    """Leave files out, double them, add some, and change their order."""

    def with_files(
        change: Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]],
    ) -> Callable[[], bytes]:
        return lambda: built(change(files()))

    extra = ("parts/zz.bin", b"more")
    cases: list[tuple[str, Callable[[], bytes], str]] = [
        ("no files", lambda: END, MANIFEST),
        ("nothing at all", lambda: b"", MANIFEST),
        ("the manifest alone", with_files(lambda own: own[:1]), "memory.parquet"),
        ("no manifest", with_files(lambda own: own[1:]), MANIFEST),
        ("the manifest last", with_files(lambda own: [*own[1:], own[0]]), MANIFEST),
        ("the manifest twice", with_files(lambda own: [own[0], *own]), "memory.parquet"),
        (
            "two manifests, the second another",
            lambda: built([*files()[:1], *files(other().manifest.sealed()[0])]),
            "memory.parquet",
        ),
        (
            "parts in another order",
            with_files(lambda own: [*own[:2], own[3], own[2], own[4]]),
            "prompts.json",
        ),
        ("a part twice", with_files(lambda own: [*own[:3], own[2], *own[3:]]), "report.json"),
        (
            "a part twice, the second changed",
            with_files(lambda own: [*own[:3], ("parts/prompts.json", b"x"), *own[3:]]),
            "report.json",
        ),
        ("a file more at the end", with_files(lambda own: [*own, extra]), ""),
        (
            "a file more in between",
            with_files(lambda own: [*own[:2], ("parts/n", b"x"), *own[2:]]),
            "prompts.json",
        ),
        ("a file more before the manifest", with_files(lambda own: [extra, *own]), MANIFEST),
        ("a file after the end", lambda: built(files()) + entry(*extra) + END, ""),
        ("a second archive after the end", lambda: built(files()) * 2, ""),
        ("a third block of zeros", lambda: built(files(), END + bytes(512)), ""),
        ("one block of zeros", lambda: built(files(), END[:512]), ""),
        ("no end", lambda: built(files(), b""), ""),
        ("something in the end", lambda: built(files(), END[:-1] + b"\1"), ""),
        ("an end in the middle", with_files(lambda own: own[:3]), "report.json"),
        ("a comment before the archive", lambda: b"#!/bin/sh\n" + built(files()), MANIFEST),
        ("a block before the archive", lambda: bytes(512) + built(files()), MANIFEST),
    ]
    for part in capsule().manifest.parts:
        gone = f"parts/{part.name}"
        cases.append(
            (f"{part.name} missing", with_files(lambda own, g=gone: [f for f in own if f[0] != g]), part.name)
        )
    for name, archive, named in cases:
        named = "" if name == "tools.json missing" else named
        yield Case(name, archive, "archive_invalid", "tools.json" if name == "tools.json missing" else named)


def cut_cases() -> Iterator[Case]:
    """Break archives off."""
    whole = capsule().archive()
    places = {"in the first header": (100, MANIFEST), "in the manifest": (700, MANIFEST)}
    at = 512 + len(padded(manifest_bytes()))
    for part in capsule().manifest.parts:
        places[f"in the header of {part.name}"] = (at + 3, part.name)
        places[f"in {part.name}"] = (at + 512 + part.bytes // 2, part.name)
        at += 512 + len(padded(capsule().data[part.name]))
    places["before the end"] = (at, "")
    places["in the end"] = (len(whole) - 1, "")
    for what, (size, named) in places.items():
        yield Case(f"cut off {what}", lambda s=size: whole[:s], "archive_invalid", named)


def padding_cases() -> Iterator[Case]:
    """Write words where only zeros are."""
    whole = capsule().archive()
    end = 512 + len(manifest_bytes())
    yield Case(
        "words in the manifest's padding",
        lambda: whole[:end] + b"hi" + whole[end + 2 :],
        "archive_invalid",
        MANIFEST,
    )
    at = 512 + len(padded(manifest_bytes()))
    for part in capsule().manifest.parts:
        place = at + 512 + part.bytes
        yield Case(
            f"words in the padding of {part.name}",
            lambda p=place: whole[:p] + b"x" + whole[p + 1 :],
            "archive_invalid",
            part.name,
        )
        at += 512 + len(padded(capsule().data[part.name]))


def in_zip() -> bytes:
    """Write the capsule as a zip."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        for name, data in files():
            packed.writestr(name, data)
    return out.getvalue()


def owned(told: tarfile.TarInfo) -> None:
    """Tell whose a file is, as tar does when nobody stops it."""
    told.uid, told.uname, told.mtime = 1000, "olivia", 1_800_000_000


def packing_cases() -> Iterator[Case]:
    """Use other forms of archive."""
    for name, pack in PACKED.items():
        yield Case(f"packed with {name}", lambda p=pack: p(capsule().archive()), "archive_invalid", MANIFEST)
    yield Case("a zip", in_zip, "archive_invalid", MANIFEST)
    forms = {"as the tar library writes it": tarfile.USTAR_FORMAT, "in the form of GNU": tarfile.GNU_FORMAT}
    for name, kind in forms.items():
        named = "" if kind == tarfile.USTAR_FORMAT else MANIFEST
        yield Case(f"{name}", lambda k=kind: with_tarfile(k), "archive_invalid", named)
    yield Case(
        "in the form of pax, with a time of parts of seconds",
        lambda: with_tarfile(tarfile.PAX_FORMAT, lambda told: setattr(told, "mtime", 1.5)),
        "archive_invalid",
        MANIFEST,
    )
    yield Case(
        "with owners and times",
        lambda: with_tarfile(tarfile.USTAR_FORMAT, owned),
        "archive_invalid",
        MANIFEST,
    )


def size_cases() -> Iterator[Case]:
    """Bombs: sizes that are told and are not there, and sizes nobody takes in."""
    index = [part.name for part in capsule().manifest.parts].index("prompts.json")

    def claimed(size: int) -> bytes:
        value = encode_record(put(document(), ("artifacts", index, "bytes"), size))
        entries = [(MANIFEST, value), *files()[1:3]]
        out = b"".join(entry(name, data) for name, data in entries[:2])
        return out + header("parts/prompts.json", size) + bytes(4096)

    yield Case(
        "a part of a gigabyte that is not there",
        lambda: claimed(2**30),
        "archive_invalid",
        "prompts.json",
        False,
    )
    yield Case("a part of eight gigabytes", lambda: claimed(2**33 - 1), "archive_limit", "", False)
    yield Case(
        "a part larger than any", lambda: claimed(2**33), "manifest_invalid", "/artifacts/1/bytes", False
    )
    many = [part_ref(f"part-{n:03d}", "other", b"x") for n in range(65)]
    yield Case(
        "too many parts",
        lambda: forged(put(document(), ("artifacts",), [*document()["artifacts"], *many])),
        "manifest_invalid",
        "/artifacts",
        False,
    )
    huge = b"{" + b" " * 40_000 + b"}"
    yield Case(
        "a manifest that is too large", lambda: built([(MANIFEST, huge)]), "archive_limit", MANIFEST, False
    )


CASES = [
    *field_cases(), *broken_field_cases(), *block_cases(), *manifest_text_cases(), *swapped_manifest_cases(),
    *part_cases(), *two_parts_cases(), *header_cases(), *order_cases(), *cut_cases(), *padding_cases(),
    *packing_cases(), *size_cases(),
]  # fmt: skip
