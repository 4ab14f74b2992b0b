"""Training one fold of a run: data, network, trainer, and the predictions of its validation cases."""

from __future__ import annotations

import logging
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from oaplug.core.artifacts import make_folder, read_json, write_json
from oaplug.core.errors import CheckpointError, PlanError, nearest
from oaplug.core.evaluation import default_best_metric, table_metrics
from oaplug.core.leak import trained_on
from oaplug.core.metrics import METRIC_NAMES
from oaplug.core.predictions import write_predictions, write_trained_on
from oaplug.core.seeds import derive_seed
from oaplug.core.settings import to_mapping
from oaplug.model.precision import choose_precision
from oaplug.model.run_folder import RunDescription, build_network, run_to_json, targets_of_run
from oaplug.plug.registry import parse_options
from oaplug.plug.specs import CallbackSpec
from oaplug.prepare.quarantine import without_quarantined
from oaplug.prepare.store import read_record
from oaplug.train.checkpoints import checkpoint_path, clean, fold_lock, has_state
from oaplug.train.environment import digest_of_data, environment
from oaplug.train.fold_cases import batch_sources, check_preprocessed, grade_counts, usable_cases
from oaplug.train.logbook import log_file
from oaplug.train.pretrained import start_from_weights
from oaplug.train.settings import model_name
from oaplug.train.trainer import Trainer, TrainingJob
from oaplug.train.world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from oaplug.core.case import Case
    from oaplug.core.plan import TrainSettings
    from oaplug.core.target import Target
    from oaplug.model.network import Network
    from oaplug.plug.protocols import Callback
    from oaplug.plug.registry import Registry
    from oaplug.prepare.folder import PreprocessedFolder
    from oaplug.prepare.splits import Fold

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FoldRequest:
    """Which fold to train, where, and whether to go on with an interrupted one."""

    run: RunDescription
    folder: Path
    data: PreprocessedFolder
    fold: str
    split: Fold
    device: torch.device
    resume: bool = False
    validate_only: bool = False
    callbacks: tuple[str, ...] = ()
    pretrained_weights: Path | None = None
    world: World = field(default_factory=World)


def train_fold(
    request: FoldRequest, registry: Registry, *, progress: Callable[[int, int, str], None] | None = None
) -> Path:
    """Train (or resume, or only validate) one fold; gives its folder.

    Raises Interrupted after a signal, once everything is saved; LostProcess where another process is gone.
    """
    folder = make_folder(request.folder / f"fold_{request.fold}")
    is_first = request.world.is_first
    settings = torch_settings(request.run.plan.training, device=request.device)
    with settings, fold_lock(folder) if is_first else nullcontext():
        if is_first:
            clean(folder)
            _check_state(request, folder)
        request.world.wait()
        with log_file(folder) if is_first else nullcontext():
            _train(request, registry, folder, progress=progress)
    return folder


@contextmanager
def torch_settings(settings: TrainSettings, *, device: torch.device) -> Iterator[None]:
    """Within, torch has the threads and the determinism of a plan.

    A CPU in float16, or compiled for bfloat16, goes without oneDNN, whose weight gradients of convolutions
    may be wrong; `ExactConvolutionGradients` looks after bfloat16 that is not compiled.
    """
    threads, is_deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    has_onednn = bool(torch.backends.mkldnn.enabled)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    if settings.deterministic:
        torch.use_deterministic_algorithms(mode=True)
    is_delicate = settings.precision == "float16" or (settings.precision == "bfloat16" and settings.compile)
    if device.type == "cpu" and is_delicate:
        torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = has_onednn  # type: ignore[assignment]
        torch.use_deterministic_algorithms(is_deterministic)
        torch.set_num_threads(threads)


def _train(
    request: FoldRequest,
    registry: Registry,
    folder: Path,
    *,
    progress: Callable[[int, int, str], None] | None,
) -> None:
    trainer = Trainer(_job(request, registry, folder), progress=progress)
    if request.resume:
        trainer.resume()
    if not request.validate_only:
        trainer.train()
    if trainer.job.validation is not None:
        _write_validation(trainer, folder)


def _check_state(request: FoldRequest, folder: Path) -> None:
    """Refuse to overwrite a trained fold, and to resume or validate one that is not there."""
    final = checkpoint_path(folder, "final")
    if request.validate_only and not final.is_file():
        raise CheckpointError(f"{folder} has no checkpoint_final to validate; train it first (without --val)")
    if request.resume and not has_state(folder):
        raise CheckpointError(f"{folder} has no checkpoint_latest to continue; train without --c")
    if not request.resume and not request.validate_only and has_state(folder):
        raise PlanError(
            f"{folder} holds a training already; continue it with --c, train anew under --tag NAME, "
            "or remove the folder"
        )


