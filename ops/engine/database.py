"""The opened chDB directory: a fresh session for each request, and a way to end what runs in one.

Settings of a session outlive the request that made them (`readonly` cannot even be taken back), so sessions are never
shared; opening one costs half a millisecond.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any
from uuid import uuid4

import chdb

from ops.engine.accounts import Account
from ops.engine.places import READER_ROLE, Places
from ops.engine.refusals import Refused
from ops.engine.statements import Insert

# An account that names no database works in its own, once that exists; chDB's `default` shows files as tables.
HOME = {Account.SERVICE: "soma", Account.READER: "bi"}

# The engine cuts what is inserted into blocks, and makes one part of each block (per partition). With these an insert
# is one block, so that it is kept whole or not at all; a body ends long before they are reached.
ONE_BLOCK = {
    "async_insert": "0",
    "max_insert_block_size": "100000000",
    "min_insert_block_size_rows": "100000000",
    "min_insert_block_size_bytes": "4000000000",
    "max_insert_threads": "1",
    "input_format_parallel_parsing": "0",
    "input_format_arrow_import_nested": "0",
}
_SERVICE_LIMITS = {"max_execution_time": "3600", "max_memory_usage": "3000000000"}

# What a reader may not exceed; it may ask for less.
READER_LIMITS = {
    "max_execution_time": 30,
    "max_memory_usage": 1_000_000_000,
    "max_result_rows": 10_000_000,
    "max_result_bytes": 1_000_000_000,
    "max_rows_to_read": 500_000_000,
    "max_threads": 2,
    "max_block_size": 65_536,
    "max_ast_elements": 50_000,
    "max_query_size": 1_000_000,
    "max_subquery_depth": 100,
    "max_bytes_in_join": 500_000_000,
    "max_rows_in_set": 10_000_000,
}
# Not limits a reader may lower, but places it must not go.
_READER_FIXED = {
    "allow_introspection_functions": "0",
    "allow_ddl": "0",
    "max_bytes_before_external_group_by": "0",
    "max_bytes_before_external_sort": "0",
    "timeout_before_checking_execution_speed": "0",
}
_READER_FREE = re.compile(
    r"(?:output_format_\w+|format_\w+|date_time_output_format|session_timezone|join_use_nulls|group_by_use_nulls"
    r"|aggregate_functions_null_for_empty|extremes|final|limit|offset|use_query_cache|http_\w+|result_overflow_mode"
    r"|read_overflow_mode|timeout_overflow_mode|prefer_column_name_to_alias|union_default_mode|any_join_\w+"
    r"|cancel_http_readonly_queries_on_client_close|enable_http_compression|log_queries|optimize_\w+)\Z"
)

_NAME = re.compile(r"[a-z][a-z0-9_]{0,127}\Z")


class Session:
    """One handle on the engine, with the rights and settings of one request."""

    def __init__(self, handle: Any, mark: str) -> None:
        self.mark = mark
        self._handle = handle
        self._stream: Any = None
        self._closing = threading.Lock()

    def run(self, sql: str, form: str, params: Mapping[str, str]) -> bytes:
        """Carry out a statement and give all of its answer."""
        return self._handle.query(sql, form, params=dict(params)).bytes() or b""

    def stream(self, sql: str, form: str, params: Mapping[str, str]) -> Iterator[bytes]:
        """Begin a reading and give its answer in pieces."""
        self._stream = self._handle.send_query(sql, form, params=dict(params))
        for piece in self._stream:
            content = piece.bytes()
            if content:
                yield content

    def insert(self, insert: Insert) -> int:
        """Insert rows that stand in a format, and count them."""
        inserter = self._handle.send_insert(insert.head, insert.format)
        try:
            inserter.append(insert.data)
            return int(inserter.finish().rows_written)
        finally:
            inserter.close()

    def close(self) -> None:
        """End what runs and let go of the handle."""
        with self._closing, suppress(Exception):
            if self._stream is not None:
                self._stream.close()
                self._stream = None
            self._handle.close()


class Database:
    """The engine itself; one in a process, and one process on a directory."""

    def __init__(self, places: Places) -> None:
        self._url = f"{places.data}?config-file={places.configuration / 'config.xml'}"
        # The engine lives as long as its first handle; this one also ends the queries of others.
        self._control = chdb.connect(self._url)
        self._controlling = threading.Lock()
        self.version, self.timezone = self._ask("SELECT version(), timezone() FORMAT TSV").split("\t")
        self.settings = frozenset(self._ask("SELECT name FROM system.settings FORMAT TSV").split())

    def open(self, account: Account, settings: Mapping[str, str], database: str, *, safe: bool) -> Session:
        """Open a session for one request; a safe one can change nothing, whoever asks."""
        if account is Account.READER:
            chosen = self._reader_settings(settings) | {"readonly": "1"}
        else:
            chosen = {**ONE_BLOCK, **_SERVICE_LIMITS, **self._known(settings)} | (
                {"readonly": "2"} if safe else {}
            )
        session = Session(chdb.connect(self._url), f"soma:{uuid4()}")
        try:
            if account is Account.READER:
                session.run(f"SET ROLE {READER_ROLE}", "Null", {})
            _enter(session, database, account)
            # The order of one SET is kept: readonly comes last.
            chosen = {"log_comment": session.mark} | {k: v for k, v in chosen.items() if k != "log_comment"}
            session.run(
                "SET " + ", ".join(f"{name} = {_quoted(v)}" for name, v in chosen.items()), "Null", {}
            )
        except BaseException:
            session.close()
            raise
        return session

    def tree(self, sql: str) -> str:
        """Parse one statement and give its tree as JSON; several statements are refused."""
        with self._controlling:
            query = "SELECT parseQueryToJSON({sql:String}) FORMAT RawBLOB"
            return self._control.query(query, "RawBLOB", params={"sql": _parameter(sql)}).bytes().decode()

    def single(self, sql: str) -> None:
        """Refuse several statements in one text."""
        with self._controlling:
            self._control.query("SELECT formatQuery({sql:String})", "Null", params={"sql": _parameter(sql)})

    def kill(self, mark: str) -> None:
        """Ask the engine to end what runs in a session."""
        with self._controlling:
            self._control.query(f"KILL QUERY WHERE Settings['log_comment'] = {_quoted(mark)} ASYNC", "Null")

    def close(self) -> None:
        with self._controlling:
            self._control.close()

    def _ask(self, sql: str) -> str:
        return self._control.query(sql, "TSV").bytes().decode().rstrip("\n")

    def _known(self, settings: Mapping[str, str]) -> dict[str, str]:
        for name in settings:
            if not _NAME.match(name) or name not in self.settings:
                raise Refused(115, f"Unknown setting '{name[:128]}'", "UNKNOWN_SETTING")
        return dict(settings)

    def _reader_settings(self, settings: Mapping[str, str]) -> dict[str, str]:
        chosen = {name: str(limit) for name, limit in READER_LIMITS.items()} | _READER_FIXED
        for name, value in self._known(settings).items():
            if name in READER_LIMITS:
                chosen[name] = _lower(name, value)
            elif _READER_FREE.match(name):
                chosen[name] = value
            elif name != "readonly":
                raise Refused(164, f"Cannot modify '{name}' setting in readonly mode", "READONLY")
        return chosen


def _enter(session: Session, database: str, account: Account) -> None:
    if database and database not in {"default", "__default__"}:
        session.run(f"USE `{database.replace('`', '``')}`", "Null", {})
        return
    with suppress(Exception):
        session.run(f"USE {HOME[account]}", "Null", {})


def _lower(name: str, value: str) -> str:
    limit = READER_LIMITS[name]
    try:
        asked = float(value)
    except ValueError:
        raise Refused(72, f"{name} is not a number", "CANNOT_PARSE_NUMBER") from None
    # Zero means no limit to ClickHouse; so does what is not a number between.
    return value if 0 < asked <= limit else str(limit)


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _parameter(text: str) -> str:
    # Values of parameters are read as one field of a tab-separated line.
    return (
        text.replace("\\", "\\\\")
        .replace("\t", "\\t")
        .replace("\n", "\\n")
        .replace("\r", "\\r")
        .replace("\0", "\\0")
    )
