"""oaplug_new_plugin: write a new plugin, a distribution that installs and passes its tests, to be changed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from oaplug.commands.shell import Parser, run_command

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

KINDS = ("backbone", "head", "analysis", "converter", "callback")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and work."""
    parser = Parser(prog="oaplug_new_plugin", description=__doc__)
    parser.add_argument("name", help="name of the distribution, such as oaplug-mynet; its part is mynet then")
    parser.add_argument("--kind", required=True, choices=KINDS, help="what it offers")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="a new or empty folder (default: one of that name here)"
    )
    return run_command(parser, _work, arguments)


def _work(arguments: argparse.Namespace) -> None:
    from oaplug.testing.scaffold import plugin_names, render_plugin, usage_of, write_plugin

    names = plugin_names(arguments.name)
    folder = write_plugin(arguments.output or Path(names.distribution), render_plugin(names, arguments.kind))
    print(
        f"result: {folder} ({arguments.kind} {names.part}, package {names.package})\n"
        f"next:   cd {folder}\n"
        "        python -m pip install -e '.[test]'\n"
        "        python -m pytest\n"
        f"        {usage_of(names, arguments.kind)}"
    )
