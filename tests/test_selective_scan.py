"""The selective scan is its equations: any length, any step size, any precision, with bounded memory."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oaplug_backbones import selective_scan_chunks
from oaplug_backbones.selective_scan import selective_scan
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

POSITIONAL = ("u", "delta", "A", "B", "C")
OPTIONAL = ("D", "z", "delta_bias")


def equations(u, delta, A, B, C, *, D=None, z=None, delta_bias=None, delta_softplus=False):
    """The scan position after position, as its docstring says it."""
    dt = delta if delta_bias is None else delta + delta_bias[None, :, None]
    if delta_softplus:
        dt = torch.log1p(torch.exp(dt))
    h = torch.zeros(u.shape[0], *A.shape, dtype=u.dtype)
    outputs = []
    for position in range(u.shape[2]):
        step, value = dt[:, :, position, None], u[:, :, position, None]
        h = torch.exp(step * A) * h + step * value * B[:, None, :, position]
        outputs.append((h * C[:, None, :, position]).sum(dim=2))
    y = torch.stack(outputs, dim=2)
    if D is not None:
        y = y + D[None, :, None] * u
    return y if z is None else y * z / (1 + torch.exp(-z))


def draw(batch, channels, states, length, *, seed=0, absent=(), dtype=torch.float32):
    """Random arguments by name: steps around a tenth, rates from fading at once to hardly."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    values = {
        "u": normal(batch, channels, length),
        "delta": 0.1 * normal(batch, channels, length).abs(),
        "A": -normal(channels, states).exp(),
        "B": normal(batch, states, length),
        "C": normal(batch, states, length),
        "D": normal(channels),
        "z": normal(batch, channels, length),
        "delta_bias": 0.1 * normal(channels).abs(),
    }
    return {name: value.to(dtype) for name, value in values.items() if name not in absent}


def call(function, values, **options):
    """Call with arguments by name, the first five by place."""
    return function(
        *(values[name] for name in POSITIONAL), **{k: values[k] for k in values if k in OPTIONAL}, **options
    )


def train(function, values, *, dtype=None, **options):
    """The output, and the gradient by every argument of a loss that weighs all outputs differently."""
    leaves = {k: v.detach().clone().to(dtype or v.dtype).requires_grad_() for k, v in values.items()}
    y = call(function, leaves, **options)
    weights = torch.sin(torch.arange(y.numel(), dtype=torch.float64)).view(y.shape).to(y.dtype)
    (y * weights).sum().backward()
    return {"y": y.detach(), **{name: leaf.grad for name, leaf in leaves.items()}}


def distance(value, truth):
    """The largest difference, relative to the largest value of the truth."""
    return ((value.double() - truth).abs().max() / truth.abs().max().clamp_min(1e-30)).item()


def assert_agrees(values, **options):
    """The scan and the equations in float64 agree: outputs within 1e-5, gradients within 5e-5."""
    truth = train(equations, values, dtype=torch.float64, **options)
    for name, value in train(selective_scan, values, **options).items():
        assert value.isfinite().all(), name
        assert distance(value, truth[name]) < (1e-5 if name == "y" else 5e-5), name


@contextmanager
def group_elements(number):
    """Groups of this size, so that few positions already make many groups."""
    before = selective_scan_chunks._GROUP_ELEMENTS
    selective_scan_chunks._GROUP_ELEMENTS = number
    try:
        yield
    finally:
        selective_scan_chunks._GROUP_ELEMENTS = before


@settings(max_examples=15, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 5), st.integers(1, 300)),
    absent=st.sets(st.sampled_from(OPTIONAL)),
    softplus=st.booleans(),
    elements=st.sampled_from([1, 3000, 1 << 20]),
    seed=st.integers(0, 1000),
)
def test_outputs_and_all_gradients_are_those_of_the_equations(shape, absent, softplus, elements, seed):
    with group_elements(elements):
        assert_agrees(draw(*shape, seed=seed, absent=absent), delta_softplus=softplus)


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 128, 129, 640])
def test_lengths_at_the_edges_of_chunks_and_groups_agree(length):
    with group_elements(3 * 64 * 4 * 2):
        assert_agrees(draw(1, 4, 2, length))


