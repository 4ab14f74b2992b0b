"""oaplug_doctor: whether this installation can work, and what to do where it cannot."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from oaplug.commands.shell import Parser, add_places, places, run_command

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from oaplug.commands.doctor_checks import Check


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and work."""
    parser = Parser(prog="oaplug_doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument(
        "--resume-test",
        action="store_true",
        help="also train a toy network twice, once interrupted, and compare every bit (less than a minute)",
    )
    parser.add_argument(
        "--feed",
        metavar="DATASET",
        help="also measure how fast its preprocessed cases become batches, and name the bottleneck",
    )
    parser.add_argument(
        "-c", dest="configuration", default="3d_lowres", metavar="NAME", help="configuration for --feed"
    )
    parser.add_argument("--plans", default="oaplugPlans", metavar="NAME", help="plan for --feed")
    parser.add_argument("-device", help="cuda, cuda:1, cpu or mps (default: a GPU where there is one)")
    add_places(parser, "raw", "preprocessed", "results")
    return run_command(parser, _work, arguments)


def _work(arguments: argparse.Namespace) -> int:
    with _said_to_standard_error():
        checks = _check(arguments)
    status = max((check.status for check in checks), key=("ok", "warn", "fail").index)
    if arguments.json:
        content = {"schema": 1, "status": status, "checks": [asdict(check) for check in checks]}
        print(json.dumps(content, indent=1))
    else:
        _print(checks)
    return 1 if status == "fail" else 0


def _check(arguments: argparse.Namespace) -> list[Check]:
    from oaplug.commands.doctor_checks import check_installation

    checks = check_installation(places(arguments), device=arguments.device)
    if arguments.resume_test:
        from oaplug.commands.doctor_resume import check_resuming

        checks.append(check_resuming(arguments.device))
    if arguments.feed is not None:
        from oaplug.commands.doctor_feed import check_feed

        checks += check_feed(arguments, places(arguments).preprocessed)
    return checks


@contextlib.contextmanager
def _said_to_standard_error() -> Iterator[None]:
    """What the checked parts print does not mix with the table or the JSON."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _print(checks: Sequence[Check]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("check", "status")
    table.add_column("found", overflow="fold")
    table.add_column("what to do", overflow="fold")
    for check in checks:
        table.add_row(check.name, check.status, check.found, check.advice)
    Console(markup=False, highlight=False).print(table)
    failed = [check.name for check in checks if check.status == "fail"]
    print(f"failed: {', '.join(failed)}" if failed else "oaplug can work here")
