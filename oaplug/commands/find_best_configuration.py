"""oaplug_find_best_configuration: compare cross-validated models, and say which to predict with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from oaplug.commands.shell import Parser, add_places, places, run_command

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from oaplug.core.target import Target
    from oaplug.study.best_configuration import Ranking


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and work."""
    parser = Parser(prog="oaplug_find_best_configuration", description=__doc__)
    parser.add_argument("dataset", help="dataset id (901) or name")
    parser.add_argument(
        "-m",
        dest="models",
        nargs="+",
        action="extend",
        metavar="MODEL",
        help="names of model folders, or paths (default: every cross-validated model of the dataset)",
    )
    parser.add_argument(
        "--metric", help="TARGET.METRIC (default: kl.qwk, or what suits the finest target of the dataset)"
    )
    parser.add_argument(
        "-o", dest="output", type=Path, metavar="FOLDER", help="default: the dataset's folder of results"
    )
    parser.add_argument("--resamples", type=int, default=10_000, metavar="N", help="bootstrap resamples")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap")
    add_places(parser, "preprocessed", "results")
    return run_command(parser, _work, arguments)


def _work(arguments: argparse.Namespace) -> None:
    from oaplug.core.paths import find_dataset
    from oaplug.core.target import finest_target
    from oaplug.model.run_folder import read_run
    from oaplug.study.best_configuration import rank_models, split_metric

    results = find_dataset(places(arguments).results, arguments.dataset)
    folders = _model_folders(results, arguments.models)
    targets = read_run(next(iter(folders.values()))).description.targets
    metric = arguments.metric or _default_metric(finest_target(targets))
    target, _ = split_metric(metric, targets)
    tables, left_out = _gather(folders, target, arguments)
    ranking = rank_models(
        tables, metric, resamples=arguments.resamples, seed=arguments.seed, places=places(arguments)
    )
    command = f"oaplug_predict_from_modelfolder -m {folders[ranking.best.name]} -i FOLDER_WITH_IMAGES"
    path = _write(ranking, arguments.output or results, left_out=left_out, command=command)
    print(f"result: {path} (and {path.with_suffix('.md').name})\nnext:   {command}")


def _model_folders(results: Path, models: Sequence[str] | None) -> dict[str, Path]:
    """Model folders by name, those that were asked for or all there are."""
    from oaplug.core.errors import PathError, PredictionError
    from oaplug.model.run_folder import has_trained_fold

    if models is None:
        found = sorted(p.parent for p in results.glob("*/plans.json") if has_trained_fold(p.parent))
        if not found:
            raise PathError(f"{results} holds no trained model; run oaplug_train first")
        return {folder.name: folder for folder in found}
    folders: dict[str, Path] = {}
    for text in models:
        path = results / text if (results / text).is_dir() else Path(text).expanduser()
        if not (path / "plans.json").is_file():
            raise PathError(f"{text} is no model folder: there is no {path / 'plans.json'}")
        name = path.resolve().name
        if name in folders:
            raise PredictionError(f"two models are called {name!r} ({folders[name]} and {path})")
        folders[name] = path
    return folders


def _default_metric(finest: Target) -> str:
    from oaplug.core.evaluation import default_best_metric

    return default_best_metric({finest.name: finest})


def _gather(
    folders: Mapping[str, Path], target: str, arguments: argparse.Namespace
) -> tuple[dict[str, Path], dict[str, str]]:
    """Folders of out-of-fold predictions by model; and why models that were not asked for are left out."""
    from oaplug.core.errors import OaplugError, PredictionError
    from oaplug.core.predictions import read_predictions
    from oaplug.train.crossval import crossval_results

    tables, left_out = {}, {}
    for name, folder in folders.items():
        try:
            tables[name] = crossval_results(folder, places(arguments))
            if target not in (answers := read_predictions(tables[name]).targets):
                raise PredictionError(f"{name} does not answer {target!r}, but {', '.join(answers)}")
        except OaplugError as failure:
            if arguments.models:
                raise
            left_out[name] = str(failure)
            tables.pop(name, None)
    for reason in left_out.values():
        print(f"left out: {reason}")
    if not tables:
        raise PredictionError(
            "no model is cross-validated and answers the metric's target; train every fold of one, as in "
            f"oaplug_train {arguments.dataset} CONFIGURATION 0 1 2 3 4"
        )
    return tables, left_out


def _write(ranking: Ranking, folder: Path, *, left_out: Mapping[str, str], command: str) -> Path:
    """Print the ranking; write it as best_configuration.json and .md."""
    from oaplug.core.artifacts import write_json, write_text
    from oaplug.study.best_configuration import ranking_rows, ranking_sentences, ranking_to_json

    rows, sentences = ranking_rows(ranking), ranking_sentences(ranking)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print("\n".join(["", *sentences, ""]))
    lines = [f"| {' | '.join(row)} |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]]]
    omitted = [f"Left out: {reason}" for reason in left_out.values()]
    text = "\n".join([*lines, "", *sentences, "", *omitted, "", "```bash", command, "```", ""])
    write_text(folder / "best_configuration.md", text)
    content = {"schema": 1, **ranking_to_json(ranking), "left_out": dict(left_out), "predict": command}
    return write_json(folder / "best_configuration.json", content)
