"""Tables of the calibration analysis: errors, parts of the Brier score, before and after a temperature."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from oaplug_analyses.drawing import bound_cells, cell, with_bounds, write_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from oaplug.core.findings import Cell, Table
    from oaplug_analyses.calibration import CalibrationResult

SHOWN = {
    "ece": "ECE",
    "ece_equal_mass": "ECE (equal mass)",
    "brier": "Brier score",
    "log_loss": "log loss",
}
PARTS = {
    "brier": "Brier score",
    "reliability": "reliability",
    "resolution": "resolution",
    "uncertainty": "uncertainty",
    "within": "within bins",
}


def tables_of(result: CalibrationResult, folder: Path) -> list[Table]:
    """The tables of one target, each also written as CSV."""
    tables = [_error_table(result, folder), _brier_table(result, folder)]
    if any(one.scaled is not None for one in result.models):
        tables.append(_temperature_table(result, folder))
    return tables


def _error_table(result: CalibrationResult, folder: Path) -> Table:
    rows: list[Sequence[Cell]] = [
        [
            *(one.model, len(one.predictions.truth)),
            *(value for name in SHOWN for value in bound_cells(one.estimates[name])),
            *(cell(one.calibrated.mean()), cell(np.quantile(one.calibrated, 0.95))),
        ]
        for one in result.models
    ]
    return write_table(
        folder,
        name=f"calibration_{result.target.name}",
        caption=f"{result.target.name}: expected calibration error (ECE) of {result.promise} in "
        f"{result.bins} bins of equal width, and of as many cases each; {_brier_words(result)}; negative log "
        f"likelihood in nats; {result.size}, {result.interval}. Resampling adds noise to every bin, so "
        "intervals of an ECE lie high. The last columns say what ECE a calibrated model with these "
        "probabilities would show by chance (equal width, cases taken as independent).",
        columns=[
            *("model", "n", *(column for label in SHOWN.values() for column in with_bounds(label))),
            *("ECE if calibrated, mean", "ECE if calibrated, 95%"),
        ],
        rows=rows,
    )


def _brier_words(result: CalibrationResult) -> str:
    if len(result.target.grades) == 2:
        return "Brier score of the positive grade (0 to 1)"
    return "Brier score summed over grades (0 to 2)"


def _brier_table(result: CalibrationResult, folder: Path) -> Table:
    rows: list[Sequence[Cell]] = [
        [one.model, *(value for name in PARTS for value in bound_cells(one.estimates[name]))]
        for one in result.models
    ]
    return write_table(
        folder,
        name=f"brier_{result.target.name}",
        caption=f"{result.target.name}: {_brier_words(result)} = reliability (miscalibration, less is "
        "better) - resolution (how far bins differ from the base rate, more is better) + uncertainty (of the "
        f"base rate) + what {result.bins} bins hide (Murphy 1973); {result.interval}.",
        columns=["model", *(column for label in PARTS.values() for column in with_bounds(label))],
        rows=rows,
    )


def _temperature_table(result: CalibrationResult, folder: Path) -> Table:
    rows: list[Sequence[Cell]] = []
    for one in result.models:
        if one.temperature.value is None:
            continue
        fitted: list[Cell] = [one.model, one.temperature.value, "+".join(one.temperature.folds)]
        for name in SHOWN:
            pair = one.estimates[name], one.scaled_estimates[name]
            rows.append(
                [*fitted, one.temperature.cases, SHOWN[name], *(v for e in pair for v in bound_cells(e))]
            )
    return write_table(
        folder,
        name=f"temperature_{result.target.name}",
        caption=f"{result.target.name}: before and after temperature scaling. The temperature was fitted to "
        "the validation cases of the folds (log loss), never to these; predicted grades stay as they were. "
        f"{result.interval.capitalize()}, given the temperature.",
        columns=[
            *("model", "temperature", "folds", "validation cases", "metric"),
            *(*with_bounds("before"), *with_bounds("after")),
        ],
        rows=rows,
    )
