"""A model folder as something that predicts: the networks of its folds, and the preprocessing of its plan."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from oaplug.core.artifacts import digest_of_file
from oaplug.core.case import Case, Problem
from oaplug.core.errors import CheckpointError, LeakError, OaplugError
from oaplug.core.evaluation import prediction_table
from oaplug.core.leak import keyed_hash
from oaplug.core.predictions import TrainedOn, read_trained_on
from oaplug.infer.inputs import as_cases
from oaplug.model.checkpoint import load_checkpoint, load_network
from oaplug.model.precision import Precision, choose_device, choose_precision
from oaplug.model.run_folder import RunDescription, build_network, read_run, targets_of_run
from oaplug.plug.registry import registry
from oaplug.prepare.preprocess import prepare_volume
from oaplug.prepare.reading import read_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from oaplug.core.predictions import PredictionTable
    from oaplug.core.saliency import Question, SaliencySettings
    from oaplug.core.target import Target
    from oaplug.core.volume import FloatArray, Volume
    from oaplug.model.network import Network

    Progress = Callable[[int, int, str], None]

log = logging.getLogger(__name__)
Item = TypeVar("Item")
Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What is said of one case: probabilities (K,) per target, features (F,) per fold."""

    probabilities: dict[str, np.ndarray]
    features: dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """The networks of a model folder's folds, ready to predict; all in eval mode, by the fold's name."""

    name: str
    folder: Path
    checkpoint: str
    run: RunDescription
    targets: Mapping[str, Target]
    networks: Mapping[str, Network]
    trained_on: TrainedOn
    precision: Precision

    def predict(
        self,
        cases: Sequence[Case | Path | str],
        *,
        allow_training_cases: bool = False,
        progress: Progress | None = None,
    ) -> tuple[PredictionTable, list[Problem]]:
        """Predict cases, or paths of images, from their raw images: probabilities are means over the folds.

        Gives the table and a problem for every case whose images could not be read; raises LeakError
        where the model was trained on a case's subject or images, OaplugError where no case is left.
        """
        done, answers, problems = self.answer_cases(
            as_cases(cases, self.run.description),
            allow_training_cases=allow_training_cases,
            progress=progress,
        )
        return self.tabulate(done, answers), problems

    def answer_cases(
        self, cases: Sequence[Case], *, allow_training_cases: bool, progress: Progress | None = None
    ) -> tuple[list[Case], list[Answer], list[Problem]]:
        """Cases that could be read, an answer for each, and a problem for each of the others.

        Raises as `predict` does.
        """
        if not allow_training_cases:
            self._refuse_leaks(cases)
        done: list[Case] = []
        answers: list[Answer] = []
        problems: list[Problem] = []
        for index, (case, prepared) in enumerate(read_ahead(self._try_to_prepare, cases)):
            if progress is not None:
                progress(index, len(cases), case.case_id)
            if isinstance(prepared, OaplugError):
                problems.append(Problem(kind="cannot predict", case_id=case.case_id, message=str(prepared)))
                continue
            answers.append(self.answer(prepared.data))
            done.append(case)
        if progress is not None:
            progress(len(cases), len(cases), "done")
        if not done:
            raise OaplugError(f"no case could be predicted; the first: {problems[0].message}")
        return done, answers, problems

    def tabulate(self, cases: Sequence[Case], answers: Sequence[Answer]) -> PredictionTable:
        """The prediction table of cases that were answered."""
        rows = [answer.probabilities for answer in answers]
        tables = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        folds = "+".join(self.networks)
        table = prediction_table(cases, tables, targets=self.targets, fold=folds, model=self.name)
        return replace(table, trained_on=self.trained_on)

    def answer(self, volume: np.ndarray) -> Answer:
        """Probabilities (means over the folds) and features of one preprocessed volume (C,D,H,W)."""
        batch = self.as_batch(volume)
        features: dict[str, np.ndarray] = {}
        tables: dict[str, list[np.ndarray]] = {}
        with torch.inference_mode():
            for fold, network in self.networks.items():
                with self.autocast():
                    found = network.features(batch)
                    logits = network.head(found)
                features[fold] = found[0].float().cpu().numpy()
                for name, table in network.probabilities(logits).items():
                    tables.setdefault(name, []).append(table[0].double().cpu().numpy())
        means = {name: np.mean(of_folds, axis=0) for name, of_folds in tables.items()}
        return Answer(probabilities=means, features=features)

    def features(self, volume: np.ndarray, *, fold: str) -> np.ndarray:
        """Features (F,) of one preprocessed volume (C,D,H,W) by one fold's encoder."""
        with torch.inference_mode(), self.autocast():
            found = self.networks[fold].features(self.as_batch(volume))
        return found[0].float().cpu().numpy()

    def saliency(
        self,
        volume: np.ndarray,
        questions: Sequence[Question],
        *,
        case_id: str,
        settings: SaliencySettings,
        untrained: bool = False,
    ) -> list[FloatArray]:
        """Maps (D,H,W) from 0 to 1 of a preprocessed volume (C,D,H,W), as `saliency_maps` makes them."""
        from oaplug.infer.saliency import saliency_maps

        return saliency_maps(self, volume, questions, case_id=case_id, settings=settings, untrained=untrained)

    def as_batch(self, volume: np.ndarray) -> torch.Tensor:
        """A preprocessed volume (C,D,H,W) as a batch (1,C,D,H,W) on the device, rounded as for training."""
        return self.precision.arrange(torch.from_numpy(volume.astype(np.float16)).float()[None])

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which the networks compute as they were trained."""
        return self.precision.autocast()

    def checkpoint_path(self, fold: str) -> Path:
        """The file a fold's network was loaded from."""
        return self.folder / f"fold_{fold}" / f"checkpoint_{self.checkpoint}.safetensors"

    def prepare(self, case: Case) -> Volume:
        """A case's images as the networks see them; raises OaplugError where they cannot be read."""
        volume = read_image(case.images, case_id=case.case_id)
        return prepare_volume(volume, self.run.configuration, side=case.side)

    def _try_to_prepare(self, case: Case) -> Volume | OaplugError:
        try:
            return self.prepare(case)
        except OaplugError as failure:
            return failure

    def _refuse_leaks(self, cases: Sequence[Case]) -> None:
        seen = self.trained_on
        leaks = [c.case_id for c in cases if keyed_hash(seen.key, c.subject_id) in seen.subjects]
        for case in cases:
            digests = [digest_of_file(path) for path in case.images if path.is_file()]
            if any(keyed_hash(seen.key, digest) in seen.images for digest in digests):
                leaks.append(case.case_id)
        if leaks:
            named = ", ".join(sorted(set(leaks))[:5])
            raise LeakError(
                f"{len(set(leaks))} cases belong to subjects or images this model was trained on ({named}): "
                "their results would flatter it; remove them, or pass --allow_training_cases"
            )


