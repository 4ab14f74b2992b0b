"""Which models are compared on what, and what each comparison gives."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from oaplug.core.bootstrap import left_out, redrawn, subject_counts
from oaplug.core.comparison import Contender, Difference, Sampled, difference, mean_of_runs, measure_together
from oaplug.core.errors import PredictionError, nearest
from oaplug.core.seeds import random_generator
from oaplug.core.significance import McNemar, benjamini_hochberg, delong, holm, mcnemar

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from oaplug.core.bootstrap import Counts
    from oaplug.core.predictions import TargetPredictions
    from oaplug.core.study import Study
    from oaplug.core.target import Target

BOOTSTRAP = "paired_bootstrap"
STUDY_RESAMPLES, STUDY_SEED = 10_000, 42
STUDY_PARTNERS = {"oa": "single_oa", "kl": "single_kl"}
STUDY_METRICS = ("auc", "accuracy", "f1")


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """How differences are resampled, and how much of them an interval covers."""

    resamples: int
    seed: int
    confidence: float


@dataclass(frozen=True, kw_only=True)
class TargetCases:
    """One target: the N cases whose truth is known, their subjects, and the models that answer it by name."""

    target: Target
    subject_ids: tuple[str, ...]
    contenders: Mapping[str, Contender]

    @property
    def one_case_a_subject(self) -> bool:
        """Whether no two cases are of one person, as tests by case need it."""
        return len(set(self.subject_ids)) == len(self.subject_ids)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One metric of one model against that of its baseline, on one target.

    `p_value` is that of `test`; `q_value` and `p_holm` correct it for the family. `mcnemar` and `delong_p`
    are None and NaN where those tests do not apply.
    """

    target: str
    metric: str
    baseline: str
    model: str
    difference: Difference
    p_value: float
    test: str
    mcnemar: McNemar | None
    delong_p: float
    cases: int
    subjects: int
    baseline_runs: int
    model_runs: int
    q_value: float = np.nan
    p_holm: float = np.nan


def cases_of(study: Study, target: Target) -> TargetCases:
    """The cases of a study that have a truth of `target`; models with several runs are one contender."""
    runs: dict[str, list[TargetPredictions]] = defaultdict(list)
    rows: NDArray[np.intp] = np.arange(0)
    for model in study.models:
        if (answers := model.predictions.targets.get(target.name)) is not None:
            rows = np.flatnonzero(answers.known())
            runs[model.model_name].append(_take(answers, rows))
    return TargetCases(
        target=target,
        subject_ids=tuple(study.subject_ids[row] for row in rows),
        contenders={name: Contender(name=name, runs=tuple(found)) for name, found in runs.items()},
    )


def _take(answers: TargetPredictions, rows: NDArray[np.intp]) -> TargetPredictions:
    return replace(
        answers,
        truth=answers.truth[rows],
        predicted=answers.predicted[rows],
        probabilities=answers.probabilities[rows],
    )


def compare_with_baseline(
    cases: TargetCases, baseline: str, *, metrics: Sequence[str], how: Resampling
) -> list[Comparison]:
    """Every contender against `baseline`, all metrics on the same resamples of subjects.

    Resamples depend on subjects and seed only, so the order of cases changes nothing.
    """
    others = [name for name in cases.contenders if name != baseline]
    if baseline not in cases.contenders or not others or not cases.subject_ids:
        return []
    counts = subject_counts(cases.subject_ids, resamples=how.resamples, seed=how.seed)
    samples = _sample(cases, [baseline, *others], counts=counts, metrics=metrics, seed=how.seed)
    return [
        _compare(
            cases, (baseline, other), metric=metric, samples=samples, confidence=how.confidence, counted=True
        )
        for other in others
        for metric in metrics
        if metric in samples[other]
    ]


def compare_as_the_study(by_target: Mapping[str, TargetCases], how: Resampling) -> list[Comparison]:
    """The article's comparisons: per backbone `dual` with `single_oa` on OA and with `single_kl` on KL.

    One generator is consumed across all comparisons in order, S numbers a resample for S subjects in the
    order of their first case. McNemar's test replaces the p-value of OA accuracy only. Raises
    PredictionError where the models are not named and given as needed.
    """
    rng = np.random.default_rng(how.seed)
    found = []
    for backbone in _study_backbones(by_target):
        for target, partner in STUDY_PARTNERS.items():
            cases, pair = by_target[target], (f"{backbone}/{partner}", f"{backbone}/dual")
            for metric in STUDY_METRICS:
                counts = redrawn(first_seen(cases.subject_ids), resamples=how.resamples, rng=rng)
                samples = _sample(cases, pair, counts=counts, metrics=[metric], seed=how.seed)
                found.append(
                    _compare(
                        cases,
                        pair,
                        metric=metric,
                        samples=samples,
                        confidence=how.confidence,
                        counted=target == "oa",
                    )
                )
    return found


