"""Which of several models is best by one metric, and which others the same cases cannot tell from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from oaplug.core.bootstrap import subject_counts
from oaplug.core.comparison import Contender, Sampled, difference, measure_together, percentile_interval
from oaplug.core.errors import PredictionError, nearest
from oaplug.core.metrics import METRIC_NAMES, metrics_of
from oaplug.core.significance import TIE, holm
from oaplug.study.gather import open_study

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from oaplug.core.paths import Places
    from oaplug.core.predictions import PredictionTable
    from oaplug.core.target import Target

    Floats = NDArray[np.float64]

CONFIDENCE = 0.95
LEVEL = 0.05
"""A model is called worse than the best where its p-value, corrected for all of them (Holm), is below."""


@dataclass(frozen=True, kw_only=True)
class RankedModel:
    """A model's metric with its interval, and how it differs from the best model's (model minus best).

    `best_in` is the share of the resamples in which no model was better; ties are shared.
    """

    name: str
    value: float
    low: float
    high: float
    delta: float
    delta_low: float
    delta_high: float
    p_value: float
    p_holm: float
    best_in: float

    @property
    def is_indistinguishable(self) -> bool:
        """Whether the cases do not show this model to be worse than the best; true of the best itself."""
        return not self.p_holm < LEVEL


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Models from the best on by "target.metric", over the cases whose truth is known."""

    metric: str
    models: tuple[RankedModel, ...]
    cases: int
    subjects: int
    resamples: int
    seed: int

    @property
    def best(self) -> RankedModel:
        """The one with the best value."""
        return self.models[0]

    @property
    def indistinguishable(self) -> tuple[str, ...]:
        """The others that may be as good as the best."""
        return tuple(model.name for model in self.models[1:] if model.is_indistinguishable)


def split_metric(name: str, targets: Mapping[str, Target]) -> tuple[str, str]:
    """Target and metric of `kl.qwk`; raises PredictionError naming the nearest one there is."""
    choices = [
        f"{target.name}.{metric}"
        for target in targets.values()
        for metric in metrics_of(len(target.grades), ordered=target.kind == "ordinal")
    ]
    if name not in choices:
        raise PredictionError(f"no metric {name!r}{nearest(name, choices)}")
    target, _, metric = name.partition(".")
    return target, metric


def rank_models(
    tables: Mapping[str, Path], metric: str, *, resamples: int, seed: int, places: Places
) -> Ranking:
    """Rank models by their predictions of the same cases; `tables` has a folder of predictions by name.

    Subjects are resampled, the same for all models. Raises PredictionError where the models were not given
    the same cases with a truth of the target, or the metric is not defined.
    """
    target, _, measure = metric.partition(".")
    study = open_study(dict(tables), resamples=resamples, seed=seed, intersect=True, places=places)
    _check_same_cases(tables, target)
    rows = np.flatnonzero(study.models[0].predictions.targets[target].known())
    contenders = [
        Contender(name=model.name, runs=(model.predictions.targets[target].take(rows),))
        for model in study.models
    ]
    subject_ids = [study.subject_ids[row] for row in rows]
    sampled = _sample(contenders, measure, subject_ids, resamples=resamples, seed=seed)
    if any(np.isnan(one.value) for one in sampled.values()):
        raise PredictionError(f"{metric} ({METRIC_NAMES[measure]}) is not defined on these {len(rows)} cases")
    return Ranking(
        metric=metric,
        models=_ranked(sampled, sign=-1 if measure == "mae" else 1),
        cases=len(rows),
        subjects=len(set(subject_ids)),
        resamples=resamples,
        seed=seed,
    )


def _check_same_cases(tables: Mapping[str, Path], target: str) -> None:
    """Every model must answer `target` for the same cases of known truth."""
    from oaplug.core.predictions import read_predictions

    known: dict[str, set[str]] = {}
    for name, folder in tables.items():
        table = read_predictions(folder)
        if target not in table.targets:
            raise PredictionError(
                f"{name} does not answer {target!r} (it answers {', '.join(table.targets)})"
            )
        known[name] = _known_cases(table, target)
    first = next(iter(known))
    if not known[first]:
        raise PredictionError(f"{first}: no case has a known truth of {target!r}")
    for name, ids in known.items():
        if off := sorted(ids ^ known[first]):
            raise PredictionError(
                f"{first} and {name} were not validated on the same cases with a truth of {target!r}: "
                f"{', '.join(off[:5])}{f' and {len(off) - 5} more' if len(off) > 5 else ''} in one of them "
                "only; compare models that were trained on the same folds (-m)"
            )


def _known_cases(table: PredictionTable, target: str) -> set[str]:
    known = table.targets[target].known()
    return {name for name, is_known in zip(table.case_ids, known, strict=True) if is_known}


