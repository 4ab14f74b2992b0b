"""Calibration: numbers against scikit-learn and plain loops, and a temperature test cases never see."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oaplug_analyses import oaplug_analyses
from oaplug_analyses.calibration import numbers_of
from oaplug_analyses.options import CalibrationOptions
from scipy import special, stats
from sklearn import metrics as reference
from synthetic_predictions import make_study, make_table, with_answers

from oaplug.core import calibration
from oaplug.core.bootstrap import subject_weights
from oaplug.core.errors import PluginError
from oaplug.core.predictions import write_predictions
from oaplug.core.seeds import random_generator
from oaplug.plug.registry import parse_options
from oaplug.study.sources import FolderSource

SPEC = next(spec for spec in oaplug_analyses() if spec.name == "calibration")


def made(cases=200, grades=5, seed=0, sharpness=2.0):
    """Truths (N,) and probabilities (N,K) that are too sure of themselves by `sharpness`."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(cases, grades))
    honest = special.softmax(logits, axis=1)
    truth = (rng.random((cases, 1)) > honest.cumsum(axis=1)).sum(axis=1).clip(max=grades - 1)
    return truth, special.softmax(sharpness * logits, axis=1)


def error_by_loop(scores, hits, groups):
    """The calibration error of groups of cases, one by one."""
    total = 0.0
    for group in groups:
        if len(group):
            total += len(group) * abs(np.mean([hits[i] for i in group]) - np.mean([scores[i] for i in group]))
    return total / len(scores)


@pytest.mark.parametrize("count", [1, 10, 15])
def test_the_calibration_error_is_that_of_a_plain_loop_over_bins(count):
    truth, table = made()
    scores, hits = calibration.scores_and_hits(truth, table, table.argmax(axis=1))
    found = calibration.calibration_error(scores, hits, calibration.equal_width(scores, count=count))
    groups = [[i for i, s in enumerate(scores) if b <= s * count < b + 1] for b in range(count)]
    assert found == pytest.approx(error_by_loop(scores, hits, groups), abs=1e-12)


@pytest.mark.parametrize("count", [3, 15])
def test_the_calibration_error_of_equal_mass_is_that_of_sorted_cases_dealt_into_bins(count):
    truth, table = made(cases=103)
    scores, hits = calibration.scores_and_hits(truth, table, table.argmax(axis=1))
    found = calibration.calibration_error(scores, hits, calibration.equal_mass(scores, count=count))
    groups = np.array_split(np.argsort(scores), count)
    assert found == pytest.approx(error_by_loop(scores, hits, groups), abs=1e-12)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.integers(1, 20))
def test_every_score_lies_in_exactly_one_bin_between_its_edges(scores, count):
    for bins in (
        calibration.equal_width(scores, count=count),
        calibration.equal_mass(scores, count=count),
    ):
        assert (bins.members().sum(axis=1) == 1).all()
        low, high = bins.edges[bins.place], bins.edges[bins.place + 1]
        assert ((low <= scores) & ((scores < high) | (high == 1))).all()


def test_equal_scores_share_a_bin_of_equal_mass():
    bins = calibration.equal_mass([0.2] * 30 + [0.7] * 3, count=15)
    assert np.unique(bins.place).size == 2
    assert (bins.place[:30] == bins.place[0]).all()


def test_bins_of_a_diagram_hold_what_scipy_puts_into_them():
    scores = np.r_[np.random.default_rng(0).random(300), 0.0, 1.0, 1.0]
    found = calibration.equal_width(scores, count=15).members().sum(axis=0)
    expected = stats.binned_statistic(scores, scores, "count", bins=15, range=(0, 1)).statistic
    assert found.tolist() == expected.tolist()


def test_of_two_grades_the_positive_probability_is_held_to_its_word():
    scores, hits = calibration.scores_and_hits([0, 1, 0], [[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]], [0, 0, 1])
    assert scores.tolist() == [0.1, 0.4, 0.8]
    assert hits.tolist() == [False, True, False]


def test_of_more_grades_the_probability_of_the_predicted_one_is():
    scores, hits = calibration.scores_and_hits([2, 0], [[0.1, 0.2, 0.7], [0.3, 0.5, 0.2]], [2, 1])
    assert scores.tolist() == [0.7, 0.5]
    assert hits.tolist() == [True, False]


