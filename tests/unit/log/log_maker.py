"""A naive maker of whole small logs, for tests of the verifier: json, hashlib and cryptography only.

It knows nothing of the writer and nothing of the verifier, so both can be held against it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

ORIGIN = "ledger.example/log"


def canonical(value: Any) -> bytes:
    """Write canonical JSON (ASCII keys, no floats)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def address(record: bytes) -> str:
    """Address of a record."""
    return "sha3-512:" + hashlib.sha3_512(record).hexdigest()


def leaf(record: bytes) -> bytes:
    """Leaf hash of a record."""
    return hashlib.sha256(b"\x00" + record).digest()


def merkle_root(hashes: list[bytes]) -> bytes:
    """MTH over leaf hashes, by the definition of RFC 6962."""
    if not hashes:
        return hashlib.sha256(b"").digest()
    if len(hashes) == 1:
        return hashes[0]
    split = 1
    while split * 2 < len(hashes):
        split *= 2
    left, right = merkle_root(hashes[:split]), merkle_root(hashes[split:])
    return hashlib.sha256(b"\x01" + left + right).digest()


def inclusion(hashes: list[bytes], index: int) -> list[bytes]:
    """The audit path of a leaf, by the definition of RFC 6962."""
    if len(hashes) <= 1:
        return []
    split = 1
    while split * 2 < len(hashes):
        split *= 2
    if index < split:
        return [*inclusion(hashes[:split], index), merkle_root(hashes[split:])]
    return [*inclusion(hashes[split:], index - split), merkle_root(hashes[:split])]


