"""The same work for every case, in this process or in several."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TYPE_CHECKING, TypeVar

from oaplug.core.errors import OaplugError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Future

    Progress = Callable[[int, int, str], None]

Task = TypeVar("Task")
Result = TypeVar("Result")
_NAMED = 5


def for_each_case(
    work: Callable[[Task], Result],
    tasks: Mapping[str, Task],
    *,
    processes: int,
    progress: Progress | None = None,
) -> dict[str, Result]:
    """What `work` gives for the task of each case id, in the order of `tasks`.

    With several processes these are spawned, so `work` must be a function of a module and tasks must
    pickle. Raises OaplugError naming the cases that were left where a process is killed; what `work`
    raises comes through.
    """
    if processes < 1:
        raise OaplugError(f"the number of processes must be at least 1, got {processes}")
    if processes == 1 or len(tasks) < 2:
        results = {}
        for case_id, task in tasks.items():
            results[case_id] = work(task)
            _report(progress, done=len(results), total=len(tasks), what=case_id)
        return results
    return _in_processes(work, tasks, processes=min(processes, len(tasks)), progress=progress)


def _in_processes(
    work: Callable[[Task], Result], tasks: Mapping[str, Task], *, processes: int, progress: Progress | None
) -> dict[str, Result]:
    results: dict[str, Result] = {}
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=use_one_thread)
    try:
        futures: dict[Future[Result], str] = {
            pool.submit(work, task): case_id for case_id, task in tasks.items()
        }
        for future in as_completed(futures):
            results[futures[future]] = future.result()
            _report(progress, done=len(results), total=len(tasks), what=futures[future])
    except BrokenProcessPool:
        raise OaplugError(_broken([case_id for case_id in tasks if case_id not in results])) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return {case_id: results[case_id] for case_id in tasks}


def use_one_thread() -> None:
    """Keep SimpleITK in a worker process to one thread, since every processor has its own worker."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def _broken(left: list[str]) -> str:
    named = ", ".join(left[:_NAMED]) + (f" and {len(left) - _NAMED} more" if len(left) > _NAMED else "")
    reason = "a worker process was killed, most often for want of memory"
    return f"{reason}; not finished: {named}; run the command again with -np 1 (finished cases are kept)"


def _report(progress: Progress | None, *, done: int, total: int, what: str) -> None:
    if progress is not None:
        progress(done, total, what)