@pytest.mark.parametrize("elements", [1, 3000, 1 << 20])
@pytest.mark.parametrize("softplus", [True, False])
def test_gradients_agree_with_finite_differences(softplus, elements):
    values = draw(2, 3, 2, 70, dtype=torch.float64)
    leaves = [value.requires_grad_() for value in values.values()]

    def scan(*tensors):
        return call(selective_scan, dict(zip(values, tensors, strict=True)), delta_softplus=softplus)

    with group_elements(elements):
        assert torch.autograd.gradcheck(scan, leaves, fast_mode=True)


def test_steps_of_ten_and_fast_rates_give_no_nan():
    values = draw(2, 4, 16, 200)
    values["delta"] = 10 * torch.rand(2, 4, 200, generator=torch.Generator().manual_seed(1))
    values["A"] = -torch.arange(1.0, 17).expand(4, 16)
    assert_agrees(values)


def test_states_that_grow_agree_too():
    values = draw(1, 3, 2, 150)
    values["A"] = values["A"].neg().clamp_max(1)
    assert_agrees(values)


def test_a_long_constant_input_settles_at_its_limit():
    length, step, rate = 100_000, 0.25, -0.5
    ones = torch.ones(1, 1, length)
    y = selective_scan(2 * ones, step * ones, torch.tensor([[rate]]), 3 * ones, 5 * ones)
    limit = 5 * step * 3 * 2 / (1 - torch.tensor(step * rate).exp().item())
    torch.testing.assert_close(y[..., 1000:], torch.full((1, 1, length - 1000), limit), rtol=1e-5, atol=0)


