"""Converters of OAIZIB-CM and of tables: what sources say arrives, their traps do not, nothing is lost."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from converter_sources import (
    SHARED,
    TABLE_OPTIONS,
    XLSX_COLUMNS,
    knee,
    save_image,
    save_table,
    write_hub,
    write_images_with_table,
    write_knee_files,
    write_small_hub,
    zip_folders,
)
from documents import DOCS, ROOT, code_blocks, quoted
from documents import table as table_of
from oaplug_converters import placing
from oaplug_converters.phantom.anatomy import make_knee
from oaplug_converters.text_tables import read_table
from oaplug_datasets_meta import read_meta

from oaplug.commands import convert
from oaplug.core import artifacts
from oaplug.core.dataset import open_dataset, read_dataset
from oaplug.core.errors import DatasetError
from oaplug.core.settings import to_mapping
from oaplug.core.target import MISSING
from oaplug.plug import ConverterSpec
from oaplug.plug.registry import registry
from oaplug.prepare.integrity import verify_dataset
from oaplug.prepare.reading import read_image
from oaplug.prepare.splits import make_splits


class Raw:
    """A folder of raw datasets, and oaplug_convert into it."""

    def __init__(self, root, capsys):
        self.root, self.capsys = root, capsys
        self.out = self.err = ""

    def convert(self, converter, source, *more, number=360, options=None, status=0):
        """Run the command; it must end with `status`, and a failing one with one line on standard error."""
        given = [arg for key, value in (options or {}).items() for arg in ("--set", f"{key}={_text(value)}")]
        words = [converter, source, "-d", number, "--raw", self.root, *given, *more]
        self.capsys.readouterr()
        found = convert.main([str(word) for word in words])
        self.out, self.err = self.capsys.readouterr()
        assert found == status, self.err + self.out
        assert len(self.err.splitlines()) == (1 if status else 0), self.err
        return self.folder(converter, number)

    def folder(self, converter="oaizib_cm", number=360):
        return self.root / f"Dataset{number}_{converter}"


def _text(value):
    return value if isinstance(value, str) else json.dumps(value)


@pytest.fixture
def raw(tmp_path, capsys):
    return Raw(tmp_path / "raw", capsys)


@pytest.fixture
def hub(tmp_path):
    return write_small_hub(tmp_path / "hub")


def cases_by_id(folder):
    return {case.case_id: case for case in open_dataset(folder).cases}


def listing(folder):
    """Inode, size and time of change of every file."""
    return {
        path.relative_to(folder).as_posix(): (
            path.stat().st_ino,
            path.stat().st_size,
            path.stat().st_mtime_ns,
        )
        for path in folder.rglob("*")
        if path.is_file()
    }


def flow_of(folder):
    table = pd.read_csv(folder / "participant_flow.csv", index_col="step")
    return {(step, split): int(count) for step, row in table.iterrows() for split, count in row.items()}


# ---------------------------------------------------------------- the whole of an invented OAIZIB-CM


def phantom_hub(folder, *, info, ending):
    """The shared tables, with a zipped phantom knee called as the real one for each of their rows."""
    for name in ("subInfo_train", "subInfo_test"):
        (folder / info).mkdir(parents=True, exist_ok=True)
        shutil.copy(SHARED / f"{name}{ending}", folder / info)
        end = "Tr" if name.endswith("train") else "Ts"
        for _, row in pd.read_csv(SHARED / f"{name}.csv", dtype=str).iterrows():
            number = int(row["CMT-ID"])
            grade = float(row["KLGrade"]) if row["KLGrade"] == row["KLGrade"] else 2.0
            made = make_knee(severity=grade, shape=(8, 12, 10), side="R", rng=np.random.default_rng(number))
            save_phantom(
                folder / f"images{end}" / f"oaizib_{number:03d}_0000.nii.gz", made.image, made.affine
            )
            save_phantom(folder / f"labels{end}" / f"oaizib_{number:03d}.nii.gz", made.labels, made.affine)
    shutil.copy(SHARED / "kneeSideInfo.csv", folder / info)
    zip_folders(folder)
    return folder


def save_phantom(path, voxels, affine):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels.astype(np.int16), affine), path)


@pytest.fixture(scope="module")
def invented(tmp_path_factory):
    """Both layouts of the hub: tables as XLSX at the top, and as CSV in info/."""
    if not SHARED.is_dir():
        pytest.skip("the invented tables are not beside the checkout")
    older = phantom_hub(tmp_path_factory.mktemp("older"), info="", ending=".xlsx")
    newer = tmp_path_factory.mktemp("newer")
    for path in older.glob("*.zip"):
        shutil.copy(path, newer)
    (newer / "info").mkdir()
    for path in [*SHARED.glob("subInfo_*.csv"), SHARED / "kneeSideInfo.csv"]:
        shutil.copy(path, newer / "info")
    return {"older": older, "newer": newer}


@pytest.mark.parametrize("layout", ["older", "newer"])
def test_a_whole_download_of_either_layout_arrives_as_pandas_reads_its_tables(invented, raw, layout):
    folder = raw.convert("oaizib_cm", invented[layout])
    found = cases_by_id(folder)
    rows = {
        f"oaizib_{row['CMT-ID']}": (split, row)
        for split in ("train", "test")
        for _, row in pd.read_csv(
            SHARED / f"subInfo_{split}.csv", dtype=str, keep_default_na=False
        ).iterrows()
    }
    assert len(rows) == 63
    assert set(found) == set(rows)
    for case_id, (split, row) in rows.items():
        case = found[case_id]
        assert (case.split, case.subject_id) == (split, row["OAI-SubjectID"])
        assert case.labels["kl"] == (int(row["KLGrade"]) if row["KLGrade"] else MISSING)
        assert case.labels["oa"] == (int(row["KLGrade"] >= "2") if row["KLGrade"] else MISSING)
        assert case.covariates["sex"] == {"1": "male", "2": "female"}[row["Gender"]]
        assert case.covariates["bmi"] == ("" if row["BMI"] in {"", "0"} else row["BMI"].removesuffix(".0"))
        assert (case.side, case.visit, case.covariates["age"]) == ("R", "V00", row["Age"])
        assert case.mask is not None
    assert verify_dataset(read_dataset(folder), processes=1) == []


def test_xlsx_and_csv_tables_give_the_same_bytes(invented, raw):
    older = raw.convert("oaizib_cm", invented["older"], number=360)
    newer = raw.convert("oaizib_cm", invented["newer"], number=361)
    assert (older / "cases.csv").read_bytes() == (newer / "cases.csv").read_bytes()
    flow = "participant_flow.csv"
    assert (older / flow).read_bytes() == (newer / flow).read_bytes()


def test_the_participant_flow_counts_what_pandas_counts(invented, raw):
    folder = raw.convert("oaizib_cm", invented["older"])
    flow = flow_of(folder)
    for split in ("train", "test"):
        grades = pd.read_csv(SHARED / f"subInfo_{split}.csv")["KLGrade"]
        assert flow["listed", split] == flow["converted", split] == flow["subjects", split] == len(grades)
        for grade in range(5):
            assert flow[f"kl {grade}", split] == (grades == grade).sum()
        assert flow["kl unknown", split] == grades.isna().sum()
        assert flow["oa 1", split] == (grades >= 2).sum()
    assert flow["listed", "total"] == 63
    printed = [line.split() for line in raw.out.splitlines()]
    assert ["listed", "42", "21", "63"] in printed


def test_rows_of_the_hub_are_sorted_by_grade_and_ours_are_not(invented, raw):
    grades = pd.read_csv(SHARED / "subInfo_train.csv")["KLGrade"].dropna()
    assert grades.is_monotonic_increasing, "the trap is there"
    folder = raw.convert("oaizib_cm", invented["older"])
    cases = [case for case in open_dataset(folder).cases if case.split == "train"]
    for start in range(0, 40, 10):
        assert len({case.labels["kl"] for case in cases[start : start + 10]}) >= 3
    folds = make_splits(cases, open_dataset(folder).description.targets)
    grade_of = {case.case_id: case.labels["kl"] for case in cases}
    for fold in folds:
        assert len({grade_of[case_id] for case_id in fold.val} - {MISSING}) == 5


# ---------------------------------------------------------------- what dataset.json and images are


def test_the_dataset_has_six_named_labels_targets_regions_and_the_source_of_its_grades(hub, raw):
    folder = raw.convert("oaizib_cm", hub)
    content = json.loads((folder / "dataset.json").read_text("utf-8"))
    names = ["background", "femur", "femoral_cartilage", "tibia"]
    names += ["medial_tibial_cartilage", "lateral_tibial_cartilage"]
    assert content["labels"] == {name: value for value, name in enumerate(names)}
    assert content["targets"]["kl"]["grades"] == [0, 1, 2, 3, 4]
    assert content["targets"]["oa"] == {
        "kind": "binary", "grades": [0, 1], "derived_from": "kl", "at_least": 2
    }  # fmt: skip
    assert sorted(open_dataset(folder).description.region_values("cartilage")) == [2, 4, 5]
    assert content["numTraining"] == 4
    assert content["licence"].startswith("CC-BY-NC-4.0")
    assert "radiographs" in content["label_noise"]
    assert "kappa 0.52" in raw.out, "who trains on these grades is told how noisy they are"


def test_images_keep_their_bytes_and_the_oblique_grid_of_their_qform(tmp_path, hub, raw):
    plain = write_hub(tmp_path / "plain", [knee(1)], [knee(5)])
    folder = raw.convert("oaizib_cm", plain)
    source = plain / "imagesTr" / "oaizib_001_0000.nii.gz"
    target = folder / "imagesTr" / "oaizib_001_0000.nii.gz"
    assert target.read_bytes() == source.read_bytes()
    image = nibabel.load(source)
    assert (int(image.header["qform_code"]), int(image.header["sform_code"])) == (1, 0)
    expected = nibabel.as_closest_canonical(image)
    assert np.degrees(np.arccos(expected.affine[0, 0] / 0.7)) > 2, "oblique"
    np.testing.assert_allclose(read_image([target], case_id="x").affine, expected.affine, atol=1e-4)


def test_no_row_of_a_patient_comes_with_oaplug():
    shipped = [*(ROOT / "datasets_meta").rglob("*"), *(ROOT / "plugins" / "oaplug_converters").rglob("*")]
    files = [path for path in shipped if path.suffix in {".json", ".py", ".csv", ".xlsx"}]
    assert len(files) > 10
    assert {path.suffix for path in files} <= {".json", ".py"}
    for path in files:
        assert not re.search(r"\b9\d{6}\b|\b0166\d{8}\b", path.read_text("utf-8")), path.name
    assert "YongchengYAO/OAIZIB-CM" in read_meta("oaizib_cm")["description"]


# ---------------------------------------------------------------- tables of OAIZIB-CM, trap by trap


@pytest.mark.parametrize("ending", [".xlsx", ".csv"])
def test_text_ids_keep_their_zeros_and_numbers_without_them_are_understood(tmp_path, raw, ending):
    rows = [knee(7), knee(12, **{"CMT-ID": "12"})]
    source = write_hub(tmp_path / "hub", rows[:1], [], ending=ending)
    save_table(source / f"subInfo_test{ending}", rows[1:], XLSX_COLUMNS)
    write_knee_files(source, "012", split="test")
    assert set(cases_by_id(raw.convert("oaizib_cm", source))) == {"oaizib_007", "oaizib_012"}


def test_a_left_knee_is_left_by_its_code_and_a_blank_code_is_told_by_knee_side_info(tmp_path, raw):
    source = write_hub(tmp_path / "hub", [knee(1, KneeSide=2), knee(2, KneeSide=None)], [], sides="left")
    cases = cases_by_id(raw.convert("oaizib_cm", source))
    assert [cases[f"oaizib_00{n}"].side for n in (1, 2)] == ["L", "L"]


def test_without_knee_side_info_sides_come_from_the_table_and_its_absence_is_told(tmp_path, raw):
    source = write_hub(tmp_path / "hub", [knee(1, KneeSide=2), knee(2), knee(3, KneeSide=None)], [])
    (source / "kneeSideInfo.csv").unlink()
    cases = cases_by_id(raw.convert("oaizib_cm", source))
    assert [cases[f"oaizib_00{n}"].side for n in (1, 2, 3)] == ["L", "R", None]
    assert "missing: kneeSideInfo.csv" in raw.out


@pytest.mark.parametrize(("missing", "shown"), [(None, ""), ("", ""), (0, ""), (0.0, ""), (31.0, "31")])
@pytest.mark.parametrize("ending", [".xlsx", ".csv"])
def test_a_bmi_that_is_blank_or_zero_is_unknown(tmp_path, raw, ending, missing, shown):
    source = write_hub(tmp_path / "hub", [knee(1, BMI=missing)], [], ending=ending)
    (case,) = cases_by_id(raw.convert("oaizib_cm", source)).values()
    assert case.covariates["bmi"] == shown


def test_a_knee_without_a_grade_is_kept_without_a_label(tmp_path, raw):
    source = write_hub(tmp_path / "hub", [knee(1, KLGrade=None), knee(2, KLGrade=2.0)], [])
    folder = raw.convert("oaizib_cm", source)
    cases = cases_by_id(folder)
    assert cases["oaizib_001"].labels == {"kl": MISSING, "oa": MISSING}
    assert cases["oaizib_002"].labels == {"kl": 2, "oa": 1}
    assert flow_of(folder)["kl unknown", "train"] == 1


def test_two_knees_and_two_visits_of_a_subject_stay_on_one_side_of_every_fold(tmp_path, raw):
    rows = [knee(n, SubjectID=9000000 + n // 2, KneeSide=1 + n % 2) for n in range(20)]
    rows = [row | {"CMT-ID": f"{n + 1:03d}", "Path": f"{n % 4}.C.2/x"} for n, row in enumerate(rows)]
    folder = raw.convert("oaizib_cm", write_hub(tmp_path / "hub", rows, [], sides="right", masks=False),
                         status=2)  # fmt: skip
    assert raw.out.count("kneeSideInfo.csv has R") == 10, "the left ones contradict kneeSideInfo.csv"
    (tmp_path / "hub" / "kneeSideInfo.csv").unlink()
    assert raw.convert("oaizib_cm", tmp_path / "hub") == folder
    dataset = open_dataset(folder)
    assert {case.visit for case in dataset.cases} == {"V00", "V01", "V02", "V03"}
    subject_of = {case.case_id: case.subject_id for case in dataset.cases}
    assert set(Counter(subject_of.values()).values()) == {2}
    for fold in make_splits(dataset.cases, dataset.description.targets):
        assert not {subject_of[c] for c in fold.train} & {subject_of[c] for c in fold.val}


WRONG = {
    "grade 5": ({"KLGrade": 5}, "target 'kl' has no grade '5' (grades: 0, 1, 2, 3, 4)"),
    "side 3": ({"KneeSide": 3}, "KneeSide '3': expected 1 (right), 2 (left) or a blank"),
    "side against kneeSideInfo": ({"KneeSide": 2}, "KneeSide 2 is L, but kneeSideInfo.csv has R"),
    "gender": ({"Gender": "x"}, "Gender 'x': expected 1 (male), 2 (female)"),
    "age": ({"Age": "old"}, "Age 'old': expected a number or a blank"),
    "no subject": ({"SubjectID": None}, "SubjectID is blank"),
    "no id": ({"CMT-ID": "A1"}, "CMT-ID 'A1': expected a number such as 001"),
}


@pytest.mark.parametrize(("change", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_cell_is_told_with_its_row_and_all_other_cases_are_converted(tmp_path, raw, change, words):
    source = write_hub(tmp_path / "hub", [knee(1), knee(2), knee(3)], [knee(4)])
    save_table(source / "subInfo_train.xlsx", [knee(1), knee(2, **change), knee(3)], XLSX_COLUMNS)
    folder = raw.convert("oaizib_cm", source, status=2)
    (line,) = [line for line in raw.out.splitlines() if line.startswith("problem: ")]
    assert words in line
    assert "subInfo_train.xlsx:3: " in line
    assert "problems (above): 1; mend these and run the same command again" in raw.err
    assert set(cases_by_id(folder)) == {"oaizib_001", "oaizib_003", "oaizib_004"}
    raw.convert("oaizib_cm", source, "--skip-bad")
    save_table(source / "subInfo_train.xlsx", [knee(1), knee(2), knee(3)], XLSX_COLUMNS)
    raw.convert("oaizib_cm", source)
    assert len(cases_by_id(folder)) == 4, "what was mended is converted by the next run"


def test_a_knee_listed_twice_and_a_subject_in_both_splits_are_told_and_left_out(tmp_path, raw):
    train = [knee(1), knee(2), knee(2, KLGrade=4)]
    source = write_hub(tmp_path / "hub", train, [knee(3, SubjectID=9000001), knee(4)])
    folder = raw.convert("oaizib_cm", source, status=2)
    assert set(cases_by_id(folder)) == {"oaizib_001", "oaizib_004"}
    assert re.search(r"case oaizib_002, \S*xlsx:4: is in \S*xlsx:3 too; keep one row", raw.out)
    assert re.search(r"case oaizib_003, \S*: its subject has the training case oaizib_001 too", raw.out)
    flow = flow_of(folder)
    assert flow["left out: several rows", "train"] == flow["left out: subject in both splits", "test"] == 1


TABLE_FAULTS = {
    "no column": (lambda p: save_table(p, [{"CMT-ID": "001", "KLGrade": 1}]), "no column 'SubjectID'"),
    "damaged": (lambda p: p.write_bytes(p.read_bytes()[:500]), "cannot be read as XLSX"),
    "web page": (lambda p: p.write_text("<html>not found</html>"), "cannot be read as XLSX"),
    "empty": (lambda p: save_table(p, [{"": None}]), "is empty"),
}


@pytest.mark.parametrize(("change", "words"), TABLE_FAULTS.values(), ids=TABLE_FAULTS)
def test_a_table_that_cannot_be_used_is_named_and_nothing_is_left_behind(hub, raw, change, words):
    change(hub / "subInfo_train.xlsx")
    raw.convert("oaizib_cm", hub, status=2)
    assert f"{hub / 'subInfo_train.xlsx'}" in raw.err
    assert words in raw.err
    assert not raw.folder().exists()


def test_a_row_of_knee_side_info_that_is_none_is_named(hub, raw):
    (hub / "kneeSideInfo.csv").write_text("oaizib_001.nii.gz,right\noaizib_002.nii.gz,both\n", "utf-8")
    raw.convert("oaizib_cm", hub, status=2)
    assert "kneeSideInfo.csv:2: expected oaizib_001.nii.gz,right" in raw.err


# ---------------------------------------------------------------- partial, damaged and hostile downloads


def test_a_partial_download_converts_what_is_there_lists_the_rest_and_is_completed_later(hub, raw, tmp_path):
    later = tmp_path / "later"
    later.mkdir()
    for name in ("imagesTs.zip", "labelsTr.zip", "subInfo_test.xlsx"):
        shutil.move(hub / name, later / name)
    folder = raw.convert("oaizib_cm", hub)
    assert "missing: subInfo_test (.xlsx or .csv)" in raw.out
    assert "no mask: 4 cases: oaizib_001" in raw.out
    assert "in no table, not converted: 2 cases: oaizib_005, oaizib_006" in raw.out
    assert flow_of(folder)["with a mask", "total"] == 0
    shutil.move(later / "subInfo_test.xlsx", hub)
    raw.convert("oaizib_cm", hub)
    assert "left out: oaizib_005, oaizib_006: no image in imagesTs" in raw.out
    record = json.loads((folder / "conversion.json").read_text("utf-8"))
    assert [one["case"] for one in record["excluded"]] == ["oaizib_005", "oaizib_006"]
    for path in [*later.iterdir(), *hub.glob("imagesTr.zip")]:
        shutil.move(path, hub) if path.parent == later else path.unlink()
    raw.convert("oaizib_cm", hub)
    cases = cases_by_id(folder)
    assert len(cases) == 6, "the images whose zip was deleted meanwhile are there from the first run"
    assert all(case.mask is not None for case in cases.values())
    assert "missing" not in raw.out


def test_zips_and_folders_may_be_mixed_and_a_zip_may_be_unpacked_into_a_folder_of_its_name(tmp_path, raw):
    source = write_hub(tmp_path / "hub", [knee(1), knee(2)], [knee(3)])
    nested = source / "imagesTs" / "imagesTs"
    nested.mkdir()
    shutil.move(source / "imagesTs" / "oaizib_003_0000.nii.gz", nested)
    with zipfile.ZipFile(source / "imagesTr.zip", "w") as archive:
        archive.write(source / "imagesTr" / "oaizib_002_0000.nii.gz", "oaizib_002_0000.nii.gz")
    (source / "imagesTr" / "oaizib_002_0000.nii.gz").unlink()
    assert len(cases_by_id(raw.convert("oaizib_cm", source))) == 3


def test_a_zip_that_was_cut_short_is_named_and_the_others_are_converted(hub, raw):
    path = hub / "imagesTs.zip"
    path.write_bytes(path.read_bytes()[:-300])
    folder = raw.convert("oaizib_cm", hub, status=2)
    assert f"problem: {path}: is damaged or not whole; download it again" in raw.out
    assert set(cases_by_id(folder)) == {f"oaizib_00{n}" for n in range(1, 5)}


def test_a_zip_with_a_damaged_member_loses_that_case_only(hub, raw):
    path = hub / "imagesTr.zip"
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo("imagesTr/oaizib_002_0000.nii.gz")
    content = bytearray(path.read_bytes())
    content[member.header_offset + 30 + len(member.filename) + 40] ^= 0xFF
    path.write_bytes(bytes(content))
    folder = raw.convert("oaizib_cm", hub, status=2)
    assert f"case oaizib_002, {path}:imagesTr/oaizib_002_0000.nii.gz: cannot be unpacked" in raw.out
    assert "oaizib_002" not in cases_by_id(folder)
    assert not (folder / "imagesTr" / "oaizib_002_0000.nii.gz").exists()
    assert not list(folder.rglob(".writing-*"))


@pytest.mark.parametrize(
    "name",
    ["../../oaizib_002_0000.nii.gz", "/oaizib_002_0000.nii.gz", "..\\oaizib_002.nii.gz", "C:/x.nii.gz"],
)
def test_a_zip_whose_members_would_escape_is_refused_and_nothing_is_written_elsewhere(
    hub, raw, tmp_path, name
):
    before = set(tmp_path.rglob("*"))
    (hub / "imagesTr.zip").unlink()
    with zipfile.ZipFile(hub / "imagesTr.zip", "w") as archive:
        archive.writestr("imagesTr/oaizib_001_0000.nii.gz", b"x")
        archive.writestr(zipfile.ZipInfo(name), b"evil")
    folder = raw.convert("oaizib_cm", hub, status=2)
    assert "lies outside of the folder it is unpacked into" in raw.out
    written = {path for path in set(tmp_path.rglob("*")) - before if folder not in path.parents}
    assert written <= {raw.root, folder}


def test_a_symbolic_link_in_a_zip_is_passed_over(hub, raw):
    (hub / "imagesTr.zip").unlink()
    with zipfile.ZipFile(hub / "imagesTr.zip", "w") as archive:
        link = zipfile.ZipInfo("imagesTr/oaizib_001_0000.nii.gz")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    folder = raw.convert("oaizib_cm", hub)
    assert set(cases_by_id(folder)) == {"oaizib_005", "oaizib_006"}


BAD_IMAGES = {
    "pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "run git lfs pull"),
    "empty file": (b"", "is empty"),
    "web page": (b"<html>403</html>", "cannot be read as an image"),
    "half a header": (gzip.compress(b"\x5c\x01\x00\x00" + bytes(100)), "cannot be read as an image"),
}


@pytest.mark.parametrize(("content", "words"), BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_a_file_that_is_no_image_is_named_with_its_case(tmp_path, raw, content, words):
    source = write_hub(tmp_path / "hub", [knee(1), knee(2)], [])
    bad = source / "imagesTr" / "oaizib_002_0000.nii.gz"
    bad.write_bytes(content)
    folder = raw.convert("oaizib_cm", source, status=2)
    assert f"problem: case oaizib_002, {bad}: " in raw.out
    assert words in raw.out
    assert set(cases_by_id(folder)) == {"oaizib_001"}
    save_image(bad, seed=2)
    raw.convert("oaizib_cm", source)
    assert len(cases_by_id(folder)) == 2


@pytest.mark.parametrize("kind", ["missing", "empty", "without images"])
def test_a_source_that_is_none_is_refused_in_one_line_and_leaves_no_folder(tmp_path, raw, kind):
    source = tmp_path / "hub"
    if kind != "missing":
        source.mkdir()
    if kind == "without images":
        save_table(source / "subInfo_train.csv", [knee(1)], XLSX_COLUMNS)
    raw.convert("oaizib_cm", source, status=2)
    assert str(source) in raw.err
    expected = {"without images": "none of 1 listed cases", "empty": "subInfo_train", "missing": "no folder"}
    assert expected[kind] in raw.err
    assert not raw.folder().exists()


# ---------------------------------------------------------------- links and copies


def test_unpacked_images_become_hard_links_and_the_source_is_left_as_it_was(tmp_path, raw):
    source = write_hub(tmp_path / "hub", [knee(1)], [])
    path = source / "imagesTr" / "oaizib_001_0000.nii.gz"
    path.chmod(0o444)
    before = (path.stat().st_mode, path.stat().st_mtime_ns, path.read_bytes())
    folder = raw.convert("oaizib_cm", source)
    assert (folder / "imagesTr" / path.name).samefile(path)
    assert (path.stat().st_mode, path.stat().st_mtime_ns, path.read_bytes()) == before


def test_symbolic_links_as_download_caches_have_them_are_followed(tmp_path, raw):
    source = write_hub(tmp_path / "hub", [knee(1)], [])
    path, blob = source / "imagesTr" / "oaizib_001_0000.nii.gz", tmp_path / "blob"
    path.rename(blob)
    path.symlink_to(blob)
    target = raw.convert("oaizib_cm", source) / "imagesTr" / path.name
    assert not target.is_symlink()
    assert target.samefile(blob)


@pytest.mark.parametrize("how", ["asked for", "no links here"])
def test_images_are_copied_where_that_is_asked_for_or_links_cannot_be_made(tmp_path, raw, monkeypatch, how):
    def refuse(*_arguments, **_options):
        raise OSError(18, "Invalid cross-device link")

    source = write_hub(tmp_path / "hub", [knee(1)], [])
    if how == "no links here":
        monkeypatch.setattr(artifacts.os, "link", refuse)
    options = {"place": "copy"} if how == "asked for" else None
    folder = raw.convert("oaizib_cm", source, options=options)
    path = source / "imagesTr" / "oaizib_001_0000.nii.gz"
    target = folder / "imagesTr" / path.name
    assert not target.samefile(path)
    assert target.read_bytes() == path.read_bytes()
    before = listing(folder / "imagesTr")
    raw.convert("oaizib_cm", source, options=options)
    assert listing(folder / "imagesTr") == before, "a copy that is there is not made again"


# ---------------------------------------------------------------- again, interrupted, side by side


def test_running_again_changes_no_image_and_writes_the_same_tables(hub, raw):
    folder = raw.convert("oaizib_cm", hub)
    before, tables = listing(folder), {p.name: p.read_bytes() for p in folder.glob("*.*") if p.is_file()}
    said = raw.out
    raw.convert("oaizib_cm", hub)
    after = listing(folder)
    assert {name: after[name] for name in after if "/" in name} == {
        name: before[name] for name in before if "/" in name
    }
    assert {p.name: p.read_bytes() for p in folder.glob("*.*") if p.is_file()} == tables
    assert raw.out == said


def test_an_image_that_changed_in_the_source_is_brought_again(tmp_path, raw):
    source = write_hub(tmp_path / "hub", [knee(1)], [])
    path = source / "imagesTr" / "oaizib_001_0000.nii.gz"
    folder = raw.convert("oaizib_cm", source)
    path.unlink()
    save_image(path, seed=99, shape=(6, 7, 6))
    raw.convert("oaizib_cm", source)
    assert (folder / "imagesTr" / path.name).read_bytes() == path.read_bytes()


def test_an_interrupted_conversion_has_no_half_case_and_goes_on_where_it_stopped(hub, raw, monkeypatch):
    copied = []
    copy = shutil.copyfileobj

    def stop_in_the_third(source, target, length=0):
        copied.append(source.name)
        if len(copied) == 3:
            target.write(source.read(100))
            target.flush()
            raise KeyboardInterrupt
        copy(source, target, length)

    monkeypatch.setattr(placing.shutil, "copyfileobj", stop_in_the_third)
    raw.convert("oaizib_cm", hub, status=130)
    folder = raw.folder()
    assert "what was finished is kept" in raw.err
    assert not (folder / "dataset.json").exists()
    assert json.loads((folder / "conversion.json").read_text("utf-8"))["finished"] is False
    there = listing(folder)
    assert sum("/" in name for name in there) == 2
    raw.convert("oaizib_cm", hub)
    assert len(copied) == 3 + 10, "two files were there, ten were left"
    assert {name: listing(folder)[name] for name in there if "/" in name} == {
        name: entry for name, entry in there.items() if "/" in name
    }
    assert verify_dataset(read_dataset(folder), processes=1) == []


def test_what_a_killed_conversion_left_half_written_is_removed(hub, raw):
    folder = raw.convert("oaizib_cm", hub)
    (folder / "imagesTr" / ".writing-ab-oaizib_009_0000.nii.gz").write_bytes(b"half")
    raw.convert("oaizib_cm", hub)
    assert not list(folder.rglob(".writing-*"))


@pytest.mark.slow
def test_a_conversion_that_is_killed_at_any_time_leaves_whole_files_only(tmp_path, raw):
    source = write_hub(tmp_path / "hub", [knee(n) for n in range(1, 30)], [knee(30)], zipped=True)
    code = "import sys; from oaplug.commands.convert import main; sys.exit(main(sys.argv[1:]))"
    words = ["oaizib_cm", source, "-d", "360", "--raw", raw.root]
    with zipfile.ZipFile(source / "imagesTr.zip") as archive:
        whole = {Path(m.filename).name: m.file_size for m in archive.infolist()}
    for wanted in (1, 20, 45):
        process = subprocess.Popen([sys.executable, "-c", code, *map(str, words)], stdout=subprocess.DEVNULL)
        while process.poll() is None and len(list(raw.folder().glob("*/oaizib*"))) < wanted:
            pass
        process.kill()
        process.wait()
        for path in raw.folder().glob("imagesTr/oaizib*"):
            assert path.stat().st_size == whole[path.name]
    raw.convert("oaizib_cm", source)
    assert len(cases_by_id(raw.folder())) == 30


def test_a_dataset_of_another_converter_other_options_or_another_name_is_not_written_into(hub, raw, tmp_path):
    folder = raw.convert("oaizib_cm", hub)
    raw.convert("oaizib_cm", hub, options={"place": "link"})
    before = listing(folder)
    raw.convert("oaizib_cm", hub, options={"place": "copy"}, status=2)
    assert "written with place='link', now 'copy'; remove it or choose another id" in raw.err
    raw.convert("table", hub, "--name", "oaizib_cm", status=2)
    assert "written by oaizib_cm; remove it" in raw.err
    raw.convert("oaizib_cm", hub, "--name", "Other", status=2)
    assert f"{folder} exists already" in raw.err
    (folder / "conversion.json").unlink()
    raw.convert("oaizib_cm", hub, status=2)
    assert f"{folder} exists already; remove it" in raw.err
    before.pop("conversion.json")
    assert listing(folder) == before


def test_two_conversions_into_one_folder_at_a_time_are_refused(hub, raw):
    from filelock import FileLock

    folder = raw.convert("oaizib_cm", hub)
    with FileLock(folder / ".conversion.lock"):
        raw.convert("oaizib_cm", hub, status=2)
        assert "is being written by another oaplug_convert" in raw.err
    raw.convert("oaizib_cm", hub)


def test_progress_is_told_case_by_case(hub, tmp_path):
    from oaplug_converters.oaizib_cm import OaizibConverter
    from oaplug_converters.options import OaizibOptions

    from oaplug.core.converter import RawFolder

    told = []
    folder = RawFolder(
        tmp_path / "Dataset360_Told", lambda done, total, what: told.append((done, total, what))
    )
    OaizibConverter(OaizibOptions()).convert(hub, folder)
    assert told == [(n, 6, f"oaizib_00{n}") for n in range(1, 7)]


# ---------------------------------------------------------------- any table


@pytest.fixture
def source(tmp_path):
    return write_images_with_table(tmp_path / "images")


MASKS = {"mask": "masks/{ID}_seg.nii.gz"}


def test_a_mapped_table_gives_ids_sides_splits_grades_covariates_and_masks(source, raw):
    folder = raw.convert("table", source, options=TABLE_OPTIONS | MASKS)
    cases = cases_by_id(folder)
    table = pd.read_excel(source / "cases.xlsx")
    assert list(cases) == table["ID"].tolist()
    for _, row in table.iterrows():
        case = cases[row["ID"]]
        assert case.subject_id == row["person"]
        assert (case.side, case.visit) == ({1: "R", 2: "L"}[int(row["knee"])], "V01")
        assert case.split == {"training": "train", "testing": "test"}[row["set"]]
        assert case.labels["kl"] == (MISSING if pd.isna(row["KLGrade"]) else int(row["KLGrade"]))
        assert case.labels["oa"] == (MISSING if pd.isna(row["KLGrade"]) else int(row["KLGrade"] >= 2))
        assert case.covariates == {"age": str(row["years"])}
        assert case.images[0].samefile(source / row["file"])
        assert (case.mask is None) == (row["ID"] == "k3")
    assert "columns not used: scanner" in raw.out
    assert flow_of(folder)["with a mask", "total"] == 4


def test_options_may_come_from_a_file_and_set_wins(source, raw, tmp_path):
    (tmp_path / "options.json").write_text(json.dumps(TABLE_OPTIONS | {"case_id": "nothing"}), "utf-8")
    arguments = ("--settings", tmp_path / "options.json", "--set", "case_id=ID")
    assert len(cases_by_id(raw.convert("table", source, *arguments))) == 5


@pytest.mark.parametrize(
    "pattern",
    ["scans/{number:3}.nii.gz", "scans/{number:3}.*", "{folder}/00{number}.nii.gz", "s*s/{number:03}.nii.gz"],
)
def test_images_are_found_by_patterns_of_columns_zeros_and_stars(source, raw, pattern):
    rows = [{"case_id": f"a{n}", "number": n, "folder": "scans"} for n in range(1, 6)]
    save_table(source / "cases.xlsx", rows)
    cases = cases_by_id(raw.convert("table", source, options={"image": pattern}))
    for n in range(1, 6):
        assert cases[f"a{n}"].images[0].samefile(source / "scans" / f"00{n}.nii.gz")
    assert "no targets: nothing to train" in raw.out


def test_two_channels_come_from_two_columns(source, raw):
    rows = [{"case_id": f"a{n}", "t1": f"scans/00{n}.nii.gz", "t2": f"masks/k{n}_seg.nii.gz"} for n in (1, 2)]
    save_table(source / "cases.xlsx", rows)
    folder = raw.convert("table", source, options={"image": ["t1", "t2"], "channels": ["DESS", "T2"]})
    dataset = open_dataset(folder)
    assert dataset.description.channel_names == ("DESS", "T2")
    for case in dataset.cases:
        assert [path.name for path in case.images] == [f"{case.case_id}_000{c}.nii.gz" for c in (0, 1)]
        assert read_image(case.images, case_id="x").data.shape[0] == 2


def test_mixed_formats_become_compressed_nifti_with_the_same_voxels_on_the_same_grid(tmp_path, raw):
    source = tmp_path / "images"
    for n, ending in enumerate((".nii", ".mha", ".nrrd", ".mhd", ".nii.gz")):
        save_image(source / "made.nii.gz", seed=n)
        image = sitk.ReadImage(source / "made.nii.gz")
        image.SetMetaData("PatientName", "DOE^JANE")
        sitk.WriteImage(image, source / f"a{n}{ending}")
    (source / "made.nii.gz").unlink()
    rows = [{"case_id": f"a{n}", "image": next(source.glob(f"a{n}.[nm]*")).name} for n in range(5)]
    save_table(source / "cases.csv", rows)
    folder = raw.convert("table", source)
    for n, case in enumerate(open_dataset(folder).cases):
        expected = read_image([source / rows[n]["image"]], case_id="x")
        found = read_image(case.images, case_id="x")
        np.testing.assert_array_equal(found.data, expected.data)
        np.testing.assert_allclose(found.affine, expected.affine, atol=1e-5)
        assert b"DOE" not in gzip.decompress(case.images[0].read_bytes())
    before = listing(folder / "imagesTr")
    raw.convert("table", source)
    assert listing(folder / "imagesTr") == before


def test_one_format_for_all_is_kept_as_it_is(tmp_path, raw):
    source = tmp_path / "images"
    save_image(source / "a.nii.gz", seed=0)
    sitk.WriteImage(sitk.ReadImage(source / "a.nii.gz"), source / "a.nrrd")
    save_table(source / "cases.csv", [{"case_id": "a", "image": "a.nrrd"}])
    folder = raw.convert("table", source)
    assert (folder / "imagesTr" / "a_0000.nrrd").samefile(source / "a.nrrd")
    assert open_dataset(folder).description.file_ending == ".nrrd"


def test_nifti_2_is_an_image_too(tmp_path, raw):
    source = tmp_path / "images"
    first = nibabel.load(save_image(source / "a.nii.gz", seed=0))
    second = nibabel.Nifti2Image(np.asarray(first.dataobj), first.affine)
    nibabel.save(second, source / "a.nii")
    save_table(source / "cases.csv", [{"case_id": "a", "image": "a.nii"}])
    dataset = open_dataset(raw.convert("table", source))
    found = read_image(dataset.cases[0].images, case_id="a")
    expected = read_image([source / "a.nii.gz"], case_id="a")
    np.testing.assert_array_equal(found.data, expected.data)
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-4)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_tables_may_be_separated_by_comma_semicolon_or_tab(tmp_path, delimiter):
    path = tmp_path / "cases.csv"
    text = "\n".join(
        delimiter.join(row) for row in (("case_id", "note"), ("001", '"x, y"'), ("", ""), ("2", ""))
    )
    path.write_text(text, encoding="utf-8-sig")
    expected = pd.read_csv(path, sep=delimiter, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    table = read_table(path)
    assert list(table.columns) == list(expected.columns)
    assert [dict(row.cells) for row in table.rows] == [
        row for row in expected.to_dict("records") if any(row.values())
    ]
    assert [row.line for row in table.rows] == [2, 4]


def test_cells_of_xlsx_are_text_as_people_see_them(tmp_path):
    import datetime

    rows = [{"a": "007", "b": 7.0, "c": 7.25, "d": datetime.date(2004, 5, 31), "e": None, "f": " x "}]
    table = read_table(save_table(tmp_path / "cases.xlsx", rows))
    assert dict(table.rows[0].cells) == {
        "a": "007",
        "b": "7",
        "c": "7.25",
        "d": "2004-05-31",
        "e": "",
        "f": "x",
    }


def test_an_xlsx_that_says_it_is_smaller_than_it_is_is_read_whole(tmp_path):
    path = save_table(tmp_path / "whole.xlsx", [{"case_id": f"c{n}", "kl": n} for n in range(4)])
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "cases.xlsx", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b'<dimension ref="A1:B5"', b'<dimension ref="A1"'))
    assert len(read_table(tmp_path / "cases.xlsx").rows) == 4


def writes(name, content):
    return lambda source: (source / name).write_bytes(content)


CASES = {
    "no column of ids": ({"case_id": "Id"}, None, "no column 'Id' (columns: ID, file"),
    "no column of images": ({"image": "path"}, None, "no column 'path'"),
    "no column in a pattern": ({"image": "scans/{nr}.nii.gz"}, None, "no column 'nr'"),
    "no column of a target": ({"targets": {"jsn": {"kind": "ordinal", "grades": [0, 1]}}}, None, "'jsn'"),
    "no column of subjects": ({"subject": "persn"}, None, "did you mean"),
    "a target that is none": ({"targets": {"years": {"kind": "o"}}}, None, "kind must be ordinal"),
    "covariate of a taken name": ({"covariates": {"side": "years"}}, None, "'side' has the name of another"),
    "unknown option": ({"imge": "file"}, None, "did you mean 'image'"),
    "channels without images": ({"channels": ["a", "b"]}, None, "image has 1 columns or patterns"),
    "two tables": ({}, lambda s: shutil.copy(s / "cases.xlsx", s / "other.xlsx"), "name the one that lists"),
    "no table": ({}, lambda s: (s / "cases.xlsx").unlink(), "has 0 tables"),
    "a table that is not there": ({"table": "x.csv"}, None, "x.csv does not exist"),
    "no such sheet": ({"sheet": "Blatt1"}, None, "no sheet 'Blatt1'"),
    "a column twice": ({"table": "c.csv"}, writes("c.csv", b"a,a\n1,2\n"), "two columns are called 'a'"),
    "a long row": ({"table": "c.csv"}, writes("c.csv", b"a,b\n1,2,3\n"), "c.csv:2: 3 cells below 2"),
    "latin-1": ({"table": "c.csv"}, writes("c.csv", b"gr\xf6\xdfe\n1\n"), "is not UTF-8"),
    "old excel": ({"table": "c.xls"}, writes("c.xls", b"x"), "expected a .csv or .xlsx file"),
}


@pytest.mark.parametrize(("options", "change", "words"), CASES.values(), ids=CASES)
def test_a_mapping_that_does_not_fit_is_one_line_and_leaves_nothing_behind(
    source, raw, options, change, words
):
    if change:
        change(source)
    raw.convert("table", source, options=TABLE_OPTIONS | options, status=2)
    assert words in raw.err
    assert not raw.folder("table").exists()
    assert not list(raw.root.glob("*")), "so that the next try finds an id that is free"


ROWS = {
    "image that is not there": ({"file": "scans/nine.nii.gz"}, "there is no file"),
    "image that is blank": ({"file": ""}, "a column of 'file' is blank"),
    "grade that is none": ({"KLGrade": 9}, "target 'kl' has no grade '9'"),
    "side that is none": ({"knee": "both"}, "side 'both': use L, R or leave it blank"),
    "split that is none": ({"set": "validation"}, "split 'validation': use train, test"),
    "id that is no name": ({"ID": "k/2"}, "case_id 'k/2': use letters"),
    "the same id": ({"ID": "k1"}, "cases.xlsx:2 too; keep one row"),
    "subject of the other split": ({"set": "testing"}, "its subject has the training case k3 too"),
}


@pytest.mark.parametrize(("change", "words"), ROWS.values(), ids=ROWS)
def test_a_row_that_cannot_be_converted_is_named_and_the_rest_is_there(source, raw, change, words):
    rows = pd.read_excel(source / "cases.xlsx", dtype=str, keep_default_na=False).to_dict("records")
    rows[1] |= change
    save_table(source / "cases.xlsx", rows)
    folder = raw.convert("table", source, options=TABLE_OPTIONS, status=2)
    (line,) = [line for line in raw.out.splitlines() if line.startswith("problem: ")]
    assert words in line
    assert "cases.xlsx:3" in line
    expected = {"k1", "k3", "k4", "k5"} - ({"k1"} if change == {"ID": "k1"} else set())
    assert set(cases_by_id(folder)) == expected
    flow = flow_of(folder)
    left = sum(
        count for (step, split), count in flow.items() if step.startswith("left out") and split == "total"
    )
    assert flow["listed", "total"] == flow["converted", "total"] + left


def test_a_pattern_that_fits_two_files_and_a_pair_of_files_are_refused(source, raw):
    sitk.WriteImage(sitk.ReadImage(source / "scans" / "001.nii.gz"), source / "pair.hdr")
    rows = [
        {"case_id": "a", "image": "scans/001.nii.gz"},
        {"case_id": "b", "image": "pair.hdr"},
        {"case_id": "c", "image": "cases.xlsx"},
    ]
    save_table(source / "cases.xlsx", rows)
    raw.convert("table", source, status=2)
    assert "case b" in raw.out
    assert "pair.hdr: of a pair .hdr/.img nobody can tell whether it is whole" in raw.out
    assert "cases.xlsx: cannot be read as an image" in raw.out
    options = {"image": "scans/*{case_id}*", "name": "x"}
    save_table(source / "cases.xlsx", [{"case_id": "00"}, {"case_id": "001"}])
    raw.convert("table", source, number=361, options={"image": options["image"]}, status=2)
    assert "5 files fit 'scans/*{case_id}*' (001.nii.gz, 002.nii.gz" in raw.out


def test_a_file_is_a_source_too_and_stars_in_cells_stand_for_themselves(source, raw, tmp_path):
    shutil.copy(source / "scans" / "001.nii.gz", source / "a[1].nii.gz")
    save_table(source / "cases.xlsx", [{"case_id": "a", "name": "a[1]"}, {"case_id": "b", "name": "*"}])
    folder = raw.convert("table", source / "cases.xlsx", options={"image": "{name}.nii.gz"}, status=2)
    assert set(cases_by_id(folder)) == {"a"}


def test_settings_that_are_no_object_are_refused(source, raw, tmp_path):
    (tmp_path / "s.json").write_text("[1]", "utf-8")
    raw.convert("table", source, "--settings", tmp_path / "s.json", status=2)
    assert "s.json: expected an object" in raw.err


def test_a_link_that_cannot_replace_a_folder_is_no_link(tmp_path):
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").mkdir()
    assert artifacts.atomic_link(tmp_path / "a", tmp_path / "b") is False
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_a_zip_member_that_is_encrypted_is_told(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x.nii.gz", b"x" * 50)
    content = bytearray((tmp_path / "a.zip").read_bytes())
    for signature in (b"PK\x03\x04", b"PK\x01\x02"):
        content[content.find(signature) + (6 if signature[2] == 3 else 8)] |= 1
    (tmp_path / "a.zip").write_bytes(bytes(content))
    member = placing.SourceFile(path=tmp_path / "a.zip", member="x.nii.gz")
    with pytest.raises(DatasetError, match=r"a\.zip:x\.nii\.gz: cannot be unpacked .*encrypted"):
        placing.place_file(member, tmp_path / "x.nii.gz", copy=False)
    assert not (tmp_path / "x.nii.gz").exists()


# ---------------------------------------------------------------- documentation


@pytest.mark.parametrize("name", ["oaizib_cm", "table", "dicom"])
def test_every_option_is_documented_with_its_default(name):
    spec = registry().spec(ConverterSpec, name)
    page = DOCS / "datasets.md"
    rows = table_of(page, name, first=f"option of `{name}`")
    if name == "dicom":
        shared = table_of(page, "table", first="option of `table`")
        rows += [row for row in shared if quoted(row[0]) not in (["image"], ["channels"])]
    documented = {quoted(option)[0]: quoted(default)[0] for option, default, _ in rows}
    expected = to_mapping(spec.options())
    assert documented == {key: json.dumps(value) for key, value in expected.items()}


def test_the_settings_that_the_documentation_shows_convert_such_a_source(tmp_path, raw):
    (settings,) = (block for block in code_blocks(DOCS / "datasets.md", "json") if "case_id" in block)
    source = tmp_path / "study"
    for n in (1, 2):
        save_image(source / "scans" / f"00{n}_dess.nii.gz", seed=n)
    save_image(source / "masks" / "001.nii.gz", seed=1, mask=True)
    rows = [
        {"ID": n, "person": f"p{n}", "knee": n, "set": "validation", "KLGrade": 2, "AGE_V00": 50}
        for n in (1, 2)
    ]
    save_table(source / "cases.csv", rows)
    (tmp_path / "study.json").write_text(settings, "utf-8")
    dataset = open_dataset(raw.convert("table", source, "--settings", tmp_path / "study.json"))
    assert [(case.side, case.labels["oa"], case.mask is None) for case in dataset.cases] == [
        ("R", 1, False),
        ("L", 1, True),
    ]
    assert {case.covariates["age"] for case in dataset.cases} == {"50"}
