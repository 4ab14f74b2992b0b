"""Test OA AUC and KL QWK on phantom knees of a small resnet3d, beside baselines that see no anatomy.

    python benchmarks/phantom_quality.py [--work FOLDER] [--cases 640] [--seeds 3]

The networks go through oaplug's own commands: phantom, plan, preprocess, train on all training cases,
predict the test images. Folders in FOLDER that are finished are used again. The baselines get the same
preprocessed volumes: an intensity histogram, the box of the content, the image shrunk to 8x8x8, and
the order of the files.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path

import numpy as np
from chain import command, kappa, make_environment, print_row, train_and_predict
from phantom_baselines import score_baselines
from sklearn.metrics import roc_auc_score

from oaplug.core.case import Case
from oaplug.prepare.folder import PreprocessedFolder
from oaplug.prepare.store import read_array

DATASET = "Dataset902_KneePhantom"
SETTINGS = [
    "backbone.width=8",
    "backbone.dilated=false",
    "training.epochs=16",
    "training.batch_size=8",
    "training.learning_rate=0.004",
    "training.weight_decay=0.01",
    "augmentation.rotation_probability=0",
    "augmentation.scale_probability=0",
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("phantom_benchmark"))
    parser.add_argument("--cases", type=int, default=640)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    start = time.perf_counter()
    environment = make_environment(arguments.work)
    if not (arguments.work / "raw" / DATASET / "cases.csv").is_file():
        command(
            "make_phantom",
            "-d",
            902,
            "--cases",
            arguments.cases,
            "--test-fraction",
            0.34,
            environment=environment,
        )
    command("plan_and_preprocess", "-d", 902, environment=environment)
    data = PreprocessedFolder(arguments.work / "preprocessed" / DATASET)
    train, test = ([c for c in data.cases() if c.split == split] for split in ("train", "test"))
    print(f"{len(train)} training and {len(test)} test knees, clean labels; {' '.join(SETTINGS)}")
    print(f"{'':<30}{'test KL QWK':>26}{'test OA AUC':>26}")
    print_baselines(data, train, test)
    scores = []
    for seed in range(arguments.seeds):
        table = train_and_predict(
            arguments.work, dataset=DATASET, head=["--head", "dual"], settings=SETTINGS, seed=seed,
            environment=environment,
        )  # fmt: skip
        scores.append(score(table))
        print_row(f"resnet3d dual, seed {seed}", scores[-1:])
    print_row("resnet3d dual, mean (range)", scores)
    print(f"{time.perf_counter() - start:.0f} s in all (less where folders were finished before)")


def print_baselines(data: PreprocessedFolder, train: list[Case], test: list[Case]) -> None:
    """A row per baseline, on the preprocessed volumes that the network gets."""
    place = {c.case_id: i for i, c in enumerate(sorted([*train, *test], key=lambda c: c.case_id))}

    def load(cases: list[Case]) -> list[np.ndarray]:
        return [
            read_array(data.array_path("oaplugPlans_3d_fullres", c.case_id))[0].astype(np.float32)
            for c in cases
        ]

    rows = score_baselines(
        load(train),
        [c.labels["kl"] for c in train],
        load(test),
        [c.labels["kl"] for c in test],
        train_order=[place[c.case_id] for c in train],
        test_order=[place[c.case_id] for c in test],
    )
    for name, row in rows.items():
        print_row(name.replace("_", " "), [(row["qwk"], row["oa_auc"])])


def score(path: Path) -> tuple[float, float]:
    """QWK of kl and AUC of oa, by scikit-learn from the written table."""
    rows = list(csv.DictReader(path.open(encoding="utf-8")))
    truth = np.array([int(row["kl_true"]) for row in rows])
    predicted = np.array([int(row["kl_pred"]) for row in rows])
    positive = np.array([float(row["oa_prob_1"]) for row in rows])
    return kappa(truth, predicted), float(roc_auc_score(truth >= 2, positive))


if __name__ == "__main__":
    main()
