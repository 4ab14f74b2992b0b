"""Baselines without anatomy: what a network must beat on the phantom, and what must fail on it.

Each baseline sees one shortcut: the intensity histogram, the box of the content, a coarse picture,
or the order of the files. Volumes are (D,H,W), already mirrored so that +D is lateral.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from sklearn.base import RegressorMixin
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import RidgeCV
from sklearn.metrics import cohen_kappa_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

Array = npt.NDArray[np.float64]
Volume = npt.NDArray[np.float32]

HISTOGRAM_BINS = 64
COARSE_SIZE = 8
TOP_GRADE = 4
OA_FROM_GRADE = 2


def histogram_features(volume: Volume) -> Array:
    """Shares (64,) of voxels per bin of the z-scored volume (D,H,W), from -2 to 6 standard deviations."""
    counts, _ = np.histogram(np.clip(_z_score(volume), -2, 6), bins=HISTOGRAM_BINS, range=(-2, 6))
    return counts / volume.size


def content_box_features(volume: Volume) -> Array:
    """Boxes of content of the volume (D,H,W), at three thresholds: centre, size and share of voxels (21,)."""
    z = _z_score(volume)
    thresholds = (-0.5, 0.5, 2.0)
    return np.concatenate([_box_features(z > threshold) for threshold in thresholds])


def coarse_features(volume: Volume) -> Array:
    """The z-scored volume (D,H,W) mean-pooled to 8 x 8 x 8 (512,)."""
    pooled = _z_score(volume)
    for axis, size in enumerate(volume.shape):
        starts = np.arange(COARSE_SIZE) * size // COARSE_SIZE
        lengths = np.diff(np.append(starts, size))
        shape = [-1 if other == axis else 1 for other in range(3)]
        pooled = np.add.reduceat(pooled, starts, axis=axis) / lengths.reshape(shape)
    return pooled.ravel()


def score_baselines(
    train_volumes: Sequence[Volume],
    train_grades: Sequence[int],
    test_volumes: Sequence[Volume],
    test_grades: Sequence[int],
    *,
    train_order: Sequence[int] | None = None,
    test_order: Sequence[int] | None = None,
) -> dict[str, dict[str, float]]:
    """Score every baseline on the test cases: the better of ridge and boosting, which favours the shortcut.

    Args:
        train_volumes: training volumes (D,H,W).
        train_grades: their grades, 0 to 4.
        test_volumes: test volumes (D,H,W).
        test_grades: their grades, 0 to 4.
        train_order: place of each training file in the data set; without it, the order given.
        test_order: the same for the test files.

    Returns:
        Per baseline: qwk (quadratic weighted kappa), oa_auc (area under the curve for grade >= 2).
    """
    grades, truth = np.asarray(train_grades, float), np.asarray(test_grades)
    makers: dict[str, Callable[[Volume], Array]] = {
        "histogram": histogram_features,
        "content_box": content_box_features,
        "coarse": coarse_features,
    }
    tables = {
        name: (np.stack([make(v) for v in train_volumes]), np.stack([make(v) for v in test_volumes]))
        for name, make in makers.items()
    }
    tables["file_order"] = (_order(train_order, len(grades)), _order(test_order, len(truth)))
    return {name: _best_score(train, grades, test, truth) for name, (train, test) in tables.items()}


def _z_score(volume: Volume) -> Array:
    values = volume.astype(np.float64)
    return (values - values.mean()) / (values.std() + 1e-8)


def _box_features(mask: npt.NDArray[np.bool_]) -> Array:
    """Centre and size (as shares of the volume) of the box around a mask (D,H,W), and its filling (7,)."""
    found = ndimage.find_objects(ndimage.binary_opening(mask).astype(np.int8))
    if not found:
        return np.zeros(7)
    edges = np.array([(part.start, part.stop) for part in found[0]]) / np.array(mask.shape)[:, None]
    return np.concatenate([edges.mean(axis=1), edges[:, 1] - edges[:, 0], [mask.mean()]])


def _order(order: Sequence[int] | None, count: int) -> Array:
    return np.asarray(range(count) if order is None else order, float)[:, None]


def _best_score(train: Array, grades: Array, test: Array, truth: npt.NDArray[np.int64]) -> dict[str, float]:
    models: list[RegressorMixin] = [
        make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(-2, 6, 17))),
        HistGradientBoostingRegressor(max_iter=100, learning_rate=0.05, max_leaf_nodes=8, random_state=0),
    ]
    return max(
        (_score(model.fit(train, grades).predict(test), truth) for model in models), key=lambda s: s["qwk"]
    )


def _score(predicted: Array, truth: npt.NDArray[np.int64]) -> dict[str, float]:
    graded = np.clip(np.rint(predicted), 0, TOP_GRADE).astype(int)
    labels = list(range(TOP_GRADE + 1))
    return {
        "qwk": float(cohen_kappa_score(truth, graded, labels=labels, weights="quadratic")),
        "oa_auc": float(roc_auc_score(truth >= OA_FROM_GRADE, predicted)),
    }
