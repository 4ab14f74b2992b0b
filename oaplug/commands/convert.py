"""oaplug_convert: turn a data set as its owner ships it into a raw dataset folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from oaplug.commands.shell import Parser, add_places, places, run_command

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence
    from typing import Any


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and work."""
    parser = Parser(prog="oaplug_convert", description=__doc__)
    parser.add_argument("converter", help="a converter (oaplug_plugins lists them)")
    parser.add_argument("source", type=Path, help="file or folder to convert")
    parser.add_argument(
        "-d", dest="number", type=int, required=True, metavar="ID", help="id of the new dataset"
    )
    parser.add_argument("--name", help="name of the new dataset (default: the converter's)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="options",
        help="an option of the converter",
    )
    add_places(parser, "raw")
    return run_command(parser, _work, arguments)


def _work(arguments: argparse.Namespace) -> None:
    from oaplug.core.settings import parse_overrides

    folder = convert(
        arguments.converter,
        arguments.source,
        folder=dataset_folder(arguments, name=arguments.name or arguments.converter),
        options=parse_overrides(arguments.options),
    )
    print(
        f"result: {folder}\n"
        f"next:   oaplug_plan_and_preprocess -d {arguments.number} --verify_dataset_integrity"
    )


def dataset_folder(arguments: argparse.Namespace, *, name: str) -> Path:
    """Where the new dataset goes; raises PathError where one of that id is there already."""
    from oaplug.core.errors import PathError
    from oaplug.core.paths import dataset_folder_name

    root = places(arguments).raw
    folder = root / dataset_folder_name(arguments.number, name)
    there = sorted(root.glob(f"Dataset{arguments.number:03d}_*"))
    if there:
        raise PathError(f"{there[0]} exists already; remove it or choose another id with -d")
    return folder


def convert(name: str, source: Path, *, folder: Path, options: Mapping[str, Any]) -> Path:
    """Run a converter into `folder`, telling what it has to say."""
    from oaplug.core.artifacts import make_folder
    from oaplug.core.converter import RawFolder
    from oaplug.plug.registry import parse_options, registry
    from oaplug.plug.specs import ConverterSpec

    spec = registry().spec(ConverterSpec, name)
    converter = spec.build(parse_options(spec, options))
    record = converter.convert(source, RawFolder(make_folder(folder)))
    print(f"{record.cases} cases written")
    for note in record.notes:
        print(note)
    for case, reason in record.excluded:
        print(f"left out: {case}: {reason}")
    return folder
