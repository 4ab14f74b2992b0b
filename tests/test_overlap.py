"""Overlap of saliency maps with regions: every number against a sort, sets and scikit-learn."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import spearmanr
from sklearn.metrics import f1_score

from oaplug.core import overlap
from oaplug.core.overlap import (
    FRACTIONS,
    cut_offs,
    label_voxels,
    measure_overlap,
    random_map,
    rank_correlation,
)

LABELS = (1, 2, 5)
shapes = hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def cases(draw, *, ties=True):
    """A map (D,H,W), with or without equal values, and a mask of the labels 0 to 5 on the same grid."""
    shape, rng = draw(shapes), np.random.default_rng(draw(seeds))
    size = math.prod(shape)
    values = rng.integers(0, draw(st.integers(1, 6)), size) / 5 if ties else rng.permutation(size) / size
    return values.reshape(shape).astype(np.float32), rng.integers(0, 6, shape).astype(np.int16)


def measured(saliency, mask, labels=LABELS, **fractions):
    return measure_overlap(saliency, label_voxels(mask, labels), **fractions).region(labels)


def by_sorting(saliency, inside, fraction):
    """The voxels of the top k as a set, by a full sort, and those of the region."""
    count = max(1, math.ceil(fraction * saliency.size))
    ranked = sorted(range(saliency.size), key=lambda place: -saliency.ravel()[place])
    return set(ranked[:count]), set(np.flatnonzero(inside).tolist())


@given(cases(ties=False))
def test_without_ties_the_numbers_are_those_of_sets_of_sorted_voxels(case):
    saliency, mask = case
    inside = np.isin(mask, LABELS)
    found = measured(saliency, mask)
    for index, fraction in enumerate(FRACTIONS):
        top, region = by_sorting(saliency, inside, fraction)
        assert found.top[index] == pytest.approx(len(top & region) / len(top))
        assert found.dice[index] == pytest.approx(2 * len(top & region) / (len(top) + len(region)))
        chosen = np.isin(np.arange(saliency.size), list(top))
        assert found.dice[index] == pytest.approx(f1_score(inside.ravel(), chosen, zero_division=0))
    assert found.region_fraction == pytest.approx(inside.mean())


@given(cases())
def test_mass_is_the_part_of_the_positive_saliency_in_the_region(case):
    saliency, mask = case
    signed = saliency - 0.3
    pairs = [(max(float(s), 0.0), int(m) in LABELS) for s, m in zip(signed.flat, mask.flat, strict=True)]
    total = sum(s for s, _ in pairs)
    found = measured(signed, mask)
    if total < 1e-8:
        assert math.isnan(found.mass)
    else:
        assert found.mass == pytest.approx(sum(s for s, inside in pairs if inside) / (total + 1e-8))


@given(cases(), st.sampled_from([0.05, 0.3, 0.6]))
def test_ties_count_as_drawing_lots_does_on_average(case, fraction):
    saliency, mask = case
    inside = np.isin(mask, LABELS).ravel()
    count = max(1, math.ceil(fraction * saliency.size))
    cut = sorted(saliency.ravel(), reverse=True)[count - 1]
    above, equal = np.flatnonzero(saliency.ravel() > cut), np.flatnonzero(saliency.ravel() == cut)
    left = count - len(above)
    assume(math.comb(len(equal), left) <= 3000)
    draws = [inside[above].sum() + inside[list(drawn)].sum() for drawn in combinations(equal, left)]
    expected = np.mean(draws)
    found = measured(saliency, mask, fractions=(fraction,))
    assert found.top[0] == pytest.approx(expected / count)
    assert found.dice[0] == pytest.approx(2 * expected / (count + inside.sum()))


@given(cases(), st.sampled_from([(0,), (1,), (2,), (0, 1, 2)]), st.floats(0.5, 4))
def test_mirroring_the_image_and_scaling_the_map_change_nothing(case, axes, factor):
    saliency, mask = case
    first = measured(saliency, mask)
    second = measured(np.float32(factor) * np.flip(saliency, axes), np.flip(mask, axes))
    assert_allclose(second.top, first.top)
    assert_allclose(second.dice, first.dice)
    assert_allclose(second.mass, first.mass, rtol=1e-5)


@given(cases())
def test_a_constant_map_has_exactly_the_overlap_of_chance(case):
    saliency, mask = case
    found = measured(np.ones_like(saliency), mask)
    assert_allclose(found.top, found.region_fraction)
    assert_allclose(found.dice, found.dice_chance)
    assert found.mass == pytest.approx(found.region_fraction)
    if found.region_fraction:
        assert found.mass_lift == pytest.approx(1)
        assert_allclose(found.top_lift, 1)
    else:
        assert math.isnan(found.mass_lift)
        assert np.isnan(found.top_lift).all()


@given(cases())
def test_regions_add_up_from_their_labels(case):
    saliency, mask = case
    everything = measure_overlap(saliency, label_voxels(mask, range(6)))
    parts = [everything.region([label]) for label in range(6)]
    whole = everything.region(range(6))
    assert sum(part.region_fraction for part in parts) == pytest.approx(1)
    assert_allclose(sum(part.top for part in parts), whole.top)
    assert_allclose(whole.top, 1)
    union = everything.region(LABELS)
    alone = measured(saliency, mask)
    assert_allclose([union.mass, *union.top, *union.dice], [alone.mass, *alone.top, *alone.dice])


@given(cases(), st.sets(st.integers(-2, 7)))
def test_label_voxels_are_those_of_numpy(case, labels):
    mask = case[1] - np.int16(1)
    found = label_voxels(mask, labels)
    assert found.labels == tuple(sorted(labels))
    assert_array_equal(found.places, np.flatnonzero(np.isin(mask, list(labels))))
    assert_array_equal(np.array(sorted(labels))[found.values], mask.ravel()[found.places])
    assert found.counts.tolist() == [(mask == label).sum() for label in sorted(labels)]


def maps_of_many_voxels():
    rng = np.random.default_rng(3)
    values = rng.random(600_000, dtype=np.float32) ** 4
    yield "different values", values
    yield "few values", np.round(values, 2)
    yield "nearly all zero", np.where(rng.random(values.size) < 0.97, np.float32(0), values)
    yield "all high values where no probe is", np.where(np.arange(values.size) % 2, values, np.float32(0))
    yield "ascending", np.sort(values)
    yield "constant", np.ones_like(values)


@pytest.mark.parametrize(("_name", "values"), list(maps_of_many_voxels()))
def test_looking_at_the_highest_voxels_only_finds_the_same_cut_offs(_name, values):
    k = np.array([1, 6_000, 30_000, 60_000])
    ranked = np.sort(values)[::-1]
    for count, cut in zip(k.tolist(), cut_offs(values, k), strict=True):
        assert cut.value == ranked[count - 1]
        equal = (values == cut.value).sum()
        assert (values > cut.value).sum() + cut.share * equal == pytest.approx(count)


def test_the_shortcut_is_taken_where_it_can_be():
    values = next(maps_of_many_voxels())[1]
    assert 60_000 <= overlap._highest(values, 60_000).size < 100_000


def test_noise_comes_to_chance():
    mask = np.zeros((40, 50, 60), np.int16)
    mask[5:20, 10:30, 20:50] = 2
    found = [measured(random_map(mask.shape, rng=np.random.default_rng(n)), mask, (2,)) for n in range(30)]
    assert found[0].region_fraction == pytest.approx(9000 / 120_000)
    lifts = np.mean([[one.mass_lift, *one.top_lift] for one in found], axis=0)
    assert_allclose(lifts, 1, atol=0.06)
    assert_allclose(np.mean([one.dice for one in found], axis=0), found[0].dice_chance, rtol=0.06)


def test_a_region_that_is_not_there_has_no_overlap():
    found = measured(np.random.default_rng(0).random((3, 4, 5)), np.zeros((3, 4, 5), np.int16), (2, 4))
    assert (found.mass, found.region_fraction) == (0, 0)
    assert not found.top.any()
    assert not found.dice.any()


def test_other_sizes_and_labels_that_were_not_looked_for_are_refused():
    voxels = label_voxels(np.zeros((3, 4, 5), np.int16), [1])
    with pytest.raises(ValueError, match="a map of 24 voxels against a mask of 60"):
        measure_overlap(np.zeros((2, 3, 4), np.float32), voxels)
    with pytest.raises(ValueError, match=r"labels \[4\]"):
        measure_overlap(np.zeros((3, 4, 5), np.float32), voxels).region([1, 4])


@given(cases(), seeds)
def test_the_rank_correlation_is_that_of_scipy(case, seed):
    first = case[0]
    second = first + np.random.default_rng(seed).normal(0, 0.3, first.shape).astype(np.float32)
    assume(np.unique(first).size > 1 and np.unique(second).size > 1)
    expected = spearmanr(first.ravel(), second.ravel()).statistic
    assert rank_correlation(first, second) == pytest.approx(expected, abs=1e-9)


def test_the_rank_correlation_of_large_maps_is_that_of_evenly_spaced_voxels():
    rng = np.random.default_rng(0)
    first = rng.random((20, 30, 40))
    second = first + rng.random(first.shape)
    expected = spearmanr(first.ravel()[::5], second.ravel()[::5]).statistic
    assert rank_correlation(first, second, most=5000) == pytest.approx(expected)
    assert math.isnan(rank_correlation(first, np.ones_like(first)))
