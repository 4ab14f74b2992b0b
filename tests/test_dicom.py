"""The DICOM converter: volumes as GDCM reads them, anything else refused by name, and no patient's name."""

from __future__ import annotations

import gzip
import json
import shutil
import struct

import numpy as np
import pytest
import SimpleITK as sitk
from converter_sources import (
    DICOM_OPTIONS,
    ORIENTATION,
    PATIENT,
    STEP_MM,
    planes,
    save_image,
    save_series,
    save_table,
    write_dicom_tree,
)

from oaplug.commands import convert
from oaplug.core.dataset import open_dataset, read_dataset
from oaplug.prepare.integrity import verify_dataset
from oaplug.prepare.reading import read_image

AXIAL, CORONAL = ((1, 0, 0), (0, 1, 0)), ((1, 0, 0), (0, 0, -1))


class Conversion:
    """One source below a folder, and oaplug_convert dicom of it."""

    def __init__(self, root, capsys):
        self.source, self.raw, self.capsys = root / "source", root / "raw", capsys
        self.out = self.err = ""

    def table(self, *rows, **columns):
        """One row per case: case_id and folder, unless columns say otherwise."""
        made = [{"case_id": f"c{n}", "folder": row, **columns} for n, row in enumerate(rows)]
        return save_table(self.source / "cases.csv", made)

    def run(self, *more, status=0):
        """Convert; gives the dataset's folder."""
        words = ["dicom", self.source, "-d", 7, "--raw", self.raw, *more]
        self.capsys.readouterr()
        found = convert.main([str(word) for word in words])
        self.out, self.err = self.capsys.readouterr()
        assert found == status, self.err + self.out
        assert len(self.err.splitlines()) == (1 if status else 0), self.err
        return self.raw / "Dataset007_dicom"

    def refusal(self, *more):
        """What is said of a source of which nothing can be converted."""
        self.run(*more, status=2)
        assert not list(self.raw.glob("*"))
        return self.err


@pytest.fixture
def conversion(tmp_path, capsys):
    return Conversion(tmp_path, capsys)


def only_image(folder):
    (case,) = open_dataset(folder).cases
    return case.images[0]


# ---------------------------------------------------------------- volumes


@pytest.mark.parametrize("compressor", [None, "JPEG2000", "JPEG"])
@pytest.mark.parametrize("orientation", [ORIENTATION, AXIAL, CORONAL], ids=["sagittal", "axial", "coronal"])
def test_a_series_becomes_the_volume_that_was_written(conversion, compressor, orientation):
    voxels = planes(3, rows=24, columns=20)
    paths = save_series(
        conversion.source / "a", voxels, uid="1.2.5", orientation=orientation, compressor=compressor
    )
    syntax = {
        None: b"1.2.840.10008.1.2\0",
        "JPEG2000": b"1.2.840.10008.1.2.4.90",
        "JPEG": b"10008.1.2.4.70",
    }
    assert all(syntax[compressor] in path.read_bytes()[:600] for path in paths)
    conversion.table("a")
    found = sitk.ReadImage(only_image(conversion.run()))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), voxels)
    row, column = np.asarray(orientation, dtype=float)
    expected = np.column_stack([row, column, np.cross(row, column)])
    np.testing.assert_allclose(np.reshape(found.GetDirection(), (3, 3)), expected, atol=1e-5)
    np.testing.assert_allclose(found.GetSpacing(), (0.5, 0.75, STEP_MM), rtol=1e-6)
    np.testing.assert_allclose(found.GetOrigin(), (10, -20, 30), atol=1e-4)


def run_lengths(plane):
    """The planes of bytes of a plane (rows,columns) of 16 bits as DICOM's RLE has them: runs of literals."""
    stored = plane.astype("<i2").view(np.uint8).reshape(-1, 2)
    segments = []
    for byte in (1, 0):
        values = stored[:, byte].tobytes()
        runs = [values[at : at + 128] for at in range(0, len(values), 128)]
        segment = b"".join(bytes([len(run) - 1]) + run for run in runs)
        segments.append(segment + b"\0" * (len(segment) % 2))
    header = struct.pack("<16I", 2, 64, 64 + len(segments[0]), *[0] * 13)
    return header + b"".join(segments)


