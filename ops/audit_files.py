"""A log in files, read by whoever trusts nothing but its key: the export of an audit, under one signed checkpoint.

Every record and every hash is verified once, in a walk that is the one of `soma audit verify`. What is read again
afterwards must have the bytes it had in the walk, so nothing is believed that the signed root does not cover.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable
from hashlib import sha256

import msgspec

from domain.billing.customers import Customer
from domain.billing.grants import Grant
from domain.billing.invoices import Invoice
from domain.billing.line_proofs import ProvenRecord, proven
from domain.billing.price_books import PriceBook, PriceSheet
from domain.billing.recounting import READINGS
from domain.errors import ExportDamagedError, KeyMalformedError, LogDamagedError
from domain.log.audit_findings import Findings, Reader
from domain.log.audit_notes import (
    Checkpoint,
    check_cosignatures,
    check_log_signature,
    read_checkpoint,
    read_policy,
    read_vkey,
)
from domain.log.audit_proof import inclusion_root
from domain.log.audit_scan import Scan, split_whole
from domain.log.audit_tree import HASH_BYTES, TILE_WIDTH, tile_path
from domain.log.hashes import leaf_hash
from domain.log.records import Record, decode
from domain.log.tree import Prover

SHOWN_MAX = 20
# Bundles that were read last and are likely to be asked for again.
BUNDLES_MAX = 32
_OF_TENANT = frozenset({Customer.KIND, Grant.KIND, Invoice.KIND})
_OF_ALL = frozenset({PriceBook.KIND, PriceSheet.KIND})

ReadPath = Callable[[str], bytes | None]
Progress = Callable[[str, int, int], None]


class Steady:
    """A source whose files stay what they were when they were read first."""

    def __init__(self, read: ReadPath) -> None:
        self._read = read
        self._digests: dict[str, bytes] = {}

    def read(self, path: str) -> bytes | None:
        """Read a path; OSError where it is not what it was."""
        body = self._read(path)
        digest = sha256(body).digest() if body is not None else b""
        if self._digests.setdefault(path, digest) != digest:
            raise OSError(f"{path} has changed since it was read first")
        return body


class Places:
    """Notes in the walk where the documents of a tenant stand, where prices do, and in which bundles readings are."""

    def __init__(self, tenant: str) -> None:
        self._tenant = tenant
        self._decode = msgspec.json.Decoder(_Stated).decode
        self.documents: dict[str, array[int]] = defaultdict(lambda: array("Q"))
        self.bundles: set[int] = set()
        self.unreadable: list[int] = []

    def take(self, position: int, records: list[bytes]) -> None:
        """Take records that stand at consecutive positions."""
        for at, raw in enumerate(records, position):
            try:
                one = self._decode(raw)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                self.unreadable.append(at)
                continue
            kind = one.stream.partition("/")[0]
            if kind in _OF_ALL or (one.tenant == self._tenant and kind in _OF_TENANT):
                self.documents[one.stream].append(at)
            elif one.tenant == self._tenant and one.type in READINGS:
                self.bundles.add(at // TILE_WIDTH)

    def hole(self, position: int) -> None:
        """Leave out what cannot be read: the walk names it, and ends the audit."""

    def judge(self, position: int, raw: bytes, digest: bytes, *, altered: bool = False) -> None:
        """Leave out what is not the hashed record: the walk names it, and ends the audit."""


class _Stated(msgspec.Struct, frozen=True):
    stream: str
    tenant: str
    type: str


class LogFiles:
    """The files of a log under one signed checkpoint, all of them verified, read again as they are needed.

    Errors: export_damaged, malformed_key.
    """

    def __init__(self, read: ReadPath, vkey: str | None, policy: str | None) -> None:
        self._steady = Steady(read)
        self._findings = Findings()
        self._reader = Reader(self._steady.read, self._findings)
        self.key_pinned = vkey is not None
        self.quorum: bool | None = None
        self.note = self._reader.read("checkpoint", missing="checkpoint_malformed") or b""
        self.checkpoint = self._verified(vkey, policy)
        self._bundles: dict[int, list[bytes]] = {}
        self._prover = Prover(self.checkpoint.size, self._tile)

    def _verified(self, vkey: str | None, policy: str | None) -> Checkpoint:
        text = vkey if vkey is not None else (self._reader.read("log.vkey") or b"").decode("utf-8", "replace")
        self._stop()
        try:
            key = read_vkey(text)
        except ValueError as error:
            raise KeyMalformedError(f"the verifier key cannot be read: {error}") from error
        try:
            checkpoint = read_checkpoint(self.note)
        except ValueError as error:
            self._findings.add("checkpoint_malformed", f"the checkpoint cannot be read: {error}")
            self._stop()
            raise
        broken = check_log_signature(checkpoint, key)
        if broken is not None:
            self._findings.add(*broken, path="checkpoint")
        self._check_witnesses(checkpoint, policy)
        self._stop()
        return checkpoint

    def _check_witnesses(self, checkpoint: Checkpoint, policy: str | None) -> None:
        if policy is None:
            return
        try:
            outcome = check_cosignatures(checkpoint, read_policy(policy))
        except ValueError as error:
            self._findings.add("policy_malformed", str(error))
            return
        self.quorum = outcome.quorum
        if outcome.quorum is False:
            self._findings.add("quorum_missing", "the witnesses of the policy have not cosigned")

    def _stop(self) -> None:
        """End the audit where something was found.

        Errors: export_damaged.
        """
        if not self._findings.kept:
            return
        first = self._findings.kept[0]
        found = [
            {"code": one.code, "position": one.position, "path": one.path, "message": one.message}
            for one in self._findings.kept[:SHOWN_MAX]
        ]
        raise ExportDamagedError(first.message, first=first.code, position=first.position, findings=found)

    # ------------------------------------------------------------------ reading

    def walk(self, places: Places, progress: Progress) -> None:
        """Verify every record and every tile against the signed root, and note what stands where.

        Cost:   every file once; one decoding and two hashes a record.
        Errors: export_damaged, log_damaged.
        """
        scan = Scan(self._reader, self._findings, places, self.checkpoint, [])
        scan.run(lambda done, total: progress("verifying", done, total))
        self._stop()
        if places.unreadable:
            at = places.unreadable[0]
            raise LogDamagedError(f"the record at position {at} was signed, and is none", position=at)

    def bundle(self, index: int) -> list[bytes]:
        """Read the records of a bundle.

        Errors: export_damaged.
        """
        if index in self._bundles:
            return self._bundles[index]
        width = min(TILE_WIDTH, self.checkpoint.size - index * TILE_WIDTH)
        body = self._whole_or_part("entries", index, width)
        records = split_whole(body)
        if len(records) < width:
            self._findings.add(
                "bundle_malformed", f"bundle {index} is not whole", position=index * TILE_WIDTH
            )
            self._stop()
        if len(self._bundles) >= BUNDLES_MAX:
            self._bundles.clear()
        return self._bundles.setdefault(index, records[:width])

    def raw(self, position: int) -> bytes:
        """Read a record.

        Errors: export_damaged.
        """
        return self.bundle(position // TILE_WIDTH)[position % TILE_WIDTH]

    def record(self, position: int) -> Record:
        """Read a record and its event.

        Errors: export_damaged, log_damaged.
        """
        return decode(self.raw(position))

    def proven(self, position: int) -> ProvenRecord:
        """Read a record with its way to the signed root, and go it.

        Errors: export_damaged.
        """
        raw = self.raw(position)
        proof = self._prover.prove(position)
        root = inclusion_root(leaf_hash(raw), position, self.checkpoint.size, tuple(proof))
        if root != self.checkpoint.root:
            message = "the tiles do not lead from the record to the signed root"
            self._findings.add("inclusion_invalid", message, position=position)
            self._stop()
        return proven(position, raw, proof)

    def _tile(self, level: int, index: int, width: int) -> bytes:
        return self._whole_or_part(level, index, width)[: width * HASH_BYTES]

    def _whole_or_part(self, level: int | str, index: int, width: int) -> bytes:
        """Read a tile; a log that has grown may have the full one in place of the part."""
        for wanted in dict.fromkeys((width, TILE_WIDTH)):
            body = self._reader.read(tile_path(level, index, wanted))
            self._stop()
            if body is not None:
                return body
        code = "bundle_missing" if level == "entries" else "tile_missing"
        self._findings.add(code, f"{tile_path(level, index, width)} is not there")
        self._stop()
        raise AssertionError
