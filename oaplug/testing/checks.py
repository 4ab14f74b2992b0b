"""Checks that parts of every kind share. A failed one is an AssertionError that says what to change."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from oaplug.core.errors import OaplugError
from oaplug.core.settings import to_mapping
from oaplug.plug.loading import HOOKS
from oaplug.plug.registry import parse_options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from oaplug.plug.specs import Spec

SLOW_TO_IMPORT = ("torch", "monai", "pandas", "scipy", "sklearn", "SimpleITK", "matplotlib")
"""What `build` imports, so that listing parts does not wait for it."""
_IMPORT = """
import importlib, json, sys
name, sys.path[:], slow = json.loads(sys.argv[1])
importlib.import_module(name)
print(json.dumps([module for module in slow if module in sys.modules]))
"""


def require(condition: bool, spec: Spec, message: str) -> None:
    """Raise an AssertionError that names the part where `condition` does not hold."""
    if not condition:
        raise AssertionError(f"{spec.kind} {spec.name}: {message}")


def one_line(failure: BaseException) -> str:
    """What an exception is and says, in one line."""
    return f"{type(failure).__name__}: {' '.join(str(failure).split())}"


def check_options(spec: Spec, options: Mapping[str, Any] | None) -> Any:
    """Options, parsed: all have defaults, and come back from JSON as they went in (plans keep them so)."""
    try:
        parse_options(spec, None)
        parsed = parse_options(spec, options)
        written = json.loads(json.dumps(to_mapping(parsed)))
        again = parse_options(spec, written)
    except (OaplugError, TypeError) as failure:
        raise AssertionError(
            f"{spec.kind} {spec.name}: options cannot be read from JSON ({failure}); give every field a "
            "default, and use numbers, strings, bools, None, and tuples, lists or dicts of them"
        ) from failure
    require(
        again == parsed, spec, f"options do not survive JSON: {parsed} became {again}; compare them by value"
    )
    return parsed


def check_import(spec: Spec) -> None:
    """The module that `build` is in is imported to list parts: it must import no slow library.

    Builders that belong to no plugin (defined in a test, say) are left alone.
    """
    module = getattr(spec.build, "__module__", None) or ""
    if not _belongs_to_a_plugin(module):
        return
    problem, slow = _imported_by(module)
    require(not problem, spec, f"{module} cannot be imported in a new process ({problem})")
    require(
        not slow,
        spec,
        f"importing {module} imports {', '.join(slow)}, for which every listing of parts would wait; "
        "import them inside build",
    )


def _belongs_to_a_plugin(module: str) -> bool:
    """Whether a module, or a package it is in, is loaded from a file and has hooks of oaplug."""
    names = module.split(".")
    loaded = [sys.modules.get(".".join(names[: depth + 1])) for depth in range(len(names))]
    if loaded[-1] is None or getattr(loaded[-1], "__spec__", None) is None:
        return False
    return any(hasattr(one, hook) for one in loaded for hook in HOOKS)


@lru_cache(maxsize=64)
def _imported_by(module: str) -> tuple[str, tuple[str, ...]]:
    """Why a module cannot be imported in a new process, or "", and the slow libraries it imports."""
    given = json.dumps([module, sys.path, SLOW_TO_IMPORT])
    done = subprocess.run([sys.executable, "-c", _IMPORT, given], capture_output=True, text=True, check=False)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["no message"])[-1], ()
    return "", tuple(json.loads(done.stdout.splitlines()[-1]))
