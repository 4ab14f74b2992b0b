"""Penultimate features: what they are, which cases they belong to, and how a study comes by them."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import oaplug
from oaplug.commands import analyze, predict, predict_from_modelfolder
from oaplug.core.errors import PlanError, PredictionError
from oaplug.core.features import FEATURES_HEADER, Features, read_features, write_features
from oaplug.core.paths import Places
from oaplug.core.predictions import read_predictions
from oaplug.core.target import Target
from oaplug.infer.inputs import find_cases
from oaplug.prepare.store import read_array
from oaplug.study.gather import open_study

TOY = "Dataset901_Toy"


@pytest.fixture(scope="module")
def project(trained_project, tmp_path_factory):
    """The toy project with a dual model of two folds, which has predicted the test split with features."""
    project = trained_project.copy(tmp_path_factory.mktemp("features"))
    for fold in (0, 1):
        assert project.train(901, "--head", "dual", fold=fold) == 0
    model, images = project.model(TOY, "resnet3d-dual"), project.raw / TOY / "imagesTs"
    assert project.predict(model, images, "-o", project.root / "without") == 0
    assert project.predict(model, images, "--features", "--preprocessed", project.preprocessed) == 0
    return project


@pytest.fixture
def own_project(project, tmp_path):
    """A copy that a test may change."""
    return project.copy(tmp_path / "project")


def dual(project):
    return project.model(TOY, "resnet3d-dual")


def predicted(project):
    return dual(project) / "predictions" / "imagesTs"


def study_of(project, *, places=True, **models):
    roots = Places(raw_override=project.raw, preprocessed_override=project.preprocessed)
    models = models or {"dual": dual(project)}
    return open_study(models, resamples=20, seed=0, places=roots if places else None)


def test_networks_of_a_study_go_to_the_device_that_was_asked_for(project):
    study = open_study({"dual": dual(project)}, resamples=20, seed=0, device="cuda:99")
    with pytest.raises(PlanError, match="cuda:99"):
        study.models[0].open()
    study = open_study({"dual": dual(project)}, resamples=20, seed=0, device="cpu")
    assert study.models[0].open().precision.device.type == "cpu"


def test_asking_for_features_changes_no_prediction(project):
    for name in ("predictions.csv", "predictions.json"):
        assert (predicted(project) / name).read_bytes() == (project.root / "without" / name).read_bytes()
    assert not (project.root / "without" / "features.safetensors").exists()


def test_features_are_what_each_folds_head_answers_from(project):
    model = oaplug.load_model(dual(project), device="cpu")
    found = read_features(predicted(project) / "features.safetensors")
    table = read_predictions(predicted(project))
    cases = find_cases(project.raw / TOY / "imagesTs", model.run.description, table=None)
    assert list(found.folds) == ["0", "1"]
    assert found.case_ids == table.case_ids
    answers = []
    for fold, network in model.networks.items():
        assert found.folds[fold].shape == (len(cases), network.num_features)
        assert found.folds[fold].dtype == np.float32
        prepared = (
            np.stack([model.prepare(case).data for case in cases]).astype(np.float16).astype(np.float32)
        )
        with torch.inference_mode():
            expected = network.encoder(torch.from_numpy(prepared))
            logits = network.head(torch.from_numpy(found.folds[fold]))
        np.testing.assert_allclose(found.folds[fold], expected.numpy(), rtol=1e-4, atol=1e-5)
        answers.append(network.probabilities(logits)["kl"].numpy())
    np.testing.assert_allclose(np.mean(answers, axis=0), table.targets["kl"].probabilities, atol=1e-5)


def test_paths_of_images_are_predicted_like_the_cases_they_are(project):
    model = oaplug.load_model(dual(project), device="cpu")
    table, problems = model.predict(sorted((project.raw / TOY / "imagesTs").glob("*_0000.nii.gz")))
    expected = read_predictions(predicted(project))
    assert not problems
    assert table.case_ids == expected.case_ids
    np.testing.assert_allclose(
        table.targets["kl"].probabilities, expected.targets["kl"].probabilities, atol=1e-5
    )


def test_training_features_are_those_of_the_folds_own_training_cases(project):
    model = oaplug.load_model(dual(project), device="cpu")
    data = project.preprocessed / TOY / model.run.configuration.data_identifier
    with (project.raw / TOY / "cases.csv").open(newline="") as file:
        rows = {row["case_id"]: row for row in csv.DictReader(file)}
    of_folds = []
    for fold, network in model.networks.items():
        folder = dual(project) / f"fold_{fold}"
        found = read_features(folder / "train_features_final.safetensors")
        assert list(found.case_ids) == json.loads((folder / "debug.json").read_text())["training_cases"]
        volumes = np.stack([read_array(data / f"{case}.b2nd") for case in found.case_ids]).astype(np.float32)
        with torch.inference_mode():
            expected = network.encoder(torch.from_numpy(volumes)).numpy()
        np.testing.assert_allclose(found.folds[fold], expected, rtol=1e-4, atol=1e-5)
        assert [("" if t < 0 else str(t)) for t in found.truths["kl"]] == [
            rows[case]["kl"] for case in found.case_ids
        ]
        assert found.subject_ids == tuple(rows[case]["subject_id"] for case in found.case_ids)
        of_folds.append(found)
    assert set(of_folds[0].case_ids) != set(of_folds[1].case_ids)
    assert of_folds[0].weights != of_folds[1].weights


def test_training_cases_are_known_by_their_images_not_by_lists_of_ids(own_project, capsys):
    """A model that comes without debug.json, and so without ids, finds its training cases all the same."""
    for fold in dual(own_project).glob("fold_*"):
        (fold / "debug.json").unlink()
        (fold / "train_features_final.safetensors").unlink()
    images = own_project.raw / TOY / "imagesTs"
    arguments = ("--features", "--preprocessed", own_project.preprocessed)
    assert own_project.predict(dual(own_project), images, *arguments) == 0
    assert "fold_1/train_features_final.safetensors" in capsys.readouterr().out.replace("\\", "/")


def test_training_features_that_are_current_are_kept_and_new_labels_are_taken_up(own_project):
    model, images = dual(own_project), own_project.raw / TOY / "imagesTs"
    arguments = ("--features", "--preprocessed", own_project.preprocessed)
    path = model / "fold_0" / "train_features_final.safetensors"
    before = path.stat().st_ino
    assert own_project.predict(model, images, *arguments) == 0
    assert path.stat().st_ino == before
    found = read_features(path)
    known = int(np.flatnonzero(found.truths["kl"] == 0)[0])
    table = own_project.preprocessed / TOY / "cases.csv"
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if row["case_id"] == found.case_ids[known]:
            row["kl"] = "1"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    assert own_project.predict(model, images, *arguments) == 0
    again = read_features(path)
    assert again.truths["kl"][known] == 1
    np.testing.assert_array_equal(again.folds["0"], found.folds["0"])


def test_without_the_cases_of_the_training_only_the_predicted_ones_get_features(
    own_project, tmp_path, capsys
):
    model, images = dual(own_project), own_project.raw / TOY / "imagesTs"
    for path in model.glob("fold_*/train_features_*"):
        path.unlink()
    assert own_project.predict(model, images, "--features", "-o", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "without features of the training cases" in said
    assert "oaplug_preprocessed is not set" in said
    assert (tmp_path / "out" / "features.safetensors").is_file()
    assert not list(model.glob("fold_*/train_features_*"))


def test_a_training_image_that_is_not_there_any_more_is_told(own_project, capsys):
    model, data = dual(own_project), own_project.preprocessed / TOY
    case = json.loads((model / "fold_0" / "debug.json").read_text())["training_cases"][0]
    (record,) = data.glob(f"oaplugPlans*/{case}.json")
    record.unlink()
    images = own_project.raw / TOY / "imagesTs"
    assert own_project.predict(model, images, "--features", "--preprocessed", own_project.preprocessed) == 0
    assert "1 of the" in (said := capsys.readouterr().out)
    assert "that fold 0 of" in said


def test_features_never_outlive_the_predictions_they_belong_to(own_project, capsys):
    model, images = dual(own_project), own_project.raw / TOY / "imagesTs"
    assert own_project.predict(model, images) == 0
    assert (predicted(own_project) / "features.safetensors").is_file(), "the same weights and cases: kept"
    assert own_project.predict(model, images, "-f", 1) == 0
    assert not (predicted(own_project) / "features.safetensors").exists()
    assert "was removed" in capsys.readouterr().out


def test_the_command_that_finds_models_by_dataset_writes_features_too(own_project):
    path = predicted(own_project) / "features.safetensors"
    path.unlink()
    places = ["--results", own_project.results, "--preprocessed", own_project.preprocessed]
    arguments = ["-d", "901", "--head", "dual", "-i", own_project.raw / TOY / "imagesTs", *places]
    assert predict.main([*map(str, arguments), "-device", "cpu", "--features"]) == 0
    assert path.is_file()


def make(**changes):
    whole = {
        "model": "m",
        "checkpoint": "final",
        "case_ids": ("a", "b", "c"),
        "subject_ids": ("s", "s", "t"),
        "folds": {"0": np.arange(6, dtype=np.float32).reshape(3, 2), "1": np.ones((3, 4), dtype=np.float32)},
        "weights": {"0": "x", "1": "y"},
        "targets": {"t": Target(name="t", kind="ordinal", grades=("low", "middle", "high"))},
        "truths": {"t": np.array([0, -1, 2])},
    }
    return Features(**whole | changes)


def test_features_come_back_as_they_were_written(tmp_path):
    features = make()
    found = read_features(write_features(tmp_path / "f.safetensors", features))
    for name in ("folds", "truths"):
        for key, table in getattr(features, name).items():
            np.testing.assert_array_equal(getattr(found, name)[key], table)
    simple = {"folds": {}, "weights": {}, "truths": {}, "targets": {}}
    assert replace(found, **simple) == replace(features, **simple)
    assert (found.weights, found.targets) == (features.weights, features.targets)


def test_features_are_taken_in_the_order_asked_for():
    taken = make().take(["c", "a"])
    assert taken.subject_ids == ("t", "s")
    np.testing.assert_array_equal(taken.folds["0"], [[4, 5], [0, 1]])
    np.testing.assert_array_equal(taken.truths["t"], [2, 0])
    with pytest.raises(PredictionError, match="lacks 1 cases, the first d"):
        make().take(["a", "d"])


def test_features_that_are_not_finite_or_not_one_row_a_case_are_refused():
    bad = np.array([[0, 1], [np.inf, 1], [0, 0]], dtype=np.float32)
    with pytest.raises(PredictionError, match="fold 0: not finite for case b"):
        make(folds={"0": bad}, weights={"0": "x"})
    with pytest.raises(PredictionError, match=r"a row for each of 3 cases, got an array \(2, 2\)"):
        make(folds={"0": bad[:2]}, weights={"0": "x"})


def test_files_that_hold_no_features_are_refused(tmp_path):
    path = tmp_path / "f.safetensors"
    with pytest.raises(PredictionError, match=r"does not exist; predict with --features"):
        read_features(path)
    path.write_bytes(b"\x80\x04pickle")
    with pytest.raises(PredictionError, match="holds no features of oaplug"):
        read_features(path)
    save_file({"fold.0": np.zeros((1, 1), dtype=np.float32)}, str(path))
    with pytest.raises(PredictionError, match="holds no features of oaplug"):
        read_features(path)
    write_features(path, make())
    tensors, header = load_file(path), json.dumps({"schema": 99})
    save_file(tensors, str(path), metadata={FEATURES_HEADER: header})
    with pytest.raises(PredictionError, match="schema 99 is newer"):
        read_features(path)


def test_a_study_provides_what_lies_in_and_around_a_model_folder(project):
    study = study_of(project)
    needs = {"predictions", "features", "train_features", "network", "train_images", "images", "masks"}
    assert study.provides == needs
    (model,) = study.models_with(needs)
    assert model.features().case_ids == study.case_ids
    assert set(model.train_features()) == {"0", "1"}
    case = study.cases[study.case_ids[0]]
    assert case.mask.is_file()
    opened = model.open()
    assert opened is model.open(), "loaded once"
    batch = opened.as_batch(opened.prepare(case).data)
    features = opened.networks["1"].features(batch)
    np.testing.assert_allclose(
        features.detach().numpy()[0], model.features().folds["1"][0], rtol=1e-4, atol=1e-5
    )


def test_training_batches_hold_the_folds_training_cases_only_and_repeat_by_seed(project):
    (model,) = study_of(project).models
    trained = json.loads((dual(project) / "fold_1" / "debug.json").read_text())["training_cases"]
    batches = list(model.training_batches("1", seed=3))
    ids = [case for batch in batches for case in batch.case_ids]
    assert len(set(ids)) == len(ids) > 1
    assert set(ids) <= set(trained)
    again = [case for batch in model.training_batches("1", seed=3) for case in batch.case_ids]
    other = [case for batch in model.training_batches("1", seed=4) for case in batch.case_ids]
    assert again == ids != other
    assert batches[0].volume.shape[0] == len(batches[0].truth.targets["kl"]) == len(batches[0].case_ids)


def test_a_study_without_datasets_or_model_folders_says_what_is_missing(project, tmp_path):
    shutil.copytree(predicted(project), tmp_path / "table")
    study = study_of(project, places=False, whole=dual(project), table=tmp_path / "table")
    assert study.provides == {"predictions", "features", "train_features", "network"}
    assert [model.name for model in study.models_with({"features"})] == ["whole"]
    whole, table = study.models
    assert "oaplug_preprocessed is not set" in whole.lacks("train_images")
    assert "lies in no model folder" in table.lacks("features")
    assert "oaplug_raw is not set" in study.cases_lacking
    with pytest.raises(PredictionError, match=r"table has no network: .* lies in no model folder"):
        table.open()


def test_features_of_other_weights_than_those_that_predicted_are_not_used(own_project):
    path = dual(own_project) / "fold_1" / "train_features_final.safetensors"
    write_features(path, replace(read_features(path), weights={"1": "of another training"}))
    (model,) = study_of(own_project).models
    assert "is of other weights than features.safetensors" in model.lacks("train_features")
    assert not model.lacks("features")


def section(report, name):
    content = json.loads((report / "findings.json").read_text())
    return next(entry for entry in content["analyses"] if entry["name"] == name)


def test_the_reason_of_a_skipped_analysis_is_the_command_that_mends_it(own_project, tmp_path):
    model, images = dual(own_project), own_project.raw / TOY / "imagesTs"
    (predicted(own_project) / "features.safetensors").unlink()
    asked = ["-m", str(model), "-a", "severity_axis", "--resamples", "20", "-o", str(tmp_path)]
    assert analyze.main(asked) == 0
    entry = section(tmp_path, "severity_axis")
    assert entry["status"] == "skipped"
    said = entry["reason"].split("run oaplug_predict_from_modelfolder ")[1].split(" --features")[0].split()
    assert said[::2] == ["-m", "-i", "-o"]
    command = [*said, "--features", "--preprocessed", own_project.preprocessed, "-device", "cpu"]
    command[3] = images
    assert predict_from_modelfolder.main([str(word) for word in command]) == 0
    assert study_of(own_project).models_with({"features", "train_features"})


@pytest.mark.slow
def test_the_severity_axis_of_a_trained_model_is_found_and_drawn(project, tmp_path):
    asked = ["-m", str(dual(project)), "-a", "severity_axis", "--resamples", "20", "-o", str(tmp_path)]
    assert analyze.main(asked) == 0
    found = section(tmp_path, "severity_axis")["findings"]
    assert 0 <= found["numbers"][f"{dual(project).name}.kl.abs_spearman"] <= 1
    assert (tmp_path / "severity_axis" / "plane.png").is_file()
    assert "PC1 of" in (tmp_path / "report.html").read_text()
