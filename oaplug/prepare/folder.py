"""The preprocessed folder of a dataset: what training needs, without the raw images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from oaplug.core.artifacts import make_folder, read_json, write_json
from oaplug.core.case_table import FIXED_COLUMNS, case_record, read_case_rows, write_case_table
from oaplug.core.dataset import DatasetDescription, description_to_json, read_description
from oaplug.core.errors import DatasetError, PlanError
from oaplug.core.plan import DEFAULT_PLANS, Plan, read_plan
from oaplug.prepare.store import array_path, record_path

if TYPE_CHECKING:
    from pathlib import Path

    from oaplug.core.case import Case
    from oaplug.core.dataset import Dataset

FINGERPRINT_FILE = "dataset_fingerprint.json"
SPLITS_FILE = "splits_final.json"


@dataclass(frozen=True)
class PreprocessedFolder:
    """$oaplug_preprocessed/DatasetXXX_Name."""

    folder: Path

    def publish(self, dataset: Dataset) -> None:
        """Write description and case table (splits filled in), so that training needs no raw data."""
        make_folder(self.folder)
        description = dataset.description
        write_json(self.folder / "dataset.json", description_to_json(description))
        columns = [*FIXED_COLUMNS, *description.targets, *description.covariates]
        records = [
            case_record(c, description.targets, covariates=description.covariates) for c in dataset.cases
        ]
        write_case_table(self.folder / "cases.csv", records, columns=columns)

    def description(self) -> DatasetDescription:
        """The dataset's description; raises PlanError where nothing was planned yet."""
        if not (self.folder / "dataset.json").is_file():
            number = self.folder.name.removeprefix("Dataset").split("_")[0]
            raise PlanError(
                f"{self.folder} holds nothing preprocessed; run oaplug_plan_and_preprocess -d {number} first"
            )
        return read_description(self.folder)

    def cases(self) -> tuple[Case, ...]:
        """Every case, with labels and without image files."""
        description = self.description()
        rows, problems = read_case_rows(
            self.folder / "cases.csv", description.targets, covariates=description.covariates
        )
        if problems:
            raise DatasetError(str(problems[0]))
        return tuple(row.to_case((), None, row.split or "train") for row in rows)

    def plan(self, name: str = DEFAULT_PLANS) -> Plan:
        """The plan called `name`; raises PlanError where it belongs to another dataset."""
        path = self.folder / f"{name}.json"
        plan = read_plan(path)
        if plan.dataset_name != self.folder.name:
            raise PlanError(
                f"{path} is a plan of {plan.dataset_name}, not of {self.folder.name}; "
                "run oaplug_plan_experiment for this dataset"
            )
        return plan

    def fingerprint(self) -> Any:
        """The dataset's fingerprint as JSON, or None."""
        path = self.folder / FINGERPRINT_FILE
        return read_json(path) if path.is_file() else None

    @property
    def splits_path(self) -> Path:
        """splits_final.json; a user's own file there wins."""
        return self.folder / SPLITS_FILE

    def array_path(self, data_identifier: str, case_id: str) -> Path:
        """Where a preprocessed case lies."""
        return array_path(self.folder / data_identifier, case_id)

    def record_path(self, data_identifier: str, case_id: str) -> Path:
        """The done-record of a preprocessed case."""
        return record_path(self.folder / data_identifier, case_id)
