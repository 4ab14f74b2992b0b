"""Plugins of others, from folder to predictions: installed beside a wheel of oaplug, used, uninstalled."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest
from documents import DOCS, ROOT, code_blocks

from oaplug.plug.plugin import normal_name
from oaplug.testing.toy import write_toy_dataset

pytestmark = pytest.mark.slow

EXAMPLE = ROOT / "examples" / "oaplug-convnext3d"
TUTORIAL = DOCS / "plugins_tutorial.md"
KINDS = {
    "backbone": "oaplug-mynet",
    "head": "oaplug-myhead",
    "analysis": "oaplug-myerrors",
    "converter": "oaplug-mytable",
    "callback": "oaplug-mylog",
}
TOY, CONVERTED = "Dataset907_mytable", 907
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_QUIET": "1"}


@dataclass(frozen=True)
class Environment:
    """A virtual environment that borrows the libraries of this one; its oaplug is its own."""

    folder: Path

    @property
    def python(self):
        return self.folder / "bin" / "python"

    def run(self, *arguments, cwd, expect=0, **variables):
        """A program of the environment, by name, run in a folder; gives its result."""
        program, *rest = map(str, arguments)
        done = subprocess.run(
            [str(self.folder / "bin" / program), *rest],
            cwd=cwd,
            env=self.variables() | variables,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == expect, f"{arguments}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done

    def variables(self):
        """Variables of a shell in which the environment is active and nothing can be downloaded."""
        mine = ("oaplug", "python", "pip_", "virtual_env")
        kept = {k: v for k, v in os.environ.items() if not k.lower().startswith(mine)}
        path = f"{self.folder / 'bin'}{os.pathsep}{kept['PATH']}"
        strict = {"OAPLUG_PLUGINS_STRICT": "1", "OAPLUG_CONFIG": os.devnull}
        return kept | OFFLINE | strict | {"PATH": path, "OMP_NUM_THREADS": "1"}

    def install(self, *folders):
        """Install distributions from their source folders."""
        pip = ("install", "--no-build-isolation", "--ignore-installed", *folders)
        self.run("python", "-m", "pip", *pip, cwd=self.folder)

    def uninstall(self, *distributions):
        self.run("python", "-m", "pip", "uninstall", "-y", *distributions, cwd=self.folder)

    def plugins(self):
        """Distributions with plugins, with their parts as KIND:NAME."""
        said = self.run("oaplug_plugins", "--json", cwd=self.folder).stdout
        rows = json.loads(said)["distributions"]
        return {normal_name(row["distribution"]): row["parts"] for row in rows}


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """With oaplug installed from a copy of its source, as a wheel."""
    made = Environment(tmp_path_factory.mktemp("environment"))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(made.folder)], check=True)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(made.run("python", "-c", code, cwd=made.folder).stdout.strip())
    borrowed = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    (site / "borrowed.pth").write_text("\n".join(borrowed))
    source = tmp_path_factory.mktemp("source") / "oaplug"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("oaplug", "plugins", "datasets_meta"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    made.install(source)
    place = made.run("python", "-c", "import oaplug; print(oaplug.__file__)", cwd=made.folder).stdout.strip()
    assert Path(place).is_relative_to(made.folder), "the wheel's, not the checkout's"
    assert list(made.plugins()) == ["oaplug"]
    return made


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The three roots below one folder, as environment variables."""
    root = tmp_path_factory.mktemp("places")
    return {f"oaplug_{kind}": str(root / kind) for kind in ("raw", "preprocessed", "results")}


