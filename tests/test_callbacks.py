"""Callbacks that tell experiment trackers: against fakes that keep what real ones would refuse or record."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest

from oaplug.core.errors import PluginError
from oaplug.plug import NoOptions
from oaplug.plug.registry import registry
from oaplug.plug.specs import CallbackSpec
from oaplug.testing.callback import RUN, toy_records
from oaplug.testing.contract import check_callback

VARIABLES = ("MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE", "MLFLOW_DISABLE_TELEMETRY")
VARIABLES += ("WANDB_MODE", "WANDB_API_KEY", "WANDB_ERROR_REPORTING")


@pytest.fixture(autouse=True)
def _no_tracker_is_set_up(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


class FakeMlflowError(Exception):
    pass


class FakeStore:
    """What MLflow's file store keeps and refuses (version 3: it opens only where it is allowed)."""

    stores: ClassVar[dict[str, FakeStore]] = {}

    def __init__(self):
        self.experiments, self.runs = {}, {}


class FakeClient:
    def __init__(self, tracking_uri):
        if tracking_uri.startswith("file:") and os.environ.get("MLFLOW_ALLOW_FILE_STORE") != "true":
            raise FakeMlflowError("the filesystem tracking backend is in maintenance mode")
        self.telemetry = os.environ.get("MLFLOW_DISABLE_TELEMETRY") != "true"
        self.uri = tracking_uri
        self.store = FakeStore.stores.setdefault(tracking_uri, FakeStore())

    def get_experiment_by_name(self, name):
        found = self.store.experiments.get(name)
        return found and SimpleNamespace(experiment_id=found)

    def create_experiment(self, name):
        assert name not in self.store.experiments
        self.store.experiments[name] = str(len(self.store.experiments))
        return self.store.experiments[name]

    def create_run(self, experiment_id, run_name):
        run_id = f"run{len(self.store.runs)}"
        self.store.runs[run_id] = SimpleNamespace(
            name=run_name, experiment=experiment_id, status="RUNNING", params={}, metrics=[]
        )
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

    def _run(self, run_id):
        if run_id not in self.store.runs:
            raise FakeMlflowError(f"Run {run_id!r} not found")
        return self.store.runs[run_id]

    def update_run(self, run_id, status):
        self._run(run_id).status = status

    def log_batch(self, run_id, metrics=(), params=()):
        run = self._run(run_id)
        assert len(params) <= 100
        for key, value in params:
            assert len(value) <= 500
            assert run.params.setdefault(key, value) == value, "changing param values is not allowed"
        run.metrics += metrics

    def set_terminated(self, run_id):
        self._run(run_id).status = "FINISHED"


@pytest.fixture
def fake_mlflow(monkeypatch):
    module = ModuleType("mlflow")
    module.MlflowClient, module.MlflowException = FakeClient, FakeMlflowError
    module.entities = SimpleNamespace(
        Param=lambda key, value: (key, value),
        Metric=lambda key, value, timestamp, step: (key, value, step),
    )
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setattr(FakeStore, "stores", {})
    return FakeStore.stores


class FakeWandbRun:
    def __init__(self, settings):
        self.settings, self.logged, self.is_open, self.steps = settings, [], True, {}

    def define_metric(self, name, step_metric=None):
        self.steps[name] = step_metric

    def log(self, values):
        assert self.is_open
        self.logged.append(values)

    def finish(self):
        self.is_open = False


@pytest.fixture
def fake_wandb(monkeypatch):
    """The runs that were opened, in order."""
    runs = []

    def init(**settings):
        settings["errors are reported"] = os.environ.get("WANDB_ERROR_REPORTING") != "false"
        runs.append(FakeWandbRun(settings))
        return runs[-1]

    module = ModuleType("wandb")
    module.init, module.Settings = init, lambda **given: given
    monkeypatch.setitem(sys.modules, "wandb", module)
    return runs


def spec_of(name):
    return registry().spec(CallbackSpec, name)


def built(name, folder):
    folder.mkdir(parents=True, exist_ok=True)
    return spec_of(name).build(NoOptions(), folder=folder)


def train_interrupted(name, folder):
    """Two epochs, the state as a checkpoint has it, one epoch more that is lost, then all from there."""
    records = toy_records(4)
    first = built(name, folder)
    first.on_start(RUN)
    for record in records[:2]:
        first.on_epoch(record)
    state = first.state_dict()
    first.on_epoch(records[2])
    second = built(name, folder)
    second.load_state_dict(state)
    second.on_start(RUN)
    for record in records[2:]:
        second.on_epoch(record)
    second.on_end()
    return second


