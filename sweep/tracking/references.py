"""What refers to a trial's checkpoint or model: a registered version, a tag, another run.

Files that something refers to stay, whatever `--keep`, `--disk-limit` or `sweep gc` want.

Imports mlflow: only the driver may load this module, within `uri.quiet()`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

from mlflow import MlflowClient
from mlflow.entities import Experiment, LoggedModel, Run, RunInputs

from sweep.databases import sqlite
from sweep.errors import SweepError
from sweep.tracking.store import Store, in_one_line
from sweep.tracking.uri import one_line, resolve

REGISTRY_URI = "MLFLOW_REGISTRY_URI"
OWN_PREFIXES, OWN_TAGS = ("sweep.", "mlflow."), ("best_epoch", "git_commit", "git.commit")
"""Tags that sweep or MLflow writes; any other tag is the user's."""
_RUNS_A_PAGE = 1000


def keepers_of(
    store: Store, runs: Sequence[Run], models: Mapping[str, Sequence[LoggedModel]]
) -> dict[str, str]:
    """Why the files of these trials' runs must stay: run id -> one reference in words.

    Args:
        store: An open MLflow store.
        runs: Runs of trials.
        models: Their logged models, by run id.

    A registry that does not answer keeps the files of all of them.
    """
    names = {run.info.run_id: _names_of(run, models.get(run.info.run_id, ())) for run in runs}
    try:
        with in_one_line("the model registry"):
            versions = list(_versions(store))
    except SweepError as error:
        why = one_line(error).partition(":")[0]
        return dict.fromkeys(names, f"{why} (see {REGISTRY_URI})")
    found: dict[str, str] = {}
    for run in runs:
        run_id = run.info.run_id
        tagged = [run.data.tags, *(model.tags for model in models.get(run_id, ()))]
        mark = next((key for tags in tagged for key in tags if is_users(key)), None)
        version = next((v for v, texts in versions if _mentions(texts, names[run_id])), None)
        if version is not None:
            found[run_id] = version
        elif mark is not None:
            found[run_id] = f"its tag {mark}"
    rest = [run for run in runs if run.info.run_id not in found]
    return found | _descendants(store, rest, names)


def is_users(key: str) -> bool:
    """Whether a tag of that name is the user's own.

    >>> is_users("champion"), is_users("sweep.trial"), is_users("mlflow.user")
    (True, False, False)
    """
    return not key.startswith(OWN_PREFIXES) and key not in OWN_TAGS


def _names_of(run: Run, models: Iterable[LoggedModel]) -> tuple[str, ...]:
    """What others may know the trial's run or files by."""
    return run.info.run_id, *(str(model.model_id) for model in models)


def _mentions(texts: Iterable[str], names: Sequence[str]) -> bool:
    return any(name in text for text in texts for name in names)


def _versions(store: Store) -> Iterator[tuple[str, list[str]]]:
    """Registered versions, as `models:/NAME/VERSION`, and what each says of its source.

    Of the store's own registry, and of the one that MLFLOW_REGISTRY_URI names.
    """
    clients = [MlflowClient(store.uri, registry_uri=store.uri)]
    elsewhere = os.environ.get(REGISTRY_URI)
    path = sqlite.path_of(elsewhere) if elsewhere else None
    if elsewhere and (path is None or path.exists()):  # MLflow would make it
        address = elsewhere if path is None else resolve(elsewhere)
        clients.append(MlflowClient(store.uri, registry_uri=address))
    for client in clients:
        token: str | None = None
        while token != "":
            page = client.search_model_versions(page_token=token)
            for version in page:
                texts = [version.source, version.run_id, getattr(version, "model_id", None)]
                yield (
                    f"models:/{version.name}/{version.version}",
                    [str(text) for text in texts if text],
                )
            token = page.token or ""


def _descendants(
    store: Store, runs: Sequence[Run], names: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """Runs, in any experiment, whose tags, params or input models refer to these trials."""
    if not runs:
        return {}
    # Only runs that began after the first of them: a server may have many older ones.
    since = min(run.info.start_time or 0 for run in runs)
    found: dict[str, str] = {}
    for other in _other_runs(store, since):
        # A search gives no input models, so each run is asked for: some 5 ms.
        inputs = store.client.get_run(other.info.run_id).inputs
        tags = other.data.tags
        said = [*tags.values(), *other.data.params.values(), *_models_in(inputs)]
        trained_from = tags.get("sweep.study"), tags.get("sweep.from_trial")
        for run in runs:
            own = run.data.tags.get("sweep.study"), run.data.tags.get("sweep.trial")
            is_of = other.info.run_id != run.info.run_id and _mentions(
                said, names[run.info.run_id]
            )
            if is_of or (trained_from == own and None not in own):
                name = other.info.run_name or other.info.run_id
                found.setdefault(run.info.run_id, f"run {name} ({other.info.run_id})")
    return found


def _other_runs(store: Store, since_ms: int) -> Iterator[Run]:
    """Undeleted runs that began at `since_ms` or later and are no study's own."""
    experiments = [e.experiment_id for e in _experiments(store.client)]
    is_late = f"attributes.start_time >= {since_ms}"
    for is_other in ("tags.`sweep.role` IS NULL", "tags.`sweep.role` = 'train'"):
        token: str | None = None
        while token != "":
            page = store.client.search_runs(
                experiments, f"{is_late} and {is_other}", max_results=_RUNS_A_PAGE,
                page_token=token,
            )  # fmt: skip
            yield from page
            token = page.token or ""


def _experiments(client: MlflowClient) -> Iterator[Experiment]:
    token: str | None = None
    while token != "":
        page = client.search_experiments(page_token=token)
        yield from page
        token = page.token or ""


def _models_in(inputs: RunInputs | None) -> list[str]:
    return [str(model.model_id) for model in inputs.model_inputs] if inputs else []
