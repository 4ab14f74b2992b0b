"""The classification analysis: its numbers, its intervals by subjects, and what it writes."""

from __future__ import annotations

import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from oaplug_analyses import oaplug_analyses
from oaplug_analyses.classification import headline_numbers
from oaplug_analyses.classification_roc import FALSE_RATES
from oaplug_analyses.options import ClassificationOptions
from sklearn import metrics as reference
from synthetic_predictions import KL, OA, make_study, make_table, with_answers

from oaplug.core.bootstrap import estimate, subject_weights
from oaplug.core.errors import PluginError
from oaplug.core.metrics import true_rates
from oaplug.core.predictions import PredictionTable, TargetPredictions
from oaplug.plug.registry import parse_options

PUBLISHED = Path(__file__).parents[2] / "shared" / "data" / "published_predictions"
SPEC = next(spec for spec in oaplug_analyses() if spec.name == "classification")


def run(study, folder, **options):
    return SPEC.build(ClassificationOptions(**options)).run(study, folder)


def numbers_of(study, **options):
    """Headline numbers, without drawing."""
    results = SPEC.build(ClassificationOptions(**options)).measure(study)
    return {key: value for result in results for key, value in headline_numbers(result).items()}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """Findings of two models on 60 knees of 30 subjects, and their folder."""
    folder = tmp_path_factory.mktemp("classification")
    study = make_study({"sharp": make_table(noise_std=0.6), "blurred": make_table(noise_std=1.6, seed=1)})
    return study, run(study, folder), folder


def rows_of(findings, name):
    table = next(table for table in findings.tables if table.name == name)
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def test_headline_numbers_are_scikit_learns(outcome):
    study, findings, _ = outcome
    for model in study.models:
        kl, oa = model.predictions.targets["kl"], model.predictions.targets["oa"]
        expected = {
            "kl.auc": reference.roc_auc_score(kl.truth, kl.probabilities, multi_class="ovr"),
            "kl.accuracy": reference.accuracy_score(kl.truth, kl.predicted),
            "kl.f1": reference.f1_score(kl.truth, kl.predicted, average="macro"),
            "kl.balanced_accuracy": reference.balanced_accuracy_score(kl.truth, kl.predicted),
            "kl.qwk": reference.cohen_kappa_score(kl.truth, kl.predicted, weights="quadratic"),
            "kl.mae": reference.mean_absolute_error(kl.truth, kl.predicted),
            "oa.auc": reference.roc_auc_score(oa.truth, oa.probabilities[:, 1]),
            "oa.f1": reference.f1_score(oa.truth, oa.predicted),
        }
        for name, value in expected.items():
            assert findings.numbers[f"{model.name}.{name}"] == pytest.approx(value, abs=1e-12)


def test_grade_tables_are_scikit_learns(outcome):
    study, findings, _ = outcome
    answers = study.models[1].predictions.targets["kl"]
    expected = reference.precision_recall_fscore_support(
        answers.truth, answers.predicted, labels=range(5), zero_division=np.nan
    )
    rows = [row for row in rows_of(findings, "grades_kl") if row["model"] == "blurred"]
    for key, values in zip(("precision", "sensitivity", "F1", "n"), expected, strict=True):
        assert [row[key] for row in rows] == pytest.approx(list(values), abs=1e-12)


def test_intervals_are_percentiles_of_metrics_of_redrawn_subjects(outcome):
    study, findings, _ = outcome
    answers = study.models[0].predictions.targets["kl"]
    (weights,) = subject_weights(study.subject_ids, resamples=study.resamples, seed=study.seed)
    drawn = [np.repeat(np.arange(len(row)), row.astype(int)) for row in weights]
    kappas = [
        reference.cohen_kappa_score(
            answers.truth[rows], answers.predicted[rows], labels=list(range(5)), weights="quadratic"
        )
        for rows in drawn
    ]
    found = [findings.numbers[f"sharp.kl.qwk.{end}"] for end in ("low", "high")]
    assert found == pytest.approx(list(np.percentile(kappas, [2.5, 97.5])), abs=1e-12)


def test_subjects_are_drawn_whole_and_as_many_as_there_are():
    subjects = ["b", "a", "b", "c", "a", "b"]
    (weights,) = subject_weights(subjects, resamples=200, seed=3)
    assert weights.shape == (200, 6)
    np.testing.assert_array_equal(weights[:, 0], weights[:, 2])
    np.testing.assert_array_equal(weights[:, 1], weights[:, 4])
    np.testing.assert_array_equal(weights[:, [0, 1, 3]].sum(axis=1), 3)
    assert weights[:, 0].mean() == pytest.approx(1, abs=0.2)


