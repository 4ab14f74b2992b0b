"""What users get wrong is told in one line that says what and where, with exit status 2 and no traceback."""

from __future__ import annotations

import csv
import json
import pickle
import re
import shutil
from dataclasses import dataclass, replace
from importlib import import_module

import pytest

from oaplug.model.checkpoint import load_checkpoint, save_checkpoint
from oaplug.testing.toy import write_toy_dataset

TOY, PLAIN, FRESH = "Dataset901_Toy", "Dataset902_Plain", "Dataset903_Fresh"
SINGLE = "resnet3d-single_kl"


@pytest.fixture(scope="module")
def base(trained_project, tmp_path_factory):
    """901 trained and predicted, 902 (plain binary) preprocessed, 903 raw only."""
    project = trained_project.copy(tmp_path_factory.mktemp("base"))
    write_toy_dataset(project.raw / PLAIN, cases=16, kind="binary")
    assert project.prepare(902) == 0
    write_toy_dataset(project.raw / FRESH, cases=6)
    images = project.raw / TOY / "imagesTs"
    assert project.predict(project.model(TOY, SINGLE), images) == 0
    return project


@dataclass(frozen=True)
class Case:
    """Arguments (a function of the project), the change that makes them wrong, and words that are said."""

    command: str
    arguments: object
    words: tuple[str, ...]
    change: object = None


def prepare(*arguments):
    return lambda project: project.prepare_arguments(*arguments)


def train(*arguments, dataset=901, **choices):
    return lambda project: project.train_arguments(dataset, *arguments, **choices)


def predict(*arguments, images=f"raw/{TOY}/imagesTs", model=SINGLE):
    def build(project):
        source = ("-m", project.model(TOY, model), "-i", project.root / images, "-device", "cpu")
        return [str(a) for a in (*source, "-o", project.root / "out", *arguments)]

    return build


def analyze(*models, more=()):
    def build(project):
        paths = [str(project.root / m) for m in models]
        return ["-m", *paths, "-o", str(project.root / "report"), "--resamples", "5", *more]

    return build


def in_plan(change, *, dataset=TOY):
    """Change the plan of a dataset as text."""

    def edit(project):
        path = project.preprocessed / dataset / "oaplugPlans.json"
        path.write_text(change(path.read_text()))

    return edit


def in_table(change):
    """Change cases.csv of the raw dataset 903: a function of its header and rows."""

    def edit(project):
        path = project.raw / FRESH / "cases.csv"
        header, *rows = list(csv.reader(path.read_text().splitlines()))
        change(header, rows)
        path.write_text("".join(",".join(row) + "\n" for row in (header, *rows)))

    return edit


def set_cell(column, row, value):
    def change(header, rows):
        rows[row][header.index(column)] = value

    return in_table(change)


def add_column(header, rows):
    header.append("weight")
    for row in rows:
        row.append("70")


def truncate(*parts, keep=0.5):
    def cut(project):
        path = project.root.joinpath(*parts)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * keep)])

    return cut


