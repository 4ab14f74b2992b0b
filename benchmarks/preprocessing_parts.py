"""What `preprocessing.py` runs in processes of their own: files, peers, the floor, and measurements."""

from __future__ import annotations

import json
import resource
import sys
import time
from functools import partial
from multiprocessing import get_context
from pathlib import Path

SPACING_MM = 0.7
EXTENT_MM = (112, 140, 140)
"""What every phantom shows, whatever its voxels."""
AXES = "PIR"
"""How the files' axes run: the third from left to right, so that sagittal slices follow each other."""


def main() -> None:
    verb, *words = sys.argv[1:]
    VERBS[verb](*words)


def reorient(folder: str) -> None:
    """Store every image and mask of a dataset anew with its axes in the order of AXES."""
    import SimpleITK as sitk

    for path in sorted(Path(folder).glob("*Tr/*.nii.gz")):
        sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(path)), AXES), str(path))


def peer(verb: str, number: str, spacing_mm: str = "") -> None:
    """One of nnU-Net's commands, with two processes."""
    from nnunetv2.experiment_planning import plan_and_preprocess_entrypoints as commands

    options = {
        "extract_fingerprint": ["-np", "2", "--clean"],
        "plan_experiment": ["-overwrite_target_spacing", *[spacing_mm] * 3],
        "preprocess": ["-c", "3d_fullres", "-np", "2"],
    }
    run = {
        "extract_fingerprint": commands.extract_fingerprint_entry,
        "plan_experiment": commands.plan_experiment_entry,
        "preprocess": commands.preprocess_entry,
    }
    sys.argv = [verb, "-d", number, *options[verb]]
    run[verb]()


def floor(folder: str, spacing_mm: str) -> None:
    """Every case by the least of work, in two spawned processes."""
    cases = sorted(Path(folder).glob("labelsTr/*.nii.gz"))
    with get_context("spawn").Pool(2) as pool:
        pool.map(partial(prepare_least, spacing_mm=float(spacing_mm)), cases, chunksize=1)
        pool.close()
        pool.join()


def prepare_least(mask: Path, *, spacing_mm: float) -> None:
    """Read image and mask, resample each once linearly, and write the image as float16 blosc2."""
    import blosc2
    import numpy as np
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    name = mask.name.removesuffix(".nii.gz")
    resampled = []
    for path in (mask, mask.parents[1] / "imagesTr" / f"{name}_0000.nii.gz"):
        image = sitk.ReadImage(str(path))
        size = [round(n * s / spacing_mm) for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True)]
        grid = (image.GetOrigin(), [spacing_mm] * 3, image.GetDirection())
        resampled.append(
            sitk.Resample(image, size, sitk.Transform(), sitk.sitkLinear, *grid, 0.0, sitk.sitkFloat32)
        )
    half = sitk.GetArrayViewFromImage(resampled[1]).astype(np.float16)
    settings = {"codec": blosc2.Codec.ZSTD, "clevel": 1, "filters": [blosc2.Filter.SHUFFLE], "nthreads": 1}
    target = mask.parents[3] / "floor"
    target.mkdir(exist_ok=True)
    path = target / f"{name}.b2nd"
    blosc2.asarray(half, urlpath=str(path), mode="w", chunks=half.shape, cparams=settings)


def stages(folder: str) -> None:
    """Where oaplug's processor time goes: seconds of each stage of a knee, the best of three."""
    from oaplug.core.artifacts import digest_of_file
    from oaplug.core.dataset import open_dataset
    from oaplug.prepare.fingerprint import measure_case
    from oaplug.prepare.pool import use_one_thread
    from oaplug.prepare.preprocess import prepare_volume
    from oaplug.prepare.reading import read_image, read_mask
    from oaplug.prepare.store import read_array, write_array

    use_one_thread()
    case = open_dataset(Path(folder)).cases[1]
    print(f"\none knee of oaplug's ({case.case_id}), processor milliseconds, the best of three")
    path = Path(folder).parents[1] / "stages.b2nd"
    volume = timed("read image", lambda: read_image(case.images, case_id=case.case_id))
    timed("digest of the image file", lambda: digest_of_file(case.images[0]))
    prepared = timed("prepare (voxels)", lambda: prepare_volume(volume, geometry(SPACING_MM), side=case.side))
    timed("write float16 blosc2", lambda: write_array(path, prepared.data))
    timed("read back", lambda: read_array(path))
    timed("read mask", lambda: read_mask(case.mask, case_id=case.case_id))
    timed("fingerprint of the case, all", lambda: measure_case(case))


def timed(name, work):
    """What `work` gives; prints its processor time."""
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        result = work()
        best = min(best, time.process_time() - start)
    print(f"  {name:<32}{best * 1000:>8.0f}")
    return result