def pack_in_runs(path, plane):
    """Replace the voxels of a compressed file by RLE."""
    content = path.read_bytes()
    at = content.index(b"\xe0\x7f\x10\x00O")
    runs = run_lengths(plane)
    items = struct.pack("<HHIHHI", 0xFFFE, 0xE000, 0, 0xFFFE, 0xE000, len(runs)) + runs
    packed = content[: at + 8] + b"\xff" * 4 + items + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    syntax = content.index(b"\x02\x00\x10\x00UI")
    (length,) = struct.unpack_from("<H", packed, syntax + 6)
    name = b"1.2.840.10008.1.2.5\0"
    changed = packed[: syntax + 6] + struct.pack("<H", len(name)) + name + packed[syntax + 8 + length :]
    group = changed.index(b"\x02\x00\x00\x00UL") + 8
    (size,) = struct.unpack_from("<I", changed, group)
    path.write_bytes(changed[:group] + struct.pack("<I", size + len(name) - length) + changed[group + 4 :])


def test_a_series_of_run_lengths_becomes_the_volume_that_was_written(conversion):
    voxels = planes(3, rows=24, columns=20)
    paths = save_series(conversion.source / "a", voxels, uid="1.2.5", compressor="JPEG2000")
    for path, plane in zip(paths, voxels, strict=True):
        pack_in_runs(path, plane)
    conversion.table("a")
    found = sitk.ReadImage(only_image(conversion.run()))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), voxels)


def test_slices_are_put_in_the_order_of_their_places_whatever_files_are_called(conversion):
    voxels, order = planes(1), [3, 0, 5, 1, 4, 2]
    names = [f"{order.index(index):03d}" for index in range(6)]
    numbers = [str(9 - index) for index in range(6)]
    save_series(conversion.source / "a", voxels, uid="1.2.5", names=names, **{"0020_0013": numbers})
    conversion.table("a")
    image = only_image(conversion.run())
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(image)), voxels)


def test_the_volume_is_the_one_that_simpleitk_makes_of_the_series(conversion):
    paths = save_series(conversion.source / "a", planes(2), uid="1.2.5")
    conversion.table("a")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(path) for path in paths])
    sitk.WriteImage(reader.Execute(), conversion.source / "expected.nii.gz")
    expected = read_image([conversion.source / "expected.nii.gz"], case_id="x")
    found = read_image([only_image(conversion.run())], case_id="x")
    np.testing.assert_array_equal(found.data, expected.data)
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-4)


def test_positions_that_were_rounded_are_even_enough(conversion):
    positions = np.round(np.arange(6) * 0.7137, 2)
    save_series(conversion.source / "a", planes(2), uid="1.2.5", positions=positions)
    conversion.table("a")
    found = sitk.ReadImage(only_image(conversion.run()))
    assert found.GetSpacing()[2] == pytest.approx(0.7137, abs=0.002)


def test_slices_that_are_scaled_each_in_its_own_way_keep_their_values(conversion):
    slopes = 0.5 + 0.25 * np.arange(6)
    values = (planes(4) * slopes[:, None, None]).astype(np.float32)
    stored_as = {"0028_0100": "16", "0028_0101": "16", "0028_0102": "15", "0028_0103": "1", "0028_1052": "0"}
    save_series(
        conversion.source / "a", values, uid="1.2.5", **stored_as, **{"0028_1053": list(map(str, slopes))}
    )
    conversion.table("a")
    found = sitk.ReadImage(only_image(conversion.run()))
    assert found.GetPixelID() == sitk.sitkFloat32
    np.testing.assert_allclose(sitk.GetArrayFromImage(found), values, rtol=1e-6)