def test_draws_in_blocks_are_as_many_as_asked_and_repeatable(monkeypatch):
    monkeypatch.setattr("oaplug.core.bootstrap.CELLS_PER_BLOCK", 25)
    first = list(subject_weights(list("abcdef"), resamples=10, seed=1))
    again = list(subject_weights(list("abcdef"), resamples=10, seed=1))
    assert [len(block) for block in first] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate(first), np.concatenate(again))
    other = np.concatenate(list(subject_weights(list("abcdef"), resamples=10, seed=2)))
    assert (np.concatenate(first) != other).any()


def test_copies_of_the_same_knee_do_not_narrow_an_interval():
    once = make_table(subjects=25, visits=1)
    twice = PredictionTable(
        case_ids=tuple(f"{name}{copy}" for name in once.case_ids for copy in "ab"),
        subject_ids=tuple(np.repeat(once.subject_ids, 2)),
        folds=("0",) * 50,
        targets={
            name: TargetPredictions(
                target=p.target,
                truth=np.repeat(p.truth, 2),
                predicted=np.repeat(p.predicted, 2),
                probabilities=np.repeat(p.probabilities, 2, axis=0),
            )
            for name, p in once.targets.items()
        },
    )
    single, double = (numbers_of(make_study({"m": table})) for table in (once, twice))
    assert single.keys() == double.keys()
    assert [double[key] for key in single] == pytest.approx(list(single.values()), abs=1e-12)


def test_the_interval_of_a_mean_is_that_of_theory():
    values = np.random.default_rng(0).normal(size=400)
    found = estimate(
        lambda weights: {"mean": weights @ values / weights.sum(axis=1)},
        [str(i) for i in range(400)],
        resamples=4000,
        seed=0,
        confidence=0.9,
    )["mean"]
    half = 1.645 * values.std() / np.sqrt(400)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_resamples_that_hold_one_class_only_are_left_out_and_counted(tmp_path):
    table = make_table(subjects=8, visits=1)
    truth = np.array([1, 0, 0, 0, 0, 0, 0, 0])
    table = with_answers(replace(table, targets={"oa": table.targets["oa"]}), "oa", truth=truth)
    study = make_study({"m": table}, resamples=300)
    findings = run(study, tmp_path)
    (weights,) = subject_weights(study.subject_ids, resamples=300, seed=0)
    expected = int(((weights[:, 0] == 0) | (weights[:, 1:].sum(axis=1) == 0)).sum())
    assert 50 < expected < 150
    assert rows_of(findings, "metrics_oa")[0]["undefined resamples"] == expected
    with (tmp_path / "comparison_oa.csv").open() as file:
        undefined = {row["metric"]: int(row["undefined_resamples"]) for row in csv.DictReader(file)}
    assert undefined["auc"] == expected
    assert undefined["accuracy"] == 0


def test_models_are_resampled_alike_and_the_same_seed_gives_the_same_numbers():
    table = make_table()
    numbers = numbers_of(make_study({"one": table, "two": table}))
    for key, value in numbers.items():
        if key.startswith("one."):
            assert numbers["two." + key.removeprefix("one.")] == value
    assert numbers_of(make_study({"one": table, "two": table})) == numbers
    assert numbers_of(make_study({"one": table, "two": table}, seed=1)) != numbers


def test_cases_without_a_truth_are_left_out(tmp_path):
    whole, partly = make_table(), make_table(unknown=20)
    partly = replace(partly, targets={"kl": partly.targets["kl"]})
    findings = run(make_study({"m": partly}), tmp_path)
    answers = whole.targets["kl"]
    expected = reference.accuracy_score(answers.truth[20:], answers.predicted[20:])
    assert findings.numbers["m.kl.accuracy"] == pytest.approx(expected)
    assert rows_of(findings, "metrics_kl")[0]["n"] == 40


def test_a_study_without_any_truth_says_so_instead_of_failing(tmp_path):
    findings = run(make_study({"m": make_table(subjects=3, unknown=6)}), tmp_path)
    assert findings.summary == tuple(
        f"{name}: no case has a known truth, so nothing could be measured." for name in ("kl", "oa")
    )
    assert not findings.tables
    assert not findings.figures


