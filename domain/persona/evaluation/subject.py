"""What an evaluation is about: the parts of a persona that make its answers, and their common address.

The report of an evaluation is itself a part of the capsule, so it cannot name the capsule; it names its subject, which
is the address over the digests of memory, prompts, tools and cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from domain.canonical import sealed
from domain.persona.manifest import PersonaManifest

CONTEXT = "soma/evaluation-subject/v1"
# Roles of the parts that an evaluation reads; the memory is read by the caller, who knows its format.
ROLES = ("memory", "prompts", "tools", "evaluation_cases")


class Memory(NamedTuple):
    """The items of a memory.

    Shapes: n ids and n texts; vectors (n, dimension).
    """

    ids: Sequence[str]
    texts: Sequence[str]
    vectors: npt.NDArray[np.float32]
    embedding_model: str
    metric: str


class Document(NamedTuple):
    """A part that is text, by name."""

    name: str
    data: bytes


class Subject(NamedTuple):
    """The parts of a persona, read; `scopes` says how far the manifest lets each tool reach."""

    address: str
    memory: Memory
    prompts: Sequence[Document]
    tools: Sequence[Document]
    cases: Sequence[Document]
    scopes: dict[str, str]


def stacked(blocks: Sequence[npt.NDArray[np.float32]], dimension: int) -> npt.NDArray[np.float32]:
    """Put blocks of vectors under each other.

    Shapes: blocks of (n_i, dimension). Returns (sum of n_i, dimension).
    """
    return np.concatenate([np.zeros((0, dimension), dtype=np.float32), *blocks])


def subject_address(manifest: PersonaManifest) -> str:
    """Give the address of what a manifest's evaluation is about."""
    memory = manifest.memory
    document = {
        "schema": "soma/evaluation_subject/1",
        "memory": {
            "digests": [part.digest for part in manifest.parts_of("memory")],
            "embedding_model": memory.embedding_model,
            "item_count": memory.item_count,
            "dimension": memory.dimension,
            "metric": memory.metric,
        },
        "declared_tools": [
            {"tool": tool.tool, "access_scope": tool.access_scope}
            for tool in sorted(manifest.tools, key=lambda tool: tool.tool)
        ],
        **{
            role: [{"name": part.name, "digest": part.digest} for part in manifest.parts_of(role)]
            for role in ROLES[1:]
        },
    }
    return sealed(CONTEXT, document)[1]
