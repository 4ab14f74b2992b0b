"""Predicting with a model folder, shared by the two commands that find one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from oaplug.commands.shell import Progress, add_places, places

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from oaplug.core.case import Case, Problem
    from oaplug.core.features import Features
    from oaplug.core.predictions import PredictionTable
    from oaplug.infer.predictor import Predictor


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
    parser.add_argument(
        "--features",
        action="store_true",
        help="also write penultimate features, of these cases and of those each fold was trained on",
    )
    add_places(parser, "preprocessed")


def predict(model: Path, arguments: argparse.Namespace) -> int:
    """Predict, write the table, say where it lies; 2 where some cases could not be read."""
    import sys

    from oaplug.core.predictions import write_predictions
    from oaplug.infer.features import drop_outdated
    from oaplug.infer.inputs import find_cases
    from oaplug.infer.predictor import load_model

    predictor = load_model(
        model, folds=arguments.folds, checkpoint=arguments.checkpoint, device=arguments.device
    )
    cases = find_cases(arguments.images, predictor.run.description, table=arguments.cases)
    table, problems, features = _predict(predictor, cases, arguments)
    folder = arguments.output or model / "predictions" / arguments.images.resolve().name
    path = write_predictions(folder, table)
    print(f"result: {path} ({len(table.case_ids)} cases)")
    if features is not None:
        _write_features(predictor, features, folder, arguments)
    elif drop_outdated(folder, table, predictor):
        print("        features.safetensors of earlier predictions was removed; --features writes it anew")
    print(f"next:   oaplug_analyze -m {folder} -o REPORT_FOLDER")
    for problem in problems:
        print(f"not predicted: {problem}", file=sys.stderr)
    return 2 if problems else 0


def _predict(
    predictor: Predictor, cases: Sequence[Case], arguments: argparse.Namespace
) -> tuple[PredictionTable, list[Problem], Features | None]:
    from oaplug.infer.features import predict_with_features

    allowed = arguments.allow_training_cases
    with Progress("predicting") as progress:
        if arguments.features:
            return predict_with_features(predictor, cases, allow_training_cases=allowed, progress=progress)
        return *predictor.predict(cases, allow_training_cases=allowed, progress=progress), None


def _write_features(
    predictor: Predictor, features: Features, folder: Path, arguments: argparse.Namespace
) -> None:
    """Write features of the predicted cases, and of the training cases where those are at hand."""
    from oaplug.core.errors import OaplugError
    from oaplug.core.features import FEATURES_FILE, write_features
    from oaplug.core.paths import find_dataset
    from oaplug.infer.features import write_train_features
    from oaplug.prepare.folder import PreprocessedFolder

    print(f"        {write_features(folder / FEATURES_FILE, features)}")
    try:
        root = places(arguments).preprocessed
        data = PreprocessedFolder(find_dataset(root, predictor.run.plan.dataset_name))
        with Progress("features of training cases") as progress:
            paths = write_train_features(predictor, data, progress=progress)
    except OaplugError as failure:  # a model from elsewhere comes without the cases of its training
        print(f"without features of the training cases, which some analyses need: {failure}")
        return
    for path in paths:
        print(f"        {path}")