def _sample(
    contenders: Sequence[Contender], metric: str, subject_ids: Sequence[str], *, resamples: int, seed: int
) -> dict[str, Sampled]:
    """Each model's metric over all cases and in every resample; the same resamples for all."""
    everyone = [np.ones((1, len(subject_ids)), dtype=np.int64)]
    points = measure_together(contenders, everyone, [metric])
    counts = subject_counts(subject_ids, resamples=resamples, seed=seed)
    samples = measure_together(contenders, counts, [metric])
    return {
        one.name: Sampled(
            value=float(points[index][metric][0, 0]),
            samples=samples[index][metric][:, 0],
            jackknife=np.empty(0),
        )
        for index, one in enumerate(contenders)
    }


def _ranked(sampled: Mapping[str, Sampled], *, sign: int) -> tuple[RankedModel, ...]:
    """Models from the best on, by name where values are equal; `sign` is -1 where lower is better."""
    names = sorted(sampled, key=lambda name: (-round(sign * sampled[name].value, TIE), name))
    best_in = _best_in(np.stack([sign * sampled[name].samples for name in names], axis=-1))
    models = [
        _compared(name, sampled[name], sampled[names[0]], best_in=float(share))
        for name, share in zip(names, best_in, strict=True)
    ]
    corrected = holm([model.p_value for model in models[1:]])
    others = (replace(m, p_holm=float(p)) for m, p in zip(models[1:], corrected, strict=True))
    return (models[0], *others)


def _compared(name: str, model: Sampled, best: Sampled, *, best_in: float) -> RankedModel:
    found = difference(best, model, confidence=CONFIDENCE)
    low, high = percentile_interval(model.samples, confidence=CONFIDENCE)
    return RankedModel(
        name=name,
        value=model.value,
        low=low,
        high=high,
        delta=found.delta,
        delta_low=found.low,
        delta_high=found.high,
        p_value=found.p_value,
        p_holm=found.p_value,
        best_in=best_in,
    )


def _best_in(samples: Floats) -> Floats:
    """Share of the resamples (B,M) in which each of M models was best (highest); NaN rows left out."""
    known = np.round(samples[~np.isnan(samples).any(axis=1)], TIE)
    is_best = known == known.max(axis=1, keepdims=True)
    shares: Floats = (is_best / is_best.sum(axis=1, keepdims=True)).mean(axis=0)
    return shares


def ranking_to_json(ranking: Ranking) -> dict[str, Any]:
    """The content of best_configuration.json that the ranking gives."""
    return {
        "metric": ranking.metric,
        "cases": ranking.cases,
        "subjects": ranking.subjects,
        "resamples": ranking.resamples,
        "seed": ranking.seed,
        "confidence": CONFIDENCE,
        "level": LEVEL,
        "best": ranking.best.name,
        "indistinguishable": list(ranking.indistinguishable),
        "models": [_model_to_json(model) for model in ranking.models],
    }


def _model_to_json(model: RankedModel) -> dict[str, Any]:
    values = {key: value for key, value in vars(model).items() if key != "name"}
    known = {key: float(value) if np.isfinite(value) else None for key, value in values.items()}
    return {"name": model.name, **known, "is_indistinguishable": model.is_indistinguishable}


def ranking_rows(ranking: Ranking) -> list[list[str]]:
    """The ranking as a table of text, header first."""
    level = f"{CONFIDENCE:.0%}"
    header = [
        "model",
        f"{ranking.metric} ({level})",
        f"minus best ({level})",
        "p (Holm)",
        "best in",
        "verdict",
    ]
    return [header, *(_row(model, is_best=model is ranking.best) for model in ranking.models)]


def _row(model: RankedModel, *, is_best: bool) -> list[str]:
    value = f"{model.value:.3f} ({model.low:.3f} to {model.high:.3f})"
    if is_best:
        return [model.name, value, "", "", f"{model.best_in:.0%}", "best"]
    delta = f"{model.delta:+.3f} ({model.delta_low:+.3f} to {model.delta_high:+.3f})"
    verdict = "indistinguishable" if model.is_indistinguishable else "worse"
    return [model.name, value, delta, f"{model.p_holm:.4f}", f"{model.best_in:.0%}", verdict]


def ranking_sentences(ranking: Ranking) -> list[str]:
    """What the table says, and what it does not."""
    alike, best = ranking.indistinguishable, ranking.best
    many = f"{ranking.cases} cases of {ranking.subjects} subjects"
    said = [f"Best by {ranking.metric} on {many}: {best.name}."]
    if alike:
        said.append(f"These cases cannot tell it from: {', '.join(alike)}.")
    elif len(ranking.models) > 1:
        said.append("All other models are worse by more than chance.")
    said.append(
        f"Intervals and p-values are from {ranking.resamples:,} paired bootstrap resamples of subjects; a "
        f"model is called worse where p, corrected by Holm for {max(len(ranking.models) - 1, 1)}, is below "
        f"{LEVEL:g}. They do not know how much another seed would change. The best model's value is "
        "optimistic, since it was chosen on these cases: report its value on the test cases."
    )
    return said
