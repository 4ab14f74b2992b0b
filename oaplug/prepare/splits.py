"""Folds: who is trained on and who validates, stratified by grade, grouped by subject, frozen in a file."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from oaplug.core.artifacts import read_json, write_json
from oaplug.core.errors import DatasetError, PlanError
from oaplug.core.seeds import random_generator
from oaplug.core.target import MISSING, finest_target

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from oaplug.core.case import Case
    from oaplug.core.target import Target

log = logging.getLogger(__name__)
DEFAULT_FOLDS = 5
DEFAULT_SEED = 12345


@dataclass(frozen=True)
class Fold:
    """Case ids, sorted, that one model is trained on and validated with."""

    train: tuple[str, ...]
    val: tuple[str, ...]


def labelled_training_cases(cases: Sequence[Case]) -> list[Case]:
    """Cases of the training split with at least one known label, by case id."""
    usable = [case for case in cases if case.split == "train" and any(map(case.has_label, case.labels))]
    return sorted(usable, key=lambda case: case.case_id)


def make_splits(
    cases: Sequence[Case],
    targets: Mapping[str, Target],
    *,
    folds: int = DEFAULT_FOLDS,
    seed: int = DEFAULT_SEED,
) -> list[Fold]:
    """Folds in which every labelled training case validates exactly once and no subject is on both sides.

    Grades of the finest target are spread evenly, cases without that grade being a stratum of their own;
    where every grade has fewer cases than folds, the next coarser target is spread instead. The order
    of `cases` does not matter. Raises DatasetError where there are fewer labelled subjects than folds.
    """
    if folds < 2:
        raise DatasetError(f"cannot make {folds} folds: at least 2 are needed (or train fold 'all')")
    finest = finest_target(targets)
    usable = labelled_training_cases(cases)
    subjects = sorted({case.subject_id for case in usable})
    if len(subjects) < folds:
        raise DatasetError(
            f"cannot make {folds} folds of {len(subjects)} subjects: at least {folds} subjects with labels "
            "are needed in the training split; label more cases in cases.csv or train fold 'all'"
        )
    order = random_generator(seed, "splits").permutation(len(subjects))
    rank = dict(zip(subjects, order.tolist(), strict=True))
    groups = [rank[case.subject_id] for case in usable]
    for name, strata in _stratifications(usable, targets, finest=finest):
        parts = _validation_parts(strata, groups, folds=folds)
        if parts and all(parts):
            if name != finest.name:
                log.warning(
                    "too few cases per grade of %s: %d folds balanced by %s", finest.name, folds, name
                )
            return [_fold(usable, set(part)) for part in parts]
    raise AssertionError("without strata, as many subjects as folds leave no fold empty")


def _stratifications(
    cases: Sequence[Case], targets: Mapping[str, Target], *, finest: Target
) -> list[tuple[str, list[int]]]:
    """What may be spread evenly, fine to coarse: grades of each target (-1: unknown), at last only cases."""
    coarser = sorted((t for t in targets.values() if t != finest), key=lambda t: -len(t.grades))
    graded = [(t.name, [case.labels.get(t.name, MISSING) for case in cases]) for t in (finest, *coarser)]
    return [*graded, ("number of cases", [0] * len(cases))]


def _validation_parts(strata: Sequence[int], groups: Sequence[int], *, folds: int) -> list[list[int]]:
    """Indices of the cases that validate in each fold; nothing where every stratum is smaller than `folds`.

    Groups are dealt out in the order of their numbers, which make_splits has shuffled.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    if max(Counter(strata).values()) < folds:
        return []
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="The least populated class in y has only", category=UserWarning
        )
        pairs = StratifiedGroupKFold(n_splits=folds).split(strata, strata, groups)
        return [[int(index) for index in validation] for _, validation in pairs]


def _fold(cases: Sequence[Case], validation: set[int]) -> Fold:
    return Fold(
        train=tuple(case.case_id for index, case in enumerate(cases) if index not in validation),
        val=tuple(case.case_id for index, case in enumerate(cases) if index in validation),
    )


def write_splits(path: Path, splits: Sequence[Fold]) -> Path:
    """Write splits_final.json in nnU-Net's format: a list of {"train": [ids], "val": [ids]}."""
    return write_json(path, [{"train": list(fold.train), "val": list(fold.val)} for fold in splits])


def read_splits(path: Path, cases: Sequence[Case]) -> list[Fold]:
    """Read splits_final.json, the user's or ours, and hold it against the cases of the dataset.

    Raises DatasetError naming what is wrong: a case that is unknown, belongs to the test split, is listed
    twice or is on both sides of a fold; a subject on both sides.
    """
    content = read_json(
        path, error=DatasetError, hint="run oaplug_preprocess or oaplug_plan_and_preprocess first"
    )
    if not isinstance(content, list) or not content:
        raise DatasetError(
            f'{path}: expected a list of folds, [{{"train": [case ids], "val": [case ids]}}, ...]'
        )
    known = {case.case_id: case for case in cases}
    return [_read_fold(entry, known, where=f"{path}: fold {index}") for index, entry in enumerate(content)]


def _read_fold(entry: Any, known: Mapping[str, Case], *, where: str) -> Fold:
    if not isinstance(entry, dict) or not all(isinstance(entry.get(side), list) for side in ("train", "val")):
        raise DatasetError(f"{where}: expected an object with the lists 'train' and 'val'")
    if not entry["train"]:
        raise DatasetError(f"{where}: 'train' is empty; list at least one case")
    listed: list[Any] = [*entry["train"], *entry["val"]]
    _refuse([i for i in listed if not isinstance(i, str) or i not in known], where, "not in the dataset")
    _refuse(
        [i for i in listed if known[i].split == "test"], where, "of the test split, which folds never touch"
    )
    _refuse(set(entry["train"]) & set(entry["val"]), where, "in both train and val")
    _refuse([i for i, count in Counter(listed).items() if count > 1], where, "listed more than once")
    train, val = ({known[i].subject_id for i in entry[side]} for side in ("train", "val"))
    _refuse(
        train & val, where, "in both train and val; keep all cases of a subject on one side", what="subject"
    )
    return Fold(train=tuple(sorted(entry["train"])), val=tuple(sorted(entry["val"])))


def _refuse(names: Sequence[Any] | set[Any], where: str, why: str, *, what: str = "case") -> None:
    if names:
        unique = sorted(set(map(str, names)))
        more = f" and {len(unique) - 5} more" if len(unique) > 5 else ""
        plural = "s" if len(unique) > 1 else ""
        raise DatasetError(f"{where}: {what}{plural} {', '.join(unique[:5])}{more}: {why}; correct the file")


def read_or_make_splits(path: Path, cases: Sequence[Case], targets: Mapping[str, Target]) -> list[Fold]:
    """The folds in `path` where that file exists (the user's wins), else new ones, then written there."""
    if path.is_file():
        return read_splits(path, cases)
    splits = make_splits(cases, targets)
    write_splits(path, splits)
    return splits


def fold_cases(splits: Sequence[Fold], fold: int | Literal["all"], *, cases: Sequence[Case]) -> Fold:
    """The cases of one fold; "all" trains on every labelled training case and validates with none.

    Raises PlanError naming the folds there are.
    """
    if fold == "all":
        return Fold(train=tuple(case.case_id for case in labelled_training_cases(cases)), val=())
    if not 0 <= fold < len(splits):
        there = ", ".join(map(str, range(len(splits))))
        raise PlanError(f"there is no fold {fold} in splits_final.json (folds: {there}, or all)")
    return splits[fold]
