"""Evaluations and scans in a process of their own: heavy, on bytes of strangers, and therefore kept apart.

The child (ops/evaluation_child.py) gets the parts through its standard input, so nothing that is encrypted where it
lies is ever written out. What it finds is a function of the parts, the suite and the constitution; only the host facts
of the report are its own. The libraries that unpack a memory are loaded there, and not in the service.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec

from domain.errors import EvaluationFailedError, LedgerError, ShuttingDownError
from domain.persona.evaluation.harness import Constitution
from domain.persona.evaluation.report import Compared
from domain.persona.manifest import PersonaManifest

RUN_S_MAX = 600.0
WAIT_S = 0.2
REFUSED_STATUS = 3


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
    words = [sys.executable, "-m", "ops.evaluation_child"]
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
