"""The steps from a raw dataset to preprocessed volumes, for the commands that run one or all."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from oaplug.commands.problems import print_problems, refuse
from oaplug.commands.shell import Progress, add_places, default_processes, places, triple
from oaplug.core.errors import DatasetError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from oaplug.core.case import Case, Problem
    from oaplug.core.dataset import Dataset
    from oaplug.prepare.folder import PreprocessedFolder


def add_dataset(parser: argparse.ArgumentParser) -> None:
    """The dataset, and where raw and preprocessed data lie."""
    parser.add_argument("-d", dest="dataset", required=True, metavar="ID", help="dataset id (901) or name")
    add_places(parser, "raw", "preprocessed")
    parser.add_argument("-np", type=int, default=default_processes(), metavar="N", help="processes")


def add_planning(parser: argparse.ArgumentParser) -> None:
    """What a plan can be told."""
    parser.add_argument("--plans", default="oaplugPlans", metavar="NAME", help="name of the plan")
    parser.add_argument(
        "-b",
        dest="backbone",
        metavar="BACKBONE",
        help="for this one: a plan of its own where sizes differ",
    )
    parser.add_argument("--size", **triple(int), help="input size in voxels instead of the planned one")
    parser.add_argument("--spacing", **triple(float), help="spacing in mm instead of the planned one")


def add_preprocessing(parser: argparse.ArgumentParser) -> None:
    """Which configurations and which share of the cases."""
    parser.add_argument(
        "-c", dest="configurations", nargs="+", default=["3d_lowres"], metavar="NAME", help="configurations"
    )
    parser.add_argument(
        "-num_parts", type=int, default=1, metavar="K", help="share the cases among K machines"
    )
    parser.add_argument("-part_id", type=int, default=0, metavar="I", help="this machine's share, from 0")


def add_skipping(parser: argparse.ArgumentParser) -> None:
    """What to do about cases that cannot be used."""
    parser.add_argument(
        "--skip-bad",
        action="store_true",
        help="put cases that cannot be used into quarantine and go on without them",
    )


def locate(arguments: argparse.Namespace) -> tuple[Dataset, PreprocessedFolder]:
    """The raw dataset and its preprocessed folder."""
    from oaplug.core.dataset import open_dataset
    from oaplug.core.paths import find_dataset
    from oaplug.prepare.folder import PreprocessedFolder

    dataset = open_dataset(find_dataset(places(arguments).raw, arguments.dataset))
    return dataset, PreprocessedFolder(places(arguments).preprocessed / dataset.folder.name)


def verify(arguments: argparse.Namespace) -> None:
    """Check every file of the dataset; raises DatasetError after printing a table of all problems."""
    from oaplug.core.dataset import read_dataset
    from oaplug.core.paths import find_dataset
    from oaplug.prepare.integrity import verify_dataset

    dataset = read_dataset(find_dataset(places(arguments).raw, arguments.dataset))
    with Progress("verifying") as progress:
        problems = verify_dataset(dataset, processes=arguments.np, progress=progress)
    if problems:
        print_problems(problems)
        raise DatasetError(
            f"{dataset.folder.name} has {len(problems)} problems (table above); mend them and run again"
        )
    print(f"{dataset.folder.name}: {len(dataset.cases)} cases, no problems found")


def extract(arguments: argparse.Namespace) -> Path:
    """Measure the training cases; gives the fingerprint's path.

    Cases that cannot be measured go to quarantine with --skip-bad; else raises DatasetError after printing a
    table of them and of the test cases that cannot be read.
    """
    from oaplug.prepare.fingerprint import measure_dataset, summarize, write_fingerprint
    from oaplug.prepare.folder import FINGERPRINT_FILE

    dataset, data = locate(arguments)
    with Progress("fingerprint") as progress:
        measured = measure_dataset(dataset, processes=arguments.np, progress=progress)
    if measured.problems and not arguments.skip_bad:
        unreadable = _unreadable(dataset.of_split("test"), arguments)
        refuse([*measured.problems.values(), *unreadable], "cannot be used")
    fingerprint = summarize(dataset, measured.results)
    data.publish(dataset)
    _quarantine(dataset, data, measured.problems)
    return write_fingerprint(data.folder / FINGERPRINT_FILE, fingerprint)


def _unreadable(cases: Sequence[Case], arguments: argparse.Namespace) -> list[Problem]:
    """Problems of cases that were not looked at yet, so that one table has all."""
    from oaplug.prepare.preprocess_dataset import find_unreadable

    with Progress("test cases") as progress:
        return find_unreadable(cases, processes=arguments.np, progress=progress)


def _quarantine(dataset: Dataset, data: PreprocessedFolder, problems: Mapping[str, Problem]) -> None:
    """Make the training cases that could not be measured all that the fingerprint has in quarantine."""
    from oaplug.prepare.case_state import mark_of_fingerprint
    from oaplug.prepare.quarantine import FINGERPRINT_STEP, mark_path, replace_marks

    cases = {case.case_id: case for case in dataset.cases}
    marks = [mark_of_fingerprint(cases[case_id], problem) for case_id, problem in problems.items()]
    replace_marks(data.folder, FINGERPRINT_STEP, marks)
    if marks:
        print_problems(list(problems.values()))
        folder = mark_path(data.folder, FINGERPRINT_STEP, "").parent
        print(f"{len(marks)} training cases are in quarantine and do not count (list: {folder})")


def plan(arguments: argparse.Namespace) -> Path:
    """Decide; gives the plan's path. A plan made before under that name is replaced.

    A backbone that needs other sizes than the default plan has gets a plan of its own name, which is
    `arguments.plans` from then on.
    """
    from oaplug.core.plan import write_plan
    from oaplug.prepare.fingerprint import read_fingerprint
    from oaplug.prepare.folder import FINGERPRINT_FILE
    from oaplug.prepare.planner import plan_experiment, plan_for_backbone

    dataset, data = locate(arguments)
    decide = partial(
        plan_experiment,
        dataset.description,
        read_fingerprint(data.folder / FINGERPRINT_FILE),
        spacing_mm=tuple(arguments.spacing) if arguments.spacing else None,
        size_voxels=tuple(arguments.size) if arguments.size else None,
    )
    if arguments.backbone is None:
        made = decide(plans_name=arguments.plans)
    else:
        name, multiple = _size_multiple(arguments.backbone)
        made = plan_for_backbone(decide, name, size_multiple=multiple, plans_name=arguments.plans)
        if max(multiple) > 1:
            print(f"{name} takes sizes that are multiples of {multiple}: the plan is {made.plans_name}")
    arguments.plans = made.plans_name
    for name, configuration in made.configurations.items():
        size, spacing = configuration.size_voxels, configuration.spacing_mm
        print(f"{name}: {' x '.join(map(str, size))} voxels of {' x '.join(f'{s:.3g}' for s in spacing)} mm")
    return write_plan(data.folder / f"{arguments.plans}.json", made)


def _size_multiple(backbone: str) -> tuple[str, tuple[int, int, int]]:
    """The backbone's own name, and what its sizes must be multiples of with its default options."""
    from oaplug.plug.registry import parse_options, registry
    from oaplug.plug.specs import BackboneSpec

    spec = registry().spec(BackboneSpec, backbone)
    return spec.name, spec.size_multiple(parse_options(spec, {}))
