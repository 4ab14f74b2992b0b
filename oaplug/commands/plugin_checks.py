"""The contract checks of installed parts, as `oaplug_plugins --check` runs them."""

from __future__ import annotations

import logging
import traceback
from typing import TYPE_CHECKING

from oaplug.core.errors import PluginError, nearest
from oaplug.plug.plugin import normal_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from oaplug.plug.registry import Part, Registry

log = logging.getLogger(__name__)


def parts_to_check(found: Registry, name: str) -> list[Part]:
    """The parts of a distribution, or those of any kind called `name` or `distribution:name`.

    Raises PluginError where there is none, quoting the distribution's plugin where that is broken.
    """
    plugins = [p for p in found.plugins if normal_name(p.distribution) == normal_name(name)]
    for plugin in plugins:
        if plugin.status != "ok":
            why = f":\n{plugin.traceback.rstrip()}" if plugin.status == "broken" else ""
            raise PluginError(f"the plugin {plugin.distribution} {plugin.version} is {plugin.status}{why}")
    if plugins:
        return [part for plugin in plugins for part in plugin.parts]
    kinds = dict.fromkeys(part.spec.kind for part in found.parts)
    parts = [p for p in found.parts if name in (p.spec.name, p.qualified_name)]
    if not parts and ":" in name:
        return [found.get(kind, name) for kind in kinds]  # which says why there is none
    if not parts:
        known = {p.spec.name for p in found.parts} | {p.distribution for p in found.plugins}
        raise PluginError(f"no part or distribution {name!r}{nearest(name, known)}")
    return [found.get(part.spec.kind, name) for part in parts]  # which refuses a name offered twice


def check_parts(parts: Iterable[Part]) -> list[dict[str, str]]:
    """Per part its kind, name, a status (passed, failed, not checked) and a message."""
    return [{"kind": part.spec.kind, "part": part.qualified_name, **_check(part)} for part in parts]


def _check(part: Part) -> dict[str, str]:
    from oaplug.testing.contract import check_part

    try:
        is_checked = check_part(part.spec)
    except AssertionError as failure:
        return {"status": "failed", "message": str(failure)}
    except PluginError as failure:  # it needs a package that is not here, say
        return {"status": "not checked", "message": str(failure)}
    except (Exception, SystemExit) as failure:
        log.debug("%s", "".join(traceback.format_exception(failure)))
        place = traceback.extract_tb(failure.__traceback__)[-1]
        where = f"{place.filename}, line {place.lineno}"
        return {"status": "failed", "message": f"{type(failure).__name__}: {failure} ({where})"}
    if is_checked:
        return {"status": "passed", "message": ""}
    return {
        "status": "not checked",
        "message": f"it takes data of yours; call oaplug.testing.contract.check_{part.spec.kind} in a test",
    }
