"""Evaluations and scans in a process of their own: heavy, on bytes of strangers, and therefore kept apart.

The child gets the parts through its standard input, so nothing that is encrypted where it lies is ever written out. It
gives up files, connections and most memory before it looks at the first byte; what a part can do at worst is end it.
What it finds is a function of the parts, the suite and the constitution; only the host facts of the report are its own.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from typing import IO, Any, NamedTuple

import msgspec
import pyarrow as pa

from domain.errors import EvaluationFailedError, LedgerError, ShuttingDownError
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

RUN_S_MAX = 600.0
WAIT_S = 0.2
MEMORY_BYTES_MAX = 3_000_000_000
REFUSED_STATUS = 3
NICENESS = 5
_TIMES_MAX = 100_000


class TaskPart(msgspec.Struct, frozen=True):
    """A part that follows on the standard input."""

    name: str
    size_bytes: int


class Task(msgspec.Struct, frozen=True):
    """What a child is asked: a manifest, a suite, the constitution in force, and whether to scan as well."""

    manifest: dict[str, Any]
    suite: str
    constitution: str | None
    utility: dict[str, Any]
    scans: bool
    parts: list[TaskPart]


class Run(msgspec.Struct, frozen=True):
    """What a child found; the scan is a report of the moderation, and named says how the manifest's reports compare."""

    compared: Compared
    scan: dict[str, Any] | None
    named_report: str
    named_faults: list[str]
    report: bytes


class Part(NamedTuple):
    """A part to be sent: its name, its size and its bytes in portions."""

    name: str
    size_bytes: int
    chunks: Iterable[bytes]


# --------------------------------------------------------------------------- asking a child


def run_apart(
    manifest: PersonaManifest,
    suite: str,
    constitution: Constitution | None,
    parts: list[Part],
    *,
    scans: bool,
    seconds_max: float = RUN_S_MAX,
    stopped: Callable[[], bool] = lambda: False,
) -> Run:
    """Have a persona evaluated, and scanned if that is asked, by a process of its own; for a thread.

    `stopped` says when nobody waits for the outcome any more; the child is then ended.
    Errors: evaluation_failed, evaluation_suite_invalid, manifest_invalid, memory_bundle_invalid, shutting_down;
            those of reading the parts.
    """
    task = Task(
        manifest.document(),
        suite,
        None if constitution is None else constitution.address,
        {} if constitution is None else dict(constitution.utility),
        scans,
        [TaskPart(part.name, part.size_bytes) for part in parts],
    )
    words = [sys.executable, "-m", "ops.evaluation_run"]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        try:
            _send(child, task, parts)
            out, err = _waited(child, time.monotonic() + seconds_max, stopped)
        finally:
            if child.poll() is None:
                child.kill()
    return _heard(child.returncode, out, err)


def _waited(
    child: subprocess.Popen[bytes], until_s: float, stopped: Callable[[], bool]
) -> tuple[bytes, bytes]:
    while True:
        try:
            return child.communicate(timeout=WAIT_S)
        except subprocess.TimeoutExpired as error:
            if stopped():
                raise ShuttingDownError("the evaluation was not waited for") from error
            if time.monotonic() > until_s:
                raise EvaluationFailedError("the evaluation takes too long") from error


def _send(child: subprocess.Popen[bytes], task: Task, parts: list[Part]) -> None:
    assert child.stdin is not None
    # A child that ended early is heard below; its reason is in what it said, not in our broken pipe.
    with suppress(BrokenPipeError):
        child.stdin.write(msgspec.json.encode(task) + b"\n")
        for part in parts:
            for chunk in part.chunks:
                child.stdin.write(chunk)
        child.stdin.flush()


def _heard(status: int, out: bytes, err: bytes) -> Run:
    if status == 0:
        return msgspec.msgpack.decode(out, type=Run)
    if status == REFUSED_STATUS:
        raise LedgerError.from_problem(msgspec.json.decode(out))
    raise EvaluationFailedError(
        "the evaluation did not end well", internal=f"status {status}: {err[-1_000:]!r}"
    )


# --------------------------------------------------------------------------- being the child


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
    # Loaded here only: a service that asks, and an evaluation without a scan, need neither.
    from domain.trust.moderation.scan import ScannedPart, ToolFacts, scan
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