@pytest.mark.usefixtures("fake_mlflow", "fake_wandb")
@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_tracker_keeps_the_contract_of_callbacks(name):
    check_callback(spec_of(name))


@pytest.mark.parametrize(("name", "package"), [("mlflow", "mlflow-skinny"), ("wandb", "wandb")])
def test_a_missing_tracker_is_one_error_that_says_what_to_install(name, package, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(PluginError, match=rf"^the callback {name} needs .*pip install {package},") as failure:
        built(name, tmp_path)
    assert "\n" not in str(failure.value)


def test_mlflow_keeps_one_run_in_the_fold_folder_across_an_interruption(fake_mlflow, tmp_path):
    fold = tmp_path / "a model" / "fold_0"
    train_interrupted("mlflow", fold)
    ((uri, store),) = fake_mlflow.items()
    assert uri == (fold / "mlruns").as_uri()
    assert list(store.experiments) == ["Dataset901_Toy"]
    (run,) = store.runs.values()
    assert (run.name, run.status) == ("a model/fold_0", "FINISHED")
    assert run.params["run.backbone.options.width"] == "8"
    assert run.params["plan.training.learning_rate"] == "0.001"
    assert run.params["run.overrides.training.epochs"] == "4"
    assert not [key for key in run.params if "reasons" in key]
    qwk = [(step, value) for key, value, step in run.metrics if key == "val/kl/qwk"]
    assert qwk == [(0, 0.2), (1, pytest.approx(0.3)), (3, pytest.approx(0.5))], "epoch 2 has none"
    assert {step for key, _, step in run.metrics if key == "train/loss/total"} == {0, 1, 2, 3}
    assert not any(name in os.environ for name in VARIABLES), "the environment is as it was"


def test_mlflow_tells_nobody_unless_a_tracking_server_is_named(fake_mlflow, tmp_path, monkeypatch):
    callback = train_interrupted("mlflow", tmp_path / "m" / "fold_0")
    assert callback._client.telemetry is False
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example")
    callback = train_interrupted("mlflow", tmp_path / "m" / "fold_1")
    assert callback._client.telemetry is True
    assert "http://tracking.example" in fake_mlflow
    assert not (tmp_path / "m" / "fold_1" / "mlruns").exists()


def test_an_mlflow_run_that_was_removed_is_begun_anew_and_said(fake_mlflow, tmp_path, caplog):
    callback = built("mlflow", tmp_path)
    callback.load_state_dict({"run_id": "gone"})
    callback.on_start(RUN)
    assert "the MLflow run gone is not there" in caplog.text
    (store,) = fake_mlflow.values()
    assert callback.state_dict() == {"run_id": next(iter(store.runs))}


def test_wandb_goes_on_with_its_run_against_the_epoch(fake_wandb, tmp_path):
    fold = tmp_path / "model" / "fold_0"
    train_interrupted("wandb", fold)
    first, second = fake_wandb
    assert first.settings["id"] == second.settings["id"]
    assert second.settings["resume"] == "allow"
    assert Path(second.settings["dir"]) == fold
    assert (second.settings["project"], second.settings["group"]) == ("Dataset901_Toy", "model")
    assert second.settings["config"]["run.backbone.options.width"] == 8
    assert second.steps["*"] == "epoch"
    assert [entry["epoch"] for entry in first.logged + second.logged] == [0, 1, 2, 2, 3]
    assert second.logged[-1]["val/kl/qwk"] == pytest.approx(0.5)
    assert "val/kl/qwk" not in second.logged[0], "what is not defined is left out"
    assert not second.is_open


@pytest.mark.parametrize(
    ("variable", "mode"), [(None, "offline"), ("WANDB_MODE", None), ("WANDB_API_KEY", None)]
)
def test_wandb_is_offline_unless_the_environment_asks(fake_wandb, tmp_path, monkeypatch, variable, mode):
    if variable:
        monkeypatch.setenv(variable, "online")
    built("wandb", tmp_path).on_start(RUN)
    assert fake_wandb[0].settings["mode"] == mode
    assert fake_wandb[0].settings["errors are reported"] is (variable is not None)
    assert "WANDB_ERROR_REPORTING" not in os.environ


def test_two_runs_of_wandb_have_ids_of_their_own(fake_wandb, tmp_path):
    for fold in ("fold_0", "fold_1"):
        built("wandb", tmp_path / fold).on_start(RUN)
    assert fake_wandb[0].settings["id"] != fake_wandb[1].settings["id"]
