"""Tests, corrections and intervals against statsmodels, scipy and formulas written out one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as reference
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.multitest import multipletests

from oaplug.core import significance
from oaplug.core.bootstrap import left_out, redrawn, subject_counts, subject_weights
from oaplug.core.comparison import Sampled, bca_interval, difference, mean_of_runs, percentile_interval


def right_and_wrong(table):
    """Correctness of two classifiers whose 2 x 2 table is `table`."""
    cells = [(True, True), (True, False), (False, True), (False, False)]
    pairs = np.repeat(np.array(cells), np.ravel(table), axis=0)
    return pairs[:, 0], pairs[:, 1]


@given(st.lists(st.integers(0, 40), min_size=4, max_size=4))
def test_mcnemar_is_statsmodels_on_both_sides_of_25_discordant_pairs(cells):
    table = np.reshape(cells, (2, 2))
    found = significance.mcnemar(*right_and_wrong(table))
    assert np.array_equal(found.table, table)
    exact = table[0, 1] + table[1, 0] < 25
    assert found.test == ("mcnemar_exact" if exact else "mcnemar_chi2+continuity")
    assume(exact or table[0, 1] != table[1, 0])
    expected = reference_mcnemar(table, exact=exact, correction=True).pvalue if table.any() else 1.0
    assert found.p_value == pytest.approx(min(expected, 1.0), abs=1e-12)


def test_mcnemar_does_not_correct_a_balanced_table_past_no_difference():
    assert significance.mcnemar(*right_and_wrong([[3, 20], [20, 1]])).p_value == 1.0


@pytest.mark.parametrize("seed", range(8))
def test_holm_and_benjamini_hochberg_are_statsmodels(seed):
    rng = np.random.default_rng(seed)
    p_values = np.round(rng.random(rng.integers(1, 31)) ** 3, 2 + seed % 3)
    for ours, method in ((significance.holm, "holm"), (significance.benjamini_hochberg, "fdr_bh")):
        expected = multipletests(p_values, method=method)[1]
        np.testing.assert_allclose(ours(p_values), expected, rtol=1e-12, atol=1e-15)


def test_a_test_without_a_p_value_does_not_count_as_a_member_of_the_family():
    for correct in (significance.holm, significance.benjamini_hochberg):
        with_gap = correct([0.01, np.nan, 0.04])
        assert np.isnan(with_gap[1])
        np.testing.assert_array_equal(with_gap[[0, 2]], correct([0.01, 0.04]))


def kernel(positive, score):
    """Whether each positive (rows) has a higher score than each negative (columns), ties half."""
    above, below = score[positive][:, None], score[~positive][None, :]
    return (above > below) + 0.5 * (above == below)


def naive_delong(positive, first, second):
    """Difference and its variance from every pair of a positive and a negative (DeLong et al. 1988)."""
    pairs = [kernel(positive, score) for score in (first, second)]
    by_positive = np.cov([k.mean(axis=1) for k in pairs])
    by_negative = np.cov([k.mean(axis=0) for k in pairs])
    contrast = np.array([-1, 1])
    variance = contrast @ (by_positive / positive.sum() + by_negative / (~positive).sum()) @ contrast
    return pairs[1].mean() - pairs[0].mean(), variance


@st.composite
def scored(draw):
    """Two tied scores of the same cases, at least two of each class."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    cases = draw(st.integers(4, 60))
    positive = rng.random(cases) < 0.5
    positive[:2], positive[2:4] = True, False
    first, second = np.round(rng.normal(positive, 1, (2, cases)), draw(st.sampled_from([0, 1, 6])))
    return positive, first, second


