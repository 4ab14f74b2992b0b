"""Running oaplug's own commands from a benchmark, and printing rows of scores."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from sklearn.metrics import cohen_kappa_score

Scores = list[tuple[float, float]]


def make_environment(work: Path) -> dict[str, str]:
    """The environment of commands whose folders lie below `work`."""
    folders = {f"oaplug_{name}": str((work / name).resolve()) for name in ("raw", "preprocessed", "results")}
    (work / "raw").mkdir(parents=True, exist_ok=True)
    return os.environ | folders


def call(arguments: list[object], environment: dict[str, str]) -> None:
    """Run a program; where it fails, show what it said and stop."""
    words = list(map(str, arguments))
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def command(verb: str, *arguments: object, environment: dict[str, str]) -> None:
    """Run `oaplug VERB ...`."""
    call([sys.executable, "-m", "oaplug", verb, *arguments], environment)


def train_and_predict(
    work: Path, *, dataset: str, head: list[str], settings: list[str], seed: int, environment: dict[str, str]
) -> Path:
    """Train resnet3d on all training cases (unless done), predict imagesTs; gives predictions.csv."""
    target = f"_{head[3]}" if len(head) > 2 else ""
    model = work / "results" / dataset / f"resnet3d-{head[1]}{target}__oaplugPlans__3d_lowres__seed{seed}"
    table = model / "predictions" / "imagesTs" / "predictions.csv"
    if table.is_file():
        return table
    fold = model / "fold_all"
    if not (fold / "checkpoint_final.safetensors").is_file():
        options = [part for line in settings for part in ("--set", line)]
        options += ["--set", f"training.seed={seed}", "--tag", f"seed{seed}"]
        again = ["--c"] if (fold / "checkpoint_latest.safetensors").is_file() else []
        command("train", dataset, "3d_lowres", "all", *head, *options, *again, environment=environment)
    images = work / "raw" / dataset / "imagesTs"
    command("predict_from_modelfolder", "-m", model, "-i", images, environment=environment)
    return table


def kappa(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Quadratic weighted kappa of grades 0 to 4."""
    return float(cohen_kappa_score(truth, predicted, weights="quadratic", labels=list(range(5))))


def print_row(name: str, scores: Scores) -> None:
    """One row: mean, and the range where there are several."""
    columns = []
    for values in zip(*scores, strict=True):
        spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
        columns.append(f"{np.mean(values):.3f}{spread}")
    print(f"{name:<30}" + "".join(f"{column:>26}" for column in columns), flush=True)
