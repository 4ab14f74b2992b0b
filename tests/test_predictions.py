"""Prediction tables: what is written is read back bit for bit, and a bad file is named with its case."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_predictions import KL, OA, make_table

from oaplug.core.errors import PredictionError
from oaplug.core.leak import keyed_hash, leaked_cases, trained_on
from oaplug.core.predictions import PredictionTable, TargetPredictions, read_predictions, write_predictions
from oaplug.core.target import Target


def assert_same(first, second):
    for name in ("case_ids", "subject_ids", "folds", "model", "trained_on"):
        assert getattr(first, name) == getattr(second, name), name
    assert first.targets.keys() == second.targets.keys()
    for name, one in first.targets.items():
        other = second.targets[name]
        assert one.target == other.target
        for array in ("truth", "predicted", "probabilities"):
            np.testing.assert_array_equal(getattr(one, array), getattr(other, array))


@given(seed=st.integers(0, 2**32 - 1), unknown=st.integers(0, 10))
@settings(max_examples=25, deadline=None)
def test_a_table_is_read_back_bit_for_bit(tmp_path_factory, seed, unknown):
    table = make_table(seed=seed, subjects=6, unknown=unknown, model="resnet3d-dual")
    table = replace(table, trained_on=trained_on(["someone"], ["digest"], "key"))
    folder = tmp_path_factory.mktemp("predictions")
    path = write_predictions(folder, table)
    assert_same(read_predictions(path), table)
    assert_same(read_predictions(folder), table)


def test_grades_with_names_and_a_derived_target_alone_are_read_back(tmp_path):
    tissue = Target(name="tissue", kind="categorical", grades=("bone", "a, b", "0"))
    table = make_table(subjects=3, visits=1)
    answers = TargetPredictions(
        target=tissue, truth=np.array([2, -1, 0]), predicted=np.array([1, 0, 2]), probabilities=np.eye(3)
    )
    table = replace(table, targets={"tissue": answers, "oa": table.targets["oa"]})
    write_predictions(tmp_path, table)
    assert_same(read_predictions(tmp_path), table)


def test_taking_cases_keeps_rows_together():
    table = make_table(subjects=4)
    taken = table.take(table.case_ids[::-2])
    assert taken.case_ids == table.case_ids[::-2]
    assert taken.subject_ids == table.subject_ids[::-2]
    np.testing.assert_array_equal(taken.targets["kl"].truth, table.targets["kl"].truth[::-2])
    np.testing.assert_array_equal(taken.targets["oa"].probabilities, table.targets["oa"].probabilities[::-2])


def test_subjects_left_blank_are_their_own(tmp_path):
    spoil(tmp_path, column="subject_id", text="")
    assert read_predictions(tmp_path).subject_ids[1] == read_predictions(tmp_path).case_ids[1]


def spoil(folder, *, column, text, row=1):
    """A written table with one cell of its CSV replaced."""
    path = write_predictions(folder, make_table(subjects=3))
    with path.open(newline="") as file:
        records = list(csv.DictReader(file))
    records[row][column] = text
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(records[0]))
        writer.writeheader()
        writer.writerows(records)


@pytest.mark.parametrize(
    ("column", "text", "message"),
    [
        ("kl_prob_3", "much", "probability of 'kl' is not a number"),
        ("kl_prob_3", "nan", "knee000v1: probabilities of 'kl'"),
        ("kl_prob_3", "0.9999", "knee000v1: probabilities of 'kl' are negative or do not sum to 1"),
        ("kl_true", "7", "knee000v1: kl_true: target 'kl' has no grade '7'"),
        ("oa_pred", "", "knee000v1: oa_pred is blank"),
        ("case_id", "knee000v0", "listed twice: knee000v0"),
    ],
)
def test_a_bad_cell_is_refused_naming_the_case(tmp_path, column, text, message):
    spoil(tmp_path, column=column, text=text)
    with pytest.raises(PredictionError, match=message):
        read_predictions(tmp_path)


def test_negative_probabilities_that_sum_to_one_are_refused(tmp_path):
    table = make_table(subjects=1, visits=1)
    oa = replace(table.targets["oa"], probabilities=np.array([[1.5, -0.5]]))
    write_predictions(tmp_path, replace(table, targets={"oa": oa}))
    with pytest.raises(PredictionError, match="negative"):
        read_predictions(tmp_path)


@pytest.mark.parametrize(
    ("missing", "message"), [(1, "probability of 'oa' is not a number"), (3, "oa_pred is blank")]
)
def test_a_row_that_ends_early_is_refused(tmp_path, missing, message):
    path = write_predictions(tmp_path, make_table(subjects=2))
    path.write_text(path.read_text().rstrip().rsplit(",", missing)[0] + "\n")
    with pytest.raises(PredictionError, match=message):
        read_predictions(path)


def test_a_missing_column_is_named(tmp_path):
    path = write_predictions(tmp_path, make_table(subjects=2))
    path.write_text(path.read_text().replace("kl_prob_2", "kl_probability_2"))
    with pytest.raises(PredictionError, match="no column 'kl_prob_2'"):
        read_predictions(path)


@pytest.mark.parametrize("text", ["", "case_id,subject_id,fold\n", "name\nx\n"])
def test_a_table_without_rows_or_case_ids_is_refused(tmp_path, text):
    path = write_predictions(tmp_path, make_table(subjects=2))
    path.write_text(text)
    with pytest.raises(PredictionError, match="column 'case_id' and at least one row"):
        read_predictions(path)


def test_a_missing_file_says_which(tmp_path):
    with pytest.raises(PredictionError, match=r"predictions\.json does not exist; it is written together"):
        read_predictions(tmp_path)
    write_predictions(tmp_path, make_table(subjects=2)).unlink()
    with pytest.raises(PredictionError, match=r"predictions\.csv does not exist"):
        read_predictions(tmp_path)


def test_a_table_of_a_newer_oaplug_is_refused(tmp_path):
    write_predictions(tmp_path, make_table(subjects=2))
    sidecar = tmp_path / "predictions.json"
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"schema": 99}))
    with pytest.raises(PredictionError, match="upgrade oaplug"):
        read_predictions(tmp_path)


def test_a_case_listed_twice_is_refused_in_memory_too():
    with pytest.raises(PredictionError, match="listed twice: a"):
        PredictionTable(case_ids=("a", "a"), subject_ids=("s", "s"), folds=("", ""), targets={})


def test_targets_are_the_ones_the_truths_were_written_with(tmp_path):
    write_predictions(tmp_path, make_table(subjects=2))
    assert {name: p.target for name, p in read_predictions(tmp_path).targets.items()} == {"kl": KL, "oa": OA}


def test_cases_of_a_training_subject_leak_at_every_visit():
    table = make_table(subjects=4)
    table = replace(table, trained_on=trained_on(["subject001", "elsewhere"], [], "a key"))
    assert leaked_cases(table) == ["knee001v0", "knee001v1"]
    assert leaked_cases(replace(table, trained_on=None)) == []


def test_hashes_depend_on_key_and_text_and_hide_both():
    assert keyed_hash("a", "subject001") == keyed_hash("a", "subject001")
    assert len({keyed_hash(key, text) for key in ("", "a", "b" * 200) for text in ("x", "y")}) == 6
    seen = trained_on(["subject001"], ["digest"], "k")
    assert "subject001" not in seen.subjects
    assert not seen.subjects & seen.images
