"""The reference pages, printed from the code itself: what is not in the code is not in them, and the other way round.

Each page is a pure function of the program; a test holds the committed pages against them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from fastapi import FastAPI
from msgspec import inspect

from api.app import create_app
from api.reference_clickhouse import opened_page, views
from api.reference_evaluations import evaluations_text, suite_json
from domain.errors import REGISTRY, LedgerError
from domain.log.audit_findings import CODES
from domain.log.records import AGGREGATES, EVENTS, Event, MoneyEvent
from ops.settings import Settings, settings_reference
from ops.verify import DATABASE_CODES

PROMISE = "Everything below was computed or run for real; no mocks, no invented numbers."
OURS = "domain."


class Option(NamedTuple):
    """One option or argument of a command."""

    names: str
    kind: str
    required: bool
    default: str
    help: str


class Word(NamedTuple):
    """One command of the command line."""

    path: str
    help: str
    options: Sequence[Option]


def written_pages() -> dict[str, str]:
    """Print every page, by file name."""
    with tempfile.TemporaryDirectory() as place:
        # The application makes an issuer key as it starts; this one is thrown away.
        document = openapi_document(create_app(Settings(data_dir=Path(place))))
    return {
        "api.md": api_page(document),
        "baseline_suite.json": suite_json(),
        "cli.md": cli_page(),
        "clickhouse.md": clickhouse_page(),
        "errors.md": errors_page(),
        "evaluations.md": evaluations_page(),
        "events.md": events_page(),
        "openapi.json": json.dumps(document, indent=1, ensure_ascii=False) + "\n",
        "settings.md": settings_reference(),
    }


# --------------------------------------------------------------------------- ClickHouse


def clickhouse_page() -> str:
    """Print every view people may read, with its columns, and queries that answer what they ask."""
    head = ("Column", "Type", "Meaning")
    told = [
        (view, _table(head, ((f"`{c.name}`", f"`{c.type}`", c.meaning) for c in view.columns)))
        for view in views()
    ]
    return opened_page(_opening("ClickHouse", "migrations/clickhouse/*.sql"), told)


# --------------------------------------------------------------------------- evaluations


def evaluations_page() -> str:
    """Print the published suite: what it asks, how it scores, and what it must come to."""
    return "\n".join(_opening("Evaluations", "domain/persona/evaluation/")) + "\n" + evaluations_text()


# --------------------------------------------------------------------------- errors


def errors_page() -> str:
    """Print every code a caller can meet, by family, and every finding of an audit."""
    lines = _opening("Errors", "domain/errors/")
    lines += [
        "Every refusal is RFC 9457 problem details (`application/problem+json`) with a stable `code`. `retry` says",
        "what helps: `never` (another request is needed), `as-is` (send the same again), `after-read` (look, then",
        "decide again). Codes are never renamed and never given a second meaning.",
        "",
    ]
    families: dict[type[LedgerError], list[type[LedgerError]]] = {}
    for error in (error for error in REGISTRY.values() if error.__module__.startswith(OURS)):
        families.setdefault(_family(error), []).append(error)
    for family, errors in sorted(families.items(), key=lambda item: item[0].status):
        lines += [f"## {family.status}: {family.title()}", ""]
        rows = (
            (f"`{e.code}`", str(e.status), e.retry.value, e.title())
            for e in sorted(errors, key=lambda e: e.code)
        )
        lines += _table(("Code", "Status", "Retry", "Meaning"), rows)
    lines += [
        "## 500: A fault of ours",
        "",
        "`internal` carries a `trace_id`; the service's own log has the rest.",
        "",
    ]
    lines += [
        "## What an audit can find",
        "",
        "`soma audit verify` names each broken promise by one of these codes.",
        "",
    ]
    findings = ("Code", "The promise that is broken")
    lines += _table(findings, ((f"`{code}`", said) for code, said in CODES.items()))
    lines += [
        "`soma ledger verify` also looks at the tables of the database, and has these codes for them.",
        "",
    ]
    lines += _table(findings, ((f"`{code}`", said) for code, said in DATABASE_CODES.items()))
    return "\n".join(lines)


def _family(error: type[LedgerError]) -> type[LedgerError]:
    return error.__mro__[error.__mro__.index(LedgerError) - 1]


# --------------------------------------------------------------------------- events


def events_page() -> str:
    """Print every event by its wire type, and every aggregate that events lead to."""
    events = {topic: cls for topic, cls in sorted(EVENTS.items()) if cls.__module__.startswith(OURS)}
    kinds = {kind: cls for kind, cls in sorted(AGGREGATES.items()) if cls.__module__.startswith(OURS)}
    lines = _opening("Events", "the event classes of domain/")
    lines += [
        "A record is one envelope - `stream`, `version`, `type`, `schema`, `at`, `actor`, `tenant`, `causation`,",
        "`correlation`, `previous`, `data` - as RFC 8785 canonical JSON; `data` holds the members below. Wire types",
        "and schema numbers are never reused. What *moves money* carries its entries of the book in `money`.",
        "",
    ]
    structs: dict[str, Any] = {}
    for kind, cls in kinds.items():
        lines += [f"## {kind}", "", _first_line(cls), ""]
        for topic, event in events.items():
            if topic.split(".")[0] == kind:
                lines += _event(topic, event, structs)
    left = [topic for topic in events if topic.split(".")[0] not in kinds]
    assert not left, f"events without an aggregate: {left}"
    lines += ["## Structures", ""]
    for name, found in _closure(structs):
        lines += [f"### {name}", "", _first_line(found.cls), "", *_members(found.fields, structs)]
    return "\n".join(lines)


def _event(topic: str, event: type[Event], structs: dict[str, Any]) -> list[str]:
    money = "; *moves money*" if issubclass(event, MoneyEvent) else ""
    fields = _struct(event).fields
    return [
        f"### {topic}",
        "",
        f"{_first_line(event)} (schema {event.SCHEMA}{money})",
        "",
        *_members(fields, structs),
    ]


def _struct(cls: type[Any]) -> Any:
    return inspect.type_info(cls)


def _members(fields: Iterable[Any], structs: dict[str, Any]) -> list[str]:
    rows = [(f"`{field.encode_name}`", _word(field.type, structs)) for field in fields]
    return _table(("Member", "Type"), rows) if rows else ["No members.", ""]


def _word(found: Any, structs: dict[str, Any]) -> str:
    """Say a type in words, and note the structures it names."""
    match found:
        case inspect.StructType():
            structs[found.cls.__name__] = found
            return f"[{found.cls.__name__}](#{found.cls.__name__.lower()})"
        case inspect.UnionType():
            return " or ".join(
                sorted((_word(part, structs) for part in found.types), key=lambda word: word == "null")
            )
        case inspect.ListType() | inspect.VarTupleType():
            return f"list of {_word(found.item_type, structs)}"
        case inspect.DictType():
            return f"object of {_word(found.value_type, structs)}"
        case inspect.LiteralType():
            return " or ".join(f"`{value}`" for value in found.values)
    words = {
        "StrType": "text",
        "IntType": "integer",
        "BoolType": "boolean",
        "BytesType": "base64",
        "NoneType": "null",
        "AnyType": "anything",
    }
    return words[type(found).__name__]


def _closure(structs: dict[str, Any]) -> list[tuple[str, Any]]:
    """Add the structures that structures name, until there is none left."""
    before = -1
    while before != len(structs):
        before = len(structs)
        for found in list(structs.values()):
            _members(found.fields, structs)
    return sorted(structs.items())


# --------------------------------------------------------------------------- HTTP


def openapi_document(app: FastAPI) -> dict[str, Any]:
    """Give the OpenAPI document of an application, as plain JSON."""
    document: dict[str, Any] = json.loads(msgspec.json.encode(app.openapi()))
    return document


def api_page(openapi: dict[str, Any]) -> str:
    """Print every endpoint: what it does, what it takes and what it answers."""
    lines = _opening("HTTP", "the routes of api/")
    lines += [
        "The same as a machine reads it: [openapi.json](openapi.json), served as `/openapi.json`. Writes take",
        "`Idempotency-Key`, changes to one thing take `If-Match`, lists are read page by page with `cursor`, and a",
        "read with `as_of` answers as the log was at that position or time. Refusals are listed under",
        "[errors](errors.md).",
        "",
    ]
    by_tag: dict[str, list[tuple[str, str, dict[str, Any]]]] = {}
    for path, operations in openapi["paths"].items():
        for method, operation in operations.items():
            by_tag.setdefault((operation.get("tags") or ["other"])[0], []).append(
                (path, method.upper(), operation)
            )
    for tag, operations in by_tag.items():
        lines += [f"## {tag}", ""]
        for path, method, operation in operations:
            lines += [
                f"### {method} {path}",
                "",
                operation.get("description", operation.get("summary", "")),
                "",
            ]
            lines += [*_parameters(operation, openapi), *_answers(operation)]
    return "\n".join(lines)


def _parameters(operation: dict[str, Any], openapi: dict[str, Any]) -> list[str]:
    rows = [
        (
            f"`{given['name']}`",
            given["in"],
            _shape(given["schema"]),
            _yes(given.get("required")),
            given.get("description", ""),
        )
        for given in operation.get("parameters", [])
        if given["in"] != "header"
    ]
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        schema = _resolved(content["schema"], openapi)
        required = schema.get("required", [])
        fields = schema.get("properties")
        if fields is None:
            rows.append(("body", media, _shape(schema), "yes", schema.get("description", "").split("\n")[0]))
        for name, field in (fields or {}).items():
            rows.append(
                (f"`{name}`", "body", _shape(field), _yes(name in required), field.get("description", ""))
            )
    return _table(("Name", "In", "Type", "Required", "Meaning"), rows) if rows else []


def _yes(required: object) -> str:
    return "yes" if required else ""


def _resolved(schema: dict[str, Any], openapi: dict[str, Any]) -> dict[str, Any]:
    """Follow a reference; of alternatives take the first that is not null."""
    for choice in schema.get("anyOf", []):
        if choice.get("type") != "null":
            return _resolved(choice, openapi)
    if "$ref" in schema:
        found: dict[str, Any] = openapi["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]]
        return found
    return schema


def _shape(schema: dict[str, Any]) -> str:
    """Say a JSON schema in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"].rsplit("/", 1)[-1])
    if "anyOf" in schema:
        return " or ".join(_shape(choice) for choice in schema["anyOf"])
    if "enum" in schema and schema.get("title") != "Money":
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_shape(schema.get('items', {}))}"
    if schema.get("title") == "Money":
        return "Money"
    found = schema.get("type", "anything")
    return " or ".join(found) if isinstance(found, list) else str(found)


