"""The severity axis: numbers against scikit-learn, SciPy and linear algebra by hand, and what it tells."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from oaplug_analyses.options import SeverityAxisOptions
from oaplug_analyses.severity_axis import SeverityAxis
from oaplug_analyses.severity_figures import swarm
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from synthetic_features import given as source_of
from synthetic_features import make_axis_study, make_features
from synthetic_predictions import KL, OA, make_study, make_table, with_answers

from oaplug.core import axis as axes
from oaplug.core.errors import PluginError
from oaplug.core.findings import findings_to_json
from oaplug.core.target import Target
from oaplug.plug.registry import registry
from oaplug.plug.specs import AnalysisSpec

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(0)


def look_at(study, **options):
    return SeverityAxis(SeverityAxisOptions(**{"shuffles": 50} | options)).look_at(study)


def result_of(found, model, target):
    (result,) = [r for r in found.results if (r.model, r.target.name) == (model, target)]
    return result


def estimates_of(found, model, target):
    return {
        name: float(e.value)
        for name, e in result_of(found, model, target).estimates.items()
        if not e.value.ndim
    }


def project_by_hand(train, test):
    """Coordinates on PC1 by the eigenvectors of the correlation matrix."""
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    values, vectors = np.linalg.eigh(np.corrcoef(train.T))
    first = vectors[:, np.argmax(values)]
    return (test - mean) / deviation @ first, values[::-1] / values.sum()


values_and_counts = st.integers(3, 25).flatmap(
    lambda n: st.tuples(
        arrays(np.float64, n, elements=st.integers(-3, 3).map(float)),
        arrays(np.int64, n, elements=st.integers(0, 4)),
        arrays(np.int64, (3, n), elements=st.integers(0, 3)),
    )
)


@given(values_and_counts)
def test_rank_correlation_of_weighted_cases_is_that_of_cases_listed_as_often(drawn):
    values, truth, counts = drawn
    found = axes.spearman(values, truth, weights=counts)
    for row, count in zip(found, counts, strict=True):
        listed = np.repeat(np.arange(values.size), count)
        if np.unique(values[listed]).size < 2 or np.unique(truth[listed]).size < 2:
            assert np.isnan(row)
        else:
            assert row == pytest.approx(stats.spearmanr(values[listed], truth[listed])[0], abs=1e-12)


@given(arrays(np.float64, 5, elements=st.sampled_from([-1.0, 0.0, 0.5, 2.0, np.nan])))
def test_order_of_centroids_is_counted_over_the_grades_that_occur(means):
    present = means[~np.isnan(means)]
    grades = np.flatnonzero(~np.isnan(means))
    ordered, tau = axes.ordered_fraction(means), axes.centroid_tau(means)
    steps = list(np.diff(present) > 0)
    assert np.isnan(ordered) if not steps else ordered == pytest.approx(np.mean(steps))
    if np.unique(present).size < 2:
        assert np.isnan(tau)
    else:
        assert tau == pytest.approx(stats.kendalltau(grades, present)[0])


def test_centroids_are_weighted_means_per_grade():
    values, truth = np.array([1.0, 3.0, 5.0, 9.0]), np.array([0, 0, 2, 2])
    found = axes.centroids(values, truth, grades=3, weights=[[1, 1, 1, 1], [3, 1, 0, 2]])
    np.testing.assert_allclose(found, [[2, np.nan, 7], [1.5, np.nan, 9]])


def test_the_axis_is_the_leading_eigenvector_of_the_training_correlations():
    mixing = RNG.normal(size=(7, 7))
    train, test = RNG.normal(size=(60, 7)) @ mixing + 5, RNG.normal(size=(20, 7)) @ mixing
    axis = axes.fit_axis(train)
    expected, explained = project_by_hand(train, test)
    found = axis.project(test)[:, 0]
    assert abs(np.corrcoef(found, expected)[0, 1]) == pytest.approx(1)
    np.testing.assert_allclose(axis.explained, explained)
    assert axis.project(train)[:, 0].std() == pytest.approx(1)
    np.testing.assert_allclose(axis.components @ axis.components.T, np.eye(2), atol=1e-9)


def test_there_is_no_axis_where_training_features_do_not_vary():
    axis = axes.fit_axis(np.full((10, 4), 3.0))
    assert np.isnan(axis.explained).all()
    np.testing.assert_array_equal(axis.project(RNG.normal(size=(5, 4))), np.zeros((5, 2)))
    assert axes.fit_axis(RNG.normal(size=(8, 1))).explained == pytest.approx([1.0])


@given(
    steps=arrays(np.float64, 5, elements=st.floats(0.1, 10)),
    direction=arrays(np.float64, 6, elements=st.floats(-3, 3)),
    seed=st.integers(0, 10),
)
def test_features_that_are_a_monotone_function_of_the_grade_correlate_perfectly(steps, direction, seed):
    direction[0] = 1.0
    rng = np.random.default_rng(seed)
    truth = np.r_[np.arange(5), rng.integers(0, 5, 30)]
    level = np.cumsum(steps)
    train, test = (np.outer(level[grades], direction) for grades in (rng.permutation(truth), truth))
    axis = axes.fit_axis(train)
    assert abs(axes.spearman(axis.project(test)[:, 0], truth)) == pytest.approx(1)


def test_an_axis_rises_with_the_grades_it_is_given_whatever_its_sign():
    truth = np.arange(40) % 5
    features = make_features(truth, map(str, truth)).folds["0"]
    for turned in (features, -features):
        axis = axes.fit_axis(turned).rising_with(truth, turned)
        assert axes.spearman(axis.project(turned)[:, 0], truth) > 0.8


def test_linear_cka_is_that_of_the_kernels_and_blind_to_rotation_and_size():
    x, y = RNG.normal(size=(30, 6)), RNG.normal(size=(30, 9))
    y[:, 0] += 2 * x[:, 1]
    centring = np.eye(30) - 1 / 30
    k, m = centring @ x @ x.T @ centring, centring @ y @ y.T @ centring
    expected = np.trace(k @ m) / np.sqrt(np.trace(k @ k) * np.trace(m @ m))
    assert axes.linear_cka(x, y) == pytest.approx(expected)
    rotation = np.linalg.qr(RNG.normal(size=(9, 9)))[0]
    assert axes.linear_cka(x, 3 * y @ rotation + 1) == pytest.approx(expected)
    assert axes.linear_cka(x, x) == pytest.approx(1)
    assert np.isnan(axes.linear_cka(x, np.ones((30, 2))))


def test_cka_by_chance_is_its_mean_over_shuffled_cases():
    x, y = RNG.normal(size=(12, 5)), RNG.normal(size=(12, 7))
    shuffled = [axes.linear_cka(x, y[RNG.permutation(12)]) for _ in range(4000)]
    assert axes.chance_cka(x, y) == pytest.approx(np.mean(shuffled), rel=0.02)


def test_shuffling_deals_grades_to_other_subjects_and_keeps_those_of_one_subject_together():
    subjects = ["a", "a", "b", "b", "c", "c", "d"]
    values, truth = np.array([0.0, 1, 2, 3, 4, 5, 6]), np.array([0, 1, 1, 2, 3, 4, 0])
    possible = set()
    pairs = [(0, 1), (2, 3), (4, 5)]
    for order in ([0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]):
        dealt = [*(i for place in order for i in pairs[place]), 6]
        possible.add(round(abs(stats.spearmanr(values, truth[dealt])[0]), 9))
    found = axes.shuffled_correlations(values, truth, subjects, shuffles=200, seed=0)
    assert set(found.round(9)) == possible
    assert (
        axes.shuffled_correlations(values, truth, subjects, shuffles=200, seed=0).tolist() == found.tolist()
    )


def test_everything_measured_agrees_with_other_implementations():
    study = make_axis_study({"m": {"noise_std": 1.0, "seed": 5}}, subjects=80, visits=1)
    found = look_at(study)
    source = study.models[0].source
    test, train = source.features(), source.train_features()["0"]
    x, explained = project_by_hand(train.folds["0"].astype(float), test.folds["0"].astype(float))
    train_x, _ = project_by_hand(*(train.folds["0"].astype(float),) * 2)
    sign = np.sign(np.corrcoef(train_x, train.truths["kl"])[0, 1])
    kl, oa = test.truths["kl"], test.truths["oa"]
    measured = estimates_of(found, "m", "kl")
    assert measured["spearman"] == pytest.approx(sign * stats.spearmanr(x, kl)[0])
    assert measured["abs_spearman"] == pytest.approx(abs(stats.spearmanr(x, kl)[0]))
    means = [sign * x[kl == grade].mean() for grade in range(5)]
    assert measured["ordered"] == pytest.approx(np.mean(np.diff(means) > 0))
    assert measured["tau"] == pytest.approx(stats.kendalltau(range(5), means)[0])
    measured = estimates_of(found, "m", "oa")
    assert measured["abs_spearman"] == pytest.approx(abs(stats.spearmanr(x, oa)[0]))
    scale = train_x.std()
    probe = LogisticRegression(max_iter=2000).fit(train_x[:, None] / scale, train.truths["oa"])
    for name, values, truth in (("auroc", x, oa), ("auroc_train", train_x, train.truths["oa"])):
        expected = roc_auc_score(truth, probe.predict_proba(values[:, None] / scale)[:, 1])
        assert measured[name] == pytest.approx(expected)
    assert found.numbers()["m.explained_variance"] == pytest.approx(explained[0])


def test_intervals_are_percentiles_over_resampled_subjects():
    study = make_axis_study({"m": {"noise_std": 1.5}}, subjects=40, visits=2, resamples=400)
    found = look_at(study)
    result = result_of(found, "m", "kl")
    x, truth = result.folds[0].test[:, 0], study.models[0].predictions.targets["kl"].truth
    rng, samples = np.random.default_rng(1), []
    for _ in range(400):
        drawn = np.concatenate([[2 * s, 2 * s + 1] for s in rng.integers(0, 40, 40)])
        samples.append(abs(stats.spearmanr(x[drawn], truth[drawn])[0]))
    low, high = np.quantile(samples, [0.025, 0.975])
    estimate = result.estimates["abs_spearman"]
    assert estimate.low == pytest.approx(low, abs=0.03)
    assert estimate.high == pytest.approx(high, abs=0.03)


def test_shuffled_grades_show_what_features_without_order_give():
    study = make_axis_study(
        {"good": {"noise_std": 0.5}, "blind": {"noise_std": 300.0}}, subjects=90, visits=1
    )
    found = look_at(study, shuffles=300)
    good, blind = (result_of(found, name, "kl") for name in ("good", "blind"))
    for one in (good, blind):
        assert one.shuffled.mean() == pytest.approx(np.sqrt(2 / np.pi / 89), rel=0.15)
    assert good.p_value == pytest.approx(1 / 301)
    assert blind.p_value > 0.02


def test_test_cases_change_nothing_about_the_axis():
    table = make_table(subjects=40, visits=1)
    study = make_study({"m": table})
    source = source_of(table)
    more = replace(source, test=source.test.take(source.test.case_ids[:20]))
    few = make_study({"m": table.take(table.case_ids[:20])})
    whole, part = (
        look_at(replace(s, models=(replace(s.models[0], source=given_source),))).folds[0]
        for s, given_source in ((study, source), (few, more))
    )
    np.testing.assert_array_equal(whole.axis.components, part.axis.components)
    np.testing.assert_array_equal(whole.test[:20], part.test)


def test_folds_are_measured_apart_and_only_their_numbers_are_averaged():
    settings_of = {"noise_std": 1.0, "seed": 2}
    together = make_axis_study({"m": {"folds": ("0", "1", "2"), **settings_of}})
    apart = [make_axis_study({"m": {"folds": (fold,), **settings_of}}) for fold in "012"]
    for target in ("kl", "oa"):
        whole = estimates_of(look_at(together), "m", target)
        single = [estimates_of(look_at(study), "m", target) for study in apart]
        for name, value in whole.items():
            assert value == pytest.approx(np.mean([one[name] for one in single])), name
        by_fold = result_of(look_at(together), "m", target).estimates["folds.abs_spearman"].value
        np.testing.assert_allclose(by_fold, [one["abs_spearman"] for one in single])


def test_cases_of_unknown_grade_are_left_out():
    study = make_axis_study({"m": {}}, unknown=7)
    found = look_at(study)
    result = result_of(found, "m", "kl")
    assert result.rows.tolist() == list(range(7, 60))
    x, truth = result.folds[0].test[7:, 0], study.models[0].predictions.targets["kl"].truth[7:]
    assert estimates_of(found, "m", "kl")["spearman"] == pytest.approx(stats.spearmanr(x, truth)[0])


def with_train_truths(study, name, truth):
    """`study` with other grades of its first model's training cases."""
    source = study.models[0].source
    train = {f: replace(t, truths={**t.truths, name: truth}) for f, t in source.train.items()}
    model = replace(study.models[0], source=replace(source, train=train))
    return replace(study, models=(model, *study.models[1:]))


