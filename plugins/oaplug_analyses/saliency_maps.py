"""Making the maps of a study, case by case, and measuring them while they are at hand."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from oaplug.core.errors import OaplugError, PredictionError
from oaplug.core.overlap import label_voxels, measure_overlap, random_map, rank_correlation
from oaplug.core.seeds import random_generator

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from oaplug.core.case import Case
    from oaplug.core.overlap import LabelVoxels, RegionOverlap
    from oaplug.core.saliency import Question
    from oaplug.core.study import OpenedModel
    from oaplug.core.volume import FloatArray, Volume
    from oaplug_analyses.saliency_asked import Asked

    Key = tuple[str, str]
    ByRegion = Mapping[str, RegionOverlap]

log = logging.getLogger(__name__)
DType = TypeVar("DType", bound=np.generic)
RANDOM, INPUT = "random", "input"
"""Maps that know no network: noise, and the absolute value of the input."""
UNTRAINED = "untrained:"
"""What the name of a map begins with if its network has new random weights; the question follows."""
STEPS = {"float32": None, "uint16": 65535}
BRIGHTEST = 0.999
"""The part of a map's voxels that is not brighter than its picture can show."""


@dataclass(frozen=True, kw_only=True)
class Slices:
    """What is drawn of a map: for each axis D, H, W the plane `at` an index, of the image, map and region."""

    model: str
    question: str
    case_id: str
    at: tuple[int, ...]
    image: tuple[FloatArray, ...]
    saliency: tuple[FloatArray, ...]
    region: tuple[NDArray[np.bool_], ...]
    spacing_mm: tuple[float, float, float]
    brightest: float
    mass: float


