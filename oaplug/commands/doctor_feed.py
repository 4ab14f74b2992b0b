"""`oaplug_doctor --feed DATASET`: how fast its preprocessed cases reach a network, and what holds them up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oaplug.commands.doctor_checks import Check
from oaplug.core.errors import DatasetError
from oaplug.core.paths import find_dataset
from oaplug.feed.throughput import measure_feed
from oaplug.model.precision import choose_device
from oaplug.prepare.folder import PreprocessedFolder

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from oaplug.feed.throughput import FeedThroughput

_ADVICE = {
    "read": "raise training.readers, or use a faster disk or more memory",
    "copy": "",
    "augment": "lower what costs most (augmentation.*_probability), or train on a GPU, which augments too",
}


def check_feed(arguments: argparse.Namespace, preprocessed: Path) -> list[Check]:
    """One row for each stage, and one for all of them together.

    Raises OaplugError where the dataset, its plan or its preprocessed cases are missing.
    """
    data = PreprocessedFolder(find_dataset(preprocessed, arguments.feed))
    plan = data.plan(arguments.plans)
    identifier = plan.configuration(arguments.configuration).data_identifier
    cases = [c for c in data.cases() if data.record_path(identifier, c.case_id).is_file()]
    if not cases:
        raise DatasetError(
            f"{data.folder.name} has no case preprocessed for {arguments.configuration}; run "
            f"oaplug_preprocess -d {arguments.feed} -c {arguments.configuration} first"
        )
    device = choose_device(arguments.device)
    found = measure_feed(data, cases, plan, arguments.configuration, device=device)
    size = " x ".join(map(str, plan.configuration(arguments.configuration).size_voxels))
    return [*_stage_rows(found), _whole(found, f"{size} voxels on {device}")]


def _stage_rows(found: FeedThroughput) -> list[Check]:
    return [
        Check(name=f"feed: {name}", status="ok", found=f"{rate:.4g} cases/s")
        for name, rate in found.stages.items()
    ]


def _whole(found: FeedThroughput, what: str) -> Check:
    return Check(
        name="feed",
        status="ok",
        found=(
            f"{what}: {found.first_epoch:.4g} cases/s in the first epoch, {found.later_epochs:.4g} later "
            f"({found.fitting} of {found.cases} cases fit in memory); the bottleneck is {found.bottleneck}"
        ),
        advice=_ADVICE[found.bottleneck],
    )
