"""The words of the project: targets and hierarchy, settings from JSON, atomic files, seeds, paths."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oaplug.core.artifacts import atomic_path, check_schema, digest_of_json, read_json, write_json
from oaplug.core.dataset import open_dataset, read_dataset
from oaplug.core.errors import DatasetError, PathError, PlanError
from oaplug.core.paths import Places, dataset_folder_name, find_dataset, run_folder_name
from oaplug.core.seeds import derive_seed, random_generator
from oaplug.core.settings import apply_override, from_mapping, parse_overrides, to_mapping
from oaplug.core.target import fill_derived, finest_target, targets_from_json, targets_to_json

HIERARCHY = {
    "oa": {"kind": "binary", "derived_from": "kl", "at_least": 2},
    "kl": {"kind": "ordinal", "grades": [0, 1, 2, 3, 4]},
}


def hierarchy():
    return targets_from_json(HIERARCHY, where="dataset.json")


def test_parents_come_before_what_is_derived_from_them_and_json_comes_back():
    targets = hierarchy()
    assert list(targets) == ["kl", "oa"]
    assert targets_from_json(targets_to_json(targets), where="again") == targets
    assert finest_target(targets).name == "kl"


@given(st.integers(-1, 4))
def test_oa_is_kl_of_at_least_two_and_unknown_where_kl_is(kl):
    filled, contradictions = fill_derived({"kl": kl}, hierarchy())
    assert filled["oa"] == (-1 if kl == -1 else int(kl >= 2))
    assert contradictions == []


def test_a_derived_label_of_its_own_counts_where_the_parent_is_blank_and_a_contradiction_is_named():
    assert fill_derived({"kl": -1, "oa": 1}, hierarchy())[0]["oa"] == 1
    assert fill_derived({"kl": 3, "oa": 0}, hierarchy()) == ({"kl": 3, "oa": 1}, ["oa"])


@pytest.mark.parametrize(
    ("text", "index"), [("2", 2), (2, 2), ("2.0", 2), (" 4 ", 4), ("", -1), (None, -1), ("nan", -1)]
)
def test_grades_are_read_as_people_write_them(text, index):
    assert hierarchy()["kl"].index_of(text) == index


def test_a_grade_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(DatasetError, match=r"no grade '5' \(grades: 0, 1, 2, 3, 4\)"):
        hierarchy()["kl"].index_of("5")


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ({"oa": {"derived_from": "kl", "at_least": 2}}, "derived from 'kl'"),
        ({"kl": {"kind": "ordnal", "grades": [0, 1]}}, "ordinal, binary or categorical"),
        ({"kl": {"kind": "ordinal", "grades": [0, 1], "grade": 1}}, "did you mean 'grades'"),
        ({"kl": {"kind": "ordinal", "grades": [0, 0]}}, "two different grades"),
        (HIERARCHY | {"oa": {"derived_from": "kl", "at_least": 9}}, "no grade '9'"),
        (HIERARCHY | {"oa": {"derived_from": "kl", "at_least": 0}}, "above the lowest"),
        (HIERARCHY | {"oa": {"derived_from": "kl"}}, "go together"),
        ({"a__b": {"kind": "binary"}}, "single underscores"),
    ],
)
def test_targets_that_make_no_sense_are_refused(targets, message):
    with pytest.raises(DatasetError, match=message):
        targets_from_json(targets, where="dataset.json")


@dataclass(frozen=True, kw_only=True)
class Inner:
    width: int = 3
    ratios: tuple[float, float] = (0.5, 1.0)


@dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    named: dict[str, Inner] = field(default_factory=dict)
    name: str | None = None


def test_settings_come_back_from_their_json_form():
    value = Outer(inner=Inner(width=5), named={"a": Inner(ratios=(0.1, 0.2))}, name="x")
    assert from_mapping(Outer, to_mapping(value), where="file") == value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"inner": {"widht": 1}}, r"file: unknown key 'inner\.widht'; did you mean 'width'"),
        ({"named": {"a": {"wdth": 1}}}, r"unknown key 'named\.a\.wdth'; did you mean 'width'"),
        ({"inner": {"width": "wide"}}, r"inner\.width: .*got 'wide'"),
        ({"inner": {"ratios": [1, 2, 3]}}, r"inner\.ratios"),
    ],
)
def test_settings_that_are_off_are_refused_by_key(content, message):
    with pytest.raises(PlanError, match=message):
        from_mapping(Outer, content, where="file")


def test_overrides_are_json_or_text_and_refuse_unknown_keys_but_not_options():
    assert parse_overrides(["a.b=5", "c=[1,2]", "d=x=y"]) == {"a.b": 5, "c": [1, 2], "d": "x=y"}
    content = {"training": {"epochs": 1}, "backbone": {}}
    apply_override(content, "training.epochs", 5)
    apply_override(content, "backbone.width", 8, open_keys=("backbone",))
    assert content == {"training": {"epochs": 5}, "backbone": {"width": 8}}
    with pytest.raises(PlanError, match="did you mean 'epochs'"):
        apply_override(content, "training.epoch", 5)
    with pytest.raises(PlanError, match="KEY=VALUE"):
        parse_overrides(["training.epochs"])


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = write_json(tmp_path / "a.json", {"x": 1})

    def fail_half_way():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert read_json(path) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_json_that_cannot_be_read_is_refused_with_its_path(tmp_path):
    with pytest.raises(PathError, match="does not exist; run it first"):
        read_json(tmp_path / "none.json", hint="run it first")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(PathError, match=r"bad\.json is not valid JSON"):
        read_json(tmp_path / "bad.json")
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "nan.json", {"x": float("nan")})


def test_an_artifact_from_the_future_is_refused(tmp_path):
    with pytest.raises(PlanError, match="upgrade oaplug"):
        check_schema({"schema": 2}, path=tmp_path, newest=1, error=PlanError)


def test_a_digest_does_not_depend_on_the_order_of_keys():
    assert digest_of_json({"a": 1, "b": [2]}) == digest_of_json({"b": [2], "a": 1})
    assert digest_of_json({"a": 1}) != digest_of_json({"a": 2})


def test_seeds_depend_on_every_part_of_their_purpose_and_on_nothing_else():
    purposes = [(0, "a", 1), (1, "a", 1), (0, "b", 1), (0, "a", 2), (0, "a"), (0, "a1")]
    assert len({derive_seed(*p) for p in purposes}) == len(purposes)
    first = random_generator(0, "a", 1).random(3)
    random_generator(0, "b").random(100)
    np.testing.assert_array_equal(random_generator(0, "a", 1).random(3), first)


def test_roots_come_from_the_environment_or_the_command_line_and_an_error_names_the_variable(
    tmp_path, monkeypatch
):
    monkeypatch.delenv("oaplug_raw", raising=False)
    with pytest.raises(PathError, match=r"oaplug_raw is not set; .* --raw"):
        _ = Places().raw
    monkeypatch.setenv("oaplug_raw", str(tmp_path))
    assert Places().raw == tmp_path
    assert Places(raw_override=tmp_path / "x").raw == tmp_path / "x"


def test_a_dataset_is_found_by_number_name_or_both(tmp_path):
    folder = tmp_path / "Dataset007_Knee"
    folder.mkdir()
    for name in ("7", "007", "Knee", "Dataset007_Knee"):
        assert find_dataset(tmp_path, name) == folder
    with pytest.raises(PathError, match="there: Dataset007_Knee"):
        find_dataset(tmp_path, "8")
    (tmp_path / "Dataset007_Other").mkdir()
    with pytest.raises(PathError, match="ambiguous"):
        find_dataset(tmp_path, "7")


def test_names_of_folders_cannot_escape_or_be_misread():
    assert dataset_folder_name(7, "Knee") == "Dataset007_Knee"
    name = run_folder_name(model="resnet3d-dual", plans="oaplugPlans", configuration="3d_lowres", tag="s1")
    assert name == "resnet3d-dual__oaplugPlans__3d_lowres__s1"
    for tag in ("../x", "a__b", "a b"):
        with pytest.raises(PathError):
            run_folder_name(model="a", plans="b", configuration="c", tag=tag)


def write_dataset(folder, *, table, description=None):
    content = {"channel_names": {"0": "MRI"}, "labels": {}, "file_ending": ".nii.gz", "targets": HIERARCHY}
    write_json(folder / "dataset.json", content | (description or {}))
    (folder / "imagesTr").mkdir()
    for case in ("a", "b"):
        (folder / "imagesTr" / f"{case}_0000.nii.gz").touch()
    if table is not None:
        (folder / "cases.csv").write_text(table, encoding="utf-8-sig")
    return folder


def test_a_case_table_gives_subjects_sides_labels_and_blanks(tmp_path):
    table = "case_id,subject_id,side,split,kl\na,s1,left,,3\nb,,R,test,\n"
    a, b = open_dataset(write_dataset(tmp_path, table=table)).cases
    assert (a.subject_id, a.side, a.split, dict(a.labels)) == ("s1", "L", "train", {"kl": 3, "oa": 1})
    assert (b.subject_id, b.side, b.split, dict(b.labels)) == ("b", "R", "test", {"kl": -1, "oa": -1})


def test_an_nnunet_folder_without_a_table_opens_as_it_is(tmp_path):
    dataset = open_dataset(write_dataset(tmp_path, table=None, description={"targets": {}}))
    assert [(c.case_id, c.subject_id, c.split) for c in dataset.cases] == [
        ("a", "a", "train"),
        ("b", "b", "train"),
    ]


@pytest.mark.parametrize(
    ("table", "kind", "message"),
    [
        ("case_id,kl\na,7\nb,1\n", "bad label", "no grade '7'"),
        ("case_id,kl\na,1\na,2\nb,1\n", "duplicate case", "2 rows"),
        ("case_id,kl,age\na,1,50\nb,1,60\n", "unknown column", "'age'"),
        ("case_id\na\nb\n", "missing column", "'kl'"),
        ("case_id,kl,oa\na,3,0\nb,1,0\n", "contradiction", "oa = 0 contradicts kl = 3"),
        ("case_id,kl,side\na,1,up\nb,1,L\n", "bad side", "'up'"),
        ("case_id,kl,split\na,1,dev\nb,1,\n", "bad split", "'dev'"),
        ("case_id,kl\n../a,1\na,1\nb,1\n", "bad case id", r"'\.\./a'"),
        ("case_id,kl\na,1\n", "case not listed", "no row"),
    ],
)
def test_every_problem_of_a_case_table_is_collected_and_the_first_stops_opening(
    tmp_path, table, kind, message
):
    folder = write_dataset(tmp_path, table=table)
    problems = read_dataset(folder).problems
    assert [p.kind for p in problems] == [kind]
    with pytest.raises(DatasetError, match=message):
        open_dataset(folder)
