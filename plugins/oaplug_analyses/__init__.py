"""The analyses that ship with oaplug. Importing this imports none of their libraries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oaplug.plug import AnalysisSpec, hookimpl
from oaplug_analyses.options import (
    CalibrationOptions,
    ClassificationOptions,
    ErrorGalleryOptions,
    HierarchyOptions,
    PairedStatisticsOptions,
    SaliencyOverlapOptions,
    SeverityAxisOptions,
    SubgroupsOptions,
    TaskInterferenceOptions,
)

if TYPE_CHECKING:
    from oaplug.plug.protocols import Analysis


def _build_calibration(options: CalibrationOptions) -> Analysis:
    from oaplug_analyses.calibration import Calibration

    return Calibration(options)


def _build_classification(options: ClassificationOptions) -> Analysis:
    from oaplug_analyses.classification import Classification

    return Classification(options)


def _build_error_gallery(options: ErrorGalleryOptions) -> Analysis:
    from oaplug_analyses.error_gallery import ErrorGallery

    return ErrorGallery(options)


def _build_hierarchy(options: HierarchyOptions) -> Analysis:
    from oaplug_analyses.hierarchy import Hierarchy

    return Hierarchy(options)


def _build_paired_statistics(options: PairedStatisticsOptions) -> Analysis:
    from oaplug_analyses.paired_statistics import PairedStatistics

    return PairedStatistics(options)


def _build_saliency_overlap(options: SaliencyOverlapOptions) -> Analysis:
    from oaplug_analyses.saliency_overlap import SaliencyOverlap

    return SaliencyOverlap(options)


def _build_severity_axis(options: SeverityAxisOptions) -> Analysis:
    from oaplug_analyses.severity_axis import SeverityAxis

    return SeverityAxis(options)


def _build_subgroups(options: SubgroupsOptions) -> Analysis:
    from oaplug_analyses.subgroups import Subgroups

    return Subgroups(options)


def _build_task_interference(options: TaskInterferenceOptions) -> Analysis:
    from oaplug_analyses.task_interference import TaskInterference

    return TaskInterference(options)


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
            name="calibration",
            summary="Whether probabilities can be taken at their word: calibration error, Brier, temperature",
            build=_build_calibration,
            options=CalibrationOptions,
            reference="Guo et al. 2017 (temperature); Naeini et al. 2015 (calibration error); Murphy 1973 "
            "(parts of the Brier score); Broecker and Smith 2007 (consistency bands)",
        ),
        AnalysisSpec(
            name="error_gallery",
            summary="The cases that models get wrong with the most confidence, with their images",
            build=_build_error_gallery,
            options=ErrorGalleryOptions,
        ),
        AnalysisSpec(
            name="hierarchy",
            summary="Whether a coarse answer agrees with the fine grade it follows from",
            build=_build_hierarchy,
            options=HierarchyOptions,
            reference="Zhang 2026, arXiv 2605.00718; Cohen 1960 (kappa)",
        ),
        AnalysisSpec(
            name="paired_statistics",
            summary="Differences between models on the same cases: intervals, tests, corrected for many",
            build=_build_paired_statistics,
            options=PairedStatisticsOptions,
            reference="Efron 1987 (BCa); McNemar 1947; DeLong et al. 1988; Obuchowski 1997; "
            "Benjamini and Hochberg 1995; Holm 1979",
        ),
        AnalysisSpec(
            name="saliency_overlap",
            summary="How much of each model's saliency lies on cartilage or any region of the masks",
            build=_build_saliency_overlap,
            options=SaliencyOverlapOptions,
            needs=frozenset({"predictions", "network", "images", "masks"}),
            on_request=True,
            reference="Zhang 2026, arXiv 2605.00718; Smilkov et al. 2017 (SmoothGrad); Arras et al. 2022 "
            "(relevance mass); Adebayo et al. 2018 (sanity checks); Sundararajan et al. 2017; Selvaraju et "
            "al. 2017",
        ),
        AnalysisSpec(
            name="severity_axis",
            summary="Whether features order cases by severity: PC1 of training features against the grades",
            build=_build_severity_axis,
            options=SeverityAxisOptions,
            needs=frozenset({"predictions", "features", "train_features"}),
            reference="Zhang 2026, arXiv 2605.00718; Kornblith et al. 2019 (linear CKA); van der Maaten and "
            "Hinton 2008 (t-SNE)",
        ),
        AnalysisSpec(
            name="subgroups",
            summary="How well groups by sex, side, age or any covariate are graded, and against the rest",
            build=_build_subgroups,
            options=SubgroupsOptions,
            needs=frozenset({"predictions", "covariates"}),
            reference="Efron and Tibshirani 1993, ch. 13 (percentile bootstrap)",
        ),
        AnalysisSpec(
            name="task_interference",
            summary="Whether the losses of a head pull the shared encoder the same way: gradient cosines",
            build=_build_task_interference,
            options=TaskInterferenceOptions,
            on_request=True,
            reference="Du et al. 2018, arXiv 1812.02224; Yu et al. 2020 (PCGrad)",
        ),
    ]