def test_a_state_that_never_fades_remembers_the_first_position_to_the_last():
    length = 50_000
    u = torch.zeros(1, 2, length)
    u[:, :, 0] = torch.tensor([3.0, -7.0])
    ones = torch.ones(1, 1, length)
    y = selective_scan(u, torch.ones_like(u), torch.zeros(2, 1), ones, ones)
    assert torch.equal(y[0, :, -1], torch.tensor([3.0, -7.0]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_rounded_only_at_the_end(dtype):
    values = draw(2, 5, 3, 200, dtype=dtype)
    truth = train(equations, values, dtype=torch.float64, delta_softplus=True)
    for name, value in train(selective_scan, values, delta_softplus=True).items():
        assert value.dtype == dtype, name
        assert distance(value, truth[name]) < torch.finfo(dtype).eps, name


def test_the_output_has_the_precision_of_u_and_each_gradient_that_of_its_tensor():
    values = draw(1, 4, 2, 90)
    for name in ("u", "B", "z"):
        values[name] = values[name].bfloat16()
    results = train(selective_scan, values)
    assert results["y"].dtype == torch.bfloat16
    assert all(results[name].dtype == value.dtype for name, value in values.items())


def test_autocast_changes_nothing():
    values = draw(2, 4, 3, 150)
    plain = train(selective_scan, values)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = train(selective_scan, values)
    assert all(torch.equal(cast[name], value) for name, value in plain.items())


def test_strides_do_not_matter():
    values = draw(2, 6, 3, 130)
    turned = {
        k: v.transpose(-1, -2).contiguous().transpose(-1, -2) if v.ndim > 1 else v for k, v in values.items()
    }
    torch.testing.assert_close(call(selective_scan, turned), call(selective_scan, values), rtol=0, atol=0)


@pytest.mark.slow
def test_a_compiled_graph_holds_the_whole_scan_and_gives_the_same_numbers():
    torch._dynamo.reset()
    compiled = torch.compile(selective_scan, backend="aot_eager", fullgraph=True)
    for length in (100, 171):
        values = draw(2, 4, 3, length)
        plain, graph = (
            train(function, values, delta_softplus=True) for function in (selective_scan, compiled)
        )
        assert all(torch.equal(graph[name], value) for name, value in plain.items())


def test_the_operators_keep_torch_s_rules_for_custom_operators():
    for absent in ((), OPTIONAL):
        values = draw(2, 3, 2, 70, absent=absent)
        leaves = {name: value.requires_grad_() for name, value in values.items()}
        arguments = tuple(leaves.get(name) for name in (*POSITIONAL, *OPTIONAL))
        torch.library.opcheck(torch.ops.oaplug.selective_scan.default, (*arguments, True))


def test_a_training_step_on_fake_tensors_computes_nothing():
    with FakeTensorMode():
        values = {k: torch.empty(v.shape, requires_grad=True) for k, v in draw(2, 3, 4, 5).items()}
        length = 1_300_000
        shapes = {k: (*v.shape[:-1], length) if v.ndim == 3 else v.shape for k, v in values.items()}
        values = {k: torch.empty(shape, requires_grad=True) for k, shape in shapes.items()}
        y = call(selective_scan, values)
        y.sum().backward()
    assert y.shape == (2, 3, length)
    assert {k: v.grad.shape for k, v in values.items()} == {k: torch.Size(v) for k, v in shapes.items()}


def test_a_second_derivative_is_refused():
    values = draw(1, 2, 2, 10)
    u = values["u"].requires_grad_()
    (gradient,) = torch.autograd.grad(call(selective_scan, values).square().sum(), u, create_graph=True)
    with pytest.raises(RuntimeError, match="no double backward"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("u", torch.zeros(4, 9), r"u must be \(B,D,L\)"),
        ("delta", torch.zeros(2, 4, 8), r"delta must be \(2, 4, 9\) where u is \(2, 4, 9\), got \(2, 4, 8\)"),
        ("A", torch.zeros(3, 5), r"A must be \(4, 5\)"),
        ("B", torch.zeros(2, 4, 9), r"B must be \(2, 5, 9\)|C must be"),
        ("D", torch.zeros(4, 1), r"D must be \(4,\)"),
        ("A", torch.zeros(4, 5, dtype=torch.complex64), "A must be of a real floating-point type"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_by_name(name, value, message):
    values = {**draw(2, 4, 5, 9), name: value}
    with pytest.raises(ValueError, match=message):
        call(selective_scan, values)


class Allocations(TorchDispatchMode):
    """Records the largest number of values of any tensor that an operation gives."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return output


def test_no_array_inside_is_larger_than_a_group_or_an_input():
    elements, channels, states, length = 20_000, 4, 16, 5_000
    values = draw(1, channels, states, length)
    arguments = selective_scan_chunks.Given(*values.values(), delta_softplus=True)
    with group_elements(elements), Allocations() as seen:
        _, first_states = selective_scan_chunks.forward(arguments)
        selective_scan_chunks.backward(arguments, first_states, values["u"])
    assert max(elements, states * length) == states * length, "B and C are the largest inputs"
    assert seen.largest == states * length < channels * states * length


MEASURE = """
import torch
from oaplug_backbones.selective_scan import selective_scan

def kilobytes(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name))

def step(length):
    shapes = [(1, 64, length)] * 2 + [(64, 8)] + [(1, 8, length)] * 2
    tensors = [torch.rand(shape).sub_(float(i == 2)).requires_grad_() for i, shape in enumerate(shapes)]
    selective_scan(*tensors).sum().backward()

step(1024)
for length in (32768, 65536, 131072, 262144):
    before = kilobytes("VmRSS")
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")
    step(length)
    print((kilobytes("VmHWM") - before) / 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc"
)
def test_memory_grows_with_the_length_and_64_cubed_positions_train_in_a_gigabyte():
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True, env=environment
    )
    megabytes = [float(line) for line in done.stdout.split()]
    assert megabytes[-1] < 1024
    # four times the length takes at most four times the memory; pages of libraries come and go
    assert megabytes[2] < 4.4 * megabytes[0]
    assert megabytes[3] < 4.4 * megabytes[1]
