"""What is asked of a study: which cases, models, questions and regions, and how maps are made."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from oaplug.core.errors import PredictionError, nearest
from oaplug.core.saliency import Question, SaliencySettings, question_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from oaplug.core.case import Case
    from oaplug.core.dataset import DatasetDescription
    from oaplug.core.study import CaseGrids, OpenedModel, Study, StudyModel
    from oaplug_analyses.options import SaliencyOverlapOptions

NEEDS = frozenset({"predictions", "network", "images", "masks"})
STUDY_REGION, STUDY_LABELS = "study", (2, 4)
"""What the article's script takes for cartilage: in OAIZIB-CM the lateral tibial cartilage is not in it."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked of a study by the options, and the parts of the study that answer it."""

    study: Study
    options: SaliencyOverlapOptions

    @cached_property
    def models(self) -> tuple[StudyModel, ...]:
        """Models whose networks are there, in the study's order."""
        return self.study.models_with(NEEDS)

    @cached_property
    def opened(self) -> dict[str, OpenedModel]:
        """They, loaded, by name."""
        return {model.name: model.open() for model in self.models}

    @cached_property
    def grids(self) -> CaseGrids:
        """The grids of the cases' images."""
        if self.study.grids is None:
            raise PredictionError(self.study.cases_lacking)
        return self.study.grids

    @cached_property
    def regions(self) -> dict[str, tuple[int, ...]]:
        """Mask values by the name of a region or label."""
        return choose_regions(self.grids.description, self.options.regions)

    @property
    def main_region(self) -> str:
        """The region that is drawn and spoken of."""
        return next(iter(self.regions))

    @property
    def seed(self) -> int:
        """That of all noise."""
        return self.study.seed if self.options.seed is None else self.options.seed

    @property
    def settings(self) -> SaliencySettings:
        """How maps are made."""
        given = self.options
        return SaliencySettings(
            method=given.method,
            copies=given.copies,
            noise_std=given.noise_std,
            steps=given.steps,
            fixed_grade=given.fixed_grade,
            copies_per_batch=given.copies_per_batch,
            seed=self.seed,
        )

    @cached_property
    def questions(self) -> dict[str, tuple[Question, ...]]:
        """What each model is asked; raises PredictionError for a question that none answers."""
        targets = {name: target for one in self.opened.values() for name, target in one.targets.items()}
        asked = [question_of(name, targets) for name in self.options.targets or targets]
        return {
            name: tuple(question for question in asked if question.target in one.targets)
            for name, one in self.opened.items()
        }

    @cached_property
    def cases(self) -> tuple[Case, ...]:
        """Those that have a mask, in the study's order."""
        return tuple(case for name in self.study.case_ids if (case := self.study.cases[name]).mask)

    @cached_property
    def with_untrained(self) -> frozenset[str]:
        """Ids of the cases that untrained networks are looked at with."""
        return _spread([case.case_id for case in self.cases], self.options.untrained_cases)

    @cached_property
    def shown(self) -> frozenset[str]:
        """Ids of the cases that are drawn: chosen by their true grade, before there is any map."""
        target = next(iter(self.study.targets))
        table = next(m.predictions for m in self.study.models if target in m.predictions.targets)
        truth = dict(zip(self.study.case_ids, table.targets[target].truth.tolist(), strict=True))
        ordered = sorted((case.case_id for case in self.cases), key=lambda case: truth[case])
        return _spread(ordered, self.options.shown_cases)

    @cached_property
    def folders(self) -> dict[str, str]:
        """A folder's name for the maps of each model, whatever characters the model's has."""
        names: dict[str, str] = {}
        for model in self.models:
            name = re.sub(r"[^\w.+=#-]+", "_", model.name).lstrip(".") or "model"
            while name in names.values():
                name += "_"
            names[model.name] = name
        return names


def choose_regions(description: DatasetDescription, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Mask values of the named regions and labels; of all, regions first, where none is named.

    `study` stands for the labels 2 and 4, unless the dataset has a region of that name. Raises
    PredictionError for a name that the dataset does not have.
    """
    labels = [name for name, value in description.labels.items() if value != 0]
    known = [*description.regions, *(name for name in labels if name not in description.regions)]
    found: dict[str, tuple[int, ...]] = {}
    for name in names or known:
        if name == STUDY_REGION and name not in known:
            found[name] = STUDY_LABELS
        elif name in known:
            found[name] = description.region_values(name)
        else:
            raise PredictionError(
                f"dataset.json has no region or label {name!r}{nearest(name, [*known, STUDY_REGION])}"
            )
    if not found:
        raise PredictionError("dataset.json names no region and no label of its masks; add 'labels'")
    return found


def _spread(items: Sequence[str], count: int) -> frozenset[str]:
    """So many of the items, at even distances; all where there are fewer."""
    count = min(count, len(items))
    return frozenset(items[int((index + 0.5) * len(items) / count)] for index in range(count))
