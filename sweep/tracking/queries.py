"""Reading side: which run belongs to which trial, and its model and files. Loads mlflow on use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sweep.errors import NotFoundError
from sweep.tracking.uri import quiet

if TYPE_CHECKING:
    from mlflow.entities import Run

    from sweep.tracking.store import Store


def run_id_of(tracking_uri: str, study: str, number: int) -> str | None:
    """The MLflow run of a trial, or None. Raises StoreError where the store cannot be read."""
    run = _search(tracking_uri, study, {"sweep.role": "trial", "sweep.trial": str(number)})
    return run.info.run_id if run else None


def parent_run_id_of(tracking_uri: str, study: str) -> str | None:
    """The MLflow run of a study, or None. Raises StoreError where the store cannot be read."""
    run = _search(tracking_uri, study, {"sweep.role": "study"})
    return run.info.run_id if run else None


def find_run(tracking_uri: str, run_id: str) -> tuple[str, int]:
    """Study and number of the trial that an MLflow run holds.

    Raises:
        NotFoundError: No such run, or one that is no trial of a sweep study.
        StoreError: The store cannot be read.
    """
    tags = _get(tracking_uri, run_id)[1].data.tags
    from sweep.tracking.keys import trial_number

    number = trial_number(tags)
    if tags.get("sweep.role") != "trial" or "sweep.study" not in tags or number is None:
        raise NotFoundError(f"MLflow run {run_id} is no trial of a sweep study")
    return tags["sweep.study"], number


def model_uri_of(tracking_uri: str, run_id: str) -> str | None:
    """`models:/m-...` of the run's logged model; None if it has none, or gave it up for room.

    Raises as find_run does.
    """
    run = _get(tracking_uri, run_id)[1]
    from sweep.tracking.disposal import DROPPED_TAG

    if DROPPED_TAG in run.data.tags:
        return None
    outputs = run.outputs
    models = outputs.model_outputs if outputs else []
    return f"models:/{models[-1].model_id}" if models else None


def artifact_of(tracking_uri: str, run_id: str, artifact: str, folder: Path) -> Path:
    """A local file with the run's `artifact`, e.g. "checkpoint/best.ckpt".

    Where the artifacts lie on this machine that is the file itself; else a copy in `folder`.

    Raises:
        NotFoundError: No such run, or it has no such artifact.
        StoreError: The store cannot be read.
    """
    store, run = _get(tracking_uri, run_id)
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    from sweep.tracking.store import in_one_line

    with in_one_line(f"MLflow at {store.shown}"):
        files = get_artifact_repository(run.info.artifact_uri, tracking_uri=store.uri)
        if isinstance(files, LocalArtifactRepository):
            file = Path(files.artifact_dir, artifact)
        else:
            above, _, _ = artifact.rpartition("/")
            listed = files.list_artifacts(above or None)
            file = folder / artifact
            if any(entry.path == artifact for entry in listed):
                folder.mkdir(parents=True, exist_ok=True)
                local = files.download_artifacts(artifact, str(folder))  # type: ignore[no-untyped-call]
                file = Path(local)
    if not file.is_file():
        raise NotFoundError(f"MLflow run {run_id} has no artifact {artifact!r}")
    return file


def artifact_place(tracking_uri: str, run_id: str, artifact: str) -> str | None:
    """Where the run's `artifact` is: a path of this machine, else `runs:/ID/...`; None: nowhere.

    Nothing is downloaded. Raises NotFoundError for an unknown run, StoreError.
    """
    store, run = _get(tracking_uri, run_id)
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    from sweep.tracking.store import in_one_line

    with in_one_line(f"MLflow at {store.shown}"):
        files = get_artifact_repository(run.info.artifact_uri, tracking_uri=store.uri)
        if isinstance(files, LocalArtifactRepository):
            file = Path(files.artifact_dir, artifact)
            return str(file) if file.is_file() else None
        listed = files.list_artifacts(artifact.rpartition("/")[0] or None)
        is_there = any(entry.path == artifact for entry in listed)
    return f"runs:/{run_id}/{artifact}" if is_there else None


def _search(tracking_uri: str, study: str, tags: dict[str, str]) -> Run | None:
    with quiet():
        from sweep.tracking.store import in_one_line, is_there, search_runs

    if not is_there(tracking_uri):
        return None  # reading must not leave an empty store behind
    store = _connect(tracking_uri)
    with in_one_line(f"MLflow at {store.shown}"):
        experiment = store.client.get_experiment_by_name(study)
        if experiment is None:
            return None
        return next(search_runs(store, experiment.experiment_id, tags), None)


def _get(tracking_uri: str, run_id: str) -> tuple[Store, Run]:
    store = _connect(tracking_uri)
    from mlflow.exceptions import MlflowException

    from sweep.tracking.store import in_one_line

    with in_one_line(f"MLflow at {store.shown}"):
        try:
            return store, store.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise NotFoundError(f"no MLflow run {run_id!r} in {store.shown}") from error
            raise


def _connect(tracking_uri: str) -> Store:
    with quiet():
        from sweep.tracking.store import connect, silence

        silence()
        return connect(tracking_uri)
