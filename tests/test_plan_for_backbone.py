"""A backbone that takes only some sizes gets a plan of its own, and the plan for all stays."""

from __future__ import annotations

import pytest

from oaplug.commands import plan_experiment
from oaplug.core.plan import read_plan
from oaplug.plug import registry as registry_module
from oaplug.plug.registry import Part, Registry, registry
from oaplug.plug.specs import BackboneSpec


@pytest.fixture
def project(trained_project, tmp_path, monkeypatch):
    """A project whose images have 8 x 12 x 10 voxels of content, and backbones of several multiples."""
    parts = [
        Part(
            spec=BackboneSpec(
                name=f"toy{step}",
                summary="takes some sizes",
                build=lambda *_, **__: None,
                size_multiple=lambda options, step=step: (step,) * 3,
            ),
            distribution="toys",
            version="1",
        )
        for step in (1, 2, 4, 32)
    ]
    extended = Registry(parts=(*registry().parts, *parts))
    monkeypatch.setattr(registry_module, "registry", lambda: extended)
    return trained_project.copy(tmp_path)


def plan(project, *more):
    assert plan_experiment.main(project.prepare_arguments(901, *more)) == 0
    folder = project.preprocessed / "Dataset901_Toy"
    return {
        path.stem: read_plan(path) for path in [*folder.glob("oaplugPlans*.json"), *folder.glob("mine.json")]
    }


def sizes(a_plan):
    return {name: configuration.size_voxels for name, configuration in a_plan.configurations.items()}


@pytest.mark.parametrize("backbone", ["resnet3d", "toy1", "toy2"])
def test_a_backbone_that_takes_the_planned_sizes_shares_the_plan_for_all(project, backbone):
    before = plan(project)
    assert sizes(before["oaplugPlans"])["3d_fullres"] == (8, 12, 10)
    after = plan(project, "-b", backbone)
    assert list(after) == ["oaplugPlans"]
    assert after["oaplugPlans"].configurations == before["oaplugPlans"].configurations


@pytest.mark.parametrize(("step", "size"), [(4, (8, 12, 8)), (32, (32, 32, 32))])
def test_a_backbone_that_needs_other_sizes_has_a_plan_of_its_own_name(project, capsys, step, size):
    before = plan(project)
    capsys.readouterr()
    after = plan(project, "-b", f"toys:toy{step}")
    name = f"oaplugPlans_toy{step}"
    assert set(after) == {"oaplugPlans", name}
    assert after["oaplugPlans"] == before["oaplugPlans"]
    assert after[name].plans_name == name
    assert set(sizes(after[name]).values()) == {size}
    assert {c.data_identifier for c in after[name].configurations.values()} == {f"{name}_3d_fullres"}
    reason = after[name].reasons["configurations.3d_fullres.size_voxels"]
    assert f"multiples of ({step}, {step}, {step})" in reason
    said = capsys.readouterr().out
    assert f"toy{step} takes sizes that are multiples of ({step}, {step}, {step}): the plan is {name}" in said
    assert f"--plans {name}" in said


def test_a_plan_that_is_named_keeps_its_name(project):
    plans = plan(project, "-b", "toy4", "--plans", "mine")
    assert set(plans) == {"oaplugPlans", "mine"}
    assert sizes(plans["mine"])["3d_fullres"] == (8, 12, 8)


@pytest.mark.slow
def test_what_is_preprocessed_for_a_backbone_is_trained_with_its_plan(project, capsys):
    assert project.prepare(901, "-b", "toy4") == 0
    assert "next:   oaplug_train 901 3d_lowres 0 -b toy4 --head dual --plans oaplugPlans_toy4" in (
        capsys.readouterr().out
    )
    assert project.train(901, "--plans", "oaplugPlans_toy4") == 0
    runs = [folder.name for folder in (project.results / "Dataset901_Toy").iterdir()]
    assert "resnet3d-single_kl__oaplugPlans_toy4__3d_lowres" in runs


def test_a_given_size_that_the_backbone_cannot_take_is_refused(project, capsys):
    arguments = project.prepare_arguments(901, "-b", "toy4", "--size", 8, 12, 10)
    assert plan_experiment.main(arguments) == 2
    assert "(8, 12, 10) must be a multiple of (4, 4, 4)" in capsys.readouterr().err
