"""MetaImage and NRRD: read as SimpleITK reads them; damage and uncertain places are refused, quietly."""

from __future__ import annotations

import gzip
import re
import zlib

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from numpy.testing import assert_allclose, assert_array_equal

from oaplug.prepare.reading import ImageError, read_grid, read_image, read_mask

OBLIQUE = nibabel.eulerangles.euler2mat(0.2, -0.3, 0.15)
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


def image_of(dtype=np.int16):
    image = sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 100, (7, 6, 5)).astype(dtype))
    image.SetSpacing((0.5, 0.75, 1.25))
    image.SetOrigin((-12.5, 31.0, 7.25))
    image.SetDirection(OBLIQUE[:, [1, 2, 0]].ravel().tolist())
    return image


def save(path, image=None, *, packed=False):
    sitk.WriteImage(image_of() if image is None else image, str(path), useCompression=packed)
    return path


def save_plain(path):
    """An image along L, P and S, so that its header is easy to change."""
    image = image_of()
    image.SetDirection(np.eye(3).ravel().tolist())
    return save(path, image)


def header_of(path):
    """A file's header as text, and what follows it."""
    content = path.read_bytes()
    mark = b"\n\n" if path.suffix == ".nrrd" else b"ElementDataFile = LOCAL\n"
    end = content.index(mark) + len(mark)
    return content[:end].decode(), content[end:]


def change(path, pattern, replacement):
    """Replace a line of a header; an empty replacement leaves it out."""
    header, voxels = header_of(path)
    changed, count = re.subn(rf"(?m)^{pattern}\n", f"{replacement}\n" if replacement else "", header)
    assert count == 1
    path.write_bytes(changed.encode() + voxels)
    return path


def refusal(path, capfd):
    """The problem of a file that is refused without anything being printed."""
    with pytest.raises(ImageError, match=r"^case knee, .*knee\.") as caught:
        read_image([path], case_id="knee")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert caught.value.problem.file == str(path)
    return caught.value.problem


# ---------------------------------------------------------------- sound files


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("ending", [".mha", ".mhd", ".nrrd", ".nhdr", ".h5"])
@pytest.mark.parametrize("dtype", TYPES)
def test_voxels_and_place_are_those_that_simpleitk_reads(tmp_path, dtype, ending, packed):
    image = image_of(dtype)
    path = save(tmp_path / f"knee{ending}", image, packed=packed)
    expected = sitk.ReadImage(str(path))
    as_nifti = save(tmp_path / "same.nii.gz", expected)
    found, same = read_image([path], case_id="knee"), read_image([as_nifti], case_id="knee")
    assert_array_equal(found.data, same.data)
    assert_allclose(found.affine, same.affine, atol=1e-4)
    assert_array_equal(np.sort(found.data, axis=None), np.sort(sitk.GetArrayFromImage(expected), axis=None))
    assert_array_equal(read_mask(path, case_id="knee")[0], found.data[0])
    assert read_grid(path, case_id="knee").shape == (5, 6, 7)


@pytest.mark.parametrize("key", ["BinaryDataByteOrderMSB", "ElementByteOrderMSB"])
def test_metaimage_of_the_other_byte_order_is_read(tmp_path, key):
    path = save(tmp_path / "knee.mha")
    expected = read_image([path], case_id="knee")
    change(path, "BinaryDataByteOrderMSB = False", f"{key} = True")
    header, stored = header_of(path)
    path.write_bytes(header.encode() + np.frombuffer(stored, "<i2").astype(">i2").tobytes())
    assert_array_equal(read_image([path], case_id="knee").data, expected.data)


@pytest.mark.parametrize(
    "renamed", [("TransformMatrix", "Rotation"), ("Offset", "Position"), ("Offset", "Origin")]
)
def test_older_names_of_metaimage_fields_are_read(tmp_path, renamed):
    path = save(tmp_path / "knee.mha")
    expected = read_grid(path, case_id="knee").affine
    header, voxels = header_of(path)
    path.write_bytes(header.replace(*renamed).encode() + voxels)
    assert_array_equal(read_grid(path, case_id="knee").affine, expected)


