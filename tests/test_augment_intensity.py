"""Intensity parts of augmentation, beside batchgeneratorsv2's with the same parameters, scipy and NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from oaplug.core.seeds import derive_seed
from oaplug.feed.augment.draw import BIAS_POWERS, Draw
from oaplug.feed.augment.intensity import change_intensity
from oaplug.feed.augment.noise import BLOCK, normal_numbers

CPU = torch.device("cpu")


def knee(shape=(2, 18, 21, 26), *, seed=0) -> torch.Tensor:
    """Two channels of structure, of different mean and spread, as normalised images have it."""
    noise = np.random.default_rng(seed).normal(size=shape)
    smooth = ndimage.gaussian_filter(noise, (0, 1.5, 1.5, 1.5))
    volume = torch.from_numpy(smooth / smooth.std()).float()
    return volume * torch.tensor([1.0, 0.6])[: len(volume), None, None, None] + 0.3


def changed(volume: torch.Tensor, **draw) -> torch.Tensor:
    result = volume.clone()
    change_intensity(result, Draw(**draw))
    return result


def peer(transform, volume: torch.Tensor, **parameters) -> torch.Tensor:
    """batchgeneratorsv2's transform with forced parameters."""
    return transform._apply_to_image(volume.clone(), **parameters)


@settings(max_examples=12, deadline=None)
@given(d=st.floats(0.3, 1.6), h=st.floats(0.3, 1.6), w=st.floats(0.3, 1.6))
def test_blur_is_batchgenerators_and_scipy_s(d, h, w):
    volume, sigmas = knee(), (d, h, w)
    ours = changed(volume, blur_sigma_voxels=sigmas)
    transform = GaussianBlurTransform(sigmas, synchronize_channels=False)
    both = {"apply_to_channel": torch.tensor([True, True]), "sigmas": [list(sigmas)] * 2}
    torch.testing.assert_close(ours, peer(transform, volume, **both), atol=1e-5, rtol=1e-5)
    expected = volume.numpy().astype(float)
    for axis, sigma in enumerate(sigmas):
        radius = round(3 * sigma - 0.25)
        expected = ndimage.gaussian_filter1d(expected, sigma, axis + 1, mode="mirror", radius=radius)
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-5)


def test_blur_works_on_volumes_that_are_narrower_than_its_kernel():
    volume = torch.randn(1, 2, 1, 9)
    blurred = changed(volume, blur_sigma_voxels=(1.0, 1.0, 1.0))
    assert torch.isfinite(blurred).all()
    torch.testing.assert_close(
        changed(torch.ones(1, 2, 1, 3), blur_sigma_voxels=(1.0,) * 3), torch.ones(1, 2, 1, 3)
    )


def test_brightness_is_batchgenerators():
    volume = knee()
    transform = MultiplicativeBrightnessTransform((0.5, 2), synchronize_channels=True)
    expected = peer(transform, volume, apply_to_channel=[0, 1], multipliers=torch.tensor([1.2, 1.2]))
    torch.testing.assert_close(changed(volume, brightness=1.2), expected)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("factor", [0.6, 1.6])
def test_contrast_is_batchgenerators_within_the_range_and_without(factor, keep):
    volume = knee()
    transform = ContrastTransform((0.5, 2), preserve_range=keep, synchronize_channels=True)
    expected = peer(
        transform, volume, apply_to_channel=torch.tensor([0, 1]), multipliers=torch.tensor([factor] * 2)
    )
    ours = changed(volume, contrast=factor, keep_statistics=keep)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    assert (float(ours.max()) > float(volume.max()) + 0.1) == (factor > 1 and not keep)


