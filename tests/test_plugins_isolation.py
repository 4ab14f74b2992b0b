"""Broken plugins: each is left out by itself, named once, and stops no command and no other plugin."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest

from oaplug.commands import plugins as command
from oaplug.core.errors import PathError, PluginError
from oaplug.plug import API_VERSION, discovery
from oaplug.plug import registry as registry_module
from oaplug.plug.plugin import normal_name
from oaplug.plug.switches import disabled_file, read_disabled, read_switches

ROOT = Path(__file__).parents[1]
HEADER = """
from dataclasses import dataclass
from oaplug.plug import AnalysisSpec, BackboneSpec, CallbackSpec, ConverterSpec, HeadSpec, hookimpl

def build(options, *, in_channels, input_size):
    raise NotImplementedError

def backbone(name, **more):
    return BackboneSpec(**{"name": name, "summary": "of a test", "build": build, **more})
"""


def hook(body, *, name="oaplug_backbones", arguments="", before=""):
    """The source of a plugin with one hook."""
    return f"{HEADER}\n{before}\n@hookimpl\ndef {name}({arguments}):\n    {body}\n"


def install(folder, name, source, *, version="1.0", entry_points=None, metadata=None, after="", module=None):
    """Put a distribution into a folder as pip would: metadata, entry points and, unless None, a module."""
    module = module or name.replace("-", "_")
    if source is not None:
        (folder / f"{module}.py").write_text(textwrap.dedent(source), encoding="utf-8")
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    header = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" if metadata is None else metadata
    (info / "METADATA").write_text(header + "\nA long description.\nVersion: of no plugin\n", "utf-8")
    text = f"[oaplug]\n{entry_points or f'{module} = {module}'}\n{after}"
    (info / "entry_points.txt").write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class Kind:
    """A way to be broken: what is installed, and what the reason must say."""

    source: str | None
    reason: str
    entry_points: str | None = None
    metadata: str | None = None


RETURNS = "return [backbone('never_seen')]"
KINDS = {
    "import-error": Kind("import a_module_that_nobody_has", "ModuleNotFoundError: No module named"),
    "syntax-error": Kind("def broken(:\n    pass", "SyntaxError: invalid syntax"),
    "missing-module": Kind(None, "ModuleNotFoundError: No module named 'missing_module'"),
    "missing-attribute": Kind(
        hook(RETURNS), "has no attribute 'nothing_there'", "plugin = missing_attribute:nothing_there"
    ),
    "exits-with-0": Kind("import sys\nsys.exit(0)", "its import ends the program (sys.exit(0))"),
    "exits-with-text": Kind("import sys\nsys.exit('no GPU')", "(sys.exit('no GPU'))"),
    "base-exception": Kind("class Odd(BaseException): ...\nraise Odd('very')", "Odd: very"),
    "generator-exit": Kind("raise GeneratorExit", "GeneratorExit"),
    "prints-a-lot": Kind(
        "import os, sys\nprint('NOISE ' * 500)\nprint('NOISE', file=sys.stderr)\nos.system('echo NOISE')\n"
        "raise ValueError('after\\nall\\nthat')",
        "ValueError: after all that",
    ),
    "unspeakable": Kind(
        "class Mute(Exception):\n    def __str__(self): raise RuntimeError\nraise Mute", "cannot be shown"
    ),
    "hook-raises": Kind(hook("raise OSError('no network')"), "OSError: no network"),
    "hook-gives-none": Kind(hook("backbone('never_seen')"), "oaplug_backbones gave None; return a list"),
    "hook-gives-one-spec": Kind(
        hook("return backbone('never_seen')"), "oaplug_backbones gave BackboneSpec; return a list"
    ),
    "hook-gives-a-number": Kind(hook("return 7"), "oaplug_backbones gave int; return a list of BackboneSpec"),
    "wrong-kind-of-spec": Kind(
        hook(RETURNS, name="oaplug_heads"), "oaplug_heads gave BackboneSpec among its specs"
    ),
    "stops-half-way": Kind(
        hook("yield backbone('never_seen')\n    raise RuntimeError('half-way')"), "RuntimeError: half-way"
    ),
    "unknown-hook": Kind(hook(RETURNS, name="oaplug_trainers"), "unknown hook 'oaplug_trainers'"),
    "wrong-arguments": Kind(hook(RETURNS, arguments="size"), "'size'"),
    "no-mark": Kind(hook(RETURNS).replace("@hookimpl", ""), "is not marked with oaplug.plug.hookimpl"),
    "no-hook": Kind("x = 1", "it has no hook"),
    "newer-api": Kind(hook(RETURNS, before="requires_oaplug_api = (2, 3)"), "it needs plugin API 2 to 3"),
    "odd-api": Kind(hook(RETURNS, before="requires_oaplug_api = '>=1'"), "give two integers"),
    "name-not-there": Kind("from oaplug.plug import TrainerSpec", "written for another oaplug"),
    "invalid-name": Kind(hook("return [backbone('Not Valid')]"), "part name 'Not Valid'"),
    "options-no-dataclass": Kind(hook("return [backbone('x', options=dict)]"), "options must be a dataclass"),
    "options-without-default": Kind(
        hook("return [backbone('x', options=O)]", before="@dataclass\nclass O:\n    width: int"),
        "give a dataclass with a default for every field",
    ),
    "build-not-callable": Kind(hook("return [backbone('x', build='x')]"), "build must be callable"),
    "build-other-arguments": Kind(
        hook("return [backbone('x', build=lambda options, size: 1)]"),
        "build is called as build(options, *, in_channels, input_size)",
    ),
    "accepts-no-function": Kind(
        hook(
            "return [HeadSpec(name='x', summary='', build=lambda o, **k: 1, accepts=('kl',))]",
            name="oaplug_heads",
        ),
        "accepts must be a function",
    ),
    "summary-no-text": Kind(hook("return [backbone('x', summary=None)]"), "summary and reference must be"),
    "unknown-needs": Kind(
        hook(
            "return [AnalysisSpec(name='x', summary='', build=print, needs={'x_rays'})]",
            name="oaplug_analyses",
        ),
        "unknown needs ['x_rays']",
    ),
    "not-hashable": Kind(
        hook(
            "return [AnalysisSpec(name='x', summary='', build=print, needs=['masks'])]",
            name="oaplug_analyses",
        ),
        "is not hashable (unhashable type: 'list')",
    ),
    "no-version": Kind(
        hook(RETURNS), "its metadata lack Version", metadata="Metadata-Version: 2.1\nName: no-version\n"
    ),
    "bad-entry-point": Kind(hook(RETURNS), "", entry_points="plugin = not a module!"),
    "twice-the-same": Kind(hook("return [backbone('x'), backbone('x')]"), "the backbone 'x' twice"),
    "too-deep": Kind("def deep(): deep()\ndeep()", "RecursionError"),
    "changes-folder": Kind(
        "import os\nos.chdir('/')\nraise ValueError('elsewhere')", "ValueError: elsewhere"
    ),
}
FRESH = registry_module.registry.__wrapped__
"""The registry, found anew at every call."""
HANGING = "import time\nwhile True:\n    time.sleep(1)\n"
HEALTHY = hook("return [backbone('healthy')]")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with every kind of broken plugin, a healthy one, and one that hangs and is disabled."""
    folder = tmp_path_factory.mktemp("site")
    for name, kind in KINDS.items():
        install(
            folder,
            name,
            kind.source,
            entry_points=kind.entry_points,
            metadata=kind.metadata,
        )
    install(folder, "healthy-plugin", HEALTHY)
    install(folder, "hanging", HANGING)
    (folder / "config").mkdir()
    (folder / "config" / "plugins.json").write_text('{"schema": 1, "disabled": ["hanging"]}')
    return folder


