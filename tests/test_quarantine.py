"""Bad cases: all are told at once, or put into quarantine, where nothing uses them until they are mended."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager

import nibabel
import numpy as np
import pytest
from small_disks import mounted

from oaplug.commands import extract_fingerprint, preprocess
from oaplug.core.artifacts import atomic_path
from oaplug.core.dataset import open_dataset
from oaplug.core.errors import DatasetError, PlanError
from oaplug.prepare import case_state, preprocess_dataset
from oaplug.prepare.file_names import check_case_names, check_identifier
from oaplug.prepare.fingerprint import read_fingerprint
from oaplug.prepare.quarantine import quarantined_cases, read_mark
from oaplug.testing.toy import write_toy_dataset

TOY = "Dataset901_Toy"
CASES = [f"toy_{index:03d}" for index in range(24)]


@pytest.fixture
def project(trained_project, tmp_path):
    """Raw and preprocessed toy cases, free to be changed; of every eight the last two are test cases."""
    return trained_project.copy(tmp_path)


@pytest.fixture
def data(project):
    return project.preprocessed / TOY


def identifier_of(data):
    return json.loads((data / "oaplugPlans.json").read_text())["configurations"]["3d_lowres"][
        "data_identifier"
    ]


def image_of(project, case_id):
    (path,) = (project.raw / TOY).glob(f"images*/{case_id}_0000.nii.gz")
    return path


def spoil(project, *case_ids):
    for case_id in case_ids:
        image_of(project, case_id).write_bytes(b"no image")


def shift_mask(project, case_id):
    path = project.raw / TOY / "labelsTr" / f"{case_id}.nii.gz"
    mask = nibabel.load(path)
    affine = mask.affine.copy()
    affine[:3, 3] += 5
    nibabel.save(nibabel.Nifti1Image(np.asarray(mask.dataobj), affine), path)


def run(project, *more, command=preprocess):
    return command.main(project.prepare_arguments(901, *more))


def record_of(data):
    return json.loads((data / "preprocessing_record.json").read_text())


def arrays_of(data):
    return {path.name: path.read_bytes() for path in (data / identifier_of(data)).glob("*.b2nd")}


def reads_of(monkeypatch):
    """Ids of the cases whose images preprocessing reads."""
    read, seen = preprocess_dataset.read_image, []

    def told(paths, *, case_id):
        seen.append(case_id)
        return read(paths, case_id=case_id)

    monkeypatch.setattr(preprocess_dataset, "read_image", told)
    return seen


def test_all_bad_cases_of_both_splits_are_in_one_table_and_nothing_is_quarantined(project, data, capsys):
    spoil(project, "toy_001", "toy_008", "toy_006")
    before = (data / "dataset_fingerprint.json").read_bytes()
    assert project.prepare(901) == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert "3 cases cannot be used" in line
    assert "--skip-bad" in line
    for case_id in ("toy_001", "toy_008", "toy_006"):
        assert f" {case_id} " in said.out
    assert not (data / "quarantine").exists()
    assert (data / "dataset_fingerprint.json").read_bytes() == before


def test_preprocessing_tells_all_bad_cases_after_all_good_ones_are_made(project, data, capsys):
    shutil.rmtree(data / identifier_of(data))
    spoil(project, "toy_001", "toy_006", "toy_008", "toy_010", "toy_011")
    assert run(project) == 2
    said = capsys.readouterr()
    assert "5 cases could not be preprocessed" in said.err
    assert "and 2 more" in said.err
    assert all(f" {case_id} " in said.out for case_id in ("toy_001", "toy_006", "toy_010", "toy_011"))
    assert len(arrays_of(data)) == 19
    assert not (data / "quarantine").exists()
    record = record_of(data)
    missing = record["configurations"][identifier_of(data)]["missing"]
    assert missing == ["toy_001", "toy_006", "toy_008", "toy_010", "toy_011"]


def test_skipped_cases_are_listed_with_reason_file_and_digest_and_do_not_count(project, data, capsys):
    spoil(project, "toy_001", "toy_006")
    image_of(project, "toy_008").unlink()
    shift_mask(project, "toy_010")
    splits = (data / "splits_final.json").read_bytes()
    assert project.prepare(901, "--skip-bad") == 0
    said = capsys.readouterr().out
    assert "4 cases are in quarantine and left out of training" in said
    assert str(data / "preprocessing_record.json") in said
    assert read_fingerprint(data / "dataset_fingerprint.json").num_cases == 18 - 3
    assert (data / "splits_final.json").read_bytes() == splits
    record = record_of(data)
    stand = record["configurations"][identifier_of(data)]
    assert (stand["complete"], stand["missing"], stand["outdated"]) == (20, [], [])
    assert stand["quarantined"] == ["toy_001", "toy_006", "toy_008", "toy_010"]
    listed = {(entry["case_id"], entry["step"]): entry for entry in record["quarantined"]}
    assert set(listed) == {
        ("toy_001", "fingerprint"),
        ("toy_001", identifier_of(data)),
        ("toy_006", identifier_of(data)),
        ("toy_008", "fingerprint"),
        ("toy_008", identifier_of(data)),
        ("toy_010", "fingerprint"),
    }
    gone = listed["toy_008", identifier_of(data)]
    assert (gone["inputs"], gone["kind"]) == (None, "missing file")
    assert gone["file"].endswith("toy_008_0000.nii.gz")
    assert "does not exist" in gone["message"]
    spoilt = listed["toy_006", identifier_of(data)]
    assert len(spoilt["inputs"]) == 1
    assert spoilt["file"].endswith("toy_006_0000.nii.gz")
    assert len(listed["toy_010", "fingerprint"]["inputs"]) == 2, "image and mask"


def test_a_case_in_quarantine_is_tried_again_only_when_something_has_changed(project, data, monkeypatch):
    good = image_of(project, "toy_001").read_bytes()
    spoil(project, "toy_001", "toy_006")
    assert run(project, "--skip-bad") == 0
    seen = reads_of(monkeypatch)
    assert run(project, "--skip-bad") == 0
    assert seen == []
    image_of(project, "toy_001").write_bytes(b"no image either")
    assert run(project, "--skip-bad") == 0
    assert seen == ["toy_001"]
    assert quarantined_cases(data, identifier_of(data)) == {"toy_001", "toy_006"}
    image_of(project, "toy_001").write_bytes(good)
    assert run(project, "--skip-bad") == 0
    assert seen == ["toy_001"], "its array of before is current again"
    assert quarantined_cases(data, identifier_of(data)) == {"toy_006"}
    assert record_of(data)["configurations"][identifier_of(data)]["complete"] == 23
    monkeypatch.setattr(case_state.oaplug, "__version__", "99.0")
    assert run(project, "--skip-bad") == 0
    assert seen == ["toy_001", "toy_006"]
    assert run(project) == 2
    assert seen == ["toy_001", "toy_006", "toy_006"], "without the option every time"


def test_a_mended_mask_takes_its_case_out_of_quarantine(project, data):
    shift_mask(project, "toy_010")
    assert run(project, "--skip-bad", command=extract_fingerprint) == 0
    assert run(project, "--skip-bad") == 0
    assert read_mark(data, "fingerprint", "toy_010").kind == "grid mismatch"
    shutil.copy(image_of(project, "toy_010"), project.raw / TOY / "labelsTr" / "toy_010.nii.gz")
    assert run(project) == 0
    assert quarantined_cases(data, identifier_of(data)) == set()
    shift_mask(project, "toy_010")
    shift_mask(project, "toy_011")
    assert run(project, "--skip-bad", command=extract_fingerprint) == 0
    (project.raw / TOY / "labelsTr" / "toy_011.nii.gz").unlink()
    assert run(project, "--skip-bad", command=extract_fingerprint) == 0
    assert quarantined_cases(data, identifier_of(data)) == {"toy_010"}


def test_training_leaves_quarantined_cases_out_and_says_so(project, data, capsys):
    split = json.loads((data / "splits_final.json").read_text())[0]
    labelled = json.loads((project.model(TOY, "resnet3d-single_kl") / "fold_0" / "debug.json").read_text())
    out = [labelled["training_cases"][0], labelled["validation_cases"][0]]
    spoil(project, *out)
    assert run(project, "--skip-bad") == 0
    assert project.train(901, "--tag", "less") == 0
    folder = project.model(TOY, "resnet3d-single_kl", tag="less") / "fold_0"
    debug = json.loads((folder / "debug.json").read_text())
    assert debug["training_cases"] == labelled["training_cases"][1:]
    assert debug["validation_cases"] == labelled["validation_cases"][1:]
    (log,) = folder.glob("training_log_*.txt")
    assert (
        f"fold 0: 1 training and 1 validation cases are in quarantine and left out (list: "
        f"{data / 'preprocessing_record.json'})"
    ) in log.read_text()
    assert json.loads((data / "splits_final.json").read_text())[0] == split
    (data / identifier_of(data) / f"{debug['training_cases'][0]}.json").unlink()
    capsys.readouterr()
    assert project.train(901, "--tag", "missing") == 2
    assert f"case {debug['training_cases'][0]} is not preprocessed" in capsys.readouterr().err


def test_finalize_tells_what_is_complete_and_makes_nothing(project, data, monkeypatch, capsys):
    seen = reads_of(monkeypatch)
    assert run(project, "--finalize") == 0
    assert "24 of 24 complete" in capsys.readouterr().out
    place = data / identifier_of(data)
    (place / "toy_000.b2nd").unlink()
    (place / "toy_003.json").unlink()
    shutil.copy(image_of(project, "toy_001"), image_of(project, "toy_005"))
    assert run(project, "--finalize", "-num_parts", 4) == 2
    said = capsys.readouterr()
    assert "21 of 24 complete" in said.out
    assert "missing (1): toy_003\n" in said.out
    assert "outdated (2): toy_000 toy_005\n" in said.out
    assert "3 of 24 cases of -part_id 0, 1, 3 (of 4) are not finished" in said.err
    assert seen == []
    assert run(project) == 0
    assert seen == ["toy_000", "toy_003", "toy_005"]
    assert run(project, "--finalize") == 0


def test_quarantined_cases_count_as_complete_only_for_those_who_skip_them(project, data, capsys):
    spoil(project, "toy_001")
    assert run(project, "--skip-bad") == 0
    capsys.readouterr()
    assert run(project, "--finalize", "--skip-bad") == 0
    assert "quarantined (1): toy_001\n" in capsys.readouterr().out
    assert run(project, "--finalize") == 2
    assert "1 of 24 cases are in quarantine" in capsys.readouterr().err
    image_of(project, "toy_001").write_bytes(b"another one")
    assert run(project, "--finalize", "--skip-bad") == 2
    assert "not finished" in capsys.readouterr().err


def test_machines_that_share_a_folder_make_what_one_would(project, data, capsys):
    spoil(project, "toy_001", "toy_006")
    expected = {
        name: content for name, content in arrays_of(data).items() if name[:7] not in ("toy_001", "toy_006")
    }
    shutil.rmtree(data / identifier_of(data))
    (data / "preprocessing_record.json").unlink()
    for part_id in (2, 0, 1):
        assert run(project, "--skip-bad", "-num_parts", 3, "-part_id", part_id) == 0
        assert "--finalize, once all parts are done" in capsys.readouterr().out
        assert not (data / "preprocessing_record.json").exists()
        done = run(project, "--skip-bad", "-num_parts", 3, "--finalize")
        assert done == (0 if part_id == 1 else 2)
        (data / "preprocessing_record.json").unlink()
        capsys.readouterr()
    assert arrays_of(data) == expected
    assert run(project, "--skip-bad", "--finalize") == 0
    assert {entry["case_id"] for entry in record_of(data)["quarantined"]} == {"toy_001", "toy_006"}


def test_finalize_removes_what_killed_runs_left_and_nothing_that_is_being_written(project, data):
    place = data / identifier_of(data)
    stale = [place / ".writing-a-toy_000.b2nd", data / ".writing-b-cases.csv"]
    for path in stale:
        path.write_bytes(b"half")
        os.utime(path, (0, path.stat().st_mtime - 3600))
    with atomic_path(place / "toy_999.b2nd") as fresh:
        assert run(project, "--finalize") == 0
        assert fresh.exists()
        fresh.write_bytes(b"whole")
    assert not any(path.exists() for path in stale)
    (place / "toy_999.b2nd").unlink()


def test_a_dataset_of_nothing_but_bad_cases_is_an_error_whatever_is_skipped(project, data, capsys):
    spoil(project, *CASES)
    assert run(project, "--skip-bad") == 2
    assert f"every case of {TOY} is in quarantine" in capsys.readouterr().err
    assert project.prepare(901, "--skip-bad") == 2
    assert "no training case" in capsys.readouterr().err


@contextmanager
def files_of_at_most(size_bytes):
    """Within, the system refuses to make a file larger than this (EFBIG)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_disk_that_takes_no_more_is_no_fault_of_a_case(project, data, processes, capsys):
    expected, place = arrays_of(data), data / identifier_of(data)
    shutil.rmtree(place)
    limit = min(map(len, expected.values())) - 100
    assert limit > 1500, "records fit"
    with files_of_at_most(limit):
        assert run(project, "--skip-bad", "-np", processes) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot write" in line
    assert "File too large; put that right and run the command again" in line
    assert list(place.iterdir()) == []
    assert not (data / "quarantine").exists()
    assert run(project) == 0
    assert arrays_of(data) == expected


