"""Released weights of these backbones under oaplug's names. Pure functions of state dicts; imports no torch.

Each reader takes a state dict (and the state dict of the encoder to be filled, or None where one is built
for the weights) and gives a WeightMap; options are read off names and shapes.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from oaplug.core.errors import CheckpointError
from oaplug.plug import WeightMap, WeightSource
from oaplug_backbones import m3t_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    State = Mapping[str, Tensor]
    Read = Callable[[State, State | None], WeightMap]

_KL = {"kl": {"kind": "ordinal", "grades": [0, 1, 2, 3, 4]}}
_OA = {"oa": {"kind": "binary", "grades": [0, 1]}}
_HIERARCHY = _KL | {"oa": {"kind": "binary", "grades": [0, 1], "derived_from": "kl", "at_least": 2}}
_STUDY_OUTPUTS = (1, 5)
_DEPTHS: dict[tuple[str, tuple[int, ...]], int] = {
    ("basic", (1, 1, 1, 1)): 10,
    ("basic", (2, 2, 2, 2)): 18,
    ("basic", (3, 4, 6, 3)): 34,
    ("bottleneck", (3, 4, 6, 3)): 50,
    ("bottleneck", (3, 4, 23, 3)): 101,
}


def read_resnet3d(state: State, _encoder_state: State | None = None) -> WeightMap:
    """MedicalNet's 3D ResNets, with a classifier `fc` or without; a segmentation decoder is left out.

    Depth, width, stem and type of the shortcut (A has no weights) are read off; strides and dilations leave
    no trace in weights and are MedicalNet's.
    """
    stem = _tensor(state, "conv1.weight", dimensions=5)
    decoder = tuple(name for name in state if name.startswith("conv_seg."))
    encoder = {n: t for n, t in state.items() if n not in decoder and not n.startswith("fc.")}
    kernel = "bottleneck" if "layer1.0.conv3.weight" in state else "basic"
    counts = tuple(_count_blocks(state, rf"layer{stage}") for stage in (1, 2, 3, 4))
    if (kernel, counts) not in _DEPTHS:
        raise CheckpointError(f"stages of {counts} {kernel} blocks are those of no depth that resnet3d has")
    found = WeightMap(
        encoder=encoder,
        options={
            "depth": _DEPTHS[kernel, counts],
            "width": stem.shape[0],
            "dilated": True,
            "shortcut": "B" if "layer2.0.downsample.0.weight" in state else "A",
            "stem_kernel": stem.shape[2],
        },
        in_channels=stem.shape[1],
        unused=decoder,
    )
    classifier = tuple(name for name in state if name.startswith("fc."))
    return _with_single(found, state, classifier) if classifier else found


def read_m3t(state: State, _encoder_state: State | None = None) -> WeightMap:
    """The widely used implementation of M3T; the number of heads leaves no trace in weights and is 8."""
    encoder = m3t_weights.encoder_state_from_legacy(state)
    first = _tensor(encoder, "volume_block.conv1.weight", dimensions=5)
    tokens, width = _tensor(encoder, "positions", dimensions=2).shape
    side = max((tokens - 4) // 3, 1)
    bottleneck = "slices.network.layer1.0.conv3.weight" in encoder
    found = WeightMap(
        encoder=encoder,
        options={
            "channels": first.shape[0],
            "resnet_depth": 50 if bottleneck else 18,
            "resnet_width": _tensor(encoder, "slices.network.conv1.weight", dimensions=4).shape[0],
            "width": width,
            "depth": _count_blocks(encoder, "layers"),
            "mlp_width": _tensor(encoder, "layers.0.mlp.0.weight", dimensions=2).shape[0],
            "legacy": True,
        },
        in_channels=first.shape[1],
        input_size=(side, side, side),
    )
    return _with_single(found, state, m3t_weights.classifier_keys_of_legacy(state))


def read_torchvision(state: State, encoder_state: State | None = None) -> WeightMap:
    """A 2D ResNet of torchvision as the network over M3T's slices: a part of an encoder that is there."""
    if encoder_state is None:
        raise CheckpointError(
            "a 2D ResNet is a part of m3t only; give it to oaplug_train -pretrained_weights"
        )
    encoder = m3t_weights.encoder_state_from_torchvision(state, encoder_state=encoder_state)
    used = {id(tensor) for tensor in encoder.values()}
    return WeightMap(encoder=encoder, unused=tuple(n for n, t in state.items() if id(t) not in used))


