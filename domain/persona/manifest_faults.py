"""What is wrong with a manifest, told so that its author can mend it: where, why, and what stands there."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from domain.errors import ManifestInvalidError
from domain.persona.manifest_fields import WORDS

Fault = dict[str, Any]

FAULTS_MAX = 50
GOT_CHARS_MAX = 80
PATH_CHARS_MAX = 200

# Fields that older manifests had, and where their content is now.
_MOVED = {
    "signature": "signatures are made over the capsule's address and travel beside the manifest",
    "approvals": "approvals are given to the capsule's address and are kept by the ledger",
    "constitution_sha": "it is called constitution now, and is an address",
    "storage_uri": "a file is named by digest under artifacts; where it is kept is not part of a manifest",
    "checksum": "digests stand under artifacts; memory names its part by bundle",
    "amount_usd": 'a price is {"amount": "12.50", "currency": "USD"}',
    "prompts_uri": "files stand under artifacts, each with its digest and size",
    "evaluation_report_uri": "files stand under artifacts, each with its digest and size",
    "release_notes_uri": "files stand under artifacts, each with its digest and size",
}

_KINDS = {
    "int_type": "a whole number, without quotation marks",
    "bool_type": "true or false, without quotation marks",
    "list_type": "a list",
    "model_type": "an object with named fields",
}
_SUBJECT = re.compile(r"^(?:Input|String|List) should ")


def faults_of(error: ValidationError, model: type[BaseModel], lines: Mapping[str, int]) -> list[Fault]:
    """List what pydantic found, in the words of the manifest."""
    told: list[tuple[str, str, Any]] = []
    for found in error.errors(include_url=False):
        if len(told) >= FAULTS_MAX:
            break  # putting a fault into words costs more than finding it, and no more are told
        if found["type"] == "contradiction":
            told += found["ctx"]["faults"]
        else:
            told.append((pointer(found["loc"]), _why(found, model), _got(found)))
    return [fault(path, why, got, _line_of(path, lines)) for path, why, got in told[:FAULTS_MAX]]


def pointer(loc: Sequence[int | str]) -> str:
    """Write a place as a JSON Pointer.

    Source: RFC 6901, section 3.
    """
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in loc)


def fault(path: str, why: str, got: Any, line: int | None = None) -> Fault:
    """Tell one fault; what its author wrote is cut short, and shown where it cannot be seen."""
    shown = _shown(got, GOT_CHARS_MAX) if isinstance(got, str) else got
    told = {"path": _shown(path, PATH_CHARS_MAX), "why": _shown(why, PATH_CHARS_MAX), "got": shown}
    return told if line is None else told | {"line": line}


def _shown(text: str, chars_max: int) -> str:
    cut = text if len(text) <= chars_max else text[: chars_max - 1] + "…"
    return "".join(one if one.isprintable() else f"\\u{ord(one):04x}" for one in cut)


def _line_of(path: str, lines: Mapping[str, int]) -> int | None:
    # A field that is missing has no line; what should hold it has one.
    while path and path not in lines:
        path = path.rpartition("/")[0]
    return lines.get(path)


def _got(found: Any) -> Any:
    value = found["input"]
    if found["type"] == "missing" or isinstance(value, dict | list):
        return None
    return value if value is None or isinstance(value, bool | int) else str(value)


def _why(found: Any, model: type[BaseModel]) -> str:
    kind, context = found["type"], found.get("ctx", {})
    if kind == "extra_forbidden":
        return _stranger(found["loc"], model)
    if kind == "string_pattern_mismatch":
        return f"it must be {WORDS.get(context['pattern'], 'written in the form ' + context['pattern'])}"
    if kind == "missing":
        return "this field is required"
    if kind == "string_type":
        return "it must be text; decimals and versions are text too" + _quoted(found["input"])
    if kind == "literal_error":
        return f"it must be {context['expected']}"
    if kind in _KINDS:
        return f"it must be {_KINDS[kind]}"
    return _SUBJECT.sub("it should ", found["msg"])


def _quoted(value: Any) -> str:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return f', such as "{value}"' if plain else ""


def _stranger(loc: Sequence[int | str], model: type[BaseModel]) -> str:
    name = str(loc[-1])
    if name in _MOVED:
        return _MOVED[name]
    near = get_close_matches(name, _fields_at(loc[:-1], model), n=1)
    return "there is no such field" + (f"; did you mean {near[0]}?" if near else "")


def _fields_at(loc: Sequence[int | str], model: type[BaseModel]) -> list[str]:
    at: Any = model
    for step in loc:
        if isinstance(step, str):
            at = at.model_fields[step].annotation
        # A list is as good as what it lists.
        at = next((inner for inner in get_args(at) if isinstance(inner, type)), at)
    names = getattr(at, "model_fields", {})
    return [field.alias or name for name, field in names.items()]


def invalid(faults: list[Fault]) -> ManifestInvalidError:
    """Refuse a manifest; the first fault is in the message, all of them are in the facts."""
    first = faults[0]
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return ManifestInvalidError(f"{first['path'] or 'the manifest'}: {first['why']}{more}", faults=faults)
