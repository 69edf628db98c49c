"""The evaluators: each looks at one side of a persona and tells what it found, case by case."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from domain.canonical import read_json
from domain.errors import EvaluationSuiteError, LedgerError
from domain.memory.words import words_of
from domain.persona.evaluation.chance import Draws
from domain.persona.evaluation.outcomes import Measured, Outcome, columns, scored
from domain.persona.evaluation.requests import by_lot, digest_of
from domain.persona.evaluation.statistics import MILLION, arithmetic, micros_of
from domain.persona.evaluation.subject import Document, Memory, Subject
from domain.persona.evaluation.suites import Neighbours
from domain.persona.evaluation.vectors import Rows, VectorIndex
from domain.persona.tokens import token_count

RANK_MAX = 10
_QUERIES_AT_ONCE = 32
# What is neither shown nor wanted in a prompt: control characters, and marks that turn the direction of writing.
_HIDDEN = frozenset(
    {
        *map(chr, range(32)),
        *map(chr, range(127, 160)),
        *map(chr, range(0x202A, 0x202F)),
        *map(chr, range(0x2066, 0x206A)),
    }
    - {"\n", "\t", "\r"}
)


def rank_scores(rank: int, depth: int) -> dict[str, int]:
    """Score a case by the rank of its first right answer.

    Units: rank from 1, or 0 where none was found; scores in millionths.
    """
    return {
        "recall_at_1": MILLION * (rank == 1),
        f"recall_at_{depth}": MILLION * (0 < rank <= depth),
        "reciprocal_rank": MILLION // rank if 0 < rank <= RANK_MAX else 0,
        "gain_at_10": _gain(rank),
    }


def _gain(rank: int) -> int:
    """Discount a hit by the logarithm of its rank.

    Source: Jarvelin and Kekalainen 2002.
    """
    if not 0 < rank <= RANK_MAX:
        return 0
    context = arithmetic()
    two, place = context.create_decimal(2), context.create_decimal(rank + 1)
    return micros_of(context.divide(context.ln(two), context.ln(place)))


# --------------------------------------------------------------------------- memory


def memory_soundness(memory: Memory) -> Measured:
    """Look at every item: it has words, its vector points somewhere, and no other says the same."""
    texts = [" ".join(words_of(text)) for text in memory.texts]
    seen: set[str] = set()
    rows = []
    for text, has_direction in zip(texts, np.any(memory.vectors != 0.0, axis=1).tolist(), strict=True):
        rows.append(
            {
                "has_text": MILLION * bool(text),
                "has_direction": MILLION * bool(has_direction),
                "is_distinct": MILLION * (text not in seen),
            }
        )
        seen.add(text)
    return Measured("memory", [], columns(rows))


def neighbours(memory: Memory, index: VectorIndex, seed: str, how: Neighbours, depth: int) -> Measured:
    """Look for items by vectors that were moved away from theirs; tells whether the vectors tell items apart."""
    rows = by_lot(memory.ids, how.cases_max, seed, "neighbours")
    outcomes, scores = [], []
    for at in range(0, len(rows), _QUERIES_AT_ONCE):
        part = rows[at : at + _QUERIES_AT_ONCE]
        queries = np.stack([_moved(index, row, memory.ids[row], seed, how.noise_percent) for row in part])
        for row, query, found in zip(part, queries, index.scores(queries), strict=True):
            nearer = int(np.count_nonzero(found > found[row]) + np.count_nonzero(found[:row] == found[row]))
            of_case = rank_scores(nearer + 1, depth)
            scores.append(of_case)
            outcomes.append(
                Outcome(
                    f"neighbours/{memory.ids[row]}",
                    "neighbours",
                    scored(of_case),
                    digest_of(query.astype(np.int64).tolist()),
                    digest_of(nearer + 1),
                )
            )
    return Measured("neighbours", outcomes, columns(scores))


def _moved(index: VectorIndex, row: int, name: str, seed: str, percent: int) -> Rows:
    """Add noise of a share of a vector's length to it, in whole numbers.

    Numbers drawn evenly from -a to a have the mean square a (a + 1) / 3.
    """
    wanted = 3 * int(index.squares[row]) * percent * percent // (10_000 * index.dimension)
    reach = math.isqrt(wanted)
    drawn = Draws(seed, "neighbours", name).table(1, index.dimension)[0].astype(np.int64)
    moved: Rows = index.row(row).astype(np.float64) + (drawn % (2 * reach + 1) - reach)
    return moved


# --------------------------------------------------------------------------- prompts and tools


def prompts_soundness(prompts: Sequence[Document], tokens_max: int) -> Measured:
    """Look at every prompt: it is text, not empty, not too long, and shows all that it says."""
    outcomes, scores = [], []
    for prompt in prompts:
        why = _prompt_fault(prompt.data, tokens_max)
        scores.append({"sound": MILLION * (why is None)})
        name = f"prompts/{prompt.name}"
        outcomes.append(Outcome(name, "prompts", scored(scores[-1]), failure=why))
    return Measured("prompts", outcomes, columns(scores))


def _prompt_fault(data: bytes, tokens_max: int) -> str | None:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return "it is not UTF-8"
    if not text.strip():
        return "it is empty"
    if (tokens := token_count(text)) > tokens_max:
        return f"it has about {tokens} tokens; {tokens_max} are the most"
    return "it holds characters that are not shown" if _HIDDEN & set(text) else None


def tools_agreement(subject: Subject) -> Measured:
    """Hold the tools as they are described against the tools the manifest declares, each with how far it reaches.

    Errors: evaluation_suite_invalid.
    """
    described: dict[str, str | None] = {}
    for part in subject.tools:
        described.update(_tools_of(part))
    outcomes, scores = [], []
    for tool in sorted(described.keys() | subject.scopes.keys()):
        why = _tool_fault(tool, described, subject.scopes)
        scores.append({"agreement": MILLION * (why is None)})
        outcomes.append(
            Outcome(
                f"tools/{tool}",
                "tools",
                scored(scores[-1]),
                digest_of({"declared": subject.scopes.get(tool)}),
                digest_of({"described": described.get(tool), "is_described": tool in described}),
                failure=why,
            )
        )
    return Measured("tools", outcomes, columns(scores))


def _tool_fault(tool: str, described: dict[str, str | None], scopes: dict[str, str]) -> str | None:
    if tool not in scopes:
        return "it is described, but the manifest declares no such tool"
    if tool not in described:
        return "it is declared, but no part describes it"
    scope = described[tool]
    if scope is not None and scope != scopes[tool]:
        return f"it is declared to {scopes[tool]} and described to {scope}"[:200]
    return None


def _tools_of(part: Document) -> dict[str, str | None]:
    """Read the names and scopes out of a list of tools, as ours write it and as model interfaces do."""
    try:
        read = read_json(part.data)
    except LedgerError as error:
        raise EvaluationSuiteError(
            f"the tools of {part.name} cannot be read: {error}", part=part.name
        ) from error
    listed = read.get("tools") if isinstance(read, dict) else read
    if not isinstance(listed, list):
        raise EvaluationSuiteError(f"{part.name} holds no list of tools", part=part.name)
    return dict(_tool_of(entry, part.name) for entry in listed)


def _tool_of(entry: Any, part: str) -> tuple[str, str | None]:
    inner = entry.get("function", entry) if isinstance(entry, dict) else None
    name = (inner.get("tool") or inner.get("name")) if isinstance(inner, dict) else None
    if not isinstance(name, str) or not isinstance(entry.get("access_scope"), str | None):
        raise EvaluationSuiteError(f"{part} describes a tool without a name", part=part)
    return name[:200], entry.get("access_scope")
