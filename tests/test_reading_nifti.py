"""NIfTI: values as nibabel reads them, places as ITK finds them, doubtful headers refused."""

from __future__ import annotations

import gzip
import itertools
import tracemalloc

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from oaplug.prepare import reading
from oaplug.prepare.reading import ImageError, read_grid, read_image, read_mask

VERSIONS = [nibabel.Nifti1Image, nibabel.Nifti2Image]
TYPES = [
    np.int8,
    np.uint8,
    np.int16,
    np.uint16,
    np.int32,
    np.uint32,
    np.int64,
    np.uint64,
    np.float32,
    np.float64,
]
SHAPE = (5, 6, 7)
SPACING_MM = (0.4, 0.7, 1.3)
OBLIQUE = nibabel.eulerangles.euler2mat(0.2, -0.3, 0.15)


def voxels(dtype=np.int16, shape=SHAPE):
    return np.random.default_rng(0).integers(0, 100, shape).astype(dtype)


def affine_of(directions=OBLIQUE, spacing_mm=SPACING_MM, origin_mm=(-12.5, 31.0, 7.25)):
    affine = np.eye(4)
    affine[:3, :3] = directions * np.asarray(spacing_mm)
    affine[:3, 3] = origin_mm
    return affine


def image_of(data, *, version=nibabel.Nifti1Image, order="<", qform=(None, 0), sform=(None, 0)):
    """An image whose two forms are given as affine and code; its spacing is that of the one in use."""
    header = version.header_class(endianness=order)
    header.set_data_dtype(data.dtype)
    image = version(data, None, header)
    given = qform[0] if qform[0] is not None else sform[0]
    spacing_mm = np.linalg.norm(given[:3, :3], axis=0)
    image.header.set_zooms((*spacing_mm, *(1 for _ in data.shape[3:])))
    if qform[0] is not None:
        image.set_qform(qform[0], qform[1])
    image.set_sform(*sform)
    return image


def save(path, *, data=None, version=nibabel.Nifti1Image, qform=None, sform=None, **fields):
    """Write a file with both forms (affine, code), the same if not given, and set fields of its header."""
    both = (affine_of(), 1)
    image = image_of(
        voxels() if data is None else data, version=version, qform=qform or both, sform=sform or both
    )
    plain = path.with_name("plain.nii")
    nibabel.save(image, plain)
    content = bytearray(plain.read_bytes())
    header = np.ndarray((), image.header_class.template_dtype, buffer=content)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    return path


def read(path):
    return read_image([path], case_id="knee")


