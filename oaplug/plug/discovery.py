"""Finding plugins by entry points and loading them, each in a try of its own.

Nothing that a plugin does while it is imported stops the others or the command: exceptions, sys.exit,
printing, changes of directory. What cannot be held up within a process is a crash of the interpreter or
a plugin that never returns; a line names the latter, and it can be disabled without being imported.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import threading
import time
import traceback
import warnings
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, TextIO

from oaplug.core.errors import PluginError
from oaplug.plug.loading import load_specs
from oaplug.plug.plugin import OURS, Part, Plugin, normal_name
from oaplug.plug.surroundings import Surroundings
from oaplug.plug.switches import read_switches

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from oaplug.plug.switches import Switches

log = logging.getLogger(__name__)
GROUP = "oaplug"
NOTICE_AFTER_SECONDS = 5.0
_SECTION = re.compile(rf"^\s*\[\s*{GROUP}\s*\]", re.MULTILINE)
_REASON_CHARACTERS = 300
_Key = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Found:
    """An entry point of which nothing is imported yet; `problem` says why nothing can be."""

    distribution: str
    version: str
    entry_point: metadata.EntryPoint | None = None
    problem: str = ""

    @property
    def label(self) -> str:
        """`distribution version (module)`."""
        value = f" ({self.entry_point.value})" if self.entry_point is not None else ""
        return f"{self.distribution} {self.version}{value}"


def find_plugins() -> list[Found]:
    """The entry points of every installed distribution, the first of each name on sys.path.

    Distributions are read one by one, because one with a malformed entry_points.txt stops
    `importlib.metadata.entry_points`.
    """
    found: dict[str, list[Found]] = {}
    for distribution in metadata.distributions():
        try:
            text = distribution.read_text("entry_points.txt") or ""
        except ValueError as failure:  # not UTF-8
            text, problem = f"[{GROUP}]", f"its entry_points.txt cannot be read: {failure}"
        else:
            problem = ""
        if _SECTION.search(text):
            name, version, lacking = identity(distribution)
            if normal_name(name) not in found:
                one = Found(distribution=name, version=version, problem=problem or lacking)
                found[normal_name(name)] = [one] if one.problem else _entry_points(distribution, one)
    return [one for several in found.values() for one in several]


def identity(distribution: metadata.Distribution) -> tuple[str, str, str]:
    """Name, version, and what is wrong with them; only the header is parsed, not the long description."""
    try:
        text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    except ValueError:
        text = ""
    lines = text.partition("\n\n")[0].splitlines()
    header = {key.strip().lower(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    folder = str(getattr(distribution, "_path", "a distribution without a name"))
    name = header.get("name") or re.split(r"[/\\]", folder)[-1].split("-")[0]
    lacking = [field for field in ("Name", "Version") if not header.get(field.lower())]
    problem = f"its metadata lack {' and '.join(lacking)}; install it again" if lacking else ""
    return name, header.get("version") or "unknown", problem


def _entry_points(distribution: metadata.Distribution, one: Found) -> list[Found]:
    try:
        entry_points = [entry for entry in distribution.entry_points if entry.group == GROUP]
    except Exception as failure:
        problem = f"its entry_points.txt is malformed ({failure}); install it again"
        return [Found(distribution=one.distribution, version=one.version, problem=problem)]
    return [
        Found(distribution=one.distribution, version=one.version, entry_point=entry)
        for entry in sorted(entry_points, key=lambda entry: entry.name)
    ]


def load_plugins(found: Iterable[Found]) -> tuple[Plugin, ...]:
    """Load plugins one by one; a broken one is quarantined with one warning line.

    Raises PluginError where OAPLUG_PLUGINS_STRICT=1 and one is broken.
    """
    switches = read_switches()
    plugins: list[Plugin] = []
    offered: dict[str, set[_Key]] = {}
    for one in sorted(found, key=lambda one: normal_name(one.distribution)):
        status = switches.status_of(one.distribution)
        if status != "ok":
            plugins.append(_describe(one, status=status))
            continue
        plugin = _load(one, switches, offered=offered.setdefault(normal_name(one.distribution), set()))
        plugins.append(plugin)
    return tuple(plugins)


def _load(found: Found, switches: Switches, *, offered: set[_Key]) -> Plugin:
    """One plugin; `offered` holds kind and name of the parts its distribution has already, and grows."""
    stderr, started = sys.stderr, time.perf_counter()
    if switches.is_traced:
        _say(f"oaplug plugin {found.label}: importing", stderr)
    surroundings = Surroundings()
    failure: BaseException | None = None
    parts: tuple[Part, ...] = ()
    try:
        with _notice(found, stderr), surroundings:
            parts = _parts_of(found, offered)
    except KeyboardInterrupt:
        log.warning("interrupted while importing the plugin %s%s", found.label, _way_out(found))
        raise
    except BaseException as raised:  # sys.exit and its like must not end a command
        failure = raised
    seen = {
        "seconds": time.perf_counter() - started,
        "output": surroundings.output,
        "notes": tuple(surroundings.notes),
    }
    if failure is None:
        plugin = _describe(found, status="ok", parts=parts, **seen)
    else:
        plugin = _quarantine(found, failure, is_strict=switches.is_strict, seen=seen)
    if switches.is_traced:
        _trace(plugin, found, stderr)
    return plugin


def _parts_of(found: Found, offered: set[_Key]) -> tuple[Part, ...]:
    if found.entry_point is None or found.problem:
        raise PluginError(found.problem)
    specs = load_specs(found.entry_point)
    keys: set[_Key] = set()
    for spec in specs:
        key = (spec.kind, spec.name)
        if key in keys or key in offered:
            raise PluginError(f"{found.distribution} offers the {spec.kind} {spec.name!r} twice")
        keys.add(key)
    offered |= keys
    return tuple(Part(spec=spec, distribution=found.distribution, version=found.version) for spec in specs)


@contextlib.contextmanager
def _notice(found: Found, stderr: TextIO | None) -> Iterator[None]:
    """Say so on standard error when a plugin takes long, from a thread: its code has this one."""
    text = f"still importing the plugin {found.label} after {NOTICE_AFTER_SECONDS:g} s{_way_out(found)}"
    timer = threading.Timer(NOTICE_AFTER_SECONDS, _say, (text, stderr))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join(timeout=1)


def _way_out(found: Found) -> str:
    if normal_name(found.distribution) == OURS:
        return ""
    return f"; to do without it: Ctrl-C, then oaplug_plugins --disable {found.distribution}"


def _quarantine(found: Found, failure: BaseException, *, is_strict: bool, seen: dict[str, Any]) -> Plugin:
    reason = _one_line(failure)
    if is_strict:
        raise PluginError(f"the plugin {found.label} is broken: {reason}") from failure
    text = "".join(traceback.format_exception(failure))
    warnings.warn(
        f"oaplug plugin {found.distribution} is left out: {reason}; see oaplug_plugins", stacklevel=2
    )
    log.debug("plugin %s is left out\n%s", found.label, text)
    return _describe(found, status="broken", reason=reason, traceback=text, **seen)


def _one_line(failure: BaseException) -> str:
    try:
        message = " ".join(str(failure).split())
    except Exception:
        message = "(its message cannot be shown)"
    if isinstance(failure, SystemExit):
        message = f"its import ends the program (sys.exit({failure.code!r}))"
    if len(message) > _REASON_CHARACTERS:
        message = f"{message[:_REASON_CHARACTERS]} ..."
    if isinstance(failure, PluginError):
        return message
    return f"{type(failure).__name__}: {message}" if message else type(failure).__name__


def _describe(found: Found, **known: Any) -> Plugin:
    value = found.entry_point.value if found.entry_point is not None else ""
    return Plugin(distribution=found.distribution, version=found.version, entry_point=value, **known)


def _trace(plugin: Plugin, found: Found, stderr: TextIO | None) -> None:
    module = found.entry_point.value.partition(":")[0].strip() if found.entry_point is not None else ""
    where = getattr(sys.modules.get(module), "__file__", None) or "not imported"
    gave = ", ".join(f"{part.spec.kind} {part.spec.name}" for part in plugin.parts) or "no part"
    lines = [f"{plugin.seconds * 1000:.0f} ms, {where}, {plugin.reason or gave}", *plugin.notes]
    lines += [f"| {line}" for line in plugin.output.splitlines()]
    for line in lines:
        _say(f"oaplug plugin {found.label}: {line}", stderr)


def _say(text: str, stream: TextIO | None) -> None:
    """A line on standard error, which is a plugin's while it is imported: logging would not reach it."""
    if stream is not None:
        print(text, file=stream, flush=True)
