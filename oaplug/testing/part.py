"""The contract checks of a part of whatever kind, as `oaplug_plugins --check` and fixtures run them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from oaplug.core.errors import PluginError
from oaplug.plug.registry import registry
from oaplug.testing.checks import require

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from oaplug.plug.specs import AnalysisSpec, BackboneSpec, CallbackSpec, ConverterSpec, HeadSpec, Spec

    Options = Mapping[str, Any] | None

LARGER_SIZES = ((32, 40, 36), (36, 33, 44))
"""Input sizes (D,H,W) for backbones that halve their input too often for those of check_backbone."""


def check_part(spec: Spec, options: Mapping[str, Any] | None = None, *, given: Any = None) -> bool:
    """Check a part; False where that takes data of the author's, and none is `given`.

    Args:
        spec: the part.
        options: its options (default: its own).
        given: what it is checked with: sizes of a backbone, targets of a head, studies of an analysis, the
            source of a converter (default: toy data, where there are some).

    Raises:
        AssertionError: saying what to change; and whatever the part itself raises.
    """
    return CHECKS[spec.kind](spec, options, given)


def find_part(name: str) -> Spec:
    """The spec of the installed part called `name` or `distribution:name`, of whatever kind.

    Raises PluginError where there is none, or several.
    """
    found = registry()
    kinds = {part.spec.kind for part in found.parts if name in (part.spec.name, part.qualified_name)}
    if len(kinds) > 1:
        raise PluginError(f"{name!r} is the name of a {' and of a '.join(sorted(kinds))}; pass the spec")
    if not kinds:
        known = ", ".join(sorted({part.spec.name for part in found.parts}))
        raise PluginError(f"no part {name!r} is installed; known: {known}")
    return found.get(kinds.pop(), name).spec


def _check_backbone(spec: BackboneSpec, options: Options, sizes: Any) -> bool:
    from oaplug.testing.backbone import check_backbone

    if sizes is not None:
        check_backbone(spec, options, sizes=sizes)
        return True
    try:
        check_backbone(spec, options)
    except Exception:  # too small, perhaps: what it raises for larger volumes counts
        check_backbone(spec, options, sizes=LARGER_SIZES)
    return True


def _check_head(spec: HeadSpec, options: Options, targets: Any) -> bool:
    from oaplug.testing.head import check_head
    from oaplug.testing.toy import TARGETS

    if targets is not None:
        check_head(spec, targets, options)
        return True
    accepted = [targets for targets in TARGETS.values() if spec.accepts(targets) is None]
    names = ", ".join(" and ".join(targets) for targets in TARGETS.values())
    require(bool(accepted), spec, f"it accepts none of {names}; call check_head with targets of yours")
    for targets in accepted:
        check_head(spec, targets, options)
    return True


def _check_analysis(spec: AnalysisSpec, options: Options, studies: Any) -> bool:
    from oaplug.testing.analysis import check_analysis, meets_needs

    if studies is None and not meets_needs(spec):
        return False
    check_analysis(spec, options, studies=studies)
    return True


def _check_converter(spec: ConverterSpec, options: Options, source: Any) -> bool:
    from oaplug.testing.converter import check_converter

    if source is None:
        return False
    check_converter(spec, source, options)
    return True


def _check_callback(spec: CallbackSpec, options: Options, _given: Any) -> bool:
    from oaplug.testing.callback import check_callback

    check_callback(spec, options)
    return True


CHECKS: dict[str, Callable[[Any, Options, Any], bool]] = {
    "backbone": _check_backbone,
    "head": _check_head,
    "analysis": _check_analysis,
    "converter": _check_converter,
    "callback": _check_callback,
}
"""By kind, what checks a spec with options and what is given besides."""
