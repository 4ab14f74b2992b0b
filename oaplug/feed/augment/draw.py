"""Drawing the parameters of one case's augmentation."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from oaplug.core.errors import PlanError
from oaplug.core.seeds import derive_seed, random_generator

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from oaplug.core.case import Case
    from oaplug.core.plan import AugmentationSettings

AXES = ("D", "H", "W")
BIAS_ORDER = 3
BIAS_POWERS = tuple(
    (d, h, w)
    for d in range(BIAS_ORDER + 1)
    for h in range(BIAS_ORDER + 1 - d)
    for w in range(BIAS_ORDER + 1 - d - h)
    if d + h + w > 0
)
"""Powers of d, h, w of the bias field's terms; the constant one would be brightness."""
Triple = tuple[float, float, float]
STILL = (0.0, 0.0, 0.0)
CUBE = (1.0, 1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What happens to one case: spatial parts follow D,H,W; neutral values change nothing.

    `voxel_mm` are the sides of a voxel, in whose millimetres rotations keep shapes. `bias_coefficients`
    belong to BIAS_POWERS. `keep_statistics` is a rule, not a draw: contrast stays in the volume's range and
    gamma keeps mean and standard deviation.
    """

    rotation_degrees: Triple = STILL
    voxel_mm: Triple = CUBE
    scale: float = 1.0
    shift_fraction: Triple = STILL
    mirrored: tuple[bool, bool, bool] = (False, False, False)
    elastic_displacement_voxels: float = 0.0
    elastic_spacing_voxels: float = 32.0
    elastic_seed: int = 0
    bias_coefficients: tuple[float, ...] = ()
    blur_sigma_voxels: Triple = STILL
    contrast: float = 1.0
    brightness: float = 1.0
    low_resolution_zoom: float = 1.0
    inverted_gamma: float = 1.0
    gamma: float = 1.0
    keep_statistics: bool = False
    noise_std: float = 0.0
    noise_seed: int = 0

    @property
    def turns(self) -> bool:
        """Whether the sampling grid does not follow the axes."""
        return self.rotation_degrees != STILL or self.elastic_displacement_voxels > 0

    @property
    def is_neutral(self) -> bool:
        """Whether nothing changes."""
        kept = {"voxel_mm", "elastic_spacing_voxels", "elastic_seed", "keep_statistics", "noise_seed"}
        return all(getattr(self, f.name) == f.default for f in fields(self) if f.name not in kept)


def draw_augmentation(
    settings: AugmentationSettings, seed: int, *purpose: int | str, voxel_mm: Triple = CUBE
) -> Draw:
    """Draw one case's parameters; they depend on the seed and purpose (fold, epoch, case) alone.

    `voxel_mm` (D,H,W) is taken over.
    The first parts share one generator; each that came later has its own, so that it shifts no other's draws.
    """
    rng = random_generator(seed, "augment", *purpose)
    rotation = (
        _triple(rng, settings.rotation_degrees) if rng.random() < settings.rotation_probability else None
    )
    scale = _between(rng, settings.scale_range, probability=settings.scale_probability)
    shift_max = (settings.shift_fraction,) * 3
    shift = _triple(rng, shift_max) if rng.random() < settings.shift_probability else None
    mirrored = tuple(bool(rng.random() < 0.5) and axis in settings.mirror_axes for axis in AXES)
    noisy = rng.random() < settings.noise_probability
    return Draw(
        rotation_degrees=rotation or STILL,
        voxel_mm=voxel_mm,
        scale=scale,
        shift_fraction=shift or STILL,
        mirrored=(mirrored[0], mirrored[1], mirrored[2]),
        contrast=_between(rng, settings.contrast_range, probability=settings.contrast_probability),
        brightness=_between(rng, settings.brightness_range, probability=settings.brightness_probability),
        gamma=_between(rng, settings.gamma_range, probability=settings.gamma_probability),
        noise_std=float(rng.uniform(0, settings.noise_std)) if noisy else 0.0,
        noise_seed=derive_seed(seed, "noise", *purpose),
        elastic_displacement_voxels=_elastic(settings, seed, *purpose),
        elastic_spacing_voxels=settings.elastic_spacing_voxels,
        elastic_seed=derive_seed(seed, "elastic_field", *purpose),
        bias_coefficients=_bias(settings, seed, *purpose),
        blur_sigma_voxels=_blur(settings, seed, *purpose),
        low_resolution_zoom=_low_resolution(settings, seed, *purpose),
        inverted_gamma=_inverted_gamma(settings, seed, *purpose),
        keep_statistics=settings.keep_statistics,
    )


def _elastic(settings: AugmentationSettings, seed: int, *purpose: int | str) -> float:
    rng = random_generator(seed, "augment_elastic", *purpose)
    happens = rng.random() < settings.elastic_probability
    return float(rng.uniform(0, settings.elastic_displacement_voxels)) if happens else 0.0


def _bias(settings: AugmentationSettings, seed: int, *purpose: int | str) -> tuple[float, ...]:
    rng = random_generator(seed, "augment_bias_field", *purpose)
    happens, largest = rng.random() < settings.bias_field_probability, settings.bias_field_coefficient
    return tuple(rng.uniform(-largest, largest, len(BIAS_POWERS)).tolist()) if happens and largest else ()


def _blur(settings: AugmentationSettings, seed: int, *purpose: int | str) -> Triple:
    rng = random_generator(seed, "augment_blur", *purpose)
    if rng.random() >= settings.blur_probability:
        return STILL
    d, h, w = rng.uniform(*settings.blur_sigma_voxels, 3).tolist()
    return d, h, w


def _low_resolution(settings: AugmentationSettings, seed: int, *purpose: int | str) -> float:
    rng = random_generator(seed, "augment_low_resolution", *purpose)
    happens = rng.random() < settings.low_resolution_probability
    return float(rng.uniform(*settings.low_resolution_zoom)) if happens else 1.0


def _inverted_gamma(settings: AugmentationSettings, seed: int, *purpose: int | str) -> float:
    rng = random_generator(seed, "augment_inverted_gamma", *purpose)
    return _between(rng, settings.gamma_range, probability=settings.inverted_gamma_probability)


def _triple(rng: np.random.Generator, largest: Triple) -> Triple:
    a, b, c = (float(rng.uniform(-value, value)) for value in largest)
    return a, b, c


def _between(rng: np.random.Generator, limits: tuple[float, float], *, probability: float) -> float:
    """A factor from `limits`, log-uniform so that half and double are as likely; else 1."""
    value = math.exp(float(rng.uniform(math.log(limits[0]), math.log(limits[1]))))
    return value if rng.random() < probability else 1.0


def check_mirroring(settings: AugmentationSettings, cases: Sequence[Case]) -> None:
    """Raises PlanError where cases have a side and D would be mirrored, which swaps medial and lateral."""
    sided = [case.case_id for case in cases if case.side is not None]
    if "D" in settings.mirror_axes and settings.backend != "none" and sided:
        raise PlanError(
            f"augmentation.mirror_axes has D, and {len(sided)} of {len(cases)} cases have a side ({sided[0]} "
            "is one): mirroring them along D would swap medial and lateral. Leave D out; it is for data "
            "without sides"
        )
