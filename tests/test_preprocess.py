"""Preprocessing: one volume as the plan wants it, a dataset once and no more than once."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import nibabel
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats
from sklearn.preprocessing import StandardScaler

from oaplug.core.case import Case
from oaplug.core.converter import RawFolder
from oaplug.core.dataset import DatasetDescription, open_dataset
from oaplug.core.errors import DatasetError, OaplugError, PlanError
from oaplug.core.plan import Configuration, Plan
from oaplug.core.volume import Volume
from oaplug.prepare import case_state
from oaplug.prepare import preprocess_dataset as batch
from oaplug.prepare.geometry import back_to_image, spacing_of
from oaplug.prepare.normalize import correct_bias, normalize
from oaplug.prepare.preprocess import PREPROCESSING_REVISION, prepare_volume
from oaplug.prepare.preprocess_dataset import preprocess_dataset
from oaplug.prepare.store import array_path, read_array, read_record, record_path, write_array

LOWRES = Configuration(
    data_identifier="lowres", spacing_mm=(1.5, 1.0, 1.25), size_voxels=(12, 20, 17), normalization=("none",)
)
OBLIQUE = nibabel.eulerangles.euler2mat(0.2, -0.3, 0.15)


def volume_of(data, *, directions=OBLIQUE, spacing=(0.8, 0.6, 0.7), origin=(-9.0, 4.0, 12.0)):
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing
    affine[:3, 3] = origin
    return Volume(data=data.astype(np.float32), spacing_mm=spacing_of(affine), affine=affine)


def knee(shape=(30, 40, 36), *, seed=0, channels=1):
    """A smooth bright thing, off the middle, in a black border."""
    generator = np.random.default_rng(seed)
    data = np.zeros((channels, *shape))
    data[:, 4:-3, 5:-9, 2:-6] = generator.uniform(
        50, 200, (channels, shape[0] - 7, shape[1] - 14, shape[2] - 8)
    )
    return data


def places_mm(shape, affine):
    return np.moveaxis(nibabel.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1)), -1, 0)


@pytest.mark.parametrize("fit", ["pad_crop", "stretch"])
@pytest.mark.parametrize("crop", ["nonzero", "none"])
@pytest.mark.parametrize("side", ["L", "R", None])
def test_a_prepared_volume_shows_every_place_where_its_affine_says(fit, crop, side):
    """Three channels that hold their own place in mm still do after preparation."""
    shape = (30, 40, 36)
    volume = volume_of(places_mm(shape, volume_of(np.zeros((1, *shape))).affine))
    prepared = prepare_volume(volume, replace(LOWRES, fit=fit, crop=crop), side=side)
    assert prepared.data.dtype == np.float32
    assert prepared.data.shape == (3, 12, 20, 17)
    margin = 3 * np.array(prepared.spacing_mm).reshape(3, 1, 1, 1)
    reach = places_mm((12, 20, 17), np.linalg.inv(volume.affine) @ prepared.affine)
    reach_mm = reach * np.array(volume.spacing_mm).reshape(3, 1, 1, 1)
    extent_mm = (np.array(shape) * volume.spacing_mm).reshape(3, 1, 1, 1)
    within = ((reach_mm > margin) & (reach_mm < extent_mm - margin)).all(axis=0)
    assert within.sum() > 100
    expected = places_mm((12, 20, 17), prepared.affine)
    assert_allclose(prepared.data[:, within], expected[:, within], atol=1e-4)


@pytest.mark.parametrize("fit", ["pad_crop", "stretch"])
@pytest.mark.parametrize("size", [(12, 20, 17), (21, 30, 40)])
def test_a_left_knee_comes_out_like_the_right_knee_that_is_its_mirror_image(fit, size):
    configuration = replace(LOWRES, fit=fit, size_voxels=size, normalization=("zscore",))
    data = knee(channels=2)
    right = prepare_volume(volume_of(data), configuration, side="R")
    left = prepare_volume(volume_of(data[:, ::-1]), configuration, side="L")
    assert_allclose(left.data, right.data, atol=1e-4)
    unmirrored = prepare_volume(volume_of(data[:, ::-1]), replace(configuration, mirror_left=False), side="L")
    assert np.abs(unmirrored.data - right.data).max() > 0.1


def test_the_middle_of_the_content_comes_to_the_middle_of_the_field_of_view():
    data = np.zeros((1, 30, 40, 36))
    data[0, 3:8, 22:31, 11:17] = 100
    for crop in ("nonzero", "none"):
        prepared = prepare_volume(volume_of(data), replace(LOWRES, crop=crop), side=None)
        middle = nibabel.affines.apply_affine(prepared.affine, (np.array([12, 20, 17]) - 1) / 2)
        expected = nibabel.affines.apply_affine(volume_of(data).affine, [5, 26, 13.5])
        assert np.linalg.norm(middle - expected) < np.linalg.norm(prepared.spacing_mm) / 2 + 1e-6


def test_the_size_of_the_field_of_view_does_not_change_intensities():
    """Else the amount of padding would tell the network how large the knee is."""
    configuration = replace(LOWRES, normalization=("zscore",))
    small = prepare_volume(volume_of(knee()), configuration, side="R")
    large = prepare_volume(volume_of(knee()), replace(configuration, size_voxels=(24, 40, 37)), side="R")
    assert_array_equal(large.data[:, 6:-6, 10:-10, 10:-10], small.data)
    assert large.data[0, 0, 0, 0] == large.data.min()


def test_zscore_is_the_standard_scaler_of_scikit_learn():
    data = knee(channels=2).astype(np.float32)
    expected = StandardScaler().fit_transform(data.reshape(2, -1).T.astype(float)).T.reshape(data.shape)
    assert_allclose(normalize(data, schemes=["zscore"]), expected, atol=1e-5)


def test_zscore_nonzero_is_fitted_to_non_zero_voxels_and_keeps_zeros_darkest():
    data = knee().astype(np.float32)
    filled = data != 0
    scaled = normalize(data, schemes=["zscore_nonzero"])
    expected = StandardScaler().fit_transform(data[filled].reshape(-1, 1).astype(float)).ravel()
    assert_allclose(scaled[filled], expected, atol=1e-5)
    assert scaled[~filled].max() < scaled[filled].min()


def test_rescale_0_1_maps_the_percentiles_of_scipy_to_0_and_1_and_clips_beyond():
    data = knee().astype(np.float32)
    low, high = (stats.scoreatpercentile(data.astype(float), percent) for percent in (0.5, 99.5))
    assert low < high < data.max()
    assert_allclose(normalize(data, schemes=["rescale_0_1"]), np.interp(data, [low, high], [0, 1]), atol=1e-5)


@pytest.mark.parametrize("scheme", ["zscore", "zscore_nonzero", "rescale_0_1"])
@pytest.mark.parametrize("value", [0.0, 73.5])
def test_a_constant_channel_becomes_zero(scheme, value):
    constant = np.full((1, 3, 4, 5), value, np.float32)
    assert_array_equal(normalize(constant, schemes=[scheme]), np.zeros_like(constant))


def test_each_channel_has_its_own_scheme():
    data = knee(channels=2).astype(np.float32)
    both = normalize(data, schemes=["none", "rescale_0_1"])
    assert_array_equal(both[0], data[0])
    assert_array_equal(both[1], normalize(data[1:], schemes=["rescale_0_1"])[0])


def test_another_number_of_schemes_than_channels_is_refused():
    configuration = replace(LOWRES, normalization=("zscore", "none"))
    with pytest.raises(PlanError, match="2 schemes for 3 channels; give one per channel"):
        prepare_volume(volume_of(knee(channels=3)), configuration, side=None)


def test_bias_correction_removes_a_slow_drift():
    """N4 brings a drifting ball back to the flat one, up to the gain that it cannot know."""
    shape = (16, 19, 18)
    d, h, w = (np.linspace(-1, 1, size) for size in shape)
    drift = np.exp(0.4 * d[:, None, None] - 0.3 * h[None, :, None] ** 2 + 0.2 * w[None, None, :])
    ball = np.linalg.norm(np.moveaxis(np.indices(shape), 0, -1) - [8, 9, 9], axis=-1) < 7.5
    flat = ball * (100 + 2 * np.random.default_rng(0).normal(size=shape))
    volume = volume_of((flat * drift)[None], spacing=(7.0, 5.5, 6.0))
    gain = correct_bias(volume).data[0][ball] / flat[ball]
    assert gain.std() / gain.mean() < 0.15 * drift[ball].std() / drift[ball].mean()


def test_bias_correction_is_applied_where_the_plan_asks_for_it_and_leaves_constants_alone():
    configuration = replace(LOWRES, bias_correction="n4")
    plain, corrected, again = (
        prepare_volume(volume_of(knee()), c, side=None) for c in (LOWRES, configuration, configuration)
    )
    assert np.abs(plain.data - corrected.data).max() > 0.1
    assert_array_equal(corrected.data, again.data)
    constant = volume_of(np.full((1, 16, 17, 18), 5.0))
    assert_array_equal(correct_bias(constant).data, constant.data)


@pytest.mark.parametrize("side", ["L", "R"])
def test_a_saliency_map_comes_back_onto_the_image(side):
    """A spot marked in the prepared volume is found where the image has it."""
    data = np.zeros((1, 30, 40, 36))
    data[0, 2:28, 3:37, 1:33] = 1
    data[0, 8:11, 22:25, 12:15] = 1000
    volume = volume_of(data)
    prepared = prepare_volume(volume, replace(LOWRES, size_voxels=(20, 30, 24)), side=side)
    back = back_to_image(
        prepared.data[0],
        prepared_affine=prepared.affine,
        image_shape=(30, 40, 36),
        image_affine=volume.affine,
    )
    weights = back * (back > 0.5 * back.max())
    found = [np.average(place, weights=weights) for place in np.indices(back.shape)]
    assert_allclose(found, [9, 23, 13], atol=0.4)


DESCRIPTION = DatasetDescription(
    name="Dataset001_Toy", channel_names=("DESS", "T2"), labels={"background": 0}, file_ending=".nii.gz"
)
SIDES = {"a": "R", "b": "L", "c": None, "d": "R", "e": "L"}


def save(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(data.astype(np.int16), volume_of(data[None]).affine), path)


@pytest.fixture
def raw(tmp_path):
    """A raw dataset of two channels with three training and two test cases."""
    folder = RawFolder(tmp_path / "raw")
    cases = []
    for seed, (case_id, side) in enumerate(SIDES.items()):
        split = "test" if case_id in "de" else "train"
        paths = folder.image_paths(case_id, split=split, description=DESCRIPTION)
        for path, channel in zip(paths, knee(seed=seed, channels=2), strict=True):
            save(path, channel)
        cases.append(Case(case_id=case_id, subject_id=case_id, images=paths, split=split, side=side))
    folder.write_tables(DESCRIPTION, cases)
    return folder.folder


def plan_of(**configurations):
    return Plan(dataset_name="Dataset001_Toy", configurations=configurations)


PLAN = plan_of(lowres=LOWRES)


def run(raw, *, plan=PLAN, names=("lowres",), processes=1, **options):
    return preprocess_dataset(
        open_dataset(raw), plan, names, raw.parent / "out", processes=processes, **options
    )


def test_every_case_is_written_as_its_prepared_volume_with_a_record(raw):
    report = run(raw)
    assert report.done == tuple(SIDES)
    assert report.skipped == report.problems == ()
    place = raw.parent / "out" / "lowres"
    assert sorted(path.name for path in place.iterdir()) == sorted(
        name for case_id in SIDES for name in (f"{case_id}.b2nd", f"{case_id}.json")
    )
    volume = volume_of(knee(seed=1, channels=2).astype(np.int16))
    expected = prepare_volume(volume, LOWRES, side="L")
    array, record = read_array(array_path(place, "b")), read_record(record_path(place, "b"))
    assert array.dtype == np.float16
    assert_allclose(array, expected.data, rtol=1e-3)
    assert record.shape == array.shape == (2, 12, 20, 17)
    assert record.side == "L"
    assert record.original_shape == volume.data.shape
    assert_allclose(record.affine, expected.affine, atol=1e-4)
    assert_allclose(record.original_affine, volume.affine, atol=1e-4)
    assert json.loads(record_path(place, "b").read_text())["schema"] == 2


def times(raw):
    return {path.name: path.stat().st_mtime_ns for path in (raw.parent / "out" / "lowres").iterdir()}


def test_running_again_does_nothing(raw):
    run(raw)
    before = times(raw)
    report = run(raw)
    assert report.done == ()
    assert report.skipped == tuple(SIDES)
    assert times(raw) == before


def change_an_image(raw, out):
    save(raw / "imagesTr" / "b_0001.nii.gz", knee(seed=99)[0])


def change_a_side(raw, out):
    table = raw / "cases.csv"
    table.write_text(table.read_text().replace("b,b,L", "b,b,R"))


def remove_an_array(raw, out):
    array_path(out, "b").unlink()


def remove_a_record(raw, out):
    record_path(out, "b").unlink()


def damage_an_array(raw, out):
    content = bytearray(array_path(out, "b").read_bytes())
    content[len(content) // 2] ^= 1
    array_path(out, "b").write_bytes(content)


def damage_a_record(raw, out):
    record_path(out, "b").write_text("{")


def write_a_record_of_other_code(raw, out):
    content = json.loads(record_path(out, "b").read_text())
    record_path(out, "b").write_text(json.dumps(content | {"revision": 0}))


@pytest.mark.parametrize(
    "change",
    [
        change_an_image,
        change_a_side,
        remove_an_array,
        damage_an_array,
        remove_a_record,
        damage_a_record,
        write_a_record_of_other_code,
    ],
)
def test_running_again_makes_only_the_case_that_is_missing_or_changed(raw, change):
    run(raw)
    change(raw, raw.parent / "out" / "lowres")
    report = run(raw)
    assert report.done == ("b",)
    assert report.skipped == ("a", "c", "d", "e")
    assert run(raw).done == ()


def test_a_changed_configuration_makes_every_case_anew(raw):
    run(raw)
    assert run(raw, plan=plan_of(lowres=replace(LOWRES, anti_aliasing=False))).done == tuple(SIDES)


def test_newer_code_makes_every_case_anew(raw, monkeypatch):
    run(raw)
    for module in (batch, case_state):
        monkeypatch.setattr(module, "PREPROCESSING_REVISION", PREPROCESSING_REVISION + 1)
    assert run(raw).done == tuple(SIDES)


VOXELS = {
    1: {
        "pad_crop": [0.0179, 0.9235, -0.4055, 0.6348, 0.7234],
        "stretch": [0.0, 1.0, -0.5285, 0.5775, 1.1345],
        "coarse": [-1.9742, 0.9391, -2.3415, 0.8385, -2.3415],
    }
}
"""By PREPROCESSING_REVISION: mean, standard deviation and three voxels of a volume prepared in three ways."""


@pytest.mark.parametrize(
    ("name", "change"),
    [("pad_crop", {}), ("stretch", {"fit": "stretch"}), ("coarse", {"spacing_mm": (2.5, 2.5, 2.5)})],
)
def test_code_that_gives_other_voxels_has_a_revision_of_its_own(name, change):
    """Where this fails, raise PREPROCESSING_REVISION and add the voxels; else old arrays count as current."""
    d, h, w = np.indices((30, 40, 36))
    data = 200 + 100 * np.sin(d / 4) * np.cos(h / 6) + 50 * np.sin(w / 3 + 1)
    data[:4] = data[:, :, -6:] = 0
    affine = np.array([[0.8, 0.05, 0, -9], [-0.05, 0.6, 0.04, 4], [0, -0.04, 0.7, 12], [0, 0, 0, 1]])
    volume = Volume(data=data[None].astype(np.float32), spacing_mm=spacing_of(affine), affine=affine)
    configuration = replace(LOWRES, normalization=("zscore",), **change)
    (voxels,) = prepare_volume(volume, configuration, side="L").data
    found = [voxels.mean(), voxels.std(), voxels[2, 3, 4], voxels[6, 10, 8], voxels[9, 15, 12]]
    assert_allclose(found, VOXELS[PREPROCESSING_REVISION][name], atol=1e-3)


def test_an_interruption_between_array_and_record_is_made_good(raw, monkeypatch):
    """The old record must not vouch for an array that another configuration made."""
    run(raw)
    for path in (raw.parent / "out" / "lowres").glob("*.json"):  # as earlier versions wrote it
        content = json.loads(path.read_text())
        del content["array_crc32"]
        path.write_text(json.dumps(content | {"schema": 1}))
    assert run(raw).skipped == tuple(SIDES)
    other = plan_of(lowres=replace(LOWRES, anti_aliasing=False))

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(batch, "write_record", stop)
        with pytest.raises(KeyboardInterrupt):
            run(raw, plan=other)
    assert run(raw).done == ("a",)


def test_a_second_configuration_leaves_the_first_alone(raw):
    run(raw)
    before = times(raw)
    both = plan_of(lowres=LOWRES, stretched=replace(LOWRES, data_identifier="stretched", fit="stretch"))
    assert run(raw, plan=both, names=("lowres", "stretched")).done == tuple(SIDES)
    assert times(raw) == before
    assert len(list((raw.parent / "out" / "stretched").glob("*.b2nd"))) == len(SIDES)


def test_configurations_that_share_a_folder_must_agree(raw):
    plan = plan_of(lowres=LOWRES, same=LOWRES, other=replace(LOWRES, fit="stretch"))
    assert run(raw, plan=plan, names=("lowres", "same")).done == tuple(SIDES)
    with pytest.raises(PlanError, match=r"'other' prepares cases differently .* data_identifier 'lowres'"):
        run(raw, plan=plan, names=("lowres", "other"))


def test_schemes_that_do_not_fit_the_channels_are_refused_before_any_work(raw):
    with pytest.raises(PlanError, match="3 schemes for 2 channels"):
        run(raw, plan=plan_of(lowres=replace(LOWRES, normalization=("none",) * 3)))
    assert not (raw.parent / "out").exists()


def test_bad_cases_do_not_stop_the_others_and_are_all_reported(raw):
    (raw / "imagesTr" / "a_0000.nii.gz").write_bytes(b"broken")
    (raw / "imagesTs" / "d_0001.nii.gz").unlink()
    save(raw / "imagesTr" / "c_0000.nii.gz", np.full((30, 40, 36), 32000))
    save(raw / "imagesTr" / "c_0001.nii.gz", np.full((30, 40, 37), 32000))
    report = run(raw)
    assert report.done == ("b", "e")
    assert [(problem.case_id, problem.kind) for problem in report.problems] == [
        ("a", "unreadable file"),
        ("c", "grid mismatch"),
        ("d", "missing file"),
    ]
    with pytest.raises(DatasetError, match=r"3 cases could not be preprocessed: case a, .*a_0000\.nii\.gz"):
        report.raise_for_problems()
    run_again = run(raw)
    assert run_again.done == ()
    assert run_again.skipped == ("b", "e")


def test_an_unexpected_failure_of_one_case_is_reported_with_its_traceback(raw, monkeypatch, caplog):
    def fail(volume, configuration, *, side):
        if side == "L":
            raise ZeroDivisionError("a bug")
        return prepare_volume(volume, configuration, side=side)

    monkeypatch.setattr(batch, "prepare_volume", fail)
    report = run(raw)
    assert report.done == ("a", "c", "d")
    assert [str(p) for p in report.problems] == [
        f"case {name}: failed unexpectedly (ZeroDivisionError: a bug); see the log" for name in "be"
    ]
    assert caplog.text.count("Traceback") == 2


def test_a_report_without_problems_raises_nothing(raw):
    run(raw).raise_for_problems()


def test_parts_share_the_cases_between_machines(raw):
    done = [run(raw, part=(part_id, 3)).done for part_id in range(3)]
    assert sorted(case_id for part in done for case_id in part) == sorted(SIDES)
    with pytest.raises(OaplugError, match="from 0 to 2 of 3, got 3"):
        run(raw, part=(3, 3))


def test_progress_counts_every_case(raw):
    calls = []
    run(raw, progress=lambda *call: calls.append(call))
    assert calls == [(number, 5, case_id) for number, case_id in enumerate(SIDES, start=1)]


@pytest.mark.slow
def test_several_processes_give_the_bytes_of_one(raw):
    run(raw)
    place = raw.parent / "out" / "lowres"
    expected = {path.name: path.read_bytes() for path in place.glob("*.b2nd")}
    shutil.rmtree(place)
    calls = []
    report = run(raw, processes=2, progress=lambda *call: calls.append(call))
    assert report.done == tuple(SIDES)
    assert {path.name: path.read_bytes() for path in place.glob("*.b2nd")} == expected
    assert [call[:2] for call in calls] == [(number, 5) for number in range(1, 6)]


def test_an_array_is_read_as_it_was_written_in_float16(tmp_path):
    data = np.random.default_rng(0).normal(size=(2, 5, 6, 7)).astype(np.float32)
    path = write_array(tmp_path / "case.b2nd", data)
    assert_array_equal(read_array(path), data.astype(np.float16))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("value", [1e6, np.nan])
def test_values_that_float16_cannot_hold_are_refused(tmp_path, value):
    with pytest.raises(DatasetError, match=r"case\.b2nd: voxels beyond .*another normalization"):
        write_array(tmp_path / "case.b2nd", np.full((1, 2, 3, 4), value, np.float32))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kept_bytes", [0, 10, 200, 1000])
def test_a_damaged_array_is_refused(tmp_path, kept_bytes):
    path = write_array(tmp_path / "case.b2nd", np.random.default_rng(0).normal(size=(1, 20, 21, 22)))
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(DatasetError, match=r"case\.b2nd is damaged .*run oaplug_preprocess again"):
        read_array(path)


def test_a_missing_array_says_what_to_run(tmp_path):
    with pytest.raises(DatasetError, match=r"case\.b2nd does not exist; run oaplug_preprocess"):
        read_array(tmp_path / "case.b2nd")
