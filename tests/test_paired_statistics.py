"""Paired statistics: scikit-learn in a loop, the published study, and what must not change anything."""

from __future__ import annotations

import csv
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oaplug_analyses import oaplug_analyses
from oaplug_analyses.options import PairedStatisticsOptions
from oaplug_analyses.paired_tables import as_latex, as_markdown
from sklearn import metrics as reference
from synthetic_predictions import make_study, make_table

from oaplug.commands import analyze
from oaplug.core import metrics
from oaplug.core.bootstrap import subject_weights
from oaplug.core.errors import LeakError, PluginError, PredictionError
from oaplug.core.leak import trained_on
from oaplug.core.predictions import read_predictions, write_predictions
from oaplug.core.study import Study, StudyModel
from oaplug.plug.registry import parse_options
from oaplug.study.gather import name_models, open_study

PUBLISHED = Path(__file__).parents[2] / "shared" / "data" / "published_predictions"
needs_published = pytest.mark.skipif(
    not PUBLISHED.is_dir(), reason="the study's published predictions are not on this machine"
)
SPEC = next(spec for spec in oaplug_analyses() if spec.name == "paired_statistics")
TRIO = ("dual", "single_oa", "single_kl")


def compare(study, **options):
    return SPEC.build(PairedStatisticsOptions(**options)).compare(study)


def by_metric(comparisons):
    return {(c.target, c.metric): c for c in comparisons}


def two_models(**how):
    return {"first": make_table(**how), "second": make_table(noise_std=1.8, seed=1, **how)}


def only(table, *targets):
    return replace(table, targets={name: table.targets[name] for name in targets})


def trio(backbone, *, seed=0, subjects=40, visits=1):
    """Tables of the three models that the study protocol compares."""
    tables = [
        make_table(seed=seed + i, noise_std=1 + 0.3 * i, subjects=subjects, visits=visits) for i in range(3)
    ]
    kept = (tables[0], only(tables[1], "oa"), tables[2])
    return {f"{backbone}/{name}": table for name, table in zip(TRIO, kept, strict=True)}


# --- metrics vectorised over resamples -----------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 9]), st.booleans())
def test_both_ways_to_count_pairs_are_scikit_learns(seed, decimals, whole):
    rng = np.random.default_rng(seed)
    positive = rng.random(30) < 0.4
    positive[:2] = True, False
    score = np.round(rng.normal(positive, 1), decimals)
    weights = rng.integers(0, 4, 30) if whole else rng.uniform(0.1, 2, 30)
    weights[:2] = 1
    expected = reference.roc_auc_score(positive, score, sample_weight=weights)
    assert metrics.auc(positive, score, weights=weights) == pytest.approx(expected, abs=1e-9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "MATRIX_UP_TO", 0)
        assert metrics.auc(positive, score, weights=weights) == pytest.approx(expected, abs=1e-9)


def test_counts_too_large_for_single_precision_are_still_exact():
    positive, score = np.arange(6) % 2 == 0, np.array([3.0, 1, 2, 2, 1, 3])
    weights = np.array([3, 1, 2, 5, 7, 1]) * 10_000_001
    expected = reference.roc_auc_score(positive, score, sample_weight=weights)
    assert metrics.auc(positive, score, weights=weights) == pytest.approx(expected, abs=1e-15)
    matrix = metrics.confusion(positive, score > 2, grades=2, weights=weights)
    assert matrix.sum() == weights.sum()


def test_asking_for_some_metrics_gives_those_alone():
    truth, table = np.array([0, 1, 2, 2]), np.eye(3)[[0, 1, 2, 1]]
    everything = metrics.target_metrics(truth, table, table.argmax(axis=1), ordered=True)
    for wanted in (["auc"], ["qwk", "f1"], ["auc", "mae"]):
        some = metrics.target_metrics(truth, table, table.argmax(axis=1), ordered=True, names=wanted)
        assert some.keys() == set(wanted)
        assert all(some[name] == everything[name] for name in wanted)


# --- comparisons ---------------------------------------------------------------------------------------


