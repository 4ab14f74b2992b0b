"""The analyses that ship with oaplug. Importing this imports none of their libraries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oaplug.plug import AnalysisSpec, hookimpl
from oaplug_analyses.options import ClassificationOptions, PairedStatisticsOptions

if TYPE_CHECKING:
    from oaplug.plug.protocols import Analysis


def _build_classification(options: ClassificationOptions) -> Analysis:
    from oaplug_analyses.classification import Classification

    return Classification(options)


def _build_paired_statistics(options: PairedStatisticsOptions) -> Analysis:
    from oaplug_analyses.paired_statistics import PairedStatistics

    return PairedStatistics(options)


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
        AnalysisSpec(
            name="paired_statistics",
            summary="Differences between models on the same cases: intervals, tests, corrected for many",
            build=_build_paired_statistics,
            options=PairedStatisticsOptions,
            reference="Efron 1987 (BCa); McNemar 1947; DeLong et al. 1988; Obuchowski 1997; "
            "Benjamini and Hochberg 1995; Holm 1979",
        ),
    ]
