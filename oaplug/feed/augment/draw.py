"""Drawing the parameters of one case's augmentation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from oaplug.core.seeds import derive_seed, random_generator

if TYPE_CHECKING:
    import numpy as np

    from oaplug.core.plan import AugmentationSettings

AXES = ("D", "H", "W")
Triple = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What happens to one case: spatial parts follow D,H,W; neutral values change nothing."""

    rotation_degrees: Triple = (0.0, 0.0, 0.0)
    scale: float = 1.0
    shift_fraction: Triple = (0.0, 0.0, 0.0)
    mirrored: tuple[bool, bool, bool] = (False, False, False)
    contrast: float = 1.0
    brightness: float = 1.0
    gamma: float = 1.0
    noise_std: float = 0.0
    noise_seed: int = 0

    @property
    def is_spatial(self) -> bool:
        """Whether the sampling grid moves at all."""
        still = (0.0, 0.0, 0.0)
        return (
            self.scale != 1
            or self.rotation_degrees != still
            or self.shift_fraction != still
            or any(self.mirrored)
        )


def draw_augmentation(settings: AugmentationSettings, seed: int, *purpose: int | str) -> Draw:
    """Draw one case's parameters; they depend on the seed and purpose (fold, epoch, case) alone."""
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
        rotation_degrees=rotation or (0.0, 0.0, 0.0),
        scale=scale,
        shift_fraction=shift or (0.0, 0.0, 0.0),
        mirrored=(mirrored[0], mirrored[1], mirrored[2]),
        contrast=_between(rng, settings.contrast_range, probability=settings.contrast_probability),
        brightness=_between(rng, settings.brightness_range, probability=settings.brightness_probability),
        gamma=_between(rng, settings.gamma_range, probability=settings.gamma_probability),
        noise_std=float(rng.uniform(0, settings.noise_std)) if noisy else 0.0,
        noise_seed=derive_seed(seed, "noise", *purpose),
    )


def _triple(rng: np.random.Generator, largest: Triple) -> Triple:
    a, b, c = (float(rng.uniform(-value, value)) for value in largest)
    return a, b, c


def _between(rng: np.random.Generator, limits: tuple[float, float], *, probability: float) -> float:
    """A factor from `limits`, log-uniform so that half and double are as likely; else 1."""
    value = math.exp(float(rng.uniform(math.log(limits[0]), math.log(limits[1]))))
    return value if rng.random() < probability else 1.0