def file_in_place_of(*parts):
    def put(project):
        path = project.root.joinpath(*parts)
        shutil.rmtree(path, ignore_errors=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("in the way")

    return put


def remove(*parts):
    def delete(project):
        path = project.root.joinpath(*parts)
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return delete


def copy_plan(project):
    source = project.preprocessed / TOY / "oaplugPlans.json"
    shutil.copy(source, project.preprocessed / PLAIN / "oaplugPlans.json")


def write_pickle(project):
    path = project.model(TOY, SINGLE) / "fold_0" / "checkpoint_final.safetensors"
    path.write_bytes(pickle.dumps({"network": [1.0]}))


def add_callback_to_latest(project):
    path = project.model(TOY, SINGLE) / "fold_0" / "checkpoint_latest.safetensors"
    checkpoint = load_checkpoint(path)
    save_checkpoint(path, replace(checkpoint, progress={**checkpoint.progress, "callbacks": [{}]}))


def copy_predictions(project, change):
    """out/predictions.csv and .json: the table of the model, changed."""
    source = project.model(TOY, SINGLE) / "predictions" / "imagesTs"
    shutil.copytree(source, project.root / "other")
    change(project.root / "other")


def without_last_case(project):
    def cut(folder):
        lines = (folder / "predictions.csv").read_text().splitlines()
        (folder / "predictions.csv").write_text("\n".join(lines[:-1]) + "\n")

    copy_predictions(project, cut)


def without_sidecar(project):
    copy_predictions(project, lambda folder: (folder / "predictions.json").unlink())


RUN = f"results/{TOY}/{SINGLE}__oaplugPlans__3d_lowres"
FOLD = (*RUN.split("/"), "fold_0")
ANOTHER = ("--tag", "another")

CASES = {
    # which dataset, where
    "dataset that is not there": Case("plan_and_preprocess", prepare(999), ("999", TOY)),
    "dataset that was never prepared": Case("train", train(dataset=903), ("no dataset '903'", TOY)),
    "no place for raw data": Case(
        "plan_and_preprocess", lambda p: ["-d", "901"], ("oaplug_raw", "--raw", "export")
    ),
    "no place for results": Case(
        "train",
        lambda p: ["901", "3d_lowres", "0", "--preprocessed", str(p.preprocessed)],
        ("oaplug_results",),
    ),
    "folder of raw data that is not there": Case(
        "plan_and_preprocess", lambda p: ["-d", "901", "--raw", "nowhere"], ("nowhere", "does not exist")
    ),
    "no dataset.json": Case(
        "plan_and_preprocess",
        prepare(903),
        ("dataset.json", "does not exist"),
        remove("raw", FRESH, "dataset.json"),
    ),
    "phantom into an id that is taken": Case(
        "make_phantom", lambda p: ["-d", "901", "--raw", str(p.raw)], (TOY, "exists already")
    ),
    "phantom of an impossible id": Case(
        "make_phantom", lambda p: ["-d", "0", "--raw", str(p.raw)], ("Dataset000", "1 to 9999")
    ),
    "results below a file": Case(
        "train", train(), ("cannot create the folder", "results"), file_in_place_of("results")
    ),
    "preprocessed below a file": Case(
        "plan_and_preprocess",
        prepare(903),
        ("preprocessed", "cannot create"),
        file_in_place_of("preprocessed"),
    ),
    "predictions below a file": Case(
        "predict_from_modelfolder", predict(), ("out",), file_in_place_of("out")
    ),
    "report below a file": Case("analyze", analyze(RUN), ("report",), file_in_place_of("report")),
    # cases.csv
    "grade that the target does not have": Case(
        "plan_and_preprocess", prepare(903), ("toy_001", "kl", "'7'", "0, 1, 2, 3, 4"), set_cell("kl", 1, "7")
    ),
    "derived grade that contradicts": Case(
        "plan_and_preprocess",
        prepare(903),
        ("toy_000", "contradicts", "kl"),
        in_table(lambda header, rows: rows[0].__setitem__(slice(-2, None), ["0", "1"])),
    ),
    "column nobody declared": Case(
        "plan_and_preprocess", prepare(903), ("'weight'", "cases.csv"), in_table(add_column)
    ),
    "case listed twice": Case(
        "plan_and_preprocess", prepare(903), ("toy_000", "2 rows"), set_cell("case_id", 1, "toy_000")
    ),
    "case without a row": Case(
        "plan_and_preprocess", prepare(903), ("toy_005", "no row"), in_table(lambda header, rows: rows.pop())
    ),
    "all at once with verification": Case(
        "plan_and_preprocess",
        prepare(903, "--verify_dataset_integrity"),
        (FRESH, "1 problems"),
        truncate("raw", FRESH, "imagesTr", "toy_000_0000.nii.gz"),
    ),
    "broken image": Case(
        "plan_and_preprocess",
        prepare(903),
        ("toy_000", "toy_000_0000.nii.gz"),
        truncate("raw", FRESH, "imagesTr", "toy_000_0000.nii.gz"),
    ),
    "broken image in preprocessing": Case(
        "preprocess",
        prepare(901),
        ("1 cases could not be preprocessed", "toy_001"),
        truncate("raw", TOY, "imagesTr", "toy_001_0000.nii.gz"),
    ),
    "image that is gone": Case(
        "preprocess",
        prepare(901),
        ("toy_001", "does not exist"),
        remove("raw", TOY, "imagesTr", "toy_001_0000.nii.gz"),
    ),
    # plans
    "no fingerprint yet": Case("plan_experiment", lambda p: plan_arguments(p, 903), ("fingerprint",)),
    "plan that is not there": Case(
        "preprocess", prepare(901, "--plans", "mine"), ("mine.json", "does not exist")
    ),
    "plan of another dataset": Case("train", train(dataset=902), (TOY, PLAIN), copy_plan),
    "plan with an unknown key": Case(
        "train",
        train(*ANOTHER),
        ("oaplugPlans.json", "'training.epoks'", "'epochs'"),
        in_plan(lambda text: text.replace('"epochs"', '"epoks"', 1)),
    ),
    "plan with a wrong value": Case(
        "preprocess",
        prepare(901),
        ("oaplugPlans.json", "fit", "'squash'"),
        in_plan(lambda text: text.replace('"pad_crop"', '"squash"', 1)),
    ),
    "plan that is no JSON": Case(
        "train", train(*ANOTHER), ("oaplugPlans.json", "not valid JSON"), in_plan(lambda text: text[:-20])
    ),
    "plan of a newer oaplug": Case(
        "train",
        train(*ANOTHER),
        ("schema 99", "upgrade"),
        in_plan(lambda text: text.replace('"schema": 2', '"schema": 99', 1)),
    ),
    "splits that name nobody": Case(
        "train",
        train(*ANOTHER),
        ("splits_final.json", "ghost"),
        lambda p: (p.preprocessed / TOY / "splits_final.json").write_text(
            '[{"train": ["ghost"], "val": []}]'
        ),
    ),
    "size of nothing": Case("plan_and_preprocess", prepare(903, "--size", "0", "4", "4"), ("positive",)),
    "part that is not there": Case(
        "preprocess", prepare(901, "-num_parts", 2, "-part_id", 2), ("part", "0 to 1")
    ),
    "preprocessing that is not complete": Case(
        "preprocess",
        prepare(901, "--finalize", "-num_parts", 2),
        ("2 of 24 cases of -part_id 1", "not finished", "without --finalize"),
        lambda p: [next(p.preprocessed.glob(f"{TOY}/oaplug*_3d_*/toy_00{n}.json")).unlink() for n in (1, 3)],
    ),
    "folder that is none": Case(
        "preprocess",
        prepare(901),
        ("data_identifier '../away'", "choose another"),
        in_plan(
            lambda text: re.sub(r'"data_identifier": "oaplugPlans_\w+"', '"data_identifier": "../away"', text)
        ),
    ),
    "no processes": Case(
        "extract_fingerprint", lambda p: [*plan_arguments(p, 901), "-np", "0"], ("at least 1",)
    ),
    # training
    "fold that is not there": Case("train", train(fold=7), ("fold 7", "0, 1, 2, 3, 4")),
    "fold that is no number": Case("train", train(fold="x"), ("'x'", "all")),
    "unknown backbone": Case("train", train("-b", "resnet3"), ("resnet3", "did you mean 'resnet3d'")),
    "unknown head": Case("train", train("--head", "triple"), ("no head 'triple'", "single")),
    "unknown target": Case("train", train("--target", "jsn"), ("'jsn'", "kl, oa")),
    "target for a head of all": Case(
        "train", train("--head", "dual", "--target", "oa"), ("dual", "--target")
    ),
    "head that does not suit": Case(
        "train", train("--head", "dual", dataset=902), ("dual", "does not suit", "single")
    ),
    "order asked of two grades": Case(
        "train", train("--head", "ordinal", dataset=902), ("ordinal", "two grades")
    ),
    "unknown configuration": Case(
        "train", lambda p: ["901", "3d_lores", *train()(p)[2:]], ("3d_lores", "did you mean '3d_lowres'")
    ),
    "unknown key of the plan": Case(
        "train", train("--set", "training.epoch=5"), ("training.epoch", "'epochs'")
    ),
    "unknown group of the plan": Case(
        "train", train("--set", "trainig.epochs=5"), ("'trainig'", "'training'")
    ),
    "unknown option of the backbone": Case("train", train("--set", "backbone.widht=5"), ("widht", "'width'")),
    "unknown option of the head": Case("train", train("--set", "head.droput=0.5"), ("droput", "'dropout'")),
    "override without a value": Case(
        "train", train("--set", "training.epochs"), ("training.epochs", "KEY=VALUE")
    ),
    "override of a wrong type": Case(
        "train", train("--set", "training.epochs=many"), ("training.epochs", "'many'")
    ),
    "override out of range": Case("train", train("--set", "training.epochs=0"), ("epochs", "positive")),
    "geometry changed after preprocessing": Case(
        "train",
        train(*ANOTHER, "--set", "configurations.3d_lowres.fit=stretch"),
        ("other settings", "oaplug_preprocess"),
    ),
    "case that is not preprocessed": Case(
        "train",
        train(*ANOTHER),
        ("not preprocessed", "oaplug_preprocess"),
        lambda p: [path.unlink() for path in p.preprocessed.glob("*/oaplugPlans_*/*.json")],
    ),
    "preprocessed array that is damaged": Case(
        "train",
        train(*ANOTHER),
        ("b2nd", "oaplug_preprocess"),
        lambda p: [path.write_bytes(path.read_bytes()[:40]) for path in p.preprocessed.glob("*/*/*.b2nd")],
    ),
    "fold that is trained already": Case("train", train(), ("holds a training already", "--c")),
    "nothing to continue": Case("train", train(*ANOTHER, "--c"), ("checkpoint_latest", "without --c")),
    "nothing to validate": Case("train", train(*ANOTHER, "--val"), ("checkpoint_final", "train it first")),
    "continue from a broken checkpoint": Case(
        "train",
        train("--c"),
        ("checkpoint_latest", "not a whole"),
        truncate(*FOLD, "checkpoint_latest.safetensors"),
    ),
    "continue without the callbacks it had": Case(
        "train", train("--c"), ("1 callbacks, not 0", "--callback"), add_callback_to_latest
    ),
    "unknown callback": Case(
        "train", train(*ANOTHER, "--callback", "tensorbord"), ("did you mean 'tensorboard'",)
    ),
    "tag that is no name": Case("train", train("--tag", "a/b"), ("'a/b'", "folder name")),
    "unknown device": Case("train", train(*ANOTHER, "-device", "gpu"), ("gpu", "cuda, cuda:N, cpu")),
    # prediction
    "images that are not there": Case(
        "predict_from_modelfolder", predict(images="nowhere"), ("nowhere", "does not exist")
    ),
    "folder without images": Case("predict_from_modelfolder", predict(images="raw"), ("raw", "_0000.nii.gz")),
    "model folder that is not there": Case(
        "predict_from_modelfolder", predict(model="m3t-dual"), ("m3t-dual", "oaplug_train")
    ),
    "folder that is no model": Case(
        "predict_from_modelfolder",
        predict(),
        ("plans.json", "does not exist"),
        remove(*RUN.split("/"), "plans.json"),
    ),
    "model by name that is not there": Case(
        "predict",
        lambda p: ["-d", "901", "--head", "dual", "-i", str(p.raw), "--results", str(p.results)],
        ("resnet3d-dual", SINGLE),
    ),
    "fold that was not trained": Case("predict_from_modelfolder", predict("-f", 3), ("fold 3", "there: 0")),
    "model without a trained fold": Case(
        "predict_from_modelfolder", predict(), ("no trained fold",), remove(*FOLD)
    ),
    "checkpoint that is a pickle": Case(
        "predict_from_modelfolder",
        predict(),
        ("checkpoint_final", "not a whole oaplug checkpoint"),
        write_pickle,
    ),
    "checkpoint cut short": Case(
        "predict_from_modelfolder",
        predict(),
        ("checkpoint_final", "not a whole oaplug checkpoint"),
        truncate(*FOLD, "checkpoint_final.safetensors"),
    ),
    "case table that is not there": Case(
        "predict_from_modelfolder", predict("--cases", "no.csv"), ("no.csv", "does not exist")
    ),
    "broken image in prediction": Case(
        "predict_from_modelfolder",
        predict(),
        ("not predicted", "toy_006", "toy_006_0000.nii.gz"),
        truncate("raw", TOY, "imagesTs", "toy_006_0000.nii.gz"),
    ),
    # analysis
    "tables of other cases": Case(
        "analyze", analyze(RUN, "other"), ("not given the same cases", "toy_023"), without_last_case
    ),
    "table without its sidecar": Case("analyze", analyze("other"), ("predictions.json",), without_sidecar),
    "evaluation without a sidecar": Case(
        "evaluate", lambda p: [str(p.root / "other")], ("predictions.json",), without_sidecar
    ),
    "model that predicted nothing": Case(
        "analyze", analyze(RUN), ("predicted nothing",), remove(*RUN.split("/"), "predictions")
    ),
    "unknown analysis": Case(
        "analyze", analyze(RUN, more=["-a", "classifcation"]), ("did you mean 'classification'",)
    ),
    "two models of one name": Case("analyze", analyze(RUN, RUN), ("two models", "NAME=PATH")),
    "unknown converter": Case(
        "convert", lambda p: ["phantm", "x", "-d", "8", "--raw", str(p.raw)], ("did you mean 'phantom'",)
    ),
    "unknown option of a converter": Case(
        "convert",
        lambda p: ["phantom", "x", "-d", "8", "--raw", str(p.raw), "--set", "case=3"],
        ("'case'", "'cases'"),
    ),
}


def plan_arguments(project, dataset):
    return [str(a) for a in ("-d", dataset, "--raw", project.raw, "--preprocessed", project.preprocessed)]


def run(command, arguments):
    """Exit status of a command, in this process."""
    try:
        return import_module(f"oaplug.commands.{command}").main(arguments)
    except SystemExit as end:
        return end.code


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_user_error_is_one_line_and_status_2(case, base, tmp_path, capsys):
    project = base
    if case.change is not None:
        project = base.copy(tmp_path)
        case.change(project)
    capsys.readouterr()
    status = run(case.command, case.arguments(project))
    said = capsys.readouterr()
    assert status == 2, said.err or said.out
    lines = said.err.splitlines()
    assert len(lines) == 1, said.err
    assert "Traceback" not in said.out
    for word in case.words:
        assert word in lines[0], lines[0]
    assert len(lines[0]) < 1000


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        ("train", ["901", "3d_lowres"], ("fold",)),
        ("train", ["901", "3d_lowres", "0", "--headd", "dual"], ("--headd",)),
        ("predict_from_modelfolder", ["-i", "x"], ("-m",)),
        ("make_phantom", ["--cases", "many"], ("--cases", "'many'")),
        ("predict", ["-d", "1", "-i", "x", "-chk", "latest"], ("-chk", "'final'")),
    ],
)
def test_wrong_arguments_are_one_line_that_names_them_and_the_help(command, arguments, words, capsys):
    assert run(command, arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"oaplug_{command}: ")
    for word in (*words, f"oaplug_{command} --help"):
        assert word in line


