"""Callbacks that log training elsewhere; metrics.jsonl is always written besides."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from oaplug.core.errors import PluginError
from oaplug.plug import CallbackSpec, NoOptions, hookimpl
from oaplug_callbacks.mlflow_runs import build_mlflow
from oaplug_callbacks.wandb_runs import build_wandb

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass
class TensorBoardCallback:
    """Writes every number of an epoch's record as a scalar."""

    folder: Path
    _writer: Any = None

    def on_start(self, run: Mapping[str, Any]) -> None:
        """Open the event file."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self.folder / "tensorboard"))

    def on_epoch(self, record: Mapping[str, Any]) -> None:
        """Write one point per number."""
        for name, value in record.items():
            if isinstance(value, (int, float)) and name != "epoch":
                self._writer.add_scalar(name.replace(".", "/"), value, global_step=record["epoch"])

    def on_end(self) -> None:
        """Close the event file."""
        self._writer.close()

    def state_dict(self) -> dict[str, Any]:
        """Nothing to keep: TensorBoard goes on by step."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to take up."""


def _build_tensorboard(_options: NoOptions, *, folder: Path) -> TensorBoardCallback:
    if find_spec("tensorboard") is None:
        raise PluginError("the callback tensorboard needs another package; pip install 'oaplug[tracking]'")
    return TensorBoardCallback(folder)


@hookimpl
def oaplug_callbacks() -> list[CallbackSpec]:
    """The callbacks of this package."""
    return [
        CallbackSpec(
            name="tensorboard",
            summary="scalars of every epoch for TensorBoard (extra: tracking)",
            build=_build_tensorboard,
        ),
        CallbackSpec(
            name="mlflow",
            summary="a run in MLflow: settings and every number of an epoch (extra: tracking)",
            build=build_mlflow,
            reference="https://mlflow.org",
        ),
        CallbackSpec(
            name="wandb",
            summary="the same in Weights & Biases, offline by default (extra: tracking)",
            build=build_wandb,
            reference="https://wandb.ai",
        ),
    ]