def scikit_learns(name, answers, rows):
    truth, predicted, table = answers.truth[rows], answers.predicted[rows], answers.probabilities[rows]
    if name == "auc":
        binary = table.shape[1] == 2
        return reference.roc_auc_score(truth, table[:, 1] if binary else table, multi_class="ovr")
    if name == "f1":
        return reference.f1_score(truth, predicted, average="binary" if table.shape[1] == 2 else "macro")
    return {
        "accuracy": reference.accuracy_score,
        "balanced_accuracy": reference.balanced_accuracy_score,
        "qwk": lambda t, p: reference.cohen_kappa_score(t, p, weights="quadratic"),
        "mae": reference.mean_absolute_error,
    }[name](truth, predicted)


def test_values_and_intervals_are_those_of_scikit_learn_on_redrawn_subjects():
    study = make_study(two_models(), resamples=10, seed=4)
    found = by_metric(compare(study, confidence=0.8))
    kl = ("auc", "accuracy", "f1", "balanced_accuracy", "qwk", "mae")
    assert set(found) == {("kl", name) for name in kl} | {("oa", name) for name in kl[:4]}
    (weights,) = subject_weights(study.subject_ids, resamples=10, seed=4)
    everyone = np.arange(len(study.case_ids))
    redrawn = [np.repeat(everyone, row.astype(int)) for row in weights]
    for (target, name), one in found.items():
        answers = [model.predictions.targets[target] for model in study.models]
        baseline, model = (scikit_learns(name, a, everyone) for a in answers)
        assert (one.difference.baseline, one.difference.model) == pytest.approx((baseline, model), abs=1e-12)
        changes = [scikit_learns(name, answers[1], r) - scikit_learns(name, answers[0], r) for r in redrawn]
        expected = np.quantile(changes, [0.1, 0.9])
        assert (one.difference.low, one.difference.high) == pytest.approx(expected, abs=1e-12)


def test_the_study_protocol_consumes_one_stream_in_its_order():
    study = make_study(trio("b", seed=7) | trio("a", seed=3))
    found = iter(compare(study, protocol="study", resamples=12))
    tables = {model.name: model.predictions for model in study.models}
    rng = np.random.default_rng(42)
    for backbone in ("b", "a"):
        for target, partner in (("oa", "single_oa"), ("kl", "single_kl")):
            pair = [tables[f"{backbone}/{name}"].targets[target] for name in (partner, "dual")]
            for name in ("auc", "accuracy", "f1"):
                redrawn = [rng.integers(0, 40, size=40) for _ in range(12)]
                changes = [scikit_learns(name, pair[1], r) - scikit_learns(name, pair[0], r) for r in redrawn]
                one = next(found)
                assert (one.model, one.target, one.metric) == (f"{backbone}/dual", target, name)
                expected = np.quantile(changes, [0.025, 0.975])
                assert (one.difference.low, one.difference.high) == pytest.approx(expected, abs=1e-9)
    assert next(found, None) is None


def test_a_model_and_its_copy_differ_by_nothing_with_p_one():
    table = make_table(visits=1)
    for one in compare(make_study({"first": table, "copy": table})):
        found = one.difference
        assert (found.delta, found.low, found.high, found.bca_low, found.bca_high) == (0, 0, 0, 0, 0)
        assert (one.p_value, one.q_value, one.p_holm) == (1, 1, 1)
        assert one.delong_p == 1 or np.isnan(one.delong_p)


def test_exchanging_two_models_negates_every_difference_and_keeps_every_p():
    study = make_study(two_models(visits=1), resamples=200)
    there, back = (by_metric(compare(study, baseline=name)) for name in ("first", "second"))
    for key, one in there.items():
        a, b = one.difference, back[key].difference
        assert (a.delta, a.low, a.high) == pytest.approx((-b.delta, -b.high, -b.low), abs=1e-12)
        assert (a.bca_low, a.bca_high) == pytest.approx((-b.bca_high, -b.bca_low), abs=1e-9)
        assert one.p_value == pytest.approx(back[key].p_value)
        if one.mcnemar is not None:
            assert np.array_equal(np.transpose(one.mcnemar.table), back[key].mcnemar.table)
        np.testing.assert_allclose(one.delong_p, back[key].delong_p, rtol=1e-9)


