"""The grids of the raw images of a study's cases: their masks, and the way back to them for maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from oaplug.core.dataset import read_description
from oaplug.core.errors import DatasetError, OaplugError
from oaplug.core.paths import find_dataset
from oaplug.model.run_folder import read_run

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from oaplug.core.case import Case
    from oaplug.core.dataset import DatasetDescription
    from oaplug.core.paths import Places
    from oaplug.core.volume import Affine, FloatArray
    from oaplug.prepare.reading import Grid


@dataclass(frozen=True, kw_only=True)
class RawGrids:
    """The grids of a raw dataset's images (an `oaplug.core.study.CaseGrids`)."""

    description: DatasetDescription

    def mask(self, case: Case) -> NDArray[np.int16]:
        """A case's labels (D,H,W) on the grid of its image; raises DatasetError where it has none there."""
        from oaplug.prepare.reading import Grid, check_same_grid, read_mask

        if case.mask is None:
            raise DatasetError(f"case {case.case_id} has no mask")
        labels, affine = read_mask(case.mask, case_id=case.case_id)
        check_same_grid(
            Grid(shape=labels.shape, affine=affine),
            _grid(case),
            path=case.mask,
            case_id=case.case_id,
            of=case.images[0].name,
        )
        return labels

    def bring_back(self, prepared: FloatArray, *, affine: Affine, case: Case) -> FloatArray:
        """A map (D,H,W) of a prepared volume with `affine` on the grid of the image; outside of it 0."""
        from oaplug.prepare.geometry import back_to_image

        grid = _grid(case)
        return back_to_image(
            prepared, prepared_affine=affine, image_shape=grid.shape, image_affine=grid.affine
        )

    def write_map(self, path: Path, values: FloatArray, *, case: Case, steps: int | None = None) -> Path:
        """Write a map (D,H,W) from 0 to 1 as NIfTI with the image's header, in so many `steps` or exactly."""
        from oaplug.prepare.writing import write_map

        return write_map(path, values, image=case.images[0], case_id=case.case_id, steps=steps)


def _grid(case: Case) -> Grid:
    from oaplug.prepare.reading import canonical_grid, read_grid

    return canonical_grid(read_grid(case.images[0], case_id=case.case_id))


def find_grids(folder: Path | None, *, places: Places) -> RawGrids | None:
    """The grids of the raw dataset that a model folder was trained on; None where it is not at hand."""
    if folder is None:
        return None
    try:
        dataset = find_dataset(places.raw, read_run(folder).plan.dataset_name)
        return RawGrids(description=read_description(dataset))
    except OaplugError:
        return None
