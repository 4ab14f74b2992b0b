"""Every backbone works with every head, and what the engine relies on holds for each backbone."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, replace

import pytest
import torch
from test_contracts import SMALL
from torch import Tensor

from oaplug import create_encoder, create_network
from oaplug.core.batch import Batch
from oaplug.core.dataset import open_dataset
from oaplug.core.errors import CheckpointError
from oaplug.model.checkpoint import Checkpoint, load_checkpoint, load_network, save_checkpoint
from oaplug.plug.registry import parse_options, registry
from oaplug.prepare.reading import read_image
from oaplug.testing.toy import BINARY, HIERARCHY, write_toy_dataset

pytestmark = pytest.mark.slow

SIZE = (16, 20, 24)
CHANNELS = 2
BATCH = 4
TARGETS = {"hierarchy": HIERARCHY, "binary": BINARY}
HEAVY = {"densenet121", "seresnet50", "efficientnet_b0"}
"""Backbones that take a second whatever their options: all heads but the first are tried in slow runs."""


@dataclass(frozen=True)
class ToyBatch:
    """Volumes (B,C,D,H,W) of toy cases, what is known of them, and the targets they are graded by."""

    volume: Tensor
    truth: Batch
    targets: dict

    def at_size(self, size):
        volume = torch.nn.functional.interpolate(self.volume, size=size, mode="trilinear")
        return replace(self, volume=volume)


def backbones():
    return [part.spec for part in registry().of_kind("backbone")]


def first_accepted(head):
    """The first kind of toy targets a head takes."""
    return next((kind for kind, targets in TARGETS.items() if head.accepts(targets) is None), None)


def combinations():
    """Backbone, head and kind of toy targets; of heavy backbones all but the first are slow."""
    heads = [part.spec for part in registry().of_kind("head") if first_accepted(part.spec)]
    for backbone in backbones():
        for head in heads:
            is_slow = backbone.name in HEAVY and head is not heads[0]
            yield pytest.param(
                backbone,
                head.name,
                first_accepted(head),
                id=f"{backbone.name}-{head.name}",
                marks=[pytest.mark.slow] if is_slow else [],
            )


def fitting(spec, size):
    """A size (D,H,W) rounded up to what a backbone with its small options takes."""
    multiple = spec.size_multiple(parse_options(spec, SMALL.get(spec.name)))
    return tuple(-(-side // step) * step for side, step in zip(size, multiple, strict=True))


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """A batch per kind of toy targets, read from a raw dataset; some grades are missing."""
    return {kind: read_toys(tmp_path_factory.mktemp(kind) / "Dataset901_Toy", kind) for kind in TARGETS}


def read_toys(folder, kind):
    dataset = open_dataset(write_toy_dataset(folder, cases=8, shape=SIZE, channels=CHANNELS, kind=kind))
    cases = dataset.of_split("train")[-BATCH:]
    volumes = [read_image(case.images, case_id=case.case_id).data for case in cases]
    volume = torch.stack([torch.from_numpy(data) for data in volumes])
    std, mean = torch.std_mean(volume, dim=(2, 3, 4), keepdim=True)
    truth = {name: torch.tensor([case.labels[name] for case in cases]) for name in TARGETS[kind]}
    return ToyBatch((volume - mean) / std, Batch(targets=truth), dict(TARGETS[kind]))


def build(backbone, head, toy, *, seed):
    torch.manual_seed(seed)
    return create_network(
        backbone.name,
        head,
        targets=toy.targets,
        input_size=tuple(toy.volume.shape[2:]),
        in_channels=CHANNELS,
        backbone_options=SMALL.get(backbone.name),
    )


def train(network, toy, *, steps):
    """Losses of some steps of AdamW."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = network.loss(network(toy.volume), toy.truth)["total"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def predict(network, volume):
    network.eval()
    return network.probabilities(network(volume))


def differ(first, second):
    return any(not torch.allclose(first[name], second[name], atol=1e-4) for name in first)


def test_toy_batches_have_grades_to_learn_from_and_some_that_are_missing(toys):
    kl, disease = toys["hierarchy"].truth.targets["kl"], toys["binary"].truth.targets["disease"]
    assert (kl == -1).any()
    assert len(set(kl.tolist())) > 2
    assert set(disease.tolist()) == {0, 1}


