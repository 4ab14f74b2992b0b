"""Small sources for the converters: a hub's download of OAIZIB-CM, images with a table, DICOM series."""

from __future__ import annotations

import csv
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
from openpyxl import Workbook

SHARED = Path(__file__).parents[1] / ".." / "shared" / "data" / "oaizib_cm_schema"
"""Invented tables in the hub's exact schema, where they are at hand."""
XLSX_COLUMNS = ("SubjectID", "CMT-ID", "Path", "MRBarCode", "KneeSide", "KLGrade", "Gender", "Age", "BMI")
CSV_NAMES = {"SubjectID": "OAI-SubjectID", "Path": "OAI-Path", "MRBarCode": "OAI-MRBarCode"}
OBLIQUE = nibabel.eulerangles.euler2mat(0.05, -0.08, 0.03)


def knee(number, **other):
    """A row of a subInfo table, as its XLSX file has it."""
    row = {
        "SubjectID": 9000000 + number,
        "CMT-ID": f"{number:03d}",
        "Path": f"0.C.2/{9000000 + number}/20050315/1030{number:04d}",
        "MRBarCode": f"01661030{number:04d}",
        "KneeSide": 1,
        "KLGrade": number % 5,
        "Gender": 1 + number % 2,
        "Age": 50 + number,
        "BMI": 25.5,
    }
    return row | other