def test_the_order_of_cases_changes_nothing():
    tables = two_models()
    ids = tables["first"].case_ids
    shuffled = [ids[i] for i in np.random.default_rng(0).permutation(len(ids))]
    first = compare(make_study(tables))
    other = compare(make_study({name: table.take(shuffled) for name, table in tables.items()}))
    for a, b in zip(first, other, strict=True):
        ours, theirs = vars(a.difference), vars(b.difference)
        assert ours.keys() == theirs.keys()
        np.testing.assert_allclose(list(ours.values()), list(theirs.values()), atol=1e-12)
        assert (a.p_value, a.mcnemar) == (b.p_value, b.mcnemar)


def test_a_person_with_several_cases_is_one_observation():
    once, thrice = (
        by_metric(compare(make_study(two_models(visits=1), resamples=300))),
        by_metric(
            compare(make_study({n: tripled(t) for n, t in two_models(visits=1).items()}, resamples=300))
        ),
    )
    for key, one in once.items():
        np.testing.assert_allclose(
            [one.difference.low, one.difference.high, one.delong_p],
            [thrice[key].difference.low, thrice[key].difference.high, thrice[key].delong_p],
            atol=1e-12,
        )
    assert once["kl", "accuracy"].test.startswith("mcnemar")
    assert thrice["kl", "accuracy"].test == "paired_bootstrap", "McNemar's test would count copies"


def tripled(table):
    """Every case three times, as three cases of its subject."""
    rows = [name for name in table.case_ids for _ in range(3)]
    number = {name: i for i, name in enumerate(table.case_ids)}
    index = np.array([number[name] for name in rows])
    targets = {
        name: replace(
            p, truth=p.truth[index], predicted=p.predicted[index], probabilities=p.probabilities[index]
        )
        for name, p in table.targets.items()
    }
    return replace(
        table,
        case_ids=tuple(f"{name}_{i}" for i, name in enumerate(rows)),
        subject_ids=tuple(table.subject_ids[i] for i in index),
        folds=("0",) * len(rows),
        targets=targets,
    )


def test_cases_of_unknown_truth_are_left_out():
    known = make_study({n: t.take(t.case_ids[8:]) for n, t in two_models(unknown=8).items()})
    for a, b in zip(compare(make_study(two_models(unknown=8))), compare(known), strict=True):
        assert (a.cases, a.difference) == (b.cases, b.difference)
        assert a.cases == 52


def test_the_family_is_what_was_declared():
    study = make_study({**two_models(visits=1), "third": make_table(noise_std=2.5, seed=2, visits=1)})
    found = compare(study, baseline="third", targets=("kl",), metrics=("qwk", "accuracy"))
    assert [(c.model, c.baseline, c.metric) for c in found] == [
        (model, "third", metric) for model in ("first", "second") for metric in ("accuracy", "qwk")
    ]
    p_values = sorted(c.p_value for c in found)
    assert min(c.p_holm for c in found) == pytest.approx(min(1, 4 * p_values[0]))


def test_resamples_that_hold_one_class_only_are_left_out_of_a_binary_auc():
    tables = {
        n: only(t.take(t.case_ids[:3] + t.case_ids[-1:]), "oa") for n, t in two_models(visits=1).items()
    }
    found = by_metric(compare(make_study(tables, resamples=400)))
    undefined = found["oa", "auc"].difference.undefined / 400
    assert undefined == pytest.approx(0.5**4 + 0.5**4, abs=0.05), "two of the four are positive"
    assert found["oa", "accuracy"].difference.undefined == 0


