"""Tables of saliency overlaps: what the report shows, and CSVs with every metric and every case."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oaplug.core.findings import Table
from oaplug_analyses.drawing import cell, write_table
from oaplug_analyses.saliency_maps import INPUT, RANDOM
from oaplug_analyses.saliency_numbers import COMPARED, METRICS, bounds, values_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from oaplug.core.findings import Cell
    from oaplug_analyses.saliency_numbers import Numbers


def write_tables(numbers: Numbers, folder: Path) -> list[Table]:
    """The tables of the report; more columns and every case are in the CSVs beside them."""
    _write_cases(numbers, folder)
    tables = [_overlap_table(numbers, folder)]
    if any(found.differences for found in numbers.answered.values()):
        tables.append(_difference_table(numbers, folder))
    if numbers.untrained:
        tables.append(_untrained_table(numbers, folder))
    return tables


def _overlap_table(numbers: Numbers, folder: Path) -> Table:
    caption = (
        f"Saliency in regions of the masks, means of {numbers.size} with {numbers.intervals}. mass: part of "
        "all saliency that lies in the region; top k%: part of the k% most salient voxels that does; Dice: "
        "these voxels against the region. Chance for mass and top is the region's part of all voxels "
        "(size); lift is mass over it. random: mass of noise in the network's field of view; input: mass of "
        "the absolute value of the input. All metrics with intervals are in overlap.csv, every case in "
        "cases.csv."
    )
    _write_all(numbers, folder, name="overlap", differences=False)
    columns = (
        *("question", "region", "model", "n", "mass", "mass low", "mass high"),
        *(METRICS[metric] for metric in COMPARED[1:]),
        *("size", "lift", RANDOM, INPUT),
    )
    rows = tuple(
        (
            *(question, region, model, len(numbers.subject_ids), *bounds(found.of(model, "mass"))),
            *(cell(found.of(model, metric).value) for metric in COMPARED[1:]),
            *(cell(found.region_fraction), cell(found.of(model, "mass_lift").value)),
            *(cell(found.control(model, name, "mass")) for name in (RANDOM, INPUT)),
        )
        for (question, region), found in numbers.answered.items()
        for model in found.means
    )
    return Table(name="overlap", caption=caption, columns=columns, rows=rows, data="overlap.csv")


def _difference_table(numbers: Numbers, folder: Path) -> Table:
    region = numbers.asked.main_region
    caption = (
        f"Differences from {numbers.baseline} on the same cases, in {region}, with {numbers.intervals}; "
        "other regions are in differences.csv."
    )
    _write_all(numbers, folder, name="differences", differences=True)
    rows = tuple(
        (question, model, METRICS[metric], *bounds(found.difference(model, metric)))
        for question in numbers.question_names
        for found in [numbers.answered[question, region]]
        for model in found.differences
        for metric in COMPARED
    )
    columns = ("question", "model", "metric", "difference", "low", "high")
    return Table(name="differences", caption=caption, columns=columns, rows=rows, data="differences.csv")


def _write_all(numbers: Numbers, folder: Path, *, name: str, differences: bool) -> None:
    """Every metric of every model, or its difference from the baseline, with its interval as a CSV."""
    rows: list[Sequence[Cell]] = [
        [question, region, model, metric, len(numbers.subject_ids), *bounds(one), int(one.undefined)]
        for (question, region), found in numbers.answered.items()
        for model in (found.differences if differences else found.means)
        for metric in METRICS
        for one in [found.difference(model, metric) if differences else found.of(model, metric)]
    ]
    columns = ["question", "region", "model", "metric", "n", "value", "low", "high", "undefined_resamples"]
    write_table(folder, name=name, caption="", columns=columns, rows=rows)


def _untrained_table(numbers: Numbers, folder: Path) -> Table:
    rows: list[Sequence[Cell]] = [
        [
            *(one.question, one.model, one.correlation.size, cell(one.correlation.mean())),
            *(cell(one.correlation.min()), cell(one.correlation.max())),
            *(cell(one.mass.mean()), cell(one.untrained_mass.mean())),
        ]
        for one in numbers.untrained
    ]
    return write_table(
        folder,
        name="untrained",
        caption="Sanity check (Adebayo et al. 2018): Spearman correlation of each map with that of the same "
        "network with new random weights; near 1, the map shows the image and not what was learnt. The last "
        f"columns are the mass in {numbers.asked.main_region} of both maps in these cases.",
        columns=["question", "model", "n", "correlation", "lowest", "highest", "mass", "mass untrained"],
        rows=rows,
    )


def _write_cases(numbers: Numbers, folder: Path) -> None:
    rows: list[Sequence[Cell]] = [
        [case.case_id, subject, model, shown, region, *map(cell, values), one.region_fraction]
        for case, subject in zip(numbers.measured.cases, numbers.subject_ids, strict=True)
        for (model, shown), by_region in case.overlaps.items()
        for region, one in by_region.items()
        for values in values_of([one])
    ]
    columns = ["case_id", "subject_id", "model", "map", "region", *METRICS, "region_fraction"]
    write_table(folder, name="cases", caption="", columns=columns, rows=rows)
