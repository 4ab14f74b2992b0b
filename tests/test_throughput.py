"""What feeding a dataset takes: stages that are slowed down on purpose are the bottleneck, by as much."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import torch

from oaplug.commands import doctor
from oaplug.core.case import Case
from oaplug.core.plan import AugmentationSettings, Configuration, Plan, TrainSettings
from oaplug.feed import source as source_module
from oaplug.feed.throughput import measure_feed
from oaplug.prepare.folder import PreprocessedFolder
from oaplug.prepare.store import write_array

CASES = [Case(case_id=f"c{i}", subject_id=f"c{i}", images=(), labels={}) for i in range(4)]
SLOW = 0.01


@pytest.fixture
def data(tmp_path):
    folder = PreprocessedFolder(tmp_path)
    for case in CASES:
        write_array(folder.array_path("oaplugPlans_3d_lowres", case.case_id), np.zeros((1, 8, 8, 8)))
    return folder


def slowed(function):
    def slow(*arguments, **options):
        time.sleep(SLOW)
        return function(*arguments, **options)

    return slow


def plan_of(**training):
    configuration = Configuration(
        data_identifier="oaplugPlans_3d_lowres", spacing_mm=(1.0, 1.0, 1.0), size_voxels=(8, 8, 8),
        normalization=("zscore",),
    )  # fmt: skip
    return Plan(
        dataset_name="Dataset901_Toy",
        configurations={"3d_lowres": configuration},
        training=TrainSettings(batch_size=2, **training),
        augmentation=AugmentationSettings(),
    )


def measure(data, *, cases=CASES, **training):
    device = torch.device("cpu")
    return measure_feed(data, cases, plan_of(**training), "3d_lowres", device=device, seconds=0.08)


def test_slow_files_hold_up_the_first_epoch_only_where_all_cases_fit_in_memory(data, monkeypatch):
    monkeypatch.setattr(source_module, "read_array", slowed(source_module.read_array))
    found = measure(data)
    assert found.stages["read"] < 1 / SLOW
    assert found.first_epoch < min(1 / SLOW, found.later_epochs)
    assert (found.cases, found.fitting) == (4, 4)
    assert found.bottleneck != "read"


def test_slow_files_are_the_bottleneck_where_memory_is_short(data, monkeypatch):
    monkeypatch.setattr(source_module, "read_array", slowed(source_module.read_array))
    monkeypatch.setattr(source_module, "available_memory_bytes", lambda: 2 * 2.5 * 8**3 * 2)
    found = measure(data)
    assert (found.fitting, found.bottleneck) == (2, "read")
    assert found.later_epochs < 2 / SLOW


def test_more_readers_read_more_at_once(data, monkeypatch):
    monkeypatch.setattr(source_module, "read_array", slowed(source_module.read_array))
    assert measure(data, readers=2).stages["read"] > 1.2 * measure(data, readers=1).stages["read"]


def test_slow_augmentation_is_the_bottleneck(data, monkeypatch):
    monkeypatch.setattr(source_module, "apply_draws", slowed(source_module.apply_draws))
    found = measure(data)
    assert found.bottleneck == "augment"
    assert found.stages["augment"] <= 2 / SLOW + 1  # two cases in a batch


def test_the_command_shows_stages_and_bottleneck_and_refuses_what_is_not_there(
    trained_project, monkeypatch, capsys
):
    monkeypatch.setattr("oaplug.feed.throughput.SECONDS", 0.05)
    place = ["--preprocessed", str(trained_project.root / "preprocessed"), "-device", "cpu"]
    configuration = ["-c", "3d_fullres"]
    doctor.main(["--json", "--feed", "901", *configuration, *place])
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert {"feed: read", "feed: copy", "feed: augment", "feed"} <= set(checks)
    assert "the bottleneck is" in checks["feed"]["found"]
    for words, message in (
        (["--feed", "77"], "no dataset '77'"),
        (["--feed", "901", "-c", "2d"], "no configuration '2d'"),
        (["--feed", "901", "--plans", "mine"], "mine"),
    ):
        assert doctor.main([*words, *place]) == 2
        assert message in capsys.readouterr().err
