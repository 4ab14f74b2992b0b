"""Specs: what a part is called, what it does, and how to build it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from oaplug.core.errors import PluginError
from oaplug.core.target import Target

if TYPE_CHECKING:
    from torch import Tensor

    from oaplug.plug.protocols import Analysis, Callback, Converter, Encoder, HeadStrategy

Size = tuple[int, int, int]
Targets = Mapping[str, Target]
NEEDS = frozenset(
    {"predictions", "features", "train_features", "network", "train_images", "images", "masks", "covariates"}
)
_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """The options of a part that has none."""


def _no_multiple(_options: Any) -> Size:
    return (1, 1, 1)


def _accept_all(_targets: Targets) -> str | None:
    return None


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What every part says of itself.

    `options` is a frozen dataclass with defaults for every field; `revision` goes up whenever the same
    options build something whose saved weights mean something else; `reference` cites the source.
    """

    kind: ClassVar[str] = ""
    name: str
    summary: str
    build: Callable[..., Any]
    options: type = NoOptions
    revision: int = 1
    reference: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or "__" in self.name:
            raise PluginError(f"part name {self.name!r}: use a-z, 0-9 and single underscores, first a letter")
        if not callable(self.build):
            raise PluginError(f"{self.name}: build must be callable")
        if not is_dataclass(self.options):
            raise PluginError(f"{self.name}: options must be a dataclass with defaults")


@dataclass(frozen=True, kw_only=True)
class WeightMap:
    """A released network's tensors under the names of oaplug's parts, and what to build for them.

    `encoder` and `head_tensors` hold tensors by the state-dict names of the encoder and of the head
    called `head` (None: the encoder alone); `targets` are that head's, as in dataset.json. `in_channels`
    and `input_size` (None: any) are what the encoder is built for. `unused` names the released tensors
    that have no place in either.
    """

    encoder: Mapping[str, Tensor]
    options: Mapping[str, Any] = field(default_factory=dict)
    in_channels: int = 1
    input_size: Size | None = None
    head: str | None = None
    head_options: Mapping[str, Any] = field(default_factory=dict)
    head_tensors: Mapping[str, Tensor] = field(default_factory=dict)
    targets: Mapping[str, Any] = field(default_factory=dict)
    unused: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class WeightSource:
    """A released implementation whose weights fit a backbone.

    `read(state, encoder_state)` gives the WeightMap of a state dict, or raises CheckpointError naming the
    keys or shapes by which it is not this implementation's. `encoder_state` is that of the encoder that is
    to be filled, or None where one is to be built for the weights. It changes nothing and draws nothing.
    """

    name: str
    summary: str
    read: Callable[[Mapping[str, Tensor], Mapping[str, Tensor] | None], WeightMap]


@dataclass(frozen=True, kw_only=True)
class BackboneSpec(Spec):
    """A backbone: `build(options, *, in_channels, input_size)` gives an Encoder.

    `weight_sources` are the released implementations whose weights it can take.
    """

    kind: ClassVar[str] = "backbone"
    build: Callable[..., Encoder]
    size_multiple: Callable[[Any], Size] = _no_multiple
    weight_sources: tuple[WeightSource, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [source.name for source in self.weight_sources]
        if len(set(names)) < len(names):
            raise PluginError(f"{self.name}: two weight sources of one name among {names}")


@dataclass(frozen=True, kw_only=True)
class HeadSpec(Spec):
    """A head: `build(options, *, num_features, targets, grade_counts)` gives a HeadStrategy.

    `targets` are those the head is to answer, parents first; `grade_counts` gives per target how often
    each grade occurs in the training fold. `accepts` says why a set of targets does not suit, or None.
    `single_target` heads are told which target by --target.
    """

    kind: ClassVar[str] = "head"
    build: Callable[..., HeadStrategy]
    accepts: Callable[[Targets], str | None] = _accept_all
    single_target: bool = False


@dataclass(frozen=True, kw_only=True)
class AnalysisSpec(Spec):
    """An analysis: `build(options)` gives an Analysis; `needs` names what a study must provide.

    One that takes long is to run `on_request` only: where it is named, not among all there are.
    """

    kind: ClassVar[str] = "analysis"
    build: Callable[..., Analysis]
    needs: frozenset[str] = frozenset({"predictions"})
    on_request: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := sorted(set(self.needs) - NEEDS):
            raise PluginError(f"{self.name}: unknown needs {unknown}; choose from {sorted(NEEDS)}")


@dataclass(frozen=True, kw_only=True)
class ConverterSpec(Spec):
    """A converter: `build(options)` gives a Converter."""

    kind: ClassVar[str] = "converter"
    build: Callable[..., Converter]


@dataclass(frozen=True, kw_only=True)
class CallbackSpec(Spec):
    """A training callback: `build(options, *, folder)` gives a Callback."""

    kind: ClassVar[str] = "callback"
    build: Callable[..., Callback]
