"""One training step of nnmamba on the CPU: seconds, peak memory, and the share of the selective scan.

    python benchmarks/nnmamba_step.py [--size 64 128 128] [--scan single|css4] [--threads 2] [--steps 2]

A step is forward and backward of one volume of noise in float32. The first step warms up; seconds are
the best of the others. Peak memory is the high-water mark of this process less what it held before the
network was built. The share of the scan comes from torch.profiler on a step of its own.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from oaplug import create_encoder

SCAN = "oaplug::selective_scan"
"""What names of the scan's operators, forward and backward, begin with."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, nargs=3, default=[64, 128, 128])
    parser.add_argument("--scan", choices=["single", "css4"], default="single")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    before = memory_mib("VmRSS")
    torch.manual_seed(0)
    encoder = create_encoder("nnmamba", input_size=tuple(arguments.size), scan=arguments.scan)
    volume = torch.randn(1, 1, *arguments.size)
    step(encoder, volume)
    forward, backward = min((step(encoder, volume) for _ in range(arguments.steps)), key=sum)
    peak = memory_mib("VmHWM") - before
    share = scan_share(encoder, volume)
    tokens = torch.tensor([-(-side // 2) for side in arguments.size]).prod().item()
    print(f"volume 1x1x{'x'.join(map(str, arguments.size))}, {tokens:,} tokens, scan {arguments.scan}")
    print(f"{arguments.threads} threads, torch {torch.__version__}")
    print(f"forward      {forward:8.2f} s")
    print(f"backward     {backward:8.2f} s")
    print(f"both         {forward + backward:8.2f} s")
    print(f"peak memory  {peak:8.0f} MiB")
    print(f"scan's share {share:8.0%} of the time")


def step(encoder: torch.nn.Module, volume: torch.Tensor) -> tuple[float, float]:
    """Seconds of forward and of backward."""
    encoder.zero_grad()
    start = time.perf_counter()
    features = encoder(volume)
    middle = time.perf_counter()
    features.sum().backward()
    return middle - start, time.perf_counter() - middle


def scan_share(encoder: torch.nn.Module, volume: torch.Tensor) -> float:
    """The part of a step's time that is spent in the scan's operators, forward and backward."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        total = sum(step(encoder, volume))
    events = [event for event in profile.key_averages() if event.key.startswith(SCAN)]
    if len(events) < 2:
        raise SystemExit(f"found {[event.key for event in events]} of the scan, forward and backward wanted")
    return sum(event.cpu_time_total for event in events) / 1e6 / total


def memory_mib(key: str) -> float:
    """A line of this process's /proc/self/status: VmRSS is what it holds now, VmHWM the most it ever held."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines if line.startswith(f"{key}:"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
