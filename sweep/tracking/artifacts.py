"""Checkpoints and models in MLflow: their places, sizes, users, and removal.

Files in use by a registered version, a tag or another run stay, whatever `--keep`,
`--disk-limit` or `sweep gc` want. A broken-off removal is completed by the next try: a run is
marked before its checkpoint goes, and a model is forgotten after its files went.

Loads mlflow, as it is imported.
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Run
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from sweep.databases import sqlite
from sweep.errors import NotFoundError, SweepError
from sweep.files.trial_files import folder_bytes
from sweep.redact import redacted
from sweep.tracking.keys import DROPPED_TAG, trial_number
from sweep.tracking.moved_folders import check_home
from sweep.tracking.store import every, guarded, in_one_line, is_there, opened, search_runs
from sweep.tracking.uri import one_line, resolve

REGISTRY_URI = "MLFLOW_REGISTRY_URI"
OWN_PREFIXES, OWN_TAGS = ("sweep.", "mlflow."), ("best_epoch", "git_commit", "git.commit")
"""Tags that sweep or MLflow writes; any other tag is the user's."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A trial's run and logged models in an open client, and the bytes of their files."""

    client: MlflowClient
    run: Run
    models: Sequence[LoggedModel]
    n_bytes: int = 0

    @property
    def names(self) -> list[str]:
        """The ids of its run and models."""
        return [self.run.info.run_id, *(str(model.model_id) for model in self.models)]


def files_of(client: MlflowClient, uri: str) -> Any:
    """MLflow's artifact repository of `uri`."""
    return get_artifact_repository(uri, tracking_uri=client.tracking_uri)


def folder_of(files: Any) -> Path | None:
    """The folder of an artifact repository; None for one on another machine."""
    return Path(files.artifact_dir) if isinstance(files, LocalArtifactRepository) else None


def listed(files: Any, folder: str) -> dict[str, int]:
    """Artifacts in `folder`: path -> bytes."""
    entries = files.list_artifacts(folder or None)
    return {entry.path: int(entry.file_size or 0) for entry in entries if not entry.is_dir}


# where they are


def run_id_of(tracking_uri: str, study: str, number: int) -> str | None:
    """The MLflow run of a trial, or None. Raises StoreError."""
    if not is_there(tracking_uri):
        return None  # reading must not leave an empty store behind
    with opened(tracking_uri) as client:
        experiment = client.get_experiment_by_name(study)
        if experiment is None:
            return None
        tags = {"sweep.role": "trial", "sweep.trial": str(number)}
        run = next(search_runs(client, [experiment.experiment_id], tags), None)
        return run.info.run_id if run else None


def model_uri_of(tracking_uri: str, run_id: str) -> str | None:
    """`models:/m-...` of the run's logged model; None if it has none, or gave it up for room.

    Raises NotFoundError for an unknown run, StoreError.
    """
    with opened(tracking_uri) as client:
        run = _run(client, run_id)
    if DROPPED_TAG in run.data.tags or not run.outputs or not run.outputs.model_outputs:
        return None
    return f"models:/{run.outputs.model_outputs[-1].model_id}"


def tags_of(tracking_uri: str, run_id: str) -> dict[str, str]:
    """The tags of a run. Raises NotFoundError for an unknown run, StoreError."""
    with opened(tracking_uri) as client:
        return dict(_run(client, run_id).data.tags)


def artifact_of(tracking_uri: str, run_id: str, artifact: str, folder: Path) -> Path:
    """A local file with the run's `artifact`, e.g. "checkpoint/best.ckpt".

    For artifacts on this machine it is the file itself; else a copy in `folder`.

    Raises:
        NotFoundError: No such run, or it has no such artifact.
        StoreError: The store cannot be read.
    """
    place = artifact_place(tracking_uri, run_id, artifact)
    if place is None:
        raise NotFoundError(f"MLflow run {run_id} has no artifact {artifact!r}")
    if not place.startswith("runs:/"):
        return Path(place)
    with opened(tracking_uri) as client:
        folder.mkdir(parents=True, exist_ok=True)
        return Path(client.download_artifacts(run_id, artifact, str(folder)))


