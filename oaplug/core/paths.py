"""Where raw data, preprocessed data and results lie; read lazily, so that --help needs none of it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from oaplug.core.errors import PathError

_DATASET_NAME = re.compile(r"Dataset(\d{3,})_(\w[\w-]*)")
_VARIABLES = {"raw": "oaplug_raw", "preprocessed": "oaplug_preprocessed", "results": "oaplug_results"}


@dataclass(frozen=True, kw_only=True)
class Places:
    """The three roots of nnU-Net's layout; one not given on the command line comes from the environment."""

    raw_override: Path | None = None
    preprocessed_override: Path | None = None
    results_override: Path | None = None

    @property
    def raw(self) -> Path:
        """$oaplug_raw, or --raw."""
        return _place("raw", self.raw_override)

    @property
    def preprocessed(self) -> Path:
        """$oaplug_preprocessed, or --preprocessed."""
        return _place("preprocessed", self.preprocessed_override)

    @property
    def results(self) -> Path:
        """$oaplug_results, or --results."""
        return _place("results", self.results_override)


def _place(kind: str, override: Path | None) -> Path:
    if override is not None:
        return override
    variable = _VARIABLES[kind]
    text = os.environ.get(variable)
    if not text:
        raise PathError(
            f"the environment variable {variable} is not set; export {variable}=FOLDER or pass --{kind}"
        )
    return Path(text).expanduser()


def find_dataset(root: Path, dataset: str) -> Path:
    """The folder in `root` of a dataset given as 901, Dataset901_Name or Name.

    Raises PathError naming what is there when none or several match.
    """
    if not root.is_dir():
        raise PathError(
            f"the folder {root} does not exist; run the step before this one, "
            "or check oaplug_raw, oaplug_preprocessed and oaplug_results"
        )
    known = {path.name: path for path in sorted(root.iterdir()) if _DATASET_NAME.fullmatch(path.name)}
    matches = [path for name, path in known.items() if _matches(name, dataset)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise PathError(f"dataset {dataset!r} is ambiguous in {root}: {', '.join(p.name for p in matches)}")
    there = ", ".join(known) or "no dataset folder"
    raise PathError(f"no dataset {dataset!r} in {root} (there: {there}); expected Dataset{dataset:0>3}_NAME")


def _matches(name: str, dataset: str) -> bool:
    parts = _DATASET_NAME.fullmatch(name)
    if parts is None:
        return False
    return dataset in (name, parts[2]) or (dataset.isdigit() and int(dataset) == int(parts[1]))


def dataset_folder_name(number: int, name: str) -> str:
    """`Dataset901_Name`; raises PathError for a name that would not be found again."""
    folder = f"Dataset{number:03d}_{name}"
    if not 0 < number < 10_000 or not _DATASET_NAME.fullmatch(folder):
        raise PathError(
            f"cannot name a dataset {folder!r}: use an id from 1 to 9999 and letters, digits, '_', '-'"
        )
    return folder


def run_folder_name(*, model: str, plans: str, configuration: str, tag: str | None = None) -> str:
    """`resnet3d-single_kl__oaplugPlans__3d_lowres[__TAG]`."""
    parts = [model, plans, configuration] + ([tag] if tag else [])
    for part in parts:
        if "__" in part or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", part):
            raise PathError(
                f"{part!r} cannot be part of a folder name: use letters, digits, '.', '-' and single '_'"
            )
    return "__".join(parts)
