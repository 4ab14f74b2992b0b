"""From a volume as it was read to one as networks see it: the same at training and at prediction."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from oaplug.prepare.geometry import (
    box_center,
    crop,
    mirror_side,
    nonzero_box,
    pad_crop,
    resample,
    resample_to_size,
)
from oaplug.prepare.normalize import correct_bias, normalize, schemes_for

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from oaplug.core.case import Side
    from oaplug.core.plan import Configuration
    from oaplug.core.volume import Volume

PREPROCESSING_REVISION = 1
"""Raised whenever the same image and configuration would give other voxels, so that cases are made anew."""


def prepare_volume(volume: Volume, configuration: Configuration, *, side: Side | None) -> Volume:
    """A volume in RAS+ axes (C,D,H,W) as the plan's configuration wants it: float32 (C,*size_voxels).

    In order: left knees mirrored, bias corrected, cropped, resampled, normalized, and with `pad_crop` the
    field of view cut out around the middle of the non-zero box. Intensities are measured before the field
    of view is cut, so that the amount of padding (each channel's minimum) cannot change them. The affine
    leads from prepared voxels to true places. Raises PlanError where the configuration does not fit.
    """
    check_configuration(configuration, channels=len(volume.data))
    if configuration.mirror_left:
        volume = mirror_side(volume, side=side)
    if configuration.bias_correction == "n4":
        volume = correct_bias(volume)
    content = nonzero_box(volume.data)
    middle_mm = volume.affine @ [*box_center(content), 1.0]
    if configuration.crop == "nonzero":
        volume = crop(volume, content)
    volume = _resampled(volume, configuration)
    volume = replace(volume, data=normalize(volume.data, schemes=configuration.normalization))
    if configuration.fit == "pad_crop":
        volume = _field_of_view(volume, size_voxels=configuration.size_voxels, middle_mm=middle_mm)
    return volume


def check_configuration(configuration: Configuration, *, channels: int) -> None:
    """Raise PlanError where a configuration cannot be applied to images of so many channels."""
    schemes_for(configuration.normalization, channels=channels)


def _resampled(volume: Volume, configuration: Configuration) -> Volume:
    anti_aliasing = configuration.anti_aliasing
    if configuration.fit == "stretch":
        return resample_to_size(volume, size_voxels=configuration.size_voxels, anti_aliasing=anti_aliasing)
    return resample(volume, spacing_mm=configuration.spacing_mm, anti_aliasing=anti_aliasing)


def _field_of_view(
    volume: Volume, *, size_voxels: tuple[int, int, int], middle_mm: NDArray[np.float64]
) -> Volume:
    depth, height, width = (np.linalg.inv(volume.affine) @ middle_mm)[:3].tolist()
    minima = volume.data.min(axis=(1, 2, 3)).tolist()
    return pad_crop(volume, size_voxels=size_voxels, center_voxels=(depth, height, width), pad_value=minima)