@pytest.mark.parametrize(("backbone", "head", "kind"), list(combinations()))
def test_a_combination_trains_and_predicts_the_same_from_its_checkpoint(backbone, head, kind, toys, tmp_path):
    toy = toys[kind].at_size(fitting(backbone, SIZE))
    network = build(backbone, head, toy, seed=0)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert torch.tensor(train(network, toy, steps=2)).isfinite().all()
    moved = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert all(any(name.startswith(part) for name in moved) for part in ("encoder.", "head."))

    trained = predict(network, toy.volume)
    for name, target in toy.targets.items():
        assert trained[name].shape == (BATCH, len(target.grades))
        torch.testing.assert_close(trained[name].sum(dim=1), torch.ones(BATCH))

    path = save_checkpoint(tmp_path / "checkpoint.safetensors", Checkpoint(network=network.state_dict()))
    restored = build(backbone, head, toy, seed=1)
    assert differ(predict(restored, toy.volume), trained), "other weights predict something else"
    load_network(restored, load_checkpoint(path), path=path)
    torch.testing.assert_close(predict(restored, toy.volume), trained, rtol=1e-6, atol=1e-7)


def test_weights_of_another_backbone_are_refused(toys, tmp_path):
    toy = toys["hierarchy"]
    resnet3d, densenet121 = (
        build(registry().get("backbone", name).spec, "dual", toy, seed=0)
        for name in ("resnet3d", "densenet121")
    )
    path = save_checkpoint(tmp_path / "checkpoint.safetensors", Checkpoint(network=resnet3d.state_dict()))
    with pytest.raises(CheckpointError, match="does not fit"):
        load_network(densenet121, load_checkpoint(path), path=path)


def grad_cam(encoder, volume, *, score):
    """Grad-CAM (Selvaraju et al. 2017) without its ReLU: maps (B,d,h,w)."""
    seen = []
    hook = encoder.cam_layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    value = score(encoder(volume))
    hook.remove()
    (activations,) = seen
    (gradients,) = torch.autograd.grad(value, activations)
    return (activations * gradients.mean(dim=(2, 3, 4), keepdim=True)).sum(dim=1).detach()


@pytest.mark.parametrize("spec", [pytest.param(spec, id=spec.name) for spec in backbones()])
def test_grad_cam_gives_a_map_that_differs_from_place_to_place(spec, toys):
    size = fitting(spec, (34, 36, 64))
    torch.manual_seed(0)
    encoder = create_encoder(
        spec.name, in_channels=CHANNELS, input_size=size, **SMALL.get(spec.name, {})
    ).eval()
    if encoder.cam_layer is None:
        pytest.skip(f"{spec.name} has no maps that Grad-CAM could use")
    volume = toys["hierarchy"].at_size(size).volume[:2]
    weights = torch.randn(encoder.num_features, generator=torch.Generator().manual_seed(1))
    maps = grad_cam(encoder, volume, score=lambda features: (features @ weights).sum())
    assert maps.shape[0] == len(volume)
    assert maps.isfinite().all()
    for cam in maps:
        assert cam.std() > 1e-3 * cam.abs().max() > 0, "the same everywhere"


TENSORS = """
import gc, importlib, json, pkgutil
import torch, monai
from oaplug.plug.registry import registry

def tensors():
    return [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]

packages = {part.spec.build.__module__.split(".")[0] for part in registry().of_kind("backbone")}
before, modules = len(tensors()), sorted(packages)
for name in sorted(packages):
    package = importlib.import_module(name)
    modules += [m.name for m in pkgutil.walk_packages(getattr(package, "__path__", []), name + ".")]
for name in modules:
    importlib.import_module(name)
after = len(tensors())
probe = torch.zeros(1)
print(json.dumps({"modules": modules, "made": after - before, "probe": len(tensors()) - after}))
"""


def run_python(code):
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_importing_the_modules_of_backbones_makes_no_tensor():
    found = json.loads(run_python(TENSORS)[-1])
    assert {"oaplug_backbones.monai_zoo", "oaplug_backbones.resnet3d"} <= set(found["modules"])
    assert found["probe"] == 1, "tensors are counted"
    assert found["made"] == 0


def test_the_command_that_lists_parts_imports_neither_torch_nor_monai():
    code = (
        "import sys\nfrom oaplug.commands.plugins import main\nmain([])\n"
        "print([name for name in ('torch', 'monai', 'einops') if name in sys.modules])"
    )
    *listing, loaded = run_python(code)
    assert any("swin_unetr" in line for line in listing)
    assert loaded == "[]"
