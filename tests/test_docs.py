"""What the documentation says is what the code does: keys, defaults, columns, options, hooks, files."""

from __future__ import annotations

import ast
import configparser
import dataclasses
import importlib
import inspect
import json
import re

import numpy as np
import pytest
from documents import DOCS, README, ROOT, code_blocks, command_parsers, pages, quoted, sections, table

from oaplug.core.case_table import FIXED_COLUMNS
from oaplug.core.dataset import DatasetDescription, description_from_json
from oaplug.core.evaluation import prediction_table
from oaplug.core.leak import trained_on
from oaplug.core.metrics import METRIC_NAMES
from oaplug.core.plan import AugmentationSettings, Configuration, Plan, TrainSettings
from oaplug.core.predictions import write_predictions
from oaplug.core.settings import to_mapping
from oaplug.core.study import Study, StudyModel
from oaplug.core.target import Target
from oaplug.plug import API_VERSION, hookspecs, protocols, specs
from oaplug.plug.registry import registry
from oaplug.study.run import run_study

SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")


@pytest.mark.parametrize("kind", [Plan, Configuration, TrainSettings, AugmentationSettings])
def test_every_key_of_a_plan_is_documented_with_its_default(kind):
    documented = {
        quoted(key)[0]: default for key, default, _ in table(DOCS / "plans.md", kind.__name__, first="key")
    }
    expected = {field.name: _default_as_text(field) for field in dataclasses.fields(kind)}
    assert documented == expected


def _default_as_text(field):
    if field.default is not dataclasses.MISSING:
        return f"`{json.dumps(to_mapping(field.default))}`"
    if field.default_factory is dataclasses.MISSING:
        return "—"
    made = field.default_factory()
    return "see below" if dataclasses.is_dataclass(made) else f"`{json.dumps(made)}`"


def test_every_key_of_dataset_json_is_documented_and_understood():
    keys = [quoted(row[0])[0] for row in table(DOCS / "datasets.md", "dataset.json", first="key")]
    example = json.loads(code_blocks(DOCS / "datasets.md", "json")[0]) | {"dataset": {}}
    assert set(keys) == set(example)
    description = description_from_json(example, name="example", where="docs/datasets.md")
    assert description.other == {}, "a documented key was not understood"
    fields = {field.name for field in dataclasses.fields(DatasetDescription)}
    assert set(keys) == fields - {"name", "other", "explicit_files"} | {"dataset"}
    assert description.targets["oa"].threshold_in(description.targets["kl"]) == 2


def test_every_fixed_column_of_cases_csv_is_documented():
    cells = [row[0] for row in table(DOCS / "datasets.md", "cases.csv", first="column")]
    assert [name for cell in cells for name in quoted(cell)] == list(FIXED_COLUMNS)


def test_every_kind_of_problem_that_the_integrity_check_finds_is_documented():
    documented = {
        quoted(row[0])[0] for row in table(DOCS / "datasets.md", "Integrity check", first="problem")
    }
    formats = sorted(
        f"prepare/formats/{path.name}" for path in (ROOT / "oaplug/prepare/formats").glob("*.py")
    )
    reading = ("prepare/reading.py", "prepare/integrity.py", *formats)
    sources = ("core/case_table.py", "core/dataset.py", *reading)
    found = set().union(*(_problem_kinds(ROOT / "oaplug" / source) for source in sources))
    assert documented == found


def _problem_kinds(path):
    """Constants that a file gives as the kind of a Problem, directly or by the functions that make one."""
    kinds = set()
    for call in [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]:
        name = getattr(call.func, "id", "")
        if name == "Problem":
            given = [word.value for word in call.keywords if word.arg == "kind"]
        else:
            given = call.args[:1] if name in {"complain", "image_error", "ImageFault"} else []
        kinds |= {value.value for value in given if isinstance(value, ast.Constant)}
    return kinds


@pytest.fixture
def predictions():
    from oaplug.core.case import Case

    target = Target(name="T", kind="ordinal", grades=("low", "middle", "high"))
    cases = [Case(case_id=f"c{i}", subject_id=f"s{i}", images=(), labels={"T": i % 3}) for i in range(6)]
    made = prediction_table(
        cases, {"T": np.eye(3)[[0, 1, 2, 0, 2, 1]]}, targets={"T": target}, fold="0", model="m"
    )
    return dataclasses.replace(made, trained_on=trained_on(["s9"], ["digest"], "key"))


