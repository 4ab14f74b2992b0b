"""oaplug_plugins: the parts that are installed, the plugins that are broken, and which are switched off."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from oaplug.commands.shell import Parser, run_command

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from oaplug.plug.registry import Part, Plugin, Registry

KINDS = ("backbone", "head", "analysis", "converter", "callback")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and work."""
    parser = Parser(prog="oaplug_plugins", description=__doc__)
    parser.add_argument("--json", action="store_true", help="as JSON")
    action = parser.add_mutually_exclusive_group()
    action.add_argument(
        "--check", metavar="NAME", help="run the contract checks of a part, or of all parts of a distribution"
    )
    action.add_argument(
        "--disable", metavar="NAME", help="import no plugin of this distribution from now on (of this user)"
    )
    action.add_argument("--enable", metavar="NAME", help="import the plugins of this distribution again")
    return run_command(parser, _work, arguments)


def _work(arguments: argparse.Namespace) -> int:
    if arguments.disable or arguments.enable:
        return _switch(arguments.disable or arguments.enable, is_on=bool(arguments.enable))
    with _only_json_on_stdout() if arguments.json else contextlib.nullcontext():
        found, results = _look(arguments.check)
    if results is not None:
        return _say_results(results, as_json=arguments.json)
    if arguments.json:
        print(json.dumps(_as_json(found), indent=1))
    else:
        _print(found)
    return 1 if found.quarantined else 0


def _look(wanted: str | None) -> tuple[Registry, list[dict[str, str]] | None]:
    """What is installed, and the results of the checks that are wanted."""
    from oaplug.plug.registry import registry

    found = registry()
    if wanted is None:
        return found, None
    from oaplug.commands.plugin_checks import check_parts, parts_to_check

    return found, check_parts(parts_to_check(found, wanted))


@contextlib.contextmanager
def _only_json_on_stdout() -> Iterator[None]:
    """What libraries write to file descriptor 1, past sys.stdout, goes to standard error meanwhile."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
        sys.stdout.flush()
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _switch(name: str, *, is_on: bool) -> int:
    """Disable or enable a distribution without importing it."""
    from oaplug.core.errors import PluginError, nearest
    from oaplug.plug.discovery import find_plugins
    from oaplug.plug.plugin import OURS, normal_name
    from oaplug.plug.switches import read_disabled, write_disabled

    wanted = normal_name(name)
    disabled = {normal_name(known): known for known in read_disabled()}
    known = disabled if is_on else {normal_name(f.distribution): f.distribution for f in find_plugins()}
    if not is_on and wanted == OURS:
        raise PluginError("the parts of oaplug itself cannot be disabled")
    if wanted not in known:
        what = "disabled" if is_on else "installed"
        raise PluginError(
            f"no distribution with plugins called {name!r} is {what}"
            f"{nearest(name, [known[key] for key in known if key != OURS])}"
        )
    kept = {key: value for key, value in disabled.items() if key != wanted}
    path = write_disabled([*kept.values(), *([] if is_on else [known[wanted]])])
    state, other = ("enabled", "disable") if is_on else ("disabled", "enable")
    print(f"{known[wanted]} is {state} ({path}); oaplug_plugins --{other} {known[wanted]} undoes it")
    return 0


def _distributions(found: Registry) -> list[dict[str, Any]]:
    """Per distribution its status, which is broken where one of its plugins is, and its parts."""
    rows: dict[str, dict[str, Any]] = {}
    for plugin in found.plugins:
        row = rows.setdefault(
            plugin.distribution,
            {
                "distribution": plugin.distribution,
                "version": plugin.version,
                "status": plugin.status,
                "parts": [],
                "notes": [],
                "import_seconds": 0.0,
            },
        )
        row["status"] = "broken" if "broken" in (plugin.status, row["status"]) else plugin.status
        row["parts"] += [f"{part.spec.kind}:{part.spec.name}" for part in plugin.parts]
        row["notes"] += plugin.notes
        row["import_seconds"] = round(row["import_seconds"] + plugin.seconds, 4)
    return list(rows.values())


def _as_json(found: Registry) -> dict[str, object]:
    return {
        "schema": 1,
        "distributions": _distributions(found),
        "parts": [_part_as_json(part) for part in found.parts],
        "quarantined": [_broken_as_json(plugin) for plugin in found.quarantined],
    }


def _part_as_json(part: Part) -> dict[str, object]:
    return {
        "kind": part.spec.kind,
        "name": part.spec.name,
        "summary": part.spec.summary,
        "reference": part.spec.reference,
        "revision": part.spec.revision,
        "distribution": part.distribution,
        "version": part.version,
    }


def _broken_as_json(plugin: Plugin) -> dict[str, object]:
    keys = ("distribution", "version", "entry_point", "reason", "traceback", "output")
    return {key: getattr(plugin, key) for key in keys}


def _print(found: Registry) -> None:
    from rich.console import Console
    from rich.table import Table

    rows = _distributions(found)
    distributions = Table("distribution", "version", "status", "parts")
    for row in rows:
        distributions.add_row(row["distribution"], row["version"], row["status"], str(len(row["parts"])))
    parts = Table("kind", "name", "what it does", "from")
    for kind in KINDS:
        for part in found.of_kind(kind):
            parts.add_row(kind, part.spec.name, part.spec.summary, f"{part.distribution} {part.version}")
    console = Console(markup=False, highlight=False)
    console.print(distributions)
    console.print(parts)
    for row in rows:
        for note in row["notes"]:
            print(f"note: while it was imported, {row['distribution']} {note}")
    for broken in found.quarantined:
        where = f" ({broken.entry_point})" if broken.entry_point else ""
        print(f"\nleft out: {broken.distribution} {broken.version}{where}\n{broken.traceback}")
    _print_what_to_do(rows)


def _print_what_to_do(rows: list[dict[str, Any]]) -> None:
    for status, what in (
        ("broken", "oaplug_plugins --disable NAME leaves it out without a warning"),
        ("disabled", "oaplug_plugins --enable NAME takes it up again"),
        ("not allowed", "OAPLUG_LOAD_PLUGINS lists what is"),
    ):
        names = [row["distribution"] for row in rows if row["status"] == status]
        if names:
            print(f"{status}: {', '.join(names)} ({what})")


def _say_results(results: list[dict[str, str]], *, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"schema": 1, "checks": results}, indent=1))
    else:
        for result in results:
            message = f": {result['message']}" if result["message"] else ""
            print(f"{result['status']:<11}  {result['kind']} {result['part']}{message}")
    return 1 if any(result["status"] == "failed" for result in results) else 0