def read_ahead(read: Callable[[Item], Found], items: Sequence[Item]) -> Iterator[tuple[Item, Found]]:
    """Every item with what `read` gives for it, reading one ahead in a thread."""
    with ThreadPoolExecutor(max_workers=1) as reader:
        waiting = [reader.submit(read, item) for item in items[:2]]
        for index, item in enumerate(items):
            found = waiting.pop(0).result()
            if index + 2 < len(items):
                waiting.append(reader.submit(read, items[index + 2]))
            yield item, found


def load_model(
    folder: Path | str,
    *,
    folds: Sequence[str] | None = None,
    checkpoint: str = "final",
    device: str | None = None,
) -> Predictor:
    """Open a model folder for prediction.

    Args:
        folder: a run's folder (plans.json, fold_0, ...).
        folds: which folds to average (default: all that are trained).
        checkpoint: "final" or "best".
        device: "cuda", "cpu", "mps" (default: a GPU where there is one).

    Raises:
        CheckpointError: where the folder, a fold or a checkpoint is missing or does not fit.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"the model folder {folder} does not exist; train it with oaplug_train")
    run = read_run(folder)
    names = _choose_folds(folder, folds, checkpoint=checkpoint)
    precision = choose_precision(
        run.plan.training.precision,
        device=choose_device(device),
        channels_last=run.plan.training.channels_last,
    )
    networks = {
        name: _load_fold(folder / f"fold_{name}", run, checkpoint, precision=precision) for name in names
    }
    return Predictor(
        name=folder.name,
        folder=folder,
        checkpoint=checkpoint,
        run=run,
        targets=targets_of_run(run, registry()),
        networks=networks,
        trained_on=_join([read_trained_on(folder / f"fold_{name}" / "trained_on.json") for name in names]),
        precision=precision,
    )


def _choose_folds(folder: Path, wanted: Sequence[str] | None, *, checkpoint: str) -> list[str]:
    there = sorted(
        path.parent.name.removeprefix("fold_")
        for path in folder.glob(f"fold_*/checkpoint_{checkpoint}.safetensors")
    )
    if not there:
        raise CheckpointError(f"{folder} has no trained fold (fold_*/checkpoint_{checkpoint}.safetensors)")
    if wanted is None:
        numbered = [name for name in there if name != "all"]
        return numbered or there
    missing = [name for name in wanted if name not in there]
    if missing:
        raise CheckpointError(
            f"{folder} has no trained fold {', '.join(missing)} (there: {', '.join(there)})"
        )
    return list(wanted)


def _load_fold(folder: Path, run: RunDescription, checkpoint: str, *, precision: Precision) -> Network:
    path = folder / f"checkpoint_{checkpoint}.safetensors"
    network = build_network(run, registry())
    load_network(network, load_checkpoint(path), path=path)
    precision.place(network)
    network.eval()
    return network


def _join(seen: Sequence[TrainedOn]) -> TrainedOn:
    """What any of the folds was trained on; their hashes are of one key, the run's."""
    if len({fold.key for fold in seen}) > 1:
        raise CheckpointError(
            "the folds' trained_on.json were written with different keys, so leaks would go unseen; "
            "predict with one fold (-f), or train the folds in one model folder"
        )
    return TrainedOn(
        key=seen[0].key,
        subjects=frozenset().union(*(s.subjects for s in seen)),
        images=frozenset().union(*(s.images for s in seen)),
    )
