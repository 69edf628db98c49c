"""Memory bundles as files: texts and their embeddings in one Parquet file, written, read and checked.

A bundle comes from outside, so a reader believes nothing it says of itself before it has looked; what a bundle must
be stands in domain/persona/bundles.py. The library that unpacks it is large and written in C++. So whoever holds a
bundle of somebody else's has it looked at first by a process of its own (`inspect_bundle`), which can open no file and
no connection and takes a bounded amount of memory: what a bundle can do at worst is to end that process. That is no
mere caution: of 7,851 ways to flip one bit of a small bundle, 27 ended the process.
"""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from domain.errors import LedgerError, MemoryBundleInvalidError
from domain.persona.bundles import (
    BUNDLE_BYTES_MAX,
    COLUMNS,
    ROWS_PER_GROUP_MAX,
    TEXT_CHARS_MAX,
    BundleFacts,
    Expected,
    RowGroup,
    Rows,
    Wanted,
    check_columns,
    check_groups,
    refused,
)
from ops.engine.confinement import confine

Source = bytes | memoryview | Path | IO[bytes]

BATCH_ROWS = 512
REFUSED_STATUS = 3
PIECE_BYTES = 256 * 1024
FLOAT_BYTES = 4
INSPECTION_S_MAX = 120
INSPECTION_BYTES_MAX = BUNDLE_BYTES_MAX + 500_000_000
_FOOTER_TEXT_BYTES_MAX = 1_000_000
_FOOTER_ITEMS_MAX = 100_000
_UTF8_BYTES_PER_CHAR_MAX = 4

_KINDS = {"text": pa.string(), "whole": pa.int64(), "texts": pa.list_(pa.string())}


class Batch(msgspec.Struct, frozen=True):
    """Some rows of a bundle.

    Shapes: embeddings (n, d) float32; ids and texts n long.
    """

    ids: list[str]
    texts: list[str]
    numbers: Any
    dimension: int
    more: dict[str, list[Any]]

    @property
    def embeddings(self) -> Any:
        # Only who wants an array pays for numpy and what it loads: 40 MB, more than the rest of a reading.
        return self.numbers.to_numpy(zero_copy_only=False).reshape(-1, self.dimension)


# --------------------------------------------------------------------------- writing


def bundle_table(
    ids: Sequence[str],
    texts: Sequence[str],
    embeddings: Any,
    more: Mapping[str, Sequence[Any]] | None = None,
) -> Any:
    """Make the table of a memory bundle; `more` holds the columns that may be left out.

    Shapes: embeddings (n, d), kept as float32; ids, texts and each further column n long.
    """
    flat = pa.array(embeddings.astype("<f4", copy=False).reshape(-1), pa.float32())
    columns = {
        "id": pa.array(ids, pa.string()),
        "text": pa.array(texts, pa.string()),
        "embedding": pa.FixedSizeListArray.from_arrays(flat, int(embeddings.shape[1])),
    }
    for name, values in (more or {}).items():
        columns[name] = pa.array(values, _KINDS[COLUMNS[name].kind])
    return pa.table(columns)


def write_bundle(table: Any) -> bytes:
    """Write a memory bundle as Parquet; one version of the library writes one table as the same bytes."""
    out = io.BytesIO()
    pq.write_table(
        table,
        out,
        row_group_size=ROWS_PER_GROUP_MAX // 4,
        compression="zstd",
        use_dictionary=False,
        write_statistics=False,
        version="2.6",
    )
    return out.getvalue()


# --------------------------------------------------------------------------- reading


def check_bundle(source: Source, memory: Expected) -> BundleFacts:
    """Read a bundle through, and refuse it if it is not what the manifest says.

    Cost:   10,000 memories of 384 numbers in .2 s; the memory of one row group.
    Errors: memory_bundle_invalid.
    """
    rows = Rows()
    columns: list[str] = ["id", "text", "embedding"]
    for batch in read_bundle(source, memory):
        rows.take({"id": batch.ids, "text": batch.texts, **batch.more})
        columns[3:] = batch.more
    return BundleFacts(rows.count, memory.dimension, rows.text_chars, rows.text_tokens, columns)


