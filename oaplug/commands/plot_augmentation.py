"""oaplug_plot_augmentation: a picture of augmented cases, to look at before training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from oaplug.commands.shell import Parser, add_places, places, run_command
from oaplug.core.errors import PlanError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from matplotlib.figure import Figure
    from torch import Tensor

    from oaplug.core.case import Case
    from oaplug.core.plan import Plan
    from oaplug.feed.augment.contact_sheet import View
    from oaplug.prepare.folder import PreprocessedFolder


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and work."""
    parser = Parser(prog="oaplug_plot_augmentation", description=__doc__)
    parser.add_argument("-d", dest="dataset", required=True, metavar="ID", help="dataset id (901) or name")
    parser.add_argument(
        "-c", dest="configuration", default="3d_lowres", metavar="NAME", help="configuration of the plan"
    )
    parser.add_argument("--plans", default="oaplugPlans", metavar="NAME", help="name of the plan")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override a plan key (augmentation.noise_std=0.2), as in oaplug_train; repeatable",
    )
    parser.add_argument("-n", type=int, default=4, metavar="CASES", help="training cases, a row for each")
    parser.add_argument("--samples", type=int, default=6, metavar="N", help="samples of each case")
    parser.add_argument(
        "--parts", action="store_true", help="instead: each part alone, at the ends of its range, on one case"
    )
    parser.add_argument(
        "--axis",
        choices=["D", "H", "W"],
        default="D",
        help="the axis across which the middle slice lies; D: a sagittal slice",
    )
    parser.add_argument("-o", dest="output", type=Path, required=True, metavar="FILE", help="PNG to write")
    add_places(parser, "preprocessed")
    return run_command(parser, _work, arguments)


def _work(arguments: argparse.Namespace) -> None:
    from oaplug.core.artifacts import atomic_path, make_folder
    from oaplug.core.paths import find_dataset
    from oaplug.feed.augment.contact_sheet import View
    from oaplug.prepare.folder import PreprocessedFolder

    _check(arguments)
    folder = PreprocessedFolder(find_dataset(places(arguments).preprocessed, arguments.dataset))
    plan = _plan(folder, arguments)
    geometry = plan.configuration(arguments.configuration)
    view = View(arguments.axis, geometry.voxel_mm, geometry.size_voxels)
    figure = _figure(folder, plan, view=view, arguments=arguments)
    make_folder(arguments.output.resolve().parent)
    with atomic_path(arguments.output) as temporary:
        figure.savefig(temporary, dpi=130, format="png", bbox_inches="tight")
    print(f"result: {arguments.output}")
    print(f"next:   oaplug_train {arguments.dataset} {arguments.configuration} 0 (with the same --set)")


def _check(arguments: argparse.Namespace) -> None:
    if min(arguments.n, arguments.samples) < 1:
        raise PlanError(f"-n and --samples must be 1 or more, got {arguments.n} and {arguments.samples}")
    if arguments.output.suffix.lower() != ".png":
        raise PlanError(f"-o {arguments.output}: the picture is a PNG; give it a name that ends in .png")


def _plan(folder: PreprocessedFolder, arguments: argparse.Namespace) -> Plan:
    """The plan with its overrides; raises PlanError where nothing is drawn by it."""
    from oaplug.core.plan import plan_from_json, plan_to_json
    from oaplug.core.settings import apply_override, parse_overrides

    content = plan_to_json(folder.plan(arguments.plans))
    for key, value in parse_overrides(arguments.overrides).items():
        apply_override(content, key, value)
    plan = plan_from_json(content, path=folder.folder / f"{arguments.plans}.json")
    backend = plan.augmentation.backend
    if backend == "none" or (backend != "native" and arguments.parts):
        what = "augments nothing" if backend == "none" else "draws its parts itself: leave --parts out"
        raise PlanError(f"augmentation.backend {backend!r} {what}")
    return plan


def _figure(folder: PreprocessedFolder, plan: Plan, *, view: View, arguments: argparse.Namespace) -> Figure:
    from oaplug.feed.augment.contact_sheet import part_sheet, sample_sheet
    from oaplug.feed.augment.draw import check_mirroring

    cases = [case for case in folder.cases() if case.split == "train"]
    check_mirroring(plan.augmentation, cases)
    identifier = plan.configuration(arguments.configuration).data_identifier
    volumes = _read(folder, identifier, cases, count=1 if arguments.parts else arguments.n)
    if arguments.parts:
        return part_sheet(next(iter(volumes.values())), plan.augmentation, view=view)
    return sample_sheet(
        volumes, plan.augmentation, view=view, samples=arguments.samples, seed=plan.training.seed
    )


def _read(
    folder: PreprocessedFolder, identifier: str, cases: Sequence[Case], *, count: int
) -> dict[str, Tensor]:
    """Preprocessed volumes (C,D,H,W) float32 of the first cases that have one, by case id."""
    import torch

    from oaplug.prepare.store import read_array

    ready = [c.case_id for c in cases if folder.record_path(identifier, c.case_id).is_file()]
    if not ready:
        where = folder.folder / identifier
        raise PlanError(f"{where}: no training case is preprocessed; run oaplug_preprocess first")
    return {
        i: torch.from_numpy(read_array(folder.array_path(identifier, i)).astype("float32"))
        for i in ready[:count]
    }
