"""The last step from a raw dataset to preprocessed volumes, and the check that nothing is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oaplug.commands.prepare_steps import locate
from oaplug.commands.problems import print_problems, refuse
from oaplug.commands.shell import Progress
from oaplug.core.errors import DatasetError

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from oaplug.core.dataset import Dataset
    from oaplug.prepare.case_state import State
    from oaplug.prepare.completeness import Completeness
    from oaplug.prepare.folder import PreprocessedFolder


def preprocess(arguments: argparse.Namespace) -> Path:
    """Make what is missing or changed of every case, and freeze the splits; gives the folder.

    Raises DatasetError after printing a table of the cases that failed, without --skip-bad.
    """
    from oaplug.prepare.preprocess_dataset import preprocess_dataset

    dataset, data = locate(arguments)
    the_plan = data.plan(arguments.plans)
    data.publish(dataset)
    _freeze_splits(dataset, data)
    with Progress("preprocessing") as progress:
        report = preprocess_dataset(
            dataset,
            the_plan,
            arguments.configurations,
            data.folder,
            processes=arguments.np,
            part=(arguments.part_id, arguments.num_parts),
            skip_bad=arguments.skip_bad,
            progress=progress,
        )
    print(f"preprocessed {len(report.done)} cases, {len(report.skipped)} were up to date")
    if arguments.num_parts == 1:
        _conclude(report.completeness, arguments)
    if report.problems and not arguments.skip_bad:
        refuse(report.problems, "could not be preprocessed")
    return data.folder


def _freeze_splits(dataset: Dataset, data: PreprocessedFolder) -> None:
    from oaplug.prepare.splits import labelled_training_cases, read_or_make_splits

    if labelled_training_cases(dataset.cases):
        try:
            read_or_make_splits(data.splits_path, dataset.cases, dataset.description.targets)
        except DatasetError as failure:
            print(f"no folds: {failure}")


def _conclude(completeness: Completeness, arguments: argparse.Namespace) -> None:
    """Write the record, and show what is in quarantine; raises DatasetError where nothing is left."""
    from oaplug.prepare.completeness import write_preprocessing_record

    path = write_preprocessing_record(completeness, plans=arguments.plans)
    marks = completeness.quarantined()
    count = len({mark.case_id for mark in marks})
    if marks and arguments.skip_bad:
        print_problems(list(dict.fromkeys(mark.problem for mark in marks)))
    if marks:
        print(f"{count} cases are in quarantine and left out of training (list: {path})")
    if marks and count == len(completeness.states):
        raise DatasetError(f"every case of {completeness.folder.name} is in quarantine (list: {path})")


def finalize(arguments: argparse.Namespace) -> Path:
    """Say whether every case is preprocessed, and write the record; gives the folder.

    Raises DatasetError where cases are not finished or, without --skip-bad, in quarantine.
    """
    from oaplug.core.artifacts import remove_unfinished
    from oaplug.prepare.completeness import check_completeness
    from oaplug.prepare.preprocess_dataset import STALE_AFTER_S, choose_configurations, share_of

    dataset, data = locate(arguments)
    channels = len(dataset.description.channel_names)
    chosen = choose_configurations(data.plan(arguments.plans), arguments.configurations, channels=channels)
    with Progress("checking") as progress:
        found = check_completeness(
            share_of(dataset, (0, 1)), chosen, data.folder, processes=arguments.np, progress=progress
        )
    remove_unfinished(data.folder, older_than_s=STALE_AFTER_S)
    for name in found.identifiers:
        _print_states(found, name)
    _conclude(found, arguments)
    _refuse_incomplete(found, arguments)
    return data.folder


def _print_states(found: Completeness, identifier: str) -> None:
    print(f"{identifier}: {len(found.cases_in('complete', identifier))} of {len(found.states)} complete")
    states: tuple[State, ...] = ("missing", "outdated", "quarantined")
    for state in states:
        if case_ids := found.cases_in(state, identifier):
            print(f"  {state} ({len(case_ids)}): {' '.join(case_ids)}")


def _refuse_incomplete(found: Completeness, arguments: argparse.Namespace) -> None:
    quarantined = {mark.case_id for mark in found.quarantined()}
    if found.unfinished:
        where = ""
        if arguments.num_parts > 1:
            parts = found.unfinished_parts(arguments.num_parts)
            where = f" of -part_id {', '.join(map(str, parts))} (of {arguments.num_parts})"
        raise DatasetError(
            f"{len(found.unfinished)} of {len(found.states)} cases{where} are not finished (listed above); "
            "run oaplug_preprocess without --finalize"
        )
    if quarantined and not arguments.skip_bad:
        raise DatasetError(
            f"{len(quarantined)} of {len(found.states)} cases are in quarantine (table above); mend them and "
            "run oaplug_preprocess again, or accept that with --skip-bad"
        )


def say_next(folder: Path, arguments: argparse.Namespace) -> None:
    """Where the result lies and what to run next."""
    from oaplug.prepare.folder import PreprocessedFolder

    print(f"result: {folder}")
    if arguments.num_parts > 1 and not getattr(arguments, "finalize", False):
        print(
            f"next:   oaplug_preprocess -d {arguments.dataset} -num_parts {arguments.num_parts} --finalize, "
            "once all parts are done"
        )
        return
    words = [f"oaplug_train {arguments.dataset} {arguments.configurations[0]} 0"]
    has_hierarchy = any(t.is_derived for t in PreprocessedFolder(folder).description().targets.values())
    head = "dual" if has_hierarchy else "single"
    words += [f"-b {getattr(arguments, 'backbone', None) or 'resnet3d'} --head {head}"]
    words += [f"--plans {arguments.plans}"] if arguments.plans != "oaplugPlans" else []
    print(f"next:   {' '.join(words)}")
