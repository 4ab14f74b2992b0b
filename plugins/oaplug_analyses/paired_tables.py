"""Comparisons as tables: tidy CSV, the article's CSV, Markdown and LaTeX."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from oaplug.core.artifacts import write_text
from oaplug.core.findings import Table
from oaplug.core.metrics import METRIC_NAMES
from oaplug_analyses.drawing import cell, write_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from oaplug.core.findings import Cell
    from oaplug_analyses.paired_comparisons import Comparison

TIDY = (
    *("target", "metric", "baseline", "model", "baseline_value", "model_value"),
    *("delta", "ci_lo", "ci_hi", "bca_lo", "bca_hi", "p_value", "test", "q_value_BH", "p_holm"),
    *("mcnemar_table", "delong_p", "n_cases", "n_subjects", "baseline_runs", "model_runs"),
    "undefined_resamples",
)
SHOWN = (
    *("target", "metric", "model", "baseline", "model value", "baseline value"),
    *("difference", "difference low", "difference high", "p", "q (BH)", "p (Holm)", "test"),
)
STUDY_NAMES = {
    ("oa", "auc"): "AUC",
    ("kl", "auc"): "M-AUC",
    ("oa", "accuracy"): "Acc",
    ("kl", "accuracy"): "Acc",
    ("oa", "f1"): "F1",
    ("kl", "f1"): "M-F1",
}
TEXT_HEADER = ("Target", "Metric", "Model", "Baseline", "Value", "Baseline's", "Difference", "p", "q", "Holm")
LATEX_SPECIAL = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)


def short_metric(comparison: Comparison, *, grades: Mapping[str, int]) -> str:
    """How tables and figures call the metric of a comparison; `grades` counts those of each target."""
    macro = " (macro)" if grades[comparison.target] > 2 and comparison.metric in {"auc", "f1"} else ""
    return {"qwk": "QWK", "mae": "MAE"}.get(comparison.metric, METRIC_NAMES[comparison.metric]) + macro


def write_tidy(comparisons: Sequence[Comparison], folder: Path, *, caption: str) -> Table:
    """Every number of every comparison as differences.csv."""
    rows = [_tidy_row(one) for one in comparisons]
    return write_table(folder, name="differences", caption=caption, columns=TIDY, rows=rows)


def _tidy_row(one: Comparison) -> list[Cell]:
    found = one.difference
    intervals = (found.low, found.high, found.bca_low, found.bca_high)
    return [
        *(one.target, one.metric, one.baseline, one.model, cell(found.baseline), cell(found.model)),
        *(cell(found.delta), *map(cell, intervals), cell(one.p_value), one.test),
        *(cell(one.q_value), cell(one.p_holm), _counts(one), cell(one.delong_p)),
        *(one.cases, one.subjects, one.baseline_runs, one.model_runs, found.undefined),
    ]


def _counts(one: Comparison) -> str | None:
    return None if one.mcnemar is None else str([list(row) for row in one.mcnemar.table])


def shown_table(
    comparisons: Sequence[Comparison], *, grades: Mapping[str, int], caption: str, data: str
) -> Table:
    """What the report shows of each comparison."""
    rows = tuple(
        (
            *(one.target, short_metric(one, grades=grades), one.model, one.baseline),
            *(cell(one.difference.model), cell(one.difference.baseline), cell(one.difference.delta)),
            *(cell(one.difference.low), cell(one.difference.high)),
            *(cell(one.p_value), cell(one.q_value), cell(one.p_holm), one.test),
        )
        for one in comparisons
    )
    return Table(name="comparisons", caption=caption, columns=SHOWN, rows=rows, data=data)


def write_study_table(
    comparisons: Sequence[Comparison], folder: Path, *, false_discovery_rate: float
) -> None:
    """comparisons.csv with the columns, names and digits that the article's authors published."""
    columns = [
        *("backbone", "task", "metric", "single", "dual", "delta", "ci_lo", "ci_hi", "p_value", "test"),
        *("mcnemar_table", "n_subjects", "q_value_BH", f"sig_fdr_{false_discovery_rate:g}"),
    ]
    rows = [_study_row(one, false_discovery_rate) for one in comparisons]
    write_table(folder, name="comparisons", caption="", columns=columns, rows=rows)


def _study_row(one: Comparison, false_discovery_rate: float) -> list[Cell]:
    found = one.difference
    numbers = (found.baseline, found.model, found.delta, found.low, found.high)
    return [
        *(one.model.rpartition("/")[0], one.target.upper(), STUDY_NAMES[one.target, one.metric]),
        *(None if math.isnan(number) else round(number, 6) for number in numbers),
        *(cell(one.p_value), one.test, _counts(one), one.subjects, cell(one.q_value)),
        str(one.q_value < false_discovery_rate),
    ]


def write_texts(comparisons: Sequence[Comparison], folder: Path, *, grades: Mapping[str, int]) -> None:
    """differences.md and differences.tex, to be pasted into an article."""
    rows = [_text_row(one, grades=grades) for one in comparisons]
    write_text(folder / "differences.md", as_markdown(TEXT_HEADER, rows))
    write_text(folder / "differences.tex", as_latex(TEXT_HEADER, rows))


def _text_row(one: Comparison, *, grades: Mapping[str, int]) -> list[str]:
    found = one.difference
    change = f"{signed(found.delta)} ({signed(found.low)} to {signed(found.high)})"
    return [
        *(one.target, short_metric(one, grades=grades), one.model, one.baseline),
        *(_decimals(found.model), _decimals(found.baseline)),
        change if math.isfinite(found.delta) else "not defined",
        *(p_text(one.p_value), p_text(one.q_value), p_text(one.p_holm)),
    ]


def signed(value: float) -> str:
    """A difference with its sign and three decimals, the minus sign as wide as the plus."""
    return f"{value:+.3f}".replace("-", "−")


def p_text(value: float) -> str:
    """A p- or q-value in three decimals."""
    if math.isnan(value):
        return "–"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _decimals(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def as_markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; text before numbers, which are aligned to the right."""
    lines = [header, _alignment(header), *([text.replace("|", "\\|") for text in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _alignment(header: Sequence[str]) -> list[str]:
    return ["---" if index < 4 else "---:" for index in range(len(header))]


def as_latex(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A tabular for the LaTeX package booktabs."""
    lines = [[_latex(text) for text in row] for row in (header, *rows)]
    body = [" & ".join(line) + r" \\" for line in lines]
    columns = "".join("l" if index < 4 else "r" for index in range(len(header)))
    parts = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", body[0], r"\midrule", *body[1:]]
    return "\n".join([*parts, r"\bottomrule", r"\end{tabular}", ""])


def _latex(text: str) -> str:
    escaped = text.translate(LATEX_SPECIAL)
    return escaped.replace("−", "$-$").replace("–", "--").replace("<", "$<$")
