"""What the fields of a manifest must not say against each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

Found = tuple[str, str, Any]


def contradictions(document: dict[str, Any]) -> list[Found]:
    """List each contradiction as path, reason and what stands there."""
    return [
        *_metadata(document["metadata"]),
        *_twice("/model_box/capabilities", (c["feature"] for c in document["model_box"]["capabilities"])),
        *_twice("/tools", (t["tool"] for t in document["tools"])),
        *_twice("/artifacts", (part["name"] for part in document["artifacts"])),
        *_pricing(document["pricing"]),
        *_references(document),
    ]


def _metadata(metadata: dict[str, Any]) -> Iterator[Found]:
    yield from _twice("/metadata/domains", metadata["domains"])
    yield from _twice("/metadata/owners", (owner["subject"] for owner in metadata["owners"]))
    if metadata["updated_at"] < metadata["created_at"]:
        yield "/metadata/updated_at", "it was changed before it was created", metadata["updated_at"]


def _twice(path: str, names: Iterable[str]) -> Iterator[Found]:
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name in seen:
            yield f"{path}/{index}", "this name stands here twice", name
        seen.add(name)


def _pricing(options: list[dict[str, Any]]) -> Iterator[Found]:
    seen: set[tuple[Any, ...]] = set()
    for index, option in enumerate(options):
        path, period = f"/pricing/{index}", option["billing_period_minutes"]
        if (period is None) != (option["model"] == "purchase"):
            yield f"{path}/billing_period_minutes", _PERIODS[option["model"] == "purchase"], period
        way = (option["model"], option["price"]["currency"], period)
        if way in seen:
            yield (
                path,
                "this way to pay stands here twice, with the same currency and period",
                option["model"],
            )
        seen.add(way)


_PERIODS = ("a subscription or rental names its period", "a purchase has no period")


def _references(document: dict[str, Any]) -> Iterator[Found]:
    roles = {part["name"]: part["role"] for part in document["artifacts"]}
    bundle = document["memory"]["bundle"]
    if roles.get(bundle) != "memory":
        yield "/memory/bundle", "it names no part whose role is memory", bundle
    for index, part in enumerate(document["artifacts"]):
        if part["role"] == "memory" and part["name"] != bundle:
            yield (
                f"/artifacts/{index}/role",
                "a capsule has one memory bundle, the one memory names",
                part["name"],
            )
    for index, evaluation in enumerate(document["evaluations"]):
        report = evaluation["report"]
        if report is not None and roles.get(report) != "evaluation_report":
            yield f"/evaluations/{index}/report", "it names no part whose role is evaluation_report", report
