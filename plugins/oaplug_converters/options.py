"""Options of the converters, apart from them so that listing parts imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Place = Literal["link", "copy"]


@dataclass(frozen=True, kw_only=True)
class PhantomOptions:
    """Options of `phantom`; `shape` follows D,H,W, `label_noise` is a reader's noise in grades."""

    cases: int = 120
    shape: tuple[int, int, int] = (40, 96, 96)
    seed: int = 0
    label_noise: float = 0.0
    test_fraction: float = 0.3
    processes: int = 1


@dataclass(frozen=True, kw_only=True)
class OaizibOptions:
    """`place`: images become hard links where the file system has them, else copies; or always copies."""

    place: Place = "link"


@dataclass(frozen=True, kw_only=True)
class ColumnOptions:
    """Which column of a table says what, and what dataset.json is to say.

    `table` is a CSV or XLSX file in the source (or any path; blank: the only one there is), `sheet` one of
    its sheets (blank: the first). `case_id`, `subject`, `side`, `visit` and `split` name columns; all but the
    first may be absent under their default names. `side_values` and `split_values` translate cells
    ({"1": "R"}, {"validation": "test"}), `missing` are cells that mean blank. `targets` are as in
    dataset.json, each with a `column` where it is not called as the target; `covariates` are columns, or
    columns by the name they get. `mask` is a column of paths, or a pattern such as
    "masks/{case_id}.nii.gz" for those that are there (blank: none).
    """

    table: str = ""
    sheet: str = ""
    case_id: str = "case_id"
    subject: str = "subject_id"
    side: str = "side"
    visit: str = "visit"
    split: str = "split"
    side_values: Mapping[str, str] = field(default_factory=dict)
    split_values: Mapping[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ("NA", "N/A", "nan", "NaN", "<NA>", ".")
    targets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    covariates: tuple[str, ...] | Mapping[str, str] = ()
    labels: Mapping[str, Any] = field(default_factory=lambda: {"background": 0})
    regions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    mask: str = ""
    place: Place = "link"


@dataclass(frozen=True, kw_only=True)
class TableOptions(ColumnOptions):
    """`image` is a column of paths or a pattern with columns in braces, one per channel of `channels`.

    In a pattern {ID:3} is the cell filled with zeros to three characters, and * stands for anything.
    """

    image: str | tuple[str, ...] = "image"
    channels: tuple[str, ...] = ("MRI",)


@dataclass(frozen=True, kw_only=True)
class DicomOptions(ColumnOptions):
    """`folder` names the column of folders (absent: the whole source), `series` that of SeriesInstanceUIDs.

    `series_description` chooses among several series by a pattern such as "*DESS*". `slices` is how many a
    series must have (0: any number); `channel` is the channel's name.
    """

    folder: str = "folder"
    series: str = "series_uid"
    series_description: str = ""
    slices: int = 0
    channel: str = "MRI"
