"""Time and peak memory of a training step of selective scans: oaplug's beside other ways to compute it.

Every method runs in processes of its own, in turn, several rounds. What counts is the least time of all
rounds, by the clock and of the processors, and the most that a process grew during its first step, gradients
included (the high-water mark in Linux's /proc). On a busy machine give --threads 1, and look at the ratios of
CPU time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec

import torch
from torch import Tensor


class Sequential(torch.autograd.Function):
    """Position after position, each one operation in place on (B,N,D); keeps only its inputs."""

    @staticmethod
    def forward(ctx, u, delta, A, B, C):
        ctx.save_for_backward(u, delta, A, B, C)
        _, states = Sequential.states(u, delta, A, B)
        return (by_position(C)[:, :, None] @ states).squeeze(2).permute(1, 2, 0)

    @staticmethod
    def states(u, delta, A, B):
        """All decays and states (L,B,N,D)."""
        decays = (by_position(delta)[:, :, None] * A.t()).exp_()
        states = by_position(delta * u)[:, :, None] * by_position(B)[..., None]
        state = torch.zeros_like(states[0])
        for decay, drive in zip(decays.unbind(), states.unbind(), strict=True):
            state = drive.addcmul_(decay, state)
        return decays, states

    @staticmethod
    def backward(ctx, by_y):
        u, delta, A, B, C = ctx.saved_tensors
        decays, states = Sequential.states(u, delta, A, B)
        by_C = (by_position(by_y)[:, :, None] @ states.mT).squeeze(2)
        by_drive = by_position(by_y)[:, :, None] * by_position(C)[..., None]
        kept, by_state = decays.unbind(), by_drive.unbind()
        for place in range(len(by_state) - 2, -1, -1):
            by_state[place].addcmul_(kept[place + 1], by_state[place + 1])
        by_B = (by_position(delta * u)[:, :, None] @ by_drive.mT).squeeze(2)
        by_input = (by_position(B)[:, :, None] @ by_drive).squeeze(2).permute(1, 2, 0)
        by_exponent = by_drive.mul_(decays)
        by_exponent[1:].mul_(states[:-1])
        by_exponent[0] = 0
        by_A = torch.mul(by_exponent, by_position(delta)[:, :, None], out=states).sum((0, 1)).t()
        by_delta = by_exponent.mul_(A.t()).sum(2).permute(1, 2, 0) + u * by_input
        return delta * by_input, by_delta, by_A, by_B.permute(1, 2, 0), by_C.permute(1, 2, 0)


def by_position(tensor: Tensor) -> Tensor:
    """(B,X,L) as (L,B,X)."""
    return tensor.permute(2, 0, 1).contiguous()


def full_arrays(u: Tensor, delta: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Decays and drives (B,L,D,N) of all positions at once."""
    steps = delta.transpose(1, 2)[..., None]
    return torch.exp(steps * A), steps * u.transpose(1, 2)[..., None] * B.transpose(1, 2)[:, :, None]


