"""Augmentation: what is drawn, how volumes move, and that a case does not depend on its batch."""

from __future__ import annotations

from dataclasses import asdict, fields, replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from oaplug.core.case import Case
from oaplug.core.errors import PlanError
from oaplug.core.plan import AugmentationSettings
from oaplug.core.settings import from_mapping
from oaplug.feed.augment.apply import apply_draws
from oaplug.feed.augment.batchgenerators import build_transforms, transform_case
from oaplug.feed.augment.captions import describe
from oaplug.feed.augment.draw import BIAS_POWERS, Draw, check_mirroring, draw_augmentation
from oaplug.feed.augment.spatial import elastic_coefficients, linear_map, move, sampling_places

ALWAYS = AugmentationSettings(
    rotation_probability=1, scale_probability=1, shift_probability=1, noise_probability=1,
    brightness_probability=1, contrast_probability=1, gamma_probability=1,
)  # fmt: skip
EVERYTHING = replace(
    ALWAYS, inverted_gamma_probability=1, blur_probability=1, low_resolution_probability=1,
    bias_field_probability=1, elastic_probability=1, elastic_spacing_voxels=8, elastic_displacement_voxels=2,
)  # fmt: skip
LATER = {
    "inverted_gamma", "blur_sigma_voxels", "low_resolution_zoom", "bias_coefficients", "keep_statistics",
    "elastic_displacement_voxels", "elastic_spacing_voxels", "elastic_seed",
}  # fmt: skip


