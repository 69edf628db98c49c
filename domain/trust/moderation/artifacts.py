"""Parts that would do something when they are opened: pickles, programs, archives, and pretenders.

Nothing is opened here. A part is judged by its first bytes and, where it holds others, by their names and headers.
"""

from __future__ import annotations

import json
import pickletools
import re
import zipfile
from base64 import b64decode
from collections.abc import Callable, Iterator
from io import BytesIO

from domain.trust.moderation.findings import Finding, finding

PARQUET = "application/vnd.apache.parquet"
ARROW = "application/vnd.apache.arrow.file"
ARROW_STREAM = "application/vnd.apache.arrow.stream"
NUMPY = "application/x-npy"
NUMPY_ARCHIVE = "application/x-npz"
SAFETENSORS = "application/x-safetensors"
TEXT_TYPES = frozenset(
    "text/plain text/markdown text/csv text/yaml application/yaml application/x-yaml application/json "
    "application/x-ndjson application/jsonl application/schema+json".split()
)

ENTRIES_MAX = 1_000
RATIO_MAX = 200

_PROGRAMS: tuple[tuple[bytes, str], ...] = (
    (b"\x7fELF", "executable"), (b"MZ", "executable"), (b"\xfe\xed\xfa\xce", "executable"),
    (b"\xfe\xed\xfa\xcf", "executable"), (b"\xce\xfa\xed\xfe", "executable"), (b"\xcf\xfa\xed\xfe", "executable"),
    (b"\xca\xfe\xba\xbe", "executable"), (b"\x00asm", "executable"), (b"dex\n", "executable"), (b"#!", "script"),
    (b"BC\xc0\xde", "executable"), (b"\x1bLua", "executable"), (b"L\x00\x00\x00\x01\x14\x02\x00", "executable"),
)  # fmt: skip
_ARCHIVES: tuple[bytes, ...] = (
    b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07",
    b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18", b"!<arch>\n", b"MSCF", b"\x1f\x9d", b"LZIP", b"\x5d\x00\x00",
    b"070701", b"070707", b"xar!", b"hsqs",
)  # fmt: skip
_OBJECTS: tuple[bytes, ...] = (
    b"\x89HDF\r\n\x1a\n",
    b"\xac\xed\x00\x05",
    b"%PDF-",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
)
_PYTHON_BYTECODE = re.compile(rb"[\x00-\xff]{2}\r\n[\x00-\x03]\x00\x00\x00")
_TEXT_PICKLE = re.compile(
    rb"c(?:__builtin__|builtins|os|posix|nt|subprocess|sys|copy_reg|copyreg|types|[\w.]{2,60})\n\w+\n|\(?[dl]p\d+\n"
)
_ENDINGS = re.compile(
    r"(?i)\.(?:exe|dll|so(?:\.\d+)*|dylib|com|scr|msi|bat|cmd|ps1|psm1|vbs|vbe|js|mjs|jse|wsf|hta|lnk|jar|class|apk|dex|"
    r"sh|bash|zsh|fish|py|pyc|pyo|pyw|pyd|rb|pl|php|lua|wasm|desktop|app|bin|elf|o|a|"
    r"pkl|pickle|joblib|dill|pt|pth|ckpt|h5|hdf5|keras|mar|npk|rds|rda|mat|sav|"
    r"zip|tar|tgz|tbz2?|txz|gz|bz2|xz|zst|lz4|7z|rar|cab|iso|dmg|deb|rpm|whl|egg|docm|xlsm|pptm|doc|xls|pdf|swf)\Z"
)
_ENCODED = re.compile(
    rb"(?<![A-Za-z0-9+/])(?:(?P<program>f0VMR[A-Za-z0-9+/]{40,}|TV[pqro][A-Za-z0-9+/]{60,})|"
    rb"(?P<pickle>gA[I-X][A-Za-z0-9+/]{20,}={0,2})|(?P<archive>(?:UEsDB|H4sI)[A-Za-z0-9+/]{60,}))"
)
_YAML_TAG = re.compile(rb"!!?(?:python/|ruby/|java|<tag:yaml\.org,2002:python)[\w/.:]*")


def check_artifact(part: str, media_type: str, data: bytes) -> Iterator[Finding]:
    """Find what makes a part unsafe to open.

    Cost: the first bytes, one pass over a text, and the directory of an archive of arrays.
    """
    kind = media_type.partition(";")[0].strip().lower()
    if _ENDINGS.search(part):
        yield finding("unsafe_name", part, "block", text=part, start=0, end=len(part))
    rule = _rule_of(data, kind)
    if rule is not None:
        yield _at(rule, part, data, 0)
        return
    check = _CHECKS.get(kind)
    if kind in TEXT_TYPES:
        yield from _text(part, kind, data)
    elif check is None:
        yield finding("media_type_not_allowed", part, "block", text=kind, start=0, end=len(kind))
    elif (rule := check(data)) is not None:
        yield _at(rule, part, data, 0)
    if kind not in (NUMPY_ARCHIVE,) and (at := _hidden_archive(data)) is not None:
        yield _at("archive_inside", part, data, at)


def _at(rule: str, part: str, data: bytes, at: int) -> Finding:
    """Make a finding of bytes: 16 of them name the match."""
    told = data[at : at + 16].hex()
    found = finding(rule, part, "block", text=told, start=0, end=len(told))
    return Finding(rule, part, at, 0, "block", found.match_digest)


