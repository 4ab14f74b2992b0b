"""oaplug_extract_fingerprint: measure the training cases of a dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oaplug.commands.prepare_steps import add_dataset, add_skipping, extract, verify
from oaplug.commands.shell import Parser, run_command

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and work."""
    parser = Parser(prog="oaplug_extract_fingerprint", description=__doc__)
    add_dataset(parser)
    parser.add_argument("--verify_dataset_integrity", action="store_true", help="check every file first")
    add_skipping(parser)
    return run_command(parser, _work, arguments)


def _work(arguments: argparse.Namespace) -> None:
    if arguments.verify_dataset_integrity:
        verify(arguments)
    path = extract(arguments)
    print(f"result: {path}\nnext:   oaplug_plan_experiment -d {arguments.dataset}")
