"""What listing the parts costs with 30 plugins whose libraries are heavy, against importing torch.

    python benchmarks/plugin_listing.py [--plugins 30] [--repeats 7]

Every plugin is an installed distribution with a backbone, a head and an analysis; its builders import a
library that raises when it is imported, so that a listing that touched it would fail.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PLUGIN = """
from dataclasses import dataclass

from oaplug.plug import AnalysisSpec, BackboneSpec, HeadSpec, hookimpl


@dataclass(frozen=True, kw_only=True)
class Options:
    width: int = 16
    depth: int = 4


def build_backbone(options, *, in_channels, input_size):
    import heavy_library


def build_head(options, *, num_features, targets, grade_counts):
    import heavy_library


def build_analysis(options):
    import heavy_library


@hookimpl
def oaplug_backbones():
    return [BackboneSpec(name="backbone{n}", summary="of {n}", build=build_backbone, options=Options)]


@hookimpl
def oaplug_heads():
    return [HeadSpec(name="head{n}", summary="of {n}", build=build_head, options=Options)]


@hookimpl
def oaplug_analyses():
    return [AnalysisSpec(name="analysis{n}", summary="of {n}", build=build_analysis, options=Options)]
"""


def install(folder: Path, number: int) -> None:
    """Put a distribution into `folder` as pip would, with a long description."""
    module = f"oaplug_example{number}"
    (folder / f"{module}.py").write_text(PLUGIN.replace("{n}", str(number)), encoding="utf-8")
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    description = "A long description.\n" * 1000
    metadata = f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n\n{description}"
    (info / "METADATA").write_text(metadata, encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[oaplug]\nplugin = {module}\n", encoding="utf-8")


def measure(words: list[str], folder: Path, *, repeats: int) -> tuple[float, float, str]:
    """Median seconds of wall clock and of CPU of a Python process, and its output; the first run warms up."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OAPLUG_")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # installed plugins are compiled
    environment |= {"PYTHONPATH": str(folder), "OAPLUG_CONFIG": str(folder), "OMP_NUM_THREADS": "1"}
    walls, cpus, output = [], [], ""
    for _ in range(repeats + 1):
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        output = subprocess.run(
            [sys.executable, *words], env=environment, capture_output=True, text=True, check=True
        ).stdout
        walls.append(time.perf_counter() - started)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpus.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return sorted(walls[1:])[repeats // 2], sorted(cpus[1:])[repeats // 2], output


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plugins", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as empty:
        folder = Path(name)
        (folder / "heavy_library.py").write_text("raise SystemError('it was imported')", encoding="utf-8")
        for number in range(arguments.plugins):
            install(folder, number)
        listing = ["-m", "oaplug", "plugins", "--json"]
        rows = {
            "python -c pass": measure(["-c", "pass"], folder, repeats=arguments.repeats),
            "oaplug_plugins --json, no plugin": measure(listing, Path(empty), repeats=arguments.repeats),
            f"oaplug_plugins --json, {arguments.plugins} plugins": measure(
                listing, folder, repeats=arguments.repeats
            ),
            "python -c 'import torch'": measure(["-c", "import torch"], folder, repeats=arguments.repeats),
        }
    *_, (full_wall, full_cpu, output), (torch_wall, torch_cpu, _) = rows.values()
    content = json.loads(output)
    if content["quarantined"] or len(content["parts"]) < 3 * arguments.plugins:
        raise SystemExit("not every part was listed")
    print(f"{'':<38}{'seconds':>10}{'CPU seconds':>14}")
    for what, (wall, cpu, _) in rows.items():
        print(f"{what:<38}{wall:>10.3f}{cpu:>14.3f}")
    print(f"importing torch alone takes {torch_wall / full_wall:.1f} times as long", end="")
    print(f" ({torch_cpu / full_cpu:.1f} times the CPU) as listing {len(content['parts'])} parts")


if __name__ == "__main__":
    main()
