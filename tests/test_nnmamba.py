"""nnmamba is the authors' classifier: its size, its names, every number it gives, with either scan."""

from __future__ import annotations

import dataclasses
import logging
import math
import sys
from types import ModuleType

import pytest
import torch
from documents import DOCS, quoted, table
from oaplug_backbones import mamba
from oaplug_backbones.nnmamba import MambaLayer
from oaplug_backbones.options import NnMambaOptions
from scipy import stats
from torch.nn import functional

from oaplug import create_encoder, create_network
from oaplug.core.batch import Batch
from oaplug.core.errors import PluginError

KL = {"kl": {"kind": "ordinal", "grades": [0, 1, 2, 3, 4]}}
OA = {"oa": {"kind": "binary", "grades": [0, 1]}}
STUDY_SIZE = (160, 256, 256)
KERNELS = "mamba_ssm.ops.selective_scan_interface"
GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture(autouse=True)
def _forget_kernels(monkeypatch):
    """Every test looks for mamba-ssm anew, and leaves none behind."""

    def loaded():
        return [name for name in sys.modules if name.split(".")[0] == "mamba_ssm"]

    for name in loaded():
        monkeypatch.delitem(sys.modules, name)
    mamba.fused_scan.cache_clear()
    yield
    for name in loaded():
        del sys.modules[name]
    mamba.fused_scan.cache_clear()


def count_parameters(targets):
    network = create_network("nnmamba", "single", targets=targets, input_size=STUDY_SIZE)
    return sum(p.numel() for p in network.parameters())


def authors_names():
    """State-dict names of the authors' classifier without mlp.3, from the rule by which it names them."""

    def convolution(prefix, *, bias):
        return [f"{prefix}.{kind}" for kind in (("weight", "bias") if bias else ("weight",))]

    def norm(prefix):
        kinds = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        return [f"{prefix}.{kind}" for kind in kinds]

    stem = "mamba_layer_stem"
    names = [*convolution("in_conv.conv.0", bias=True), *norm("in_conv.conv.1")]
    names += [*convolution("in_conv.conv.3", bias=True), *norm("in_conv.conv.4")]
    names += [f"{stem}.nin.weight", *norm(f"{stem}.norm"), f"{stem}.nin2.weight", *norm(f"{stem}.norm2")]
    names += [f"{stem}.mamba.{name}" for name in SHAPES_32]
    for stage in (1, 2, 3):
        for block in (0, 1, 2):
            place = f"layer{stage}.{block}"
            for part in ("1", "2"):
                names += [f"{place}.conv{part}.weight", *norm(f"{place}.bn{part}")]
            if block == 0:
                names += [f"{place}.downsample.0.weight", *norm(f"{place}.downsample.1")]
    return [*names, "mlp.0.weight", "mlp.0.bias"]


SHAPES_32 = {
    "in_proj.weight": (128, 32),
    "conv1d.weight": (64, 1, 4),
    "conv1d.bias": (64,),
    "x_proj.weight": (18, 64),
    "dt_proj.weight": (64, 2),
    "dt_proj.bias": (64,),
    "A_log": (64, 8),
    "D": (64,),
    "out_proj.weight": (32, 64),
}


def randomize_(module, *, seed):
    """Weights and running statistics that hide nothing: no zero mean, no unit variance, no zero bias."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif tensor.dtype.is_floating_point:
            tensor.mul_(0.9).add_(0.1 * torch.randn(tensor.shape, generator=generator))
    return module


def plain_scan(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    """One position after the other, with mamba-ssm's arguments in mamba-ssm's order."""
    dt = delta if delta_bias is None else delta + delta_bias[:, None]
    dt = functional.softplus(dt) if delta_softplus else dt
    state, outputs = 0, []
    for step in range(u.shape[-1]):
        now = dt[..., step, None]
        state = torch.exp(now * A) * state + now * B[:, None, :, step] * u[..., step, None]
        outputs.append((state * C[:, None, :, step]).sum(dim=-1))
    y = torch.stack(outputs, dim=-1)
    y = y if D is None else y + D[:, None] * u
    return y if z is None else y * functional.silu(z)


def plain_mamba(weights, tokens):
    """The Mamba block on tokens (B,L,C), as the article writes it."""
    inner, states = weights["A_log"].shape
    taps = weights["conv1d.weight"].shape[-1]
    values, gate = functional.linear(tokens, weights["in_proj.weight"]).split(inner, dim=-1)
    windows = functional.pad(values, (0, 0, taps - 1, 0)).unfold(1, taps, 1)
    values = torch.einsum("blck,ck->blc", windows, weights["conv1d.weight"][:, 0]) + weights["conv1d.bias"]
    values = values * torch.sigmoid(values)
    rank = math.ceil(tokens.shape[-1] / 16)
    steps, inputs, outputs = functional.linear(values, weights["x_proj.weight"]).split(
        [rank, states, states], dim=-1
    )
    scanned = plain_scan(
        values.mT,
        (steps @ weights["dt_proj.weight"].T).mT,
        -torch.exp(weights["A_log"]),
        inputs.mT,
        outputs.mT,
        weights["D"],
        gate.mT,
        weights["dt_proj.bias"],
        True,
    )
    return functional.linear(scanned.mT, weights["out_proj.weight"])


def plain_scans(weights, tokens, *, scan):
    """The stem's scan of tokens (B,L,C): forwards, or the mean of four with tokens and channels reversed."""
    if scan == "single":
        return plain_mamba(weights, tokens)
    turned = [tokens, tokens.flip(1), tokens.flip(2), tokens.flip(1, 2)]
    one, two, three, four = (plain_mamba(weights, t) for t in turned)
    return (one + two.flip(1) + three.flip(2) + four.flip(1, 2)) / 4


