"""The requests a memory is tried with: made of the memory itself, and those its author wrote down."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from hashlib import sha3_256
from typing import Annotated

import msgspec

from domain.canonical import encode_record, read_json
from domain.errors import EvaluationSuiteError, LedgerError
from domain.memory.words import words_of
from domain.persona.evaluation.chance import Draws
from domain.persona.evaluation.subject import Document, Memory
from domain.persona.evaluation.suites import KnownItems

CASES_SCHEMA = "soma/evaluation_cases/1"

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class Request(msgspec.Struct, frozen=True):
    """A question, and the rows of the memory that answer it.

    tool and scope say what carrying it out would need, where it needs anything.
    """

    id: str
    query: str
    relevant: frozenset[int]
    tool: str | None = None
    scope: str | None = None

    @property
    def digest(self) -> str:
        return digest_of({"query": self.query, "tool": self.tool, "scope": self.scope})


class DeclaredCase(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A case as its author writes it."""

    id: _Name
    query: Annotated[str, msgspec.Meta(min_length=1, max_length=4_000)]
    relevant: Annotated[list[_Name], msgspec.Meta(min_length=1, max_length=100)]
    tool: _Name | None = None
    scope: _Name | None = None


class DeclaredCases(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of the role `evaluation_cases`."""

    schema: str
    cases: list[DeclaredCase]


def digest_of(value: object) -> str:
    """Give the SHA3-256 of a value's canonical form, by which inputs and outputs of cases are compared."""
    return "sha3-256:" + sha3_256(encode_record(value)).hexdigest()


def by_lot(names: Sequence[str], count: int, seed: str, purpose: str) -> list[int]:
    """Choose rows by a lot that hangs on their names alone, so that an item that joins displaces one other at most.

    Returns rows in their own order.
    """
    label = f"soma/evaluation-lots/v1\0{seed}\0{purpose}\0"
    lots = sorted(
        (sha3_256((label + name).encode("utf-8", "surrogatepass")).digest(), row)
        for row, name in enumerate(names)
    )
    return sorted(row for _, row in lots[:count])


class Ring:
    """Words in a circle, each at a place its own letters fix, so that a word that joins takes the place of one other.

    Source: consistent hashing, Karger et al. 1997.
    """

    def __init__(self, words: Iterable[str]) -> None:
        placed = sorted((_place(word), word) for word in words)
        self._places = [place for place, _ in placed]
        self._words = [word for _, word in placed]

    def at(self, point: int) -> str:
        """Give the first word at a point or after it.

        Units: 0 <= point < 2**32.
        """
        return self._words[bisect_left(self._places, point) % len(self._words)]


def _place(word: str) -> int:
    return int.from_bytes(sha3_256(word.encode("utf-8", "surrogatepass")).digest()[:4], "big")


def known_items(memory: Memory, vocabulary: Sequence[str], seed: str, how: KnownItems) -> list[Request]:
    """Make requests out of items of the memory: each asks for one item in some of its own words.

    Source: Azzopardi and de Rijke 2006 (known-item topics drawn from a mixture of a document and its collection).
    """
    found = []
    ring = Ring(vocabulary)
    for row in by_lot(memory.ids, how.cases_max, seed, "known_items"):
        draws = Draws(seed, "known_items", memory.ids[row])
        words = sorted(set(words_of(memory.texts[row])))
        if not words:
            continue
        asked = [words[at] for at in draws.chosen(how.words, len(words))]
        for at in range(len(asked)):
            if draws.below(100) < how.noise_percent:
                asked[at] = ring.at(draws.below(1 << 32))
        found.append(Request(f"known_items/{memory.ids[row]}", " ".join(asked), frozenset((row,))))
    return found


def declared(parts: Iterable[Document], memory: Memory, cases_max: int) -> list[Request]:
    """Read the cases that the author wrote.

    Errors: evaluation_suite_invalid.
    """
    rows = {name: row for row, name in enumerate(memory.ids)}
    found: dict[str, Request] = {}
    for part in parts:
        for case in read_cases(part):
            name = f"declared/{case.id}"
            unknown = [item for item in case.relevant if item not in rows]
            if unknown or name in found:
                why = f"names {unknown[0]!r}, which the memory does not hold" if unknown else "occurs twice"
                raise EvaluationSuiteError(f"case {case.id!r} {why}", part=part.name, case=case.id)
            relevant = frozenset(rows[item] for item in case.relevant)
            found[name] = Request(name, case.query, relevant, case.tool, case.scope)
    if len(found) > cases_max:
        raise EvaluationSuiteError(f"there may be {cases_max} cases at most", cases=len(found))
    return list(found.values())


def read_cases(part: Document) -> list[DeclaredCase]:
    """Read a part of cases.

    Errors: evaluation_suite_invalid.
    """
    try:
        read = msgspec.convert(read_json(part.data), DeclaredCases)
    except (msgspec.ValidationError, LedgerError) as error:
        raise EvaluationSuiteError(
            f"the cases of {part.name} cannot be read: {error}", part=part.name
        ) from error
    if read.schema != CASES_SCHEMA:
        raise EvaluationSuiteError(
            f"cases are of the schema {CASES_SCHEMA}", part=part.name, got=read.schema[:100]
        )
    return read.cases
