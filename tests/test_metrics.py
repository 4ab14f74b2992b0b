"""oaplug.core.metrics against scikit-learn; resample weights against cases written out that often."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from oaplug.core import metrics

pytestmark = [
    pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true:UserWarning"),
    pytest.mark.filterwarnings("ignore:A single label was found:UserWarning"),
]


@st.composite
def gradings(draw):
    """Truth, prediction, tied probabilities and how often each case was drawn (at least one is)."""
    grades = draw(st.integers(2, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    cases = draw(st.integers(2, 40))
    table = np.round(rng.dirichlet(np.ones(grades), cases), draw(st.sampled_from([1, 2, 9])))
    weights = rng.integers(0, 4, cases)
    weights[0] += 1
    return rng.integers(0, grades, cases), rng.integers(0, grades, cases), table, weights


def written_out(grading):
    """The same cases, each as often as its weight says."""
    truth, predicted, table, weights = grading
    return np.repeat(truth, weights), np.repeat(predicted, weights), np.repeat(table, weights, axis=0)


def weighted_matrix(grading):
    truth, predicted, table, weights = grading
    return metrics.confusion(truth, predicted, grades=table.shape[1], weights=weights)


def same(ours, theirs):
    return np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


@given(gradings())
@settings(deadline=None)
def test_weighted_confusion_counts_cases_as_often_as_they_were_drawn(grading):
    truth, predicted, table = written_out(grading)
    labels = range(table.shape[1])
    same(weighted_matrix(grading), reference.confusion_matrix(truth, predicted, labels=labels))


@given(gradings())
@settings(deadline=None)
def test_accuracy_balanced_accuracy_and_mean_absolute_error_are_scikit_learns(grading):
    truth, predicted, _ = written_out(grading)
    matrix = weighted_matrix(grading)
    same(metrics.accuracy(matrix), reference.accuracy_score(truth, predicted))
    same(metrics.mean_absolute_error(matrix), reference.mean_absolute_error(truth, predicted))
    same(metrics.balanced_accuracy(matrix), reference.balanced_accuracy_score(truth, predicted))


@given(gradings())
@settings(deadline=None)
def test_sensitivity_precision_and_f1_by_grade_are_scikit_learns(grading):
    truth, predicted, table = written_out(grading)
    matrix = weighted_matrix(grading)
    precision, recall, f1, _ = reference.precision_recall_fscore_support(
        truth, predicted, labels=range(table.shape[1]), zero_division=np.nan
    )
    same(metrics.recall_by_grade(matrix), recall)
    same(metrics.precision_by_grade(matrix), precision)
    same(metrics.f1_by_grade(matrix), f1)
    same(metrics.f1_macro(matrix), reference.f1_score(truth, predicted, average="macro"))


@given(gradings())
@settings(deadline=None)
def test_quadratic_kappa_is_scikit_learns(grading):
    truth, predicted, table = written_out(grading)
    assume(len(set(truth) | set(predicted)) > 1)
    expected = reference.cohen_kappa_score(
        truth, predicted, labels=list(range(table.shape[1])), weights="quadratic"
    )
    same(metrics.quadratic_kappa(weighted_matrix(grading)), expected)


def test_quadratic_kappa_is_not_defined_where_chance_agrees_perfectly():
    assert np.isnan(metrics.quadratic_kappa(metrics.confusion([2, 2], [2, 2], grades=5)))


@given(gradings())
@settings(deadline=None)
def test_auc_with_ties_is_scikit_learns(grading):
    truth, _, table = written_out(grading)
    assume(0 < (truth == 1).sum() < truth.size)
    ours = metrics.auc(grading[0] == 1, grading[2][:, 1], weights=grading[3])
    same(ours, reference.roc_auc_score(truth == 1, table[:, 1]))


@given(gradings(), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_auc_takes_fractional_weights_like_scikit_learn(grading, seed):
    truth, _, table, _ = grading
    assume(0 < (truth == 1).sum() < truth.size)
    weights = np.random.default_rng(seed).uniform(0.1, 2, truth.size)
    expected = reference.roc_auc_score(truth == 1, table[:, 1], sample_weight=weights)
    np.testing.assert_allclose(metrics.auc(truth == 1, table[:, 1], weights=weights), expected, rtol=1e-9)


@given(gradings())
@settings(deadline=None)
def test_macro_auc_is_scikit_learns_where_every_grade_occurs(grading):
    truth, _, _ = written_out(grading)
    grades = grading[2].shape[1]
    assume(len(set(truth)) == grades)
    table = grading[2] + 1e-3
    table /= table.sum(axis=1, keepdims=True)
    repeated = np.repeat(table, grading[3], axis=0)
    scores = repeated if grades > 2 else repeated[:, 1]
    expected = reference.roc_auc_score(truth, scores, multi_class="ovr", average="macro")
    same(metrics.auc_macro(grading[0], table, weights=grading[3]), expected)


def test_macro_auc_leaves_out_grades_that_do_not_occur():
    truth, table = np.array([0, 0, 1, 1]), np.array([[8, 1, 1], [2, 7, 1], [3, 6, 1], [1, 8, 1]]) / 10
    expected = np.mean([reference.roc_auc_score(truth == grade, table[:, grade]) for grade in (0, 1)])
    same(metrics.auc_macro(truth, table), expected)


def test_auc_of_one_class_or_of_no_case_is_not_defined():
    assert np.isnan(metrics.auc([True, True], [0.2, 0.8]))
    assert np.isnan(metrics.auc([], []))
    assert np.isnan(metrics.auc(np.zeros(0, bool), np.zeros(0), weights=np.zeros((3, 0)))).all()


def test_infinite_scores_tie_like_finite_ones():
    positive, score = [True, False, True, False], [np.inf, np.inf, 1.0, -np.inf]
    finite = [9.0, 9.0, 1.0, -9.0]
    same(metrics.auc(positive, score), reference.roc_auc_score(positive, finite))
    expected = reference.roc_curve(positive, finite, drop_intermediate=False)
    same(metrics.roc_curve(positive, score), expected[:2])


@given(gradings())
@settings(deadline=None)
def test_roc_curves_are_scikit_learns_and_enclose_the_auc(grading):
    truth, _, table, _ = grading
    assume(0 < (truth == 1).sum() < truth.size)
    false, true = metrics.roc_curve(truth == 1, table[:, 1])
    expected = reference.roc_curve(truth == 1, table[:, 1], drop_intermediate=False)
    same((false, true), expected[:2])
    same(metrics.auc(truth == 1, table[:, 1]), reference.auc(false, true))


@given(gradings(), st.booleans())
@settings(max_examples=50, deadline=None)
def test_every_row_of_weights_is_measured_as_if_it_were_alone(grading, ordered):
    truth, predicted, table, weights = grading
    rows = np.stack([weights, np.ones_like(weights), weights[::-1]])
    together = metrics.target_metrics(truth, table, predicted, ordered=ordered, weights=rows)
    for index, row in enumerate(rows):
        alone = metrics.target_metrics(truth, table, predicted, ordered=ordered, weights=row)
        assert alone.keys() == together.keys()
        for name, value in alone.items():
            np.testing.assert_array_equal(together[name][index], value)


def test_kappa_and_mean_absolute_error_are_for_ordered_targets_of_more_than_two_grades():
    three, two = np.eye(3)[[0, 1, 2]], np.eye(2)[[0, 1]]
    assert {"qwk", "mae"} <= metrics.target_metrics([0, 1, 2], three, [0, 1, 2], ordered=True).keys()
    assert not {"qwk", "mae"} & metrics.target_metrics([0, 1, 2], three, [0, 1, 2], ordered=False).keys()
    assert not {"qwk", "mae"} & metrics.target_metrics([0, 1], two, [0, 1], ordered=True).keys()


def test_f1_of_two_grades_is_that_of_the_positive_one():
    truth, predicted = np.array([0, 0, 1, 1, 1]), np.array([0, 1, 1, 1, 0])
    values = metrics.target_metrics(truth, np.eye(2)[predicted], predicted, ordered=False)
    same(values["f1"], reference.f1_score(truth, predicted))


@pytest.mark.parametrize(("truth", "predicted"), [([-1, 0], [0, 0]), ([0, 1], [0, 2]), ([0, 1], [-1, 0])])
def test_indices_that_are_no_grade_are_refused_instead_of_counted_elsewhere(truth, predicted):
    with pytest.raises(ValueError, match="grade indices"):
        metrics.confusion(truth, predicted, grades=2)


def test_predicted_grades_call_a_tie_positive_and_take_the_most_probable_grade():
    assert metrics.predicted_grades([[0.5, 0.5], [0.51, 0.49]]).tolist() == [1, 0]
    assert metrics.predicted_grades([[0.2, 0.5, 0.3], [0.4, 0.2, 0.4]]).tolist() == [1, 0]
