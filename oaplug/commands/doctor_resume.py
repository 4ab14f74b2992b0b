"""`oaplug_doctor --resume-test`: whether an interrupted training goes on to the same bits on this machine."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from oaplug.commands import plan_and_preprocess
from oaplug.commands.doctor_checks import Check
from oaplug.core.errors import OaplugError
from oaplug.model.checkpoint import load_checkpoint
from oaplug.model.precision import choose_device
from oaplug.model.run_folder import write_run
from oaplug.plug.registry import registry
from oaplug.prepare.folder import PreprocessedFolder
from oaplug.prepare.splits import fold_cases, read_or_make_splits
from oaplug.testing.toy import write_toy_dataset
from oaplug.train.fold import FoldRequest, train_fold
from oaplug.train.settings import RunRequest, resolve_run
from oaplug.train.stopping import Interrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    Progress = Callable[[int, int, str], None]

_NUMBER, _NAME = "901", "Dataset901_Toy"
_OVERRIDES = {
    "backbone.width": 4,
    "backbone.depth": 10,
    "backbone.dilated": False,
    "backbone.stem_kernel": 3,
    "head.dropout": 0.3,
    "training.epochs": 3,
    "training.batch_size": 3,
    "training.ema_decay": 0.9,
    "training.deterministic": True,
}
_STOPS = (2, 5)
"""Steps after which the second training is interrupted: within its first and its second epoch."""


def check_resuming(device: str | None) -> Check:
    """Train a toy network whole and in three pieces, and compare weights, optimizer and average."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    start = time.perf_counter()
    chosen = choose_device(device)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        data = _prepare(root)
        whole = _train(data, root / "whole", chosen)
        pieces = _train_in_pieces(data, root / "pieces", chosen)
        differing = [name for name in ("latest", "final") if not _is_same(whole, pieces, name)]
    found = f"{chosen}, {time.perf_counter() - start:.0f} s"
    if differing:
        return Check(
            name="resume",
            status="fail",
            found=f"{found}: other bits in {', '.join(differing)} after two interruptions",
            advice="a continued training is a valid one here, but does not repeat an uninterrupted one",
        )
    return Check(name="resume", status="ok", found=f"{found}: the same bits after two interruptions")


def _prepare(root: Path) -> PreprocessedFolder:
    write_toy_dataset(root / "raw" / _NAME)
    places = ["--raw", str(root / "raw"), "--preprocessed", str(root / "preprocessed")]
    if plan_and_preprocess.main(["-d", _NUMBER, "-np", "1", *places]) != 0:
        raise OaplugError("the toy data set could not be preprocessed")
    return PreprocessedFolder(root / "preprocessed" / _NAME)


def _train_in_pieces(data: PreprocessedFolder, folder: Path, device: torch.device) -> Path:
    for index, step in enumerate(_STOPS):
        try:
            _train(data, folder, device, resume=index > 0, progress=_interrupting_after(step))
        except Interrupted:
            continue
        raise OaplugError(f"a training did not stop at a signal in step {step}")
    return _train(data, folder, device, resume=True)


def _interrupting_after(step: int) -> Progress:
    def interrupt(done: int, _total: int, _what: str) -> None:
        if done == step:
            signal.raise_signal(signal.SIGTERM)

    return interrupt


def _train(
    data: PreprocessedFolder,
    folder: Path,
    device: torch.device,
    *,
    resume: bool = False,
    progress: Progress | None = None,
) -> Path:
    description, cases = data.description(), data.cases()
    run = resolve_run(
        RunRequest(configuration="3d_lowres", backbone="resnet3d", head="single", overrides=_OVERRIDES),
        plan=data.plan(),
        description=description,
        registry=registry(),
        plan_path=data.folder / "oaplugPlans.json",
    )
    write_run(folder, run, fingerprint=None)
    splits = read_or_make_splits(data.splits_path, cases, description.targets)
    request = FoldRequest(
        run=run,
        folder=folder,
        data=data,
        fold="0",
        split=fold_cases(splits, 0, cases=cases),
        device=device,
        resume=resume,
    )
    return train_fold(request, registry(), progress=progress)


def _is_same(first: Path, second: Path, name: str) -> bool:
    one, other = (load_checkpoint(fold / f"checkpoint_{name}.safetensors") for fold in (first, second))
    return _are_equal(one.network, other.network) and _are_equal(one.training, other.training)


def _are_equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
