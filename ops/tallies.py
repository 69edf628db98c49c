"""What commits did to the business, as metrics: counted from the records and postings, once they are in the log."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache

from domain.billing.accounts import SIDES
from domain.book import Post, Transfer
from domain.commits import Commit
from ops import telemetry

# Kinds of streams whose records are counted by type; readings and transfers are too many, and would say little.
KINDS = frozenset(
    {"credit_note", "grant", "invoice", "payout", "purchase", "quota", "rental", "subscription"}
)

Tally = dict[tuple[str, str, str], float]


def business_committed(commits: Iterable[Commit]) -> None:
    """Count the records about rentals, billing and payouts, and the money that was booked.

    Cost: well below a microsecond for each record and posting.
    """
    booked: Tally = defaultdict(float)
    for commit in commits:
        for row in commit.rows:
            if _is_counted(row.type):
                telemetry.BUSINESS_RECORDS.labels(row.type).inc()
                if row.type == "quota.threshold_crossed":
                    telemetry.QUOTA_THRESHOLD_CROSSINGS.inc()
        for _, entries in commit.entries:
            for entry in entries:
                if isinstance(entry, Transfer | Post):
                    _book(booked, entry)
    for (purpose, side, currency), amount in booked.items():
        telemetry.MONEY_BOOKED.labels(purpose, side, currency).inc(amount)


def _book(booked: Tally, entry: Transfer | Post) -> None:
    for posting in entry.postings:
        # A metric is no book: sums of binary fractions are near enough for it.
        amount = float(posting.amount)
        side = "debit" if amount > 0 else "credit"
        booked[purpose_of(posting.account), side, entry.currency] += abs(amount)


@lru_cache(1_024)
def _is_counted(wire_type: str) -> bool:
    return wire_type.partition(".")[0] in KINDS


@lru_cache(65_536)
def purpose_of(account: str) -> str:
    """Read the purpose out of an account's name; what no release has opened is `other`, so that labels stay few."""
    purpose = account.partition(".")[0]
    return purpose if purpose in SIDES else "other"
