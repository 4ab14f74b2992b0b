"""Make nnunet_fingerprint_hippocampus.json: what nnU-Net's own extractor measures on the hippocampus data.

Run in an environment of its own with nnunetv2 installed (it is no dependency of oaplug):

    python make_nnunet_golden.py FOLDER_OF_THE_DATASET

where the folder holds imagesTr, labelsTr and dataset.json of the Medical Segmentation Decathlon's
Task04_Hippocampus in nnU-Net's raw layout. Only measured numbers are kept, no images and no case ids.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

GOLDEN = Path(__file__).with_name("nnunet_fingerprint_hippocampus.json")
NAME = "Dataset004_Hippocampus"


def extract(dataset: Path, scratch: Path) -> dict:
    """nnU-Net's fingerprint of a raw dataset folder."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (scratch / variable).mkdir()
        os.environ[variable] = str(scratch / variable)
    (scratch / "nnUNet_raw" / NAME).symlink_to(dataset.resolve(), target_is_directory=True)
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import (
        DatasetFingerprintExtractor,
    )

    extractor = DatasetFingerprintExtractor(NAME, num_processes=2)
    fingerprint = extractor.run()
    samples = int(extractor.num_foreground_voxels_for_intensitystats // len(extractor.dataset))
    return {
        "nnunetv2": version("nnunetv2"),
        "case_order": "training cases sorted by id",
        "axis_order": "reversed file axes: for these RAS files (W, H, D)",
        "foreground_samples_per_case": samples,
        "spacings": [[float(step) for step in spacing] for spacing in fingerprint["spacings"]],
        "shapes_after_crop": [[int(size) for size in shape] for shape in fingerprint["shapes_after_crop"]],
        "foreground_intensity_properties_per_channel": fingerprint[
            "foreground_intensity_properties_per_channel"
        ],
    }


def main() -> None:
    """Write the golden file beside this script, one line a key."""
    with tempfile.TemporaryDirectory() as scratch:
        golden = extract(Path(sys.argv[1]), Path(scratch))
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in golden.items()]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(f"wrote {GOLDEN.name}")


if __name__ == "__main__":
    main()