def test_a_tree_of_series_is_a_dataset_in_which_nothing_is_wrong(conversion):
    write_dicom_tree(conversion.source)
    folder = conversion.run("--set", f"targets={json.dumps(DICOM_OPTIONS['targets'])}")
    dataset = read_dataset(folder)
    assert verify_dataset(dataset, processes=1) == []
    assert [(c.case_id, c.subject_id, c.split, c.labels["kl"]) for c in dataset.cases] == [
        ("d1", "s1", "train", 1), ("d2", "s2", "train", 2), ("d3", "s3", "test", 3)
    ]  # fmt: skip


def test_masks_that_the_table_names_come_along(conversion):
    save_series(conversion.source / "a", planes(2), uid="1.2.5")
    save_image(conversion.source / "m.nii.gz", seed=1, mask=True)
    conversion.table("a", mask="m.nii.gz")
    (case,) = open_dataset(conversion.run("--set", "mask=mask")).cases
    assert case.mask.samefile(conversion.source / "m.nii.gz")
    conversion.table("a", mask="n.nii.gz")
    conversion.run("--set", "mask=mask", "--name", "dicom", status=2)
    assert "there is no mask" in conversion.err


# ---------------------------------------------------------------- several series in a folder


@pytest.fixture
def mixed(conversion):
    """A folder with a localiser, two volumes, a report and a text file."""
    folder = conversion.source / "knee" / "DOE_JANE"
    save_series(folder, planes(1), uid="1.2.8", names=[f"d{n}" for n in range(6)])
    more = {"0008_103e": "COR T2"}
    save_series(folder, planes(2, slices=4), uid="1.2.9", names=[f"t{n}" for n in range(4)], **more)
    for index, orientation in enumerate((ORIENTATION, AXIAL, CORONAL)):
        names, more = [f"l{index}"], {"0008_103e": "LOCALIZER", "0008_0018": f"1.2.7.{index}"}
        save_series(
            folder, planes(index, slices=1), uid="1.2.7", names=names, orientation=orientation, **more
        )
    (folder / "notes.txt").write_text("DICM")
    (folder / "DICOMDIR").write_bytes(preamble("1.2.840.10008.1.3.10"))
    (folder / "report.dcm").write_bytes(preamble("1.2.840.10008.5.1.4.1.1.88.11"))
    conversion.table("knee")
    return conversion


def preamble(sop_class):
    """The start of a DICOM file of a class, and nothing more."""
    value = sop_class.encode() + b"\0" * (len(sop_class) % 2)
    return bytes(128) + b"DICM" + b"\x02\x00\x02\x00UI" + len(value).to_bytes(2, "little") + value


def test_several_series_in_a_folder_are_listed_and_one_must_be_named(mixed):
    said = mixed.refusal()
    assert "holds 3 series (" in said
    for text in ("'SAG 3D DESS' of 6 files, 1.2.8", "'COR T2' of 4 files, 1.2.9", "'LOCALIZER' of 3 files"):
        assert text in said
    assert "--set series_description=PATTERN" in said


@pytest.mark.parametrize("by", ["description", "uid"])
def test_a_series_is_chosen_by_its_description_or_its_uid(mixed, by):
    if by == "uid":
        mixed.table("knee", series_uid="1.2.9")
    more = ["--set", "series_description=*T2*"] if by == "description" else []
    found = sitk.GetArrayFromImage(sitk.ReadImage(only_image(mixed.run(*more))))
    np.testing.assert_array_equal(found, planes(2, slices=4))


def test_a_choice_that_fits_none_is_told(mixed):
    assert "0 of them fit" in mixed.refusal("--set", "series_description=*PD*")


