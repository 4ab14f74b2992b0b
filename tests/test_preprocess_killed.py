"""Preprocessing that is killed at any moment leaves no case that counts as done and is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Project

from oaplug.testing.toy import write_toy_dataset

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc"),
]
KILLS = 22


@pytest.fixture
def project(tmp_path):
    """Twelve cases of two million voxels, preprocessed without disturbance."""
    project = Project(tmp_path)
    write_toy_dataset(project.raw / "Dataset901_Toy", cases=12, shape=(96, 144, 144))
    assert project.prepare(901, "--size", 96, 144, 144, "--spacing", 2.0, 1.0, 1.25) == 0
    return project


def test_kills_at_random_moments_leave_no_half_case_and_a_last_run_completes(project):
    script = Path(__file__).with_name("killed_preprocessing.py")
    done = subprocess.run(
        [sys.executable, str(script), str(project.raw), str(project.preprocessed), str(KILLS)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=450,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    for who in ("parent", "worker"):
        assert sum(report["kills"][who].values()) >= KILLS // 2 - 1, report
        for phase in ("reading", "writing", "between"):
            assert report["kills"][who].get(phase, 0) >= 1, report
    assert report["wrong"] == [], "a record vouched for an array that is not whole"
    assert report["different"] == []
    assert report["finished"] >= 1
    print(report)
    assert len(set(report["current"])) > 2, "runs were killed at various states"
    assert report["failed"] == [] or all("killed its process twice" in line for line in report["failed"])
