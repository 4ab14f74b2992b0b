"""Turn the hippocampus images of the Medical Segmentation Decathlon (Task04) into a raw dataset with grades.

    python make_dataset.py SOURCE RAW_FOLDER [--blank]

SOURCE is the task in nnU-Net's layout (imagesTr, labelsTr, imagesTs, labelsTs) with a grades.csv
(case_id, split, grade): a grade from 0 to 4 for every case. --blank writes a second dataset whose images keep
their size but not their content: a network that still grades those has found a shortcut.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
from pathlib import Path

TARGETS = {
    "grade": {"kind": "ordinal", "grades": [0, 1, 2, 3, 4]},
    "large": {"kind": "binary", "derived_from": "grade", "at_least": 2},
}
FOLDERS = {"train": ("imagesTr", "labelsTr"), "test": ("imagesTs", "labelsTs")}


def main() -> None:
    """Write Dataset004_Hippocampus (or Dataset005_HippocampusBlank) below RAW_FOLDER."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("raw_folder", type=Path)
    parser.add_argument("--blank", action="store_true")
    arguments = parser.parse_args()
    name = "Dataset005_HippocampusBlank" if arguments.blank else "Dataset004_Hippocampus"
    folder = arguments.raw_folder / name
    folder.mkdir(parents=True)
    rows = list(csv.DictReader((arguments.source / "grades.csv").open(encoding="utf-8")))
    for row in rows:
        copy_case(row["case_id"], FOLDERS[row["split"]], arguments.source, folder, blank=arguments.blank)
    write_tables(arguments.source, folder, rows)
    print(f"{len(rows)} cases in {folder}")


def copy_case(case_id: str, folders: tuple[str, str], source: Path, folder: Path, *, blank: bool) -> None:
    """Copy image and mask; a blank image holds noise of one kind in the same grid."""
    images, masks = folders
    (folder / images).mkdir(exist_ok=True)
    (folder / masks).mkdir(exist_ok=True)
    shutil.copy(source / masks / f"{case_id}.nii.gz", folder / masks)
    image = source / images / f"{case_id}_0000.nii.gz"
    if blank:
        write_blank(image, folder / images / image.name, seed=sum(case_id.encode()))
    else:
        shutil.copy(image, folder / images)


def write_blank(image: Path, target: Path, *, seed: int) -> None:
    """Replace an image by noise on the same grid."""
    import numpy as np
    import SimpleITK as sitk

    original = sitk.ReadImage(str(image))
    noise = np.random.default_rng(seed).normal(100, 10, size=original.GetSize()[::-1]).astype(np.float32)
    made = sitk.GetImageFromArray(noise)
    made.CopyInformation(original)
    sitk.WriteImage(made, str(target), useCompression=True)


def write_tables(source: Path, folder: Path, rows: list[dict[str, str]]) -> None:
    """dataset.json with targets and a region, and cases.csv."""
    content = json.loads((source / "dataset.json").read_text(encoding="utf-8"))
    content |= {"targets": TARGETS, "regions": {"hippocampus": ["anterior", "posterior"]}}
    (folder / "dataset.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    with (folder / "cases.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["case_id", "split", "grade"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
