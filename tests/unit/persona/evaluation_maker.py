"""Makers of small personas to be evaluated; everything in them is fixed, so their reports can be pinned."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from domain.memory import ngrams
from domain.persona.evaluation.harness import Constitution
from domain.persona.evaluation.subject import Document, Memory, Subject

UTILITY = {"lam": "1", "mu": "0.05", "nu": "0.05", "p_min": "0.5", "c_max": "8", "l_max": "4"}
CONSTITUTION = Constitution("sha3-512:" + "c0" * 64, UTILITY)
SUBJECTS = (
    "harbour",
    "orchard",
    "glacier",
    "market",
    "library",
    "bridge",
    "kitchen",
    "railway",
    "meadow",
    "tower",
)
DEEDS = (
    "opens at dawn",
    "was painted green",
    "lies under snow",
    "smells of bread",
    "echoes at night",
    "needs a key",
)
PLACES = ("near the river", "behind the school", "above the valley", "by the old mill", "across the lake")


def texts(count: int) -> list[str]:
    """Write sentences, no two alike."""
    return [f"The {SUBJECTS[n % 10]} number {n} {DEEDS[n % 6]} {PLACES[n % 5]}." for n in range(count)]


def a_memory(
    count: int = 60, *, said: Sequence[str] | None = None, model: str = ngrams.MODEL, metric: str = "cosine"
) -> Memory:
    """Make a memory with the embedding of the house."""
    said = texts(count) if said is None else said
    return Memory([f"item-{n:04d}" for n in range(len(said))], said, ngrams.embed(said), model, metric)


def document(name: str, value: Any) -> Document:
    """Make a part that holds JSON."""
    return Document(name, json.dumps(value).encode())


def cases(*declared: dict[str, Any]) -> Document:
    """Make a part of cases."""
    return document("cases.json", {"schema": "soma/evaluation_cases/1", "cases": list(declared)})


def a_subject(memory: Memory | None = None, **parts: Any) -> Subject:
    """Make a persona of sound parts, some of them given."""
    sound: dict[str, Any] = {
        "address": "sha3-512:" + "5b" * 64,
        "memory": a_memory() if memory is None else memory,
        "prompts": [Document("system.txt", b"You answer from memory, and say when you do not know.")],
        "tools": [document("tools.json", {"tools": [{"tool": "calendar", "access_scope": "read"}]})],
        "cases": [],
        "scopes": {"calendar": "read"},
    }
    return Subject(**{**sound, **parts})


def noise(rows: int, columns: int, seed: int = 3) -> np.ndarray[Any, Any]:
    """Draw vectors."""
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
