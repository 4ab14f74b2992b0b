"""Contact sheets of augmentation show what training will see, and say what was drawn."""

from __future__ import annotations

from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest
import torch

from oaplug.commands import plot_augmentation
from oaplug.core.plan import AugmentationSettings, read_plan, write_plan
from oaplug.feed.augment.captions import extremes
from oaplug.feed.augment.contact_sheet import View, part_sheet, sample_sheet
from oaplug.feed.source import BatchSource, VolumeStore
from oaplug.prepare.folder import PreprocessedFolder
from oaplug.testing.toy import write_toy_dataset
from oaplug.testing.toy_preprocessed import preprocess_toy

CUBE = View("D", (1.0, 1.0, 1.0), (10, 12, 14))
OFTEN = AugmentationSettings(
    rotation_probability=1, blur_probability=0.5, bias_field_probability=0.5, elastic_probability=0.25
)


@pytest.fixture(scope="module")
def preprocessed(tmp_path_factory):
    """Small cases of both sides, preprocessed; gives their folder in a root of its own."""
    root = tmp_path_factory.mktemp("data")
    folder = root / "preprocessed" / "Dataset077_Tiny"
    return preprocess_toy(write_toy_dataset(root / folder.name, cases=8, with_subjects=False), folder)


def images(figure):
    """The array and the caption of every panel that shows something."""
    return [(p.get_images()[0].get_array(), p.texts[0].get_text()) for p in figure.axes if p.get_images()]


def plot(folder, path, *arguments):
    base = ["-d", "77", "--preprocessed", str(folder.parent), "-o", str(path)]
    return plot_augmentation.main([*base, *arguments])


def test_a_sheet_shows_what_training_gives_to_the_network_in_its_first_epochs(preprocessed):
    data = PreprocessedFolder(preprocessed)
    plan = data.plan()
    settings = replace(plan.augmentation, rotation_probability=1.0, noise_probability=1.0)
    cases = [case for case in data.cases() if case.split == "train"][:2]
    store = VolumeStore(data, plan.configuration("3d_lowres").data_identifier)
    volumes = {c.case_id: torch.from_numpy(store.read(c.case_id).astype(np.float32)) for c in cases}
    source = BatchSource(
        cases=cases, store=store, targets=("kl",), batch_size=1, seed=3, fold="0",
        device=torch.device("cpu"), augmentation=settings,
    )  # fmt: skip
    view = View("D", (1.0, 1.0, 1.0), next(iter(volumes.values())).shape[1:])
    shown = images(sample_sheet(volumes, settings, view=view, samples=2, seed=3))
    assert len(shown) == 6
    for epoch in range(2):
        fed = {batch.case_ids[0]: batch.volume[0] for batch in source.epoch(epoch)}
        for row, case in enumerate(cases):
            array, caption = shown[3 * row + 1 + epoch]
            assert caption.startswith(f"epoch {epoch}: rotation")
            np.testing.assert_allclose(array, view.slice_of(fed[case.case_id]).numpy(), atol=1e-6)
    assert shown[0][1] == cases[0].case_id
    np.testing.assert_array_equal(shown[0][0], view.slice_of(volumes[cases[0].case_id]).numpy())


def test_a_slice_is_upright_in_true_proportions():
    volume = torch.arange(2 * 4 * 6 * 8.0).view(2, 4, 6, 8)
    sagittal = View("D", (3.0, 1.0, 2.0), (4, 6, 8))
    assert sagittal.height_per_width == pytest.approx(8 * 2 / 6)
    assert torch.equal(sagittal.slice_of(volume), volume[0, 2].T)
    assert torch.equal(View("W", (3.0, 1.0, 2.0), (4, 6, 8)).slice_of(volume), volume[0, :, :, 4].T)
    figure = sample_sheet({"knee": volume}, OFTEN, view=sagittal, samples=1, seed=0)
    low, high = figure.axes[0].get_ylim()
    assert low < high, "superior is up"
    assert figure.axes[0].get_aspect() == 2.0


def test_a_sheet_of_parts_shows_those_that_can_happen_with_the_original_between_their_ends():
    volume = torch.randn(1, 10, 12, 14)
    figure = part_sheet(volume, replace(OFTEN, noise_probability=0, mirror_axes=("W",)), view=CUBE)
    titles = [p.get_title() for p in figure.axes if p.get_title()]
    assert titles == [
        "rotation (probability 1)", "scale (probability 0.5)", "shift (probability 0.5)",
        "elastic (probability 0.25)", "bias field (probability 0.5)", "blur (probability 0.5)",
        "contrast (probability 0.15)", "brightness (probability 0.15)", "gamma (probability 0.15)",
        "mirror W (probability 0.5)",
    ]  # fmt: skip
    shown = images(figure)
    assert len(shown) == 3 * len(titles)
    original = CUBE.slice_of(volume).numpy()
    for low, middle, high in zip(shown[::3], shown[1::3], shown[2::3], strict=True):
        assert middle[1] == "original"
        np.testing.assert_array_equal(middle[0], original)
        assert not np.allclose(low[0], high[0])
    assert [caption for _, caption in shown[:3]] == [
        "rotation -10 -10 -10°",
        "original",
        "rotation 10 10 10°",
    ]
    np.testing.assert_array_equal(shown[-1][0], original[::-1])


