"""Samples per second of augmentation, beside other libraries given the same set, in one run on one thread.

    python benchmarks/augmentation.py [--size 128 128 128] [--draws 200] [--device cuda --batch 8]

Start it with an interpreter that has oaplug (or with PYTHONPATH at the repository) and the peers:
batchgeneratorsv2, MONAI, TorchIO, batchgenerators; those that are not there are named. The set, ranges and
probabilities are those of nnU-Net's default 3D training for one channel: rotation, scaling, mirroring,
Gaussian noise, blur, brightness, contrast, low resolution, gamma, inverted gamma. Interpolation is linear
throughout, only the image is changed, and every sample starts from a fresh copy made outside the clock.
oaplug's bias field is left out, since batchgeneratorsv2 has none. Rounds of all libraries take turns; each
peer is compared with oaplug given what the peer has, by processor time (on one thread of a quiet machine that
is wall time).

What differs: rotation and scaling happen independently of each other, in one sampling; MONAI and TorchIO are
told which of both, as they have one probability for all of an affine change. batchgenerators, MONAI and
TorchIO draw factors uniformly. TorchIO has no brightness, contrast, inverted gamma, nor low resolution along
all axes, and its gamma keeps no statistics. batchgenerators' low resolution is made linear (nnU-Net v1 had
order 3).
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import importlib.util
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from statistics import median
from typing import Any

import numpy as np
import torch

from oaplug.core.plan import AugmentationSettings
from oaplug.feed.augment.apply import apply_draws
from oaplug.feed.augment.draw import draw_augmentation

NNUNET = AugmentationSettings(
    rotation_degrees=(30.0, 30.0, 30.0),
    rotation_probability=0.2,
    scale_range=(0.7, 1.4),
    scale_probability=0.2,
    shift_probability=0.0,
    mirror_axes=("D", "H", "W"),
    noise_std=math.sqrt(0.1),
    noise_probability=0.1,
    brightness_range=(0.75, 1.25),
    brightness_probability=0.15,
    contrast_range=(0.75, 1.25),
    contrast_probability=0.15,
    gamma_range=(0.7, 1.5),
    gamma_probability=0.3,
    keep_statistics=True,
    inverted_gamma_probability=0.1,
    blur_sigma_voxels=(0.5, 1.0),
    blur_probability=0.1,
    low_resolution_zoom=(0.5, 1.0),
    low_resolution_probability=0.125,
)
TORCHIO_SET = replace(
    NNUNET,
    brightness_probability=0.0,
    contrast_probability=0.0,
    inverted_gamma_probability=0.0,
    low_resolution_probability=0.0,
    keep_statistics=False,
)
Augment = Callable[[Any], Any]


@dataclass(frozen=True)
class Library:
    """How a library takes a volume (1,D,H,W), what it does with it, and the set that it was given."""

    prepare: Callable[[torch.Tensor], Any]
    augment: Augment
    settings: AugmentationSettings = NNUNET


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, nargs=3, default=[128, 128, 128], metavar=("D", "H", "W"))
    parser.add_argument("--draws", type=int, default=200, help="samples of each library")
    parser.add_argument("--rounds", type=int, default=10, help="turns that the draws are divided among")
    parser.add_argument("--parts", action="store_true", help="milliseconds of each part of oaplug's as well")
    parser.add_argument("--device", default="cpu", help="cuda: oaplug alone, in batches")
    parser.add_argument("--batch", type=int, default=8, help="volumes at once on a GPU")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    generator = np.random.default_rng(0)
    volume = torch.from_numpy(generator.normal(size=(1, *given.size))).float()
    print(f"1x{'x'.join(map(str, given.size))}, {given.draws} draws, 1 thread, torch {torch.__version__}")
    if given.device != "cpu":
        print_gpu_rate(volume, device=given.device, batch=given.batch, draws=given.draws)
        return
    compare(volume, draws=given.draws, rounds=given.rounds)
    if given.parts:
        print_parts(volume)


def compare(volume: torch.Tensor, *, draws: int, rounds: int) -> None:
    """Print samples per second of every library, and oaplug's ratio to each peer given the same set."""
    peers = {name: build(tuple(volume.shape[1:])) for name, build in PEERS.items() if is_there(name)}
    libraries = {"oaplug": ours(NNUNET), "oaplug, TorchIO's set": ours(TORCHIO_SET), **peers}
    seconds = take_turns(libraries, volume, draws=draws, rounds=rounds)
    for name, library in libraries.items():
        rate, low, high = spread(seconds[name], draws=draws)
        line = f"{name:<24}{rate:6.1f} samples/s (rounds: {low:.1f} to {high:.1f})"
        if name in peers:
            beside = "oaplug" if library.settings == NNUNET else "oaplug, TorchIO's set"
            line += f"; oaplug {sum(seconds[name]) / sum(seconds[beside]):.2f} times as many"
        print(line, flush=True)


def is_there(name: str) -> bool:
    """Whether a peer is installed; says so."""
    if importlib.util.find_spec(name) is None:
        print(f"{name} is not installed here: left out")
        return False
    print(f"{name} {version(name)}")
    return True


