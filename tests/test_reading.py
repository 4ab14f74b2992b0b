"""Reading: every format and orientation comes out as the same canonical volume, and bad files are refused."""

from __future__ import annotations

import gzip
import itertools

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from numpy.testing import assert_allclose, assert_array_equal

from oaplug.core.errors import DatasetError
from oaplug.core.volume import Volume
from oaplug.prepare.reading import ImageError, read_image, read_mask

OBLIQUE = nibabel.eulerangles.euler2mat(0.2, -0.3, 0.15)


def voxels(shape=(5, 6, 7), *, seed=0, dtype=np.int16):
    return np.random.default_rng(seed).integers(0, 900, shape).astype(dtype)


def affine_of(*, directions=OBLIQUE, spacing=(0.4, 0.7, 1.3), origin=(-12.5, 31.0, 7.25)):
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing
    affine[:3, 3] = origin
    return affine


def save(path, data, affine=None):
    """Write a file by nibabel, so that SimpleITK's own conventions are put to the test."""
    nibabel.save(nibabel.Nifti1Image(data, affine_of() if affine is None else affine), path)
    return path


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1), (1, -1, -1), (-1, -1, -1)])
def test_every_orientation_is_read_as_nibabel_reads_its_closest_canonical(tmp_path, order, signs):
    path = save(tmp_path / "knee.nii.gz", voxels(), affine_of(directions=OBLIQUE[:, order] * signs))
    volume = read_image([path], case_id="knee")
    expected = nibabel.as_closest_canonical(nibabel.load(path))
    assert isinstance(volume, Volume)
    assert volume.data.dtype == np.float32
    assert_array_equal(volume.data[0], expected.get_fdata())
    assert_allclose(volume.affine, expected.affine, atol=1e-4)
    assert_allclose(volume.spacing_mm, expected.header.get_zooms(), rtol=1e-6)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".hdr", ".mha", ".mhd", ".nrrd"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_every_format_and_voxel_type_gives_the_same_volume(tmp_path, ending, dtype):
    image = sitk.GetImageFromArray(voxels(dtype=np.uint8).astype(dtype))
    image.SetSpacing((0.5, 0.75, 1.25))
    sitk.WriteImage(image, str(tmp_path / f"knee{ending}"))
    volume = read_image([tmp_path / f"knee{ending}"], case_id="knee")
    assert_array_equal(volume.data[0, ::-1, ::-1], voxels(dtype=np.uint8).transpose(2, 1, 0))
    assert volume.spacing_mm == (0.5, 0.75, 1.25)


def test_the_voxels_of_a_volume_stay_after_the_image_is_gone(tmp_path):
    volumes = [read_image([save(tmp_path / "a.nii", voxels())], case_id="a") for _ in range(20)]
    assert all(np.array_equal(volume.data, volumes[0].data) for volume in volumes)


def test_two_channels_are_stacked_in_the_order_given(tmp_path):
    paths = [save(tmp_path / f"knee_000{i}.nii.gz", voxels(seed=i)) for i in range(2)]
    both = read_image(paths, case_id="knee")
    singles = [read_image([path], case_id="knee").data[0] for path in paths]
    assert_array_equal(both.data, np.stack(singles))


def test_a_channel_that_stores_the_same_grid_in_another_voxel_order_is_accepted(tmp_path):
    first = save(tmp_path / "0.nii.gz", voxels(), affine_of(directions=np.eye(3)))
    turned = nibabel.load(first).as_reoriented(np.array([[1, -1], [2, 1], [0, -1]]))
    nibabel.save(turned, tmp_path / "1.nii.gz")
    both = read_image([first, tmp_path / "1.nii.gz"], case_id="knee")
    assert_array_equal(both.data[0], both.data[1])