@pytest.fixture
def small_disk(tmp_path):
    with mounted(tmp_path / "disk", kib=64) as folder:
        yield folder


@pytest.mark.slow
def test_a_full_disk_is_said_in_one_line_and_what_is_finished_is_kept(project, data, small_disk, capsys):
    expected, place = arrays_of(data), small_disk / identifier_of(data)
    shutil.rmtree(data / identifier_of(data))
    (data / identifier_of(data)).symlink_to(place)
    place.mkdir()
    assert run(project, "--skip-bad") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "No space left on device" in line
    done = sorted(path.stem for path in place.glob("*.json"))
    assert 0 < len(done) < 24
    assert not list(place.glob(".writing*"))
    assert all((place / f"{case_id}.b2nd").read_bytes() == expected[f"{case_id}.b2nd"] for case_id in done)


KILLER = """
import multiprocessing, os, signal, sys
def watch(event, arguments):
    if event == "open" and str(arguments[0]).endswith("toy_001_0000.nii.gz"):
        os.kill(os.getpid(), signal.SIGKILL)
if multiprocessing.parent_process() is not None or "spawn_main" in " ".join(sys.orig_argv):
    sys.addaudithook(watch)
"""


@pytest.mark.slow
def test_a_case_that_kills_its_process_is_quarantined_and_all_others_are_made(project, data, tmp_path):
    expected = arrays_of(data)
    shutil.rmtree(data / identifier_of(data))
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(KILLER)
    search = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    call = "import sys; from oaplug.commands.preprocess import main; sys.exit(main())"
    command = [sys.executable, "-c", call, *project.prepare_arguments(901, "--skip-bad", "-np", 2)]
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": search},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    del expected["toy_001.b2nd"]
    assert arrays_of(data) == expected
    (entry,) = record_of(data)["quarantined"]
    assert (entry["case_id"], entry["kind"]) == ("toy_001", "killed its process")
    assert entry["file"].endswith("toy_001_0000.nii.gz")
    assert len(entry["inputs"]) == 1