def test_several_runs_of_a_model_are_compared_by_their_mean_and_widen_the_interval():
    runs = [make_table(noise_std=std, seed=i, visits=1) for i, std in enumerate((0.6, 1.4, 2.2))]
    baseline = make_table(noise_std=1.4, seed=9, visits=1)

    def study(*members):
        models = [StudyModel(name="base", predictions=baseline)]
        models += [StudyModel(name=f"m#{i}", run_of="m", predictions=t) for i, t in enumerate(members)]
        ids = (baseline.case_ids, baseline.subject_ids)
        return Study(models=tuple(models), case_ids=ids[0], subject_ids=ids[1], resamples=1500)

    found = by_metric(compare(study(*runs)))["kl", "qwk"]
    truth = baseline.targets["kl"].truth
    kappas = [scikit_learns("qwk", t.targets["kl"], np.arange(truth.size)) for t in runs]
    assert found.difference.model == pytest.approx(np.mean(kappas), abs=1e-12)
    assert (found.model, found.baseline_runs, found.model_runs) == ("m", 1, 3)
    assert np.isnan(found.difference.bca_low)
    thrice_the_same = by_metric(compare(study(runs[1], runs[1], runs[1])))["kl", "qwk"]
    alone = by_metric(compare(study(runs[1])))["kl", "qwk"]
    assert thrice_the_same.difference.low == pytest.approx(alone.difference.low, abs=1e-12)
    assert found.difference.high - found.difference.low > 1.2 * (alone.difference.high - alone.difference.low)


def test_memory_does_not_grow_with_the_number_of_resamples(monkeypatch):
    monkeypatch.setattr("oaplug.core.bootstrap.CELLS_PER_BLOCK", 60_000)
    monkeypatch.setattr("oaplug.core.bootstrap.JACKKNIFE_ROWS", 5)
    tables = {n: only(t, "kl") for n, t in two_models(subjects=3000).items()}

    def peak(resamples):
        tracemalloc.start()
        compare(make_study(tables, resamples=resamples), metrics=("auc",))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(200) < 1.1 * peak(30)


@needs_published
def test_the_published_statistics_come_out_digit_for_digit(tmp_path):
    names = [f"{backbone}/{name}" for backbone in ("resnet3d", "m3t") for name in TRIO]
    models = [f"{name}={PUBLISHED / name.replace('/', '_')}_preds.csv" for name in names]
    assert run(tmp_path, *models, more=("--protocol", "study")) == 0
    with (PUBLISHED / "published_statistics.csv").open() as file:
        published = list(csv.DictReader(file))
    found = read_rows(tmp_path, "comparisons.csv")
    assert list(found[0])[: len(published[0])] == list(published[0])
    assert len(found) == len(published) == 12
    p_values = ("p_value", "q_value_BH", "sig_fdr_0.05")
    for ours, theirs in zip(found, published, strict=True):
        same = {key for key in theirs if key not in p_values}
        assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}
        ties = ours["task"] == "OA" and ours["metric"] == "AUC"
        assert float(ours["p_value"]) == pytest.approx(float(theirs["p_value"]), abs=0.003 if ties else 1e-12)


# --- what is written -----------------------------------------------------------------------------------


def run(folder, *models, more=("--resamples", "50")):
    return analyze.main(["-m", *models, "-a", "paired_statistics", "-o", str(folder), *more])


def read_rows(folder, name):
    with (folder / "paired_statistics" / name).open(newline="") as file:
        return list(csv.DictReader(file))


