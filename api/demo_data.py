"""The data of the demonstration: the public breast-cancer set of scikit-learn, dealt to providers."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_breast_cancer

from domain.market.datasets import Dataset, split, to_csv

PARTS_MAX = 50
_SHARE_SKEWED = 3  # one row in three goes to a provider by tumour size instead of by lot


def breast_cancer_csv(parts: int) -> list[bytes]:
    """Deal the 569 rows over providers as CSV with a `target` column (1 = benign), the same bytes each time.

    Two thirds of the rows are dealt by lot, the others in order of mean radius, so that the providers see
    somewhat different patients, as hospitals do.

    Units:  parts 1..50.
    """
    if not 1 <= parts <= PARTS_MAX:
        raise ValueError("the demonstration knows 1 to 50 providers")
    whole = _breast_cancer()
    skewed, *even = split(whole, _SHARE_SKEWED)
    by_size = np.argsort(skewed.values[:, whole.columns.index("mean radius")], kind="stable")
    lots = split(_joined(even), parts, seed=1)
    return [
        to_csv(_joined([lot, skewed.take(np.sort(rows))]))
        for lot, rows in zip(lots, np.array_split(by_size, parts), strict=True)
    ]


def _breast_cancer() -> Dataset:
    bundle = load_breast_cancer()
    names = tuple(str(name) for name in bundle.feature_names)
    return Dataset(names, np.asarray(bundle.data, dtype=np.float64), bundle.target.astype(np.float64))


def _joined(parts: list[Dataset]) -> Dataset:
    values = np.vstack([part.values for part in parts])
    return Dataset(parts[0].columns, values, np.concatenate([part.target for part in parts]))