def _answers(operation: dict[str, Any]) -> list[str]:
    said = []
    for status, answer in operation.get("responses", {}).items():
        schemas = [content.get("schema", {}) for content in answer.get("content", {}).values()]
        shape = next((_shape(schema) for schema in schemas if schema), "")
        said.append(f"{status} {shape}".strip() if shape not in ("Problem", "anything") else status)
    return [f"Answers: {', '.join(said)}.", ""] if said else []


# --------------------------------------------------------------------------- the command line


def cli_page() -> str:
    """Print every command with its options."""
    from api.cli import words  # the command line imports this module, so it is asked for late

    lines = _opening("The command line", "api/cli.py")
    lines += [
        "A refusal ends with status 2 and prints its code, what happened and what to do; a check that found something",
        "ends with 1. What is meant for other programs goes to stdout.",
        "",
    ]
    for word in words():
        lines += [f"## {word.path}", "", word.help, ""]
        rows = [(f"`{o.names}`", o.kind, _yes(o.required), o.default, o.help) for o in word.options]
        lines += _table(("Option", "Type", "Required", "Default", "Meaning"), rows) if rows else []
    return "\n".join(lines)


# --------------------------------------------------------------------------- printing


def _opening(title: str, source: str) -> list[str]:
    return [
        PROMISE,
        "",
        f"# {title}",
        "",
        f"Printed from {source} by `make docs`; a test keeps this page current.",
        "",
    ]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [_row(head), _row(["---"] * len(head)), *_rows(rows), ""]


def _rows(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    for row in rows:
        yield _row([" ".join(cell.split()).replace("|", "\\|") for cell in row])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _first_line(cls: type[Any]) -> str:
    return (cls.__doc__ or "").strip().split("\n")[0]
