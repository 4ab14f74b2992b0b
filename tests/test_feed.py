"""Batches: order, augmentation and weights depend on what they say they depend on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.utils.class_weight import compute_class_weight

from oaplug.core.case import Case
from oaplug.core.plan import AugmentationSettings
from oaplug.feed.augment.apply import apply_draws, change_intensity, move
from oaplug.feed.augment.batchgenerators import build_transforms, transform_case
from oaplug.feed.augment.draw import Draw, draw_augmentation
from oaplug.feed.source import BatchSource, VolumeStore, balanced_weights
from oaplug.prepare.folder import PreprocessedFolder
from oaplug.prepare.store import write_array

ALWAYS = AugmentationSettings(
    rotation_probability=1, scale_probability=1, shift_probability=1, noise_probability=1,
    brightness_probability=1, contrast_probability=1, gamma_probability=1,
)  # fmt: skip


def smooth_volume(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    noise = np.random.default_rng(seed).normal(size=shape)
    return torch.from_numpy(ndimage.gaussian_filter(noise, 2.0)).float()[None, None]


def sample_with_scipy(volume: np.ndarray, *, degrees: tuple[float, float, float], scale: float,
                      shift: np.ndarray, mirrored: tuple[bool, bool, bool]) -> np.ndarray:  # fmt: skip
    """The same motion by scipy: output voxel -> input voxel about the centre."""
    center = (np.array(volume.shape) - 1) / 2
    matrix = np.eye(3)
    for axis, angle in enumerate(degrees):
        i, j = [a for a in range(3) if a != axis]
        turn = np.eye(3)
        radians = np.deg2rad(angle)
        turn[i, i] = turn[j, j] = np.cos(radians)
        turn[i, j], turn[j, i] = -np.sin(radians), np.sin(radians)
        matrix = matrix @ turn
    matrix = matrix @ np.diag([-1.0 if m else 1.0 for m in mirrored]) / scale
    offset = center - matrix @ center + shift
    return ndimage.affine_transform(volume, matrix, offset=offset, order=1, mode="nearest")


@settings(max_examples=15, deadline=None)
@given(
    degrees=st.tuples(*[st.floats(-25, 25)] * 3),
    scale=st.floats(0.8, 1.25),
    shift=st.tuples(*[st.floats(-0.1, 0.1)] * 3),
    mirrored=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_the_composed_sampling_agrees_with_scipy_for_unequal_sizes(degrees, scale, shift, mirrored):
    size = (13, 18, 24)
    volume = smooth_volume(size)
    draw = Draw(rotation_degrees=degrees, scale=scale, shift_fraction=shift, mirrored=mirrored)
    ours = move(volume, [draw])[0, 0].numpy()
    expected = sample_with_scipy(
        volume[0, 0].numpy(), degrees=degrees, scale=scale, shift=np.array(shift) * size, mirrored=mirrored
    )
    np.testing.assert_allclose(ours, expected, atol=2e-4)


def test_a_neutral_draw_changes_nothing_and_moves_nothing():
    volumes = torch.randn(2, 2, 5, 6, 7)
    assert apply_draws(volumes, [Draw(), Draw()]) is volumes


def test_mirroring_flips_exactly_the_axes_it_names():
    volumes = torch.randn(1, 1, 4, 5, 6)
    flipped = move(volumes, [Draw(mirrored=(False, True, False))])
    torch.testing.assert_close(flipped, volumes.flip(3), atol=1e-5, rtol=1e-5)


def test_default_draws_never_mirror_and_so_never_swap_medial_and_lateral():
    draws = [draw_augmentation(ALWAYS, 0, "0", 0, f"case{i}") for i in range(200)]
    assert not any(any(draw.mirrored) for draw in draws)


def test_a_draw_depends_on_seed_fold_epoch_and_case_only():
    first = draw_augmentation(ALWAYS, 3, "0", 5, "knee")
    draw_augmentation(ALWAYS, 9, "1", 6, "other")
    assert draw_augmentation(ALWAYS, 3, "0", 5, "knee") == first
    others = [(4, "0", 5, "knee"), (3, "1", 5, "knee"), (3, "0", 6, "knee"), (3, "0", 5, "kne")]
    assert all(draw_augmentation(ALWAYS, seed, *purpose) != first for seed, *purpose in others)


def test_draws_stay_within_the_ranges_of_the_plan():
    draws = [draw_augmentation(ALWAYS, 0, "0", 0, str(i)) for i in range(300)]
    assert all(0.9 <= d.scale <= 1.1 and 0.8 <= d.contrast <= 1.25 and 0 <= d.noise_std <= 0.1 for d in draws)
    assert all(max(map(abs, d.rotation_degrees)) <= 10 for d in draws)
    assert max(abs(a) for d in draws for a in d.rotation_degrees) > 9.5


def test_probability_zero_switches_a_part_off():
    quiet = AugmentationSettings(
        rotation_probability=0, scale_probability=0, shift_probability=0, noise_probability=0,
        brightness_probability=0, contrast_probability=0, gamma_probability=0,
    )  # fmt: skip
    draw = draw_augmentation(quiet, 0, "0", 0, "knee")
    volumes = torch.randn(1, 1, 4, 4, 4)
    assert apply_draws(volumes, [draw]) is volumes


def test_contrast_keeps_the_mean_and_scales_the_spread_and_brightness_multiplies():
    volumes = torch.randn(2, 1, 6, 6, 6) + 3
    contrasted = change_intensity(volumes, [Draw(contrast=1.5), Draw()])
    torch.testing.assert_close(contrasted[0].mean(), volumes[0].mean())
    torch.testing.assert_close(contrasted[0].std(), 1.5 * volumes[0].std())
    torch.testing.assert_close(contrasted[1], volumes[1])
    torch.testing.assert_close(change_intensity(volumes, [Draw(brightness=2.0), Draw()])[0], 2 * volumes[0])


def test_gamma_keeps_the_range_and_the_order_of_intensities():
    volume = torch.randn(1, 1, 6, 6, 6)
    changed = change_intensity(volume, [Draw(gamma=1.5)])
    torch.testing.assert_close(changed.min(), volume.min())
    torch.testing.assert_close(changed.max(), volume.max())
    assert torch.equal(changed.flatten().argsort(), volume.flatten().argsort())


def test_noise_has_the_drawn_standard_deviation_and_the_case_s_own_seed():
    volumes = torch.zeros(2, 1, 30, 30, 30)
    draws = [Draw(noise_std=0.3, noise_seed=1), Draw(noise_std=0.3, noise_seed=2)]
    noisy = change_intensity(volumes, draws)
    assert float(noisy[0].std()) == pytest.approx(0.3, rel=0.02)
    assert not torch.equal(noisy[0], noisy[1])
    assert torch.equal(change_intensity(volumes[:1], draws[:1])[0], noisy[0])


def test_the_batchgenerators_backend_is_reproducible_and_leaves_the_global_generators_alone():
    transforms = build_transforms(ALWAYS, size=(8, 9, 10))
    volume = smooth_volume((8, 9, 10))[0]
    torch.manual_seed(5)
    expected_next = torch.rand(1)
    torch.manual_seed(5)
    first = transform_case(transforms, volume, 0, "0", 1, "knee")
    assert torch.equal(torch.rand(1), expected_next)
    assert torch.equal(transform_case(transforms, volume, 0, "0", 1, "knee"), first)
    assert not torch.equal(transform_case(transforms, volume, 0, "0", 2, "knee"), first)
    assert first.shape == volume.shape


@pytest.fixture
def source(tmp_path):
    folder = PreprocessedFolder(tmp_path)
    cases = [
        Case(case_id=f"c{i}", subject_id=f"c{i}", images=(), labels={"kl": i % 3 if i else -1})
        for i in range(7)
    ]
    for index, case in enumerate(cases):
        write_array(folder.array_path("plan", case.case_id), np.full((1, 4, 5, 6), index, dtype=np.float32))

    def build(**changes):
        settings = {
            "cases": cases, "store": VolumeStore(folder, "plan"), "targets": ("kl",), "batch_size": 3,
            "seed": 0, "fold": "0", "device": torch.device("cpu"),
        }  # fmt: skip
        return BatchSource(**(settings | changes))

    return build


def test_validation_gives_every_case_once_in_order_with_its_truth(source):
    batches = list(source().in_order())
    assert [case for b in batches for case in b.case_ids] == [f"c{i}" for i in range(7)]
    assert torch.cat([b.truth.targets["kl"] for b in batches]).tolist() == [-1, 1, 2, 0, 1, 2, 0]
    assert torch.cat([b.volume for b in batches])[:, 0, 0, 0, 0].tolist() == list(range(7))


def test_an_epoch_gives_full_batches_in_an_order_of_its_own(source):
    epochs = [[b.case_ids for b in source().epoch(e)] for e in (0, 1)]
    assert [len(ids) for ids in epochs[0]] == [3, 3]
    assert epochs[0] != epochs[1]
    assert [b.case_ids for b in source().epoch(0)] == epochs[0]
    assert len({case for ids in epochs[0] for case in ids}) == 6


def test_volumes_follow_their_cases_and_are_augmented_the_same_at_any_batch_size(source):
    augmented = source(augmentation=ALWAYS)
    alone = source(augmentation=ALWAYS, batch_size=1)
    by_case = {i: v for b in alone.epoch(4) for i, v in zip(b.case_ids, b.volume, strict=True)}
    for batch in augmented.epoch(4):
        for case_id, volume in zip(batch.case_ids, batch.volume, strict=True):
            torch.testing.assert_close(volume, by_case[case_id])


def test_balanced_weights_are_scikit_learns_and_reach_the_batch(source):
    labels = [0] * 5 + [1] * 3 + [2] * 2
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(balanced_weights([5, 3, 2]), expected)
    assert balanced_weights([4, 0, 4]) == [1.0, 0.0, 1.0]
    weighted = source(class_weights={"kl": [0.5, 2.0, 3.0]})
    weights = torch.cat([b.truth.case_weights for b in weighted.in_order()])
    assert weights.tolist() == [1.0, 2.0, 3.0, 0.5, 2.0, 3.0, 0.5]
