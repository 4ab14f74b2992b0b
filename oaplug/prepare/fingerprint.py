"""The fingerprint: what is measured on the training cases, before anything is decided."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from oaplug.core.artifacts import check_schema, read_json, write_json
from oaplug.core.errors import DatasetError
from oaplug.core.settings import from_mapping, to_mapping
from oaplug.core.target import MISSING, grade_names
from oaplug.prepare.geometry import nonzero_box
from oaplug.prepare.pool import for_each_case, in_one_line
from oaplug.prepare.reading import Grid, check_same_grid, read_image, read_mask

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from oaplug.core.case import Case
    from oaplug.core.dataset import Dataset
    from oaplug.core.target import Target
    from oaplug.core.volume import Volume
    from oaplug.prepare.pool import Outcomes, Progress

FINGERPRINT_SCHEMA = 1
FINGERPRINT_FILE = "dataset_fingerprint.json"
QUANTILES_PER_CASE = 10_000
"""Most values by which the distribution of a case's foreground is kept."""


@dataclass(frozen=True, kw_only=True)
class IntensityStatistics:
    """Foreground intensities of one channel over the training cases, which weigh equally (as in nnU-Net)."""

    mean: float
    std: float
    min: float
    max: float
    median: float
    percentile_00_5: float
    percentile_99_5: float


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Facts of the training cases; test cases are never looked at, and no case id is kept.

    Spacings and shapes follow D,H,W (RAS+), one entry per case in the order of case ids.
    `shapes_after_crop` are those of the box that holds every non-zero voxel. `sides` counts L, R and
    unknown; `grade_counts` gives per target the cases of every grade, `missing_labels` those without.
    """

    num_cases: int
    num_subjects: int
    num_channels: int
    spacings_mm: tuple[tuple[float, float, float], ...]
    shapes: tuple[tuple[int, int, int], ...]
    shapes_after_crop: tuple[tuple[int, int, int], ...]
    sides: dict[str, int]
    foreground_intensities: tuple[IntensityStatistics, ...]
    grade_counts: dict[str, dict[str, int]]
    missing_labels: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class ChannelMeasurement:
    """The foreground of one channel of one case: exact moments and range, and its distribution (Q,).

    `quantiles` are all values in order or, of more than QUANTILES_PER_CASE, that many equally spaced ones.
    """

    mean: float
    variance: float
    min: float
    max: float
    quantiles: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class CaseMeasurement:
    """What one case contributes; `channels` is empty where it has no foreground."""

    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int, int]
    shape_after_crop: tuple[int, int, int]
    channels: tuple[ChannelMeasurement, ...]


def extract_fingerprint(dataset: Dataset, *, processes: int, progress: Progress | None = None) -> Fingerprint:
    """Measure the training cases of `dataset`, in this process where `processes` is 1.

    The result depends on neither the number of processes nor the order of the cases. Raises DatasetError
    naming the cases and files that cannot be used, once all were tried, or where no case has any foreground.
    """
    measured = measure_dataset(dataset, processes=processes, progress=progress)
    if measured.problems:
        raise DatasetError(in_one_line(list(measured.problems.values()), "could not be measured"))
    return summarize(dataset, measured.results)


def measure_dataset(
    dataset: Dataset, *, processes: int, progress: Progress | None = None
) -> Outcomes[CaseMeasurement]:
    """The training cases measured, by case id and in its order, and the problems of those that cannot be."""
    cases = sorted(dataset.of_split("train"), key=lambda case: case.case_id)
    if not cases:
        raise DatasetError(f"{dataset.folder}: no training cases; put images into imagesTr")
    return for_each_case(measure_case, cases, processes=processes, progress=progress)


def summarize(dataset: Dataset, measured: Mapping[str, CaseMeasurement]) -> Fingerprint:
    """The fingerprint of the training cases that were measured; the others do not count.

    Raises DatasetError where no case has any foreground.
    """
    cases = sorted((c for c in dataset.of_split("train") if c.case_id in measured), key=lambda c: c.case_id)
    measurements = [measured[case.case_id] for case in cases]
    if not any(m.channels for m in measurements):
        raise DatasetError(
            f"{dataset.folder}: no training case has foreground (mask > 0, or non-zero voxels where "
            "there is no mask); check that masks and images are not empty"
        )
    grade_counts, missing_labels = count_grades(cases, dataset.description.targets)
    sides = Counter(case.side or "unknown" for case in cases)
    return Fingerprint(
        num_cases=len(cases),
        num_subjects=len({case.subject_id for case in cases}),
        num_channels=len(dataset.description.channel_names),
        spacings_mm=tuple(m.spacing_mm for m in measurements),
        shapes=tuple(m.shape for m in measurements),
        shapes_after_crop=tuple(m.shape_after_crop for m in measurements),
        sides={side: sides[side] for side in ("L", "R", "unknown")},
        foreground_intensities=pool_intensities([m.channels for m in measurements if m.channels]),
        grade_counts=grade_counts,
        missing_labels=missing_labels,
    )


def measure_case(case: Case) -> CaseMeasurement:
    """Read one case and measure it; raises DatasetError naming the case and the file."""
    volume = read_image(case.images, case_id=case.case_id)
    box = nonzero_box(volume.data)
    foreground = _foreground(case, volume)
    depth, height, width = volume.data.shape[1:]
    cropped_depth, cropped_height, cropped_width = (stop - start for start, stop in box)
    return CaseMeasurement(
        spacing_mm=volume.spacing_mm,
        shape=(depth, height, width),
        shape_after_crop=(cropped_depth, cropped_height, cropped_width),
        channels=tuple(measure_channel(channel[foreground]) for channel in volume.data)
        if foreground.any()
        else (),
    )


def _foreground(case: Case, volume: Volume) -> NDArray[np.bool_]:
    """Foreground (D,H,W) of a case: mask > 0 or, without a mask, voxels that are not zero in some channel."""
    if case.mask is None:
        nonzero: NDArray[np.bool_] = (volume.data != 0).any(axis=0)
        return nonzero
    mask, affine = read_mask(case.mask, case_id=case.case_id)
    check_same_grid(
        Grid(shape=mask.shape, affine=affine),
        Grid(shape=volume.data.shape[1:], affine=volume.affine),
        path=case.mask,
        case_id=case.case_id,
        of=f"the image ({case.images[0].name})",
    )
    return mask > 0


def measure_channel(values: NDArray[np.float32]) -> ChannelMeasurement:
    """Summary of the foreground intensities (N,) of one channel, N > 0."""
    ordered = np.sort(values)
    kept = min(len(ordered), QUANTILES_PER_CASE)
    places = (np.arange(kept) + 0.5) * len(ordered) / kept
    return ChannelMeasurement(
        mean=float(ordered.mean(dtype=np.float64)),
        variance=float(ordered.var(dtype=np.float64)),
        min=float(ordered[0]),
        max=float(ordered[-1]),
        quantiles=ordered[places.astype(np.int64)],
    )


def pool_intensities(cases: Sequence[Sequence[ChannelMeasurement]]) -> tuple[IntensityStatistics, ...]:
    """Statistics per channel of the mixture in which every case with foreground weighs the same.

    nnU-Net draws equally many foreground voxels per case, with replacement; this is the limit of many
    draws, without the chance. Mean, std, min and max are exact, and so are percentiles of cases with up
    to QUANTILES_PER_CASE foreground voxels; larger cases shift their rank by at most half of its inverse.
    """
    return tuple(_pool_channel(channel) for channel in zip(*cases, strict=True))


def _pool_channel(cases: Sequence[ChannelMeasurement]) -> IntensityStatistics:
    variance = np.mean([case.variance for case in cases]) + np.var([case.mean for case in cases])
    values = np.concatenate([case.quantiles for case in cases])
    weights = np.concatenate([np.full(len(case.quantiles), 1 / len(case.quantiles)) for case in cases])
    low, median, high = _weighted_percentiles(values, weights, (0.5, 50, 99.5))
    return IntensityStatistics(
        mean=float(np.mean([case.mean for case in cases])),
        std=float(np.sqrt(variance)),
        min=min(case.min for case in cases),
        max=max(case.max for case in cases),
        median=median,
        percentile_00_5=low,
        percentile_99_5=high,
    )


def _weighted_percentiles(
    values: NDArray[np.float32], weights: NDArray[np.float64], percentages: Sequence[float]
) -> list[float]:
    """Percentiles of weighted values (N,), each standing at the middle of its weight (Hazen's rule)."""
    order = np.argsort(values, kind="stable")
    cumulative = np.cumsum(weights[order])
    ranks = (cumulative - weights[order] / 2) / cumulative[-1]
    found: list[float] = np.interp(np.array(percentages) / 100, ranks, values[order]).tolist()
    return found


def count_grades(
    cases: Sequence[Case], targets: Mapping[str, Target]
) -> tuple[dict[str, dict[str, int]], dict[str, int]]:
    """Per target how many cases have each grade, and how many have none."""
    found = {name: Counter(case.labels.get(name, MISSING) for case in cases) for name in targets}
    counts = {
        name: {grade: found[name][index] for index, grade in enumerate(grade_names(target))}
        for name, target in targets.items()
    }
    return counts, {name: found[name][MISSING] for name in targets}


def fingerprint_to_json(fingerprint: Fingerprint) -> dict[str, Any]:
    """The JSON form of a fingerprint."""
    content: dict[str, Any] = to_mapping(fingerprint)
    return {"schema": FINGERPRINT_SCHEMA, **content}


def fingerprint_from_json(content: Any, *, path: Path) -> Fingerprint:
    """Check a fingerprint read from `path`; raises DatasetError naming the key that is off."""
    content = dict(check_schema(content, path=path, newest=FINGERPRINT_SCHEMA, error=DatasetError))
    content.pop("schema")
    return from_mapping(Fingerprint, content, where=str(path), error=DatasetError)


def read_fingerprint(path: Path) -> Fingerprint:
    """Read a dataset_fingerprint.json."""
    hint = "run oaplug_extract_fingerprint (or oaplug_plan_and_preprocess) first"
    return fingerprint_from_json(read_json(path, error=DatasetError, hint=hint), path=path)


def write_fingerprint(path: Path, fingerprint: Fingerprint) -> Path:
    """Write a dataset_fingerprint.json atomically."""
    return write_json(path, fingerprint_to_json(fingerprint))
