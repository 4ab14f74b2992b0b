"""oaplug VERB ...: every command under one name; `oaplug train ...` is `oaplug_train ...`."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

import oaplug

if TYPE_CHECKING:
    from collections.abc import Sequence

VERBS = {
    "make_phantom": "make a data set of parametric knees to try things on",
    "convert": "turn a data set into a raw dataset folder",
    "convert_weights": "turn released weights into a checkpoint",
    "extract_fingerprint": "measure the training cases",
    "plan_experiment": "decide geometry, training and augmentation",
    "preprocess": "bring every case into a plan's geometry",
    "plan_and_preprocess": "the three before in one go",
    "plot_augmentation": "a picture of augmented cases, to look at before training",
    "train": "train folds of a model",
    "predict": "predict raw images with a trained model",
    "predict_from_modelfolder": "the same with a model folder from anywhere",
    "evaluate": "metrics of one prediction table, or of a cross-validated model",
    "find_best_configuration": "compare cross-validated models of a dataset",
    "analyze": "compare models and write a report",
    "doctor": "check this installation",
    "plugins": "list the parts that are installed",
    "new_plugin": "write a new plugin to be changed",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Hand over to the command named first."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    verb = given[0].replace("-", "_") if given else "--help"
    if verb in {"__version", "__version__"}:
        print(f"oaplug {oaplug.__version__}")
        return 0
    if verb in VERBS:
        return int(import_module(f"oaplug.commands.{verb}").main(given[1:]))
    if verb in {"__help", "_h", "--help"}:
        print("usage: oaplug VERB ...\n")
        print("\n".join(f"  {name:<26}{what}" for name, what in VERBS.items()))
        print("\noaplug VERB --help says more; oaplug --version the version.")
        return 0
    print(f"oaplug: no verb {given[0]!r} (see oaplug --help)", file=sys.stderr)
    return 2