def test_brightness_and_contrast_together_are_batchgenerators_brightness_and_then_contrast():
    volume = knee()
    brighter = MultiplicativeBrightnessTransform((0.5, 2), synchronize_channels=True)
    steeper = ContrastTransform((0.5, 2), preserve_range=True, synchronize_channels=True)
    expected = peer(brighter, volume, apply_to_channel=[0, 1], multipliers=torch.tensor([0.8, 0.8]))
    expected = peer(
        steeper, expected, apply_to_channel=torch.tensor([0, 1]), multipliers=torch.tensor([1.4, 1.4])
    )
    ours = changed(volume, brightness=0.8, contrast=1.4, keep_statistics=True)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("zoom", [0.5, 0.61, 0.75, 0.98])
def test_low_resolution_is_batchgenerators(zoom):
    volume = knee()
    transform = SimulateLowResolutionTransform(
        (0.5, 1), synchronize_channels=True, synchronize_axes=True, ignore_axes=()
    )
    scales = torch.full((2, 3), zoom)
    expected = peer(transform, volume, apply_to_channel=[0, 1], scales=scales)
    torch.testing.assert_close(changed(volume, low_resolution_zoom=zoom), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("gamma", [0.7, 1.5])
def test_both_gammas_are_batchgenerators_with_statistics_kept_and_without(gamma, inverted, keep):
    volume = knee()
    transform = GammaTransform((0.7, 1.5), float(inverted), True, 1.0, float(keep))
    expected = peer(
        transform,
        volume,
        apply_to_channel=torch.tensor([0, 1]),
        retain_stats=torch.tensor([keep] * 2),
        invert_image=torch.tensor([inverted] * 2),
        gamma=torch.tensor([gamma] * 2),
    )
    name = "inverted_gamma" if inverted else "gamma"
    ours = changed(volume, **{name: gamma}, keep_statistics=keep)
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=1e-5)
    in_order = ours[0].flatten()[volume[0].flatten().argsort()]
    assert float(in_order.diff().min()) > -1e-5, "the order of intensities stays, but for rounding"
    if keep:
        torch.testing.assert_close(ours.mean(dim=(1, 2, 3)), volume.mean(dim=(1, 2, 3)))
        torch.testing.assert_close(ours.std(dim=(1, 2, 3)), volume.std(dim=(1, 2, 3)))


def test_the_bias_field_is_the_exponential_of_a_polynomial_over_the_darkest_voxel():
    volume = knee()
    coefficients = tuple(np.random.default_rng(1).uniform(-0.4, 0.4, len(BIAS_POWERS)))
    d, h, w = np.meshgrid(*[np.linspace(-1, 1, n) for n in volume.shape[1:]], indexing="ij")
    table = np.zeros((4, 4, 4))
    for powers, coefficient in zip(BIAS_POWERS, coefficients, strict=True):
        table[powers] = coefficient
    field = np.exp(np.polynomial.polynomial.polyval3d(d, h, w, table))
    assert field.max() / field.min() > 2
    darkest = volume.numpy().min(axis=(1, 2, 3), keepdims=True)
    expected = (volume.numpy() - darkest) * field + darkest
    ours = changed(volume, bias_coefficients=coefficients).numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=1e-5)


def test_the_terms_of_the_bias_field_are_those_up_to_order_3_without_the_constant():
    assert len(set(BIAS_POWERS)) == 19
    assert {sum(powers) for powers in BIAS_POWERS} == {1, 2, 3}


@pytest.mark.parametrize("draw", [{"gamma": 1.4}, {"inverted_gamma": 0.7}, {"contrast": 1.5}])
def test_a_constant_volume_stays_constant(draw):
    volume = torch.full((1, 4, 5, 6), 2.5)
    for keep in (False, True):
        torch.testing.assert_close(changed(volume, **draw, keep_statistics=keep), volume)


def test_noise_is_normal_and_as_strong_as_batchgenerators():
    volume = torch.zeros(1, 64, 80, 96)
    ours = changed(volume, noise_std=0.3, noise_seed=1)
    torch.manual_seed(0)
    forced = {"apply_idx": torch.tensor([0]), "num_apply": 1, "sigmas": 0.3}
    theirs = peer(GaussianNoiseTransform(synchronize_channels=True), volume, **forced)
    assert float(ours.std()) == pytest.approx(float(theirs.std()), rel=0.01)
    assert stats.kstest(ours.numpy().ravel()[:100_000] / 0.3, "norm").pvalue > 0.001
    assert stats.kstest(ours.numpy().ravel()[-100_000:] / 0.3, "norm").pvalue > 0.001


