"""Training in two CPU processes of one thread each, beside one process of one thread: cases per second.

    python benchmarks/train_processes.py --work FOLDER [--shape 40 96 96] [--width 32] [--epochs 3]

Runs `oaplug_train ... all -num_gpus 1 or 2 -device cpu` on phantom knees, with the same total batch size, and
takes seconds per epoch from metrics.jsonl; the first epoch warms up. Runs take turns, and the fastest epoch
of each counts, as nothing makes one faster than it can be. The last line has what the machine gives to two
trainings that have nothing to do with each other: the ratio cannot be much more than that.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from chain import command, make_environment

DATASET = "Dataset903_KneePhantom"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("processes_benchmark"))
    parser.add_argument("--shape", type=int, nargs=3, default=[40, 96, 96], metavar=("D", "H", "W"))
    parser.add_argument("--cases", type=int, default=16)
    parser.add_argument("--batch", type=int, default=4, help="cases in a step, of all processes together")
    parser.add_argument("--width", type=int, default=32, help="channels of the ResNet-18's first stage")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    environment = make_environment(given.work) | {"OMP_NUM_THREADS": "1"}
    if not (given.work / "raw" / DATASET / "cases.csv").is_file():
        knees = ["-d", 903, "--cases", given.cases, "--test-fraction", 0, "--shape", *given.shape]
        command("make_phantom", *knees, environment=environment)
    command("plan_and_preprocess", "-d", 903, environment=environment)
    settings = [
        *(f"training.epochs={given.epochs}", f"training.batch_size={given.batch}", "training.threads=1"),
        *(f"backbone.width={given.width}", "backbone.depth=18", "backbone.dilated=false"),
        *("training.precision=float32", "training.channels_last=true"),
    ]
    print(f"{os.cpu_count()} cores; ResNet-18 of width {given.width}, batch {given.batch}, 1 thread each")
    best: dict[str, float] = {}
    for index in range(given.rounds):
        for processes in (1, 2):
            (seconds,) = train(given.work, settings, processes=[processes], environment=environment)
            note(best, f"{processes} process{'es' if processes > 1 else ''}", seconds, index)
        apart = train(given.work, settings, processes=[1, 1], environment=environment)
        note(best, "2 alone, side by side", max(apart), index)
    one, two, apart_s = best.values()
    print(f"throughput of two processes to one: {one / two:.2f}")
    print(f"of two trainings that share nothing: {2 * one / apart_s:.2f}")


def note(best: dict[str, float], name: str, seconds: float, index: int) -> None:
    """Print a run and keep the fastest of its kind."""
    print(f"round {index + 1}: {name:<22} {seconds:8.3f} s per epoch", flush=True)
    best[name] = min(seconds, best.get(name, seconds))


def train(
    work: Path, settings: list[str], *, processes: list[int], environment: dict[str, str]
) -> list[float]:
    """Trainings side by side, each in so many processes; the fastest epoch of each in seconds."""
    shutil.rmtree(work / "results", ignore_errors=True)
    options = [part for line in settings for part in ("--set", line)]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "oaplug", "train", DATASET, "3d_fullres", "all", "-device", "cpu",
             "-num_gpus", str(count), "--tag", f"run{index}", *options],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for index, count in enumerate(processes)
    ]  # fmt: skip
    for process in started:
        _, said = process.communicate()
        if process.returncode:
            raise SystemExit(said[-2000:])
    tables = sorted((work / "results").glob("*/*/fold_all/metrics.jsonl"))
    return [
        min(json.loads(line)["seconds"] for line in table.read_text().splitlines()[1:]) for table in tables
    ]


if __name__ == "__main__":
    main()
