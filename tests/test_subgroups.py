"""Subgroups: how groups are made, their numbers against scikit-learn, and where covariates come from."""

from __future__ import annotations

import csv
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from oaplug_analyses import oaplug_analyses
from oaplug_analyses.options import SubgroupsOptions
from oaplug_analyses.subgroups import numbers_of
from oaplug_analyses.subgroups_grouping import make_groups
from sklearn import metrics as reference
from synthetic_predictions import make_study, make_table

from oaplug.core.bootstrap import subject_weights
from oaplug.core.errors import DatasetError, PluginError
from oaplug.core.paths import Places
from oaplug.plug.registry import parse_options, registry
from oaplug.study.covariates import with_covariates
from oaplug.study.run import run_study

SPEC = next(spec for spec in oaplug_analyses() if spec.name == "subgroups")
SEX = tuple("FM"[index // 2 % 3 % 2] for index in range(60))


def study_with(covariates, tables=None, **settings):
    return replace(make_study(tables or {"m": make_table()}, **settings), covariates=covariates)


def run(study, folder, **options):
    return SPEC.build(parse_options(SPEC, options)).run(study, folder)


def rows_of(findings, name):
    table = next(table for table in findings.tables if table.name == name)
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def groups_of(values, **options):
    groups, without = make_groups({"x": values}, SubgroupsOptions(**options))
    return {group.name: group.rows.tolist() for group in groups}, without


def test_names_group_cases_as_they_are_and_blanks_belong_nowhere():
    groups, without = groups_of(("b", "a", "", "b"))
    assert groups == {"a": [1], "b": [0, 3]}
    assert not without


def test_the_rest_of_a_group_are_the_cases_of_the_other_groups():
    groups, _ = make_groups({"x": ("b", "a", "", "b", "c")}, SubgroupsOptions())
    assert {group.name: group.rest.tolist() for group in groups} == {
        "a": [0, 3, 4],
        "b": [1, 4],
        "c": [0, 1, 3],
    }


def test_numbers_are_cut_at_their_quartiles():
    values = tuple(str(value) for value in range(100, 180))
    groups, _ = groups_of((*values, ""))
    assert [len(rows) for rows in groups.values()] == [20, 20, 20, 20]
    expected = np.digitize(np.arange(100, 180), np.percentile(np.arange(100, 180), [25, 50, 75]))
    for band, rows in enumerate(groups.values()):
        assert rows == np.flatnonzero(expected == band).tolist()


def test_declared_bands_hold_their_lower_limit_and_not_the_upper_one():
    groups, _ = groups_of(("49", "50", "59.9", "60", "75"), bands={"x": (50, 60)})
    assert groups == {"< 50": [0], "50 to < 60": [1, 2], ">= 60": [3, 4]}


def test_few_different_numbers_are_names_in_their_order():
    groups, _ = groups_of(("10", "9", "10", "2"))
    assert list(groups) == ["2", "9", "10"]


def test_numbers_that_are_names_are_left_whole():
    values = tuple(str(101 + index % 8) for index in range(24))
    assert len(groups_of(values)[0]) == 4
    assert len(groups_of(values, categories=("x",))[0]) == 8


@pytest.mark.parametrize(
    ("values", "reason"), [(("a", "a", ""), "the same"), ([f"n{i}" for i in range(20)], "too many")]
)
def test_a_covariate_that_makes_no_groups_says_why(values, reason):
    groups, without = groups_of(tuple(values))
    assert not groups
    assert reason in without[0]


@pytest.mark.parametrize(
    ("options", "what"),
    [({"covariates": ("agee",)}, "agee"), ({"bands": {"sex": (1, 2)}}, "not all its values are numbers")],
)
def test_options_that_do_not_fit_the_covariates_are_refused(options, what):
    with pytest.raises(PluginError, match=what):
        make_groups({"sex": ("F", "M"), "age": ("50", "60")}, SubgroupsOptions(**options))


def test_bands_that_do_not_ascend_are_refused():
    with pytest.raises(PluginError, match="ascend"):
        parse_options(SPEC, {"bands": {"age": [60, 50]}})


def test_metrics_of_a_group_and_of_the_rest_are_scikit_learns(tmp_path):
    study = study_with({"sex": SEX})
    findings = run(study, tmp_path)
    answers = study.models[0].predictions.targets["kl"]
    inside = np.array(SEX) == "F"

    def measured(rows):
        truth, predicted = answers.truth[rows], answers.predicted[rows]
        return {
            "AUC (macro)": reference.roc_auc_score(truth, answers.probabilities[rows], multi_class="ovr"),
            "accuracy": reference.accuracy_score(truth, predicted),
            "F1 (macro)": reference.f1_score(truth, predicted, average="macro"),
            "QWK": reference.cohen_kappa_score(truth, predicted, weights="quadratic"),
            "MAE": reference.mean_absolute_error(truth, predicted),
        }

    (value,) = [row for row in rows_of(findings, "subgroups_kl") if row["group"] == "F"]
    (apart,) = [row for row in rows_of(findings, "subgroup_differences_kl") if row["group"] == "F"]
    group, rest = measured(inside), measured(~inside)
    assert value["n"] == inside.sum()
    for name, expected in group.items():
        assert value[name] == pytest.approx(expected, abs=1e-12)
        assert apart[name] == pytest.approx(expected - rest[name], abs=1e-12)


def test_intervals_of_differences_redraw_subjects_of_both_sides_together():
    study = study_with({"sex": SEX}, resamples=60)
    analysis = SPEC.build(SubgroupsOptions())
    groups, _ = make_groups(study.covariates, analysis.options)
    numbers = numbers_of(analysis._measure(study, study.targets["kl"], groups))
    answers, inside = study.models[0].predictions.targets["kl"], np.array(SEX) == "F"
    (weights,) = subject_weights(study.subject_ids, resamples=60, seed=0)
    differences = []
    for weight in weights:
        drawn = np.repeat(np.arange(60), weight.astype(int))
        parts = [drawn[inside[drawn]], drawn[~inside[drawn]]]
        kappas = [
            reference.cohen_kappa_score(
                answers.truth[rows], answers.predicted[rows], labels=range(5), weights="quadratic"
            )
            for rows in parts
        ]
        differences.append(kappas[0] - kappas[1])
    found = [numbers[f"m.kl.sex.F.qwk.difference.{end}"] for end in ("low", "high")]
    assert found == pytest.approx(list(np.percentile(differences, [2.5, 97.5])), abs=1e-12)


def test_of_two_groups_each_is_the_rest_of_the_other(tmp_path):
    numbers = run(study_with({"sex": SEX}), tmp_path).numbers
    assert numbers["m.oa.sex.F.auc.difference"] == pytest.approx(-numbers["m.oa.sex.M.auc.difference"])


def test_small_groups_and_missing_grades_are_noted(tmp_path):
    site = tuple("A" if index >= 6 else "B" for index in range(60))
    findings = run(study_with({"site": site}), tmp_path)
    notes = {row["group"]: row["note"] for row in rows_of(findings, "subgroups_kl")}
    assert notes == {"A": None, "B": "fewer than 20 cases, 2 grades missing"}
    site = tuple("A" if index >= 4 else "B" for index in range(60))
    notes = {
        row["group"]: row["note"]
        for row in rows_of(run(study_with({"site": site}), tmp_path, small=3), "subgroups_oa")
    }
    assert notes == {"A": None, "B": "one class only"}


def test_cases_without_a_truth_are_not_counted(tmp_path):
    study = study_with({"sex": SEX}, {"m": make_table(unknown=20)})
    counts = {row["group"]: row["n"] for row in rows_of(run(study, tmp_path), "subgroups_oa")}
    assert counts == {sex: SEX[20:].count(sex) for sex in "FM"}


def test_a_group_that_is_worse_by_far_is_named_in_the_summary(tmp_path):
    table = make_table(noise_std=0.3)
    answers = table.targets["oa"]
    harmed = np.array(SEX) == "F"
    turned = np.where(harmed[:, None], answers.probabilities[:, ::-1], answers.probabilities)
    worse = replace(answers, probabilities=turned, predicted=turned.argmax(axis=1))
    study = study_with({"sex": SEX}, {"m": replace(table, targets={"oa": worse})}, resamples=200)
    findings = run(study, tmp_path)
    assert "in 1 of 1 comparisons" in findings.summary[0]
    assert findings.summary[1].startswith(f"oa, m, sex F (n = {harmed.sum()}): AUC 0.0")
    assert findings.numbers["m.oa.sex.F.auc.difference.high"] < -0.5


def test_the_figure_has_a_line_for_every_group_and_model(tmp_path):
    tables = {"one": make_table(), "two": make_table(seed=2)}
    findings = run(study_with({"sex": SEX, "site": ("A",) * 30 + ("B",) * 30}, tables), tmp_path)
    for figure in findings.figures:
        assert (tmp_path / figure.image).read_bytes().startswith(b"\x89PNG")
        with (tmp_path / figure.data).open() as file:
            assert len(list(csv.DictReader(file))) == 2 * 4


def test_without_covariates_the_analysis_is_skipped_and_says_how_to_give_some(tmp_path):
    outcome = run_study(make_study({"m": make_table()}), ["subgroups"], folder=tmp_path, registry=registry())
    assert outcome.statuses == {"subgroups": "skipped"}
    assert "--cases CSV" in outcome.findings.read_text()


def write_cases(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def case_rows(study, **columns):
    return [
        {"case_id": case, "subject_id": subject, "side": "left", "kl": 0, "split": "test"}
        | {name: values[index] for name, values in columns.items()}
        for index, (case, subject) in enumerate(zip(study.case_ids, study.subject_ids, strict=True))
    ]


def test_a_case_table_gives_all_columns_but_targets_in_the_order_of_the_cases(tmp_path):
    study = make_study({"m": make_table()})
    rows = case_rows(study, sex=SEX, note=[""] * 60)
    path = write_cases(tmp_path / "cases.csv", rows[::-1][:50])
    found = with_covariates(study, table=path, places=Places())
    assert set(found.covariates) == {"side", "sex"}
    assert found.covariates["sex"] == ("",) * 10 + SEX[10:]
    assert set(found.covariates["side"][10:]) == {"L"}
    assert "covariates" in found.provides
    assert "covariates" not in study.provides


def test_a_case_table_of_other_cases_or_subjects_is_refused(tmp_path):
    study = make_study({"m": make_table()})
    rows = case_rows(study)
    other = write_cases(tmp_path / "other.csv", [row | {"case_id": f"x{row['case_id']}"} for row in rows])
    with pytest.raises(DatasetError, match="lists none of the cases"):
        with_covariates(study, table=other, places=Places())
    swapped = write_cases(tmp_path / "swapped.csv", [row | {"subject_id": "someone"} for row in rows])
    with pytest.raises(DatasetError, match="is of subject 'someone'"):
        with_covariates(study, table=swapped, places=Places())
    twice = write_cases(tmp_path / "twice.csv", rows + rows[:1])
    with pytest.raises(DatasetError, match="several rows"):
        with_covariates(study, table=twice, places=Places())
    with pytest.raises(DatasetError, match="cannot be read"):
        with_covariates(study, table=tmp_path / "absent.csv", places=Places())


@pytest.fixture
def of_folder(tmp_path, monkeypatch):
    """A study of a model folder, and the case table of the dataset its plan names."""
    plan = SimpleNamespace(plan=SimpleNamespace(dataset_name="Dataset901_Toy"))
    monkeypatch.setattr("oaplug.study.covariates.read_run", lambda folder: plan)
    folder = tmp_path / "raw" / "Dataset901_Toy"
    folder.mkdir(parents=True)
    study = make_study({"m": make_table()})
    study = replace(study, models=(replace(study.models[0], folder=tmp_path / "run"),))
    return study, folder / "cases.csv", Places(raw_override=tmp_path / "raw")


def test_the_case_table_of_the_dataset_is_found_through_the_model_folder(of_folder):
    study, path, places = of_folder
    write_cases(path, case_rows(study, sex=SEX))
    assert with_covariates(study, table=None, places=places).covariates["sex"] == SEX


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda rows: rows[1:], "does not list case knee000v0"),
        (lambda rows: [row | {"subject_id": "someone"} for row in rows], "is of subject 'someone'"),
    ],
)
def test_a_table_that_was_found_but_is_of_other_cases_is_not_taken(of_folder, change, reason):
    study, path, places = of_folder
    write_cases(path, change(case_rows(study, sex=SEX)))
    found = with_covariates(study, table=None, places=places)
    assert not found.covariates
    assert reason in found.covariates_lacking


def test_without_a_table_or_a_model_folder_the_study_says_what_is_lacking():
    study = with_covariates(make_study({"m": make_table()}), table=None, places=Places())
    assert not study.covariates
    assert "model folders only" in study.lacking({"covariates"})[0]
