"""From raw images to a report through the commands, for every kind of dataset and every head."""

from __future__ import annotations

import csv
import json
import shutil

import pytest
from conftest import Project
from converter_sources import knee, write_hub
from safetensors import safe_open
from safetensors.torch import load_file

from oaplug.commands import analyze, convert, evaluate, predict
from oaplug.testing.toy import write_toy_dataset
from oaplug.train.trainer import Trainer

TOY, PLAIN, DUO, NNUNET = "Dataset901_Toy", "Dataset902_Plain", "Dataset903_Duo", "Dataset904_NnUNet"


@pytest.fixture(scope="module")
def project(trained_project, tmp_path_factory):
    """901 with the session's model, 902 plain binary, 903 with two channels, 904 without labels."""
    project = trained_project.copy(tmp_path_factory.mktemp("project"))
    write_toy_dataset(project.raw / PLAIN, cases=16, kind="binary")
    write_toy_dataset(project.raw / DUO, cases=16, channels=2, shape=(9, 13, 12))
    write_toy_dataset(project.raw / NNUNET, cases=8, kind="unlabelled", seed=1)
    return project


def table_of(folder):
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def json_of(path):
    return json.loads(path.read_text())


def assert_same_tensors(first, second):
    assert first.keys() == second.keys()
    assert first
    for name in first:
        assert first[name].equal(second[name]), name


def assert_predicted(folder, *, cases, targets):
    """The table holds the cases in order and probabilities that sum to 1; its sidecar describes it."""
    rows = table_of(folder)
    assert [row["case_id"] for row in rows] == sorted(cases)
    for name, grades in targets.items():
        for row in rows:
            probabilities = {grade: float(row[f"{name}_prob_{grade}"]) for grade in grades}
            assert sum(probabilities.values()) == pytest.approx(1, abs=1e-6)
            assert row[f"{name}_pred"] == max(probabilities, key=probabilities.get)
    sidecar = json_of(folder / "predictions.json")
    assert sidecar["schema"] == 1
    assert {name: list(map(str, t["grades"])) for name, t in sidecar["targets"].items()} == targets
    assert sidecar["model"]
    assert len(sidecar["trained_on"]["key"]) == 32
    assert sidecar["trained_on"]["subjects"]
    assert sidecar["trained_on"]["images"]
    text = (folder / "predictions.json").read_text()
    assert not any(case in text for case in cases), "no case is named beside hashes of the training cases"


def ids_in(images):
    return [path.name.removesuffix("_0000.nii.gz") for path in sorted(images.glob("*_0000.nii.gz"))]


KL, OA, DISEASE = {"kl": ["0", "1", "2", "3", "4"]}, {"oa": ["0", "1"]}, {"disease": ["no", "yes"]}


def go_all_the_way(project, dataset, models, *, targets, report):
    """Verify, prepare, train `models` (arguments by tag), predict, evaluate, and compare them."""
    number, images = dataset.removeprefix("Dataset")[:3], project.raw / dataset / "imagesTs"
    assert project.prepare(number, "--verify_dataset_integrity") == 0
    chosen = []
    for tag, arguments in models.items():
        assert project.train(number, "--tag", tag, *arguments, epochs=2) == 0
        (model,) = (project.results / dataset).glob(f"*__{tag}")
        assert project.predict(model, images) == 0
        predictions = model / "predictions" / "imagesTs"
        assert_predicted(predictions, cases=ids_in(images), targets=targets)
        assert evaluate.main([str(predictions)]) == 0
        metrics = json_of(predictions / "summary.json")["metrics"]
        assert set(metrics) >= {f"{name}.{what}" for name in targets for what in ("accuracy", "f1")}
        chosen.append(f"the-{tag}-one={model}")
    assert analyze.main(["-m", *chosen, "-o", str(report), "--resamples", "20"]) == 0
    text = (report / "report.html").read_text()
    assert all(f"the-{tag}-one" in text for tag in models)
    assert "data:image/png;base64," in text