def test_nrrd_in_right_anterior_superior_is_turned(tmp_path):
    path = save_plain(tmp_path / "knee.nrrd")
    change(path, "space: .*", "space: right-anterior-superior")
    assert_allclose(read_grid(path, case_id="knee").affine[:3, :3], np.diag([0.5, 0.75, 1.25]))


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
@pytest.mark.parametrize("cut", [1, 30, 200])
def test_a_file_that_is_cut_short_is_refused(tmp_path, capfd, cut, ending, packed):
    path = save(tmp_path / f"knee{ending}", packed=packed)
    path.write_bytes(path.read_bytes()[:-cut])
    problem = refusal(path, capfd)
    if ending == ".mha":
        assert problem.kind == "cut short"
        assert "is cut short: expected" in problem.message
    else:
        assert problem.kind in ("cut short", "unreadable file")
    assert "copy" in problem.message


@pytest.mark.parametrize("kept", [0, 40, 150])
@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_half_a_header_is_refused(tmp_path, capfd, kept, ending):
    path = save(tmp_path / f"knee{ending}")
    path.write_bytes(path.read_bytes()[:kept])
    assert refusal(path, capfd).kind == "unreadable file"


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
@pytest.mark.parametrize("at", [-3, -100])
def test_a_flipped_byte_of_compressed_voxels_is_found(tmp_path, capfd, at, ending):
    """ITK prints of it for MetaImage, and gives what it has; in NRRD it does not look at the checksum."""
    path = save(tmp_path / f"knee{ending}", packed=True)
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)
    problem = refusal(path, capfd)
    assert problem.kind == "unreadable file"
    assert "copy or export it again" in problem.message


def test_the_file_of_voxels_that_a_header_names_must_exist(tmp_path, capfd):
    path = save(tmp_path / "knee.mhd")
    (tmp_path / "knee.raw").unlink()
    problem = refusal(path, capfd)
    assert problem.kind == "missing file"
    assert "knee.raw" in problem.message


def test_compressed_voxels_that_are_fewer_than_the_header_says_are_refused(tmp_path, capfd):
    path = save(tmp_path / "knee.mha", packed=True)
    header, packed = header_of(path)
    fewer = zlib.compress(zlib.decompress(packed)[:-20])
    header = re.sub("CompressedDataSize = .*", f"CompressedDataSize = {len(fewer)}", header)
    path.write_bytes(header.encode() + fewer)
    problem = refusal(path, capfd)
    assert (problem.kind, "expected 420 bytes of voxels, got 400" in problem.message) == ("cut short", True)


def test_a_checksum_of_nrrd_that_fails_is_found_though_all_voxels_are_there(tmp_path, capfd):
    path = save(tmp_path / "knee.nrrd", packed=True)
    header, packed = header_of(path)
    other = bytearray(gzip.compress(gzip.decompress(packed)))
    other[-6] ^= 0xFF
    path.write_bytes(header.encode() + other)
    assert "CRC check failed" in refusal(path, capfd).message


# ---------------------------------------------------------------- headers

MHA = {
    "zero spacing": ("ElementSpacing = .*", "ElementSpacing = 0 0.75 1.25", "bad spacing", "(0, 0.75, 1.25)"),
    "negative spacing": ("ElementSpacing = .*", "ElementSpacing = 0.5 -0.75 1.25", "bad spacing", "-0.75"),
    "NaN spacing": ("ElementSpacing = .*", "ElementSpacing = 0.5 0.75 nan", "bad spacing", "nan"),
    "no spacing": ("ElementSpacing = .*", "", "bad header", "ElementSpacing in the header is nothing"),
    "two spacings": ("ElementSpacing = .*", "ElementSpacing = 1 1", "bad header", "expected 3 numbers"),
    "no directions": ("TransformMatrix = .*", "", "no orientation", "has no TransformMatrix"),
    "sheared": (
        "TransformMatrix = .*",
        "TransformMatrix = 1 0 0 0.1 1 0 0 0 1",
        "sheared axes",
        "5.71 degrees off",
    ),
    "singular": ("TransformMatrix = .*", "TransformMatrix = 1 0 0 1 0 0 0 0 1", "sheared axes", "90 degrees"),
    "no axis": ("TransformMatrix = .*", "TransformMatrix = 0 0 0 0 1 0 0 0 1", "bad spacing", "(0, 1, 1)"),
    "unknown type": ("ElementType = .*", "ElementType = MET_OTHER", "bad voxel type", "MET_OTHER"),
    "longer type": ("ElementType = .*", "ElementType = MET_FLOAT", "cut short", "expected 840 bytes"),
    "colours": (
        "ElementType = .*",
        "ElementNumberOfChannels = 3\nElementType = MET_UCHAR",
        "several values per voxel",
        "3",
    ),
    "2D": ("DimSize = .*", "DimSize = 5 42", "not 3D", "got 2D of 5 x 42"),
    "4D": ("DimSize = .*", "DimSize = 5 6 7 2", "not 3D", "got 4D of 5 x 6 x 7 x 2"),
    "4D of one": ("DimSize = .*", "DimSize = 5 6 7 1", "not 3D", "save one 3D file per channel"),
    "a size of zero": ("DimSize = .*", "DimSize = 5 0 7", "bad header", "(5, 0, 7)"),
    "huge": ("DimSize = .*", "DimSize = 50000 60000 70000", "cut short", "bytes of voxels, got 420"),
    "text": ("BinaryData = True", "BinaryData = False", "bad header", "save it as one .mha"),
    "words": ("DimSize = .*", "DimSize = five", "bad header", "DimSize in the header is five"),
}