def start(folder, *arguments, code=None, **variables):
    """A Python process with the distributions of a folder; arguments are those of oaplug."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OAPLUG_")}
    environment |= {"PYTHONPATH": str(folder), "OAPLUG_CONFIG": str(folder / "config"), **variables}
    words = ["-c", code] if code is not None else ["-m", "oaplug", *arguments]
    return subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=ROOT,
    )


def run(folder, *arguments, code=None, **variables):
    """The same once it has ended: status, standard output, standard error."""
    process = start(folder, *arguments, code=code, **variables)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def listed(site):
    return run(site, "plugins", "--json")


def test_all_kinds_of_broken_plugins_together_leave_the_others_as_they_are(listed):
    status, out, _ = listed
    content = json.loads(out)
    assert status == 1
    names = {part["name"] for part in content["parts"]}
    assert {"healthy", "resnet3d", "dual", "classification", "phantom", "tensorboard"} <= names
    assert not names & {"never_seen", "x"}
    statuses = {row["distribution"]: row["status"] for row in content["distributions"]}
    assert statuses == dict.fromkeys(KINDS, "broken") | {
        "oaplug": "ok",
        "healthy-plugin": "ok",
        "hanging": "disabled",
    }


def test_what_plugins_print_reaches_no_standard_output(listed):
    _, out, err = listed
    assert "NOISE" not in "".join(line for line in out.splitlines(keepends=True) if '"output"' not in line)
    assert err.count("NOISE") == 1, "what a process of its own prints is on standard error"


@pytest.mark.parametrize("name", KINDS)
def test_a_broken_plugin_is_named_in_exactly_one_line_that_says_why(listed, name):
    _, out, err = listed
    lines = [line for line in err.splitlines() if f"oaplug plugin {name} is left out: " in line]
    assert len(lines) == 1
    assert KINDS[name].reason in lines[0]
    (broken,) = [one for one in json.loads(out)["quarantined"] if one["distribution"] == name]
    assert KINDS[name].reason in broken["reason"]
    assert "Traceback" in broken["traceback"] or name == "syntax-error"
    assert len(err.splitlines()) == len(KINDS) + 1, "a line each, and what os.system printed"


TINY = ["--set", "cases=2", "--set", "shape=[9,8,10]"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--help"],
        ["plan_experiment", "--help"],
        ["analyze", "--help"],
        ["convert", "phantom", "FOLDER", "-d", "7", "--name", "Tiny", "--raw", "FOLDER", *TINY],
    ],
    ids=lambda words: words[0],
)
def test_every_command_works_beside_broken_plugins(site, tmp_path, arguments):
    words = [str(tmp_path) if word == "FOLDER" else word for word in arguments]
    status, out, err = run(site, *words)
    assert status == 0, err
    assert f"oaplug_{arguments[0]}" in out or "2 cases" in out


ASK = """
import warnings
warnings.simplefilter("ignore")
from oaplug.core.errors import PluginError
from oaplug.plug.registry import registry
found = registry()
assert found.get("backbone", "resnet3d").qualified_name == "oaplug:resnet3d"
assert found.get("backbone", "Healthy_Plugin:healthy").distribution == "healthy-plugin"
for name in ("resnet", "hook-raises:never_seen", "hanging:x", "healthy-plugin:helthy", "nowhere:x"):
    try:
        found.get("backbone", name)
    except PluginError as failure:
        print("=====", failure)