def write_source(folder, toy):
    """The images of a toy dataset as somebody might send them: files and a table of grades."""
    folder.mkdir()
    lines = ["file,grade,subject,side,split"]
    with (toy / "cases.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            (image,) = toy.glob(f"images*/{row['case_id']}_0000.nii.gz")
            shutil.copy(image, folder / f"{row['case_id']}.nii.gz")
            split = "test" if image.parent.name == "imagesTs" else "train"
            values = (row["kl"], row["subject_id"], row["side"], split)
            lines.append(",".join([f"{row['case_id']}.nii.gz", *values]))
    (folder / "grades.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def written(environment, tmp_path_factory):
    """A new plugin of every kind, by its kind: written by the command, installed, its tests passed."""
    root = tmp_path_factory.mktemp("written")
    for kind, name in KINDS.items():
        environment.run("oaplug_new_plugin", name, "--kind", kind, cwd=root)
    folders = {kind: root / name for kind, name in KINDS.items()}
    environment.install(*folders.values())
    return folders


def test_the_own_tests_of_new_plugins_of_every_kind_pass(environment, written):
    """In one process, where each would be a process of its own, because importing torch takes long."""
    tests = [folder / "tests" for folder in written.values()]
    said = environment.run("python", "-m", "pytest", "-q", "-W", "error", *tests, cwd=written["head"].parent)
    files = [name for folder in tests for name in os.listdir(folder) if name.startswith("test_")]
    assert len(files) == len(KINDS)
    passed = int(said.stdout.splitlines()[-1].split(" passed")[0].split()[-1])
    assert passed >= 3 * len(KINDS)
    assert "failed" not in said.stdout


def test_new_plugins_of_every_kind_are_found_used_together_and_missed(environment, written, places, tmp_path):
    parts = {name: f"{kind}:{name.removeprefix('oaplug-')}" for kind, name in KINDS.items()}
    assert {name: found for name, found in environment.plugins().items() if name != "oaplug"} == {
        name: [part] for name, part in parts.items()
    }
    run = environment.run
    source = write_source(tmp_path / "source", write_toy_dataset(tmp_path / "Dataset901_Toy", cases=20))
    run("oaplug_convert", "mytable", source, "-d", CONVERTED, cwd=tmp_path, **places)
    run("oaplug_plan_and_preprocess", "-d", CONVERTED, "-np", 1, cwd=tmp_path, **places)
    settings = ("training.epochs=2", "training.batch_size=8", "backbone.width=4", "head.label_smoothing=0.2")
    chosen = ("-b", "mynet", "--head", "myhead", "--callback", "mylog", "-device", "cpu")
    overrides = [word for setting in settings for word in ("--set", setting)]
    run("oaplug_train", CONVERTED, "3d_lowres", 0, *chosen, *overrides, cwd=tmp_path, **places)
    model = Path(places["oaplug_results"]) / TOY / "mynet-myhead_grade__oaplugPlans__3d_lowres"
    fold = model / "fold_0"
    records = [json.loads(line) for line in (fold / "metrics.jsonl").read_text().splitlines()]
    with (fold / "mylog.csv").open(newline="") as file:
        logged = [(int(row["epoch"]), float(row["train.loss.total"])) for row in csv.DictReader(file)]
    assert logged == [(record["epoch"], record["train.loss.total"]) for record in records]
    assert len(logged) == 2
    report = tmp_path / "report"
    run("oaplug_analyze", "-m", f"mine={fold / 'validation'}", "-a", "myerrors", "-o", report, cwd=tmp_path)
    assert "Error by grade" in (report / "report.html").read_text("utf-8")
    (analysis,) = json.loads((report / "findings.json").read_text("utf-8"))["analyses"]
    assert (analysis["status"], analysis["plugin"]) == ("ok", "oaplug-myerrors 0.1.0")
    assert_table_is_right(analysis["findings"]["tables"][0]["rows"], fold / "validation")

    environment.uninstall(*KINDS.values())
    assert list(environment.plugins()) == ["oaplug"]
    images = Path(places["oaplug_raw"]) / TOY / "imagesTs"
    asked = ("oaplug_predict_from_modelfolder", "-m", model, "-i", images, "-device", "cpu")
    (line,) = run(*asked, cwd=tmp_path, expect=2).stderr.splitlines()
    assert "'mynet' of oaplug-mynet 0.1.0" in line
    assert "pip install oaplug-mynet==0.1.0" in line


def assert_table_is_right(rows, validation):
    """Cases and mean absolute error per grade, counted anew from predictions.csv."""
    with (validation / "predictions.csv").open(newline="") as file:
        answers = [(row["grade_true"], row["grade_pred"]) for row in csv.DictReader(file)]
    for _, _, grade, cases, error in rows:
        distances = [abs(int(true) - int(said)) for true, said in answers if true == grade]
        assert cases == len(distances)
        assert error == (pytest.approx(sum(distances) / cases) if cases else None)


def test_the_example_is_installed_trained_with_and_missed_once_it_is_gone(environment, places, tmp_path):
    run = environment.run
    folder = tmp_path / "oaplug-convnext3d"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build"))
    environment.install(folder)
    assert environment.plugins()["oaplug-convnext3d"] == ["backbone:convnext3d"]
    assert " passed" in run("python", "-m", "pytest", "-q", "-W", "error", cwd=folder).stdout
    raw = Path(places["oaplug_raw"]) / "Dataset908_Toy"
    write_toy_dataset(raw, cases=16, shape=(16, 20, 18))
    prepare = ("-d", 908, "-b", "convnext3d", "--size", 32, 32, 32, "-np", 1)
    run("oaplug_plan_and_preprocess", *prepare, cwd=tmp_path, **places)
    chosen = ("-b", "convnext3d", "--head", "dual", "-device", "cpu")
    settings = ("training.epochs=2", "backbone.width=8", "backbone.depths=[1,1,2,1]")
    overrides = [word for setting in settings for word in ("--set", setting)]
    run("oaplug_train", 908, "3d_lowres", 0, *chosen, *overrides, cwd=tmp_path, **places)
    predict = ("oaplug_predict", "-d", 908, *chosen, "-i", raw / "imagesTs")
    run(*predict, cwd=tmp_path, **places)
    model = Path(places["oaplug_results"]) / raw.name / "convnext3d-dual__oaplugPlans__3d_lowres"
    table = model / "predictions" / "imagesTs" / "predictions.csv"
    assert len(table.read_text().splitlines()) == 1 + len(list((raw / "imagesTs").iterdir()))
    recorded = json.loads((model / "plans.json").read_text("utf-8"))["run"]["backbone"]
    assert (recorded["distribution"], recorded["version"]) == ("oaplug-convnext3d", "0.1.0")
    assert recorded["options"]["depths"] == [1, 1, 2, 1]

    environment.uninstall("oaplug-convnext3d")
    (line,) = run(*predict, cwd=tmp_path, expect=2, **places).stderr.splitlines()
    assert "the backbone 'convnext3d' of oaplug-convnext3d 0.1.0" in line
    assert "pip install oaplug-convnext3d==0.1.0" in line


def test_the_tutorial_is_run_as_it_stands(environment, tmp_path):
    """Its files are written, its commands run in one shell; the last one ends with status 2, as it says."""
    folder = tmp_path / "oaplug-tiny"
    folder.mkdir()
    for name, language in (("oaplug_tiny.py", "python"), ("setup.cfg", "ini"), ("pyproject.toml", "toml")):
        (block,) = code_blocks(TUTORIAL, language)
        (folder / name).write_text(block, encoding="utf-8")
    script = "set -e\n" + "\n".join(code_blocks(TUTORIAL, "bash"))
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=environment.variables() | {"PIP_NO_BUILD_ISOLATION": "0"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 2, done.stdout[-3000:] + done.stderr[-3000:]
    assert "passed       backbone oaplug-tiny:tiny" in done.stdout
    (model,) = (folder / "results" / "Dataset901_KneePhantom").iterdir()
    assert model.name.startswith("tiny-dual__")
    assert (model / "predictions" / "imagesTs" / "predictions.csv").is_file()
    last = done.stderr.splitlines()[-1]
    assert "the backbone 'tiny' of oaplug-tiny 0.1; pip install oaplug-tiny==0.1" in last
    assert list(environment.plugins()) == ["oaplug"]
