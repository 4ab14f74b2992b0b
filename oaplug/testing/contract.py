"""Contract checks for plugin authors: what the engine relies on in a backbone and in a head.

Call them in your own tests, `check_backbone(spec)` and `check_head(spec, HIERARCHY)`; a failure is an
AssertionError that says what to change.
"""

from oaplug.testing.backbone import check_backbone
from oaplug.testing.head import check_head
from oaplug.testing.part import check_part

__all__ = ["check_backbone", "check_head", "check_part"]
