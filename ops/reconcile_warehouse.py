"""ClickHouse's side of a reconciliation: what its tables and rollups hold, in the shape of the log's side.

Tables are read with FINAL, as everybody must who reads money, and once without it, to see what was sent twice. The
calls are made from a thread beside the loop that owns the connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa

from domain.billing.fingerprints import (
    DIGESTED,
    ENTRIES,
    LINES,
    RECORDS,
    SALES,
    SEPARATOR,
    USAGE,
    Table,
    Totals,
)
from ops.clickhouse import ClickHouse

T = TypeVar("T")
KEYS_A_STATEMENT = 500


def _moment(column: str) -> str:
    return f"concat(replaceOne(toString({column}), ' ', 'T'), 'Z')"


def _nano(column: str) -> str:
    # A Decimal(38, 9) is a whole number of nano-units of 128 bits.
    return f"reinterpretAsInt128({column})"


# Columns that need other words to read as the log states them.
_EXPRESSIONS: dict[str, dict[str, str]] = {
    ENTRIES.name: {
        "at": _moment("at"), "day": "toString(day)", "amount": f"toString({_nano('amount')})",
    },
    RECORDS.name: {"leg": "0", "at": _moment("at"), "day": "toString(toDate(at))"},
    USAGE.name: {
        "at": _moment("at"), "occurred_at": _moment("occurred_at"),
        "hour": "formatDateTime(hour, '%Y-%m-%dT%H')", "cost": f"toString({_nano('cost')})",
        "latency_ms": "ifNull(toString(latency_ms), '')",
    },
    LINES.name: {
        **{name: _moment(name) for name in ("at", "period_start", "period_end")},
        **{name: f"toString({_nano(name)})" for name in ("quantity", "amount")},
        **{name: f"ifNull(toString({name}), '')" for name in ("first", "last")},
    },
    SALES.name: {
        "leg": "0", "at": _moment("at"),
        **{name: f"toString({_nano(name)})" for name in ("price", "reserved", "charged", "fee", "released")},
        **{name: f"ifNull({_moment(name)}, '')" for name in ("period_start", "period_end", "expires_at")},
    },
}  # fmt: skip
# What was taken back counts against what was added.
_AMOUNTS = {
    ENTRIES.name: _nano("amount"), RECORDS.name: "length(record)", USAGE.name: f"toInt256({_nano('cost')}) * sign",
    LINES.name: _nano("amount"), SALES.name: _nano("charged"),
}  # fmt: skip
# The largest mean latency of a reading that holds: of those that were added more often than taken back.
_MEAN = "intDiv(ifNull(latency_ms, 0), greatest(requests, 1))"
_MEANS = f"sumMap([{_MEAN}], [toInt64(sign)])"
LATENCY_MAX = f"arrayMax(arrayMap((mean, count) -> if(count > 0, mean, 0), {_MEANS}.1, {_MEANS}.2))"


def _signed(column: str, where: str = "true") -> str:
    return f"sumIf(toInt128({column}) * sign, {where})"


_MORE: dict[str, tuple[str, ...]] = {
    ENTRIES.name: (
        f"sumIf(toInt256({_nano('amount')}), amount > 0)", f"sumIf(-toInt256({_nano('amount')}), amount < 0)",
    ),
    **{table.name: () for table in (RECORDS, LINES, SALES)},
    USAGE.name: (
        "sum(toInt64(sign))", _signed("requests"), _signed("requests", "status = 'error'"), _signed("tokens_in"),
        _signed("tokens_out"), _signed("tokens_cached"), _signed("requests", "latency_ms IS NOT NULL"),
        _signed("ifNull(latency_ms, 0)"), LATENCY_MAX,
    ),
}  # fmt: skip
# Whether the columns of a mirrored record are those its bytes state.
_STATED = (
    "(JSONExtract(record, 'Tuple(actor String, at String, causation String, correlation String, schema UInt16,"
    " stream String, tenant String, type String, version UInt64)') = (actor, "
    + _moment("at")
    + ", causation,"
    " correlation, schema, stream, tenant, type, version) AND kind = splitByChar('/', stream)[1])"
)
# Of a rollup: what each of its columns must be, by the names of Totals and of the table's further sums.
_ROLLUPS: dict[str, dict[str, str]] = {
    ENTRIES.name: {
        "rows": "entries", "amount": "net * 1000000000", "weighted": "weighted", "x0": "x0", "x1": "x1", "s2": "s2",
        "debits": "debits * 1000000000", "credits": "credits * 1000000000",
    },
    USAGE.name: {
        "amount": "cost * 1000000000", "x0": "x0", "s2": "s2",
        **{name: name for name in USAGE.more},
    },
}  # fmt: skip
# What a row of ReplacingMergeTree is known by: rows that agree in it collapse.
_IDENTITY = {
    ENTRIES.name: "tenant, account, currency, day, position, leg",
    RECORDS.name: "tenant, type, position, toYYYYMM(at)",
    USAGE.name: "tenant, provider, model, hour, position, leg",
    LINES.name: "tenant, invoice_id, position, leg",
    SALES.name: "tenant, kind, sale_id, position",
}


def _eight(data: str, start: int = 1) -> str:
    return f"reinterpretAsInt64(reverse(substring({data}, {start}, 8)))"


def _expression(table: Table, column: str) -> str:
    return _EXPRESSIONS[table.name].get(column, column)


def _digest(table: Table) -> str:
    if table is RECORDS:
        # Bytes that are the log's under columns that are not make another digest.
        return _eight(f"SHA256(if({_STATED}, record, concat(record, ' under other columns')))")
    texts = ", ".join(f"toString({_expression(table, column)})" for column in DIGESTED[table.name])
    return _eight(f"SHA256(arrayStringConcat([{texts}], char({ord(SEPARATOR)})))")


def _folds(table: Table) -> str:
    amount = _AMOUNTS[table.name]
    folds = (
        "count()", f"sum(toInt256({amount}))", f"sum(toInt256({amount}) * (toInt256(position) + 1))",
        f"groupBitXor({_eight('address')})", f"groupBitXor({_eight('address', 9)})",
        f"sum(toInt128({_eight('address', 17)}))", f"groupBitXor({_digest(table)})", *_MORE[table.name],
    )  # fmt: skip
    return ", ".join(folds)


def _totals(values: Sequence[Any]) -> Totals:
    numbers = [int(value) for value in values]
    rows, amount, weighted, x0, x1, s2, digest = numbers[:7]
    return Totals(rows, amount, weighted, x0, x1, s2, digest, tuple(numbers[7:]))


def _source(table: Table, account: str | None, final: bool = True) -> str:
    own = " AND account = {account:String}" if account is not None else ""
    read = " FINAL" if final else ""
    return f"soma.{table.name}{read} WHERE position >= {{start:UInt64}} AND position < {{end:UInt64}}{own}"


class RollupRow(NamedTuple):
    """One row of a rollup: its key, what it says, and the first position it does not count."""

    key: tuple[str, ...]
    said: dict[str, int]
    upto: int


class WarehouseSide:
    """What ClickHouse holds. Made on the loop of its connection; its methods are called from another thread."""

    def __init__(self, clickhouse: ClickHouse) -> None:
        self._clickhouse = clickhouse
        self._loop = asyncio.get_running_loop()

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _rows(self, statement: str, **parameters: Any) -> list[tuple[Any, ...]]:
        return self._wait(self._clickhouse.rows(statement, _named(statement, parameters)))

    def _stream(self, statement: str, parameters: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
        blocks = self._clickhouse.blocks(statement, _named(statement, parameters))
        try:
            while True:
                try:
                    block = self._wait(blocks.__anext__())  # type: ignore[arg-type]
                except StopAsyncIteration:
                    return
                yield from block
        finally:
            self._wait(blocks.aclose())

    # ------------------------------------------------------------------ groups

    def groups(
        self, table: Table, bound: int, account: str | None = None
    ) -> Iterator[tuple[tuple[str, ...], Totals]]:
        """Stream the fingerprints of all groups below a position, in the order of their keys.

        Errors: unavailable, clickhouse_refused.
        """
        keys = ", ".join(f"{_expression(table, key)} AS k{n}" for n, key in enumerate(table.group))
        names = ", ".join(f"k{n}" for n in range(len(table.group)))
        statement = (
            f"SELECT {keys}, {_folds(table)} FROM {_source(table, account)} GROUP BY {names} ORDER BY {names}"
        )
        width = len(table.group)
        for row in self._stream(statement, {"start": 0, "end": bound, "account": account or ""}):
            yield row[:width], _totals(row[width:])

    def buckets(self, table: Table, bound: int, width: int, account: str | None = None) -> dict[int, Totals]:
        """Give the fingerprints of ranges of positions of one width, below a bound; empty ones are left out."""
        statement = f"SELECT intDiv(position, {width}) AS b, {_folds(table)} FROM {_source(table, account)} GROUP BY b"
        rows = self._rows(statement, start=0, end=bound, account=account or "")
        return {int(row[0]): _totals(row[1:]) for row in rows}

    # ------------------------------------------------------------------ ranges and rows

    def totals(self, table: Table, start: int, end: int, account: str | None = None) -> Totals:
        """Give the fingerprint of a range of positions, the end not included."""
        statement = f"SELECT {_folds(table)} FROM {_source(table, account)}"
        return _totals(self._rows(statement, start=start, end=end, account=account or "")[0])

    def rows(self, table: Table, start: int, end: int, account: str | None = None) -> list[dict[str, Any]]:
        """Read the rows of a range of positions."""
        columns = ", ".join(
            f"hex({column})" if column in ("address", "record") else f"toString({_expression(table, column)})"
            for column in table.columns
        )
        statement = f"SELECT {columns} FROM {_source(table, account)} ORDER BY position, 2"
        return [
            _row(table, values)
            for values in self._rows(statement, start=start, end=end, account=account or "")
        ]

    def records_from(self, start: int, end: int) -> list[tuple[int, bytes, bytes]]:
        """Read (position, address, record) of a range of positions, as they are mirrored."""
        found = self._wait(
            self._clickhouse.arrow(
                "SELECT position, address, record FROM soma.records FINAL WHERE position >= {start:UInt64}"
                " AND position < {end:UInt64} ORDER BY position SETTINGS output_format_arrow_string_as_string = 0",
                {"start": start, "end": end},
            )
        )
        columns = [
            found.column("position").to_pylist(),
            *(found.column(name).cast(pa.binary()).to_pylist() for name in ("address", "record")),
        ]
        return list(zip(*columns, strict=True))

    # ------------------------------------------------------------------ what was sent twice, or from nowhere

    def raw_counts(self, table: Table, bound: int, width: int) -> tuple[dict[int, int], dict[int, int]]:
        """Count rows by ranges of positions of one width: as they lie there, and as FINAL reads them."""
        both = [
            f"SELECT intDiv(position, {width}) AS b, count() FROM {_source(table, None, final)} GROUP BY b"
            for final in (False, True)
        ]
        raw, final = (self._rows(statement, start=0, end=bound) for statement in both)
        return dict(raw), dict(final)  # type: ignore[arg-type]

    def raw_total(self, table: Table, bound: int) -> int:
        """Count rows as they lie there, before any merge collapses them."""
        rows = self._rows(f"SELECT count() FROM {_source(table, None, final=False)}", start=0, end=bound)
        return int(rows[0][0])

    def raw_rows(self, table: Table, start: int, end: int) -> list[tuple[int, str, int]]:
        """List (position, address in hex, how often it lies there) of the rows of a range."""
        statement = (
            f"SELECT position, hex(any(address)), count() FROM {_source(table, None, final=False)}"
            f" GROUP BY {_IDENTITY[table.name]} ORDER BY position"
        )
        return [(int(p), str(a), int(n)) for p, a, n in self._rows(statement, start=start, end=end)]

    def beyond(self, table: Table, position: int, limit: int) -> list[tuple[int, str]]:
        """List (position, address in hex) of rows from a position on."""
        statement = (
            f"SELECT position, hex(address) FROM {_source(table, None)} ORDER BY position LIMIT {limit}"
        )
        return [(int(p), str(a)) for p, a in self._rows(statement, start=position, end=2**63)]

    # ------------------------------------------------------------------ rollups

    def rollup(self, table: Table, account: str | None = None) -> Iterator[RollupRow]:
        """Stream a table's rollup in the order of its keys."""
        keys = ", ".join(f"{_expression(table, key)} AS k{n}" for n, key in enumerate(table.group))
        names = ", ".join(f"k{n}" for n in range(len(table.group)))
        said = _ROLLUPS[table.name]
        values = ", ".join(f"toInt256({value})" for value in said.values())
        own = " WHERE account = {account:String}" if account is not None else ""
        statement = f"SELECT {keys}, {values}, upto FROM soma.{table.rollup} FINAL{own} ORDER BY {names}"
        width = len(table.group)
        for row in self._stream(statement, {"account": account or ""}):
            yield RollupRow(row[:width], dict(zip(said, map(int, row[width:-1]), strict=True)), int(row[-1]))

    def groups_upto(self, table: Table, wanted: Sequence[RollupRow]) -> dict[tuple[str, ...], Totals]:
        """Give the fingerprints of some groups, each up to the position its row of the rollup counts to."""
        found: dict[tuple[str, ...], Totals] = {}
        for first in range(0, len(wanted), KEYS_A_STATEMENT):
            found |= self._groups_upto(table, wanted[first : first + KEYS_A_STATEMENT])
        return found

    def _groups_upto(self, table: Table, wanted: Sequence[RollupRow]) -> dict[tuple[str, ...], Totals]:
        width = len(table.group)
        parameters: dict[str, Any] = {f"k{n}": [row.key[n] for row in wanted] for n in range(width)} | {
            "upto": [row.upto for row in wanted]
        }
        listed = ", ".join(f"{{k{n}:Array(String)}}" for n in range(width))
        keys = [_expression(table, key) for key in table.group]
        statement = (
            f"SELECT {', '.join(f'{key} AS g{n}' for n, key in enumerate(keys))}, {_folds(table)}"
            f" FROM soma.{table.name} FINAL WHERE has(arrayZip({listed}), ({', '.join(keys)}))"
            f" AND position < {{upto:Array(UInt64)}}[indexOf(arrayZip({listed}), ({', '.join(keys)}))]"
            f" GROUP BY {', '.join(f'g{n}' for n in range(width))}"
        )
        return {row[:width]: _totals(row[width:]) for row in self._rows(statement, **parameters)}


def _named(statement: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the parameters a statement names: with none of them the client would put values in by `%`."""
    return {name: value for name, value in parameters.items() if f"{{{name}:" in statement}


def _row(table: Table, values: Sequence[Any]) -> dict[str, Any]:
    row: dict[str, Any] = dict(zip(table.columns, values, strict=True))
    row |= {name: bytes.fromhex(row[name]) for name in ("address", "record") if name in row}
    return row | {"position": int(row["position"]), "leg": int(row["leg"])}
