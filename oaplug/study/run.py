"""Run analyses over a study, one isolated try each, into findings.json and a folder per analysis."""

from __future__ import annotations

import json
import logging
import traceback
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from typing import TYPE_CHECKING, Any

from oaplug.core.artifacts import make_folder, write_json
from oaplug.core.errors import OaplugError, PluginError
from oaplug.core.findings import Findings, findings_to_json
from oaplug.core.target import MISSING, grade_names
from oaplug.plug.registry import parse_options
from oaplug.plug.specs import AnalysisSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from oaplug.core.study import Study, StudyModel
    from oaplug.plug.registry import Part, Registry

    Progress = Callable[[int, int, str], None]

log = logging.getLogger(__name__)
FINDINGS_SCHEMA = 1
FINDINGS_FILE = "findings.json"
FIRST_ANALYSIS = "classification"


@dataclass(frozen=True, kw_only=True)
class StudyOutcome:
    """Where the findings lie, and per analysis its status: "ok", "skipped" or "failed"."""

    folder: Path
    findings: Path
    statuses: Mapping[str, str]

    @property
    def failed(self) -> bool:
        """Whether at least one analysis failed."""
        return "failed" in self.statuses.values()


def run_study(
    study: Study,
    analyses: Sequence[str] | None,
    *,
    folder: Path,
    registry: Registry,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    progress: Progress | None = None,
) -> StudyOutcome:
    """Run `analyses` (None: all that are registered) and write FOLDER/findings.json and FOLDER/ANALYSIS/.

    `options` gives options by analysis, called as in `analyses`. An analysis whose needs the study does
    not meet is skipped with the reason, as is one that runs on request only and was neither named nor given
    options; one that fails keeps its traceback in findings.json, and the others stand. Raises PluginError
    for an unknown name or option, before anything runs.
    """
    parts = _choose(registry, analyses)
    chosen = _options(parts, options or {}, registry=registry)
    make_folder(folder)
    sections: dict[str, dict[str, Any]] = {}
    for done, (name, part) in enumerate(parts.items()):
        if progress is not None:
            progress(done, len(parts), name)
        if analyses is None and name not in chosen and _is_on_request(part):
            outcome = _skipped(f"it takes long, so it runs only when asked for: -a {part.spec.name}")
        else:
            outcome = _run_one(study, part, options=chosen.get(name), folder=folder / name)
        sections[name] = {
            "name": name,
            "plugin": f"{part.distribution} {part.version}",
            "summary": part.spec.summary,
            **outcome,
        }
    if progress is not None:
        progress(len(parts), len(parts), "done")
    content = {**_describe(study), "analyses": list(sections.values())}
    path = write_json(folder / FINDINGS_FILE, content)
    return StudyOutcome(
        folder=folder, findings=path, statuses={name: section["status"] for name, section in sections.items()}
    )


def _is_on_request(part: Part) -> bool:
    return isinstance(part.spec, AnalysisSpec) and part.spec.on_request


def _choose(registry: Registry, names: Sequence[str] | None) -> dict[str, Part]:
    """Parts by the name of their section, `classification` first, then by name."""
    if names is None:
        parts = list(registry.of_kind(AnalysisSpec.kind))
    else:
        parts = [registry.get(AnalysisSpec.kind, name) for name in dict.fromkeys(names)]
    parts.sort(key=lambda part: (part.spec.name != FIRST_ANALYSIS, part.spec.name, part.distribution))
    counts = Counter(part.spec.name for part in parts)
    return {
        part.spec.name if counts[part.spec.name] == 1 else f"{part.distribution}-{part.spec.name}": part
        for part in parts
    }


def _options(
    parts: Mapping[str, Part], given: Mapping[str, Mapping[str, Any]], *, registry: Registry
) -> dict[str, Any]:
    """The options given for some of `parts`, checked, by the name of their section."""
    chosen = {}
    for name, mapping in given.items():
        part = registry.get(AnalysisSpec.kind, name)
        section = next((section for section, other in parts.items() if other is part), None)
        if section is None:
            raise PluginError(f"options were given for {name}, which is not among the analyses to run (-a)")
        chosen[section] = parse_options(part.spec, mapping)
    return chosen


def _run_one(study: Study, part: Part, *, options: Any, folder: Path) -> dict[str, Any]:
    """Status and findings of one analysis; `options` None: its defaults."""
    spec = part.spec
    assert isinstance(spec, AnalysisSpec)
    if not study.models_with(spec.needs):
        return _skipped(_lacking(study, spec.needs))
    try:
        options = parse_options(spec, None) if options is None else options
        findings = spec.build(options).run(study, make_folder(folder))
        if not isinstance(findings, Findings):
            raise TypeError(f"run() gave {type(findings).__name__}, expected Findings")
        content = findings_to_json(findings)
        json.dumps(content, allow_nan=False)
    except OaplugError as failure:  # something the user can put right: its message says it all
        log.warning("the analysis %s failed: %s", spec.name, failure)
        return {"status": "failed", "reason": str(failure)}
    except Exception as failure:
        text = "".join(traceback.format_exception(failure))
        log.warning("the analysis %s failed: %s: %s", spec.name, type(failure).__name__, failure)
        log.debug("%s", text)
        return {"status": "failed", "reason": f"{type(failure).__name__}: {failure}", "traceback": text}
    return {"status": "ok", "findings": content}


def _skipped(reason: str) -> dict[str, Any]:
    return {"status": "skipped", "reason": reason}


def _lacking(study: Study, needs: frozenset[str]) -> str:
    """Needs that no model of the study meets together, and what to do about it."""
    lacking = sorted(needs - study.provides) or sorted(needs)
    reasons = ". ".join(study.lacking(needs))
    return f"it needs {', '.join(lacking)}, and no model of this study has all of it. {reasons}".strip()


def _describe(study: Study) -> dict[str, Any]:
    """What was compared, as JSON."""
    return {
        "schema": FINDINGS_SCHEMA,
        "oaplug": metadata.version("oaplug"),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cases": len(study.case_ids),
        "subjects": len(set(study.subject_ids)),
        "left_out": study.left_out,
        "resamples": study.resamples,
        "seed": study.seed,
        "models": [_describe_model(model) for model in study.models],
        "targets": _describe_targets(study),
    }


def _describe_model(model: StudyModel) -> dict[str, Any]:
    table = model.predictions
    folds = sorted({fold for fold in table.folds if fold})
    return {"name": model.name, "cases": len(table.case_ids), "folds": folds, "targets": list(table.targets)}


def _describe_targets(study: Study) -> list[dict[str, Any]]:
    """Every target with how many cases have each grade (truths agree between models)."""
    described = []
    for name, target in study.targets.items():
        predictions = next(m.predictions.targets[name] for m in study.models if name in m.predictions.targets)
        counts = Counter(predictions.truth.tolist())
        grades = {grade: counts[index] for index, grade in enumerate(grade_names(target))}
        described.append(
            {
                "name": name,
                "kind": target.kind,
                "grades": grades,
                "unknown": counts[MISSING],
                "derived_from": target.derived_from,
                "at_least": target.at_least,
            }
        )
    return described
