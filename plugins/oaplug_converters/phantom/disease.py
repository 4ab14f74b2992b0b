"""What severity does to a knee: the only way by which the grade enters an image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from oaplug_converters.phantom.geometry import FloatArray
from oaplug_converters.phantom.nuisance import Response


@dataclass(frozen=True, kw_only=True)
class Disease:
    """Shares of cartilage left, and sizes of bone changes, at one severity."""

    medial_left: float
    lateral_left: float
    osteophytes_mm: FloatArray
    sclerosis_mm: float
    lesions_mm: FloatArray


def disease_at(severity: float, *, response: Response) -> Disease:
    """Disease of a knee at `severity` in [0, 5): medial loss first, then osteophytes, then marrow."""
    if not 0 <= severity < 5:
        raise ValueError(f"severity must lie in [0, 5), got {severity}")
    return Disease(
        medial_left=max(1 - 0.2 * response.loss * severity, 0.03),
        lateral_left=max(1 - 0.1 * response.loss * severity, 0.03),
        osteophytes_mm=np.float32(2.1 * max(severity - 0.6, 0)) * response.osteophytes,
        sclerosis_mm=0.9 * response.sclerosis * max(severity - 1.5, 0),
        lesions_mm=np.float32(1.6 * max(severity - 0.8, 0)) * response.lesions,
    )
