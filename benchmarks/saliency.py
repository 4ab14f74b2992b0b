"""Saliency maps of one case: oaplug against captum's NoiseTunnel over InputXGradient, with as many copies.

    python benchmarks/saliency.py [--backbone resnet3d] [--size 48 64 64] [--copies 8] [--threads 1]

Printed for the map of one target (kl) and for those of two (kl and oa, as the study has them), which captum
makes one after the other and oaplug in one pass. captum has all copies at once in the network (its default)
or as many as oaplug. Each is run in turn; seconds are of processor time, the best of the repeats. The
difference from captum's maps with captum's noise is in parts of their largest value.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import captum.attr
import torch

from oaplug import create_network
from oaplug.core.saliency import Question, SaliencySettings
from oaplug.core.target import Target
from oaplug.infer.attribution import smoothgrad_x_input
from oaplug.infer.saliency import Explanation
from oaplug.model.network import Network

NOISE_STD = 0.05
TARGETS = {
    "kl": Target(name="kl", kind="ordinal", grades=(0, 1, 2, 3, 4)),
    "oa": Target(name="oa", kind="binary", grades=(0, 1), derived_from="kl", at_least=2),
}
GRADES = {"kl": 3, "oa": 1}
Maps = list[torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="resnet3d")
    parser.add_argument("--size", type=int, nargs=3, default=[48, 64, 64])
    parser.add_argument("--copies", type=int, default=8)
    parser.add_argument("--at-once", type=int, help="default: what oaplug takes for the size")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    network = create_network(arguments.backbone, "dual", targets=TARGETS, input_size=tuple(arguments.size))
    network.eval()
    volume = torch.randn(1, 1, *arguments.size)
    copies = arguments.copies
    at_once = min(copies, arguments.at_once or SaliencySettings().at_once(volume[0, 0].numel()))
    print(f"{arguments.backbone}, volume 1x1x{'x'.join(map(str, arguments.size))}, {copies} copies")
    print(f"{arguments.threads} threads, torch {torch.__version__}, captum {captum.__version__}")
    for targets in (("kl",), ("kl", "oa")):
        asked = Asked(network=network, volume=volume, copies=copies, targets=targets)
        ways: dict[str, Callable[[], Maps]] = {
            f"captum, {copies} at once": lambda a=asked: by_captum(a, copies),
            f"captum, {at_once} at once": lambda a=asked: by_captum(a, at_once),
            f"oaplug, {at_once} at once": lambda a=asked: ours(a, at_once),
        }
        seconds = {name: min(times) for name, times in in_turn(ways, repeats=arguments.repeats).items()}
        quickest = min(value for name, value in seconds.items() if name.startswith("captum"))
        print(f"{'maps of ' + ' and '.join(targets):<24}{'s':>8}{'ratio':>8}")
        for name, value in seconds.items():
            print(f"{name:<24}{value:>8.2f}{value / quickest:>8.2f}", flush=True)
    print(f"largest difference with the same noise: {difference(asked):.1e}")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Whose maps of which targets are made, from how many copies."""

    network: Network
    volume: torch.Tensor
    copies: int
    targets: tuple[str, ...]

    def explanation(self, at_once: int) -> Explanation:
        """The same as oaplug is asked."""
        return Explanation(
            network=self.network,
            questions=tuple(Question(name=t, target=t, grade=GRADES[t]) for t in self.targets),
            settings=SaliencySettings(copies=self.copies, noise_std=NOISE_STD, copies_per_batch=at_once),
            case_id="case",
        )


def in_turn(ways: dict[str, Callable[[], Maps]], *, repeats: int) -> dict[str, list[float]]:
    """Seconds of processor time of each way, repeat by repeat, after one that warms up."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, way in ways.items():
            start = time.process_time()
            way()
            if repeat:
                times[name].append(time.process_time() - start)
    return times


def by_captum(asked: Asked, at_once: int) -> Maps:
    """Signed maps, one per target."""
    maps = []
    for target in asked.targets:
        method = captum.attr.NoiseTunnel(
            captum.attr.InputXGradient(lambda volumes, t=target: asked.network(volumes)[t])
        )
        found = method.attribute(
            asked.volume,
            nt_type="smoothgrad",
            nt_samples=asked.copies,
            nt_samples_batch_size=at_once,
            stdevs=NOISE_STD,
            target=GRADES[target],
        )
        maps.append(found.detach())
    return maps


def ours(asked: Asked, at_once: int) -> Maps:
    """The same, with oaplug's own noise."""
    return asked.explanation(at_once).attributions(asked.volume)


def difference(asked: Asked) -> float:
    """How far maps lie apart that are made with the noise captum draws, in parts of the largest value."""
    torch.manual_seed(1)
    expected = by_captum(asked, asked.copies)
    torch.manual_seed(1)
    std = torch.full((asked.copies, *asked.volume.shape[1:]), NOISE_STD)
    scores = asked.explanation(asked.copies).scores
    found = [
        smoothgrad_x_input(scores, asked.volume, [torch.normal(0, std)])[index]
        for index in range(len(asked.targets))
    ]
    return max(
        float((one - other).abs().max() / other.abs().max())
        for one, other in zip(found, expected, strict=True)
    )


if __name__ == "__main__":
    main()
