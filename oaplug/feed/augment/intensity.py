"""The intensity parts of a draw, in place on one volume; statistics are those of each channel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from oaplug.feed.augment.along_axis import blur_along, linear_taps, weigh_along
from oaplug.feed.augment.draw import BIAS_ORDER, BIAS_POWERS
from oaplug.feed.augment.noise import add_noise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from oaplug.feed.augment.draw import Draw

_EPSILON = 1e-7


def change_intensity(volume: Tensor, draw: Draw) -> None:
    """Bias field, blur, contrast and brightness, low resolution, both gammas, noise: volume (C,D,H,W).

    In place; float32 and contiguous. Neutral parts cost nothing.
    """
    for channel in volume:
        if draw.bias_coefficients:
            _shade(channel, draw.bias_coefficients)
        if any(draw.blur_sigma_voxels):
            _blur(channel, draw.blur_sigma_voxels)
        _stretch(channel, draw)
        if draw.low_resolution_zoom != 1:
            _coarsen(channel, draw.low_resolution_zoom)
        if draw.inverted_gamma != 1:
            _apply_gamma(channel.neg_(), draw.inverted_gamma, keep_statistics=draw.keep_statistics)
            channel.neg_()
        if draw.gamma != 1:
            _apply_gamma(channel, draw.gamma, keep_statistics=draw.keep_statistics)
    if draw.noise_std > 0:
        add_noise(volume, std=draw.noise_std, seed=draw.noise_seed)


def _shade(channel: Tensor, coefficients: Sequence[float]) -> None:
    """Multiply channel (D,H,W), counted from its darkest voxel, by a bias field.

    The field is exp(polynomial of order 3 in d,h,w from -1 to 1), the model of Van Leemput et al. 1999 as
    Sudre et al. 2017 ("Longitudinal segmentation of age-related white matter hyperintensities") and
    TorchIO use it for augmentation. Normalised volumes have no zero of their own: the darkest voxel is air.
    """
    size = channel.shape
    d, h, w = (torch.linspace(-1, 1, length, dtype=torch.float64) for length in size)
    planes = torch.zeros(BIAS_ORDER + 1, *size[:2], dtype=torch.float64)  # one (D,H) for each power of w
    for (i, j, k), coefficient in zip(BIAS_POWERS, coefficients, strict=True):
        planes[k] += coefficient * (d**i)[:, None] * h**j
    planes, w = planes.float().to(channel.device)[..., None], w.float().to(channel.device)
    field = planes[-1] * w
    for plane in planes[1:-1].flip(0):
        field.add_(plane).mul_(w)
    darkest = channel.amin()
    channel.sub_(darkest).mul_(field.add_(planes[0]).exp_()).add_(darkest)


def _blur(channel: Tensor, sigma_voxels: Sequence[float]) -> None:
    """Gaussian smoothing of channel (D,H,W), with a deviation for each axis."""
    blurred = channel
    for axis, sigma in enumerate(sigma_voxels):
        blurred = blur_along(blurred, axis, sigma_voxels=sigma)
    channel.copy_(blurred)


def _stretch(channel: Tensor, draw: Draw) -> None:
    """Contrast about the mean, within the range or not, and brightness: channel (D,H,W)."""
    if draw.contrast != 1:
        factor, mean = draw.contrast * draw.brightness, channel.mean()
        low, high = torch.aminmax(channel)
        channel.sub_(mean).mul_(factor).add_(mean * draw.brightness)
        if draw.keep_statistics:
            channel.clamp_(low * draw.brightness, high * draw.brightness)
    elif draw.brightness != 1:
        channel.mul_(draw.brightness)


def _coarsen(channel: Tensor, zoom: float) -> None:
    """Bring channel (D,H,W) to `zoom` of its size by nearest voxels, and back by linear interpolation."""
    small = [max(1, round(length * zoom)) for length in channel.shape]
    coarse = functional.interpolate(channel[None, None], small, mode="nearest-exact")[0, 0]
    for axis in (2, 1, 0):
        length, found = channel.shape[axis], small[axis]
        positions = (torch.arange(length, dtype=torch.float64) + 0.5) * found / length - 0.5
        coarse = weigh_along(coarse, axis, linear_taps(positions, length=found, device=channel.device))
    channel.copy_(coarse)


def _apply_gamma(channel: Tensor, gamma: float, *, keep_statistics: bool) -> None:
    """Raise channel (D,H,W), from 0 to 1 over its range, to `gamma`.

    Then mean and deviation are brought back (`keep_statistics`), or the range.
    """
    low, high = torch.aminmax(channel)
    extent = high - low
    before = _center_and_deviation(channel) if keep_statistics else None
    offset = low if before is None else low - before[0]
    channel.sub_(offset).div_(extent.clamp(min=_EPSILON)).clamp_(0, 1)
    channel.log2_().mul_(gamma).exp2_()  # twice as fast as pow
    if before is None:
        channel.mul_(extent).add_(low)
        return
    _, deviation = _center_and_deviation(channel)
    channel.mul_(before[1] / deviation.clamp(min=_EPSILON)).add_(before[0])


def _center_and_deviation(channel: Tensor) -> tuple[Tensor, Tensor]:
    """Subtract the mean in place; gives mean and standard deviation (var_mean is ten times as slow)."""
    mean = channel.mean()
    return mean, channel.sub_(mean).square().mean().sqrt()
