"""Prediction tables: per case and target the truth, the predicted grade and a probability per grade."""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from oaplug.core.artifacts import atomic_path, check_schema, read_json, write_json
from oaplug.core.errors import DatasetError, PredictionError
from oaplug.core.published import from_published, is_published
from oaplug.core.target import MISSING, Target, grade_names, targets_from_json, targets_to_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

PREDICTIONS_SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class TargetPredictions:
    """Predictions of one target: `truth` (N,) and `predicted` (N,) grade indices (-1: truth unknown),
    `probabilities` (N,K) with rows that sum to 1."""

    target: Target
    truth: NDArray[np.int64]
    predicted: NDArray[np.int64]
    probabilities: NDArray[np.float64]

    def known(self) -> NDArray[np.bool_]:
        """Which cases (N,) have a truth."""
        return np.asarray(self.truth != MISSING)

    def take(self, rows: NDArray[np.intp]) -> TargetPredictions:
        """The predictions of some cases, by their numbers."""
        return replace(
            self,
            truth=self.truth[rows],
            predicted=self.predicted[rows],
            probabilities=self.probabilities[rows],
        )


@dataclass(frozen=True, kw_only=True)
class TrainedOn:
    """Keyed hashes of the subjects and images a model was trained on: they tell a leak but no ids."""

    key: str
    subjects: frozenset[str] = frozenset()
    images: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class PredictionTable:
    """Predictions of one model for N cases; all arrays follow the order of `case_ids`."""

    case_ids: tuple[str, ...]
    subject_ids: tuple[str, ...]
    folds: tuple[str, ...]
    targets: Mapping[str, TargetPredictions]
    model: str = ""
    trained_on: TrainedOn | None = None

    def __post_init__(self) -> None:
        if len(set(self.case_ids)) != len(self.case_ids):
            twice = sorted({name for name in self.case_ids if self.case_ids.count(name) > 1})
            raise PredictionError(
                f"{self.model or 'prediction table'}: cases listed twice: {', '.join(twice[:5])}"
            )

    def take(self, case_ids: Sequence[str]) -> PredictionTable:
        """The same table restricted to `case_ids`, in their order."""
        place = {name: i for i, name in enumerate(self.case_ids)}
        rows = np.array([place[name] for name in case_ids], dtype=np.int64)
        return replace(
            self,
            case_ids=tuple(case_ids),
            targets={name: p.take(rows) for name, p in self.targets.items()},
            subject_ids=tuple(self.subject_ids[i] for i in rows),
            folds=tuple(self.folds[i] for i in rows),
        )


def write_predictions(folder: Path, table: PredictionTable) -> Path:
    """Write predictions.csv and predictions.json into `folder`; returns the CSV's path."""
    header = ["case_id", "subject_id", "fold"]
    for name, p in table.targets.items():
        header += [f"{name}_true", f"{name}_pred", *(f"{name}_prob_{g}" for g in grade_names(p.target))]
    path = folder / "predictions.csv"
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(_record(table, row) for row in range(len(table.case_ids)))
    write_json(folder / "predictions.json", _sidecar(table))
    return path


def _record(table: PredictionTable, row: int) -> list[Any]:
    record: list[Any] = [table.case_ids[row], table.subject_ids[row], table.folds[row]]
    for p in table.targets.values():
        names = grade_names(p.target)
        truth = int(p.truth[row])
        record += ["" if truth == MISSING else names[truth], names[int(p.predicted[row])]]
        record += [repr(float(value)) for value in p.probabilities[row]]
    return record


def _sidecar(table: PredictionTable) -> dict[str, Any]:
    content: dict[str, Any] = {
        "schema": PREDICTIONS_SCHEMA,
        "model": table.model,
        "targets": targets_to_json({name: p.target for name, p in table.targets.items()}),
    }
    if table.trained_on is not None:
        content["trained_on"] = _trained_on_to_json(table.trained_on)
    return content


def read_predictions(path: Path) -> PredictionTable:
    """Read a predictions.csv and the predictions.json beside it (`path`: the CSV or its folder).

    A CSV of the study's published schema (`oaplug.core.published`) needs no predictions.json.
    Raises PredictionError naming the row and column that is off.
    """
    path = path / "predictions.csv" if path.is_dir() else path
    sidecar = path.with_suffix(".json")
    if path.is_file() and not sidecar.exists() and is_published(rows := _read_rows(path)):
        targets, records = from_published(rows)
        return _make_table(records, targets, path=path, model=path.stem)
    content = read_json(sidecar, error=PredictionError, hint="it is written together with the CSV; copy both")
    content = check_schema(content, path=sidecar, newest=PREDICTIONS_SCHEMA, error=PredictionError)
    # A head may answer a derived target alone, so parents are asked for only where they are there.
    targets = _read_targets(content.get("targets", {}), where=str(sidecar))
    trained = content.get("trained_on")
    return _make_table(
        _read_records(path),
        targets,
        path=path,
        model=str(content.get("model", "")),
        seen=None if trained is None else _trained_on_from_json(trained),
    )


