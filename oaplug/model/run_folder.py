"""A run's folder: the resolved plan and everything needed to use the model without the dataset."""

from __future__ import annotations

import platform
import secrets
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal

import oaplug
from oaplug.core.artifacts import check_schema, read_json, write_json
from oaplug.core.dataset import DatasetDescription, description_to_json, read_description
from oaplug.core.errors import CheckpointError, PlanError
from oaplug.core.plan import Configuration, Plan, plan_from_json, plan_to_json
from oaplug.core.settings import from_mapping, to_mapping
from oaplug.model.build import build_encoder, build_head, targets_of_head
from oaplug.model.parts import PartRecord, find_recorded
from oaplug.model.weight_files import FileRecord

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from oaplug.core.target import Target
    from oaplug.model.network import Network
    from oaplug.plug.registry import Registry

RUN_SCHEMA = 1
_RESOLVED = {"run.batch", "run.precision", "plan.training.memory_gib"}
"""What batch size and precision were resolved from, once: another fold may be trained on another machine."""


@dataclass(frozen=True, kw_only=True)
class BatchChoice:
    """How the batch size in a run's plan came from the planned one: the memory of its step, and the target.

    The memory is that of one process; None where it could not be estimated.
    """

    planned: int
    estimated_gib: float | None = None
    target_gib: float | None = None
    source: str | None = None


@dataclass(frozen=True, kw_only=True)
class PrecisionChoice:
    """How precision and layout in a run's plan came from the planned ones; seconds of a step are by name."""

    planned: str
    planned_channels_last: bool | Literal["auto"]
    seconds_per_step: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunChoices:
    """What was chosen for a run beside the plan; `pretrained_weights` is the file its encoder starts from."""

    configuration: str
    backbone: PartRecord
    head: PartRecord
    target: str | None = None
    batch: BatchChoice | None = None
    precision: PrecisionChoice | None = None
    pretrained_weights: FileRecord | None = None
    overrides: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunDescription:
    """A resolved run: plan with every override applied, choices, and the dataset's description."""

    plan: Plan
    choices: RunChoices
    description: DatasetDescription

    @property
    def configuration(self) -> Configuration:
        """The input geometry of the run."""
        return self.plan.configuration(self.choices.configuration)


def run_to_json(run: RunDescription) -> dict[str, Any]:
    """The content of a run's plans.json."""
    return {"schema": RUN_SCHEMA, "run": to_mapping(run.choices), "plan": plan_to_json(run.plan)}


def write_run(folder: Path, run: RunDescription, *, fingerprint: Any) -> None:
    """Write plans.json, dataset.json, dataset_fingerprint.json and provenance.json of a new run folder.

    Raises PlanError where the folder holds trained folds with other settings: those are never mixed.
    """
    path = folder / "plans.json"
    content = run_to_json(run)
    if path.is_file() and has_trained_fold(folder):
        _refuse_difference(run_to_json(read_run(folder)), content, path=path)
        return
    write_json(folder / "dataset.json", description_to_json(run.description))
    if fingerprint is not None:
        write_json(folder / "dataset_fingerprint.json", fingerprint)
    provenance = {**_provenance(), "leak_key": _leak_key(folder)}
    if run.choices.pretrained_weights is not None:
        provenance["pretrained_weights"] = to_mapping(run.choices.pretrained_weights)
    write_json(folder / "provenance.json", provenance)
    write_json(path, content)


def has_trained_fold(folder: Path) -> bool:
    """Whether something was trained in a run's folder: from then on it has one set of settings."""
    return any(folder.glob("fold_*/checkpoint_*"))


def is_same_run(first: RunDescription, second: RunDescription) -> bool:
    """Whether folds of both may lie in one folder."""
    return _first_difference(run_to_json(first), run_to_json(second)) is None


def run_difference(first: Any, second: Any) -> str | None:
    """Dotted key of the first setting in which two contents of plans.json differ; None: one run."""
    return _first_difference(first, second)


def _refuse_difference(there: Any, new: Mapping[str, Any], *, path: Path) -> None:
    key = _first_difference(there, new)
    if key is not None:
        raise PlanError(
            f"{path} belongs to a run with another {key}; train this one under its own name with --tag NAME"
        )


def _first_difference(there: Any, new: Any, prefix: str = "") -> str | None:
    """Dotted key of the first value that differs between two JSON values."""
    if isinstance(there, dict) and isinstance(new, dict):
        for key in [*new, *(k for k in there if k not in new)]:
            name = f"{prefix}.{key}" if prefix else key
            # what an override changes shows elsewhere, and a renamed file of weights has its sha256
            if (
                key in {"version", "reasons", "overrides", "file", "readers", "checkpoint_minutes"}
                or name in _RESOLVED
            ):
                continue
            if (found := _first_difference(there.get(key), new.get(key), name)) is not None:
                return found
        return None
    return None if there == new else prefix


def _provenance() -> dict[str, Any]:
    import torch

    return {
        "schema": RUN_SCHEMA,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "oaplug": oaplug.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
    }


def _leak_key(folder: Path) -> str:
    """The key of the leak guard: the one that is there, as another fold may be in training already."""
    path = folder / "provenance.json"
    return str(read_json(path)["leak_key"]) if path.is_file() else secrets.token_hex(16)


def read_run(folder: Path) -> RunDescription:
    """Read a run's folder; raises CheckpointError where it is not one."""
    path = folder / "plans.json"
    content = read_json(
        path, error=CheckpointError, hint="a model folder holds plans.json and fold_0, fold_1, ..."
    )
    content = check_schema(content, path=path, newest=RUN_SCHEMA, error=CheckpointError)
    if "run" not in content or "plan" not in content:
        raise CheckpointError(f"{path} is not the plans.json of a model folder")
    plan = plan_from_json(content["plan"], path=path)
    choices = from_mapping(RunChoices, content["run"], where=str(path), error=CheckpointError)
    return RunDescription(
        plan=plan, choices=choices, description=read_description(folder, name=plan.dataset_name)
    )


def targets_of_run(run: RunDescription, registry: Registry) -> dict[str, Target]:
    """The targets the run's head answers, parents first."""
    part = find_recorded(registry, "head", run.choices.head)
    return targets_of_head(part.spec, run.description.targets, target=run.choices.target)  # type: ignore[arg-type]


def build_network(
    run: RunDescription, registry: Registry, *, grade_counts: Mapping[str, Sequence[int]] | None = None
) -> Network:
    """The network of a run, with random weights (torch's global generator)."""
    from oaplug.model.network import Network

    backbone = find_recorded(registry, "backbone", run.choices.backbone)
    head = find_recorded(registry, "head", run.choices.head)
    encoder = build_encoder(
        backbone.spec,  # type: ignore[arg-type]
        run.choices.backbone.options,
        in_channels=len(run.description.channel_names),
        input_size=run.configuration.size_voxels,
    )
    strategy = build_head(
        head.spec,  # type: ignore[arg-type]
        run.choices.head.options,
        num_features=encoder.num_features,
        targets=targets_of_run(run, registry),
        grade_counts=grade_counts or {},
    )
    return Network(encoder, strategy)