def test_an_unknown_verb_is_one_line(capsys):
    assert run("oaplug", ["trian"]) == 2
    assert capsys.readouterr().err == "oaplug: no verb 'trian' (see oaplug --help)\n"


def test_other_cases_are_predicted_where_one_is_broken(base, tmp_path, capsys):
    project = base.copy(tmp_path)
    truncate("raw", TOY, "imagesTs", "toy_007_0000.nii.gz")(project)
    assert run("predict_from_modelfolder", predict()(project)) == 2
    with (project.root / "out" / "predictions.csv").open(newline="") as file:
        predicted = [row["case_id"] for row in csv.DictReader(file)]
    assert predicted == ["toy_006", "toy_014", "toy_015", "toy_022", "toy_023"]


def test_other_cases_are_preprocessed_where_one_is_broken(base, tmp_path):
    project = base.copy(tmp_path)
    truncate("raw", TOY, "imagesTr", "toy_001_0000.nii.gz")(project)
    shutil.rmtree(next((project.preprocessed / TOY).glob("oaplugPlans_*")))
    assert run("preprocess", prepare(901)(project)) == 2
    made = sorted(path.stem for path in (project.preprocessed / TOY).glob("oaplugPlans_*/*.json"))
    assert made == [f"toy_{index:03d}" for index in range(24) if index != 1]


