"""The knee phantom: same seed same bits, anatomy follows severity, and nothing else does."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from oaplug_converters.phantom.anatomy import LABELS, Knee, make_knee
from oaplug_converters.phantom.cohort import draw_cohort
from oaplug_converters.phantom.geometry import FIELD_OF_VIEW_MM
from oaplug_converters.phantom.reader import agreement, grade_of, read_grade
from scipy.stats import spearmanr

SHAPE = (16, 32, 32)
FINE_SHAPE = (32, 64, 64)
CARTILAGES = ("femoral_cartilage", "medial_tibial_cartilage", "lateral_tibial_cartilage")


def knee_at(severity: float, *, seed: int = 0, shape: tuple[int, int, int] = SHAPE, side: str = "R") -> Knee:
    return make_knee(
        severity=severity, shape=shape, side=side, rng=np.random.Generator(np.random.Philox(seed))
    )


def voxels(knee: Knee, name: str) -> int:
    return int((knee.labels == LABELS[name]).sum())


def center_mm(knee: Knee, name: str) -> npt.NDArray[np.float64]:
    index = np.argwhere(knee.labels == LABELS[name]).mean(axis=0)
    return (knee.affine @ [*index, 1.0])[:3]


def test_a_knee_is_its_shape_dtype_and_field_of_view() -> None:
    knee = knee_at(2.0, shape=(10, 20, 30))
    assert knee.image.shape == knee.labels.shape == (10, 20, 30)
    assert knee.image.dtype == np.float32
    assert knee.labels.dtype == np.uint8
    assert np.isfinite(knee.image).all()
    assert np.allclose(np.multiply(knee.spacing_mm, knee.image.shape), FIELD_OF_VIEW_MM)
    assert np.allclose(np.diag(knee.affine)[:3], knee.spacing_mm)


def test_the_same_seed_gives_the_same_bits() -> None:
    first, second = knee_at(3.3, seed=4), knee_at(3.3, seed=4)
    assert first.image.tobytes() == second.image.tobytes()
    assert first.labels.tobytes() == second.labels.tobytes()
    assert first.image.tobytes() != knee_at(3.3, seed=5).image.tobytes()


def test_cases_made_in_any_order_have_the_same_bits() -> None:
    cohort = draw_cohort(cases=4, seed=3)

    def images(order: list[int]) -> dict[int, bytes]:
        made = {}
        for index in order:
            case = cohort[index]
            knee = make_knee(severity=case.true_severity, shape=SHAPE, side=case.side, rng=case.generator())
            made[index] = knee.image.tobytes()
        return made

    forward = images([0, 1, 2, 3])
    assert forward == images([2, 0, 3, 1])
    assert len(set(forward.values())) == 4


@pytest.mark.parametrize(("side", "medial_sign"), [("R", -1), ("L", 1)])
def test_medial_cartilage_lies_towards_the_other_leg(side: str, medial_sign: int) -> None:
    knee = knee_at(0.5, side=side, shape=FINE_SHAPE)
    medial, lateral = center_mm(knee, "medial_tibial_cartilage"), center_mm(knee, "lateral_tibial_cartilage")
    assert medial_sign * (medial[0] - lateral[0]) > 20


def test_a_left_knee_has_the_mask_of_a_mirrored_right_knee() -> None:
    right, left = knee_at(1.5, seed=8), knee_at(1.5, seed=8, side="L")
    assert np.array_equal(right.labels, left.labels[::-1])


def test_the_femur_lies_above_the_tibia() -> None:
    knee = knee_at(0.0)
    assert center_mm(knee, "femur")[2] > center_mm(knee, "tibia")[2] + 20


@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_knee_has_every_label(seed: int) -> None:
    assert set(np.unique(knee_at(0.0, seed=seed, shape=FINE_SHAPE).labels)) == set(LABELS.values())


@pytest.mark.parametrize("seed", range(4))
def test_cartilage_thins_with_severity_and_the_medial_side_most(seed: int) -> None:
    knees = [knee_at(severity, seed=seed, shape=FINE_SHAPE) for severity in (0.0, 1.2, 2.4, 3.6, 4.8)]
    bone = [voxels(knee, "femur") + voxels(knee, "tibia") for knee in knees]
    cartilage = [sum(voxels(knee, name) for name in CARTILAGES) for knee in knees]
    assert (np.diff(np.divide(cartilage, bone)) < 0).all()
    medial = [voxels(knee, "medial_tibial_cartilage") for knee in knees]
    lateral = [voxels(knee, "lateral_tibial_cartilage") for knee in knees]
    assert (np.diff(medial) < 0).all()
    assert medial[-1] / medial[0] < lateral[-1] / lateral[0] < 1


def test_severity_changes_the_joint_and_not_the_rest_of_the_leg() -> None:
    healthy, severe = (knee_at(severity, seed=2, shape=FINE_SHAPE).image for severity in (0.2, 4.8))
    changed = np.abs(severe - healthy) > 0.1 * healthy.max()
    assert 0.001 < changed.mean() < 0.05
    assert np.array_equal(healthy[:, 0], severe[:, 0])


@pytest.mark.parametrize("severity", [-0.1, 5.0])
def test_a_severity_beyond_the_scale_is_refused(severity: float) -> None:
    with pytest.raises(ValueError, match="severity must lie in"):
        knee_at(severity)


def test_an_unknown_side_is_refused() -> None:
    with pytest.raises(ValueError, match="side must be"):
        knee_at(1.0, side="right")


def test_no_subject_is_in_two_splits_and_both_splits_cover_all_grades() -> None:
    cohort = draw_cohort(cases=300, seed=1, label_noise=0.5)
    splits: dict[str, set[str]] = {}
    for case in cohort:
        splits.setdefault(case.subject_id, set()).add(case.split)
    assert all(len(found) == 1 for found in splits.values())
    tested = [case for case in cohort if case.split == "test"]
    assert abs(len(tested) / len(cohort) - 1 / 3) < 0.08
    for part in (tested, [case for case in cohort if case.split == "train"]):
        shares = np.bincount([case.kl_true for case in part], minlength=5) / len(part)
        assert (shares > 0.1).all()


def test_about_half_of_the_subjects_have_a_left_and_a_right_knee() -> None:
    sides: dict[str, list[str]] = {}
    for case in draw_cohort(cases=600, seed=2):
        sides.setdefault(case.subject_id, []).append(case.side)
    pairs = [found for found in sides.values() if len(found) == 2]
    assert 0.4 < len(pairs) / len(sides) < 0.6
    assert all(sorted(found) == ["L", "R"] for found in pairs)
    assert 0.4 < np.mean([side == "L" for found in sides.values() for side in found]) < 0.6


@pytest.mark.parametrize("seed", range(5))
def test_order_side_and_split_carry_no_grade(seed: int) -> None:
    cohort = draw_cohort(cases=500, seed=seed)
    severity = [case.true_severity for case in cohort]
    assert [case.case_id for case in cohort] == sorted({case.case_id for case in cohort})
    for clue in (
        [case.index for case in cohort],
        [case.side == "L" for case in cohort],
        [case.split == "test" for case in cohort],
    ):
        assert abs(spearmanr(clue, severity).statistic) < 0.15


def test_a_reader_without_noise_gives_the_true_grade() -> None:
    cohort = draw_cohort(cases=100, seed=0, label_noise=0)
    assert all(case.kl == case.kl_true == grade_of(case.true_severity) for case in cohort)


def test_readers_agree_less_the_noisier_they_are() -> None:
    kappas, quadratic = [], []
    for noise_std in (0.0, 0.3, 0.5, 1.0):
        cohort = draw_cohort(cases=2000, seed=0, label_noise=noise_std)
        found = agreement([case.kl for case in cohort], [case.kl_true for case in cohort])
        kappas.append(found.kappa)
        quadratic.append(found.quadratic_kappa)
    assert kappas[0] == quadratic[0] == 1
    assert (np.diff(kappas) < -0.05).all()
    assert (np.diff(quadratic) < 0).all()


def test_reader_noise_is_symmetric_about_the_true_severity() -> None:
    rng = np.random.Generator(np.random.Philox(0))
    grades = [read_grade(2.5, noise_std=0.7, rng=rng) for _ in range(4000)]
    assert abs(np.mean(grades) - 2) < 0.05


def test_negative_reader_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="noise_std"):
        read_grade(1.0, noise_std=-1, rng=np.random.default_rng(0))
