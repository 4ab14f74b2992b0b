"""Commands from outside: help, versions, the dispatcher, and what is listed."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from importlib import import_module, metadata

import pytest

from oaplug.commands import convert, make_phantom, plugins
from oaplug.commands import oaplug as dispatcher
from oaplug.commands.shell import Parser, Progress, run_command
from oaplug.core.dataset import open_dataset
from oaplug.core.errors import PathError
from oaplug.plug import registry as registry_module
from oaplug.plug.registry import discover

VERBS = list(dispatcher.VERBS)


def parser_of(verb, monkeypatch):
    """The parser that a command hands to run_command."""
    module, seen = import_module(f"oaplug.commands.{verb}"), []
    monkeypatch.setattr(module, "run_command", lambda parser, work, arguments: seen.append(parser) or 0)
    assert module.main([]) == 0
    return seen[0]


@pytest.mark.parametrize("verb", VERBS)
def test_help_exits_with_0_and_describes_every_option(verb, monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        dispatcher.main([verb, "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: oaplug_{verb} ")
    for action in parser_of(verb, monkeypatch)._actions:
        assert action.help, f"{action.dest} has no help"
        for option in action.option_strings:
            assert re.search(rf"^  .*{re.escape(option)}\b", shown, re.MULTILINE), option


@pytest.mark.parametrize("verb", VERBS)
def test_a_command_is_called_by_its_installed_name(verb, monkeypatch):
    parser = parser_of(verb, monkeypatch)
    assert parser.prog == f"oaplug_{verb}"
    assert parser.description.startswith(f"oaplug_{verb}: ")


def test_the_dispatcher_lists_every_verb(capsys):
    for arguments in ([], ["--help"], ["-h"]):
        assert dispatcher.main(arguments) == 0
        shown = capsys.readouterr().out
        for verb in VERBS:
            assert re.search(rf"^  {verb}\s+\w", shown, re.MULTILINE), verb


def test_the_dispatcher_takes_dashes_for_underscores(capsys):
    with pytest.raises(SystemExit) as end:
        dispatcher.main(["plan-and-preprocess", "--help"])
    assert end.value.code == 0
    assert "oaplug_plan_and_preprocess" in capsys.readouterr().out


def test_python_dash_m_gives_the_version_of_the_distribution():
    done = subprocess.run(
        [sys.executable, "-m", "oaplug", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"oaplug {metadata.version('oaplug')}\n"


def test_plugins_as_json_lists_every_part_with_its_distribution(capsys):
    assert plugins.main(["--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["quarantined"] == []
    parts = {(part["kind"], part["name"]): part for part in content["parts"]}
    assert {("backbone", "resnet3d"), ("head", "dual"), ("analysis", "classification")} <= set(parts)
    assert {("converter", "phantom"), ("callback", "tensorboard")} <= set(parts)
    for part in parts.values():
        assert (part["distribution"], part["version"]) == ("oaplug", metadata.version("oaplug"))
        assert part["summary"]
        assert part["revision"] >= 1


def test_plugins_as_a_table_names_every_part(capsys):
    assert plugins.main([]) == 0
    shown = capsys.readouterr().out
    for part in registry_module.registry().parts:
        assert part.spec.name in shown


def test_a_broken_plugin_is_listed_with_its_traceback_and_exit_status_1(monkeypatch, capsys):
    class Broken:
        name, group, value, dist = "broken", "oaplug", "no_such_module_at_all", None

        def load(self):
            return import_module(self.value)

    with pytest.warns(UserWarning, match="no_such_module_at_all is left out: ModuleNotFoundError"):
        found = discover([*metadata.entry_points(group="oaplug"), Broken()])
    monkeypatch.setattr(registry_module, "registry", lambda: found)
    assert plugins.main([]) == 1
    shown = capsys.readouterr().out
    assert "Traceback" in shown
    assert "resnet3d" in shown, "the others are there all the same"
    assert plugins.main(["--json"]) == 1
    (broken,) = json.loads(capsys.readouterr().out)["quarantined"]
    assert "no_such_module_at_all" in broken["reason"]


def test_a_phantom_dataset_is_made_and_can_be_opened(tmp_path, capsys):
    arguments = ["-d", "77", "--name", "Tiny", "--cases", "4", "--shape", "12", "16", "14", "-np", "1"]
    assert make_phantom.main([*arguments, "--raw", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "4 cases written" in said
    assert "oaplug_plan_and_preprocess -d 77" in said
    assert len(open_dataset(tmp_path / "Dataset077_Tiny").cases) == 4


def test_converting_passes_options_and_names_the_dataset(tmp_path):
    options = ["--set", "cases=4", "--set", "shape=[12,16,14]"]
    arguments = ["phantom", str(tmp_path), "-d", "78", "--name", "Made", *options]
    assert convert.main([*arguments, "--raw", str(tmp_path)]) == 0
    assert len(open_dataset(tmp_path / "Dataset078_Made").cases) == 4


def test_a_command_takes_no_abbreviated_options(capsys):
    parser = Parser(prog="oaplug_thing")
    parser.add_argument("--long_option")
    with pytest.raises(SystemExit) as end:
        parser.parse_args(["--long", "1"])
    assert end.value.code == 2


def raising(failure):
    def work(arguments: argparse.Namespace):
        raise failure

    return work


@pytest.mark.parametrize(
    ("failure", "status", "line"),
    [
        (PathError("no such place"), 2, "oaplug_thing: no such place"),
        (PermissionError(13, "Permission denied", "a/b"), 2, "oaplug_thing: a/b: Permission denied"),
        (KeyboardInterrupt(), 130, "oaplug_thing: interrupted; what was finished is kept"),
    ],
)
def test_what_users_can_put_right_is_one_line(failure, status, line, capsys):
    assert run_command(Parser(prog="oaplug_thing"), raising(failure), []) == status
    assert capsys.readouterr().err == f"{line}\n"


def test_a_mistake_in_the_code_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command(Parser(prog="oaplug_thing"), raising(ZeroDivisionError()), [])


def test_progress_in_a_log_is_a_plain_line_now_and_then(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("oaplug.commands.shell.time.monotonic", lambda: now[0])
    with Progress("reading") as progress:
        for done in range(1, 41):
            now[0] += 1.0
            progress(done, 40, f"case {done}")
    assert capsys.readouterr().out.splitlines() == [
        f"reading: {done} of 40 (case {done})" for done in (11, 22, 33)
    ]
