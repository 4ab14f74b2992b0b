"""Cosines between the gradients of a head's losses: their numbers, and that looking changes nothing."""

from __future__ import annotations

import copy
import csv
import json
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from oaplug_analyses.options import TaskInterferenceOptions
from oaplug_analyses.task_interference import Batches, TaskInterference
from safetensors.torch import load_file
from synthetic_predictions import make_study, make_table

import oaplug
from oaplug.commands import analyze
from oaplug.core.batch import Batch
from oaplug.core.errors import PluginError
from oaplug.core.interference import compare_gradients, loss_gradients
from oaplug.plug.registry import Registry, registry
from oaplug.plug.specs import AnalysisSpec
from oaplug.study.run import run_study
from oaplug.train.stopping import Interrupted
from oaplug.train.trainer import Trainer

pytestmark = pytest.mark.slow

TOY = "Dataset901_Toy"
TARGETS = {
    "kl": {"kind": "ordinal", "grades": [0, 1, 2, 3, 4]},
    "oa": {"kind": "binary", "derived_from": "kl", "at_least": 2},
}
VOLUME = torch.randn(4, 1, 12, 14, 10, generator=torch.Generator().manual_seed(0))
TRUTH = Batch(targets={"kl": torch.tensor([0, 1, 3, 4]), "oa": torch.tensor([0, 0, 1, 1])})


def make_network(head, *, seed=0, dropout=0.0):
    torch.manual_seed(seed)
    small = {"width": 4, "depth": 10, "dilated": False, "stem_kernel": 3}
    return oaplug.create_network(
        "resnet3d",
        head,
        targets=TARGETS,
        input_size=(12, 14, 10),
        backbone_options=small,
        head_options={"dropout": dropout},
    )


def gradients_of(network, *, truth=TRUTH, **settings):
    return loss_gradients(network, VOLUME, truth, **{"autocast": nullcontext(), "seed": 0} | settings)


def gradients_by_backward(network, truth):
    """The same by torch's usual way, one backward pass for each loss on a copy of the network."""
    found = {}
    for name in truth.targets:
        other = copy.deepcopy(network).train()
        other.loss(other(VOLUME), truth)[name].backward()
        found[name] = torch.cat([p.grad.flatten() for p in other.encoder.parameters()])
    return found


@pytest.mark.parametrize("head", ["dual", "dual_cascade"])
def test_gradients_and_their_cosine_are_those_of_separate_backward_passes(head):
    network = make_network(head)
    found, expected = gradients_of(network), gradients_by_backward(network, TRUTH)
    assert list(found) == ["kl", "oa"]
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
    values = compare_gradients(found)
    cosine = torch.nn.functional.cosine_similarity(expected["kl"], expected["oa"], dim=0)
    assert values["gradient_cosine.kl.oa"] == pytest.approx(float(cosine), abs=1e-5)
    assert values["gradient_norm.oa"] == pytest.approx(float(expected["oa"].norm()), rel=1e-4)


def test_measuring_leaves_weights_statistics_modes_gradients_and_random_numbers_alone():
    network = make_network("dual", dropout=0.5)
    network.eval()
    network.encoder.bn1.train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    state = torch.get_rng_state()
    first = gradients_of(network)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in network.modules()] == modes
    assert all(p.grad is None for p in network.parameters())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    again, other = gradients_of(network), gradients_of(network, seed=1)
    assert torch.equal(first["kl"], again["kl"])
    assert not torch.equal(first["kl"], other["kl"]), "dropout is drawn from the seed"


def test_gradients_do_not_depend_on_the_scale_that_guards_them():
    network = make_network("dual")
    for name, gradient in gradients_of(network, scale=1024.0).items():
        torch.testing.assert_close(gradient, gradients_of(network)[name], rtol=1e-5, atol=1e-8)


def test_a_head_of_one_loss_or_a_frozen_encoder_has_nothing_to_compare():
    assert gradients_of(make_network("single")) == {}
    network = make_network("dual")
    network.encoder.requires_grad_(requires_grad=False)
    assert gradients_of(network) == {}


def test_a_batch_in_which_a_target_is_unknown_has_no_cosine():
    truth = Batch(targets={"kl": torch.full((4,), -1), "oa": TRUTH.targets["oa"]})
    values = compare_gradients(gradients_of(make_network("dual"), truth=truth))
    assert values["gradient_norm.kl"] == 0
    assert values["gradient_norm.oa"] > 0
    assert np.isnan(values["gradient_cosine.kl.oa"])


