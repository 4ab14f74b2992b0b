"""Cross-validation: folds in one call, their predictions put together, and models ranked by them."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from runs import assert_same_tensors, stopping_at
from safetensors.torch import load_file
from sklearn.metrics import cohen_kappa_score, mean_absolute_error, roc_auc_score

from oaplug.commands import evaluate, find_best_configuration, train
from oaplug.core.artifacts import write_json
from oaplug.core.case import Case
from oaplug.core.errors import CheckpointError, LeakError, PredictionError
from oaplug.core.evaluation import prediction_table
from oaplug.core.leak import trained_on
from oaplug.core.paths import Places
from oaplug.core.predictions import read_predictions, read_trained_on, write_predictions, write_trained_on
from oaplug.core.target import Target
from oaplug.prepare.folder import PreprocessedFolder
from oaplug.prepare.splits import read_splits
from oaplug.study.best_configuration import rank_models, ranking_to_json
from oaplug.study.gather import name_models, open_study
from oaplug.train.crossval import crossval_summary, out_of_fold, write_crossval_results

pytestmark = pytest.mark.slow

TOY, SINGLE = "Dataset901_Toy", "resnet3d-single_kl"
FINAL = "checkpoint_final.safetensors"


def train_folds(project, *folds, arguments=()):
    given = project.train_arguments(901, *arguments)
    return train.main([*given[:2], *map(str, folds), *given[3:]])


@pytest.fixture(scope="module")
def crossed(trained_project, tmp_path_factory):
    """The session's project with all folds of its model, of which fold 0 was there."""
    project = trained_project.copy(tmp_path_factory.mktemp("crossed"))
    assert train_folds(project, 0, 1, 2, 3, 4) == 0
    return project


@pytest.fixture
def project(crossed, tmp_path):
    """A copy that may be changed."""
    return crossed.copy(tmp_path / "project")


def splits_of(project):
    data = PreprocessedFolder(project.preprocessed / TOY)
    return read_splits(data.splits_path, data.cases())


def rows_of(folder):
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_folds_that_are_finished_are_skipped_and_the_others_are_trained(crossed, trained_project):
    model = crossed.model(TOY, SINGLE)
    assert all((model / f"fold_{fold}" / "validation" / "summary.json").is_file() for fold in range(5))
    before = trained_project.model(TOY, SINGLE) / "fold_0" / FINAL
    assert (model / "fold_0" / FINAL).read_bytes() == before.read_bytes()
    assert len(list((model / "fold_0").glob("training_log_*"))) == 1
    assert len({(model / f"fold_{fold}" / FINAL).read_bytes() for fold in range(5)}) == 5


def test_every_case_is_predicted_by_the_fold_that_did_not_train_on_it(crossed):
    model = crossed.model(TOY, SINGLE)
    rows = rows_of(model / "crossval_results")
    splits = json.loads((crossed.preprocessed / TOY / "splits_final.json").read_text())
    listed = {case: str(number) for number, fold in enumerate(splits) for case in fold["val"]}
    assert {row["case_id"]: row["fold"] for row in rows} == listed
    assert [row["case_id"] for row in rows] == sorted(listed)
    for row in rows:
        fold = model / f"fold_{row['fold']}"
        assert row["case_id"] not in json.loads((fold / "debug.json").read_text())["training_cases"]
        assert row in rows_of(fold / "validation")
    assert "trained_on" not in json.loads((model / "crossval_results" / "predictions.json").read_text())


