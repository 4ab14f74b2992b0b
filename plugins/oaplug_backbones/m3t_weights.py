"""Weights from elsewhere under the names of `m3t`. Pure: tensors in, tensors out; imports no torch at once.

The widely used implementation is a sequence of five modules. Its names are, with ours beside them:

| theirs | ours |
|---|---|
| 0.{conv,bn}{1,2}.* | volume_block.{conv,bn}{1,2}.* |
| 1.CNN_2D.* (a torchvision ResNet without fc) | slices.network.* |
| 1.non_linear_proj.{0,2}.* | slices.projection.{0,2}.* |
| 2.{cls_token,sep_token,positions} | cls_token, sep_token, positions |
| 2.{coronal,sagittal,axial}_plane, (1,width) each | plane_embeddings (3,width), in this order |
| 3.{i}.0.fn.0.* | layers.{i}.norm1.* |
| 3.{i}.0.fn.1.{qkv,projection}.* | layers.{i}.attention.{qkv,projection}.* |
| 3.{i}.1.fn.0.* | layers.{i}.norm2.* |
| 3.{i}.1.fn.1.{0,3}.* | layers.{i}.mlp.{0,3}.* |
| 4.* | the classifier's |

One prefix before all of them (module., backbone., ...) is found and removed. Such weights ask for
`backbone.legacy=true` and a cube of 128 voxels a side, with the axes of the images they were trained on:
their "coronal" slices lie along the first axis of the array, whatever that was.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from oaplug.core.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

_ANCHOR = "2.cls_token"
_PLANES = ("2.coronal_plane", "2.sagittal_plane", "2.axial_plane")
_NETWORK = "slices.network."
_RULES = (
    (r"0\.((?:conv|bn)[12]\.\w+)", r"volume_block.\1"),
    (r"1\.CNN_2D\.(?!fc\.)(.+)", rf"{_NETWORK}\1"),
    (r"1\.non_linear_proj\.([02]\.\w+)", r"slices.projection.\1"),
    (r"2\.(cls_token|sep_token|positions)", r"\1"),
    (r"3\.(\d+)\.0\.fn\.0\.(weight|bias)", r"layers.\1.norm1.\2"),
    (r"3\.(\d+)\.0\.fn\.1\.((?:qkv|projection)\.\w+)", r"layers.\1.attention.\2"),
    (r"3\.(\d+)\.1\.fn\.0\.(weight|bias)", r"layers.\1.norm2.\2"),
    (r"3\.(\d+)\.1\.fn\.1\.([03]\.\w+)", r"layers.\1.mlp.\2"),
)


def encoder_state_from_legacy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's state dict from one of the widely used implementation; the classifier is left out.

    Raises:
        CheckpointError: where it is not such a state dict, or has names this module does not know.
    """
    import torch

    prefix = _prefix(state)
    if missing := [prefix + name for name in _PLANES if prefix + name not in state]:
        raise CheckpointError(f"M3T weights lack {', '.join(missing)}; expected an embedding of each plane")
    renamed = {"plane_embeddings": torch.cat([state[prefix + name] for name in _PLANES])}
    left_out = {*classifier_keys_of_legacy(state), *(prefix + name for name in _PLANES)}
    for key in (key for key in state if key not in left_out):
        renamed[_rename(key.removeprefix(prefix))] = state[key]
    return renamed


def classifier_keys_of_legacy(state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Names in a state dict of the widely used implementation that belong to its classifier.

    These are its fifth module's, and those of heads that were put beside the five.

    Raises:
        CheckpointError: where it is not such a state dict.
    """
    prefix = _prefix(state)
    encoder = re.compile(rf"{re.escape(prefix)}[0-3]\.")
    return tuple(key for key in state if not encoder.match(key))


def encoder_state_from_torchvision(
    state: Mapping[str, Tensor], *, encoder_state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Weights of a torchvision ResNet under the names of the encoder's 2D network.

    `fc` is dropped, and so is the first convolution where the encoder has other channels (ImageNet's
    images have 3): load the result with strict=False.

    Args:
        state: a torchvision ResNet's state dict, of the encoder's `resnet_depth`.
        encoder_state: the encoder's own, for names and shapes.

    Raises:
        CheckpointError: where the two networks differ in more than that.
    """
    own = {k.removeprefix(_NETWORK): v for k, v in encoder_state.items() if k.startswith(_NETWORK)}
    given = {key: tensor for key, tensor in state.items() if not key.startswith("fc.")}
    fitting = {key: t for key, t in given.items() if key in own and t.shape == own[key].shape}
    may_differ = {"conv1.weight", *(key for key in own if key.endswith("num_batches_tracked"))}
    if wrong := sorted({*own, *given} - {*fitting} - may_differ):
        raise CheckpointError(
            f"these are not weights of the encoder's 2D network: {len(wrong)} names or shapes differ "
            f"({', '.join(wrong[:3])}, ...); expected a torchvision ResNet of its backbone.resnet_depth"
        )
    return {_NETWORK + key: tensor for key, tensor in fitting.items()}


def _prefix(state: Mapping[str, Tensor]) -> str:
    """What stands before all names of the five modules."""
    found = [key.removesuffix(_ANCHOR) for key in state if key == _ANCHOR or key.endswith(f".{_ANCHOR}")]
    if len(found) != 1:
        raise CheckpointError(
            f"expected the state dict of one M3T with one {_ANCHOR}, got {len(found)} of them; "
            f"its names begin with {', '.join(list(state)[:3]) or 'nothing'}"
        )
    return found[0]


def _rename(key: str) -> str:
    for pattern, ours in _RULES:
        if match := re.fullmatch(pattern, key):
            return match.expand(ours)
    raise CheckpointError(f"unknown name {key!r} in M3T weights; known are those in {__name__}")
