"""The analyses that ship with oaplug. Importing this imports none of their libraries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oaplug.plug import AnalysisSpec, hookimpl
from oaplug_analyses.options import ClassificationOptions

if TYPE_CHECKING:
    from oaplug.plug.protocols import Analysis


def _build_classification(options: ClassificationOptions) -> Analysis:
    from oaplug_analyses.classification import Classification

    return Classification(options)


@hookimpl
def oaplug_analyses() -> list[AnalysisSpec]:
    """Give the analyses of this package."""
    return [
        AnalysisSpec(
            name="classification",
            summary="How well each target is graded: metrics with intervals, confusion, ROC, per grade",
            build=_build_classification,
            options=ClassificationOptions,
            reference="Efron and Tibshirani 1993, ch. 13 (percentile bootstrap); Cohen 1968 (weighted kappa)",
        ),
    ]
