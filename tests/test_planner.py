"""Planning: what the decisions promise about fields of view, voxels and reasons."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from oaplug.core.artifacts import write_json
from oaplug.core.dataset import DatasetDescription, open_dataset
from oaplug.core.errors import PlanError
from oaplug.core.plan import Configuration, plan_from_json, plan_to_json, read_plan
from oaplug.core.target import Target
from oaplug.prepare.field_of_view import LOWRES_VOXELS, coarsen_to_budget
from oaplug.prepare.fingerprint import Fingerprint, IntensityStatistics, extract_fingerprint
from oaplug.prepare.planner import batch_size_for, plan_experiment

HIPPOCAMPUS = Path(__file__).parents[2] / "shared" / "data" / "hippocampus"
KNEE_SPACING_MM, KNEE_SHAPE = (0.7, 0.365, 0.365), (160, 384, 384)
KL = Target(name="kl", kind="ordinal", grades=(0, 1, 2, 3, 4))


def fingerprint_of(shapes, spacings_mm, *, sides=None, channels: int = 1) -> Fingerprint:
    statistics = IntensityStatistics(
        mean=1.0, std=1.0, min=0.0, max=2.0, median=1.0, percentile_00_5=0.0, percentile_99_5=2.0
    )
    return Fingerprint(
        num_cases=len(shapes),
        num_subjects=len(shapes),
        num_channels=channels,
        spacings_mm=tuple(map(tuple, spacings_mm)),
        shapes=tuple(tuple(size + 4 for size in shape) for shape in shapes),
        shapes_after_crop=tuple(map(tuple, shapes)),
        sides=sides or {"L": 0, "R": 0, "unknown": len(shapes)},
        foreground_intensities=(statistics,) * channels,
        grade_counts={"kl": {"0": 5, "1": 4, "2": 3, "3": 2, "4": 1}},
        missing_labels={"kl": 0},
    )


def describe(*channels: str) -> DatasetDescription:
    return DatasetDescription(
        name="Dataset901_Knees",
        channel_names=channels or ("MRI",),
        labels={"background": 0},
        file_ending=".nii.gz",
        targets={"kl": KL},
    )


def knees(count: int = 40, **changes) -> Fingerprint:
    return fingerprint_of([KNEE_SHAPE] * count, [KNEE_SPACING_MM] * count, **changes)


steps = st.floats(0.2, 4.0).map(lambda step: round(step, 3))
cases = st.lists(
    st.tuples(st.tuples(*[st.integers(20, 400)] * 3), st.tuples(steps, steps, steps)), min_size=1, max_size=8
)


@settings(deadline=None)
@given(cases)
def test_every_training_image_fills_the_field_of_view_unless_a_reason_counts_those_that_do_not(cases):
    shapes, spacings_mm = zip(*cases, strict=True)
    plan = plan_experiment(describe(), fingerprint_of(shapes, spacings_mm))
    extents_mm = np.array(shapes) * np.array(spacings_mm)
    for name, configuration in plan.configurations.items():
        view_mm = np.array(configuration.size_voxels) * configuration.spacing_mm
        reason = plan.reasons[f"configurations.{name}.size_voxels"]
        for axis, letter in enumerate("DHW"):
            assume(extents_mm[:, axis].min() > configuration.spacing_mm[axis])
            short = int((extents_mm[:, axis] < view_mm[axis] * (1 - 1e-3)).sum())
            assert (short > 0) <= (f"along {letter}" in reason)


@settings(deadline=None)
@given(cases)
def test_lowres_fits_its_budget_and_is_never_finer_than_fullres(cases):
    shapes, spacings_mm = zip(*cases, strict=True)
    plan = plan_experiment(describe(), fingerprint_of(shapes, spacings_mm))
    full, low = plan.configurations["3d_fullres"], plan.configurations["3d_lowres"]
    assert math.prod(low.size_voxels) <= LOWRES_VOXELS
    assert all(coarse >= fine for coarse, fine in zip(low.spacing_mm, full.spacing_mm, strict=True))
    assert (math.prod(full.size_voxels) <= LOWRES_VOXELS) == (low == full)


@settings(deadline=None)
@given(st.tuples(steps, steps, steps), st.tuples(*[st.floats(60, 300)] * 3))
def test_coarsening_raises_the_finer_axes_to_one_level_and_uses_the_budget_up(spacing_mm, extent_mm):
    assume(np.prod(np.array(extent_mm) / spacing_mm) > LOWRES_VOXELS)
    coarse = np.array(coarsen_to_budget(spacing_mm, extent_mm, voxels=LOWRES_VOXELS))
    raised = coarse > spacing_mm
    assert len(set(coarse[raised])) == 1
    assert (coarse[~raised] >= coarse[raised].max()).all()
    voxels = np.prod(np.array(extent_mm) / coarse)
    assert 0.99 * LOWRES_VOXELS < voxels <= LOWRES_VOXELS


def test_a_knee_keeps_its_median_spacing_in_fullres_and_becomes_isotropic_in_lowres():
    plan = plan_experiment(describe(), knees())
    full, low = plan.configurations["3d_fullres"], plan.configurations["3d_lowres"]
    assert (full.spacing_mm, full.size_voxels) == (KNEE_SPACING_MM, KNEE_SHAPE)
    assert len(set(low.spacing_mm)) == 1
    assert low.data_identifier == "oaplugPlans_3d_lowres" != full.data_identifier
    assert "finer axes first" in plan.reasons["configurations.3d_lowres.spacing_mm"]


def test_each_axis_has_the_median_spacing_and_the_smallest_extent():
    shapes = [(100, 50, 40), (80, 60, 44), (90, 55, 48)]
    spacings_mm = [(1.0, 2.0, 0.5), (1.0, 1.0, 1.0), (1.5, 3.0, 0.75)]
    configuration = plan_experiment(describe(), fingerprint_of(shapes, spacings_mm)).configuration(
        "3d_fullres"
    )
    assert configuration.spacing_mm == (1.0, 2.0, 0.75)
    assert configuration.size_voxels == (80, 30, 26)  # 80 mm / 1, 60 mm / 2, 20 mm / .75


def test_an_outlying_image_does_not_shrink_the_field_of_view_and_is_counted():
    shapes = [(60, 60, 60)] * 8 + [(60, 20, 60), (60, 58, 60)]
    plan = plan_experiment(describe(), fingerprint_of(shapes, [(1.0, 1.0, 1.0)] * 10))
    assert plan.configuration("3d_fullres").size_voxels == (60, 60, 60)
    reason = plan.reasons["configurations.3d_fullres.size_voxels"]
    assert "along H, 20 mm" in reason
    assert "2 of 10 training cases are padded" in reason


def test_a_small_dataset_shares_one_folder_of_preprocessed_cases_and_says_so():
    plan = plan_experiment(
        describe(), fingerprint_of([(31, 40, 24)] * 20, [(1.0, 1.0, 1.0)] * 20), plans_name="mine"
    )
    assert plan.configurations["3d_fullres"] == plan.configurations["3d_lowres"]
    assert plan.configurations["3d_lowres"].data_identifier == "mine_3d_fullres"
    assert "shared" in plan.reasons["configurations.3d_lowres.data_identifier"]


@settings(deadline=None)
@given(cases, st.tuples(*[st.sampled_from([1, 2, 8, 16, 32])] * 3))
def test_sizes_are_multiples_and_never_zero(cases, multiple):
    shapes, spacings_mm = zip(*cases, strict=True)
    fingerprint = fingerprint_of(shapes, spacings_mm)
    free = plan_experiment(describe(), fingerprint)
    plan = plan_experiment(describe(), fingerprint, size_multiple=multiple)
    for n, m, wanted in zip(
        plan.configuration("3d_fullres").size_voxels,
        multiple,
        free.configuration("3d_fullres").size_voxels,
        strict=True,
    ):
        assert n % m == 0
        assert n == m or wanted - m < n <= wanted
    assert all(n % m == 0 for n, m in zip(plan.configuration("3d_lowres").size_voxels, multiple, strict=True))


def test_what_the_user_gives_is_used_in_both_configurations_and_named_as_the_reason():
    plan = plan_experiment(describe(), knees(), spacing_mm=(1.0, 1.0, 1.0), size_voxels=(96, 128, 128))
    for name, configuration in plan.configurations.items():
        assert configuration.spacing_mm == (1.0, 1.0, 1.0)
        assert configuration.size_voxels == (96, 128, 128)
        assert plan.reasons[f"configurations.{name}.spacing_mm"].startswith("given by the user")
        assert plan.reasons[f"configurations.{name}.size_voxels"].startswith("given by the user")


def test_a_given_size_is_filled_by_every_training_image_at_the_spacing_of_lowres():
    low = plan_experiment(describe(), knees(), size_voxels=(128, 128, 128)).configuration("3d_lowres")
    assert low.size_voxels == (128, 128, 128)
    assert low.spacing_mm == (0.875, 0.875, 0.875)  # 112 mm along D are what limits it


def test_a_given_spacing_leaves_the_size_to_the_rule():
    plan = plan_experiment(describe(), knees(), spacing_mm=(1.4, 1.4, 1.4))
    assert plan.configuration("3d_fullres").size_voxels == (80, 100, 100)


def test_a_given_size_that_the_backbone_cannot_take_is_refused():
    with pytest.raises(PlanError, match=r"\(100, 128, 128\) must be a multiple of \(32, 32, 32\)"):
        plan_experiment(describe(), knees(), size_voxels=(100, 128, 128), size_multiple=(32, 32, 32))


def test_a_fingerprint_of_other_channels_is_refused():
    with pytest.raises(PlanError, match="names 2 channels but the fingerprint has 1"):
        plan_experiment(describe("DESS", "T2"), knees())


def test_every_key_of_every_configuration_and_the_main_settings_have_one_line_of_reason():
    plan = plan_experiment(describe(), knees())
    for name in ("3d_fullres", "3d_lowres"):
        for key in fields(Configuration):
            assert plan.reasons[f"configurations.{name}.{key.name}"]
    assert {"training.batch_size", "training.epochs", "augmentation.mirror_axes"} <= set(plan.reasons)
    assert not [reason for reason in plan.reasons.values() if "\n" in reason]


def test_every_reason_belongs_to_a_key_of_the_plan():
    plan = plan_experiment(describe(), knees())
    content = plan_to_json(plan)
    for dotted in plan.reasons:
        node = content
        for key in dotted.split("."):
            node = node[key]


def test_a_plan_survives_its_file(tmp_path):
    plan = plan_experiment(describe("MRI", "T2"), knees(channels=2))
    assert plan_from_json(plan_to_json(plan), path=tmp_path) == plan


def test_new_plans_augment_with_every_part_but_deformation_and_say_why():
    plan = plan_experiment(describe(), knees())
    settings = plan.augmentation
    off = {key.name for key in fields(settings) if getattr(settings, key.name) == 0}
    assert off == {"elastic_probability"}
    assert settings.keep_statistics
    assert "cartilage" in plan.reasons["augmentation.elastic_probability"]
    changed = {
        k.name for k in fields(settings) if getattr(settings, k.name) != getattr(type(settings)(), k.name)
    }
    assert {f"augmentation.{key}" for key in changed} <= set(plan.reasons)


def test_medial_and_lateral_are_never_swapped_and_sides_that_are_unknown_are_said_to_be():
    unknown = plan_experiment(describe(), knees())
    sided = plan_experiment(describe(), knees(sides={"L": 12, "R": 25, "unknown": 3}))
    for plan in (unknown, sided):
        assert plan.augmentation.mirror_axes == ()
        assert "medial and lateral" in plan.reasons["augmentation.mirror_axes"]
        assert plan.configuration("3d_lowres").mirror_left
    assert "sides unknown" in unknown.reasons["configurations.3d_lowres.mirror_left"]
    assert "12 left, 25 right" in sided.reasons["configurations.3d_lowres.mirror_left"]
    assert "3 cases of unknown side" in sided.reasons["configurations.3d_lowres.mirror_left"]


def test_every_channel_is_normalized_by_zscore_and_for_ct_the_reason_says_why():
    plan = plan_experiment(describe("MRI", "ct"), knees(channels=2))
    assert plan.configuration("3d_lowres").normalization == ("zscore", "zscore")
    assert "Hounsfield" in plan.reasons["configurations.3d_lowres.normalization"]
    assert (
        "Hounsfield"
        not in plan_experiment(describe(), knees()).reasons["configurations.3d_lowres.normalization"]
    )


@pytest.mark.parametrize(
    ("voxels", "num_cases", "expected"),
    [
        (30_000, 200, 16),
        (1_000_000, 200, 8),
        (3_000_000, 200, 4),
        (23_592_960, 404, 2),
        (30_000, 20, 5),
        (30_000, 3, 1),
    ],
)
def test_the_batch_size_falls_with_voxels_and_stays_below_a_quarter_of_the_cases(voxels, num_cases, expected):
    assert batch_size_for(voxels, num_cases=num_cases) == expected


def test_the_larger_configuration_sets_the_batch_size_and_the_reason_offers_that_of_lowres():
    plan = plan_experiment(describe(), knees())
    assert plan.training.batch_size == 2
    assert "--set training.batch_size=8" in plan.reasons["training.batch_size"]


def test_a_dataset_without_targets_can_be_planned():
    plan = plan_experiment(
        replace(describe(), targets={}), replace(knees(), grade_counts={}, missing_labels={})
    )
    assert plan.reasons["training.class_weights"]


@pytest.mark.slow
def test_the_hippocampus_gets_the_largest_box_that_all_its_images_fill():
    if not HIPPOCAMPUS.is_dir():
        pytest.skip(f"the hippocampus data of the Medical Segmentation Decathlon is not in {HIPPOCAMPUS}")
    dataset = open_dataset(HIPPOCAMPUS)
    plan = plan_experiment(dataset.description, extract_fingerprint(dataset, processes=1))
    assert plan.configuration("3d_lowres").size_voxels == (31, 40, 24)
    assert plan.training.batch_size == 16


PLAN_OF_SCHEMA_1 = {
    "schema": 1,
    "dataset_name": "Dataset901_KneePhantom",
    "configurations": {
        "3d_lowres": {
            "data_identifier": "oaplugPlans_3d_lowres",
            "spacing_mm": [1.4, 1.2, 1.2],
            "size_voxels": [32, 64, 64],
            "normalization": ["zscore"],
        }
    },
    "plans_name": "oaplugPlans",
    "training": {"epochs": 16, "batch_size": 4, "schedule": "cosine", "channels_last": True, "threads": None},
    "augmentation": {"backend": "native", "mirror_axes": []},
    "reasons": {"training.epochs": "short"},
}


@pytest.mark.parametrize(("layout", "expected"), [(True, "auto"), (False, False)])
def test_a_plan_that_the_first_version_wrote_is_still_read(tmp_path, layout, expected):
    old = {**PLAN_OF_SCHEMA_1, "training": {**PLAN_OF_SCHEMA_1["training"], "channels_last": layout}}
    path = write_json(tmp_path / "oaplugPlans.json", old)
    plan = read_plan(path)
    assert (plan.training.epochs, plan.training.batch_size) == (16, 4)
    assert plan.training.channels_last == expected
    assert plan_to_json(plan)["schema"] == 2
    assert read_plan(write_json(path, plan_to_json(plan))) == plan, "a plan of today is not changed again"


def test_a_plan_of_a_newer_version_is_refused_with_what_to_do(tmp_path):
    path = write_json(tmp_path / "oaplugPlans.json", {**PLAN_OF_SCHEMA_1, "schema": 99})
    with pytest.raises(PlanError, match=r"schema 99 is newer.*upgrade oaplug"):
        read_plan(path)