def read_nnmamba(state: State, _encoder_state: State | None = None) -> WeightMap:
    """The authors' classifier; `mlp.0` belongs to our encoder, the dropout after it and `mlp.3` to a head."""
    if any(name.startswith("mamba_seq.") for name in state):
        raise CheckpointError("mamba_seq.*: oaplug's nnmamba has no second Mamba block over pooled stages")
    first = _tensor(state, "in_conv.conv.0.weight", dimensions=5)
    decay = _tensor(state, "mamba_layer_stem.mamba.A_log", dimensions=2)
    classifier = tuple(name for name in state if name.startswith("mlp.3."))
    found = WeightMap(
        encoder={name: tensor for name, tensor in state.items() if name not in classifier},
        options={
            "channels": first.shape[0],
            "blocks": max(_count_blocks(state, "layer1"), 1),
            "width": _tensor(state, "mlp.0.weight", dimensions=2).shape[0],
            "scan": "single",
            "state_width": decay.shape[1],
            "convolution_width": _tensor(state, "mamba_layer_stem.mamba.conv1d.weight", dimensions=3).shape[
                2
            ],
            "expansion": max(decay.shape[0] // first.shape[0], 1),
        },
        in_channels=first.shape[1],
    )
    return dataclasses.replace(_with_single(found, state, classifier), head_options={"dropout": 0.5})


def of_study(read: Read) -> Read:
    """The study's models of one backbone: with 1 output (OA) or 5 (KL), or `backbone.` and `binary_head.`.

    The latter is its dual model, whose second head is a linear layer from the 5 KL logits to 2.
    """

    def read_study(state: State, encoder_state: State | None = None) -> WeightMap:
        inner = {n.removeprefix("backbone."): t for n, t in state.items() if n.startswith("backbone.")}
        single = read(inner or state, encoder_state)
        outputs = len(single.head_tensors.get("linear.weight", ()))
        if outputs not in _STUDY_OUTPUTS or (inner and outputs == 1):
            wanted = "5 outputs" if inner else "1 or 5 outputs"
            raise CheckpointError(f"its classifier has {outputs or 'no'} outputs; the study's have {wanted}")
        if not inner:
            return single
        outer = {name: t for name, t in state.items() if not name.startswith("backbone.")}
        return _with_cascade(single, outer)

    return read_study


def _with_cascade(single: WeightMap, outer: State) -> WeightMap:
    """The map of the dual model: its KL classifier as `fine_linear`, `binary_head` as the coarse layer."""
    weight, bias = _linear(outer, tuple(outer))
    return dataclasses.replace(
        single,
        head="dual_cascade",
        head_tensors={
            **{name.replace("linear.", "fine_linear."): t for name, t in single.head_tensors.items()},
            "coarse_linear.oa.weight": weight,
            "coarse_linear.oa.bias": bias,
        },
        targets=_HIERARCHY,
        unused=tuple(f"backbone.{name}" for name in single.unused),
    )


def _with_single(found: WeightMap, state: State, names: tuple[str, ...]) -> WeightMap:
    """A map with a classifier, the tensors called `names`, as the head `single`.

    That head has one logit for two grades: of two outputs it takes the difference, which gives the same
    probabilities.
    """
    weight, bias = _linear(state, names)
    outputs = len(weight)
    if outputs == 2:
        weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
    return dataclasses.replace(
        found,
        head="single",
        head_tensors={"linear.weight": weight, "linear.bias": bias},
        targets=_targets(outputs),
    )


def _targets(outputs: int) -> dict[str, Any]:
    """Targets for a number of outputs: the study's where it has them."""
    if outputs <= 2:
        return _OA
    return _KL if outputs == 5 else {"grade": {"kind": "ordinal", "grades": list(range(outputs))}}


def _linear(state: State, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Weight (K,F) and bias (K,) of the one linear layer whose tensors are called `names`."""
    weights = [name for name in names if name.endswith(".weight")]
    biases = [name for name in names if name.endswith(".bias")]
    if len(names) != 2 or len(weights) != 1 or len(biases) != 1:
        listed = ", ".join(names[:4]) or "nothing"
        raise CheckpointError(f"expected a classifier of one linear layer, a weight and a bias, got {listed}")
    weight, bias = _tensor(state, weights[0], dimensions=2), _tensor(state, biases[0], dimensions=1)
    if len(weight) != len(bias) or len(weight) == 0:
        raise CheckpointError(f"{weights[0]} has {len(weight)} outputs, and {biases[0]} {len(bias)}")
    return weight, bias


def _tensor(state: State, name: str, *, dimensions: int) -> Tensor:
    """A tensor by name; raises CheckpointError where it is not there, or has other dimensions."""
    if name not in state:
        raise CheckpointError(f"there is no {name} in it")
    if state[name].ndim != dimensions or not state[name].numel():
        raise CheckpointError(f"{name} has the shape {tuple(state[name].shape)}, not {dimensions} dimensions")
    return state[name]


def _count_blocks(state: State, stage: str) -> int:
    """How many numbered modules a stage has."""
    numbers = Counter(m[1] for name in state if (m := re.match(rf"{re.escape(stage)}\.(\d+)\.", name)))
    return len(numbers)


RESNET3D = (
    WeightSource(name="medicalnet", summary="MedicalNet's pretrained 3D ResNets", read=read_resnet3d),
    WeightSource(name="study", summary="the study's ResNet3D", read=of_study(read_resnet3d)),
)
M3T = (
    WeightSource(name="m3t", summary="the widely used implementation of M3T", read=read_m3t),
    WeightSource(name="study", summary="the study's M3T", read=of_study(read_m3t)),
    WeightSource(name="torchvision", summary="a 2D ResNet for the slices", read=read_torchvision),
)
NNMAMBA = (
    WeightSource(name="nnmamba", summary="the authors' classifier", read=read_nnmamba),
    WeightSource(name="study", summary="the study's nnMamba", read=of_study(read_nnmamba)),
)
