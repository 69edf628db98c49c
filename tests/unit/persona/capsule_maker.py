"""Makers of manifests and capsules: a small one that is valid, and one as large as a test wants."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from domain.persona.archive import write_archive
from domain.persona.manifest import PartRef, PersonaManifest
from ops.bundles import bundle_table, write_bundle

CONSTITUTION = "sha3-512:" + "c0" * 64
PROMPTS = {
    "system": "You are a careful advisor. Answer from memory, and say when you do not know.",
    "style": "plain",
}
TOOLS = {"tools": [{"tool": "calculator", "parameters": {"expression": "string"}}]}
REPORT = {"schema": "soma/evaluation-report/1", "metrics": {"recall_at_5": {"mean": "0.92"}}}
SUBJECTS = ("income", "property", "travel", "family", "savings", "pensions", "trade", "gifts")
PREDICATES = ("is declared", "is exempt", "is taxed at once", "is carried over", "needs a receipt")


@dataclass(frozen=True)
class Capsule:
    """A manifest with the bytes of its parts."""

    manifest: PersonaManifest
    data: dict[str, bytes]

    @property
    def address(self) -> str:
        return self.manifest.address

    def open_part(self, part: PartRef) -> Iterator[bytes]:
        """Give a part's bytes in pieces, as a store does."""
        data = self.data[part.name]
        return (data[start : start + 65_536] for start in range(0, len(data), 65_536))

    def archive(self) -> bytes:
        """Write the whole archive."""
        return b"".join(write_archive(self.manifest, self.open_part))


def address_of(data: bytes) -> str:
    """Address bytes as parts and artifacts are."""
    return "sha3-512:" + hashlib.sha3_512(data).hexdigest()


def part_ref(name: str, role: str, data: bytes, media_type: str = "application/json") -> dict[str, Any]:
    """Describe a part as a manifest does."""
    return {
        "name": name,
        "role": role,
        "digest": address_of(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "media_type": media_type,
    }


def memory_bundle(items: int = 8, dimension: int = 16, seed: int = 7) -> bytes:
    """Write a bundle of made-up memories; the same arguments give the same bytes."""
    chance = np.random.default_rng(seed)
    embeddings = chance.standard_normal((items, dimension)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    picks = chance.integers(0, [len(SUBJECTS), len(PREDICATES), 1_000_000], size=(items, 3))
    texts = [f"In case {n}, {SUBJECTS[s]} {PREDICATES[p]}." for s, p, n in picks.tolist()]
    more = {
        "turn": [row % 10 for row in range(items)],
        "sitting": [f"sitting-{row // 10}" for row in range(items)],
        "created_at": [f"2026-01-{1 + row % 28:02d}T12:00:00.000000Z" for row in range(items)],
    }
    return write_bundle(bundle_table([f"memory-{row:06d}" for row in range(items)], texts, embeddings, more))


def document(
    persona_id: str = "tax-advisor",
    version: str = "1.0.0",
    *,
    owner: str = "olivia",
    constitution: str = CONSTITUTION,
    items: int = 8,
    dimension: int = 16,
    data: dict[str, bytes] | None = None,
) -> dict[str, Any]:
    """Give a valid manifest as plain values, every field that may be left out in it, over the given parts."""
    data = data or parts_of(items, dimension)
    return {
        "schema": "soma/persona_manifest/1",
        "metadata": {
            "persona_id": persona_id,
            "version": version,
            "display_name": "Tax advisor",
            "summary": "Answers questions about income tax from ten years of practice.",
            "domains": ["tax", "accounting"],
            "created_at": "2026-01-01T00:00:00.000000Z",
            "updated_at": "2026-01-02T00:00:00.000000Z",
            "owners": [
                {"subject": owner, "name": "Olivia", "contact": "olivia@example.org", "organization": "Acme"}
            ],
        },
        "model_box": {
            "model_box_id": "general-7b",
            "version": "2026.1",
            "provider": "example-provider",
            "default_mode": "production",
            "capabilities": [{"feature": "tool-use", "enabled": True, "notes": ""}],
            "temperature": "0.2",
        },
        "memory": {
            "snapshot_id": "snapshot-1",
            "bundle": "memory.parquet",
            "embedding_model": "hashed-ngrams-1",
            "item_count": items,
            "dimension": dimension,
            "metric": "cosine",
        },
        "tools": [
            {"tool": "calculator", "required": True, "access_scope": "read", "notes": "Arithmetic only."}
        ],
        "evaluations": [
            {
                "benchmark": "baseline",
                "score": "0.92",
                "dataset": "baseline-cases-1",
                "captured_at": "2026-01-02T00:00:00.000000Z",
                "report": "report.json",
                "reference_link": "https://example.org/report",
                "notes": "",
            }
        ],
        "governance": {
            "constitution": constitution,
            "training_snapshot_id": "training-1",
            "kill_switch_enabled": True,
        },
        "pricing": [
            {
                "model": "rental",
                "price": {"amount": "0.50", "currency": "USD"},
                "billing_period_minutes": 60,
                "price_book": "standard-2026",
                "notes": "",
            },
            {
                "model": "purchase",
                "price": {"amount": "900.00", "currency": "USD"},
                "billing_period_minutes": None,
                "price_book": None,
                "notes": "",
            },
        ],
        "artifacts": [
            part_ref("memory.parquet", "memory", data["memory.parquet"], "application/vnd.apache.parquet"),
            part_ref("prompts.json", "prompts", data["prompts.json"]),
            part_ref("report.json", "evaluation_report", data["report.json"]),
            part_ref("tools.json", "tools", data["tools.json"]),
        ],
    }


def parts_of(items: int = 8, dimension: int = 16, seed: int = 7) -> dict[str, bytes]:
    """Make the bytes of four parts: prompts, tools, memory, report."""
    return {
        "memory.parquet": memory_bundle(items, dimension, seed),
        "prompts.json": json.dumps(PROMPTS).encode(),
        "report.json": json.dumps(REPORT).encode(),
        "tools.json": json.dumps(TOOLS).encode(),
    }


def a_capsule(
    persona_id: str = "tax-advisor",
    version: str = "1.0.0",
    *,
    owner: str = "olivia",
    constitution: str = CONSTITUTION,
    items: int = 8,
    dimension: int = 16,
    seed: int = 7,
    parts: dict[str, tuple[str, str, bytes]] | None = None,
    change: Callable[[dict[str, Any]], None] | None = None,
) -> Capsule:
    """Make a valid capsule.

    `parts` replaces or adds parts, as name -> (role, media type, bytes); `change` may change the plain values of the
    manifest before it is read. `a_capsule(items=10_000, dimension=384)` is the large one.
    """
    data = parts_of(items, dimension, seed)
    given = document(
        persona_id,
        version,
        owner=owner,
        constitution=constitution,
        items=items,
        dimension=dimension,
        data=data,
    )
    for name, (role, media_type, content) in (parts or {}).items():
        kept = [part for part in given["artifacts"] if part["name"] != name]
        given["artifacts"] = [*kept, part_ref(name, role, content, media_type)]
        data[name] = content
    if change is not None:
        change(given)
    return Capsule(PersonaManifest.model_validate(copy.deepcopy(given)), data)
