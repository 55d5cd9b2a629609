"""TrainingRun: one run of its own for `sweep train`, beside the trials of a search.

Loads mlflow, as it is imported.
"""

from __future__ import annotations

from collections.abc import Sequence

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from sweep.hyperparameters import DEFAULT_MODULE
from sweep.tracking.model import folders_of
from sweep.tracking.run import RunLog, make_run
from sweep.tracking.run_content import picture_of_training, show
from sweep.tracking.store import find_or_make_experiment, guarded, opened
from sweep.trial import DatasetInfo, EpochReport, TrialFinished, TrialHistory, TrialStarted


class TrainingRun:
    """One training in MLflow; every call waits for the store (5-20 ms).

    Args:
        tracking_uri: As for MlflowTracker.
        started: Name, parameters and tags; the tag sweep.study names the experiment.
        dataset: Its training data.
        module: `package.module:Class` of the LightningModule.
    """

    def __init__(
        self, tracking_uri: str, started: TrialStarted, dataset: DatasetInfo | None,
        module: str = DEFAULT_MODULE,
    ) -> None:  # fmt: skip
        self._uri, self._started, self._dataset = tracking_uri, started, dataset
        self._module = module
        self._client: MlflowClient | None = None
        self._run: RunLog | None = None
        self.run_id = ""

    def open(self, run_id: str | None = None) -> str:
        """Make the run, or go on with an existing `run_id`; returns the run's id.

        Raises StoreError.
        """
        with opened(self._uri, create=True) as client:
            run = _known_run(client, run_id) if run_id else None
            if run is None:
                picture = picture_of_training(TrialHistory(self._started))
                experiment = find_or_make_experiment(client, self._started.tags["sweep.study"])
                run = make_run(
                    client, experiment.experiment_id, picture.name, picture.start_ms, picture.tags
                )
            self._client, self._run, self.run_id = client, run, run.run_id
        return self.run_id

    def sync(self, reports: Sequence[EpochReport], finished: TrialFinished | None = None) -> None:
        """Bring the run up to all epochs so far, and to the end of the training.

        The final metrics are `best_metrics`; WAITING means interrupted. Raises
        StoreError.
        """
        history = TrialHistory(self._started, reports, finished)
        assert self._client is not None, "open() comes first"
        with guarded(self._client):
            # After a call that failed, what the run has is asked for.
            run = self._run or RunLog(self._client, self._client.get_run(self.run_id))
            self._run = None
            archive = finished.model_file if finished is not None else None
            folders = folders_of(archive, self._dataset, self._module) if archive else None
            show(run, picture_of_training(history), self._dataset, folders)
            self._run = run


def _known_run(client: MlflowClient, run_id: str) -> RunLog | None:
    """The run, unless it was deleted."""
    try:
        found = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return RunLog(client, found) if found.info.lifecycle_stage == "active" else None