def test_a_callback_whose_package_is_not_installed_says_what_to_install(base, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("oaplug_callbacks.find_spec", lambda name: None)
    project = base.copy(tmp_path)
    assert run("train", train("--tag", "logged", "--callback", "tensorboard")(project)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'oaplug[tracking]'" in line


def test_settings_that_failed_do_not_stand_in_the_way_of_the_right_ones(base, tmp_path, capsys):
    project = base.copy(tmp_path)
    wrong = train("--tag", "mended", "--set", "configurations.3d_lowres.fit=stretch")
    assert run("train", wrong(project)) == 2
    assert run("train", train("--tag", "mended")(project)) == 0


def test_a_failed_command_leaves_nothing_half_written(base, tmp_path):
    project = base.copy(tmp_path)
    before = {path for path in project.root.rglob("*")}
    assert run("train", train("--head", "triple")(project)) == 2
    assert run("predict_from_modelfolder", predict("-f", 3)(project)) == 2
    assert run("analyze", analyze(RUN, more=["-a", "none_such"])(project)) == 2
    left = {path.relative_to(project.root) for path in project.root.rglob("*") if path not in before}
    assert {str(path) for path in left} <= {"report"}, "an empty folder for the report at most"


def test_a_hierarchy_with_an_impossible_threshold_names_the_grades(base, tmp_path, capsys):
    project = base.copy(tmp_path)
    path = project.raw / FRESH / "dataset.json"
    content = json.loads(path.read_text())
    content["targets"]["oa"]["at_least"] = 9
    path.write_text(json.dumps(content))
    assert run("plan_and_preprocess", prepare(903)(project)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "'9'" in line
    assert "0, 1, 2, 3, 4" in line