def bundle_texts(source: Source, memory: Expected) -> Iterator[str]:
    """Read the texts of a bundle in their order.

    Errors: memory_bundle_invalid.
    """
    for batch in read_bundle(source, memory):
        yield from batch.texts


def read_bundle(source: Source, memory: Expected) -> Iterator[Batch]:
    """Read the rows of a bundle in their order; whether ids are distinct is for `check_bundle` to say.

    Errors: memory_bundle_invalid.
    """
    try:
        with _opened(source) as file:
            kinds = _kinds(file.schema_arrow)
            check_columns(kinds)
            check_groups(_groups(file.metadata), memory)
            count = 0
            for batch in file.iter_batches(BATCH_ROWS, columns=list(kinds), use_threads=False):
                count += batch.num_rows
                yield _read(batch, memory)
            if count != memory.item_count:
                refused("it has another number of rows than it says", expected=memory.item_count, found=count)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise MemoryBundleInvalidError(
            "the memory bundle cannot be used: it cannot be read as Parquet",
            why="it cannot be read as Parquet",
            internal=str(error)[:500],
        ) from error


@contextmanager
def _opened(source: Source) -> Iterator[Any]:
    if isinstance(source, bytes | memoryview) and len(source) > BUNDLE_BYTES_MAX:
        refused(f"a bundle holds {BUNDLE_BYTES_MAX:,} bytes at most")
    buffered = io.BufferedReader(source) if isinstance(source, io.RawIOBase) else None
    try:
        with _parquet(
            pa.BufferReader(source) if isinstance(source, bytes | memoryview) else buffered or source
        ) as file:
            yield file
    finally:
        # The file is its owner's to close.
        if buffered is not None:
            buffered.detach()


def _parquet(source: Any) -> Any:
    footer = pq.read_metadata(source)
    stored = [footer.schema.column(index).path for index in range(footer.num_columns)]
    # Texts are read by their dictionary, where there is one, so that it is seen before it is spread out. Types that
    # bring their own code are not looked up: they stay what they are stored as.
    return pq.ParquetFile(
        source,
        metadata=footer,
        read_dictionary=[
            name for name, column in COLUMNS.items() if column.kind == "text" and name in stored
        ],
        arrow_extensions_enabled=False,
    )


def _kinds(schema: Any) -> dict[str, str]:
    if len(set(schema.names)) != len(schema.names):
        refused("a column stands in it twice")
    return {field.name: _kind(field.type) for field in schema}


def _kind(found: Any) -> str:
    if pa.types.is_dictionary(found):
        found = found.value_type
    if pa.types.is_string(found) or pa.types.is_large_string(found):
        return "text"
    if pa.types.is_int64(found) or pa.types.is_int32(found):
        return "whole"
    if pa.types.is_fixed_size_list(found) or pa.types.is_list(found) or pa.types.is_large_list(found):
        inner = found.value_type
        return "vector" if pa.types.is_float32(inner) else "texts" if _kind(inner) == "text" else str(found)
    return str(found)


def _groups(metadata: Any) -> Iterator[RowGroup]:
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        columns = [group.column(index) for index in range(group.num_columns)]
        yield RowGroup(
            group.num_rows,
            sum(column.total_uncompressed_size for column in columns),
            frozenset(column.compression for column in columns),
            frozenset(encoding for column in columns for encoding in column.encodings),
            any(column.file_path for column in columns),
        )


def _read(batch: Any, memory: Expected) -> Batch:
    columns = {name: _plain(name, batch.column(name)) for name in batch.schema.names if name != "embedding"}
    return Batch(
        ids=columns.pop("id"),
        texts=columns.pop("text"),
        numbers=_numbers(batch.column("embedding"), memory),
        dimension=memory.dimension,
        more=columns,
    )


def _plain(name: str, values: Any) -> list[Any]:
    values.validate(full=True)
    if pa.types.is_dictionary(values.type):
        longest = pc.max(pc.binary_length(values.dictionary)).as_py() or 0
        if longest > TEXT_CHARS_MAX * _UTF8_BYTES_PER_CHAR_MAX:
            refused(f"a text holds {TEXT_CHARS_MAX:,} characters at most", column=name)
    return list(values.to_pylist())