def test_one_grade_only_leaves_values_undefined_and_draws_no_roc(tmp_path):
    table = make_table(subjects=6)
    table = with_answers(
        replace(table, targets={"oa": table.targets["oa"]}), "oa", truth=np.ones(12, dtype=int)
    )
    findings = run(make_study({"m": table}), tmp_path)
    assert findings.numbers["m.oa.auc"] is None
    assert findings.numbers["m.oa.accuracy"] is not None
    assert [figure.name for figure in findings.figures] == ["comparison_oa", "confusion_oa"]
    assert "not defined" in findings.summary[0]


def test_the_summary_names_the_best_model_and_the_next_with_numbers(outcome):
    study, findings, _ = outcome
    kappas = [findings.numbers[f"{model.name}.kl.qwk"] for model in study.models]
    assert kappas[0] > kappas[1]
    assert findings.summary[0].startswith(
        "kl, on 60 cases of 30 subjects: sharp has the highest quadratic weighted kappa, "
        f"{kappas[0]:.3f} (95% interval "
    )
    assert f"ahead of blurred with {kappas[1]:.3f} (" in findings.summary[0]


def test_models_that_tie_share_the_first_place(tmp_path):
    table = replace(make_table(), targets={"oa": make_table().targets["oa"]})
    findings = run(make_study({"one": table, "two": table}), tmp_path)
    assert "one and two share the highest AUC" in findings.summary[0]


def test_every_figure_is_a_png_with_its_data_beside_it(outcome):
    _, findings, folder = outcome
    kinds = ("comparison", "confusion", "roc")
    assert [f.name for f in findings.figures] == [f"{kind}_{t}" for t in ("kl", "oa") for kind in kinds]
    for figure in findings.figures:
        assert (folder / figure.image).read_bytes().startswith(b"\x89PNG")
        assert len((folder / figure.data).read_text().splitlines()) > 4
        assert figure.caption
    assert not list(folder.glob(".writing-*"))


def test_tables_are_written_as_csv_as_they_are_found(outcome):
    _, findings, folder = outcome
    for table in findings.tables:
        with (folder / table.data).open(newline="") as file:
            header, *rows = csv.reader(file)
        assert tuple(header) == table.columns
        assert rows == [["" if cell is None else str(cell) for cell in row] for row in table.rows]


