"""Weight gradients of convolutions in bfloat16 on a CPU, where some of oneDNN's kernels are wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from collections.abc import Sequence


class ExactConvolutionGradients(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within, gradients of bfloat16 convolutions that oneDNN may get wrong are computed in float32.

    Over maps of a few voxels, with much padding or with groups, its bfloat16 weight gradients add memory that
    was never written, and some write beyond their own (torch 2.13, AVX-512). Those of usual convolutions over
    larger maps are right, and stay as fast as they are.
    """

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: Any = None
    ) -> Any:
        if function is not torch.ops.aten.convolution_backward.default or _is_exact(*arguments[1:]):
            return function(*arguments, **(keywords or {}))
        gradient, volume, weight, *rest = arguments
        found = function(gradient.float(), volume.float(), weight.float(), *rest, **(keywords or {}))
        return tuple(None if one is None else one.to(weight.dtype) for one in found)


def _is_exact(
    volume: torch.Tensor,
    weight: torch.Tensor,
    _bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    _output_padding: Any,
    groups: int,
    *_: Any,
) -> bool:
    """Whether the gradients can be left to oneDNN."""
    if weight.dtype != torch.bfloat16 or weight.device.type != "cpu":
        return True
    axes = zip(
        volume.shape[2:],
        weight.shape[2:],
        *(_of_each_axis(values, volume.ndim - 2) for values in (stride, padding, dilation)),
        strict=True,
    )
    return not transposed and groups == 1 and all(is_usual(*axis) for axis in axes)


def _of_each_axis(values: Sequence[int], axes: int) -> Sequence[int]:
    return [*values] * axes if len(values) == 1 else values


def is_usual(size: int, kernel: int, stride: int, padding: int, dilation: int) -> bool:
    """Whether oneDNN's bfloat16 weight gradient was found right for one axis of a convolution."""
    extent = (kernel - 1) * dilation + 1
    if stride > kernel and kernel > 1:
        return False
    return padding == 0 or (kernel % 2 == 1 and 2 * padding < extent < size)
