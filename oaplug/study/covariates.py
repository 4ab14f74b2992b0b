"""What a case table says of the cases of a study beside their grades: side, visit and covariates."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from oaplug.core.case_table import read_covariates
from oaplug.core.errors import DatasetError, OaplugError
from oaplug.core.paths import find_dataset
from oaplug.model.run_folder import read_run

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from oaplug.core.paths import Places
    from oaplug.core.study import Study

    Rows = Mapping[str, Mapping[str, str]]


def with_covariates(study: Study, *, table: Path | None, places: Places) -> Study:
    """The study with the covariates of a cases.csv; None: that of the dataset of its first model folder.

    Columns that are blank for all its cases are left out. Raises DatasetError where a table that was given
    cannot be read, lists none of the cases, or says another subject of one. A table that was found is taken
    only if it lists all cases with the same subjects, because another data set may have equal case ids.
    """
    if table is not None:
        return replace(study, covariates=_columns(study, _read(study, table)))
    try:
        path = _find_table(study, places)
        rows = _read(study, path)
        if missing := [case for case in study.case_ids if case not in rows]:
            raise DatasetError(f"{path} does not list case {missing[0]}")
        return replace(study, covariates=_columns(study, rows))
    except OaplugError as failure:
        return replace(study, covariates_lacking=f"no case table was found: {failure}")


def _find_table(study: Study, places: Places) -> Path:
    folder = next((model.folder for model in study.models if model.folder is not None), None)
    if folder is None:
        raise DatasetError("which data set the cases are of is known for model folders only")
    return find_dataset(places.raw, read_run(folder).plan.dataset_name) / "cases.csv"


def _read(study: Study, path: Path) -> Rows:
    """Rows by case id, checked against the study's cases."""
    rows = read_covariates(path, without=study.targets)
    known = [pair for pair in zip(study.case_ids, study.subject_ids, strict=True) if pair[0] in rows]
    if not known:
        raise DatasetError(f"{path} lists none of the cases that are analyzed, such as {study.case_ids[0]}")
    for case, subject in known:
        told = rows[case]["subject_id"]
        if told not in ("", subject):
            raise DatasetError(
                f"{path}: case {case} is of subject {told!r}, but of {subject!r} in the predictions; "
                "give the table that was used for predicting"
            )
    return rows


def _columns(study: Study, rows: Rows) -> dict[str, tuple[str, ...]]:
    names = [name for name in next(iter(rows.values())) if name != "subject_id"]
    columns = {name: tuple(rows.get(case, {}).get(name, "") for case in study.case_ids) for name in names}
    return {name: values for name, values in columns.items() if any(values)}
