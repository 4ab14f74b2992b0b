"""What `oaplug_doctor` looks at: each check is a function that gives one row of its table."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from oaplug.core.errors import OaplugError

if TYPE_CHECKING:
    from collections.abc import Callable

    from oaplug.core.paths import Places

Status = Literal["ok", "warn", "fail"]

OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 13)
MEMORY_GIB, DISK_GIB = 8.0, 10.0
"""Below these, the study's volumes and models are a tight fit."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """What was looked at, how it is, what was found, and what to do about it."""

    name: str
    status: Status
    found: str
    advice: str = ""


def check_installation(places: Places, *, device: str | None) -> list[Check]:
    """Every check; one that fails unexpectedly is a row too."""
    checks: dict[str, Callable[[], Check]] = {
        "python": check_python,
        "torch": check_torch,
        "device": partial(check_device, device),
        "monai": check_monai,
        "blosc2": check_blosc2,
        "plugins": check_plugins,
        "threads": check_threads,
        "memory": check_memory,
        **{kind: partial(check_place, places, kind) for kind in ("raw", "preprocessed", "results")},
    }
    return [_run(name, check) for name, check in checks.items()]


def _run(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except OaplugError as failure:
        return Check(name=name, status="fail", found=str(failure))
    except Exception as failure:  # whatever is broken here is what the doctor was asked about
        found = f"{type(failure).__name__}: {' '.join(str(failure).split())[:200]}"
        return Check(name=name, status="fail", found=found, advice="pip install --force-reinstall oaplug")


def check_python(version: tuple[int, ...] = tuple(sys.version_info[:2])) -> Check:
    """Whether this Python is one that oaplug is tested with."""
    found = f"{'.'.join(map(str, version))}, {platform.platform()}"
    if version < OLDEST_PYTHON:
        return Check(name="python", status="fail", found=found, advice="install Python 3.10 to 3.13")
    if version > NEWEST_PYTHON:
        return Check(name="python", status="warn", found=found, advice="tested with Python 3.10 to 3.13")
    return Check(name="python", status="ok", found=found)


def check_torch() -> Check:
    """Whether torch computes a gradient of a 3D convolution."""
    import torch

    weight = torch.ones(1, 1, 3, 3, 3, requires_grad=True)
    torch.nn.functional.conv3d(torch.ones(1, 1, 4, 4, 4), weight).sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    is_right = bool((weight.grad == 8).all())
    return Check(
        name="torch",
        status="ok" if is_right else "fail",
        found=f"{torch.__version__}, gradients {'right' if is_right else 'wrong'}",
        advice="" if is_right else "install another build of torch",
    )


def check_device(name: str | None) -> Check:
    """The device that would be trained on, and its free memory."""
    import torch

    from oaplug.model.precision import choose_device

    device = choose_device(name)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        found = f"{torch.cuda.get_device_name(device)}, {_gib(free)} of {_gib(total)} free"
        torch.ones(4, device=device).sum().item()
        return Check(name="device", status="ok", found=found)
    if device.type == "cpu" and name is None:
        advice = "training whole volumes is slow; with a GPU, install a build of torch for it"
        return Check(name="device", status="warn", found="cpu, no GPU is seen", advice=advice)
    return Check(name="device", status="ok", found=str(device))


def check_monai() -> Check:
    """Whether MONAI, of which some backbones are made, imports."""
    import monai
    from monai.networks.nets import resnet

    assert resnet
    return Check(name="monai", status="ok", found=str(monai.__version__))


def check_blosc2() -> Check:
    """Whether a volume can be written and read back in a temporary folder."""
    import blosc2
    import numpy as np

    from oaplug.prepare.store import read_array, write_array

    volume = np.arange(960, dtype=np.float16).reshape(1, 8, 10, 12)
    with tempfile.TemporaryDirectory() as folder:
        came_back = read_array(write_array(Path(folder) / "volume.b2nd", volume))
    is_same = np.array_equal(came_back, volume)
    return Check(
        name="blosc2",
        status="ok" if is_same else "fail",
        found=f"{blosc2.__version__}, a volume {'came' if is_same else 'did not come'} back",
        advice="" if is_same else "pip install --force-reinstall blosc2",
    )


def check_plugins() -> Check:
    """Whether every plugin could be imported."""
    from oaplug.plug.registry import registry

    found = registry()
    broken = sorted({plugin.distribution for plugin in found.quarantined})
    if broken:
        return Check(
            name="plugins",
            status="fail",
            found=f"broken: {', '.join(broken)}",
            advice="oaplug_plugins shows why; oaplug_plugins --disable NAME leaves one out",
        )
    distributions = {plugin.distribution for plugin in found.plugins}
    return Check(
        name="plugins", status="ok", found=f"{len(found.parts)} parts of {', '.join(sorted(distributions))}"
    )


def check_threads() -> Check:
    """CPU threads of torch, against the processors this process may use."""
    import torch

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    found = f"torch uses {threads}, the system allows {usable}"
    if threads > usable:
        advice = f"export OMP_NUM_THREADS={usable}, or set training.threads"
        return Check(name="threads", status="warn", found=found, advice=advice)
    return Check(name="threads", status="ok", found=found)


def check_memory() -> Check:
    """Memory that can be taken without swapping."""
    from oaplug.feed.memory import available_memory_bytes

    available = available_memory_bytes()
    if available < MEMORY_GIB * 2**30:
        advice = f"below {MEMORY_GIB:.0f} GiB use 3d_lowres and a small training.batch_size"
        return Check(name="memory", status="warn", found=f"{_gib(available)} available", advice=advice)
    return Check(name="memory", status="ok", found=f"{_gib(available)} available")


def check_place(places: Places, kind: str) -> Check:
    """One of the three roots: set, there, writable, with room."""
    variable = f"oaplug_{kind}"
    try:
        folder: Path = getattr(places, kind)
    except OaplugError:
        advice = f"export {variable}=FOLDER, or pass --{kind} to every command"
        return Check(name=variable, status="warn", found="not set", advice=advice)
    if not folder.is_dir():
        advice = "create the folder, or check its name"
        return Check(name=variable, status="warn", found=f"{folder} does not exist", advice=advice)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"oaplug")
    except OSError as failure:
        advice = "choose a folder that you may write into"
        found = f"{folder} is not writable ({failure.strerror})"
        return Check(name=variable, status="fail", found=found, advice=advice)
    free = shutil.disk_usage(folder).free
    found = f"{folder}, {_gib(free)} free"
    if free < DISK_GIB * 2**30:
        return Check(name=variable, status="warn", found=found, advice="a data set and its models need more")
    return Check(name=variable, status="ok", found=found)


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"
