"""What the builders of parts give back. Encoders and heads are also torch.nn.Module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from oaplug.core.batch import Batch
    from oaplug.core.converter import ConversionRecord, RawFolder
    from oaplug.core.findings import Findings
    from oaplug.core.study import Study


class Encoder(Protocol):
    """A torch.nn.Module from volumes (B,C,D,H,W) to features (B,F).

    `num_features` is F: whatever the architecture calls its penultimate vector. `cam_layer` is a
    property (an attribute would alias parameters) giving the submodule CAM methods look at, or None.
    """

    num_features: int

    @property
    def cam_layer(self) -> nn.Module | None:
        """The submodule whose activations (B,K,d,h,w) CAM methods use."""

    def __call__(self, volume: Tensor) -> Tensor:
        """Features (B,F) of volumes (B,C,D,H,W)."""


class HeadStrategy(Protocol):
    """A torch.nn.Module from features (B,F) to logits, with the loss and probabilities that go with them."""

    def __call__(self, features: Tensor) -> dict[str, Tensor]:
        """Logits by name; the names are the head's own."""

    def loss(self, logits: Mapping[str, Tensor], truth: Batch) -> dict[str, Tensor]:
        """Scalar losses: "total", which is minimised, and its parts. Missing labels (-1) are masked."""

    def probabilities(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Per target (B,K) probabilities whose rows sum to 1, derived targets included."""

    def score(self, logits: Mapping[str, Tensor], target: str, *, grade: int | None = None) -> Tensor:
        """The scalar (B,) that saliency differentiates: the logit of `grade` (an index), or where None
        that of the predicted grade, or of the positive class of a binary target."""


class Analysis(Protocol):
    """Something that looks at a study and finds something out."""

    def run(self, study: Study, folder: Path) -> Findings:
        """Analyse `study`, writing figures and their data into `folder` (which exists)."""


class Converter(Protocol):
    """Turns a data set as its owner ships it into a raw dataset folder."""

    def convert(self, source: Path, dataset: RawFolder) -> ConversionRecord:
        """Read `source`, write images, masks, dataset.json and cases.csv into `dataset`."""


class Callback(Protocol):
    """Looks on while a model is trained; must never touch weights, data or loss."""

    def on_start(self, run: Mapping[str, Any]) -> None:
        """Training starts (or goes on); `run` is the resolved run as JSON."""

    def on_epoch(self, record: Mapping[str, Any]) -> None:
        """An epoch has ended; `record` is its line of metrics.jsonl."""

    def on_end(self) -> None:
        """Training has ended."""

    def state_dict(self) -> dict[str, Any]:
        """State to keep in the checkpoint, JSON only."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state of an interrupted run."""
