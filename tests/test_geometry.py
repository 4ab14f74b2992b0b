"""Voxel grids: whatever is done to a volume, its voxels stay where they are in the patient."""

from __future__ import annotations

import subprocess
import sys

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage
from scipy.spatial.transform import Rotation

from oaplug.core.volume import Volume
from oaplug.prepare.geometry import (
    back_to_image,
    box_center,
    canonical_axes,
    crop,
    mirror_side,
    nonzero_box,
    pad_crop,
    resample,
    resample_to_size,
    spacing_of,
    to_canonical,
)

settings.register_profile("geometry", deadline=None, max_examples=50)  # the first example pays for imports
settings.load_profile("geometry")

POSITION_TOLERANCE_MM = 1e-4
spacings = st.tuples(*[st.floats(0.3, 3.0)] * 3)
seeds = st.integers(0, 2**32 - 1)


def sizes(smallest=2, largest=12):
    """Three unequal sizes."""
    return st.lists(st.integers(smallest, largest), min_size=3, max_size=3, unique=True).map(tuple)


@st.composite
def affines(draw, *, largest_angle_degrees=180.0, reorder=True):
    """Affines of files: any spacing and origin, axes in any order and sense, rotated about any axis."""
    generator = np.random.default_rng(draw(seeds))
    axis = generator.normal(size=3)
    angle = np.radians(round(draw(st.floats(0, largest_angle_degrees)), 6))  # ITK's SVD fails on 1e-310
    directions = Rotation.from_rotvec(axis / np.linalg.norm(axis) * angle).as_matrix()
    if reorder:
        order = draw(st.permutations(range(3)))
        directions = directions[:, order] * draw(st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3))
    affine = np.eye(4)
    affine[:3, :3] = directions * draw(spacings)
    affine[:3, 3] = generator.uniform(-40, 40, size=3)
    return affine


@st.composite
def volumes(draw, *, size=None, **kinds):
    """Volumes of random voxels with one or two channels."""
    affine = draw(affines(**kinds))
    shape = (draw(st.integers(1, 2)), *draw(size if size is not None else sizes()))
    data = np.random.default_rng(draw(seeds)).normal(100, 30, size=shape).astype(np.float32)
    return Volume(data=data, spacing_mm=spacing_of(affine), affine=affine)


def places_mm(shape, affine):
    """Millimetres (3,D,H,W) of every voxel of a grid, by nibabel."""
    return np.moveaxis(nibabel.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1)), -1, 0)


def ramp(volume):
    """The volume with three channels that hold the place of each voxel in millimetres."""
    data = places_mm(volume.data.shape[1:], volume.affine).astype(np.float32)
    return Volume(data=data, spacing_mm=volume.spacing_mm, affine=volume.affine)


def voxels_by_place(data, affine):
    """Every voxel's millimetres and value, in an order that depends on neither grid."""
    places = places_mm(data.shape[1:], affine).reshape(3, -1).round(5) + 0.0
    rows = np.concatenate([places, data.reshape(len(data), -1)]).T
    return rows[np.lexsort(rows.T)]


@given(volumes(largest_angle_degrees=40))
def test_canonical_axes_are_those_of_nibabel(volume):
    images = [nibabel.Nifti1Image(channel, volume.affine) for channel in volume.data]
    expected = [nibabel.as_closest_canonical(image) for image in images]
    data, affine = to_canonical(volume.data, volume.affine)
    assert_allclose(affine, expected[0].affine, atol=1e-9)
    assert_array_equal(data, np.stack([image.get_fdata(dtype=np.float32) for image in expected]))


@given(volumes())
def test_canonical_axes_leave_every_voxel_at_its_place(volume):
    moved, affine = to_canonical(volume.data, volume.affine)
    assert canonical_axes(affine) == ((0, 1, 2), (False, False, False))
    before, after = voxels_by_place(volume.data, volume.affine), voxels_by_place(moved, affine)
    assert_allclose(after, before, atol=POSITION_TOLERANCE_MM)