def test_training_cases_of_unknown_grade_count_for_the_axis_but_not_for_the_probe():
    study = make_axis_study({"m": {"noise_std": 1.5}})
    whole = look_at(study)
    truth = study.models[0].source.train["0"].truths["oa"].copy()
    truth[10:40] = -1
    part = look_at(with_train_truths(study, "oa", truth))
    np.testing.assert_array_equal(part.folds[0].test, whole.folds[0].test)
    expected = roc_auc_score(truth[truth >= 0], whole.folds[0].train[truth >= 0, 0])
    assert estimates_of(part, "m", "oa")["auroc_train"] == pytest.approx(expected)


@pytest.mark.parametrize("grade", [-1, 1])
def test_there_is_no_probe_where_training_cases_are_of_one_class_or_unknown(grade):
    study = make_axis_study({"m": {}})
    found = look_at(with_train_truths(study, "oa", np.full(60, grade)))
    measured = estimates_of(found, "m", "oa")
    assert np.isnan([measured["auroc"], measured["auroc_train"]]).all()
    assert measured["abs_spearman"] > 0.5


def test_a_model_of_the_coarse_target_alone_is_held_against_the_fine_one_too():
    table = make_table()
    only_oa = replace(table, targets={"oa": table.targets["oa"]})
    study = make_study({"m": only_oa})
    study = replace(study, models=(replace(study.models[0], source=source_of(table)),))
    found = look_at(study)
    assert list(found.truths) == ["kl", "oa"]
    assert estimates_of(found, "m", "kl") == estimates_of(look_at(make_axis_study({"m": {}})), "m", "kl")