def test_series_are_found_in_the_whole_source_where_the_table_has_no_folders(mixed):
    rows = [{"case_id": "a", "series_uid": "1.2.8"}, {"case_id": "b", "series_uid": "1.2.9"}]
    save_table(mixed.source / "cases.csv", rows)
    shapes = {c.case_id: sitk.ReadImage(c.images[0]).GetDepth() for c in open_dataset(mixed.run()).cases}
    assert shapes == {"a": 6, "b": 4}


def test_a_localiser_of_several_orientations_is_refused_with_what_was_found(mixed):
    said = mixed.refusal("--set", "series_description=LOCALIZER")
    assert "slices of 3 orientations (sagittal 1, axial 1, coronal 1)" in said
    assert "case c0" in said


def test_two_echoes_in_one_series_are_refused_with_their_times(conversion):
    voxels = np.concatenate([planes(1), planes(2)])
    positions = [*np.arange(6) * STEP_MM] * 2
    times = ["4.7"] * 6 + ["9.4"] * 6
    save_series(conversion.source / "a", voxels, uid="1.2.5", positions=positions, **{"0018_0081": times})
    conversion.table("a")
    said = conversion.refusal()
    assert "several echoes in one series: 12 images at 6 places, up to 2 each" in said
    assert "which differ in echo time (4.7, 9.4)" in said


def test_echoes_that_lie_between_each_other_are_refused_too(conversion):
    times = ["4.7", "9.4"] * 3
    save_series(conversion.source / "a", planes(1), uid="1.2.5", **{"0018_0081": times})
    conversion.table("a")
    assert "several echoes in one series: 6 images at 6 places" in conversion.refusal()


@pytest.mark.parametrize(
    ("tag", "values", "words"),
    [
        ("0008_0008", ["ORIGINAL\\M"] * 6 + ["ORIGINAL\\P"] * 6, "image type (ORIGINAL\\M, ORIGINAL\\P)"),
        ("0020_0100", ["1"] * 6 + ["2"] * 6, "temporal position (1, 2)"),
        ("0020_0011", "4", "which nothing tells apart"),
    ],
)
def test_several_volumes_in_one_series_are_refused_with_what_tells_them_apart(conversion, tag, values, words):
    voxels = np.concatenate([planes(1), planes(2)])
    positions = [*np.arange(6) * STEP_MM] * 2
    save_series(conversion.source / "a", voxels, uid="1.2.5", positions=positions, **{tag: values})
    conversion.table("a")
    assert f"several volumes in one series: 12 images at 6 places, up to 2 each, {words}" in (
        conversion.refusal().replace("which differ in ", "")
    )


# ---------------------------------------------------------------- slices that are no volume


def positions_of(*steps):
    return np.cumsum([0, *steps]) * STEP_MM


FAULTY = {
    "one slice missing": (
        {"positions": positions_of(1, 1, 2, 1, 1)},
        "1 missing slices between 002.dcm and 003",
    ),
    "three missing": ({"positions": positions_of(1, 1, 1, 4, 1)}, "3 missing slices between 003.dcm and 004"),
    "uneven": (
        {"positions": positions_of(1, 1, 1.3, 1, 1)},
        "uneven spacing: 1.560 mm between 002.dcm and 003",
    ),
    "every second missing": ({"positions": positions_of(2, 2, 2, 2, 2)}, "only every 2nd is there"),
}


@pytest.mark.parametrize(("how", "words"), FAULTY.values(), ids=FAULTY)
def test_missing_and_unevenly_spaced_slices_are_refused(conversion, how, words):
    save_series(conversion.source / "a", planes(1), uid="1.2.5", **how)
    conversion.table("a")
    said = conversion.refusal()
    assert words in said
    assert "case c0" in said


def test_a_series_of_another_number_of_slices_than_expected_is_refused(conversion):
    save_series(conversion.source / "a", planes(1), uid="1.2.5")
    conversion.table("a")
    assert "6 slices, expected 160" in conversion.refusal("--set", "slices=160")
    conversion.run("--set", "slices=6")


