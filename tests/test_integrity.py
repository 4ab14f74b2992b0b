"""Integrity: everything that is wrong with a dataset is listed at once, and nothing that is right."""

from __future__ import annotations

from dataclasses import replace

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from oaplug.core.case import Case
from oaplug.core.converter import RawFolder
from oaplug.core.dataset import DatasetDescription, read_dataset
from oaplug.prepare.integrity import PROBLEM_COLUMNS, problem_rows, verify_dataset

DESCRIPTION = DatasetDescription(
    name="Dataset001_Toy",
    channel_names=("DESS", "T2"),
    labels={"background": 0, "cartilage": (1, 2)},
    file_ending=".nii.gz",
)
SHAPE = (7, 8, 9)
AFFINE = np.diag([0.7, 0.4, 0.5, 1.0])


def image(seed, shape=SHAPE):
    return np.random.default_rng(seed).integers(0, 500, shape).astype(np.int16)


def save(path, data, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(data, affine), path)


@pytest.fixture
def raw(tmp_path):
    """Two training cases and a test case, two channels and a mask each."""
    folder = RawFolder(tmp_path)
    cases = []
    for seed, case_id in enumerate("abc"):
        split = "test" if case_id == "c" else "train"
        paths = folder.image_paths(case_id, split=split, description=DESCRIPTION)
        for channel, path in enumerate(paths):
            save(path, image(10 * seed + channel))
        save(folder.mask_path(case_id, split=split, description=DESCRIPTION), image(seed) % 3)
        cases.append(Case(case_id=case_id, subject_id=case_id, images=paths, split=split))
    folder.write_tables(DESCRIPTION, cases)
    return tmp_path


def found(raw, **options):
    return verify_dataset(read_dataset(raw), **{"processes": 1, **options})


def test_a_sound_dataset_has_no_problems(raw):
    assert found(raw) == []


def remove(path):
    path.unlink()


def damage(path):
    path.write_bytes(path.read_bytes()[:-20])


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def make_a_folder(path):
    path.unlink()
    path.mkdir()


def forget_the_orientation(path):
    image = nibabel.load(path)
    data = image.get_fdata().astype(np.int16)
    image = nibabel.Nifti1Image(data, None)
    nibabel.save(image, path)


def shear(path):
    sheared = AFFINE.copy()
    sheared[0, 1] = AFFINE[1, 1] / 5
    save(path, nibabel.load(path).get_fdata().astype(np.int16), sheared)


def move_by_a_voxel(path):
    moved = AFFINE.copy()
    moved[2, 3] = AFFINE[2, 2]
    save(path, nibabel.load(path).get_fdata().astype(np.int16), moved)


def reshape(path):
    save(path, image(50, (7, 8, 10)))


def change_the_spacing(path):
    save(path, nibabel.load(path).get_fdata().astype(np.int16), np.diag([0.7, 0.4, 0.6, 1.0]))


def move_the_origin(path):
    moved = AFFINE.copy()
    moved[:3, 3] = (1, 0, 0)
    save(path, nibabel.load(path).get_fdata().astype(np.int16), moved)


def rotate(path):
    rotated = AFFINE.copy()
    rotated[:3, :3] = nibabel.eulerangles.euler2mat(0.1) @ AFFINE[:3, :3]
    save(path, nibabel.load(path).get_fdata().astype(np.int16), rotated)


def write_nan(path):
    data = image(50).astype(np.float32)
    data[3, 3, 3] = np.nan
    save(path, data)


def make_constant(path):
    save(path, np.full(SHAPE, 7, np.int16))


def write_colours(path):
    sitk.WriteImage(sitk.Image([7, 8, 9], sitk.sitkVectorUInt8, 3), str(path))


def write_another_label(path):
    save(path, image(50) % 5)


def write_half_a_label(path):
    save(path, np.full(SHAPE, 0.5, np.float32))


FIRST, SECOND, MASK = "imagesTr/b_0000.nii.gz", "imagesTr/b_0001.nii.gz", "labelsTr/b.nii.gz"