def test_a_hierarchy_goes_from_raw_images_to_a_report(project, tmp_path, capsys):
    models = {"fine": ["--head", "single"], "both": ["--head", "dual"]}
    go_all_the_way(project, TOY, models, targets=KL | OA, report=tmp_path / "report")
    said = capsys.readouterr()
    assert f"{TOY}: 24 cases, no problems found" in said.out
    assert "classification: ok" in said.out
    assert said.err.splitlines() in ([], ["too few cases per grade of kl: 5 folds balanced by oa"])


@pytest.mark.slow
def test_a_plain_binary_dataset_goes_from_raw_images_to_a_report(project, tmp_path):
    assert sorted(p.name for p in (project.raw / PLAIN).iterdir()) == [
        *("cases.csv", "dataset.json", "imagesTr", "imagesTs")
    ]
    assert (project.raw / PLAIN / "cases.csv").read_text().split()[0] == "case_id,disease"
    models = {"one": [], "steady": ["--set", "training.schedule=constant"]}
    go_all_the_way(project, PLAIN, models, targets=DISEASE, report=tmp_path / "report")


@pytest.mark.slow
@pytest.mark.slow
def test_a_two_channel_dataset_goes_from_raw_images_to_a_report(project, tmp_path):
    models = {"cascade": ["--head", "dual_cascade"], "ranks": ["--head", "ordinal"]}
    go_all_the_way(project, DUO, models, targets=KL | OA, report=tmp_path / "report")
    model = project.model(DUO, "resnet3d-ordinal_kl", tag="ranks")
    weights = load_file(model / "fold_0" / "checkpoint_final.safetensors")
    assert weights["network.encoder.conv1.weight"].shape[1] == 2
    settings = json_of(model / "plans.json")["plan"]["configurations"]["3d_lowres"]
    assert len(settings["normalization"]) == 2


@pytest.mark.parametrize(
    ("arguments", "name", "targets"),
    [
        (["--head", "dual_cascade"], "resnet3d-dual_cascade", KL | OA),
        (["--head", "ordinal"], "resnet3d-ordinal_kl", KL | OA),
        (["--target", "oa"], "resnet3d-single_oa", OA),
    ],
)
def test_a_head_is_trained_found_by_name_and_predicts(project, arguments, name, targets):
    assert project.train(901, *arguments) == 0
    images = project.raw / TOY / "imagesTs"
    found_by = ["-d", "901", "--results", str(project.results), "-device", "cpu", *arguments]
    assert predict.main([*found_by, "-i", str(images)]) == 0
    model = project.model(TOY, name)
    assert_predicted(model / "predictions" / "imagesTs", cases=ids_in(images), targets=targets)


def test_a_model_folder_holds_what_the_design_says(trained_project):
    model = trained_project.model(TOY, "resnet3d-single_kl")
    assert model.name == "resnet3d-single_kl__oaplugPlans__3d_lowres"
    assert {p.name for p in model.iterdir()} >= {
        *("plans.json", "dataset.json", "dataset_fingerprint.json", "provenance.json", "fold_0")
    }
    fold = model / "fold_0"
    names = {p.name for p in fold.iterdir()}
    assert names >= {"checkpoint_latest.safetensors", "checkpoint_final.safetensors"}
    assert names >= {"progress.png", "metrics.jsonl", "debug.json", "validation"}
    assert [p for p in fold.glob("training_log_*.txt") if p.stat().st_size]
    assert not [p for p in model.rglob(".writing-*")], "no temporary file is left"
    resolved = json_of(model / "plans.json")
    assert resolved["plan"]["training"]["epochs"] == 1
    assert resolved["run"]["backbone"]["options"]["width"] == 4
    assert resolved["run"]["overrides"]["backbone.width"] == 4
    assert resolved["run"]["target"] == "kl"
    with safe_open(fold / "checkpoint_latest.safetensors", framework="pt") as file:
        progress = json.loads(file.metadata()["oaplug_checkpoint"])["progress"]
        prefixes = {name.split(".")[0] for name in file.keys()}  # noqa: SIM118
    assert (progress["epoch"], progress["next_step"]) == (1, 0)
    assert prefixes == {"network", "optimizer"}


