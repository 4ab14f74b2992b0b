"""Raw dataset folders in nnU-Net's layout, with targets and a case table (design: on disk)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oaplug.core.artifacts import read_json
from oaplug.core.case import Case, Problem
from oaplug.core.case_table import read_case_rows
from oaplug.core.errors import DatasetError
from oaplug.core.target import Target, targets_from_json, targets_to_json

if TYPE_CHECKING:
    from collections.abc import Mapping

LabelValue = int | tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class DatasetDescription:
    """What dataset.json says: nnU-Net's keys, and targets, regions and covariates."""

    name: str
    channel_names: tuple[str, ...]
    labels: Mapping[str, LabelValue]
    file_ending: str
    targets: Mapping[str, Target] = field(default_factory=dict)
    regions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    covariates: tuple[str, ...] = ()
    explicit_files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    other: Mapping[str, Any] = field(default_factory=dict)

    def label_values(self) -> frozenset[int]:
        """Every value a mask may hold."""
        values: set[int] = set()
        for value in self.labels.values():
            values.update([value] if isinstance(value, int) else value)
        return frozenset(values)

    def region_values(self, region: str) -> tuple[int, ...]:
        """Mask values of a named region, or of a single label of that name."""
        names = self.regions.get(region, (region,))
        values: list[int] = []
        for name in names:
            if name not in self.labels:
                raise DatasetError(
                    f"region {region!r} names the label {name!r}, which dataset.json does not have"
                )
            value = self.labels[name]
            values.extend([value] if isinstance(value, int) else value)
        return tuple(values)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A raw dataset folder: its description, its cases and what is wrong with its tables."""

    folder: Path
    description: DatasetDescription
    cases: tuple[Case, ...]
    problems: tuple[Problem, ...] = ()

    def of_split(self, split: str) -> tuple[Case, ...]:
        """Cases of the `train` or `test` split."""
        return tuple(case for case in self.cases if case.split == split)


def description_from_json(content: Any, *, name: str, where: str) -> DatasetDescription:
    """Check the content of a dataset.json; raises DatasetError naming the key that is off."""
    if not isinstance(content, dict):
        raise DatasetError(f"{where}: expected a JSON object")
    channels = content.get("channel_names", content.get("modality"))
    if not isinstance(channels, dict) or not channels:
        raise DatasetError(f'{where}: \'channel_names\' is missing; write for example {{"0": "MRI"}}')
    expected = [str(index) for index in range(len(channels))]
    if sorted(channels, key=lambda key: (len(key), key)) != expected:
        raise DatasetError(f"{where}: keys of 'channel_names' must be {expected}, got {list(channels)}")
    regions = content.get("regions", {})
    description = DatasetDescription(
        name=name,
        channel_names=tuple(str(channels[key]) for key in expected),
        labels=_labels_from_json(content.get("labels", {}), where=where),
        file_ending=str(content.get("file_ending", ".nii.gz")),
        targets=targets_from_json(content.get("targets", {}), where=where),
        regions={key: tuple(names) for key, names in regions.items()},
        covariates=tuple(content.get("covariates", ())),
        explicit_files=content.get("dataset", {}),
        other={key: value for key, value in content.items() if key not in _KNOWN_KEYS},
    )
    for region in regions:
        description.region_values(region)
    return description


_KNOWN_KEYS = frozenset(
    {"channel_names", "modality", "labels", "file_ending", "targets", "regions", "covariates", "dataset"}
)


def _labels_from_json(content: Any, *, where: str) -> dict[str, LabelValue]:
    labels: dict[str, LabelValue] = {}
    for name, value in dict(content).items():
        if isinstance(value, (list, tuple)):
            labels[name] = tuple(int(item) for item in value)
        elif isinstance(value, (int, str)) and str(value).isdigit():
            labels[name] = int(value)
        else:
            raise DatasetError(
                f"{where}: label {name!r} must be a number or a list of numbers, got {value!r}"
            )
    return labels


def description_to_json(description: DatasetDescription) -> dict[str, Any]:
    """The dataset.json form of a description (nnU-Net's keys first)."""
    content: dict[str, Any] = {
        "channel_names": {str(i): name for i, name in enumerate(description.channel_names)},
        "labels": {k: v if isinstance(v, int) else list(v) for k, v in description.labels.items()},
        "file_ending": description.file_ending,
        **description.other,
        "targets": targets_to_json(description.targets),
        "regions": {key: list(names) for key, names in description.regions.items()},
        "covariates": list(description.covariates),
    }
    if description.explicit_files:
        content["dataset"] = dict(description.explicit_files)
    return content


def read_description(folder: Path, *, name: str | None = None) -> DatasetDescription:
    """The description in FOLDER/dataset.json."""
    path = folder / "dataset.json"
    content = read_json(path, error=DatasetError, hint="a dataset folder needs it (docs/datasets.md)")
    return description_from_json(content, name=name or folder.name, where=str(path))


def read_dataset(folder: Path) -> Dataset:
    """Open a raw dataset folder, collecting what is wrong with its tables instead of stopping.

    Without cases.csv the cases are those of imagesTr and imagesTs, unlabelled, each its own subject.
    """
    if not folder.is_dir():
        raise DatasetError(f"the dataset folder {folder} does not exist")
    description = read_description(folder)
    table = folder / "cases.csv"
    found = _find_case_ids(folder, description)
    if table.is_file():
        rows, problems = read_case_rows(table, description.targets, covariates=description.covariates)
        listed = {row.case_id for row in rows}
        for case_id in sorted(set(found) - listed):
            problems.append(
                Problem(
                    kind="case not listed",
                    case_id=case_id,
                    file=str(table),
                    message="has images but no row in cases.csv; add one or remove the images",
                )
            )
        cases = [
            row.to_case(*_locate(folder, description, row.case_id, row.split or found.get(row.case_id)))
            for row in rows
        ]
    else:
        problems = []
        cases = [
            Case(case_id=case_id, subject_id=case_id, split=split, images=images, mask=mask)
            for case_id in sorted(found)
            for images, mask, split in [_locate(folder, description, case_id, found[case_id])]
        ]
    if not cases:
        problems.append(
            Problem(kind="no cases", file=str(folder), message="no images in imagesTr and no cases.csv")
        )
    return Dataset(folder=folder, description=description, cases=tuple(cases), problems=tuple(problems))


def open_dataset(folder: Path) -> Dataset:
    """Open a raw dataset folder; raises DatasetError for the first problem of its tables."""
    dataset = read_dataset(folder)
    if dataset.problems:
        more = len(dataset.problems) - 1
        also = f" (and {more} more: run with --verify_dataset_integrity to see all)" if more else ""
        raise DatasetError(f"{dataset.problems[0]}{also}")
    return dataset


_FOLDERS: dict[str, tuple[str, str]] = {"train": ("imagesTr", "labelsTr"), "test": ("imagesTs", "labelsTs")}


def _find_case_ids(folder: Path, description: DatasetDescription) -> dict[str, Any]:
    """Case ids of the image folders, each with its split."""
    found: dict[str, str] = dict.fromkeys(description.explicit_files, "train")
    ending = f"_0000{description.file_ending}"
    for split, (images, _) in reversed(_FOLDERS.items()):
        for path in sorted((folder / images).glob(f"*{ending}")):
            found[path.name.removesuffix(ending)] = split
    return found


def _locate(
    folder: Path, description: DatasetDescription, case_id: str, split: Any
) -> tuple[tuple[Path, ...], Path | None, Any]:
    """Image files (one per channel, whether they exist or not), the mask if it exists, and the split."""
    split = split or "train"
    explicit = description.explicit_files.get(case_id)
    if explicit is not None:
        mask = folder / explicit["label"] if explicit.get("label") else None
        return tuple(folder / name for name in explicit["images"]), mask, split
    images, masks = _FOLDERS[split]
    mask = folder / masks / f"{case_id}{description.file_ending}"
    return case_images(folder / images, case_id, description), mask if mask.is_file() else None, split


def case_images(folder: Path, case_id: str, description: DatasetDescription) -> tuple[Path, ...]:
    """Paths of a case's channels in an image folder: CASE_0000.nii.gz, CASE_0001.nii.gz, ..."""
    count = len(description.channel_names)
    return tuple(folder / f"{case_id}_{channel:04d}{description.file_ending}" for channel in range(count))