@pytest.mark.parametrize(
    ("file", "spoil", "kind", "words"),
    [
        (SECOND, remove, "missing file", ["does not exist", "add it"]),
        (FIRST, damage, "cut short", ["end-of-stream", "copy it again"]),
        (MASK, damage, "cut short", ["end-of-stream", "copy it again"]),
        (MASK, flip_a_byte, "unreadable file", ["cannot be read", "copy or export it again"]),
        (FIRST, write_colours, "several values per voxel", ["expected one value per voxel, got 3"]),
        (SECOND, make_a_folder, "DICOM", ["is a folder", "`oaplug_convert dicom`"]),
        (MASK, forget_the_orientation, "no orientation", ["qform_code", "set a code to 1"]),
        (FIRST, shear, "sheared axes", ["11.3 degrees", "resample"]),
        (MASK, shear, "sheared axes", ["11.3 degrees", "resample"]),
        (MASK, move_by_a_voxel, "grid mismatch", ["origin", "(1 voxels off)", "b_0000.nii.gz"]),
        (SECOND, reshape, "grid mismatch", ["(7, 8, 10)", "(7, 8, 9)", "b_0000.nii.gz", "resample"]),
        (SECOND, change_the_spacing, "grid mismatch", ["spacing", "0.6", "0.5", "b_0000.nii.gz"]),
        (SECOND, move_the_origin, "grid mismatch", ["origin", "1.0", "b_0000.nii.gz"]),
        (SECOND, rotate, "grid mismatch", ["direction", "b_0000.nii.gz"]),
        (MASK, reshape, "grid mismatch", ["(7, 8, 10)", "(7, 8, 9)", "b_0000.nii.gz"]),
        (MASK, change_the_spacing, "grid mismatch", ["spacing", "b_0000.nii.gz"]),
        (MASK, move_the_origin, "grid mismatch", ["origin", "b_0000.nii.gz"]),
        (MASK, rotate, "grid mismatch", ["direction", "b_0000.nii.gz"]),
        (SECOND, write_nan, "NaN or infinite", ["NaN", "export the image again"]),
        (FIRST, make_constant, "constant image", ["every voxel is 7", "remove the case"]),
        (MASK, write_another_label, "unknown label", ["[3, 4]", "[0, 1, 2]"]),
        (MASK, write_half_a_label, "bad mask", ["no whole label numbers"]),
    ],
)
def test_a_spoilt_file_is_the_only_problem_and_is_named_with_what_to_do(raw, file, spoil, kind, words):
    spoil(raw / file)
    (problem,) = found(raw)
    assert (problem.kind, problem.case_id, problem.file) == (kind, "b", str(raw / file))
    for word in words:
        assert word in problem.message


def test_all_problems_are_listed_not_only_the_first(raw):
    for spoil, file in ((remove, FIRST), (write_nan, SECOND), (write_another_label, MASK)):
        spoil(raw / file)
    make_constant(raw / "imagesTs/c_0000.nii.gz")
    table = raw / "cases.csv"
    table.write_text(table.read_text() + "d,d,X,,train\n")
    kinds = [(problem.case_id, problem.kind) for problem in found(raw)]
    assert kinds[:1] == [("d", "bad side")]
    assert sorted(kinds[1:]) == [
        ("b", "NaN or infinite"),
        ("b", "missing file"),
        ("b", "unknown label"),
        ("c", "constant image"),
        ("d", "missing file"),
        ("d", "missing file"),
    ]


def test_the_same_image_in_two_cases_is_found_whatever_type_it_is_saved_in(raw):
    save(raw / "imagesTs/c_0000.nii.gz", image(10).astype(np.float32))
    (problem,) = found(raw)
    assert (problem.kind, problem.case_id) == ("duplicate image", "c")
    assert problem.file.endswith("c_0000.nii.gz")
    assert "b_0000.nii.gz of case b" in problem.message


def test_the_same_channel_twice_in_one_case_is_found(raw):
    save(raw / "imagesTr/a_0001.nii.gz", image(0))
    (problem,) = found(raw)
    assert (problem.kind, problem.case_id) == ("duplicate image", "a")


def test_constant_images_are_not_called_duplicates(raw):
    for name in ("imagesTr/a_0000.nii.gz", "imagesTr/b_0000.nii.gz"):
        make_constant(raw / name)
    assert [problem.kind for problem in found(raw)] == ["constant image"] * 2


def test_a_case_without_a_mask_is_sound(raw):
    (raw / MASK).unlink()
    assert found(raw) == []


def test_a_mask_that_is_named_but_missing_is_found(raw):
    dataset = read_dataset(raw)
    gone = raw / "labelsTr" / "gone.nii.gz"
    dataset = replace(dataset, cases=(replace(dataset.cases[0], mask=gone),))
    (problem,) = verify_dataset(dataset, processes=1)
    assert (problem.kind, problem.file) == ("missing file", str(gone))


def test_problems_become_rows_of_a_table(raw):
    remove(raw / SECOND)
    problems = found(raw)
    assert PROBLEM_COLUMNS == ("kind", "case", "file", "what to do")
    assert problem_rows(problems) == [
        ("missing file", "b", str(raw / SECOND), "the file does not exist; add it")
    ]


def test_progress_counts_every_case(raw):
    calls = []
    found(raw, progress=lambda *call: calls.append(call))
    assert calls == [(1, 3, "a"), (2, 3, "b"), (3, 3, "c")]


@pytest.mark.slow
def test_several_processes_find_what_one_finds(raw):
    write_nan(raw / SECOND)
    make_constant(raw / "imagesTs/c_0000.nii.gz")
    assert found(raw, processes=2) == found(raw)
