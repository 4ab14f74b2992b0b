"""The error gallery: which mistakes are the most confident, and which way up their images are."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from oaplug_analyses import oaplug_analyses
from oaplug_analyses.error_gallery import find_mistakes
from oaplug_analyses.error_gallery_figures import middle_slices
from synthetic_predictions import make_study, make_table, with_answers

from oaplug.core.case import Case
from oaplug.core.errors import DatasetError
from oaplug.core.volume import Volume
from oaplug.plug.registry import parse_options

pytestmark = pytest.mark.slow

SPEC = next(spec for spec in oaplug_analyses() if spec.name == "error_gallery")


def run(study, folder, **options):
    return SPEC.build(parse_options(SPEC, options)).run(study, folder)


def volume_of(data, spacing_mm=(1.0, 1.0, 1.0)):
    return Volume(data=np.asarray(data, dtype=np.float32)[None], spacing_mm=spacing_mm, affine=np.eye(4))


def with_images(study, tmp_path, read):
    cases = {
        name: Case(case_id=name, subject_id=name, images=(tmp_path / f"{name}.nii.gz",))
        for name in study.case_ids
    }
    return replace(study, cases=cases, read_image=read)


def test_all_mistakes_are_found_the_most_confident_first():
    table = make_table(noise_std=1.6)
    kl, oa = find_mistakes(make_study({"m": table}))
    answers = table.targets["kl"]
    wrong = [i for i in range(60) if answers.predicted[i] != answers.truth[i]]
    expected = sorted(wrong, key=lambda i: -max(answers.probabilities[i]))
    assert len(wrong) > 10
    assert [m.case_id for m in kl.mistakes] == [table.case_ids[i] for i in expected]
    first, row = kl.mistakes[0], expected[0]
    assert first.confidence == answers.probabilities[row].max()
    assert first.true_probability == answers.probabilities[row, answers.truth[row]]
    assert first.grades_off == abs(answers.predicted[row] - answers.truth[row])
    assert oa.target.name == "oa"


def test_cases_of_unknown_truth_are_no_mistakes():
    table = make_table(noise_std=1.6, unknown=30)
    kl, _ = find_mistakes(make_study({"m": table}))
    assert kl.known == 30
    assert {m.case_id for m in kl.mistakes} <= set(table.case_ids[30:])


def test_a_mistake_says_how_many_models_share_it():
    table = make_table()
    truth = table.targets["oa"].truth
    alone = 1 - np.eye(60, dtype=int)[0]
    sure = np.eye(2)[np.where(alone == 1, truth, 1 - truth)]
    first = with_answers(table, "oa", probabilities=sure, predicted=sure.argmax(axis=1))
    right = np.eye(2)[truth]
    second = with_answers(table, "oa", probabilities=right, predicted=truth)
    study = make_study({"wrong": first, "right": second, "too": first})
    found = {one.model: one for one in find_mistakes(study) if one.target.name == "oa"}
    assert [(m.case_id, m.shared, m.asked) for m in found["wrong"].mistakes] == [(table.case_ids[0], 2, 3)]
    assert found["right"].mistakes == ()


def test_without_images_there_is_a_table_and_the_reason(tmp_path):
    study = make_study({"m": make_table(noise_std=1.6)})
    findings = run(study, tmp_path, listed=3)
    assert not findings.figures
    assert [len(table.rows) for table in findings.tables] == [3, 3]
    assert "No image is shown" in findings.summary[-1]


def test_a_gallery_is_drawn_for_every_model_and_target_and_reads_each_case_once(tmp_path):
    read = []

    def reader(case):
        read.append(case.case_id)
        return volume_of(np.random.default_rng(0).random((6, 9, 12)))

    tables = {"one": make_table(noise_std=1.6), "two": make_table(noise_std=1.6)}
    findings = run(with_images(make_study(tables), tmp_path, reader), tmp_path, shown=2)
    assert [f.name for f in findings.figures] == [
        f"gallery_{t}_{i}" for i, t in enumerate(["kl"] * 2 + ["oa"] * 2)
    ]
    assert len(read) == len(set(read))
    for figure in findings.figures:
        assert (tmp_path / figure.image).read_bytes().startswith(b"\x89PNG")
        assert len((tmp_path / figure.data).read_text().splitlines()) == 3


def test_an_image_that_cannot_be_read_costs_no_other(tmp_path):
    study = make_study({"m": replace_targets(make_table(noise_std=1.6), "kl")})
    worst = find_mistakes(study)[0].mistakes[0].case_id

    def reader(case):
        if case.case_id == worst:
            raise DatasetError(f"case {worst}: the file is damaged")
        return volume_of(np.zeros((4, 5, 6)))

    findings = run(with_images(study, tmp_path, reader), tmp_path, shown=3)
    rows = (tmp_path / findings.figures[0].data).read_text().splitlines()
    assert len(rows) == 3
    assert "the file is damaged" in findings.summary[-1]


def replace_targets(table, *names):
    return replace(table, targets={name: table.targets[name] for name in names})


def test_slices_are_upright_with_anterior_and_the_right_side_to_the_right():
    data = np.zeros((7, 9, 11))
    d, h, w = 3, 4, 5
    data[d, 8, 10] = 3  # anterior and superior, in the sagittal plane
    data[6, h, 10] = 3  # right and superior, in the coronal plane
    data[6, 8, w] = 3  # right and anterior, in the axial plane
    slices = middle_slices(volume_of(data, spacing_mm=(3.0, 0.5, 1.0)))
    for image in slices.images:
        assert image[0, -1] == image.max() > 0
    assert [image.shape for image in slices.images] == [(11, 9), (11, 7), (9, 7)]
    assert slices.extents_mm == ((4.5, 11.0), (21.0, 11.0), (21.0, 4.5))


def test_a_study_without_any_truth_has_no_mistakes(tmp_path):
    findings = run(make_study({"m": make_table(subjects=3, unknown=6)}), tmp_path)
    assert findings.summary == ("No case has a known truth, so nothing can be wrong.",)
    assert not findings.tables


@pytest.mark.parametrize("options", [{"shown": -1}, {"listed": 0}])
def test_numbers_of_cases_that_make_no_sense_are_refused(options):
    with pytest.raises(Exception, match="shown must not be negative, and listed 1 at least"):
        parse_options(SPEC, options)


def test_a_model_folder_brings_images_covariates_and_validation_cases(trained_project, tmp_path):
    from oaplug.commands import analyze

    project = trained_project.copy(tmp_path / "project")
    (model,) = (project.results / "Dataset901_Toy").iterdir()
    assert project.predict(model, project.raw / "Dataset901_Toy" / "imagesTs") == 0
    names = ("calibration", "error_gallery", "hierarchy", "subgroups")
    arguments = ["-m", model, "-a", *names, "-o", tmp_path / "report", "--resamples", 5, "--raw", project.raw]
    assert analyze.main([str(argument) for argument in arguments]) == 0
    content = json.loads((tmp_path / "report" / "findings.json").read_text())
    sections = {section["name"]: section for section in content["analyses"]}
    assert {section["status"] for section in sections.values()} == {"ok"}
    assert sections["error_gallery"]["findings"]["figures"]
    groups = {row[0] for row in sections["subgroups"]["findings"]["tables"][0]["rows"]}
    assert "side" in groups
    told = " ".join(sections["calibration"]["findings"]["summary"])
    assert "validation cases" in told
    assert "fold_0/validation" not in told
