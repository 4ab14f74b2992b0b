"""What a saliency map is to explain, and how it is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from oaplug.core.errors import PredictionError, nearest
from oaplug.core.target import grade_names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from oaplug.core.target import Target

SaliencyMethod = Literal[
    "smoothgrad_x_input", "gradient", "input_x_gradient", "integrated_gradients", "grad_cam"
]


@dataclass(frozen=True, kw_only=True)
class Question:
    """Which score of a network is explained: that of one grade (an index) of a target.

    Where `grade` is None it is the grade that the network predicts, and of a binary target the positive one.
    `name` is how the question was asked, such as "oa" or "kl:4".
    """

    name: str
    target: str
    grade: int | None = None


def question_of(name: str, targets: Mapping[str, Target]) -> Question:
    """The question that `TARGET` or `TARGET:GRADE` asks; raises PredictionError where there is no such."""
    target, colon, grade = name.partition(":")
    if target not in targets:
        raise PredictionError(f"{name}: there is no target {target!r}{nearest(target, targets)}")
    names = grade_names(targets[target])
    if colon and grade not in names:
        raise PredictionError(f"{name}: {target} has no grade {grade!r}{nearest(grade, names)}")
    return Question(name=name, target=target, grade=names.index(grade) if colon else None)


VOXELS_AT_ONCE = 4_000_000
"""Of the copies in a network at once: more would not be faster, but take more memory than a training."""


@dataclass(frozen=True, kw_only=True)
class SaliencySettings:
    """How saliency maps are made.

    `copies` and `noise_std` (in the units of the normalized input) are those of SmoothGrad, `steps` the
    points on the path of integrated gradients. Where the predicted grade is explained it is taken anew
    for each noisy copy; with `fixed_grade` it is that of the volume without noise. `copies_per_batch` is how
    many volumes are in the network at once (None: as many as have VOXELS_AT_ONCE, but two at least); fewer
    are tried where the device runs out of memory. `seed` is that of the noise.
    """

    method: SaliencyMethod = "smoothgrad_x_input"
    copies: int = 8
    noise_std: float = 0.05
    steps: int = 32
    fixed_grade: bool = False
    copies_per_batch: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.copies, self.steps, 1 if self.copies_per_batch is None else self.copies_per_batch) < 1:
            raise PredictionError("copies, steps and copies_per_batch must be positive")
        if self.noise_std < 0:
            raise PredictionError(f"noise_std must not be negative, got {self.noise_std}")

    def at_once(self, voxels: int) -> int:
        """How many volumes of so many voxels to take into the network at once."""
        return max(2, VOXELS_AT_ONCE // voxels) if self.copies_per_batch is None else self.copies_per_batch