def test_slices_of_different_sizes_and_a_single_slice_are_refused(conversion):
    save_series(conversion.source / "a", planes(1, slices=3), uid="1.2.5")
    more = {"0008_0018": [f"1.2.5.9{n}" for n in range(3)]}
    save_series(
        conversion.source / "a", planes(2, slices=3, rows=9), uid="1.2.5", names=list("xyz"),
        positions=np.arange(3, 6) * STEP_MM, **more
    )  # fmt: skip
    save_series(conversion.source / "b", planes(1, slices=1), uid="1.2.6")
    save_series(conversion.source / "c", planes(1), uid="1.2.7")
    conversion.table("a", "b", "c")
    folder = conversion.run(status=2)
    assert "slices of different grids (3 of 7x8 at 0.5x0.75 mm, 3 of 7x9 at 0.5x0.75 mm)" in conversion.out
    assert "a single slice; expected a volume" in conversion.out
    assert [case.case_id for case in open_dataset(folder).cases] == ["c2"]


def test_slices_that_are_shifted_as_by_a_tilted_gantry_are_refused(conversion):
    for index in range(5):
        row, column = np.asarray(AXIAL, dtype=float)
        shifted = [10, -20 + 0.3 * index, 30 + STEP_MM * index]
        told = {"0008_0018": f"1.2.5.{index}", "0020_0032": "\\".join(f"{value:g}" for value in shifted)}
        save_series(
            conversion.source / "a", planes(index, slices=1), uid="1.2.5", orientation=(row, column),
            names=[f"{index}"], **told
        )  # fmt: skip
    conversion.table("a")
    assert "slices are shifted against each other" in conversion.refusal()


def test_colour_images_and_files_of_several_frames_are_refused(conversion):
    colour = sitk.GetImageFromArray(np.zeros((1, 4, 5, 3), np.uint8), isVector=True)
    frames = sitk.GetImageFromArray(planes(1).astype(np.uint16))
    for name, image in (("a", colour), ("b", frames)):
        (conversion.source / name).mkdir(parents=True)
        sitk.WriteImage(image, conversion.source / name / "x.dcm")
    conversion.table("a", "b")
    conversion.run(status=2)
    assert "none of 2 listed cases" in conversion.err
    assert "colour images" in conversion.err
    conversion.table("b")
    assert "an enhanced file of several frames" in conversion.refusal()


@pytest.mark.parametrize("keep", [0.4, 0.97])
def test_a_file_that_is_cut_short_is_named(conversion, keep):
    paths = save_series(conversion.source / "a", planes(1, rows=40, columns=40), uid="1.2.5")
    content = paths[5].read_bytes()
    paths[5].write_bytes(content[: int(len(content) * keep)])
    conversion.table("a")
    said = conversion.refusal()
    assert "005.dcm" in said
    assert "is a DICOM file that cannot be read" in said


FOLDERS = {
    "missing": ("nowhere", "there is no folder"),
    "blank": ("", "column 'folder' is blank"),
    "empty": ("empty", "has no DICOM images"),
}


@pytest.mark.parametrize(("folder", "words"), FOLDERS.values(), ids=FOLDERS)
def test_a_row_without_a_series_is_named_and_others_are_converted(conversion, folder, words):
    save_series(conversion.source / "a", planes(1), uid="1.2.5")
    (conversion.source / "empty").mkdir()
    conversion.table("a", folder)
    assert len(open_dataset(conversion.run(status=2)).cases) == 1
    (line,) = [line for line in conversion.out.splitlines() if line.startswith("problem: ")]
    assert "case c1" in line
    assert words in line


# ---------------------------------------------------------------- patients


