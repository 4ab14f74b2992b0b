"""The same work for every case, in this process or in several; a case that fails stops no other."""

from __future__ import annotations

import logging
import traceback
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from oaplug.core.case import Problem
from oaplug.core.errors import OaplugError, PathError
from oaplug.prepare.workers import spread

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from oaplug.core.case import Case

    Progress = Callable[[int, int, str], None]

LOGGER = logging.getLogger(__name__)
Result = TypeVar("Result")
KILLED, OUT_OF_MEMORY = "killed its process", "out of memory"
_SHOWN = 3
_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Outcomes(Generic[Result]):
    """What came of every case, by id and in the order of the cases: a result, or a problem."""

    results: dict[str, Result]
    problems: dict[str, Problem]


@dataclass(frozen=True, kw_only=True)
class _Answer:
    result: Any = None
    problem: Problem | None = None
    trace: str = ""
    stop: str = ""


def for_each_case(
    work: Callable[[Case], Result],
    cases: Sequence[Case],
    *,
    processes: int,
    progress: Progress | None = None,
) -> Outcomes[Result]:
    """What `work` gives for each case, or the problem where it raises (with a traceback in the log).

    With several processes these are spawned, so `work` must pickle: a function of a module, or a partial of
    one. A case whose process dies, or has no memory left, is tried once more at the end, alone in a fresh
    process; if that dies too, this is its problem. Raises PathError where `work` does, because a place that
    cannot be written is no fault of a case, and OaplugError where processes die before they begin.
    """
    if processes < 1:
        raise OaplugError(f"the number of processes must be at least 1, got {processes}")
    answers: dict[str, _Answer] = {}
    with closing(_all_answers(work, cases, processes=min(processes, len(cases)))) as stream:
        for case, answer in stream:
            if answer.stop:
                raise PathError(answer.stop)
            if answer.trace:
                LOGGER.error("case %s failed unexpectedly:\n%s", case.case_id, answer.trace)
            answers[case.case_id] = answer
            if progress is not None:
                progress(len(answers), len(cases), case.case_id)
    ordered = [(case.case_id, answers[case.case_id]) for case in cases]
    return Outcomes(
        results={case_id: answer.result for case_id, answer in ordered if not answer.problem},
        problems={case_id: answer.problem for case_id, answer in ordered if answer.problem},
    )


def problem_of(case: Case, failure: BaseException) -> Problem:
    """What a failure of `work` says about a case: that of an ImageError, or the message of another error."""
    problem = getattr(failure, "problem", None)
    if isinstance(problem, Problem):
        return problem
    if isinstance(failure, OaplugError):
        return Problem(kind="cannot be prepared", message=str(failure), case_id=case.case_id)
    message = f"failed unexpectedly ({type(failure).__name__}: {failure}); see the log"
    return Problem(kind="unexpected", message=message, case_id=case.case_id)


def in_one_line(problems: Sequence[Problem], what: str) -> str:
    """`3 cases could not be measured: ...` with the first of the problems."""
    more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
    shown = [str(problem) for problem in problems[:_SHOWN]]
    return f"{len(problems)} cases {what}: {'; '.join([*shown, *more])}"


def _all_answers(
    work: Callable[[Case], Result], cases: Sequence[Case], *, processes: int
) -> Generator[tuple[Case, _Answer], None, None]:
    """Every case with its answer, as they come; those whose process died are tried again at the end."""
    if processes <= 1:
        yield from ((case, _attempt_here(work, case)) for case in cases)
        return
    suspects, attempt = [], partial(_attempt, work)
    with closing(spread(attempt, cases, processes=processes, begin=use_one_thread)) as stream:
        for case, answer in stream:
            if answer is None:
                LOGGER.warning("the process of case %s died; it is tried again, alone", case.case_id)
                suspects.append(case)
            else:
                yield case, answer
    for suspect in suspects:
        with closing(spread(attempt, [suspect], processes=1, begin=use_one_thread)) as stream:
            for case, answer in stream:
                yield case, answer or _Answer(problem=_killed(case))


def use_one_thread() -> None:
    """Keep SimpleITK in a worker process to one thread, since every processor has its own worker."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def _attempt(work: Callable[[Case], Any], case: Case) -> _Answer:
    """The answer for a case; raises nothing but MemoryError, so that one case cannot stop the others."""
    try:
        return _Answer(result=work(case))
    except MemoryError:
        raise
    except PathError as failure:
        return _Answer(stop=str(failure))
    except OaplugError as failure:
        return _Answer(problem=problem_of(case, failure))
    except Exception as failure:
        return _Answer(problem=problem_of(case, failure), trace=traceback.format_exc())


def _attempt_here(work: Callable[[Case], Any], case: Case) -> _Answer:
    try:
        return _attempt(work, case)
    except MemoryError:
        message = f"there was not enough memory for it ({_size_of(case)}); try a machine with more"
        return _Answer(problem=_about(case, message, kind=OUT_OF_MEMORY))


def _killed(case: Case) -> Problem:
    message = "killed its process twice, the second time with no other beside it (out of memory? "
    message += f"{_size_of(case)}); try a machine with more memory, or check the file"
    return _about(case, message, kind=KILLED)


def _about(case: Case, message: str, *, kind: str) -> Problem:
    file = str(case.images[0]) if case.images else ""
    return Problem(kind=kind, message=message, case_id=case.case_id, file=file)


def _size_of(case: Case) -> str:
    try:
        size_mib = sum(path.stat().st_size for path in case.images) / _MIB
    except OSError:
        return "its images cannot be looked at"
    return f"its images have {size_mib:.1f} MiB on disk"
