"""Whether the losses of a head pull the shared encoder the same way: as logged, and on saved models."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from oaplug.core.findings import Findings
from oaplug.core.interference import COSINE, NORM, compare_gradients, loss_gradients
from oaplug.core.seeds import derive_seed, random_generator
from oaplug_analyses import interference_figures as figures
from oaplug_analyses.drawing import cell, model_colours, write_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from oaplug.core.findings import Cell, Figure, Table
    from oaplug.core.study import Study, StudyModel
    from oaplug_analyses.options import TaskInterferenceOptions

    Floats = NDArray[np.float64]

NEEDS = frozenset({"network", "train_images"})
LOGGED = "train."
COLUMNS = (
    *("model", "losses", "batches", "cosine", "cosine low", "cosine high"),
    *("deviation", "opposed", "length ratio"),
)


@dataclass(frozen=True, kw_only=True)
class Batches:
    """What batches gave for one fold of a model: values (B,) by `gradient_cosine.A.B`, `gradient_norm.A`.

    Logged ones are of one batch per epoch, NaN where none was defined.
    """

    model: str
    fold: str
    values: Mapping[str, Floats]

    def cosines(self) -> dict[str, Floats]:
        """Cosines (B,) by pair of losses, such as "kl.oa"."""
        return self._called(COSINE)

    def norm_ratio(self, pair: str) -> Floats:
        """Norm (B,) of the second loss' gradient in norms of the first's."""
        norms = self._called(NORM)
        first = next(name for name in norms if pair.startswith(f"{name}."))
        above, below = norms[pair.removeprefix(f"{first}.")], norms[first]
        ratio: Floats = np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)
        return ratio

    def _called(self, what: str) -> dict[str, Floats]:
        return {n.removeprefix(f"{what}."): v for n, v in self.values.items() if n.startswith(f"{what}.")}


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A model's cosines of one pair of losses, over the batches (of all folds) in which both have one."""

    model: str
    pair: str
    batches: int
    value: float
    low: float
    high: float
    deviation: float
    negative: float
    norm_ratio: float


