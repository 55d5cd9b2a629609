"""MLflow's fluent calls in user code: their metrics go into the trial's own run.

Only the driver writes the study's store, so during user code MLflow's default store is a private
SQLite file of this process. Its metrics are read at the end of each epoch and reported with the
epoch. Autologging is off: it would duplicate the driver's records. Nothing here imports MLflow,
so modules without it do not pay for the import.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from sweep.trial import Notice

VARIABLES = (
    "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME",
)  # fmt: skip
"""Environment variables for the store, its run and its experiment."""


class FluentCalls:
    """Captures metrics logged by user code with `mlflow.log_metric` and the like.

    Args:
        folder: Folder for the private store.
    """

    def __init__(self, folder: str | Path) -> None:
        self._file = Path(folder, f".mlflow.{os.getpid()}.{secrets.token_hex(4)}")
        self._uri = f"sqlite:///{self._file.resolve()}"
        self._said: set[str] = set()
        self._is_catching = False
        _remove_old(Path(folder))

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """Make the private store MLflow's default within the block; delete its runs at the end."""
        mlflow = sys.modules.get("mlflow")
        address = None
        if mlflow is not None and mlflow.is_tracking_uri_set():
            address = mlflow.get_tracking_uri()
        before = {name: os.environ.pop(name, None) for name in VARIABLES}
        if address == before["MLFLOW_TRACKING_URI"]:
            address = None  # set by the variable alone
        os.environ["MLFLOW_TRACKING_URI"] = self._uri
        self._is_catching = True
        try:
            with contextlib.ExitStack() as stack:
                stack.callback(self._forget_runs)
                if mlflow is not None:
                    self._take_over(mlflow, stack)
                yield
        finally:
            self._is_catching = False
            mlflow = sys.modules.get("mlflow")
            if mlflow is not None:
                # Set unconditionally: reading it needs the current folder, possibly deleted.
                mlflow.set_tracking_uri(address)
            for name, value in before.items():  # last, as MLflow sets the variable, too
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value

    def metrics(self, now_ms: int) -> tuple[dict[str, float], list[Notice]]:
        """The latest value of each metric logged by this trial, and new notices for the user.

        Empty outside of `caught`: sweep's own network makes no such calls.
        """
        if not self._is_catching:
            return {}, []
        mlflow, found, said = sys.modules.get("mlflow"), dict[str, float](), list[str]()
        if mlflow is not None and mlflow.get_tracking_uri() != self._uri:
            said.append(
                "the module names an MLflow store of its own: what it logs there is not in "
                "the trial's run"
            )
            mlflow.set_tracking_uri(self._uri)
        for run in self._runs():
            found |= run.data.metrics
            own_tags = [name for name in run.data.tags if not name.startswith("mlflow.")]
            if run.data.params or own_tags or self._client().list_artifacts(run.info.run_id):
                said.append(
                    "of what the module logs by MLflow's own calls, metrics go into the trial's "
                    "run; parameters, tags and files do not"
                )
        notices = [Notice(now_ms, text) for text in dict.fromkeys(said) if text not in self._said]
        self._said.update(said)
        return found, notices

    def remove(self) -> None:
        """Remove the private store."""
        for part in self._file.parent.glob(f"{self._file.name}*"):
            part.unlink(missing_ok=True)

    def _take_over(self, mlflow: ModuleType, stack: contextlib.ExitStack) -> None:
        """Replace an address and a run set by calls: they override environment variables."""
        if (utils := sys.modules.get("mlflow.utils.autologging_utils")) is not None:
            stack.enter_context(utils.disable_autologging())
        if mlflow.get_tracking_uri() != self._uri:
            mlflow.set_tracking_uri(self._uri)
        if mlflow.active_run() is not None:  # opened by the caller of `sweep.run`
            mlflow.start_run(nested=True)

    def _forget_runs(self) -> None:
        mlflow, runs = sys.modules.get("mlflow"), {run.info.run_id for run in self._runs()}
        while mlflow is not None and (run := mlflow.active_run()) and run.info.run_id in runs:
            mlflow.end_run()
        for run_id in runs:
            self._client().delete_run(run_id)

    def _runs(self) -> list[Any]:
        """The trial's MLflow runs, oldest first; none if nothing was logged yet."""
        if "mlflow" not in sys.modules or not self._file.exists():
            return []
        client = self._client()
        places = [experiment.experiment_id for experiment in client.search_experiments()]
        return list(client.search_runs(places, order_by=["attributes.start_time ASC"]))

    def _client(self) -> Any:
        return sys.modules["mlflow"].MlflowClient(tracking_uri=self._uri)


@contextlib.contextmanager
def nothing_logged(folder: str | Path) -> Iterator[None]:
    """Discard MLflow's fluent calls (of a data function) within the block."""
    calls = FluentCalls(folder)
    try:
        with calls.caught():
            yield
    finally:
        calls.remove()


def _remove_old(folder: Path) -> None:
    """Remove the private stores of killed processes."""
    for part in folder.glob(".mlflow.*"):
        pid = part.name.split(".")[2]
        if pid.isdigit() and not _is_alive(int(pid)):
            part.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