def test_the_summary_has_metrics_over_all_cases_and_of_each_fold(crossed):
    folder = crossed.model(TOY, SINGLE) / "crossval_results"
    summary, rows = json.loads((folder / "summary.json").read_text()), rows_of(folder)
    known = [row for row in rows if row["kl_true"]]
    grades = [[int(row[f"kl_{what}"]) for row in known] for what in ("true", "pred")]
    assert summary["metrics"]["kl.mae"] == pytest.approx(mean_absolute_error(*grades))
    known = [row for row in rows if row["oa_true"]]
    truth, score = ([float(row[name]) for row in known] for name in ("oa_true", "oa_prob_1"))
    assert summary["metrics"]["oa.auc"] == pytest.approx(roc_auc_score(truth, score))
    assert (summary["cases"], summary["subjects"]) == (len(rows), len({r["subject_id"] for r in rows}))
    assert sum(fold["cases"] for fold in summary["folds"].values()) == len(rows)
    assert set(summary["intervals"]) == set(summary["metrics"])
    low, high = summary["intervals"]["kl.mae"]
    assert low < summary["metrics"]["kl.mae"] < high


def test_intervals_cover_what_resampling_subjects_by_hand_covers():
    table = noisy_table("m", noise=1.0, cases=200, visits=2)
    found = crossval_summary(table, resamples=2000, seed=3)["intervals"]["kl.qwk"]
    rng, kl = np.random.default_rng(0), table.targets["kl"]
    rows = {s: np.flatnonzero(np.array(table.subject_ids) == s) for s in set(table.subject_ids)}
    drawn = [np.concatenate([rows[s] for s in rng.choice(sorted(rows), len(rows))]) for _ in range(600)]
    kappas = [cohen_kappa_score(kl.truth[d], kl.predicted[d], weights="quadratic") for d in drawn]
    assert found == pytest.approx(np.quantile(kappas, [0.025, 0.975]), abs=0.02)


def test_missing_folds_are_named_and_nothing_is_written(project, capsys):
    model = project.model(TOY, SINGLE)
    for fold in (1, 3):
        shutil.rmtree(model / f"fold_{fold}")
    shutil.rmtree(model / "crossval_results")
    with pytest.raises(CheckpointError, match=r"folds 1, 3 are not trained and validated, of 5"):
        out_of_fold(model, splits_of(project))
    assert evaluate.main([str(model), "--preprocessed", str(project.preprocessed)]) == 2
    assert "folds 1, 3 are not trained" in capsys.readouterr().err
    assert not (model / "crossval_results").exists()


def test_folds_of_different_plans_are_refused_naming_the_key(project):
    debug = project.model(TOY, SINGLE) / "fold_3" / "debug.json"
    content = json.loads(debug.read_text())
    content["run"]["plan"]["training"]["learning_rate"] *= 2
    write_json(debug, content)
    with pytest.raises(CheckpointError, match=r"fold_3 was trained with another plan.training.learning_rate"):
        out_of_fold(project.model(TOY, SINGLE), splits_of(project))


def test_folds_of_other_splits_are_refused_naming_the_case(project):
    first, second, *rest = splits_of(project)
    moved = second.val[0]
    first = replace(first, val=(*first.val, moved), train=tuple(c for c in first.train if c != moved))
    second = replace(second, val=second.val[1:], train=(*second.train, moved))
    with pytest.raises(PredictionError, match=f"fold_0 was trained with another split: case {moved} is"):
        out_of_fold(project.model(TOY, SINGLE), [first, second, *rest])


def test_a_case_that_validates_twice_is_refused(project):
    splits = splits_of(project)
    model = project.model(TOY, SINGLE)
    shutil.copytree(model / "fold_4", model / "fold_5")
    with pytest.raises(PredictionError, match="validated by several folds"):
        out_of_fold(model, [*splits, splits[4]])


def test_a_fold_that_was_trained_on_its_validation_subjects_is_refused(project):
    fold = project.model(TOY, SINGLE) / "fold_2"
    table, seen = read_predictions(fold / "validation"), read_trained_on(fold / "trained_on.json")
    write_trained_on(fold / "trained_on.json", trained_on(table.subject_ids[:1], [], seen.key))
    with pytest.raises(LeakError, match=rf"fold_2 was trained on subjects .* {table.case_ids[0]}"):
        out_of_fold(project.model(TOY, SINGLE), splits_of(project))