def binary_study(target, *, folds=("0",)):
    """A study of one target that is not part of a hierarchy, with grades of the coarse target."""
    table = make_table(subjects=20)
    answers = replace(table.targets["oa"], target=target)
    table = replace(table, targets={target.name: answers})
    source = source_of(make_table(subjects=20), folds=folds)

    def only(features):
        return replace(features, targets={target.name: target}, truths={target.name: features.truths["oa"]})

    source = replace(source, test=only(source.test), train={f: only(t) for f, t in source.train.items()})
    study = make_study({"m": table})
    return replace(study, models=(replace(study.models[0], source=source),))


def test_a_binary_target_without_a_hierarchy_has_no_order_of_centroids(tmp_path):
    study = binary_study(Target(name="disease", kind="binary", grades=("no", "yes")))
    found = SeverityAxis(SeverityAxisOptions(shuffles=20)).run(study, tmp_path)
    assert set(found.numbers) == {
        "m.explained_variance",
        *("m.disease.shuffled", "m.disease.p_shuffled"),
        *(
            f"m.disease.{name}{end}"
            for name in ("abs_spearman", "spearman", "auroc", "auroc_train")
            for end in ("", ".low", ".high")
        ),
    }
    assert not any("in order" in column for column in found.tables[0].columns)
    assert {figure.name for figure in found.figures} == {"plane", "along", "neighbours", "variance"}


