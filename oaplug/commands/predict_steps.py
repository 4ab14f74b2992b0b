"""Predicting with a model folder, shared by the two commands that find one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from oaplug.commands.shell import Progress

if TYPE_CHECKING:
    import argparse


def add_prediction(parser: argparse.ArgumentParser) -> None:
    """What to predict and with which folds."""
    parser.add_argument(
        "-i", dest="images", type=Path, required=True, metavar="FOLDER", help="CASE_0000.nii.gz, ..."
    )
    parser.add_argument(
        "-o",
        dest="output",
        type=Path,
        metavar="FOLDER",
        help="default: predictions/NAME_OF_IMAGE_FOLDER in the model",
    )
    parser.add_argument(
        "-f", dest="folds", nargs="+", metavar="FOLD", help="folds to average (default: all trained)"
    )
    parser.add_argument(
        "-chk", dest="checkpoint", choices=["final", "best"], default="final", help="checkpoint"
    )
    parser.add_argument("-device", help="cuda, cuda:1, cpu or mps (default: a GPU where there is one)")
    parser.add_argument(
        "--cases",
        type=Path,
        metavar="CSV",
        help="sides, subjects and truths (default: cases.csv beside the images)",
    )
    parser.add_argument(
        "--allow_training_cases", action="store_true", help="predict cases the model was trained on too"
    )


def predict(model: Path, arguments: argparse.Namespace) -> int:
    """Predict, write the table, say where it lies; 2 where some cases could not be read."""
    import sys

    from oaplug.core.predictions import write_predictions
    from oaplug.infer.inputs import find_cases
    from oaplug.infer.predictor import load_model

    predictor = load_model(
        model, folds=arguments.folds, checkpoint=arguments.checkpoint, device=arguments.device
    )
    cases = find_cases(arguments.images, predictor.run.description, table=arguments.cases)
    with Progress("predicting") as progress:
        table, problems = predictor.predict(
            cases, allow_training_cases=arguments.allow_training_cases, progress=progress
        )
    folder = arguments.output or model / "predictions" / arguments.images.resolve().name
    path = write_predictions(folder, table)
    print(
        f"result: {path} ({len(table.case_ids)} cases)\nnext:   oaplug_analyze -m {folder} -o REPORT_FOLDER"
    )
    for problem in problems:
        print(f"not predicted: {problem}", file=sys.stderr)
    return 2 if problems else 0