"""


def test_asking_for_a_part_that_cannot_be_found_says_what_may_have_offered_it(site):
    status, out, err = run(site, code=ASK)
    assert status == 0, err
    bare, broken, disabled, misspelt, unknown = [text.strip() for text in out.split("===== ")[1:]]
    assert bare.startswith("no backbone 'resnet'; did you mean 'resnet3d'?; ")
    assert all(f"the plugin {name} is broken: " in bare for name in KINDS)
    assert bare.endswith("; disabled: hanging (oaplug_plugins --enable NAME)")
    assert "\n" not in bare
    assert broken.startswith(
        "no backbone 'hook-raises:never_seen'; the plugin hook-raises 1.0 is broken:\nTr"
    )
    assert broken.endswith("OSError: no network")
    assert "hook_raises.py" in broken, "the whole traceback"
    assert disabled == "no backbone 'hanging:x'; hanging is disabled (oaplug_plugins --enable hanging)"
    assert misspelt == "no backbone 'healthy-plugin:helthy'; did you mean 'healthy'?"
    assert unknown.startswith("no backbone 'nowhere:x'; no plugin of a distribution 'nowhere' is installed")


def test_the_table_shows_distributions_and_quotes_tracebacks(site):
    status, out, _ = run(site, "plugins", COLUMNS="200")
    assert status == 1
    for name in KINDS:
        assert f"left out: {name} " in out
    rows = [[cell.strip() for cell in line.split("│")] for line in out.splitlines() if "│" in line]
    assert ["", "hanging", "1.0", "disabled", "0", ""] in rows
    assert ["", "healthy-plugin", "1.0", "ok", "1", ""] in rows
    assert "oaplug_plugins --disable NAME leaves it out" in out


# --- in this process: one or two plugins at a time


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder on sys.path whose modules are forgotten afterwards, and whose config is empty."""
    monkeypatch.setenv("OAPLUG_CONFIG", str(tmp_path / "config"))
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def look(**expected):
    """The registry as a new process would find it; `expected` broken distributions with their reasons."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = FRESH()
    assert len(caught) == len(expected) == len(found.quarantined)
    for plugin in found.quarantined:
        assert expected[plugin.distribution.replace("-", "_")] in plugin.reason
    return found


def plugin_of(found, distribution):
    (plugin,) = [plugin for plugin in found.plugins if plugin.distribution == distribution]
    return plugin


def test_a_part_of_two_distributions_is_asked_for_with_its_distribution(place):
    for name in ("first-one", "second-one"):
        install(place, name, hook("return [backbone('shared')]"))
    found = look()
    with pytest.raises(PluginError, match="write first-one:shared or second-one:shared"):
        found.get("backbone", "shared")
    assert found.get("backbone", "second-one:shared").distribution == "second-one"


def test_two_entry_points_of_a_distribution_must_not_offer_the_same_part(place):
    install(place, "doubled", HEALTHY, entry_points="a = doubled\nb = doubled")
    found = look(doubled="doubled offers the backbone 'healthy' twice")
    assert found.get("backbone", "healthy").distribution == "doubled", "the first one counts"


def test_a_broken_entry_point_leaves_the_others_of_its_distribution(place):
    install(place, "half-good", HEALTHY, entry_points="a = half_good\nb = half_good_nowhere")
    found = look(half_good="No module named 'half_good_nowhere'")
    assert found.get("backbone", "half-good:healthy")


def test_of_two_distributions_of_one_name_the_first_on_the_path_counts(place, tmp_path_factory, monkeypatch):
    install(place, "My.Plugin", HEALTHY, version="1.0")
    other = tmp_path_factory.mktemp("other")
    install(other, "my_plugin", None, version="2.0", module="My.Plugin")
    monkeypatch.setattr(sys, "path", [*sys.path, str(other)])
    (place / "My").mkdir()
    (place / "My" / "Plugin.py").write_text(HEALTHY, encoding="utf-8")
    assert look().get("backbone", "my-plugin:healthy").version == "1.0"


@pytest.mark.parametrize(
    ("lowest", "highest", "what"),
    [
        (API_VERSION, API_VERSION, None),
        (0, API_VERSION + 5, None),
        (API_VERSION + 1, API_VERSION + 2, "upgrade oaplug"),
        (-1, API_VERSION - 1, "upgrade this plugin"),
    ],
)
def test_the_range_of_plugin_api_versions_includes_both_ends(place, lowest, highest, what):
    calls_nothing = hook(
        "raise RuntimeError('called')", before=f"requires_oaplug_api = ({lowest}, {highest})"
    )
    name = f"range{lowest + 1}{highest}"
    install(
        place,
        name,
        HEALTHY + f"\nrequires_oaplug_api = ({lowest}, {highest})" if what is None else calls_nothing,
    )
    found = look(**({} if what is None else {name: what}))
    assert plugin_of(found, name).status == ("ok" if what is None else "broken")


def test_a_malformed_list_of_entry_points_breaks_its_own_distribution_only(place):
    """importlib.metadata.entry_points raises in this environment (and so do torch and pydantic)."""
    install(place, "malformed", HEALTHY, after="[console_scripts]\nno equals sign\n")
    install(place, "well-formed", HEALTHY)
    assert look(malformed="its entry_points.txt is malformed").get("backbone", "healthy")


def test_a_list_of_entry_points_that_is_no_text_breaks_its_own_distribution_only(place):
    install(place, "no-text", HEALTHY)
    install(place, "well-formed", HEALTHY)
    (place / "no_text-1.0.dist-info" / "entry_points.txt").write_bytes(b"[oaplug]\nx = \xff\n")
    assert look(no_text="its entry_points.txt cannot be read").get("backbone", "healthy")


def test_a_distribution_without_metadata_is_named_by_its_folder(place):
    install(place, "bare-one", HEALTHY)
    (place / "bare_one-1.0.dist-info" / "METADATA").unlink()
    look(bare_one="its metadata lack Name and Version")


def test_strict_raises_with_the_cause(place, monkeypatch):
    install(place, "strictly", hook("raise OSError('no network')"))
    monkeypatch.setenv("OAPLUG_PLUGINS_STRICT", "1")
    with pytest.raises(PluginError, match=r"strictly 1\.0 \(strictly\) is broken: OSError") as raised:
        FRESH()
    assert isinstance(raised.value.__cause__, OSError)


def test_strict_turns_sys_exit_into_an_error_too(place, monkeypatch):
    install(place, "exiting", "import sys\nsys.exit(0)")
    monkeypatch.setenv("OAPLUG_PLUGINS_STRICT", "1")
    with pytest.raises(PluginError, match=r"sys\.exit\(0\)"):
        FRESH()


def test_a_distribution_that_is_not_on_the_list_is_not_imported(place, monkeypatch):
    install(place, "wanted.one", HEALTHY, module="wanted_one")
    install(place, "unwanted-one", "import pathlib\npathlib.Path(__file__).with_suffix('.ran').touch()")
    monkeypatch.setenv("OAPLUG_LOAD_PLUGINS", "something, Wanted_One")
    found = look()
    assert not (place / "unwanted_one.ran").exists()
    assert found.get("backbone", "healthy").distribution == "wanted.one"
    assert found.get("backbone", "resnet3d"), "parts of oaplug are always there"
    assert plugin_of(found, "unwanted-one").status == "not allowed"
    for name in ("unwanted-one:x", "nothing"):
        with pytest.raises(PluginError, match=r"not allowed.*OAPLUG_LOAD_PLUGINS"):
            found.get("backbone", name)


def test_tracing_shows_what_is_imported_from_where_and_what_it_printed(place, monkeypatch, capsys):
    install(place, "talking", HEALTHY + "\nimport warnings\nprint('hello')\nwarnings.warn('careful')\n")
    monkeypatch.setenv("OAPLUG_TRACE_PLUGINS", "1")
    look()
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = [
        line for line in shown.err.splitlines() if line.startswith("oaplug plugin talking 1.0 (talking): ")
    ]
    assert lines[0].endswith(": importing")
    assert f" ms, {place / 'talking.py'}, backbone healthy" in lines[1]
    assert [line.rsplit("): ", 1)[1] for line in lines[2:]] == ["| hello", "| UserWarning: careful"]


def test_output_is_kept_back_without_tracing(place, capsys):
    install(place, "quiet", HEALTHY + "\nimport sys\nprint('hello')\nprint('world', file=sys.stderr)\n")
    found = look()
    assert capsys.readouterr() == ("", "")
    assert plugin_of(found, "quiet").output == "hello\nworld\n"


CHANGES = """
import logging, os, random, signal, sys, warnings
os.chdir("/")
os.environ["SET_BY_A_PLUGIN"] = "1"
sys.path.append("/nowhere/at/all")
warnings.simplefilter("ignore")
signal.signal(signal.SIGINT, signal.SIG_IGN)
logging.basicConfig(level=logging.DEBUG, force=True)
logging.disable(logging.CRITICAL)
sys.stdout = None
HANDLER = logging.StreamHandler()
"""


def test_what_a_plugin_changes_while_it_is_imported_is_put_back_and_noted(place, monkeypatch, capsys):
    install(place, "changing", HEALTHY + CHANGES)
    monkeypatch.setenv("SET_BY_A_PLUGIN", "0")
    monkeypatch.setattr(sys, "path", list(sys.path))
    handler, folder, filters = signal.getsignal(signal.SIGINT), Path.cwd(), list(warnings.filters)
    root = (logging.root.level, list(logging.root.handlers), logging.root.manager.disable)
    plugin = plugin_of(look(), "changing")
    assert plugin.status == "ok"
    assert Path.cwd() == folder
    assert signal.getsignal(signal.SIGINT) is handler
    assert warnings.filters == filters
    assert (logging.root.level, logging.root.handlers, logging.root.manager.disable) == root
    assert os.environ["SET_BY_A_PLUGIN"] == "1", "its libraries may need it"
    notes = " / ".join(plugin.notes)
    for what in ("working directory", "SIGINT", "logging", "SET_BY_A_PLUGIN", "sys.path"):
        assert what in notes
    sys.modules["changing"].HANDLER.emit(logging.LogRecord("x", 30, "x", 1, "still works", (), None))
    assert capsys.readouterr().err == "still works\n"


def test_a_plugin_that_changes_nothing_has_no_notes(place):
    install(place, "modest", HEALTHY)
    assert plugin_of(look(), "modest").notes == ()


def test_control_c_while_a_plugin_is_imported_is_not_held_up(place, caplog):
    install(place, "interrupted", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        FRESH()
    assert "interrupted while importing the plugin interrupted 1.0" in caplog.text
    assert "oaplug_plugins --disable interrupted" in caplog.text


SOON = "from oaplug.plug import discovery; discovery.NOTICE_AFTER_SECONDS = 0.2\n"


def test_a_plugin_that_hangs_is_named_and_can_be_interrupted_and_disabled(place):
    install(place, "hanging-one", HANGING)
    code = f"{SOON}import sys; from oaplug.commands.plugins import main; sys.exit(main(['--json']))"
    process = start(place, code=code)
    line = process.stderr.readline()
    assert "still importing the plugin hanging-one 1.0 (hanging_one) after 0.2 s" in line
    assert "oaplug_plugins --disable hanging-one" in line
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "oaplug_plugins: interrupted" in err
    assert "Traceback" not in err
    assert out == ""
    assert run(place, "plugins", "--disable", "Hanging.One")[0] == 0
    status, out, err = run(place, "plugins", "--json")
    assert (status, err) == (0, "")
    assert {row["distribution"]: row["status"] for row in json.loads(out)["distributions"]} == {
        "oaplug": "ok",
        "hanging-one": "disabled",
    }


def test_a_quick_plugin_causes_no_notice_and_leaves_no_thread(place, monkeypatch, capsys):
    monkeypatch.setattr(discovery, "NOTICE_AFTER_SECONDS", 0.3)
    install(place, "quick", HEALTHY)
    threads = threading.active_count()
    look()
    assert threading.active_count() == threads
    time.sleep(0.4)
    assert capsys.readouterr().err == ""


# --- the command


@pytest.fixture
def seen(monkeypatch):
    """The command finds plugins anew at every call."""
    monkeypatch.setattr(registry_module, "registry", lambda: look())


def test_disabling_and_enabling_imports_nothing_and_lasts(place, seen, capsys):
    install(place, "Switched_One", HEALTHY, module="switched_one")
    install(place, "other-one", hook("return [backbone('other')]"))
    for name in ("switched-one", "OTHER.one", "switched.ONE"):
        assert command.main(["--disable", name]) == 0
    assert str(disabled_file()) in capsys.readouterr().out
    assert not {"switched_one", "other_one"} & set(sys.modules)
    assert set(read_disabled()) == {"Switched_One", "other-one"}
    assert {plugin_of(look(), name).status for name in ("Switched_One", "other-one")} == {"disabled"}
    assert not {"switched_one", "other_one"} & set(sys.modules)
    assert command.main([]) == 0
    assert "disabled: other-one, Switched_One (oaplug_plugins --enable NAME" in capsys.readouterr().out
    assert command.main(["--enable", "switched-one"]) == 0
    assert look().get("backbone", "healthy").distribution == "Switched_One"
    assert read_disabled() == ("other-one",)


def test_a_distribution_that_is_gone_can_be_enabled(place, capsys):
    (place / "config").mkdir()
    disabled_file().write_text('{"schema": 1, "disabled": ["gone-one"]}')
    assert command.main(["--enable", "gone_one"]) == 0
    assert read_disabled() == ()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--disable", "swiched-one"], "did you mean 'switched-one'?"),
        (["--enable", "switched-one"], "is disabled; known: none"),
        (["--disable", "oaplug"], "the parts of oaplug itself cannot be disabled"),
    ],
)
def test_a_name_that_cannot_be_switched_is_refused(place, capsys, arguments, said):
    install(place, "switched-one", HEALTHY)
    assert command.main(arguments) == 2
    assert said in capsys.readouterr().err
    assert not disabled_file().exists()


@pytest.mark.parametrize(
    "text",
    ["{not json", '{"disabled": []}', '{"schema": 99, "disabled": []}', '{"schema": 1, "disabled": 3}'],
)
def test_a_list_of_disabled_plugins_that_cannot_be_read_is_warned_of_and_never_overwritten(place, text):
    install(place, "switched-one", HEALTHY)
    (place / "config").mkdir()
    disabled_file().write_text(text)
    with pytest.warns(UserWarning, match=r"no plugin is disabled: .*plugins\.json"):
        assert read_switches().disabled == frozenset()
    assert command.main(["--disable", "switched-one"]) == 2
    assert disabled_file().read_text() == text


def test_where_the_list_cannot_be_written_a_line_says_what_to_set(place, monkeypatch, capsys):
    install(place, "switched-one", HEALTHY)
    (place / "file").touch()
    monkeypatch.setenv("OAPLUG_CONFIG", str(place / "file"))
    assert command.main(["--disable", "switched-one"]) == 2
    assert "export OAPLUG_CONFIG=FOLDER" in capsys.readouterr().err


def test_the_list_is_in_the_users_config_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("OAPLUG_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert disabled_file() == tmp_path / "oaplug" / "plugins.json"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert disabled_file() == tmp_path / ".config" / "oaplug" / "plugins.json"


def test_a_user_without_a_home_has_nothing_disabled(monkeypatch):
    for name in ("OAPLUG_CONFIG", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "expanduser", lambda self: (_ for _ in ()).throw(RuntimeError("no home")))
    assert read_disabled() == ()
    with pytest.raises(PathError, match="export OAPLUG_CONFIG"):
        disabled_file()


ENCODERS = """
from dataclasses import dataclass
from oaplug.plug import BackboneSpec, ConverterSpec, hookimpl