@given(affines(), sizes(), seeds)
def test_canonical_axes_keep_every_label_of_a_mask_at_its_place(affine, size, seed):
    labels = np.random.default_rng(seed).integers(0, 6, size=(1, *size)).astype(np.int16)
    moved, canonical = to_canonical(labels, affine)
    assert moved.dtype == np.int16
    assert_array_equal(np.bincount(moved.ravel()), np.bincount(labels.ravel()))
    before, after = voxels_by_place(labels, affine), voxels_by_place(moved, canonical)
    assert_allclose(after, before, atol=POSITION_TOLERANCE_MM)


@given(volumes())
def test_mirroring_a_left_knee_leaves_every_voxel_at_its_place(volume):
    mirrored = mirror_side(volume, side="L")
    assert_array_equal(mirrored.data[:, ::-1], volume.data)
    before, after = (
        voxels_by_place(volume.data, volume.affine),
        voxels_by_place(mirrored.data, mirrored.affine),
    )
    assert_allclose(after, before, atol=POSITION_TOLERANCE_MM)
    assert_allclose(mirror_side(mirrored, side="L").affine, volume.affine, atol=1e-9)


@pytest.mark.parametrize("side", ["R", None])
def test_right_knees_and_knees_of_unknown_side_are_not_mirrored(side):
    volume = Volume(data=np.ones((1, 2, 3, 4), np.float32), spacing_mm=(1, 1, 1), affine=np.eye(4))
    assert mirror_side(volume, side=side) is volume


@pytest.mark.parametrize(("side", "lateral_index"), [("R", 6), ("L", 0)])
def test_lateral_is_plus_d_in_both_knees(side, lateral_index):
    """In RAS+ the outside of a right knee lies at high D, that of a left knee at low D."""
    data = np.zeros((1, 7, 3, 4), np.float32)
    data[0, lateral_index] = 1
    mirrored = mirror_side(Volume(data=data, spacing_mm=(1, 1, 1), affine=np.eye(4)), side=side)
    assert mirrored.data[0, :, 1, 1].argmax() == 6


@given(sizes(), st.integers(1, 2), st.floats(0.5, 0.99), seeds)
def test_the_nonzero_box_is_that_of_scipy(size, channels, zeros, seed):
    data = (np.random.default_rng(seed).random((channels, *size)) > zeros).astype(np.float32)
    assume(data.any())
    expected = ndimage.find_objects((data != 0).any(axis=0).astype(int))[0]
    assert nonzero_box(data) == tuple((part.start, part.stop) for part in expected)


def test_the_nonzero_box_of_an_empty_volume_is_the_whole_of_it():
    assert nonzero_box(np.zeros((2, 3, 4, 5))) == ((0, 3), (0, 4), (0, 5))


def test_the_nonzero_box_spans_both_channels():
    data = np.zeros((2, 6, 7, 8))
    data[0, 1, 2, 3] = 1
    data[1, 4, 2, 5] = -1
    assert nonzero_box(data) == ((1, 5), (2, 3), (3, 6))


@given(volumes(), st.data())
def test_cropping_leaves_every_voxel_at_its_place(volume, data):
    starts = [data.draw(st.integers(0, size - 1)) for size in volume.data.shape[1:]]
    stops = [
        data.draw(st.integers(start + 1, size))
        for start, size in zip(starts, volume.data.shape[1:], strict=True)
    ]
    box = tuple(zip(starts, stops, strict=True))
    cropped = crop(ramp(volume), box)
    assert cropped.data.shape[1:] == tuple(stop - start for start, stop in box)
    expected = places_mm(cropped.data.shape[1:], cropped.affine)
    assert_allclose(cropped.data, expected, atol=POSITION_TOLERANCE_MM)


@given(volumes(), sizes(1, 20), st.data())
def test_padding_and_cropping_leave_every_voxel_at_its_place(volume, size, data):
    center = tuple(data.draw(st.floats(0, length - 1)) for length in volume.data.shape[1:])
    framed = pad_crop(ramp(volume), size_voxels=size, center_voxels=center, pad_value=[-999, -998, -997])
    assert framed.data.shape == (3, *size)
    inside = framed.data[0] != -999
    assert inside.any()
    assert set(framed.data[1][~inside]) <= {-998.0}
    assert set(framed.data[2][~inside]) <= {-997.0}
    old = places_mm(size, np.linalg.inv(volume.affine) @ framed.affine)
    limits = zip(old, volume.data.shape[1:], strict=True)
    assert_array_equal(inside, np.logical_and.reduce([(o > -0.5) & (o < n - 0.5) for o, n in limits]))
    expected = places_mm(size, framed.affine)
    assert_allclose(framed.data[:, inside], expected[:, inside], atol=POSITION_TOLERANCE_MM)
    middle = nibabel.affines.apply_affine(framed.affine, (np.array(size) - 1) / 2)
    off_center = np.linalg.inv(volume.affine) @ [*middle, 1]
    assert_allclose(off_center[:3], center, atol=0.5 + 1e-6)