def test_equal_gradients_have_cosine_1_and_opposed_ones_minus_1():
    one = torch.tensor([1.0, -2.0, 0.5])
    values = compare_gradients({"a": one, "b": 3 * one, "c": -one, "d": torch.tensor([2.0, 1.0, 0.0])})
    pairs = {"a.b": 1, "a.c": -1, "a.d": 0, "b.c": -1, "b.d": 0, "c.d": 0}
    assert {
        n.removeprefix("gradient_cosine."): v for n, v in values.items() if "cosine" in n
    } == pytest.approx(pairs, abs=1e-6)


LOGGED = ("--set", "training.log_gradient_cosine=true")
DUAL = ("--head", "dual", "--set", "head.dropout=0.3", "--set", "training.threads=1")


@pytest.fixture(scope="module")
def project(trained_project, tmp_path_factory):
    """Two dual models of the same seed, one of which logged gradients, and predictions of three models."""
    project = trained_project.copy(tmp_path_factory.mktemp("interference"))
    assert project.train(901, *DUAL, "--tag", "quiet", epochs=2) == 0
    assert project.train(901, *DUAL, *LOGGED, "--tag", "logged", epochs=2) == 0
    images = project.raw / TOY / "imagesTs"
    for model in models_of(project).values():
        assert project.predict(model, images) == 0
    return project


def models_of(project):
    dual = {tag: project.model(TOY, "resnet3d-dual", tag=tag) for tag in ("quiet", "logged")}
    return {"single": project.model(TOY, "resnet3d-single_kl"), **dual}


def records_of(fold):
    return [json.loads(line) for line in (fold / "metrics.jsonl").read_text().splitlines()]


def test_logging_gradients_changes_no_bit_of_the_training(project):
    quiet, logged = (models_of(project)[tag] / "fold_0" for tag in ("quiet", "logged"))
    for name in ("latest", "final"):
        first, second = (load_file(fold / f"checkpoint_{name}.safetensors") for fold in (quiet, logged))
        assert first.keys() == second.keys()
        assert all(first[key].equal(second[key]) for key in first)
    for one, other in zip(records_of(quiet), records_of(logged), strict=True):
        added = other.keys() - one.keys()
        assert added == {
            "train.gradient_cosine.kl.oa", "train.gradient_norm.kl", "train.gradient_norm.oa"
        }  # fmt: skip
        assert {k: v for k, v in other.items() if k not in added | {"seconds"}} == {
            k: v for k, v in one.items() if k != "seconds"
        }
        assert -1 <= other["train.gradient_cosine.kl.oa"] <= 1


@pytest.mark.slow
def test_a_training_stopped_within_an_epoch_logs_what_an_uninterrupted_one_does(project, monkeypatch):
    count = Trainer._count

    def stop_in_the_second_epoch(trainer, step):
        count(trainer, step)
        if (trainer.epoch, trainer.next_step) == (1, 1):
            trainer._save("latest")
            raise Interrupted("here")

    arguments = (*DUAL, *LOGGED, "--tag", "halves")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_count", stop_in_the_second_epoch)
        assert project.train(901, *arguments, epochs=2) != 0
    assert project.train(901, *arguments, "--c", epochs=2) == 0
    whole, halves = (project.model(TOY, "resnet3d-dual", tag=tag) / "fold_0" for tag in ("logged", "halves"))
    assert [{**r, "seconds": 0} for r in records_of(whole)] == [
        {**r, "seconds": 0} for r in records_of(halves)
    ]


@pytest.mark.slow
def test_a_head_of_one_loss_logs_nothing(project):
    assert project.train(901, *LOGGED, "--tag", "one") == 0
    (record,) = records_of(project.model(TOY, "resnet3d-single_kl", tag="one") / "fold_0")
    assert not [key for key in record if "gradient" in key]


def report_of(project, folder, *more):
    models = [f"{name}={path}" for name, path in models_of(project).items()]
    places = ["--raw", project.raw, "--preprocessed", project.preprocessed]
    assert (
        analyze.main([str(a) for a in ("-m", *models, "-o", folder, "--resamples", 20, *places, *more)]) == 0
    )
    content = json.loads((folder / "findings.json").read_text())
    return {entry["name"]: entry for entry in content["analyses"]}


