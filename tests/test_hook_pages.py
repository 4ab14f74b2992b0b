"""docs/hooks has a page per hook that says, argument by argument, all that it is given and returns."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
from types import ModuleType

import pytest
from documents import DOCS, code_blocks, quoted, sections, table

from oaplug.core.batch import Batch
from oaplug.core.case import Case
from oaplug.core.converter import ConversionRecord, RawFolder
from oaplug.core.dataset import DatasetDescription
from oaplug.core.features import Features
from oaplug.core.findings import Figure, Findings, Table
from oaplug.core.predictions import PredictionTable, TargetPredictions
from oaplug.core.study import CaseGrids, OpenedModel, Study, StudyModel, TrainingBatch
from oaplug.core.target import Target
from oaplug.core.volume import Volume
from oaplug.plug import hookspecs, protocols
from oaplug.plug.loading import BUILD_ARGUMENTS, HOOKS, load_specs
from oaplug.plug.specs import NEEDS

HOOK_NAMES = [n for n, f in inspect.getmembers(hookspecs, inspect.isfunction) if hasattr(f, "oaplug_spec")]
GIVEN = {
    "oaplug_heads": {"What it is given": [Batch, Target]},
    "oaplug_analyses": {
        "What it is given": [
            *(Study, StudyModel, PredictionTable, TargetPredictions),
            *(Features, OpenedModel, CaseGrids, TrainingBatch, Volume),
        ],
        "What it returns": [Findings, Table, Figure],
    },
    "oaplug_converters": {"What it makes": [DatasetDescription, Case, ConversionRecord]},
}
"""By hook and heading of its page, the classes that are listed there member by member."""


def page_of(hook):
    return DOCS / "hooks" / f"{hook.removeprefix('oaplug_')}.md"


def of_every_hook(function):
    return pytest.mark.parametrize("hook", HOOK_NAMES)(function)


def protocol_of(hook):
    return getattr(protocols, HOOKS[hook].__annotations__["build"].rsplit(" ", 1)[-1].rstrip("]"))


def test_every_hook_has_a_page_and_every_page_a_hook():
    assert sorted(HOOK_NAMES) == sorted(HOOKS)
    assert {page_of(hook) for hook in HOOK_NAMES} == set((DOCS / "hooks").glob("*.md"))
    linked = set(re.findall(r"\]\(hooks/([^)]+)\)", sections(DOCS / "plugins.md")["Hooks"]))
    assert linked == {page_of(hook).name for hook in HOOK_NAMES}


@of_every_hook
def test_a_page_opens_with_the_arguments_of_its_hook_and_what_it_returns(hook):
    text = page_of(hook).read_text("utf-8")
    signature = inspect.signature(getattr(hookspecs, hook))
    assert f"`{hook}{signature.replace(return_annotation=signature.empty)}`" in text
    assert not signature.parameters, "describe the arguments of a hook that has some on its page"
    assert f"`{HOOKS[hook].__name__}`" in text


@of_every_hook
def test_a_page_lists_every_field_of_the_spec_with_its_default(hook):
    documented = {quoted(row[0])[0]: row[1] for row in table(page_of(hook), "The spec", first="field")}
    fields = {field.name: field.default for field in dataclasses.fields(HOOKS[hook])}
    assert set(documented) == set(fields)
    for name, default in fields.items():
        if default is dataclasses.MISSING:
            assert documented[name] == "—", name
        elif isinstance(default, (str, int, bool)):
            assert documented[name].strip("`") == (repr(default) if default != "" else '""'), name
        elif isinstance(default, type):
            assert documented[name] == f"`{default.__name__}`", name
    if "needs" in fields:
        assert documented["needs"] == f"`{json.dumps(sorted(fields['needs']))[1:-1].join('{}')}`"


@of_every_hook
def test_a_page_lists_every_argument_of_build(hook):
    kind = HOOKS[hook].kind
    rows = table(page_of(hook), "build", first="argument")
    assert [quoted(row[0])[0] for row in rows] == ["options", *BUILD_ARGUMENTS[kind]]
    assert all(row[1] for row in rows)
    called = ", ".join(["options", *(["*", *BUILD_ARGUMENTS[kind]] if BUILD_ARGUMENTS[kind] else [])])
    text = " ".join(sections(page_of(hook))["build"].split())
    assert f"`build({called})` gives" in text
    assert f"`{protocol_of(hook).__name__}`" in text


def members_of(protocol):
    """Per member its arguments and the type it gives, as a page writes them."""
    found = {name: ("attribute", kind) for name, kind in protocol.__annotations__.items()}
    for name, value in vars(protocol).items():
        if isinstance(value, property):
            found[name] = ("property", inspect.signature(value.fget).return_annotation)
        elif inspect.isfunction(value) and (not name.startswith("_") or name == "__call__"):
            found[name] = (arguments_of(value), inspect.signature(value).return_annotation)
    return found


def arguments_of(function):
    shown, is_keyword_only = [], False
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        if parameter.kind is parameter.KEYWORD_ONLY and not is_keyword_only:
            shown, is_keyword_only = [*shown, "*"], True
        shown.append(parameter.name)
    return ", ".join(shown)


def documented_members(page, heading):
    rows = table(page, heading, first="member")
    assert all(row[-1] for row in rows), "every member is explained"
    return {quoted(row[0])[0]: ((quoted(row[1]) or [row[1]])[0], quoted(row[2])[0]) for row in rows}


@of_every_hook
def test_a_page_lists_every_member_of_what_build_gives_with_arguments_and_returns(hook):
    protocol = protocol_of(hook)
    assert documented_members(page_of(hook), protocol.__name__) == members_of(protocol)


def test_the_page_of_converters_lists_every_member_of_the_folder_they_write_into():
    assert documented_members(page_of("oaplug_converters"), "What it is given") == members_of(RawFolder)


def public_members(kind):
    """Fields, then properties and methods with their arguments, as a page lists them."""
    fields = [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
    for name, value in vars(kind).items():
        if isinstance(value, property):
            fields.append(name)
        elif inspect.isfunction(value) and not name.startswith("_"):
            fields.append(f"{name}({arguments_of(value)})")
    return fields


@pytest.mark.parametrize(
    ("hook", "heading", "kind"),
    [
        pytest.param(hook, heading, kind, id=kind.__name__)
        for hook, headings in GIVEN.items()
        for heading, kinds in headings.items()
        for kind in kinds
    ],
)
def test_a_page_lists_every_member_of_what_parts_are_given_and_return(hook, heading, kind):
    rows = table(page_of(hook), heading, first="class")
    documented = [quoted(row[1])[0] for row in rows if quoted(row[0]) == [kind.__name__]]
    assert documented == public_members(kind)


def test_the_page_of_analyses_lists_every_need():
    rows = table(page_of("oaplug_analyses"), "What it is given", first="need")
    assert {quoted(row[0])[0] for row in rows} == NEEDS


def test_the_page_of_callbacks_lists_the_keys_of_a_run_and_of_an_epoch(trained_project):
    rows = table(page_of("oaplug_callbacks"), "What it is given", first="of")
    documented = {
        of: [quoted(key)[0] for one, key, _ in rows if quoted(one) == [of]] for of in ("run", "record")
    }
    model = trained_project.model("Dataset901_Toy", "resnet3d-single_kl")
    assert documented["run"] == list(json.loads((model / "plans.json").read_text("utf-8")))
    lines = (model / "fold_0" / "metrics.jsonl").read_text("utf-8").splitlines()
    keys = list(json.loads(lines[0]))
    patterns = [
        re.escape(key).replace("TARGET", r"(?!loss)\w+").replace("METRIC", r"\w+").replace("NAME", r"\w+")
        for key in documented["record"]
    ]
    assert not [key for key in keys if not any(re.fullmatch(pattern, key) for pattern in patterns)]
    assert not [pattern for pattern in patterns if not any(re.fullmatch(pattern, key) for key in keys)]


class Fake:
    """An entry point that gives a module."""

    name, value = "page", "page"

    def __init__(self, module):
        self.load = lambda: module


@of_every_hook
def test_the_example_of_a_page_is_a_plugin_that_keeps_its_contract(hook, tmp_path, monkeypatch):
    (block,) = code_blocks(page_of(hook), "python")
    kind = HOOKS[hook].kind
    assert f"check_{kind}({hook}()[0]" in block, "the example checks itself as it is run"
    monkeypatch.chdir(tmp_path)
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    exec(compile(block, page_of(hook).name, "exec", dont_inherit=True), module.__dict__)
    (spec,) = load_specs(Fake(module))
    assert spec.kind == kind


def test_an_undocumented_argument_would_be_seen():
    class Longer:
        extra: int

        def run(self, study, folder, *, colour) -> str: ...

    assert members_of(Longer) == {"extra": ("attribute", "int"), "run": ("study, folder, *, colour", "str")}
