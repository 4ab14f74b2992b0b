"""oaplug_convert_weights: turn the weights of a released implementation into a checkpoint of oaplug."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from oaplug.commands.shell import Parser, run_command

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from oaplug.model.conversion import Conversion


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and work."""
    parser = Parser(prog="oaplug_convert_weights", description=__doc__)
    parser.add_argument(
        "file", type=Path, help="a .safetensors file, or a PyTorch file with nothing but tensors"
    )
    parser.add_argument(
        "--from",
        dest="source",
        required=True,
        metavar="SOURCE",
        help="the implementation: medicalnet, m3t, nnmamba, study, or what other backbones know",
    )
    parser.add_argument(
        "-o", dest="output", type=Path, required=True, metavar="FILE", help="the .safetensors file to write"
    )
    parser.add_argument("-b", dest="backbone", help="backbone (default: the one whose tensors they are)")
    parser.add_argument(
        "--head", help="another head of the same tensors than the released one; none: the encoder alone"
    )
    return run_command(parser, _work, arguments)


def _work(arguments: argparse.Namespace) -> None:
    from oaplug.model.conversion import convert_weights

    made = convert_weights(
        arguments.file,
        source=arguments.source,
        output=arguments.output,
        backbone=arguments.backbone,
        head=arguments.head,
    )
    _describe(made)
    options = " ".join(f"--set backbone.{key}={_as_text(value)}" for key, value in made.not_default.items())
    print(f"result: {made.path}")
    print(
        f"next:   oaplug_train DATASET CONFIGURATION FOLD -b {made.record.backbone.name} "
        f"{options + ' ' if options else ''}-pretrained_weights {made.path}"
    )


def _describe(made: Conversion) -> None:
    """What the checkpoint holds, and what of the file it does not."""
    record = made.record
    print(f"backbone: {record.backbone.name} ({_listed(record.backbone.options)})")
    if record.head is None:
        print("head:     none, the encoder alone")
    else:
        print(f"head:     {record.head.name} for {', '.join(record.targets)}")
    print(f"weights:  {made.parameters} parameters")
    if made.unused:
        print(f"unused:   {', '.join(made.unused)}")


def _listed(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={_as_text(value)}" for key, value in options.items())


def _as_text(value: Any) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value)
