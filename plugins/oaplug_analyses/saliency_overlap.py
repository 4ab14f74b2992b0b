"""Where networks look: saliency maps of every model, and how much of them lies on cartilage."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from oaplug.core.findings import Findings
from oaplug_analyses import saliency_figures as figures
from oaplug_analyses.drawing import model_colours
from oaplug_analyses.saliency_asked import Asked
from oaplug_analyses.saliency_maps import RANDOM, measure
from oaplug_analyses.saliency_numbers import Numbers
from oaplug_analyses.saliency_tables import write_tables

if TYPE_CHECKING:
    from pathlib import Path

    from oaplug.core.findings import Figure
    from oaplug.core.study import Study
    from oaplug_analyses.options import SaliencyOverlapOptions
    from oaplug_analyses.saliency_maps import Measured, Slices
    from oaplug_analyses.saliency_numbers import Answered

NAMED = 3
"""Cases that were left out which the summary names."""


@dataclass(frozen=True)
class SaliencyOverlap:
    """Builds with SaliencyOverlapOptions; needs networks, and the images and masks of the cases."""

    options: SaliencyOverlapOptions

    def run(self, study: Study, folder: Path) -> Findings:
        """Make and measure the maps of `study`; maps, tables and figures go into `folder`."""
        asked = Asked(study=study, options=self.options)
        return self.tell(asked, measure(asked, folder), folder)

    def tell(self, asked: Asked, measured: Measured, folder: Path) -> Findings:
        """What was measured, as findings."""
        numbers = Numbers(asked=asked, measured=measured)
        return Findings(
            title="Saliency overlap",
            summary=tuple(_sentences(numbers)),
            numbers=numbers.headline(),
            tables=tuple(write_tables(numbers, folder)),
            figures=tuple(_figures(numbers, folder)),
        )


def _figures(numbers: Numbers, folder: Path) -> list[Figure]:
    asked = numbers.asked
    colours = model_colours([model.name for model in asked.study.models])
    by_picture: dict[tuple[str, str], list[Slices]] = defaultdict(list)
    for case in numbers.measured.cases:
        for one in case.slices:
            by_picture[one.question, one.case_id].append(one)
    drawn = []
    for question in numbers.question_names:
        drawn.append(figures.overlaps(numbers, question, folder, colours))
        for (of_question, _), shown in by_picture.items():
            if of_question == question:
                drawn.append(figures.slices(shown, folder, region=asked.main_region))
    return drawn


def _sentences(numbers: Numbers) -> list[str]:
    asked, region = numbers.asked, numbers.asked.main_region
    said = [_answer(numbers, numbers.answered[question, region]) for question in numbers.question_names]
    said += _differences(numbers)
    said += _check(numbers)
    if left := numbers.measured.left_out:
        named = "; ".join(f"{case}: {why}" for case, why in list(left.items())[:NAMED])
        said.append(f"{len(left)} cases were left out ({named}{'; ...' if len(left) > NAMED else ''}).")
    for model in asked.study.models:
        if model not in asked.models:
            said.append(f"{model.name} is left out: {model.lacks('network')}.")
    return said


def _answer(numbers: Numbers, found: Answered) -> str:
    """How much of the saliency of a question lies in the region, per model, and what chance gives."""
    told = []
    for model in found.means:
        mass = found.of(model, "mass")
        if math.isnan(mass.value):
            told.append(f"{model} nothing, as its maps are empty")
            continue
        noise = found.control(model, RANDOM, "mass")
        interval = f"{_percent(float(mass.low))} to {_percent(float(mass.high))}"
        told.append(f"{model} {mass.value:.1%} ({interval}; noise in its field of view {_percent(noise)})")
    return (
        f"{found.question}: {found.region} is {found.region_fraction:.1%} of all voxels and holds of the "
        f"saliency of {', of '.join(told)}, on {numbers.size}."
    )


def _differences(numbers: Numbers) -> list[str]:
    """Differences in mass whose interval leaves out zero."""
    said = []
    for question in numbers.question_names:
        found = numbers.answered[question, numbers.asked.main_region]
        for model in found.differences:
            mass = found.difference(model, "mass")
            if mass.low > 0 or mass.high < 0:
                more = "more" if mass.value > 0 else "less"
                said.append(
                    f"{question}: {model} has {more} mass in {found.region} than "
                    f"{numbers.baseline}: {mass.value:+.3f} ({mass.low:+.3f} to {mass.high:+.3f})."
                )
    return said


def _check(numbers: Numbers) -> list[str]:
    """What of the first question's maps is there without learning."""
    return [
        f"{one.question}: with new random weights the network of {one.model} gives maps that correlate with "
        f"its own by {_decimals(one.correlation.mean())} (Spearman) and have "
        f"{_percent(one.untrained_mass.mean())} of their saliency in {numbers.asked.main_region}, "
        f"instead of {_percent(one.mass.mean())} "
        f"(in {one.correlation.size} cases)."
        for one in numbers.untrained
        if one.question == numbers.question_names[0]
    ]


def _percent(value: float) -> str:
    return "not defined" if math.isnan(value) else f"{value:.1%}"


def _decimals(value: float) -> str:
    return "not defined" if math.isnan(value) else f"{value:.2f}"