def place_by_itk(path):
    """The affine to RAS+ millimetres that ITK finds in a header."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    to_ras, affine = np.diag([-1, -1, 1]), np.eye(4)
    affine[:3, :3] = to_ras @ np.reshape(reader.GetDirection(), (3, 3)) * reader.GetSpacing()
    affine[:3, 3] = to_ras @ reader.GetOrigin()
    return affine


# ---------------------------------------------------------------- values


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", TYPES)
def test_every_voxel_type_and_byte_order_is_read_as_nibabel_reads_it(tmp_path, dtype, order, ending, version):
    path = tmp_path / f"knee{ending}"
    nibabel.save(image_of(voxels(dtype), version=version, order=order, sform=(affine_of(), 1)), path)
    expected = nibabel.as_closest_canonical(nibabel.load(path))
    found = read(path)
    assert_array_equal(found.data[0], expected.get_fdata().astype(np.float32))
    assert_array_equal(read_mask(path, case_id="knee")[0], expected.get_fdata())
    assert_allclose(found.affine, expected.affine, atol=1e-5)
    assert found.data.dtype == np.float32
    assert found.data.flags.c_contiguous
    if version is nibabel.Nifti1Image:
        by_itk = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        assert_array_equal(np.sort(found.data, axis=None), np.sort(by_itk, axis=None))


SCALINGS = [
    (0, 5), (np.nan, 7), (np.inf, 0), (-np.inf, 0), (1, 0), (1, 10), (2, 0), (-1, 3), (2.5, 1.5),
    (0.1, 0), (1 / 3, -1 / 7), (1e-4, 1e3),
]  # fmt: skip


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32])
@pytest.mark.parametrize(("slope", "intercept"), SCALINGS)
def test_slope_and_intercept_give_what_nibabel_gives(tmp_path, slope, intercept, dtype, version):
    """No scaling where the slope is 0 or not finite; ITK would add the intercept to a slope of 0."""
    path = save(
        tmp_path / "knee.nii.gz", data=voxels(dtype), version=version, scl_slope=slope, scl_inter=intercept
    )
    expected = nibabel.as_closest_canonical(nibabel.load(path)).get_fdata()
    assert_array_equal(read(path).data[0], expected.astype(np.float32))


def test_a_mask_may_be_scaled_as_long_as_its_values_are_whole(tmp_path):
    path = save(tmp_path / "mask.nii.gz", data=voxels(np.uint8), scl_slope=0.5, scl_inter=0)
    with pytest.raises(ImageError, match="no whole label numbers"):
        read_mask(path, case_id="knee")
    path = save(tmp_path / "mask.nii.gz", data=2 * voxels(np.uint8), scl_slope=0.5, scl_inter=1)
    labels, _ = read_mask(path, case_id="knee")
    assert_array_equal(np.sort(labels, axis=None), np.sort(voxels() + 1, axis=None))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("more", [(1,), (1, 1), (1, 1, 1)])
def test_further_axes_of_one_voxel_do_not_count_as_in_itk(tmp_path, more, version):
    path = save(tmp_path / "knee.nii.gz", data=voxels(shape=SHAPE + more), version=version)
    assert_array_equal(read(path).data, read(save(tmp_path / "3d.nii.gz")).data)


def test_several_gzip_members_and_padding_with_zeros_are_one_file(tmp_path):
    content = save(tmp_path / "knee.nii").read_bytes()
    path = tmp_path / "knee.nii.gz"
    path.write_bytes(gzip.compress(content[:400]) + gzip.compress(content[400:]) + bytes(512))
    assert_array_equal(read(path).data, read(tmp_path / "knee.nii").data)


def test_a_compressed_file_is_verified_to_its_end_though_its_voxels_end_before(tmp_path):
    content = save(tmp_path / "knee.nii").read_bytes()
    path = tmp_path / "knee.nii.gz"
    packed = bytearray(gzip.compress(content + bytes(range(256)) * 8000))
    path.write_bytes(packed)
    assert_array_equal(read(path).data, read(tmp_path / "knee.nii").data)
    packed[-6] ^= 0xFF
    path.write_bytes(packed)
    with pytest.raises(ImageError, match="CRC check failed"):
        read(path)


def test_voxels_begin_where_the_header_says(tmp_path):
    """An offset of 0 stands for the end of the header and its extension flag, as in nibabel."""
    path = save(tmp_path / "knee.nii")
    expected, content = read(path).data, path.read_bytes()
    save(path, vox_offset=0)
    assert_array_equal(read(path).data, expected)
    save(path, vox_offset=400)
    path.write_bytes(path.read_bytes()[:352] + bytes(48) + content[352:])
    assert_array_equal(read(path).data, expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_reading_takes_no_more_memory_than_the_stored_bytes_and_the_volume(tmp_path, dtype):
    path = save(tmp_path / "knee.nii.gz", data=voxels(dtype, (128, 130, 134)), sform=(affine_of(), 1))
    read(path)
    tracemalloc.start()
    volume = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    stored = volume.data.size * np.dtype(dtype).itemsize
    assert peak < stored + volume.data.nbytes + 2**20


# ---------------------------------------------------------------- places

FORMS = [(0, 0), (0, 1), (0, 2), (1, 0), (3, 0), (1, 1), (1, 2), (2, 1), (3, 4)]


@pytest.mark.parametrize("codes", FORMS)
@pytest.mark.parametrize("units", [0, 1, 2, 3], ids=["unknown", "metres", "mm", "micrometres"])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, 1), (-1, -1, 1)])
def test_the_place_is_the_one_that_itk_finds(tmp_path, codes, units, signs):
    affine = affine_of(OBLIQUE[:, [2, 0, 1]] * signs)
    path, (qform_code, sform_code) = tmp_path / "knee.nii", codes
    image = image_of(voxels(), qform=(affine, qform_code), sform=(affine if sform_code else None, sform_code))
    image.header["xyzt_units"] = units
    nibabel.save(image, path)
    found, expected = read_grid(path, case_id="knee"), place_by_itk(path)
    assert found.shape == SHAPE
    assert_allclose(found.affine, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("axis", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.6, 0.8, 0)])
def test_half_turns_whose_quaternion_has_no_real_part_are_read(tmp_path, axis):
    directions = 2 * np.outer(axis, axis) - np.eye(3)
    path = tmp_path / "knee.nii"
    nibabel.save(image_of(voxels(), qform=(affine_of(directions), 1)), path)
    assert_allclose(read_grid(path, case_id="knee").affine, affine_of(directions), atol=1e-5)


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (2, 1)])
def test_nifti_2_has_the_place_that_nibabel_finds(tmp_path, codes):
    path = tmp_path / "knee.nii.gz"
    forms = [(affine_of(), code) if code else (None, 0) for code in codes]
    nibabel.save(image_of(voxels(), version=nibabel.Nifti2Image, qform=forms[0], sform=forms[1]), path)
    assert_allclose(read_grid(path, case_id="knee").affine, nibabel.load(path).affine, atol=1e-6)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: sum(part * part for part in q) > 0.01),
    st.tuples(*[st.floats(0.05, 5)] * 3),
    st.tuples(*[st.floats(-500, 500)] * 3),
    st.sampled_from([-1, 1]),
)
def test_any_quaternion_gives_the_place_that_itk_finds(
    tmp_path, quaternion, spacing_mm, origin_mm, handedness
):
    real, *imaginary = np.asarray(quaternion) / np.linalg.norm(quaternion) * np.copysign(1, quaternion[0])
    fields = {f"quatern_{name}": value for name, value in zip("bcd", imaginary, strict=True)}
    fields |= {f"qoffset_{name}": value for name, value in zip("xyz", origin_mm, strict=True)}
    path = save(tmp_path / "knee.nii", pixdim=[handedness, *spacing_mm, 1, 1, 1, 1], sform_code=0, **fields)
    found = read_grid(path, case_id="knee").affine
    assert_allclose(found, place_by_itk(path), rtol=0, atol=1e-5 * max(1, *np.abs(origin_mm)))
    if real > 0.1:
        assert_allclose(found, nibabel.load(path).affine, rtol=0, atol=1e-4)


def moved(millimetres):
    return affine_of(origin_mm=(-12.5 + millimetres, 31.0, 7.25))


def sheared(degrees):
    """The axes of SPACING_MM along R, A and S, the second turned towards the first."""
    affine = affine_of(np.eye(3))
    angle = np.radians(degrees)
    affine[:3, 1] = np.array([np.sin(angle), np.cos(angle), 0]) * SPACING_MM[1]
    return affine


@pytest.mark.parametrize("code", [1, 2, 4])
def test_forms_that_differ_by_less_than_half_a_voxel_are_accepted_and_itk_chooses(tmp_path, code):
    """ITK takes the sform where its code says scanner (1), else the qform."""
    path = save(tmp_path / "knee.nii.gz", qform=(moved(0.19), 1), sform=(affine_of(), code))
    found = read_grid(path, case_id="knee").affine
    assert_allclose(found, place_by_itk(path), atol=1e-5)
    assert_allclose(found, affine_of() if code == 1 else moved(0.19), atol=1e-5)


def test_a_shear_as_small_as_rounding_is_accepted(tmp_path):
    path = save(tmp_path / "knee.nii.gz", qform=(affine_of(np.eye(3)), 1), sform=(sheared(0.04), 1))
    assert_allclose(read_grid(path, case_id="knee").affine, sheared(0.04), atol=1e-5)


# ---------------------------------------------------------------- faults

TURNED = nibabel.eulerangles.euler2mat(0.2, -0.3, 0.15) @ nibabel.eulerangles.euler2mat(0.1)
NAN, INF = np.nan, np.inf
FAULTS = {
    "zero spacing": (
        {"pixdim": [1, 0, 0.7, 1.3, 1, 1, 1, 1]},
        "bad spacing",
        ["(0, 0.7, 1.3)", "above 0 mm"],
    ),
    "negative spacing": ({"pixdim": [1, 0.4, -0.7, 1.3, 1, 1, 1, 1]}, "bad spacing", ["-0.7"]),
    "NaN spacing": ({"pixdim": [1, 0.4, 0.7, NAN, 1, 1, 1, 1]}, "bad spacing", ["nan"]),
    "infinite spacing": ({"pixdim": [1, INF, 0.7, 1.3, 1, 1, 1, 1]}, "bad spacing", ["inf"]),
    "zero spacing without qform": (
        {"pixdim": [1, 0, 0.7, 1.3, 1, 1, 1, 1], "qform_code": 0},
        "bad spacing",
        ["(0, 0.7, 1.3)"],
    ),
    "empty sform": ({"srow_x": 0, "srow_y": 0, "srow_z": 0}, "bad spacing", ["sform", "(0, 0, 0)"]),
    "NaN in sform": ({"srow_x": [NAN, 0, 0, 0]}, "bad header", ["sform", "NaN"]),
    "long quaternion": ({"quatern_b": 1.5}, "bad header", ["longer than 1"]),
    "minute spacing": ({"pixdim": [1, 1e-20, 0.7, 1.3, 1, 1, 1, 1]}, "bad spacing", ["(0, 0.7, 1.3)"]),
    "NaN in qform": ({"quatern_b": NAN}, "bad header", ["qform", "NaN"]),
    "sheared": (
        {"qform": (affine_of(np.eye(3)), 1), "sform": (sheared(3), 1)},
        "sheared axes",
        ["the sform", "3 degrees off a right angle", "resample"],
    ),
    "sheared without qform": ({"sform": (sheared(0.5), 2), "qform_code": 0}, "sheared axes", ["0.5 degrees"]),
    "sheared, of another code": ({"sform": (sheared(5), 4)}, "sheared axes", ["5 degrees"]),
    "moved": (
        {"qform": (moved(0.5), 1)},
        "ambiguous place",
        ["up to 0.5 mm apart", "turned by 0 degrees", "half a voxel", "code of the wrong one"],
    ),
    "turned": ({"qform": (affine_of(TURNED), 1)}, "ambiguous place", ["turned by 5.73 degrees"]),
    "moved to another space": ({"sform": (moved(30), 4)}, "ambiguous place", ["up to 30 mm apart"]),
    "mirrored": ({"qform": (affine_of(OBLIQUE * [-1, 1, 1]), 1)}, "ambiguous place", ["one is mirrored"]),
    "other spacing": (
        {"pixdim": [1, 0.4, 0.7, 1.0, 1, 1, 1, 1], "qform_code": 0},
        "ambiguous place",
        ["[0.4, 0.7, 1.0]", "[0.4, 0.7, 1.3]", "correct pixdim"],
    ),
    "NaN intercept": (
        {"scl_slope": 1, "scl_inter": NAN},
        "bad scaling",
        ["scl_inter nan", "expected a number"],
    ),
    "unknown type": ({"datatype": 777}, "bad voxel type", ["777", "export the image as int16"]),
    "no type": ({"datatype": 0}, "bad voxel type", ["data type 0"]),
    "bits": ({"datatype": 1, "bitpix": 1}, "bad voxel type", ["data type 1"]),
    "other type than stored": ({"datatype": 16}, "bad voxel type", ["float32 has 32 bits", "bitpix says 16"]),
    "colours": ({"datatype": 128, "bitpix": 24}, "several values per voxel", ["got 3 (colour?)"]),
    "colours with alpha": ({"datatype": 2304, "bitpix": 32}, "several values per voxel", ["got 4"]),
    "complex": ({"datatype": 32, "bitpix": 64}, "complex voxels", ["save the magnitude"]),
    "complex of doubles": ({"datatype": 1792, "bitpix": 128}, "complex voxels", ["save the magnitude"]),
    "flat": ({"dim": [2, 5, 6, 1, 1, 1, 1, 1]}, "not 3D", ["got 2D of 5 x 6", "one 3D file per channel"]),
    "a series": ({"dim": [4, 5, 6, 1, 7, 1, 1, 1]}, "not 3D", ["got 4D of 5 x 6 x 1 x 7"]),
    "vectors": ({"dim": [5, 5, 6, 1, 1, 7, 1, 1]}, "several values per voxel", ["got 7"]),
    "no axes": ({"dim": [0, 5, 6, 7, 1, 1, 1, 1]}, "bad header", ["0 dimensions"]),
    "nine axes": ({"dim": [9, 5, 6, 7, 1, 1, 1, 1]}, "bad header", ["9 dimensions"]),
    "a size of zero": ({"dim": [3, 0, 6, 7, 1, 1, 1, 1]}, "bad header", ["(0, 6, 7)"]),
    "a negative size": ({"dim": [3, 5, -6, 7, 1, 1, 1, 1]}, "bad header", ["-6"]),
    "offset in the header": ({"vox_offset": 100}, "bad header", ["vox_offset is 100"]),
    "more voxels than bytes": (
        {"dim": [3, 5, 6, 8, 1, 1, 1, 1]},
        "cut short",
        ["expected 480 bytes of voxels, got 420", "copy it again"],
    ),
    "more voxels than memory": (
        {"dim": [3, 30000, 30000, 30000, 1, 1, 1, 1]},
        "cut short",
        ["expected 54000000000000 bytes"],
    ),
    "NaN": ({"data": np.full(SHAPE, NAN, np.float32)}, "NaN or infinite", ["export the image again"]),
    "infinite": ({"data": np.full(SHAPE, -INF)}, "NaN or infinite", ["infinite"]),
    "beyond float32": ({"data": np.full(SHAPE, 1e300)}, "NaN or infinite", ["beyond float32"]),
    "scaled beyond float32": ({"scl_slope": 3e38, "scl_inter": 0}, "NaN or infinite", ["beyond float32"]),
    "constant": (
        {"data": np.full(SHAPE, 7, np.int16)},
        "constant image",
        ["every voxel is 7", "remove the case"],
    ),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize(("how", "kind", "words"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_refused_in_one_line_with_its_kind_and_nothing_is_printed(
    tmp_path, capfd, how, kind, words, ending, version
):
    path = save(tmp_path / f"knee{ending}", version=version, **how)
    with pytest.raises(ImageError, match=r"^case knee, .*knee\.nii") as caught:
        read(path)
    problem = caught.value.problem
    assert (problem.kind, problem.case_id, problem.file) == (kind, "knee", str(path))
    assert "\n" not in str(caught.value)
    assert [word for word in words if word not in problem.message] == []
    assert capfd.readouterr() == ("", "")


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.sampled_from(VERSIONS),
    st.lists(st.tuples(st.integers(0, 539), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_a_header_with_any_bytes_is_read_or_refused_in_one_line(tmp_path, version, changes):
    path = save(tmp_path / "knee.nii", version=version)
    content = bytearray(path.read_bytes())
    for place, value in changes:
        content[place] = value
    path.write_bytes(content)
    said = ""
    try:
        read(path)
    except ImageError as refused:
        said = str(refused)
    assert len(said.splitlines()) <= 1


@pytest.mark.parametrize("version", VERSIONS)
def test_one_bad_voxel_among_many_is_found(tmp_path, version):
    for index in itertools.product((0, 4), (0, 5), (0, 6)):
        data = voxels(np.float32)
        data[index] = np.nan
        with pytest.raises(ImageError, match="NaN"):
            read(save(tmp_path / "knee.nii.gz", data=data, version=version))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kept", [0, 100, 400, 700, -1])
def test_a_file_without_compression_that_is_cut_short_is_refused(tmp_path, kept, version):
    path = save(tmp_path / "knee.nii", version=version)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ImageError) as caught:
        read(path)
    length = {nibabel.Nifti1Image: 348, nibabel.Nifti2Image: 540}[version]
    assert caught.value.problem.kind == ("unreadable file" if 0 <= kept < length else "cut short")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_volume_that_differs_in_one_voxel_is_not_constant(tmp_path, version):
    data = np.full((40, 41, 42), 7, np.int16)
    data[13, 17, 19] = 8
    assert read(save(tmp_path / "knee.nii.gz", data=data, version=version)).data.sum() == 7 * data.size + 1


def test_a_file_without_a_form_is_warned_of_once_and_found_by_the_integrity_check(tmp_path, caplog):
    paths = [save(tmp_path / f"{name}.nii.gz", qform_code=0, sform_code=0) for name in "ab"]
    reading._WARNED.clear()
    for path in paths:
        read(path)
    (record,) = caplog.records
    assert str(paths[0]) in record.message
    assert "qform_code and sform_code are 0" in record.message
    with pytest.raises(ImageError, match="set a code to 1") as caught:
        reading.check_certain(paths[1], case_id="knee")
    assert caught.value.problem.kind == "no orientation"


def test_analyze_files_are_refused_because_they_have_no_orientation(tmp_path):
    nibabel.save(nibabel.AnalyzeImage(voxels(), affine_of(np.eye(3))), tmp_path / "knee.img")
    with pytest.raises(ImageError, match=r"Analyze 7\.5") as caught:
        read(tmp_path / "knee.hdr")
    assert caught.value.problem.kind == "no orientation"
