"""Penultimate features: of predicted cases beside their table, and of what each fold was trained on."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from oaplug.core.artifacts import digest_of_file, digest_of_json
from oaplug.core.errors import DatasetError, OaplugError, PredictionError
from oaplug.core.features import FEATURES_FILE, Features, read_features, write_features
from oaplug.core.leak import keyed_hash
from oaplug.core.predictions import read_trained_on
from oaplug.core.settings import to_mapping
from oaplug.core.target import MISSING
from oaplug.infer.predictor import read_ahead
from oaplug.prepare.store import read_array, read_record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from oaplug.core.case import Case, Problem
    from oaplug.core.features import FeatureArray, Grades
    from oaplug.core.predictions import PredictionTable
    from oaplug.infer.predictor import Predictor, Progress
    from oaplug.prepare.folder import PreprocessedFolder
    from oaplug.prepare.store import CaseRecord

log = logging.getLogger(__name__)


def train_features_path(folder: Path, fold: str, *, checkpoint: str) -> Path:
    """Where the features of a fold's training cases belong in a model folder."""
    return folder / f"fold_{fold}" / f"train_features_{checkpoint}.safetensors"


def predict_with_features(
    predictor: Predictor,
    cases: Sequence[Case],
    *,
    allow_training_cases: bool = False,
    progress: Progress | None = None,
) -> tuple[PredictionTable, list[Problem], Features]:
    """What `Predictor.predict` gives, and the features of the same cases from the same pass."""
    done, answers, problems = predictor.answer_cases(
        cases, allow_training_cases=allow_training_cases, progress=progress
    )
    folds = {name: np.stack([answer.features[name] for answer in answers]) for name in predictor.networks}
    return predictor.tabulate(done, answers), problems, _features(predictor, done, folds)


def _features(predictor: Predictor, cases: Sequence[Case], folds: Mapping[str, FeatureArray]) -> Features:
    return Features(
        model=predictor.name,
        checkpoint=predictor.checkpoint,
        case_ids=tuple(case.case_id for case in cases),
        subject_ids=tuple(case.subject_id for case in cases),
        folds=folds,
        weights={name: digest_of_file(predictor.checkpoint_path(name)) for name in folds},
        targets=predictor.run.description.targets,
        truths=_truths(predictor, cases),
    )


def drop_outdated(folder: Path, table: PredictionTable, predictor: Predictor) -> bool:
    """Remove features in `folder` that do not belong to `table`; whether there were any."""
    path = folder / FEATURES_FILE
    if not path.is_file():
        return False
    try:
        there = read_features(path)
        weights = {name: digest_of_file(predictor.checkpoint_path(name)) for name in predictor.networks}
        if there.case_ids == table.case_ids and there.weights == weights:
            return False
    except PredictionError:
        pass
    path.unlink()
    return True


def write_train_features(
    predictor: Predictor, data: PreprocessedFolder, *, progress: Progress | None = None
) -> list[Path]:
    """Write the features of each fold's training cases into the model folder; current files are kept.

    Raises DatasetError where `data` does not hold all of those cases, prepared as for the model.
    """
    found = {fold: training_cases(predictor, data, fold) for fold in predictor.networks}
    total, done = sum(map(len, found.values())), 0
    paths = []
    for fold, cases in found.items():
        path = train_features_path(predictor.folder, fold, checkpoint=predictor.checkpoint)
        if not _is_current(path, predictor, fold, cases):
            rows: list[FeatureArray] = []
            for case, volume in read_ahead(lambda case: _read(predictor, data, case), cases):
                if progress is not None:
                    progress(done + len(rows), total, f"fold {fold}, {case.case_id}")
                rows.append(predictor.features(volume, fold=fold))
            write_features(path, _features(predictor, cases, {fold: np.stack(rows)}))
        paths.append(path)
        done += len(cases)
    return paths


def _read(predictor: Predictor, data: PreprocessedFolder, case: Case) -> np.ndarray:
    return read_array(data.array_path(predictor.run.configuration.data_identifier, case.case_id))


def _is_current(path: Path, predictor: Predictor, fold: str, cases: Sequence[Case]) -> bool:
    """Whether the file holds the features of these cases by these weights, with their labels of today."""
    try:
        there = read_features(path)
    except OaplugError:
        return False
    truths = _truths(predictor, cases)
    return (
        there.case_ids == tuple(case.case_id for case in cases)
        and there.weights == {fold: digest_of_file(predictor.checkpoint_path(fold))}
        and there.truths.keys() == truths.keys()
        and all(np.array_equal(truth, there.truths[name]) for name, truth in truths.items())
    )


def _truths(predictor: Predictor, cases: Sequence[Case]) -> dict[str, Grades]:
    names = predictor.run.description.targets
    return {n: np.array([case.labels.get(n, MISSING) for case in cases], dtype=np.int64) for n in names}


def training_cases(predictor: Predictor, data: PreprocessedFolder, fold: str) -> list[Case]:
    """The cases of `data` that a fold was trained on, known by the hashes the model keeps of their images.

    Raises DatasetError where some are not there or were prepared otherwise than for the model.
    """
    seen = read_trained_on(predictor.folder / f"fold_{fold}" / "trained_on.json")
    wanted = digest_of_json(to_mapping(predictor.run.configuration))
    chosen, hashes = [], set()
    for case in (case for case in data.cases() if case.split == "train"):
        record = _record_of(predictor, data, case)
        if record is None or keyed_hash(seen.key, case.subject_id) not in seen.subjects:
            continue
        own = {keyed_hash(seen.key, digest) for digest in record.inputs}
        if not own <= seen.images:
            continue
        if record.configuration != wanted:
            raise DatasetError(
                f"case {case.case_id} in {data.folder} was prepared with other settings than the model's; "
                "run oaplug_preprocess with the plan the model was trained with"
            )
        chosen.append(case)
        hashes |= own
    if missing := len(seen.images - hashes):
        raise DatasetError(
            f"{missing} of the {len(seen.images)} images that fold {fold} of {predictor.name} was trained on "
            f"are not in {data.folder}; it needs the preprocessed dataset of the training"
        )
    return chosen


def _record_of(predictor: Predictor, data: PreprocessedFolder, case: Case) -> CaseRecord | None:
    path = data.record_path(predictor.run.configuration.data_identifier, case.case_id)
    return read_record(path) if path.is_file() else None
