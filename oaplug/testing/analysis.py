"""The contract of an analysis."""

from __future__ import annotations

import csv
import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oaplug.core.findings import Findings, findings_to_json
from oaplug.core.study import Study, StudyModel
from oaplug.plug.registry import parse_options
from oaplug.plug.specs import NEEDS
from oaplug.testing.checks import check_import, check_options, one_line, require
from oaplug.testing.surroundings import left_alone, own_folder
from oaplug.testing.toy_study import TOY_STUDIES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from oaplug.plug.specs import AnalysisSpec

    Studies = Mapping[str, Callable[[], Study]]

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MEANS = {need: frozenset({need}) for need in NEEDS} | {"folder": NEEDS - {"predictions"}}
"""By what is read of a study or of one of its models, the needs of which one must be declared."""
_BOOKKEEPING = {"dataclasses", "oaplug.core.study"}
"""Modules that read all fields for others: comparing, copying, listing targets."""


class _Injected(Exception):
    """Stands for a failure in the middle of an analysis."""


def check_analysis(
    spec: AnalysisSpec, options: Mapping[str, Any] | None = None, *, studies: Studies | None = None
) -> None:
    """Check everything the engine relies on in an analysis.

    Args:
        spec: the analysis.
        options: its options (default: its own).
        studies: what it is run on: by how each study differs, a function that makes it, the same every time
            (default: TOY_STUDIES of oaplug.testing.toy_study, which provide predictions).

    Raises:
        AssertionError: saying what to change.
    """
    check_import(spec)
    check_options(spec, options)
    studies = TOY_STUDIES if studies is None else studies
    first: dict[str, Any] | None = None
    for what, make in studies.items():
        lacking = sorted(spec.needs - make().provides)
        require(not lacking, spec, f"it needs {', '.join(lacking)}; give studies that provide them")
        content = _check_on(spec, options, make, what=f"on a study {what}")
        first = content if first is None else first
    make = next(iter(studies.values()))
    with own_folder(spec) as folder:
        again = _run(spec, options, make(), folder)
    require(
        first == findings_to_json(again),
        spec,
        "two runs on the same study gave different findings; draw from "
        "oaplug.core.seeds.random_generator(study.seed, ...)",
    )
    if len(make().models) > 1:
        _check_failing(spec, options, make)


def meets_needs(spec: AnalysisSpec) -> bool:
    """Whether toy studies provide what an analysis needs."""
    return all(spec.needs <= make().provides for make in TOY_STUDIES.values())


def _run(spec: AnalysisSpec, options: Mapping[str, Any] | None, study: Study, folder: Path) -> Findings:
    findings = spec.build(parse_options(spec, options)).run(study, folder)
    require(
        isinstance(findings, Findings),
        spec,
        f"run gave {type(findings).__name__}; give oaplug.core.findings.Findings",
    )
    return findings


def _check_on(
    spec: AnalysisSpec, options: Mapping[str, Any] | None, make: Callable[[], Study], *, what: str
) -> dict[str, Any]:
    """The findings on one study, as JSON, once they are what a report can show."""
    study, read = make(), set[str]()
    with own_folder(spec) as folder:
        try:
            with left_alone(spec, "run"):
                findings = _run(spec, options, _watched(study, read.add), folder)
        except AssertionError:
            raise
        except Exception as failure:
            raise AssertionError(
                f"analysis {spec.name}: {what} it failed ({one_line(failure)}); leave out what cannot be "
                "computed, and say so in the summary"
            ) from failure
        content = _as_json(findings, spec, what=what)
        _check_findings(content, folder, spec, what=what)
    require(_contents(study) == _contents(make()), spec, "run changed the study; copy arrays before changing")
    _check_declared_needs(read, spec)
    return content


def _as_json(findings: Findings, spec: AnalysisSpec, *, what: str) -> dict[str, Any]:
    try:
        content = findings_to_json(findings)
        json.dumps(content, allow_nan=False)
    except (TypeError, ValueError) as failure:
        raise AssertionError(
            f"analysis {spec.name}: {what} its findings cannot be written as JSON ({failure}); use str, int, "
            "float and None"
        ) from failure
    return content


def _check_findings(content: Mapping[str, Any], folder: Path, spec: AnalysisSpec, *, what: str) -> None:
    _check_text(content["title"], "title", spec)
    for sentence in content["summary"]:
        _check_text(sentence, "sentence of the summary", spec)
    off = [key for key, value in content["numbers"].items() if not isinstance(value, (int, float, type(None)))]
    require(not off, spec, f"numbers {off} are no numbers; give floats, or None for what is not defined")
    for kind in ("tables", "figures"):
        names = Counter(entry["name"] for entry in content[kind])
        twice = [name for name, count in names.items() if count > 1]
        require(not twice, spec, f"{what} two of its {kind} are called {twice}; name each once")
    for table in content["tables"]:
        _check_table(table, folder, spec)
    for figure in content["figures"]:
        _check_figure(figure, folder, spec)


