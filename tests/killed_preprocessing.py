"""Kills oaplug_preprocess and its processes: `killed_preprocessing.py RAW PREPROCESSED KILLS`; JSON report.

What a kill hit is read from the disk: the moment is chosen by watching the folder, and named by what it shows
just before; `left` counts what it shows after a kill of the command, once its processes have ended too.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from oaplug.core.dataset import open_dataset
from oaplug.core.errors import DatasetError
from oaplug.prepare.store import checksum, read_array, read_record

CALL = "import sys; from oaplug.commands.preprocess import main; sys.exit(main())"
AIMS = ("reading", "writing", "between")
PATIENCE_S = 60.0


def start(raw, preprocessed):
    """The command on two processes, in a session of its own."""
    arguments = ["-d", "901", "-np", "2", "--raw", str(raw), "--preprocessed", str(preprocessed)]
    return subprocess.Popen(
        [sys.executable, "-c", CALL, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def workers_of(pid):
    """Ids of the processes that the command has spawned and that work."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
            command = (folder / "cmdline").read_text()
        except OSError:
            continue
        if int(stat[1]) == pid and stat[0] != "Z" and "spawn_main" in command:
            found.append(int(folder.name))
    return found


def phase_of(place):
    """What the disk shows of the moment: an array half written, one without its record, or neither."""
    names = set(os.listdir(place)) if place.is_dir() else set()
    if any(name.startswith(".writing-") and name.endswith(".b2nd") for name in names):
        return "writing"
    arrays = {name[:-5] for name in names if name.endswith(".b2nd") and not name.startswith(".")}
    if arrays - {name[:-5] for name in names if name.endswith(".json") and not name.startswith(".")}:
        return "between"
    return "reading" if arrays else "starting"


def wait_for(command, place, aim, draw):
    """Until the folder shows the phase and a moment more; the phase then, or None after its end."""
    until, delay_s = time.monotonic() + PATIENCE_S, draw.choice([0.0, 0.0, draw.uniform(0, 0.003)])
    while command.poll() is None and time.monotonic() < until:
        if phase_of(place) == aim:
            time.sleep(delay_s if aim != "reading" else draw.uniform(0, 0.1))
            return phase_of(place) if command.poll() is None else None
        time.sleep(0.0001)
    return None


def kill(command, *, parent):
    """SIGKILL to the command or to one of its workers; whether there was somebody."""
    victims = [command.pid] if parent else workers_of(command.pid)
    if not victims:
        return False
    try:
        os.kill(random.choice(victims), signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def settle(pids):
    """Wait until the workers of a killed command are gone."""
    until = time.monotonic() + 10
    while [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < until, "workers outlive their command"
        time.sleep(0.005)


def wrong_cases(dataset, place, expected):
    """Cases whose record vouches for an array that is not that of an undisturbed run."""
    wrong, current = [], 0
    for case in dataset.cases:
        try:
            record = read_record(place / f"{case.case_id}.json")
        except DatasetError:
            continue
        current += 1
        path = place / f"{case.case_id}.b2nd"
        is_same = path.is_file() and path.read_bytes() == expected[path.name]
        if not is_same or record.array_crc32 != checksum(path) or read_array(path).shape != record.shape:
            wrong.append(case.case_id)
    return wrong, current


def main(raw, preprocessed, kills):
    raw, preprocessed, draw = Path(raw), Path(preprocessed), random.Random(0)
    random.seed(1)
    dataset = open_dataset(raw / "Dataset901_Toy")
    folder = preprocessed / dataset.folder.name
    plan = json.loads((folder / "oaplugPlans.json").read_text())
    place = folder / plan["configurations"]["3d_lowres"]["data_identifier"]
    expected = {path.name: path.read_bytes() for path in place.glob("*.b2nd")}
    hits, left = {"parent": Counter(), "worker": Counter()}, Counter()
    report = {"wrong": [], "finished": 0, "different": [], "failed": [], "current": []}
    while sum(map(Counter.total, hits.values())) < int(kills):
        for path in place.iterdir():
            path.unlink()
        finished = False
        while not finished:
            command = start(raw, preprocessed)
            finished = disturb(command, place, draw, hits, left, enough=int(kills))
            wrong, current = wrong_cases(dataset, place, expected)
            report["wrong"] += wrong
            report["current"].append(current)
            if finished and command.returncode != 0:
                report["failed"].append(command.stderr.read().decode()[-500:])
                finished = False
        report["finished"] += 1
        found = {path.name: path.read_bytes() for path in place.glob("[!.]*.b2nd")}
        report["different"] += [name for name in expected if found.get(name) != expected[name]]
        for path in place.glob(".writing-*"):
            path.unlink()
    print(json.dumps(report | {"kills": hits, "left": left}))


def disturb(command, place, draw, hits, left, *, enough):
    """Kill a worker now and then, or the command itself; whether the command came to its end."""
    while sum(map(Counter.total, hits.values())) < enough:
        for path in place.glob(".writing-*"):  # of kills before, so that what is seen is of this one
            if not is_open(path, command.pid):
                path.unlink(missing_ok=True)
        who = min(hits, key=lambda name: hits[name].total())
        aim = min(AIMS, key=lambda phase: hits[who][phase])
        if (phase := wait_for(command, place, aim, draw)) is None:
            break
        workers = workers_of(command.pid)
        if not kill(command, parent=who == "parent"):
            continue
        if who == "parent":
            command.wait()
            settle(workers)
            hits[who][phase] += 1
            left[phase_of(place)] += 1
            return False
        hits[who][phase] += 1
        time.sleep(0.3)
    command.wait()
    return True


def is_open(path, pid):
    """Whether the file is being written by a worker of the command."""
    for worker in workers_of(pid):
        try:
            if any(os.readlink(link) == str(path) for link in Path(f"/proc/{worker}/fd").iterdir()):
                return True
        except OSError:
            continue
    return False


if __name__ == "__main__":
    main(*sys.argv[1:])
