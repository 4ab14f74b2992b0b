"""A study: models compared on the same cases. What an analysis is given."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from oaplug.core.errors import PredictionError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from oaplug.core.batch import Batch
    from oaplug.core.case import Case
    from oaplug.core.dataset import DatasetDescription
    from oaplug.core.features import Features
    from oaplug.core.predictions import PredictionTable
    from oaplug.core.saliency import Question, SaliencySettings
    from oaplug.core.target import Target
    from oaplug.core.volume import Affine, FloatArray, Volume

OF_MODELS = ("predictions", "features", "train_features", "network", "train_images")
"""Needs that each model meets or not; the others are the study's."""


class TrainingBatch(Protocol):
    """Some of a fold's training cases as it was trained on them, without augmentation."""

    @property
    def volume(self) -> Tensor:
        """Preprocessed volumes (B,C,D,H,W) on the model's device."""

    @property
    def truth(self) -> Batch:
        """Their grades."""

    @property
    def case_ids(self) -> tuple[str, ...]:
        """Which they are."""


class OpenedModel(Protocol):
    """A model whose networks are loaded (an `oaplug.infer.predictor.Predictor`)."""

    @property
    def networks(self) -> Mapping[str, Any]:
        """Per fold an `oaplug.model.network.Network` in eval mode, on the device."""

    @property
    def targets(self) -> Mapping[str, Target]:
        """The targets its head answers."""

    def prepare(self, case: Case) -> Volume:
        """A case's images as the networks see them; raises OaplugError where they cannot be read."""

    def as_batch(self, volume: np.ndarray) -> Tensor:
        """A prepared volume (C,D,H,W) as a batch (1,C,D,H,W) on the device."""

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which the networks compute as they were trained."""

    def saliency(
        self,
        volume: np.ndarray,
        questions: Sequence[Question],
        *,
        case_id: str,
        settings: SaliencySettings,
        untrained: bool = False,
    ) -> list[FloatArray]:
        """What in a prepared volume (C,D,H,W) speaks for an answer: maps (D,H,W) from 0 to 1, one a question.

        Means over the folds, or those of the network with new random weights (`untrained`).
        """


class CaseGrids(Protocol):
    """The grids that the raw images of cases lie on, in canonical axes (D,H,W), and their masks."""

    @property
    def description(self) -> DatasetDescription:
        """What the labels and regions of the masks are."""

    def mask(self, case: Case) -> NDArray[np.int16]:
        """A case's labels (D,H,W) on the grid of its image; raises OaplugError where it has none there."""

    def bring_back(self, prepared: FloatArray, *, affine: Affine, case: Case) -> FloatArray:
        """A map (D,H,W) of a prepared volume with `affine` on the grid of the image; outside of it 0."""

    def write_map(self, path: Path, values: FloatArray, *, case: Case, steps: int | None = None) -> Path:
        """Write a map (D,H,W) from 0 to 1 as NIfTI with the image's header, in so many `steps` or exactly."""


class ModelSource(Protocol):
    """Where a model's parts beside its predictions come from; each is read when it is asked for."""

    def lacks(self, need: str) -> str:
        """Why `need` cannot be met, and what to do; "" where it can."""

    def features(self) -> Features:
        """Features of the predicted cases, per fold."""

    def train_features(self) -> Mapping[str, Features]:
        """Features of each fold's training cases by its own encoder."""

    def validation(self) -> Mapping[str, PredictionTable]:
        """By fold, predictions of its validation cases; no entry for a fold that has none."""

    def open(self) -> OpenedModel:
        """The model with its networks, loaded once."""

    def training_batches(self, fold: str, *, seed: int) -> Iterator[TrainingBatch]:
        """A fold's training cases in batches of the training's size, shuffled by `seed`."""


