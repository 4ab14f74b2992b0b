"""Preparing raw knees: oaplug beside nnU-Net v2 and beside the least that reading and writing take.

    python benchmarks/preprocessing.py --work FOLDER --peer-python PYTHON [--rounds 3]
    python benchmarks/preprocessing.py --work FOLDER --scaling

Six phantom knees of 160 x 384 x 384 voxels of int16 with masks (gzip NIfTI, 0.7 x 0.3646 x 0.3646 mm, slices
stored one after the other as scanners do) are brought to 0.7 mm by two processes of one thread. Every program
is run as a user does, in turns: nnU-Net's three commands (order 3 for images, its default), ours, and the
floor, which reads image and mask with SimpleITK, resamples each once linearly and writes the image as float16
blosc2. Processor seconds are user and system time of all processes. Each line has the median of the rounds
and their range, imports included; start-up is the same command on six tiny knees. PYTHON has nnunetv2. Linux.

PSNR compares images of mean 0 and standard deviation 1 on the same grid; its range is that from the 0.5th to
the 99.5th percentile of the reference: nnU-Net's order 3, and the ideal that keeps all that the new spacing
can show and nothing else (the discrete cosine transform cut off). `--scaling` shows peak memory at two sizes
of volume and seconds at 10, 40 and 160 knees of the smaller one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

SHAPE, HALF, TINY = (160, 384, 384), (80, 192, 192), (16, 32, 32)
EXTENT_MM = (112, 140, 140)
KNEES, TINY_ID, FULL_ID, HALF_ID = 6, 905, 906, 907
PARTS = Path(__file__).with_name("preprocessing_parts.py")
FINGERPRINT, PREPROCESSING = "fingerprint", "preprocessing"
Command = list[str]


@dataclass(frozen=True, kw_only=True)
class Use:
    """What a command took: processor and wall seconds, and the peak memory of its largest process."""

    cpu_s: float
    wall_s: float
    peak_mib: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("preprocessing_benchmark"))
    parser.add_argument("--peer-python", type=Path, help="the interpreter that nnunetv2 is installed for")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scaling", action="store_true", help="memory by size and seconds by cases instead")
    given = parser.parse_args()
    environment = make_environment(given.work.resolve())
    if given.scaling:
        show_memory(environment=environment)
        show_linearity(rounds=given.rounds, environment=environment)
    elif given.peer_python is None:
        parser.error("--peer-python is needed")
    else:
        compare(given.peer_python, rounds=given.rounds, environment=environment)


def make_environment(work: Path) -> dict[str, str]:
    """Folders of both programs below `work`; both read the same raw datasets."""
    folders = {name: str(work / name) for name in ("oaplug_preprocessed", "oaplug_results")}
    folders |= {name: str(work / name) for name in ("nnUNet_preprocessed", "nnUNet_results")}
    folders |= dict.fromkeys(("oaplug_raw", "nnUNet_raw"), str(work / "raw"))
    for folder in folders.values():
        Path(folder).mkdir(parents=True, exist_ok=True)
    return os.environ | folders | {"OMP_NUM_THREADS": "1"}


def measured(words: Command, environment: dict[str, str]) -> Use:
    """Run a program to its end; where it fails, show what it said and stop."""
    log = Path(environment["oaplug_results"]) / "log.txt"
    with log.open("w") as said:
        start = time.perf_counter()
        process = subprocess.Popen(words, env=environment, stdout=said, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)}\n{log.read_text()[-2000:]}")
    return Use(cpu_s=usage.ru_utime + usage.ru_stime, wall_s=wall_s, peak_mib=usage.ru_maxrss / 1024)


def oaplug(verb: str, *options: object) -> Command:
    """The words of `oaplug VERB ...`."""
    return [sys.executable, "-m", "oaplug", verb, *map(str, options)]


def part(verb: str, *options: object, python: Path | str = sys.executable) -> Command:
    """The words that run a part of this benchmark in a process of its own."""
    return [str(python), str(PARTS), verb, *map(str, options)]


def make_knees(number: int, shape: tuple[int, ...], *, cases: int, environment: dict[str, str]) -> Path:
    """A dataset of phantom knees whose slices are stored one after the other; made once."""
    folder = Path(environment["oaplug_raw"]) / f"Dataset{number}_KneePhantom"
    if not (folder / "dataset.json").is_file():
        print(f"making {cases} knees of {shape}", flush=True)
        options = ["-d", number, "--cases", cases, "--shape", *shape, "--test-fraction", 0, "-np", 2]
        measured(oaplug("make_phantom", *options), environment)
        measured(part("reorient", folder), environment)
    return folder


def compare(peer_python: Path, *, rounds: int, environment: dict[str, str]) -> None:
    """Run everything in turns, print what it took, its ratios, and how the images differ."""
    tiny = make_knees(TINY_ID, TINY, cases=KNEES, environment=environment)
    full = make_knees(FULL_ID, SHAPE, cases=KNEES, environment=environment)
    used: dict[tuple[str, str], list[Use]] = {}
    start: dict[tuple[str, str], list[Use]] = {}
    for index in range(rounds):
        for folder, into in ((tiny, start), (full, used)):
            print(f"round {index + 1} of {rounds}: {folder.name}", flush=True)
            for name, use in run_all(folder, peer_python, environment=environment).items():
                into.setdefault(name, []).append(use)
    for step in (FINGERPRINT, PREPROCESSING):
        print_step(step, used=used, start=start)
    subprocess.run(part("stages", full), env=environment, check=True)
    ours = Path(environment["oaplug_preprocessed"]) / full.name / "oaplugPlans_3d_fullres"
    theirs = Path(environment["nnUNet_preprocessed"]) / full.name / "nnUNetPlans_3d_fullres"
    subprocess.run(part("quality", full, ours, theirs), env=environment, check=True)


def run_all(folder: Path, peer_python: Path, *, environment: dict[str, str]) -> dict[tuple[str, str], Use]:
    """Each program's steps on one dataset, made anew."""
    number = folder.name[len("Dataset") :].split("_")[0]
    for key in ("oaplug_preprocessed", "nnUNet_preprocessed"):
        shutil.rmtree(Path(environment[key]) / folder.name, ignore_errors=True)
    step = 7.0 if number == str(TINY_ID) else 0.7  # a tiny knee has voxels ten times as large
    spacing, size = [step] * 3, [round(extent / step) for extent in EXTENT_MM]
    found = {}
    for name, words in {
        ("nnU-Net", FINGERPRINT): part("peer", "extract_fingerprint", number, python=peer_python),
        ("nnU-Net", "plan"): part("peer", "plan_experiment", number, step, python=peer_python),
        ("nnU-Net", PREPROCESSING): part("peer", "preprocess", number, python=peer_python),
        ("oaplug", FINGERPRINT): oaplug("extract_fingerprint", "-d", number, "-np", 2),
        ("oaplug", "plan"): oaplug("plan_experiment", "-d", number, "--spacing", *spacing, "--size", *size),
        ("oaplug", PREPROCESSING): oaplug("preprocess", "-d", number, "-c", "3d_fullres", "-np", 2),
        ("floor", PREPROCESSING): part("floor", folder, step),
    }.items():
        found[name] = measured(words, environment)
    return found