def _check_text(text: object, what: str, spec: AnalysisSpec) -> None:
    require(isinstance(text, str) and bool(text.strip()), spec, f"a {what} is {text!r}; write some words")


def _check_table(table: Mapping[str, Any], folder: Path, spec: AnalysisSpec) -> None:
    name, columns = table["name"], table["columns"]
    _check_text(table["caption"], f"caption of the table {name!r}", spec)
    require(
        bool(columns) and len(set(columns)) == len(columns),
        spec,
        f"the table {name!r} has columns {columns}; give some, each its own name",
    )
    for row in table["rows"]:
        require(
            len(row) == len(columns) and all(isinstance(c, (str, int, float, type(None))) for c in row),
            spec,
            f"the table {name!r} has columns {columns} and a row {row}; give one str, int, float or None per "
            "column",
        )
    if table["data"]:
        _check_data(table["data"], folder, spec, of=f"table {name!r}")


def _check_figure(figure: Mapping[str, Any], folder: Path, spec: AnalysisSpec) -> None:
    name, image = figure["name"], figure["image"]
    _check_text(figure["caption"], f"caption of the figure {name!r}", spec)
    path = _inside(image, folder, spec, of=f"figure {name!r}")
    require(
        path.is_file() and path.read_bytes().startswith(PNG_SIGNATURE),
        spec,
        f"the image {image!r} of the figure {name!r} is no PNG file in its folder; the report shows PNG",
    )
    _check_data(figure["data"], folder, spec, of=f"figure {name!r}")


def _check_data(data: str, folder: Path, spec: AnalysisSpec, *, of: str) -> None:
    path = _inside(data, folder, spec, of=of)
    header: list[str] = []
    if path.is_file() and path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            header = next(csv.reader(file), [])
    require(
        bool(header), spec, f"the {of} has its data in {data!r}, which is no CSV file; write what it shows"
    )


def _inside(name: str, folder: Path, spec: AnalysisSpec, *, of: str) -> Path:
    is_inside = (folder / name).resolve().is_relative_to(folder.resolve())
    require(
        not Path(name).is_absolute() and is_inside,
        spec,
        f"the {of} names the file {name!r}; give a path relative to its folder",
    )
    return folder / name


def _contents(study: Study) -> list[Any]:
    """Everything that a study holds, as values that compare."""
    contents: list[Any] = [study.case_ids, study.subject_ids, study.resamples, study.seed]
    for model in study.models:
        table = model.predictions
        contents += [model.name, table.case_ids, table.subject_ids, table.folds, list(table.targets)]
        for answers in table.targets.values():
            contents += [answers.target, *(a.tolist() for a in (answers.truth, answers.predicted))]
            contents.append(answers.probabilities.tolist())
    return contents


def _check_declared_needs(read: set[str], spec: AnalysisSpec) -> None:
    for name in sorted(read):
        meant = sorted(_MEANS[name])
        require(
            bool(spec.needs & _MEANS[name]),
            spec,
            f"it reads {name!r} of the study, but needs is {sorted(spec.needs)}; declare {' or '.join(meant)}",
        )


def _check_failing(spec: AnalysisSpec, options: Mapping[str, Any] | None, make: Callable[[], Study]) -> None:
    """Where the second model cannot be read, it may write nothing beyond its folder, nor end the program."""
    count = 0

    def fail(name: str) -> None:
        nonlocal count
        count += name == "predictions"
        if count > 1:
            raise _Injected("a failure in the middle of the analysis")

    with own_folder(spec) as folder, left_alone(spec, "a failing run"):
        try:
            _run(spec, options, _watched(make(), fail), folder)
        except SystemExit as failure:
            raise AssertionError(
                f"analysis {spec.name}: a failure in it ends the program ({one_line(failure)}); let "
                "exceptions through, and the other analyses go on"
            ) from failure
        except Exception:  # the engine tells of it, and the other analyses go on
            return


def _watched(study: Study, tell: Callable[[str], None]) -> Study:
    """The same study, which tells what an analysis reads of it and of its models."""

    def told(name: str) -> None:
        if name in _MEANS and sys._getframe(2).f_globals.get("__name__") not in _BOOKKEEPING:
            tell(name)

    class WatchedModel(StudyModel):
        def __getattribute__(self, name: str) -> Any:
            told(name)
            return super().__getattribute__(name)

    class WatchedStudy(Study):
        def __getattribute__(self, name: str) -> Any:
            told(name)
            return super().__getattribute__(name)

    models = tuple(WatchedModel(**vars(model)) for model in study.models)
    return WatchedStudy(**{**vars(study), "models": models})