@given(volumes(), st.integers(0, 5))
def test_padding_and_cropping_back_gives_the_volume(volume, margin):
    shape = volume.data.shape[1:]
    whole = tuple((0, size) for size in shape)
    larger = tuple(size + 2 * margin for size in shape)
    padded = pad_crop(
        volume, size_voxels=larger, center_voxels=box_center(whole), pad_value=[0] * len(volume.data)
    )
    back = crop(padded, tuple((margin, margin + size) for size in shape))
    assert_array_equal(back.data, volume.data)
    assert_allclose(back.affine, volume.affine, atol=1e-9)


def test_a_field_of_view_outside_of_the_volume_is_refused():
    volume = Volume(data=np.ones((1, 4, 5, 6), np.float32), spacing_mm=(1, 1, 1), affine=np.eye(4))
    with pytest.raises(ValueError, match="not in a volume"):
        pad_crop(volume, size_voxels=(2, 2, 2), center_voxels=(9.0, 2.0, 2.0), pad_value=[0])


@given(volumes(), st.booleans())
def test_resampling_to_the_same_spacing_changes_nothing(volume, anti_aliasing):
    same = resample(volume, spacing_mm=volume.spacing_mm, anti_aliasing=anti_aliasing)
    assert_array_equal(same.data, volume.data)
    assert_allclose(same.affine, volume.affine, atol=1e-9)


@given(volumes(), spacings, st.booleans(), st.floats(-1000, 1000, width=32))
def test_a_constant_stays_constant(volume, spacing_mm, anti_aliasing, value):
    constant = Volume(
        data=np.full_like(volume.data, value), spacing_mm=volume.spacing_mm, affine=volume.affine
    )
    assert_allclose(
        resample(constant, spacing_mm=spacing_mm, anti_aliasing=anti_aliasing).data,
        value,
        rtol=2e-6,
        atol=1e-6,
    )


@given(volumes(size=sizes(1, 30)), spacings)
def test_resampling_keeps_the_extent_and_the_middle(volume, spacing_mm):
    resampled = resample(volume, spacing_mm=spacing_mm)
    old, new = np.array(volume.data.shape[1:]), np.array(resampled.data.shape[1:])
    grown = np.abs(new * spacing_mm - old * volume.spacing_mm)
    assert np.all((grown <= np.array(spacing_mm) / 2 + 1e-6) | (new == 1))
    assert resampled.spacing_mm == spacing_mm
    assert_allclose(spacing_of(resampled.affine), spacing_mm, rtol=1e-9)
    middles = [
        nibabel.affines.apply_affine(v.affine, (n - 1) / 2) for v, n in ((volume, old), (resampled, new))
    ]
    assert_allclose(middles[1], middles[0], atol=POSITION_TOLERANCE_MM)


def inner(volume, resampled, *, margin_mm):
    """Which voxels of `resampled` lie at least so far within the voxel centres of `volume`."""
    to_old = np.linalg.inv(volume.affine) @ resampled.affine
    places = places_mm(resampled.data.shape[1:], to_old)
    margins = np.broadcast_to(margin_mm, 3) / np.array(volume.spacing_mm)
    limits = zip(places, margins, volume.data.shape[1:], strict=True)
    return np.logical_and.reduce([(place >= m) & (place <= size - 1 - m) for place, m, size in limits])


@settings(max_examples=40)
@given(volumes(size=sizes(16, 30)), spacings, st.booleans())
def test_resampling_leaves_what_it_shows_at_its_place(volume, spacing_mm, anti_aliasing):
    """Voxels that hold their own place in mm still do so, but for the smoothing's reach at the border."""
    resampled = resample(ramp(volume), spacing_mm=spacing_mm, anti_aliasing=anti_aliasing)
    within = inner(volume, resampled, margin_mm=2 * np.array(spacing_mm) + volume.spacing_mm)
    expected = places_mm(resampled.data.shape[1:], resampled.affine)
    assert_allclose(resampled.data[:, within], expected[:, within], atol=POSITION_TOLERANCE_MM)