def findings_of(folder):
    content = json.loads((folder / "findings.json").read_text())
    return content, content["analyses"][0]


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Folders with predictions of three models, by name."""
    folder = tmp_path_factory.mktemp("tables")
    made = {**two_models(visits=1), "third": make_table(noise_std=0.4, seed=5, visits=1)}
    for name, table in made.items():
        write_predictions(folder / name, table)
    return {name: folder / name for name in made}


def test_the_command_writes_tables_texts_a_figure_and_sentences(tables, tmp_path):
    models = [f"{name}={path}" for name, path in tables.items()]
    assert run(tmp_path, *models, more=("--baseline", "second", "--resamples", "60", "--seed", "3")) == 0
    files = {path.name for path in (tmp_path / "paired_statistics").iterdir()}
    assert files == {"differences.csv", "differences.md", "differences.tex", "differences.png"}
    rows = read_rows(tmp_path, "differences.csv")
    assert {row["baseline"] for row in rows} == {"second"}
    assert {row["model"] for row in rows} == {"first", "third"}
    _, section = findings_of(tmp_path)
    assert section["status"] == "ok"
    numbers = section["findings"]["numbers"]
    for row in rows:
        key = f"{row['model']}_vs_second.{row['target']}.{row['metric']}"
        assert numbers[f"{key}.delta"] == float(row["delta"])
        assert numbers[f"{key}.q_bh"] == float(row["q_value_BH"])
    called = sum(float(row["q_value_BH"]) < 0.05 for row in rows)
    assert section["findings"]["summary"][0].startswith(f"{called} of 20 differences hold")
    assert called > 0
    assert len((tmp_path / "paired_statistics" / "differences.md").read_text().splitlines()) == 22
    assert "60 paired bootstrap resamples" in section["findings"]["figures"][0]["caption"]
    png = (tmp_path / "paired_statistics" / "differences.png").read_bytes()
    assert png.startswith(b"\x89PNG")


def test_without_a_baseline_the_first_model_is_taken_and_that_is_said(tables, tmp_path):
    assert run(tmp_path, *(f"{name}={path}" for name, path in tables.items())) == 0
    assert {row["baseline"] for row in read_rows(tmp_path, "differences.csv")} == {"first"}
    assert any("No baseline was declared" in s for s in findings_of(tmp_path)[1]["findings"]["summary"])


def test_options_of_an_analysis_are_set_by_name(tables, tmp_path):
    models = [f"{name}={path}" for name, path in tables.items()]
    settings = ('paired_statistics.metrics=["qwk"]', "oaplug:paired_statistics.baseline=third")
    assert run(tmp_path, *models, more=[part for s in settings[:1] for part in ("--set", s)]) == 0
    assert {row["metric"] for row in read_rows(tmp_path, "differences.csv")} == {"qwk"}
    assert run(tmp_path, *models, more=["--set", settings[1]]) == 0
    assert {row["baseline"] for row in read_rows(tmp_path, "differences.csv")} == {"third"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "paired_statistics.metric=auc"], "did you mean 'metrics'"),
        (["--set", "paired_statistic.metrics=[]"], "did you mean 'paired_statistics'"),
        (["--set", "baseline=x"], "expected ANALYSIS.KEY=VALUE"),
        (["--set", "classification.confidence=0.9"], "not among the analyses to run"),
        (["--set", "paired_statistics.resamples=0"], "must be positive"),
        (["--protocol", "study", "--baseline", "first"], "has its own baselines"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_runs(tables, tmp_path, capsys, more, message):
    assert run(tmp_path / "out", f"first={tables['first']}", more=more) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "findings.json").exists()


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--baseline", "secnd"], "no model 'secnd'; did you mean 'second'?"),
        (["--set", 'paired_statistics.metrics=["qwq"]'], "no metric 'qwq'; did you mean 'qwk'?"),
        (["--set", 'paired_statistics.targets=["ka"]'], "no target 'ka'; known: kl, oa"),
        (["--protocol", "study"], "not 'first', 'second'; name them with -m BACKBONE/dual=PATH"),
    ],
)
def test_what_the_study_does_not_have_is_said_in_one_line_without_a_traceback(
    tables, tmp_path, capsys, more, reason
):
    models = [f"{name}={tables[name]}" for name in ("first", "second")]
    assert run(tmp_path, *models, more=more) == 1
    _, section = findings_of(tmp_path)
    assert section["status"] == "failed"
    assert reason in section["reason"]
    assert "traceback" not in section
    assert "Traceback" not in capsys.readouterr().err


def test_the_study_protocol_says_which_model_it_lacks():
    study = make_study({k: v for k, v in trio("m3t").items() if k != "m3t/single_kl"})
    with pytest.raises(PredictionError, match=r"lacks predictions of m3t/single_kl with kl$"):
        compare(study, protocol="study")
    with pytest.raises(PredictionError, match="no model has known truths of 'kl'"):
        compare(make_study({"a/dual": only(make_table(), "oa")}), protocol="study")


def test_the_study_table_has_the_published_columns_and_digits(tmp_path):
    study = make_study(trio("net"))
    findings = SPEC.build(PairedStatisticsOptions(protocol="study", resamples=40)).run(
        study, make(tmp_path / "paired_statistics")
    )
    rows = read_rows(tmp_path, "comparisons.csv")
    assert ",".join(rows[0]) == (
        "backbone,task,metric,single,dual,delta,ci_lo,ci_hi,p_value,test,mcnemar_table,n_subjects,"
        "q_value_BH,sig_fdr_0.05"
    )
    names = ["OA AUC", "OA Acc", "OA F1", "KL M-AUC", "KL Acc", "KL M-F1"]
    assert [f"{row['task']} {row['metric']}" for row in rows] == names
    assert [row["test"].startswith("mcnemar") for row in rows] == [False, True, False, False, False, False]
    (both, ours), (theirs, neither) = json.loads(rows[1]["mcnemar_table"])
    assert both + ours + theirs + neither == 40
    assert float(rows[1]["delta"]) == pytest.approx((ours - theirs) / 40, abs=1e-6)
    assert float(rows[1]["dual"]) == pytest.approx((both + ours) / 40, abs=1e-6)
    assert all(row["n_subjects"] == "40" for row in rows)
    assert findings.tables[0].data == "comparisons.csv"
    assert read_rows(tmp_path, "differences.csv")[0]["bca_lo"] != ""


def make(folder):
    folder.mkdir(parents=True)
    return folder


def test_one_model_is_compared_with_nothing(tmp_path):
    findings = SPEC.build(PairedStatisticsOptions()).run(make_study({"m": make_table()}), tmp_path)
    assert findings.summary == ("There is one model only, so there is nothing to compare it with.",)
    answers_apart = make_study({"a": only(make_table(), "kl"), "b": only(make_table(), "oa")})
    assert (
        "Nothing could be compared"
        in SPEC.build(PairedStatisticsOptions()).run(answers_apart, tmp_path).summary[0]
    )


def test_texts_for_articles_escape_what_would_break_them():
    header, rows = ("A", "B", "C", "D", "E"), [["a_b|c", "50%", "−0.1", "<0.001", "x&y"]]
    assert as_markdown(header, rows).splitlines()[2] == "| a_b\\|c | 50% | −0.1 | <0.001 | x&y |"
    latex = as_latex(header, rows)
    assert r"a\_b|c & 50\% & $-$0.1 & $<$0.001 & x\&y \\" in latex
    assert latex.startswith("\\begin{tabular}{llllr}\n\\toprule\n")


@pytest.mark.parametrize("options", [{"confidence": 1.5}, {"false_discovery_rate": 0}, {"protocol": "other"}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(PluginError, match=next(iter(options))):
        parse_options(SPEC, options)


# --- input ---------------------------------------------------------------------------------------------


def test_a_name_given_several_times_is_one_model_with_several_runs(tables, tmp_path):
    paths = [tables[name] for name in ("first", "third")]
    models = name_models([f"dual={paths[0]}", f"base={tables['second']}", f"dual={paths[1]}"])
    assert models == {"dual": tuple(paths), "base": tables["second"]}
    study = open_study(models, resamples=20, seed=0)
    assert [(m.name, m.model_name) for m in study.models] == [
        ("dual#1", "dual"),
        ("dual#2", "dual"),
        ("base", "base"),
    ]
    arguments = [f"base={tables['second']}", *(f"dual={path}" for path in paths)]
    assert run(tmp_path, *arguments) == 0
    rows = read_rows(tmp_path, "differences.csv")
    assert {(row["model"], row["model_runs"], row["bca_lo"]) for row in rows} == {("dual", "2", "")}
    assert any("several runs" in s for s in findings_of(tmp_path)[1]["findings"]["summary"])


def test_one_path_is_not_two_runs(tables):
    with pytest.raises(PredictionError, match="two models are called 'a'"):
        name_models([f"a={tables['first']}", f"a={tables['first']}"])


def test_common_cases_are_compared_on_request_and_counted(tmp_path, capsys):
    table = make_table(visits=1)
    parts = {"a": table.take(table.case_ids[:-3]), "b": table.take(table.case_ids[4:])}
    models = [f"{n}={write_predictions(tmp_path / n, t).parent}" for n, t in parts.items()]
    assert run(tmp_path / "out", *models) == 2
    assert "--intersect" in capsys.readouterr().err
    assert run(tmp_path / "out", *models, more=("--intersect", "--resamples", "20")) == 0
    assert "comparing the 23 cases that all models predict, of 30" in capsys.readouterr().out
    content, section = findings_of(tmp_path / "out")
    assert (content["cases"], content["left_out"]) == (23, 7)
    assert any(s.startswith("7 cases") for s in section["findings"]["summary"])


def test_tables_without_a_common_case_cannot_be_compared(tmp_path):
    table = make_table(visits=1)
    parts = {"a": table.take(table.case_ids[:3]), "b": table.take(table.case_ids[4:])}
    paths = {name: write_predictions(tmp_path / name, part) for name, part in parts.items()}
    with pytest.raises(PredictionError, match="no case is predicted by all of a, b"):
        open_study(paths, resamples=5, seed=0, intersect=True)


HEADER = "CMT_ID,label_kl,pred_kl,label_oa,prob_oa,pred_oa,prob_oa_from_kl,"
HEADER += ",".join(f"prob_kl_{grade}" for grade in range(5))
ROWS = ["405,0,2,0,0.98,1,0.5,0.1,0.2,0.3,0.2,0.2", "406,4,4,1,0.25,0,0.9,0,0,0.125,0.125,0.75"]


def published(folder, rows=ROWS, header=HEADER):
    path = folder / "net_dual_preds.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_a_table_of_the_published_schema_is_read_as_it_is(tmp_path):
    table = read_predictions(published(tmp_path))
    assert table.case_ids == table.subject_ids == ("405", "406")
    assert table.model == "net_dual_preds"
    kl, oa = table.targets["kl"], table.targets["oa"]
    assert (kl.truth.tolist(), kl.predicted.tolist()) == ([0, 4], [2, 4])
    np.testing.assert_allclose(kl.probabilities[1], [0, 0, 0.125, 0.125, 0.75])
    assert (oa.truth.tolist(), oa.predicted.tolist()) == ([0, 1], [1, 0])
    np.testing.assert_allclose(oa.probabilities[:, 1], [0.98, 0.25])
    assert oa.target.derived_from == "kl"


def test_a_published_table_of_one_target_holds_that_target(tmp_path):
    path = published(tmp_path, ["405,0,0,0.25,0"], "CMT_ID,label_kl,label_oa,prob_oa,pred_oa")
    assert list(read_predictions(path).targets) == ["oa"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROWS[0], ROWS[0]], "cases listed twice: 405"),
        ([ROWS[0].replace("0.98", "high")], "a probability of 'oa' is not a number"),
        ([ROWS[0].replace("0.98", "1.5")], "case 405: probabilities of 'oa' are negative"),
        ([ROWS[0].replace("405,0,2", "405,0,7")], "case 405: kl_pred: .* has no grade '7'"),
        ([ROWS[0][:-4]], "a probability of 'kl' is not a number"),
    ],
)
def test_a_broken_published_table_names_what_is_off(tmp_path, rows, message):
    with pytest.raises(PredictionError, match=message):
        read_predictions(published(tmp_path, rows))


def test_a_published_table_without_a_column_names_it(tmp_path):
    header = HEADER.replace("prob_kl_3", "prob_kl_three")
    with pytest.raises(PredictionError, match="no column 'kl_prob_3'"):
        read_predictions(published(tmp_path, header=header))


def test_comparing_common_cases_does_not_let_training_cases_in(tmp_path):
    table = make_table(visits=1)
    seen = replace(table, trained_on=trained_on([table.subject_ids[0]], [], "a key"))
    paths = {
        "a": write_predictions(tmp_path / "a", seen),
        "b": write_predictions(tmp_path / "b", table.take(table.case_ids[1:])),
    }
    with pytest.raises(LeakError, match=table.case_ids[0]):
        open_study(paths, resamples=5, seed=0, intersect=True)
