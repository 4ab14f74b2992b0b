"""Gathering models into a study, and running analyses so that one failure spoils nothing else."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from synthetic_predictions import make_study, make_table, with_answers

from oaplug.core.errors import LeakError, PathError, PluginError, PredictionError
from oaplug.core.findings import Findings, Table
from oaplug.core.leak import trained_on
from oaplug.core.predictions import write_predictions
from oaplug.plug import AnalysisSpec
from oaplug.plug.registry import Part, Registry
from oaplug.study.gather import name_models, open_study
from oaplug.study.run import run_study


def write(folder, table):
    write_predictions(folder, table)
    return folder


def gather(models):
    return open_study(models, resamples=20, seed=0)


def make_run_folder(folder, *, sets):
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text("{}")
    for name in sets:
        write(folder / "predictions" / name, make_table(subjects=4))
    return folder


def test_models_are_called_after_their_folder_unless_named(tmp_path):
    run = tmp_path / "resnet3d-dual__oaplugPlans__3d_lowres"
    arguments = [
        str(run),
        f"other={run}",
        str(tmp_path / "m3t" / "predictions" / "test"),
        str(tmp_path / "nnmamba" / "predictions" / "test" / "predictions.csv"),
        str(tmp_path / "folded" / "fold_0" / "validation"),
        str(tmp_path / "tables" / "predictions.csv"),
        str(tmp_path / "reader.csv"),
    ]
    assert list(name_models(arguments)) == [run.name, "other", "m3t", "nnmamba", "folded", "tables", "reader"]
    assert name_models(["other=some/where"])["other"].parts == ("some", "where")


def test_a_path_that_holds_an_equals_sign_is_still_a_path(tmp_path):
    folder = tmp_path / "lr=0.1"
    folder.mkdir()
    assert name_models([str(folder)]) == {"lr=0.1": folder}


def test_two_models_of_one_name_are_refused(tmp_path):
    with pytest.raises(PredictionError, match=r"two models are called 'test'.*NAME=PATH"):
        name_models([str(tmp_path / "a" / "test"), str(tmp_path / "b" / "test")])


@pytest.mark.parametrize("argument", ["=path", "name="])
def test_half_a_name_is_refused(argument):
    with pytest.raises(PredictionError, match="expected PATH or NAME=PATH"):
        name_models([argument])


def test_a_csv_its_folder_and_a_model_folder_open_alike(tmp_path):
    run = make_run_folder(tmp_path / "run", sets=["test"])
    table = run / "predictions" / "test"
    study = gather({"run": run, "set": table, "csv": table / "predictions.csv"})
    assert [model.folder for model in study.models] == [run, run, run]
    assert len({model.predictions.case_ids for model in study.models}) == 1
    assert gather({"m": write(tmp_path / "plain", make_table())}).models[0].folder is None


def test_a_model_folder_with_several_sets_asks_for_one(tmp_path):
    run = make_run_folder(tmp_path / "run", sets=["test", "other"])
    with pytest.raises(PredictionError, match=r"several sets \(other, test\); pass the folder of one"):
        gather({"run": run})


def test_a_model_folder_without_predictions_says_what_to_run(tmp_path):
    with pytest.raises(PredictionError, match="run oaplug_predict first"):
        gather({"run": make_run_folder(tmp_path / "run", sets=[])})


def test_paths_that_are_no_model_say_what_was_expected(tmp_path):
    with pytest.raises(PathError, match="does not exist; expected a model folder"):
        gather({"m": tmp_path / "nowhere"})
    with pytest.raises(PredictionError, match="it is no model folder"):
        gather({"m": tmp_path})
    with pytest.raises(PredictionError, match="no model was given"):
        gather({})
    with pytest.raises(PredictionError, match="must be positive"):
        open_study({"m": tmp_path}, resamples=0, seed=0)


def test_cases_are_paired_by_id_in_the_order_of_the_first_model(tmp_path):
    first, second = make_table(), make_table(noise_std=2, seed=1)
    shuffled = second.take([second.case_ids[i] for i in np.random.default_rng(0).permutation(60)])
    study = gather({"a": write(tmp_path / "a", first), "b": write(tmp_path / "b", shuffled)})
    paired = study.models[1].predictions
    assert paired.case_ids == study.case_ids == first.case_ids
    assert paired.subject_ids == study.subject_ids == first.subject_ids
    for name in ("kl", "oa"):
        np.testing.assert_array_equal(paired.targets[name].probabilities, second.targets[name].probabilities)


def refusal(tmp_path, first, second):
    with pytest.raises(PredictionError) as failure:
        gather({"a": write(tmp_path / "a", first), "b": write(tmp_path / "b", second)})
    return str(failure.value)


def test_unequal_cases_are_named_per_model(tmp_path):
    table = make_table()
    message = refusal(tmp_path, table.take(table.case_ids[:-1]), table.take(table.case_ids[7:]))
    assert "only in a: knee000v0, knee000v1, knee001v0, knee001v1, knee002v0 and 2 more" in message
    assert "only in b: knee029v1;" in message


def test_different_truths_are_named(tmp_path):
    table = make_table()
    truth = table.targets["kl"].truth.copy()
    truth[[0, 3]] = [4, -1]
    message = refusal(tmp_path, table, with_answers(table, "kl", truth=truth))
    assert "a and b give different truths of 'kl' for 2 cases" in message
    assert "knee000v0: 0 against 4, knee001v1: 1 against unknown" in message


def test_different_subjects_are_refused(tmp_path):
    table = make_table()
    message = refusal(tmp_path, table, replace(table, subject_ids=("someone", *table.subject_ids[1:])))
    assert "different subjects for 1 cases (knee000v0)" in message


def test_different_definitions_of_a_target_are_refused(tmp_path):
    table = make_table()
    other = replace(table.targets["oa"].target, at_least=3)
    message = refusal(tmp_path, table, with_answers(table, "oa", target=other))
    assert "a and b define the target 'oa' differently" in message


def test_models_of_different_targets_can_be_compared(tmp_path):
    table = make_table()
    only = {name: replace(table, targets={name: table.targets[name]}) for name in ("oa", "kl")}
    study = gather({name: write(tmp_path / name, one) for name, one in only.items()})
    assert set(study.targets) == {"kl", "oa"}


def test_a_model_is_not_tested_on_subjects_it_was_trained_on(tmp_path):
    table = make_table()
    seen = trained_on(["subject003", "subject007"], [], "a key")
    with pytest.raises(LeakError, match=r"m: .*4 cases .*knee003v0, knee003v1, knee007v0, knee007v1"):
        gather({"m": write(tmp_path / "m", replace(table, trained_on=seen))})
    clean = replace(table, trained_on=trained_on(["somebody else"], [], "a key"))
    assert gather({"m": write(tmp_path / "m", clean)}).case_ids == table.case_ids


class Working:
    def run(self, study, folder):
        (folder / "note.txt").write_text("here")
        rows = ((model.name, float("nan")) for model in study.models)
        table = Table(name="t", caption="c", columns=("model", "x"), rows=tuple(rows))
        return Findings(title="Working", summary=("It works.",), tables=(table,))


class Failing:
    def run(self, study, folder):
        raise RuntimeError("out of luck")


class Careless:
    def run(self, study, folder):
        return {"title": "a dict"}


class Unwritable:
    def run(self, study, folder):
        return Findings(title="Unwritable", numbers={"x": object()})


def part(name, kind, *, needs=("predictions",), distribution="toy"):
    spec = AnalysisSpec(
        name=name, summary=f"about {name}", build=lambda options: kind(), needs=frozenset(needs)
    )
    return Part(spec=spec, distribution=distribution, version="1.0")


def run(folder, *parts, analyses=None, progress=None):
    study = make_study({"m": make_table(subjects=5)})
    registry = Registry(parts=parts)
    return run_study(study, analyses, folder=folder, registry=registry, progress=progress)


def sections_of(outcome):
    return {entry["name"]: entry for entry in json.loads(outcome.findings.read_text())["analyses"]}


def test_all_analyses_run_by_name_with_classification_first(tmp_path):
    parts = [part(name, Working) for name in ("zebra", "axis", "classification")]
    outcome = run(tmp_path, *parts)
    assert list(outcome.statuses) == list(sections_of(outcome)) == ["classification", "axis", "zebra"]
    assert (tmp_path / "axis" / "note.txt").is_file()
    assert not outcome.failed


def test_a_failing_analysis_keeps_its_traceback_and_spoils_no_other(tmp_path):
    kinds = {"bad": Failing, "careless": Careless, "good": Working, "unwritable": Unwritable}
    outcome = run(tmp_path, *(part(name, kind) for name, kind in kinds.items()))
    expected = {"bad": "failed", "careless": "failed", "good": "ok", "unwritable": "failed"}
    assert outcome.statuses == expected
    assert outcome.failed
    sections = sections_of(outcome)
    assert sections["bad"]["reason"] == "RuntimeError: out of luck"
    assert 'raise RuntimeError("out of luck")' in sections["bad"]["traceback"]
    assert "gave dict, expected Findings" in sections["careless"]["reason"]
    assert sections["good"]["findings"]["tables"][0]["rows"] == [["m", None]]


def test_an_analysis_that_cannot_even_be_built_fails_alone(tmp_path):
    def explode():
        raise ImportError("no such library")

    outcome = run(tmp_path, part("bad", explode), part("good", Working))
    assert outcome.statuses == {"bad": "failed", "good": "ok"}


def test_an_analysis_whose_needs_are_not_met_is_skipped_with_the_reason(tmp_path):
    outcome = run(tmp_path, part("axis", Working, needs=("predictions", "features", "images")))
    assert outcome.statuses == {"axis": "skipped"}
    assert not outcome.failed
    assert "features, images" in sections_of(outcome)["axis"]["reason"]
    assert not (tmp_path / "axis").exists()


def test_only_the_analyses_asked_for_run_and_unknown_ones_are_refused_before_any(tmp_path):
    parts = (part("axis", Working), part("zebra", Working))
    assert list(run(tmp_path / "a", *parts, analyses=["zebra", "zebra"]).statuses) == ["zebra"]
    with pytest.raises(PluginError, match="did you mean 'axis'"):
        run(tmp_path / "b", *parts, analyses=["zebra", "axes"])
    assert not (tmp_path / "b").exists()


def test_two_distributions_may_offer_an_analysis_of_one_name(tmp_path):
    outcome = run(tmp_path, part("axis", Working), part("axis", Working, distribution="other"))
    assert list(outcome.statuses) == ["other-axis", "toy-axis"]


def test_findings_say_what_was_compared(tmp_path):
    content = json.loads(run(tmp_path, part("axis", Working)).findings.read_text())
    assert content["schema"] == 1
    assert (content["cases"], content["subjects"], content["resamples"]) == (10, 5, 50)
    assert content["models"] == [{"name": "m", "cases": 10, "folds": ["0"], "targets": ["kl", "oa"]}]
    assert content["targets"][1]["grades"] == {"0": 4, "1": 6}


def test_progress_is_told_before_each_analysis_and_at_the_end(tmp_path):
    told = []
    parts = (part("axis", Working), part("zebra", Working))
    run(tmp_path, *parts, progress=lambda *step: told.append(step))
    assert told == [(0, 2, "axis"), (1, 2, "zebra"), (2, 2, "done")]