def _study_backbones(by_target: Mapping[str, TargetCases]) -> list[str]:
    """Backbones in the order given; each needs its three models."""
    for target in STUDY_PARTNERS:
        if target not in by_target or not by_target[target].subject_ids:
            raise PredictionError(
                f"protocol study compares on oa and kl; no model has known truths of {target!r}"
            )
    names = list(dict.fromkeys(name for cases in by_target.values() for name in cases.contenders))
    wanted = {"dual", *STUDY_PARTNERS.values()}
    if odd := [name for name in names if name.rpartition("/")[2] not in wanted or "/" not in name]:
        raise PredictionError(
            f"protocol study needs models called BACKBONE/dual, BACKBONE/single_oa and BACKBONE/single_kl, "
            f"not {', '.join(map(repr, odd))}; name them with -m BACKBONE/dual=PATH"
        )
    backbones = list(dict.fromkeys(name.rpartition("/")[0] for name in names))
    needed = {(target, s) for target, partner in STUDY_PARTNERS.items() for s in (partner, "dual")}
    lacking = [
        f"{backbone}/{supervision} with {target}"
        for backbone in backbones
        for target, supervision in sorted(needed)
        if f"{backbone}/{supervision}" not in by_target[target].contenders
    ]
    if lacking:
        raise PredictionError(f"protocol study lacks predictions of {', '.join(lacking)}")
    return backbones


def first_seen(subject_ids: Sequence[str]) -> NDArray[np.intp]:
    """Index (N,) of each case's subject, subjects numbered as they first appear."""
    number = {subject: index for index, subject in enumerate(dict.fromkeys(subject_ids))}
    return np.array([number[subject] for subject in subject_ids], dtype=np.intp)


def _sample(
    cases: TargetCases, names: Sequence[str], *, counts: Iterable[Counts], metrics: Collection[str], seed: int
) -> dict[str, dict[str, Sampled]]:
    """Metrics of the named contenders by name and metric: over all cases, resampled, and left out."""
    contenders = [cases.contenders[name] for name in names]
    everyone = [np.ones((1, len(cases.subject_ids)), dtype=np.int64)]
    each_left_out = left_out(first_seen(cases.subject_ids))
    points, samples, jackknifes = (
        measure_together(contenders, blocks, metrics) for blocks in (everyone, counts, each_left_out)
    )
    return {
        name: {
            metric: mean_of_runs(
                points[index][metric][0],
                values,
                jackknifes[index][metric],
                rng=random_generator(seed, "bootstrap runs", name),
            )
            for metric, values in samples[index].items()
        }
        for index, name in enumerate(names)
    }


def _compare(
    cases: TargetCases,
    pair: tuple[str, str],
    *,
    metric: str,
    samples: Mapping[str, Mapping[str, Sampled]],
    confidence: float,
    counted: bool,
) -> Comparison:
    """The comparison of a pair (baseline, model); `counted`: McNemar's test where it applies."""
    baseline, model = (cases.contenders[name] for name in pair)
    found = difference(samples[pair[0]][metric], samples[pair[1]][metric], confidence=confidence)
    single_runs = len(baseline.runs) == len(model.runs) == 1
    by_case = single_runs and cases.one_case_a_subject
    right = _mcnemar(model, baseline) if counted and metric == "accuracy" and by_case else None
    binary = len(cases.target.grades) == 2
    return Comparison(
        target=cases.target.name,
        metric=metric,
        baseline=baseline.name,
        model=model.name,
        difference=found,
        p_value=found.p_value if right is None else right.p_value,
        test=BOOTSTRAP if right is None else right.test,
        mcnemar=right,
        delong_p=_delong(cases, pair) if metric == "auc" and binary and single_runs else np.nan,
        cases=len(cases.subject_ids),
        subjects=len(set(cases.subject_ids)),
        baseline_runs=len(baseline.runs),
        model_runs=len(model.runs),
    )


def _mcnemar(model: Contender, baseline: Contender) -> McNemar:
    right = [one.runs[0].predicted == one.runs[0].truth for one in (model, baseline)]
    return mcnemar(*right)


def _delong(cases: TargetCases, pair: tuple[str, str]) -> float:
    first, second = (cases.contenders[name].runs[0] for name in pair)
    scores = (first.probabilities[:, 1], second.probabilities[:, 1])
    return delong(first.truth == 1, *scores, subjects=first_seen(cases.subject_ids)).p_value


def as_family(comparisons: Sequence[Comparison]) -> tuple[Comparison, ...]:
    """The comparisons with their p-values corrected for being made together."""
    p_values = [one.p_value for one in comparisons]
    corrected = zip(comparisons, benjamini_hochberg(p_values), holm(p_values), strict=True)
    return tuple(replace(one, q_value=float(q), p_holm=float(p)) for one, q, p in corrected)


def check_known(name: str, known: Collection[str], *, what: str) -> None:
    """Raise PredictionError where an option names something the study does not have."""
    if name not in known:
        raise PredictionError(f"no {what} {name!r}{nearest(name, known)}")