@given(scored())
def test_delong_is_the_one_written_over_all_pairs(case):
    expected, variance = naive_delong(*case)
    found = significance.delong(*case)
    assert found.difference == pytest.approx(expected, abs=1e-12)
    assert found.standard_error == pytest.approx(np.sqrt(variance), abs=1e-9)
    if variance > 1e-9:
        assert found.p_value == pytest.approx(2 * stats.norm.sf(abs(expected) / np.sqrt(variance)), abs=1e-9)
    positive, first, second = case
    areas = [reference.roc_auc_score(positive, score) for score in (first, second)]
    assert found.difference == pytest.approx(areas[1] - areas[0], abs=1e-12)


@given(scored())
def test_exchanging_the_scores_of_delong_negates_the_difference_and_keeps_p(case):
    positive, first, second = case
    there, back = significance.delong(positive, first, second), significance.delong(positive, second, first)
    assert there.difference == pytest.approx(-back.difference, abs=1e-15)
    np.testing.assert_allclose(there.p_value, back.p_value, rtol=1e-9)


def test_delong_of_a_score_and_itself_has_p_one():
    positive, first = np.arange(20) % 2 == 0, np.arange(20.0)
    assert significance.delong(positive, first, first).p_value == 1.0


def test_delong_needs_two_cases_of_each_class():
    found = significance.delong([True, False, False], [1, 2, 3], [3, 2, 1])
    assert np.isnan(found.p_value)


def test_delong_by_subjects_sees_that_copies_of_a_case_add_nothing():
    rng = np.random.default_rng(0)
    positive = np.arange(40) % 2 == 0
    first, second = rng.normal(positive, 1, (2, 40))
    once = significance.delong(positive, first, second)
    twice = [np.repeat(array, 2) for array in (positive, first, second)]
    by_subject = significance.delong(*twice, subjects=np.repeat(np.arange(40), 2))
    by_case = significance.delong(*twice)
    assert by_subject.standard_error == pytest.approx(once.standard_error, rel=1e-12)
    assert by_case.standard_error < 0.75 * once.standard_error


def test_delong_by_subjects_agrees_with_a_bootstrap_of_subjects():
    rng = np.random.default_rng(1)
    subjects = np.repeat(np.arange(150), 2)
    person = np.repeat(rng.normal(0, 0.7, (2, 150)), 2, axis=1)
    positive = rng.random(300) < 0.5
    first, second = positive + person + rng.normal(0, 0.7, (2, 300))
    found = significance.delong(positive, first, second, subjects=subjects)
    change = kernel(positive, second) - kernel(positive, first)
    resampled = []
    for _ in range(1000):
        times = np.bincount(rng.integers(0, 150, 150), minlength=150)[subjects]
        above, below = times[positive], times[~positive]
        resampled.append(above @ change @ below / (above.sum() * below.sum()))
    assert found.standard_error == pytest.approx(np.std(resampled), rel=0.12)


def test_the_bootstrap_p_value_counts_ties_on_both_sides_whatever_their_last_bits():
    differences = [0.1] * 6 + [1e-17, -1e-17, 0.0] + [np.nan]
    assert significance.bootstrap_p_value(differences) == pytest.approx(2 * 4 / 10)
    assert significance.bootstrap_p_value([0.0] * 50) == 1.0
    assert significance.bootstrap_p_value([0.2] * 99) == pytest.approx(2 / 100)
    assert np.isnan(significance.bootstrap_p_value([np.nan]))


@pytest.fixture(scope="module")
def skewed():
    """Values of a mean of skewed data, in scipy's resamples and with each left out."""
    data = np.random.default_rng(3).exponential(size=25)
    drawn = np.random.default_rng(42).integers(0, 25, size=(2000, 25))
    jackknife = np.array([np.delete(data, i).mean() for i in range(25)])
    return data, data[drawn].mean(axis=1), jackknife


@pytest.mark.parametrize("method", ["percentile", "BCa"])
def test_intervals_are_scipys(skewed, method):
    data, samples, jackknife = skewed
    expected = stats.bootstrap(
        (data,), np.mean, n_resamples=2000, method=method, rng=np.random.default_rng(42)
    )
    if method == "percentile":
        found = percentile_interval(samples, confidence=0.95)
    else:
        found = bca_interval(data.mean(), samples, jackknife, confidence=0.95)
    np.testing.assert_allclose(found, expected.confidence_interval, rtol=1e-9)


