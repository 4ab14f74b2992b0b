"""The hierarchy analysis: whether coarse answers follow from fine ones, in numbers of scikit-learn's."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from oaplug_analyses import oaplug_analyses
from oaplug_analyses.hierarchy import numbers_of
from oaplug_analyses.options import HierarchyOptions
from sklearn import metrics as reference
from synthetic_predictions import make_study, make_table, with_answers

from oaplug.core.bootstrap import subject_weights
from oaplug.core.target import Target
from oaplug.study.gather import open_study

PUBLISHED = Path(__file__).parents[2] / "shared" / "data" / "published_predictions"
SPEC = next(spec for spec in oaplug_analyses() if spec.name == "hierarchy")


def two_heads(*, seed=5, noise_std=1.5, **settings):
    """Predictions whose oa is of another head than kl."""
    table, other = make_table(**settings), make_table(seed=seed, noise_std=noise_std, **settings)
    answers = other.targets["oa"]
    return with_answers(table, "oa", predicted=answers.predicted, probabilities=answers.probabilities)


def run(study, folder):
    return SPEC.build(HierarchyOptions()).run(study, folder)


def numbers(study):
    results = SPEC.build(HierarchyOptions()).measure(study)
    return {key: value for result in results for key, value in numbers_of(result).items()}


def rows_of(findings, name):
    table = next(table for table in findings.tables if table.name == name)
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def test_consistency_kappa_and_areas_are_scikit_learns():
    table = two_heads()
    kl, oa = table.targets["kl"], table.targets["oa"]
    found = numbers(make_study({"m": table}))
    implied, summed = kl.predicted >= 2, kl.probabilities[:, 2:].sum(axis=1)
    own = oa.probabilities[:, 1]
    expected = {
        "consistency": reference.accuracy_score(implied, oa.predicted),
        "kappa": reference.cohen_kappa_score(implied, oa.predicted),
        "auc_head": reference.roc_auc_score(oa.truth, own),
        "auc_sum": reference.roc_auc_score(oa.truth, summed),
        "score_gap": np.abs(own - summed).mean(),
    }
    expected["auc_difference"] = expected["auc_head"] - expected["auc_sum"]
    assert 0.5 < expected["consistency"] < 1
    for name, value in expected.items():
        assert found[f"m.oa.{name}"] == pytest.approx(value, abs=1e-12)


def test_intervals_are_percentiles_over_redrawn_subjects():
    table = two_heads()
    study = make_study({"m": table}, resamples=80)
    agree = (table.targets["kl"].predicted >= 2) == table.targets["oa"].predicted
    (weights,) = subject_weights(study.subject_ids, resamples=80, seed=0)
    shares = [agree[np.repeat(np.arange(len(row)), row.astype(int))].mean() for row in weights]
    found = [numbers(study)[f"m.oa.consistency.{end}"] for end in ("low", "high")]
    assert found == pytest.approx(list(np.percentile(shares, [2.5, 97.5])), abs=1e-12)


def test_grades_of_the_table_hold_consistency_and_calls_of_the_cases_truly_of_them(tmp_path):
    table = two_heads()
    findings = run(make_study({"m": table}), tmp_path)
    kl, oa = table.targets["kl"], table.targets["oa"]
    for grade, row in enumerate(rows_of(findings, "hierarchy_grades_oa")):
        here = kl.truth == grade
        head, implied = oa.predicted[here] == 1, kl.predicted[here] >= 2
        assert row["true kl"] == str(grade)
        assert row["n"] == here.sum()
        assert row["consistency"] == pytest.approx(reference.accuracy_score(implied, head))
        matrix = reference.confusion_matrix(head, implied, labels=[True, False])
        counts = [row[k] for k in ("both oa", "only the head", "only the grades", "neither")]
        assert counts == matrix.ravel().tolist()


def test_consistency_counts_all_cases_and_areas_only_those_of_known_truth():
    table = two_heads()
    hidden = np.arange(60) % 3 == 0
    truths = {n: np.where(hidden, -1, table.targets[n].truth) for n in ("kl", "oa")}
    partly = with_answers(with_answers(table, "kl", truth=truths["kl"]), "oa", truth=truths["oa"])
    whole, found = numbers(make_study({"m": table})), numbers(make_study({"m": partly}))
    assert found["m.oa.consistency"] == whole["m.oa.consistency"]
    oa = table.targets["oa"]
    expected = reference.roc_auc_score(oa.truth[~hidden], oa.probabilities[~hidden, 1])
    assert found["m.oa.auc_head"] == pytest.approx(expected)


def test_an_answer_that_is_the_sum_over_grades_is_said_to_be_and_has_the_same_area(tmp_path):
    table = make_table()
    oa = table.targets["oa"]
    rounded = oa.probabilities.astype(np.float32).astype(np.float64)
    study = make_study({"m": with_answers(table, "oa", probabilities=rounded)})
    findings = run(study, tmp_path)
    assert "Its oa is the sum over grades of kl" in findings.summary[0]
    assert findings.numbers["m.oa.auc_difference"] == 0


def test_models_that_answer_only_one_of_both_are_named_and_left_out(tmp_path):
    table = two_heads()
    alone = replace(table, targets={"oa": table.targets["oa"]})
    findings = run(make_study({"dual": table, "single_oa": alone}), tmp_path)
    assert {row["model"] for row in rows_of(findings, "hierarchy_oa")} == {"dual"}
    assert findings.summary[-1].startswith("single_oa answers only one of kl and oa")


@pytest.mark.parametrize("names", [("oa",), ("kl",)])
def test_without_a_model_that_answers_both_it_says_that_there_is_nothing_to_compare(tmp_path, names):
    table = make_table()
    findings = run(make_study({"m": replace(table, targets={n: table.targets[n] for n in names})}), tmp_path)
    assert len(findings.summary) == 1
    assert not findings.tables


def test_a_binary_data_set_has_no_hierarchy(tmp_path):
    table = make_table()
    plain = Target(name="oa", kind="binary", grades=(0, 1))
    table = replace(table, targets={"oa": replace(table.targets["oa"], target=plain)})
    findings = run(make_study({"m": table}), tmp_path)
    assert findings.summary == ("No target follows from another, so there is no hierarchy to look at.",)


def test_figures_come_with_a_row_for_every_case_and_every_grade(tmp_path):
    study = make_study({"one": two_heads(), "two": two_heads(seed=7)})
    findings = run(study, tmp_path)
    assert [f.name for f in findings.figures] == ["hierarchy_scores_oa", "hierarchy_grades_oa"]
    for figure in findings.figures:
        assert (tmp_path / figure.image).read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "hierarchy_scores_oa.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * len(study.case_ids)
    share = np.mean([int(row["agree"]) for row in rows if row["model"] == "two"])
    assert share == pytest.approx(findings.numbers["two.oa.consistency"])


@pytest.mark.skipif(
    not PUBLISHED.is_dir(), reason="the study's published predictions are not on this machine"
)
def test_the_consistency_that_the_study_published_comes_out():
    names = ("resnet3d", "m3t")
    study = open_study({n: PUBLISHED / f"{n}_dual_preds.csv" for n in names}, resamples=5, seed=0)
    found = numbers(study)
    assert [round(found[f"{name}.oa.consistency"], 3) for name in names] == [0.929, 0.990]
