"""The contract of a training callback."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

from oaplug.plug.registry import parse_options
from oaplug.testing.checks import check_import, check_options, one_line, require
from oaplug.testing.surroundings import left_alone, own_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from oaplug.plug.protocols import Callback
    from oaplug.plug.specs import CallbackSpec

METHODS = ("on_start", "on_epoch", "on_end", "state_dict", "load_state_dict")
RUN: dict[str, Any] = {
    "schema": 1,
    "run": {
        "backbone": {"name": "resnet3d", "distribution": "oaplug", "options": {"width": 8, "dilated": True}},
        "head": {"name": "dual", "distribution": "oaplug", "options": {"dropout": 0.0}},
        "target": None,
        "configuration": "3d_lowres",
        "pretrained_weights": None,
        "overrides": {"training.epochs": 4, "backbone.width": 8},
    },
    "plan": {
        "schema": 1,
        "dataset_name": "Dataset901_Toy",
        "configurations": {"3d_lowres": {"size_voxels": [16, 20, 24], "spacing_mm": [2.0, 1.0, 1.25]}},
        "training": {"epochs": 4, "learning_rate": 0.001, "best_metric": "auto", "ema_decay": None},
        "reasons": {"size_voxels": "the largest case"},
    },
}
"""A run as `on_start` gets it: the content of plans.json, shortened."""


def toy_records(epochs: int) -> list[dict[str, Any]]:
    """Records of epochs as a training gives them; metrics that are not defined are None.

    In the third epoch (and every third after it) all validation metrics are undefined.
    """
    records = []
    for epoch in range(epochs):
        is_defined = epoch % 3 < 2
        losses = {"train.loss.total": 1.5 / (epoch + 1), "train.loss.kl": 1.0 / (epoch + 1)}
        metrics = {"kl.qwk": 0.2 + 0.1 * epoch, "kl.mae": 1.1, "oa.auc": 0.6, "oa.accuracy": 0.55}
        records.append(
            {
                **{"epoch": epoch, "learning_rate": 1e-3 / (epoch + 1), **losses},
                **{"val.loss.total": 1.7, "val.loss.kl": 1.2},
                **{f"val.{name}": value if is_defined else None for name, value in metrics.items()},
                **{"skipped": 0, "seconds": 0.125},
            }
        )
    return records


def check_callback(spec: CallbackSpec, options: Mapping[str, Any] | None = None) -> None:
    """Check everything the engine relies on in a callback.

    Args:
        spec: the callback.
        options: its options (default: its own; the command line gives it no others).

    Raises:
        AssertionError: saying what to change.
    """
    check_import(spec)
    check_options(spec, options)
    records = toy_records(4)
    with own_folder(spec) as folder:
        first = _build(spec, options, folder)
        _state(first, spec, when="before training")
        _look_on(first, records[:2], spec, ends=False)
        state = _state(first, spec, when="after two epochs")
        resumed = _build(spec, options, folder)
        with left_alone(spec, "load_state_dict"):
            resumed.load_state_dict(json.loads(json.dumps(state)))
        again = _state(resumed, spec, when="after load_state_dict")
        require(
            again == state,
            spec,
            f"state_dict gave {state}, and {again} once that was loaded; take up in load_state_dict what "
            "state_dict gives",
        )
        _look_on(resumed, records[2:], spec, ends=True)
        _call(first.on_end, (), spec, what="on_end")
    with own_folder(spec) as folder:
        _look_on(_build(spec, options, folder), [], spec, ends=True)


def _build(spec: CallbackSpec, options: Mapping[str, Any] | None, folder: Path) -> Callback:
    with left_alone(spec, "build"):
        callback = spec.build(parse_options(spec, options), folder=folder)
    lacking = [name for name in METHODS if not callable(getattr(callback, name, None))]
    require(
        not lacking, spec, f"it has no {', '.join(lacking)}; add them, if only with nothing but a docstring"
    )
    return callback


def _look_on(
    callback: Callback, records: Sequence[Mapping[str, Any]], spec: CallbackSpec, *, ends: bool
) -> None:
    """Start, epochs and, where it `ends`, the end of a training."""
    _call(callback.on_start, (RUN,), spec, what="on_start")
    for record in records:
        undefined = [name for name, value in record.items() if value is None]
        what = "on_epoch" + (f" with metrics that are None ({', '.join(undefined)})" if undefined else "")
        _call(callback.on_epoch, (record,), spec, what=what)
    if ends:
        what = "on_end" if records else "on_end without an epoch, as when a finished training is resumed,"
        _call(callback.on_end, (), spec, what=what)


def _call(method: Callable[..., object], given: tuple[Any, ...], spec: CallbackSpec, *, what: str) -> None:
    """Call a method as the trainer does; it may change neither what it is given nor the process."""
    copies = copy.deepcopy(given)
    try:
        with left_alone(spec, what):
            method(*copies)
    except AssertionError:
        raise
    except (Exception, SystemExit) as failure:
        raise AssertionError(
            f"callback {spec.name}: {what} failed ({one_line(failure)}); a callback only looks on"
        ) from failure
    require(copies == given, spec, f"{what} changed what it was given; copy it before changing it")


def _state(callback: Callback, spec: CallbackSpec, *, when: str) -> dict[str, Any]:
    with left_alone(spec, "state_dict"):
        state = callback.state_dict()
    try:
        survives = json.loads(json.dumps(state, allow_nan=False)) == state
    except (TypeError, ValueError):
        survives = False
    require(
        isinstance(state, dict) and survives,
        spec,
        f"{when} state_dict gave {state!r}, which JSON does not keep; give a dict with string keys, of "
        "numbers, strings, bools, None, lists and dicts",
    )
    return state
