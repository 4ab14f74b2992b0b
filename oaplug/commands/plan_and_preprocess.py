"""oaplug_plan_and_preprocess: fingerprint, plan and preprocessed volumes of a raw dataset, in one go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oaplug.commands.prepare_steps import (
    add_dataset,
    add_planning,
    add_preprocessing,
    add_skipping,
    extract,
    plan,
    verify,
)
from oaplug.commands.preprocess_steps import preprocess, say_next
from oaplug.commands.shell import Parser, run_command

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and work."""
    parser = Parser(prog="oaplug_plan_and_preprocess", description=__doc__)
    add_dataset(parser)
    parser.add_argument("--verify_dataset_integrity", action="store_true", help="check every file first")
    add_planning(parser)
    add_preprocessing(parser)
    add_skipping(parser)
    return run_command(parser, _work, arguments)


def _work(arguments: argparse.Namespace) -> None:
    if arguments.verify_dataset_integrity:
        verify(arguments)
    extract(arguments)
    plan(arguments)
    say_next(preprocess(arguments), arguments)