@pytest.mark.parametrize("grades", [2, 5])
def test_brier_score_and_log_loss_are_scikit_learns(grades):
    truth, table = made(grades=grades)
    brier = calibration.mean(calibration.brier_scores(truth, table))
    score = table[:, 1] if grades == 2 else table
    labels = list(range(grades))
    expected = reference.brier_score_loss(truth, score, labels=labels, scale_by_half=grades == 2)
    assert brier == pytest.approx(expected, abs=1e-12)
    losses = calibration.mean(calibration.log_losses(truth, table))
    assert losses == pytest.approx(reference.log_loss(truth, table, labels=labels), abs=1e-12)


def test_a_probability_of_zero_costs_a_finite_log_loss_as_in_scikit_learn():
    truth, table = np.array([0, 1]), np.array([[0.0, 1.0], [0.0, 1.0]])
    losses = calibration.mean(calibration.log_losses(truth, table))
    assert losses == pytest.approx(reference.log_loss(truth, table), rel=1e-6)


@pytest.mark.parametrize("grades", [2, 4])
def test_weights_count_cases_as_often_as_they_were_drawn(grades):
    truth, table = made(cases=40, grades=grades)
    weights = np.random.default_rng(1).integers(0, 3, size=(6, 40))
    scores, hits = calibration.scores_and_hits(truth, table, table.argmax(axis=1))
    bins = calibration.equal_width(scores, count=7)
    errors = calibration.calibration_error(scores, hits, bins, weights=weights)
    parts = calibration.brier_parts(truth, table, count=7, weights=weights)
    for row, weight in enumerate(weights):
        drawn = np.repeat(np.arange(40), weight)
        again = calibration.equal_width(scores[drawn], count=7)
        assert errors[row] == pytest.approx(
            calibration.calibration_error(scores[drawn], hits[drawn], again), abs=1e-12
        )
        for name, value in calibration.brier_parts(truth[drawn], table[drawn], count=7).items():
            assert parts[name][row] == pytest.approx(value, abs=1e-12)


def test_parts_of_the_brier_score_are_murphys_sums():
    truth, table = made(grades=2, cases=150)
    score, base, count = table[:, 1], truth.mean(), 10
    place = np.minimum((score * count).astype(int), count - 1)
    reliability = resolution = 0.0
    for b in set(place):
        inside = place == b
        share = inside.sum() / len(truth)
        reliability += share * (score[inside].mean() - truth[inside].mean()) ** 2
        resolution += share * (truth[inside].mean() - base) ** 2
    found = calibration.brier_parts(truth, table, count=count)
    assert found["reliability"] == pytest.approx(reliability, abs=1e-12)
    assert found["resolution"] == pytest.approx(resolution, abs=1e-12)
    assert found["uncertainty"] == pytest.approx(base * (1 - base), abs=1e-12)
    whole = found["reliability"] - found["resolution"] + found["uncertainty"] + found["within"]
    assert whole == pytest.approx(reference.brier_score_loss(truth, score), abs=1e-12)


def test_where_all_cases_of_a_bin_share_one_probability_bins_hide_nothing():
    rng = np.random.default_rng(0)
    score = rng.choice([0.05, 0.35, 0.75], size=120)
    truth = (rng.random(120) < 0.5).astype(int)
    found = calibration.brier_parts(truth, np.c_[1 - score, score], count=10)
    assert found["within"] == pytest.approx(0, abs=1e-12)


def test_a_temperature_divides_logits():
    logits = np.random.default_rng(0).normal(0, 3, size=(30, 5))
    found = calibration.with_temperature(special.softmax(logits, axis=1), 2.5)
    assert found == pytest.approx(special.softmax(logits / 2.5, axis=1), abs=1e-12)


@pytest.mark.parametrize("sharpness", [0.5, 3.0])
def test_the_fitted_temperature_is_that_by_which_logits_were_sharpened(sharpness):
    truth, table = made(cases=20_000, sharpness=sharpness)
    assert calibration.fit_temperature(truth, table) == pytest.approx(sharpness, rel=0.04)


def test_the_fitted_temperature_has_the_lowest_log_loss_of_all():
    truth, table = made(cases=80, sharpness=4.0)
    fitted = calibration.fit_temperature(truth, table)
    tried = fitted * np.array([0.9, 0.99, 1.0, 1.01, 1.1])
    logarithms = np.log(table)
    losses = [reference.log_loss(truth, special.softmax(logarithms / t, axis=1)) for t in tried]
    assert np.argmin(losses) == 2


def test_a_temperature_keeps_which_grade_is_the_most_probable():
    _, table = made()
    scaled = calibration.with_temperature(table, 7.0)
    assert (scaled.argmax(axis=1) == table.argmax(axis=1)).all()