def test_nothing_of_a_patient_or_study_is_written_into_the_dataset(conversion):
    identifying = {
        "0008_0080": "ST ELSEWHERE", "0008_0090": "DR WHO", "0010_0020": "ID777", "0010_1040": "1 MAIN ST",
        "0020_4000": "SEEN BY DR WHO", "0008_0020": "20040531", "0020_000d": "1.2.3.99", "0008_1030": "JANE",
    }  # fmt: skip
    places = [f"{PATIENT.replace('^', '_')}/ID777/{n}" for n in range(3)]
    for n, place in enumerate(places):
        save_series(conversion.source / place, planes(n), uid=f"1.2.5.77{n}", **identifying)
    (conversion.source / places[2] / "000.dcm").unlink()
    (conversion.source / places[2] / "003.dcm").unlink()
    conversion.table(*places)
    folder = conversion.run(status=2)
    conversion.run("--skip-bad")
    words = ["DOE", "JANE", "777", "WHO", "ELSEWHERE", "MAIN", "19450203", "20040531", "1.2.3", "1.2.5"]
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 6
    for path in files:
        content = path.read_bytes()
        content += gzip.decompress(content) if path.suffix == ".gz" else b""
        assert not [word for word in words if word.encode() in content + str(path.name).encode()], path.name


def test_a_patient_that_is_two_subjects_in_the_table_is_told_without_a_name(conversion):
    for n, patient in enumerate(("ID1", "ID2", "ID1")):
        save_series(conversion.source / f"{n}", planes(n), uid=f"1.2.{n}", **{"0010_0020": patient})
    rows = [{"case_id": f"c{n}", "folder": n, "subject_id": f"s{n}"} for n in range(3)]
    save_table(conversion.source / "cases.csv", rows)
    conversion.run()
    assert "one patient in the DICOM files, several subjects in the table: s0, s2" in conversion.out
    assert "ID1" not in conversion.out


def test_sides_come_from_the_table_else_from_the_files_and_a_contradiction_is_refused(conversion):
    for n, side in enumerate("RLLR"):
        save_series(conversion.source / f"{n}", planes(n), uid=f"1.2.{n}", **{"0020_0060": side})
    rows = [{"case_id": f"c{n}", "folder": n, "side": side} for n, side in enumerate(("R", "", "left", "L"))]
    save_table(conversion.source / "cases.csv", rows)
    sides = {case.case_id: case.side for case in open_dataset(conversion.run(status=2)).cases}
    assert sides == {"c0": "R", "c1": "L", "c2": "L"}
    assert "the table says side L, Laterality in" in conversion.out


# ---------------------------------------------------------------- again


def test_running_again_writes_only_what_is_new_or_changed(conversion):
    for n in range(3):
        save_series(conversion.source / f"{n}", planes(n), uid=f"1.2.{n}")
    conversion.table("0", "1", "2")
    folder = conversion.run()
    images = sorted((folder / "imagesTr").iterdir())
    before = [path.stat().st_mtime_ns for path in images]
    shutil.rmtree(conversion.source / "1")
    save_series(conversion.source / "1", planes(7), uid="1.2.1")
    images[2].unlink()
    conversion.run()
    after = [path.stat().st_mtime_ns for path in images]
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, False, False]
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(images[1])), planes(7))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(images[2])), planes(2))


def test_an_image_whose_writing_was_interrupted_is_written_again(conversion, monkeypatch):
    from oaplug_converters import dicom

    save_series(conversion.source / "0", planes(0), uid="1.2.0")
    save_series(conversion.source / "1", planes(1), uid="1.2.1")
    conversion.table("0", "1")
    written, write = [], dicom.write_image

    def stop_in_the_second(image, path):
        written.append(path)
        if len(written) == 2:
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        write(image, path)

    monkeypatch.setattr(dicom, "write_image", stop_in_the_second)
    folder = conversion.run(status=130)
    assert [path.name for path in (folder / "imagesTr").iterdir()] == ["c0_0000.nii.gz"]
    assert not (folder / "cases.csv").exists()
    conversion.run()
    assert len(written) == 3, "the first was not written again"
    assert verify_dataset(read_dataset(folder), processes=1) == []