def test_grades_without_an_order_are_not_laid_along_an_axis(tmp_path):
    study = binary_study(Target(name="kind", kind="categorical", grades=("a", "b", "c")))
    found = SeverityAxis(SeverityAxisOptions(shuffles=20)).run(study, tmp_path)
    assert found.tables == ()
    assert found.summary == ("No case of the test has a known grade of a target with an order.",)
    assert [figure.name for figure in found.figures] == ["variance"]


def test_nothing_is_claimed_where_nothing_varies(tmp_path):
    table = make_table(subjects=10)
    source = source_of(table)

    def flat(features):
        return replace(features, folds={"0": np.zeros_like(features.folds["0"])})

    study = make_study({"m": table})
    source = replace(source, test=flat(source.test), train={"0": flat(source.train["0"])})
    study = replace(study, models=(replace(study.models[0], source=source),))
    found = SeverityAxis(SeverityAxisOptions(shuffles=20)).run(study, tmp_path)
    assert found.numbers["m.kl.abs_spearman"] is found.numbers["m.kl.p_shuffled"] is None
    assert any("All training cases have the same features by m" in text for text in found.summary)
    assert "neighbours" not in {figure.name for figure in found.figures}


def test_grades_that_are_all_the_same_are_said_to_be(tmp_path):
    study = make_axis_study({"m": {}})
    table = study.models[0].predictions
    for name in ("kl", "oa"):
        table = with_answers(table, name, truth=np.ones(60, dtype=np.int64))
    study = replace(study, models=(replace(study.models[0], predictions=table),))
    found = SeverityAxis(SeverityAxisOptions(shuffles=5)).run(study, tmp_path)
    assert found.summary[0].startswith("kl: the known grades are all the same")


