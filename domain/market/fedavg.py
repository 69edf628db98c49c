"""Federated averaging of a logistic regression over the datasets of several sellers.

What leaves a site: the names of its columns; per column a count, a sum and a sum of squares about the shared
mean; one bound of its curvature; its weights after local work; counts of its held-out rows by score. No row
ever does.

    survey     columns = union of all names; means, scales and missing-value flags from the sums
    work       each site takes local gradient steps from the shared weights
    aggregate  w <- sum over sites of (n_k / n) w_k, or a robust rule
    measure    loss, accuracy and AUC from sums and counts

Full batches from a fixed start need no chance, and every sum has an order of its own (`reproducible`), so a
replay gives the same bits whatever the processor or the number of threads. Sites are always taken in the
order of their names.

Source: McMahan et al. 2017, "Communication-efficient learning of deep networks from decentralized data",
        algorithm 1.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from domain.errors import InvalidFieldError, UpdateRejectedError
from domain.market.datasets import Dataset
from domain.market.models import Metrics, Model, RoundOptions, RoundResult, Schema, Step, Update
from domain.market.reproducible import Array, decimal_text, folded_sum, log_losses, norm, sigmoid

Counts = npt.NDArray[np.int64]

STANDARD_MAX = 20.0  # a standardised value is cut here, so one wild cell cannot carry a round
WEIGHT_MAX = 1e6
SHARED_COLUMNS_MAX = 400
TRIMMED_SHARE = 0.2
LOGIT_BINS, LOGIT_BINS_PER_UNIT = 2048, 64  # bins of width 1/64 from -16 to +16
_CURVATURE_STEPS = 20
_CONSTANT_SPREAD = 1e-14  # relative to the mean; a constant column shows rounding errors below this


def run_round(
    datasets: Mapping[str, Dataset], options: RoundOptions | None = None, start: Model | None = None
) -> RoundResult:
    """Train one model over the datasets of named sellers, from zero or on from an earlier model.

    Cost:   communication_rounds * local_steps passes over all training cells. It
            takes the processor for that time: call it off the event loop.
    Errors: invalid_field, update_rejected.
    """
    options = options or RoundOptions()
    if not datasets:
        raise InvalidFieldError("a round needs at least one dataset", field="datasets")
    halves = {seller: _halves(seller, datasets[seller], options) for seller in sorted(datasets)}
    schema = start.schema if start else survey([train for train, _ in halves.values()])
    sites = [
        _Site(seller, Rows.of(schema, train), Rows.of(schema, held))
        for seller, (train, held) in halves.items()
    ]
    weights = start.weights if start else np.zeros(len(schema.features))
    rate = min(float(options.learning_rate), *(_stable_rate(site.train, float(options.l2)) for site in sites))
    return _train(sites, schema, weights, rate, options)


def _train(
    sites: list[_Site], schema: Schema, weights: Array, rate: float, options: RoundOptions
) -> RoundResult:
    losses_before = {site.seller: site.train.loss(weights) for site in sites}
    before = _measure(sites, weights)
    history: list[Step] = []
    updates: list[Update] = []
    broadcast = weights
    for number in range(1, options.communication_rounds + 1):
        broadcast = weights
        updates = [
            _work(site, schema, broadcast, rate, options, number, losses_before[site.seller])
            for site in sites
        ]
        weights = aggregate(updates, broadcast, options)
        norm_max = max(update.norm for update in updates)
        history.append(Step(number, _measure(sites, weights), norm_max))
    return RoundResult(
        model=Model(schema, weights),
        updates=tuple(_judged(update, sites) for update in updates),
        broadcast=broadcast,
        before=before,
        after=history[-1].metrics,
        history=tuple(history),
        learning_rate=rate,
        options=options,
    )


# --------------------------------------------------------------------------- what the sites agree on


def survey(datasets: Sequence[Dataset]) -> Schema:
    """Agree on columns, means, scales and missing-value flags, from counts and sums only.

    A column that a site does not have is missing on all its rows. A column gets a flag where some rows, but
    not all, lack it. The sums of squares are taken about the shared mean in a second exchange, so large
    offsets lose no digits.
    """
    columns = tuple(sorted({name for dataset in datasets for name in dataset.columns}))
    if len(columns) > SHARED_COLUMNS_MAX:
        raise InvalidFieldError("the datasets have more than 400 columns together", field="datasets")
    tables = [_table(dataset, columns) for dataset in datasets]
    present = [~np.isnan(table) for table in tables]
    seen = np.sum([mask.sum(axis=0) for mask in present], axis=0)
    divisor = np.maximum(seen, 1)
    sums = [folded_sum(np.where(mask, table, 0.0)) for table, mask in zip(tables, present, strict=True)]
    means = folded_sum(np.stack(sums)) / divisor
    gaps = [np.where(mask, table - means, 0.0) for table, mask in zip(tables, present, strict=True)]
    spread = np.sqrt(folded_sum(np.stack([folded_sum(gap * gap) for gap in gaps])) / divisor)
    scales = np.where(spread > _CONSTANT_SPREAD * np.abs(means), spread, 1.0)
    rows = sum(dataset.row_count for dataset in datasets)
    flagged = tuple(name for name, count in zip(columns, seen.tolist(), strict=True) if 0 < count < rows)
    return Schema(columns, flagged, means, scales)


def prepare(schema: Schema, dataset: Dataset) -> Array:
    """Turn a dataset into features: 1, standardised columns with the mean where missing, missing-value flags.

    Columns the schema does not know are left out; columns it knows and the dataset lacks count as missing.

    Shapes: returns (n, f).
    """
    table = _table(dataset, schema.columns)
    missing = np.isnan(table)
    with np.errstate(over="ignore"):
        standard = np.where(missing, 0.0, (table - schema.means) / schema.scales)
    flags = missing[:, [schema.columns.index(name) for name in schema.flagged]]
    ones = np.ones((dataset.row_count, 1))
    return np.hstack([ones, np.clip(standard, -STANDARD_MAX, STANDARD_MAX), flags.astype(np.float64)])


def _table(dataset: Dataset, columns: tuple[str, ...]) -> Array:
    table = np.full((dataset.row_count, len(columns)), np.nan)
    known = [index for index, name in enumerate(columns) if name in dataset.columns]
    table[:, known] = dataset.values[:, [dataset.columns.index(columns[index]) for index in known]]
    return table


def held_out(dataset: Dataset, one_in: int) -> npt.NDArray[np.bool_]:
    """Choose the rows kept for validation by the hash of their values, so equal rows stay on one side.

    Shapes: returns (n,).
    """
    if not one_in:
        return np.zeros(dataset.row_count, dtype=np.bool_)
    order = sorted(range(len(dataset.columns)), key=lambda index: dataset.columns[index])
    cells = np.column_stack([dataset.values[:, order], dataset.target]) + 0.0
    cells[np.isnan(cells)] = np.nan  # one bit pattern for every missing value
    lines = np.ascontiguousarray(cells, dtype="<f8")
    chosen = [int.from_bytes(hashlib.sha3_256(line).digest()[:8]) % one_in == 0 for line in lines]
    return np.array(chosen, dtype=np.bool_)


def _halves(seller: str, dataset: Dataset, options: RoundOptions) -> tuple[Dataset, Dataset]:
    held = held_out(dataset, options.validation_one_in)
    if held.all():
        raise UpdateRejectedError(
            f"{seller} has no rows to train on", seller=seller, reason="no_training_rows"
        )
    return dataset.take(~held), dataset.take(held)


# --------------------------------------------------------------------------- work at a site


@dataclass(frozen=True, eq=False)
class Rows:
    """Prepared rows, in both layouts so that both products run over contiguous memory.

    Shapes: rows (n, f), columns (f, n), target (n,) of 0 and 1.
    """

    rows: Array
    columns: Array
    target: Array

    @classmethod
    def of(cls, schema: Schema, dataset: Dataset) -> Rows:
        """Prepare a dataset."""
        rows = prepare(schema, dataset)
        return cls(rows, np.ascontiguousarray(rows.T), dataset.target)

    @property
    def count(self) -> int:
        """Count the rows."""
        return int(self.target.shape[0])

    def logits(self, weights: Array) -> Array:
        """Give each row's log-odds.

        Shapes: weights (f,). Returns (n,).
        """
        return folded_sum(self.columns * weights[:, None])

    def loss_sum(self, weights: Array) -> float:
        """Add up the rows' losses.

        Units:  nats.
        """
        return float(folded_sum(log_losses(self.logits(weights), 2.0 * self.target - 1.0)))

    def loss(self, weights: Array) -> float:
        """Average the rows' losses.

        Units:  nats per row; there is at least one row.
        """
        return self.loss_sum(weights) / self.count

    def gradient(self, weights: Array, l2: float) -> Array:
        """Differentiate the mean loss plus l2/2 times the squared weights; the bias is not penalised.

        Shapes: weights (f,). Returns (f,).
        """
        residuals = sigmoid(self.logits(weights)) - self.target
        penalty = l2 * weights
        penalty[0] = 0.0
        return folded_sum(self.rows * residuals[:, None]) / self.count + penalty


@dataclass(frozen=True, eq=False)
class _Site:
    seller: str
    train: Rows
    held: Rows


def _work(
    site: _Site,
    schema: Schema,
    broadcast: Array,
    rate: float,
    options: RoundOptions,
    number: int,
    loss: float,
) -> Update:
    weights, l2 = broadcast, float(options.l2)
    for _ in range(options.local_steps):
        weights = weights - rate * site.train.gradient(weights, l2)
    return Update(
        seller=site.seller,
        communication_round=number,
        features=schema.features,
        weights=weights,
        row_count=site.train.count,
        norm=norm(weights - broadcast),
        loss_before=loss,
        loss_after=site.train.loss(weights),
    )


def _stable_rate(rows: Rows, l2: float) -> float:
    """Estimate the inverse of the largest curvature by power iteration; up to twice this step is stable.

    Source: the logistic loss has curvature at most 1/4 of that of least squares (Boehning 1992).
    """
    direction = 1.0 + np.arange(rows.rows.shape[1]) / rows.rows.shape[1]
    largest = 0.0
    for _ in range(_CURVATURE_STEPS):
        direction = direction / norm(direction)
        direction = folded_sum(rows.rows * rows.logits(direction)[:, None]) / rows.count
        largest = max(largest, norm(direction))
    return 1.0 / (largest / 4.0 + l2)


# --------------------------------------------------------------------------- aggregation


def aggregate(updates: Sequence[Update], broadcast: Array, options: RoundOptions | None = None) -> Array:
    """Combine the updates of one communication round into the next shared weights.

    The mean weighs sites by their rows and refuses outlying norms; the median and the trimmed mean (a fifth
    of the sites, at least one, off each end of each coordinate; needs three sites) count sites alike and bear
    outliers.

    Shapes: broadcast (f,), the weights all updates started from. Returns (f,).
    Errors: update_rejected, naming the seller and the reason.
    """
    options = options or RoundOptions()
    ordered = sorted(updates, key=lambda update: update.seller)
    _check_forms(ordered, broadcast)
    stack = np.stack([update.weights for update in ordered])
    if options.rule == "mean":
        _check_norms(ordered, broadcast, options.norm_ratio_max)
        total = sum(update.row_count for update in ordered)
        shares = np.array([update.row_count / total for update in ordered])
        return folded_sum(stack * shares[:, None])
    count = len(ordered)
    cut = (
        (count - 1) // 2
        if options.rule == "median"
        else min((count - 1) // 2, max(1, int(count * TRIMMED_SHARE)))
    )
    kept = np.sort(stack, axis=0)[cut : count - cut]
    return folded_sum(kept) / len(kept)


def _refuse(update: Update, reason: str, message: str, **facts: Any) -> UpdateRejectedError:
    return UpdateRejectedError(f"{update.seller}: {message}", seller=update.seller, reason=reason, **facts)


def _check_forms(updates: list[Update], broadcast: Array) -> None:
    if not updates:
        raise InvalidFieldError("there are no updates to combine", field="updates")
    for index, update in enumerate(updates):
        if index and update.seller == updates[index - 1].seller:
            raise _refuse(update, "duplicate", "delivered two updates")
        if update.weights.shape != broadcast.shape or update.weights.dtype != np.float64:
            raise _refuse(update, "wrong_shape", "the weights have another shape", wanted=broadcast.shape[0])
        if update.features != updates[0].features or len(update.features) != broadcast.shape[0]:
            raise _refuse(update, "wrong_features", "the weights belong to other features")
        if type(update.row_count) is not int or update.row_count < 1:
            raise _refuse(update, "no_training_rows", "the update rests on no rows")
        if not np.isfinite(update.weights).all():
            raise _refuse(update, "not_finite", "a weight is not a finite number")
        if (np.abs(update.weights) > WEIGHT_MAX).any():
            raise _refuse(update, "weight_too_large", "a weight is beyond 10^6")


def _check_norms(updates: list[Update], broadcast: Array, ratio_max: int) -> None:
    """Refuse an update far from the others, by its norm as computed here, not as stated.

    A small honest site may move far, and a large one may weigh much; only an update that does both is
    refused.
    """
    norms = [norm(update.weights - broadcast) for update in updates]
    pulls = [length * update.row_count for length, update in zip(norms, updates, strict=True)]
    floor = 1e-6 * (1.0 + norm(broadcast))
    for index, update in enumerate(updates):
        length_usual = max(_median(norms[:index] + norms[index + 1 :]), floor)
        pull_usual = max(_median(pulls[:index] + pulls[index + 1 :]), floor)
        if (
            len(updates) > 1
            and norms[index] > ratio_max * length_usual
            and pulls[index] > ratio_max * pull_usual
        ):
            facts = {"norm": decimal_text(norms[index]), "usual": decimal_text(length_usual)}
            raise _refuse(update, "norm_outlier", "the update is far longer than the others", **facts)


def _median(values: list[float]) -> float:
    ordered, middle = sorted(values), len(values) // 2
    if not ordered:
        return 0.0
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2.0


# --------------------------------------------------------------------------- measurement


def predict(model: Model, dataset: Dataset) -> Array:
    """Give each row's probability of a positive target.

    Shapes: returns (n,).
    """
    return sigmoid(Rows.of(model.schema, dataset).logits(model.weights))


def evaluate(model: Model, dataset: Dataset) -> Metrics:
    """Measure a model on a dataset it may never have seen, every row held out.

    Errors: invalid_field (no rows).
    """
    if not dataset.row_count:
        raise InvalidFieldError("there are no rows to measure on", field="dataset")
    rows = Rows.of(model.schema, dataset)
    logits, loss = rows.logits(model.weights), rows.loss(model.weights)
    accuracy = float(((logits >= 0.0) == (rows.target > 0.0)).mean())
    return Metrics(0, rows.count, loss, loss, accuracy, area_under_curve(logits, rows.target))


def area_under_curve(scores: Array, target: Array) -> float | None:
    """Give the probability that a positive outranks a negative, ties counted half; None without both classes.

    Shapes: scores (n,), target (n,) of 0 and 1.
    Source: Mann and Whitney 1947.
    """
    distinct, place = np.unique(scores, return_inverse=True)
    positives = np.bincount(place[target > 0.0], minlength=len(distinct))
    return _auc_of_counts(positives, np.bincount(place[target <= 0.0], minlength=len(distinct)))


def _auc_of_counts(positives: Counts, negatives: Counts) -> float | None:
    pairs = int(positives.sum()) * int(negatives.sum())
    below = np.cumsum(negatives) - negatives
    return int((positives * (2 * below + negatives)).sum()) / (2 * pairs) if pairs else None


def _measure(sites: list[_Site], weights: Array) -> Metrics:
    train_rows = sum(site.train.count for site in sites)
    held_rows = sum(site.held.count for site in sites)
    loss = math.fsum(site.train.loss_sum(weights) for site in sites) / train_rows
    if not held_rows:
        return Metrics(train_rows, 0, loss, None, None, None)
    held_loss = math.fsum(site.held.loss_sum(weights) for site in sites) / held_rows
    tallies = np.sum([_tally(site.held, weights) for site in sites], axis=0)
    correct = int(tallies[1, LOGIT_BINS // 2 :].sum() + tallies[0, : LOGIT_BINS // 2].sum())
    return Metrics(
        train_rows, held_rows, loss, held_loss, correct / held_rows, _auc_of_counts(tallies[1], tallies[0])
    )


def _tally(rows: Rows, weights: Array) -> Counts:
    """Count held-out rows by class and by bin of their log-odds: all that a site says about its scores.

    Shapes: returns (2, LOGIT_BINS), negatives first.
    """
    bins = np.floor(rows.logits(weights) * LOGIT_BINS_PER_UNIT) + LOGIT_BINS // 2
    place = np.clip(bins, 0, LOGIT_BINS - 1).astype(np.int64)
    counted = [np.bincount(place[rows.target == side], minlength=LOGIT_BINS) for side in (0.0, 1.0)]
    return np.stack(counted)


def _judged(update: Update, sites: list[_Site]) -> Update:
    metrics = _measure(sites, update.weights)
    held = metrics.validation_rows
    return replace(update, validation_rows=held, accuracy=metrics.accuracy, auc=metrics.auc)