def test_validation_cases_are_those_of_the_split_and_were_not_trained_on(trained_project):
    fold = trained_project.model(TOY, "resnet3d-single_kl") / "fold_0"
    split = json_of(trained_project.preprocessed / TOY / "splits_final.json")[0]
    assert [row["case_id"] for row in table_of(fold / "validation")] == split["val"]
    debug = json_of(fold / "debug.json")
    with (trained_project.raw / TOY / "cases.csv").open(newline="") as file:
        rows = {row["case_id"]: row for row in csv.DictReader(file)}
    subjects = [{rows[c]["subject_id"] for c in debug[k]} for k in ("training_cases", "validation_cases")]
    assert not subjects[0] & subjects[1]
    tests = set(ids_in(trained_project.raw / TOY / "imagesTs"))
    assert not tests & {*debug["training_cases"], *debug["validation_cases"]}
    labelled = [c for c in split["train"] if rows[c]["kl"] or rows[c]["oa"]]
    assert debug["training_cases"] == labelled


def test_an_nnunet_dataset_without_labels_is_prepared_and_predicted_but_not_trained(
    project, tmp_path, capsys
):
    assert project.prepare(904, "--verify_dataset_integrity") == 0
    prepared = list((project.preprocessed / NNUNET).glob("oaplugPlans*/*.b2nd"))
    assert len(prepared) == 8
    images = project.raw / NNUNET / "imagesTs"
    model = project.model(TOY, "resnet3d-single_kl")
    assert project.predict(model, images, "-o", tmp_path) == 0
    assert_predicted(tmp_path, cases=ids_in(images), targets=KL | OA)
    assert {row["kl_true"] for row in table_of(tmp_path)} == {""}
    capsys.readouterr()
    assert evaluate.main([str(tmp_path)]) == 2
    assert "no truth to compare with" in capsys.readouterr().err
    assert project.train(904) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no targets" in line
    assert not (project.results / NNUNET).exists()


def progress_in(checkpoint):
    with safe_open(checkpoint, framework="pt") as file:
        return json.loads(file.metadata()["oaplug_checkpoint"])["progress"]


@pytest.mark.slow
def test_an_interrupted_training_goes_on_to_the_same_bits(project, monkeypatch, capsys):
    arguments = ("--head", "dual", "--set", "head.dropout=0.3", "--set", "training.threads=1")
    save = Trainer._save

    def save_and_stop(trainer, name):
        save(trainer, name)
        if (name, trainer.epoch) == ("latest", 1):
            raise KeyboardInterrupt

    assert project.train(901, *arguments, "--tag", "whole", epochs=3) == 0
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save", save_and_stop)
        assert project.train(901, *arguments, "--tag", "halves", epochs=3) == 130
    assert capsys.readouterr().err == "oaplug_train: interrupted; what was finished is kept\n"
    whole, halves = (project.model(TOY, "resnet3d-dual", tag=tag) / "fold_0" for tag in ("whole", "halves"))
    stopped = progress_in(halves / "checkpoint_latest.safetensors")
    assert stopped["epoch"] == 1
    assert stopped["best"] == progress_in(halves / "checkpoint_best.safetensors")["best"] is not None
    assert not (halves / "checkpoint_final.safetensors").exists()

    assert project.train(901, *arguments, "--tag", "halves", "--c", epochs=3) == 0
    for name in ("final", "best", "latest"):
        file = f"checkpoint_{name}.safetensors"
        assert_same_tensors(load_file(whole / file), load_file(halves / file))
    logs = [list(map(json.loads, (f / "metrics.jsonl").read_text().splitlines())) for f in (whole, halves)]
    assert [record["epoch"] for record in logs[0]] == [0, 1, 2]
    assert [{**r, "seconds": 0} for r in logs[0]] == [{**r, "seconds": 0} for r in logs[1]]
    assert table_of(whole / "validation") == table_of(halves / "validation")


