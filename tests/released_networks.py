"""Released networks as state dicts and plain functions, written from their descriptions alone."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

RESNET = {
    10: ("basic", (1, 1, 1, 1)),
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
}


def draw(shapes, *, seed=3):
    """Tensors that hide nothing: no zero mean, no unit variance."""
    generator = torch.Generator().manual_seed(seed)

    def tensor(name, shape):
        if name.endswith("num_batches_tracked"):
            return torch.tensor(7)
        if name.endswith("running_var"):
            return torch.rand(shape, generator=generator) + 0.5
        fan_in = math.prod(shape[1:]) if len(shape) > 1 else 4
        noise = torch.randn(shape, generator=generator) * math.sqrt(2 / fan_in)
        return noise + 1 if name.endswith("weight") and len(shape) == 1 else noise

    return {name: tensor(name, shape) for name, shape in shapes.items()}


def norm_shapes(prefix, width):
    kinds = ("weight", "bias", "running_mean", "running_var")
    return {f"{prefix}.{kind}": (width,) for kind in kinds} | {f"{prefix}.num_batches_tracked": ()}


def norm(state, prefix, x):
    statistics = (state[f"{prefix}.running_mean"], state[f"{prefix}.running_var"])
    return functional.batch_norm(x, *statistics, state[f"{prefix}.weight"], state[f"{prefix}.bias"])


def linear(state, prefix, x):
    return functional.linear(x, state[f"{prefix}.weight"], state[f"{prefix}.bias"])


def classifier_shapes(prefix, features, outputs):
    return {f"{prefix}.weight": (outputs, features), f"{prefix}.bias": (outputs,)}


def resnet3d_state(depth=18, *, width=4, shortcut="B", channels=1, outputs=None, seed=3):
    """MedicalNet's 3D ResNet, with `fc` where there are outputs."""
    kind, counts = RESNET[depth]
    shapes = {"conv1.weight": (width, channels, 7, 7, 7)} | norm_shapes("bn1", width)
    inside = width
    for stage, count in enumerate(counts, start=1):
        planes = width * 2 ** (stage - 1)
        out = planes * (1 if kind == "basic" else 4)
        for block in range(count):
            place = f"layer{stage}.{block}"
            kernels = [(planes, inside, 3), (planes, planes, 3)]
            if kind == "bottleneck":
                kernels = [(planes, inside, 1), (planes, planes, 3), (out, planes, 1)]
            for index, (to, of, kernel) in enumerate(kernels, start=1):
                shapes[f"{place}.conv{index}.weight"] = (to, of, kernel, kernel, kernel)
                shapes |= norm_shapes(f"{place}.bn{index}", to)
            if block == 0 and shortcut == "B" and (stage > 1 or inside != out):
                shapes[f"{place}.downsample.0.weight"] = (out, inside, 1, 1, 1)
                shapes |= norm_shapes(f"{place}.downsample.1", out)
            inside = out
    return draw(shapes | (classifier_shapes("fc", inside, outputs) if outputs else {}), seed=seed)


def resnet3d_features(state, volume):
    """Features (B,F) of MedicalNet's network of basic blocks: strides 1, 2, 1, 1, dilations 1, 1, 2, 4."""
    x = functional.conv3d(volume, state["conv1.weight"], stride=2, padding=3)
    x = functional.max_pool3d(functional.relu(norm(state, "bn1", x)), 3, stride=2, padding=1)
    for stage, (first_stride, dilation) in enumerate(((1, 1), (2, 1), (1, 2), (1, 4)), start=1):
        blocks = {name.split(".")[1] for name in state if name.startswith(f"layer{stage}.")}
        for block in range(len(blocks)):
            place, stride = f"layer{stage}.{block}", first_stride if block == 0 else 1
            kernel, spread = state[f"{place}.conv1.weight"], {"dilation": dilation, "padding": dilation}
            y = functional.relu(
                norm(state, f"{place}.bn1", functional.conv3d(x, kernel, stride=stride, **spread))
            )
            y = norm(state, f"{place}.bn2", functional.conv3d(y, state[f"{place}.conv2.weight"], **spread))
            if f"{place}.downsample.0.weight" in state:
                x = functional.conv3d(x, state[f"{place}.downsample.0.weight"], stride=stride)
                x = norm(state, f"{place}.downsample.1", x)
            else:  # type A: what is left out of a stride, and zeros for the channels that are new
                x = x[:, :, ::stride, ::stride, ::stride]
                x = functional.pad(x, (0, 0, 0, 0, 0, 0, 0, y.shape[1] - x.shape[1]))
            x = functional.relu(y + x)
    return x.mean(dim=(2, 3, 4))


