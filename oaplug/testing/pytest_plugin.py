"""Fixtures for plugin authors, in every pytest session once oaplug is installed (`-p no:oaplug`: without).

Importing this imports nothing else of oaplug: sessions that use none of the fixtures pay nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from oaplug.core.study import Study
    from oaplug.core.target import Target
    from oaplug.plug.specs import Spec

    class Check(Protocol):
        """What the fixture `oaplug_check` is."""

        def __call__(self, part: Spec | str, given: Any = None, /, **options: Any) -> None:
            """Hold a part to its contract."""


@pytest.fixture(scope="session")
def oaplug_check() -> Check:
    """oaplug_check(part, given=None, **options): hold a part, a spec or a name, to its contract.

    `options` are the part's, small ones make it quick; `given` is what it is checked with besides: sizes of a
    backbone, targets of a head, studies of an analysis, the source of a converter. Raises AssertionError.
    """
    from oaplug.testing.part import check_part, find_part

    def check(part: Spec | str, given: Any = None, /, **options: Any) -> None:
        spec = find_part(part) if isinstance(part, str) else part
        if not check_part(spec, options, given=given):
            what = {"converter": "a source", "analysis": "studies"}[spec.kind]
            raise TypeError(
                f"{spec.kind} {spec.name} is checked with {what} of yours: oaplug_check(part, {what})"
            )

    return check


@pytest.fixture(scope="session")
def toy_targets() -> Mapping[str, Mapping[str, Target]]:
    """Sets of targets by name: "hierarchy" (kl, and oa = kl >= 2), "binary", "derived alone"."""
    from oaplug.testing.toy import TARGETS

    return TARGETS


@pytest.fixture
def toy_study() -> Study:
    """Two models that predicted the same cases, as an analysis is given them."""
    from oaplug.testing.toy_study import toy_study as make

    return make()


@pytest.fixture(scope="session")
def toy_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw dataset folder of 24 small volumes with masks, sides and visits; made once, read only."""
    from oaplug.testing.toy import write_toy_dataset

    return write_toy_dataset(tmp_path_factory.mktemp("oaplug_raw") / "Dataset901_Toy")


@pytest.fixture(scope="session")
def toy_preprocessed(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same dataset planned and preprocessed for 3d_lowres, with its folds; made once, read only."""
    from oaplug.testing.toy_preprocessed import preprocess_toy

    return preprocess_toy(toy_dataset, tmp_path_factory.mktemp("oaplug_preprocessed") / toy_dataset.name)
