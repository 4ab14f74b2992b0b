"""What a model folder and the datasets around it can give to a study, read when it is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from oaplug.core.dataset import open_dataset
from oaplug.core.errors import CheckpointError, OaplugError, PredictionError
from oaplug.core.features import FEATURES_FILE, Features, read_features
from oaplug.core.paths import Places, find_dataset
from oaplug.core.predictions import PredictionTable, read_predictions
from oaplug.model.run_folder import read_run
from oaplug.prepare.folder import PreprocessedFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from pathlib import Path

    from oaplug.core.case import Case
    from oaplug.feed.source import LoadedBatch
    from oaplug.infer.predictor import Predictor


@dataclass(frozen=True, kw_only=True)
class FolderSource:
    """A table of predictions, the model folder it came from (None: unknown), and the roots of datasets.

    Networks go to `device` (None: a GPU where there is one).
    `folds` are those whose predictions the table averages, or, out of fold, those of which each case has
    the one that did not train on it: such a table has no features or network that all cases share.
    """

    table: Path
    folder: Path | None
    folds: tuple[str, ...]
    is_out_of_fold: bool = False
    places: Places = field(default_factory=Places)
    device: str | None = None

    def lacks(self, need: str) -> str:
        """Why `need` cannot be met, and what to do; "" where it can."""
        if self.folder is None:
            return f"{self.table} lies in no model folder; give the model folder itself"
        if self.is_out_of_fold:
            return f"{self.table} is of cross-validation, where every case has the network of its own fold"
        found = {
            "features": lambda: self._features,
            "train_features": lambda: self._train_features,
            "network": self._checkpoints,
            "train_images": lambda: self._data,
        }
        return _reason(found[need]) if need in found else f"a model does not provide {need}"

    def features(self) -> Features:
        """Features of the predicted cases, per fold."""
        return self._features

    def train_features(self) -> Mapping[str, Features]:
        """Features of each fold's training cases by its own encoder."""
        return self._train_features

    def validation(self) -> Mapping[str, PredictionTable]:
        """By fold, predictions of its validation cases; no entry for a fold that has none."""
        return self._validation

    def open(self) -> Predictor:
        """The model with its networks, loaded once."""
        return self._predictor

    def training_batches(self, fold: str, *, seed: int) -> Iterator[LoadedBatch]:
        """A fold's training cases in batches of the training's size, shuffled by `seed`."""
        from oaplug.feed.source import BatchSource, VolumeStore
        from oaplug.infer.features import training_cases

        predictor = self._predictor
        cases = training_cases(predictor, self._data, fold)
        return BatchSource(
            cases=cases,
            store=VolumeStore(self._data, predictor.run.configuration.data_identifier),
            targets=tuple(predictor.targets),
            batch_size=min(predictor.run.plan.training.batch_size, len(cases)),
            seed=seed,
            fold=fold,
            device=predictor.precision.device,
        ).epoch(0)

    @property
    def _again(self) -> str:
        return (
            f"run oaplug_predict_from_modelfolder -m {self.folder} -i FOLDER_OF_THESE_IMAGES "
            f"-o {self.table.parent} --features"
        )

    @cached_property
    def _features(self) -> Features:
        path = self.table.parent / FEATURES_FILE
        if not path.is_file():
            raise PredictionError(f"no {FEATURES_FILE} beside {self.table.name}; {self._again}")
        found = read_features(path)
        if set(found.folds) != set(self.folds):
            raise PredictionError(f"{path} has other folds than the predictions beside it; {self._again}")
        return found

    @cached_property
    def _train_features(self) -> Mapping[str, Features]:
        from oaplug.infer.features import train_features_path

        assert self.folder is not None
        test, found = self._features, {}
        for fold, weights in test.weights.items():
            path = train_features_path(self.folder, fold, checkpoint=test.checkpoint)
            if not path.is_file():
                raise PredictionError(
                    f"no features of the training cases ({path}); {self._again} --preprocessed "
                    "FOLDER_OF_PREPROCESSED_DATASETS"
                )
            found[fold] = read_features(path)
            if found[fold].weights != {fold: weights}:
                raise PredictionError(f"{path} is of other weights than {FEATURES_FILE}; {self._again}")
        return found

    @cached_property
    def _validation(self) -> dict[str, PredictionTable]:
        if self.is_out_of_fold:  # these are the cases that are looked at
            return {}
        paths = {} if self.folder is None else {f: self.folder / f"fold_{f}/validation" for f in self.folds}
        there = {fold: path for fold, path in paths.items() if (path / "predictions.csv").is_file()}
        return {fold: read_predictions(path) for fold, path in there.items()}

    def _checkpoints(self) -> None:
        assert self.folder is not None
        for fold in self.folds:
            path = self.folder / f"fold_{fold}" / f"checkpoint_{self._checkpoint}.safetensors"
            if not path.is_file():
                raise CheckpointError(f"the checkpoint {path} does not exist")

    @property
    def _checkpoint(self) -> str:
        """Which checkpoint predicted, as far as is known."""
        return "final" if _reason(lambda: self._features) else self._features.checkpoint

    @cached_property
    def _predictor(self) -> Predictor:
        from oaplug.infer.predictor import load_model

        assert self.folder is not None
        return load_model(self.folder, folds=self.folds, checkpoint=self._checkpoint, device=self.device)

    @cached_property
    def _data(self) -> PreprocessedFolder:
        assert self.folder is not None
        run = read_run(self.folder)
        data = PreprocessedFolder(find_dataset(self.places.preprocessed, run.plan.dataset_name))
        cases = data.folder / run.configuration.data_identifier
        if not cases.is_dir():
            raise PredictionError(f"{cases} does not exist; run oaplug_preprocess")
        return data


def _reason(attempt: Callable[[], object]) -> str:
    """Why an attempt fails; "" where it does not."""
    try:
        attempt()
    except OaplugError as failure:
        return str(failure)
    return ""


def find_cases_of(
    case_ids: Collection[str], folder: Path | None, *, places: Places
) -> tuple[dict[str, Case], str]:
    """Cases of a model's raw dataset by id, with images and the masks that exist; or why there are none."""
    try:
        if folder is None:
            raise PredictionError("which dataset the cases are of is known for model folders only")
        dataset = open_dataset(find_dataset(places.raw, read_run(folder).plan.dataset_name))
        found = {case.case_id: case for case in dataset.cases if case.case_id in case_ids}
        for name in case_ids:
            if name not in found or not all(path.is_file() for path in found[name].images):
                raise PredictionError(f"{dataset.folder} has no images of case {name}")
    except OaplugError as failure:
        return {}, f"no raw images: {failure}"
    return found, ""
