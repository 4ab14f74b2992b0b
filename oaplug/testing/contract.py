"""Contract checks for plugin authors: what the engine relies on in a part of each kind.

Call them in your own tests, `check_backbone(spec)` and `check_head(spec, HIERARCHY)` for instance; a failure
is an AssertionError that says what to change. They use no pytest.
"""

from oaplug.testing.analysis import check_analysis
from oaplug.testing.backbone import check_backbone
from oaplug.testing.callback import check_callback
from oaplug.testing.converter import check_converter
from oaplug.testing.head import check_head
from oaplug.testing.part import check_part

__all__ = [
    "check_analysis",
    "check_backbone",
    "check_callback",
    "check_converter",
    "check_head",
    "check_part",
]