def plain_forward(weights, volume, *, scan="single", blocks=3):
    """The features of the authors' classifier in eval mode, in bare torch.nn.functional."""

    def norm(x, prefix):
        statistics = (weights[f"{prefix}.running_mean"], weights[f"{prefix}.running_var"])
        return functional.batch_norm(x, *statistics, weights[f"{prefix}.weight"], weights[f"{prefix}.bias"])

    def convolve(x, prefix, **settings):
        return functional.conv3d(x, weights[f"{prefix}.weight"], weights.get(f"{prefix}.bias"), **settings)

    x = functional.relu(norm(convolve(volume, "in_conv.conv.0", stride=2, padding=1), "in_conv.conv.1"))
    x = functional.relu(norm(convolve(x, "in_conv.conv.3", padding=1), "in_conv.conv.4"))

    stem = "mamba_layer_stem"
    of_mamba = {n.removeprefix(f"{stem}.mamba."): w for n, w in weights.items() if f"{stem}.mamba." in n}
    act = functional.relu(norm(convolve(x, f"{stem}.nin"), f"{stem}.norm"))
    size = act.shape[2:]
    tokens = act.permute(0, 2, 3, 4, 1).reshape(len(act), size.numel(), -1)
    scanned = plain_scans(of_mamba, tokens, scan=scan)
    y = scanned.reshape(len(act), *size, -1).permute(0, 4, 1, 2, 3) + act
    x = functional.relu(norm(convolve(y, f"{stem}.nin2"), f"{stem}.norm2")) + x

    pooled = []
    for stage in (1, 2, 3):
        for block in range(blocks):
            place, stride = f"layer{stage}.{block}", 2 if block == 0 else 1
            y = convolve(x, f"{place}.conv1", stride=stride, padding=1)
            y = functional.relu(norm(y, f"{place}.bn1"))
            y = norm(convolve(y, f"{place}.conv2", padding=1), f"{place}.bn2")
            if block == 0:
                x = norm(convolve(x, f"{place}.downsample.0", stride=2), f"{place}.downsample.1")
            x = functional.relu(y + x)
        pooled.append(x.mean(dim=(2, 3, 4)))
    features = functional.linear(torch.cat(pooled, dim=1), weights["mlp.0.weight"], weights["mlp.0.bias"])
    return functional.relu(features)


def make_block(width=20, **settings):
    torch.manual_seed(0)
    settings = {"state_width": 8, "convolution_width": 4, "expansion": 2} | settings
    return randomize_(mamba.Mamba(width, **settings), seed=1)


def make_tokens(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def test_with_five_outputs_it_has_the_study_s_number_of_parameters_and_33_less_for_each_one_less():
    assert count_parameters(KL) == 12_876_453
    assert count_parameters(OA) == 12_876_321
    assert count_parameters(KL | {"kl": {"kind": "ordinal", "grades": [0, 1, 2, 3]}}) == 12_876_453 - 33


def test_the_encoder_s_state_dict_has_the_authors_names_and_its_mamba_block_mamba_ssm_s_shapes():
    state = create_encoder("nnmamba", input_size=STUDY_SIZE).state_dict()
    assert sorted(state) == sorted(authors_names())
    block = {name: tuple(state[f"mamba_layer_stem.mamba.{name}"].shape) for name in SHAPES_32}
    assert block == SHAPES_32
    assert tuple(state["mlp.0.weight"].shape) == (32, 448)


@pytest.mark.parametrize("scan", ["single", "css4"])
def test_the_features_are_those_of_a_plain_pytorch_network_that_scans_step_by_step(scan):
    size = (9, 15, 12)
    torch.manual_seed(0)
    encoder = create_encoder("nnmamba", in_channels=2, input_size=size, channels=20, width=24, scan=scan)
    randomize_(encoder, seed=1).eval()
    volume = make_tokens(2, 2, *size)
    with torch.no_grad():
        features = encoder(volume)
        expected = plain_forward(encoder.state_dict(), volume, scan=scan)
    assert features.std() > 0.01, "features that hardly differ would agree by chance"
    assert features.min() == 0, "the last step is a ReLU"
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)