def artifact_place(tracking_uri: str, run_id: str, artifact: str) -> str | None:
    """The place of the run's `artifact`: a local path, else `runs:/ID/...`; None: nowhere.

    Nothing is downloaded. Raises NotFoundError for an unknown run, StoreError.
    """
    with opened(tracking_uri) as client:
        files = files_of(client, _run(client, run_id).info.artifact_uri)
        folder = folder_of(files)
        if folder is not None:
            return str(folder / artifact) if (folder / artifact).is_file() else None
        is_stored = artifact in listed(files, artifact.rpartition("/")[0])
        return f"runs:/{run_id}/{artifact}" if is_stored else None


def _run(client: MlflowClient, run_id: str) -> Run:
    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            where = redacted(client.tracking_uri)
            raise NotFoundError(f"no MLflow run {run_id!r} in {where}") from error
        raise


# how large they are, and how they go


def stored_files(tracking_uri: str, study: str) -> dict[int, Stored]:
    """Each trial's files in MLflow, by trial number, without dropped ones.

    Artifacts on another machine are counted as MLflow lists them. Raises StoreError.
    """
    found: dict[int, Stored] = {}
    if not is_there(tracking_uri):
        return found
    with opened(tracking_uri) as client:
        experiment = client.get_experiment_by_name(study)
        if experiment is None:
            return found
        check_home(client.tracking_uri, experiment)
        where = [experiment.experiment_id]
        models = defaultdict(list)
        for model in every(
            lambda token: client.search_logged_models(where, max_results=100, page_token=token)
        ):
            models[str(model.source_run_id)].append(model)
        for run in search_runs(client, where, {"sweep.role": "trial"}):
            number, of_run = trial_number(run.data.tags), models[run.info.run_id]
            places = [_checkpoint(run), *(model.artifact_location for model in of_run)]
            n_bytes = sum(_size(files_of(client, place)) for place in places)
            if number is not None and (n_bytes or of_run):
                found[number] = Stored(client, run, of_run, n_bytes)
    return found


def drop(stored: Stored) -> None:
    """Delete checkpoint artifacts and logged models of a trial. Raises StoreError.

    Its run keeps parameters and curves, and gets a tag.
    """
    client, run = stored.client, stored.run
    with guarded(client):
        client.set_tag(run.info.run_id, DROPPED_TAG, "true")
        _delete(files_of(client, _checkpoint(run)))
        for model in stored.models:
            _delete(files_of(client, model.artifact_location))
            client.delete_logged_model(model.model_id)


def drop_files(client: MlflowClient, run_ids: Sequence[str]) -> dict[str, str]:
    """The same for several runs, except files in use: run id -> their user."""
    stored = []
    for run in map(client.get_run, run_ids):
        of_run = f"source_run_id = '{run.info.run_id}'"
        models = client.search_logged_models([run.info.experiment_id], of_run)
        stored.append(Stored(client, run, models))
    keepers = keepers_of(stored)
    for one in stored:
        if one.run.info.run_id not in keepers:
            drop(one)
    return keepers


def _checkpoint(run: Run) -> str:
    return f"{run.info.artifact_uri}/checkpoint"


def _delete(files: Any) -> None:
    """All files of an artifact repository."""
    folder = folder_of(files)
    if folder is None:
        files.delete_artifacts(None)
    elif folder.exists():
        # MLflow's own method would read `%20` in the folder's name as a blank.
        shutil.rmtree(folder)


def _size(files: Any, path: str | None = None) -> int:
    folder = folder_of(files)
    if folder is not None:
        return folder_bytes(folder)
    entries = files.list_artifacts(path)
    return sum(_size(files, e.path) if e.is_dir else int(e.file_size or 0) for e in entries)


# what keeps them


