"""Participant flow: how many cases were listed, left out and why, and converted; a conversion's end."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from oaplug.core.case import Problem
from oaplug.core.case_table import write_case_table
from oaplug.core.converter import ConversionRecord
from oaplug.core.errors import DatasetError
from oaplug.core.target import MISSING, grade_names

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from oaplug.core.case import Case, SplitName
    from oaplug.core.converter import RawFolder
    from oaplug.core.dataset import DatasetDescription
    from oaplug.core.target import Target

FLOW_FILE = "participant_flow.csv"
_COLUMNS = ("step", "train", "test", "total")


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A case that is not converted: with a `problem` to mend, or for a `reason` that is nobody's fault."""

    case_id: str
    split: SplitName
    reason: str = ""
    problem: Problem | None = None

    @property
    def why(self) -> str:
        """In a few words, the same for every such case."""
        return self.problem.kind if self.problem else self.reason


def left_out_for(kind: str, message: str, *, case_id: str, split: SplitName, file: object = "") -> LeftOut:
    """A case that is left out until somebody mends what `message` says."""
    problem = Problem(kind=kind, message=message, case_id=case_id, file=str(file))
    return LeftOut(case_id=case_id, split=split, problem=problem)


def flow_records(
    cases: Sequence[Case], left_out: Sequence[LeftOut], targets: Mapping[str, Target]
) -> list[dict[str, str | int]]:
    """One record a step, from what was listed to how many cases have each grade."""
    steps = [_step("listed", [c.split for c in cases] + [left.split for left in left_out])]
    for why in dict.fromkeys(left.why for left in left_out):
        steps.append(_step(f"left out: {why}", [left.split for left in left_out if left.why == why]))
    counted: list[tuple[str, Callable[[Case], bool]]] = [
        ("converted", lambda case: True),
        ("with a mask", lambda case: case.mask is not None),
        ("right", lambda case: case.side == "R"),
        ("left", lambda case: case.side == "L"),
        ("side unknown", lambda case: case.side is None),
    ]
    steps += [_step(name, [case.split for case in cases if has(case)]) for name, has in counted]
    steps.append(_step("subjects", [split for _, split in {(c.subject_id, c.split) for c in cases}]))
    for name, target in targets.items():
        for index, grade in [*enumerate(grade_names(target)), (MISSING, "unknown")]:
            splits = [case.split for case in cases if case.labels.get(name, MISSING) == index]
            steps.append(_step(f"{name} {grade}", splits))
    return steps


def _step(name: str, splits: Sequence[SplitName]) -> dict[str, str | int]:
    count = Counter(splits)
    return {"step": name, "train": count["train"], "test": count["test"], "total": len(splits)}


def flow_lines(records: Sequence[Mapping[str, str | int]]) -> list[str]:
    """The steps as lines of text with aligned columns."""
    width = max(len(str(record["step"])) for record in records)
    lines = [f"{'':<{width}}  {'train':>6}  {'test':>6}  {'total':>6}"]
    for record in records:
        numbers = "  ".join(f"{record[column]:>6}" for column in _COLUMNS[1:])
        lines.append(f"{record['step']:<{width}}  {numbers}")
    return lines


def finish(
    dataset: RawFolder,
    description: DatasetDescription,
    *,
    cases: Sequence[Case],
    left_out: Sequence[LeftOut],
    source: Path,
    notes: Sequence[str] = (),
    problems: Sequence[Problem] = (),
) -> ConversionRecord:
    """Write the tables and the participant flow, and give the record; `problems` are those of no case.

    Raises DatasetError where no case is left.
    """
    if not cases:
        reasons = [str(left.problem or f"case {left.case_id}: {left.reason}") for left in left_out]
        first = f"; the first: {reasons[0]}" if reasons else ""
        raise DatasetError(f"{source}: none of {len(left_out)} listed cases can be converted{first}")
    records = flow_records(cases, left_out, description.targets)
    write_case_table(dataset.folder / FLOW_FILE, records, columns=_COLUMNS)
    dataset.write_tables(description, cases)
    return ConversionRecord(
        cases=len(cases),
        excluded=tuple((left.case_id, left.reason) for left in left_out if left.problem is None),
        problems=(*problems, *(left.problem for left in left_out if left.problem is not None)),
        notes=(*flow_lines(records), *notes),
    )