@pytest.mark.parametrize(
    ("data", "affine", "message"),
    [
        (voxels((5, 6, 8)), affine_of(), r"shape \(5, 6, 8\) \(D,H,W\) differs from \(5, 6, 7\)"),
        (voxels(), affine_of(spacing=(0.4, 0.7, 1.4)), r"spacing .*1\.4\] differs from .*1\.3\]"),
        (voxels(), affine_of(origin=(-12.5, 31.5, 7.25)), r"origin .*31\.5.* differs from .*31\.0"),
        (
            voxels(),
            affine_of(origin=OBLIQUE[:, 1] * 0.7 + (-12.5, 31.0, 7.25)),
            r"origin .* \(1 voxels off\)",
        ),
        (voxels(), affine_of(directions=np.eye(3)), r"direction .* differs from"),
    ],
)
def test_a_channel_on_another_grid_is_refused_saying_what_differs(tmp_path, data, affine, message):
    paths = [save(tmp_path / "0.nii.gz", voxels()), save(tmp_path / "1.nii.gz", data, affine)]
    with pytest.raises(DatasetError, match=rf"case knee7, .*1\.nii\.gz: {message}.* of 0\.nii\.gz; resample"):
        read_image(paths, case_id="knee7")


def test_a_grid_that_differs_by_less_than_the_tolerance_is_accepted(tmp_path):
    other = affine_of(origin=(-12.5004, 31.0004, 7.2504))
    paths = [save(tmp_path / "0.nii.gz", voxels()), save(tmp_path / "1.nii.gz", voxels(), other)]
    assert len(read_image(paths, case_id="knee").data) == 2


def cut_gzip(path):
    content = save(path, voxels((20, 30, 40))).read_bytes()
    path.write_bytes(content[: len(content) // 2])


def cut_gzip_before_its_checksum(path):
    path.write_bytes(save(path, voxels()).read_bytes()[:-6])


def change_the_checksum(path):
    content = bytearray(save(path, voxels()).read_bytes())
    content[-6] ^= 0xFF
    path.write_bytes(content)


def flip_a_byte(path):
    content = bytearray(save(path, voxels((20, 30, 40))).read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


def cut_before_compression(path):
    save(path, voxels())
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-2]))


def two_dimensions(path):
    sitk.WriteImage(sitk.Image([4, 5], sitk.sitkInt16), str(path))


def colours(path):
    sitk.WriteImage(sitk.Image([4, 5, 6], sitk.sitkVectorUInt8, 3), str(path))


def one_bad_voxel(path, value, dtype=np.float32):
    data = voxels(dtype=dtype)
    data[2, 3, 4] = value
    save(path, data)


def a_slice_of_dicom(path):
    slice_path = path.with_name("0.dcm")
    sitk.WriteImage(sitk.Image([4, 5], sitk.sitkInt16), str(slice_path))
    slice_path.rename(path)


DAMAGES = {
    "nowhere": (lambda path: None, "missing file", "the file does not exist"),
    "half": (cut_gzip, "cut short", "is cut short .*ended before the end-of-stream marker.* copy it again"),
    "no checksum": (cut_gzip_before_its_checksum, "cut short", "end-of-stream"),
    "wrong checksum": (change_the_checksum, "unreadable file", "cannot be read .*CRC check failed"),
    "flipped": (flip_a_byte, "unreadable file", "cannot be read .*copy or export it again"),
    "cut, then packed": (cut_before_compression, "cut short", "expected 420 bytes of voxels, got 418"),
    "empty": (
        lambda path: path.write_bytes(b""),
        "unreadable file",
        "expected a gzip file, got one that begins with b''",
    ),
    "other content": (
        lambda path: path.write_bytes(gzip.compress(b"x" * 9999)),
        "unreadable file",
        "NIfTI header, found none",
    ),
    "web page": (
        lambda path: path.write_text("a web page"),
        "unreadable file",
        "expected a gzip file, got one that begins with b'a '",
    ),
    "4D": (
        lambda path: save(path, voxels((4, 5, 6, 2))),
        "not 3D",
        "expected a 3D image, got 4D of 4 x 5 x 6 x 2",
    ),
    "2D": (two_dimensions, "not 3D", "expected a 3D image, got 2D"),
    "colours": (colours, "several values per voxel", "expected one value per voxel, got 3"),
    "complex": (
        lambda path: save(path, voxels(dtype=np.complex64)),
        "complex voxels",
        "expected real voxels",
    ),
    "NaN": (lambda path: one_bad_voxel(path, np.nan), "NaN or infinite", "NaN, infinite"),
    "infinite": (lambda path: one_bad_voxel(path, np.inf, np.float64), "NaN or infinite", "NaN, infinite or"),
    "huge": (lambda path: one_bad_voxel(path, 1e300, np.float64), "NaN or infinite", "beyond float32"),
    "constant": (lambda path: save(path, np.zeros((4, 5, 6))), "constant image", "every voxel is 0"),
    "DICOM slice": (a_slice_of_dicom, "DICOM", "is a DICOM file, .* `oaplug_convert dicom`"),
    "DICOM folder": (lambda path: path.mkdir(), "DICOM", "is a folder, .* `oaplug_convert dicom`"),
}