def build_good(options, *, in_channels, input_size):
    from torch import nn
    class Good(nn.Module):
        num_features, cam_layer = 3, property(lambda self: None)
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv3d(in_channels, 3, 1)
        def forward(self, volume):
            return self.layer(volume).relu().mean(dim=(2, 3, 4))
    return Good()

def build_wrong(options, **context):
    encoder = build_good(options, **context)
    encoder.num_features = 4
    return encoder

def build_failing(options, **context):
    raise LookupError("no such layer")

@hookimpl
def oaplug_backbones():
    builders = {"good": build_good, "wrong_width": build_wrong, "failing": build_failing}
    return [BackboneSpec(name=name, summary=name, build=build) for name, build in builders.items()]
"""


def test_checking_a_part_says_whether_it_keeps_the_contract(place, seen, capsys):
    install(place, "checked", ENCODERS)
    assert command.main(["--check", "good"]) == 0
    assert capsys.readouterr().out == "passed       backbone checked:good\n"
    assert command.main(["--check", "checked:wrong_width"]) == 1
    shown = capsys.readouterr().out
    assert shown.startswith(
        "failed       backbone checked:wrong_width: backbone wrong_width: features have shape"
    )
    assert len(shown.splitlines()) == 1


def test_checking_a_distribution_checks_each_of_its_parts(place, seen, capsys):
    install(place, "checked", ENCODERS)
    assert command.main(["--check", "checked", "--json"]) == 1
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert {check["part"]: check["status"] for check in checks} == {
        "checked:good": "passed",
        "checked:wrong_width": "failed",
        "checked:failing": "failed",
    }
    assert "LookupError: no such layer" in checks[2]["message"]
    assert "checked.py, line" in checks[2]["message"]


def test_checking_a_broken_distribution_quotes_its_traceback(place, seen, capsys, monkeypatch):
    install(place, "broken-one", hook("raise OSError('no network')"))
    monkeypatch.setattr(registry_module, "registry", lambda: look(broken_one="no network"))
    for name in ("broken-one", "broken-one:x"):
        assert command.main(["--check", name]) == 2
        shown = capsys.readouterr().err
        assert "Traceback" in shown
        assert "OSError: no network" in shown


def test_checking_an_unknown_name_gives_the_nearest(place, seen, capsys):
    assert command.main(["--check", "resnet3"]) == 2
    assert "no part or distribution 'resnet3'; did you mean 'resnet3d'?" in capsys.readouterr().err


def test_listing_thirty_plugins_imports_nothing_that_their_parts_need(tmp_path):
    lazy = HEADER.replace("raise NotImplementedError", "import heavy_library")
    (tmp_path / "heavy_library.py").write_text("raise SystemError('imported')", encoding="utf-8")
    for number in range(30):
        source = f"{lazy}\n@hookimpl\ndef oaplug_backbones():\n    return [backbone('part{number}')]\n"
        install(tmp_path, f"plugin-{number}", source)
    status, out, err = run(tmp_path, "plugins", "--json")
    assert (status, err) == (0, "")
    assert {f"part{number}" for number in range(30)} <= {part["name"] for part in json.loads(out)["parts"]}
    code = "from oaplug.plug.registry import registry; registry(); import sys; print(*sys.modules)"
    _, out, _ = run(tmp_path, code=code)
    heavy = {"heavy_library", "torch", "numpy", "scipy", "pandas", "pydantic", "rich"}
    assert not heavy & set(out.split())
    assert "plugin_29" in out.split()


@pytest.mark.parametrize("name", ["my-plugin-x", "My.Plugin_x", "MY__plugin--X"])
def test_names_of_distributions_are_compared_as_installers_do(name):
    assert normal_name(name) == "my-plugin-x"
