"""oaplug_preprocess: bring every case into the geometry of a plan; only what is missing or changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oaplug.commands.prepare_steps import add_dataset, add_preprocessing, add_skipping
from oaplug.commands.preprocess_steps import finalize, preprocess, say_next
from oaplug.commands.shell import Parser, run_command

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and work."""
    parser = Parser(prog="oaplug_preprocess", description=__doc__)
    add_dataset(parser)
    parser.add_argument("--plans", default="oaplugPlans", metavar="NAME", help="name of the plan")
    add_preprocessing(parser)
    add_skipping(parser)
    parser.add_argument(
        "--finalize", action="store_true", help="only say what is complete, after all parts are done"
    )
    return run_command(parser, _work, arguments)


def _work(arguments: argparse.Namespace) -> None:
    say_next((finalize if arguments.finalize else preprocess)(arguments), arguments)
