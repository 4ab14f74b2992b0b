"""oaplug_make_phantom: a data set of parametric knees whose anatomy follows a known severity."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from oaplug.commands.convert import convert, dataset_folder
from oaplug.commands.shell import Parser, add_places, default_processes, run_command, triple

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and work."""
    parser = Parser(prog="oaplug_make_phantom", description=__doc__)
    parser.add_argument(
        "-d", dest="number", type=int, default=901, metavar="ID", help="id of the new dataset"
    )
    parser.add_argument("--name", default="KneePhantom", help="name of the new dataset")
    parser.add_argument("--cases", type=int, default=120, metavar="N", help="number of knees")
    parser.add_argument("--shape", **triple(int), default=[40, 96, 96], help="voxels of an image")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other knees")
    parser.add_argument(
        "--label-noise",
        type=float,
        default=0.0,
        metavar="STD",
        help="reader noise of kl, in grades (0: none)",
    )
    parser.add_argument(
        "--test-fraction", type=float, default=0.3, help="fraction of the subjects kept for testing"
    )
    parser.add_argument("-np", type=int, default=default_processes(), metavar="N", help="processes")
    add_places(parser, "raw")
    return run_command(parser, _work, arguments)


def _work(arguments: argparse.Namespace) -> None:
    options = {
        "cases": arguments.cases,
        "shape": arguments.shape,
        "seed": arguments.seed,
        "label_noise": arguments.label_noise,
        "test_fraction": arguments.test_fraction,
        "processes": arguments.np,
    }
    folder = convert(
        "phantom", Path(), folder=dataset_folder(arguments, name=arguments.name), options=options
    )
    print(
        f"result: {folder}\n"
        f"next:   oaplug_plan_and_preprocess -d {arguments.number} --verify_dataset_integrity"
    )
