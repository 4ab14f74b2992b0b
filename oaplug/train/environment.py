"""What must stay as it is for a resumed run to give the numbers of an uninterrupted one."""

from __future__ import annotations

import platform
import warnings
from typing import TYPE_CHECKING, Any

import torch

import oaplug
from oaplug.core.artifacts import digest_of_json
from oaplug.prepare.store import read_record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from oaplug.core.case import Case
    from oaplug.prepare.folder import PreprocessedFolder


def environment(*, device: torch.device, processes: int, data: str) -> dict[str, Any]:
    """Code, machine, threads, processes and data (a digest) of a training, as its checkpoints keep them."""
    return {
        "oaplug": oaplug.__version__,
        "torch": torch.__version__,
        "machine": f"{platform.machine()} {platform.node()}",
        "device": str(device),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "data": data,
    }


def digest_of_data(folder: PreprocessedFolder, identifier: str, *parts: Sequence[Case]) -> str:
    """A digest over lists of cases (training, validation): their order, images and labels."""
    return digest_of_json(
        [
            [
                (case.case_id, read_record(folder.record_path(identifier, case.case_id)).inputs, case.labels)
                for case in part
            ]
            for part in parts
        ]
    )


def warn_of_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Warn, in one line each, of what makes a resumed run differ from an uninterrupted one."""
    for name in (key for key in before if key in now and before[key] != now[key]):
        warnings.warn(
            f"this training was begun with {name} {before[name]}, and goes on with {now[name]}: its numbers "
            "will not be those of an uninterrupted run, bit for bit",
            stacklevel=2,
        )
