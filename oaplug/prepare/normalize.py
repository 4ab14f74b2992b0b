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
_PART = 1 << 16
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
    result = np.empty(data.shape, dtype=np.float32)
    for into, channel, scheme in zip(result, data, per_channel, strict=True):
        offset, scale = _MEASURES[scheme](channel)
        np.subtract(channel, np.float32(offset), out=into)
        into /= np.float32(scale)
        if scheme == "rescale_0_1":
            np.clip(into, 0, 1, out=into)
    return result


def _mean_and_std(values: FloatArray) -> tuple[float, float]:
    """In double precision, part by part, as a copy in double precision would be twice the volume."""
    mean = float(values.mean(dtype=np.float64))
    flat, squares = values.reshape(-1), 0.0
    for start in range(0, len(flat), _PART):
        deviations = flat[start : start + _PART] - np.float64(mean)
        squares += float(np.square(deviations, out=deviations).sum())
    return mean, max((squares / len(flat)) ** 0.5, STD_FLOOR)


def _mean_and_std_of_nonzero(channel: FloatArray) -> tuple[float, float]:
    filled = channel[channel != 0]
    return _mean_and_std(filled if filled.size else channel)


def _range(channel: FloatArray) -> tuple[float, float]:
    low, high = np.percentile(channel, CLIPPED_PERCENTILES)
    return low, max(high - low, STD_FLOOR)


def _nothing(_: FloatArray) -> tuple[float, float]:
    return 0.0, 1.0


_MEASURES: dict[Normalization, Callable[[FloatArray], tuple[float, float]]] = {
    "zscore": _mean_and_std,
    "zscore_nonzero": _mean_and_std_of_nonzero,
    "rescale_0_1": _range,
    "none": _nothing,
}
"""What is subtracted from a channel, and what it is then divided by."""


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
