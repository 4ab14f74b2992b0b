"""The cases of a fold, and the batches that are made of them."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from oaplug.core.artifacts import digest_of_json
from oaplug.core.errors import PlanError
from oaplug.core.settings import to_mapping
from oaplug.feed.source import BatchSource, VolumeStore, balanced_weights
from oaplug.prepare.store import read_record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from oaplug.core.case import Case
    from oaplug.core.target import Target
    from oaplug.train.fold import FoldRequest


def usable_cases(
    case_ids: Sequence[str], by_id: Mapping[str, Case], targets: Mapping[str, Target]
) -> list[Case]:
    """Cases with a label of at least one of the targets."""
    return [by_id[i] for i in case_ids if any(by_id[i].has_label(name) for name in targets)]


def grade_counts(cases: Sequence[Case], targets: Mapping[str, Target]) -> dict[str, list[int]]:
    """How often each grade of each target occurs."""
    counts = {name: Counter(case.labels.get(name) for case in cases) for name in targets}
    return {name: [counts[name][i] for i in range(len(t.grades))] for name, t in targets.items()}


def check_preprocessed(request: FoldRequest, cases: Sequence[Case]) -> None:
    """Raise PlanError unless every case was preprocessed exactly as the run's configuration says."""
    wanted = digest_of_json(to_mapping(request.run.configuration))
    name = request.run.choices.configuration
    for case in cases:
        path = request.data.record_path(request.run.configuration.data_identifier, case.case_id)
        if not path.is_file():
            raise PlanError(
                f"case {case.case_id} is not preprocessed ({path} is missing); run oaplug_preprocess"
            )
        if read_record(path).configuration != wanted:
            raise PlanError(
                f"case {case.case_id} was preprocessed with other settings than {name!r} "
                "of the plan has now; run oaplug_preprocess again (change geometry in the plan, not by --set)"
            )


def batch_sources(
    request: FoldRequest,
    training: Sequence[Case],
    validation: Sequence[Case],
    *,
    counts: Mapping[str, Sequence[int]],
) -> tuple[BatchSource, BatchSource | None]:
    """Batches of the training and of the validation cases (None: there are none).

    `counts` gives per target how often each grade occurs, the target that weighs cases first. Raises
    PlanError where processes cannot share a batch, or augmentation does not fit the cases.
    """
    run, settings = request.run, request.run.plan.training
    batch_size = min(settings.batch_size, len(training))
    if batch_size % request.world.size:
        raise PlanError(
            f"training.batch_size is {batch_size}, which {request.world.size} processes cannot share; choose "
            "a multiple"
        )
    first = next(iter(counts))
    balanced = {first: balanced_weights(counts[first])}
    source = partial(
        BatchSource,
        store=VolumeStore(request.data, run.configuration.data_identifier),
        targets=tuple(counts),
        batch_size=batch_size,
        seed=settings.seed,
        fold=request.fold,
        device=request.device,
        readers=settings.readers,
        rank=request.world.rank,
        world_size=request.world.size,
    )
    for_training = source(
        cases=training,
        augmentation=run.plan.augmentation,
        voxel_mm=run.configuration.voxel_mm,
        class_weights=balanced if settings.class_weights == "balanced" else None,
        sampling_weights=balanced if settings.sampling == "balanced" else None,
    )
    return for_training, source(cases=validation) if validation else None