def smooth_volume(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    noise = np.random.default_rng(seed).normal(size=shape)
    return torch.from_numpy(ndimage.gaussian_filter(noise, 2.0)).float()[None]


def sampling_matrix(*, degrees: tuple[float, ...], scale: float, mirrored: tuple[bool, ...]) -> np.ndarray:
    """From places of the output to places of the input, about the centre."""
    matrix = np.eye(3)
    for axis, angle in enumerate(degrees):
        i, j = [a for a in range(3) if a != axis]
        turn = np.eye(3)
        radians = np.deg2rad(angle)
        turn[i, i] = turn[j, j] = np.cos(radians)
        turn[i, j], turn[j, i] = -np.sin(radians), np.sin(radians)
        matrix = matrix @ turn
    return matrix @ np.diag([-1.0 if m else 1.0 for m in mirrored]) / scale


@settings(max_examples=20, deadline=None)
@given(
    degrees=st.one_of(st.just((0.0, 0.0, 0.0)), st.tuples(*[st.floats(-25, 25)] * 3)),
    scale=st.floats(0.8, 1.25),
    shift=st.tuples(*[st.floats(-0.1, 0.1)] * 3),
    mirrored=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_the_composed_sampling_agrees_with_scipy_for_unequal_sizes(degrees, scale, shift, mirrored):
    size = (13, 18, 24)
    volume = smooth_volume(size)
    draw = Draw(rotation_degrees=degrees, scale=scale, shift_fraction=shift, mirrored=mirrored)
    matrix = sampling_matrix(degrees=degrees, scale=scale, mirrored=mirrored)
    center = (np.array(size) - 1) / 2
    expected = ndimage.affine_transform(
        volume[0].numpy(),
        matrix,
        offset=center - matrix @ center + np.array(shift) * size,
        order=1,
        mode="nearest",
    )
    np.testing.assert_allclose(move(volume, draw)[0].numpy(), expected, atol=2e-4)


@settings(max_examples=20, deadline=None)
@given(
    degrees=st.tuples(*[st.floats(-25, 25)] * 3),
    voxel_mm=st.tuples(*[st.floats(0.3, 3)] * 3),
    offset=st.tuples(*[st.floats(-9, 9)] * 3),
)
def test_rotation_keeps_distances_in_millimetres_whatever_the_sides_of_a_voxel(degrees, voxel_mm, offset):
    there = linear_map(Draw(rotation_degrees=degrees, voxel_mm=voxel_mm)).numpy() @ offset
    length = np.linalg.norm(np.multiply(offset, voxel_mm))
    assert np.linalg.norm(there * voxel_mm) == pytest.approx(length, abs=1e-9)


def test_rotating_an_anisotropic_volume_is_simpleitks_rotation_in_millimetres():
    voxel_mm, size = (2.5, 0.8, 1.1), (14, 30, 22)
    volume = smooth_volume(size)
    draw = Draw(rotation_degrees=(8.0, -14.0, 11.0), voxel_mm=voxel_mm)
    image = sitk.GetImageFromArray(volume[0].numpy())
    image.SetSpacing(voxel_mm[::-1])
    matrix = sampling_matrix(degrees=draw.rotation_degrees, scale=1, mirrored=(False,) * 3)[::-1, ::-1]
    center = image.TransformContinuousIndexToPhysicalPoint([(length - 1) / 2 for length in size[::-1]])
    turn = sitk.AffineTransform(matrix.ravel().tolist(), (0, 0, 0), center)
    expected = sitk.GetArrayFromImage(sitk.Resample(image, turn, sitk.sitkLinear, -99.0))
    inside = expected > -99
    assert inside.mean() > 0.5
    np.testing.assert_allclose(move(volume, draw)[0].numpy()[inside], expected[inside], atol=1e-4)


def test_scaling_along_the_axes_and_by_a_grid_give_the_same_numbers():
    volume = torch.randn(2, 40, 33, 50)
    draw = Draw(scale=1.1, shift_fraction=(0.03, -0.02, 0.01), mirrored=(True, False, True))
    barely_turned = replace(draw, rotation_degrees=(1e-9, 0.0, 0.0))
    torch.testing.assert_close(move(volume, draw), move(volume, barely_turned), atol=5e-5, rtol=0)


def test_mirroring_flips_exactly_the_axes_it_names():
    volume = torch.randn(2, 4, 5, 6)
    assert torch.equal(move(volume, Draw(mirrored=(False, True, False))), volume.flip(2))


def test_a_deformation_agrees_with_scipy_s_spline_and_sampling():
    size, degrees, scale, shift = (17, 22, 27), (4.0, -7.0, 9.0), 1.1, (0.02, -0.03, 0.01)
    volume = smooth_volume(size)
    draw = Draw(
        rotation_degrees=degrees, scale=scale, shift_fraction=shift, elastic_displacement_voxels=3.0,
        elastic_spacing_voxels=7.5, elastic_seed=11,
    )  # fmt: skip
    coefficients = elastic_coefficients(draw, size=size).numpy()
    places = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij")).astype(float)
    displacement = np.stack(
        [
            ndimage.map_coordinates(coefficients[..., axis], places / 7.5 + 1, order=3, prefilter=False)
            for axis in range(3)
        ]
    )
    assert np.abs(displacement).max() > 1
    center = ((np.array(size) - 1) / 2).reshape(3, 1, 1, 1)
    matrix = sampling_matrix(degrees=degrees, scale=scale, mirrored=(False,) * 3)
    wanted = np.einsum("ij,j...->i...", matrix, places - center + displacement) + center
    wanted += (np.array(shift) * size).reshape(3, 1, 1, 1)
    expected = ndimage.map_coordinates(volume[0].numpy(), wanted, order=1, mode="nearest")
    np.testing.assert_allclose(move(volume, draw)[0].numpy(), expected, atol=2e-4)


def smallest_jacobian(draw: Draw, size: tuple[int, int, int]) -> float:
    """The smallest determinant of the map from output to input voxels, by differences between voxels."""
    ((_, places),) = sampling_places(draw, size=size, step=size[0], device=torch.device("cpu"))
    steps = [np.stack(np.gradient(place.double().numpy()), axis=-1) for place in places]
    return float(np.linalg.det(np.stack(steps, axis=-2)).min())


def test_the_largest_deformation_that_a_plan_allows_has_no_folds_and_a_larger_one_has():
    def draw(displacement, seed):
        return Draw(
            elastic_displacement_voxels=displacement, elastic_spacing_voxels=10, elastic_seed=seed,
            rotation_degrees=(10, 10, 10), scale=1.1,
        )  # fmt: skip

    allowed = [smallest_jacobian(draw(4.0, seed), (40, 50, 60)) for seed in range(5)]
    assert min(allowed) > 0
    assert min(smallest_jacobian(draw(12.0, seed), (40, 50, 60)) for seed in range(5)) < 0
    with pytest.raises(PlanError, match="fold"):
        AugmentationSettings(elastic_displacement_voxels=4.1, elastic_spacing_voxels=10)


def test_sampling_in_slabs_is_sampling_in_one_piece():
    draw = Draw(rotation_degrees=(3, 2, 1), elastic_displacement_voxels=2, elastic_spacing_voxels=6)
    where = {"size": (11, 9, 8), "device": torch.device("cpu")}
    ((_, whole),) = sampling_places(draw, step=11, **where)
    pieces = list(sampling_places(draw, step=4, **where))
    assert [first for first, _ in pieces] == [0, 4, 8]
    for axis in range(3):
        assert torch.equal(torch.cat([places[axis] for _, places in pieces]), whole[axis])


def test_sampling_is_torch_s_grid_sample_with_the_edge_going_on():
    volume, size = torch.randn(2, 21, 34, 27), (21, 34, 27)
    draw = Draw(rotation_degrees=(25, -20, 15), scale=0.8, shift_fraction=(0.1, -0.1, 0.05))
    ((_, places),) = sampling_places(draw, step=21, size=size, device=torch.device("cpu"))
    cube = torch.stack([(2 * places[k] + 1) / size[k] - 1 for k in (2, 1, 0)], dim=-1)
    expected = torch.nn.functional.grid_sample(
        volume[None], cube[None], mode="bilinear", padding_mode="border", align_corners=False
    )
    torch.testing.assert_close(move(volume, draw), expected[0], atol=5e-5, rtol=0)


@pytest.mark.parametrize("shape", [(1, 7, 8), (7, 1, 8), (7, 8, 1), (1, 1, 1)])
def test_volumes_of_one_slice_move_within_it(shape):
    volume = torch.randn(1, *shape)
    for draw in (Draw(scale=1.3), Draw(rotation_degrees=(9, 9, 9)), Draw(elastic_displacement_voxels=3)):
        moved = move(volume, draw)
        assert moved.min() >= volume.min()
        assert moved.max() <= volume.max()


def test_a_neutral_draw_changes_nothing_and_copies_nothing():
    volumes = torch.randn(2, 2, 5, 6, 7)
    assert apply_draws(volumes, [Draw(keep_statistics=True, noise_seed=3), Draw()]) is volumes


def test_a_case_becomes_the_same_alone_and_in_a_batch():
    volumes = torch.randn(4, 2, 12, 14, 16)
    draws = [draw_augmentation(EVERYTHING, 0, "0", 1, f"case{i}") for i in range(3)] + [Draw()]
    together = apply_draws(volumes, draws)
    for volume, draw, changed in zip(volumes, draws, together, strict=True):
        assert torch.equal(apply_draws(volume[None], [draw])[0], changed)
    assert torch.equal(together[3], volumes[3])


def test_volumes_are_written_to_only_where_that_is_allowed():
    volumes = torch.randn(1, 1, 8, 9, 10)
    draw, before = draw_augmentation(EVERYTHING, 0, "knee"), volumes.clone()
    changed = apply_draws(volumes, [draw])
    assert torch.equal(volumes, before)
    within = apply_draws(volumes, [draw], in_place=True)
    assert within.data_ptr() == volumes.data_ptr()
    assert torch.equal(within, changed)


def test_another_memory_layout_gives_the_same_numbers():
    volumes = torch.randn(2, 2, 8, 9, 10)
    draws = [draw_augmentation(EVERYTHING, 0, str(i)) for i in range(2)]
    channels_last = volumes.clone().to(memory_format=torch.channels_last_3d)
    assert torch.equal(apply_draws(channels_last, draws, in_place=True), apply_draws(volumes, draws))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_number_types_come_back_as_they_went_and_are_computed_in_float32(dtype):
    volumes = torch.randn(1, 1, 10, 11, 12).to(dtype)
    draw = draw_augmentation(replace(EVERYTHING, keep_statistics=True), 0, "knee")
    changed = apply_draws(volumes, [draw])
    assert changed.dtype == dtype
    assert torch.equal(changed, apply_draws(volumes.float(), [draw]).to(dtype))


def test_augmentation_under_autocast_is_that_without_it():
    volumes = torch.randn(1, 1, 10, 11, 12)
    draw = draw_augmentation(EVERYTHING, 0, "knee")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        changed = apply_draws(volumes, [draw])
    assert torch.equal(changed, apply_draws(volumes, [draw]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_numbers_of_the_cpu_noise_included():
    volumes = torch.randn(3, 2, 32, 40, 48)
    draws = [draw_augmentation(replace(EVERYTHING, keep_statistics=True), 0, str(i)) for i in range(3)]
    torch.testing.assert_close(
        apply_draws(volumes.cuda(), draws).cpu(), apply_draws(volumes, draws), atol=1e-4, rtol=1e-5
    )
    for part in (Draw(noise_std=1, noise_seed=5), Draw(scale=1.1), Draw(gamma=1.3, keep_statistics=True)):
        on_gpu = apply_draws(volumes.cuda(), [part] * 3).cpu()
        torch.testing.assert_close(on_gpu, apply_draws(volumes, [part] * 3), atol=1e-5, rtol=1e-5)


def test_default_draws_never_mirror_and_so_never_swap_medial_and_lateral():
    draws = [draw_augmentation(ALWAYS, 0, "0", 0, f"case{i}") for i in range(200)]
    assert not any(any(draw.mirrored) for draw in draws)


def test_mirroring_along_d_is_refused_where_cases_have_a_side_and_legal_where_they_have_none():
    sided = [
        Case(case_id=f"c{i}", subject_id=f"c{i}", images=(), side=side) for i, side in enumerate((None, "L"))
    ]
    mirrored = AugmentationSettings(mirror_axes=("D", "H"))
    with pytest.raises(PlanError, match=r"1 of 2 cases have a side \(c1 is one\).*medial and lateral"):
        check_mirroring(mirrored, sided)
    check_mirroring(mirrored, sided[:1])
    check_mirroring(AugmentationSettings(mirror_axes=("H", "W")), sided)
    check_mirroring(replace(mirrored, backend="none"), sided)


def test_a_draw_depends_on_seed_fold_epoch_and_case_only():
    first = draw_augmentation(EVERYTHING, 3, "0", 5, "knee")
    draw_augmentation(EVERYTHING, 9, "1", 6, "other")
    assert draw_augmentation(EVERYTHING, 3, "0", 5, "knee") == first
    others = [(4, "0", 5, "knee"), (3, "1", 5, "knee"), (3, "0", 6, "knee"), (3, "0", 5, "kne")]
    for seed, *purpose in others:
        other = draw_augmentation(EVERYTHING, seed, *purpose)
        same = {f.name for f in fields(Draw) if getattr(other, f.name) == getattr(first, f.name)}
        assert same == {"voxel_mm", "mirrored", "elastic_spacing_voxels", "keep_statistics"}


def test_the_first_parts_are_drawn_as_they_ever_were_whatever_the_later_ones_do():
    draw = draw_augmentation(replace(ALWAYS, mirror_axes=("H",)), 3, "0", 5, "knee")
    assert draw == Draw(
        rotation_degrees=(-3.9019953130650737, 9.292739811849561, 6.160424588081526),
        scale=0.902645927033059,
        shift_fraction=(-0.0021337216547626103, 0.04450363526545725, -0.0043921747809777395),
        mirrored=(False, True, False), contrast=0.9388231710939622, brightness=0.9661182852127005,
        gamma=1.0053094768625244, noise_std=0.07852913659846389, noise_seed=8285357033909643187,
        elastic_seed=draw.elastic_seed,
    )  # fmt: skip
    for case in range(50):
        before, after = (
            asdict(draw_augmentation(parts, 0, "0", 1, str(case))) for parts in (ALWAYS, EVERYTHING)
        )
        assert {k for k in before if before[k] != after[k]} <= LATER


def test_draws_stay_within_the_ranges_of_the_plan():
    draws = [draw_augmentation(EVERYTHING, 0, "0", 0, str(i)) for i in range(300)]
    assert all(0.9 <= d.scale <= 1.1 and 0.8 <= d.contrast <= 1.25 and 0 <= d.noise_std <= 0.1 for d in draws)
    assert all(max(map(abs, d.rotation_degrees)) <= 10 for d in draws)
    assert max(abs(a) for d in draws for a in d.rotation_degrees) > 9.5
    spread = {
        "blur": ([s for d in draws for s in d.blur_sigma_voxels], (0.5, 1.0)),
        "low resolution": ([d.low_resolution_zoom for d in draws], (0.7, 1.0)),
        "inverted gamma": ([d.inverted_gamma for d in draws], (0.7, 1.5)),
        "bias field": ([c for d in draws for c in d.bias_coefficients], (-0.2, 0.2)),
        "elastic": ([d.elastic_displacement_voxels for d in draws], (0.0, 2.0)),
    }
    for part, (values, (low, high)) in spread.items():
        margin = 0.02 * (high - low)
        assert low <= min(values) < low + margin, part
        assert high - margin < max(values) <= high, part
    assert all(len(d.bias_coefficients) == len(BIAS_POWERS) == 19 for d in draws)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("inverted_gamma_probability", "inverted_gamma"),
        ("blur_probability", "blur_sigma_voxels"),
        ("low_resolution_probability", "low_resolution_zoom"),
        ("bias_field_probability", "bias_coefficients"),
        ("elastic_probability", "elastic_displacement_voxels"),
    ],
)
def test_a_later_part_happens_as_often_as_the_plan_says_and_else_never(key, name):
    neutral = getattr(Draw(), name)
    often = AugmentationSettings(**{key: 0.3})
    happened = [getattr(draw_augmentation(often, 0, str(i)), name) != neutral for i in range(1000)]
    assert np.mean(happened) == pytest.approx(0.3, abs=0.05)
    assert all(
        getattr(draw_augmentation(AugmentationSettings(), 0, str(i)), name) == neutral for i in range(200)
    )


def test_one_part_happening_says_nothing_about_another():
    half = {f.name: 0.5 for f in fields(AugmentationSettings) if f.name.endswith("_probability")}
    draws = [draw_augmentation(AugmentationSettings(**half), 0, str(i)) for i in range(2000)]
    names = ("rotation_degrees", "scale", "shift_fraction", "contrast", "brightness", "gamma", "noise_std")
    names += tuple(LATER - {"keep_statistics", "elastic_seed", "elastic_spacing_voxels"})
    happened = np.array([[getattr(d, n) != getattr(Draw(), n) for n in names] for d in draws], dtype=float)
    between = np.corrcoef(happened.T) - np.eye(len(names))
    assert np.abs(between).max() < 4.5 / np.sqrt(len(draws))


def test_probability_zero_switches_a_part_off():
    probabilities = [f.name for f in fields(AugmentationSettings) if f.name.endswith("_probability")]
    quiet = AugmentationSettings(**dict.fromkeys(probabilities, 0.0))
    volumes = torch.randn(1, 1, 4, 4, 4)
    assert apply_draws(volumes, [draw_augmentation(quiet, 0, "0", 0, "knee")]) is volumes


def test_settings_of_an_older_version_leave_the_later_parts_out():
    older = {"backend": "native", "rotation_probability": 0.5, "gamma_probability": 1.0}
    read = from_mapping(AugmentationSettings, older, where="plan")
    assert not read.keep_statistics
    draws = [draw_augmentation(read, 0, str(i)) for i in range(100)]
    assert all(getattr(d, n) == getattr(Draw(), n) for d in draws for n in LATER - {"elastic_seed"})


@pytest.mark.parametrize(
    "wrong",
    [
        {"blur_probability": 1.5},
        {"gamma_range": (0.0, 1.5)},
        {"blur_sigma_voxels": (1.0, 0.5)},
        {"low_resolution_zoom": (0.5, 1.1)},
        {"bias_field_coefficient": -0.1},
        {"elastic_spacing_voxels": 0.5, "elastic_displacement_voxels": 0.0},
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(wrong):
    with pytest.raises(PlanError, match=next(iter(wrong))):
        AugmentationSettings(**wrong)


def test_a_caption_names_every_part_that_happens_and_no_other():
    assert describe(Draw(elastic_seed=4, keep_statistics=True)) == []
    whole = draw_augmentation(replace(EVERYTHING, mirror_axes=("D", "H", "W")), 2, "knee")
    shown = describe(replace(whole, mirrored=(False, True, True), scale=1.08))
    parts = ["rotation", "scale 1.08", "shift", "mirror HW", "elastic", "bias field", "blur", "contrast"]
    parts += ["brightness", "low resolution", "inverted gamma", "gamma", "noise"]
    assert len(shown) == len(parts)
    assert all(caption.startswith(part) for caption, part in zip(shown, parts, strict=True))


@pytest.mark.parametrize("changes", [ALWAYS, replace(EVERYTHING, backend="batchgeneratorsv2")])
def test_the_batchgenerators_backend_is_reproducible_and_leaves_the_global_generators_alone(changes):
    transforms = build_transforms(changes, size=(8, 9, 10))
    volume = smooth_volume((8, 9, 10))
    torch.manual_seed(5)
    expected_next = torch.rand(1)
    torch.manual_seed(5)
    first = transform_case(transforms, volume.clone(), 0, "0", 1, "knee")
    assert torch.equal(torch.rand(1), expected_next)
    assert torch.equal(transform_case(transforms, volume.clone(), 0, "0", 1, "knee"), first)
    assert not torch.equal(transform_case(transforms, volume.clone(), 0, "0", 2, "knee"), first)
    assert first.shape == volume.shape


def test_the_batchgenerators_backend_has_the_later_parts_only_where_they_can_happen():
    def names(settings):
        return [
            type(getattr(t, "transform", t)).__name__
            for t in build_transforms(settings, size=(8, 8, 8)).transforms
        ]

    later = names(EVERYTHING)[len(names(ALWAYS)) :]
    assert later == ["GaussianBlurTransform", "SimulateLowResolutionTransform", "GammaTransform"]