def print_step(
    step: str, *, used: dict[tuple[str, str], list[Use]], start: dict[tuple[str, str], list[Use]]
) -> None:
    """A table of what each program took for a step, and how many times what oaplug did."""
    print(f"\n{step}, {KNEES} knees, 2 processes; per knee, median of {len(used['oaplug', step])} (range)")
    print(f"{'':<10}{'processor s':>24}{'wall s':>24}{'start-up s':>12}{'peak MiB':>10}{'x oaplug':>10}")
    ours = median(use.cpu_s for use in used["oaplug", step])
    for (name, found_step), uses in used.items():
        if found_step == step:
            began = median(use.cpu_s for use in start[name, step])
            print(
                f"{name:<10}{spread([use.cpu_s / KNEES for use in uses]):>24}"
                f"{spread([use.wall_s / KNEES for use in uses]):>24}{began / KNEES:>12.2f}"
                f"{max(use.peak_mib for use in uses):>10.0f}"
                f"{median(use.cpu_s for use in uses) / ours:>10.2f}"
            )


def spread(values: list[float]) -> str:
    """The median and the range of values."""
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def show_memory(*, environment: dict[str, str]) -> None:
    """The peak memory of preparing one knee, beyond what the interpreter and its imports need."""
    print("memory of one process that prepares one knee, or measures it; float32 volumes as read")
    print(
        f"{'':<15}{'voxels':>18}{'volume MiB':>12}{'imports MiB':>13}{'peak MiB':>10}{'volumes beyond':>16}"
    )
    tiny = make_knees(TINY_ID, TINY, cases=KNEES, environment=environment)
    half = make_knees(HALF_ID, HALF, cases=2, environment=environment)
    full = make_knees(FULL_ID, SHAPE, cases=KNEES, environment=environment)
    for step in (FINGERPRINT, PREPROCESSING):
        for folder, shape, spacing_mm in ((half, HALF, 1.4), (full, SHAPE, 0.7)):
            words = part("memory", step, folder, spacing_mm, tiny, 7.0)
            said = subprocess.run(words, env=environment, check=True, capture_output=True, text=True)
            base, peak = json.loads(said.stdout)
            volume = shape[0] * shape[1] * shape[2] * 4 / 2**20
            print(
                f"{step:<15}{' x '.join(map(str, shape)):>18}{volume:>12.1f}{base:>13.1f}{peak:>10.1f}"
                f"{(peak - base) / volume:>14.2f}"
            )


