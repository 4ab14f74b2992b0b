"""oaplug_predict_from_modelfolder: predict raw images with a model folder, wherever it lies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from oaplug.commands.predict_steps import add_prediction, predict
from oaplug.commands.shell import Parser, run_command

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and work."""
    parser = Parser(prog="oaplug_predict_from_modelfolder", description=__doc__)
    parser.add_argument("-m", dest="model", type=Path, required=True, metavar="FOLDER", help="model folder")
    add_prediction(parser)
    return run_command(parser, lambda parsed: predict(parsed.model, parsed), arguments)
