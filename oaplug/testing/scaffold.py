"""New plugins: distributions of any kind, written from templates, that install and pass their tests."""

from __future__ import annotations

import keyword
import re
import sys
from dataclasses import dataclass
from datetime import date
from importlib import metadata, resources
from importlib.util import find_spec
from typing import TYPE_CHECKING

from oaplug.core.artifacts import make_folder
from oaplug.core.errors import PathError, PluginError
from oaplug.plug.hookspecs import API_VERSION
from oaplug.plug.plugin import OURS, normal_name

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_DISTRIBUTION = re.compile(r"[a-z0-9]|[a-z0-9][a-z0-9._-]*[a-z0-9]", re.IGNORECASE)
_PART = re.compile(r"[a-z][a-z0-9_]*")
_TRAIN = "oaplug_train DATASET 3d_lowres 0"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What differs between kinds of plugins: what the part does, its module, its libraries, its use."""

    summary: str
    module: str
    libraries: tuple[str, ...]
    usage: str


KINDS = {
    "backbone": Kind(
        summary="3D convolutions that halve the volume, and a mean over what is left",
        module="encoder",
        libraries=("torch>=2.8",),
        usage=f"{_TRAIN} -b PART",
    ),
    "head": Kind(
        summary="one target: softmax, and cross-entropy with label smoothing",
        module="strategy",
        libraries=("torch>=2.8",),
        usage=f"{_TRAIN} --head PART",
    ),
    "analysis": Kind(
        summary="mean absolute error at each true grade",
        module="analysis",
        libraries=("matplotlib>=3.8", "numpy>=1.26"),
        usage="oaplug_analyze -m MODEL_FOLDER -a PART -o REPORT_FOLDER",
    ),
    "converter": Kind(
        summary="a folder of images NAME.nii.gz, and a CSV file with their grades",
        module="converter",
        libraries=(),
        usage="oaplug_convert PART SOURCE_FOLDER -d 360",
    ),
    "callback": Kind(
        summary="a CSV file with a row per epoch",
        module="callback",
        libraries=(),
        usage=f"{_TRAIN} --callback PART",
    ),
}


@dataclass(frozen=True, kw_only=True)
class PluginNames:
    """What a plugin is called: by installers (oaplug-mynet), by Python (oaplug_mynet), in oaplug (mynet)."""

    distribution: str
    package: str
    part: str


def plugin_names(name: str) -> PluginNames:
    """The names that follow from that of a distribution, which is normalised as installers do.

    Raises PluginError for one that no installer takes, or whose package or part could not be found.
    """
    example = "letters, digits and '-', as in oaplug-mynet"
    if not _DISTRIBUTION.fullmatch(name):
        raise PluginError(f"a distribution cannot be called {name!r}: use {example}")
    distribution = normal_name(name)
    package = distribution.replace("-", "_")
    part = package.removeprefix(f"{OURS}_")
    if not _PART.fullmatch(part) or part == OURS:
        raise PluginError(f"{name!r}: its part would be called {part!r}; use {example}")
    is_reserved = package in sys.stdlib_module_names or keyword.iskeyword(package)
    if is_reserved or _is_taken(package, distribution):
        raise PluginError(f"{name!r}: there is a Python package {package!r} already; choose another name")
    return PluginNames(distribution=distribution, package=package, part=part)


def _is_taken(package: str, distribution: str) -> bool:
    """Whether `import package` would find something other than a plugin of this name, installed before."""
    if find_spec(package) is None:
        return False
    try:
        installed = metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return True
    return not installed.entry_points.select(group=OURS)


def usage_of(names: PluginNames, kind: str) -> str:
    """The command that uses a part of a kind."""
    return KINDS[kind].usage.replace("PART", names.part)


def render_plugin(names: PluginNames, kind: str) -> dict[str, str]:
    """The files of a new plugin: their text by their path in its folder."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    words = _words(names, kind)
    folder = resources.files("oaplug.testing").joinpath("templates")
    return {
        path: environment.from_string(folder.joinpath(template).read_text(encoding="utf-8")).render(words)
        for path, template in _templates(names, kind).items()
    }


def _words(names: PluginNames, kind: str) -> dict[str, object]:
    facts = KINDS[kind]
    return {
        "name": names.distribution,
        "package": names.package,
        "part": names.part,
        "kind": kind,
        "article": "an" if kind[0] in "aeiou" else "a",
        "summary": facts.summary,
        "module": facts.module,
        "libraries": facts.libraries,
        "usage": usage_of(names, kind),
        "api": API_VERSION,
        "oaplug_version": ".".join(metadata.version(OURS).split(".")[:2]),
        "year": date.today().year,
    }


def _templates(names: PluginNames, kind: str) -> dict[str, str]:
    """The template of every file."""
    return {
        "setup.cfg": "distribution/setup.cfg.j2",
        "pyproject.toml": "distribution/pyproject.toml.j2",
        "README.md": "distribution/README.md.j2",
        "LICENSE": "distribution/LICENSE.j2",
        ".gitignore": "distribution/gitignore.j2",
        ".github/workflows/test.yml": "distribution/test.yml.j2",
        f"{names.package}/__init__.py": f"{kind}/init.py.j2",
        f"{names.package}/{KINDS[kind].module}.py": f"{kind}/part.py.j2",
        f"tests/test_{names.part}.py": f"{kind}/test.py.j2",
    }


def write_plugin(folder: Path, files: Mapping[str, str]) -> Path:
    """Write files, by their path, into a folder that is new or empty; gives the folder.

    Raises PathError where something is there already: nothing is ever overwritten.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "is not empty" if folder.is_dir() else "is a file"
        raise PathError(f"{folder} {what}; choose another folder with --output")
    for name, text in files.items():
        path = folder / name
        make_folder(path.parent)
        with path.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
    return folder
