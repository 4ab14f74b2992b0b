"""The augmentation backend of batchgeneratorsv2: nnU-Net's own transforms with the plan's ranges."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from oaplug.core.seeds import derive_seed
from oaplug.feed.augment.draw import AXES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from oaplug.core.plan import AugmentationSettings


def build_transforms(settings: AugmentationSettings, *, size: Sequence[int]) -> Any:
    """batchgeneratorsv2 transforms for volumes (C,D,H,W) of `size`."""
    from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
    from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
    from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
    from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
    from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
    from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
    from batchgeneratorsv2.transforms.utils.random import RandomTransform

    contrast, brightness = BGContrast(settings.contrast_range), BGContrast(settings.brightness_range)
    axes = tuple(AXES.index(axis) for axis in settings.mirror_axes)
    parts: list[Any] = [
        _spatial(settings, size=size),
        *([MirrorTransform(allowed_axes=axes)] if axes else []),
    ]
    chances = [
        (
            MultiplicativeBrightnessTransform(brightness, synchronize_channels=False),
            settings.brightness_probability,
        ),
        (
            ContrastTransform(contrast, preserve_range=True, synchronize_channels=False),
            settings.contrast_probability,
        ),
        (
            GammaTransform(
                BGContrast(settings.gamma_range),
                p_invert_image=0,
                synchronize_channels=False,
                p_per_channel=1,
                p_retain_stats=1,
            ),
            settings.gamma_probability,
        ),
        (
            GaussianNoiseTransform((0, settings.noise_std**2), p_per_channel=1, synchronize_channels=True),
            settings.noise_probability,
        ),
    ]
    chances += _later_parts(settings)
    return ComposeTransforms(parts + [RandomTransform(t, apply_probability=p) for t, p in chances])


def _later_parts(settings: AugmentationSettings) -> list[tuple[Any, float]]:
    """Blur, low resolution and inverted gamma, where they can happen: else nothing is drawn for them."""
    from batchgeneratorsv2.transforms.intensity.contrast import BGContrast
    from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
    from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform

    parts = [
        (
            GaussianBlurTransform(settings.blur_sigma_voxels, synchronize_channels=False, p_per_channel=1),
            settings.blur_probability,
        ),
        (
            SimulateLowResolutionTransform(
                settings.low_resolution_zoom,
                synchronize_channels=False,
                synchronize_axes=True,
                ignore_axes=None,
                p_per_channel=1,
            ),
            settings.low_resolution_probability,
        ),
        (
            GammaTransform(
                BGContrast(settings.gamma_range),
                p_invert_image=1,
                synchronize_channels=False,
                p_per_channel=1,
                p_retain_stats=1,
            ),
            settings.inverted_gamma_probability,
        ),
    ]
    return [(transform, probability) for transform, probability in parts if probability > 0]


def _spatial(settings: AugmentationSettings, *, size: Sequence[int]) -> Any:
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform

    largest = math.radians(max(settings.rotation_degrees))
    return SpatialTransform(
        tuple(size),
        patch_center_dist_from_border=0,
        random_crop=False,
        p_elastic_deform=0,
        p_rotation=settings.rotation_probability,
        rotation=(-largest, largest),
        p_scaling=settings.scale_probability,
        scaling=settings.scale_range,
        p_synchronize_scaling_across_axes=1,
    )


def transform_case(transforms: Any, volume: Tensor, seed: int, *purpose: int | str) -> Tensor:
    """Augment one volume (C,D,H,W); the library's global generators are seeded for this case alone."""
    case_seed = derive_seed(seed, "augment", *purpose)
    np_state, torch_state = np.random.get_state(), torch.get_rng_state()
    np.random.seed(case_seed % 2**32)
    torch.manual_seed(case_seed)
    try:
        return transforms(image=volume.float())["image"]  # type: ignore[no-any-return]
    finally:
        np.random.set_state(np_state)
        torch.set_rng_state(torch_state)
