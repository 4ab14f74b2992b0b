"""The analysis saliency_overlap through the command, its numbers recomputed from the maps it wrote."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from dataclasses import replace
from math import ceil

import nibabel
import numpy as np
import pytest
from numpy.testing import assert_allclose
from oaplug_analyses.options import SaliencyOverlapOptions
from oaplug_analyses.saliency_asked import Asked, choose_regions
from oaplug_analyses.saliency_overlap import SaliencyOverlap
from scipy.stats import spearmanr

from oaplug.commands import analyze
from oaplug.core.dataset import DatasetDescription
from oaplug.core.errors import DatasetError, PredictionError
from oaplug.core.paths import Places
from oaplug.plug.registry import registry
from oaplug.study.gather import open_study
from oaplug.study.run import run_study

pytestmark = pytest.mark.slow

TOY = "Dataset901_Toy"
NAME = "saliency_overlap"
QUICK = {"copies": 2, "untrained_cases": 0, "shown_cases": 0}
KNEE = DatasetDescription(
    name="knee",
    channel_names=("DESS",),
    labels={"background": 0, "femur": 1, "medial": 4, "lateral": (5, 6)},
    file_ending=".nii.gz",
    regions={"cartilage": ("medial", "lateral")},
)


@pytest.fixture(scope="module")
def project(trained_project, tmp_path_factory):
    """The session's model with predictions, one test case of which has no mask."""
    project = trained_project.copy(tmp_path_factory.mktemp("saliency"))
    model = project.model(TOY, "resnet3d-single_kl")
    assert project.predict(model, project.raw / TOY / "imagesTs") == 0
    (project.raw / TOY / "labelsTs" / "toy_023.nii.gz").unlink()
    return project


@pytest.fixture(scope="module")
def study(project):
    """The model twice, under two names."""
    model = project.model(TOY, "resnet3d-single_kl")
    places = Places(raw_override=project.raw)
    return open_study({"one": model, "an/other": model}, resamples=20, seed=0, places=places)


@pytest.fixture(scope="module")
def report(project, tmp_path_factory):
    """What the command writes for that model alone."""
    folder = tmp_path_factory.mktemp("report")
    model = project.model(TOY, "resnet3d-single_kl")
    arguments = ["-m", f"m={model}", "-a", NAME, "-o", str(folder), "--raw", str(project.raw)]
    chosen = {"copies": 3, "untrained_cases": 2, "shown_cases": 1}
    options = [text for k, v in chosen.items() for text in ("--set", f"{NAME}.{k}={v}")]
    assert analyze.main([*arguments, "--resamples", "20", *options]) == 0
    return folder


def findings_of(folder):
    (section,) = json.loads((folder / "findings.json").read_text("utf-8"))["analyses"]
    assert section["status"] == "ok", section
    return section["findings"]


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_command_writes_maps_on_the_grids_of_the_images(project, report):
    maps = sorted((report / NAME / "maps" / "m").iterdir())
    images = sorted((project.raw / TOY / "imagesTs").iterdir())
    ids = [path.name.removesuffix("_0000.nii.gz") for path in images if "toy_023" not in path.name]
    assert [path.name for path in maps] == [f"{name}_{t}.nii.gz" for name in ids for t in ("kl", "oa")]
    for path in maps:
        image = nibabel.load(project.raw / TOY / "imagesTs" / f"{path.name[:7]}_0000.nii.gz")
        written = nibabel.load(path)
        assert written.shape == image.shape
        assert_allclose(written.affine, image.affine)
        assert 0 <= written.get_fdata().min() <= written.get_fdata().max() <= 1
        assert written.get_fdata().max() > 0.3


def test_every_number_of_every_case_follows_from_its_map_and_mask(project, report):
    rows = rows_of(report / NAME / "cases.csv")
    found = [row for row in rows if row["map"] in {"kl", "oa"} and row["region"] == "lesion"]
    assert len(found) == 2 * 5
    for row in found:
        saliency = nibabel.load(report / NAME / "maps" / "m" / f"{row['case_id']}_{row['map']}.nii.gz")
        values = saliency.get_fdata().ravel()
        mask = (
            nibabel.load(project.raw / TOY / "labelsTs" / f"{row['case_id']}.nii.gz").get_fdata().ravel() == 1
        )
        assert float(row["region_fraction"]) == pytest.approx(mask.mean())
        assert float(row["mass"]) == pytest.approx(values[mask].sum() / values.sum(), rel=1e-5)
        assert float(row["mass_lift"]) == pytest.approx(float(row["mass"]) / mask.mean())
        for percent in (1, 5, 10):
            top = np.argsort(-values)[: ceil(percent / 100 * values.size)]
            hits = mask[top].sum()
            assert float(row[f"top{percent}"]) == pytest.approx(hits / top.size)
            assert float(row[f"dice{percent}"]) == pytest.approx(2 * hits / (top.size + mask.sum()))


