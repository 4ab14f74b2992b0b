"""The plan: every decision as editable JSON, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from oaplug.core.artifacts import check_schema, read_json, write_json
from oaplug.core.errors import PlanError, nearest
from oaplug.core.settings import from_mapping, to_mapping

if TYPE_CHECKING:
    from pathlib import Path

PLAN_SCHEMA = 2
DEFAULT_PLANS = "oaplugPlans"
LARGEST_ELASTIC_FRACTION = 0.4
"""Of the control spacing: spline coefficients up to it make no folds (Choi and Lee 2000)."""
Normalization = Literal["zscore", "zscore_nonzero", "rescale_0_1", "none"]


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One input geometry and how images come into it; sizes and spacings follow D,H,W."""

    data_identifier: str
    spacing_mm: tuple[float, float, float]
    size_voxels: tuple[int, int, int]
    fit: Literal["pad_crop", "stretch"] = "pad_crop"
    crop: Literal["nonzero", "none"] = "nonzero"
    mirror_left: bool = True
    bias_correction: Literal["none", "n4"] = "none"
    anti_aliasing: bool = True
    normalization: tuple[Normalization, ...] = ("zscore",)

    def __post_init__(self) -> None:
        if min(self.size_voxels) < 1 or min(self.spacing_mm) <= 0:
            raise PlanError(
                f"sizes and spacings must be positive, got {self.size_voxels} and {self.spacing_mm}"
            )

    @property
    def voxel_mm(self) -> tuple[float, float, float]:
        """Sides of a prepared voxel; of a cube where every case is stretched by a factor of its own."""
        return self.spacing_mm if self.fit == "pad_crop" else (1.0, 1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How a network is trained; every key can be overridden with `--set training.KEY=VALUE`."""

    epochs: int = 100
    batch_size: int = 2
    memory_gib: float | None = None
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    schedule: Literal["cosine", "poly", "constant"] = "cosine"
    warmup_epochs: float = 1.0
    accumulation_steps: int = 1
    gradient_clip: float | None = 5.0
    ema_decay: float | None = None
    layer_decay: float = 1.0
    freeze_encoder: bool = False
    early_stopping_epochs: int | None = None
    skip_bad_steps: int = 0
    sync_batch_norm: bool = False
    compile: bool = False
    deterministic: bool = False
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    channels_last: bool | Literal["auto"] = "auto"
    class_weights: Literal["none", "balanced"] = "none"
    sampling: Literal["uniform", "balanced"] = "uniform"
    best_metric: str = "auto"
    seed: int = 0
    threads: int | None = None
    readers: int = 1
    checkpoint_minutes: float = 15.0
    log_gradient_cosine: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or self.learning_rate <= 0:
            raise PlanError("epochs, batch_size and learning_rate must be positive")
        if self.memory_gib is not None and self.memory_gib <= 0:
            raise PlanError(f"memory_gib must be positive, or null for what is free, got {self.memory_gib}")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise PlanError(f"ema_decay must be from 0 to below 1, such as 0.999, got {self.ema_decay}")
        if not 0 < self.layer_decay <= 1 or self.accumulation_steps < 1 or self.checkpoint_minutes <= 0:
            raise PlanError(
                "layer_decay must be above 0 and at most 1, accumulation_steps and checkpoint_minutes above 0"
            )
        if min(self.readers, self.skip_bad_steps) < 0 or (self.early_stopping_epochs or 1) < 1:
            raise PlanError("readers and skip_bad_steps must not be negative, early_stopping_epochs positive")
        if self.warmup_epochs < 0 or self.weight_decay < 0 or (self.threads is not None and self.threads < 1):
            raise PlanError("warmup_epochs and weight_decay must not be negative, threads must be positive")


@dataclass(frozen=True, kw_only=True)
class AugmentationSettings:
    """Random changes of training volumes: ranges, and the probability of each for one case.

    The keys from `keep_statistics` on came later: their defaults leave the part out, so that a plan or a
    run of an older version stays what it was. The planner switches them on.
    """

    backend: Literal["native", "batchgeneratorsv2", "none"] = "native"
    rotation_degrees: tuple[float, float, float] = (10.0, 10.0, 10.0)
    rotation_probability: float = 0.5
    scale_range: tuple[float, float] = (0.9, 1.1)
    scale_probability: float = 0.5
    shift_fraction: float = 0.05
    shift_probability: float = 0.5
    mirror_axes: tuple[Literal["D", "H", "W"], ...] = ()
    noise_std: float = 0.1
    noise_probability: float = 0.15
    brightness_range: tuple[float, float] = (0.8, 1.25)
    brightness_probability: float = 0.15
    contrast_range: tuple[float, float] = (0.8, 1.25)
    contrast_probability: float = 0.15
    gamma_range: tuple[float, float] = (0.7, 1.5)
    gamma_probability: float = 0.15
    keep_statistics: bool = False
    inverted_gamma_probability: float = 0.0
    blur_sigma_voxels: tuple[float, float] = (0.5, 1.0)
    blur_probability: float = 0.0
    low_resolution_zoom: tuple[float, float] = (0.7, 1.0)
    low_resolution_probability: float = 0.0
    bias_field_coefficient: float = 0.2
    bias_field_probability: float = 0.0
    elastic_displacement_voxels: float = 4.0
    elastic_spacing_voxels: float = 32.0
    elastic_probability: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name.endswith("_probability") and not 0 <= value <= 1:
                raise PlanError(f"{name} must be from 0 to 1, got {value}")
        for name in ("scale_range", "brightness_range", "contrast_range", "gamma_range"):
            if min(getattr(self, name)) <= 0:
                raise PlanError(f"{name} must be of positive factors, got {getattr(self, name)}")
        low, high = self.blur_sigma_voxels
        if not 0 <= low <= high:
            raise PlanError(f"blur_sigma_voxels must rise from 0 or more, got {self.blur_sigma_voxels}")
        low, high = self.low_resolution_zoom
        if not 0 < low <= high <= 1:
            raise PlanError(
                f"low_resolution_zoom must rise from above 0 to at most 1, got {self.low_resolution_zoom}"
            )
        if self.bias_field_coefficient < 0:
            raise PlanError(f"bias_field_coefficient must not be negative, got {self.bias_field_coefficient}")
        largest = LARGEST_ELASTIC_FRACTION * self.elastic_spacing_voxels
        if self.elastic_spacing_voxels < 1 or not 0 <= self.elastic_displacement_voxels <= largest:
            raise PlanError(
                f"elastic_displacement_voxels must be at most {LARGEST_ELASTIC_FRACTION} of "
                "elastic_spacing_voxels (1 or more), beyond which a volume may fold: got "
                f"{self.elastic_displacement_voxels} and {self.elastic_spacing_voxels}"
            )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All decisions for one dataset; `reasons` says why, by dotted key."""

    dataset_name: str
    configurations: dict[str, Configuration]
    plans_name: str = DEFAULT_PLANS
    training: TrainSettings = field(default_factory=TrainSettings)
    augmentation: AugmentationSettings = field(default_factory=AugmentationSettings)
    reasons: dict[str, str] = field(default_factory=dict)

    def configuration(self, name: str) -> Configuration:
        """The configuration called `name`; raises PlanError naming those there are."""
        if name not in self.configurations:
            raise PlanError(
                f"{self.plans_name} has no configuration {name!r}{nearest(name, self.configurations)}"
            )
        return self.configurations[name]


def plan_from_json(content: Any, *, path: Path) -> Plan:
    """Check a plan read from `path`; raises PlanError naming the key that is off."""
    content = dict(check_schema(content, path=path, newest=PLAN_SCHEMA, error=PlanError))
    content.pop("schema")
    plan = from_mapping(Plan, content, where=str(path))
    for name, configuration in plan.configurations.items():
        if not configuration.normalization:
            raise PlanError(f"{path}: configurations.{name}.normalization needs one entry per channel")
    return plan


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """The JSON form of a plan."""
    content: dict[str, Any] = to_mapping(plan)
    return {"schema": PLAN_SCHEMA, **content}


def read_plan(path: Path) -> Plan:
    """Read a plan file, of this version or an older one."""
    hint = "run oaplug_plan_experiment (or oaplug_plan_and_preprocess) first"
    return plan_from_json(migrate_plan(read_json(path, error=PlanError, hint=hint)), path=path)


def migrate_plan(content: Any) -> Any:
    """A plan as an older version wrote it, in today's schema; anything else as it is.

    For plans from which runs are still to be made: the plan in a model folder says what was done, and stays.
    """
    if isinstance(content, dict):
        found = content.get("schema")
        for schema in range(
            found if isinstance(found, int) and found in _MIGRATIONS else PLAN_SCHEMA, PLAN_SCHEMA
        ):
            content = {**_MIGRATIONS[schema](content), "schema": schema + 1}
    return content


def _choose_layout_at_training(content: dict[str, Any]) -> dict[str, Any]:
    """From schema 1, in which every plan had channels_last true, for want of a choice by measurement."""
    training = dict(content.get("training", {}))
    if training.get("channels_last") is True:
        training["channels_last"] = "auto"
    return {**content, "training": training}


_MIGRATIONS = {1: _choose_layout_at_training}


def write_plan(path: Path, plan: Plan) -> Path:
    """Write a plan file atomically."""
    return write_json(path, plan_to_json(plan))
