"""The OpenAPI document: what FastAPI finds, with our aggregates and problems in place of its own."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from domain.billing.budgeting import QuotaState, Reserved
from domain.billing.line_proofs import LineProof
from domain.billing.quotes import Quote
from domain.log.records import AGGREGATES
from domain.persona.renting import RentalQuote

PROBLEM = {
    "type": "object",
    "description": "RFC 9457 problem details.",
    "required": ["type", "title", "status", "code", "message"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string", "description": "Stable; see the errors reference."},
        "error": {"type": "string", "description": "The code again, for clients of the older API."},
        "message": {"type": "string"},
        "retry": {"type": "string", "enum": ["never", "as-is", "after-read"]},
        "details": {"type": "object"},
        "errors": {"type": "array", "items": {"type": "object"}},
        "trace_id": {"type": "string"},
    },
}
RECEIPT = {
    "type": "object",
    "required": ["position", "event_count", "repeated"],
    "properties": {
        "position": {"type": ["integer", "null"], "description": "Of the first record written, or null."},
        "event_count": {"type": "integer"},
        "repeated": {"type": "boolean", "description": "Whether this is the answer of an earlier request."},
    },
}


def document(app: FastAPI) -> dict[str, Any]:
    """Write the document.

    FastAPI promises a 422 of its own for every parameter; ours are 400 problems, so that promise is taken out.
    """
    if app.openapi_schema:
        return app.openapi_schema
    found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    for path in found["paths"].values():
        for operation in path.values():
            _drop_validation(operation)
    schemas = found.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    # Of all that were ever defined in this process, those of the house.
    ours: list[type] = [cls for cls in AGGREGATES.values() if cls.__module__.startswith("domain.")]
    # A quote is no aggregate, and made of what an invoice is made of.
    ours += [LineProof, QuotaState, Quote, RentalQuote, Reserved]
    _, components = msgspec.json.schema_components(ours, ref_template="#/components/schemas/{name}")
    for name, schema in components.items():
        # Forward compatible: an answer may carry a receipt, and later versions more members.
        schemas[name] = {k: v for k, v in schema.items() if k != "additionalProperties"}
    schemas |= {"Problem": PROBLEM, "Receipt": RECEIPT}
    # In an order that does not hang on which module was imported first.
    found["components"]["schemas"] = dict(sorted(schemas.items()))
    for schema in schemas.values():
        _drop_null_defaults(schema)
    found["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
    }
    found["security"] = [{"bearer": []}]
    app.openapi_schema = found
    return found


def _drop_null_defaults(schema: dict[str, Any]) -> None:
    """Take out defaults that would not be accepted: a field that may be left out, but not be null."""
    for field in schema.get("properties", {}).values():
        kinds = [field.get("type"), *(kind.get("type") for kind in field.get("anyOf", []))]
        if "default" in field and field["default"] is None and "null" not in kinds:
            del field["default"]


def _drop_validation(operation: dict[str, Any]) -> None:
    answer = operation.get("responses", {}).get("422", {})
    schema = answer.get("content", {}).get("application/json", {}).get("schema", {})
    if schema.get("$ref", "").endswith("/HTTPValidationError"):
        del operation["responses"]["422"]
