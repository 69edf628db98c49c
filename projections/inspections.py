"""The inspector: it evaluates what authors ask to have evaluated, and scans and evaluates what is submitted.

It keeps no state of its own. What waits is known by its status in the log, so a crash costs the work of that moment and
no more; evaluation and scan are functions of the parts, so doing them again comes to the same addresses. The report is
in the vault before any event names it. Two processes may inspect the same thing: the second event is not written.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec

from domain.errors import EvaluationFailedError, LedgerError
from domain.ledger import Caller
from domain.log.records import Aggregate
from domain.persona.capsules import Capsule, RecordInspection, record_inspection
from domain.persona.evaluation.harness import Constitution as InForce
from domain.persona.evaluation.report import Compared, paired, read_report, summary_of
from domain.persona.evaluation.subject import ROLES
from domain.persona.evaluation.suites import BASELINE
from domain.persona.evaluations import (
    CompleteEvaluation,
    EvaluationRun,
    FailEvaluation,
    complete_evaluation,
    fail_evaluation,
)
from domain.persona.manifest import PersonaManifest, capsule_id, parse_manifest
from domain.persona.personas import Persona
from domain.trust.constitutions import CONSTITUTION, Constitution
from ops import telemetry
from ops.evaluation_run import Part, Run, run_apart
from ops.runtime import Runtime
from ops.tasks import stop

log = telemetry.logger(__name__)

INSPECTOR = Caller("inspector", "platform", frozenset({"service"}))
# Requests of this process are begun at once; others, and what an outage interrupted, are found by looking.
LOOK_INTERVAL_S = 30.0

Inspect = Callable[[], Awaitable[None]]
A = TypeVar("A", bound=Aggregate)


class Inspections:
    """Inspects in the background, one persona at a time."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._running: dict[str, asyncio.Task[None]] = {}
        self._one_at_a_time = asyncio.Semaphore(1)
        self._looking: asyncio.Task[None] | None = None
        self._is_closing = False

    def start(self, capsule: str, causation: str | None = None) -> None:
        """Inspect a capsule that was just submitted, named by address or digits; one under inspection goes on."""
        name = capsule_id(capsule)
        self._begin(f"capsule/{name}", lambda: self._inspect(name, causation))

    def start_evaluation(self, evaluation_id: str, causation: str | None = None) -> None:
        """Carry out an evaluation that was just asked for."""
        self._begin(f"evaluation/{evaluation_id}", lambda: self._evaluate(evaluation_id, causation))

    async def resume(self) -> int:
        """Take up what waits in the log; give how much of it was not under way."""
        before = len(self._running)
        for capsule in await self._runtime.reader.all_of("capsule", "submitted"):
            self.start(capsule.id)
        for evaluation in await self._runtime.reader.all_of("evaluation", "requested"):
            self.start_evaluation(evaluation.id)
        return len(self._running) - before

    def look(self) -> None:
        """Begin to look for what waits, now and then."""
        self._looking = asyncio.get_running_loop().create_task(self._look())

    async def close(self) -> None:
        """Let what runs finish, but not for ever: what is cut off is taken up again at the next start."""
        await stop(self._looking)
        tasks = list(self._running.values())
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=self._runtime.settings.shutdown_grace_s)
            # Children end now, and the threads that wait for them with them.
            self._is_closing = True
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _begin(self, stream: str, inspect: Inspect) -> None:
        if stream not in self._running:
            task = asyncio.get_running_loop().create_task(self._guarded(stream, inspect))
            self._running[stream] = task
            task.add_done_callback(lambda _: self._running.pop(stream, None))

    async def _guarded(self, stream: str, inspect: Inspect) -> None:
        async with self._one_at_a_time:
            try:
                await inspect()
            except LedgerError as outage:
                # The log or the store is away: it still waits in the log, and is found again.
                log.warning("inspection_put_off", stream=stream, code=outage.code, detail=outage.message)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_INTERVAL_S)
            try:
                await self.resume()
            except LedgerError as outage:
                log.warning("inspections_not_found", code=outage.code, detail=outage.message)

    # ------------------------------------------------------------------ evaluations that were asked for

    async def _evaluate(self, evaluation_id: str, causation: str | None) -> None:
        asked = await self._load(EvaluationRun, evaluation_id)
        if asked is None or asked.status != "requested":
            return
        try:
            run, report = await self._run("asked", asked.manifest, asked.suite, scans=False)
        except LedgerError as refusal:
            if refusal.status >= 500:
                raise
            command = FailEvaluation(evaluation_id=asked.id, code=refusal.code, detail=refusal.message)
            await self._runtime.ledger.act(fail_evaluation, command, INSPECTOR, causation=causation)
            return
        done = CompleteEvaluation(
            evaluation_id=asked.id,
            passed=run.compared.passed,
            report=report,
            report_bytes=len(run.report),
            evaluation=summary_of(run.compared),
        )
        # From here on the report is in the vault; a crash before the event leaves an object that nobody names.
        await self._runtime.ledger.act(complete_evaluation, done, INSPECTOR, causation=causation)

    # ------------------------------------------------------------------ capsules that were submitted

    async def _inspect(self, name: str, causation: str | None) -> None:
        capsule = await self._load(Capsule, name)
        if capsule is None or capsule.status != "submitted":
            return
        try:
            run, report = await self._run("inspection", capsule.manifest, BASELINE.name, scans=True)
            compared = await self._beside_published(capsule, run.compared)
            found: dict[str, Any] = {"scan": run.scan, "evaluation": inspected(run, report) | compared}
        except LedgerError as refusal:
            if refusal.status >= 500:
                raise
            found = {"failure": {"code": refusal.code, "detail": refusal.message}}
        command = RecordInspection(capsule_id=name, **found)
        await self._runtime.ledger.act(record_inspection, command, INSPECTOR, causation=causation)

    async def _beside_published(self, capsule: Capsule, compared: Compared) -> dict[str, Any]:
        """Compare with the version that is on show now; reviewers see what the new one loses."""
        persona = await self._load(Persona, capsule.persona_id)
        if persona is None or persona.published is None:
            return {}
        published = await self._load(Capsule, capsule_id(persona.published.capsule))
        report = (published.evaluation or {}).get("report") if published is not None else None
        if not isinstance(report, str):
            return {}
        before = (
            await asyncio.to_thread(lambda: read_report(b"".join(self._runtime.vault.read(report))))
        ).compared
        return {"comparison": msgspec.to_builtins(paired(before, compared))}

    # ------------------------------------------------------------------ both

    async def _load(self, cls: type[A], name: str) -> A | None:
        stream = f"{cls.KIND}/{name}"
        found = (await self._runtime.reader.load([stream])).get(stream)
        if found is None:
            return None
        assert isinstance(found.aggregate, cls)
        return found.aggregate

    async def _run(
        self, occasion: str, manifest: dict[str, Any], suite: str, *, scans: bool
    ) -> tuple[Run, str]:
        started_s = time.perf_counter()
        try:
            document = parse_manifest(manifest)
            in_force = await self._in_force()
            run = await asyncio.to_thread(self._apart, document, suite, in_force, scans)
        except LedgerError:
            telemetry.EVALUATIONS.labels(occasion, "failed").inc()
            raise
        except Exception as bug:
            log.error("inspection_bug", occasion=occasion, exc_info=bug)
            telemetry.EVALUATIONS.labels(occasion, "failed").inc()
            raise EvaluationFailedError("the service made a mistake") from bug
        telemetry.EVALUATION_SECONDS.labels(occasion).observe(time.perf_counter() - started_s)
        tell(occasion, run.compared)
        kept = await asyncio.to_thread(self._runtime.vault.put, [run.report])
        return run, kept.address

    def _apart(self, manifest: PersonaManifest, suite: str, in_force: InForce | None, scans: bool) -> Run:
        vault = self._runtime.vault
        parts = [
            Part(part.name, part.bytes, vault.read(part.digest))
            for part in manifest.parts
            if scans or part.role in ROLES
        ]
        return run_apart(manifest, suite, in_force, parts, scans=scans, stopped=lambda: self._is_closing)

    async def _in_force(self) -> InForce | None:
        constitution = await self._load(Constitution, CONSTITUTION)
        if constitution is None:
            return None
        version = constitution.in_force
        return InForce(version.address, msgspec.to_builtins(version.document.utility))


def inspected(run: Run, report: str) -> dict[str, Any]:
    """Say what an inspection came to: it passes where the suite does and the manifest's own figures are right."""
    summary = summary_of(run.compared)
    return summary | {
        "passed": summary["passed"] and run.named_report != "differs",
        "report": report,
        "named_report": run.named_report,
        "why": [*summary["why"], *run.named_faults],
    }


def tell(occasion: str, compared: Compared) -> None:
    """Say what an evaluation came to, as metrics."""
    suite, utility = compared.suite.name, compared.utility
    telemetry.EVALUATIONS.labels(occasion, "passed" if compared.passed else "not_passed").inc()
    telemetry.UTILITY_DECISIONS.labels(suite, "accepted").inc(utility.accepted)
    telemetry.UTILITY_DECISIONS.labels(suite, "refused").inc(utility.refused)
    if utility.value is not None and utility.bound is not None:
        telemetry.UTILITY_VALUE.labels(suite).set(float(utility.value))
        telemetry.UTILITY_BOUND.labels(suite).set(float(utility.bound))
