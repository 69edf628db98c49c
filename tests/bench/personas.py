"""Many personas for the catalogue: states of the shape the aggregate has, from a fixed seed.

Their words are drawn as often as they stand in the project's own documentation, so that some are in almost every
summary and most are rare; domains, models and prices are as unevenly spread.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

ROOT = Path(__file__).resolve().parents[2]
DOMAINS = (
    "finance tax law health nursing education tutoring travel hotels support sales marketing design code review "
    "operations logistics energy farming weather insurance housing games music translation history chemistry"
).split()
MODELS = tuple(
    (f"box-{size}", provider) for provider in ("north", "south", "east") for size in ("s", "m", "l")
)
SCOPES = ("read", "write", "admin")
TOOLS = ("search", "mail", "calendar", "ledger", "files", "browser")


def vocabulary() -> tuple[list[str], list[int]]:
    """Count the words of the documentation."""
    pages = sorted((ROOT / "docs").rglob("*.md"))
    counted = Counter(word for page in pages for word in re.findall(r"[a-z]{3,}", page.read_text().lower()))
    words = sorted(counted, key=lambda word: (-counted[word], word))[:5_000]
    return words, [counted[word] for word in words]


def states(count: int, seed: int = 4) -> Iterator[dict[str, Any]]:
    """Give the states of some personas; nine of ten are listed."""
    chance = random.Random(seed)
    words, weights = vocabulary()
    for number in range(count):
        drawn = chance.choices(words, weights, k=44)
        yield _state(chance, number, drawn)


def _state(chance: random.Random, number: int, drawn: list[str]) -> dict[str, Any]:
    domains = sorted({chance.choice(DOMAINS[: chance.randint(2, len(DOMAINS))]) for _ in range(2)})
    is_listed = chance.random() < 0.9
    day = f"2026-{chance.randint(1, 12):02}-{chance.randint(1, 28):02}"
    moment = f"{day}T{chance.randint(0, 23):02}:{number % 60:02}:00.000000Z"
    return {
        "id": f"{drawn[0]}-{drawn[1]}-{number}",
        "tenant": f"tenant-{chance.randint(0, 999)}",
        "version": 3,
        "created_at": moment,
        "updated_at": moment,
        "display_name": " ".join(drawn[:4]).title(),
        "summary": " ".join(drawn[4:]),
        "domains": domains,
        "status": ("listed" if chance.random() < 0.97 else "degraded") if is_listed else "draft",
        "versions": [{"version": "1.0.0", "capsule": _address(number), "status": "published"}],
        "review": "approved" if is_listed else chance.choice(["none", "pending"]),
        "published": _published(chance, number, moment) if is_listed else None,
    }


def _address(number: int) -> str:
    return f"sha3-512:{number:0128x}"


def _published(chance: random.Random, number: int, moment: str) -> dict[str, Any]:
    box, provider = chance.choices(MODELS, range(len(MODELS), 0, -1))[0]
    return {
        "version": "1.0.0",
        "capsule": _address(number),
        "published_at": moment,
        "model": {"model_box_id": box, "provider": provider},
        "tools": [
            {"tool": tool, "access_scope": chance.choices(SCOPES, (8, 3, 1))[0]}
            for tool in chance.sample(TOOLS, chance.randint(0, 3))
        ],
        "pricing": [
            {
                "model": model,
                "price": {"amount": str(chance.randint(1, 400)), "currency": chance.choice(["USD", "EUR"])},
                "billing_period_minutes": None if model == "purchase" else 60,
            }
            for model in chance.sample(("purchase", "subscription", "rental"), chance.randint(1, 2))
        ],
        "item_count": chance.randint(0, 20_000),
        "embedding_model": chance.choice(["hashed-ngram-384", "hashed-ngram-64"]),
        "compliance": {
            "badge": chance.choices(["verified", "warnings", "override"], (85, 14, 1))[0],
            "notes": [],
        },
        "trust": chance.choices(["verified", "needs_signatures"], (97, 3))[0],
        "degraded": chance.choices([[], ["model_price_rise"]], (97, 3))[0],
        "token_estimate": {"prompt_tokens": 900, "memory_tokens_per_item": 80, "method": "words"},
    }


def write_states(connection: psycopg.Connection[Any], found: Iterator[dict[str, Any]]) -> None:
    """Write states where the commit writes them; the trigger that keeps the catalogue runs as it does there."""
    statement = "COPY records (kind, id, version, address, tenant, owner, status, state) FROM STDIN"
    with connection.transaction(), connection.cursor() as cursor, cursor.copy(statement) as copy:
        for state in found:
            copy.write_row(
                ("persona", state["id"], 3, bytes(64), state["tenant"], None, state["status"], Jsonb(state))
            )
