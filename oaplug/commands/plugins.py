"""oaplug_plugins: the parts that are installed, and the plugins that are broken."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from oaplug.commands.shell import Parser, run_command

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from oaplug.plug.registry import Registry


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and work."""
    parser = Parser(prog="oaplug_plugins", description=__doc__)
    parser.add_argument("--json", action="store_true", help="as JSON")
    return run_command(parser, _work, arguments)


def _work(arguments: argparse.Namespace) -> int:
    from oaplug.plug.registry import registry

    found = registry()
    if arguments.json:
        print(json.dumps(_as_json(found), indent=1))
    else:
        _print(found)
    return 1 if found.quarantined else 0


def _as_json(found: Registry) -> dict[str, object]:
    parts = [
        {
            "kind": part.spec.kind,
            "name": part.spec.name,
            "summary": part.spec.summary,
            "reference": part.spec.reference,
            "revision": part.spec.revision,
            "distribution": part.distribution,
            "version": part.version,
        }
        for part in found.parts
    ]
    broken = [
        {"distribution": q.distribution, "version": q.version, "reason": q.reason, "traceback": q.traceback}
        for q in found.quarantined
    ]
    return {"schema": 1, "parts": parts, "quarantined": broken}


def _print(found: Registry) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("kind", "name", "what it does", "from")
    for kind in ("backbone", "head", "analysis", "converter", "callback"):
        for part in found.of_kind(kind):
            table.add_row(kind, part.spec.name, part.spec.summary, f"{part.distribution} {part.version}")
    Console(markup=False).print(table)
    for broken in found.quarantined:
        print(
            f"\nleft out: {broken.distribution} {broken.version} ({broken.entry_point})\n{broken.traceback}"
        )