@dataclass(kw_only=True)
class OfCase:
    """What was measured of one case: overlaps by (model, map) and region, else by (model, question)."""

    case_id: str
    overlaps: dict[Key, ByRegion] = field(default_factory=dict)
    similarity: dict[Key, float] = field(default_factory=dict)
    slices: list[Slices] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured of all cases, and why others were left out."""

    cases: tuple[OfCase, ...]
    left_out: Mapping[str, str]

    def overlaps(self, model: str, shown: str, region: str) -> list[RegionOverlap]:
        """The overlaps of a map with a region, for every case that has that map."""
        key = (model, shown)
        return [case.overlaps[key][region] for case in self.cases if key in case.overlaps]


def measure(asked: Asked, folder: Path) -> Measured:
    """Make all maps, write them below `folder` and measure them; a case that cannot be read is left out.

    Raises PredictionError where no case is left.
    """
    with_mask = {case.case_id for case in asked.cases}
    left_out = {name: "it has no mask" for name in asked.study.case_ids if name not in with_mask}
    found = []
    for index, case in enumerate(asked.cases):
        log.info("saliency of case %s (%d of %d)", case.case_id, index + 1, len(asked.cases))
        try:
            found.append(_Work(asked, case, folder).measure())
        except PredictionError:  # of what was asked for, not of the case
            raise
        except OaplugError as failure:
            log.warning("case %s was left out: %s", case.case_id, failure)
            left_out[case.case_id] = str(failure)
    if not found:
        raise PredictionError(f"no case could be measured; the first: {next(iter(left_out.values()))}")
    return Measured(cases=tuple(found), left_out=left_out)


class _Work:
    """What is done for one case."""

    def __init__(self, asked: Asked, case: Case, folder: Path) -> None:
        self.asked = asked
        self.case = case
        self.folder = folder
        self.mask = asked.grids.mask(case)
        values = {value for values in asked.regions.values() for value in values}
        self.voxels: LabelVoxels = label_voxels(self.mask, values)
        self.found = OfCase(case_id=case.case_id)
        self._controls: list[tuple[Volume, dict[str, ByRegion]]] = []

    def measure(self) -> OfCase:
        """Measure the maps of every model."""
        for model, opened in self.asked.opened.items():
            self._measure_model(model, opened)
        return self.found

    def _measure_model(self, model: str, opened: OpenedModel) -> None:
        asked, case_id, settings = self.asked, self.case.case_id, self.asked.settings
        questions = asked.questions[model]
        volume = opened.prepare(self.case)
        for name, overlaps in self._control_maps(volume).items():
            self.found.overlaps[model, name] = overlaps
        maps = opened.saliency(volume.data, questions, case_id=case_id, settings=settings)
        for question, one in zip(questions, maps, strict=True):
            in_image = self._bring_back(one, volume)
            self.found.overlaps[model, question.name] = self._overlaps(in_image)
            self._write(in_image, model, question)
            if case_id in asked.shown:
                brightest = float(np.quantile(one, BRIGHTEST))
                self.found.slices.append(self._slices(in_image, model, question.name, brightest=brightest))
        if case_id not in asked.with_untrained:
            return
        others = opened.saliency(volume.data, questions, case_id=case_id, settings=settings, untrained=True)
        for question, one, other in zip(questions, maps, others, strict=True):
            self.found.similarity[model, question.name] = rank_correlation(one, other)
            key = (model, UNTRAINED + question.name)
            self.found.overlaps[key] = self._overlaps(self._bring_back(other, volume))

    def _control_maps(self, volume: Volume) -> dict[str, ByRegion]:
        """Overlaps of the maps that know no network; models with the same input share them."""
        for known, found in self._controls:
            if np.array_equal(known.affine, volume.affine) and np.array_equal(known.data, volume.data):
                return found
        rng = random_generator(self.asked.seed, "random saliency", self.case.case_id)
        strength = np.abs(volume.data).sum(axis=0)
        maps = {RANDOM: random_map(volume.data.shape[1:], rng=rng), INPUT: strength}
        found = {name: self._overlaps(self._bring_back(one, volume)) for name, one in maps.items()}
        self._controls.append((volume, found))
        return found

    def _bring_back(self, prepared: FloatArray, volume: Volume) -> FloatArray:
        return self.asked.grids.bring_back(prepared, affine=volume.affine, case=self.case)

    def _overlaps(self, in_image: FloatArray) -> ByRegion:
        measured = measure_overlap(in_image, self.voxels)
        return {name: measured.region(values) for name, values in self.asked.regions.items()}

    def _write(self, in_image: FloatArray, model: str, question: Question) -> None:
        kind = self.asked.options.maps
        if kind != "none":
            name = f"{self.case.case_id}_{question.name.replace(':', '_')}.nii.gz"
            path = self.folder / "maps" / self.asked.folders[model] / name
            self.asked.grids.write_map(path, in_image, case=self.case, steps=STEPS[kind])

    def _slices(self, in_image: FloatArray, model: str, question: str, *, brightest: float) -> Slices:
        image, region = self._image, self._region
        inside = [region.sum(axis=tuple({0, 1, 2} - {axis})) for axis in range(3)]
        at = tuple(int(one.argmax()) if one.any() else one.size // 2 for one in inside)
        overlap = self.found.overlaps[model, question][self.asked.main_region]
        return Slices(
            model=model,
            question=question,
            case_id=self.case.case_id,
            at=at,
            image=_planes(image.data[0], at),
            saliency=_planes(in_image, at),
            region=_planes(region, at),
            spacing_mm=image.spacing_mm,
            brightest=brightest,
            mass=overlap.mass,
        )

    @cached_property
    def _image(self) -> Volume:
        return self.asked.study.image(self.case.case_id)

    @cached_property
    def _region(self) -> NDArray[np.bool_]:
        return np.isin(self.mask, self.asked.regions[self.asked.main_region])


def _planes(volume: NDArray[DType], at: Sequence[int]) -> tuple[NDArray[DType], ...]:
    """Copies of the three planes of a volume (D,H,W) at an index of each axis."""
    return tuple(np.take(volume, index, axis=axis) for axis, index in enumerate(at))
