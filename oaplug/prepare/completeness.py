"""Whether a dataset is preprocessed: how every case stands, what is in quarantine and why."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import oaplug
from oaplug.core.artifacts import write_json
from oaplug.core.settings import to_mapping
from oaplug.prepare.case_state import inputs_of, release_complete, state_of
from oaplug.prepare.pool import for_each_case
from oaplug.prepare.preprocess import PREPROCESSING_REVISION
from oaplug.prepare.quarantine import FINGERPRINT_STEP, RECORD_FILE, marked_cases, read_mark
from oaplug.prepare.store import writing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from oaplug.core.case import Case
    from oaplug.core.plan import Configuration
    from oaplug.prepare.case_state import State
    from oaplug.prepare.pool import Progress
    from oaplug.prepare.quarantine import Mark

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Completeness:
    """How cases stand: a state by case id and data identifier, in the order of the dataset."""

    folder: Path
    identifiers: tuple[str, ...]
    states: Mapping[str, Mapping[str, State]]

    def cases_in(self, state: State, identifier: str) -> tuple[str, ...]:
        """Ids of the cases in a state for a configuration; one the fingerprint left out is quarantined."""
        marked = marked_cases(self.folder, FINGERPRINT_STEP)
        return tuple(
            case_id
            for case_id, states in self.states.items()
            if state == ("quarantined" if case_id in marked else states[identifier])
        )

    @property
    def unfinished(self) -> tuple[str, ...]:
        """Ids of the cases that a run would make."""
        lists = [self.cases_in(state, name) for name in self.identifiers for state in _UNFINISHED]
        found = {case_id for listed in lists for case_id in listed}
        return tuple(case_id for case_id in self.states if case_id in found)

    def unfinished_parts(self, num_parts: int) -> tuple[int, ...]:
        """Which of the shares of -num_parts have cases that are not finished."""
        unfinished = set(self.unfinished)
        places = [place for place, case_id in enumerate(self.states) if case_id in unfinished]
        return tuple(sorted({place % num_parts for place in places}))

    def quarantined(self) -> list[Mark]:
        """The marks of the cases in quarantine, one for every step that left a case out, by case."""
        listed = {name: set(self.cases_in("quarantined", name)) for name in self.identifiers}
        steps = [FINGERPRINT_STEP, *self.identifiers]
        marks = [
            read_mark(self.folder, step, case_id)
            for case_id in self.states
            for step in steps
            if case_id in listed.get(step, self.states)
        ]
        return [mark for mark in marks if mark is not None]


_UNFINISHED: tuple[State, ...] = ("missing", "outdated")


def check_completeness(
    cases: Sequence[Case],
    configurations: Sequence[Configuration],
    folder: Path,
    *,
    processes: int,
    progress: Progress | None = None,
) -> Completeness:
    """Hold every case's record in `folder` against its images as they are now.

    It makes nothing; a case that turns out to be complete leaves the quarantine.
    """
    look = partial(_states_of, configurations=tuple(configurations), folder=folder)
    outcomes = for_each_case(look, cases, processes=processes, progress=progress)
    identifiers = tuple(configuration.data_identifier for configuration in configurations)
    unknown: dict[str, State] = dict.fromkeys(identifiers, "missing")
    return Completeness(
        folder=folder,
        identifiers=identifiers,
        states={case.case_id: outcomes.results.get(case.case_id, unknown) for case in cases},
    )


def _states_of(case: Case, *, configurations: tuple[Configuration, ...], folder: Path) -> dict[str, State]:
    inputs = inputs_of(case)
    states = {c.data_identifier: state_of(case, c, folder=folder, inputs=inputs) for c in configurations}
    release_complete(case, states, folder=folder)
    return states


def _ids_by_state(completeness: Completeness, identifier: str) -> dict[str, Any]:
    states: tuple[State, ...] = (*_UNFINISHED, "quarantined")
    ids: dict[str, Any] = {state: list(completeness.cases_in(state, identifier)) for state in states}
    return {"complete": len(completeness.cases_in("complete", identifier))} | ids


def write_preprocessing_record(completeness: Completeness, *, plans: str) -> Path:
    """Write preprocessing_record.json: counts and ids by state and configuration, and the quarantine list."""
    path = completeness.folder / RECORD_FILE
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "oaplug": oaplug.__version__,
        "revision": PREPROCESSING_REVISION,
        "plans": plans,
        "cases": len(completeness.states),
        "configurations": {name: _ids_by_state(completeness, name) for name in completeness.identifiers},
        "quarantined": to_mapping(completeness.quarantined()),
    }
    with writing(path):
        return write_json(path, content)
