"""Groups of cases by what is known of them: names as they are, numbers in bands."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from oaplug.core.errors import PluginError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from oaplug_analyses.options import SubgroupsOptions

NUMBERS_FROM = 7
"""Different numbers from which a covariate is cut into bands; fewer are taken as names."""

GROUPS_UP_TO = 12
"""Groups of one covariate beyond which it is left out."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """The cases `rows` of one group, and the `rest`: those of the other groups of the same covariate."""

    covariate: str
    name: str
    rows: NDArray[np.intp]
    rest: NDArray[np.intp]


def make_groups(
    covariates: Mapping[str, Sequence[str]], options: SubgroupsOptions
) -> tuple[list[Group], list[str]]:
    """Groups by covariate, and sentences on the covariates that give none.

    A case whose value is blank is in no group of that covariate. Raises PluginError where an option names a
    covariate that is not there, or bands are asked for where a value is no number.
    """
    for name in (*options.covariates, *options.bands):
        if name not in covariates:
            raise PluginError(f"there is no covariate {name!r}{nearest(name, covariates)}")
    groups: list[Group] = []
    without = []
    for name in options.covariates or covariates:
        labels, order = _labels(name, covariates[name], options)
        if len(order) < 2:
            without.append(f"{name} is the same for all cases where it is known, so it makes no groups.")
        elif len(order) > GROUPS_UP_TO:
            without.append(f"{name} has {len(order)} different values, too many for groups.")
        else:
            groups += _split(name, labels, order)
    return groups, without


def _labels(name: str, texts: Sequence[str], options: SubgroupsOptions) -> tuple[list[str], list[str]]:
    """The group's name of every case ("": none), and the names in order."""
    numbers = None if name in options.categories and name not in options.bands else _numbers(texts)
    known = set(texts) - {""}
    if name in options.bands:
        if numbers is None:
            raise PluginError(f"bands of {name}: not all its values are numbers")
        return _bands(numbers, options.bands[name])
    if numbers is None:
        return list(texts), sorted(known)
    if len(known) < NUMBERS_FROM:
        return list(texts), sorted(known, key=float)
    return _bands(numbers, np.unique(np.nanquantile(numbers, [0.25, 0.5, 0.75])).tolist())


def _numbers(texts: Sequence[str]) -> NDArray[np.float64] | None:
    """Values (N,), NaN where blank; None where a text is no finite number."""
    try:
        values = np.array([float(text) if text else math.nan for text in texts])
    except ValueError:
        return None
    blank = np.array([not text for text in texts], dtype=bool)
    return values if np.isfinite(values[~blank]).all() else None


def _bands(values: NDArray[np.float64], limits: Sequence[float]) -> tuple[list[str], list[str]]:
    """Names of bands that hold their lower limit but not the upper one; those without a case are left out."""
    shown = [f"{limit:.4g}" for limit in limits]
    middle = [f"{low} to < {high}" for low, high in pairwise(shown)]
    names = [f"< {shown[0]}", *middle, f">= {shown[-1]}"]
    place = np.searchsorted(limits, values, side="right")
    labels = ["" if math.isnan(v) else names[p] for v, p in zip(values, place, strict=True)]
    return labels, [name for name in names if name in labels]


def _split(covariate: str, labels: Sequence[str], order: Sequence[str]) -> list[Group]:
    given = np.array(labels)
    return [
        Group(
            covariate=covariate,
            name=name,
            rows=np.flatnonzero(given == name),
            rest=np.flatnonzero((given != name) & (given != "")),
        )
        for name in order
    ]
