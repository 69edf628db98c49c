"""Write the golden records that are missing under tests/golden/, one per wire type and schema version.

Run as `python -m tests.unit.log.golden_events` when an event is new or has a new SCHEMA. What is there is never
written again: a golden record is what some release wrote, and every later one must read it.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any

import msgspec

import domain
from domain.book import Expire, Hold, Open, Post, Posting, Transfer, Void
from domain.log.records import AGGREGATES, EVENTS, Event, Record, encode

GOLDEN = Path(__file__).resolve().parents[2] / "golden"

ADDRESS = "sha3-512:" + "ab" * 64
AT = "2026-01-31T12:00:00.000001Z"
USD = {"amount": "12.50", "currency": "USD"}

_HELD = [Hold("rental-1.1", "wallet.acme.USD", "12.50", "USD")]
_PAID = [
    Post(
        "rental-1.1",
        "USD",
        [
            Posting("wallet.acme.USD", "12.50"),
            Posting("earnings.bolt.USD", "-12.25"),
            Posting("fees.platform.USD", "-0.25"),
        ],
    )
]


def _moved(source: str, target: str) -> Transfer:
    return Transfer("USD", [Posting(source, "12.50"), Posting(target, "-12.50")])


MONEY: dict[str, list[Any]] = {
    "rental.requested": _HELD,
    "rental.extended": [Hold("rental-1.2", "wallet.acme.USD", "12.50", "USD")],
    "rental.ended": [*_PAID, Expire("rental-1.2")],
    "subscription.started": _HELD,
    "subscription.renewed": _HELD,
    "subscription.changed": _HELD,
    "subscription.period_settled": _PAID,
    "purchase.made": _HELD,
    "purchase.settled": _PAID,
    "purchase.refunded": [Void("rental-1.1")],
    "account.opened": [Open("wallet.acme.USD", "USD", "credit", False)],
    "transfer.posted": [
        Transfer("USD", [Posting("wallet.acme.USD", "12.50"), Posting("wallet.bolt.USD", "-12.50")])
    ],
    "contract.escrow_funded": [Hold("contract-1", "wallet.acme.USD", "12.50", "USD")],
    "contract.escrow_released": [
        Post(
            "contract-1",
            "USD",
            [
                Posting("wallet.acme.USD", "12.50"),
                Posting("wallet.bolt.USD", "-12.25"),
                Posting("fees.platform.USD", "-0.25"),
            ],
        )
    ],
    "contract.escrow_refunded": [Void("contract-1")],
    "contract.escrow_expired": [Expire("contract-1")],
    "grant.granted": [_moved("wallet.acme.USD", "credits.acme.USD")],
    "quota.reserved": [Hold("reservation-1", "wallet.acme.USD", "12.50", "USD")],
    "quota.released": [Void("reservation-1")],
    "quota.spent": [
        Post(
            "reservation-1",
            "USD",
            [Posting("wallet.acme.USD", "12.50"), Posting("credits.acme.USD", "-12.50")],
        )
    ],
    "grant.burned": [_moved("credits.acme.USD", "receivable.acme.USD")],
    "grant.expired": [_moved("credits.acme.USD", "promotions.platform.USD")],
    "invoice.issued": [_moved("receivable.acme.USD", "revenue.platform.USD")],
    "invoice.paid": [_moved("wallet.acme.USD", "receivable.acme.USD")],
    "credit_note.issued": [_moved("revenue.platform.USD", "credits.acme.USD")],
    "payout.requested": [Hold("payout-1", "earnings.acme.USD", "12.50", "USD")],
    "payout.paid": [
        Post(
            "payout-1", "USD", [Posting("earnings.acme.USD", "12.50"), Posting("cash.platform.USD", "-12.50")]
        )
    ],
    "payout.failed": [Void("payout-1")],
}
JSON: dict[tuple[str, str], Any] = {
    ("offer.listed", "label_schema"): {"target": "malignant", "classes": [0, 1], "note": "naïve – ✓"},
    ("offer.revised", "changes"): {"title": "Revised", "price_per_round": USD, "expires_at": None},
    ("intent.amended", "changes"): {"budget_total": None, "task_type": "classification"},
    ("intent.match_failed", "diagnostics"): {"offers_evaluated": 1, "would_match": []},
    ("contract.created", "selection_diagnostics"): {"offers_evaluated": 3, "optimal": True},
    ("contract.created", "proof_requirements"): {
        "require_attestation": True,
        "require_round_completion": True,
    },
    ("dispute.opened", "evidence"): {"rows": [1, 2], "remark": 'tab\tand "quote"'},
}


def event_classes() -> dict[str, type[Event]]:
    """Import the whole domain; give the events that belong to it."""
    for module in pkgutil.walk_packages(domain.__path__, "domain."):
        importlib.import_module(module.name)
    return {topic: cls for topic, cls in sorted(EVENTS.items()) if cls.__module__.startswith("domain.")}


def golden_path(topic: str, schema: int) -> Path:
    """Name the file of a wire type and schema version."""
    return GOLDEN / f"{topic}.v{schema}.json"


def sample(type_: Any, name: str) -> Any:
    """Make a plain value of a type, as JSON would hold it."""
    info = msgspec.inspect.type_info(type_) if not isinstance(type_, msgspec.inspect.Type) else type_
    match info:
        case msgspec.inspect.StructType(cls=cls) if cls.__name__ == "Money":
            return USD
        case msgspec.inspect.StructType():
            tag = {info.tag_field: info.tag} if info.tag_field else {}
            return tag | {field.encode_name: sample(field.type, field.name) for field in info.fields}
        case msgspec.inspect.ListType(item_type=item) | msgspec.inspect.VarTupleType(item_type=item):
            return [sample(item, name)]
        case msgspec.inspect.UnionType(types=types):
            return sample(next(t for t in types if not isinstance(t, msgspec.inspect.NoneType)), name)
        case msgspec.inspect.LiteralType(values=values):
            return values[0]
        case msgspec.inspect.DictType():
            return {}
        case msgspec.inspect.IntType():
            return 20
        case msgspec.inspect.BoolType():
            return True
        case msgspec.inspect.BytesType():
            return "aGVsbG8="
        case msgspec.inspect.StrType():
            return sample_text(name)
    raise TypeError(f"no sample for {name}: {info}")


def sample_text(name: str) -> str:
    """Make a text that suits a field's name."""
    if name.endswith(("_at", "_ts")):
        return AT
    if name.endswith(("address", "fingerprint", "digest")):
        return ADDRESS
    numeric = (
        "score",
        "quality",
        "accuracy",
        "loss",
        "auc",
        "norm",
        "rate",
        "l2",
        "total",
        "component",
        "gap",
        "bound",
    )
    if any(word in name for word in numeric):
        return "0.850000"
    known = {"currency": "USD", "purpose": "wallet", "side": "credit", "outcome": "split", "rule": "mean"}
    known["version"] = "1.4.0"
    known |= {"zone": "Europe/Berlin", "anchor": "2026-01-31", "number": "INV-acme-000001"}
    if name in ("period_start", "period_end", "billed_to", "effective_from", "start", "end", "last"):
        return AT
    if name in ("share", "price", "quantity", "exact", "rounding", "carried", "free", "minimum", "maximum"):
        return "0.5"
    if name in ("threshold", "thresholds"):
        return "0.8"
    if name in ("commitment", "up_to", "flat", "per", "size"):
        return "3"
    return known.get(name, f"{name.replace('_', '-')}-1")