def test_the_extremes_are_the_ends_of_the_plan_s_ranges():
    everything = {f"{part}_probability": 0.1 for part in ("inverted_gamma", "low_resolution", "blur")}
    ends = {part.name: part.draws for part in extremes(replace(OFTEN, **everything, keep_statistics=True))}
    assert [d.low_resolution_zoom for d in ends["low resolution"]] == [0.7, 1.0]
    assert [d.inverted_gamma for d in ends["inverted gamma"]] == [0.7, 1.5]
    assert [d.blur_sigma_voxels for d in ends["blur"]] == [(0.5,) * 3, (1.0,) * 3]
    assert {abs(c) for d in ends["bias field"] for c in d.bias_coefficients} == {0.2}
    assert all(d.elastic_displacement_voxels == 4.0 for d in ends["elastic"])
    assert all(d.keep_statistics for pair in ends.values() for d in pair)


def test_the_command_writes_a_picture_with_a_row_for_each_case(preprocessed, tmp_path, capsys):
    heights = []
    for cases in ("1", "3"):
        path = tmp_path / "new" / f"sheet{cases}.png"
        assert plot(preprocessed, path, "-n", cases, "--samples", "2") == 0
        heights.append(matplotlib.image.imread(path).shape[0])
    assert heights[1] > 2 * heights[0]
    said = capsys.readouterr().out
    assert f"result: {tmp_path / 'new' / 'sheet3.png'}" in said
    assert "next:   oaplug_train 77 3d_lowres 0" in said


def test_overrides_change_the_picture_as_they_change_a_training(preprocessed, tmp_path):
    quiet = [
        f"--set=augmentation.{part}_probability=0"
        for part in (
            "rotation", "scale", "shift", "brightness", "contrast", "gamma", "inverted_gamma", "blur",
            "low_resolution", "bias_field",
        )
    ]  # fmt: skip
    pictures = []
    for name, noise in (("still", "0"), ("again", "0"), ("noisy", "1")):
        path = tmp_path / f"{name}.png"
        given = [*quiet, "--set", f"augmentation.noise_probability={noise}"]
        assert plot(preprocessed, path, "-n", "1", "--samples", "1", *given) == 0
        pictures.append(matplotlib.image.imread(path))
    assert np.array_equal(pictures[0], pictures[1])
    assert pictures[0].shape != pictures[2].shape or not np.array_equal(pictures[0], pictures[2])


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra", [["--parts", "--axis", "W"], ["--set", "augmentation.backend=batchgeneratorsv2"]]
)
def test_other_pages_and_the_other_backend_are_drawn_too(extra, preprocessed, tmp_path):
    assert plot(preprocessed, tmp_path / "page.png", "-n", "1", "--samples", "1", *extra) == 0
    assert matplotlib.image.imread(tmp_path / "page.png").std() > 0.05


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "augmentation.nois_std=1"], "no plan key 'augmentation.nois_std'"),
        (["--set", "augmentation.backend=none"], "augments nothing"),
        (["--set", "augmentation.backend=batchgeneratorsv2", "--parts"], "leave --parts out"),
        (["--set", 'augmentation.mirror_axes=["D"]'], "medial and lateral"),
        (["-c", "3d_highres"], "has no configuration '3d_highres'"),
        (["-n", "0"], "must be 1 or more"),
        (["-o", "sheet.jpg"], "ends in .png"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(arguments, words, preprocessed, tmp_path, capsys):
    assert plot(preprocessed, tmp_path / "sheet.png", *arguments) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_case_that_is_not_preprocessed_is_named(preprocessed, tmp_path, capsys):
    plan = read_plan(preprocessed / "oaplugPlans.json")
    elsewhere = {n: replace(c, data_identifier="nowhere") for n, c in plan.configurations.items()}
    write_plan(preprocessed / "other.json", replace(plan, plans_name="other", configurations=elsewhere))
    assert plot(preprocessed, tmp_path / "sheet.png", "--plans", "other") == 2
    assert "no training case is preprocessed; run oaplug_preprocess" in capsys.readouterr().err
