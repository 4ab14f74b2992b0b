"""Folds: who may be where, whatever the cases look like."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from oaplug.core.case import Case
from oaplug.core.errors import DatasetError, PlanError
from oaplug.core.target import MISSING, Target
from oaplug.prepare.splits import (
    Fold,
    fold_cases,
    make_splits,
    read_or_make_splits,
    read_splits,
    write_splits,
)

KL = Target(name="kl", kind="ordinal", grades=(0, 1, 2, 3, 4))
OA = Target(name="oa", kind="binary", grades=(0, 1), derived_from="kl", at_least=2)
TARGETS = {"kl": KL, "oa": OA}


def case_of(
    number: int, *, subject: str | None = None, kl: int = MISSING, oa: int | None = None, split="train"
):
    if oa is None:
        oa = OA.derive(kl, KL)
    case_id = f"case_{number:04d}"
    return Case(
        case_id=case_id, subject_id=subject or case_id, images=(), split=split, labels={"kl": kl, "oa": oa}
    )


@st.composite
def datasets(draw):
    """Cases of a few subjects, some with several visits, some unlabelled, some of the test split."""
    count = draw(st.integers(5, 60))
    subjects = draw(st.integers(5, count))
    return [
        case_of(
            number,
            subject=f"s{draw(st.integers(0, subjects - 1)):03d}",
            kl=draw(st.integers(-1, 4)),
            split=draw(st.sampled_from(["train", "train", "train", "test"])),
        )
        for number in range(count)
    ]


def usable(cases):
    return {case.case_id for case in cases if case.split == "train" and max(case.labels.values()) >= 0}


def subjects_of(ids, cases):
    return {case.subject_id for case in cases if case.case_id in set(ids)}


@settings(deadline=None)
@given(datasets(), st.integers(2, 5))
def test_every_labelled_training_case_validates_once_and_no_subject_is_on_both_sides(cases, folds):
    assume(len(subjects_of(usable(cases), cases)) >= folds)
    splits = make_splits(cases, TARGETS, folds=folds)
    assert Counter(case for fold in splits for case in fold.val) == Counter(usable(cases))
    for fold in splits:
        assert fold.val
        assert set(fold.train) | set(fold.val) == usable(cases)
        assert not subjects_of(fold.train, cases) & subjects_of(fold.val, cases)


@settings(deadline=None)
@given(datasets(), st.randoms(use_true_random=False))
def test_the_order_of_cases_changes_nothing(cases, random):
    assume(len(subjects_of(usable(cases), cases)) >= 5)
    shuffled = list(cases)
    random.shuffle(shuffled)
    assert make_splits(shuffled, TARGETS) == make_splits(cases, TARGETS)


@settings(deadline=None)
@given(st.lists(st.integers(-1, 4), min_size=25, max_size=80))
def test_one_knee_a_subject_every_grade_is_spread_as_evenly_as_whole_cases_allow(grades):
    assume(max(Counter(grade for grade in grades).values()) >= 5)
    cases = [case_of(n, kl=grade, oa=1 if grade == MISSING else None) for n, grade in enumerate(grades)]
    grade_of = {case.case_id: case.labels["kl"] for case in cases}
    splits = make_splits(cases, TARGETS)
    for grade in set(grades):
        held = [sum(grade_of[case_id] == grade for case_id in fold.val) for fold in splits]
        assert max(held) - min(held) <= 1


def test_cases_sorted_by_grade_do_not_give_contiguous_folds():
    cases = [case_of(n, kl=n // 20) for n in range(100)]
    for fold in make_splits(cases, TARGETS):
        assert len({case_id for case_id in fold.val if int(case_id[-4:]) < 20}) == 4
        numbers = [int(case_id[-4:]) for case_id in fold.val]
        assert numbers != list(range(numbers[0], numbers[0] + 20))


def test_another_seed_gives_other_folds_and_the_same_seed_the_same():
    cases = [case_of(n, kl=n % 5) for n in range(60)]
    assert make_splits(cases, TARGETS, seed=1) == make_splits(cases, TARGETS, seed=1)
    assert make_splits(cases, TARGETS, seed=1) != make_splits(cases, TARGETS, seed=2)


def test_a_rare_grade_is_no_reason_to_warn():
    cases = [case_of(n, kl=4 if n == 0 else n % 2) for n in range(30)]
    assert len(make_splits(cases, TARGETS)) == 5


def test_where_every_grade_is_rarer_than_folds_the_coarser_target_is_spread(caplog):
    cases = [case_of(n, kl=n % 5) for n in range(20)]
    positive = {case.case_id for case in cases if case.labels["oa"] == 1}
    splits = make_splits(cases, TARGETS)
    held = [len(positive & set(fold.val)) for fold in splits]
    assert max(held) - min(held) <= 1
    assert "balanced by oa" in caplog.text


def test_five_subjects_of_five_grades_still_make_five_folds():
    cases = [case_of(n, kl=n) for n in range(5)]
    assert sorted(fold.val for fold in make_splits(cases, TARGETS)) == [(case.case_id,) for case in cases]


def test_no_fold_is_left_without_validation_by_subjects_of_very_different_size():
    subjects, grades = [0, 1, 2, 2, 2, 3, 4, 4, 4], [2, 2, 2, 0, 2, 3, 0, 2, 4]
    cases = [case_of(n, subject=f"s{subjects[n]}", kl=grades[n]) for n in range(9)]
    for seed in range(300):  # spreading grades alone leaves a fold empty for some of these
        assert all(fold.val for fold in make_splits(cases, TARGETS, seed=seed))


def test_too_few_labelled_subjects_are_refused_with_what_is_needed():
    cases = [case_of(n, subject=f"s{n % 4}", kl=n % 5) for n in range(40)] + [case_of(40), case_of(41)]
    with pytest.raises(DatasetError, match="at least 5 subjects with labels are needed"):
        make_splits(cases, TARGETS)


def test_a_dataset_without_targets_cannot_be_split():
    with pytest.raises(DatasetError, match="no targets"):
        make_splits([case_of(n) for n in range(10)], {})


def test_splits_survive_their_file_in_the_format_of_nnunet(tmp_path):
    cases = [case_of(n, kl=n % 5) for n in range(30)]
    splits = make_splits(cases, TARGETS)
    path = write_splits(tmp_path / "splits_final.json", splits)
    assert read_splits(path, cases) == splits
    assert [set(fold) for fold in json.loads(path.read_text())] == [{"train", "val"}] * 5


def test_an_existing_file_of_the_user_wins(tmp_path):
    cases = [case_of(n, kl=n % 5) for n in range(30)]
    path = tmp_path / "splits_final.json"
    path.write_text(json.dumps([{"train": ["case_0002", "case_0001"], "val": ["case_0003"]}]))
    assert read_or_make_splits(path, cases, TARGETS) == [Fold(("case_0001", "case_0002"), ("case_0003",))]


def test_new_splits_are_written_where_there_are_none(tmp_path):
    cases = [case_of(n, kl=n % 5) for n in range(30)]
    splits = read_or_make_splits(tmp_path / "splits_final.json", cases, TARGETS)
    assert read_splits(tmp_path / "splits_final.json", cases) == splits == make_splits(cases, TARGETS)


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        (["case_0000", "nobody"], ["case_0001"], "fold 1: case nobody: not in the dataset"),
        (["case_0000"], ["case_0001", 7], "case 7: not in the dataset"),
        (["case_0000", "case_0009"], ["case_0001"], "case case_0009: of the test split"),
        (["case_0000", "case_0001"], ["case_0001"], "case case_0001: in both train and val"),
        (["case_0000", "case_0000"], ["case_0001"], "case case_0000: listed more than once"),
        (["case_0000", "case_0002"], ["case_0003"], "subject twice: in both train and val"),
        ([], ["case_0003"], "'train' is empty"),
        ("case_0000", [], "the lists 'train' and 'val'"),
    ],
)
def test_a_fold_that_would_leak_or_cannot_be_used_is_refused_naming_who(tmp_path, train, val, message):
    cases = [
        case_of(0, kl=1),
        case_of(1, kl=2),
        case_of(2, subject="twice", kl=1),
        case_of(3, subject="twice", kl=3),
    ]
    cases.append(case_of(9, kl=1, split="test"))
    path = tmp_path / "splits_final.json"
    good = {"train": ["case_0000"], "val": ["case_0001"]}
    path.write_text(json.dumps([good, {"train": train, "val": val}]))
    with pytest.raises(DatasetError, match=message) as failure:
        read_splits(path, cases)
    assert str(path) in str(failure.value)


@pytest.mark.parametrize("text", ["{}", "[]", "not json"])
def test_a_file_that_holds_no_folds_is_refused(tmp_path, text):
    path = tmp_path / "splits_final.json"
    path.write_text(text)
    with pytest.raises(DatasetError, match=r"splits_final\.json"):
        read_splits(path, [case_of(0, kl=1)])


def test_fold_all_trains_on_every_labelled_training_case_and_validates_with_none():
    cases = [case_of(n, kl=n % 5) for n in range(20)] + [case_of(20), case_of(21, kl=1, split="test")]
    cases.append(case_of(22, oa=1))
    fold = fold_cases(make_splits(cases, TARGETS), "all", cases=cases)
    assert fold == Fold(train=(*(f"case_{n:04d}" for n in range(20)), "case_0022"), val=())


@pytest.mark.parametrize("fold", [-1, 5])
def test_a_fold_that_does_not_exist_is_refused_naming_those_that_do(fold):
    cases = [case_of(n, kl=n % 5) for n in range(20)]
    splits = make_splits(cases, TARGETS)
    assert fold_cases(splits, 4, cases=cases) == splits[4]
    with pytest.raises(PlanError, match=f"no fold {fold} .*folds: 0, 1, 2, 3, 4, or all"):
        fold_cases(splits, fold, cases=cases)
