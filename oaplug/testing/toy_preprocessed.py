"""A raw dataset made ready for training in a few calls, as oaplug_plan_and_preprocess does it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oaplug.core.dataset import open_dataset
from oaplug.core.plan import write_plan
from oaplug.prepare.fingerprint import extract_fingerprint, write_fingerprint
from oaplug.prepare.folder import FINGERPRINT_FILE, PreprocessedFolder
from oaplug.prepare.planner import plan_experiment
from oaplug.prepare.preprocess_dataset import preprocess_dataset
from oaplug.prepare.splits import read_or_make_splits

if TYPE_CHECKING:
    from pathlib import Path


def preprocess_toy(raw: Path, folder: Path, *, configuration: str = "3d_lowres") -> Path:
    """Fingerprint, plan, folds and preprocessed volumes of a small raw dataset; gives `folder`.

    Raises DatasetError for a dataset that is not whole.
    """
    dataset, data = open_dataset(raw), PreprocessedFolder(folder)
    fingerprint = extract_fingerprint(dataset, processes=1)
    data.publish(dataset)
    write_fingerprint(folder / FINGERPRINT_FILE, fingerprint)
    plan = plan_experiment(dataset.description, fingerprint)
    write_plan(folder / f"{plan.plans_name}.json", plan)
    read_or_make_splits(data.splits_path, dataset.cases, dataset.description.targets)
    preprocess_dataset(dataset, plan, [configuration], folder, processes=1).raise_for_problems()
    return folder