def quality(folder: str, ours: str, theirs: str) -> None:
    """PSNR of prepared images against nnU-Net's order 3 and against the ideal, case by case."""
    import numpy as np

    from oaplug.core.dataset import open_dataset

    ways = ("oaplug", "linear alone", "nnU-Net")
    print(f"\nPSNR in dB{'':<12}" + "".join(f"{way:>14}" for way in ways))
    rows = {"order 3": [], "the ideal": []}
    for case in open_dataset(Path(folder)).cases:
        images = prepared_images(case, Path(ours), Path(theirs))
        for name, found in rows.items():
            found.append([psnr(images[way], images[name]) for way in ways])
    for name, found in rows.items():
        text = [
            f"{np.mean(column):.2f} ±{np.std(column):.2f}" if np.isfinite(column).all() else "itself"
            for column in zip(*found, strict=True)
        ]
        print(f"against {name:<14}" + "".join(f"{t:>14}" for t in text))


def prepared_images(case, oaplug: Path, nnunet: Path):
    """One case resampled in each way, all on oaplug's grid (D,H,W), mean 0 and standard deviation 1."""
    from dataclasses import replace

    import blosc2
    import numpy as np
    import scipy.fft

    from oaplug.prepare.geometry import mirror_side, resample, to_canonical
    from oaplug.prepare.reading import read_grid, read_image
    from oaplug.prepare.store import read_array

    raw = mirror_side(read_image(case.images, case_id=case.case_id), side=case.side)
    ours = read_array(oaplug / f"{case.case_id}.b2nd")
    stored = np.asarray(blosc2.open(str(nnunet / f"{case.case_id}.b2nd"))[:]).transpose(0, 3, 2, 1)
    theirs, affine = to_canonical(stored, read_grid(case.images[0], case_id=case.case_id).affine)
    theirs = mirror_side(replace(raw, data=theirs, affine=affine), side=case.side).data
    plain = resample(raw, spacing_mm=(SPACING_MM,) * 3, anti_aliasing=False).data
    ideal = raw.data[0].astype(np.float32)
    for axis, size in enumerate(ours.shape[1:]):
        kept = scipy.fft.dct(ideal, axis=axis, norm="ortho").take(range(size), axis=axis)
        ideal = scipy.fft.idct(kept, axis=axis, norm="ortho")
    images = {"oaplug": ours, "linear alone": plain, "nnU-Net": theirs, "order 3": theirs, "the ideal": ideal}
    return {key: standardized(np.squeeze(image).astype(np.float64)) for key, image in images.items()}


def standardized(image):
    """An image of mean 0 and standard deviation 1."""
    return (image - image.mean()) / image.std()


def psnr(image, reference):
    """Peak signal-to-noise ratio in dB over the range from the 0.5th to the 99.5th percentile."""
    import numpy as np

    if image is reference or np.array_equal(image, reference):
        return float("inf")
    low, high = np.percentile(reference, (0.5, 99.5))
    return float(20 * np.log10((high - low) / np.sqrt(((image - reference) ** 2).mean())))


def memory(step: str, folder: str, spacing_mm: str, tiny: str, tiny_spacing_mm: str) -> None:
    """Prints the peak memory (MiB) once a tiny case has been prepared, and after one of `folder`: JSON."""
    from oaplug.core.dataset import open_dataset
    from oaplug.prepare.fingerprint import measure_case
    from oaplug.prepare.pool import use_one_thread
    from oaplug.prepare.preprocess import prepare_volume
    from oaplug.prepare.reading import read_image
    from oaplug.prepare.store import write_array

    use_one_thread()
    peaks = []
    for place, spacing in ((tiny, tiny_spacing_mm), (folder, spacing_mm)):
        case = open_dataset(Path(place)).cases[0]
        if step == "fingerprint":
            measure_case(case)
        else:
            volume = read_image(case.images, case_id=case.case_id)
            prepared = prepare_volume(volume, geometry(float(spacing)), side=case.side)
            write_array(Path(place).parents[1] / "memory.b2nd", prepared.data)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(json.dumps(peaks))


def geometry(spacing_mm: float):
    """All of a phantom's field of view at a spacing."""
    from oaplug.core.plan import Configuration

    size = tuple(round(extent / spacing_mm) for extent in EXTENT_MM)
    return Configuration(data_identifier="benchmark", spacing_mm=(spacing_mm,) * 3, size_voxels=size)


VERBS = {
    "reorient": reorient,
    "peer": peer,
    "floor": floor,
    "stages": stages,
    "quality": quality,
    "memory": memory,
}

if __name__ == "__main__":
    main()