def test_confusion_data_give_counts_and_percentages_of_the_true_grade(outcome):
    study, _, folder = outcome
    answers = study.models[1].predictions.targets["kl"]
    expected = reference.confusion_matrix(answers.truth, answers.predicted, labels=range(5))
    shares = reference.confusion_matrix(answers.truth, answers.predicted, labels=range(5), normalize="true")
    with (folder / "confusion_kl.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["model"] == "blurred"]
    assert [int(row["count"]) for row in rows] == expected.ravel().tolist()
    assert [float(row["row_percent"]) for row in rows] == pytest.approx(100 * shares.ravel())


def test_roc_data_enclose_the_area_that_is_reported(outcome):
    _, findings, folder = outcome
    with (folder / "roc_oa.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["model"] == "sharp"]
    area = reference.auc(
        [float(r["false_positive_rate"]) for r in rows], [float(r["true_positive_rate"]) for r in rows]
    )
    assert area == pytest.approx(findings.numbers["sharp.oa.auc"], abs=1e-12)


def test_true_rates_of_resamples_are_scikit_learns_curves():
    answers = make_table(noise_std=2.0).targets["oa"]
    positive, score = answers.truth == 1, np.round(answers.probabilities[:, 1], 1)
    weights = np.random.default_rng(0).integers(0, 3, size=(8, 60))
    found = true_rates(positive, score, FALSE_RATES, weights=weights)
    for row, weight in zip(found, weights, strict=True):
        drawn = np.repeat(np.arange(60), weight)
        false, true, _ = reference.roc_curve(positive[drawn], score[drawn], drop_intermediate=False)
        assert row == pytest.approx(np.interp(FALSE_RATES, false, true), abs=1e-12)


def test_resamples_of_one_class_have_no_true_rates():
    weights = np.array([[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0]])
    found = true_rates([True, True, False, False], [0.9, 0.2, 0.4, 0.1], FALSE_RATES, weights=weights)
    assert np.isnan(found[:2]).all()
    assert (found[2] == 1).all()


def test_bands_are_percentiles_of_the_curves_of_redrawn_subjects(outcome):
    study, _, folder = outcome
    answers = study.models[1].predictions.targets["kl"]
    positive, score = answers.truth == 3, answers.probabilities[:, 3]
    (weights,) = subject_weights(study.subject_ids, resamples=study.resamples, seed=study.seed)
    curves = []
    for row in weights:
        drawn = np.repeat(np.arange(len(row)), row.astype(int))
        false, true, _ = reference.roc_curve(positive[drawn], score[drawn], drop_intermediate=False)
        curves.append(np.interp(FALSE_RATES, false, true))
    with (folder / "roc_bands_kl.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["model"] == "blurred" and r["grade"] == "3"]
    assert [float(row["false_positive_rate"]) for row in rows] == FALSE_RATES.tolist()
    for column, percent in (("true_positive_low", 2.5), ("true_positive_high", 97.5)):
        expected = np.percentile(curves, percent, axis=0)
        assert [float(row[column]) for row in rows] == pytest.approx(expected.tolist(), abs=1e-12)


def test_the_caption_says_what_the_bands_are(outcome):
    _, findings, _ = outcome
    (caption,) = [figure.caption for figure in findings.figures if figure.name == "roc_oa"]
    assert "Shaded: pointwise 95% bands of the true positive rate from 50 resamples of subjects" in caption


def test_wider_confidence_gives_wider_intervals():
    study = make_study({"m": make_table()}, resamples=200)
    narrow, wide = (numbers_of(study, confidence=c) for c in (0.5, 0.99))
    assert wide["m.kl.qwk.low"] < narrow["m.kl.qwk.low"] < narrow["m.kl.qwk.high"] < wide["m.kl.qwk.high"]


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_a_confidence_that_is_no_fraction_is_refused(confidence):
    with pytest.raises(PluginError, match="between 0 and 1"):
        parse_options(SPEC, {"confidence": confidence})


def test_listing_the_analyses_imports_none_of_their_libraries():
    heavy = ["numpy", "torch", "matplotlib", "scipy", "pandas"]
    code = (
        "import sys, oaplug_analyses; assert oaplug_analyses.oaplug_analyses();"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.slow
def test_drawing_does_not_touch_the_global_state_of_pyplot(tmp_path):
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]);"
        "from synthetic_predictions import *; import oaplug_analyses;"
        "spec = oaplug_analyses.oaplug_analyses()[0];"
        "study = make_study({'m': make_table(subjects=5)}, resamples=5);"
        "spec.build(spec.options()).run(study, Path(sys.argv[2]));"
        "print('matplotlib.figure' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    )
    arguments = [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)]
    found = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "True False"


def published_table(name):
    with (PUBLISHED / f"{name}_preds.csv").open() as file:
        rows = list(csv.DictReader(file))

    def column(key):
        return np.array([float(row[key]) for row in rows])

    positive = column("prob_oa")
    kl, oa = np.stack([column(f"prob_kl_{g}") for g in range(5)], axis=1), np.c_[1 - positive, positive]
    ids = tuple(row["CMT_ID"] for row in rows)
    targets = {
        target.name: TargetPredictions(
            target=target,
            truth=column(f"label_{target.name}").astype(int),
            predicted=column(f"pred_{target.name}").astype(int),
            probabilities=table,
        )
        for target, table in ((KL, kl), (OA, oa))
    }
    return PredictionTable(case_ids=ids, subject_ids=ids, folds=("",) * len(ids), targets=targets)


@pytest.mark.skipif(
    not PUBLISHED.is_dir(), reason="the study's published predictions are not on this machine"
)
def test_the_published_numbers_of_the_study_come_out():
    names = {"resnet3d": "resnet3d_dual", "m3t": "m3t_dual"}
    study = make_study({name: published_table(file) for name, file in names.items()}, resamples=5)
    numbers = numbers_of(study)
    oa, kl = ("oa.auc", "oa.accuracy", "oa.f1"), ("kl.auc", "kl.accuracy", "kl.f1", "kl.qwk", "kl.mae")
    found = {name: [round(numbers[f"{name}.{key}"], 3) for key in (*oa, *kl)] for name in names}
    assert found["resnet3d"] == [0.866, 0.816, 0.873, 0.794, 0.582, 0.496, 0.718, 0.571]
    assert found["m3t"] == [0.917, 0.796, 0.848, 0.776, 0.459, 0.467, 0.736, 0.643]
