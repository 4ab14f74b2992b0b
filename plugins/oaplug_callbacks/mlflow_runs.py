"""MLflow: a run per fold, in files of the fold's folder, or where MLFLOW_TRACKING_URI says."""

from __future__ import annotations

import logging
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from oaplug_callbacks.tracking import (
    flat_settings,
    import_optional,
    numbers,
    project_name,
    run_name,
    unless_set,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from oaplug.plug import NoOptions

log = logging.getLogger(__name__)
TRACKING_URI = "MLFLOW_TRACKING_URI"
LONGEST_VALUE = 500
ENTRIES_PER_CALL = 100
"""What every MLflow server takes: characters of a parameter, parameters at once."""


def build_mlflow(_options: NoOptions, *, folder: Path) -> MlflowCallback:
    """The callback of one fold; raises PluginError where MLflow is not installed."""
    with _on_its_own():
        mlflow = import_optional("mlflow", callback="mlflow", install="mlflow-skinny")
    return MlflowCallback(mlflow, folder)


@contextmanager
def _on_its_own() -> Iterator[None]:
    """Within, MLflow may keep runs in files, and tells nobody, unless the environment says otherwise.

    From version 3 on it reports its use, and refuses files unless asked; both are read when it is imported
    or a store is opened. Where there is a server, it is the server's own affair.
    """
    if TRACKING_URI in os.environ:
        yield
        return
    with unless_set(MLFLOW_ALLOW_FILE_STORE="true", MLFLOW_DISABLE_TELEMETRY="true"):
        yield


@dataclass
class MlflowCallback:
    """Writes settings once, as parameters, and every number of an epoch's record as a metric."""

    mlflow: Any
    folder: Path
    run_id: str | None = None
    _client: Any = None

    def on_start(self, run: Mapping[str, Any]) -> None:
        """Open the store, and the run: the one that an interrupted training had, else a new one."""
        with _on_its_own():
            uri = os.environ.get(TRACKING_URI) or (self.folder.resolve() / "mlruns").as_uri()
            self._client = self.mlflow.MlflowClient(tracking_uri=uri)
            if not self._goes_on():
                self._begin(run)
        log.info("MLflow run %s in %s", self.run_id, uri)

    def _goes_on(self) -> bool:
        """Whether the run of an interrupted training is there and open again."""
        if self.run_id is None:
            return False
        try:
            self._client.update_run(self.run_id, status="RUNNING")
        except self.mlflow.MlflowException as failure:
            log.warning("the MLflow run %s is not there (%s); a new one is begun", self.run_id, failure)
            return False
        return True

    def _begin(self, run: Mapping[str, Any]) -> None:
        name = project_name(run)
        there = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if there is None else there.experiment_id
        made = self._client.create_run(experiment, run_name=run_name(self.folder))
        self.run_id = str(made.info.run_id)
        parameters = [
            self.mlflow.entities.Param(key, str(value)[:LONGEST_VALUE])
            for key, value in flat_settings(run).items()
        ]
        for start in range(0, len(parameters), ENTRIES_PER_CALL):
            self._client.log_batch(self.run_id, params=parameters[start : start + ENTRIES_PER_CALL])

    def on_epoch(self, record: Mapping[str, Any]) -> None:
        """Write one point per number."""
        now = int(time.time() * 1000)
        metrics = [
            self.mlflow.entities.Metric(name, value, now, int(record["epoch"]))
            for name, value in numbers(record).items()
        ]
        with _on_its_own():
            self._client.log_batch(self.run_id, metrics=metrics)

    def on_end(self) -> None:
        """Say that the run is finished."""
        with _on_its_own():
            self._client.set_terminated(self.run_id)

    def state_dict(self) -> dict[str, Any]:
        """The id of the run."""
        return {"run_id": self.run_id}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the id of the run."""
        self.run_id = state.get("run_id")
