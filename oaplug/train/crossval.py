"""Cross-validation: several folds one after another, and their predictions of cases not trained on."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from oaplug.core.artifacts import read_json, write_json
from oaplug.core.bootstrap import estimate
from oaplug.core.errors import CheckpointError, LeakError, PathError, PlanError, PredictionError
from oaplug.core.evaluation import table_metrics
from oaplug.core.leak import leaked_cases
from oaplug.core.metrics import target_metrics
from oaplug.core.paths import Places, find_dataset
from oaplug.core.predictions import (
    PredictionTable,
    TargetPredictions,
    read_predictions,
    read_trained_on,
    write_predictions,
)
from oaplug.model.run_folder import read_run, run_difference, targets_of_run
from oaplug.prepare.folder import PreprocessedFolder
from oaplug.prepare.quarantine import quarantined_cases
from oaplug.prepare.splits import read_splits
from oaplug.train.checkpoints import checkpoint_path, has_state
from oaplug.train.fold_cases import usable_cases

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from oaplug.plug.registry import Registry
    from oaplug.prepare.splits import Fold
    from oaplug.train.fold import FoldRequest

log = logging.getLogger(__name__)
CROSSVAL_FOLDER = "crossval_results"
CONFIDENCE = 0.95


def check_folds(requests: Sequence[FoldRequest], registry: Registry) -> None:
    """Raise before any training what would stop one of several folds once those before it were trained."""
    folder, is_resumed = requests[0].folder, requests[0].resume
    if requests[0].validate_only:
        untrained = [r.fold for r in requests if not checkpoint_path(_folder(r), "final").is_file()]
        if untrained:
            raise CheckpointError(f"{folder}: {_folds(untrained)} not trained; train first (without --val)")
        return
    begun = [r.fold for r in requests if has_state(_folder(r)) and not is_finished(r, registry)]
    if begun and not is_resumed:
        raise PlanError(
            f"{folder}: {_folds(begun)} begun and not finished; continue with --c, or train anew under --tag"
        )
    new = [r for r in requests if not has_state(_folder(r)) and not is_finished(r, registry)]
    if is_resumed and len(new) == len(requests):
        raise CheckpointError(f"{folder} has no checkpoint to continue; train without --c")
    weights = requests[0].run.choices.pretrained_weights
    if new and weights is not None and requests[0].pretrained_weights is None:
        raise CheckpointError(
            f"{folder}: {_folds([r.fold for r in new])} not begun, and every fold of this run starts from "
            f"{weights.file}; pass -pretrained_weights FILE again"
        )


def what_is_left(request: FoldRequest, registry: Registry) -> FoldRequest | None:
    """The request for one of several folds, resumed only where it was begun; None where it is finished."""
    if request.validate_only:
        return request
    if is_finished(request, registry):
        log.info("fold %s is finished: skipped", request.fold)
        return None
    return replace(request, resume=request.resume and has_state(_folder(request)))


def is_finished(request: FoldRequest, registry: Registry) -> bool:
    """Whether a fold is trained and its validation cases, where it has any, are predicted."""
    folder = _folder(request)
    if not checkpoint_path(folder, "final").is_file():
        return False
    if (folder / "validation" / "summary.json").is_file():
        return True
    by_id = {case.case_id: case for case in request.data.cases()}
    out = quarantined_cases(request.data.folder, request.run.configuration.data_identifier)
    validation = [case_id for case_id in request.split.val if case_id not in out]
    return not usable_cases(validation, by_id, targets_of_run(request.run, registry))


def _folder(request: FoldRequest) -> Path:
    return request.folder / f"fold_{request.fold}"


def _folds(names: Iterable[str]) -> str:
    """`fold 2 is` or `folds 2, 4 are`."""
    listed = list(names)
    return f"fold {listed[0]} is" if len(listed) == 1 else f"folds {', '.join(listed)} are"


def missing_folds(model: Path, splits: Sequence[Fold]) -> list[str]:
    """Folds with validation cases that are not trained, or whose validation cases are not predicted."""
    folders = {str(number): model / f"fold_{number}" for number, fold in enumerate(splits) if fold.val}
    return [
        number
        for number, folder in folders.items()
        if not (
            checkpoint_path(folder, "final").is_file()
            and (folder / "validation" / "predictions.csv").is_file()
        )
    ]


def crossval_results(model: Path, places: Places) -> Path:
    """crossval_results/ of a model folder: gathered anew where the folds of its dataset are at hand.

    Raises CheckpointError, PredictionError or LeakError where the folds cannot be gathered, PathError where
    neither the preprocessed dataset nor earlier results are there.
    """
    run, there = read_run(model), model / CROSSVAL_FOLDER
    try:
        data = PreprocessedFolder(find_dataset(places.preprocessed, run.plan.dataset_name))
    except PathError:
        if (there / "predictions.csv").is_file():
            return there
        raise
    return write_crossval_results(model, read_splits(data.splits_path, data.cases()))


def write_crossval_results(
    model: Path, splits: Sequence[Fold], *, resamples: int = 1000, seed: int = 0
) -> Path:
    """Write predictions.csv, predictions.json and summary.json into MODEL/crossval_results; gives that."""
    table, folder = out_of_fold(model, splits), model / CROSSVAL_FOLDER
    write_predictions(folder, table)
    write_json(folder / "summary.json", crossval_summary(table, resamples=resamples, seed=seed))
    return folder


def out_of_fold(model: Path, splits: Sequence[Fold]) -> PredictionTable:
    """Predictions of every case by the fold that did not train on it, by case id.

    Raises CheckpointError naming folds that are missing or were trained with other settings,
    PredictionError where a fold was trained with another split or a case validates in several folds,
    LeakError where a fold was trained on a subject that it validates.
    """
    if missing := missing_folds(model, splits):
        raise CheckpointError(
            f"{model} is not cross-validated: {_folds(missing)} not trained and validated, of {len(splits)} "
            f"in splits_final.json; run oaplug_train with {' '.join(missing)}"
        )
    plans = read_json(model / "plans.json", error=CheckpointError)
    tables = [
        _validated(model / f"fold_{number}", split, plans=plans)
        for number, split in enumerate(splits)
        if split.val
    ]
    if not tables:
        raise PredictionError(f"{model}: no fold of splits_final.json has validation cases")
    counts = Counter(case_id for table in tables for case_id in table.case_ids)
    if twice := sorted(case_id for case_id, count in counts.items() if count > 1):
        raise PredictionError(
            f"{model}: {_shown(twice)} validated by several folds; cross-validation needs every case once"
        )
    return _joined(tables).take(sorted(counts))


def _validated(folder: Path, split: Fold, *, plans: Any) -> PredictionTable:
    """A fold's predictions of its validation cases, once they are what they should be."""
    debug = read_json(folder / "debug.json", error=CheckpointError)
    if "run" in debug and (key := run_difference(plans, debug["run"])) is not None:
        raise CheckpointError(
            f"{folder} was trained with another {key} than {folder.parent / 'plans.json'} has; folds of "
            "different plans are different models: train it again with this one"
        )
    table = read_predictions(folder / "validation")
    moved = set(table.case_ids) - set(split.val) | set(debug["training_cases"]) - set(split.train)
    if moved:
        raise PredictionError(
            f"{folder} was trained with another split: {_shown(sorted(moved))} elsewhere in "
            "splits_final.json; train it again, under another --tag"
        )
    if lost := set(debug["validation_cases"]) ^ set(table.case_ids):
        raise PredictionError(
            f"{folder / 'validation' / 'predictions.csv'} does not hold the fold's validation cases "
            f"({_shown(sorted(lost))} not in both); run oaplug_train with --val"
        )
    seen = read_trained_on(folder / "trained_on.json")
    if leaked := leaked_cases(replace(table, trained_on=seen)):
        raise LeakError(f"{folder} was trained on subjects that it validates: {_shown(leaked)} among them")
    return replace(table, trained_on=None)


