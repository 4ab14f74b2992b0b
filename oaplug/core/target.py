"""Targets: named questions with grades, and the hierarchy between them (oa = kl >= 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from oaplug.core.errors import DatasetError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MISSING = -1
"""Index of an unknown grade, wherever grades are stored as indices 0..K-1."""

Grade = int | str


@dataclass(frozen=True, kw_only=True)
class Target:
    """A question asked of every case.

    Grades are listed in order (least severe first); code works with their indices 0..K-1 and -1 for
    a missing label. A derived target is binary: grade 1 where the parent's grade is at least `at_least`.
    """

    name: str
    kind: Literal["ordinal", "binary", "categorical"]
    grades: tuple[Grade, ...]
    derived_from: str | None = None
    at_least: Grade | None = None

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or "__" in self.name:
            raise DatasetError(f"target name {self.name!r}: use letters, digits and single underscores")
        if len(self.grades) < 2 or len(set(map(str, self.grades))) != len(self.grades):
            raise DatasetError(
                f"target {self.name!r}: needs at least two different grades, got {self.grades}"
            )
        if self.kind == "binary" and len(self.grades) != 2:
            raise DatasetError(f"target {self.name!r}: a binary target has two grades, got {self.grades}")
        if (self.derived_from is None) != (self.at_least is None):
            raise DatasetError(f"target {self.name!r}: 'derived_from' and 'at_least' go together")
        if self.derived_from is not None and self.kind != "binary":
            raise DatasetError(f"target {self.name!r}: a derived target is binary, got {self.kind!r}")

    @property
    def is_derived(self) -> bool:
        """Whether this target follows from another."""
        return self.derived_from is not None

    def index_of(self, text: Any) -> int:
        """Index of a grade written as text or number (`"2"`, `2`, `2.0`); -1 for a blank.

        Raises DatasetError for a grade this target does not have.
        """
        text = "" if text is None else str(text).strip()
        if text in {"", "nan", "NaN", "<NA>"}:
            return MISSING
        names = [str(grade) for grade in self.grades]
        if text in names:
            return names.index(text)
        if text.endswith(".0") and text[:-2] in names:
            return names.index(text[:-2])
        raise DatasetError(f"target {self.name!r} has no grade {text!r} (grades: {', '.join(names)})")

    def threshold_in(self, parent: Target) -> int:
        """Index of the lowest grade of `parent` that makes this derived target positive."""
        return parent.index_of(self.at_least)

    def derive(self, parent_index: int, parent: Target) -> int:
        """Index of this derived target for a grade index of its parent."""
        return MISSING if parent_index == MISSING else int(parent_index >= self.threshold_in(parent))


def targets_from_json(content: Mapping[str, Any], *, where: str) -> dict[str, Target]:
    """Targets of a dataset.json, parents before the targets derived from them.

    Raises DatasetError naming `where` for unknown keys, parents or thresholds.
    """
    targets = {name: _target_from_json(name, entry, where=where) for name, entry in content.items()}
    for target in targets.values():
        if target.derived_from is None:
            continue
        parent = targets.get(target.derived_from)
        if parent is None or parent.is_derived or parent.kind != "ordinal":
            raise DatasetError(
                f"{where}: target {target.name!r} is derived from {target.derived_from!r}, "
                "which must be an ordinal target that is not derived itself"
            )
        threshold = target.threshold_in(parent)
        if threshold < 1:
            raise DatasetError(f"{where}: target {target.name!r}: at_least must lie above the lowest grade")
    return dict(sorted(targets.items(), key=lambda item: item[1].is_derived))


def _target_from_json(name: str, entry: Any, *, where: str) -> Target:
    known = {"kind", "grades", "derived_from", "at_least"}
    if not isinstance(entry, dict):
        raise DatasetError(f"{where}: target {name!r} must be an object")
    for key in entry:
        if key not in known:
            raise DatasetError(f"{where}: target {name!r} has an unknown key {key!r}{nearest(key, known)}")
    kind = entry.get("kind", "binary" if "derived_from" in entry else None)
    if kind not in {"ordinal", "binary", "categorical"}:
        raise DatasetError(
            f"{where}: target {name!r}: kind must be ordinal, binary or categorical, got {kind!r}"
        )
    grades = entry.get("grades", [0, 1] if kind == "binary" else [])
    return Target(
        name=name,
        kind=kind,
        grades=tuple(grades),
        derived_from=entry.get("derived_from"),
        at_least=entry.get("at_least"),
    )


def targets_to_json(targets: Mapping[str, Target]) -> dict[str, Any]:
    """The dataset.json form of targets."""
    written: dict[str, Any] = {}
    for name, target in targets.items():
        written[name] = {"kind": target.kind, "grades": list(target.grades)}
        if target.is_derived:
            written[name] |= {"derived_from": target.derived_from, "at_least": target.at_least}
    return written


def finest_target(targets: Mapping[str, Target]) -> Target:
    """The target with the most grades that is not derived: what folds are stratified by."""
    if not targets:
        raise DatasetError(
            "the dataset has no targets: add 'targets' to dataset.json and a column to cases.csv"
        )
    return max((t for t in targets.values() if not t.is_derived), key=lambda t: len(t.grades))


def derived_targets(targets: Mapping[str, Target], parent: str) -> tuple[Target, ...]:
    """Targets derived from the one named `parent`."""
    return tuple(t for t in targets.values() if t.derived_from == parent)


def fill_derived(labels: dict[str, int], targets: Mapping[str, Target]) -> tuple[dict[str, int], list[str]]:
    """Complete grade indices of one case with what follows from the hierarchy.

    A derived target's own label is used where its parent is blank. Returns the labels and the names of
    derived targets whose own label contradicts their parent's.
    """
    filled, contradictions = dict(labels), []
    for target in targets.values():
        if target.derived_from is None:
            filled.setdefault(target.name, MISSING)
            continue
        own = labels.get(target.name, MISSING)
        follows = target.derive(labels.get(target.derived_from, MISSING), targets[target.derived_from])
        if MISSING not in (own, follows) and own != follows:
            contradictions.append(target.name)
        filled[target.name] = own if follows == MISSING else follows
    return filled, contradictions


def grade_names(target: Target) -> Sequence[str]:
    """Grades as the text used in column names and legends."""
    return [str(grade) for grade in target.grades]