def test_noise_is_the_hash_of_a_counter_by_box_and_muller_as_numpy_has_it():
    key = derive_seed(5, "normal_numbers")
    words = np.arange(BLOCK, 2 * BLOCK, dtype=np.uint32) + np.uint32(key & 0xFFFFFFFF)
    for shift, factor in ((17, 0xED5AD4BB), (11, 0xAC4C1B51), (15, 0x31848BAB)):
        words = ((words ^ (words >> np.uint32(shift))) * np.uint32(factor)) ^ np.uint32(key >> 32)
    signed = (words ^ (words >> np.uint32(14))).view(np.int32).astype(float)
    radius = np.sqrt(-2 * np.log(signed[: BLOCK // 2] / 2**32 + 0.5))
    angle = signed[BLOCK // 2 :] * np.pi / 2**31
    expected = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    ours = normal_numbers(5, first_block=1, blocks=1, device=CPU).numpy()
    np.testing.assert_allclose(ours, expected, atol=2e-4)


@pytest.mark.parametrize("seed", [0, 1, 2**40 + 7])
def test_noise_of_neighbours_rows_slices_and_blocks_is_not_related(seed):
    numbers = normal_numbers(seed, first_block=0, blocks=4, device=CPU).double()
    assert abs(float(numbers.mean())) < 5e-3
    assert float((numbers**4).mean()) == pytest.approx(3.0, abs=0.03)
    for lag in (1, 2, 96, 128, 96 * 96, 2**14, 2**15, 2**16, 2**17, 2**18):
        one, other = numbers[:-lag], numbers[lag:]
        for first, second in ((one, other), (one**2 - 1, other**2 - 1)):
            correlation = float((first * second).mean() / (first.std() * second.std()))
            assert abs(correlation) * len(one) ** 0.5 < 5, lag


def test_noise_of_other_seeds_is_not_related_and_that_of_one_is_the_same_wherever_it_is_made():
    whole = normal_numbers(7, first_block=0, blocks=3, device=CPU)
    assert torch.equal(normal_numbers(7, first_block=1, blocks=2, device=CPU), whole[BLOCK:])
    for other in (8, 7 + 2**32, 6):
        numbers = normal_numbers(other, first_block=0, blocks=3, device=CPU)
        assert abs(float((numbers * whole).mean())) * len(whole) ** 0.5 < 5
    volume = torch.zeros(2, 40, 60, 70)
    noisy = changed(volume, noise_std=1.0, noise_seed=7)
    torch.testing.assert_close(noisy.flatten(), whole[: noisy.numel()])


def test_parts_follow_each_other_in_the_order_of_the_scanner():
    """The field shades the tissue, the image is blurred, and noise comes last, over all of it."""
    volume, field = knee(), tuple([0.2] * 19)
    expected = changed(volume, bias_coefficients=field)
    for part in (
        {"blur_sigma_voxels": (1.0, 0.8, 0.6)},
        {"contrast": 1.3, "brightness": 1.1, "keep_statistics": True},
        {"low_resolution_zoom": 0.7},
        {"inverted_gamma": 0.8, "keep_statistics": True},
        {"gamma": 1.3, "keep_statistics": True},
        {"noise_std": 0.1, "noise_seed": 3},
    ):
        expected = changed(expected, **part)
    together = changed(
        volume, bias_coefficients=field, blur_sigma_voxels=(1.0, 0.8, 0.6), contrast=1.3, brightness=1.1,
        low_resolution_zoom=0.7, inverted_gamma=0.8, gamma=1.3, keep_statistics=True, noise_std=0.1,
        noise_seed=3,
    )  # fmt: skip
    torch.testing.assert_close(together, expected)
