"""The contract checks of a part of whatever kind, as `oaplug_plugins --check` runs them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from oaplug.testing.backbone import check_backbone
from oaplug.testing.checks import require
from oaplug.testing.head import check_head
from oaplug.testing.toy import BINARY, HIERARCHY

if TYPE_CHECKING:
    from collections.abc import Callable

    from oaplug.plug.specs import BackboneSpec, HeadSpec, Spec

LARGER_SIZES = ((32, 40, 36), (36, 33, 44))
"""Input sizes (D,H,W) for backbones that halve their input too often for those of check_backbone."""


def check_part(spec: Spec) -> bool:
    """Check a part with its own options; False where there is no check for its kind.

    Raises AssertionError saying what to change, and whatever the part itself raises.
    """
    check = CHECKS.get(spec.kind)
    if check is None:
        return False
    check(spec)
    return True


def _check_backbone_at_some_size(spec: BackboneSpec) -> None:
    try:
        check_backbone(spec)
    except Exception:  # too small, perhaps: what it raises for larger volumes counts
        check_backbone(spec, sizes=LARGER_SIZES)


def _check_head_with_what_it_accepts(spec: HeadSpec) -> None:
    toys = (HIERARCHY, BINARY, {"oa": HIERARCHY["oa"]})
    accepted = [targets for targets in toys if spec.accepts(targets) is None]
    names = ", ".join(" and ".join(targets) for targets in toys)
    require(bool(accepted), spec, f"it accepts none of {names}; call check_head with targets of yours")
    for targets in accepted:
        check_head(spec, targets)


CHECKS: dict[str, Callable[[Any], None]] = {
    "backbone": _check_backbone_at_some_size,
    "head": _check_head_with_what_it_accepts,
}
"""By kind, what checks a spec with nothing else given."""