@pytest.mark.parametrize(("damage", "kind", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_file_that_cannot_be_used_is_refused_in_one_line_naming_case_and_file(
    tmp_path, capfd, damage, kind, message
):
    path = tmp_path / "knee9_0000.nii.gz"
    damage(path)
    with pytest.raises(ImageError, match=rf"case knee9, .*knee9_0000\.nii\.gz: .*{message}") as caught:
        read_image([path], case_id="knee9")
    assert caught.value.problem.kind == kind
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("ending", [".nii", ".hdr"])
def test_a_truncated_file_without_compression_is_refused(tmp_path, ending):
    sitk.WriteImage(sitk.GetImageFromArray(voxels()), str(tmp_path / f"knee{ending}"))
    stored = tmp_path / ("knee.img" if ending == ".hdr" else "knee.nii")
    stored.write_bytes(stored.read_bytes()[:-100])
    with pytest.raises(DatasetError, match=r"cut short: expected 420 bytes of voxels, got (at most )?320"):
        read_image([tmp_path / f"knee{ending}"], case_id="knee")


@pytest.mark.parametrize(
    "kind", [nibabel.Nifti1Image, nibabel.Nifti1Pair, nibabel.Nifti2Image, nibabel.Nifti2Pair]
)
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("value", [np.nan, 3.0])
def test_nan_is_found_in_every_variant_of_nifti(tmp_path, kind, order, value):
    """ITK reads NaN in NIfTI files as zero."""
    data = voxels(dtype=np.float32)
    data[1, 2, 3] = value
    header = kind.header_class(endianness=order)
    header.set_data_dtype(np.float32)
    path = tmp_path / ("knee.img" if kind.__name__.endswith("Pair") else "knee.nii")
    nibabel.save(kind(data, affine_of(), header), path)
    if np.isnan(value):
        with pytest.raises(DatasetError, match="NaN"):
            read_image([path], case_id="knee")
    else:
        assert_array_equal(
            np.sort(read_image([path], case_id="knee").data, axis=None), np.sort(data, axis=None)
        )


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_nan_is_found_in_other_formats(tmp_path, ending):
    sitk.WriteImage(sitk.GetImageFromArray(np.full((4, 5, 6), np.nan)), str(tmp_path / f"knee{ending}"))
    with pytest.raises(DatasetError, match="NaN"):
        read_image([tmp_path / f"knee{ending}"], case_id="knee")


def test_a_mask_is_turned_like_its_image(tmp_path):
    affine = affine_of(directions=OBLIQUE[:, [2, 0, 1]] * [1, -1, -1])
    image, mask = (save(tmp_path / f"{name}.nii.gz", voxels() % 6, affine) for name in ("image", "mask"))
    volume = read_image([image], case_id="knee")
    labels, mask_affine = read_mask(mask, case_id="knee")
    assert labels.dtype == np.int16
    assert_array_equal(labels, volume.data[0])
    assert_array_equal(mask_affine, volume.affine)


def test_a_mask_saved_as_floats_is_read_as_numbers(tmp_path):
    path = save(tmp_path / "mask.nii.gz", (voxels() % 6).astype(np.float32))
    labels, _ = read_mask(path, case_id="knee")
    assert sorted(np.unique(labels)) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("ending", [".nii.gz", ".mha"])
@pytest.mark.parametrize("value", [0.5, np.nan, 40000.0, -np.inf])
def test_a_mask_with_a_voxel_that_is_no_label_is_refused(tmp_path, value, ending):
    path = tmp_path / f"mask{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(np.full((4, 5, 6), value, np.float32)), str(path))
    with pytest.raises(DatasetError, match=r"case knee, .*mask.*: .*(no whole label numbers|NaN)"):
        read_mask(path, case_id="knee")