def test_an_interrupted_series_goes_on_and_folds_do_not_depend_on_those_before_them(
    trained_project, crossed, tmp_path, capsys
):
    project = trained_project.copy(tmp_path)
    with stopping_at("step", 2):
        assert train_folds(project, 0, 2) == 75
    assert train_folds(project, 0, 2) == 2
    assert "fold 2 is begun and not finished; continue with --c" in capsys.readouterr().err
    assert train_folds(project, 0, 2, arguments=["--c"]) == 0
    assert "fold 0 is finished: skipped" in capsys.readouterr().out
    files = [p.model(TOY, SINGLE) / "fold_2" / FINAL for p in (project, crossed)]
    assert_same_tensors(*map(load_file, files))
    assert not (project.model(TOY, SINGLE) / "crossval_results").exists(), "folds 1, 3 and 4 are not there"


@pytest.mark.parametrize(
    ("folds", "arguments", "said"),
    [
        ((0, 0), [], "fold 0 is given twice"),
        ((0, 7), [], "no fold 7"),
        ((1, "x"), [], "fold 'x'"),
        ((1, 2), ["--c", "--tag", "new"], "no checkpoint to continue"),
        ((0, 1), ["--val", "--tag", "new"], "folds 0, 1 are not trained"),
    ],
)
def test_what_would_stop_a_later_fold_is_said_before_the_first(crossed, capsys, folds, arguments, said):
    assert train_folds(crossed, *folds, arguments=arguments) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_folds_that_start_from_weights_are_not_begun_without_them(crossed, tmp_path, capsys):
    project = crossed.copy(tmp_path)
    weights = ["-pretrained_weights", str(project.model(TOY, SINGLE) / "fold_0" / FINAL), "--tag", "warm"]
    assert train_folds(project, 0, arguments=weights) == 0
    assert train_folds(project, 0, 1, arguments=["--c", "--tag", "warm"]) == 2
    assert "pass -pretrained_weights FILE again" in capsys.readouterr().err
    assert train_folds(project, 0, 1, arguments=["--c", *weights]) == 0
    (warm,) = project.results.glob("*/*__warm")
    assert (warm / "fold_1" / "pretrained_weights.json").is_file()


def test_a_cross_validated_model_is_evaluated_and_analyzed_by_its_folder(project, capsys):
    model = project.model(TOY, SINGLE)
    shutil.rmtree(model / "crossval_results")
    assert evaluate.main([str(model), "--preprocessed", str(project.preprocessed)]) == 0
    said = capsys.readouterr().out
    assert "kl.qwk" in said
    assert " to " in said
    assert f"{len(rows_of(model / 'crossval_results'))} cases, 5 folds" in said
    (opened,) = open_study(name_models([str(model)]), resamples=5, seed=0).models
    assert opened.predictions.folds == tuple(row["fold"] for row in rows_of(model / "crossval_results"))
    assert name_models([str(model / "crossval_results")]) == {model.name: model / "crossval_results"}


def test_results_that_are_there_are_evaluated_where_the_dataset_is_not_at_hand(project, capsys):
    results = project.model(TOY, SINGLE) / "crossval_results"
    before = (results / "summary.json").read_bytes()
    assert evaluate.main([str(results)]) == 0
    assert "kl.qwk" in capsys.readouterr().out
    assert (results / "summary.json").read_bytes() == before


def test_out_of_fold_predictions_offer_no_network_and_no_validation_cases_beside_them(crossed):
    model = crossed.model(TOY, SINGLE)
    places = Places(raw_override=crossed.raw, preprocessed_override=crossed.preprocessed)
    study = open_study({"m": model / "crossval_results"}, resamples=5, seed=0, places=places)
    assert study.models[0].provides == {"predictions"}
    assert "the network of its own fold" in study.models[0].lacks("network")
    assert study.models[0].validation() == {}, "a temperature fitted on them would be fitted on its test"
    alone = open_study({"m": model / "fold_0" / "validation"}, resamples=5, seed=0, places=places)
    assert "network" in alone.models[0].provides


