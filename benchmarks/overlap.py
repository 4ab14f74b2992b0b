"""Overlap of one saliency map with a region: oaplug against three argpartitions, and against a full sort.

    python benchmarks/overlap.py [--size 160 384 384] [--repeats 3]

The map and the mask are made up, in the size of a knee of OAIZIB-CM. All give mass, and top-k and Dice at
1, 5 and 10%; the differences between them are printed. Seconds are of processor time, the best of the
repeats.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import numpy as np

from oaplug.core.overlap import FRACTIONS, label_voxels, measure_overlap

LABELS = (2, 4)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, nargs=3, default=[160, 384, 384])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    saliency, mask = make_case(tuple(arguments.size), seed=0)
    voxels = label_voxels(mask, LABELS)
    ways: dict[str, Callable[[], np.ndarray]] = {
        "three argpartitions": lambda: straightforward(saliency, mask, by_argpartition),
        "full sort": lambda: straightforward(saliency, mask, by_sorting),
        "oaplug, mask and map": lambda: ours(saliency, label_voxels(mask, LABELS)),
        "oaplug, a further map": lambda: ours(saliency, voxels),
    }
    print(f"map of {'x'.join(map(str, arguments.size))}, region {np.isin(mask, LABELS).mean():.1%} of it")
    print(f"{'':<24}{'s':>8}{'ratio':>8}{'largest difference':>20}")
    first_seconds, expected = 0.0, np.empty(0)
    for name, way in ways.items():
        seconds, found = min((timed(way) for _ in range(arguments.repeats)), key=lambda one: one[0])
        if not first_seconds:
            first_seconds, expected = seconds, found
        apart = np.abs(found - expected).max()
        print(f"{name:<24}{seconds:>8.3f}{first_seconds / seconds:>8.1f}{apart:>20.1e}", flush=True)


def make_case(shape: tuple[int, ...], *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A map with few high voxels, as gradients have, and a mask with two curved layers."""
    rng = np.random.default_rng(seed)
    saliency = rng.standard_normal(shape, dtype=np.float32) ** 2
    saliency /= saliency.max()
    depth, height, width = (np.linspace(-1, 1, size, dtype=np.float32) for size in shape)
    radius = np.sqrt(depth[:, None, None] ** 2 + height[:, None] ** 2 + width**2)
    mask = np.zeros(shape, dtype=np.int16)
    mask[(radius > 0.5) & (radius < 0.54)] = 2
    mask[(radius > 0.56) & (radius < 0.58)] = 4
    return saliency, mask


def timed(work: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def ours(saliency: np.ndarray, voxels: object) -> np.ndarray:
    """Mass, top-k and Dice (7,) by oaplug."""
    found = measure_overlap(saliency, voxels).region(LABELS)  # type: ignore[arg-type]
    return np.array([found.mass, *found.top, *found.dice])


def straightforward(
    saliency: np.ndarray, mask: np.ndarray, highest: Callable[[np.ndarray, int], np.ndarray]
) -> np.ndarray:
    """The same by their definitions, each cut-off by itself."""
    flat, inside = np.maximum(saliency, 0).ravel(), np.isin(mask, LABELS).ravel()
    mass = flat[inside].sum(dtype=np.float64) / (flat.sum(dtype=np.float64) + 1e-8)
    top, dice = [], []
    for fraction in FRACTIONS:
        count = max(1, math.ceil(fraction * flat.size))
        hits = inside[highest(flat, count)].sum()
        top.append(hits / count)
        dice.append(2 * hits / (count + inside.sum()))
    return np.array([mass, *top, *dice])


def by_argpartition(flat: np.ndarray, count: int) -> np.ndarray:
    return np.argpartition(flat, flat.size - count)[flat.size - count :]


def by_sorting(flat: np.ndarray, count: int) -> np.ndarray:
    return np.argsort(-flat)[:count]


if __name__ == "__main__":
    main()
