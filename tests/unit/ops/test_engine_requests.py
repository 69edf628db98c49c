"""What the engine makes of a request before the database sees it."""

from __future__ import annotations

import gzip
import zlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.engine.accounts import Account, Accounts
from ops.engine.digests import digest
from ops.engine.refusals import Refused
from ops.engine.requests import Asked, Compressor, decoded, query_id, read_fields, read_request
from ops.engine.statements import Command, Insert, Reading, is_blank, read_statement


class TestStatements:
    @pytest.mark.parametrize(
        ("text", "form", "streamable"),
        [
            (b"SELECT 1", None, True),
            (b" -- a remark\n/* another */ select 1 format JSONEachRow;", "JSONEachRow", True),
            (b"WITH 1 AS x SELECT x FORMAT CSV SETTINGS max_threads = 1", "CSV", True),
            (b"(SELECT 1)", None, True),
            (b"SELECT format FROM t", None, True),
            (b"SELECT 'x FORMAT CSV'", None, True),
            (b"SHOW TABLES FORMAT TSV", "TSV", False),
            (b"EXPLAIN SELECT 1", None, False),
        ],
    )
    def test_a_reading_is_told_with_its_format(self, text: bytes, form: str | None, streamable: bool) -> None:
        assert read_statement(text) == Reading(text.decode(), form, streamable)

    @pytest.mark.parametrize(
        "text",
        [
            b"CREATE TABLE t (a Int8) ENGINE = Memory",
            b"INSERT INTO t VALUES (1, 'FORMAT CSV')",
            b"INSERT INTO t SELECT 1 FORMAT CSV",
            b"INSERT INTO t WITH 1 AS x SELECT x",
            b"INSERT INTO t FROM INFILE 'x' FORMAT CSV",
            b"INSERT INTO t",
            b"INSERT INTO t FORMAT",
        ],
    )
    def test_what_brings_no_rows_of_its_own_is_a_command(self, text: bytes) -> None:
        assert isinstance(read_statement(text), Command)

    @pytest.mark.parametrize(
        ("head", "form", "between"),
        [
            (b"INSERT INTO t ", "Native", b"\n"),
            (b'insert into `a FORMAT b`."c" (x, `format`) ', "CSV", b"\r\n"),
            (b"INSERT INTO t (a) SETTINGS async_insert = 0 ", "JSONEachRow", b" "),
            (b"-- FORMAT x\nINSERT INTO FUNCTION null('a Int8 FORMAT') ", "TSV", b"  \n"),
        ],
    )
    def test_an_insert_is_parted_from_its_rows(self, head: bytes, form: str, between: bytes) -> None:
        rows = b"\x00\x01 FORMAT \n\xff'"
        found = read_statement(head + b"FORMAT " + form.encode() + between + rows)
        assert isinstance(found, Insert)
        assert (found.head.encode(), found.format, bytes(found.data)) == (head, form, rows)

    @given(rows=st.binary(max_size=200))
    def test_rows_are_never_changed(self, rows: bytes) -> None:
        found = read_statement(b"INSERT INTO t FORMAT RowBinary\n" + rows)
        assert isinstance(found, Insert)
        assert bytes(found.data) == rows

    @given(text=st.binary(max_size=200))
    def test_any_bytes_are_a_statement_or_refused(self, text: bytes) -> None:
        with suppress(Refused):
            assert isinstance(read_statement(text), Reading | Insert | Command)

    def test_blanks_and_remarks_are_nothing(self) -> None:
        assert is_blank(b" \n-- a\n/* b */ # c")
        assert not is_blank(b"-- a\nSELECT 1")


def asked(query: str = "", body: bytes = b"", **headers: str) -> Asked:
    return read_request(
        read_fields(query.encode()), {k.replace("_", "-"): v for k, v in headers.items()}, body, 10_000
    )


