"""oaplug_predict: predict raw images with a model found by dataset, parts and configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oaplug.commands.predict_steps import add_prediction, predict
from oaplug.commands.shell import Parser, add_places, places, run_command

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and work."""
    parser = Parser(prog="oaplug_predict", description=__doc__)
    parser.add_argument("-d", dest="dataset", required=True, metavar="ID", help="dataset id (901) or name")
    parser.add_argument("-b", dest="backbone", default="resnet3d", help="backbone")
    parser.add_argument("--head", default="single", help="head strategy")
    parser.add_argument("--target", help="target of a head that answers one (default: the finest)")
    parser.add_argument("-c", dest="configuration", default="3d_lowres", metavar="NAME", help="configuration")
    parser.add_argument("--plans", default="oaplugPlans", metavar="NAME", help="name of the plan")
    parser.add_argument("--tag", help="tag of the model")
    add_prediction(parser)
    add_places(parser, "results")
    return run_command(parser, lambda parsed: predict(_find_model(parsed), parsed), arguments)


def _find_model(arguments: argparse.Namespace) -> Path:
    from oaplug.core.errors import CheckpointError
    from oaplug.core.paths import find_dataset, run_folder_name

    results = find_dataset(places(arguments).results, arguments.dataset)
    target = f"_{arguments.target}" if arguments.target else ""
    rest = {"plans": arguments.plans, "configuration": arguments.configuration, "tag": arguments.tag}
    exact = results / run_folder_name(model=f"{arguments.backbone}-{arguments.head}{target}", **rest)
    if exact.is_dir() or arguments.target:
        return exact
    known = sorted(
        results.glob(
            run_folder_name(model=f"{arguments.backbone}-{arguments.head}X", **rest).replace("X", "_*")
        )
    )
    known = [path for path in known if len(path.name.split("__")) == len(exact.name.split("__"))]
    if len(known) == 1:
        return known[0]
    there = ", ".join(path.name for path in (known or sorted(p for p in results.iterdir() if p.is_dir())))
    raise CheckpointError(f"no model {exact.name} in {results} (there: {there}); say --target or --tag")
