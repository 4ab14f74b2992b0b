"""The per-case tables that the coarse-to-fine study published (arXiv 2605.00718), read as prediction tables.

One row a knee: CMT_ID, label_kl, pred_kl, label_oa, prob_oa, pred_oa, prob_oa_from_kl, prob_kl_0..4. A
table of a model of one target lacks the columns of the other. `prob_oa` is what the model answers for
OA (its own head's, or the sum over grades where it has none), so `prob_oa_from_kl` is not read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from oaplug.core.target import Target, grade_names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ID_COLUMN = "CMT_ID"
KL = Target(name="kl", kind="ordinal", grades=(0, 1, 2, 3, 4))
OA = Target(name="oa", kind="binary", grades=(0, 1), derived_from="kl", at_least=2)

Records = list[dict[str, str]]


def is_published(records: Sequence[Mapping[str, str]]) -> bool:
    """Whether rows of a CSV follow the study's schema."""
    return bool(records) and ID_COLUMN in records[0] and "case_id" not in records[0]


def from_published(records: Sequence[Mapping[str, str]]) -> tuple[dict[str, Target], Records]:
    """Targets that the rows predict, and the rows under the column names of predictions.csv."""
    columns = {"case_id": ID_COLUMN}
    targets = {target.name: target for target in (KL, OA) if f"pred_{target.name}" in records[0]}
    for name, target in targets.items():
        columns |= {f"{name}_true": f"label_{name}", f"{name}_pred": f"pred_{name}"}
        if target.kind == "ordinal":
            columns |= {f"{name}_prob_{g}": f"prob_{name}_{g}" for g in grade_names(target)}
        else:
            columns |= {f"{name}_prob_1": f"prob_{name}"}
    present = {ours: theirs for ours, theirs in columns.items() if theirs in records[0]}
    rows = [{ours: record[theirs] for ours, theirs in present.items()} for record in records]
    if "oa_prob_1" in present:
        for row in rows:
            row["oa_prob_0"] = _complement(row["oa_prob_1"])
    return targets, rows


def _complement(text: str) -> str:
    """One minus a probability; text that is no number stays, for the reader of the table to refuse."""
    try:
        return repr(1.0 - float(text))
    except (TypeError, ValueError):
        return text
