"""oaplug_evaluate: the study's metrics of a prediction table or of a cross-validated model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from oaplug.commands.shell import Parser, add_places, places, run_command

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and work."""
    parser = Parser(prog="oaplug_evaluate", description=__doc__)
    parser.add_argument(
        "predictions",
        type=Path,
        help="predictions.csv, its folder, or a model folder whose folds are all trained",
    )
    add_places(parser, "preprocessed")
    return run_command(parser, _work, arguments)


def _work(arguments: argparse.Namespace) -> None:
    if (model := _model_folder(arguments.predictions)) is not None:
        _evaluate_model(model, arguments)
    else:
        _evaluate_table(arguments)


def _model_folder(path: Path) -> Path | None:
    """The model folder that `path` is, or whose crossval_results it is."""
    folder = path.parent if path.suffix == ".csv" else path
    model = folder.resolve().parent if folder.name == "crossval_results" else folder
    is_model = (model / "plans.json").is_file() and not (model / "predictions.csv").is_file()
    return model if is_model else None


def _evaluate_model(model: Path, arguments: argparse.Namespace) -> None:
    """Gather the predictions of every case by the fold that did not train on it, and their metrics."""
    from oaplug.core.artifacts import read_json
    from oaplug.train.crossval import crossval_results

    folder = crossval_results(model, places(arguments))
    summary = read_json(folder / "summary.json")
    for name, value in summary["metrics"].items():
        interval = summary["intervals"].get(name)
        shown = f" ({interval[0]:.4f} to {interval[1]:.4f})" if interval else ""
        print(f"{name:<24} {'not defined' if value is None else format(value, '.4f')}{shown}")
    print(f"result: {folder} ({summary['cases']} cases, {len(summary['folds'])} folds)")
    print(f"next:   oaplug_analyze -m {folder} -o REPORT_FOLDER")


def _evaluate_table(arguments: argparse.Namespace) -> None:
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