def _numbers(values: Any, memory: Expected) -> Any:
    values.validate(full=True)
    lengths = {"min": memory.dimension, "max": memory.dimension}
    if len(values):
        lengths = pc.min_max(pc.list_value_length(values)).as_py()
    flat = values.flatten()
    if values.null_count or flat.null_count:
        refused("an embedding is missing, or a number of it is", column="embedding")
    if lengths != {"min": memory.dimension, "max": memory.dimension}:
        refused(
            "an embedding is not as wide as the manifest says", column="embedding", expected=memory.dimension
        )
    if not pc.all(pc.is_finite(flat)).as_py():
        refused("an embedding holds a number that is none, or infinite", column="embedding")
    if memory.metric == "cosine" and _has_zeros(flat, memory.dimension):
        refused("an embedding is all zeros, and has no cosine", column="embedding")
    return flat


def _has_zeros(flat: Any, dimension: int) -> bool:
    start, width = flat.offset * FLOAT_BYTES, dimension * FLOAT_BYTES
    data = memoryview(flat.buffers()[1]).cast("B")[start : start + len(flat) * FLOAT_BYTES]
    for at in range(0, len(data), width):
        row = bytes(data[at : at + width])
        # A zero with its sign is a byte of 128; few rows get as far as being looked at number by number.
        if not row.strip(b"\0\x80") and not any(memoryview(row).cast("f")):
            return True
    return False


# --------------------------------------------------------------------------- a process of its own


def inspect_bundle(pieces: Iterable[bytes], memory: Expected) -> BundleFacts:
    """Have a bundle read through by a confined process, and give what it found; for a thread, not for the event loop.

    The bytes go there through a pipe: nothing of them is written to a disk. Once this has answered, the same bytes can
    be read here too, with the same library, without surprises.
    Cost:   about a second for the process, and what `check_bundle` costs.
    Errors: memory_bundle_invalid.
    """
    with _started(memory) as child:
        watch = threading.Timer(INSPECTION_S_MAX, child.kill)
        watch.start()
        try:
            _feed(child, pieces)
            said, last_words = child.communicate()
        finally:
            watch.cancel()
            child.kill()
    if child.returncode == 0:
        return msgspec.json.decode(said, type=BundleFacts)
    if child.returncode == REFUSED_STATUS:
        raise LedgerError.from_problem(msgspec.json.decode(said))
    raise MemoryBundleInvalidError(
        "the memory bundle cannot be used: its reader did not come to an end",
        why="its reader did not come to an end",
        internal=f"status {child.returncode}: {last_words[-500:]!r}",
    )


def _started(memory: Expected) -> subprocess.Popen[bytes]:
    wanted = Wanted(memory.item_count, memory.dimension, memory.metric)
    pipe, root = subprocess.PIPE, Path(__file__).resolve().parents[1]
    return subprocess.Popen(
        [sys.executable, "-m", "ops.bundles", msgspec.json.encode(wanted).decode()],
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        # Nothing of our environment, which holds secrets.
        env={"PYTHONPATH": str(root), "LC_ALL": "C.UTF-8", "TZ": "UTC"},
        cwd=root,
    )


def _feed(child: subprocess.Popen[bytes], pieces: Iterable[bytes]) -> None:
    assert child.stdin is not None
    # A child that is gone has its reasons, and they are asked for next.
    with suppress(BrokenPipeError):
        for piece in pieces:
            child.stdin.write(piece)
        child.stdin.flush()


def main(memory: str) -> int:
    """Check the bundle on the standard input as a confined process, and print what was found or the refusal."""
    pa.set_memory_pool(pa.system_memory_pool())
    confine([], [], INSPECTION_BYTES_MAX)
    data = io.BytesIO()
    while data.tell() <= BUNDLE_BYTES_MAX and (piece := sys.stdin.buffer.read(PIECE_BYTES)):
        data.write(piece)
    try:
        facts = check_bundle(data.getbuffer(), msgspec.json.decode(memory, type=Wanted))
    except LedgerError as refusal:
        sys.stdout.buffer.write(msgspec.json.encode(refusal.problem()))
        return REFUSED_STATUS
    sys.stdout.buffer.write(msgspec.json.encode(facts))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