def keepers_of(trials: Sequence[Stored]) -> dict[str, str]:
    """Why the files of these trials of one store must stay: run id -> one reference in words.

    A silent registry keeps the files of all of them. Raises StoreError.
    """
    if not trials:
        return {}
    client = trials[0].client
    try:
        with in_one_line("the model registry"):
            versions = list(_versions(client))
    except SweepError as error:
        why = f"{one_line(error).partition(':')[0]} (see {REGISTRY_URI})"
        return {trial.run.info.run_id: why for trial in trials}
    found: dict[str, str] = {}
    for trial in trials:
        tagged = [trial.run.data.tags, *(model.tags for model in trial.models)]
        mark = next((key for tags in tagged for key in tags if is_users(key)), None)
        version = next((v for v, texts in versions if _mentions(texts, trial.names)), None)
        if version is not None:
            found[trial.run.info.run_id] = version
        elif mark is not None:
            found[trial.run.info.run_id] = f"its tag {mark}"
    rest = [trial for trial in trials if trial.run.info.run_id not in found]
    with guarded(client):
        return found | _descendants(client, rest)


def is_users(key: str) -> bool:
    """Whether a tag is the user's own.

    >>> is_users("champion"), is_users("sweep.trial"), is_users("mlflow.user")
    (True, False, False)
    """
    return not key.startswith(OWN_PREFIXES) and key not in OWN_TAGS


def _mentions(texts: Iterable[str], names: Sequence[str]) -> bool:
    return any(name in text for text in texts for name in names)


def _versions(client: MlflowClient) -> Iterator[tuple[str, list[str]]]:
    """Registered versions, as `models:/NAME/VERSION`, with the ids in their sources.

    Of the store's own registry, and of the one in MLFLOW_REGISTRY_URI.
    """
    clients = [MlflowClient(client.tracking_uri, registry_uri=client.tracking_uri)]
    elsewhere = os.environ.get(REGISTRY_URI)
    path = sqlite.path_of(elsewhere) if elsewhere else None
    if elsewhere and (path is None or path.exists()):  # MLflow would make it
        address = elsewhere if path is None else resolve(elsewhere)
        clients.append(MlflowClient(client.tracking_uri, registry_uri=address))
    for client in clients:
        # The client is of this iteration: the pages are read before the next one.
        for version in every(lambda token: client.search_model_versions(page_token=token)):  # noqa: B023
            texts = [version.source, version.run_id, getattr(version, "model_id", None)]
            name = f"models:/{version.name}/{version.version}"
            yield name, [str(text) for text in texts if text]


def _descendants(client: MlflowClient, trials: Sequence[Stored]) -> dict[str, str]:
    """Runs, in any experiment, whose tags, params or input models refer to these trials."""
    if not trials:
        return {}
    # Only runs that began after the first of them: a server may have many older ones.
    since = min(trial.run.info.start_time or 0 for trial in trials)
    found: dict[str, str] = {}
    for other in _other_runs(client, since):
        # A search gives no input models, so each run is asked for: some 5 ms.
        inputs = client.get_run(other.info.run_id).inputs
        models = [str(model.model_id) for model in inputs.model_inputs] if inputs else []
        tags = other.data.tags
        said = [*tags.values(), *other.data.params.values(), *models]
        trained_from = tags.get("sweep.study"), tags.get("sweep.from_trial")
        for trial in trials:
            run_id, own = trial.run.info.run_id, trial.run.data.tags
            is_of = other.info.run_id != run_id and _mentions(said, trial.names)
            if is_of or trained_from == (own.get("sweep.study"), own.get("sweep.trial", "")):
                name = other.info.run_name or other.info.run_id
                found.setdefault(run_id, f"run {name} ({other.info.run_id})")
    return found


def _other_runs(client: MlflowClient, since_ms: int) -> Iterator[Run]:
    """Undeleted runs of no study, begun at `since_ms` or later."""
    client = client
    found = every(lambda token: client.search_experiments(page_token=token))
    experiments = [experiment.experiment_id for experiment in found]
    for role in ("tags.`sweep.role` IS NULL", "tags.`sweep.role` = 'train'"):
        wanted = f"attributes.start_time >= {since_ms} and {role}"
        yield from search_runs(client, experiments, wanted)