def _shown(case_ids: Sequence[str]) -> str:
    more = f" and {len(case_ids) - 5} more" if len(case_ids) > 5 else ""
    verb = "is" if len(case_ids) == 1 else "are"
    return f"case{'s' if len(case_ids) > 1 else ''} {', '.join(case_ids[:5])}{more} {verb}"


def _joined(tables: Sequence[PredictionTable]) -> PredictionTable:
    """The rows of tables of one model, one after the other."""
    first = tables[0]
    return replace(
        first,
        case_ids=tuple(name for table in tables for name in table.case_ids),
        subject_ids=tuple(name for table in tables for name in table.subject_ids),
        folds=tuple(name for table in tables for name in table.folds),
        targets={name: _joined_target([table.targets[name] for table in tables]) for name in first.targets},
    )


def _joined_target(parts: Sequence[TargetPredictions]) -> TargetPredictions:
    return TargetPredictions(
        target=parts[0].target,
        truth=np.concatenate([part.truth for part in parts]),
        predicted=np.concatenate([part.predicted for part in parts]),
        probabilities=np.concatenate([part.probabilities for part in parts]),
    )


def crossval_summary(table: PredictionTable, *, resamples: int, seed: int) -> dict[str, Any]:
    """Metrics over all cases with percentile intervals from resampled subjects, and those of each fold."""
    by_fold = {
        fold: table.take([c for c, f in zip(table.case_ids, table.folds, strict=True) if f == fold])
        for fold in sorted(set(table.folds), key=int)
    }
    return {
        "schema": 1,
        "model": table.model,
        "cases": len(table.case_ids),
        "subjects": len(set(table.subject_ids)),
        "metrics": table_metrics(table),
        "intervals": _intervals(table, resamples=resamples, seed=seed),
        "confidence": CONFIDENCE,
        "resamples": resamples,
        "seed": seed,
        "folds": {
            fold: {"cases": len(one.case_ids), "metrics": table_metrics(one)} for fold, one in by_fold.items()
        },
    }


def _intervals(table: PredictionTable, *, resamples: int, seed: int) -> dict[str, list[float] | None]:
    """[low, high] by "target.metric"; None where it is not defined."""
    found: dict[str, list[float] | None] = {}
    for name, answers in table.targets.items():
        rows = np.flatnonzero(answers.known())
        if not rows.size:
            continue
        known = answers.take(rows)
        measured = estimate(
            partial(_measure, known),
            [table.subject_ids[row] for row in rows],
            resamples=resamples,
            seed=seed,
            confidence=CONFIDENCE,
        )
        for metric, one in measured.items():
            bounds = [float(one.low), float(one.high)]
            found[f"{name}.{metric}"] = bounds if np.isfinite(bounds).all() else None
    return found


def _measure(answers: TargetPredictions, weights: Any) -> dict[str, Any]:
    """Metrics (b,) for rows of case weights (b,N)."""
    return target_metrics(
        answers.truth,
        answers.probabilities,
        answers.predicted,
        ordered=answers.target.kind == "ordinal",
        weights=weights,
    )
