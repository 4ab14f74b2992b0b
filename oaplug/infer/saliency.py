"""Saliency maps of a model: noise, folds, memory, and a network that has learnt nothing to compare with."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from oaplug.core.errors import OaplugError, PredictionError, nearest
from oaplug.core.saliency import Question, SaliencySettings
from oaplug.core.seeds import derive_seed, random_generator
from oaplug.infer.attribution import (
    grad_cam,
    gradient,
    input_x_gradient,
    integrated_gradients,
    smoothgrad_x_input,
    stretch,
    to_map,
)
from oaplug.infer.predictor import read_ahead
from oaplug.model.run_folder import build_network
from oaplug.plug.registry import registry

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from oaplug.core.volume import FloatArray
    from oaplug.infer.predictor import Predictor
    from oaplug.model.network import Network

log = logging.getLogger(__name__)


def saliency_maps(
    predictor: Predictor,
    volume: np.ndarray,
    questions: Sequence[Question],
    *,
    case_id: str,
    settings: SaliencySettings,
    untrained: bool = False,
) -> list[FloatArray]:
    """A map (D,H,W) from 0 to 1 of a prepared volume (C,D,H,W) for each question.

    Networks compute in float32, because half precision loses small gradients. The maps of several folds,
    each from 0 to 1, are averaged with the same noise and stretched to 0 to 1 again. `untrained` explains
    the model's network with new random weights, drawn by the settings' seed, instead of its folds.

    Raises:
        PredictionError: where the model does not answer a question, or the method does not suit it.
        OaplugError: where not even one copy fits into the device's memory.
    """
    for question in questions:
        if question.target not in predictor.targets:
            known = nearest(question.target, predictor.targets)
            raise PredictionError(f"{predictor.name} does not answer {question.target!r}{known}")
    networks = [untrained_network(predictor, settings.seed)] if untrained else [*predictor.networks.values()]
    batch = predictor.as_batch(volume)
    sums: list[Tensor] = []
    for network in networks:
        asked = Explanation(network=network, questions=tuple(questions), settings=settings, case_id=case_id)
        maps = [to_map(one) for one in asked.attributions(batch)]
        sums = [total + one for total, one in zip(sums, maps, strict=True)] if sums else maps
    return [stretch(total).cpu().numpy() for total in sums]


def untrained_network(predictor: Predictor, seed: int) -> Network:
    """The model's network as it is before training, with weights that depend on the seed only."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "untrained network"))
        network = build_network(predictor.run, registry())
    predictor.precision.place(network)
    network.eval()
    return network


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What one network is asked, and how; `case_id` chooses the noise."""

    network: Network
    questions: tuple[Question, ...]
    settings: SaliencySettings
    case_id: str

    def attributions(self, volume: Tensor) -> list[Tensor]:
        """Signed attributions (1,C,D,H,W) of a volume (1,C,D,H,W), one per question.

        Where the device runs out of memory, half as many copies at once are tried.
        """
        asked = self._settled(volume) if self._needs_fixed_grades else self
        copies = self.settings.at_once(volume[0, 0].numel())
        while True:
            try:
                return asked._attributions(volume, copies=copies)
            except torch.OutOfMemoryError:
                if copies == 1:
                    raise OaplugError(
                        f"a saliency map of case {self.case_id} does not fit into the memory of "
                        f"{volume.device}, even one copy at a time; use -device cpu"
                    ) from None
            copies //= 2
            log.info("out of memory: %d noisy copies at once", copies)

    @property
    def _needs_fixed_grades(self) -> bool:
        return self.settings.fixed_grade or self.settings.method == "integrated_gradients"

    def _settled(self, volume: Tensor) -> Explanation:
        """The same with the grades that the network predicts without noise, where several are possible."""
        with torch.no_grad():
            found = self.network.probabilities(self.network(volume))
        settled = []
        for question in self.questions:
            probabilities = found[question.target]
            if question.grade is None and probabilities.shape[1] > 2:
                question = replace(question, grade=int(probabilities[0].argmax()))
            settled.append(question)
        return replace(self, questions=tuple(settled))

    def scores(self, volumes: Tensor) -> list[Tensor]:
        """The scores (B,) of each question for volumes (B,C,D,H,W)."""
        logits = self.network(volumes)
        return [self.network.strategy.score(logits, q.target, grade=q.grade) for q in self.questions]

    def _attributions(self, volume: Tensor, *, copies: int) -> list[Tensor]:
        method = self.settings.method
        if method == "smoothgrad_x_input":
            return smoothgrad_x_input(self.scores, volume, self._noises(volume, copies=copies))
        if method == "integrated_gradients":
            return integrated_gradients(self.scores, volume, steps=self.settings.steps, per_batch=copies)
        if method == "grad_cam":
            return grad_cam(self.scores, volume, layer=self._cam_layer())
        return {"gradient": gradient, "input_x_gradient": input_x_gradient}[method](self.scores, volume)

    def _cam_layer(self) -> torch.nn.Module:
        layer = self.network.encoder.cam_layer
        if not isinstance(layer, torch.nn.Module):
            raise PredictionError("grad_cam: this backbone names no layer for it; choose another method")
        return layer

    def _noises(self, volume: Tensor, *, copies: int) -> Iterator[Tensor]:
        """Batches of noise (b,C,D,H,W); the next is drawn while the network works on one."""
        draw = partial(
            draw_noise,
            shape=tuple(volume.shape[1:]),
            noise_std=self.settings.noise_std,
            seed=self.settings.seed,
            case_id=self.case_id,
        )
        batches = [
            range(start, min(start + copies, self.settings.copies))
            for start in range(0, self.settings.copies, copies)
        ]
        for _, noise in read_ahead(draw, batches):
            yield torch.from_numpy(noise).to(volume.device)


def draw_noise(
    copies: range, *, shape: tuple[int, ...], noise_std: float, seed: int, case_id: str
) -> np.ndarray:
    """Gaussian noise (b,C,D,H,W) of some copies; each copy's depends on seed, case and its number only."""
    noise = np.empty((len(copies), *shape), dtype=np.float32)
    for copy, into in zip(copies, noise, strict=True):
        random_generator(seed, "saliency noise", case_id, copy).standard_normal(out=into, dtype=np.float32)
    noise *= np.float32(noise_std)
    return noise
