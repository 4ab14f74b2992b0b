"""oaplug_plan_experiment: decide geometry, training and augmentation from the fingerprint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oaplug.commands.prepare_steps import add_dataset, add_planning, plan
from oaplug.commands.shell import Parser, run_command

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and work."""
    parser = Parser(prog="oaplug_plan_experiment", description=__doc__)
    add_dataset(parser)
    add_planning(parser)
    return run_command(parser, _work, arguments)


def _work(arguments: argparse.Namespace) -> None:
    path = plan(arguments)
    print(f"result: {path} (edit it freely; its reasons say why)")
    print(f"next:   oaplug_preprocess -d {arguments.dataset} --plans {arguments.plans}")
