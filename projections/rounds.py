"""The runner of training rounds: it follows `round.started`, trains, and delivers the result as a command.

It keeps no state of its own. What a crash interrupts is found by its status at the next start and done again under a
new fence; since training is deterministic, the second result has the same addresses as the first would have had.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import msgspec

from domain.errors import LedgerError, LogDamagedError, NotFoundError, UpdateRejectedError
from domain.ledger import Caller
from domain.market import fedavg
from domain.market.datasets import Dataset, parse_csv
from domain.market.models import Metrics, Model, RoundResult, Update
from domain.market.offers import dataset_id
from domain.market.reproducible import decimal_text
from domain.market.round_objects import decode_model, decode_update, encode_model, encode_update
from domain.market.rounds import (
    AcceptedUpdate,
    CompleteRound,
    FailRound,
    Measures,
    ResumeRound,
    Round,
    Task,
    complete_round,
    fail_round,
    resume_round,
)
from ops import telemetry
from ops.runtime import Runtime

log = telemetry.logger(__name__)

RUNNER = Caller("round-runner", "platform", frozenset({"service"}))


class RoundFailure(Exception):
    """A round cannot be finished, for a reason that is written down."""

    def __init__(self, reason: str, detail: str, offer_id: str | None = None) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.offer_id = offer_id


class RoundRunner:
    """Runs rounds in the background, one thread of computation at a time."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._tasks: set[asyncio.Task[None]] = set()
        self._one_at_a_time = asyncio.Semaphore(1)

    def start(self, round_id: str, causation: str | None = None) -> None:
        """Run a round that was just started."""
        task = asyncio.get_running_loop().create_task(self._run(round_id, causation))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def resume(self) -> int:
        """Take up the rounds a crash interrupted; give their number."""
        left = await self._runtime.reader.all_of("round", "started")
        for training in left:
            answer = await self._runtime.ledger.act(resume_round, ResumeRound(round_id=training.id), RUNNER)
            self.start(training.id)
            log.info("round_resumed", round_id=training.id, position=answer.position)
        return len(left)

    async def close(self) -> None:
        """Let what runs finish, but not for ever: what is cut off is taken up again at the next start."""
        if self._tasks:
            _, late = await asyncio.wait(list(self._tasks), timeout=self._runtime.settings.shutdown_grace_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _run(self, round_id: str, causation: str | None) -> None:
        async with self._one_at_a_time:
            started = time.perf_counter()
            loaded = await self._runtime.reader.load([f"round/{round_id}"])
            training = loaded[f"round/{round_id}"].aggregate
            assert isinstance(training, Round)
            try:
                await self._carry_out(training, causation)
            except LedgerError as refusal:
                # Overtaken by another runner, or the log is away: the round stays started and is taken up again.
                log.warning(
                    "round_not_delivered", round_id=round_id, code=refusal.code, detail=refusal.message
                )
            telemetry.MARKET_ROUND_SECONDS.observe(time.perf_counter() - started)

    async def _carry_out(self, training: Round, causation: str | None) -> None:
        """Deliver a round or give it up; whatever goes wrong with it alone must not keep its escrow for ever."""
        try:
            await self._deliver(training, causation)
        except RoundFailure as failure:
            await self._give_up(training, failure, causation)
        except LedgerError as refusal:
            if refusal.status == 409 or refusal.status >= 500:
                raise
            await self._give_up(training, RoundFailure(refusal.code, refusal.message), causation)
        except Exception as bug:
            log.error("round_bug", round_id=training.id, exc_info=bug)
            await self._give_up(training, RoundFailure("internal", "the service made a mistake"), causation)

    async def _deliver(self, training: Round, causation: str | None) -> None:
        datasets = {task.offer_id: await self._dataset(task) for task in training.tasks}
        try:
            result = await asyncio.to_thread(fedavg.run_round, datasets, training.options)
        except UpdateRejectedError as rejected:
            offer_id = str(rejected.facts.get("seller", "")) or None
            raise RoundFailure("update_rejected", rejected.message, offer_id) from rejected
        command = await self._keep(training, result)
        await self._runtime.ledger.act(complete_round, command, RUNNER, causation=causation)

    async def _dataset(self, task: Task) -> Dataset:
        offer_id, seller, fingerprint = task.offer_id, task.seller, task.dataset_fingerprint
        stream = f"dataset/{dataset_id(seller, fingerprint)}"
        try:
            if stream not in await self._runtime.reader.load([stream]):
                raise RoundFailure("dataset_missing", "the seller has not uploaded this dataset", offer_id)
            data = await self._runtime.objects.get(fingerprint)
            return await asyncio.to_thread(parse_csv, data)
        except NotFoundError as missing:
            raise RoundFailure("dataset_missing", missing.message, offer_id) from missing
        except LedgerError as invalid:
            if invalid.status >= 500:
                raise
            raise RoundFailure("dataset_invalid", invalid.message, offer_id) from invalid

    async def _keep(self, training: Round, result: RoundResult) -> CompleteRound:
        """Put the objects of a result into the store and write the command that names them."""
        objects = self._runtime.objects
        sellers = {task.offer_id: task.seller for task in training.tasks}
        updates = [
            _accepted(u, sellers[u.seller], await objects.put(encode_update(u))) for u in result.updates
        ]
        broadcast = Model(result.model.schema, result.broadcast)
        return CompleteRound(
            round_id=training.id,
            fence=training.fence,
            updates=[msgspec.to_builtins(update) for update in updates],
            model_address=await objects.put(encode_model(result.model)),
            broadcast_address=await objects.put(encode_model(broadcast)),
            before=msgspec.to_builtins(_measures(result.before)),
            after=msgspec.to_builtins(_measures(result.after)),
            history=[msgspec.to_builtins(_measures(step.metrics)) for step in result.history[:100]],
        )

    async def _give_up(self, training: Round, failure: RoundFailure, causation: str | None) -> None:
        command = FailRound(
            round_id=training.id,
            fence=training.fence,
            reason=failure.reason,
            detail=failure.detail,
            offer_id=failure.offer_id,
        )
        log.info("round_failed", round_id=training.id, reason=failure.reason, offer_id=failure.offer_id)
        await self._runtime.ledger.act(fail_round, command, RUNNER, causation=causation)


async def attest(runtime: Runtime, training: Round) -> bool:
    """Check a round from its stored objects alone.

    Every update is there and hashes to its address, and averaging them gives the recorded model bit by bit.
    """
    if training.model_address is None or training.broadcast_address is None:
        return False
    try:
        model = decode_model(await runtime.objects.get(training.model_address), training.model_address)
        broadcast = decode_model(
            await runtime.objects.get(training.broadcast_address), training.broadcast_address
        )
        updates: Sequence[Update] = [
            decode_update(await runtime.objects.get(u.update_address), u.update_address)
            for u in training.updates
        ]
        averaged = await asyncio.to_thread(fedavg.aggregate, updates, broadcast.weights, training.options)
    except LedgerError as damaged:
        if damaged.status >= 500 and not isinstance(damaged, LogDamagedError):
            raise  # the store is away, which says nothing about what it holds
        log.warning("attestation_failed", round_id=training.id, code=damaged.code, detail=damaged.message)
        return False
    return bool(averaged.tobytes() == model.weights.tobytes())


def _accepted(update: Update, seller: str, address: str) -> AcceptedUpdate:
    return AcceptedUpdate(
        offer_id=update.seller,
        seller=seller,
        update_address=address,
        row_count=update.row_count,
        norm=decimal_text(update.norm),
        loss_before=decimal_text(update.loss_before),
        loss_after=decimal_text(update.loss_after),
        validation_rows=update.validation_rows,
        accuracy=None if update.accuracy is None else decimal_text(update.accuracy),
    )


def _measures(metrics: Metrics) -> Measures:
    loss = metrics.validation_loss if metrics.validation_loss is not None else metrics.loss
    return Measures(
        loss=decimal_text(loss),
        accuracy=None if metrics.accuracy is None else decimal_text(metrics.accuracy),
        auc=None if metrics.auc is None else decimal_text(metrics.auc),
        train_rows=metrics.train_rows,
        validation_rows=metrics.validation_rows,
    )
