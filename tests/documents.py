"""README and docs as data: their tables, code blocks and links; and the parsers of the commands they show."""

from __future__ import annotations

import importlib
import re
import shlex
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from oaplug.commands.oaplug import VERBS

if TYPE_CHECKING:
    import argparse

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = ROOT / "docs"


def pages() -> list[Path]:
    """Every page that people read."""
    here = [README, ROOT / "CHANGELOG.md", *(ROOT / "benchmarks").glob("*.md")]
    return sorted([*here, *DOCS.rglob("*.md"), *(ROOT / "examples").rglob("*.md")])


def sections(path: Path) -> dict[str, str]:
    """The text below each heading of a page, code blocks and all."""
    parts = re.split(r"^#+ (.+)$", _without_code(path.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def table(path: Path, heading: str, *, first: str) -> list[list[str]]:
    """Rows of the table below a heading whose first column is called `first`."""
    found: list[list[str]] = []
    inside = False
    for line in sections(path)[heading].splitlines():
        if not line.startswith("|"):
            inside = False
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip()[1:-1])]
        if inside and not set(cells[0]) <= {"-"}:
            found.append(cells)
        inside = inside or cells[0] == first
    assert found, f"{path.name} has no table of {first!r} below {heading!r}"
    return found


def quoted(cell: str) -> list[str]:
    """Every `word` of a cell."""
    return [text.replace("\\|", "|") for text in re.findall(r"`([^`]+)`", cell)]


def code_blocks(path: Path, language: str) -> list[str]:
    """The code blocks of a page in a language."""
    return re.findall(
        rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def shell_lines(path: Path) -> list[list[str]]:
    """Every command of a page's bash blocks, split into words, comments and continuations resolved."""
    text = "\n".join(code_blocks(path, "bash")).replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    return [words for words in lines if words]


@cache
def command_parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of every command, by program name."""
    parsers: dict[str, argparse.ArgumentParser] = {}
    for verb in VERBS:
        module = importlib.import_module(f"oaplug.commands.{verb}")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                module, "run_command", lambda parser, *_: parsers.update({parser.prog: parser}) or 0
            )
            module.main([])
    return parsers
