"""oaplug_evaluate: the study's metrics of one prediction table, printed and written as summary.json."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from oaplug.commands.shell import Parser, run_command

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and work."""
    parser = Parser(prog="oaplug_evaluate", description=__doc__)
    parser.add_argument("predictions", type=Path, help="predictions.csv, or its folder")
    return run_command(parser, _work, arguments)


def _work(arguments: argparse.Namespace) -> None:
    from oaplug.core.artifacts import write_json
    from oaplug.core.errors import PredictionError
    from oaplug.core.evaluation import table_metrics
    from oaplug.core.predictions import read_predictions

    table = read_predictions(arguments.predictions)
    metrics = table_metrics(table)
    if not metrics:
        raise PredictionError(
            f"{arguments.predictions} has no truth to compare with; predict with --cases cases.csv"
        )
    for name, value in metrics.items():
        print(f"{name:<24} {'not defined' if value is None else format(value, '.4f')}")
    folder = arguments.predictions if arguments.predictions.is_dir() else arguments.predictions.parent
    path = write_json(folder / "summary.json", {"schema": 1, "model": table.model, "metrics": metrics})
    print(
        f"result: {path} ({len(table.case_ids)} cases)\nnext:   oaplug_analyze -m {folder} -o REPORT_FOLDER"
    )
