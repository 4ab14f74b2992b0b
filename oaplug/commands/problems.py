"""Problems of cases as people see them: one table of all, and one line."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from oaplug.core.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from oaplug.core.case import Problem


def print_problems(problems: Sequence[Problem]) -> None:
    """A table of all problems."""
    from rich.console import Console
    from rich.table import Table

    from oaplug.prepare.integrity import problem_rows

    table = Table("problem", "case", "file", "what is wrong", show_lines=False)
    for row in problem_rows(problems):
        table.add_row(*row)
    Console(width=None if _is_terminal() else 200, markup=False).print(table)


def _is_terminal() -> bool:
    import sys

    return sys.stdout.isatty()


def refuse(problems: Sequence[Problem], what: str) -> NoReturn:
    """Print a table of all problems; raises DatasetError naming the first of them."""
    from oaplug.prepare.pool import in_one_line

    print_problems(problems)
    hint = "(table above); mend them, or go on without them: --skip-bad"
    raise DatasetError(f"{in_one_line(problems, what)} {hint}")
