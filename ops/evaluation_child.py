"""The process that evaluates and scans: it gives up files, connections and most memory before it sees the first byte.

What a part can do at worst is end this process; whoever asked hears that it did not end well.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from typing import IO, Any

import msgspec
import pyarrow as pa

from domain.errors import LedgerError
from domain.persona.evaluation.harness import Constitution, evaluate
from domain.persona.evaluation.naming import named
from domain.persona.evaluation.report import Compared, written
from domain.persona.evaluation.retrieval import Recalled
from domain.persona.evaluation.subject import Document, Memory, Subject, stacked, subject_address
from domain.persona.evaluation.suites import suite_of
from domain.persona.manifest import PersonaManifest, parse_manifest
from domain.values import moment_text
from ops.bundles import check_bundle, read_bundle
from ops.engine.confinement import confine
from ops.evaluation_run import REFUSED_STATUS, Run, Task

MEMORY_BYTES_MAX = 3_000_000_000
NICENESS = 5
_TIMES_MAX = 100_000


def main() -> int:
    """Read a task and its parts, carry it out confined, and print what was found or the refusal."""
    pa.set_memory_pool(pa.system_memory_pool())
    os.nice(NICENESS)
    confine([], [], MEMORY_BYTES_MAX)
    try:
        found = carry_out(sys.stdin.buffer)
    except LedgerError as refusal:
        sys.stdout.buffer.write(msgspec.json.encode(refusal.problem()))
        return REFUSED_STATUS
    sys.stdout.buffer.write(msgspec.msgpack.encode(found))
    return 0


def carry_out(source: IO[bytes]) -> Run:
    """Carry out the task that a stream holds.

    Errors: evaluation_suite_invalid, manifest_invalid, memory_bundle_invalid.
    """
    task = msgspec.json.decode(source.readline(), type=Task)
    data = {part.name: source.read(part.size_bytes) for part in task.parts}
    manifest = parse_manifest(task.manifest)
    memory = memory_of(manifest, data[manifest.memory.bundle])
    constitution = None if task.constitution is None else Constitution(task.constitution, task.utility)
    compared, report = evaluated(manifest, memory, data, task.suite, constitution)
    reports = [
        Document(part.name, data[part.name])
        for part in manifest.parts_of("evaluation_report")
        if part.name in data
    ]
    state, faults = named(manifest, reports, compared)
    scanned = scanned_parts(manifest, memory, data) if task.scans else None
    return Run(compared, scanned, state, faults, report)


def memory_of(manifest: PersonaManifest, bundle: bytes) -> Memory:
    """Check a memory bundle and read it.

    Errors: memory_bundle_invalid.
    """
    check_bundle(bundle, manifest.memory)
    batches = list(read_bundle(bundle, manifest.memory))
    return Memory(
        [name for batch in batches for name in batch.ids],
        [text for batch in batches for text in batch.texts],
        stacked([batch.embeddings for batch in batches], manifest.memory.dimension),
        manifest.memory.embedding_model,
        manifest.memory.metric,
    )


def evaluated(
    manifest: PersonaManifest,
    memory: Memory,
    data: dict[str, bytes],
    suite: str,
    constitution: Constitution | None,
    host_facts: bool = True,
) -> tuple[Compared, bytes]:
    """Run a suite on a persona; give the compared part and the bytes of the whole report."""

    def documents(role: str) -> list[Document]:
        return [Document(part.name, data[part.name]) for part in manifest.parts_of(role) if part.name in data]

    scopes = {tool.tool: tool.access_scope for tool in manifest.tools}
    subject = Subject(
        subject_address(manifest),
        memory,
        documents("prompts"),
        documents("tools"),
        documents("evaluation_cases"),
        scopes,
    )
    watch = Stopwatch()
    compared = evaluate(subject, suite_of(suite), constitution, watch)
    return compared, written(compared, watch.host_facts() if host_facts else {})


def scanned_parts(manifest: PersonaManifest, memory: Memory, data: dict[str, bytes]) -> dict[str, Any]:
    """Scan all parts that are there; of the memory its texts, since its form was checked when it was read."""
    # An evaluation without a scan needs neither.
    from domain.trust.moderation.scan import ScannedPart, scan
    from domain.trust.questions import ToolFacts
    from ops.secret_scanner import SecretScanner

    secrets = SecretScanner()
    parts = [
        ScannedPart(part.name, part.role, part.media_type, b"", "\n".join(memory.texts))
        if part.role == "memory"
        else ScannedPart(part.name, part.role, part.media_type, data[part.name])
        for part in manifest.parts
        if part.name in data
    ]
    tools = [ToolFacts(tool=tool.tool, access_scope=tool.access_scope) for tool in manifest.tools]
    plain: dict[str, Any] = msgspec.to_builtins(scan(parts, tools, secrets, scanner=secrets.identity))
    return plain


class Stopwatch:
    """Measures each recall, and knows what else is different from host to host."""

    def __init__(self) -> None:
        self._started_at = datetime.now(UTC)
        self._started_s = time.perf_counter()
        self._taken_us: list[int] = []

    def __call__(self, recall: Callable[[], Recalled]) -> Recalled:
        """Carry a recall out and note how long it took."""
        started_ns = time.perf_counter_ns()
        recalled = recall()
        if len(self._taken_us) < _TIMES_MAX:
            self._taken_us.append((time.perf_counter_ns() - started_ns) // 1_000)
        return recalled

    def host_facts(self) -> dict[str, str]:
        """Give times and versions, as text; no two runs agree in them."""
        return {
            "started_at": moment_text(self._started_at),
            "ended_at": moment_text(datetime.now(UTC)),
            "evaluated_ms": str(round((time.perf_counter() - self._started_s) * 1_000)),
            "python": platform.python_version(),
            "numpy": version("numpy"),
            "pyarrow": pa.__version__,
            "machine": f"{platform.system()} {platform.machine()}",
            **dict(self._latencies()),
        }

    def _latencies(self) -> Iterator[tuple[str, str]]:
        taken = sorted(self._taken_us)
        for name, share in (("recall_p50_us", 50), ("recall_p95_us", 95), ("recall_max_us", 100)):
            if taken:
                yield name, str(taken[min(len(taken) * share // 100, len(taken) - 1)])


if __name__ == "__main__":
    sys.exit(main())
