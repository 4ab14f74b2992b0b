"""oaplug_train: train folds of a model."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from oaplug.commands.shell import Parser, Progress, add_places, places, run_command

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    import torch

    from oaplug.model.run_folder import RunDescription
    from oaplug.prepare.folder import PreprocessedFolder
    from oaplug.prepare.splits import Fold
    from oaplug.train.fold import FoldRequest
    from oaplug.train.world import World


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and work."""
    parser = Parser(prog="oaplug_train", description=__doc__)
    parser.add_argument("dataset", help="dataset id (901) or name")
    parser.add_argument("configuration", help="configuration of the plan, such as 3d_lowres")
    parser.add_argument(
        "fold",
        nargs="+",
        help="0 to 4, several of them (those that are finished are skipped), or all: train on every training "
        "case, without validation",
    )
    parser.add_argument(
        "-b", dest="backbone", default="resnet3d", help="backbone (oaplug_plugins lists them)"
    )
    parser.add_argument("--head", default="single", help="head strategy (oaplug_plugins lists them)")
    parser.add_argument("--target", help="target of a head that answers one (default: the finest)")
    parser.add_argument("--plans", default="oaplugPlans", metavar="NAME", help="name of the plan")
    parser.add_argument("--tag", help="names another seed or setting: a part of the model folder's name")
    parser.add_argument(
        "-num_gpus", type=int, default=1, help="train in as many processes, each with a share of every batch"
    )
    parser.add_argument("-device", help="cuda, cuda:1, cpu or mps (default: a GPU where there is one)")
    parser.add_argument(
        "--deterministic", action="store_true", help="the same numbers on a GPU every time; slower"
    )
    parser.add_argument(
        "-pretrained_weights",
        type=Path,
        metavar="FILE",
        help="start the encoder from these (.safetensors, or a PyTorch file of tensors); not used by --c",
    )
    parser.add_argument("--c", action="store_true", help="continue an interrupted training")
    parser.add_argument(
        "--val", action="store_true", help="only predict the validation cases of a trained fold"
    )
    parser.add_argument(
        "--callback", action="append", default=[], help="also log with this callback; repeatable"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override a plan key or a part's option (training.epochs=50, backbone.width=16); repeatable",
    )
    add_places(parser, "preprocessed", "results")
    given = list(sys.argv[1:] if arguments is None else arguments)
    status = run_command(parser, partial(_work, given), given)
    if "torch" in sys.modules:
        from oaplug.train.world import end_one_of_many

        end_one_of_many(status)
    return status


def _work(given: Sequence[str], arguments: argparse.Namespace) -> int | None:
    if arguments.num_gpus > 1 and "WORLD_SIZE" not in os.environ:
        from oaplug.train.launch import launch

        return launch(["train", *given], processes=arguments.num_gpus)
    if arguments.deterministic:
        arguments.overrides.append("training.deterministic=true")
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    from oaplug.model.precision import choose_device
    from oaplug.train.world import join_world, naming_lost_processes

    with naming_lost_processes():
        world, device = join_world(choose_device(arguments.device))
        _let_the_first_speak(world)
        _train(arguments, world, device)
    return None


def _let_the_first_speak(world: World) -> None:
    """What all processes would say the first one says; errors are each one's own."""
    if not world.is_first:
        logging.getLogger("oaplug").setLevel(logging.ERROR)
        warnings.simplefilter("ignore")


def _train(arguments: argparse.Namespace, world: World, device: torch.device) -> None:
    from oaplug.core.paths import find_dataset
    from oaplug.model.run_folder import write_run
    from oaplug.prepare.folder import PreprocessedFolder
    from oaplug.train.fold import FoldRequest
    from oaplug.train.world import leaving

    data = PreprocessedFolder(find_dataset(places(arguments).preprocessed, arguments.dataset))
    run = _choose_run(arguments, data)
    splits = _choose_splits(data, arguments.fold)
    folder = _folder_of(arguments, data, run)
    run = _resolve(arguments, run, folder, splits=splits, world=world, device=device)
    if world.is_first:
        write_run(folder, run, fingerprint=data.fingerprint())
    world.wait()
    requests = [
        FoldRequest(
            run=run,
            folder=folder,
            data=data,
            fold=fold,
            split=split,
            device=device,
            resume=arguments.c,
            validate_only=arguments.val,
            callbacks=tuple(arguments.callback),
            pretrained_weights=arguments.pretrained_weights,
            world=world,
        )
        for fold, split in splits.items()
    ]
    with leaving(world):
        _train_folds(requests)
    if world.is_first:
        _say_next(requests)