def test_a_bca_interval_that_is_not_defined_is_not_made_up(skewed):
    _, samples, jackknife = skewed
    assert np.isnan(bca_interval(samples.max() + 1, samples, jackknife, confidence=0.95)).all()
    assert np.isnan(bca_interval(1.0, samples, np.empty(0), confidence=0.95)).all()
    assert bca_interval(0.3, np.full(10, 0.3), jackknife, confidence=0.95) == (0.3, 0.3)


def test_leaving_out_groups_of_subjects_gives_the_acceleration_of_leaving_out_each(monkeypatch):
    data = np.random.default_rng(5).exponential(size=5000)
    place = np.random.default_rng(6).permutation(5000)

    def acceleration():
        weights = np.concatenate(list(left_out(place)))
        return stats.skew(-(weights @ data) / weights.sum(axis=1)) / (6 * np.sqrt(len(weights)))

    monkeypatch.setattr("oaplug.core.bootstrap.JACKKNIFE_ROWS", 5000)
    every = acceleration()
    monkeypatch.setattr("oaplug.core.bootstrap.JACKKNIFE_ROWS", 250)
    assert acceleration() == pytest.approx(every, abs=0.003)
    assert every > 0.004


def test_leaving_out_takes_all_cases_of_a_subject():
    rows = np.concatenate(list(left_out(np.array([0, 1, 0, 2]))))
    assert rows.tolist() == [[0, 1, 0, 1], [1, 0, 1, 1], [1, 1, 1, 0]]


def test_blocks_of_draws_are_the_stream_of_one_call_per_resample(monkeypatch):
    monkeypatch.setattr("oaplug.core.bootstrap.CELLS_PER_BLOCK", 300)
    place, rng = np.arange(98), np.random.default_rng(42)
    counts = list(redrawn(place, resamples=50, rng=rng))
    assert len(counts) > 10
    one_by_one = np.random.default_rng(42)
    expected = [np.bincount(one_by_one.integers(0, 98, size=98), minlength=98) for _ in range(50)]
    np.testing.assert_array_equal(np.concatenate(counts), expected)
    assert rng.integers(1 << 40) == one_by_one.integers(1 << 40), "the stream goes on where theirs does"


def test_counts_and_weights_of_subjects_are_the_same_rows():
    ids = ["b", "a", "b", "c"]
    counts = np.concatenate(list(subject_counts(ids, resamples=30, seed=2)))
    np.testing.assert_array_equal(np.concatenate(list(subject_weights(ids, resamples=30, seed=2))), counts)
    np.testing.assert_array_equal(counts[:, 0], counts[:, 2])


def one_run(value, samples, jackknife=()):
    return Sampled(value=value, samples=np.asarray(samples), jackknife=np.asarray(jackknife, dtype=float))


def test_resamples_without_a_value_are_left_out_and_counted():
    samples = np.r_[np.linspace(0.1, 0.3, 9), np.nan]
    found = difference(one_run(0.5, np.full(10, 0.5)), one_run(0.7, 0.5 + samples), confidence=0.9)
    assert found.undefined == 1
    assert (found.low, found.high) == pytest.approx(np.quantile(samples[:9], [0.05, 0.95]))
    assert found.p_value == pytest.approx(2 / 10)


def test_several_runs_add_their_spread_to_that_of_the_subjects():
    rng = np.random.default_rng(0)
    of_subjects = rng.normal(0, 0.02, 4000)
    of_runs = np.linspace(-0.1, 0.1, 5)
    found = mean_of_runs(of_runs, of_subjects[:, None] + of_runs, np.ones((3, 5)), rng=rng)
    assert found.value == pytest.approx(0)
    assert found.samples.var() == pytest.approx(0.02**2 + of_runs.var() / 5, rel=0.08)
    assert found.jackknife.size == 0
