"""Names of files and folders that every operating system takes, so that a disk can be shared."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from oaplug.core.errors import DatasetError, PlanError

if TYPE_CHECKING:
    from collections.abc import Iterable

_FORBIDDEN = set('<>:"/\\|?*') | {chr(code) for code in range(32)}
_DEVICES = {"con", "prn", "aux", "nul"} | {f"{name}{n}" for name in ("com", "lpt") for n in range(1, 10)}
_OURS = {"quarantine", "fingerprint"}


def is_portable(name: str) -> bool:
    """Whether a file may begin with `name` on Linux, macOS and Windows."""
    is_hidden_or_cut = not name or name.startswith(".") or name != name.strip() or name.endswith(".")
    return not (is_hidden_or_cut or set(name) & _FORBIDDEN or name.split(".")[0].lower() in _DEVICES)


def check_case_names(case_ids: Iterable[str]) -> None:
    """Raise DatasetError for case ids that cannot be file names everywhere, or that only case tells apart."""
    names = list(case_ids)
    if bad := [name for name in names if not is_portable(name)]:
        raise DatasetError(f"case id {bad[0]!r} cannot be a file name on every system; rename the case")
    folded = Counter(name.casefold() for name in names)
    if twins := sorted(name for name in names if folded[name.casefold()] > 1):
        raise DatasetError(
            f"case ids {' and '.join(map(repr, twins[:2]))} differ only in upper and lower case, which some "
            "disks do not tell apart; rename one"
        )


def check_identifier(name: str) -> None:
    """Raise PlanError for a data_identifier that cannot be a folder of preprocessed cases."""
    if not is_portable(name) or name.lower() in _OURS:
        raise PlanError(f"data_identifier {name!r} cannot be the name of a folder here; choose another one")