def test_training_on_all_cases_has_no_validation_and_predicts(project):
    assert project.train(901, "--tag", "everything", fold="all") == 0
    model = project.model(TOY, "resnet3d-single_kl", tag="everything")
    fold = model / "fold_all"
    assert not (fold / "validation").exists()
    assert not (fold / "checkpoint_best.safetensors").exists()
    debug = json_of(fold / "debug.json")
    assert debug["validation_cases"] == []
    splits = json_of(project.preprocessed / TOY / "splits_final.json")
    assert debug["training_cases"] == sorted(case for split in splits for case in split["val"])
    assert not [key for key in json.loads((fold / "metrics.jsonl").read_text()) if key.startswith("val.")]
    images = project.raw / TOY / "imagesTs"
    assert project.predict(model, images) == 0
    assert_predicted(model / "predictions" / "imagesTs", cases=ids_in(images), targets=KL | OA)


@pytest.mark.slow
def test_folds_are_averaged_and_a_fold_can_be_chosen(project, tmp_path):
    images = project.raw / TOY / "imagesTs"
    for fold in (0, 1):
        assert project.train(901, "--tag", "folds", fold=fold) == 0
    model = project.model(TOY, "resnet3d-single_kl", tag="folds")
    chosen = {"0": ("-f", 0), "1": ("-f", 1), "0+1": ()}
    tables = {}
    for name, folds in chosen.items():
        assert project.predict(model, images, *folds, "-o", tmp_path / name) == 0
        tables[name] = table_of(tmp_path / name)
        assert {row["fold"] for row in tables[name]} == {name}
    columns = [column for column in tables["0"][0] if "_prob_" in column]
    assert len(columns) == 7
    for first, second, mean in zip(*tables.values(), strict=True):
        for column in columns:
            assert float(mean[column]) == pytest.approx((float(first[column]) + float(second[column])) / 2)
    seen = [json_of(tmp_path / name / "predictions.json")["trained_on"]["subjects"] for name in chosen]
    assert set(seen[2]) == {*seen[0], *seen[1]}


@pytest.mark.slow
def test_folds_that_train_at_once_share_the_key_of_their_leak_guard(project, monkeypatch, tmp_path):
    """The second begins before the first has saved anything; later both guard their training cases."""
    model = project.model(TOY, "resnet3d-single_kl", tag="atonce")
    train, begun = Trainer.train, []

    def begin_the_other_fold_first(trainer):
        if not begun:
            begun.append(trainer.job.fold)
            assert project.train(901, "--tag", "atonce", fold=1) == 0
        train(trainer)

    monkeypatch.setattr(Trainer, "train", begin_the_other_fold_first)
    assert project.train(901, "--tag", "atonce", fold=0) == 0
    assert begun == ["0"]
    for case in sorted(ids_in(project.raw / TOY / "imagesTr"))[:6]:
        (tmp_path / case).mkdir()
        shutil.copy(project.raw / TOY / "imagesTr" / f"{case}_0000.nii.gz", tmp_path / case)
        trained = any(
            case in json_of(model / f"fold_{fold}" / "debug.json")["training_cases"] for fold in (0, 1)
        )
        assert project.predict(model, tmp_path / case, "-o", tmp_path / "out") == (2 if trained else 0)


def test_other_settings_need_another_tag(project, capsys):
    assert project.train(901, epochs=2) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "training.epochs" in line
    assert "--tag" in line
    assert project.train(901, "--tag", "longer", epochs=2) == 0
    plans = [json_of(p / "plans.json") for p in sorted((project.results / TOY).glob("*single_kl__*lowres*"))]
    assert {1, 2} <= {content["plan"]["training"]["epochs"] for content in plans}


