"""What plugins.md promises to plugins of others: every name is there, and what we show them uses no other."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from types import ModuleType

import pytest
from documents import DOCS, ROOT, code_blocks, quoted, table
from test_hook_pages import GIVEN, HOOK_NAMES, Fake, page_of

import oaplug
import oaplug.plug
import oaplug.testing.contract
from oaplug.plug import protocols
from oaplug.plug.loading import load_specs
from oaplug.testing import scaffold
from oaplug.testing.contract import check_backbone

TUTORIAL = DOCS / "plugins_tutorial.md"
LINES_OF_A_BACKBONE = 40


def promised():
    """Names by module of the table of what stays compatible."""
    rows = table(DOCS / "plugins.md", "Compatibility", first="module")
    return {quoted(module)[0]: set(quoted(names)) for module, names in rows}


def test_every_promised_name_exists():
    for module, names in promised().items():
        there = importlib.import_module(module)
        assert not [name for name in names if not hasattr(there, name)], module


def test_whole_public_modules_are_promised():
    names = promised()
    assert names["oaplug.plug"] == set(oaplug.plug.__all__)
    assert names["oaplug.testing.contract"] == set(oaplug.testing.contract.__all__)
    assert names["oaplug"] == {name for name in oaplug.__all__ if name.startswith(("create", "list", "load"))}
    kinds = inspect.getmembers(protocols, inspect.isclass)
    public = {n for n, k in kinds if k.__module__ == protocols.__name__ and not n.startswith("_")}
    assert names["oaplug.plug.protocols"] == public


def test_what_pages_say_that_parts_are_given_is_promised():
    names = set().union(*promised().values())
    classes = {k.__name__ for headings in GIVEN.values() for kinds in headings.values() for k in kinds}
    assert classes | {"RawFolder"} <= names


def uses(source):
    """Names of oaplug that a source imports, and attributes of `import oaplug`, as (module, name)."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "oaplug":
            found |= {(node.module, alias.name) for alias in node.names}
        elif (
            isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "oaplug"
        ):
            found.add(("oaplug", node.attr))
    return found


SOURCES = {
    **{path.name: path for path in sorted((ROOT / "examples" / "oaplug-convnext3d").rglob("*.py"))},
    **{f"hooks/{page_of(hook).name}": page_of(hook) for hook in HOOK_NAMES},
    TUTORIAL.name: TUTORIAL,
}


@pytest.mark.parametrize("name", [*SOURCES, *scaffold.KINDS])
def test_plugins_that_we_show_or_write_use_only_what_is_promised(name):
    if name in scaffold.KINDS:
        files = scaffold.render_plugin(scaffold.plugin_names("oaplug-mynet"), name)
        texts = [text for path, text in files.items() if path.endswith(".py")]
    else:
        path = SOURCES[name]
        texts = [path.read_text("utf-8")] if path.suffix == ".py" else code_blocks(path, "python")
    used = set().union(*map(uses, texts))
    assert used or name == "network.py"
    known = promised()
    assert not [f"{module}.{name}" for module, name in used if name not in known.get(module, ())]


def lines_of(text):
    return [line for line in text.splitlines() if line.strip()]


def test_a_working_backbone_takes_at_most_40_lines_packaging_included():
    blocks = [code_blocks(TUTORIAL, language) for language in ("python", "ini", "toml")]
    assert [len(block) for block in blocks] == [1, 1, 1]
    count = sum(len(lines_of(block)) for (block,) in blocks)
    assert f"{count} lines" in TUTORIAL.read_text("utf-8")
    assert count <= LINES_OF_A_BACKBONE


def test_the_backbone_of_the_tutorial_is_found_and_keeps_its_contract(monkeypatch):
    (block,) = code_blocks(TUTORIAL, "python")
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    exec(compile(block, TUTORIAL.name, "exec", dont_inherit=True), module.__dict__)
    (spec,) = load_specs(Fake(module))
    check_backbone(spec)
    check_backbone(spec, {"width": 4})
