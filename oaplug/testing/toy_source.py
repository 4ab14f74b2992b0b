"""What toy models give to a study beside predictions: features along their grades, and tiny networks."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from oaplug.core.features import Features
from oaplug.core.seeds import derive_seed, random_generator
from oaplug.core.target import MISSING
from oaplug.testing.toy_grids import toy_image, toy_volume

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from oaplug.core.batch import Batch
    from oaplug.core.case import Case
    from oaplug.core.predictions import PredictionTable
    from oaplug.core.saliency import Question, SaliencySettings
    from oaplug.core.study import OpenedModel, TrainingBatch
    from oaplug.core.target import Target
    from oaplug.core.volume import FloatArray, Volume

FOLDS = ("0", "1")
WIDTH = 4
TRAIN_CASES, BATCH = 24, 4


@dataclass(frozen=True, kw_only=True)
class ToySource:
    """An `oaplug.core.study.ModelSource` that reads no file.

    `case_ids` are the predicted cases, `truths` their grade indices (N,) by target, -1 where unknown, and
    `severities` (N,) what their features follow; `validated` are the predictions of validation cases by fold.
    """

    model: str
    targets: Mapping[str, Target]
    case_ids: tuple[str, ...]
    subject_ids: tuple[str, ...]
    truths: Mapping[str, NDArray[np.int64]]
    severities: NDArray[np.float64]
    validated: Mapping[str, PredictionTable]
    seed: int

    def lacks(self, need: str) -> str:
        """Nothing that a model can provide."""
        return ""

    def features(self) -> Features:
        """Features (N,WIDTH) of the predicted cases: severity along an axis of each fold, and noise."""
        return Features(
            model=self.model,
            checkpoint="final",
            case_ids=self.case_ids,
            subject_ids=self.subject_ids,
            folds={fold: self._features(fold, self.severities, "test") for fold in FOLDS},
            weights={fold: f"weights of {self.model}, fold {fold}" for fold in FOLDS},
            targets=self.targets,
            truths=self.truths,
        )

    def train_features(self) -> Mapping[str, Features]:
        """By fold the features of TRAIN_CASES training cases; of every eighth no grade is known."""
        whole, found = self.features(), {}
        severities, truths = self._training_grades()
        for fold in FOLDS:
            ids = tuple(f"train{fold}_{index:02d}" for index in range(TRAIN_CASES))
            found[fold] = replace(
                whole,
                case_ids=ids,
                subject_ids=ids,
                folds={fold: self._features(fold, severities, "train")},
                weights={fold: whole.weights[fold]},
                truths=truths,
            )
        return found

    def _training_grades(self) -> tuple[NDArray[np.float64], dict[str, NDArray[np.int64]]]:
        finest = max(self.targets.values(), key=lambda target: len(target.grades))
        grades = np.arange(TRAIN_CASES, dtype=np.int64) % len(finest.grades)
        truths = {}
        for name, target in self.targets.items():
            parent = self.targets.get(target.derived_from or "")
            own = grades if parent is None else grades >= target.threshold_in(parent)
            truths[name] = np.where(np.arange(TRAIN_CASES) % 8 == 5, MISSING, own).astype(np.int64)
        return grades.astype(np.float64), truths

    def _features(self, fold: str, severities: NDArray[np.float64], what: str) -> NDArray[np.float32]:
        axis = random_generator(self.seed, "toy axis", self.model, fold).normal(size=WIDTH)
        rng = random_generator(self.seed, "toy features", self.model, fold, what)
        noise = rng.normal(0, 0.7, (len(severities), WIDTH))
        return (severities[:, None] * axis + noise).astype(np.float32)

    def validation(self) -> Mapping[str, PredictionTable]:
        """By fold, predictions of its validation cases."""
        return self.validated

    def open(self) -> OpenedModel:
        """A tiny network for every fold, with the head `dual` or, for a target alone, `single`."""
        return _Opened(
            networks={fold: self._network(fold) for fold in FOLDS},
            targets=self.targets,
        )

    def _network(self, fold: str) -> Any:
        import torch
        from torch import nn

        from oaplug.model.build import build_head
        from oaplug.model.network import Network
        from oaplug.plug.registry import registry
        from oaplug.plug.specs import HeadSpec

        class Encoder(nn.Sequential):
            num_features = WIDTH

            @property
            def cam_layer(self) -> nn.Module:
                return self[0]

        head = registry().spec(HeadSpec, "dual" if len(self.targets) > 1 else "single")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, "toy network", self.model, fold))
            layers = [nn.Conv3d(1, WIDTH, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten()]
            strategy = build_head(head, {}, num_features=WIDTH, targets=self.targets, grade_counts={})
            return Network(Encoder(*layers), strategy).eval()

    def training_batches(self, fold: str, *, seed: int) -> Iterator[TrainingBatch]:
        """The training cases of a fold, shuffled, in batches of BATCH noise volumes."""
        import torch

        from oaplug.core.batch import Batch

        features = self.train_features()[fold]
        order = random_generator(seed, "toy order", fold).permutation(TRAIN_CASES)
        for rows in np.split(order, TRAIN_CASES // BATCH):
            ids = tuple(features.case_ids[row] for row in rows)
            volumes = np.stack([toy_volume(name) for name in ids])
            grades = {name: torch.from_numpy(truth[rows]) for name, truth in features.truths.items()}
            yield _Batch(volume=torch.from_numpy(volumes), truth=Batch(targets=grades), case_ids=ids)


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """An `oaplug.core.study.TrainingBatch`."""

    volume: Tensor
    truth: Batch
    case_ids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """An `oaplug.core.study.OpenedModel` whose prepared volumes are noise."""

    networks: Mapping[str, Any]
    targets: Mapping[str, Target]

    def prepare(self, case: Case) -> Volume:
        """Noise, another for each case."""
        return toy_image(case)

    def saliency(
        self,
        volume: np.ndarray,
        questions: Sequence[Question],
        *,
        case_id: str,
        settings: SaliencySettings,
        untrained: bool = False,
    ) -> list[FloatArray]:
        """Noise from 0 to 1, another for each case, question and network."""
        rng = random_generator(0, "toy saliency", case_id, int(untrained))
        return [rng.random(volume.shape[1:]).astype(np.float32) for _ in questions]

    def as_batch(self, volume: np.ndarray) -> Tensor:
        """A prepared volume (C,D,H,W) as a batch (1,C,D,H,W)."""
        import torch

        return torch.from_numpy(volume)[None]

    def autocast(self) -> AbstractContextManager[object]:
        """Float32 throughout."""
        return nullcontext()