def take_turns(
    libraries: dict[str, Library], volume: torch.Tensor, *, draws: int, rounds: int
) -> dict[str, list[float]]:
    """Processor seconds of every library's rounds, after a few samples to warm up."""
    for library in libraries.values():
        for _ in range(15):
            library.augment(library.prepare(volume.clone()))
    seconds: dict[str, list[float]] = {name: [] for name in libraries}
    names = list(libraries)
    for index in range(rounds):
        for name in names if index % 2 else reversed(names):
            library, spent = libraries[name], 0.0
            for _ in range(draws // rounds):
                sample = library.prepare(volume.clone())
                began = time.process_time()
                library.augment(sample)
                spent += time.process_time() - began
            seconds[name].append(spent)
    return seconds


def spread(seconds: list[float], *, draws: int) -> tuple[float, float, float]:
    """Samples per second over all rounds, in the slowest and in the fastest."""
    each = draws // len(seconds)
    return each * len(seconds) / sum(seconds), each / max(seconds), each / min(seconds)


def ours(settings: AugmentationSettings) -> Library:
    """oaplug as its feeding calls it, with draws that count up."""
    count = iter(range(10**9))

    def augment(volumes: torch.Tensor) -> torch.Tensor:
        return apply_draws(volumes, [draw_augmentation(settings, 0, "0", next(count), "knee")], in_place=True)

    return Library(prepare=lambda volume: volume[None], augment=augment, settings=settings)


def batchgeneratorsv2(size: tuple[int, ...]) -> Library:
    """nnU-Net's own transforms, with per-channel probabilities made one with the others."""
    from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
    from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
    from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
    from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
    from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
    from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
    from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
    from batchgeneratorsv2.transforms.utils.random import RandomTransform

    factor, gamma = BGContrast((0.75, 1.25)), BGContrast((0.7, 1.5))
    spatial = SpatialTransform(
        size, 0, False, p_elastic_deform=0, p_rotation=0.2, rotation=(-math.pi / 6, math.pi / 6),
        p_scaling=0.2, scaling=(0.7, 1.4), p_synchronize_scaling_across_axes=1,
    )  # fmt: skip
    chances = [
        (GaussianNoiseTransform((0, 0.1), 1, True), 0.1),
        (GaussianBlurTransform((0.5, 1.0), False, False, 0.5, benchmark=True), 0.2),
        (MultiplicativeBrightnessTransform(factor, False), 0.15),
        (ContrastTransform(factor, True, False), 0.15),
        (SimulateLowResolutionTransform((0.5, 1), False, True, None, None, 0.5), 0.25),
        (GammaTransform(gamma, 1, False, 1, 1), 0.1),
        (GammaTransform(gamma, 0, False, 1, 1), 0.3),
    ]
    transforms = [RandomTransform(transform, probability) for transform, probability in chances]
    whole = ComposeTransforms([spatial, *transforms, MirrorTransform((0, 1, 2))])
    return Library(prepare=lambda volume: volume, augment=lambda volume: whole(image=volume))


def monai(_size: tuple[int, ...]) -> Library:
    """MONAI's transforms on plain tensors."""
    from monai import transforms as mt
    from monai.data import set_track_meta

    set_track_meta(False)
    turn, factors = math.pi / 6, (-0.25, 0.25)
    rotating = {"rotate_range": [(-turn, turn)] * 3}
    scaling = {"scale_range": [(-0.3, 0.4)] * 3}
    affine = partial(mt.RandAffine, prob=1.0, mode="bilinear", padding_mode="border")
    spatial = [affine(**rotating), affine(**scaling), affine(**rotating, **scaling)]
    rest = [
        mt.RandGaussianNoise(prob=0.1, std=math.sqrt(0.1)),
        mt.RandGaussianSmooth((0.5, 1.0), (0.5, 1.0), (0.5, 1.0), prob=0.1),
        mt.RandScaleIntensity(factors, prob=0.15),
        mt.RandScaleIntensityFixedMean(prob=0.15, factors=factors, preserve_range=True),
        mt.RandSimulateLowResolution(prob=0.125, zoom_range=(0.5, 1.0)),
        mt.RandAdjustContrast(prob=0.1, gamma=(0.7, 1.5), invert_image=True, retain_stats=True),
        mt.RandAdjustContrast(prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
        *[mt.RandFlip(0.5, axis) for axis in range(3)],
    ]
    return Library(prepare=lambda volume: volume, augment=partial(in_turn, choice=spatial, rest=rest))


def torchio(_size: tuple[int, ...]) -> Library:
    """TorchIO's transforms; its smaller set."""
    import SimpleITK as sitk
    import torchio as tio

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    affine = partial(tio.RandomAffine, default_pad_value="minimum", copy=False)
    still = {"degrees": 0}, {"scales": (1, 1, 1, 1, 1, 1)}
    spatial = [
        affine(degrees=30, **still[1]),
        affine(scales=(0.7, 1.4), isotropic=True, **still[0]),
        affine(scales=(0.7, 1.4), isotropic=True, degrees=30),
    ]
    logarithms = (math.log(0.7), math.log(1.5))
    rest = [
        tio.RandomNoise(std=(0, math.sqrt(0.1)), p=0.1, copy=False),
        tio.RandomBlur(std=(0.5, 1.0), p=0.1, copy=False),
        tio.RandomGamma(log_gamma=logarithms, p=0.3, copy=False),
        tio.RandomFlip(axes=(0, 1, 2), flip_probability=0.5, copy=False),
    ]
    return Library(
        prepare=lambda volume: tio.Subject(image=tio.ScalarImage(tensor=volume)),
        augment=partial(in_turn, choice=spatial, rest=rest),
        settings=TORCHIO_SET,
    )


def in_turn(sample: Any, *, choice: list[Augment], rest: list[Augment]) -> Any:
    """Rotation, scaling, both or neither, with a probability of 0.2 each; then the rest."""
    rotated, scaled = np.random.random(2) < 0.2
    if rotated or scaled:
        sample = choice[2 if rotated and scaled else int(scaled)](sample)
    for transform in rest:
        sample = transform(sample)
    return sample


def batchgenerators(size: tuple[int, ...]) -> Library:
    """The transforms of nnU-Net v1."""
    from batchgenerators.transforms import color_transforms as color
    from batchgenerators.transforms import noise_transforms as noise
    from batchgenerators.transforms.abstract_transforms import Compose
    from batchgenerators.transforms.resample_transforms import SimulateLowResolutionTransform
    from batchgenerators.transforms.spatial_transforms import MirrorTransform, SpatialTransform

    angle = (-math.pi / 6, math.pi / 6)
    whole = Compose(
        [
            SpatialTransform(
                size, None, do_elastic_deform=False, angle_x=angle, angle_y=angle, angle_z=angle,
                scale=(0.7, 1.4), border_mode_data="nearest", order_data=1, random_crop=False,
                p_rot_per_sample=0.2, p_scale_per_sample=0.2, independent_scale_for_each_axis=False,
            ),
            noise.GaussianNoiseTransform(noise_variance=(0, 0.1), p_per_sample=0.1),
            noise.GaussianBlurTransform((0.5, 1.0), p_per_sample=0.2, p_per_channel=0.5),
            color.BrightnessMultiplicativeTransform((0.75, 1.25), p_per_sample=0.15),
            color.ContrastAugmentationTransform((0.75, 1.25), p_per_sample=0.15),
            SimulateLowResolutionTransform(
                (0.5, 1), p_per_channel=0.5, order_downsample=0, order_upsample=1, p_per_sample=0.25
            ),
            color.GammaTransform((0.7, 1.5), True, True, retain_stats=True, p_per_sample=0.1),
            color.GammaTransform((0.7, 1.5), False, True, retain_stats=True, p_per_sample=0.3),
            MirrorTransform((0, 1, 2)),
        ]
    )  # fmt: skip
    return Library(prepare=lambda v: v[None].numpy(), augment=lambda array: whole(data=array))


def print_parts(volume: torch.Tensor) -> None:
    """Milliseconds of each part of oaplug's when it happens (median of 15)."""
    still = {f"{part}_probability": 0.0 for part in PARTS} | {"shift_probability": 0.0}
    off = replace(NNUNET, mirror_axes=(), **still)
    parts = {part: replace(off, **{f"{part}_probability": 1.0}) for part in PARTS}
    for part, settings in (parts | {"mirror": replace(off, mirror_axes=("D", "H", "W"))}).items():
        library, spent = ours(settings), []
        for _ in range(15):
            sample = library.prepare(volume.clone())
            began = time.process_time()
            library.augment(sample)
            spent.append(1000 * (time.process_time() - began))
        print(f"  {part:<18}{median(spent):6.1f} ms")


def print_gpu_rate(volume: torch.Tensor, *, device: str, batch: int, draws: int) -> None:
    """Samples per second of oaplug on a GPU, in batches that are there already."""
    volumes = volume.to(device).repeat(batch, 1, 1, 1, 1)
    rates = []
    for index in range(3 + max(draws // batch, 1)):
        draw = [draw_augmentation(NNUNET, 0, "0", index, str(i)) for i in range(batch)]
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        apply_draws(volumes, draw)
        torch.cuda.synchronize(device)
        rates.append(batch / (time.perf_counter() - began))
    kept = rates[3:]
    mean = len(kept) / sum(1 / rate for rate in kept)
    print(f"batches of {batch} on {torch.cuda.get_device_name(device)}: {mean:.0f} samples/s "
          f"(batches: {min(kept):.0f} to {max(kept):.0f})")  # fmt: skip


PARTS = (
    "rotation", "scale", "noise", "blur", "brightness", "contrast", "low_resolution", "inverted_gamma",
    "gamma", "bias_field", "elastic",
)  # fmt: skip
PEERS = {
    "batchgeneratorsv2": batchgeneratorsv2,
    "monai": monai,
    "torchio": torchio,
    "batchgenerators": batchgenerators,
}

if __name__ == "__main__":
    main()
