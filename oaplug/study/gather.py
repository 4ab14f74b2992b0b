"""From model folders and prediction tables to a Study: the same cases, in the same order, never leaked."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from oaplug.core.errors import LeakError, PathError, PredictionError
from oaplug.core.leak import leaked_cases
from oaplug.core.paths import Places
from oaplug.core.predictions import read_predictions
from oaplug.core.study import Study, StudyModel
from oaplug.core.target import MISSING, grade_names
from oaplug.study.grids import find_grids
from oaplug.study.sources import FolderSource, find_cases_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from oaplug.core.case import Case
    from oaplug.core.predictions import PredictionTable, TargetPredictions
    from oaplug.core.volume import Volume

    Paths = Mapping[str, Path | tuple[Path, ...]]

log = logging.getLogger(__name__)
SHOWN_IDS = 5


def name_models(arguments: Sequence[str]) -> dict[str, Path | tuple[Path, ...]]:
    """Paths by model name, from `[NAME=]PATH` as written on the command line.

    An unnamed path is called after its folder; RUN/predictions/SET, RUN/crossval_results and
    RUN/fold_N/validation after RUN.
    A NAME given several times is one model with several runs. Raises PredictionError where two models
    would have one name by chance, or one path is given twice under one name.
    """
    models: dict[str, Path | tuple[Path, ...]] = {}
    unnamed: set[str] = set()
    for argument in arguments:
        name, path, named = _split_argument(argument)
        earlier = _runs(models.get(name, ()))
        if earlier and (not named or name in unnamed or path in earlier):
            raise PredictionError(
                f"two models are called {name!r} ({earlier[0]} and {path}); tell them apart with NAME=PATH"
            )
        unnamed |= set() if named else {name}
        models[name] = (*earlier, path) if earlier else path
    return models


def _runs(paths: Path | tuple[Path, ...]) -> tuple[Path, ...]:
    return paths if isinstance(paths, tuple) else (paths,)


def _split_argument(argument: str) -> tuple[str, Path, bool]:
    """Name and path of an argument, and whether the name was given."""
    name, equals, rest = argument.partition("=")
    if not equals or Path(argument).expanduser().exists():
        path = Path(argument).expanduser()
        return _default_name(path), path, False
    if not name.strip() or not rest:
        raise PredictionError(f"{argument!r}: expected PATH or NAME=PATH")
    return name.strip(), Path(rest).expanduser(), True


def _default_name(path: Path) -> str:
    whole = path.resolve()
    if whole.suffix == ".csv" and whole.name != "predictions.csv":
        return whole.stem
    folder = whole.parent if whole.suffix == ".csv" else whole
    if folder.name == "crossval_results":
        return folder.parent.name
    is_set = folder.parent.name == "predictions"
    is_validation = folder.name == "validation" and re.fullmatch(r"fold_\w+", folder.parent.name)
    return folder.parent.parent.name if is_set or is_validation else folder.name


def open_study(
    models: Paths,
    *,
    resamples: int,
    seed: int,
    intersect: bool = False,
    places: Places | None = None,
    device: str | None = None,
) -> Study:
    """Open every model's predictions and pair their cases, in the order of the first model.

    A path is a predictions.csv, a folder that holds one, or a model folder with one predicted set (where
    there is none: with out-of-fold predictions);
    several paths are runs of one model, called NAME#1, NAME#2. `intersect` compares the cases that all
    models predict instead of refusing unequal sets. `places` has the roots of raw and preprocessed datasets
    (None: the environment's), for analyses that need them; `device` is for those that need networks (None:
    a GPU where there is one). Raises PathError for a path that does not exist, PredictionError where the
    tables do not belong together, LeakError for cases of subjects a model was trained on.
    """
    places = Places() if places is None else places
    if not models:
        raise PredictionError("no model was given: pass at least one model folder or predictions.csv")
    if resamples < 1:
        raise PredictionError(f"the number of bootstrap resamples must be positive, got {resamples}")
    opening = partial(_open_model, places=places, device=device)
    opened = [model for name, paths in models.items() for model in _open_runs(name, _runs(paths), opening)]
    everything = set().union(*(model.predictions.case_ids for model in opened))
    if intersect:
        opened = _intersect(opened)
    paired = [opened[0], *(_pair(opened[0], other) for other in opened[1:])]
    _check_truths(paired)
    first = paired[0].predictions
    run_folder = next((model.folder for model in paired if model.folder is not None), None)
    cases, cases_lacking = find_cases_of(first.case_ids, run_folder, places=places)
    return Study(
        models=tuple(paired),
        case_ids=first.case_ids,
        subject_ids=first.subject_ids,
        resamples=resamples,
        seed=seed,
        left_out=len(everything) - len(first.case_ids),
        cases=cases,
        cases_lacking=cases_lacking,
        read_image=_read_image,
        grids=find_grids(run_folder, places=places),
    )


def _read_image(case: Case) -> Volume:
    from oaplug.prepare.reading import read_image

    return read_image(case.images, case_id=case.case_id)


def _intersect(models: Sequence[StudyModel]) -> list[StudyModel]:
    """The models with the cases that all of them predict; says how many are left out."""
    sets = [set(model.predictions.case_ids) for model in models]
    common, everything = set.intersection(*sets), set.union(*sets)
    if not common:
        raise PredictionError(f"no case is predicted by all of {', '.join(model.name for model in models)}")
    log.info("comparing the %d cases that all models predict, of %d", len(common), len(everything))
    return [
        replace(
            m, predictions=m.predictions.take([case for case in m.predictions.case_ids if case in common])
        )
        for m in models
    ]


def _open_runs(
    name: str, paths: Sequence[Path], opening: Callable[[str, Path], StudyModel]
) -> list[StudyModel]:
    """The model at a path, or several runs of it, numbered from 1."""
    if len(paths) == 1:
        return [opening(name, paths[0])]
    return [replace(opening(f"{name}#{number}", path), run_of=name) for number, path in enumerate(paths, 1)]


def _open_model(name: str, path: Path, *, places: Places, device: str | None) -> StudyModel:
    table_path = _find_table(path)
    table = read_predictions(table_path)
    if not table.targets:
        raise PredictionError(f"{name}: {table_path} holds no target; run oaplug_predict again")
    if leaked := leaked_cases(table):
        raise LeakError(
            f"{name}: {table_path} holds {len(leaked)} cases of subjects this model was trained on "
            f"({_shown(leaked)}); predict cases of other subjects"
        )
    folder = _run_folder(path)
    folds = tuple(sorted({fold for names in table.folds for fold in names.split("+") if fold}))
    source = FolderSource(
        table=table_path,
        folder=folder,
        folds=folds,
        is_out_of_fold=len(set(table.folds)) > 1,
        places=places,
        device=device,
    )
    return StudyModel(name=name, predictions=table, folder=folder, source=source)


def _find_table(path: Path) -> Path:
    """The predictions.csv that `path` stands for."""
    if not path.exists():
        raise PathError(f"{path} does not exist; expected a model folder, or a predictions.csv or its folder")
    if path.is_file():
        return path
    if (path / "predictions.csv").is_file():
        return path / "predictions.csv"
    if not (path / "plans.json").is_file():
        raise PredictionError(
            f"{path} holds neither predictions.csv nor plans.json, so it is no model folder; "
            "pass a model folder, or the folder oaplug_predict wrote"
        )
    sets = sorted(found.parent for found in (path / "predictions").glob("*/predictions.csv"))
    if not sets and (path / "crossval_results" / "predictions.csv").is_file():
        return path / "crossval_results" / "predictions.csv"
    if not sets:
        raise PredictionError(
            f"the model {path} has predicted nothing yet (no predictions/SET/predictions.csv); "
            "run oaplug_predict first, or oaplug_evaluate with a model whose folds are all trained"
        )
    if len(sets) > 1:
        names = ", ".join(folder.name for folder in sets)
        raise PredictionError(
            f"the model {path} has predicted several sets ({names}); pass the folder of one, "
            f"such as {sets[0]}"
        )
    return sets[0] / "predictions.csv"


def _run_folder(path: Path) -> Path | None:
    """The model folder that `path` is, or that its predictions lie in."""
    folder = path if path.is_dir() else path.parent
    return next((f for f in (folder, *folder.resolve().parents[:2]) if (f / "plans.json").is_file()), None)


def _pair(first: StudyModel, other: StudyModel) -> StudyModel:
    """`other` with its cases in the order of `first`."""
    expected, given = set(first.predictions.case_ids), set(other.predictions.case_ids)
    if expected != given:
        differences = [
            f"only in {name}: {_shown(sorted(ids))}"
            for name, ids in ((first.name, expected - given), (other.name, given - expected))
            if ids
        ]
        raise PredictionError(
            f"{first.name} and {other.name} were not given the same cases; "
            f"{'; '.join(differences)}; predict the same set with both, "
            "or compare the common cases with --intersect"
        )
    table = other.predictions.take(first.predictions.case_ids)
    _refuse(first, other, what="subjects", off=_differing(first.predictions.subject_ids, table.subject_ids))
    return replace(other, predictions=table)


def _check_truths(models: Sequence[StudyModel]) -> None:
    """Every target must mean the same, and have the same truths, in each model that predicts it."""
    owners: dict[str, StudyModel] = {}
    for model in models:
        for name, predictions in model.predictions.targets.items():
            owner = owners.setdefault(name, model)
            known = owner.predictions.targets[name]
            if known.target != predictions.target:
                raise PredictionError(
                    f"{owner.name} and {model.name} define the target {name!r} differently: "
                    f"{known.target} against {predictions.target}"
                )
            off = np.flatnonzero(known.truth != predictions.truth).tolist()
            _refuse(owner, model, what=f"truths of {name!r}", off=off, shown=_truths(known, predictions))


def _truths(first: TargetPredictions, other: TargetPredictions) -> list[str]:
    names = grade_names(first.target)
    texts = [["unknown" if index == MISSING else names[index] for index in p.truth] for p in (first, other)]
    return [f"{a} against {b}" for a, b in zip(*texts, strict=True)]


def _refuse(
    first: StudyModel, other: StudyModel, *, what: str, off: Sequence[int], shown: Sequence[str] | None = None
) -> None:
    if not off:
        return
    ids = _cases(first.predictions, off)
    if shown is not None:
        ids = [f"{name}: {shown[row]}" for name, row in zip(ids, off, strict=True)]
    raise PredictionError(
        f"{first.name} and {other.name} give different {what} for {len(off)} cases "
        f"({_shown(ids)}); predict with the same cases.csv"
    )


def _differing(first: Sequence[str], other: Sequence[str]) -> list[int]:
    return [row for row, (a, b) in enumerate(zip(first, other, strict=True)) if a != b]


def _cases(table: PredictionTable, rows: Iterable[int]) -> list[str]:
    return [table.case_ids[row] for row in rows]


def _shown(ids: Sequence[str]) -> str:
    more = len(ids) - SHOWN_IDS
    return ", ".join(ids[:SHOWN_IDS]) + (f" and {more} more" if more > 0 else "")
