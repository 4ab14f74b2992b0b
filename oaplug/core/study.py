"""A study: models compared on the same cases. What an analysis is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from oaplug.core.predictions import PredictionTable
    from oaplug.core.target import Target


@dataclass(frozen=True, kw_only=True)
class StudyModel:
    """One model of a study: its name, its predictions, and its folder where it was given as one."""

    name: str
    predictions: PredictionTable
    folder: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Study:
    """Models with predictions for exactly the same cases, in the same order.

    `resamples` and `seed` govern every bootstrap, so that analyses agree with each other.
    """

    models: tuple[StudyModel, ...]
    case_ids: tuple[str, ...]
    subject_ids: tuple[str, ...]
    resamples: int = 1000
    seed: int = 0

    @property
    def provides(self) -> frozenset[str]:
        """Which of an analysis' needs can be met."""
        return frozenset({"predictions"})

    @property
    def targets(self) -> Mapping[str, Target]:
        """Every target that at least one model predicts."""
        found: dict[str, Target] = {}
        for model in self.models:
            found |= {name: p.target for name, p in model.predictions.targets.items() if name not in found}
        return found
