"""Weights & Biases: a run per fold, kept in the fold's folder unless the environment asks to send it."""

from __future__ import annotations

import os
import secrets
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from oaplug_callbacks.tracking import (
    flat_settings,
    import_optional,
    numbers,
    project_name,
    run_name,
    unless_set,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from oaplug.plug import NoOptions

GO_ONLINE = ("WANDB_MODE", "WANDB_API_KEY")
"""Variables by which a person says where runs go; without them nothing leaves the machine."""


def build_wandb(_options: NoOptions, *, folder: Path) -> WandbCallback:
    """The callback of one fold; raises PluginError where wandb is not installed."""
    with _on_its_own():
        wandb = import_optional("wandb", callback="wandb", install="wandb")
    return WandbCallback(wandb, folder)


def _is_asked() -> bool:
    return any(name in os.environ for name in GO_ONLINE)


def _on_its_own() -> AbstractContextManager[None]:
    """Within, wandb does not report its own errors either, unless the environment asks to send runs."""
    return nullcontext() if _is_asked() else unless_set(WANDB_ERROR_REPORTING="false")


@dataclass
class WandbCallback:
    """Writes settings as the run's configuration and every number of an epoch's record against the epoch."""

    wandb: Any
    folder: Path
    run_id: str | None = None
    _run: Any = None

    def on_start(self, run: Mapping[str, Any]) -> None:
        """Open the run: the one that an interrupted training had, else a new one."""
        self.run_id = self.run_id or secrets.token_hex(4)
        with _on_its_own():
            self._run = self.wandb.init(
                id=self.run_id,
                resume="allow",
                mode=None if _is_asked() else "offline",
                dir=str(self.folder),
                project=project_name(run),
                name=run_name(self.folder),
                group=self.folder.parent.name,
                config=flat_settings(run),
                settings=self.wandb.Settings(console="off", save_code=False, silent=True),
            )
        self._run.define_metric("epoch")
        self._run.define_metric("*", step_metric="epoch")

    def on_epoch(self, record: Mapping[str, Any]) -> None:
        """Write one point per number, against the epoch: after a resumption one may come again."""
        self._run.log({"epoch": record["epoch"], **numbers(record)})

    def on_end(self) -> None:
        """Close the run."""
        self._run.finish()

    def state_dict(self) -> dict[str, Any]:
        """The id of the run."""
        return {"run_id": self.run_id}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the id of the run."""
        self.run_id = state.get("run_id")