def test_the_columns_of_predictions_csv_and_the_keys_of_its_json_are_documented(tmp_path, predictions):
    header = write_predictions(tmp_path, predictions).read_text("utf-8").splitlines()[0].split(",")
    page = DOCS / "prediction_and_analysis.md"
    columns = [name for row in table(page, "predictions.csv", first="column") for name in quoted(row[0])]
    grades = [name.removeprefix("T_prob_") for name in header if name.startswith("T_prob_")]
    expected = [c.replace("GRADE", g) for c in columns for g in (grades if "GRADE" in c else [""])]
    assert expected == header
    rows = table(page, "predictions.json", first="key")
    sidecar = json.loads((tmp_path / "predictions.json").read_text("utf-8"))
    assert [quoted(row[0])[0] for row in rows] == list(sidecar)
    assert quoted(rows[-1][1]) == list(sidecar["trained_on"])


def test_the_keys_of_findings_json_are_documented(tmp_path, predictions):
    study = Study(
        models=(StudyModel(name="m", predictions=predictions),),
        case_ids=predictions.case_ids,
        subject_ids=predictions.subject_ids,
        resamples=5,
    )
    outcome = run_study(study, ["classification"], folder=tmp_path, registry=registry())
    content = json.loads(outcome.findings.read_text("utf-8"))
    rows = {tuple(quoted(key)): quoted(what) for key, what in
            table(DOCS / "prediction_and_analysis.md", "findings.json", first="key")}  # fmt: skip
    assert [name for names in rows for name in names] == list(content)
    assert rows[("models",)] == list(content["models"][0])
    assert rows[("targets",)] == list(content["targets"][0])
    statuses, optional = {"ok", "skipped", "failed"}, {"reason", "traceback"}
    assert set(rows[("analyses",)]) - statuses - optional == set(content["analyses"][0])
    said = set(quoted(sections(DOCS / "prediction_and_analysis.md")["findings.json"].split("|")[-1]))
    assert set(content["analyses"][0]["findings"]) <= said


def test_every_metric_is_documented():
    said = quoted(sections(DOCS / "prediction_and_analysis.md")["Evaluating"])
    assert set(METRIC_NAMES) <= set(said)


def test_every_hook_is_documented_with_its_exact_arguments_and_what_it_returns():
    rows = table(DOCS / "plugins.md", "Hooks", first="hook")
    documented = {quoted(name)[0]: (arguments, quoted(returns)[0]) for name, arguments, returns in rows}
    expected = {}
    for name, function in inspect.getmembers(hookspecs, inspect.isfunction):
        if hasattr(function, "oaplug_spec"):
            signature = inspect.signature(function)
            returned = re.fullmatch(r"Iterable\[(\w+)\]", signature.return_annotation)[1]
            expected[name] = (", ".join(f"`{p}`" for p in signature.parameters) or "none", returned)
    assert documented == expected
    assert f"now {API_VERSION}." in sections(DOCS / "plugins.md")["Hooks"]


def test_every_field_of_the_specs_is_documented_with_its_default():
    rows = table(DOCS / "plugins.md", "Specs", first="field")
    documented = {(quoted(name)[0], (quoted(of) or ["Spec"])[0]) for name, _, of, _ in rows}
    kinds = [
        specs.Spec,
        specs.BackboneSpec,
        specs.HeadSpec,
        specs.AnalysisSpec,
        specs.ConverterSpec,
        specs.CallbackSpec,
    ]
    inherited = {field.name for field in dataclasses.fields(specs.Spec)}
    expected = {
        (field.name, kind.__name__)
        for kind in kinds
        for field in dataclasses.fields(kind)
        if kind is specs.Spec or field.name not in inherited
    }
    assert documented == expected
    needs = next(row for row in rows if quoted(row[0]) == ["needs"])
    assert set(quoted(needs[3])) == specs.NEEDS
    defaults = {quoted(row[0])[0]: quoted(row[1]) for row in rows}
    fields = {field.name: field.default for kind in kinds for field in dataclasses.fields(kind)}
    assert defaults["revision"] == [repr(fields["revision"])]
    assert defaults["single_target"] == [repr(fields["single_target"])]
    assert defaults["options"] == [fields["options"].__name__]
    assert {name for name, default in fields.items() if default is dataclasses.MISSING} == {
        quoted(row[0])[0] for row in rows if row[1] == "—"
    }


def test_builders_are_documented_with_the_arguments_that_specs_say():
    rows = table(DOCS / "plugins.md", "Specs", first="kind")
    for kind, called, gives in rows:
        spec = getattr(specs, f"{kind.capitalize()}Spec")
        assert quoted(called)[0] in " ".join(spec.__doc__.split())
        assert quoted(gives)[0] in spec.__annotations__["build"]


def test_every_member_of_the_protocols_is_documented_with_its_arguments():
    documented = {
        (quoted(protocol)[0], quoted(member)[0], (quoted(arguments) or [arguments])[0])
        for protocol, member, arguments in table(DOCS / "plugins.md", "Protocols", first="protocol")
    }
    expected = set()
    for name, protocol in inspect.getmembers(protocols, inspect.isclass):
        if getattr(protocol, "_is_protocol", False) and protocol.__module__ == protocols.__name__:
            expected |= {(name, member, "attribute") for member in protocol.__annotations__}
            expected |= {(name, *member) for member in _members(protocol)}
    assert documented == expected