def _make_table(
    records: Sequence[Mapping[str, str]],
    targets: Mapping[str, Target],
    *,
    path: Path,
    model: str,
    seen: TrainedOn | None = None,
) -> PredictionTable:
    return PredictionTable(
        case_ids=tuple(r["case_id"] for r in records),
        subject_ids=tuple(r.get("subject_id") or r["case_id"] for r in records),
        folds=tuple(r.get("fold", "") for r in records),
        targets={name: _read_target(records, target, path=path) for name, target in targets.items()},
        model=model,
        trained_on=seen,
    )


def _trained_on_to_json(seen: TrainedOn) -> dict[str, Any]:
    return {"key": seen.key, "subjects": sorted(seen.subjects), "images": sorted(seen.images)}


def _trained_on_from_json(content: Mapping[str, Any]) -> TrainedOn:
    return TrainedOn(
        key=content["key"], subjects=frozenset(content["subjects"]), images=frozenset(content["images"])
    )


def write_trained_on(path: Path, seen: TrainedOn) -> Path:
    """Write what one fold was trained on, beside its checkpoints."""
    return write_json(path, {"schema": PREDICTIONS_SCHEMA, **_trained_on_to_json(seen)})


def read_trained_on(path: Path) -> TrainedOn:
    """Read what one fold was trained on."""
    content = read_json(path, error=PredictionError)
    content = check_schema(content, path=path, newest=PREDICTIONS_SCHEMA, error=PredictionError)
    return _trained_on_from_json(content)


def _read_targets(content: Mapping[str, Any], *, where: str) -> dict[str, Target]:
    alone = {n: e for n, e in content.items() if e.get("derived_from") and e["derived_from"] not in content}
    whole = targets_from_json({n: e for n, e in content.items() if n not in alone}, where=where)
    for name, entry in alone.items():
        whole[name] = Target(
            name=name,
            kind="binary",
            grades=tuple(entry["grades"]),
            derived_from=entry["derived_from"],
            at_least=entry["at_least"],
        )
    return whole


def _read_rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            records = list(csv.DictReader(file))
    except FileNotFoundError:
        raise PredictionError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError, csv.Error) as failure:
        raise PredictionError(f"{path} cannot be read as UTF-8 CSV: {failure}") from None
    return records


def _read_records(path: Path) -> list[dict[str, str]]:
    records = _read_rows(path)
    if not records or "case_id" not in records[0]:
        raise PredictionError(f"{path}: expected a column 'case_id' and at least one row")
    return records


def _read_target(records: Sequence[Mapping[str, str]], target: Target, *, path: Path) -> TargetPredictions:
    columns = [f"{target.name}_prob_{grade}" for grade in grade_names(target)]
    for column in [f"{target.name}_true", f"{target.name}_pred", *columns]:
        if column not in records[0]:
            raise PredictionError(
                f"{path}: no column {column!r}, though the table has the target {target.name!r}"
            )
    return TargetPredictions(
        target=target,
        truth=_read_grades(records, f"{target.name}_true", target, path=path),
        predicted=_read_grades(records, f"{target.name}_pred", target, path=path, needed=True),
        probabilities=_read_probabilities(records, columns, target, path=path),
    )


def _read_grades(
    records: Sequence[Mapping[str, str]], column: str, target: Target, *, path: Path, needed: bool = False
) -> NDArray[np.int64]:
    """Grade indices (N,) of a column; a blank is refused where a grade is `needed`."""
    indices = []
    for record in records:
        try:
            index = target.index_of(record[column])
        except DatasetError as failure:
            raise PredictionError(f"{path}: case {record['case_id']}: {column}: {failure}") from None
        if needed and index == MISSING:
            raise PredictionError(
                f"{path}: case {record['case_id']}: {column} is blank; every case needs a prediction"
            )
        indices.append(index)
    return np.array(indices, dtype=np.int64)


def _read_probabilities(
    records: Sequence[Mapping[str, str]], columns: Sequence[str], target: Target, *, path: Path
) -> NDArray[np.float64]:
    """Probabilities (N,K), checked row by row."""
    try:
        probabilities = np.array([[float(r[c]) for c in columns] for r in records])
    except (ValueError, TypeError) as failure:  # TypeError: a row shorter than the header
        raise PredictionError(
            f"{path}: a probability of {target.name!r} is not a number: {failure}"
        ) from None
    near_one = np.abs(probabilities.sum(axis=1) - 1) < 1e-3
    off = np.flatnonzero(~(near_one & (probabilities >= 0).all(axis=1)))
    if off.size:
        case = records[int(off[0])]["case_id"]
        raise PredictionError(
            f"{path}: case {case}: probabilities of {target.name!r} are negative or do not sum to 1"
        )
    return probabilities
