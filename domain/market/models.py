"""What goes into a training round and what comes out of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import msgspec

from domain.errors import InvalidFieldError
from domain.market.reproducible import Array, decimal_text

Rule = Literal["mean", "median", "trimmed_mean"]

STEPS_MAX = 10_000
_DECIMAL = re.compile(r"(?:0|[1-9][0-9]{0,2})(?:\.[0-9]{1,12})?\Z", re.ASCII)


class RoundOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The parameters of a round, without floats so that a record can hold them.

    `learning_rate` is an upper bound: all sites take the largest step that is stable at each of them, if that
    is smaller. One row in `validation_one_in` is held out at each site, chosen by its hash; 0 holds out none.
    An update is an outlier where both its norm and its weighted norm exceed `norm_ratio_max` times the median
    of the others.

    Units:  communication_rounds 1..1000, local_steps 1..1000, their product up to 10,000; rate and l2 decimal
            strings.
    Errors: invalid_field.
    """

    communication_rounds: int = 20
    local_steps: int = 10
    learning_rate: str = "0.1"
    l2: str = "0.01"
    validation_one_in: int = 5
    rule: Rule = "mean"
    norm_ratio_max: int = 10

    def __post_init__(self) -> None:
        for field, low, high in (
            ("communication_rounds", 1, 1000),
            ("local_steps", 1, 1000),
            ("validation_one_in", 0, 1000),
            ("norm_ratio_max", 2, 10**6),
        ):
            number = getattr(self, field)
            if type(number) is not int or not low <= number <= high:
                raise InvalidFieldError(f"{field} is an integer from {low} to {high}", field=field)
        if self.communication_rounds * self.local_steps > STEPS_MAX:
            raise InvalidFieldError("a round has at most 10,000 local steps", field="local_steps")
        if self.validation_one_in == 1:
            raise InvalidFieldError(
                "holding out every row leaves none to train on", field="validation_one_in"
            )
        if self.rule not in ("mean", "median", "trimmed_mean"):
            raise InvalidFieldError("rule is mean, median or trimmed_mean", field="rule")
        for field in ("learning_rate", "l2"):
            if not isinstance(text := getattr(self, field), str) or not _DECIMAL.match(text):
                raise InvalidFieldError(f'{field} is a decimal string such as "0.5"', field=field)
        if not float(self.learning_rate):
            raise InvalidFieldError("learning_rate is greater than zero", field="learning_rate")


@dataclass(frozen=True, eq=False)
class Schema:
    """The shared columns and the constants that prepare them.

    Shapes: columns d names, sorted; flagged a subset, each with a missing-value feature; means, scales (d,).
    """

    columns: tuple[str, ...]
    flagged: tuple[str, ...]
    means: Array
    scales: Array

    @property
    def features(self) -> tuple[str, ...]:
        """Name the entries of a weight vector, in order."""
        return ("bias", *self.columns, *(f"missing:{name}" for name in self.flagged))


@dataclass(frozen=True, eq=False)
class Model:
    """A trained model: how to prepare a row, and one weight per feature.

    Shapes: weights (f,), f = len(schema.features).
    """

    schema: Schema
    weights: Array


@dataclass(frozen=True)
class Metrics:
    """How good some weights are over all sites; None where no held-out row, or only one class, could tell.

    Units:  losses in nats per row, without the penalty; accuracy and AUC from 0 to 1, on held-out rows.
    """

    train_rows: int
    validation_rows: int
    loss: float
    validation_loss: float | None
    accuracy: float | None
    auc: float | None

    def record(self) -> dict[str, str | int | None]:
        """Write the metrics for a record."""
        return {
            "train_rows": self.train_rows,
            "validation_rows": self.validation_rows,
            "loss": decimal_text(self.loss),
            "validation_loss": _optional_text(self.validation_loss),
            "accuracy": _optional_text(self.accuracy),
            "auc": _optional_text(self.auc),
        }


@dataclass(frozen=True, eq=False)
class Update:
    """What one seller delivered in one communication round.

    `loss_before` is its training loss under the weights that the whole round started from, `loss_after` under
    its own. Accuracy and AUC are its own weights' on the held-out rows of all sites, known for the last
    communication round only.

    Shapes: weights (f,).
    Units:  row_count training rows (n_k); norm the Euclidean distance from the broadcast weights; losses in
            nats per row.
    """

    seller: str
    communication_round: int
    features: tuple[str, ...]
    weights: Array
    row_count: int
    norm: float
    loss_before: float
    loss_after: float
    validation_rows: int = 0
    accuracy: float | None = None
    auc: float | None = None

    def record(self) -> dict[str, str | int | None]:
        """Write everything but the weights for a record."""
        return {
            "seller": self.seller,
            "communication_round": self.communication_round,
            "row_count": self.row_count,
            "norm": decimal_text(self.norm),
            "loss_before": decimal_text(self.loss_before),
            "loss_after": decimal_text(self.loss_after),
            "validation_rows": self.validation_rows,
            "accuracy": _optional_text(self.accuracy),
            "auc": _optional_text(self.auc),
        }


@dataclass(frozen=True)
class Step:
    """One communication round, measured after its aggregation."""

    communication_round: int
    metrics: Metrics
    update_norm_max: float

    def record(self) -> dict[str, str | int | None]:
        """Write the step for a record."""
        norms = {"update_norm_max": decimal_text(self.update_norm_max)}
        return {"communication_round": self.communication_round, **self.metrics.record(), **norms}


@dataclass(frozen=True, eq=False)
class RoundResult:
    """A finished round. `aggregate(updates, broadcast, options)` gives the model's weights again, bit by bit.

    Shapes: broadcast (f,), the weights that the last updates started from.
    """

    model: Model
    updates: tuple[Update, ...]
    broadcast: Array
    before: Metrics
    after: Metrics
    history: tuple[Step, ...]
    learning_rate: float
    options: RoundOptions


def _optional_text(value: float | None) -> str | None:
    return None if value is None else decimal_text(value)
