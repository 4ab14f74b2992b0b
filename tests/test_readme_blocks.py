"""The code that README and docs show is run as it stands: commands on toy data, Python, the plugin."""

from __future__ import annotations

import configparser
import importlib
import os
import re
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from documents import DOCS, README, ROOT, code_blocks, command_parsers, pages, shell_lines

from oaplug.plug.registry import discover
from oaplug.plug.specs import BackboneSpec
from oaplug.testing.contract import check_backbone
from oaplug.testing.toy import write_toy_dataset

DATASET = "Dataset360_NAME"
QUICK = {
    "oaplug_plan_and_preprocess": ["-np", "1"],
    "oaplug_train": ["-device", "cpu", "--set", "training.epochs=1", "--set", "backbone.width=4"],
    "oaplug_predict": ["-device", "cpu"],
    "oaplug_analyze": ["--resamples", "20"],
}
"""Added to the commands of the README, so that they take seconds."""
OPTIONS = re.compile(r"\$[a-z]+")
"""A variable that stands for options."""


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_that_a_page_shows_is_understood(page):
    for words in shell_lines(page):
        if words[0].startswith("oaplug_"):
            try:
                command_parsers()[words[0]].parse_args([w for w in words[1:] if not OPTIONS.fullmatch(w)])
            except SystemExit:
                pytest.fail(f"{page.name}: {' '.join(words)}")


def test_every_make_target_that_a_page_shows_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    text = "\n".join(page.read_text("utf-8") for page in pages())
    shown = set(re.findall(r"^make ([a-z-]+)|`make (?:\w+=\S+ )*([a-z-]+)`", text, re.MULTILINE))
    assert {name for pair in shown for name in pair if name} <= targets
    assert shown


@pytest.fixture(scope="module")
def worked(tmp_path_factory):
    """A folder in which the commands of the README's main job were run on toy data, and the model folder."""
    folder = tmp_path_factory.mktemp("job")
    names = {f"oaplug_{kind}": str(folder / kind) for kind in ("raw", "preprocessed", "results")}
    write_toy_dataset(Path(names["oaplug_raw"]) / DATASET, shape=(16, 18, 20))
    job = [words for words in shell_lines(README) if words[0] in QUICK and "tiny" not in words]
    assert {words[0] for words in job} == set(QUICK)
    models = Path(names["oaplug_results"]) / DATASET
    with pytest.MonkeyPatch.context() as patch:
        for name, value in names.items():
            patch.setenv(name, value)
        for words in job:
            module = importlib.import_module(f"oaplug.commands.{words[0].removeprefix('oaplug_')}")
            stands_for = {"MODEL_FOLDER": str(next(models.iterdir(), "")) if models.is_dir() else "",
                          "REPORT_FOLDER": str(folder / "report")}  # fmt: skip
            given = [stands_for.get(word, os.path.expandvars(word)) for word in words[1:]]
            given = [word for word in given if word != "OTHER_MODEL_FOLDER"]
            assert module.main([*given, *QUICK[words[0]]]) == 0, words
    return folder, next(models.iterdir())


@pytest.mark.slow
def test_the_main_job_of_the_readme_leads_to_a_report(worked):
    folder, model = worked
    assert model.name == "resnet3d-dual__oaplugPlans__3d_lowres"
    assert (model / "predictions" / "imagesTs" / "predictions.csv").is_file()
    assert "<html" in (folder / "report" / "report.html").read_text("utf-8")


def test_a_run_writes_the_files_that_the_documentation_names(worked):
    tree = (DOCS / "training.md").read_text("utf-8").split("## What a run writes")[1].split("##")[0]
    named = re.findall(r"^ {6,8}(\S+?)(?:/|(?:  (\S+\.json))?)(?:\s|$)", tree, re.MULTILINE)
    names = {name for pair in named for name in pair if name} - {
        "BACKBONE-HEAD[_TARGET]__PLANS__CONFIGURATION[__TAG]"
    }
    written = {path.name for path in worked[1].rglob("*")}
    log = next(name for name in written if name.startswith("training_log_"))
    assert len(names) > 10
    later = {"checkpoint_previous.safetensors"}  # there is none before the second epoch
    assert names - {"training_log_DATE.txt"} - later <= written
    assert log.endswith(".txt")


@pytest.mark.parametrize("block", code_blocks(README, "python"), ids=lambda text: text.split("\n")[0])
def test_the_python_of_the_readme_runs(block, worked, monkeypatch, capsys):
    folder, model = worked
    monkeypatch.chdir(folder / "raw" / DATASET)
    names = {"__name__": "readme"}
    exec(compile(block.replace("MODEL_FOLDER", str(model)), "README.md", "exec"), names)
    for comment in re.findall(r"^(\w+) = .*#.*\((\d+), encoder.num_features\)$", block, re.MULTILINE):
        assert names[comment[0]].shape == (int(comment[1]), names["encoder"].num_features)
    if "probabilities" in names:
        assert {name: tuple(p.shape) for name, p in names["probabilities"].items()} == {
            "kl": (2, 5),
            "oa": (2, 2),
        }
    if "table" in names:
        assert names["problems"] == []
        assert len(names["table"].case_ids) == len(list(Path("imagesTs").glob("*.nii.gz")))


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.name)
def test_the_python_of_the_docs_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in code_blocks(page, "python"):
        exec(compile(block, page.name, "exec", dont_inherit=True), {"__name__": "docs"})


def test_the_plugin_of_the_readme_is_found_and_keeps_the_contract(tmp_path, monkeypatch):
    setup = configparser.ConfigParser()
    setup.read_string(next(block for block in code_blocks(README, "ini")))
    name, _, value = setup["options.entry_points"]["oaplug"].strip().partition(" = ")
    assert value == setup["options"]["py_modules"]
    source = next(block for block in code_blocks(README, "python") if "hookimpl" in block)
    (tmp_path / f"{value}.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    found = discover([EntryPoint(name=name, value=value, group="oaplug")])
    assert not found.quarantined
    check_backbone(found.spec(BackboneSpec, "tiny"))
    assert len([line for line in source.splitlines() if line.strip()]) <= 15
