"""oaplug_analyze: compare models on the same cases and write a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from oaplug.commands.shell import Parser, Progress, add_places, places, run_command

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from typing import Any

PAIRED = "paired_statistics"


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and work."""
    parser = Parser(prog="oaplug_analyze", description=__doc__)
    parser.add_argument(
        "-m",
        dest="models",
        nargs="+",
        action="extend",
        required=True,
        metavar="[NAME=]MODEL",
        help="model folders, or prediction tables (predictions.csv or their folders)",
    )
    parser.add_argument(
        "-a", dest="analyses", nargs="+", action="extend", metavar="NAME", help="default: all but slow ones"
    )
    parser.add_argument(
        "-o", dest="output", type=Path, required=True, metavar="FOLDER", help="for findings and report"
    )
    parser.add_argument("--resamples", type=int, default=1000, metavar="N", help="bootstrap resamples")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap")
    parser.add_argument(
        "--intersect", action="store_true", help="compare the cases that all models predict, and say how many"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="ANALYSIS.KEY=VALUE",
        dest="options",
        help="an option of an analysis; repeatable",
    )
    parser.add_argument(
        "--baseline", metavar="NAME", help="compare all other models with this one (paired_statistics)"
    )
    parser.add_argument(
        "--protocol",
        choices=("pairs", "study"),
        help="study: the comparisons of the article, its random stream included (paired_statistics)",
    )
    parser.add_argument(
        "--cases",
        type=Path,
        metavar="CSV",
        help="sides and covariates of the cases (default: cases.csv of a model's dataset)",
    )
    parser.add_argument("-device", help="cuda, cuda:1, cpu or mps (default: a GPU where there is one)")
    add_places(parser, "raw", "preprocessed")
    return run_command(parser, _work, arguments)


def _work(arguments: argparse.Namespace) -> int:
    from oaplug.core.artifacts import make_folder
    from oaplug.plug.registry import registry
    from oaplug.study.covariates import with_covariates
    from oaplug.study.gather import name_models, open_study
    from oaplug.study.report import write_report
    from oaplug.study.run import run_study

    study = open_study(
        name_models(arguments.models),
        resamples=arguments.resamples,
        seed=arguments.seed,
        intersect=arguments.intersect,
        places=places(arguments),
        device=arguments.device,
    )
    study = with_covariates(study, table=arguments.cases, places=places(arguments))
    make_folder(arguments.output)
    with Progress("analyzing") as progress:
        outcome = run_study(
            study,
            arguments.analyses,
            folder=arguments.output,
            registry=registry(),
            options=_options(arguments),
            progress=progress,
        )
    report = write_report(arguments.output)
    for name, status in outcome.statuses.items():
        print(f"{name}: {status}")
    print(f"result: {outcome.findings}\nnext:   open {report} in a browser")
    return 1 if outcome.failed else 0


def _options(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Options by analysis, from --set and the two options that stand for one of paired_statistics."""
    from oaplug.core.errors import PluginError
    from oaplug.core.settings import parse_overrides

    options: dict[str, dict[str, Any]] = {}
    for key in ("baseline", "protocol"):
        if (value := getattr(arguments, key)) is not None:
            options.setdefault(PAIRED, {})[key] = value
    for assignment, value in parse_overrides(arguments.options).items():
        distribution, colon, rest = assignment.rpartition(":")
        analysis, dot, key = rest.partition(".")
        if not (analysis and dot and key):
            raise PluginError(
                f"--set {assignment}: expected ANALYSIS.KEY=VALUE, as in {PAIRED}.baseline=NAME"
            )
        options.setdefault(f"{distribution}{colon}{analysis}", {})[key] = value
    return options
