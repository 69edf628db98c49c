"""Reconciliations: each comparison of the log with what follows it is itself an event of the log.

What was found was computed outside; here it is only written down, bounded, so that it can be listed, alerted on and
proven like everything else.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from pydantic import Field

from domain.billing.accounts import PLATFORM
from domain.fields import Command, Id, JsonObject
from domain.ledger import Case, allow
from domain.log.records import Aggregate, Event, Record

FINDINGS_MAX = 20
TEXT_MAX = 200

Kind = Literal["missing", "extra", "altered", "doubled", "stale_rollup", "stale_view", "balance", "behind"]


class Change(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One column of a row, as the log has it and as the follower has it."""

    column: str
    log: str | None
    follower: str | None


class Difference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One difference, named: what kind, in which table, and the records it is about.

    `position` to `last` are the first and the last position it covers, `rows` how many rows; `key` says where it shows,
    such as an account, a currency and a day. It is harmless where the next merge of ClickHouse removes it and no figure
    read with FINAL or from a rollup is wrong.
    """

    kind: Kind
    table: str
    key: str
    position: int | None
    last: int | None
    rows: int
    address: str | None
    stream: str | None
    changes: list[Change]
    harmless: bool = False


class Reconciliation(Aggregate):
    """One comparison of the log with its followers; it is one event and never changes."""

    KIND = "reconciliation"

    bound: int = 0
    log_size: int = 0
    clean: bool = False
    records: int = 0
    entries: int = 0
    groups: int = 0
    difference_count: int = 0
    harmful_count: int = 0
    differences: list[Difference] = []
    duration_ms: int = 0
    scope: str = "all"
    deep: bool = False
    occasion: str = ""

    class Completed(Event, frozen=True):
        """The log was compared with its followers up to a bound, the first position not looked at.

        harmful_count counts the differences that make a figure wrong; the first differences of all are listed.
        """

        TOPIC = "reconciliation.completed"

        bound: int
        log_size: int
        clean: bool
        records: int
        entries: int
        groups: int
        difference_count: int
        harmful_count: int
        differences: list[Difference]
        duration_ms: int
        scope: str
        deep: bool
        occasion: str

        def apply(self, reconciliation: Reconciliation, record: Record) -> None:
            for name in self.__struct_fields__:
                setattr(reconciliation, name, getattr(self, name))

    def status_key(self) -> str:
        return "clean" if self.clean else "drift"

    def owner_key(self) -> str:
        return self.occasion


class CompleteReconciliation(Command):
    """Write down what a comparison came to."""

    id: Id | None = None
    bound: int = Field(ge=0)
    log_size: int = Field(ge=0)
    records: int = Field(ge=0)
    entries: int = Field(ge=0)
    groups: int = Field(ge=0)
    difference_count: int = Field(ge=0)
    harmful_count: int = Field(ge=0)
    differences: list[JsonObject] = Field(max_length=FINDINGS_MAX)
    duration_ms: int = Field(ge=0)
    scope: str = Field(max_length=200)
    deep: bool
    occasion: Literal["nightly", "asked"]


@allow("service", "billing", "operator", "auditor")
def complete_reconciliation(case: Case, command: CompleteReconciliation) -> Reconciliation:
    """Write a comparison down; the same one again is not written twice."""
    name = command.id or case.new_id("reconciliation")
    known = case.find(Reconciliation, name) if command.id else None
    if known is not None:
        return known
    members: dict[str, Any] = {name: getattr(command, name) for name in type(command).model_fields}
    members.pop("id")
    members["differences"] = msgspec.convert(command.differences, list[Difference])
    completed = Reconciliation.Completed(clean=command.difference_count == 0, **members)
    return case.create(Reconciliation, name, completed, tenant=PLATFORM)
