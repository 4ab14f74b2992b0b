"""oaplug_convert: turn a data set as its owner ships it into a raw dataset folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from oaplug.commands.shell import Parser, Progress, add_places, places, run_command

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence
    from typing import Any

    from oaplug.core.converter import ConversionRecord

_CASES_SHOWN = 5
"""Of the cases left out for one reason, as many are printed; conversion.json has all."""


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
        "--settings", type=Path, metavar="FILE", help="options of the converter as a JSON object"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="options",
        help="an option of the converter, in place of that of --settings; repeatable",
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave bad cases out, instead of exit status 2 at the end"
    )
    add_places(parser, "raw")
    return run_command(parser, _work, arguments)


def _work(arguments: argparse.Namespace) -> None:
    folder = convert(
        arguments.converter,
        arguments.source,
        folder=_folder_of(arguments, name=arguments.name or arguments.converter.rpartition(":")[2]),
        options=_options(arguments),
        skip_bad=arguments.skip_bad,
    )
    print(
        f"result: {folder}\n"
        f"next:   oaplug_plan_and_preprocess -d {arguments.number} --verify_dataset_integrity"
    )


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    from oaplug.core.artifacts import read_json
    from oaplug.core.errors import PathError
    from oaplug.core.settings import parse_overrides

    settings = read_json(arguments.settings) if arguments.settings else {}
    if not isinstance(settings, dict):
        raise PathError(f'{arguments.settings}: expected an object, such as {{"case_id": "ID"}}')
    return settings | parse_overrides(arguments.options)


def dataset_folder(arguments: argparse.Namespace, *, name: str) -> Path:
    """Where the new dataset goes; raises PathError where one of that id is there already."""
    folder = _folder_of(arguments, name=name)
    if folder.exists():
        raise _exists_already(folder)
    return folder


def _folder_of(arguments: argparse.Namespace, *, name: str) -> Path:
    """Where the dataset goes; raises PathError where one of that id and another name is there."""
    from oaplug.core.paths import dataset_folder_name

    root = places(arguments).raw
    folder = root / dataset_folder_name(arguments.number, name)
    for there in sorted(root.glob(f"Dataset{arguments.number:03d}_*")):
        if there != folder:
            raise _exists_already(there)
    return folder


def _exists_already(folder: Path, *, why: str = "") -> Exception:
    from oaplug.core.errors import PathError

    return PathError(f"{folder} exists already{why}; remove it or choose another id with -d")


def convert(
    name: str, source: Path, *, folder: Path, options: Mapping[str, Any], skip_bad: bool = True
) -> Path:
    """Run a converter into `folder`, telling what it has to say; what an equal run left there is taken up.

    Raises DatasetError at the end where cases could not be converted, unless `skip_bad`.
    """
    from oaplug.commands.conversion import open_conversion
    from oaplug.core.converter import RawFolder
    from oaplug.core.errors import DatasetError
    from oaplug.core.settings import to_mapping
    from oaplug.plug.registry import parse_options, registry
    from oaplug.plug.specs import ConverterSpec

    spec = registry().spec(ConverterSpec, name)
    given = parse_options(spec, options)
    converter = spec.build(given)
    with open_conversion(folder, converter=name, options=to_mapping(given)) as conversion:
        with Progress("converting") as progress:
            record = converter.convert(source, RawFolder(folder, progress))
        conversion.finish(record)
    _tell(record)
    if record.problems and not skip_bad:
        raise DatasetError(
            f"{folder.name}: cases that are there: {record.cases}, problems (above): {len(record.problems)}; "
            "mend these and run the same command again, or leave these cases out with --skip-bad"
        )
    return folder


def _tell(record: ConversionRecord) -> None:
    print(f"{record.cases} cases written")
    for note in record.notes:
        print(note)
    cases_of: dict[str, list[str]] = {}
    for case, reason in record.excluded:
        cases_of.setdefault(reason, []).append(case)
    for reason, cases in cases_of.items():
        more = len(cases) - _CASES_SHOWN
        also = f" and {more} more (all in conversion.json)" if more > 0 else ""
        print(f"left out: {', '.join(cases[:_CASES_SHOWN])}{also}: {reason}")
    for problem in record.problems:
        print(f"problem: {problem}")