class TestRequests:
    def test_the_statement_of_the_url_comes_before_the_body(self) -> None:
        assert (
            asked("query=INSERT%20INTO%20t%20FORMAT%20CSV", b"1,2").text == b"INSERT INTO t FORMAT CSV\n1,2"
        )

    def test_settings_parameters_and_words_of_the_protocol_are_told_apart(self) -> None:
        found = asked(
            "query=q&param_a=%C3%BC&max_threads=2&database=d&query_id=x&client_protocol_version=9&user=u"
        )
        assert (found.params, found.settings) == ({"a": "ü"}, {"max_threads": "2"})
        assert (found.database, found.query_id, found.format) == ("d", "x", "TabSeparated")

    def test_a_format_may_stand_in_a_header(self) -> None:
        assert asked(x_clickhouse_format="Native").format == "Native"
        assert asked("default_format=CSV").format == "CSV"

    def test_forms_are_read(self) -> None:
        parts = [("query", "SELECT {a:Int8}"), ("param_a", "5")]
        head = 'Content-Disposition: form-data; name="'
        body = (
            "".join(f'--x\r\n{head}{name}"\r\n\r\n{value}\r\n' for name, value in parts).encode()
            + b"--x--\r\n"
        )
        found = asked("", body, content_type="multipart/form-data; boundary=x")
        assert (found.text, found.params) == (b"SELECT {a:Int8}", {"a": "5"})

    def test_external_tables_are_refused(self) -> None:
        body = b'--x\r\nContent-Disposition: form-data; name="t"; filename="t"\r\n\r\n1\r\n--x--\r\n'
        with pytest.raises(Refused, match="external tables"):
            asked("query=q", body, content_type="multipart/form-data; boundary=x")

    def test_a_name_of_a_query_that_could_be_a_header_is_replaced(self) -> None:
        assert query_id({"query_id": "a\r\nSet-Cookie: b"}).count("-") == 4
        assert query_id({"query_id": "mine:1"}) == "mine:1"

    def test_an_answer_is_packed_only_on_request(self) -> None:
        assert asked("enable_http_compression=1", accept_encoding="br, gzip;q=0.5").compression == "gzip"
        assert asked("enable_http_compression=1", accept_encoding="br").compression is None
        assert asked("", accept_encoding="gzip").compression is None

    @given(content=st.binary(max_size=3_000), packed=st.sampled_from(["gzip", "deflate", "lz4", "zstd"]))
    def test_what_is_packed_is_unpacked(self, content: bytes, packed: str) -> None:
        compressor = Compressor(packed)
        body = compressor.add(content[:1_000]) + compressor.add(content[1_000:]) + compressor.end()
        assert decoded(body, packed, 10_000) == content

    @pytest.mark.parametrize(
        "body", [gzip.compress(b" " * 20_000), gzip.compress(b" " * 6_000) * 2], ids=["at once", "in members"]
    )
    def test_what_is_too_large_unpacked_is_refused(self, body: bytes) -> None:
        with pytest.raises(Refused) as refused:
            decoded(body, "gzip", 10_000)
        assert refused.value.status == 413

    @pytest.mark.parametrize("packed", ["gzip", "deflate", "lz4", "zstd", "br", "nosuch"])
    def test_garbage_is_refused(self, packed: str) -> None:
        with pytest.raises(Refused) as refused:
            decoded(b"garbage", packed, 10_000)
        assert refused.value.status == 400

    @given(cut=st.integers(1, 40), packed=st.sampled_from(["deflate", "gzip"]))
    def test_a_torn_body_is_refused(self, cut: int, packed: str) -> None:
        whole = (zlib if packed == "deflate" else gzip).compress(bytes(range(256)) * 4)
        with pytest.raises(Refused):
            decoded(whole[:-cut], packed, 10_000)


class TestAccounts:
    accounts = Accounts({Account.SERVICE: digest("service", "s"), Account.READER: digest("reader", "r")})

    def test_each_account_is_known_by_its_secret(self) -> None:
        assert self.accounts.who({}, {"user": "reader", "password": "r"}) is Account.READER
        assert (
            self.accounts.who({"x-clickhouse-user": "service", "x-clickhouse-key": "s"}, {})
            is Account.SERVICE
        )

    @pytest.mark.parametrize(
        ("user", "password"), [("service", "r"), ("reader", "s"), ("", ""), ("service\0s", "")]
    )
    def test_no_other_pair_is(self, user: str, password: str) -> None:
        with pytest.raises(Refused) as refused:
            self.accounts.who({}, {"user": user, "password": password})
        assert (refused.value.code, refused.value.status) == (516, 401)


class TestRefusals:
    @pytest.mark.parametrize(
        ("words", "code", "text"),
        [
            ("Code: 60. DB::Exception: No table. (UNKNOWN_TABLE)", 60, "No table. (UNKNOWN_TABLE)"),
            ("Streaming insert finish failed: Code: 27. DB::Exception: Bad row: (at row 1). (X) (version 1.2)", 27,
             "Bad row: (at row 1). (X)"),
            ("Code: 164. DB::Exception: Code: 164. DB::Exception: No. (READONLY) (version 2)", 164, "No. (READONLY)"),
        ],
    )  # fmt: skip
    def test_the_words_of_the_engine_are_kept(self, words: str, code: int, text: str) -> None:
        refused = Refused.of(RuntimeError(words))
        assert (refused.code, refused.words) == (code, text)

    def test_whatever_else_goes_wrong_gives_nothing_away(self) -> None:
        refused = Refused.of(KeyError("a secret"))
        assert (refused.code, refused.status) == (1002, 500)
        assert "secret" not in refused.text
