"""One request in ClickHouse's HTTP dialect, read: who, what, with which settings, and how the answer is wanted."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.parser import BytesParser
from email.policy import HTTP
from urllib.parse import parse_qsl
from uuid import uuid4

import pyarrow as pa

from ops.engine.refusals import Refused

# Words of the protocol, not settings of the engine. An embedded engine has no sessions, quotas or older peers.
PROTOCOL_WORDS = frozenset(
    "query database default_format user password query_id session_id session_timeout session_check quota_key role "
    "client_protocol_version compress decompress buffer_size wait_end_of_query stacktrace close_session "
    "enable_http_compression http_zlib_compression_level send_progress_in_http_headers log_comment "
    "http_headers_progress_interval_ms cancel_http_readonly_queries_on_client_close add_http_cors_header".split()
)
FIELDS_MAX = 1_000
PIECE_BYTES = 1 << 20
_QUERY_ID = re.compile(r"[\w\-:.]{1,128}\Z", re.ASCII)


@dataclass(frozen=True)
class Asked:
    """What a request asks for."""

    text: bytes
    query_id: str
    database: str
    format: str
    params: Mapping[str, str]
    settings: Mapping[str, str]
    compression: str | None
    whole: bool


def read_fields(query_string: bytes) -> dict[str, str]:
    """Read the fields of a URL."""
    return _pairs(query_string.decode("latin-1"))


def query_id(fields: Mapping[str, str]) -> str:
    """Give the name the client chose for its query, or one of ours."""
    chosen = fields.get("query_id", "")
    return chosen if _QUERY_ID.match(chosen) else str(uuid4())


def read_request(fields: dict[str, str], headers: Mapping[str, str], body: bytes, bytes_max: int) -> Asked:
    """Put the statement together from the URL and the body, as ClickHouse does: first the one, then the other."""
    body = decoded(body, headers.get("content-encoding", ""), bytes_max)
    fields, body = _with_form(fields, headers.get("content-type", ""), body)
    stated = fields.get("query", "").encode()
    text = b"\n".join(part for part in (stated, body) if part)
    wanted = headers.get("x-clickhouse-format") or fields.get("default_format") or "TabSeparated"
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9]{0,63}", wanted):
        raise Refused(73, f"Unknown format {wanted[:64]!r}", "UNKNOWN_FORMAT")
    if fields.get("decompress") in {"1", "true"} or fields.get("compress") in {"1", "true"}:
        raise Refused(
            48, "compress and decompress are not supported here; use Content-Encoding", "NOT_IMPLEMENTED"
        )
    return Asked(
        text=text,
        query_id=query_id(fields),
        database=fields.get("database") or headers.get("x-clickhouse-database", ""),
        format=wanted,
        params={name[6:]: value for name, value in fields.items() if name.startswith("param_")},
        settings={
            name: value
            for name, value in fields.items()
            if name not in PROTOCOL_WORDS and not name.startswith("param_")
        },
        compression=_compression(headers, fields),
        whole=fields.get("wait_end_of_query") in {"1", "true"},
    )


def _pairs(text: str) -> dict[str, str]:
    try:
        return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=FIELDS_MAX, errors="strict"))
    except ValueError as error:
        raise Refused(36, f"the fields of the request cannot be read: {error}", "BAD_ARGUMENTS") from None


# --------------------------------------------------------------------------- forms


def _with_form(fields: dict[str, str], kind: str, body: bytes) -> tuple[dict[str, str], bytes]:
    if kind.startswith("multipart/form-data"):
        return {**fields, **_parts(kind, body)}, b""
    # curl calls any body a form; only one that begins like ours is.
    if kind.startswith("application/x-www-form-urlencoded") and body.startswith((b"query=", b"param_")):
        return {**fields, **_pairs(body.decode("latin-1"))}, b""
    return fields, body


def _parts(kind: str, body: bytes) -> dict[str, str]:
    message = BytesParser(policy=HTTP).parsebytes(
        b"Content-Type: " + kind.encode("latin-1") + b"\r\n\r\n" + body
    )
    found: dict[str, str] = {}
    for part in message.iter_parts() if message.is_multipart() else ():
        name = part.get_param("name", header="content-disposition")
        if part.get_filename():
            raise Refused(48, "external tables are not supported here", "NOT_IMPLEMENTED")
        content = part.get_payload(decode=True)
        if isinstance(name, str) and isinstance(content, bytes):
            found[name] = content.decode("utf-8", "replace")
    return found


# --------------------------------------------------------------------------- compression

_ARROW_NAMES = {"gzip": "gzip", "x-gzip": "gzip", "lz4": "lz4", "zstd": "zstd"}


def decoded(body: bytes, encoding: str, bytes_max: int) -> bytes:
    """Undo the Content-Encoding of a body, up to a size."""
    encoding = encoding.strip().lower()
    if encoding in {"", "identity"} or not body:
        return body
    try:
        if encoding == "deflate":
            inflater = zlib.decompressobj()
            content = inflater.decompress(body, bytes_max + 1)
            if not inflater.eof and len(content) <= bytes_max:
                raise ValueError("it ends too early")
        elif encoding in _ARROW_NAMES:
            content = _expanded(body, _ARROW_NAMES[encoding], bytes_max)
        else:
            raise Refused(36, f"unknown Content-Encoding {encoding[:32]!r}", "BAD_ARGUMENTS")
    except (zlib.error, OSError, ValueError) as error:
        raise Refused(354, f"the body is not {encoding}: {error}", "ZLIB_INFLATE_FAILED") from None
    if len(content) > bytes_max:
        raise Refused(
            131, f"the body is larger than {bytes_max} bytes when unpacked", "TOO_LARGE_STRING_SIZE"
        )
    return content


def _expanded(body: bytes, codec: str, bytes_max: int) -> bytes:
    with pa.CompressedInputStream(pa.BufferReader(body), codec) as stream:
        return bytes(stream.read(bytes_max + 1))


def _compression(headers: Mapping[str, str], fields: Mapping[str, str]) -> str | None:
    if fields.get("enable_http_compression") not in {"1", "true"}:
        return None
    offered = {word.split(";")[0].strip().lower() for word in headers.get("accept-encoding", "").split(",")}
    return next((name for name in ("lz4", "zstd", "gzip", "deflate") if name in offered), None)


class Compressor:
    """Compresses an answer piece by piece."""

    def __init__(self, name: str) -> None:
        self._deflater = zlib.compressobj(1) if name == "deflate" else None
        self._pieces: list[bytes] = []
        self._stream = None if self._deflater else pa.CompressedOutputStream(_Sink(self._pieces), name)

    def add(self, content: bytes) -> bytes:
        """Take more of the answer, and give what is ready."""
        if self._deflater:
            return self._deflater.compress(content)
        assert self._stream is not None
        self._stream.write(content)
        return self._taken()

    def end(self) -> bytes:
        """Give what is left."""
        if self._deflater:
            return self._deflater.flush()
        assert self._stream is not None
        self._stream.close()
        return self._taken()

    def _taken(self) -> bytes:
        ready = b"".join(self._pieces)
        self._pieces.clear()
        return ready


class _Sink:
    """A file, to the compressor, that keeps what is written to it."""

    closed = False

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    def write(self, content: bytes) -> int:
        self._pieces.append(bytes(content))
        return len(content)

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def flush(self) -> None: ...

    def close(self) -> None: ...


def compressed(pieces: Iterator[bytes], name: str | None) -> Iterator[bytes]:
    """Compress an answer as it comes."""
    if name is None:
        yield from pieces
        return
    compressor = Compressor(name)
    for piece in pieces:
        ready = compressor.add(piece)
        if ready:
            yield ready
    yield compressor.end()