def test_models_without_features_are_left_out_with_the_reason():
    found = look_at(make_axis_study({"with": {}, "without": None}))
    assert found.models == ["with"]
    assert "without is left out: it is a table of predictions alone." in found._sentences()


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Findings of two models, one of two folds, and the folder they were written into."""
    folder = tmp_path_factory.mktemp("axis")
    study = make_axis_study(
        {"dual": {"folds": ("0", "1")}, "single": {"width": 7, "noise_std": 2.0}}, unknown=3
    )
    analysis = SeverityAxis(SeverityAxisOptions(shuffles=20))
    return study, analysis.run(study, folder), folder


def test_every_figure_and_table_has_its_data_beside_it(written):
    _, found, folder = written
    assert [figure.name for figure in found.figures] == [
        "plane",
        "along",
        "neighbours",
        "variance",
        "alignment",
    ]
    for one in (*found.figures, *found.tables):
        rows = read_csv(folder / one.data)
        assert rows, one.name
        assert len(one.caption) > 40
    for figure in found.figures:
        assert (folder / figure.image).read_bytes().startswith(b"\x89PNG")
    findings_to_json(found)


def test_the_data_of_the_plane_are_the_coordinates_of_every_case_and_fold(written):
    study, _, folder = written
    rows = read_csv(folder / "plane.csv")
    assert len(rows) == 3 * len(study.case_ids)
    fold = look_at(study).folds[1]
    mine = [row for row in rows if (row["model"], row["fold"]) == ("dual", "1")]
    assert [row["case_id"] for row in mine] == list(study.case_ids)
    np.testing.assert_allclose([[float(row["pc1"]), float(row["pc2"])] for row in mine], fold.test)
    assert {row["kl"] for row in mine[:3]} == {""}
    assert mine[4]["kl"] == str(study.models[0].predictions.targets["kl"].truth[4])


def test_alignment_compares_every_pair_of_folds_on_the_same_cases(written):
    study, _, folder = written
    rows = read_csv(folder / "alignment.csv")
    assert len(rows) == 6
    (row,) = [r for r in rows if (r["model"], r["fold"], r["other_model"]) == ("dual", "1", "single")]
    first, other = (model.features().folds for model in study.models)
    assert float(row["cka"]) == pytest.approx(axes.linear_cka(first["1"], other["0"]))
    assert float(row["cka_shuffled"]) < float(row["cka"])


def test_the_best_model_and_the_baseline_are_told_in_words(written):
    _, found, _ = written
    assert found.summary[0].startswith("kl: PC1 of dual follows the grade with |ρ| 0.")
    assert "Others: single 0." in found.summary[0]
    value = found.numbers["dual.kl.abs_spearman"]
    assert f"{value:.3f}" in found.summary[0]


def test_the_same_study_gives_the_same_files(written, tmp_path):
    study, _, folder = written
    SeverityAxis(SeverityAxisOptions(shuffles=20)).run(study, tmp_path)
    names = {path.name for path in folder.iterdir()}
    assert names == {path.name for path in tmp_path.iterdir()}
    for name in (name for name in names if name.endswith(".csv")):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


@settings(max_examples=30)
@given(arrays(np.float64, st.integers(1, 30), elements=st.floats(-5, 5)))
def test_a_swarm_lays_near_cases_side_by_side_within_its_width(values):
    offsets = swarm(values, step=0.5, width=0.8)
    assert np.abs(offsets).max() <= 0.4 + 1e-9
    places = {
        (int((v - values.min(initial=0.0)) // 0.5), round(o, 9)) for v, o in zip(values, offsets, strict=True)
    }
    assert len(places) == values.size


def test_the_analysis_is_registered_with_its_needs_and_checks_its_options():
    spec = registry().spec(AnalysisSpec, "severity_axis")
    assert spec.needs == {"predictions", "features", "train_features"}
    assert not spec.on_request
    for bad in ({"confidence": 1.0}, {"shuffles": 0}, {"perplexity": 0.5}):
        with pytest.raises(PluginError):
            SeverityAxisOptions(**bad)


def test_targets_of_the_hierarchy_are_both_reported_finest_first():
    found = look_at(make_axis_study({"m": {}}))
    assert [target for target, _ in found.truths.values()] == [KL, OA]