def know_the_truth(folder):
    """Make predictions of KL those of somebody who knows it."""
    table = read_predictions(folder)
    kl = table.targets["kl"]
    truth = np.where(kl.known(), kl.truth, 0)
    right = replace(kl, predicted=truth, probabilities=np.eye(5)[truth])
    write_predictions(folder, replace(table, targets={**table.targets, "kl": right}))


def test_models_are_ranked_and_the_command_to_predict_with_is_said(project, capsys):
    model = project.model(TOY, SINGLE)
    twin, part = (project.model(TOY, SINGLE, tag=tag) for tag in ("twin", "part"))
    shutil.copytree(model, twin)
    shutil.copytree(model, part)
    for fold in range(1, 5):
        shutil.rmtree(part / f"fold_{fold}")
        know_the_truth(twin / f"fold_{fold}" / "validation")
    places = ["--preprocessed", str(project.preprocessed), "--results", str(project.results)]
    assert find_best_configuration.main(["901", *places, "--resamples", "200"]) == 0
    said = capsys.readouterr().out
    found = json.loads((project.results / TOY / "best_configuration.json").read_text())
    names = {model.name, twin.name}
    assert {entry["name"] for entry in found["models"]} == names
    assert found["best"] == twin.name
    assert found["left_out"].keys() == {part.name}
    assert "folds 1, 2, 3, 4 are not trained" in found["left_out"][part.name]
    assert found["metric"] == "kl.qwk"
    best = next(m for m in found["models"] if m["name"] == found["best"])
    rows = [r for r in rows_of(project.results / TOY / best["name"] / "crossval_results") if r["kl_true"]]
    grades = [[int(row[f"kl_{what}"]) for row in rows] for what in ("true", "pred")]
    assert best["value"] == pytest.approx(cohen_kappa_score(*grades, weights="quadratic"))
    command = f"-m {project.results / TOY / best['name']} -i FOLDER_WITH_IMAGES"
    assert said.splitlines()[-1] == f"next:   oaplug_predict_from_modelfolder {command}"
    assert found["predict"].endswith(command)
    text = (project.results / TOY / "best_configuration.md").read_text()
    assert all(f"| {name} |" in text for name in names)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--metric", "kl.kappa"], "no metric 'kl.kappa'"),
        (["--metric", "kl.qwk", "-m", "nothing"], "nothing is no model folder"),
        (["--metric", "oa.qwk"], "did you mean"),
    ],
)
def test_a_mistake_in_what_to_compare_is_one_line(crossed, capsys, arguments, said):
    places = ["--preprocessed", str(crossed.preprocessed), "--results", str(crossed.results)]
    assert find_best_configuration.main(["901", *places, *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_model_that_was_asked_for_must_be_whole(project, capsys):
    shutil.rmtree(project.model(TOY, SINGLE) / "fold_1")
    places = ["--preprocessed", str(project.preprocessed), "--results", str(project.results)]
    name = project.model(TOY, SINGLE).name
    assert find_best_configuration.main(["901", "-m", name, *places]) == 2
    assert "fold 1 is not trained" in capsys.readouterr().err
    assert find_best_configuration.main(["901", *places]) == 2
    assert "no model is cross-validated" in capsys.readouterr().err


# ---------------------------------------------------------------- ranking


KL = Target(name="kl", kind="ordinal", grades=(0, 1, 2, 3, 4))


def noisy_table(model, *, noise, cases=300, visits=1, seed=0, shift=0):
    """Predictions that are off by rounded noise (in grades); the same truths for every model."""
    truth = np.arange(cases) % 5
    rng = np.random.default_rng(seed)
    predicted = np.clip(np.round(truth + noise * rng.standard_normal(cases)) + shift, 0, 4).astype(int)
    known = [
        Case(case_id=f"c{i:03d}", subject_id=f"s{i // visits}", images=(), labels={"kl": int(t)})
        for i, t in enumerate(truth)
    ]
    table = prediction_table(known, {"kl": np.eye(5)[predicted]}, targets={"kl": KL}, fold="0", model=model)
    return replace(table, folds=tuple(str(i % 5) for i in range(cases)))


def ranking_of(tmp_path, tables, metric="kl.qwk", resamples=400):
    for name, table in tables.items():
        write_predictions(tmp_path / name, table)
    folders = {name: tmp_path / name for name in tables}
    return rank_models(folders, metric, resamples=resamples, seed=1, places=Places())


def test_a_worse_model_is_told_from_the_best_and_one_as_good_is_not(tmp_path):
    tables = {
        "bad": noisy_table("bad", noise=2.0, seed=3),
        "good": noisy_table("good", noise=0.7, seed=4),
        "as_good": noisy_table("as_good", noise=0.7, seed=5),
    }
    ranking = ranking_of(tmp_path, tables)
    kappas = {
        name: cohen_kappa_score(t.targets["kl"].truth, t.targets["kl"].predicted, weights="quadratic")
        for name, t in tables.items()
    }
    assert {m.name: m.value for m in ranking.models} == pytest.approx(kappas)
    assert [m.name for m in ranking.models] == sorted(kappas, key=kappas.get, reverse=True)
    assert ranking.models[-1].name == "bad"
    assert {ranking.best.name, *ranking.indistinguishable} == {"good", "as_good"}
    assert not ranking.models[-1].is_indistinguishable
    assert ranking.models[-1].delta == pytest.approx(kappas["bad"] - kappas[ranking.best.name])
    assert ranking.models[-1].delta_high < 0
    assert sum(m.best_in for m in ranking.models) == pytest.approx(1)
    json.dumps(ranking_to_json(ranking), allow_nan=False)


def test_differences_are_paired(tmp_path):
    first = noisy_table("first", noise=1.2, seed=1)
    kl = first.targets["kl"]
    some = np.where(np.arange(300) < 12, np.clip(kl.predicted + 2, 0, 4), kl.predicted)
    worse = replace(first, targets={"kl": replace(kl, predicted=some, probabilities=np.eye(5)[some])})
    ranking = ranking_of(tmp_path, {"first": first, "worse": worse})
    last = ranking.models[-1]
    assert last.name == "worse"
    assert not last.is_indistinguishable
    assert last.high > ranking.best.low, "their own intervals overlap: only pairing tells them apart"


def test_the_lowest_error_is_best(tmp_path):
    tables = {"far": noisy_table("far", noise=2.0, seed=1), "near": noisy_table("near", noise=0.5, seed=2)}
    ranking = ranking_of(tmp_path, tables, metric="kl.mae")
    assert ranking.best.name == "near"
    assert ranking.models[1].delta > 0
    assert ranking.best.best_in == pytest.approx(1)


def test_equal_models_are_indistinguishable_and_share_the_resamples(tmp_path):
    table = noisy_table("one", noise=1.0)
    ranking = ranking_of(tmp_path, {"b": table, "a": table})
    assert [m.name for m in ranking.models] == ["a", "b"]
    assert ranking.indistinguishable == ("b",)
    assert [m.best_in for m in ranking.models] == pytest.approx([0.5, 0.5])
    assert (ranking.models[1].delta, ranking.models[1].p_holm) == (0, 1)


def test_models_of_different_cases_are_not_ranked(tmp_path):
    whole = noisy_table("whole", noise=1.0)
    part = whole.take(whole.case_ids[:-2])
    with pytest.raises(
        PredictionError, match=r"whole and part were not validated on the same cases.*c298, c299"
    ):
        ranking_of(tmp_path, {"whole": whole, "part": part})


def test_gathering_again_gives_the_same_files(project):
    model = project.model(TOY, SINGLE)
    before = {p.name: p.read_bytes() for p in (model / "crossval_results").iterdir()}
    assert set(before) == {"predictions.csv", "predictions.json", "summary.json"}
    write_crossval_results(model, splits_of(project))
    assert {p.name: p.read_bytes() for p in (model / "crossval_results").iterdir()} == before
