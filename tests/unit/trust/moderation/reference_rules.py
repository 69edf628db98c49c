"""Secrets drawn from the patterns of a reference list of rules; nothing of ours is in them."""

from __future__ import annotations

import re
import re._constants as sre
import re._parser as parser
import string
import tomllib
from collections.abc import Iterator
from math import log2
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

LETTERS = string.ascii_letters + string.digits
_CLASSES = {
    sre.CATEGORY_DIGIT: string.digits, sre.CATEGORY_WORD: LETTERS + "_", sre.CATEGORY_SPACE: " ",
    sre.CATEGORY_NOT_SPACE: LETTERS, sre.CATEGORY_NOT_WORD: " ", sre.CATEGORY_NOT_DIGIT: LETTERS,
}  # fmt: skip
TRIES_MAX = 400


class Drawn(NamedTuple):
    """A text with a secret in it, and the rule it was drawn for."""

    rule: str
    text: str
    start: int
    end: int


def draw(rules: Path, count: int, seed: int) -> Iterator[Drawn]:
    """Draw some texts for each rule that has a pattern; the rule itself must find its secret in them."""
    chance = Random(seed)
    for rule in tomllib.loads(rules.read_text())["rules"]:
        if "regex" in rule:
            yield from _drawn(rule, count, chance)


def _drawn(rule: dict[str, Any], count: int, chance: Random) -> Iterator[Drawn]:
    written = as_python(rule["regex"])
    pattern, tree = re.compile(written), parser.parse(written)
    found = 0
    for _ in range(TRIES_MAX):
        text = _text(tree, chance)
        match = pattern.search(text)
        if match is None or not any(word in text.lower() for word in rule.get("keywords", [""])):
            continue
        place = next((at for at, value in enumerate(match.groups(), 1) if value), 0)
        if _entropy(match[place]) >= rule.get("entropy", 0):
            found += 1
            yield Drawn(rule["id"], text, match.start(place), match.end(place))
        if found == count:
            return


def _entropy(text: str) -> float:
    shares = [text.count(character) / len(text) for character in set(text)]
    return -sum(share * log2(share) for share in shares)


def as_python(pattern: str) -> str:
    """Write a pattern of Go for Python: flags in the middle hold to the end of their group."""
    pattern = pattern.replace(r"\z", r"\Z").replace("[[:alnum:]]", "[A-Za-z0-9]")
    out, opened, at, in_class = "", [0], 0, False
    while at < len(pattern):
        sign = pattern[at]
        flags = re.match(r"\(\?([a-z]+|[a-z]*-[a-z]+)\)", pattern[at:]) if not in_class else None
        if sign == "\\":
            out, at = out + pattern[at : at + 2], at + 2
            continue
        if flags:
            opened[-1] += 1
            out, at = f"{out}(?{flags[1]}:", at + len(flags[0])
            continue
        if in_class:
            in_class = sign != "]"
        elif sign == "[":
            in_class = True
        elif sign == "(":
            opened.append(0)
        elif sign == ")":
            out += ")" * opened.pop()
        out, at = out + sign, at + 1
    return out + ")" * opened[-1]


def _text(tree: Any, chance: Random) -> str:
    return "".join(_piece(operation, argument, chance) for operation, argument in tree)


def _piece(operation: Any, argument: Any, chance: Random) -> str:
    if operation is sre.LITERAL:
        return chr(argument)
    if operation in (sre.ANY, sre.NOT_LITERAL):
        return chance.choice(LETTERS)
    if operation is sre.IN:
        return chance.choice(_alphabet(argument))
    if operation in (sre.MAX_REPEAT, sre.MIN_REPEAT):
        low, high, inner = argument
        most = 3 if low == 0 else low + 8
        return "".join(_text(inner, chance) for _ in range(chance.randint(low, min(int(high), most))))
    if operation is sre.SUBPATTERN:
        return _text(argument[-1], chance)
    if operation is sre.BRANCH:
        return _text(chance.choice(argument[1]), chance)
    return ""


def _alphabet(items: Any) -> str:
    found: set[str] = set()
    for operation, argument in items:
        if operation is sre.LITERAL:
            found.add(chr(argument))
        elif operation is sre.RANGE:
            found.update(map(chr, range(argument[0], argument[1] + 1)))
        elif operation is sre.CATEGORY:
            found.update(_CLASSES[argument])
    if items[0][0] is sre.NEGATE:
        found = set(string.printable[:95]) - found
    return "".join(sorted(found))