@dataclass(frozen=True, kw_only=True)
class StudyModel:
    """One model of a study: its name, its predictions, and its folder where it was given as one.

    Several runs of a model (seeds, folds) are several of these, `run_of` naming the model. What the methods
    give is read from `source` when it is asked for; they raise PredictionError, saying what to run, where
    the model does not provide it.
    """

    name: str
    predictions: PredictionTable
    folder: Path | None = None
    run_of: str = ""
    source: ModelSource | None = None

    @property
    def model_name(self) -> str:
        """The name that all runs of this model share."""
        return self.run_of or self.name

    @property
    def provides(self) -> frozenset[str]:
        """Which of an analysis' needs this model meets."""
        return frozenset(need for need in OF_MODELS if not self.lacks(need))

    def lacks(self, need: str) -> str:
        """Why this model does not meet `need`, and what to do about it; "" where it does."""
        if need == "predictions":
            return ""
        return "it is a table of predictions alone" if self.source is None else self.source.lacks(need)

    def features(self) -> Features:
        """Penultimate features of the study's cases, in their order: one array (N,F) per fold."""
        return self._source("features").features().take(self.predictions.case_ids)

    def train_features(self) -> Mapping[str, Features]:
        """By fold, the features of the cases that it was trained on, by its own encoder."""
        return self._source("train_features").train_features()

    def validation(self) -> Mapping[str, PredictionTable]:
        """By fold that predicted, its predictions of its own validation cases; empty where there are none."""
        return {} if self.source is None else self.source.validation()

    def open(self) -> OpenedModel:
        """The model with the networks of the folds that predicted; loaded once."""
        return self._source("network").open()

    def training_batches(self, fold: str, *, seed: int = 0) -> Iterator[TrainingBatch]:
        """Batches of the cases a fold was trained on, as many as an epoch has, shuffled by `seed`."""
        return self._source("train_images").training_batches(fold, seed=seed)

    def _source(self, need: str) -> ModelSource:
        if self.source is None or self.lacks(need):
            raise PredictionError(f"{self.name} has no {need}: {self.lacks(need)}")
        return self.source


@dataclass(frozen=True, kw_only=True)
class Study:
    """Models with predictions for exactly the same cases, in the same order.

    `resamples` and `seed` govern every bootstrap, so that analyses agree with each other; `left_out`
    counts the cases that not every model predicted, where that was allowed. `cases` has the raw images and
    masks of the cases by case id, where their dataset is at hand, and `cases_lacking` says why not;
    `read_image` reads one, `grids` reads masks and brings maps back to the images. `covariates` hold by
    name what the case table says of the cases, in their order and as text, blank where unknown;
    `covariates_lacking` says why there are none.
    """

    models: tuple[StudyModel, ...]
    case_ids: tuple[str, ...]
    subject_ids: tuple[str, ...]
    resamples: int = 1000
    seed: int = 0
    left_out: int = 0
    cases: Mapping[str, Case] = field(default_factory=dict)
    cases_lacking: str = "the raw dataset of its cases was not found"
    read_image: Callable[[Case], Volume] | None = None
    grids: CaseGrids | None = None
    covariates: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    covariates_lacking: str = "no case table was given"

    @property
    def provides(self) -> frozenset[str]:
        """Which of an analysis' needs can be met, by one model at least (`models_with`)."""
        return frozenset({"predictions"}).union(self._of_cases(), *(model.provides for model in self.models))

    def _of_cases(self) -> set[str]:
        """Needs that the case table and the raw dataset meet: images of every case, a mask of any."""
        told = {"covariates"} if self.covariates else set()
        cases = [self.cases.get(name) for name in self.case_ids]
        if not cases or any(case is None or not case.images for case in cases):
            return told
        return told | ({"images", "masks"} if any(case and case.mask for case in cases) else {"images"})

    def models_with(self, needs: Collection[str]) -> tuple[StudyModel, ...]:
        """The models that meet all of `needs`; an analysis works on these and says which it left out."""
        of_cases = self._of_cases()
        return tuple(model for model in self.models if set(needs) <= model.provides | of_cases)

    def lacking(self, needs: Collection[str]) -> tuple[str, ...]:
        """Sentences on why `needs` are not met and what to do, one for each model that lacks any."""
        said = []
        if {"images", "masks"} & set(needs) - self._of_cases():
            said.append(self.cases_lacking or "the raw dataset has no masks of these cases (labelsTs)")
        if {"covariates"} & set(needs) - self._of_cases():
            said.append(f"{self.covariates_lacking}; --cases CSV gives one")
        for model in self.models:
            reasons = [model.lacks(need) for need in OF_MODELS if need in needs]
            if reasons := list(dict.fromkeys(reason for reason in reasons if reason)):
                said.append(f"{model.name}: {'; '.join(reasons)}")
        return tuple(said)

    def image(self, case_id: str) -> Volume:
        """The raw image of a case in canonical axes; raises OaplugError where it cannot be read."""
        if self.read_image is None or case_id not in self.cases:
            raise PredictionError(f"case {case_id}: {self.cases_lacking}")
        return self.read_image(self.cases[case_id])

    @property
    def targets(self) -> Mapping[str, Target]:
        """Every target that at least one model predicts."""
        found: dict[str, Target] = {}
        for model in self.models:
            found |= {name: p.target for name, p in model.predictions.targets.items() if name not in found}
        return found
