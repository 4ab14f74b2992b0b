"""oaplug_train: train one fold of a model."""

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
    from collections.abc import Sequence

    import torch

    from oaplug.prepare.folder import PreprocessedFolder
    from oaplug.prepare.splits import Fold
    from oaplug.train.world import World


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and work."""
    parser = Parser(prog="oaplug_train", description=__doc__)
    parser.add_argument("dataset", help="dataset id (901) or name")
    parser.add_argument("configuration", help="configuration of the plan, such as 3d_lowres")
    parser.add_argument("fold", help="0 to 4, or all: train on every training case, without validation")
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
    return run_command(parser, partial(_work, given), given)


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
    from oaplug.core.paths import find_dataset, run_folder_name
    from oaplug.core.settings import parse_overrides
    from oaplug.model.run_folder import write_run
    from oaplug.plug.registry import registry
    from oaplug.prepare.folder import PreprocessedFolder
    from oaplug.train.batch_size import resolve_batch_size
    from oaplug.train.fold import FoldRequest, train_fold
    from oaplug.train.pretrained import with_weights
    from oaplug.train.settings import RunRequest, model_name, resolve_run
    from oaplug.train.world import leaving

    data = PreprocessedFolder(find_dataset(places(arguments).preprocessed, arguments.dataset))
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
    run = resolve_run(request, plan=plan, description=description, registry=registry(), plan_path=plan_path)
    name = run_folder_name(
        model=model_name(run.choices),
        plans=arguments.plans,
        configuration=arguments.configuration,
        tag=arguments.tag,
    )
    folder = places(arguments).results / data.folder.name / name
    is_trained = arguments.c or arguments.val
    run = with_weights(run, folder, weights=arguments.pretrained_weights, is_trained=is_trained)
    split = _choose_split(data, arguments.fold)
    run = resolve_batch_size(run, registry(), folder=folder, device=device, world=world)
    if world.is_first:
        write_run(folder, run, fingerprint=data.fingerprint())
    world.wait()
    fold = FoldRequest(
        run=run,
        folder=folder,
        data=data,
        fold=arguments.fold,
        split=split,
        device=device,
        resume=arguments.c,
        validate_only=arguments.val,
        callbacks=tuple(arguments.callback),
        pretrained_weights=arguments.pretrained_weights,
        world=world,
    )
    with leaving(world), Progress(f"training {name} fold {arguments.fold}") as progress:
        trained = train_fold(fold, registry(), progress=progress)
    if world.is_first:
        _say_next(trained, folder, arguments)


def _choose_split(data: PreprocessedFolder, fold: str) -> Fold:
    from oaplug.core.errors import PlanError
    from oaplug.prepare.splits import fold_cases, read_or_make_splits

    cases = data.cases()
    if fold != "all" and not fold.isdigit():
        raise PlanError(f"fold {fold!r}: use a number from 0, or all")
    if fold == "all":
        return fold_cases([], "all", cases=cases)
    splits = read_or_make_splits(data.splits_path, cases, data.description().targets)
    return fold_cases(splits, int(fold), cases=cases)


def _say_next(trained: Path, folder: Path, arguments: argparse.Namespace) -> None:
    print(f"result: {trained} (progress.png, metrics.jsonl, validation/)")
    print(f"next:   oaplug_predict_from_modelfolder -m {folder} -i FOLDER_WITH_IMAGES")