def test_the_analysis_runs_only_when_it_is_asked_for(tmp_path):
    study = make_study({"m": make_table(subjects=5)})
    alone = Registry(parts=(registry().get("analysis", "task_interference"),))
    asked = {
        "by no one": (None, {}),
        "by name": (["task_interference"], {}),
        "by an option": (None, {"task_interference": {"batches": 1}}),
    }
    statuses = {}
    for how, (names, options) in asked.items():
        outcome = run_study(study, names, folder=tmp_path / how, registry=alone, options=options)
        (entry,) = json.loads(outcome.findings.read_text())["analyses"]
        statuses[how] = entry["status"]
        if how == "by no one":
            assert "runs only when asked for: -a task_interference" in entry["reason"]
    assert statuses == {"by no one": "skipped", "by name": "ok", "by an option": "ok"}


def test_saved_models_are_measured_on_their_training_cases_and_logs_are_drawn(project, tmp_path):
    entry = report_of(project, tmp_path, "-a", "task_interference")["task_interference"]
    assert entry["status"] == "ok", entry
    found, folder = entry["findings"], tmp_path / "task_interference"
    assert [figure["name"] for figure in found["figures"]] == ["batches", "epochs"]
    for figure in found["figures"]:
        assert (folder / figure["image"]).read_bytes().startswith(b"\x89PNG")
    with (folder / "batches.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["model"] for row in rows} == {"quiet", "logged"}
    cosines = [
        float(r["value"]) for r in rows if r["model"] == "quiet" and r["what"] == "gradient_cosine.kl.oa"
    ]
    number = found["numbers"]["quiet.kl.oa.gradient_cosine"]
    assert number == pytest.approx(np.mean(cosines))
    assert number == found["numbers"]["logged.kl.oa.gradient_cosine"], "the same weights and batches"
    with (folder / "epochs.csv").open(newline="") as file:
        logged = [row for row in csv.DictReader(file) if row["what"] == "gradient_cosine.kl.oa"]
    records = records_of(models_of(project)["logged"] / "fold_0")
    assert [float(row["value"]) for row in logged] == [r["train.gradient_cosine.kl.oa"] for r in records]
    said = " ".join(found["summary"])
    assert "single: one loss" in said
    assert "quiet: the gradients of kl and oa have a mean cosine of" in said


def test_without_training_cases_only_the_log_is_shown_and_the_reason_given(project, tmp_path):
    models = [f"{name}={path}" for name, path in models_of(project).items()]
    asked = ["-m", *models, "-o", str(tmp_path), "-a", "task_interference", "--resamples", "20"]
    assert analyze.main(asked) == 0
    (entry,) = json.loads((tmp_path / "findings.json").read_text())["analyses"]
    assert [figure["name"] for figure in entry["findings"]["figures"]] == ["epochs"]
    assert any("oaplug_preprocessed is not set" in text for text in entry["findings"]["summary"])


def test_tables_without_a_model_folder_show_nothing_and_say_why(tmp_path):
    study = make_study({"m": make_table(subjects=5)})
    outcome = run_study(study, ["task_interference"], folder=tmp_path, registry=registry())
    (entry,) = json.loads(outcome.findings.read_text())["analyses"]
    assert entry["status"] == "ok"
    assert entry["findings"]["figures"] == []
    assert "Not measured: m: it is a table of predictions alone." in entry["findings"]["summary"]


def test_means_are_over_batches_that_have_a_cosine():
    values = {
        "gradient_cosine.kl.oa": np.array([0.5, np.nan, -0.1, 0.2]),
        "gradient_norm.kl": np.array([2.0, 0.0, 4.0, 2.0]),
        "gradient_norm.oa": np.array([1.0, 1.0, 8.0, 2.0]),
    }
    folds = [Batches(model="m", fold="0", values=values)]
    study = replace(make_study({"m": make_table(subjects=5)}), resamples=2000)
    (mean,) = TaskInterference(TaskInterferenceOptions()).means(study, folds, "m")
    assert (mean.batches, mean.negative) == (3, pytest.approx(1 / 3))
    assert mean.value == pytest.approx(0.2)
    assert mean.deviation == pytest.approx(0.3)
    assert mean.norm_ratio == pytest.approx(1.0)
    assert (mean.low, mean.high) == (pytest.approx(-0.1), pytest.approx(0.5))


def test_options_are_checked_and_the_analysis_is_on_request():
    assert registry().spec(AnalysisSpec, "task_interference").on_request
    for bad in ({"batches": -1}, {"confidence": 0.0}):
        with pytest.raises(PluginError):
            TaskInterferenceOptions(**bad)
