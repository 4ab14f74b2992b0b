"""oaplug_new_plugin writes whole distributions of every kind, and never touches what is there."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import EntryPoint

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from oaplug.commands import new_plugin
from oaplug.core.errors import PluginError
from oaplug.plug import NoOptions, Spec
from oaplug.plug.registry import discover
from oaplug.testing import scaffold

RUFF = ("--isolated", "--line-length", "110")
LINT = ("--select", "E,F,W,I,B,UP,SIM,RET,PT,RUF,ANN", "--ignore", "ANN401")
IMPORTED = """
import importlib, json, sys
sys.path[:0] = json.loads(sys.argv[1])
for package in json.loads(sys.argv[2]):
    importlib.import_module(package)
print(json.dumps(sorted(sys.modules)))
"""


@pytest.fixture(scope="module")
def plugins(tmp_path_factory):
    """The folder of a new plugin by its kind; that of kind head is called oaplug-my-head."""
    root = tmp_path_factory.mktemp("plugins")
    folders = {kind: root / kind for kind in scaffold.KINDS}
    for kind, folder in folders.items():
        assert new_plugin.main([f"oaplug-my-{kind}", "--kind", kind, "--output", str(folder)]) == 0
    return folders


def of_every_kind(function):
    return pytest.mark.parametrize("kind", scaffold.KINDS)(function)


def setup_of(folder):
    parser = ConfigParser()
    parser.read(folder / "setup.cfg", encoding="utf-8")
    return parser


def test_the_command_offers_every_kind_that_can_be_written():
    assert list(scaffold.KINDS) == list(new_plugin.KINDS)


@of_every_kind
def test_a_new_plugin_is_a_whole_distribution(plugins, kind):
    folder, package = plugins[kind], f"oaplug_my_{kind}"
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert written >= {"setup.cfg", "pyproject.toml", "README.md", "LICENSE", ".github/workflows/test.yml"}
    assert written >= {f"{package}/__init__.py", f"tests/test_my_{kind}.py"}
    setup = setup_of(folder)
    assert (setup["metadata"]["name"], setup["options"]["packages"]) == (f"oaplug-my-{kind}", package)
    assert setup["options.entry_points"]["oaplug"].strip() == f"my_{kind} = {package}"
    needed = [Requirement(line) for line in setup["options"]["install_requires"].split("\n") if line]
    assert needed[0].name == "oaplug"
    assert needed[0].specifier.contains("0.1.0")
    assert all(path.read_text("utf-8").strip() for path in folder.rglob("*") if path.is_file())


@of_every_kind
def test_a_new_plugin_requires_every_library_that_it_imports(plugins, kind):
    """What numpy, SimpleITK and torch are to its tests, they are by way of oaplug."""
    folder, package = plugins[kind], f"oaplug_my_{kind}"
    imported = set()
    for path in (folder / package).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                imported.add((getattr(node, "module", None) or node.names[0].name).split(".")[0])
    lines = setup_of(folder)["options"]["install_requires"].split("\n")
    required = {Requirement(line).name for line in lines if line}
    assert imported - set(sys.stdlib_module_names) - {package} == required


@of_every_kind
def test_a_new_plugin_is_formatted_and_has_nothing_for_a_linter_to_say(plugins, kind):
    for arguments in (["check", "-q", *LINT], ["format", "-q", "--diff"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *arguments, *RUFF, "."],
            cwd=plugins[kind],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


@of_every_kind
def test_the_part_of_a_new_plugin_is_found_with_options_of_its_own(plugins, kind, monkeypatch):
    monkeypatch.syspath_prepend(plugins[kind])
    package = f"oaplug_my_{kind}"
    found = discover([EntryPoint(name=f"my_{kind}", value=package, group="oaplug")])
    assert not found.quarantined
    (part,) = found.of_kind(kind)
    assert isinstance(part.spec, Spec)
    assert part.spec.name == f"my_{kind}"
    assert part.spec.summary in (plugins[kind] / "README.md").read_text("utf-8")
    assert part.spec.options is not NoOptions


def test_importing_new_plugins_imports_no_heavy_library(plugins):
    given = [json.dumps([*map(str, plugins.values())]), json.dumps([f"oaplug_my_{kind}" for kind in plugins])]
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED, *given], capture_output=True, text=True, check=True, timeout=60
    )
    modules = set(json.loads(done.stdout))
    assert {f"oaplug_my_{kind}" for kind in plugins} <= modules
    assert not modules & {"torch", "numpy", "matplotlib", "SimpleITK", "scipy", "pandas"}


def test_the_command_says_what_to_run_next(tmp_path, capsys):
    assert new_plugin.main(["oaplug-mynet", "--kind", "backbone", "--output", str(tmp_path / "new")]) == 0
    said = capsys.readouterr().out
    assert f"result: {tmp_path / 'new'} (backbone mynet, package oaplug_mynet)" in said
    assert f"cd {tmp_path / 'new'}" in said
    assert "python -m pip install -e '.[test]'" in said
    assert "python -m pytest" in said
    assert "oaplug_train DATASET 3d_lowres 0 -b mynet" in said


def test_without_an_output_the_folder_is_called_like_the_distribution(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert new_plugin.main(["OAplug_My.Net", "--kind", "head"]) == 0
    assert (tmp_path / "oaplug-my-net" / "oaplug_my_net" / "__init__.py").is_file()


@pytest.mark.parametrize(
    ("name", "package", "part"),
    [
        ("oaplug-mynet", "oaplug_mynet", "mynet"),
        ("OAplug_My.Net", "oaplug_my_net", "my_net"),
        ("oaplug-v3--d-net", "oaplug_v3_d_net", "v3_d_net"),
        ("mynet", "mynet", "mynet"),
        ("oaplugin", "oaplugin", "oaplugin"),
    ],
)
def test_package_and_part_follow_from_the_name(name, package, part):
    names = scaffold.plugin_names(name)
    assert (names.package, names.part) == (package, part)


@given(st.text(alphabet=st.sampled_from("aoplug-z09._ Ä/\n"), max_size=20))
@example("oaplug-oaplug")
@example("oaplug-a\n")
def test_a_name_is_refused_or_gives_names_that_python_installers_and_oaplug_take(name):
    try:
        names = scaffold.plugin_names(name)
    except PluginError:
        return
    assert names.distribution == canonicalize_name(name, validate=True)
    assert names.package.isidentifier()
    assert canonicalize_name(names.package) == names.distribution
    assert Spec(name=names.part, summary="", build=print).name == names.part


@pytest.mark.parametrize(
    "name",
    [
        *("oaplug", "oaplug-3d", "3d", "my net", "../mynet", "oaplug-mynet-", "oaplug/net", "", "oaplug-ä"),
        *("json", "numpy", "oaplug-heads", "OAplug.Heads", "class"),
    ],
)
def test_a_name_that_cannot_be_is_refused_in_one_line(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert new_plugin.main([name, "--kind", "head"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert repr(name) in line
    assert not list(tmp_path.iterdir())


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("place", ["full", "full/notes.txt"])
def test_an_existing_folder_or_file_is_refused_and_left_as_it_is(place, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    assert new_plugin.main(["oaplug-mynet", "--kind", "backbone", "--output", str(tmp_path / place)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / place) in line
    assert "--output" in line
    assert contents(tmp_path) == before


def test_writing_twice_is_refused_and_an_empty_folder_is_not(tmp_path):
    arguments = ["oaplug-mynet", "--kind", "callback", "--output", str(tmp_path)]
    assert new_plugin.main(arguments) == 0
    before = contents(tmp_path)
    assert new_plugin.main(arguments) == 2
    assert contents(tmp_path) == before


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path):
    class Files(dict):
        def items(self):
            yield "first.py", "x = 1\n"
            (tmp_path / "new" / "second.py").write_text("mine")
            yield "second.py", "x = 2\n"

    with pytest.raises(FileExistsError):
        scaffold.write_plugin(tmp_path / "new", Files())
    assert (tmp_path / "new" / "second.py").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    folder = str(tmp_path / "file" / "new")
    assert new_plugin.main(["oaplug-mynet", "--kind", "head", "--output", folder]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