def test_ninety_five_in_a_hundred_calibrated_models_lie_below_the_limit_that_chance_gives():
    rng = np.random.default_rng(0)
    below = 0
    for trial in range(200):
        scores = rng.random(60)
        hits = rng.random(60) < scores
        bins = calibration.equal_width(scores, count=15)
        drawn = calibration.calibrated_hits(scores, draws=400, rng=random_generator(trial, "test"))
        limit = np.quantile(calibration.calibrated_errors(scores, bins, drawn), 0.95)
        below += calibration.calibration_error(scores, hits, bins) <= limit
    assert 180 <= below <= 199


@dataclass(frozen=True)
class Validated:
    """A model whose folder holds predictions of validation cases."""

    tables: dict = field(default_factory=dict)

    def validation(self):
        return self.tables

    def lacks(self, need):
        return f"no {need}"


def study_of(test, validation, **settings):
    """A study of one model `m`, with its validation tables by fold."""
    study = make_study({"m": test}, **settings)
    return replace(study, models=(replace(study.models[0], source=Validated(validation)),))


def renamed(table, prefix, **changes):
    """The same predictions for cases of other subjects."""
    return replace(
        table,
        case_ids=tuple(prefix + name for name in table.case_ids),
        subject_ids=tuple(prefix + name for name in table.subject_ids),
        **changes,
    )


def measure(study, **options):
    return SPEC.build(CalibrationOptions(**options)).measure(study)


def run(study, folder, **options):
    return SPEC.build(CalibrationOptions(**options)).run(study, folder)


def test_headline_numbers_and_intervals_are_those_of_redrawn_subjects():
    study = make_study({"m": make_table()}, resamples=60)
    numbers = {key: value for result in measure(study) for key, value in numbers_of(result).items()}
    answers = study.models[0].predictions.targets["oa"]
    (weights,) = subject_weights(study.subject_ids, resamples=60, seed=0)
    scores = [
        reference.brier_score_loss(answers.truth[rows], answers.probabilities[rows, 1], labels=[0, 1])
        for rows in [np.repeat(np.arange(len(row)), row.astype(int)) for row in weights]
    ]
    expected = reference.brier_score_loss(answers.truth, answers.probabilities[:, 1])
    assert numbers["m.oa.brier"] == pytest.approx(expected)
    found = [numbers[f"m.oa.brier.{end}"] for end in ("low", "high")]
    assert found == pytest.approx(list(np.percentile(scores, [2.5, 97.5])), abs=1e-12)


def test_the_temperature_is_fitted_to_validation_cases_and_changes_the_test_cases():
    validation = renamed(make_table(noise_std=2.0, seed=3, subjects=50), "val_")
    (kl, _) = measure(study_of(make_table(), {"0": validation}))
    answers = validation.targets["kl"]
    expected = calibration.fit_temperature(answers.truth, answers.probabilities)
    (one,) = kl.models
    assert one.temperature.value == pytest.approx(expected)
    assert (one.temperature.cases, one.temperature.folds) == (100, ("0",))
    assert one.scaled.probabilities == pytest.approx(
        calibration.with_temperature(one.predictions.probabilities, expected)
    )
    assert (one.scaled.predicted == one.predictions.predicted).all()
    assert one.scaled_estimates["log_loss"].value == pytest.approx(
        reference.log_loss(one.scaled.truth, one.scaled.probabilities, labels=range(5))
    )


def test_other_truths_of_the_test_cases_leave_the_temperature_as_it_is():
    validation, test = renamed(make_table(noise_std=2.0, subjects=50), "val_"), make_table()
    turned = with_answers(test, "kl", truth=4 - test.targets["kl"].truth)
    (first, _), (second, _) = (measure(study_of(table, {"0": validation})) for table in (test, turned))
    assert first.models[0].temperature == second.models[0].temperature
    assert first.models[0].scaled_estimates["log_loss"].value != pytest.approx(
        second.models[0].scaled_estimates["log_loss"].value
    )


