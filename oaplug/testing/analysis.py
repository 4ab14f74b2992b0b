"""The contract of an analysis."""

from __future__ import annotations

import csv
import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oaplug.core.findings import Findings, findings_to_json
from oaplug.core.study import Study, StudyModel
from oaplug.plug.registry import parse_options
from oaplug.testing.checks import check_import, check_options, one_line, require
from oaplug.testing.surroundings import left_alone, own_folder
from oaplug.testing.toy_study import TOY_STUDIES

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from oaplug.core.study import ModelSource
    from oaplug.plug.specs import AnalysisSpec

    Options = Mapping[str, Any] | None
    Make = Callable[[], Study]

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def check_analysis(
    spec: AnalysisSpec, options: Options = None, *, studies: Mapping[str, Make] | None = None
) -> None:
    """Check everything the engine relies on in an analysis.

    Args:
        spec: the analysis.
        options: its options (default: its own).
        studies: what it is run on: by how each study differs, a function that makes it, the same every time
            (default: TOY_STUDIES of oaplug.testing.toy_study, which provide all there is to need).

    Raises:
        AssertionError: saying what to change.
    """
    check_import(spec)
    check_options(spec, options)
    studies = TOY_STUDIES if studies is None else studies
    for make in studies.values():
        lacking = sorted(spec.needs - make().provides)
        require(not lacking, spec, f"it needs {', '.join(lacking)}; give studies that provide them")
    (what, make), *others = studies.items()
    _check_with_declared_needs(spec, options, make, what=f"on a study {what}")
    for what, other in others:
        _check_on(spec, options, other, what=f"on a study {what}")
    if len(make().models) > 1:
        _check_failing(spec, options, make)


def meets_needs(spec: AnalysisSpec) -> bool:
    """Whether toy studies provide what an analysis needs."""
    return all(spec.needs <= make().provides for make in TOY_STUDIES.values())


def _run(spec: AnalysisSpec, options: Options, study: Study, folder: Path) -> Findings:
    findings = spec.build(parse_options(spec, options)).run(study, folder)
    require(
        isinstance(findings, Findings),
        spec,
        f"run gave {type(findings).__name__}; give oaplug.core.findings.Findings",
    )
    return findings


def _check_with_declared_needs(spec: AnalysisSpec, options: Options, make: Make, *, what: str) -> None:
    """Where a study provides no more than is declared it must work, and twice in the same way."""

    def limited() -> Study:
        return only_with(make(), spec.needs)

    try:
        first = _check_on(spec, options, limited, what=what)
    except AssertionError as failure:
        _check_on(spec, options, make, what=what)
        raise AssertionError(
            f"analysis {spec.name}: where a study provides {', '.join(sorted(spec.needs))} and no more, it "
            "fails, though it does not with all else; declare in needs what it reads, or do without it"
        ) from failure
    with own_folder(spec) as folder:
        again = findings_to_json(_run(spec, options, limited(), folder))
    require(
        first == again,
        spec,
        "two runs on the same study gave different findings; draw from "
        "oaplug.core.seeds.random_generator(study.seed, ...)",
    )


def _check_on(spec: AnalysisSpec, options: Options, make: Make, *, what: str) -> dict[str, Any]:
    """The findings on one study, as JSON, once they are what a report can show."""
    study = make()
    with own_folder(spec) as folder:
        try:
            with left_alone(spec, "run"):
                findings = _run(spec, options, study, folder)
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
    off = [
        key for key, value in content["numbers"].items() if not isinstance(value, (int, float, type(None)))
    ]
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


def _check_failing(spec: AnalysisSpec, options: Options, make: Make) -> None:
    """Where the second model cannot be read, it may write nothing beyond its folder, nor end the program."""
    study = make()
    first, second, *rest = study.models
    models = (first, _Unreadable(**vars(second)), *rest)
    with own_folder(spec) as folder, left_alone(spec, "a failing run"):
        try:
            _run(spec, options, replace(study, models=models), folder)
        except SystemExit as failure:
            raise AssertionError(
                f"analysis {spec.name}: a failure in it ends the program ({one_line(failure)}); let "
                "exceptions through, and the other analyses go on"
            ) from failure
        except Exception:  # the engine tells of it, and the other analyses go on
            return


class _Unreadable(StudyModel):
    """A model whose predictions fail in the middle of an analysis."""

    def __getattribute__(self, name: str) -> Any:
        if name == "predictions":
            raise OSError("the predictions cannot be read")
        return super().__getattribute__(name)


def only_with(study: Study, needs: Collection[str]) -> Study:
    """A study of which no more is there than `needs`."""
    has_cases = bool({"images", "masks"} & set(needs))
    cases = {
        n: replace(case, mask=case.mask if "masks" in needs else None) for n, case in study.cases.items()
    }
    models = [
        replace(
            model,
            folder=model.folder if set(needs) - {"predictions"} else None,
            source=None if model.source is None else _Limited(source=model.source, needs=frozenset(needs)),
        )
        for model in study.models
    ]
    return replace(
        study,
        models=tuple(models),
        cases=cases if has_cases else {},
        read_image=study.read_image if has_cases else None,
        grids=study.grids if has_cases else None,
        covariates=study.covariates if "covariates" in needs else {},
    )


@dataclass(frozen=True, kw_only=True)
class _Limited:
    """A model's source that provides `needs` alone."""

    source: ModelSource
    needs: frozenset[str]

    def lacks(self, need: str) -> str:
        return self.source.lacks(need) if need in self.needs else f"{need} was not asked for"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)