def _members(protocol):
    for name, value in vars(protocol).items():
        if isinstance(value, property):
            yield name, "property"
        elif inspect.isfunction(value) and (not name.startswith("_") or name == "__call__"):
            shown, keyword_only = [], False
            for parameter in list(inspect.signature(value).parameters.values())[1:]:
                if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
                    shown, keyword_only = [*shown, "*"], True
                shown.append(parameter.name)
            yield name, ", ".join(shown)


def test_every_environment_variable_of_the_registry_is_documented():
    rows = table(DOCS / "plugins.md", "Discovery", first="environment variable")
    used = {
        name
        for path in (ROOT / "oaplug").rglob("*.py")
        for name in re.findall(r"OAPLUG_[A-Z_]+", path.read_text("utf-8"))
    }
    assert {quoted(row[0])[0] for row in rows} == used


def test_every_command_is_installed_and_documented():
    installed = {line.split("=")[0].strip() for line in _lines("options.entry_points", "console_scripts")} - {
        "oaplug"
    }
    assert set(command_parsers()) == installed
    assert {name for name in sections(DOCS / "commands.md") if name.startswith("oaplug_")} == installed


def _lines(section, option):
    return [line for line in SETUP[section][option].splitlines() if line.strip()]


@pytest.mark.parametrize("command", sorted(command_parsers()))
def test_every_option_of_a_command_is_documented_with_its_default(command):
    documented = {
        quoted(option)[0].split()[0]: default
        for option, default, _ in table(DOCS / "commands.md", command, first="option")
    }
    actions = [action for action in command_parsers()[command]._actions if action.dest != "help"]
    assert documented == {
        (action.option_strings or [action.dest])[0]: _default_of(action) for action in actions
    }
    assert all(len(action.option_strings) <= 1 for action in actions), "document every spelling of an option"


def _default_of(action):
    if action.dest == "np":
        return "processors, at most 8"
    if action.required or not action.option_strings:
        return "needed"
    if action.default is None or action.default is False or action.default == []:
        return ""
    return f"`{' '.join(map(str, action.default)) if isinstance(action.default, list) else action.default}`"


def test_the_readme_lists_exactly_the_parts_that_come_with_oaplug():
    documented = {(kind, quoted(name)[0]) for kind, name, _ in table(README, "Parts", first="kind")}
    ours = {(part.spec.kind, part.spec.name) for part in registry().parts if part.distribution == "oaplug"}
    assert documented == ours


def test_every_dependency_is_documented_with_a_place_that_imports_it():
    rows = table(DOCS / "decisions" / "0003-dependencies.md", "3. Dependencies", first="distribution")
    wanted = {re.split(r"[><=~!]", line)[0] for line in _lines("options", "install_requires")}
    assert {row[0] for row in rows} == wanted
    modules = {"scikit-learn": "sklearn"}
    everything = [ROOT / "oaplug", ROOT / "plugins"]
    for name, use, where in rows:
        module = modules.get(name, name)
        if use == "nothing yet":
            assert not any(_imports(place, module) for place in everything), f"{name} is used now: say where"
        for place in [ROOT / text for text in quoted(where)] or []:
            assert _imports(place, module), f"{place.name} does not import {module}"


def _imports(place, module):
    files = [place] if place.suffix == ".py" else place.rglob("*.py")
    pattern = re.compile(rf"^\s*(from|import) {module}\b", re.MULTILINE)
    return any(pattern.search(path.read_text("utf-8")) for path in files)


def test_every_extra_that_the_documentation_names_exists():
    text = "".join(page.read_text("utf-8") for page in pages())
    assert set(re.findall(r"oaplug\[(\w+)\]", text)) <= set(SETUP["options.extras_require"])


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_of_a_page_leads_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{link} does not exist"
        if anchor:
            assert anchor in {_anchor(heading) for heading in sections(target)}, f"{link} has no such heading"


def _anchor(heading):
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def test_every_page_of_the_documentation_is_within_reach_of_the_readme():
    linked = set(re.findall(r"\]\((docs/[^)#]+)", README.read_text("utf-8")))
    assert {f"docs/{page.name}" for page in DOCS.glob("*.md")} <= linked


def test_every_module_that_the_documentation_names_can_be_imported():
    for page in pages():
        for name in re.findall(r"`(oaplug(?:\.\w+)+)`", page.read_text("utf-8")):
            module, _, attribute = name.rpartition(".")
            try:
                importlib.import_module(name)
            except ModuleNotFoundError:
                assert hasattr(importlib.import_module(module), attribute), f"{page.name}: there is no {name}"
