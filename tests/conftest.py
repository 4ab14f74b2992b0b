"""What tests share: one thread, nothing from the environment, and projects on toy data."""

from __future__ import annotations

import locale
import os

# before anything imports torch: tests run side by side, and a second thread costs more than it gives
os.environ.setdefault("OMP_NUM_THREADS", "1")

import shutil
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest

# how long an example takes says more about the machine's other work than about the code
hypothesis.settings.register_profile("oaplug", deadline=None)
hypothesis.settings.load_profile("oaplug")

SMALL_NETWORK = (
    *("--set", "backbone.width=4"),
    *("--set", "backbone.depth=10"),
    *("--set", "backbone.dilated=false"),
    *("--set", "backbone.stem_kernel=3"),
)


@dataclass(frozen=True)
class Project:
    """The three roots below one folder, and the commands that work on them in this process."""

    root: Path

    @property
    def raw(self):
        return self.root / "raw"

    @property
    def preprocessed(self):
        return self.root / "preprocessed"

    @property
    def results(self):
        return self.root / "results"

    def copy(self, root):
        """The same project in an empty folder, free to be changed."""
        shutil.copytree(self.root, root, dirs_exist_ok=True)
        return Project(root)

    def prepare_arguments(self, dataset, *more):
        places = ("--raw", self.raw, "--preprocessed", self.preprocessed)
        return [str(a) for a in ("-d", dataset, "-np", 1, *places, *more)]

    def prepare(self, dataset, *more):
        """oaplug_plan_and_preprocess; gives its exit status."""
        from oaplug.commands import plan_and_preprocess

        return plan_and_preprocess.main(self.prepare_arguments(dataset, *more))

    def train_arguments(self, dataset, *more, fold=0, epochs=1):
        places = ("--preprocessed", self.preprocessed, "--results", self.results, "-device", "cpu")
        epochs = ("--set", f"training.epochs={epochs}")
        return [str(a) for a in (dataset, "3d_lowres", fold, *places, *SMALL_NETWORK, *epochs, *more)]

    def train(self, dataset, *more, fold=0, epochs=1):
        """oaplug_train with a network of a few thousand weights; gives its exit status."""
        from oaplug.commands import train

        return train.main(self.train_arguments(dataset, *more, fold=fold, epochs=epochs))

    def predict(self, model, images, *more):
        """oaplug_predict_from_modelfolder; gives its exit status."""
        from oaplug.commands import predict_from_modelfolder

        return predict_from_modelfolder.main(
            [str(a) for a in ("-m", model, "-i", images, "-device", "cpu", *more)]
        )

    def model(self, dataset, name, *, tag=None):
        """The model folder of a dataset, by the model's name (resnet3d-single_kl) and tag."""
        parts = (name, "oaplugPlans", "3d_lowres", *([tag] if tag else []))
        return self.results / dataset / "__".join(parts)


@pytest.fixture(autouse=True)
def _places_only_from_arguments(monkeypatch):
    """No test may touch what the person who runs it has in these places, or be changed by their choices."""
    for name in ("oaplug_raw", "oaplug_preprocessed", "oaplug_results"):
        monkeypatch.delenv(name, raising=False)
    for name in ("OAPLUG_LOAD_PLUGINS", "OAPLUG_PLUGINS_STRICT", "OAPLUG_TRACE_PLUGINS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OAPLUG_CONFIG", os.devnull)


@pytest.fixture(autouse=True)
def _locale_stays():
    """GDCM, which reads and writes DICOM, leaves the locale C behind at times."""
    language = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, language)


@pytest.fixture(scope="session")
def trained_project(tmp_path_factory):
    """Toy dataset 901 (a hierarchy), preprocessed, with fold 0 of one model trained for an epoch.

    Read only: tests that change something take a `copy`.
    """
    from oaplug.testing.toy import write_toy_dataset

    project = Project(tmp_path_factory.mktemp("trained"))
    write_toy_dataset(project.raw / "Dataset901_Toy")
    assert project.prepare(901) == 0
    assert project.train(901) == 0
    return project
