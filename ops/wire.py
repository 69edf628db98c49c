"""Statements sent to PostgreSQL without waiting for them, so that the next batch can be computed meanwhile.

psycopg's cursors send and wait in one step. Here a prepared statement is sent through libpq, and its outcome is
fetched later; in between, the connection belongs to this statement and nothing else may use it.
"""

from __future__ import annotations

import select
from collections.abc import Sequence
from struct import Struct
from typing import Any

import psycopg
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus, Format

from ops.arrays import PackedArray

Parameter = int | bytes | PackedArray

_int8 = Struct("!q").pack
_GOOD = (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK)


class Wire:
    """One connection's prepared statements; every integer parameter is a bigint, every bytes a bytea."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self._pgconn = connection.pgconn
        self._pgconn.nonblocking = 1
        self._names: dict[bytes, bytes] = {}
        self._poll = select.poll()
        self._poll.register(self._pgconn.socket, select.POLLIN)

    def send(self, statement: bytes, params: Sequence[Parameter]) -> None:
        """Send a statement written with %b; `receive` must follow."""
        name = self._names.get(statement) or self._prepare(statement)
        values = [_value(one) for one in params]
        self._pgconn.send_query_prepared(name, values, [Format.BINARY] * len(values), Format.BINARY)
        self._flush()

    def receive(self) -> int:
        """Wait for the outcome; give the number of rows it returned.

        Raises psycopg's error of the statement, or OperationalError where the connection is lost.
        """
        rows, failure = 0, None
        while (result := self._next_result()) is not None:
            if result.status not in _GOOD:
                failure = failure or error_from_result(result, encoding="utf-8")
            rows = result.ntuples
        if failure is not None:
            raise failure
        return rows

    def wait(self, seconds: float) -> None:
        """Wait until the server has something to say, at most so long."""
        self._poll.poll(seconds * 1_000)

    def run(self, statement: bytes, params: Sequence[Parameter]) -> int:
        """Send a statement and wait for its outcome."""
        self.send(statement, params)
        return self.receive()

    def _prepare(self, statement: bytes) -> bytes:
        name = b"soma_%d" % len(self._names)
        self._pgconn.send_prepare(name, _numbered(statement))
        self._flush()
        self.receive()
        self._names[statement] = name
        return name

    def _flush(self) -> None:
        """Push everything out; while the server is busy sending, take in what it sends, or both would wait for ever."""
        while self._pgconn.flush():
            both = select.poll()
            both.register(self._pgconn.socket, select.POLLIN | select.POLLOUT)
            if both.poll()[0][1] & select.POLLIN:
                self._pgconn.consume_input()

    def _next_result(self) -> Any:
        while self._pgconn.is_busy():
            self._poll.poll()
            self._pgconn.consume_input()
        return self._pgconn.get_result()


def _value(parameter: Parameter) -> bytes:
    if isinstance(parameter, PackedArray):
        return parameter.data
    return parameter if isinstance(parameter, bytes) else _int8(parameter)


def _numbered(statement: bytes) -> bytes:
    """Number the parameters as the server wants them: $1, $2, ..."""
    parts = statement.split(b"%b")
    return b"".join(part + b"$%d" % (n + 1) for n, part in enumerate(parts[:-1])) + parts[-1]
