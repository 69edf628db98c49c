"""Memory bundles as files: texts and their embeddings in one Parquet file, written, read and checked.

A bundle comes from outside, so a reader believes nothing it says of itself before it has looked; what a bundle must
be stands in domain/persona/bundles.py. The library that unpacks it is large and written in C++. So whoever holds a
bundle of somebody else's has it looked at by a process of its own (`inspect_bundle`), which can read that one
file, open no connection, and takes a bounded amount of memory; what a bundle can do at worst is end that process.
"""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from domain.errors import LedgerError, MemoryBundleInvalidError
from domain.persona.bundles import (
    COLUMNS,
    ROWS_PER_GROUP_MAX,
    TEXT_CHARS_MAX,
    BundleFacts,
    RowGroup,
    Rows,
    check_columns,
    check_groups,
    refused,
)
from domain.persona.manifest import MemoryRef
from ops.engine.confinement import confine

BATCH_ROWS = 2_048
INSPECTION_S_MAX = 120
INSPECTION_BYTES_MAX = 1_500_000_000
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
    embeddings: Any
    more: dict[str, list[Any]]


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


def check_bundle(source: bytes | memoryview | Path, memory: MemoryRef) -> BundleFacts:
    """Read a bundle through, and refuse it if it is not what the manifest says.

    Cost:   10,000 memories of 384 numbers in about 50 ms; memory of one row group.
    Errors: memory_bundle_invalid.
    """
    rows = Rows()
    columns: list[str] = ["id", "text", "embedding"]
    for batch in read_bundle(source, memory):
        rows.take({"id": batch.ids, "text": batch.texts, **batch.more})
        columns[3:] = batch.more
    return BundleFacts(rows.count, memory.dimension, rows.text_chars, columns)


def read_bundle(source: bytes | memoryview | Path, memory: MemoryRef) -> Iterator[Batch]:
    """Read the rows of a bundle in their order; whether ids are distinct is for `check_bundle` to say.

    Errors: memory_bundle_invalid.
    """
    try:
        with _opened(source) as file:
            kinds = _kinds(file.schema_arrow)
            check_columns(kinds)
            check_groups(_groups(file.metadata), memory)
            for batch in file.iter_batches(BATCH_ROWS, columns=list(kinds), use_threads=False):
                yield _read(batch, memory)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise MemoryBundleInvalidError(
            "the memory bundle cannot be used: it cannot be read as Parquet",
            why="it cannot be read as Parquet",
            internal=str(error)[:500],
        ) from error


def _opened(source: bytes | memoryview | Path) -> Any:
    # Texts are read by their dictionary, where there is one, so that it is seen before it is spread out. Types that
    # bring their own code are not looked up: they stay what they are stored as.
    return pq.ParquetFile(
        source if isinstance(source, Path) else pa.BufferReader(source),
        read_dictionary=["id", "text", "sitting", "created_at"],
        thrift_string_size_limit=_FOOTER_TEXT_BYTES_MAX,
        thrift_container_size_limit=_FOOTER_ITEMS_MAX,
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


def _read(batch: Any, memory: MemoryRef) -> Batch:
    columns = {name: _plain(name, batch.column(name)) for name in batch.schema.names if name != "embedding"}
    return Batch(
        ids=columns.pop("id"),
        texts=columns.pop("text"),
        embeddings=_vectors(batch.column("embedding"), memory),
        more=columns,
    )


def _plain(name: str, values: Any) -> list[Any]:
    values.validate(full=True)
    if pa.types.is_dictionary(values.type):
        longest = pc.max(pc.binary_length(values.dictionary)).as_py() or 0
        if longest > TEXT_CHARS_MAX * _UTF8_BYTES_PER_CHAR_MAX:
            refused(f"a text holds {TEXT_CHARS_MAX:,} characters at most", column=name)
    return list(values.to_pylist())


def _vectors(values: Any, memory: MemoryRef) -> Any:
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
    vectors = flat.to_numpy(zero_copy_only=False).reshape(-1, memory.dimension)
    if memory.metric == "cosine" and not (vectors != 0).any(axis=1).all():
        refused("an embedding is all zeros, and has no cosine", column="embedding")
    return vectors


# --------------------------------------------------------------------------- a process of its own


def inspect_bundle(path: Path, memory: MemoryRef) -> BundleFacts:
    """Have a bundle read through by a confined process, and give what it found; for a thread, not for the event loop.

    Cost:   half a second for the process, and what `check_bundle` costs.
    Errors: memory_bundle_invalid.
    """
    words = [sys.executable, "-m", "ops.bundles", str(path.resolve()), memory.model_dump_json()]
    try:
        done = subprocess.run(words, capture_output=True, timeout=INSPECTION_S_MAX, check=False)
    except subprocess.TimeoutExpired as error:
        raise MemoryBundleInvalidError(
            "the memory bundle cannot be used: reading it takes too long", why="reading it takes too long"
        ) from error
    if done.returncode == 0:
        return msgspec.json.decode(done.stdout, type=BundleFacts)
    if done.returncode == REFUSED_STATUS:
        raise LedgerError.from_problem(msgspec.json.decode(done.stdout))
    raise MemoryBundleInvalidError(
        "the memory bundle cannot be used: its reader did not end well",
        why="its reader did not end well",
        internal=f"status {done.returncode}: {done.stderr[-1_000:]!r}",
    )


REFUSED_STATUS = 3


def main(path: str, memory: str) -> int:
    """Check one bundle as a confined process, and print what was found or the refusal."""
    pa.set_memory_pool(pa.system_memory_pool())
    confine([Path(path)], [], INSPECTION_BYTES_MAX)
    try:
        facts = check_bundle(Path(path), MemoryRef.model_validate_json(memory))
    except LedgerError as refusal:
        sys.stdout.buffer.write(msgspec.json.encode(refusal.problem()))
        return REFUSED_STATUS
    sys.stdout.buffer.write(msgspec.json.encode(facts))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