def nnmamba_state(*, channels=4, blocks=2, width=5, outputs=1, seed=3):
    """The classifier of nnMamba; its width is that of the layer before the last."""
    shapes = {}
    for index, of in ((0, 1), (3, channels)):
        shapes[f"in_conv.conv.{index}.weight"] = (channels, of, 3, 3, 3)
        shapes[f"in_conv.conv.{index}.bias"] = (channels,)
        shapes |= norm_shapes(f"in_conv.conv.{index + 1}", channels)
    for index in ("", "2"):
        shapes[f"mamba_layer_stem.nin{index}.weight"] = (channels, channels, 1, 1, 1)
        shapes |= norm_shapes(f"mamba_layer_stem.norm{index}", channels)
    inner, rank, block = 2 * channels, math.ceil(channels / 16), "mamba_layer_stem.mamba"
    shapes |= {
        f"{block}.in_proj.weight": (2 * inner, channels),
        f"{block}.conv1d.weight": (inner, 1, 4),
        f"{block}.conv1d.bias": (inner,),
        f"{block}.x_proj.weight": (rank + 16, inner),
        f"{block}.dt_proj.weight": (inner, rank),
        f"{block}.dt_proj.bias": (inner,),
        f"{block}.A_log": (inner, 8),
        f"{block}.D": (inner,),
        f"{block}.out_proj.weight": (channels, inner),
    }
    for stage in (1, 2, 3):
        out = channels * 2**stage
        for number in range(blocks):
            place, of = f"layer{stage}.{number}", out if number else out // 2
            shapes[f"{place}.conv1.weight"], shapes[f"{place}.conv2.weight"] = (
                (out, of, 3, 3, 3),
                (out, out, 3, 3, 3),
            )
            shapes |= norm_shapes(f"{place}.bn1", out) | norm_shapes(f"{place}.bn2", out)
            if number == 0:
                shapes[f"{place}.downsample.0.weight"] = (out, of, 1, 1, 1)
                shapes |= norm_shapes(f"{place}.downsample.1", out)
    shapes |= classifier_shapes("mlp.0", 14 * channels, width) | classifier_shapes("mlp.3", width, outputs)
    return draw(shapes, seed=seed)


def mamba(state, prefix, tokens):
    """One Mamba block on tokens (L,C), token after token."""
    x, gate = (tokens @ state[f"{prefix}.in_proj.weight"].T).chunk(2, dim=1)
    kernel, bias = state[f"{prefix}.conv1d.weight"][:, 0], state[f"{prefix}.conv1d.bias"]
    reach = kernel.shape[1]
    padded = torch.cat([x.new_zeros(reach - 1, x.shape[1]), x])
    x = torch.stack([(padded[t : t + reach].T * kernel).sum(1) + bias for t in range(len(tokens))])
    x = functional.silu(x)
    decay, state_width = -state[f"{prefix}.A_log"].exp(), state[f"{prefix}.A_log"].shape[1]
    made = x @ state[f"{prefix}.x_proj.weight"].T
    step, inputs, outputs = made[:, : -2 * state_width], *made[:, -2 * state_width :].chunk(2, dim=1)
    step = functional.softplus(linear(state, f"{prefix}.dt_proj", step))
    memory, results = torch.zeros_like(decay), []
    for t in range(len(tokens)):
        memory = (step[t, :, None] * decay).exp() * memory + (step[t] * x[t])[:, None] * inputs[t]
        results.append(memory @ outputs[t] + state[f"{prefix}.D"] * x[t])
    return (torch.stack(results) * functional.silu(gate)) @ state[f"{prefix}.out_proj.weight"].T


def nnmamba_features(state, volume):
    """The layer (1,F) before the last, after its ReLU, of one volume (1,1,D,H,W)."""
    x = volume
    for index, stride in ((0, 2), (3, 1)):
        place = f"in_conv.conv.{index}"
        x = functional.conv3d(x, state[f"{place}.weight"], state[f"{place}.bias"], stride=stride, padding=1)
        x = functional.relu(norm(state, f"in_conv.conv.{index + 1}", x))
    stem = "mamba_layer_stem"
    active = functional.relu(norm(state, f"{stem}.norm", functional.conv3d(x, state[f"{stem}.nin.weight"])))
    mixed = mamba(state, f"{stem}.mamba", active[0].flatten(1).T).T.reshape(active.shape) + active
    mixed = functional.conv3d(mixed, state[f"{stem}.nin2.weight"])
    x, pooled = x + functional.relu(norm(state, f"{stem}.norm2", mixed)), []
    for stage in (1, 2, 3):
        blocks = {name.split(".")[1] for name in state if name.startswith(f"layer{stage}.")}
        for number in range(len(blocks)):
            place, stride = f"layer{stage}.{number}", 1 if number else 2
            y = functional.conv3d(x, state[f"{place}.conv1.weight"], stride=stride, padding=1)
            y = functional.relu(norm(state, f"{place}.bn1", y))
            y = norm(state, f"{place}.bn2", functional.conv3d(y, state[f"{place}.conv2.weight"], padding=1))
            if number == 0:
                x = functional.conv3d(x, state[f"{place}.downsample.0.weight"], stride=2)
                x = norm(state, f"{place}.downsample.1", x)
            x = functional.relu(y + x)
        pooled.append(x.mean(dim=(2, 3, 4)))
    return functional.relu(linear(state, "mlp.0", torch.cat(pooled, dim=1)))