def test_cases_of_the_training_are_not_predicted_unless_allowed(project, tmp_path, capsys):
    model = project.model(TOY, "resnet3d-single_kl")
    images = project.raw / TOY / "imagesTr"
    assert project.predict(model, images, "-o", tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "was trained on" in line
    assert "--allow_training_cases" in line
    assert not (tmp_path / "out").exists()
    assert project.predict(model, images, "-o", tmp_path / "out", "--allow_training_cases") == 0
    assert len(table_of(tmp_path / "out")) == len(ids_in(images))


def test_an_image_of_the_training_is_known_by_its_content_whatever_its_name(project, tmp_path, capsys):
    model = project.model(TOY, "resnet3d-single_kl")
    trained = json_of(model / "fold_0" / "debug.json")["training_cases"][0]
    (tmp_path / "in").mkdir()
    shutil.copy(
        project.raw / TOY / "imagesTr" / f"{trained}_0000.nii.gz", tmp_path / "in" / "new_0000.nii.gz"
    )
    assert project.predict(model, tmp_path / "in", "-o", tmp_path / "out") == 2
    assert "1 cases" in capsys.readouterr().err


def test_predictions_of_validation_cases_equal_those_made_from_the_raw_images(project, tmp_path):
    """Training reads what was preprocessed, predicting prepares anew: both must see the same voxels."""
    model = project.model(TOY, "resnet3d-single_kl")
    validation = table_of(model / "fold_0" / "validation")
    cases = tmp_path / "cases.csv"
    shutil.copy(project.raw / TOY / "cases.csv", cases)
    (tmp_path / "in").mkdir()
    for row in validation:
        shutil.copy(project.raw / TOY / "imagesTr" / f"{row['case_id']}_0000.nii.gz", tmp_path / "in")
    assert project.predict(model, tmp_path / "in", "--cases", cases, "-o", tmp_path / "out") == 0
    for found, expected in zip(table_of(tmp_path / "out"), validation, strict=True):
        for column, value in expected.items():
            if "_prob_" in column:  # computed in batches there, one by one here
                assert float(found[column]) == pytest.approx(float(value), abs=1e-6)
            else:
                assert found[column] == value, column


def test_validating_again_gives_the_same_table(project):
    model = project.model(TOY, "resnet3d-single_kl")
    before = table_of(model / "fold_0" / "validation")
    shutil.rmtree(model / "fold_0" / "validation")
    assert project.train(901, "--val") == 0
    assert table_of(model / "fold_0" / "validation") == before


@pytest.mark.slow
def test_training_learns_what_can_be_learnt(tmp_path, trained_project):
    """The blob's radius follows the grade: after some epochs unseen cases are graded well."""
    project = trained_project.copy(tmp_path / "project")
    write_toy_dataset(project.raw / "Dataset905_More", cases=80)
    assert project.prepare(905) == 0
    settings = (
        "--set",
        "training.learning_rate=0.003",
        "--set",
        "backbone.width=8",
        "--set",
        "backbone.stem_pool=false",
    )
    assert project.train(905, "--head", "dual", *settings, fold="all", epochs=40) == 0
    model = project.model("Dataset905_More", "resnet3d-dual")
    images = project.raw / "Dataset905_More" / "imagesTs"
    assert project.predict(model, images) == 0
    assert evaluate.main([str(model / "predictions" / "imagesTs")]) == 0
    metrics = json_of(model / "predictions" / "imagesTs" / "summary.json")["metrics"]
    assert metrics["oa.auc"] > 0.9
    assert metrics["kl.qwk"] > 0.7


def test_three_commands_lead_from_a_download_of_oaizib_cm_to_a_trained_fold(tmp_path):
    train, test = [knee(n) for n in range(1, 21)], [knee(n) for n in range(21, 24)]
    source = write_hub(tmp_path / "hub", train, test, zipped=True)
    project = Project(tmp_path / "project")
    assert convert.main(["oaizib_cm", str(source), "-d", "360", "--raw", str(project.raw)]) == 0
    assert project.prepare(360) == 0
    assert project.train(360) == 0
    fold = project.model("Dataset360_oaizib_cm", "resnet3d-single_kl") / "fold_0"
    assert (fold / "checkpoint_final.safetensors").is_file()
    splits = json_of(project.preprocessed / "Dataset360_oaizib_cm" / "splits_final.json")
    kl = {f"oaizib_{row['CMT-ID']}": str(row["KLGrade"]) for row in train}
    rows = table_of(fold / "validation")
    assert {row["case_id"] for row in rows} == set(splits[0]["val"]) <= kl.keys()
    assert all(row["kl_true"] == kl[row["case_id"]] for row in rows)
    assert all(row["oa_true"] == str(int(int(row["kl_true"]) >= 2)) for row in rows)