def to_sitk(channel, affine):
    """A SimpleITK image of one channel (D,H,W) at the same place."""
    image = sitk.GetImageFromArray(channel.transpose(2, 1, 0))
    to_lps = np.diag([-1.0, -1.0, 1.0])
    spacing = spacing_of(affine)
    image.SetSpacing(spacing)
    image.SetDirection((to_lps @ affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin((to_lps @ affine[:3, 3]).tolist())
    return image


@settings(max_examples=60)
@given(volumes(), spacings)
def test_resampling_is_the_linear_interpolation_of_simpleitk_on_the_same_grid(volume, spacing_mm):
    resampled = resample(volume, spacing_mm=spacing_mm, anti_aliasing=False)
    within = inner(volume, resampled, margin_mm=1e-3)
    for old, new in zip(volume.data, resampled.data, strict=True):
        grid = to_sitk(new, resampled.affine)
        expected = sitk.Resample(to_sitk(old, volume.affine), grid, sitk.Transform(), sitk.sitkLinear)
        expected = sitk.GetArrayFromImage(expected).transpose(2, 1, 0)
        assert_allclose(new[within], expected[within], atol=2e-3)


@given(volumes(), spacings)
def test_anti_aliasing_is_the_gaussian_filter_of_scipy_before_interpolation(volume, spacing_mm):
    resampled = resample(volume, spacing_mm=spacing_mm)
    widths = 2 * np.sqrt(2 * np.log(2))
    fwhm_voxels = [
        np.sqrt(max((n / o) ** 2 - 1, 0)) for n, o in zip(spacing_mm, volume.spacing_mm, strict=True)
    ]
    places = places_mm(resampled.data.shape[1:], np.linalg.inv(volume.affine) @ resampled.affine)
    for old, new in zip(volume.data.astype(float), resampled.data, strict=True):
        smooth = ndimage.gaussian_filter(old, np.array(fwhm_voxels) / widths, mode="nearest")
        assert_allclose(new, ndimage.map_coordinates(smooth, places, order=1, mode="nearest"), atol=1e-3)


def test_anti_aliasing_removes_stripes_that_the_new_spacing_cannot_show():
    stripes = np.zeros((1, 8, 9, 120), np.float32)
    stripes[..., ::2] = 1
    volume = Volume(data=stripes, spacing_mm=(1, 1, 1), affine=np.eye(4))
    plain, filtered = (
        resample(volume, spacing_mm=(1, 1, 2.9), anti_aliasing=flag).data[..., 4:-4].std()
        for flag in (False, True)
    )
    assert filtered < 0.1 * plain


@given(volumes(), spacings)
def test_resampling_and_mirroring_may_be_exchanged(volume, spacing_mm):
    one = resample(mirror_side(volume, side="L"), spacing_mm=spacing_mm)
    other = mirror_side(resample(volume, spacing_mm=spacing_mm), side="L")
    assert_allclose(one.data, other.data, atol=1e-3)
    assert_allclose(one.affine, other.affine, atol=1e-6)


@given(volumes(), sizes(1, 20))
def test_stretching_keeps_the_corners_of_the_extent(volume, size):
    stretched = resample_to_size(volume, size_voxels=size)
    assert stretched.data.shape == (len(volume.data), *size)
    for corner in np.ndindex(2, 2, 2):
        old, new = (np.array(corner) * shape - 0.5 for shape in (volume.data.shape[1:], size))
        places = [nibabel.affines.apply_affine(v.affine, c) for v, c in ((volume, old), (stretched, new))]
        assert_allclose(places[1], places[0], atol=POSITION_TOLERANCE_MM)


def moved_onto(volume, image_affine, image_shape):
    """The affine of an image whose middle lies within 3 mm of that of the volume."""
    old_middle, new_middle = ((np.array(shape) - 1) / 2 for shape in (volume.data.shape[1:], image_shape))
    off_middle = np.random.default_rng(image_shape).uniform(-3, 3, size=3)
    moved = image_affine.copy()
    moved[:3, 3] = nibabel.affines.apply_affine(volume.affine, old_middle) + off_middle
    moved[:3, 3] -= image_affine[:3, :3] @ new_middle
    return moved


@settings(max_examples=40)
@given(volumes(size=sizes(8, 16)), affines(reorder=False), sizes(6, 20))
def test_a_map_comes_back_to_the_place_it_was_made_at(volume, image_affine, image_shape):
    """A map of millimetres shows each image voxel its own place within the map, and zero outside of it.

    Within the outer half of the map's outer voxels the place of the nearest middles is shown.
    """
    image_affine = moved_onto(volume, image_affine, image_shape)
    to_map = np.linalg.inv(volume.affine) @ image_affine
    places = places_mm(image_shape, to_map)
    last = np.array(volume.data.shape[1:]).reshape(3, 1, 1, 1) - 1
    outside = ((places < -0.5 - 1e-6) | (places > last + 0.5 + 1e-6)).any(axis=0)
    inside = ((places > -0.5 + 1e-6) & (places < last + 0.5 - 1e-6)).all(axis=0)
    nearest = np.moveaxis(np.clip(places, 0, last), 0, -1)
    nearest_mm = np.moveaxis(nibabel.affines.apply_affine(volume.affine, nearest), -1, 0)
    for shown, expected in zip(ramp(volume).data, nearest_mm, strict=True):
        back = back_to_image(
            shown, prepared_affine=volume.affine, image_shape=image_shape, image_affine=image_affine
        )
        assert back.shape == image_shape
        assert_allclose(back[inside], expected[inside], atol=POSITION_TOLERANCE_MM)
        assert not back[outside].any()


@settings(max_examples=60)
@given(volumes(size=sizes(4, 12)), affines(), sizes(4, 16), st.booleans())
def test_a_map_comes_back_as_by_simpleitk_between_any_two_grids(volume, image_affine, image_shape, parallel):
    """Grids at any angle, and those that preprocessing makes, whose axes are parallel."""
    if parallel:
        image_affine[:3, :3] = volume.affine[:3, :3] / volume.spacing_mm * spacing_of(image_affine)
    image_affine = moved_onto(volume, image_affine, image_shape)
    grid = to_sitk(np.zeros(image_shape, np.float32), image_affine)
    places = places_mm(image_shape, np.linalg.inv(volume.affine) @ image_affine)
    limits = zip(places, volume.data.shape[1:], strict=True)
    between = np.logical_and.reduce([(place > 1e-3) & (place < n - 1 - 1e-3) for place, n in limits])
    assume(between.any())
    shown = volume.data[0]
    expected = sitk.Resample(to_sitk(shown, volume.affine), grid, sitk.Transform(), sitk.sitkLinear)
    expected = sitk.GetArrayFromImage(expected).transpose(2, 1, 0)
    back = back_to_image(
        shown, prepared_affine=volume.affine, image_shape=image_shape, image_affine=image_affine
    )
    assert_allclose(back[between], expected[between], atol=2e-3)


@given(volumes())
def test_a_map_made_on_the_image_itself_comes_back_unchanged(volume):
    shape = volume.data.shape[1:]
    back = back_to_image(
        volume.data[0], prepared_affine=volume.affine, image_shape=shape, image_affine=volume.affine
    )
    assert_allclose(back, volume.data[0], rtol=1e-5)


def test_preparing_a_volume_needs_no_torch():
    """Every worker process would import it: a second of processor time and the memory of a volume."""
    script = """
import sys
import numpy as np
from oaplug.core.plan import Configuration
from oaplug.core.volume import Volume
from oaplug.prepare.preprocess_dataset import preprocess_dataset
from oaplug.prepare.preprocess import prepare_volume
volume = Volume(data=np.ones((1, 9, 8, 7), np.float32), spacing_mm=(1, 1, 1), affine=np.eye(4))
grid = Configuration(data_identifier="x", spacing_mm=(2, 2, 2), size_voxels=(5, 4, 3))
assert prepare_volume(volume, grid, side="L").data.shape == (1, 5, 4, 3)
print(sorted({"torch", "sklearn", "pandas", "matplotlib"} & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
