"""The walk from left to right is kept: who imports whom, and what importing costs."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from configparser import ConfigParser
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WALK = ("core", "plug", "prepare", "feed", "model", "train", "infer", "study", "commands")
ENGINE = {room: {"oaplug." + left for left in WALK[: place + 1]} for place, room in enumerate(WALK)}
ENGINE["infer"] -= {"oaplug.train"}
ENGINE["commands"] |= {"oaplug.testing"}
ENGINE["testing"] = {f"oaplug.{room}" for room in ("core", "plug", "prepare", "model", "testing")}
FOR_PLUGINS = {"oaplug.core", "oaplug.plug"}
HEAVY = {
    *("numpy", "torch", "pandas", "scipy", "sklearn", "SimpleITK", "matplotlib", "blosc2", "pluggy"),
    *("monai", "safetensors", "pydantic", "rich", "jinja2"),
}


def setup():
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def plugin_packages():
    places = dict(line.split(" = ") for line in setup()["options"]["package_dir"].split("\n") if line)
    return {name: ROOT / place for name, place in places.items() if name != "oaplug"}


def imported(source):
    """Every module a source imports, wherever in it; `from a import b` counts as both a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            names |= {a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)}
    return names


def ours(names):
    """Names of our packages among imported ones, cut to package and room: oaplug.core, oaplug_heads."""
    plugins = plugin_packages()
    cut = {".".join(name.split(".")[:2]) for name in names if name.split(".")[0] == "oaplug"}
    return cut | {name.split(".")[0] for name in names if name.split(".")[0] in plugins}


def wrong_imports(source, *, allowed):
    """Imports of our packages beyond `allowed`; `import oaplug` alone, which is the version, is free."""
    return ours(imported(source)) - set(allowed) - {"oaplug", "oaplug.__version__"}


FILES = [
    pytest.param(path.relative_to(ROOT / "oaplug").parts[0], path, id=path.relative_to(ROOT).as_posix())
    for path in sorted((ROOT / "oaplug").glob("*/**/*.py"))
]


@pytest.mark.parametrize(("room", "path"), FILES)
def test_a_package_imports_only_from_its_left(room, path):
    assert not wrong_imports(path.read_text("utf-8"), allowed=ENGINE[room])


def test_every_folder_of_the_engine_is_on_the_walk():
    folders = {path.parent.name for path in (ROOT / "oaplug").glob("*/__init__.py")}
    assert folders == set(ENGINE)


def test_plugins_import_core_plug_and_the_descriptions_of_data_sets_only():
    for name, folder in plugin_packages().items():
        allowed = FOR_PLUGINS | {name, "oaplug_datasets_meta"}
        for path in folder.rglob("*.py"):
            assert not wrong_imports(path.read_text("utf-8"), allowed=allowed), path.relative_to(ROOT)


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("core", "from oaplug.plug import specs"),
        ("prepare", "def f():\n    from oaplug.train.fold import train_fold"),
        ("infer", "import oaplug.train.trainer"),
        ("train", "from oaplug.infer import predictor"),
        ("study", "from oaplug import commands"),
        ("study", "import oaplug.testing.toy as toy"),
        ("train", "if TYPE_CHECKING:\n    from oaplug_heads.dual import DualHead"),
        ("model", "importlib.import_module('oaplug_backbones.resnet3d')"),
    ],
)
def test_a_forbidden_import_would_be_seen(room, source):
    assert wrong_imports(source, allowed=ENGINE[room])


def test_no_module_is_a_drawer_for_odds_and_ends():
    names = {path.stem for path in (ROOT / "oaplug").rglob("*.py")}
    assert not names & {"utils", "util", "helpers", "manager", "handler", "misc", "common"}


def run_python(*arguments):
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def heavy_in(modules):
    return HEAVY & {name.split(".")[0] for name in modules}


def modules_after(code):
    """Top modules that are loaded once `code` has run in a new process."""
    done = run_python(
        "-c", f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    return json.loads(done.stderr.splitlines()[-1])


def console_scripts():
    lines = setup()["options.entry_points"]["console_scripts"].strip().splitlines()
    return dict(line.split(" = ") for line in lines)


def test_every_console_script_is_a_function_that_exists_and_every_verb_has_one():
    from oaplug.commands.oaplug import VERBS

    scripts = console_scripts()
    assert set(scripts) == {"oaplug", *(f"oaplug_{verb}" for verb in VERBS)}
    for name, target in scripts.items():
        module, function = target.split(":")
        assert callable(getattr(import_module(module), function)), name
        assert module.removeprefix("oaplug.commands.") == name.removeprefix("oaplug_")


def test_help_of_training_imports_nothing_heavy():
    done = run_python("-X", "importtime", "-m", "oaplug", "train", "--help")
    assert "--set" in done.stdout
    modules = [line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if "|" in line]
    assert "oaplug.commands.shell" in modules, "the list of modules was read"
    assert not heavy_in(modules)


EVERY_HELP = """
import contextlib
from oaplug.commands.oaplug import VERBS, main
main(["--help"])
for verb in VERBS:
    with contextlib.suppress(SystemExit):
        main([verb, "--help"])
"""


def test_help_of_every_command_imports_nothing_heavy():
    modules = modules_after(EVERY_HELP)
    assert {f"oaplug.commands.{name.removeprefix('oaplug_')}" for name in console_scripts()} <= set(modules)
    assert not heavy_in(modules)


def test_importing_oaplug_imports_nothing_heavy():
    assert not heavy_in(modules_after("import oaplug; oaplug.__version__; dir(oaplug)"))


def test_listing_parts_imports_no_torch():
    modules = modules_after("from oaplug.plug.registry import registry; assert len(registry().parts) > 5")
    assert heavy_in(modules) <= {"pluggy"}


def test_importing_every_command_and_the_whole_engine_raises_no_warning():
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((ROOT / "oaplug").rglob("*.py"))
        if path.name != "__main__.py"
    ]
    run_python("-W", "error", "-c", f"import importlib\nfor n in {names}: importlib.import_module(n)")