def test_cases_of_analysed_subjects_are_left_out_of_the_fit():
    test = make_table()
    others = renamed(make_table(noise_std=2.0, subjects=20), "val_")
    both = replace(
        others,
        case_ids=test.case_ids + others.case_ids,
        subject_ids=test.subject_ids + others.subject_ids,
        folds=test.folds + others.folds,
        targets={
            name: replace(
                p,
                truth=np.r_[test.targets[name].truth, p.truth],
                predicted=np.r_[test.targets[name].predicted, p.predicted],
                probabilities=np.r_[test.targets[name].probabilities, p.probabilities],
            )
            for name, p in others.targets.items()
        },
    )
    (mixed, _), (clean, _) = (measure(study_of(test, {"0": table})) for table in (both, others))
    assert mixed.models[0].temperature == clean.models[0].temperature
    (alone, _) = measure(study_of(test, {"0": test}))
    assert alone.models[0].temperature.value is None
    assert "0 validation cases of other subjects" in alone.models[0].temperature.reason


def test_folds_that_were_averaged_give_one_temperature_for_all_of_their_cases():
    test = make_table()
    test = replace(test, folds=("0+1",) * len(test.case_ids))
    parts = {str(f): renamed(make_table(seed=f, noise_std=2), f"val{f}_", folds=("f",) * 60) for f in (0, 1)}
    (kl, _) = measure(study_of(test, parts))
    pooled = [np.concatenate([getattr(t.targets["kl"], k) for t in parts.values()]) for k in
              ("truth", "probabilities")]  # fmt: skip
    assert kl.models[0].temperature.value == pytest.approx(calibration.fit_temperature(*pooled))
    assert kl.models[0].temperature.cases == 120
    (lacking, _) = measure(study_of(test, {"0": parts["0"]}))
    assert "fold_1/validation/predictions.csv" in lacking.models[0].temperature.reason


@pytest.mark.parametrize(
    ("folds", "reason"),
    [("all", "has no validation cases"), ("0", "fold_0/validation"), ("", "does not say which folds")],
)
def test_without_validation_cases_nothing_is_scaled_and_a_reason_given(folds, reason):
    table = make_table()
    for result in measure(make_study({"m": replace(table, folds=(folds,) * len(table.case_ids))})):
        assert reason in result.models[0].temperature.reason
        assert result.models[0].scaled is None


def test_the_summary_says_for_which_models_there_is_no_temperature(tmp_path):
    table = replace(make_table(), targets={"oa": make_table().targets["oa"]})
    findings = run(make_study({"one": table, "two": table}), tmp_path)
    assert findings.summary[-1].startswith("oa: no temperature for one, two: the model's folder has no")
    assert [table.name for table in findings.tables] == ["calibration_oa", "brier_oa"]


def test_validation_tables_are_read_from_the_folds_of_a_model_folder(tmp_path):
    table = make_table()
    write_predictions(tmp_path / "fold_1" / "validation", table)
    source = FolderSource(table=tmp_path / "predictions.csv", folder=tmp_path, folds=("0", "1"))
    found = source.validation()
    assert list(found) == ["1"]
    assert found["1"].case_ids == table.case_ids
    assert FolderSource(table=tmp_path / "predictions.csv", folder=None, folds=("1",)).validation() == {}


def test_tables_figures_and_their_data_are_written(tmp_path):
    validation = {"0": renamed(make_table(noise_std=2.0, seed=3), "val_")}
    findings = run(study_of(make_table(), validation), tmp_path, bins=10)
    kinds = ("calibration", "brier", "temperature")
    assert [t.name for t in findings.tables] == [f"{kind}_{t}" for t in ("kl", "oa") for kind in kinds]
    assert [f.name for f in findings.figures] == ["reliability_kl", "reliability_oa"]
    for figure in findings.figures:
        assert (tmp_path / figure.image).read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "reliability_oa.csv").open() as file:
        rows = list(csv.DictReader(file))
    before = [row for row in rows if row["probabilities"] == "as predicted"]
    assert len(before) == 10
    assert len(rows) == 20
    assert sum(int(row["n"]) for row in before) == 60
    gap = sum(
        int(row["n"]) * abs(float(row["frequency"]) - float(row["mean_probability"]))
        for row in before
        if row["frequency"]
    )
    assert gap / 60 == pytest.approx(findings.numbers["m.oa.ece"], abs=1e-12)


def test_a_study_without_any_truth_says_so_instead_of_failing(tmp_path):
    findings = run(make_study({"m": make_table(subjects=3, unknown=6)}), tmp_path)
    assert findings.summary == tuple(
        f"{name}: no case has a known truth, so nothing could be measured." for name in ("kl", "oa")
    )
    assert not findings.tables


@pytest.mark.parametrize("bins", [1, 101])
def test_a_number_of_bins_that_makes_no_sense_is_refused(bins):
    with pytest.raises(PluginError, match="between 2 and 100"):
        parse_options(SPEC, {"bins": bins})