def _choose_run(arguments: argparse.Namespace, data: PreprocessedFolder) -> RunDescription:
    """Plan, parts and overrides as they were asked for."""
    from oaplug.core.settings import parse_overrides
    from oaplug.plug.registry import registry
    from oaplug.train.settings import RunRequest, resolve_run

    request = RunRequest(
        configuration=arguments.configuration,
        backbone=arguments.backbone,
        head=arguments.head,
        target=arguments.target,
        overrides=parse_overrides(arguments.overrides),
    )
    description = data.description()
    plan = data.plan(arguments.plans)
    plan_path = data.folder / f"{arguments.plans}.json"
    return resolve_run(request, plan=plan, description=description, registry=registry(), plan_path=plan_path)


def _folder_of(arguments: argparse.Namespace, data: PreprocessedFolder, run: RunDescription) -> Path:
    from oaplug.core.paths import run_folder_name
    from oaplug.train.settings import model_name

    name = run_folder_name(
        model=model_name(run.choices),
        plans=arguments.plans,
        configuration=arguments.configuration,
        tag=arguments.tag,
    )
    return places(arguments).results / data.folder.name / name


def _resolve(
    arguments: argparse.Namespace,
    run: RunDescription,
    folder: Path,
    *,
    splits: Mapping[str, Fold],
    world: World,
    device: torch.device,
) -> RunDescription:
    """The run with what only this machine and the weights' file can tell, or as its folder has it."""
    from oaplug.plug.registry import registry
    from oaplug.train.batch_size import resolve_batch_size
    from oaplug.train.pretrained import with_weights
    from oaplug.train.probe import resolve_precision, with_recorded_precision

    begins = len(splits) > 1 and arguments.pretrained_weights is not None
    is_trained = arguments.val or (arguments.c and not begins)
    run = with_weights(run, folder, weights=arguments.pretrained_weights, is_trained=is_trained)
    run = with_recorded_precision(run, folder)
    run = resolve_batch_size(run, registry(), folder=folder, device=device, world=world)
    cases = max(len(split.train) for split in splits.values())
    return resolve_precision(run, registry(), folder=folder, device=device, world=world, training_cases=cases)


def _choose_splits(data: PreprocessedFolder, folds: Sequence[str]) -> dict[str, Fold]:
    """Training and validation cases by fold, in the order given."""
    from oaplug.core.errors import PlanError
    from oaplug.prepare.splits import fold_cases, read_or_make_splits

    cases, splits = data.cases(), []
    if wrong := [fold for fold in folds if fold != "all" and not (fold.isascii() and fold.isdigit())]:
        raise PlanError(f"fold {wrong[0]!r}: use a number from 0, or all")
    names = [fold if fold == "all" else str(int(fold)) for fold in folds]
    if twice := [name for name in names if names.count(name) > 1]:
        raise PlanError(f"fold {twice[0]} is given twice")
    if set(names) != {"all"}:
        splits = read_or_make_splits(data.splits_path, cases, data.description().targets)
    return {name: fold_cases(splits, "all" if name == "all" else int(name), cases=cases) for name in names}


def _train_folds(requests: Sequence[FoldRequest]) -> None:
    """Train one fold, or several one after another."""
    from oaplug.plug.registry import registry
    from oaplug.train.crossval import check_folds, what_is_left
    from oaplug.train.fold import train_fold

    is_one = len(requests) == 1
    if not is_one:
        check_folds(requests, registry())
        requests[0].world.wait()
    for request in requests:
        left = request if is_one else what_is_left(request, registry())
        request.world.wait()
        if left is not None:
            with Progress(f"training {request.folder.name} fold {request.fold}") as progress:
                train_fold(left, registry(), progress=progress)


def _say_next(requests: Sequence[FoldRequest]) -> None:
    folder = requests[0].folder
    for request in requests:
        print(f"result: {folder / f'fold_{request.fold}'} (progress.png, metrics.jsonl, validation/)")
    if (gathered := _gather(requests)) is not None:
        print(f"        {gathered} (every case by the fold that did not train on it)")
    print(f"next:   oaplug_predict_from_modelfolder -m {folder} -i FOLDER_WITH_IMAGES")


def _gather(requests: Sequence[FoldRequest]) -> Path | None:
    """Out-of-fold predictions, once all folds are there."""
    from oaplug.core.errors import OaplugError
    from oaplug.prepare.splits import read_splits
    from oaplug.train.crossval import missing_folds, write_crossval_results

    data, folder = requests[0].data, requests[0].folder
    if {request.fold for request in requests} == {"all"}:
        return None
    try:
        splits = read_splits(data.splits_path, data.cases())
        return None if missing_folds(folder, splits) else write_crossval_results(folder, splits)
    except OaplugError as failure:  # the folds themselves are whole
        logging.getLogger(__name__).warning("the folds are not put together: %s", failure)
        return None
