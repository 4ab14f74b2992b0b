"""All that is wrong with a raw dataset at once: its tables, files, grids, voxels and masks."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from oaplug.core.case import Problem
from oaplug.prepare.pool import for_each_case
from oaplug.prepare.reading import (
    Grid,
    ImageError,
    check_certain,
    check_not_constant,
    check_same_grid,
    image_error,
    read_channel,
    read_mask,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from oaplug.core.case import Case
    from oaplug.core.dataset import Dataset
    from oaplug.core.volume import FloatArray
    from oaplug.prepare.pool import Progress

PROBLEM_COLUMNS = ("kind", "case", "file", "what to do")


@dataclass(frozen=True, kw_only=True)
class _Verdict:
    """Problems of one case, and the content digest of each image file that could be read."""

    problems: list[Problem]
    digests: dict[Path, str]


def verify_dataset(dataset: Dataset, *, processes: int, progress: Progress | None = None) -> list[Problem]:
    """Everything that is wrong with a dataset: an empty list means that it can be used.

    Beyond what `read_dataset` found in the tables: files that are missing, damaged, no plain 3D image or
    uncertain of their place, channels or masks on another grid than the first channel, NaN or infinite
    voxels, constant images, label values that dataset.json does not name, and images with the same voxels
    as another's.
    """
    verify = partial(_verify_case, label_values=dataset.description.label_values())
    outcomes = for_each_case(verify, dataset.cases, processes=processes, progress=progress)
    problems = [*dataset.problems, *outcomes.problems.values()]
    for verdict in outcomes.results.values():
        problems += verdict.problems
    return problems + _find_duplicates(outcomes.results)


def problem_rows(problems: Iterable[Problem]) -> list[tuple[str, str, str, str]]:
    """Problems as rows of a table with the columns PROBLEM_COLUMNS."""
    return [(problem.kind, problem.case_id, problem.file, problem.message) for problem in problems]


def _verify_case(case: Case, *, label_values: frozenset[int]) -> _Verdict:
    verdict = _Verdict(problems=[], digests={})
    grids: dict[Path, Grid] = {}
    for path in case.images:
        try:
            grids[path] = _verify_channel(path, case_id=case.case_id, verdict=verdict)
            first = next(iter(grids))
            check_same_grid(grids[path], grids[first], path=path, case_id=case.case_id, of=first.name)
        except ImageError as failure:
            verdict.problems.append(failure.problem)
    if case.mask is not None:
        try:
            _verify_mask(case.mask, case.case_id, label_values=label_values, grids=grids)
        except ImageError as failure:
            verdict.problems.append(failure.problem)
    return verdict


def _verify_channel(path: Path, *, case_id: str, verdict: _Verdict) -> Grid:
    """The grid of one image file; a constant image is added to the problems."""
    channel, grid = read_channel(path, case_id=case_id)
    try:
        check_certain(path, case_id=case_id)
        check_not_constant(channel, path=path, case_id=case_id)
        verdict.digests[path] = _digest_of_voxels(channel)
    except ImageError as failure:
        verdict.problems.append(failure.problem)
    return grid


def _digest_of_voxels(channel: FloatArray) -> str:
    """Hex BLAKE2b-128 of the voxels (D,H,W) and the shape, whatever format or type the file has."""
    digest = hashlib.blake2b(repr(channel.shape).encode(), digest_size=16)
    digest.update(channel.data)
    return digest.hexdigest()


def _verify_mask(
    path: Path, case_id: str, *, label_values: frozenset[int], grids: Mapping[Path, Grid]
) -> None:
    labels, affine = read_mask(path, case_id=case_id)
    check_certain(path, case_id=case_id)
    for first, reference in list(grids.items())[:1]:
        grid = Grid(shape=labels.shape, affine=affine)
        check_same_grid(grid, reference, path=path, case_id=case_id, of=first.name)
    unknown = sorted(set(np.unique(labels).tolist()) - label_values)
    if unknown:
        known = sorted(label_values)
        message = f"has label values {unknown}, but dataset.json knows {known}; correct one of them"
        raise image_error("unknown label", message, path=path, case_id=case_id)


def _find_duplicates(verdicts: Mapping[str, _Verdict]) -> list[Problem]:
    seen: dict[str, tuple[str, Path]] = {}
    problems: list[Problem] = []
    for case_id, verdict in verdicts.items():
        for path, digest in verdict.digests.items():
            other_id, other = seen.setdefault(digest, (case_id, path))
            if other != path:
                message = f"has the same voxels as {other.name} of case {other_id}; remove one of them"
                problems.append(image_error("duplicate image", message, path=path, case_id=case_id).problem)
    return problems
