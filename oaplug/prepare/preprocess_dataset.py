"""Every case of a dataset into its preprocessed folder; what is there and current is left alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from oaplug.core.artifacts import digest_of_json, remove_unfinished
from oaplug.core.errors import DatasetError, OaplugError, PathError, PlanError
from oaplug.core.settings import to_mapping
from oaplug.prepare.case_state import digest_files, inputs_of, quarantine, release_complete, state_of
from oaplug.prepare.completeness import Completeness
from oaplug.prepare.file_names import check_case_names, check_identifier
from oaplug.prepare.pool import KILLED, OUT_OF_MEMORY, for_each_case, in_one_line, problem_of
from oaplug.prepare.preprocess import PREPROCESSING_REVISION, check_configuration, prepare_volume
from oaplug.prepare.reading import read_image
from oaplug.prepare.store import (
    CaseRecord,
    array_path,
    checksum,
    record_path,
    write_array,
    write_record,
    writing,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from oaplug.core.case import Case, Problem
    from oaplug.core.dataset import Dataset
    from oaplug.core.plan import Configuration, Plan
    from oaplug.core.volume import Affine, Volume
    from oaplug.prepare.case_state import Inputs, State
    from oaplug.prepare.pool import Outcomes, Progress

STALE_AFTER_S = 600.0
"""A half-written file of that age belongs to no process that still writes it."""


@dataclass(frozen=True, kw_only=True)
class PreprocessingReport:
    """Ids of the cases that were made and of those that were current already, and what went wrong.

    `problems` are those of this run. `completeness` says how every case of it stands now.
    """

    done: tuple[str, ...]
    skipped: tuple[str, ...]
    problems: tuple[Problem, ...]
    completeness: Completeness

    def raise_for_problems(self) -> None:
        """Raise DatasetError with the number of failed cases and the first of them, if there are any."""
        if self.problems:
            raise DatasetError(in_one_line(self.problems, "could not be preprocessed"))


@dataclass(frozen=True, kw_only=True)
class _Stand:
    """How a case stands by data identifier, and whether this run made it."""

    made: bool
    states: dict[str, State]


def preprocess_dataset(
    dataset: Dataset,
    plan: Plan,
    configurations: Sequence[str],
    folder: Path,
    *,
    processes: int,
    part: tuple[int, int] = (0, 1),
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> PreprocessingReport:
    """Write every case (train and test) for the named configurations below `folder`.

    A case is one unit: its array, then its record, both atomic. It is left alone where its record matches
    the bytes of its images, its side, the configuration and PREPROCESSING_REVISION. A case that fails is
    reported and does not stop the others; with `skip_bad` it goes to quarantine, and is tried again only
    once any of those, or the version of oaplug, has changed. `part` (i, n) takes the i-th of n shares of
    the cases, for several machines that share a disk. Raises PlanError where configurations do not fit the
    dataset or each other, DatasetError where a case cannot be the name of a file, PathError where a file
    cannot be written.
    """
    chosen = choose_configurations(plan, configurations, channels=len(dataset.description.channel_names))
    cases = share_of(dataset, part)
    if folder.is_dir():
        remove_unfinished(folder, older_than_s=STALE_AFTER_S)
    work = partial(_preprocess_case, configurations=chosen, folder=folder, skip_bad=skip_bad)
    outcomes = for_each_case(work, cases, processes=processes, progress=progress)
    if skip_bad:
        _quarantine_killers(outcomes, cases, chosen, folder=folder)
    return PreprocessingReport(
        done=tuple(case_id for case_id, stand in outcomes.results.items() if stand.made),
        skipped=tuple(
            case_id
            for case_id, stand in outcomes.results.items()
            if not stand.made and set(stand.states.values()) == {"complete"}
        ),
        problems=tuple(outcomes.problems.values()),
        completeness=Completeness(
            folder=folder,
            identifiers=tuple(configuration.data_identifier for configuration in chosen),
            states={case.case_id: _states_after(case, outcomes, chosen, folder=folder) for case in cases},
        ),
    )


def share_of(dataset: Dataset, part: tuple[int, int]) -> tuple[Case, ...]:
    """The cases of the i-th of n shares, `part` being (i, n).

    Raises OaplugError where there is no such share, DatasetError where a case cannot be the name of a file.
    """
    part_id, num_parts = part
    if not 0 <= part_id < num_parts:
        raise OaplugError(f"the part must be from 0 to {num_parts - 1} of {num_parts}, got {part_id}")
    check_case_names(case.case_id for case in dataset.cases)
    return dataset.cases[part_id::num_parts]


def choose_configurations(plan: Plan, names: Sequence[str], *, channels: int) -> tuple[Configuration, ...]:
    """The named configurations, one for each data identifier.

    Raises PlanError where one does not fit the channels, or two prepare cases differently for one folder.
    """
    chosen: dict[str, Configuration] = {}
    for name in names:
        configuration = plan.configuration(name)
        check_configuration(configuration, channels=channels)
        check_identifier(configuration.data_identifier)
        other = chosen.setdefault(configuration.data_identifier, configuration)
        if other != configuration:
            message = f"configuration {name!r} prepares cases differently than another one of the same"
            raise PlanError(f"{message} data_identifier {configuration.data_identifier!r}; rename one")
    return tuple(chosen.values())


def find_unreadable(
    cases: Sequence[Case], *, processes: int, progress: Progress | None = None
) -> list[Problem]:
    """Problems of the cases whose images cannot be read."""
    return list(for_each_case(_read, cases, processes=processes, progress=progress).problems.values())


def _read(case: Case) -> None:
    read_image(case.images, case_id=case.case_id)


def _preprocess_case(
    case: Case, *, configurations: tuple[Configuration, ...], folder: Path, skip_bad: bool
) -> _Stand:
    """Make what is missing or outdated of one case; with `skip_bad`, mark it where it fails."""
    inputs: Inputs = None
    try:
        inputs = digest_files(case.images, case_id=case.case_id)
        return _make_outdated(case, inputs, configurations=configurations, folder=folder, skip_bad=skip_bad)
    except (PathError, MemoryError):  # no fault of the case, or to be tried again
        raise
    except Exception as failure:
        if skip_bad:
            quarantine(case, problem_of(case, failure), configurations, folder=folder, inputs=inputs)
        raise


def _make_outdated(
    case: Case,
    inputs: tuple[str, ...],
    *,
    configurations: tuple[Configuration, ...],
    folder: Path,
    skip_bad: bool,
) -> _Stand:
    """Make a case for the configurations that need it, reading its images once."""
    states = {c.data_identifier: state_of(case, c, folder=folder, inputs=inputs) for c in configurations}
    left_alone = {"complete", "quarantined"} if skip_bad else {"complete"}
    needed = [c for c in configurations if states[c.data_identifier] not in left_alone]
    if needed:
        volume = read_image(case.images, case_id=case.case_id)
        for configuration in needed:
            _make(case, volume, configuration, folder=folder, inputs=inputs)
            states[configuration.data_identifier] = "complete"
    release_complete(case, states, folder=folder)
    return _Stand(made=bool(needed), states=states)


def _quarantine_killers(
    outcomes: Outcomes[_Stand],
    cases: Sequence[Case],
    configurations: Sequence[Configuration],
    *,
    folder: Path,
) -> None:
    """Mark the cases whose own process could not, because it died or had no memory."""
    for case in cases:
        problem = outcomes.problems.get(case.case_id)
        if problem is not None and problem.kind in (KILLED, OUT_OF_MEMORY):
            quarantine(case, problem, configurations, folder=folder, inputs=inputs_of(case))


def _states_after(
    case: Case, outcomes: Outcomes[_Stand], configurations: Sequence[Configuration], *, folder: Path
) -> Mapping[str, State]:
    """How a case stands after a run."""
    if case.case_id in outcomes.results:
        return outcomes.results[case.case_id].states
    inputs = inputs_of(case)
    return {c.data_identifier: state_of(case, c, folder=folder, inputs=inputs) for c in configurations}


def _make(
    case: Case, volume: Volume, configuration: Configuration, *, folder: Path, inputs: tuple[str, ...]
) -> None:
    place = folder / configuration.data_identifier
    prepared = prepare_volume(volume, configuration, side=case.side)
    # an old record must not vouch for the new array, should this stop between the two
    with writing(record_path(place, case.case_id)):
        record_path(place, case.case_id).unlink(missing_ok=True)
    array = write_array(array_path(place, case.case_id), prepared.data)
    record = CaseRecord(
        inputs=inputs,
        configuration=digest_of_json(to_mapping(configuration)),
        revision=PREPROCESSING_REVISION,
        side=case.side,
        shape=prepared.data.shape,
        affine=_rows(prepared.affine),
        original_shape=volume.data.shape,
        original_affine=_rows(volume.affine),
        array_crc32=checksum(array),
    )
    write_record(record_path(place, case.case_id), record)


def _rows(affine: Affine) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in affine.tolist())
