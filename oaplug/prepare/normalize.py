"""Intensities: bias field correction, and one monotone map per channel."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from oaplug.core.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from oaplug.core.plan import Normalization
    from oaplug.core.volume import FloatArray, Volume

STD_FLOOR = 1e-6
CLIPPED_PERCENTILES = (0.5, 99.5)
BIAS_SPACING_MM = 4.0


def schemes_for(schemes: Sequence[Normalization], *, channels: int) -> tuple[Normalization, ...]:
    """One scheme per channel (a single one serves all); raises PlanError where the numbers do not match."""
    if len(schemes) not in {1, channels}:
        message = f"the plan's normalization has {len(schemes)} schemes for {channels} channels"
        raise PlanError(f"{message}; give one per channel, or one for all")
    return tuple(schemes) * channels if len(schemes) == 1 else tuple(schemes)


def normalize(data: FloatArray, *, schemes: Sequence[Normalization]) -> FloatArray:
    """`data` (C,D,H,W) with each channel normalized by its scheme; raises PlanError as `schemes_for` does.

    zscore: mean 0, standard deviation 1. zscore_nonzero: the same map made from non-zero voxels only (zeros
    are mapped too, and so stay the darkest of a magnitude image). rescale_0_1: the percentiles 0.5 and
    99.5 go to 0 and 1, clipped beyond. none: unchanged. A constant channel becomes 0, by `none` unchanged.
    """
    per_channel = schemes_for(schemes, channels=len(data))
    return np.stack([_SCHEMES[scheme](channel) for channel, scheme in zip(data, per_channel, strict=True)])


def _zscore(channel: FloatArray) -> FloatArray:
    return _standardize(channel, reference=channel)


def _zscore_nonzero(channel: FloatArray) -> FloatArray:
    filled = channel[channel != 0]
    return _standardize(channel, reference=filled if filled.size else channel)


def _standardize(channel: FloatArray, *, reference: FloatArray) -> FloatArray:
    mean, std = reference.mean(dtype=np.float64), reference.std(dtype=np.float64)
    result: FloatArray = (channel - np.float32(mean)) / np.float32(max(std, STD_FLOOR))
    return result


def _rescale_0_1(channel: FloatArray) -> FloatArray:
    low, high = np.percentile(channel, CLIPPED_PERCENTILES)
    scaled: FloatArray = (channel - np.float32(low)) / np.float32(max(high - low, STD_FLOOR))
    return np.clip(scaled, 0, 1)


def _unchanged(channel: FloatArray) -> FloatArray:
    return channel


_SCHEMES: dict[Normalization, Callable[[FloatArray], FloatArray]] = {
    "zscore": _zscore,
    "zscore_nonzero": _zscore_nonzero,
    "rescale_0_1": _rescale_0_1,
    "none": _unchanged,
}


def correct_bias(volume: Volume) -> Volume:
    """The volume (C,D,H,W) with each channel divided by its slow intensity drift.

    N4 (Tustison et al., IEEE TMI 2010) as in SimpleITK, fitted on voxels of about 4 mm, which is far finer
    than the field, within Otsu's foreground; on one thread, so that the same image gives the same field.
    """
    corrected = [_correct_channel(channel, spacing_mm=volume.spacing_mm) for channel in volume.data]
    return replace(volume, data=np.stack(corrected))


def _correct_channel(channel: FloatArray, *, spacing_mm: tuple[float, float, float]) -> FloatArray:
    import SimpleITK as sitk

    if channel.min() == channel.max():
        return channel
    image = sitk.GetImageFromArray(channel)
    image.SetSpacing(spacing_mm[::-1])
    sizes = zip(image.GetSize(), image.GetSpacing(), strict=True)
    factors = [max(1, min(round(BIAS_SPACING_MM / spacing), size // 8)) for size, spacing in sizes]
    small = sitk.BinShrink(image, factors)
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetNumberOfThreads(1)
    n4.SetMaximumNumberOfIterations([50, 50, 50])
    n4.Execute(small, sitk.OtsuThreshold(small, 0, 1))
    log_field = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image))
    corrected: FloatArray = channel / np.exp(log_field)
    return corrected
