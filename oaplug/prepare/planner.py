"""Deciding, from a dataset's description and fingerprint, everything that a plan holds, with reasons."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import TYPE_CHECKING

from oaplug.core.errors import PlanError
from oaplug.core.plan import (
    DEFAULT_PLANS,
    AugmentationSettings,
    Configuration,
    Normalization,
    Plan,
    TrainSettings,
)
from oaplug.core.target import finest_target
from oaplug.prepare.field_of_view import (
    LOWRES_VOXELS,
    choose_field_of_view,
    fullres_geometry,
    lowres_geometry,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from oaplug.core.dataset import DatasetDescription
    from oaplug.prepare.field_of_view import Geometry, Size, Triple
    from oaplug.prepare.fingerprint import Fingerprint

FULLRES, LOWRES = "3d_fullres", "3d_lowres"
BATCH_SIZES = ((100_000, 16), (LOWRES_VOXELS, 8), (4 * LOWRES_VOXELS, 4))
"""Batch size up to a number of voxels; 2 beyond."""
_AUGMENTATION = AugmentationSettings(
    mirror_axes=(),
    keep_statistics=True,
    inverted_gamma_probability=0.1,
    blur_probability=0.1,
    low_resolution_probability=0.125,
    bias_field_probability=0.15,
)


def plan_experiment(
    description: DatasetDescription,
    fingerprint: Fingerprint,
    *,
    plans_name: str = DEFAULT_PLANS,
    spacing_mm: Triple | None = None,
    size_voxels: Size | None = None,
    size_multiple: Size = (1, 1, 1),
) -> Plan:
    """The plan for a dataset: configurations 3d_fullres and 3d_lowres, training and augmentation.

    A given spacing or size (D,H,W) is used as it is in both configurations; other sizes are rounded down
    to `size_multiple`. Raises PlanError where the fingerprint is of other channels, or a given size is
    not a multiple of `size_multiple`.
    """
    _check_channels(description, fingerprint)
    _check_geometry(spacing_mm, size_voxels, size_multiple=size_multiple)
    view = choose_field_of_view(fingerprint)
    full = fullres_geometry(
        fingerprint, view, spacing_mm=spacing_mm, size_voxels=size_voxels, size_multiple=size_multiple
    )
    low = lowres_geometry(
        full,
        view,
        spacing_given=spacing_mm is not None,
        size_given=size_voxels is not None,
        size_multiple=size_multiple,
    )
    geometries = {FULLRES: full, LOWRES: low}
    common = _preprocessing_reasons(description, fingerprint)
    configurations, reasons = _configurations(
        geometries, common, plans_name=plans_name, description=description
    )
    training, training_reasons = _training(description, fingerprint, geometries)
    return Plan(
        dataset_name=description.name,
        plans_name=plans_name,
        configurations=configurations,
        training=training,
        augmentation=_AUGMENTATION,
        reasons=reasons | training_reasons | _augmentation_reasons(),
    )


def plan_for_backbone(
    decide: Callable[..., Plan], backbone: str, *, size_multiple: Size, plans_name: str
) -> Plan:
    """The plan for a backbone: the one for all, or where its sizes differ another, named after the backbone.

    `decide` is plan_experiment with all but plans_name and size_multiple; a plans_name that is not the
    default stands.
    """
    fitted = decide(plans_name=plans_name, size_multiple=size_multiple)
    if plans_name != DEFAULT_PLANS or _sizes(fitted) == _sizes(decide(plans_name=plans_name)):
        return fitted
    return decide(plans_name=f"{plans_name}_{backbone}", size_multiple=size_multiple)


def _sizes(plan: Plan) -> list[Size]:
    return [configuration.size_voxels for configuration in plan.configurations.values()]


def _check_channels(description: DatasetDescription, fingerprint: Fingerprint) -> None:
    named, measured = len(description.channel_names), fingerprint.num_channels
    if named != measured:
        raise PlanError(
            f"{description.name}: dataset.json names {named} channels but the fingerprint has {measured}; "
            "run oaplug_extract_fingerprint again"
        )


def _check_geometry(spacing_mm: Triple | None, size_voxels: Size | None, *, size_multiple: Size) -> None:
    if spacing_mm is not None and min(spacing_mm) <= 0:
        raise PlanError(f"the spacing must be positive along D, H and W, got {spacing_mm} mm")
    if size_voxels is None:
        return
    if min(size_voxels) < 1:
        raise PlanError(f"the size must be positive along D, H and W, got {size_voxels} voxels")
    if any(n % m for n, m in zip(size_voxels, size_multiple, strict=True)):
        raise PlanError(f"the size {size_voxels} must be a multiple of {size_multiple} along D, H and W")


def _configurations(
    geometries: Mapping[str, Geometry],
    common: Mapping[str, str],
    *,
    plans_name: str,
    description: DatasetDescription,
) -> tuple[dict[str, Configuration], dict[str, str]]:
    """Both configurations and a reason for each of their keys; equal geometries share preprocessed cases."""
    shared = geometries[FULLRES] == geometries[LOWRES]
    zscore: Normalization = "zscore"
    configurations: dict[str, Configuration] = {}
    reasons: dict[str, str] = {}
    for name, geometry in geometries.items():
        configurations[name] = Configuration(
            data_identifier=f"{plans_name}_{FULLRES if shared else name}",
            spacing_mm=geometry.spacing_mm,
            size_voxels=geometry.size_voxels,
            normalization=(zscore,) * len(description.channel_names),
        )
        why = {
            **common,
            "data_identifier": "the folder of preprocessed cases"
            + (f", shared by {FULLRES} and {LOWRES} because their geometry is the same" if shared else ""),
            "spacing_mm": geometry.spacing_reason,
            "size_voxels": geometry.size_reason,
        }
        reasons |= {f"configurations.{name}.{key.name}": why[key.name] for key in fields(Configuration)}
    return configurations, reasons


def _preprocessing_reasons(description: DatasetDescription, fingerprint: Fingerprint) -> dict[str, str]:
    return {
        "fit": "a fixed field of view, centred on content, keeps sizes comparable; 'stretch' "
        "would bring every image to the same size whatever its extent",
        "crop": "zeros around the content say nothing; extents are measured without them",
        "mirror_left": _mirror_reason(fingerprint),
        "bias_correction": "none: N4 is an iterative fit to every image, and has to show its gain on your "
        "data; set 'n4' to follow a study that used it",
        "anti_aliasing": "without it, resampling to a coarser spacing turns fine texture into artefacts",
        "normalization": _normalization_reason(description),
    }


def _mirror_reason(fingerprint: Fingerprint) -> str:
    left, right, unknown = (fingerprint.sides.get(side, 0) for side in ("L", "R", "unknown"))
    if not left + right:
        return "sides unknown: nothing is mirrored until cases.csv gives sides; then left knees are"
    reason = (
        f"left knees are mirrored along D, so that +D is lateral in every knee ({left} left, {right} right)"
    )
    return reason + (f"; {unknown} cases of unknown side are not mirrored" if unknown else "")


def _normalization_reason(description: DatasetDescription) -> str:
    reason = "every image is brought to mean 0 and standard deviation 1"
    if not any(name.lower() == "ct" for name in description.channel_names):
        return f"{reason}: intensities of MRI have no unit"
    return (
        f"{reason}, CT too: a plan has no scheme with fixed Hounsfield units; choose 'none' for that channel "
        "where absolute values matter"
    )


def _training(
    description: DatasetDescription, fingerprint: Fingerprint, geometries: Mapping[str, Geometry]
) -> tuple[TrainSettings, dict[str, str]]:
    """Training settings and why; they hold for both configurations, so the larger one sets the batch size."""
    cases = fingerprint.num_cases
    voxels = {name: math.prod(geometry.size_voxels) for name, geometry in geometries.items()}
    batches = {name: batch_size_for(count, num_cases=cases) for name, count in voxels.items()}
    why_batch = f"{FULLRES} has {voxels[FULLRES]} voxels; at most a quarter of {cases} training cases"
    if (low := batches[LOWRES]) != batches[FULLRES]:
        why_batch += f"; for {LOWRES} alone it would be {low} (--set training.batch_size={low})"
    reasons = {
        "epochs": "a usual length; look at progress.png before changing it",
        "batch_size": why_batch,
        "memory_gib": "null: what is free where a run begins; a batch size that does not fit is lowered then",
        "learning_rate": "PyTorch's default for AdamW",
        "weight_decay": "light, on top of augmentation",
        "schedule": "cosine ends at a rate near zero, so the last epochs differ little",
        "precision": "auto: a 16-bit format where the device is faster with it",
        "class_weights": _class_weights_reason(description, fingerprint),
        "best_metric": "auto: the metric that suits the target which the head answers",
        "seed": "any number; repeat a comparison with several before believing it",
    }
    training = TrainSettings(batch_size=batches[FULLRES])
    return training, {f"training.{key}": reason for key, reason in reasons.items()}


def batch_size_for(voxels: int, *, num_cases: int) -> int:
    """The batch size for volumes of `voxels`: at most a quarter of the training cases, at least 1."""
    by_size = next((batch for limit, batch in BATCH_SIZES if voxels <= limit), 2)
    return max(1, min(by_size, num_cases // 4))


def _class_weights_reason(description: DatasetDescription, fingerprint: Fingerprint) -> str:
    reason = (
        "none: probabilities keep to the frequencies of the training cases; 'balanced' favours rare grades"
    )
    if not description.targets:
        return reason
    target = finest_target(description.targets).name
    counts = ", ".join(
        f"{grade}: {count}" for grade, count in fingerprint.grade_counts.get(target, {}).items()
    )
    return f"{reason} (cases per grade of {target}: {counts})"


def _augmentation_reasons() -> dict[str, str]:
    reasons = {
        "backend": "native: batched on the training device, one interpolation for all spatial changes",
        "mirror_axes": "none: mirroring D would swap medial and lateral, and mirroring H or W makes an "
        "anatomy that does not occur",
        "rotation_degrees": "small: patients are positioned alike",
        "scale_range": "people differ in size by about a tenth; set scale_probability to 0 where size itself "
        "is what is graded",
        "shift_fraction": "small: images are centred on their content",
        "keep_statistics": "as in nnU-Net: brightness and contrast have parts of their own",
        "blur_probability": "nnU-Net's for one channel; sharpness differs between scanners and protocols",
        "low_resolution_probability": "nnU-Net's for one channel; resolution differs between protocols",
        "low_resolution_zoom": "not down to 0.5 as in nnU-Net: a joint space of two voxels would be gone",
        "inverted_gamma_probability": "nnU-Net's",
        "bias_field_coefficient": "moderate: about 20 % at the faces and 60 % in the corners of a volume",
        "bias_field_probability": "surface coils see what is near better; N4 leaves some of it",
        "elastic_probability": "0: deformation changes the thickness of cartilage and the width of the "
        "joint space, which is what is graded; so does scaling, by at most scale_range",
        "noise_std": "in units of an image's standard deviation, because it comes after normalisation",
    }
    return {f"augmentation.{key}": reason for key, reason in reasons.items()}
