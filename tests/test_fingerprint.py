"""The fingerprint: numbers against NumPy, nibabel and nnU-Net's own extractor."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oaplug.core.dataset import open_dataset
from oaplug.core.errors import DatasetError
from oaplug.prepare.fingerprint import (
    extract_fingerprint,
    fingerprint_to_json,
    measure_channel,
    pool_intensities,
    read_fingerprint,
    write_fingerprint,
)

GOLDEN = Path(__file__).parent / "data" / "nnunet_fingerprint_hippocampus.json"
HIPPOCAMPUS = Path(__file__).parents[2] / "shared" / "data" / "hippocampus"
DESCRIPTION = {
    "channel_names": {"0": "DESS", "1": "T2"},
    "labels": {"background": 0, "cartilage": 1, "meniscus": 2},
    "file_ending": ".nii.gz",
    "targets": {
        "kl": {"kind": "ordinal", "grades": [0, 1, 2, 3, 4]},
        "oa": {"kind": "binary", "derived_from": "kl", "at_least": 2},
    },
}
ROWS = """case_id,subject_id,side,visit,split,kl
b_late,b,R,12m,train,3
a,a,L,,train,
b_early,b,R,0m,train,3
c,c,,,train,0
broken_test_case,d,L,,test,4
"""
CODES = {"a": "LPS", "b_early": "SAR", "b_late": "RAS", "c": "PIL"}
SPACINGS_MM = {
    "a": (0.7, 0.4, 0.5),
    "b_early": (0.8, 0.4, 0.3),
    "b_late": (0.8, 0.4, 0.3),
    "c": (1.0, 2.0, 3.0),
}
SHAPES = {"a": (7, 9, 11), "b_early": (8, 6, 10), "b_late": (8, 7, 10), "c": (5, 6, 7)}


def save(path: Path, array, *, spacing_mm, code: str = "RAS") -> None:
    """Save an array given in RAS+ axes (D,H,W) with its axes stored in another order and direction."""
    image = nibabel.Nifti1Image(array, np.diag([*spacing_mm, 1.0]))
    start, end = (nibabel.orientations.axcodes2ornt(axes) for axes in ("RAS", code))
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image.as_reoriented(nibabel.orientations.ornt_transform(start, end)), path)


def knee_arrays(case_id: str):
    """Two channels (2,D,H,W) that are zero in a border, and a mask (D,H,W), all in RAS+ axes."""
    rng = np.random.default_rng(len(case_id))
    channels = np.zeros((2, *SHAPES[case_id]), dtype=np.float32)
    channels[0, 1:4, 2:5, 3:6] = rng.uniform(1, 2, size=(3, 3, 3))
    channels[1, 1:3, 2:4, 3:7] = rng.normal(100, 10, size=(2, 2, 4))
    mask = np.zeros(SHAPES[case_id], dtype=np.uint8)
    mask[1:4, 2:4, 3:6] = rng.integers(1, 3, size=(3, 2, 3))
    return channels, mask


@pytest.fixture
def folder(tmp_path):
    """Two channels, two visits of one subject, a left and a sideless knee, one case without a mask."""
    folder = tmp_path / "Dataset901_Knees"
    for case_id, code in CODES.items():
        channels, mask = knee_arrays(case_id)
        for index, channel in enumerate(channels):
            path = folder / "imagesTr" / f"{case_id}_{index:04d}.nii.gz"
            save(path, channel, spacing_mm=SPACINGS_MM[case_id], code=code)
        if case_id != "c":
            save(folder / "labelsTr" / f"{case_id}.nii.gz", mask, spacing_mm=SPACINGS_MM[case_id], code=code)
    (folder / "imagesTs").mkdir()
    (folder / "imagesTs" / "broken_test_case_0000.nii.gz").write_bytes(b"nothing may ever read this")
    (folder / "dataset.json").write_text(json.dumps(DESCRIPTION))
    (folder / "cases.csv").write_text(ROWS)
    return folder


def test_geometry_follows_ras_axes_in_the_order_of_case_ids_whatever_the_file_says(folder):
    fingerprint = extract_fingerprint(open_dataset(folder), processes=1)
    order = ["a", "b_early", "b_late", "c"]
    assert np.allclose(fingerprint.spacings_mm, [SPACINGS_MM[case] for case in order], rtol=1e-6)
    assert fingerprint.shapes == tuple(SHAPES[case] for case in order)


def test_the_box_after_cropping_holds_what_is_not_zero_in_any_channel(folder):
    fingerprint = extract_fingerprint(open_dataset(folder), processes=1)
    assert fingerprint.shapes_after_crop == ((3, 3, 4),) * 4


def test_sides_grades_subjects_and_channels_of_the_training_cases_are_counted(folder):
    fingerprint = extract_fingerprint(open_dataset(folder), processes=1)
    assert (fingerprint.num_cases, fingerprint.num_subjects, fingerprint.num_channels) == (4, 3, 2)
    assert fingerprint.sides == {"L": 1, "R": 2, "unknown": 1}
    assert fingerprint.grade_counts == {
        "kl": {"0": 1, "1": 0, "2": 0, "3": 2, "4": 0},
        "oa": {"0": 1, "1": 2},
    }
    assert fingerprint.missing_labels == {"kl": 1, "oa": 1}


def test_foreground_is_the_mask_or_without_one_what_is_not_zero_in_any_channel(folder):
    fingerprint = extract_fingerprint(open_dataset(folder), processes=1)
    for channel, found in enumerate(fingerprint.foreground_intensities):
        values = []
        for case_id in CODES:
            channels, mask = knee_arrays(case_id)
            foreground = mask > 0 if case_id != "c" else np.logical_or(*(channels != 0))
            values.append(channels[channel][foreground].astype(float))
        size = np.lcm.reduce([len(v) for v in values])
        pooled = np.concatenate([np.repeat(v, size // len(v)) for v in values])
        assert found.mean == pytest.approx(pooled.mean(), rel=1e-6)
        assert found.std == pytest.approx(pooled.std(), rel=1e-6)
        assert (found.min, found.max) == (pooled.min(), pooled.max())
        assert within_ranks(found.median, pooled, 0.5, tolerance=1 / (len(values) * min(map(len, values))))


def within_ranks(value: float, values, level: float, *, tolerance: float) -> bool:
    """Whether value lies between the quantiles of values at level - tolerance and level + tolerance."""
    low = np.quantile(values, max(level - tolerance, 0), method="lower")
    high = np.quantile(values, min(level + tolerance, 1), method="higher")
    return bool(low - 1e-6 <= value <= high + 1e-6)


samples = st.lists(
    st.sampled_from([1, 2, 3, 4, 6, 8, 12, 24]).flatmap(
        lambda size: st.lists(st.floats(-1000, 1000, width=32), min_size=size, max_size=size)
    ),
    min_size=1,
    max_size=6,
)


@settings(deadline=None)
@given(samples)
def test_cases_weigh_equally_however_many_foreground_voxels_they_have(cases):
    channels = [(measure_channel(np.array(values, dtype=np.float32)),) for values in cases]
    (found,) = pool_intensities(channels)
    pooled = np.concatenate([np.repeat(np.array(values, dtype=float), 24 // len(values)) for values in cases])
    assert found.mean == pytest.approx(pooled.mean(), rel=1e-9, abs=1e-9)
    assert found.std == pytest.approx(pooled.std(), rel=1e-6, abs=1e-6)
    heaviest = 1 / (len(cases) * min(map(len, cases)))
    for value, level in ((found.percentile_00_5, 0.005), (found.median, 0.5), (found.percentile_99_5, 0.995)):
        assert within_ranks(value, pooled, level, tolerance=heaviest)


def test_percentiles_of_one_case_are_those_of_hazen():
    values = np.random.default_rng(0).gamma(2, 50, size=4001).astype(np.float32)
    (found,) = pool_intensities([(measure_channel(values),)])
    expected = np.quantile(values.astype(float), (0.005, 0.5, 0.995), method="hazen")
    assert np.allclose([found.percentile_00_5, found.median, found.percentile_99_5], expected, rtol=1e-6)


def test_percentiles_of_large_foregrounds_keep_the_rank_that_is_promised():
    rng = np.random.default_rng(1)
    cases = [rng.gamma(2, scale, size=200_000).astype(np.float32) for scale in (10, 30, 90)]
    (found,) = pool_intensities([(measure_channel(case),) for case in cases])
    pooled = np.concatenate(cases)
    assert within_ranks(found.percentile_00_5, pooled, 0.005, tolerance=1e-4)
    assert within_ranks(found.median, pooled, 0.5, tolerance=1e-4)
    assert within_ranks(found.percentile_99_5, pooled, 0.995, tolerance=1e-4)


def test_processes_and_the_order_of_cases_change_nothing(folder):
    dataset = open_dataset(folder)
    reports = []
    expected = extract_fingerprint(dataset, processes=1)
    turned = replace(dataset, cases=dataset.cases[::-1])
    found = extract_fingerprint(turned, processes=2, progress=lambda *report: reports.append(report))
    assert fingerprint_to_json(found) == fingerprint_to_json(expected)
    assert [report[:2] for report in reports] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert {report[2] for report in reports} == set(CODES)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_file_that_cannot_be_used_is_named_with_its_case(folder, processes):
    (folder / "imagesTr" / "b_late_0001.nii.gz").write_bytes(b"cut off")
    with pytest.raises(DatasetError, match=r"b_late.*b_late_0001\.nii\.gz"):
        extract_fingerprint(open_dataset(folder), processes=processes)


def test_a_mask_on_another_grid_is_refused_with_case_and_file(folder):
    save(folder / "labelsTr" / "a.nii.gz", np.ones((7, 9, 12), dtype=np.uint8), spacing_mm=SPACINGS_MM["a"])
    with pytest.raises(DatasetError, match=r"case a.*labelsTr.a\.nii\.gz.*shape"):
        extract_fingerprint(open_dataset(folder), processes=1)


def test_a_case_with_an_empty_mask_contributes_no_intensities_but_its_geometry(folder):
    before = extract_fingerprint(open_dataset(folder), processes=1)
    zeros = np.zeros(SHAPES["b_late"], dtype=np.uint8)
    save(folder / "labelsTr" / "b_late.nii.gz", zeros, spacing_mm=SPACINGS_MM["b_late"])
    after = extract_fingerprint(open_dataset(folder), processes=1)
    assert after.shapes == before.shapes
    means = [
        channels[0][mask > 0 if case != "c" else channels.any(axis=0)].mean()
        for case in CODES
        if case != "b_late"
        for channels, mask in [knee_arrays(case)]
    ]
    assert after.foreground_intensities[0].mean == pytest.approx(np.mean(means), rel=1e-6)


def test_a_dataset_without_any_foreground_is_refused(folder):
    (folder / "cases.csv").write_text("case_id,kl\na,1\n")
    for path in folder.glob("images*/*"):
        if not path.name.startswith("a_"):
            path.unlink()
    save(
        folder / "labelsTr" / "a.nii.gz",
        np.zeros(SHAPES["a"], np.uint8),
        spacing_mm=SPACINGS_MM["a"],
        code="LPS",
    )
    with pytest.raises(DatasetError, match="no training case has foreground"):
        extract_fingerprint(open_dataset(folder), processes=1)


def test_a_dataset_without_training_cases_is_refused(folder):
    dataset = open_dataset(folder)
    with pytest.raises(DatasetError, match="no training cases"):
        extract_fingerprint(replace(dataset, cases=dataset.of_split("test")), processes=1)


def test_a_fingerprint_survives_its_file_and_keeps_no_case_id(folder, tmp_path):
    fingerprint = extract_fingerprint(open_dataset(folder), processes=1)
    path = write_fingerprint(tmp_path / "new" / "dataset_fingerprint.json", fingerprint)
    assert read_fingerprint(path) == fingerprint
    assert "b_early" not in path.read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 99}, "schema 99 is newer"),
        ({"num_case": 3}, "unknown key 'num_case'; did you mean 'num_cases'"),
        ({"spacings_mm": [[1, "wide", 1]]}, "spacings_mm"),
    ],
)
def test_a_damaged_fingerprint_file_is_refused_naming_the_key(folder, tmp_path, change, message):
    path = write_fingerprint(tmp_path / "f.json", extract_fingerprint(open_dataset(folder), processes=1))
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DatasetError, match=message):
        read_fingerprint(path)


def test_a_missing_fingerprint_says_which_command_makes_it(tmp_path):
    with pytest.raises(DatasetError, match="oaplug_extract_fingerprint"):
        read_fingerprint(tmp_path / "dataset_fingerprint.json")


@pytest.mark.slow
def test_the_hippocampus_has_the_fingerprint_that_nnunet_measures():
    if not HIPPOCAMPUS.is_dir():
        pytest.skip(f"the hippocampus data of the Medical Segmentation Decathlon is not in {HIPPOCAMPUS}")
    golden = json.loads(GOLDEN.read_text())
    found = extract_fingerprint(open_dataset(HIPPOCAMPUS), processes=1)
    assert np.allclose(found.spacings_mm, [spacing[::-1] for spacing in golden["spacings"]], rtol=1e-6)
    assert [list(shape) for shape in found.shapes_after_crop] == [
        s[::-1] for s in golden["shapes_after_crop"]
    ]
    (ours,) = found.foreground_intensities
    nnunet = golden["foreground_intensity_properties_per_channel"]["0"]
    assert (ours.min, ours.max) == (nnunet["min"], nnunet["max"])
    for name in ("mean", "std", "median", "percentile_00_5", "percentile_99_5"):
        assert getattr(ours, name) == pytest.approx(nnunet[name], rel=1e-3), name
