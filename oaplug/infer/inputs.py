"""Which cases to predict: the images of a folder, with sides and truths from a case table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from oaplug.core.case import Case
from oaplug.core.case_table import read_case_rows
from oaplug.core.dataset import case_images
from oaplug.core.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from oaplug.core.case_table import CaseRow
    from oaplug.core.dataset import DatasetDescription

_IGNORED = frozenset({"unknown column", "missing column"})


def find_cases(folder: Path, description: DatasetDescription, *, table: Path | None) -> list[Case]:
    """The cases whose images (CASE_0000.nii.gz, ...) lie in `folder`.

    `table` is a cases.csv (None: the one beside the folder, where there is one); cases it does not list
    are their own subjects, of unknown side and truth. Raises DatasetError where the folder has no
    images of the model's file ending, or the table is off.
    """
    if not folder.is_dir():
        raise DatasetError(f"the folder {folder} does not exist")
    ending = f"_0000{description.file_ending}"
    ids = [path.name.removesuffix(ending) for path in sorted(folder.glob(f"*{ending}"))]
    if not ids:
        raise DatasetError(f"{folder} has no images called CASE{ending}; nnU-Net's naming is expected")
    rows = _read_rows(
        table if table is not None else folder.parent / "cases.csv", description, wanted=table is not None
    )
    return [_case(case_id, folder, description, rows) for case_id in ids]


def as_cases(given: Sequence[Case | Path | str], description: DatasetDescription) -> list[Case]:
    """Cases, or what paths of images are as cases, with side and truth from a cases.csv beside their folder.

    A name that ends with _0000 stands for all channels beside it, as nnU-Net names them. Raises
    DatasetError where a model of several channels is given an image of another name.
    """
    paths = [Path(one) for one in given if not isinstance(one, Case)]
    folders = {path.parent for path in paths}
    rows = {f: _read_rows(f.absolute().parent / "cases.csv", description, wanted=False) for f in folders}
    return [
        one if isinstance(one, Case) else _case_of(Path(one), description, rows[Path(one).parent])
        for one in given
    ]


def _case_of(path: Path, description: DatasetDescription, rows: Mapping[str, CaseRow]) -> Case:
    name = path.name.removesuffix(description.file_ending)
    if name.endswith("_0000"):
        return _case(name.removesuffix("_0000"), path.parent, description, rows)
    if len(description.channel_names) > 1:
        raise DatasetError(
            f"{path}: the model takes {len(description.channel_names)} channels; give CASE_0000"
            f"{description.file_ending}, with the others beside it"
        )
    return Case(case_id=name, subject_id=name, images=(path,), split="test")


def _read_rows(path: Path, description: DatasetDescription, *, wanted: bool) -> dict[str, CaseRow]:
    if not path.is_file():
        if wanted:
            raise DatasetError(f"the case table {path} does not exist")
        return {}
    rows, problems = read_case_rows(path, description.targets, covariates=description.covariates)
    serious = [problem for problem in problems if problem.kind not in _IGNORED]
    if serious:
        raise DatasetError(str(serious[0]))
    return {row.case_id: row for row in rows}


def _case(case_id: str, folder: Path, description: DatasetDescription, rows: Mapping[str, CaseRow]) -> Case:
    images = case_images(folder, case_id, description)
    row = rows.get(case_id)
    if row is None:
        return Case(case_id=case_id, subject_id=case_id, images=images, split="test")
    return row.to_case(images, None, row.split or "test")