def test_other_widths_of_the_block_are_built_and_agree_too():
    options = {"channels": 6, "blocks": 2, "width": 5, "state_width": 3, "convolution_width": 2}
    encoder = create_encoder("nnmamba", input_size=(8, 12, 10), expansion=3, **options)
    randomize_(encoder, seed=1).eval()
    volume = make_tokens(1, 1, 8, 12, 10)
    with torch.no_grad():
        features, expected = encoder(volume), plain_forward(encoder.state_dict(), volume, blocks=2)
    assert encoder.mamba_layer_stem.mamba.A_log.shape == (18, 3)
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)


def test_the_gradients_of_the_block_are_those_of_its_step_by_step_form():
    block, tokens = make_block(), make_tokens(2, 20, 50)
    weights = {name: p.detach().clone().requires_grad_() for name, p in block.named_parameters()}
    wanted = make_tokens(2, 20, 50).flip(2)
    (block(tokens) * wanted).sum().backward()
    (plain_mamba(weights, tokens.mT).mT * wanted).sum().backward()
    for name, parameter in block.named_parameters():
        torch.testing.assert_close(parameter.grad, weights[name].grad, rtol=1e-4, atol=1e-4, msg=name)


def test_the_block_sees_no_later_token():
    block, tokens = make_block(), make_tokens(1, 20, 40)
    changed = tokens.clone()
    changed[..., 25:] += 1
    with torch.no_grad():
        before, after = block(tokens), block(changed)
    torch.testing.assert_close(before[..., :25], after[..., :25])
    assert not torch.allclose(before[..., 25:], after[..., 25:], atol=1e-3)


def test_a_four_way_scan_treats_a_volume_and_its_point_reflection_alike_and_a_single_one_does_not():
    maps = make_tokens(2, 6, 3, 5, 4)

    def differs(scan):
        torch.manual_seed(0)
        layer = MambaLayer(NnMambaOptions(channels=6, scan=scan)).eval()
        with torch.no_grad():
            return (layer(maps.flip(2, 3, 4)).flip(2, 3, 4) - layer(maps)).abs().max()

    assert differs("css4") < 1e-5
    assert differs("single") > 1e-3


def test_the_last_stage_has_a_sixteenth_of_the_input_s_size():
    encoder = create_encoder("nnmamba", input_size=(33, 48, 17), channels=4, blocks=1)
    seen = []
    encoder.cam_layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape))
    encoder(torch.zeros(1, 1, 33, 48, 17))
    assert encoder.cam_layer is encoder.layer3
    assert seen == [(1, 32, 3, 3, 2)]


def test_the_memory_layout_of_volumes_changes_no_number():
    encoder = create_encoder("nnmamba", input_size=(12, 16, 10), channels=8, blocks=1).eval()
    volume = make_tokens(2, 1, 12, 16, 10)
    with torch.no_grad():
        expected = encoder(volume)
        encoder.to(memory_format=torch.channels_last_3d)
        found = encoder(volume.contiguous(memory_format=torch.channels_last_3d))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_time_steps_start_evenly_spread_on_a_logarithmic_scale_and_decays_at_1_2_3():
    torch.manual_seed(0)
    block = mamba.Mamba(512, state_width=5, convolution_width=4, expansion=2)
    steps = functional.softplus(block.dt_proj.bias.detach().double()).log10()
    assert steps.min() > -3.001
    assert steps.max() < -0.999
    assert stats.kstest(steps.numpy(), stats.uniform(-3, 2).cdf).pvalue > 0.01
    bound = 32**-0.5
    weight = block.dt_proj.weight.detach()
    assert stats.kstest(weight.flatten().numpy(), stats.uniform(-bound, 2 * bound).cdf).pvalue > 0.01
    torch.testing.assert_close(block.A_log.detach().exp(), torch.arange(1.0, 6).expand(1024, 5))
    assert (block.D == 1).all()


@pytest.fixture
def kernels(monkeypatch):
    """mamba-ssm as it would be on a machine with CUDA, refusing what its kernel refuses; gives its calls."""
    calls = []

    def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
        calls.append(u.shape)
        assert {x.dtype for x in (delta, B, C, z)} == {u.dtype}
        assert {x.dtype for x in (A, D, delta_bias)} == {torch.float32}
        wide = [x.float() for x in (u, delta, A, B, C, D, z, delta_bias)]
        return plain_scan(*wide, delta_softplus).to(u.dtype)

    for name in ("mamba_ssm", "mamba_ssm.ops", KERNELS):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[KERNELS].selective_scan_fn = selective_scan_fn
    return calls