def _rule_of(data: bytes, kind: str) -> str | None:
    """Name what the first bytes say, whatever the part is called."""
    # A mark of the byte order or white space before a program's mark hides it from nobody.
    head = data[:64]
    for magic, rule in _PROGRAMS:
        if head.startswith(magic) and not (magic == b"MZ" and kind in TEXT_TYPES and _is_text(data)):
            return rule
    if head.startswith(_ARCHIVES) and kind != NUMPY_ARCHIVE and not _is_text(data):
        return "archive"
    if data[257:262] == b"ustar":
        return "archive"
    if head.startswith(_OBJECTS):
        return "serialized_objects"
    if is_pickle(data):
        return "pickle"
    return "executable" if _PYTHON_BYTECODE.match(head) else None


def is_pickle(data: bytes) -> bool:
    """Tell whether bytes are a pickle of any protocol; they are read as a list of operations, and none is done."""
    is_binary = len(data) > 1 and data[0] == 0x80 and data[1] <= 5
    is_old = _TEXT_PICKLE.match(data[:200]) is not None or data[-1:] == b"."
    if not (is_binary or is_old) or len(data) < 4:
        return False
    count = 0
    try:
        for count, (operation, _, _) in enumerate(pickletools.genops(data), 1):
            if operation.name == "STOP":
                return count > 2 or is_binary
            if count > 64:
                return True
    except (ValueError, IndexError, UnicodeError, OverflowError):
        return is_binary and count > 2
    return is_binary


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return b"\0" not in data


def _text(part: str, kind: str, data: bytes) -> Iterator[Finding]:
    if not _is_text(data):
        yield _at("not_text", part, data, 0)
        return
    for found in _ENCODED.finditer(data):
        if found["pickle"] and not is_pickle(b64decode(found[0][: len(found[0]) // 4 * 4])):
            continue
        yield _at(f"encoded_{found.lastgroup}", part, data, found.start())
    if "json" not in kind:
        for found in _YAML_TAG.finditer(data):
            yield _at("unsafe_yaml_tag", part, data, found.start())
    if kind in ("application/json", "application/schema+json") and not _is_json(data):
        yield finding("not_json", part, "warn")


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True


# --------------------------------------------------------------------------- arrays


def _parquet(data: bytes) -> str | None:
    return None if len(data) >= 12 and data[:4] == b"PAR1" == data[-4:] else "media_type_mismatch"


def _arrow(data: bytes) -> str | None:
    return None if data[:6] == b"ARROW1" and data[-6:] == b"ARROW1" else "media_type_mismatch"


def _arrow_stream(data: bytes) -> str | None:
    return None if data[:4] == b"\xff\xff\xff\xff" else "media_type_mismatch"


def _npy(data: bytes) -> str | None:
    if data[:6] != b"\x93NUMPY" or len(data) < 12:
        return "media_type_mismatch"
    size = int.from_bytes(data[8:10], "little") if data[6] == 1 else int.from_bytes(data[8:12], "little")
    header = data[10 if data[6] == 1 else 12 :][: min(size, 10_000)]
    described = re.search(rb"['\"]descr['\"]\s*:\s*(?P<descr>[^}]*?)['\"]fortran_order", header)
    # An array of objects is a pickle in all but name; so is one whose form cannot be told.
    if described is None or re.search(rb"['\"][|<>=]?O\d*['\"]", described["descr"]):
        return "array_of_objects"
    return None


def _npz(data: bytes) -> str | None:
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            entries = archive.infolist()
            if len(entries) > ENTRIES_MAX or len({entry.filename for entry in entries}) < len(entries):
                return "archive"
            return next((rule for entry in entries if (rule := _entry(archive, entry)) is not None), None)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError, OSError):
        return "media_type_mismatch"


def _entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> str | None:
    is_bomb = entry.file_size > RATIO_MAX * max(1, entry.compress_size)
    if is_bomb or not re.fullmatch(r"[\w.-]{1,100}\.npy", entry.filename) or ".." in entry.filename:
        return "archive"
    with archive.open(entry) as opened:
        return _npy(opened.read(16_384))


def _safetensors(data: bytes) -> str | None:
    size = int.from_bytes(data[:8], "little")
    if len(data) < 10 or size > min(len(data) - 8, 100_000_000) or not _is_json(data[8 : 8 + size]):
        return "media_type_mismatch"
    return None


def _png(data: bytes) -> str | None:
    return None if data[:8] == b"\x89PNG\r\n\x1a\n" else "media_type_mismatch"


def _jpeg(data: bytes) -> str | None:
    return None if data[:3] == b"\xff\xd8\xff" else "media_type_mismatch"


_CHECKS: dict[str, Callable[[bytes], str | None]] = {
    PARQUET: _parquet,
    ARROW: _arrow,
    ARROW_STREAM: _arrow_stream,
    NUMPY: _npy,
    NUMPY_ARCHIVE: _npz,
    SAFETENSORS: _safetensors,
    "image/png": _png,
    "image/jpeg": _jpeg,
}
MEDIA_TYPES = TEXT_TYPES | frozenset(_CHECKS)


def _hidden_archive(data: bytes) -> int | None:
    """Find the end of a zip archive behind something else; its comment has to end where the part ends."""
    at = data.rfind(b"PK\x05\x06", max(0, len(data) - 65_557))
    if at < 0 or at + 22 > len(data):
        return None
    return at if at + 22 + int.from_bytes(data[at + 20 : at + 22], "little") == len(data) else None


def definition() -> list[str]:
    """List what the rules of this module are made of, for their address."""
    magics = [magic.hex() for magic in (*(magic for magic, _ in _PROGRAMS), *_ARCHIVES, *_OBJECTS)]
    patterns = [p.pattern.decode() for p in (_PYTHON_BYTECODE, _TEXT_PICKLE, _ENCODED, _YAML_TAG)]
    return [*sorted(MEDIA_TYPES), *magics, *patterns, _ENDINGS.pattern]
