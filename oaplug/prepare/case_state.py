"""What the preprocessed folder holds of a case, held against its files as they are now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import oaplug
from oaplug.core.artifacts import digest_of_file, digest_of_json
from oaplug.core.errors import DatasetError
from oaplug.core.settings import to_mapping
from oaplug.prepare.preprocess import PREPROCESSING_REVISION
from oaplug.prepare.quarantine import FINGERPRINT_STEP, Mark, read_mark, release, write_mark
from oaplug.prepare.reading import image_error
from oaplug.prepare.store import array_path, checksum, read_record, record_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from oaplug.core.case import Case, Problem
    from oaplug.core.plan import Configuration

State = Literal["complete", "missing", "outdated", "quarantined"]
Inputs = tuple[str, ...] | None
"""Digests of a case's files; None where one of them cannot be read."""


def digest_files(paths: Iterable[Path], *, case_id: str) -> tuple[str, ...]:
    """Digests of the bytes of files; raises DatasetError naming one that is missing or cannot be read."""
    digests = []
    for path in paths:
        try:
            digests.append(digest_of_file(path))
        except (FileNotFoundError, NotADirectoryError):
            message = "the file does not exist; add it"
            raise image_error("missing file", message, path=path, case_id=case_id) from None
        except OSError as failure:
            message = f"cannot be read ({failure.strerror}); copy or export it again"
            raise image_error("unreadable file", message, path=path, case_id=case_id) from None
    return tuple(digests)


def inputs_of(case: Case, *, with_mask: bool = False) -> Inputs:
    """Digests of a case's images (and mask), or None."""
    masks = [case.mask] if with_mask and case.mask else []
    try:
        return digest_files([*case.images, *masks], case_id=case.case_id)
    except DatasetError:
        return None


def state_of(case: Case, configuration: Configuration, *, folder: Path, inputs: Inputs) -> State:
    """Whether a case is preprocessed for a configuration, from the images whose digests are `inputs`.

    A case is complete where its array is whole and its record tells of these images, this side and
    configuration, and this code. It is quarantined where a mark tells the same of a failure.
    """
    identifier, case_id = configuration.data_identifier, case.case_id
    if _is_complete(case, configuration, place=folder / identifier, inputs=inputs):
        return "complete"
    try:
        mark = read_mark(folder, identifier, case_id)
    except DatasetError:
        mark = None
    if mark is not None and mark == _mark(case, mark.problem, configuration, inputs=inputs):
        return "quarantined"
    return "outdated" if record_path(folder / identifier, case_id).is_file() else "missing"


def _is_complete(case: Case, configuration: Configuration, *, place: Path, inputs: Inputs) -> bool:
    array = array_path(place, case.case_id)
    try:
        record = read_record(record_path(place, case.case_id))
    except DatasetError:
        return False
    wanted = (inputs, digest_of_json(to_mapping(configuration)), PREPROCESSING_REVISION, case.side)
    if wanted != (record.inputs, record.configuration, record.revision, record.side) or not array.is_file():
        return False
    return record.array_crc32 in (None, checksum(array))


def quarantine(
    case: Case, problem: Problem, configurations: Iterable[Configuration], *, folder: Path, inputs: Inputs
) -> None:
    """Put a case that failed into the quarantine of the configurations for which it is not complete."""
    for configuration in configurations:
        if state_of(case, configuration, folder=folder, inputs=inputs) != "complete":
            write_mark(folder, _mark(case, problem, configuration, inputs=inputs))


def mark_of_fingerprint(case: Case, problem: Problem) -> Mark:
    """The mark of a training case that could not be measured."""
    return Mark(
        case_id=case.case_id,
        step=FINGERPRINT_STEP,
        kind=problem.kind,
        message=problem.message,
        file=problem.file,
        inputs=inputs_of(case, with_mask=True),
        side=case.side,
    )


def release_complete(case: Case, states: Mapping[str, State], *, folder: Path) -> None:
    """Take a case out of the quarantine of the configurations for which it is complete.

    The fingerprint's mark goes too where the case's files are others now than those it tells of.
    """
    for identifier in (name for name, state in states.items() if state == "complete"):
        release(folder, identifier, case.case_id)
    if set(states.values()) != {"complete"}:
        return
    mark = read_mark(folder, FINGERPRINT_STEP, case.case_id)
    if mark is not None and mark.inputs != inputs_of(case, with_mask=True):
        release(folder, FINGERPRINT_STEP, case.case_id)


def _mark(case: Case, problem: Problem, configuration: Configuration, *, inputs: Inputs) -> Mark:
    return Mark(
        case_id=case.case_id,
        step=configuration.data_identifier,
        kind=problem.kind,
        message=problem.message,
        file=problem.file,
        inputs=inputs,
        configuration=digest_of_json(to_mapping(configuration)),
        revision=PREPROCESSING_REVISION,
        side=case.side,
        oaplug=oaplug.__version__,
    )
