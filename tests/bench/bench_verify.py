"""How fast a whole log is verified, against nothing but hashing the same bytes in the same run."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import time
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from domain.log.audit import audit

RECORD_COUNT = 100_096
STREAM_COUNT = 2_000
ROUNDS = 5
ORIGIN = "bench.example/log"


def make_records(count: int) -> list[bytes]:
    """Write records of about 600 bytes: every second one moves money between 50 accounts."""
    heads: dict[str, tuple[int, str | None]] = {}
    records = []
    for number in range(count):
        stream = f"contract/{number * 7919 % STREAM_COUNT:08d}"
        version, previous = heads.get(stream, (0, None))
        data: dict[str, Any] = {"contract": stream, "note": f"step {number} of the round " + "." * 160}
        if number == 0:
            sides = {"op": "open", "currency": "EUR", "side": "credit", "overdraft": True}
            data["money"] = [sides | {"account": f"wallet:{account:05d}"} for account in range(50)]
        elif number % 2:
            amount, left, right = f"{number % 997}.25", number % 50, (number + 7) % 50
            legs = [
                {"account": f"wallet:{left:05d}", "amount": amount},
                {"account": f"wallet:{right:05d}", "amount": "-" + amount},
            ]
            data["money"] = [{"op": "transfer", "currency": "EUR", "postings": legs}]
            data["note"] = f"step {number} " + "." * 50
        raw = json.dumps(
            {
                "actor": "user-12",
                "at": f"2026-07-22T10:{number // 60 % 60:02d}:{number % 60:02d}.123456Z",
                "causation": None,
                "correlation": f"c-{number:08d}",
                "data": data,
                "previous": previous,
                "schema": 1,
                "stream": stream,
                "tenant": "tenant-1",
                "type": "contract.escrow_funded",
                "version": version + 1,
            },
            sort_keys=True,
            separators=(",", ":"),
        ).encode()
        heads[stream] = (version + 1, "sha3-512:" + hashlib.sha3_512(raw).hexdigest())
        records.append(raw)
    return records


def node(left: bytes, right: bytes) -> bytes:
    """Hash two subtrees."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def reduce_pairs(row: list[bytes]) -> list[bytes]:
    """Hash one layer of the tree; an odd last hash moves up as it is."""
    paired = [node(left, right) for left, right in zip(row[0::2], row[1::2], strict=False)]
    return paired + row[len(paired) * 2 :]


def bare_hashing(records: list[bytes]) -> bytes:
    """Compute address, leaf hash and tree of the records, and nothing else."""
    for raw in records:
        hashlib.sha3_512(raw).digest()
    row = [hashlib.sha256(b"\x00" + raw).digest() for raw in records]
    while len(row) > 1:
        row = reduce_pairs(row)
    return row[0]


def export_of(records: list[bytes]) -> dict[str, bytes]:
    """Lay the records out as tiles with a signed checkpoint."""
    files = {}
    row = [hashlib.sha256(b"\x00" + raw).digest() for raw in records]
    for start in range(0, len(records), 256):
        part = records[start : start + 256]
        files[path_of("entries", start // 256, len(part))] = b"".join(
            struct.pack(">H", len(raw)) + raw for raw in part
        )
    level = 0
    while row:
        for start in range(0, len(row), 256):
            part = row[start : start + 256]
            files[path_of(level, start // 256, len(part))] = b"".join(part)
        row = row[: len(row) // 256 * 256]
        for _ in range(8):
            row = reduce_pairs(row)
        level += 1
    key = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
    public = b"\x01" + key.public_key().public_bytes_raw()
    key_id = hashlib.sha256(ORIGIN.encode() + b"\n" + public).digest()[:4]
    text = f"{ORIGIN}\n{len(records)}\n{base64.b64encode(bare_hashing(records)).decode()}\n"
    signature = base64.b64encode(key_id + key.sign(text.encode())).decode()
    files["checkpoint"] = f"{text}\n\u2014 {ORIGIN} {signature}\n".encode()
    files["log.vkey"] = f"{ORIGIN}+{key_id.hex()}+{base64.b64encode(public).decode()}".encode()
    return files


def path_of(level: int | str, index: int, width: int) -> str:
    """Name a tile of a log below 256 million records."""
    name = f"x{index // 1000:03d}/{index % 1000:03d}" if index >= 1000 else f"{index:03d}"
    return f"tile/{level}/{name}" + (f".p/{width}" if width < 256 else "")


def seconds_of(work: Callable[[], object]) -> float:
    """Time one run."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def figures() -> list[dict[str, Any]]:
    """Measure `log.verify`: the best of several rounds that alternate with the baseline.

    Units: value and baseline in records a second.
    """
    records = make_records(RECORD_COUNT)
    files = export_of(records)
    report = audit(files.get, vkey=files["log.vkey"].decode())
    assert report.ok, report.findings[:3]
    assert report.records == RECORD_COUNT
    bare_s, audit_s = float("inf"), float("inf")
    for _ in range(ROUNDS):
        bare_s = min(bare_s, seconds_of(lambda: bare_hashing(records)))
        audit_s = min(audit_s, seconds_of(lambda: audit(files.get, vkey=files["log.vkey"].decode())))
    value, baseline = RECORD_COUNT / audit_s, RECORD_COUNT / bare_s
    return [
        {
            "name": "log.verify",
            "value": round(value),
            "unit": "records/s",
            "baseline": round(baseline),
            "ratio": round(value / baseline, 3),
            "at_least": 0.5,
        }
    ]


FIGURES = {"log.verify": figures}

if __name__ == "__main__":
    for figure in figures():
        print(figure)
