"""Finding the records behind a difference: ranges of positions are halved until what differs can be read and named.

Both sides give the fingerprint of a range; where they agree nothing more is read. Rows that are missing, or that are
there and must not be, are told together as long as nothing that is right lies between them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from domain.billing.fingerprints import EMPTY, RECORDS, Table, Totals
from domain.billing.reconciliation import TEXT_MAX, Change, Difference, Kind
from domain.log.records import address_text, digest
from domain.values import NANO
from ops.reconcile_log import LogSide
from ops.reconcile_warehouse import WarehouseSide

BUCKET = 8_192
LEAF = 256
LISTED_MAX = 100
ROWS_MAX = 500_000
# Columns in nano-units.
AMOUNTS = frozenset({"amount", "cost", "quantity", "price", "reserved", "charged", "fee", "released"})

Row = dict[str, Any]


class Differences:
    """What was found, bounded; everything is counted, the first are kept."""

    def __init__(self) -> None:
        self.listed: list[Difference] = []
        self.count = 0
        self.harmful_count = 0
        self._open: Difference | None = None

    def add(self, difference: Difference) -> None:
        """Add a difference that stands for itself."""
        self.settle()
        self._keep(difference)

    def extend(self, difference: Difference) -> None:
        """Add a difference; one of the same kind right before it grows instead."""
        known = self._open
        if known is not None and (known.kind, known.table, known.harmless) == (
            difference.kind, difference.table, difference.harmless,
        ):  # fmt: skip
            self._open = Difference(
                known.kind, known.table, known.key if known.key == difference.key else "", known.position,
                difference.last, known.rows + difference.rows, known.address, known.stream, known.changes,
                known.harmless,
            )  # fmt: skip
            return
        self.settle()
        self._open = difference

    def settle(self) -> None:
        """Close what may still grow: something that is right follows it."""
        if self._open is not None:
            self._keep(self._open)
            self._open = None

    def count_more(self, count: int) -> None:
        """Count differences that are not told one by one."""
        self.count += count
        self.harmful_count += count

    def _keep(self, difference: Difference) -> None:
        self.count += 1
        self.harmful_count += not difference.harmless
        if len(self.listed) < LISTED_MAX:
            self.listed.append(difference)


class Search:
    """Looks for the rows of one table in which the two sides differ."""

    def __init__(
        self, log: LogSide, warehouse: WarehouseSide, table: Table, found: Differences, account: str | None
    ) -> None:
        self._log = log
        self._warehouse = warehouse
        self._table = table
        self._found = found
        self._account = account
        self._rows_read = 0
        self.ranges = 0

    def run(self, bound: int) -> None:
        """Look through all positions below a bound.

        Cost: one more look at the whole table on both sides, then only at ranges that differ.
        """
        log = self._log.buckets(self._table, bound, BUCKET, self._account)
        warehouse = self._warehouse.buckets(self._table, bound, BUCKET, self._account)
        for bucket in sorted(log.keys() | warehouse.keys()):
            start, end = bucket * BUCKET, min(bound, (bucket + 1) * BUCKET)
            self._range(start, end, log.get(bucket, EMPTY), warehouse.get(bucket, EMPTY))
        self._found.settle()

    def _range(self, start: int, end: int, log: Totals, warehouse: Totals) -> None:
        self.ranges += 1
        if _bare(log) == _bare(warehouse):
            if log.rows:
                self._found.settle()
            return
        if self._rows_read > ROWS_MAX:
            self._tell_range(start, end, log, warehouse)
        elif not log.rows or not warehouse.rows:
            self._tell_side(start, end)
        elif end - start <= LEAF:
            self._tell_rows(start, end)
        else:
            middle = start + (end - start) // 2
            for first, last in ((start, middle), (middle, end)):
                sides = (
                    side.totals(self._table, first, last, self._account)
                    for side in (self._log, self._warehouse)
                )
                self._range(first, last, *sides)

    # ------------------------------------------------------------------ naming

    def _tell_range(self, start: int, end: int, log: Totals, warehouse: Totals) -> None:
        """Name a range whose rows are too many to be read."""
        rows = log.rows - warehouse.rows
        kind: Kind = "missing" if rows > 0 else "extra" if rows < 0 else "altered"
        words = [Change("rows", str(log.rows), str(warehouse.rows))]
        self._found.add(
            Difference(kind, self._table.name, "", start, end - 1, abs(rows) or log.rows, None, None, words)
        )

    def _tell_side(self, start: int, end: int) -> None:
        """Name all rows of a range of which one side has none."""
        rows = self._read(self._log, start, end)
        for row in rows:
            self._grow("missing", row)
        for row in [] if rows else self._read(self._warehouse, start, end):
            self._grow("extra", row)

    def _tell_rows(self, start: int, end: int) -> None:
        log = {(row["position"], row["leg"]): row for row in self._read(self._log, start, end)}
        warehouse: dict[tuple[int, int], list[Row]] = {}
        for row in self._read(self._warehouse, start, end):
            warehouse.setdefault((row["position"], row["leg"]), []).append(row)
        for place in sorted(log.keys() | warehouse.keys()):
            self._tell_place(log.get(place), warehouse.get(place, []))

    def _tell_place(self, right: Row | None, there: Sequence[Row]) -> None:
        """Hold what lies at one place of a table against the log."""
        if right is None:
            for row in there:
                self._grow("extra", row)
            return
        if not there:
            self._grow("missing", right)
            return
        wrong = list(there)
        if right in wrong:
            wrong.remove(right)
            self._found.settle()
        else:
            self._found.add(self._named("altered", right, changes(self._table, right, wrong.pop(0))))
        for row in wrong:
            self._found.add(self._named("doubled", row, changes(self._table, right, row)))

    def _read(self, side: LogSide | WarehouseSide, start: int, end: int) -> list[Row]:
        rows = side.rows(self._table, start, end, self._account)
        self._rows_read += len(rows)
        return rows

    def _grow(self, kind: Kind, row: Row) -> None:
        self._found.extend(self._named(kind, row, []))

    def _named(self, kind: Kind, row: Row, changed: list[Change]) -> Difference:
        stream = row.get("stream")
        return Difference(
            kind, self._table.name, key_of(self._table, row), row["position"], row["position"], 1,
            address_text(row["address"]), stream[:TEXT_MAX] if stream else None, changed,
        )  # fmt: skip


def _bare(totals: Totals) -> Totals:
    """Leave out the further sums: the digest covers their columns, and not all of them add up."""
    return totals._replace(more=())


def tell_doubled(warehouse: WarehouseSide, table: Table, bound: int, found: Differences) -> None:
    """Name the rows that lie in a table more than once and that the next merge collapses."""
    raw, final = warehouse.raw_counts(table, bound, BUCKET)
    for bucket in sorted(bucket for bucket, count in raw.items() if count != final.get(bucket)):
        start, end = bucket * BUCKET, min(bound, (bucket + 1) * BUCKET)
        for position, address, count in warehouse.raw_rows(table, start, end):
            if count == 1:
                found.settle()
                continue
            found.extend(
                Difference(
                    "doubled", table.name, "", position, position, count - 1,
                    address_text(bytes.fromhex(address)), None, [], harmless=True,
                )
            )  # fmt: skip
    found.settle()


def key_of(table: Table, row: Row) -> str:
    """Say in which group a row is counted."""
    if table is RECORDS:
        return f"{row['tenant']} {row['at'][:10]}"[:TEXT_MAX]
    return " ".join(str(row[name]) for name in table.group)[:TEXT_MAX]


def changes(table: Table, right: Row, there: Row) -> list[Change]:
    """List the columns in which two rows differ."""
    return [
        Change(column, shown(column, right[column]), shown(column, there[column]))
        for column in table.columns
        if right[column] != there[column]
    ]


def shown(column: str, value: Any) -> str:
    """Print the value of a column: addresses and digests of bytes as such, money in units."""
    if column == "address":
        return address_text(value)
    if column == "record":
        return f"{len(value)} bytes, {address_text(digest(value))}"
    if column in AMOUNTS:
        return units(int(value))
    return str(value)[:TEXT_MAX]


def units(nano: int) -> str:
    """Print nano-units as units, without zeros that say nothing."""
    whole, part = divmod(abs(nano), NANO)
    decimals = f"{part:09d}".rstrip("0")
    return ("-" if nano < 0 else "") + (f"{whole}.{decimals}" if decimals else str(whole))


def texts(values: Iterable[Any]) -> str:
    """Put the parts of a key together."""
    return " ".join(map(str, values))[:TEXT_MAX]
