"""Head strategies of the study, and ordinal regression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from oaplug.plug import HeadSpec, hookimpl

if TYPE_CHECKING:
    from collections.abc import Mapping

    from oaplug.core.target import Target
    from oaplug.plug.protocols import HeadStrategy

_STUDY = "Zhang 2026, arXiv 2605.00718"


@dataclass(frozen=True, kw_only=True)
class SingleOptions:
    """Options of `single`; `soft_label_width` spreads ordinal labels over neighbours, in grades (0: not)."""

    dropout: float = 0.0
    soft_label_width: float = 0.0


@dataclass(frozen=True, kw_only=True)
class DualOptions:
    """Options of `dual` and `dual_cascade`; `coarse_weight` scales the loss of the derived targets.

    `soft_label_width` spreads labels of the finest target over neighbouring grades (0: not), and with them
    those derived from it.
    """

    dropout: float = 0.0
    coarse_weight: float = 1.0
    soft_label_width: float = 0.0


@dataclass(frozen=True, kw_only=True)
class OrdinalOptions:
    """Options of `ordinal`."""

    dropout: float = 0.0


def _build_single(options: SingleOptions, **context: Any) -> HeadStrategy:
    from oaplug_heads.single import SingleHead

    return SingleHead(options, num_features=context["num_features"], targets=context["targets"])


def _build_dual(options: DualOptions, **context: Any) -> HeadStrategy:
    from oaplug_heads.dual import DualHead

    return DualHead(options, num_features=context["num_features"], targets=context["targets"])


def _build_dual_cascade(options: DualOptions, **context: Any) -> HeadStrategy:
    from oaplug_heads.dual import DualCascadeHead

    return DualCascadeHead(options, num_features=context["num_features"], targets=context["targets"])


def _build_ordinal(options: OrdinalOptions, **context: Any) -> HeadStrategy:
    from oaplug_heads.ordinal import OrdinalHead

    return OrdinalHead(options, num_features=context["num_features"], targets=context["targets"])


def _needs_hierarchy(targets: Mapping[str, Target]) -> str | None:
    if any(t.derived_from in targets for t in targets.values()):
        return None
    return "it needs a target derived from another (such as oa = kl >= 2); use the head 'single'"


def _needs_order(targets: Mapping[str, Target]) -> str | None:
    first = next(iter(targets.values()))
    if first.kind == "ordinal" and len(first.grades) > 2:
        return None
    return f"it needs an ordinal target of more than two grades, and {first.name!r} is {first.kind}"


@hookimpl
def oaplug_heads() -> list[HeadSpec]:
    """The heads of this package."""
    return [
        HeadSpec(
            name="single",
            summary="one target: cross-entropy over its grades, or one logit for a binary target",
            build=_build_single,
            options=SingleOptions,
            single_target=True,
            reference=_STUDY,
        ),
        HeadSpec(
            name="dual",
            summary="the finest target and its derived ones, each from the shared features",
            build=_build_dual,
            options=DualOptions,
            accepts=_needs_hierarchy,
            reference=f"{_STUDY} (text)",
        ),
        HeadSpec(
            name="dual_cascade",
            summary="derived targets predicted from the logits of the finest one",
            build=_build_dual_cascade,
            options=DualOptions,
            accepts=_needs_hierarchy,
            reference=f"{_STUDY} (released code)",
        ),
        HeadSpec(
            name="ordinal",
            summary="rank-consistent ordinal regression of one target (CORN)",
            build=_build_ordinal,
            options=OrdinalOptions,
            accepts=_needs_order,
            single_target=True,
            reference="Shi, Cao, Raschka 2023, Pattern Analysis and Applications 26:941-955",
        ),
    ]