def test_the_findings_are_means_over_cases_with_intervals_and_a_picture_of_each(report):
    found = findings_of(report)
    rows = rows_of(report / NAME / "cases.csv")
    masses = defaultdict(list)
    for row in rows:
        masses[row["map"], row["region"]].append(float(row["mass"]))
    for question in ("kl", "oa"):
        key = f"m.{question}.lesion.mass"
        low, value, high = (found["numbers"][key + ending] for ending in (".low", "", ".high"))
        assert value == pytest.approx(np.mean(masses[question, "lesion"]))
        assert low <= value <= high
    assert found["numbers"]["m.random.lesion.mass"] == pytest.approx(np.mean(masses["random", "lesion"]))
    assert len(masses["untrained:kl", "lesion"]) == 2
    expected = np.mean(masses["untrained:kl", "lesion"])
    assert found["numbers"]["m.kl.untrained_mass"] == pytest.approx(expected)
    assert -1 <= found["numbers"]["m.kl.untrained_correlation"] <= 1
    assert {table["name"] for table in found["tables"]} == {"overlap", "untrained"}
    pictures = [figure["image"] for figure in found["figures"]]
    assert [name.rsplit("_toy", 1)[0] for name in pictures] == [
        *("overlap_kl.png", "slices_kl", "overlap_oa.png", "slices_oa")
    ]
    assert all((report / NAME / name).stat().st_size > 10_000 for name in pictures)
    assert any("toy_023: it has no mask" in sentence for sentence in found["summary"])


def test_noise_comes_to_the_part_of_the_field_of_view_that_the_region_is(study, report):
    """Which is more than its part of the image, where the network sees a part of the image only."""
    opened = study.models[0].open()
    found, expected, sizes = [], [], []
    for row in rows_of(report / NAME / "cases.csv"):
        if (row["map"], row["region"]) == ("random", "lesion"):
            case = study.cases[row["case_id"]]
            volume = opened.prepare(case)
            ones = np.ones(volume.data.shape[1:], np.float32)
            seen = study.grids.bring_back(ones, affine=volume.affine, case=case)
            mask = study.grids.mask(case) == 1
            found.append(float(row["mass"]))
            expected.append(seen[mask].sum() / seen.sum())
            sizes.append(mask.mean())
    assert_allclose(found, expected, rtol=0.15)
    assert np.mean(expected) > 1.3 * np.mean(sizes)


def test_models_are_compared_on_the_same_cases(study, tmp_path):
    options = SaliencyOverlapOptions(targets=("kl:4", "oa"), regions=("lesion",), **QUICK)
    found = SaliencyOverlap(options).run(study, tmp_path)
    numbers = found.numbers
    key = "an/other_vs_one.kl:4.lesion.top5"
    assert (numbers[key], numbers[f"{key}.low"], numbers[f"{key}.high"]) == (0, 0, 0)
    assert numbers["one.kl:4.lesion.mass"] == numbers["an/other.kl:4.lesion.mass"]
    names = {path.relative_to(tmp_path / "maps").as_posix() for path in tmp_path.glob("maps/*/*")}
    assert {"one/toy_006_kl_4.nii.gz", "an_other/toy_006_oa.nii.gz"} <= names
    assert [table.name for table in found.tables] == ["overlap", "differences"]
    shown = found.tables[1].rows
    assert {row[:2] for row in shown} == {("kl:4", "an/other"), ("oa", "an/other")}


def test_differences_are_those_of_the_cases(study, tmp_path):
    """Another seed's networks stand for another model."""
    (first, second) = study.models
    other = Untrained(second.source)
    changed = replace(study, models=(first, replace(second, source=other)))
    options = SaliencyOverlapOptions(targets=("oa",), maps="none", **QUICK)
    numbers = SaliencyOverlap(options).run(changed, tmp_path).numbers
    assert not (tmp_path / "maps").exists()
    values = defaultdict(dict)
    for row in rows_of(tmp_path / "cases.csv"):
        if (row["map"], row["region"]) == ("oa", "blob"):
            values[row["model"]][row["case_id"]] = float(row["mass"])
    differences = [values["an/other"][case] - value for case, value in values["one"].items()]
    assert np.ptp(differences) > 0
    key = "an/other_vs_one.oa.blob.mass"
    assert numbers[key] == pytest.approx(np.mean(differences))
    assert (
        min(differences)
        <= numbers[f"{key}.low"]
        <= numbers[key]
        <= numbers[f"{key}.high"]
        <= max(differences)
    )


class Untrained:
    """A source whose model explains the network with random weights."""

    def __init__(self, source):
        self.source = source

    def __getattr__(self, name):
        return getattr(self.source, name)

    def open(self):
        opened = self.source.open()
        saliency = opened.saliency

        class Other:
            def __getattr__(self, name):
                return getattr(opened, name)

            def saliency(self, *arguments, **settings):
                return saliency(*arguments, **settings | {"untrained": True})

        return Other()


