"""What belongs to the whole process and to other folders: a part leaves it as it was."""

from __future__ import annotations

import os
import random
import sys
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from oaplug.testing.checks import require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from oaplug.plug.specs import Spec

    Setting = tuple[Callable[[], Any], Callable[[Any], object]]
    """How to read and how to put back something of the process."""

_STATE = "the state of"
"""How names of random generators begin."""


@contextmanager
def left_alone(spec: Spec, doing: str, *, draws: bool = False) -> Iterator[None]:
    """Within it a part may not change settings and generators of the process; they are put back.

    A generator may have been used where a library was imported meanwhile: some draw when they are.

    Args:
        spec: the part.
        doing: what it does meanwhile, for the message.
        draws: it may draw from torch's global generator.

    Raises:
        AssertionError: naming what it changed.
    """
    settings, modules = _settings(draws=draws), len(sys.modules)
    before = {name: read() for name, (read, _) in settings.items()}
    changed: list[str] = []
    try:
        yield
    finally:
        for name, (read, put_back) in settings.items():
            if read() != before[name]:
                put_back(before[name])
                if not name.startswith(_STATE) or len(sys.modules) == modules:
                    changed.append(name)
    require(
        not changed,
        spec,
        f"{doing} changed {', '.join(changed)}, which belong to the whole process; leave them alone, and "
        "draw random numbers from a generator of your own (oaplug.core.seeds.random_generator)",
    )


def _settings(*, draws: bool) -> dict[str, Setting]:
    """What is watched, by name; only libraries that are loaded have anything to change."""
    settings: dict[str, Setting] = {
        "the working directory": (os.getcwd, os.chdir),
        f"{_STATE} Python's random": (random.getstate, random.setstate),
    }
    if "numpy" in sys.modules:
        settings[f"{_STATE} numpy.random"] = (_numpy_state, _set_numpy_state)
    if "torch" in sys.modules:
        settings |= _torch_settings()
        if not draws:
            settings[f"{_STATE} torch's generator"] = (_torch_state, _set_torch_state)
    return settings


def _torch_settings() -> dict[str, Setting]:
    import torch

    return {
        "torch's default dtype": (torch.get_default_dtype, torch.set_default_dtype),
        "torch's default device": (torch.get_default_device, _set_default_device),
        "torch's number of threads": (torch.get_num_threads, torch.set_num_threads),
        "torch's gradient mode": (torch.is_grad_enabled, torch.set_grad_enabled),
        "torch's deterministic algorithms": (
            torch.are_deterministic_algorithms_enabled,
            torch.use_deterministic_algorithms,
        ),
        "torch's matmul precision": (
            torch.get_float32_matmul_precision,
            torch.set_float32_matmul_precision,
        ),
    }


def _set_default_device(device: Any) -> None:
    import torch

    torch.set_default_device(None if device.type == "cpu" else device)


def _torch_state() -> bytes:
    import torch

    return torch.get_rng_state().numpy().tobytes()


def _set_torch_state(state: bytes) -> None:
    import torch

    torch.set_rng_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))


def _numpy_state() -> tuple[Any, ...]:
    import numpy as np

    name, keys, *rest = np.random.get_state(legacy=True)
    return (name, np.asarray(keys).tobytes(), *rest)


def _set_numpy_state(state: tuple[Any, ...]) -> None:
    import numpy as np

    name, keys, *rest = state
    np.random.set_state((name, np.frombuffer(keys, dtype=np.uint32), *rest))


@contextmanager
def own_folder(spec: Spec, name: str = "own") -> Iterator[Path]:
    """An empty folder of a part, outside of which it may write nothing while this lasts.

    The working directory is an empty folder meanwhile. Raises AssertionError naming what appeared
    elsewhere, and temporary files of atomic writing that were left.
    """
    with TemporaryDirectory(prefix="oaplug-check-") as root:
        whole = Path(root).resolve()
        folder, here = whole / name, whole / "working_directory"
        folder.mkdir()
        here.mkdir()
        with _working_in(here):
            yield folder
        check_only_within(folder, whole, spec, expected=frozenset({here}))


@contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def check_only_within(folder: Path, whole: Path, spec: Spec, *, expected: frozenset[Path]) -> None:
    """Below `whole` there must be `expected` and what lies in `folder`, and nothing half written."""
    beyond = [
        path
        for path in whole.rglob("*")
        if path != folder and folder not in path.parents and path not in expected
    ]
    names = ", ".join(sorted(path.relative_to(whole).as_posix() for path in beyond))
    require(not beyond, spec, f"it wrote {names}; write only into the folder it is given")
    half = sorted(path.name for path in folder.rglob(".writing-*"))
    require(not half, spec, f"it left {', '.join(half)}; let oaplug.core.artifacts.atomic_path end first")
