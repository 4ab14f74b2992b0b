"""Every case of a dataset into its preprocessed folder; what is there and current is left alone."""

from __future__ import annotations

import logging
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING

from oaplug.core.artifacts import digest_of_file, digest_of_json
from oaplug.core.case import Problem
from oaplug.core.errors import DatasetError, OaplugError, PlanError
from oaplug.core.settings import to_mapping
from oaplug.prepare.pool import for_each_case
from oaplug.prepare.preprocess import PREPROCESSING_REVISION, check_configuration, prepare_volume
from oaplug.prepare.reading import ImageError, image_error, read_image
from oaplug.prepare.store import (
    CaseRecord,
    array_path,
    read_record,
    record_path,
    write_array,
    write_record,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from oaplug.core.case import Case
    from oaplug.core.dataset import Dataset
    from oaplug.core.plan import Configuration, Plan
    from oaplug.core.volume import Affine, Volume
    from oaplug.prepare.pool import Progress

LOGGER = logging.getLogger(__name__)
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class PreprocessingReport:
    """Ids of the cases that were made and of those that were current already, and what went wrong."""

    done: tuple[str, ...]
    skipped: tuple[str, ...]
    problems: tuple[Problem, ...]

    def raise_for_problems(self) -> None:
        """Raise DatasetError with the number of failed cases and the first of them, if there are any."""
        if self.problems:
            more = len(self.problems) - _SHOWN
            lines = [str(problem) for problem in self.problems[:_SHOWN]] + (
                [f"and {more} more"] if more > 0 else []
            )
            raise DatasetError(f"{len(self.problems)} cases could not be preprocessed: {'; '.join(lines)}")


@dataclass(frozen=True, kw_only=True)
class _Task:
    case: Case
    configurations: tuple[Configuration, ...]
    folder: Path


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    made: bool = False
    problem: Problem | None = None
    trace: str = ""


def preprocess_dataset(
    dataset: Dataset,
    plan: Plan,
    configurations: Sequence[str],
    folder: Path,
    *,
    processes: int,
    part: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
) -> PreprocessingReport:
    """Write every case (train and test) for the named configurations below `folder`.

    A case is one unit: its array, then its record, both atomic. It is left alone where its record matches
    the bytes of its images, its side, the configuration and PREPROCESSING_REVISION. A case that fails is
    reported and does not stop the others. `part` (i, n) takes the i-th of n shares of the cases, for
    several machines that share a disk. Raises PlanError where configurations do not fit the dataset or
    each other, OaplugError where a worker process is killed.
    """
    chosen = _choose(plan, configurations, channels=len(dataset.description.channel_names))
    part_id, num_parts = part
    if not 0 <= part_id < num_parts:
        raise OaplugError(f"the part must be from 0 to {num_parts - 1} of {num_parts}, got {part_id}")
    tasks = {
        case.case_id: _Task(case=case, configurations=chosen, folder=folder)
        for case in dataset.cases[part_id::num_parts]
    }
    outcomes = for_each_case(_preprocess_case, tasks, processes=processes, progress=progress)
    for case_id, outcome in outcomes.items():
        if outcome.trace:
            LOGGER.error("case %s failed unexpectedly:\n%s", case_id, outcome.trace)
    return PreprocessingReport(
        done=tuple(case_id for case_id, outcome in outcomes.items() if outcome.made),
        skipped=tuple(key for key, outcome in outcomes.items() if not outcome.made and not outcome.problem),
        problems=tuple(outcome.problem for outcome in outcomes.values() if outcome.problem),
    )


def _choose(plan: Plan, names: Sequence[str], *, channels: int) -> tuple[Configuration, ...]:
    """The named configurations, one for each data identifier."""
    chosen: dict[str, Configuration] = {}
    for name in names:
        configuration = plan.configuration(name)
        check_configuration(configuration, channels=channels)
        other = chosen.setdefault(configuration.data_identifier, configuration)
        if other != configuration:
            message = f"configuration {name!r} prepares cases differently than another one of the same"
            raise PlanError(f"{message} data_identifier {configuration.data_identifier!r}; rename one")
    return tuple(chosen.values())


def _preprocess_case(task: _Task) -> _Outcome:
    """Make what is missing or outdated of one case; never raises, so that one case cannot stop the others."""
    case_id = task.case.case_id
    try:
        return _Outcome(made=_make_outdated(task))
    except ImageError as failure:
        return _Outcome(problem=failure.problem)
    except OaplugError as failure:
        return _Outcome(problem=Problem(kind="cannot preprocess", message=str(failure), case_id=case_id))
    except Exception as failure:
        message = f"failed unexpectedly ({type(failure).__name__}: {failure}); see the log"
        problem = Problem(kind="unexpected", message=message, case_id=case_id)
        return _Outcome(problem=problem, trace=traceback.format_exc())


def _make_outdated(task: _Task) -> bool:
    """Make a case for the configurations that need it, reading its images once; whether any did."""
    inputs = _digest_inputs(task.case)
    outdated = [
        configuration
        for configuration in task.configurations
        if not _is_current(task.case, configuration, folder=task.folder, inputs=inputs)
    ]
    if not outdated:
        return False
    volume = read_image(task.case.images, case_id=task.case.case_id)
    for configuration in outdated:
        _make(task.case, volume, configuration, folder=task.folder, inputs=inputs)
    return True


def _digest_inputs(case: Case) -> tuple[str, ...]:
    for path in case.images:
        if not path.is_file():
            raise image_error(
                "missing file", "the file does not exist; add it", path=path, case_id=case.case_id
            )
    return tuple(digest_of_file(path) for path in case.images)


def _is_current(case: Case, configuration: Configuration, *, folder: Path, inputs: tuple[str, ...]) -> bool:
    place = folder / configuration.data_identifier
    if not array_path(place, case.case_id).is_file():
        return False
    try:
        record = read_record(record_path(place, case.case_id))
    except DatasetError:
        return False
    wanted = (inputs, digest_of_json(to_mapping(configuration)), PREPROCESSING_REVISION, case.side)
    return wanted == (record.inputs, record.configuration, record.revision, record.side)


def _make(
    case: Case, volume: Volume, configuration: Configuration, *, folder: Path, inputs: tuple[str, ...]
) -> None:
    place = folder / configuration.data_identifier
    prepared = prepare_volume(volume, configuration, side=case.side)
    # an old record must not vouch for the new array, should this stop between the two
    record_path(place, case.case_id).unlink(missing_ok=True)
    write_array(array_path(place, case.case_id), prepared.data)
    record = CaseRecord(
        inputs=inputs,
        configuration=digest_of_json(to_mapping(configuration)),
        revision=PREPROCESSING_REVISION,
        side=case.side,
        shape=prepared.data.shape,
        affine=_rows(prepared.affine),
        original_shape=volume.data.shape,
        original_affine=_rows(volume.affine),
    )
    write_record(record_path(place, case.case_id), record)


def _rows(affine: Affine) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in affine.tolist())