def show_linearity(*, rounds: int, environment: dict[str, str]) -> None:
    """Seconds of both steps at 10, 40 and 160 links to the same knee, and those of each further case."""
    half = make_knees(HALF_ID, HALF, cases=2, environment=environment)
    folders = {cases: link_knees(half, number=HALF_ID + cases, cases=cases) for cases in (10, 40, 160)}
    print(f"\nknees of {HALF}, 2 processes, median of {rounds} (range)")
    print(f"{'':<14}{'cases':>6}{'processor s':>24}{'wall s':>24}{'s a further case':>18}{'peak MiB':>10}")
    for step, verb in ((FINGERPRINT, "extract_fingerprint"), (PREPROCESSING, "preprocess")):
        before, text = (0, 0.0), ""
        for cases, folder in folders.items():
            uses = [run_step(folder, verb, environment=environment) for _ in range(rounds)]
            cpu_s = [use.cpu_s for use in uses]
            if before[0]:
                text = f"{(median(cpu_s) - before[1]) / (cases - before[0]):.3f}"
            before = (cases, median(cpu_s))
            print(
                f"{step:<14}{cases:>6}{spread(cpu_s):>24}{spread([use.wall_s for use in uses]):>24}"
                f"{text:>18}{max(use.peak_mib for use in uses):>10.0f}",
                flush=True,
            )


def link_knees(source: Path, *, number: int, cases: int) -> Path:
    """A dataset whose cases are hard links to the first knee of another; no table of cases."""
    folder = source.with_name(f"Dataset{number}_KneePhantom")
    shutil.rmtree(folder, ignore_errors=True)
    for place in ("imagesTr", "labelsTr"):
        (folder / place).mkdir(parents=True)
        first = min((source / place).iterdir())
        for index in range(cases):
            os.link(first, folder / place / first.name.replace("_0000", f"_{index:04d}", 1))
    description = json.loads((source / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(description | {"numTraining": cases}))
    return folder


def run_step(folder: Path, verb: str, *, environment: dict[str, str]) -> Use:
    """One of oaplug's steps on a dataset, made anew."""
    number = folder.name[len("Dataset") :].split("_")[0]
    data = Path(environment["oaplug_preprocessed"]) / folder.name
    options = ["-d", number, "-np", 2]
    if verb == "preprocess":
        shutil.rmtree(data / "oaplugPlans_3d_fullres", ignore_errors=True)
        measured(oaplug("plan_experiment", "-d", number), environment)
        options += ["-c", "3d_fullres"]
    return measured(oaplug(verb, *options), environment)


if __name__ == "__main__":
    main()
