"""Worker processes: one that dies costs nobody else's work, and none outlives the command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from killed_preprocessing import workers_of

from oaplug.core.case import Case, Problem
from oaplug.core.errors import DatasetError, OaplugError, PathError
from oaplug.prepare.pool import KILLED, OUT_OF_MEMORY, for_each_case
from oaplug.prepare.workers import spread


def cases_of(folder, ids="abcde"):
    """Cases with an image file of 3 MiB each."""
    cases = []
    for case_id in ids:
        path = folder / f"{case_id}.nii.gz"
        path.write_bytes(b"." * 3 * 2**20)
        cases.append(Case(case_id=case_id, subject_id=case_id, images=(path,)))
    return cases


def in_upper_case(case):
    return case.case_id.upper()


def die_at(case, *, fatal, folder, times):
    """Kill this process at a case, so many times; every try leaves a file named after its process."""
    (folder / f"{case.case_id}-{os.getpid()}-{time.monotonic_ns()}").touch()
    if case.case_id == fatal and len(list(folder.glob(f"{fatal}-*"))) <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return in_upper_case(case)


def tries_at(folder, case_id):
    return sorted(folder.glob(f"{case_id}-*"), key=lambda path: path.name.split("-")[2])


@pytest.mark.slow
def test_a_case_whose_process_dies_is_tried_again_alone_and_costs_the_others_nothing(tmp_path, caplog):
    (tmp_path / "tries").mkdir()
    cases, calls = cases_of(tmp_path), []
    work = partial(die_at, fatal="b", folder=tmp_path / "tries", times=1)
    outcomes = for_each_case(work, cases, processes=2, progress=lambda *call: calls.append(call))
    assert list(outcomes.results.items()) == [(c, c.upper()) for c in "abcde"]
    assert outcomes.problems == {}
    assert [call[:2] for call in calls] == [(number, 5) for number in range(1, 6)]
    assert calls[-1][2] == "b", "once all others are done"
    assert [len(tries_at(tmp_path / "tries", c)) for c in "abcde"] == [1, 2, 1, 1, 1]
    assert "the process of case b died" in caplog.text
    processes = [path.name.split("-")[1] for path in (tmp_path / "tries").iterdir()]
    last = tries_at(tmp_path / "tries", "b")[-1].name.split("-")[1]
    assert processes.count(last) == 1, "in a fresh process"


def test_a_case_that_kills_its_process_twice_is_named_with_its_file_and_size(tmp_path):
    (tmp_path / "tries").mkdir()
    work = partial(die_at, fatal="d", folder=tmp_path / "tries", times=99)
    outcomes = for_each_case(work, cases_of(tmp_path), processes=2)
    assert list(outcomes.results) == ["a", "b", "c", "e"]
    (problem,) = outcomes.problems.values()
    assert (problem.case_id, problem.kind) == ("d", KILLED)
    assert problem.file == str(tmp_path / "d.nii.gz")
    assert "killed its process twice" in problem.message
    assert "out of memory? its images have 3.0 MiB on disk" in problem.message
    assert len(tries_at(tmp_path / "tries", "d")) == 2


def have_no_memory(case, *, folder):
    (folder / f"{case.case_id}-{os.getpid()}-{time.monotonic_ns()}").touch()
    if case.case_id == "b":
        raise MemoryError
    return in_upper_case(case)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "kind", "tries"), [(1, OUT_OF_MEMORY, 1), (2, KILLED, 2)])
def test_a_case_without_enough_memory_is_one_that_kills(tmp_path, processes, kind, tries):
    (tmp_path / "tries").mkdir()
    work = partial(have_no_memory, folder=tmp_path / "tries")
    outcomes = for_each_case(work, cases_of(tmp_path, "abc"), processes=processes)
    assert outcomes.results == {"a": "A", "c": "C"}
    assert outcomes.problems["b"].kind == kind
    assert "3.0 MiB" in outcomes.problems["b"].message
    assert len(tries_at(tmp_path / "tries", "b")) == tries


def fail(case):
    if case.case_id == "b":
        raise DatasetError("case b: spoilt")
    if case.case_id == "d":
        raise ZeroDivisionError("a bug")
    return in_upper_case(case)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_case_that_fails_stops_no_other_and_a_bug_leaves_its_traceback(tmp_path, processes, caplog):
    outcomes = for_each_case(fail, cases_of(tmp_path), processes=processes)
    assert outcomes.results == {"a": "A", "c": "C", "e": "E"}
    assert outcomes.problems == {
        "b": Problem(kind="cannot be prepared", message="case b: spoilt", case_id="b"),
        "d": Problem(
            kind="unexpected",
            message="failed unexpectedly (ZeroDivisionError: a bug); see the log",
            case_id="d",
        ),
    }
    assert caplog.text.count("Traceback") == 1
    assert "in fail" in caplog.text


def find_no_room(case, *, folder):
    (folder / case.case_id).touch()
    raise PathError("cannot write x: No space left on device")


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_place_that_cannot_be_written_stops_the_work(tmp_path, processes):
    (tmp_path / "tries").mkdir()
    work = partial(find_no_room, folder=tmp_path / "tries")
    with pytest.raises(PathError, match=r"^cannot write x: No space left on device$"):
        for_each_case(work, cases_of(tmp_path, "abcdefghij"), processes=processes)
    assert len(list((tmp_path / "tries").iterdir())) <= processes + 1


def interrupt(done, total, what):
    raise KeyboardInterrupt


@pytest.mark.slow
def test_an_interruption_ends_the_processes(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        for_each_case(in_upper_case, cases_of(tmp_path), processes=2, progress=interrupt)
    assert set(workers_of(os.getpid())) == set()


def no_begin():
    os._exit(3)


@pytest.mark.slow
def test_processes_that_end_before_they_begin_are_given_up():
    with pytest.raises(OaplugError, match="ended before they began to work; use -np 1"):
        list(spread(len, ["a", "bb", "ccc"], processes=2, begin=no_begin))


def test_no_processes_are_refused(tmp_path):
    with pytest.raises(OaplugError, match="at least 1, got 0"):
        for_each_case(in_upper_case, cases_of(tmp_path, "a"), processes=0)


def test_no_cases_are_no_work():
    assert for_each_case(in_upper_case, [], processes=4).results == {}


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


SLEEPERS = """
import sys, time
from oaplug.prepare.workers import spread
def nothing(): pass
if __name__ == "__main__":
    for item, answer in spread(time.sleep, [0.0, 600.0, 600.0], processes=2, begin=nothing):
        print("one is done", flush=True)
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks into /proc")
def test_processes_end_when_the_one_that_started_them_is_killed(tmp_path):
    script = tmp_path / "sleepers.py"
    script.write_text(SLEEPERS)
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "one is done\n"
    workers = set(workers_of(parent.pid))
    assert len(workers) == 2
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 5
    while any(map(is_alive, workers)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(is_alive, workers))
