"""Writing a cohort of phantom knees as a raw dataset."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import numpy as np
from oaplug_datasets_meta import read_meta

from oaplug.core.artifacts import atomic_path
from oaplug.core.case import Case
from oaplug.core.converter import ConversionRecord
from oaplug.core.dataset import description_from_json
from oaplug.core.errors import DatasetError
from oaplug_converters.phantom.anatomy import make_knee
from oaplug_converters.phantom.cohort import PhantomCase, draw_cohort
from oaplug_converters.phantom.reader import agreement

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

    from oaplug.core.converter import RawFolder
    from oaplug.core.dataset import DatasetDescription
    from oaplug_converters.options import PhantomOptions


class PhantomConverter:
    """Draws a cohort and writes its images, masks and tables."""

    def __init__(self, options: PhantomOptions) -> None:
        if options.cases < 2 or min(options.shape) < 8 or options.processes < 1:
            raise DatasetError("a phantom needs at least 2 cases, 8 voxels a side and 1 process")
        self.options = options

    def convert(self, source: Path, dataset: RawFolder) -> ConversionRecord:
        """Write the cohort into `dataset`; `source` is not read."""
        options = self.options
        cohort = draw_cohort(
            cases=options.cases,
            seed=options.seed,
            label_noise=options.label_noise,
            test_fraction=options.test_fraction,
        )
        description = description_from_json(
            read_meta("knee_phantom"), name=dataset.folder.name, where="knee_phantom"
        )
        write = partial(_write_knee, dataset=dataset, description=description, shape=options.shape)
        if options.processes == 1:
            cases = _reported(map(write, cohort), len(cohort), dataset)
        else:
            with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
                cases = _reported(pool.map(write, cohort, chunksize=4), len(cohort), dataset)
        dataset.write_tables(description, cases)
        return ConversionRecord(cases=len(cases), notes=_notes(cohort))


def _reported(cases: Iterable[Case], total: int, dataset: RawFolder) -> list[Case]:
    """The cases, as they come, saying how many there are."""
    done: list[Case] = []
    for case in cases:
        done.append(case)
        dataset.report(len(done), total, case.case_id)
    return done


def _write_knee(
    knee: PhantomCase, *, dataset: RawFolder, description: DatasetDescription, shape: tuple[int, int, int]
) -> Case:
    """Write image and mask of one knee and give its case."""
    made = make_knee(severity=knee.true_severity, shape=shape, side=knee.side, rng=knee.generator())
    place: dict[str, Any] = {"split": knee.split, "description": description}
    images = dataset.image_paths(knee.case_id, **place)
    mask = dataset.mask_path(knee.case_id, **place)
    _write_nifti(images[0], np.round(made.image).astype(np.int16), made.affine)
    _write_nifti(mask, made.labels, made.affine)
    return Case(
        case_id=knee.case_id,
        subject_id=knee.subject_id,
        images=images,
        mask=mask,
        split=knee.split,  # type: ignore[arg-type]
        side=knee.side,  # type: ignore[arg-type]
        visit=knee.visit,
        labels={"kl": knee.kl, "oa": int(knee.kl >= 2)},
        covariates={"kl_true": str(knee.kl_true), "true_severity": f"{knee.true_severity:.4f}"},
    )


def _write_nifti(path: Path, data: NDArray[Any], affine: NDArray[np.float64]) -> None:
    """Write data (D,H,W) whose affine maps to RAS+ millimetres; SimpleITK wants z,y,x and LPS."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(data.transpose(2, 1, 0))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    to_lps = np.diag([-1.0, -1.0, 1.0])
    image.SetSpacing(spacing.tolist())
    image.SetDirection((to_lps @ affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin((to_lps @ affine[:3, 3]).tolist())
    with atomic_path(path) as temporary:
        sitk.WriteImage(image, str(temporary), useCompression=True)


def _notes(cohort: tuple[PhantomCase, ...]) -> tuple[str, ...]:
    read, true = [c.kl for c in cohort], [c.kl_true for c in cohort]
    found = agreement(read, true)
    knees = f"{sum(c.split == 'test' for c in cohort)} of them for testing"
    return (
        f"{knees}, {len({c.subject_id for c in cohort})} subjects",
        f"agreement of the reader with the true grade: kappa {found.kappa:.3f}, "
        f"quadratic {found.quadratic_kappa:.3f}",
    )
