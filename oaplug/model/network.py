"""Network = encoder + head strategy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from oaplug.core.batch import Batch
    from oaplug.plug.protocols import Encoder, HeadStrategy


class Network(nn.Module):
    """Volumes (B,C,D,H,W) to logits by name, through features (B,F)."""

    def __init__(self, encoder: Encoder, head: HeadStrategy) -> None:
        super().__init__()
        self.encoder = cast("nn.Module", encoder)
        self.head = cast("nn.Module", head)

    @property
    def strategy(self) -> HeadStrategy:
        """The head, seen as what it can do."""
        return cast("HeadStrategy", self.head)

    @property
    def num_features(self) -> int:
        """F, the width of the features."""
        return cast("Any", self.encoder).num_features  # type: ignore[no-any-return]

    def features(self, volume: Tensor) -> Tensor:
        """Penultimate features (B,F) of volumes (B,C,D,H,W)."""
        return self.encoder(volume)  # type: ignore[no-any-return]

    def forward(self, volume: Tensor) -> dict[str, Tensor]:
        """Logits by name of volumes (B,C,D,H,W)."""
        return self.head(self.encoder(volume))  # type: ignore[no-any-return]

    def loss(self, logits: Mapping[str, Tensor], truth: Batch) -> dict[str, Tensor]:
        """The head's losses, "total" among them."""
        return self.strategy.loss(logits, truth)

    def probabilities(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Per target probabilities (B,K)."""
        return self.strategy.probabilities(logits)