def save_image(path, *, seed, shape=(5, 7, 6), mask=False):
    """Write voxels of their own for every seed; the oblique grid is in the qform only, as the hub's."""
    rng = np.random.default_rng(seed)
    voxels = rng.integers(0, 6 if mask else 900, shape).astype(np.uint8 if mask else np.int16)
    image = nibabel.Nifti1Image(voxels, None)
    affine = np.eye(4)
    affine[:3, :3] = OBLIQUE * (0.7, 0.365, 0.365)
    affine[:3, 3] = (-12.5, 31.0, 7.25)
    image.set_qform(affine, 1)
    image.set_sform(None, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


def save_table(path, rows, columns=None):
    """Write rows as XLSX (text stays text) or, with a byte order mark, as CSV."""
    columns = list(columns or rows[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".xlsx":
        book = Workbook()
        for cells in (columns, *([row[name] for name in columns] for row in rows)):
            book.active.append(cells)
        book.save(path)
    else:
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([CSV_NAMES.get(name, name) for name in columns])
            writer.writerows([row[name] for name in columns] for row in rows)
    return path


def write_hub(folder, train, test, *, info="", ending=".xlsx", zipped=False, sides="right", masks=True):
    """A download of the hub with these knees; images in folders or zips, tables at the top or in info/."""
    for split, rows in (("train", train), ("test", test)):
        save_table(folder / info / f"subInfo_{split}{ending}", rows, XLSX_COLUMNS)
        for row in rows:
            write_knee_files(folder, row["CMT-ID"], split=split, masks=masks)
    lines = [f"oaizib_{row['CMT-ID']}.nii.gz,{sides}\n" for row in (*train, *test)]
    (folder / info / "kneeSideInfo.csv").write_text("".join(lines), encoding="utf-8-sig")
    if zipped:
        zip_folders(folder)
    return folder


def write_knee_files(folder, number, *, split, masks=True):
    end = "Tr" if split == "train" else "Ts"
    save_image(folder / f"images{end}" / f"oaizib_{number}_0000.nii.gz", seed=int(number))
    if masks:
        save_image(folder / f"labels{end}" / f"oaizib_{number}.nii.gz", seed=int(number), mask=True)


def zip_folders(folder):
    """Put imagesTr/ and so on into zips of these names, as the hub has them, with what macOS adds."""
    for place in sorted(path for path in folder.iterdir() if path.name.startswith(("images", "labels"))):
        with zipfile.ZipFile(folder / f"{place.name}.zip", "w") as archive:
            archive.writestr(f"{place.name}/", "")
            for path in sorted(place.iterdir()):
                archive.write(path, f"{place.name}/{path.name}")
                archive.writestr(f"__MACOSX/{place.name}/._{path.name}", "resources")
                path.unlink()
        place.rmdir()


def write_small_hub(folder):
    """A whole download of six knees, zipped."""
    return write_hub(folder, [knee(n) for n in range(1, 5)], [knee(5), knee(6)], zipped=True)


def write_images_with_table(folder):
    """Five images, some with masks, and a table with columns of its own."""
    rows = [
        {
            "ID": f"k{n}",
            "file": f"scans/{n:03d}.nii.gz",
            "person": f"p{n // 2}",
            "knee": "1" if n % 2 else "2",
            "when": "V01",
            "set": "testing" if n > 3 else "training",
            "KLGrade": "" if n == 2 else n % 5,
            "years": 40 + n,
            "scanner": "A",
        }
        for n in range(1, 6)
    ]
    for row in rows:
        number = int(row["ID"][1:])
        save_image(folder / row["file"], seed=number)
        if number != 3:
            save_image(folder / "masks" / f"{row['ID']}_seg.nii.gz", seed=number, mask=True)
    save_table(folder / "cases.xlsx", rows)
    return folder


TABLE_OPTIONS = {
    "case_id": "ID",
    "image": "file",
    "subject": "person",
    "side": "knee",
    "side_values": {"1": "R", "2": "L"},
    "visit": "when",
    "split": "set",
    "targets": {
        "kl": {"kind": "ordinal", "grades": [0, 1, 2, 3, 4], "column": "KLGrade"},
        "oa": {"kind": "binary", "derived_from": "kl", "at_least": 2},
    },
    "covariates": {"age": "years"},
}
PATIENT = "DOE^JANE"
ORIENTATION = ((0.0, 0.99875026, -0.04997917), (0.0, -0.04997917, -0.99875026))
"""Sagittal rows and columns (LPS), turned a little about the first axis."""
STEP_MM = 1.2


def save_series(
    folder,
    voxels,
    *,
    uid,
    orientation=ORIENTATION,
    positions=None,
    names=None,
    spacing=(0.5, 0.75),
    compressor=None,
    **tags,
):
    """Write a series of one file per slice of voxels (slices, rows, columns) with GDCM.

    Slices lie STEP_MM apart along the normal, or at `positions` in mm; a tag may be a list, slice by slice.
    """
    folder.mkdir(parents=True, exist_ok=True)
    row, column = np.asarray(orientation)
    normal = np.cross(row, column)
    where = np.arange(len(voxels)) * STEP_MM if positions is None else positions
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.KeepOriginalImageUIDOn()
    writer.SetUseCompression(compressor is not None)
    writer.SetCompressor(compressor or "")
    paths = []
    for index, plane in enumerate(voxels):
        image = sitk.GetImageFromArray(plane[None])
        image.SetSpacing((*spacing, STEP_MM))
        image.SetOrigin((np.array([10.0, -20.0, 30.0]) + where[index] * normal).tolist())
        image.SetDirection(np.column_stack([row, column, normal]).ravel().tolist())
        told = {
            "0008|0008": "ORIGINAL\\PRIMARY",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.4",
            "0008|0018": f"{uid}.{index + 1}",
            "0008|0060": "MR",
            "0008|103e": "SAG 3D DESS",
            "0010|0010": PATIENT,
            "0010|0020": "ID777",
            "0010|0030": "19450203",
            "0018|0081": "4.7",
            "0020|000d": "1.2.3",
            "0020|000e": uid,
            "0020|0013": str(index + 1),
            **{key.replace("_", "|"): value for key, value in tags.items()},
        }
        for tag, value in told.items():
            text = value[index] if isinstance(value, (list, tuple)) else value
            if text is not None:
                image.SetMetaData(tag, text)
        path = folder / (names[index] if names else f"{index:03d}.dcm")
        writer.SetFileName(str(path))
        writer.Execute(image)
        paths.append(path)
    return paths


def planes(seed, *, slices=6, rows=8, columns=7):
    """Voxels (slices, rows, columns) of their own for every seed."""
    return np.random.default_rng(seed).integers(0, 900, (slices, rows, columns)).astype(np.int16)


def write_dicom_tree(folder):
    """Three series in folders below patients' names, and a table."""
    rows = []
    for n in range(1, 4):
        place = f"DOE_{n}/MR{n}"
        save_series(folder / place, planes(n), uid=f"1.2.4.{n}", **{"0010_0020": f"ID{n}"})
        rows.append({"case_id": f"d{n}", "folder": place, "subject_id": f"s{n}", "split": "", "kl": n})
    rows[-1]["split"] = "test"
    save_table(folder / "cases.csv", rows)
    return folder


DICOM_OPTIONS = {"targets": {"kl": {"kind": "ordinal", "grades": [0, 1, 2, 3, 4]}}}
