"""A volume in memory, always in canonical axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float32]
    Affine = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Volume:
    """An image (C,D,H,W) float32 with its place in the patient.

    Axes run D left to right, H posterior to anterior, W inferior to superior (RAS+). `spacing_mm` (3,)
    follows D,H,W; `affine` (4,4) maps voxel indices (d,h,w) to millimetres in RAS+.
    """

    data: FloatArray
    spacing_mm: tuple[float, float, float]
    affine: Affine
