"""Take checkpoints and models of poor trials out of MLflow. Parameters and metrics stay.

Whatever is broken off half-way is done by the next try: the run is marked before its checkpoint
goes, and a model is forgotten after its files went.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.tracking.uri import quiet
from sweep.trial_files import folder_bytes

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run

    from sweep.tracking.store import Store

DROPPED_TAG = "sweep.checkpoint_dropped"


@dataclass(frozen=True, slots=True)
class Place:
    """Where MLflow keeps a run's files."""

    run_id: str
    experiment_id: str
    artifact_uri: str

    @staticmethod
    def of(run: Run) -> Place:
        """That of `run`."""
        return Place(run.info.run_id, run.info.experiment_id, run.info.artifact_uri)


@dataclass(frozen=True)
class _Holding:
    """Something in MLflow that holds files of a trial."""

    number: int
    n_bytes: Callable[[], int]
    is_model: bool
    drop: Callable[[], None]


def stored_bytes(tracking_uri: str, study: str) -> dict[int, int]:
    """Bytes of each trial's checkpoint and model, by trial number; what was dropped is absent.

    Artifacts on another machine are counted as MLflow lists them. Raises StoreError.
    """
    sizes: dict[int, int] = {}
    for holding in _holdings(tracking_uri, study, None):
        n_bytes = holding.n_bytes()
        if n_bytes or holding.is_model:
            sizes[holding.number] = sizes.get(holding.number, 0) + n_bytes
    return sizes


def drop_checkpoints(tracking_uri: str, study: str, numbers: Collection[int]) -> None:
    """Delete checkpoint artifacts and logged models of these trials. Raises StoreError.

    Their runs keep parameters, curves and a tag that says what was dropped.
    """
    for holding in list(_holdings(tracking_uri, study, numbers)):
        holding.drop()


def drop_files(store: Store, place: Place) -> None:
    """The same for one run of an open store."""
    _drop_checkpoint(store, place)
    of_run = f"source_run_id = '{place.run_id}'"
    for model in store.client.search_logged_models([place.experiment_id], of_run):
        _drop_model(store, model)


def _holdings(
    tracking_uri: str, study: str, numbers: Collection[int] | None
) -> Iterator[_Holding]:
    with quiet():
        from sweep.tracking import store as stores
        from sweep.tracking.addresses import check_home

        stores.silence()
        if not stores.is_there(tracking_uri):
            return
        store = stores.connect(tracking_uri)
    with stores.in_one_line(f"MLflow at {store.shown}"):
        experiment = store.client.get_experiment_by_name(study)
        if experiment is None:
            return
        check_home(store, experiment)
        where = experiment.experiment_id
        number_of: dict[str, int] = {}
        for run in stores.search_runs(store, where, {"sweep.role": "trial"}):
            number, place = int(run.data.tags["sweep.trial"]), Place.of(run)
            if numbers is None or number in numbers:
                number_of[place.run_id] = number
                yield _checkpoint_of(store, number, place)
        page: str | None = None
        while page != "":
            models = store.client.search_logged_models([where], max_results=100, page_token=page)
            for model in models:
                if model.source_run_id in number_of:
                    yield _model_of(store, number_of[model.source_run_id], model)
            page = models.token or ""


def _checkpoint_of(store: Store, number: int, place: Place) -> _Holding:
    files = files_of(store, f"{place.artifact_uri}/checkpoint")
    return _Holding(number, lambda: _size(files), False, lambda: _drop_checkpoint(store, place))


def _model_of(store: Store, number: int, model: LoggedModel) -> _Holding:
    files = files_of(store, model.artifact_location)
    return _Holding(number, lambda: _size(files), True, lambda: _drop_model(store, model))


def _drop_checkpoint(store: Store, place: Place) -> None:
    store.client.set_tag(place.run_id, DROPPED_TAG, "true")
    files_of(store, f"{place.artifact_uri}/checkpoint").delete_artifacts(None)


def _drop_model(store: Store, model: LoggedModel) -> None:
    files_of(store, model.artifact_location).delete_artifacts(None)
    store.client.delete_logged_model(model.model_id)


def files_of(store: Store, uri: str) -> Any:
    """MLflow's artifact repository of `uri`."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(uri, tracking_uri=store.uri)


def _size(files: Any) -> int:
    folder = getattr(files, "artifact_dir", None)
    return folder_bytes(Path(folder)) if folder is not None else _listed(files, None)


def _listed(files: Any, path: str | None) -> int:
    entries = files.list_artifacts(path)
    return sum(_listed(files, e.path) if e.is_dir else int(e.file_size or 0) for e in entries)
