"""Take checkpoints and models of poor trials out of MLflow. Parameters and metrics stay."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.tracking.uri import quiet

if TYPE_CHECKING:
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

DROPPED_TAG = "sweep.checkpoint_dropped"


@dataclass(frozen=True)
class _Holding:
    """A place in MLflow that holds files of a trial."""

    number: int
    files: ArtifactRepository
    forget: Callable[[], Any]
    """Tells MLflow that the files go."""


def stored_bytes(tracking_uri: str, study: str) -> dict[int, int]:
    """Bytes of each trial's checkpoint and model, by trial number; what was dropped is absent.

    Artifacts on another machine are counted as MLflow lists them. Raises StoreError.
    """
    sizes: dict[int, int] = {}
    for holding in _holdings(tracking_uri, study, None):
        sizes[holding.number] = sizes.get(holding.number, 0) + _size(holding.files)
    return {number: size for number, size in sizes.items() if size}


def drop_checkpoints(tracking_uri: str, study: str, numbers: Collection[int]) -> None:
    """Delete checkpoint artifacts and logged models of these trials. Raises StoreError.

    Their runs keep parameters, curves and a tag that says what was dropped.
    """
    for holding in list(_holdings(tracking_uri, study, numbers)):
        holding.forget()
        holding.files.delete_artifacts(None)  # type: ignore[no-untyped-call]


def _holdings(
    tracking_uri: str, study: str, numbers: Collection[int] | None
) -> Iterator[_Holding]:
    quiet()
    from mlflow.store.artifact.artifact_repository_registry import (
        get_artifact_repository as open_files,
    )

    from sweep.tracking import store as stores

    store = stores.connect(tracking_uri)
    client = store.client
    with stores.in_one_line(f"MLflow at {store.shown}"):
        experiment = client.get_experiment_by_name(study)
        if experiment is None:
            return
        where = experiment.experiment_id
        number_of: dict[str, int] = {}
        for run in stores.search_runs(store, where, {"sweep.role": "trial"}):
            number, run_id = int(run.data.tags["sweep.trial"]), run.info.run_id
            if numbers is None or number in numbers:
                number_of[run_id] = number
                files = open_files(f"{run.info.artifact_uri}/checkpoint", tracking_uri=store.uri)
                yield _Holding(number, files, _tagger(client, run_id))
        page: str | None = None
        while page != "":
            models = client.search_logged_models([where], max_results=100, page_token=page)
            for model in models:
                if model.source_run_id in number_of:
                    files = open_files(model.artifact_location, tracking_uri=store.uri)
                    forget = _forgetter(client, model.model_id)
                    yield _Holding(number_of[model.source_run_id], files, forget)
            page = models.token or ""


def _tagger(client: Any, run_id: str) -> Callable[[], Any]:
    return lambda: client.set_tag(run_id, DROPPED_TAG, "true")


def _forgetter(client: Any, model_id: str) -> Callable[[], Any]:
    return lambda: client.delete_logged_model(model_id)


def _size(files: Any) -> int:
    folder = getattr(files, "artifact_dir", None)
    if folder is None:
        return _listed(files, None)
    paths = Path(folder).rglob("*") if Path(folder).exists() else ()
    return sum(path.stat().st_size for path in paths if path.is_file())


def _listed(files: Any, path: str | None) -> int:
    entries = files.list_artifacts(path)
    return sum(_listed(files, e.path) if e.is_dir else int(e.file_size or 0) for e in entries)
