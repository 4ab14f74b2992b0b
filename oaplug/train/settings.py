"""From plan, parts and --set overrides to one resolved run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from oaplug.core.plan import plan_from_json, plan_to_json
from oaplug.core.settings import apply_override
from oaplug.model.build import targets_of_head
from oaplug.model.parts import record_part
from oaplug.model.run_folder import RunChoices, RunDescription

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from oaplug.core.dataset import DatasetDescription
    from oaplug.core.plan import Plan
    from oaplug.plug.registry import Registry


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """What was asked for on the command line."""

    configuration: str
    backbone: str
    head: str
    target: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)


def resolve_run(
    request: RunRequest, *, plan: Plan, description: DatasetDescription, registry: Registry, plan_path: Path
) -> RunDescription:
    """Apply every override and look up the parts.

    Raises PlanError or PluginError naming the key, configuration or part that is off.
    """
    options: dict[str, Any] = {"backbone": {}, "head": {}}
    content = plan_to_json(plan)
    for key, value in request.overrides.items():
        apply_override(
            options if key.split(".")[0] in options else content, key, value, open_keys=tuple(options)
        )
    resolved = plan_from_json(content, path=plan_path)
    resolved.configuration(request.configuration)
    head = registry.get("head", request.head)
    targets = targets_of_head(head.spec, description.targets, target=request.target)  # type: ignore[arg-type]
    single = head.spec.single_target  # type: ignore[attr-defined]
    choices = RunChoices(
        configuration=request.configuration,
        backbone=record_part(registry.get("backbone", request.backbone), options["backbone"]),
        head=record_part(head, options["head"]),
        target=next(iter(targets)) if single else None,
        overrides=dict(request.overrides),
    )
    return RunDescription(plan=resolved, choices=choices, description=description)


def model_name(choices: RunChoices) -> str:
    """`resnet3d-single_kl`: how the run's folder begins."""
    name = f"{choices.backbone.name}-{choices.head.name}"
    return f"{name}_{choices.target}" if choices.target else name
