"""The JSON Schemas others write against, printed from the models that read what they write."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from domain.persona.manifest import manifest_schema
from domain.trust.questions import question_schema

SCHEMAS: dict[str, Callable[[], dict[str, Any]]] = {
    "persona_manifest.schema.json": manifest_schema,
    "policy_input.schema.json": question_schema,
}


def written_schemas() -> dict[str, str]:
    """Print every schema, by file name."""
    return {
        name: json.dumps(schema(), indent=1, ensure_ascii=False) + "\n" for name, schema in SCHEMAS.items()
    }
