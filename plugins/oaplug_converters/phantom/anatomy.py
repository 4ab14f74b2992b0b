"""Make one knee: image and mask from a severity and a generator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from oaplug_converters.phantom.contrast import acquire, paint_knee
from oaplug_converters.phantom.disease import Disease, disease_at
from oaplug_converters.phantom.geometry import (
    Bases,
    FloatArray,
    Points,
    Triple,
    cosine_bases,
    grid_axes,
    rotation_matrix,
    smooth_field,
    spacing_of,
)
from oaplug_converters.phantom.nuisance import (
    BIAS_TERMS,
    TEXTURE_TERMS,
    WARP_TERMS,
    Nuisance,
    Pose,
    draw_nuisance,
)
from oaplug_converters.phantom.shapes import Joint, shape_joint

LABELS: dict[str, int] = {
    "background": 0,
    "femur": 1,
    "femoral_cartilage": 2,
    "tibia": 3,
    "medial_tibial_cartilage": 4,
    "lateral_tibial_cartilage": 5,
}
"""Mask values, those of OAIZIB-CM."""
JOINT_CENTER_MM: Triple = (0.0, 2.0, -4.0)
"""Where an average joint lies in the field of view."""
SLAB_VOXELS = 400_000
"""Voxels that are worked on at a time, so that memory does not grow with resolution."""


@dataclass(frozen=True)
class Knee:
    """One knee.

    Attributes:
        image: signal, float32 (D,H,W): left to right, posterior to anterior, inferior to superior.
        labels: mask, uint8 (D,H,W), values as in `LABELS`.
        spacing_mm: voxel size (3,) along D, H, W.
        affine: from voxels to RAS+ mm (4,4).
    """

    image: FloatArray
    labels: npt.NDArray[np.uint8]
    spacing_mm: Triple
    affine: npt.NDArray[np.float64]


def make_knee(*, severity: float, shape: tuple[int, int, int], side: str, rng: np.random.Generator) -> Knee:
    """Make a knee of a true severity; all else comes from the generator and does not depend on severity.

    Args:
        severity: true severity in [0, 5); its whole part is the grade.
        shape: voxels (D,H,W) over a field of view of 112 x 140 x 140 mm.
        side: "R" or "L"; a left knee is built as a mirrored right knee.
        rng: source of anatomy, pose, contrast and noise.

    Raises:
        ValueError: for a side or a severity that does not exist.
    """
    if side not in ("L", "R"):
        raise ValueError(f"side must be 'L' or 'R', got {side!r}")
    nuisance = draw_nuisance(rng)
    disease = disease_at(severity, response=nuisance.response)
    signal, labels = _build(shape, side=side, nuisance=nuisance, disease=disease)
    axes, scan = grid_axes(shape), nuisance.acquisition
    image = acquire(
        signal,
        log_bias=smooth_field(scan.log_bias, cosine_bases(axes, terms=BIAS_TERMS)),
        texture=smooth_field(scan.texture, cosine_bases(axes, terms=TEXTURE_TERMS)),
        acquisition=scan,
        rng=rng,
    )
    return Knee(image=image, labels=labels, spacing_mm=spacing_of(shape), affine=affine_of(shape))


def affine_of(shape: tuple[int, int, int]) -> npt.NDArray[np.float64]:
    """RAS+ affine (4,4) that puts the middle of the field of view at the origin."""
    spacing = np.array(spacing_of(shape))
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -spacing * (np.array(shape) - 1) / 2
    return affine


def _build(
    shape: tuple[int, int, int], *, side: str, nuisance: Nuisance, disease: Disease
) -> tuple[FloatArray, npt.NDArray[np.uint8]]:
    """Noise-free signal and mask (D,H,W), slab by slab."""
    axes = grid_axes(shape)
    if side == "L":
        axes = (-axes[0], axes[1], axes[2])
    width_mm = 1.1 * max(spacing_of(shape)[1:])
    signal, labels = np.empty(shape, np.float32), np.empty(shape, np.uint8)
    for slab in _slabs(shape):
        points = place((axes[0][slab], axes[1], axes[2]), pose=nuisance.pose)
        joint = shape_joint(points, nuisance=nuisance, disease=disease)
        signal[slab] = paint_knee(points, joint, nuisance=nuisance, disease=disease, width_mm=width_mm)
        labels[slab] = label_joint(joint)
    return signal, labels


def _slabs(shape: tuple[int, int, int]) -> Iterator[slice]:
    thickness = max(SLAB_VOXELS // (shape[1] * shape[2]), 1)
    return (slice(start, start + thickness) for start in range(0, shape[0], thickness))


def place(axes_mm: tuple[FloatArray, FloatArray, FloatArray], *, pose: Pose) -> Points:
    """Positions in the knee (D,H,W) that scanner positions `axes_mm` show: shift, turn, scale, warp."""
    bases: Bases = cosine_bases(axes_mm, terms=WARP_TERMS)
    shift = np.add(pose.translation_mm, JOINT_CENTER_MM).astype(np.float32)
    grid = np.meshgrid(
        *(axis - value for axis, value in zip(axes_mm, shift, strict=True)), indexing="ij", sparse=True
    )
    turn = rotation_matrix(pose.rotation_degrees) / np.float32(pose.scale)
    x, y, z = (
        row[0] * grid[0] + row[1] * grid[1] + row[2] * grid[2] + smooth_field(warp, bases)
        for row, warp in zip(turn, pose.warp_mm, strict=True)
    )
    return Points(x, y, z)


def label_joint(joint: Joint) -> npt.NDArray[np.uint8]:
    """Mask (D,H,W) by what lies at each voxel's centre; bone wins over cartilage."""
    labels = np.zeros(joint.femur_mm.shape, np.uint8)
    for name, distance, thickness in (
        ("femoral_cartilage", joint.femur_mm, joint.femoral_mm),
        ("medial_tibial_cartilage", joint.tibia_mm, joint.medial_mm),
        ("lateral_tibial_cartilage", joint.tibia_mm, joint.lateral_mm),
    ):
        labels[distance < thickness] = LABELS[name]
    labels[joint.tibia_mm < 0] = LABELS["tibia"]
    labels[joint.femur_mm < 0] = LABELS["femur"]
    return labels
