"""Requests that come packed are unpacked up to a bound, however much they would grow."""

from __future__ import annotations

import gzip
import io
import zlib

import pyarrow as pa

from ops.sql_errors import SqlRefusal


def unpacked(body: bytes, encoding: str, bytes_max: int) -> bytes:
    """Undo the Content-Encoding of a body, which may not grow over the bound."""
    encoding = encoding.strip().lower()
    if encoding in ("", "identity") or not body:
        return body
    try:
        if encoding in ("gzip", "x-gzip"):
            content = gzip.GzipFile(fileobj=io.BytesIO(body)).read(bytes_max + 1)
        elif encoding == "deflate":
            content = zlib.decompressobj().decompress(body, bytes_max + 1)
        elif encoding in ("lz4", "zstd"):
            content = _expanded(body, encoding, bytes_max)
        else:
            raise SqlRefusal(36, f"Unknown Content-Encoding {encoding[:32]}")
    except (zlib.error, OSError, EOFError, ValueError) as error:
        raise SqlRefusal(36, f"The body is not {encoding}") from error
    if len(content) > bytes_max:
        raise too_long(bytes_max)
    return content


def _expanded(body: bytes, codec: str, bytes_max: int) -> bytes:
    with pa.CompressedInputStream(pa.BufferReader(body), codec) as stream:
        return bytes(stream.read(bytes_max + 1))


def too_long(bytes_max: int) -> SqlRefusal:
    """Refuse what is too long."""
    words = f"The request is longer than {bytes_max} bytes"
    return SqlRefusal(131, words, name="TOO_LARGE_STRING_SIZE", status=413)
