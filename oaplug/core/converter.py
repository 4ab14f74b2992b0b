"""What a converter writes into: a raw dataset folder, and the record of what was converted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from oaplug.core.artifacts import write_json
from oaplug.core.case_table import FIXED_COLUMNS, case_record, write_case_table
from oaplug.core.dataset import case_images, description_to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from oaplug.core.case import Case, Problem, SplitName
    from oaplug.core.dataset import DatasetDescription


@dataclass(frozen=True, kw_only=True)
class ConversionRecord:
    """How many cases were converted, which were left out and why, what to mend, and notes for the user.

    `excluded` are cases with nothing to mend (not downloaded, say); those of `problems` were left out too.
    """

    cases: int
    excluded: tuple[tuple[str, str], ...] = ()
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RawFolder:
    """A DatasetXXX_Name folder being written; gives the paths and writes its two tables.

    `progress` is told by `report` how far the work is; copies sent to other processes tell nobody.
    """

    folder: Path
    progress: Callable[[int, int, str], None] | None = None

    def __reduce__(self) -> tuple[type[RawFolder], tuple[Path]]:
        return RawFolder, (self.folder,)

    def report(self, done: int, total: int, what: str) -> None:
        """Say that `done` of `total` are done, the last being `what`."""
        if self.progress is not None:
            self.progress(done, total, what)

    def image_paths(
        self, case_id: str, *, split: SplitName, description: DatasetDescription
    ) -> tuple[Path, ...]:
        """Where the channels of a case belong."""
        return case_images(
            self.folder / ("imagesTr" if split == "train" else "imagesTs"), case_id, description
        )

    def mask_path(self, case_id: str, *, split: SplitName, description: DatasetDescription) -> Path:
        """Where the mask of a case belongs."""
        folder = self.folder / ("labelsTr" if split == "train" else "labelsTs")
        return folder / f"{case_id}{description.file_ending}"

    def write_tables(self, description: DatasetDescription, cases: Sequence[Case]) -> None:
        """Write dataset.json (with nnU-Net's numTraining) and cases.csv."""
        content = description_to_json(description)
        content["numTraining"] = sum(case.split == "train" for case in cases)
        write_json(self.folder / "dataset.json", content)
        columns = [*FIXED_COLUMNS, *description.targets, *description.covariates]
        records = [case_record(c, description.targets, covariates=description.covariates) for c in cases]
        write_case_table(self.folder / "cases.csv", records, columns=columns)