def _job(request: FoldRequest, registry: Registry, folder: Path) -> TrainingJob:
    run, settings = request.run, request.run.plan.training
    targets = targets_of_run(run, registry)
    by_id = {case.case_id: case for case in request.data.cases()}
    split = without_quarantined(
        request.split, request.data, run.configuration.data_identifier, name=request.fold
    )
    training = usable_cases(split.train, by_id, targets)
    if len(training) < 2:
        raise PlanError(
            f"fold {request.fold} has {len(training)} training cases with a label of {list(targets)}"
        )
    validation = usable_cases(split.val, by_id, targets)
    counts = grade_counts(training, targets)
    network = _network(request, registry, folder, counts=counts)
    check_preprocessed(request, [*training, *validation])
    for_training, for_validation = batch_sources(request, training, validation, counts=counts)
    job = TrainingJob(
        network=network,
        training=for_training,
        validation=for_validation,
        targets=targets,
        settings=settings,
        precision=choose_precision(
            settings.precision, device=request.device, channels_last=settings.channels_last
        ),
        folder=folder,
        fold=request.fold,
        model=model_name(run.choices),
        best_metric=_best_metric(settings.best_metric, targets),
        run=run_to_json(run),
        environment=environment(
            device=request.device,
            processes=request.world.size,
            data=digest_of_data(request.data, run.configuration.data_identifier, training, validation),
        ),
        callbacks=[_build_callback(registry.spec(CallbackSpec, n), folder) for n in request.callbacks],
        world=request.world,
    )
    if request.world.is_first:
        _remember_cases(request, folder, training)
        _write_debug(folder, job)
    return job


def _network(
    request: FoldRequest, registry: Registry, folder: Path, *, counts: Mapping[str, Sequence[int]]
) -> Network:
    """The fold's network with its first weights: random, or from a file where a training begins."""
    torch.manual_seed(derive_seed(request.run.plan.training.seed, "weights", request.fold))
    network = build_network(request.run, registry, grade_counts=counts)
    if request.pretrained_weights is not None and not (request.resume or request.validate_only):
        report_folder = folder if request.world.is_first else None
        start_from_weights(
            network, request.pretrained_weights, run=request.run, registry=registry, folder=report_folder
        )
    return network


def _remember_cases(request: FoldRequest, folder: Path, cases: Sequence[Case]) -> None:
    """trained_on.json: keyed hashes of subjects and images, for the leak guard of whoever uses the model."""
    identifier = request.run.configuration.data_identifier
    digests = [d for c in cases for d in read_record(request.data.record_path(identifier, c.case_id)).inputs]
    key = read_json(request.folder / "provenance.json", error=CheckpointError)["leak_key"]
    write_trained_on(folder / "trained_on.json", trained_on([c.subject_id for c in cases], digests, key))


def _build_callback(spec: CallbackSpec, folder: Path) -> Callback:
    return spec.build(parse_options(spec, {}), folder=folder)


def _best_metric(name: str, targets: Mapping[str, Target]) -> str:
    """The metric that chooses the best epoch; raises PlanError for one that is not computed."""
    if name == "auto":
        return default_best_metric(targets)
    target, _, metric = name.partition(".")
    choices = [f"{t}.{m}" for t in targets for m in METRIC_NAMES if m != "mae"]
    if name not in choices or (metric == "qwk" and len(targets[target].grades) == 2):
        raise PlanError(f"training.best_metric: no metric {name!r}{nearest(name, choices)}")
    return name


def _write_debug(folder: Path, job: TrainingJob) -> None:
    """debug.json: what the trainer was given, for people who look into a run."""
    write_json(
        folder / "debug.json",
        {
            "schema": 1,
            "device": str(job.precision.device),
            "precision": str(job.precision.dtype or torch.float32),
            "channels_last": job.precision.channels_last,
            "threads": torch.get_num_threads(),
            "batch_size": job.training.batch_size,
            "batches_per_epoch": job.training.batches_per_epoch,
            "training_cases": [case.case_id for case in job.training.cases],
            "validation_cases": [c.case_id for c in job.validation.cases] if job.validation else [],
            "parameters": sum(p.numel() for p in job.network.parameters()),
            "settings": to_mapping(job.settings),
            "run": dict(job.run),
            "network": str(job.network).splitlines(),
        },
    )


def _write_validation(trainer: Trainer, folder: Path) -> None:
    """validation/: predictions of the final network on the fold's validation cases, and their metrics."""
    table = trainer.validation_table("final")
    if not trainer.job.world.is_first:
        return
    write_predictions(folder / "validation", table)
    metrics = table_metrics(table)
    write_json(
        folder / "validation" / "summary.json", {"schema": 1, "checkpoint": "final", "metrics": metrics}
    )
    shown = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items() if value is not None)
    log.info("validation of %s: %s", folder.name, shown)
