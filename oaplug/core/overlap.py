"""How much of a saliency map lies in regions of a mask, and what chance would put there.

Mass is the region's part of all saliency (the relevance mass accuracy of Arras et al., Information Fusion
2022); top-k the part of the k most salient voxels that lies in the region; Dice that of these voxels with
the region.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Map = NDArray[np.float32]

FRACTIONS = (0.01, 0.05, 0.10)
"""Parts of all voxels that count as most salient."""
LEAST_MASS = 1e-8
"""A map that sums to less has no mass to speak of; it also steadies the division."""
_PROBES = 1 << 17
"""Voxels that are looked at to guess where the cut-offs lie."""
_MARGIN = 0.02
"""How many more voxels than needed the guess is to leave, as a part of all."""


@dataclass(frozen=True, kw_only=True)
class LabelVoxels:
    """The voxels of some labels of a mask: what several maps on one grid are measured against.

    `places` (n,) are indices into the flat mask, `values` (n,) the label of each, `labels` (L,) which labels
    were asked for, in order; `voxels` counts the whole mask.
    """

    voxels: int
    labels: tuple[int, ...]
    places: NDArray[np.intp]
    values: NDArray[np.intp]

    @property
    def counts(self) -> Floats:
        """Voxels (L,) of each label."""
        return np.bincount(self.values, minlength=len(self.labels)).astype(np.float64)


def label_voxels(mask: NDArray[np.int16], labels: Collection[int]) -> LabelVoxels:
    """Find the voxels of `labels` in a mask (D,H,W)."""
    wanted = np.unique(np.fromiter(labels, dtype=np.int64))
    flat = mask.ravel()
    is_wanted = flat != 0 if 0 not in wanted else np.ones(flat.size, dtype=bool)
    places = np.flatnonzero(is_wanted)
    values = flat[places]
    found = np.minimum(np.searchsorted(wanted, values), max(0, len(wanted) - 1))
    kept = wanted[found] == values if len(wanted) else np.zeros(values.size, dtype=bool)
    return LabelVoxels(
        voxels=flat.size, labels=tuple(wanted.tolist()), places=places[kept], values=found[kept]
    )


@dataclass(frozen=True, kw_only=True)
class RegionOverlap:
    """A map and a region. `mass` is NaN for an empty map; `top` and `dice` (F,) follow the fractions.

    `region_fraction` is the region's part of all voxels, which is what mass and top-k of a map without
    any knowledge come to on average; `dice_chance` (F,) is the same for Dice.
    """

    mass: float
    top: Floats
    dice: Floats
    region_fraction: float
    dice_chance: Floats

    @property
    def mass_lift(self) -> float:
        """Mass over its chance level; NaN for an empty region."""
        return self.mass / self.region_fraction if self.region_fraction else math.nan

    @property
    def top_lift(self) -> Floats:
        """Top-k (F,) over its chance level; NaN for an empty region."""
        return self.top / self.region_fraction if self.region_fraction else np.full(self.top.shape, math.nan)


@dataclass(frozen=True, kw_only=True)
class MapOverlap:
    """What of a map lies in each label: `mass` (L,) summed, `top` (F,L) voxels among the `k` (F,) highest.

    Of voxels with equal saliency at a cut-off each counts as the same part of a voxel, which is what drawing
    lots comes to on average: the numbers depend neither on the order of voxels nor on a seed.
    """

    voxels: LabelVoxels
    total_mass: float
    mass: Floats
    k: NDArray[np.int64]
    top: Floats

    def region(self, labels: Collection[int]) -> RegionOverlap:
        """The overlap with the union of some of the labels; raises ValueError for one not asked for."""
        if unknown := set(labels) - set(self.voxels.labels):
            raise ValueError(f"labels {sorted(unknown)} were not looked for, only {self.voxels.labels}")
        chosen = np.isin(self.voxels.labels, list(labels))
        size = float(self.voxels.counts[chosen].sum())
        inside = self.top[:, chosen].sum(axis=1)
        mass = float(self.mass[chosen].sum()) / (self.total_mass + LEAST_MASS)
        fraction = size / self.voxels.voxels
        return RegionOverlap(
            mass=math.nan if self.total_mass < LEAST_MASS else mass,
            top=inside / self.k,
            dice=2 * inside / (self.k + size),
            region_fraction=fraction,
            dice_chance=2 * self.k * fraction / (self.k + size),
        )


def measure_overlap(
    saliency: Map, voxels: LabelVoxels, *, fractions: Sequence[float] = FRACTIONS
) -> MapOverlap:
    """Measure a map (D,H,W) against the labels of a mask on the same grid.

    Negative saliency counts as none. k is max(1, ceil(f N)) for N voxels of the whole grid. Raises
    ValueError where map and mask have different sizes.
    """
    flat = saliency.ravel()
    if flat.size != voxels.voxels:
        raise ValueError(f"a map of {flat.size} voxels against a mask of {voxels.voxels}")
    if flat.size and flat.min() < 0:
        flat = np.maximum(flat, 0)
    k = np.array([max(1, math.ceil(fraction * flat.size)) for fraction in fractions], dtype=np.int64)
    inside = flat[voxels.places]
    top = [_by_label(_shares(inside, cut), voxels) for cut in cut_offs(flat, k)]
    return MapOverlap(
        voxels=voxels,
        total_mass=float(flat.sum(dtype=np.float64)),
        mass=_by_label(inside, voxels),
        k=k,
        top=np.stack(top),
    )


def _by_label(values: NDArray[np.floating[Any]], voxels: LabelVoxels) -> Floats:
    """Sums (L,) per label of values (n,) of its voxels."""
    sums = np.bincount(voxels.values, weights=values, minlength=len(voxels.labels))
    return sums.astype(np.float64, copy=False)


@dataclass(frozen=True, kw_only=True)
class CutOff:
    """The k most salient voxels are those above `value`, and of each voxel at it the same `share`."""

    value: float
    share: float


def _shares(saliency: Map, cut: CutOff) -> Floats:
    """What part of each voxel (n,) is among the most salient."""
    chosen: Floats = (saliency > cut.value).astype(np.float64)
    chosen[saliency == cut.value] = cut.share
    return chosen


def cut_offs(flat: Map, k: NDArray[np.int64]) -> list[CutOff]:
    """Where the most salient voxels of a flat map (N,) begin, for each number `k` of them."""
    highest = _highest(flat, int(k.max()))
    ranked = np.partition(highest, np.unique(highest.size - k))
    found = []
    for count, value in zip(k.tolist(), ranked[highest.size - k].tolist(), strict=True):
        above = np.count_nonzero(highest > value)
        equal = np.count_nonzero(highest == value)
        found.append(CutOff(value=value, share=(count - above) / equal))
    return found


def _highest(flat: Map, count: int) -> Map:
    """All voxels from some value up, `count` at least: only these are worth sorting."""
    stride = max(1, flat.size // _PROBES)
    probes = flat[::stride]
    spare = 1 - count / flat.size - _MARGIN
    if stride == 1 or spare <= 0:
        return flat
    highest = flat[flat >= np.quantile(probes, spare, method="lower")]
    return highest if highest.size >= count else flat


def random_map(shape: tuple[int, ...], *, rng: np.random.Generator) -> Map:
    """A map (D,H,W) that knows nothing: uniform between 0 and 1, each voxel for itself."""
    return rng.random(shape, dtype=np.float32)


def rank_correlation(first: Map, second: Map, *, most: int = 1_000_000) -> float:
    """Spearman correlation of two maps of equal shape over at most `most` evenly spaced voxels.

    NaN where one of them is constant. It is the measure by which Adebayo et al., "Sanity checks for saliency
    maps", NeurIPS 2018, compare maps of trained and of untrained networks.
    """
    from scipy.stats import rankdata

    stride = -(-first.size // most)
    ranks = np.stack([rankdata(one.ravel()[::stride]) for one in (first, second)])
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    spread = np.sqrt((centred**2).sum(axis=1)).prod()
    return float((centred[0] * centred[1]).sum() / spread) if spread > 0 else math.nan
