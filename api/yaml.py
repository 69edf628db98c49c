"""Plain JSON values as YAML, for documents that people read: block style, every text that could be mistaken quoted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

# What no reader of YAML 1.1 or 1.2 takes for anything but a text.
_PLAIN = re.compile(r"[A-Za-z_$][A-Za-z0-9_$./-]*")
# What YAML would fold, or not print at all.
_HIDDEN = re.compile(r"[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
_TAKEN = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})


def printed(value: Any) -> str:
    """Print a value of dicts, lists, texts, whole numbers, true, false and null."""
    return "\n".join(_lines(value, "")) + "\n"


def _lines(value: Any, indent: str) -> Iterator[str]:
    for lead, inner in _items(value):
        if not isinstance(inner, dict | list) or not inner:
            yield f"{indent}{lead} {_scalar(inner)}"
        elif lead == "-":
            # The first member stands beside the dash, the others under it.
            first, *others = _lines(inner, indent + "  ")
            yield f"{indent}- {first.lstrip()}"
            yield from others
        else:
            yield f"{indent}{lead}"
            yield from _lines(inner, indent + "  ")


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((f"{_scalar(name)}:", inner) for name, inner in value.items())
    else:
        yield from (("-", inner) for inner in value)


def _scalar(value: Any) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _TAKEN:
        return value
    return _HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))
