"""Cases that are left out until they are mended: quarantine/STEP/CASE.json, one atomic file for a case.

A step is the fingerprint, or the data identifier of a configuration. Each file is written and removed by that
step alone, so machines that share a folder need no lock.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import oaplug
from oaplug.core.artifacts import check_schema, read_json, write_json
from oaplug.core.case import Problem, Side
from oaplug.core.errors import DatasetError
from oaplug.core.settings import from_mapping, to_mapping
from oaplug.prepare.splits import Fold
from oaplug.prepare.store import writing

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from oaplug.prepare.folder import PreprocessedFolder

log = logging.getLogger(__name__)
MARK_SCHEMA = 1
FINGERPRINT_STEP = "fingerprint"
QUARANTINE_FOLDER = "quarantine"
RECORD_FILE = "preprocessing_record.json"


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Why a case is left out, and of what this is true.

    `inputs` are digests of its files (None: they cannot be read), `configuration` that of the plan's
    configuration ("" for the fingerprint), `revision` and `oaplug` the code's. A case of other inputs,
    configuration, side or code is tried again.
    """

    case_id: str
    step: str
    kind: str
    message: str
    file: str
    inputs: tuple[str, ...] | None
    configuration: str = ""
    revision: int = 0
    side: Side | None = None
    oaplug: str = oaplug.__version__

    @property
    def problem(self) -> Problem:
        """What is wrong with the case."""
        return Problem(kind=self.kind, message=self.message, case_id=self.case_id, file=self.file)


def mark_path(folder: Path, step: str, case_id: str) -> Path:
    """Where a step's mark of a case belongs in a preprocessed folder."""
    return folder / QUARANTINE_FOLDER / step / f"{case_id}.json"


def write_mark(folder: Path, mark: Mark) -> Path:
    """Put a case into quarantine; raises PathError where the file cannot be written."""
    path = mark_path(folder, mark.step, mark.case_id)
    with writing(path):
        return write_json(path, {"schema": MARK_SCHEMA, **to_mapping(mark)})


def read_mark(folder: Path, step: str, case_id: str) -> Mark | None:
    """A step's mark of a case, or None; raises DatasetError where the file is malformed."""
    path = mark_path(folder, step, case_id)
    if not path.is_file():
        return None
    hint = "run oaplug_preprocess again"
    content = dict(
        check_schema(
            read_json(path, error=DatasetError, hint=hint), path=path, newest=MARK_SCHEMA, error=DatasetError
        )
    )
    content.pop("schema")
    return from_mapping(Mark, content, where=str(path), error=DatasetError)


def release(folder: Path, step: str, case_id: str) -> None:
    """Take a case out of a step's quarantine, where it is in it."""
    with writing(path := mark_path(folder, step, case_id)):
        path.unlink(missing_ok=True)


def marked_cases(folder: Path, step: str) -> frozenset[str]:
    """Ids of the cases that a step has in quarantine."""
    return frozenset(path.stem for path in (folder / QUARANTINE_FOLDER / step).glob("[!.]*.json"))


def quarantined_cases(folder: Path, data_identifier: str) -> frozenset[str]:
    """Ids of the cases that cannot be used with a configuration: they failed there or at the fingerprint."""
    return marked_cases(folder, FINGERPRINT_STEP) | marked_cases(folder, data_identifier)


def quarantine_list(folder: Path) -> Path:
    """Where a person finds the list: preprocessing_record.json or, before it is there, the marks."""
    record = folder / RECORD_FILE
    return record if record.is_file() else folder / QUARANTINE_FOLDER


def replace_marks(folder: Path, step: str, marks: Collection[Mark]) -> None:
    """Make `marks` all that a step has in quarantine."""
    for mark in marks:
        write_mark(folder, mark)
    for case_id in marked_cases(folder, step) - {mark.case_id for mark in marks}:
        release(folder, step, case_id)


def without_quarantined(split: Fold, data: PreprocessedFolder, data_identifier: str, *, name: str) -> Fold:
    """The cases of a fold that are not in quarantine; what is left out is said in one line of the log."""
    out = quarantined_cases(data.folder, data_identifier)
    left = replace(
        split,
        train=tuple(case_id for case_id in split.train if case_id not in out),
        val=tuple(case_id for case_id in split.val if case_id not in out),
    )
    lost = len(split.train) - len(left.train), len(split.val) - len(left.val)
    if any(lost):
        log.warning(
            "fold %s: %d training and %d validation cases are in quarantine and left out (list: %s)",
            *(name, *lost, quarantine_list(data.folder)),
        )
    return left
