"""Penultimate features of cases, per fold: features.safetensors, with everything else in its header."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from oaplug.core.artifacts import atomic_path, check_schema
from oaplug.core.errors import PredictionError
from oaplug.core.target import Target, targets_from_json, targets_to_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Grades = NDArray[np.int64]
    FeatureArray = NDArray[np.float32]

FEATURES_SCHEMA = 1
FEATURES_FILE = "features.safetensors"
FEATURES_HEADER = "oaplug_features"
_FOLD, _TRUTH = "fold.", "truth."


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features of N cases by one model.

    `folds` holds features (N,F) by the name of the fold whose encoder they come from. Encoders of different
    folds share no space: never average or mix their features. `weights` is the digest of each fold's
    checkpoint file, `checkpoint` which one it was ("final" or "best"). `truths` are grade indices (N,) of
    `targets`, -1 where unknown. All arrays follow the order of `case_ids`.
    """

    model: str
    checkpoint: str
    case_ids: tuple[str, ...]
    subject_ids: tuple[str, ...]
    folds: Mapping[str, FeatureArray]
    weights: Mapping[str, str]
    targets: Mapping[str, Target]
    truths: Mapping[str, Grades]

    def __post_init__(self) -> None:
        where = f"features of {self.model}"
        if self.folds.keys() != self.weights.keys() or self.targets.keys() != self.truths.keys():
            raise PredictionError(f"{where}: folds and weights, targets and truths must agree")
        for name, table in self.folds.items():
            if table.ndim != 2 or len(table) != len(self.case_ids):
                raise PredictionError(
                    f"{where}, fold {name}: expected a row for each of {len(self.case_ids)} cases, got an "
                    f"array {table.shape}"
                )
            for row in np.flatnonzero(~np.isfinite(table).all(axis=1)):
                raise PredictionError(
                    f"{where}, fold {name}: not finite for case {self.case_ids[row]}; look at its images "
                    "and at how the training ended"
                )

    def take(self, case_ids: Sequence[str]) -> Features:
        """The features of `case_ids`, in their order; raises PredictionError naming a case it has not."""
        place = {name: row for row, name in enumerate(self.case_ids)}
        if missing := [name for name in case_ids if name not in place]:
            raise PredictionError(
                f"{FEATURES_FILE} of {self.model} lacks {len(missing)} cases, the first {missing[0]}; "
                "predict them again with --features"
            )
        rows = np.array([place[name] for name in case_ids], dtype=np.int64)
        return replace(
            self,
            case_ids=tuple(case_ids),
            subject_ids=tuple(self.subject_ids[row] for row in rows),
            folds={name: table[rows] for name, table in self.folds.items()},
            truths={name: truth[rows] for name, truth in self.truths.items()},
        )


def write_features(path: Path, features: Features) -> Path:
    """Write features atomically as float32, truths as int64, the rest as JSON in the header."""
    from safetensors.numpy import save_file

    tensors: dict[str, NDArray[Any]] = {
        _FOLD + name: np.ascontiguousarray(table, dtype=np.float32) for name, table in features.folds.items()
    }
    tensors |= {
        _TRUTH + name: np.ascontiguousarray(truth, dtype=np.int64) for name, truth in features.truths.items()
    }
    header = {
        "schema": FEATURES_SCHEMA,
        "model": features.model,
        "checkpoint": features.checkpoint,
        "case_ids": list(features.case_ids),
        "subject_ids": list(features.subject_ids),
        "weights": dict(features.weights),
        "targets": targets_to_json(features.targets),
    }
    with atomic_path(path) as temporary:
        save_file(tensors, str(temporary), metadata={FEATURES_HEADER: json.dumps(header)})
    return path


def read_features(path: Path) -> Features:
    """Read features; raises PredictionError where the file is missing, malformed or newer than this code."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise PredictionError(f"{path} does not exist; predict with --features")
    try:
        with safe_open(str(path), framework="numpy") as file:
            header = json.loads((file.metadata() or {})[FEATURES_HEADER])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        content = check_schema(header, path=path, newest=FEATURES_SCHEMA, error=PredictionError)
        return Features(
            model=content["model"],
            checkpoint=content["checkpoint"],
            case_ids=tuple(content["case_ids"]),
            subject_ids=tuple(content["subject_ids"]),
            folds=_with_prefix(tensors, _FOLD, order=content["weights"]),
            weights=content["weights"],
            targets=targets_from_json(content["targets"], where=str(path)),
            truths=_with_prefix(tensors, _TRUTH, order=content["targets"]),
        )
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as failure:
        raise PredictionError(f"{path} holds no features of oaplug (safetensors): {failure}") from None


def _with_prefix(tensors: Mapping[str, Any], prefix: str, *, order: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tensors[prefix + name] for name in order}
