"""Images, masks and grids of toy cases, made up when they are asked for: no file is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from oaplug.core.artifacts import atomic_path
from oaplug.core.dataset import DatasetDescription
from oaplug.core.errors import DatasetError
from oaplug.core.seeds import random_generator
from oaplug.core.volume import Volume

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from oaplug.core.case import Case
    from oaplug.core.volume import Affine, FloatArray

SHAPE = (8, 10, 9)
"""Voxels (D,H,W) of all volumes, 1 mm wide."""
_DESCRIPTION = DatasetDescription(
    name="Dataset901_Toy",
    channel_names=("toy0",),
    labels={"background": 0, "shell": 1, "blob": 2},
    file_ending=".nii.gz",
    regions={"lesion": ("blob",)},
)


def toy_volume(case_id: str) -> FloatArray:
    """A volume (1,*SHAPE) of noise, another for each case."""
    return random_generator(0, "toy volume", case_id).normal(size=(1, *SHAPE)).astype(np.float32)


def toy_image(case: Case) -> Volume:
    """The image of a case, which needs no preparation."""
    return Volume(data=toy_volume(case.case_id), spacing_mm=(1.0, 1.0, 1.0), affine=np.eye(4))


@dataclass(frozen=True)
class ToyGrids:
    """An `oaplug.core.study.CaseGrids`: prepared volumes lie on the grid of the image."""

    description: DatasetDescription = _DESCRIPTION

    def mask(self, case: Case) -> NDArray[np.int16]:
        """A blob within a shell; raises DatasetError for a case without a mask."""
        if case.mask is None:
            raise DatasetError(f"case {case.case_id} has no mask")
        labels = np.zeros(SHAPE, dtype=np.int16)
        labels[1:-1, 1:-1, 1:-1] = 1
        labels[3:-3, 3:-3, 3:-3] = 2
        return labels

    def bring_back(self, prepared: FloatArray, *, affine: Affine, case: Case) -> FloatArray:
        """The map as it is."""
        return prepared

    def write_map(self, path: Path, values: FloatArray, *, case: Case, steps: int | None = None) -> Path:
        """Write a map (D,H,W) from 0 to 1 as NIfTI, in so many `steps` or exactly."""
        import SimpleITK as sitk

        written = values if steps is None else np.round(values * steps) / steps
        with atomic_path(path) as temporary:
            sitk.WriteImage(sitk.GetImageFromArray(written.transpose(2, 1, 0)), str(temporary))
        return path