@pytest.mark.parametrize("name", ["con", "NUL.1", "a:b", "a/b", "a.", " a", ".a", "", "com7", "a?"])
def test_names_that_some_system_refuses_are_refused(name):
    with pytest.raises(DatasetError, match="cannot be a file name on every system"):
        check_case_names(["toy_000", name])
    with pytest.raises(PlanError, match="data_identifier"):
        check_identifier(name)


def test_case_ids_that_only_upper_case_tells_apart_are_refused():
    with pytest.raises(DatasetError, match="'Knee_1' and 'knee_1' differ only in"):
        check_case_names(["knee_1", "knee_2", "Knee_1"])
    check_case_names(["console", "knee_1", "a.b-c_1", "com10"])


@pytest.mark.parametrize("name", ["quarantine", "Fingerprint"])
def test_folders_of_the_quarantine_hold_no_arrays(name):
    with pytest.raises(PlanError, match="choose another"):
        check_identifier(name)
    check_identifier("oaplugPlans_3d_lowres")


def test_the_api_names_every_bad_training_case(tmp_path):
    from oaplug.prepare.fingerprint import extract_fingerprint

    folder = write_toy_dataset(tmp_path / TOY, cases=6)
    for case_id in ("toy_001", "toy_003"):
        (folder / "imagesTr" / f"{case_id}_0000.nii.gz").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"2 cases could not be measured: case toy_001, .*case toy_003, "):
        extract_fingerprint(open_dataset(folder), processes=1)