@dataclass(frozen=True)
class TaskInterference:
    """Builds with TaskInterferenceOptions; works on models whose networks and training cases are at hand."""

    options: TaskInterferenceOptions

    def run(self, study: Study, folder: Path) -> Findings:
        """Measure saved models, read what trainings logged, and draw both into `folder`."""
        measured = [one for model in study.models_with(NEEDS) for one in self.measure(study, model)]
        logged = [one for model in study.models for one in read_logged(model)]
        means = [mean for model in study.models for mean in self.means(study, measured, model.name)]
        colours = model_colours([model.name for model in study.models])
        drawn: list[Figure] = []
        if means:
            drawn.append(figures.by_batch(measured, means, folder, colours))
        if logged:
            drawn.append(figures.by_epoch(logged, folder, colours))
        return Findings(
            title="Task interference",
            summary=tuple(self._sentences(study, means, measured, logged)),
            numbers={f"{m.model}.{m.pair}.{COSINE}": cell(m.value) for m in means},
            tables=(self._table(means, folder),) if means else (),
            figures=tuple(drawn),
        )

    def measure(self, study: Study, model: StudyModel) -> list[Batches]:
        """Gradients of each fold's network on batches of the cases it was trained on; empty for one loss."""
        if self.options.batches == 0:
            return []
        opened, found = model.open(), []
        for fold, network in opened.networks.items():
            rows = []
            for index, batch in enumerate(
                islice(model.training_batches(fold, seed=study.seed), self.options.batches)
            ):
                gradients = loss_gradients(
                    network,
                    batch.volume,
                    batch.truth,
                    autocast=opened.autocast(),
                    seed=derive_seed(study.seed, "interference", fold, index),
                )
                if not gradients:
                    return []
                rows.append(compare_gradients(gradients))
            found.append(Batches(model=model.name, fold=fold, values=_columns(rows)))
        return found

    def means(self, study: Study, measured: Sequence[Batches], model: str) -> list[Mean]:
        """Means over batches, with intervals from resampling them, of each pair of a model's losses."""
        folds = [one for one in measured if one.model == model]
        return [self._mean(study, folds, pair) for pair in (folds[0].cosines() if folds else ())]

    def _mean(self, study: Study, folds: Sequence[Batches], pair: str) -> Mean:
        cosines = np.concatenate([fold.cosines()[pair] for fold in folds])
        known = cosines[~np.isnan(cosines)]
        ratios = np.concatenate([fold.norm_ratio(pair) for fold in folds])
        low = high = np.nan
        if known.size:
            rng = random_generator(study.seed, "interference batches", pair)
            draws = known[rng.integers(0, known.size, size=(study.resamples, known.size))].mean(axis=1)
            tail = (1 - self.options.confidence) / 2
            low, high = np.quantile(draws, [tail, 1 - tail])
        return Mean(
            model=folds[0].model,
            pair=pair,
            batches=known.size,
            value=float(known.mean()) if known.size else np.nan,
            low=float(low),
            high=float(high),
            deviation=float(known.std(ddof=1)) if known.size > 1 else np.nan,
            negative=float((known < 0).mean()) if known.size else np.nan,
            norm_ratio=float(np.nanmedian(ratios)) if np.isfinite(ratios).any() else np.nan,
        )

    def _table(self, means: Sequence[Mean], folder: Path) -> Table:
        rows: list[Sequence[Cell]] = [
            [
                *(m.model, figures.pair_name(m.pair), m.batches),
                *(cell(v) for v in (m.value, m.low, m.high, m.deviation, m.negative, m.norm_ratio)),
            ]
            for m in means
        ]
        return write_table(
            folder,
            name="gradients",
            caption="Cosine between the gradients of two losses with respect to the encoder's weights, on "
            "batches of training cases as the saved model would be trained on them, without augmentation: "
            f"the mean with its {self.options.confidence:.0%} interval over batches, their deviation, the "
            "fraction of batches in which the losses pull against each other, and the median length of the "
            "second gradient in lengths of the first. A batch in which a loss has no case is not counted.",
            columns=COLUMNS,
            rows=rows,
        )

    def _sentences(
        self, study: Study, means: Sequence[Mean], measured: Sequence[Batches], logged: Sequence[Batches]
    ) -> list[str]:
        said = [
            f"{m.model}: the gradients of {figures.pair_name(m.pair)} have a mean cosine of {m.value:.2f} "
            f"({m.low:.2f} to {m.high:.2f}) over {m.batches} training batches, and are opposed in "
            f"{m.negative:.0%} of them."
            for m in means
        ]
        tried = {model.name for model in study.models_with(NEEDS)} if self.options.batches else set()
        if single := sorted(tried - {one.model for one in measured}):
            said.append(
                f"{', '.join(single)}: one loss, or a frozen encoder, so there is nothing to compare."
            )
        if self.options.batches:
            said += [f"Not measured: {reason}." for reason in study.lacking(NEEDS)]
        if not logged:
            said.append(
                "No training logged gradients; oaplug_train --set training.log_gradient_cosine=true does."
            )
        return said


def read_logged(model: StudyModel) -> list[Batches]:
    """What the trainings of a model's folds wrote into metrics.jsonl, one value per epoch."""
    found = []
    for path in sorted(model.folder.glob("fold_*/metrics.jsonl")) if model.folder is not None else []:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
        rows = [
            {
                n.removeprefix(LOGGED): v
                for n, v in r.items()
                if n.startswith((LOGGED + COSINE, LOGGED + NORM))
            }
            for r in records
        ]
        if any(rows):
            fold = path.parent.name.removeprefix("fold_")
            found.append(Batches(model=model.name, fold=fold, values=_columns(rows)))
    return found


def _columns(rows: Sequence[Mapping[str, float | None]]) -> dict[str, Floats]:
    """Values (B,) by name of B rows; NaN where a row has none."""
    columns: dict[str, Floats] = defaultdict(lambda: np.full(len(rows), np.nan))
    for index, row in enumerate(rows):
        for name, value in row.items():
            columns[name][index] = np.nan if value is None else value
    return dict(columns)
