"""Every backbone and head that is installed keeps its contract, and a part that breaks it is told how."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn

from oaplug.plug import BackboneSpec, HeadSpec
from oaplug.plug.registry import registry
from oaplug.testing.contract import check_backbone, check_head
from oaplug.testing.toy import BINARY, HIERARCHY

SMALL: dict[str, dict[str, Any]] = {
    "resnet3d": {"width": 8},
    "nnmamba": {"channels": 4, "blocks": 1, "width": 8, "scan": "css4"},
    "m3t": {"channels": 4, "resnet_width": 8, "width": 16, "depth": 2, "heads": 4, "mlp_width": 24},
    "densenet121": {"width": 8, "growth_rate": 4},
    "seresnet50": {"width": 8},
    "vit": {"patch_voxels": [4, 5, 6], "width": 12, "depth": 2, "heads": 3, "mlp_width": 20},
    "swin_unetr": {"width": 12, "depths": [1, 1, 2, 2], "window_tokens": 2},
}
TARGETS = {"hierarchy": HIERARCHY, "binary": BINARY, "derived alone": {"oa": HIERARCHY["oa"]}}


def specs(kind):
    return [pytest.param(part.spec, id=part.spec.name) for part in registry().of_kind(kind)]


@pytest.mark.slow
@pytest.mark.parametrize("spec", specs("backbone"))
def test_every_backbone_keeps_its_contract(spec):
    check_backbone(spec, SMALL.get(spec.name, {}))


@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("spec", specs("head"))
def test_every_head_keeps_its_contract_for_the_targets_it_accepts(spec, targets):
    if (reason := spec.accepts(targets)) is None:
        check_head(spec, targets)
    else:
        assert len(reason.split()) > 3, "a refusal says why"


def test_every_kind_of_targets_is_accepted_by_some_head():
    heads = [part.spec for part in registry().of_kind("head")]
    for name, targets in TARGETS.items():
        assert [spec.name for spec in heads if spec.accepts(targets) is None], name
    assert {s.name for s in heads if s.accepts(BINARY)} >= {"dual", "dual_cascade", "ordinal"}


class GoodEncoder(nn.Module):
    """Keeps the contract; what the tests below break, one thing each."""

    def __init__(self, options, *, in_channels, input_size):
        super().__init__()
        self.convolution = nn.Conv3d(in_channels, 6, 3, padding=1)
        self.norm = nn.BatchNorm3d(6)
        self.linear = nn.Linear(6, 5)
        self.num_features = 5

    @property
    def cam_layer(self):
        return self.norm

    def forward(self, volume):
        return self.linear(self.norm(self.convolution(volume)).relu().mean(dim=(2, 3, 4)))


class WrongWidth(GoodEncoder):
    def __init__(self, options, **context):
        super().__init__(options, **context)
        self.num_features = 6


class UnusedLayer(GoodEncoder):
    def __init__(self, options, **context):
        super().__init__(options, **context)
        self.forgotten = nn.Linear(2, 2)


class BatchMean(GoodEncoder):
    def forward(self, volume):
        features = super().forward(volume)
        return features - features.mean(dim=0, keepdim=True)


class NoiseInEval(GoodEncoder):
    def forward(self, volume):
        return super().forward(volume + torch.randn_like(volume))


class HiddenState(GoodEncoder):
    def __init__(self, options, **context):
        super().__init__(options, **context)
        self.scale = torch.rand(()).item()

    def forward(self, volume):
        return self.scale * super().forward(volume)


class TiedWeights(GoodEncoder):
    def __init__(self, options, **context):
        super().__init__(options, **context)
        self.again = self.linear


class CamAttribute(GoodEncoder):
    cam_layer = None

    def __init__(self, options, **context):
        super().__init__(options, **context)
        self.cam_layer = self.norm


class CamElsewhere(GoodEncoder):
    @property
    def cam_layer(self):
        return nn.ReLU()


class CamOfVectors(GoodEncoder):
    @property
    def cam_layer(self):
        return self.linear


class OwnRandomWeights(GoodEncoder):
    def __init__(self, options, **context):
        super().__init__(options, **context)
        generator = torch.Generator()
        generator.seed()
        nn.init.normal_(self.linear.weight, generator=generator)


class IgnoresVolume(GoodEncoder):
    def forward(self, volume):
        return super().forward(0 * volume)


def encoder_spec(build, **more):
    return BackboneSpec(name="mine", summary="a toy", build=build, **more)


def test_a_good_encoder_passes():
    check_backbone(encoder_spec(GoodEncoder))


@pytest.mark.parametrize(
    ("broken", "advice"),
    [
        (WrongWidth, "num_features"),
        (UnusedLayer, r"no gradient reaches forgotten\.weight"),
        (BatchMean, "depend on the others in its batch"),
        (NoiseInEval, "draw nothing in forward"),
        (HiddenState, "keep state in parameters and buffers"),
        (TiedWeights, "register every tensor once"),
        (CamAttribute, "must be a property"),
        (CamElsewhere, "no submodule"),
        (CamOfVectors, r"expected \(B,K,d,h,w\)"),
        (OwnRandomWeights, "torch's global generator"),
        (IgnoresVolume, "must reach them"),
    ],
)
def test_a_broken_encoder_is_told_what_to_change(broken, advice):
    with pytest.raises(AssertionError, match=f"backbone mine: .*{advice}"):
        check_backbone(encoder_spec(broken))


def test_an_encoder_that_needs_multiples_is_only_given_such_sizes():
    seen = []

    def build(options, *, in_channels, input_size):
        seen.append(input_size)
        return GoodEncoder(options, in_channels=in_channels, input_size=input_size)

    check_backbone(encoder_spec(build, size_multiple=lambda options: (8, 4, 5)))
    assert {(16, 20, 25), (24, 28, 25)} == set(seen)
    with pytest.raises(AssertionError, match="three positive integers"):
        check_backbone(encoder_spec(build, size_multiple=lambda options: (8, 4)))


@dataclass(frozen=True, kw_only=True)
class NeedsOptions:
    width: int


@dataclass(frozen=True, kw_only=True)
class SetOptions:
    names: frozenset[str] = frozenset({"a"})


@pytest.mark.parametrize("options", [NeedsOptions, SetOptions])
def test_options_without_defaults_or_beyond_json_are_refused(options):
    with pytest.raises(AssertionError, match="give every field a default"):
        check_backbone(encoder_spec(GoodEncoder, options=options))


def broken_head(of="single", **methods):
    """The spec of a head with some methods of what it builds replaced."""
    spec = registry().spec(HeadSpec, of)

    def build(options, **context):
        head = spec.build(options, **context)
        kind = type(head)
        return_class = type("Broken", (kind,), {name: make(kind) for name, make in methods.items()})
        head.__class__ = return_class
        return head

    return replace(spec, name="mine", build=build)


def plain_mean_loss(kind):
    def loss(self, logits, truth):
        (name,) = logits
        losses = nn.functional.cross_entropy(
            logits[name], truth.targets[name], ignore_index=-1, reduction="none"
        )
        return {"total": losses.mean()}

    return loss


def torch_mean_loss(kind):
    def loss(self, logits, truth):
        (name,) = logits
        return {"total": nn.functional.cross_entropy(logits[name], truth.targets[name], ignore_index=-1)}

    return loss


def unweighted_loss(kind):
    return lambda self, logits, truth: kind.loss(self, logits, replace(truth, case_weights=None))


def changed(name, change):
    """Replaces a method by one whose result is passed through `change`."""
    return {name: lambda kind: lambda self, *args, **more: change(getattr(kind, name)(self, *args, **more))}


@pytest.mark.parametrize(
    ("methods", "advice"),
    [
        ({"loss": plain_mean_loss}, "mean over the known ones"),
        ({"loss": torch_mean_loss}, "the loss is nan|every label missing"),
        ({"loss": unweighted_loss}, "case_weights"),
        (changed("loss", lambda losses: {"kl": losses["kl"]}), "'total', which is minimised, is missing"),
        (changed("loss", lambda losses: {"total": losses["total"][None]}), "give a scalar"),
        (changed("probabilities", lambda p: {"kl": p["kl"]}), "every target it was built with"),
        (changed("probabilities", lambda p: {n: t * 1.01 for n, t in p.items()}), "sum to 1"),
        (changed("probabilities", lambda p: {**p, "oa": p["oa"].flip(1)}), "from 2 up"),
        (changed("score", lambda score: score.detach()), "differentiable"),
        (changed("score", lambda score: score.mean()), "one scalar per case"),
        (changed("score", lambda score: 0 * score), "zero for a case"),
    ],
)
def test_a_broken_head_is_told_what_to_change(methods, advice):
    with pytest.raises(AssertionError, match=f"head mine: .*({advice})"):
        check_head(broken_head(**methods), HIERARCHY)


def test_a_score_that_takes_the_wrong_default_grade_is_told():
    def score(kind):
        def first_grade(self, logits, target, *, grade=None):
            return kind.score(self, logits, target, grade=0 if grade is None else grade)

        return first_grade

    with pytest.raises(AssertionError, match="grade=None"):
        check_head(broken_head(score=score), HIERARCHY)


def test_a_head_is_not_checked_with_targets_it_refuses():
    with pytest.raises(AssertionError, match="does not accept"):
        check_head(registry().spec(HeadSpec, "dual"), BINARY)
