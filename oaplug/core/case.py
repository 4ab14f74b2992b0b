"""Cases: one knee (or other organ) at one visit, with the files and labels that belong to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from oaplug.core.target import MISSING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Side = Literal["L", "R"]
SplitName = Literal["train", "test"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One knee at one visit.

    `images` holds one file per channel; `labels` grade indices (-1: unknown) with derived targets
    already filled in; `covariates` text as written in cases.csv.
    """

    case_id: str
    subject_id: str
    images: tuple[Path, ...]
    split: SplitName = "train"
    side: Side | None = None
    visit: str = ""
    mask: Path | None = None
    labels: Mapping[str, int] = field(default_factory=dict)
    covariates: Mapping[str, str] = field(default_factory=dict)

    def has_label(self, target: str) -> bool:
        """Whether the grade of `target` is known."""
        return self.labels.get(target, MISSING) != MISSING


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing wrong with a dataset: shown as a row of the integrity table."""

    kind: str
    message: str
    case_id: str = ""
    file: str = ""

    def __str__(self) -> str:
        place = ", ".join(
            part for part in (f"case {self.case_id}" if self.case_id else "", self.file) if part
        )
        return f"{place}: {self.message}" if place else self.message