def test_the_correlation_with_untrained_networks_is_that_of_the_maps(study, tmp_path):
    options = SaliencyOverlapOptions(targets=("oa",), maps="none", **QUICK | {"untrained_cases": 1})
    numbers = SaliencyOverlap(options).run(replace(study, models=study.models[:1]), tmp_path).numbers
    (case_id,) = Asked(study=study, options=options).with_untrained
    opened = study.models[0].open()
    asked = Asked(study=study, options=options)
    volume = opened.prepare(study.cases[case_id])
    maps = [
        opened.saliency(
            volume.data, asked.questions["one"], case_id=case_id, settings=asked.settings, untrained=untrained
        )[0]
        for untrained in (False, True)
    ]
    expected = spearmanr(maps[0].ravel(), maps[1].ravel()).statistic
    assert numbers["one.oa.untrained_correlation"] == pytest.approx(expected)


def test_a_case_that_cannot_be_read_is_left_out_for_all_models(study, tmp_path, monkeypatch):
    grids = study.grids
    calls = []

    class Broken:
        description = grids.description

        def __getattr__(self, name):
            return getattr(grids, name)

        def mask(self, case):
            calls.append(case.case_id)
            if case.case_id == "toy_006":
                raise DatasetError("case toy_006, labelsTs/toy_006.nii.gz: cannot be read")
            return grids.mask(case)

    options = SaliencyOverlapOptions(targets=("oa",), maps="none", **QUICK)
    found = SaliencyOverlap(options).run(replace(study, grids=Broken()), tmp_path)
    assert {row["case_id"] for row in rows_of(tmp_path / "cases.csv")} == set(calls) - {"toy_006"}
    assert any("2 cases were left out" in s and "toy_006: case toy_006, labelsTs" in s for s in found.summary)
    alone = replace(
        study,
        grids=Broken(),
        case_ids=("toy_006",),
        subject_ids=study.subject_ids[:1],
    )
    with pytest.raises(PredictionError, match=r"no case could be measured; the first: case toy_006"):
        SaliencyOverlap(options).run(alone, tmp_path)


def test_regions_are_those_of_the_dataset_and_its_labels_unless_named():
    assert choose_regions(KNEE, ()) == {
        **{"cartilage": (4, 5, 6), "femur": (1,)},
        **{"medial": (4,), "lateral": (5, 6)},
    }
    assert choose_regions(KNEE, ("lateral", "study")) == {"lateral": (5, 6), "study": (2, 4)}
    own = replace(KNEE, regions={"study": ("femur",)})
    assert choose_regions(own, ("study",)) == {"study": (1,)}
    with pytest.raises(PredictionError, match="no region or label 'cartilag'; did you mean 'cartilage'"):
        choose_regions(KNEE, ("cartilag",))
    with pytest.raises(PredictionError, match="names no region and no label"):
        choose_regions(replace(KNEE, labels={"background": 0}, regions={}), ())


def test_what_is_not_there_is_refused_by_name(study, tmp_path):
    wrong = {
        "no target 'ao'": {"targets": ("ao",)},
        "baseline 'three' is no model": {"baseline": "three"},
        "no region or label 'bone'": {"regions": ("bone",)},
    }
    for message, option in wrong.items():
        with pytest.raises(PredictionError, match=message):
            SaliencyOverlap(SaliencyOverlapOptions(maps="none", **QUICK | option)).run(study, tmp_path)


def skipped(study, folder):
    """Why it is skipped."""
    outcome = run_study(study, [NAME], folder=folder, registry=registry())
    assert outcome.statuses == {NAME: "skipped"}
    return json.loads(outcome.findings.read_text("utf-8"))["analyses"][0]["reason"]


def test_it_says_what_it_lacks(study, tmp_path):
    lonely = replace(study, cases={}, cases_lacking="no raw images: the folder is gone")
    assert "it needs images, masks" in skipped(lonely, tmp_path)
    assert "the folder is gone" in skipped(lonely, tmp_path)
    bare = {name: replace(case, mask=None) for name, case in study.cases.items()}
    assert "no masks of these cases (labelsTs)" in skipped(replace(study, cases=bare), tmp_path)
    tables = tuple(replace(model, source=None) for model in study.models)
    assert "one: it is a table of predictions alone" in skipped(replace(study, models=tables), tmp_path)


def test_it_runs_on_request_only():
    (part,) = [part for part in registry().of_kind("analysis") if part.spec.name == NAME]
    assert part.spec.on_request


def test_a_model_without_networks_is_left_out_and_named(study, tmp_path):
    first, second = study.models
    mixed = replace(study, models=(first, replace(second, source=None)))
    options = SaliencyOverlapOptions(targets=("oa",), maps="none", **QUICK)
    found = SaliencyOverlap(options).run(mixed, tmp_path)
    assert any(s == "an/other is left out: it is a table of predictions alone." for s in found.summary)
    assert {row["model"] for row in rows_of(tmp_path / "cases.csv")} == {"one"}