@pytest.mark.parametrize(("line", "by", "kind", "words"), MHA.values(), ids=MHA)
def test_a_fault_of_a_metaimage_header_is_refused_with_its_kind(tmp_path, capfd, line, by, kind, words):
    problem = refusal(change(save_plain(tmp_path / "knee.mha"), line, by), capfd)
    assert problem.kind == kind
    assert words in problem.message


DIRECTIONS = "space directions: .*"
NRRD = {
    "no directions": (DIRECTIONS, "", "no orientation", "has no 'space directions'"),
    "spacings only": (DIRECTIONS, "spacings: 0.5 0.75 1.25", "no orientation", "has no 'space directions'"),
    "no space": ("space: .*", "space dimension: 3", "no orientation", "has no 'space'"),
    "a scanner's space": ("space: .*", "space: scanner-xyz", "no orientation", "in the space 'scanner-xyz'"),
    "one direction missing": (
        DIRECTIONS,
        "space directions: none (0,0.75,0) (0,0,1.25)",
        "bad spacing",
        "none",
    ),
    "NaN": (DIRECTIONS, "space directions: (nan,nan,nan) (0,0.75,0) (0,0,1.25)", "bad spacing", "nan"),
    "zero": (DIRECTIONS, "space directions: (0,0,0) (0,0.75,0) (0,0,1.25)", "bad spacing", "(0, 0.75, 1.25)"),
    "sheared": (
        DIRECTIONS,
        "space directions: (0.5,0,0) (0.075,0.75,0) (0,0,1.25)",
        "sheared axes",
        "5.71 degrees off",
    ),
}


@pytest.mark.parametrize(("line", "by", "kind", "words"), NRRD.values(), ids=NRRD)
def test_a_fault_of_an_nrrd_header_is_refused_with_its_kind(tmp_path, capfd, line, by, kind, words):
    """ITK would take missing directions as LPS and 1 mm."""
    path = save_plain(tmp_path / "knee.nrrd")
    if "spacings" in by or not by:
        for other in ("space: .*", "space origin: .*"):
            change(path, other, "")
    problem = refusal(change(path, line, by), capfd)
    assert problem.kind == kind
    assert words in problem.message


@pytest.mark.parametrize("ending", [".gipl", ".vtk", ".tif", ".mrc"])
def test_formats_without_orientation_are_refused(tmp_path, capfd, ending):
    assert refusal(save(tmp_path / f"knee{ending}"), capfd).kind == "no orientation"


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
@pytest.mark.parametrize(
    ("image", "kinds"),
    [
        (sitk.Image([4, 5, 6], sitk.sitkVectorUInt8, 3), {"several values per voxel"}),
        (sitk.Image([4, 5, 6], sitk.sitkComplexFloat32), {"complex voxels", "several values per voxel"}),
        (sitk.Image([4, 5, 6, 2], sitk.sitkInt16), {"not 3D"}),
        (sitk.Image([4, 5], sitk.sitkInt16), {"not 3D"}),
        (sitk.Image([4, 5, 6], sitk.sitkInt16) + 3, {"constant image"}),
    ],
    ids=["colours", "complex", "4D", "2D", "constant"],
)
def test_images_that_are_no_plain_volume_are_refused(tmp_path, capfd, image, kinds, ending):
    """MetaImage knows no complex numbers: they are two values per voxel."""
    assert refusal(save(tmp_path / f"knee{ending}", image), capfd).kind in kinds
