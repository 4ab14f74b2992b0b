"""Test QWK and AUC on real MRI (hippocampus) of resnet3d with each head, beside controls that see no anatomy.

    python benchmarks/hippocampus.py SOURCE [--work FOLDER] [--seeds 3]

SOURCE is the Medical Segmentation Decathlon's Task04 in nnU-Net's layout with a grades.csv (see the README of
examples/hippocampus). Every network goes through oaplug's own commands: plan, preprocess, train on all
training cases, predict the test images. Folders in FOLDER that are finished are used again.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import numpy as np
from chain import call, command, kappa, make_environment, print_row, train_and_predict
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "hippocampus"
HEADS = {
    "single (grade)": ["--head", "single", "--target", "grade"],
    "dual": ["--head", "dual"],
    "dual_cascade": ["--head", "dual_cascade"],
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("--work", type=Path, default=Path("hippocampus_benchmark"))
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    environment = make_environment(arguments.work)
    for number, name, blank in (
        (4, "Dataset004_Hippocampus", []),
        (5, "Dataset005_HippocampusBlank", ["--blank"]),
    ):
        if not (arguments.work / "raw" / name / "cases.csv").is_file():
            call(
                [
                    sys.executable,
                    EXAMPLE / "make_dataset.py",
                    arguments.source,
                    arguments.work / "raw",
                    *blank,
                ],
                environment,
            )
        command("plan_and_preprocess", "-d", number, environment=environment)
    print(f"{'':<30}{'test QWK':>26}{'test AUC (grade >= 2)':>26}")
    print_controls(arguments.work)
    for name, head in HEADS.items():
        scores = [
            train_and_score(arguments.work, 4, head, seed, environment) for seed in range(arguments.seeds)
        ]
        print_row(f"resnet3d {name}", scores)
    blank = [
        train_and_score(arguments.work, 5, HEADS["dual"], seed, environment)
        for seed in range(arguments.seeds)
    ]
    print_row("blank content, dual", blank)


def example_settings() -> list[str]:
    """The settings of the example's guide, so that both say the same."""
    lines = (EXAMPLE / "settings.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def train_and_score(
    work: Path, number: int, head: list[str], seed: int, environment: dict[str, str]
) -> tuple[float, float]:
    """Train on all training cases with one seed (unless done), predict the test images, score them."""
    dataset = next((work / "raw").glob(f"Dataset{number:03d}_*")).name
    table = train_and_predict(
        work, dataset=dataset, head=head, settings=example_settings(), seed=seed, environment=environment
    )
    return score_table(table)


def score_table(path: Path) -> tuple[float, float]:
    """QWK of the grade and AUC of grade >= 2, by scikit-learn from the written table."""
    rows = list(csv.DictReader(path.open(encoding="utf-8")))
    truth = np.array([int(row["grade_true"]) for row in rows])
    predicted = np.array([int(row["grade_pred"]) for row in rows])
    score = np.array([float(row["large_prob_1"]) for row in rows])
    return kappa(truth, predicted), float(roc_auc_score(truth >= 2, score))


def print_controls(work: Path) -> None:
    """The majority grade, and ordinal regression on the shape of the raw crop alone."""
    from oaplug.core.dataset import open_dataset
    from oaplug.prepare.reading import read_image

    dataset = open_dataset(work / "raw" / "Dataset004_Hippocampus")
    shapes, grades = {}, {}
    for split in ("train", "test"):
        cases = dataset.of_split(split)
        shapes[split] = np.array(
            [read_image(c.images, case_id=c.case_id).data.shape[1:] for c in cases], dtype=float
        )
        grades[split] = np.array([c.labels["grade"] for c in cases])
    majority = np.bincount(grades["train"]).argmax()
    constant = np.full(len(grades["test"]), majority)
    print_row("majority grade", [(kappa(grades["test"], constant), 0.5)])
    model = make_pipeline(PolynomialFeatures(2), StandardScaler(), Ridge())
    search = GridSearchCV(model, {"ridge__alpha": [0.1, 1, 10, 100]}).fit(shapes["train"], grades["train"])
    value = search.predict(shapes["test"])
    rounded = np.clip(np.round(value), 0, 4).astype(int)
    print_row(
        "shape of the crop",
        [(kappa(grades["test"], rounded), float(roc_auc_score(grades["test"] >= 2, value)))],
    )


if __name__ == "__main__":
    main()
