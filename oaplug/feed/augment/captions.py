"""Draws in words, and the strongest draw of each part, for people who look before training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from oaplug.core.seeds import random_generator
from oaplug.feed.augment.draw import AXES, BIAS_POWERS, STILL, Draw

if TYPE_CHECKING:
    from oaplug.core.plan import AugmentationSettings


def describe(draw: Draw) -> list[str]:
    """What a draw does, part by part in the order of work."""
    sigma = draw.blur_sigma_voxels
    strongest = max(map(abs, draw.bias_coefficients), default=0.0)
    flipped = "".join(axis for axis, flip in zip(AXES, draw.mirrored, strict=True) if flip)
    degrees = " ".join(str(round(angle)) for angle in draw.rotation_degrees)
    shift = " ".join(str(round(100 * fraction)) for fraction in draw.shift_fraction)
    parts = [
        (draw.rotation_degrees != STILL, f"rotation {degrees}°"),
        (draw.scale != 1, f"scale {draw.scale:.2f}"),
        (draw.shift_fraction != STILL, f"shift {shift} %"),
        (bool(flipped), f"mirror {flipped}"),
        (draw.elastic_displacement_voxels > 0, f"elastic {draw.elastic_displacement_voxels:.1f} voxels"),
        (bool(draw.bias_coefficients), f"bias field {strongest:.2f}"),
        (sigma != STILL, f"blur {sigma[0]:.1f} {sigma[1]:.1f} {sigma[2]:.1f} voxels"),
        (draw.contrast != 1, f"contrast {draw.contrast:.2f}"),
        (draw.brightness != 1, f"brightness {draw.brightness:.2f}"),
        (draw.low_resolution_zoom != 1, f"low resolution {draw.low_resolution_zoom:.2f}"),
        (draw.inverted_gamma != 1, f"inverted gamma {draw.inverted_gamma:.2f}"),
        (draw.gamma != 1, f"gamma {draw.gamma:.2f}"),
        (draw.noise_std > 0, f"noise {draw.noise_std:.2f}"),
    ]
    return [caption for happens, caption in parts if happens]


@dataclass(frozen=True, kw_only=True)
class Extremes:
    """A part alone, at both ends of what the plan allows."""

    name: str
    probability: float
    draws: tuple[Draw, Draw]


def extremes(settings: AugmentationSettings) -> list[Extremes]:
    """The parts that can happen, in the order of work; fields that are random are drawn at full strength."""
    a, b, c = settings.rotation_degrees
    shift = settings.shift_fraction
    ends: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "rotation": ({"rotation_degrees": (-a, -b, -c)}, {"rotation_degrees": (a, b, c)}),
        "scale": _ends("scale", settings.scale_range),
        "shift": ({"shift_fraction": (-shift,) * 3}, {"shift_fraction": (shift,) * 3}),
        "elastic": (_elastic(settings, 0), _elastic(settings, 1)),
        "bias_field": (_bias(settings, 0), _bias(settings, 1)),
        "blur": (_blur(settings.blur_sigma_voxels[0]), _blur(settings.blur_sigma_voxels[1])),
        "contrast": _ends("contrast", settings.contrast_range),
        "brightness": _ends("brightness", settings.brightness_range),
        "low_resolution": _ends("low_resolution_zoom", settings.low_resolution_zoom),
        "inverted_gamma": _ends("inverted_gamma", settings.gamma_range),
        "gamma": _ends("gamma", settings.gamma_range),
        "noise": _ends("noise_std", (settings.noise_std / 2, settings.noise_std)),
    }
    found = [
        _part(settings, name, chance, pair)
        for name, pair in ends.items()
        if (chance := getattr(settings, f"{name}_probability")) > 0
    ]
    return found + [_mirroring(axis) for axis in settings.mirror_axes]


def _part(
    settings: AugmentationSettings, name: str, probability: float, pair: tuple[dict[str, Any], dict[str, Any]]
) -> Extremes:
    low, high = (Draw(**end, keep_statistics=settings.keep_statistics) for end in pair)
    return Extremes(name=name.replace("_", " "), probability=probability, draws=(low, high))


def _mirroring(axis: str) -> Extremes:
    flipped = Draw(mirrored=(axis == "D", axis == "H", axis == "W"))
    return Extremes(name=f"mirror {axis}", probability=0.5, draws=(Draw(), flipped))


def _ends(key: str, limits: tuple[float, float]) -> tuple[dict[str, Any], dict[str, Any]]:
    return {key: limits[0]}, {key: limits[1]}


def _blur(sigma: float) -> dict[str, Any]:
    return {"blur_sigma_voxels": (sigma,) * 3}


def _elastic(settings: AugmentationSettings, seed: int) -> dict[str, Any]:
    return {
        "elastic_displacement_voxels": settings.elastic_displacement_voxels,
        "elastic_spacing_voxels": settings.elastic_spacing_voxels,
        "elastic_seed": seed,
    }


def _bias(settings: AugmentationSettings, seed: int) -> dict[str, Any]:
    signs = np.sign(random_generator(seed, "bias_extreme").uniform(-1, 1, len(BIAS_POWERS)))
    return {"bias_coefficients": tuple((settings.bias_field_coefficient * signs).tolist())}