def path_of(level: int | str, index: int, width: int) -> str:
    """Path of a tile or bundle."""
    digits = f"{index:03d}"
    digits = digits.zfill(-(-len(digits) // 3) * 3)
    groups = [digits[at : at + 3] for at in range(0, len(digits), 3)]
    name = "/".join(["x" + group for group in groups[:-1]] + groups[-1:])
    return f"tile/{level}/{name}" + ("" if width == 256 else f".p/{width}")


class Signer:
    """A key made from a seed word."""

    def __init__(self, word: str = "log", name: str = ORIGIN, kind: int = 1) -> None:
        self.name = name
        self.kind = kind
        self._key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(word.encode()).digest())
        public = bytes([kind]) + self._key.public_key().public_bytes_raw()
        self.key_id = hashlib.sha256(name.encode() + b"\n" + public).digest()[:4]
        self.vkey = f"{name}+{self.key_id.hex()}+{base64.b64encode(public).decode()}"

    def line(self, text: str) -> str:
        """A signature line over a text."""
        return self._line(self._key.sign(text.encode()))

    def cosign(self, text: str, time_s: int = 1_780_000_000) -> str:
        """A timestamped cosignature line."""
        signature = self._key.sign(f"cosignature/v1\ntime {time_s}\n{text}".encode())
        return self._line(struct.pack(">Q", time_s) + signature)

    def _line(self, signature: bytes) -> str:
        return f"\u2014 {self.name} {base64.b64encode(self.key_id + signature).decode()}\n"

    def checkpoint(self, size: int, root: bytes, origin: str | None = None) -> str:
        """A signed tree head."""
        text = f"{origin or self.name}\n{size}\n{base64.b64encode(root).decode()}\n"
        return f"{text}\n{self.line(text)}"


def a_record(version: int = 1, previous: str | None = None, **changes: Any) -> dict[str, Any]:
    """The members of one record."""
    record: dict[str, Any] = {
        "actor": "u-7",
        "at": "2026-07-22T10:11:12.123456Z",
        "causation": None,
        "correlation": "c-1",
        "data": {"note": "n"},
        "previous": previous,
        "schema": 1,
        "stream": "contract/1",
        "tenant": "acme",
        "type": "contract.noted",
        "version": version,
    }
    return record | changes


def chained(events: list[dict[str, Any]]) -> list[bytes]:
    """Give events versions and previous addresses, stream by stream, and write them as records."""
    heads: dict[str, tuple[int, str | None]] = {}
    records = []
    for event in events:
        stream = event.get("stream", "contract/1")
        version, previous = heads.get(stream, (0, None))
        raw = canonical(a_record(version + 1, previous, **event))
        heads[stream] = (version + 1, address(raw))
        records.append(raw)
    return records


def opened(
    name: str, side: str = "credit", *, overdraft: bool = False, currency: str = "EUR"
) -> dict[str, Any]:
    """An entry that opens an account."""
    return {"op": "open", "account": name, "currency": currency, "side": side, "overdraft": overdraft}


def moved(
    *postings: tuple[str, str], op: str = "transfer", currency: str = "EUR", **more: Any
) -> dict[str, Any]:
    """An entry that moves money: (account, signed amount) each."""
    legs = [{"account": name, "amount": amount} for name, amount in postings]
    return {"op": op, "postings": legs, "currency": currency} | more


def held(name: str, account: str, amount: str, currency: str = "EUR") -> dict[str, Any]:
    """An entry that reserves money."""
    return {"op": "hold", "hold": name, "account": account, "amount": amount, "currency": currency}


def with_money(*entries: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """An event that carries entries."""
    return {"data": {"money": list(entries)}, "type": "contract.paid"} | changes


def sample_events(count: int) -> list[dict[str, Any]]:
    """A small economy over eleven streams: openings, deposits, holds, settlements, voids and plain notes."""
    first = with_money(opened("bank", "debit", overdraft=True), *(opened(f"w:{n}") for n in range(5)))
    events = [first | {"stream": "account/0"}]
    for number in range(1, count):
        wallet, other = f"w:{number % 5}", f"w:{(number + 2) % 5}"
        change: dict[str, Any] = {"stream": f"contract/{number * 7 % 11}", "correlation": f"c-{number}"}
        kind = number % 4
        if kind == 0:
            change |= with_money(moved(("bank", "12.50"), (wallet, "-12.50")))
        elif kind == 1:
            change |= with_money(
                moved(("bank", "9.000000001"), (wallet, "-9.000000001")),
                held(f"h:{number}", wallet, "9"),
                moved((wallet, "8"), (other, "-7.5"), ("bank", "-0.5"), op="post", hold=f"h:{number}"),
            )
        elif kind == 2:
            change |= with_money(
                moved(("bank", "1"), (wallet, "-1")),
                held(f"h:{number}", wallet, "1"),
                {"op": "void", "hold": f"h:{number}"},
            )
        else:
            change |= {"data": {"note": f"größer \u2014 {number}", "deep": [{"a": 1}, [True, None]]}}
        events.append(change)
    return events[:count]


def tiles_of(records: list[bytes]) -> dict[str, bytes]:
    """All bundles and hash tiles of a log of this size."""
    files = {}
    for start in range(0, len(records), 256):
        part = records[start : start + 256]
        body = b"".join(struct.pack(">H", len(raw)) + raw for raw in part)
        files[path_of("entries", start // 256, len(part))] = body
    row, level = [leaf(raw) for raw in records], 0
    while row:
        for start in range(0, len(row), 256):
            part = row[start : start + 256]
            files[path_of(level, start // 256, len(part))] = b"".join(part)
        row = [merkle_root(row[at : at + 256]) for at in range(0, len(row) - 255, 256)]
        level += 1
    return files


def a_log(
    records: list[bytes],
    signer: Signer | None = None,
    history: tuple[int, ...] = (),
    origin: str | None = None,
) -> dict[str, bytes]:
    """A whole export: tiles, checkpoint, key, history and manifest, as path to bytes."""
    signer = signer or Signer()
    leaves = [leaf(raw) for raw in records]
    files = tiles_of(records)
    files["checkpoint"] = signer.checkpoint(len(records), merkle_root(leaves), origin).encode()
    files["log.vkey"] = signer.vkey.encode() + b"\n"
    notes = [(size, signer.checkpoint(size, merkle_root(leaves[:size]), origin)) for size in history]
    if notes:
        lines = [
            json.dumps({"size": size, "note": note}, separators=(",", ":"), ensure_ascii=False)
            for size, note in notes
        ]
        files["checkpoints"] = "".join(line + "\n" for line in lines).encode()
    files["manifest.json"] = canonical(
        {
            "format": "soma-audit-export",
            "version": 1,
            "origin": origin or signer.name,
            "size": len(records),
            "created_at": "2026-07-22T10:11:12.000000Z",
        }
    )
    return files