def test_mamba_ssm_s_kernel_is_used_for_tensors_on_a_gpu_only(kernels):
    assert mamba.scan_for(GPU) is sys.modules[KERNELS].selective_scan_fn
    assert mamba.scan_for(CPU) is mamba.selective_scan
    make_block()(make_tokens(1, 20, 6))
    assert kernels == []


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_kernel_and_our_scan_give_the_same_numbers_and_gradients(kernels, monkeypatch, precision):
    def run():
        block, tokens = make_block(), make_tokens(2, 20, 45).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
            scanned = block(tokens).float()
        scanned.square().sum().backward()
        return {"output": scanned.detach(), "tokens": tokens.grad} | {
            name: parameter.grad for name, parameter in block.named_parameters()
        }

    ours = run()
    as_on_gpu = mamba.scan_for(GPU)
    monkeypatch.setattr(mamba, "scan_for", lambda _device: as_on_gpu)
    theirs = run()
    assert kernels == [(2, 40, 45)]
    tolerance = 1e-4 if precision == torch.float32 else 0.03
    for name, expected in theirs.items():
        scale = expected.abs().max().item()
        torch.testing.assert_close(ours[name], expected, rtol=tolerance, atol=tolerance * scale, msg=name)


def test_where_mamba_ssm_is_not_installed_our_scan_is_used_without_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(sys, "path", [])
    with caplog.at_level(logging.WARNING):
        assert mamba.scan_for(GPU) is mamba.selective_scan
    assert caplog.records == []


@pytest.mark.parametrize("failure", ["OSError('libcudart')", "ModuleNotFoundError(name='triton')"])
def test_where_mamba_ssm_does_not_import_our_scan_is_used_and_that_is_said_once(
    failure, tmp_path, monkeypatch, caplog
):
    (tmp_path / "mamba_ssm").mkdir()
    (tmp_path / "mamba_ssm" / "__init__.py").write_text(f"raise {failure}", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    for _ in range(2):
        assert mamba.scan_for(GPU) is mamba.selective_scan
    (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert "mamba-ssm does not import" in record.getMessage()


def test_on_a_cpu_mamba_ssm_is_never_imported(tmp_path, monkeypatch):
    (tmp_path / "mamba_ssm").mkdir()
    source = "from pathlib import Path\nPath(__file__).with_name('imported').touch()\n"
    (tmp_path / "mamba_ssm" / "__init__.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    encoder = create_encoder("nnmamba", input_size=(8, 8, 8), channels=4, blocks=1)
    encoder(torch.zeros(2, 1, 16, 16, 16))
    assert not (tmp_path / "mamba_ssm" / "imported").exists()
    mamba.scan_for(GPU)
    assert (tmp_path / "mamba_ssm" / "imported").exists(), "else this test sees nothing"


@pytest.mark.parametrize("scan", ["single", "css4"])
def test_in_bfloat16_features_and_gradients_are_finite_and_near_those_in_float32(scan):
    torch.manual_seed(0)
    encoder = create_encoder("nnmamba", input_size=(16, 12, 20), channels=8, blocks=1, scan=scan)
    volume = make_tokens(3, 1, 16, 12, 20)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = encoder(volume)
    features.float().sum().backward()
    assert features.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
    with torch.no_grad():
        expected = encoder(volume)
    assert (features - expected).abs().max() < 0.1 * expected.abs().max()


def test_training_lowers_the_loss():
    torch.manual_seed(0)
    options = {"channels": 8, "blocks": 1}
    network = create_network(
        "nnmamba", "single", targets=KL, input_size=(12, 14, 10), backbone_options=options
    )
    grades = torch.tensor([0, 1, 2, 3, 4] * 2)
    volume = make_tokens(10, 1, 12, 14, 10)
    volume[:, :, 3:9, 3:11, 2:8] += grades[:, None, None, None, None]
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        loss = network.loss(network(volume), Batch(targets={"kl": grades}))["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_an_unknown_scan_is_refused():
    with pytest.raises(PluginError, match="scan"):
        create_encoder("nnmamba", input_size=(16, 16, 16), scan="zigzag")


def test_every_option_is_documented_with_its_default():
    rows = table(DOCS / "backbones.md", "nnmamba", first="option")
    documented = {quoted(option)[0]: quoted(default)[0] for option, default, _ in rows}
    assert documented == {field.name: str(field.default) for field in dataclasses.fields(NnMambaOptions)}
