"""oaplug_doctor sees what is wrong with an installation, and says what to do."""

from __future__ import annotations

import json
from collections import namedtuple
from types import SimpleNamespace

import pytest

from oaplug.commands import doctor, doctor_checks
from oaplug.core.errors import PlanError
from oaplug.core.paths import Places
from oaplug.plug import registry as registry_module

Usage = namedtuple("Usage", "total used free")


def as_json(capsys, *arguments):
    status = doctor.main(["--json", "-device", "cpu", *map(str, arguments)])
    content = json.loads(capsys.readouterr().out)
    assert content["schema"] == 1
    return status, content["status"], {check["name"]: check for check in content["checks"]}


@pytest.fixture(autouse=True)
def _enough_of_everything(monkeypatch):
    """What the machine of the test has does not decide the test."""
    monkeypatch.setattr("oaplug.feed.memory.available_memory_bytes", lambda: 64 * 2.0**30)
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(2**40, 0, 2**40))
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)


def test_a_healthy_installation_is_ok_and_nothing_is_left_in_its_folders(tmp_path, capsys):
    places = [word for kind in ("raw", "preprocessed", "results") for word in (f"--{kind}", tmp_path)]
    status, worst, checks = as_json(capsys, *places)
    assert (status, worst) == (0, "ok"), checks
    assert {"python", "torch", "device", "monai", "blosc2", "plugins", "threads", "memory"} < set(checks)
    assert {"oaplug_raw", "oaplug_preprocessed", "oaplug_results"} < set(checks)
    assert not list(tmp_path.iterdir())
    assert doctor.main(["-device", "cpu", *map(str, places)]) == 0
    shown = capsys.readouterr().out
    assert "oaplug can work here" in shown
    assert all(name in shown for name in checks)


def test_variables_that_are_not_set_are_warned_of_with_the_command_that_sets_them(capsys):
    status, worst, checks = as_json(capsys)
    assert (status, worst) == (0, "warn")
    assert checks["oaplug_raw"]["advice"].startswith("export oaplug_raw=FOLDER")


def test_a_folder_that_is_missing_or_cannot_be_written_is_named(tmp_path, monkeypatch):
    missing = doctor_checks.check_place(Places(raw_override=tmp_path / "gone"), "raw")
    assert (missing.status, missing.found) == ("warn", f"{tmp_path / 'gone'} does not exist")

    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    closed = doctor_checks.check_place(Places(raw_override=tmp_path), "raw")
    assert (closed.status, closed.found) == ("fail", f"{tmp_path} is not writable (Permission denied)")


def test_little_memory_little_disk_and_too_many_threads_are_warned_of(tmp_path, monkeypatch):
    monkeypatch.setattr("oaplug.feed.memory.available_memory_bytes", lambda: 2.0**30)
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(2**40, 2**40, 2**20))
    monkeypatch.setattr("torch.get_num_threads", lambda: 4096)
    assert doctor_checks.check_memory().status == "warn"
    assert doctor_checks.check_place(Places(raw_override=tmp_path), "raw").status == "warn"
    threads = doctor_checks.check_threads()
    assert threads.status == "warn"
    assert "OMP_NUM_THREADS" in threads.advice


@pytest.mark.parametrize(
    ("version", "status"), [((3, 9), "fail"), ((3, 10), "ok"), ((3, 13), "ok"), ((3, 14), "warn")]
)
def test_a_python_is_judged_by_its_version(version, status):
    assert doctor_checks.check_python(version).status == status


def test_a_broken_plugin_fails_with_exit_status_1(monkeypatch, capsys):
    broken = SimpleNamespace(distribution="oaplug-broken")
    found = SimpleNamespace(quarantined=[broken], plugins=[broken], parts=[])
    monkeypatch.setattr(registry_module, "registry", lambda: found)
    status, worst, checks = as_json(capsys)
    assert (status, worst) == (1, "fail")
    assert checks["plugins"]["found"] == "broken: oaplug-broken"
    assert "oaplug_plugins" in checks["plugins"]["advice"]
    assert doctor.main(["-device", "cpu"]) == 1
    assert "failed: plugins" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("failure", "said"),
    [(PlanError("no such device"), "no such device"), (ImportError("x\ny"), "ImportError: x y")],
)
def test_a_check_that_raises_is_a_row_of_its_own(monkeypatch, capsys, failure, said):
    def fail(name):
        raise failure

    monkeypatch.setattr(doctor_checks, "check_device", fail)
    status, _, checks = as_json(capsys)
    assert status == 1
    assert checks["device"]["found"] == said
    assert checks["torch"]["status"] == "ok", "the other checks are made all the same"


def test_volumes_that_do_not_come_back_are_noticed(monkeypatch):
    monkeypatch.setattr("oaplug.prepare.store.read_array", lambda path: None)
    assert doctor_checks.check_blosc2().status == "fail"


@pytest.mark.slow
def test_resuming_is_tried_out_on_this_machine(capsys):
    status, _, checks = as_json(capsys, "--resume-test")
    assert status == 0
    assert "the same bits after two interruptions" in checks["resume"]["found"]


@pytest.mark.slow
def test_a_machine_on_which_resuming_is_not_exact_is_found_out(monkeypatch, capsys):
    monkeypatch.setattr("oaplug.train.stepper.load_optimizer", lambda optimizer, tensors: None)
    status, _, checks = as_json(capsys, "--resume-test")
    assert status == 1
    assert "other bits in latest, final" in checks["resume"]["found"]