def ours(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """oaplug's scan."""
    from oaplug_backbones.selective_scan import selective_scan

    return selective_scan(u, delta, A, B, C)


def mambapy(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """mambapy's parallel scan, called as its MambaBlock calls it."""
    from mambapy.pscan import pscan

    states = pscan(*full_arrays(u, delta, A, B))
    return (states @ C.transpose(1, 2)[..., None]).squeeze(3).transpose(1, 2)


def associative(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """torch's associative_scan, without torch.compile."""
    from torch._higher_order_ops.associative_scan import associative_scan

    def combine(left, right):
        return left[0] * right[0], right[0] * left[1] + right[1]

    _, states = associative_scan(combine, full_arrays(u, delta, A, B), dim=1, combine_mode="generic")
    return (states @ C.transpose(1, 2)[..., None]).squeeze(3).transpose(1, 2)


METHODS = {"ours": ours, "mambapy": mambapy, "sequential": Sequential.apply, "associative": associative}


def make_inputs(batch: int, channels: int, states: int, length: int) -> list[Tensor]:
    """u, delta, A, B, C as they are early in a training: steps up to 0.1, rates -1 to -N."""
    torch.manual_seed(0)
    rates = -torch.arange(1.0, states + 1).repeat(channels, 1)
    u, delta = torch.randn(batch, channels, length), 0.1 * torch.rand(batch, channels, length)
    B, C = torch.randn(2, batch, states, length).unbind()
    return [tensor.contiguous().requires_grad_() for tensor in (u, delta, rates, B, C)]


def resident_mb(kind: str) -> float:
    """VmRSS or VmHWM, the process's memory now or at most, in MB."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(kind)) / 1024


def measure(method: str, *, shape: list[int], repeats: int) -> dict[str, object]:
    """In one process: least seconds of a step, peak MB, and norms of gradients that all methods share."""

    def step(tensors, weights):
        begin, begin_cpu = time.perf_counter(), time.process_time()
        gradients = torch.autograd.grad(METHODS[method](*tensors), tensors, weights)
        return (time.perf_counter() - begin, time.process_time() - begin_cpu), gradients

    small = make_inputs(1, *shape[1:3], 64)
    step(small, torch.ones_like(small[0]))
    tensors = make_inputs(*shape)
    weights = torch.randn_like(tensors[0])
    before = resident_mb("VmRSS")
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")
    first, gradients = step(tensors, weights)
    peak = resident_mb("VmHWM") - before
    sizes = [gradient.double().norm().item() for gradient in gradients]
    del gradients
    times = [first, *(step(tensors, weights)[0] for _ in range(repeats - 1))]
    seconds, cpu_seconds = map(min, zip(*times, strict=True))
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": peak, "gradients": sizes}


def run_apart(method: str, options: argparse.Namespace) -> dict[str, object]:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--only", method, "--repeats", options.repeats]
    command += ["--shape", *options.shape, "--threads", options.threads]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{method} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def compare(options: argparse.Namespace) -> None:
    """Measure all methods in turn and print a row for each."""
    methods = [method for method in options.methods if method != "mambapy" or find_spec("mambapy")]
    results: dict[str, list[dict]] = {method: [] for method in methods}
    for _ in range(options.rounds):
        for method in methods:
            results[method].append(run_apart(method, options))
    setting = f"float32, forward and backward, {options.threads} thread(s), torch {torch.__version__}"
    print(f"B, D, N, L: {options.shape}; {setting}; load {os.getloadavg()[0]:.1f}")
    print(
        " " * 12 + "".join(f"{name:>9}{'ratio':>7}" for name in ("seconds", "CPU s", "peak MB")) + "  differs"
    )
    for method, rows in results.items():
        print_row(method, rows, first=results[methods[0]])
    if "mambapy" in set(options.methods) - set(methods):
        print("no mambapy: pip install --no-deps --target FOLDER mambapy, and give --peers FOLDER")


def print_row(method: str, rows: list[dict], *, first: list[dict]) -> None:
    """A method's figures, their ratios to those of the first, and how far its gradients' norms differ."""
    columns = ""
    for name, best, digits in (("seconds", min, 3), ("cpu_seconds", min, 3), ("peak_mb", max, 0)):
        value, base = (best(row[name] for row in of) for of in (rows, first))
        columns += f"{value:9.{digits}f}{value / base:7.1f}"
    pairs = zip(rows[0]["gradients"], first[0]["gradients"], strict=True)
    print(f"{method:<12}{columns}{max(abs(a / b - 1) for a, b in pairs):9.0e}")


def grow(options: argparse.Namespace) -> None:
    """Print oaplug's time and peak at four lengths."""
    for length in options.lengths:
        options.shape[3] = length
        row = run_apart("ours", options)
        figures = f"{row['seconds']:.3f} s, {row['cpu_seconds']:.3f} CPU s, {row['peak_mb']:.0f} MB"
        print(f"L {length:>8}: {figures}", flush=True)


def main() -> None:
    """Compare methods, or with --lengths show oaplug's growth."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shape", type=int, nargs=4, default=[1, 64, 16, 32768], metavar=("B", "D", "N", "L")
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3, help="steps in a process")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--peers", help="folder with mambapy: pip install --no-deps --target FOLDER mambapy")
    parser.add_argument("--lengths", type=int, nargs="+", help="only oaplug, at these lengths instead of L")
    parser.add_argument("--only", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peers:
        sys.path.append(options.peers)
    if options.only:
        torch.set_num_threads(options.threads)
        print(json.dumps(measure(options.only, shape=options.shape, repeats=options.repeats)))
    elif options.lengths:
        grow(options)
    else:
        compare(options)


if __name__ == "__main__":
    main()
