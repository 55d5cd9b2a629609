"""Take checkpoints and models of poor trials out of MLflow. Parameters and metrics stay.

Whatever is broken off half-way is done by the next try: the run is marked before its checkpoint
goes, and a model is forgotten after its files went.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.files.trial_folder import folder_bytes
from sweep.tracking.uri import quiet

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
class _Trial:
    """A trial's run in an open store, and its logged models."""

    store: Store
    number: int
    run: Run
    models: Sequence[LoggedModel]


def stored_bytes(tracking_uri: str, study: str) -> dict[int, int]:
    """Bytes of each trial's checkpoint and model, by trial number; what was dropped is absent.

    Artifacts on another machine are counted as MLflow lists them. Raises StoreError.
    """
    sizes: dict[int, int] = {}
    with _found(tracking_uri, study, None) as trials:
        for trial in trials:
            addresses = [_checkpoint(Place.of(trial.run))]
            addresses += [model.artifact_location for model in trial.models]
            n_bytes = sum(_size(files_of(trial.store, address)) for address in addresses)
            if n_bytes or trial.models:
                sizes[trial.number] = sizes.get(trial.number, 0) + n_bytes
    return sizes


def kept_by(tracking_uri: str, study: str, numbers: Collection[int]) -> dict[int, str]:
    """Which of these trials' files must stay, and for what: trial number -> reference in words.

    Raises StoreError.
    """
    with _found(tracking_uri, study, numbers) as trials:
        return _kept_by(trials)


def drop_checkpoints(tracking_uri: str, study: str, numbers: Collection[int]) -> dict[int, str]:
    """Delete checkpoint artifacts and logged models of these trials. Raises StoreError.

    Their runs keep parameters, curves and a tag that says what was dropped. Trials whose files
    something refers to stay whole: they are returned, with the reference in words.
    """
    with _found(tracking_uri, study, numbers) as trials:
        kept = _kept_by(trials)
        for trial in trials:
            if trial.number not in kept:
                _drop(trial.store, Place.of(trial.run), trial.models)
    return kept


def drop_files(store: Store, place: Place) -> str:
    """The same for one run of an open store; returns what keeps its files, or an empty text."""
    run = store.client.get_run(place.run_id)
    of_run = f"source_run_id = '{place.run_id}'"
    models = list(store.client.search_logged_models([place.experiment_id], of_run))
    with quiet():
        from sweep.tracking.references import keepers_of
    keeper = keepers_of(store, [run], {place.run_id: models}).get(place.run_id, "")
    if not keeper:
        _drop(store, place, models)
    return keeper


@contextlib.contextmanager
def _found(
    tracking_uri: str, study: str, numbers: Collection[int] | None
) -> Iterator[list[_Trial]]:
    """What MLflow has of these trials (None: of all). What fails in the block is a StoreError."""
    with quiet():
        from sweep.tracking import store as stores
        from sweep.tracking.addresses import check_home
        from sweep.tracking.keys import trial_number

        stores.silence()
    if not stores.is_there(tracking_uri):
        yield []
        return
    store = stores.connect(tracking_uri)
    with stores.in_one_line(f"MLflow at {store.shown}"):
        experiment = store.client.get_experiment_by_name(study)
        if experiment is None:
            yield []
            return
        check_home(store, experiment)
        where = experiment.experiment_id
        numbered = [
            (trial_number(run.data.tags), run)
            for run in stores.search_runs(store, where, {"sweep.role": "trial"})
        ]
        runs = [
            (number, run)
            for number, run in numbered
            if number is not None and (numbers is None or number in numbers)
        ]
        models = _models_of(store, where) if runs else {}
        yield [_Trial(store, number, run, models.get(run.info.run_id, [])) for number, run in runs]


def _models_of(store: Store, experiment_id: str) -> dict[str, list[LoggedModel]]:
    """Logged models of an experiment, by the run that made them."""
    found: dict[str, list[LoggedModel]] = {}
    page: str | None = None
    while page != "":
        models = store.client.search_logged_models(
            [experiment_id], max_results=100, page_token=page
        )
        for model in models:
            found.setdefault(str(model.source_run_id), []).append(model)
        page = models.token or ""
    return found


def _kept_by(trials: Sequence[_Trial]) -> dict[int, str]:
    if not trials:
        return {}
    with quiet():
        from sweep.tracking.references import keepers_of
    runs = [trial.run for trial in trials]
    keepers = keepers_of(trials[0].store, runs, {t.run.info.run_id: t.models for t in trials})
    return {t.number: keepers[t.run.info.run_id] for t in trials if t.run.info.run_id in keepers}


def _drop(store: Store, place: Place, models: Sequence[LoggedModel]) -> None:
    store.client.set_tag(place.run_id, DROPPED_TAG, "true")
    _delete(files_of(store, _checkpoint(place)))
    for model in models:
        _delete(files_of(store, model.artifact_location))
        store.client.delete_logged_model(model.model_id)


def _checkpoint(place: Place) -> str:
    return f"{place.artifact_uri}/checkpoint"


def _delete(files: Any) -> None:
    """All files of an artifact repository."""
    folder = getattr(files, "artifact_dir", None)
    if folder is None:
        files.delete_artifacts(None)
    elif Path(folder).exists():
        # MLflow's own method would read `%20` in the folder's name as a blank.
        shutil.rmtree(folder)


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