def golden_record(topic: str, cls: type[Event]) -> bytes:
    """Make the golden record of an event as this release writes it."""
    data = {
        field.encode_name: JSON.get((topic, field.name), sample(field.type, field.name))
        for field in msgspec.inspect.type_info(cls).fields
        if field.name != "money"
    }
    if topic in MONEY:
        data["money"] = msgspec.to_builtins(MONEY[topic])
    event = msgspec.convert(data, cls)
    kind = next(name for name, aggregate in AGGREGATES.items() if cls in vars(aggregate).values())
    version = 1 if _begins(topic) else 2
    previous = None if version == 1 else ADDRESS
    return encode(
        Record(
            "anna", AT, ADDRESS, "trace-1", event, previous, cls.SCHEMA, f"{kind}/1", "acme", topic, version
        )
    )


def _begins(topic: str) -> bool:
    if topic in ("price_book.published", "price_sheet.written", "customer.enrolled", "quota.set"):
        return True
    if topic.partition(".")[0] in ("invoice", "credit_note"):
        return topic.endswith(".issued")
    begun = {
        "adopted",
        "listed",
        "opened",
        "created",
        "registered",
        "uploaded",
        "posted",
        "succeeded",
        "enabled",
        "metered",
        "requested",
        "exported",
        "imported",
        "granted",
        "extended",
        "swept",
    }
    return topic.rpartition(".")[2] in begun


def main() -> None:
    """Write what is missing."""
    GOLDEN.mkdir(exist_ok=True)
    for topic, cls in event_classes().items():
        path = golden_path(topic, cls.SCHEMA)
        if not path.exists():
            path.write_bytes(golden_record(topic, cls))
            print(path.name)


if __name__ == "__main__":
    main()
