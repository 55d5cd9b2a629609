"""A run's rows in MLflow's tables: in one transaction when it begins, and in one when it ends.

MLflow's client takes a run in a dozen calls, each with queries and a transaction or several of
its own: 20 ms of a processor's time a trial, where small networks train for 10. MLflow's own
table models take lists. They are not among what MLflow promises to keep, so where its tables are
others than those that are known here, on a server of MLflow's, and for whatever is not as it
should be, everything goes through the client (`OneByOne`).

Imports mlflow: only the driver may load this module.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, final

import mlflow
from mlflow import MlflowClient
from mlflow.entities import (
    DatasetInput,
    LifecycleStage,
    LoggedModel,
    LoggedModelStatus,
    Metric,
    Param,
    Run,
    RunData,
    RunInfo,
    RunTag,
)
from mlflow.utils.uri import append_to_uri_path
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from sweep.redact import redacted
from sweep.table_rows import insert_rows, replace_rows
from sweep.tracking.blank import latest_revision
from sweep.tracking.run_rows import (
    Ending,
    NewModel,
    NewRun,
    OneByOne,
    Output,
    RunRows,
    params_of,
    tags_of,
)

models: Any = None
check: Any = None
SqlAlchemyStore: Any = None
with contextlib.suppress(ImportError):
    from mlflow.store.tracking.dbmodels import models
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from mlflow.utils.validation import _validate_batch_log_data as check

KNOWN_REVISION, KNOWN_VERSION = "dc11669786a5", "3.17."
"""Of MLflow's tables, and of its store: what is written here is what that writes there."""
MOST_TRIES = 3
"""Where two transactions wait for each other and the database ends one."""

_NAME_TAG, _USER_TAG = "mlflow.runName", "mlflow.user"

_T = TypeVar("_T")
_log = logging.getLogger("sweep.tracking")


def rows_of(client: MlflowClient) -> RunRows:
    """The faster way where MLflow's tables are those that are known here."""
    store = getattr(getattr(client, "_tracking_client", None), "store", None)
    is_known = mlflow.__version__.startswith(KNOWN_VERSION) and None not in (check, models)
    if is_known and type(store) is SqlAlchemyStore and latest_revision() == KNOWN_REVISION:
        return AtOnce(client, store)
    return OneByOne(client)


@final
class AtOnce:
    """By MLflow's table models, in its store's sessions.

    What its store would refuse (a run that was deleted, a key that is too long), or find there
    already, is handed to the client, which refuses it, or merges it, in its own way.
    """

    def __init__(self, client: MlflowClient, store: Any) -> None:
        self._client, self._store = OneByOne(client), store
        self._datasets: dict[tuple[str, str, str], str] = {}
        """(experiment, name, digest) -> id of a data set."""
        self._noted: set[str] = set()

    def make_run(self, new: NewRun) -> Run:
        """See `RunRows`."""
        made = self._try(lambda session: self._make_run(session, new))
        return made or self._client.make_run(new)

    def make_model(self, new: NewModel) -> LoggedModel:
        """See `RunRows`."""
        made = self._try(lambda session: _make_model(session, new))
        return made or self._client.make_model(new)

    def log(
        self, run_id: str, metrics: Sequence[Metric], params: Mapping[str, str],
        tags: Mapping[str, str],
    ) -> None:  # fmt: skip
        """See `RunRows`."""
        is_empty = not (metrics or params or tags)
        if is_empty or (not params and self._try(self._writing(run_id, metrics, tags))):
            return
        self._client.log(run_id, metrics, params, tags)

    def finish(
        self, run_id: str, metrics: Sequence[Metric], tags: Mapping[str, str], ending: Ending
    ) -> None:
        """See `RunRows`."""
        if not self._try(self._writing(run_id, metrics, tags, ending)):
            self._client.finish(run_id, metrics, tags, ending)

    def _try(self, write: Callable[[Session], _T | None]) -> _T | None:
        """What `write` returns; None where it wrote nothing, and the client has to.

        Raises MlflowException where the store does not answer, and what came out of a commit that
        it may have taken.
        """
        for n_tries in itertools.count(1):
            made = None
            try:
                with self._store.ManagedSessionMaker(read_only=False) as session:
                    made = write(session)
            except Exception as error:
                is_away = getattr(error, "error_code", "") == "TEMPORARILY_UNAVAILABLE"
                if is_away and n_tries < MOST_TRIES and "deadlock" in str(error).lower():
                    continue
                cause = error.__cause__ or error
                may_be_there = bool(made) and not isinstance(cause, IntegrityError)
                if is_away or may_be_there:
                    raise  # whoever tries again looks first what is there
                self._note(cause)
                return None
            return made
        raise AssertionError

    def _note(self, why: BaseException) -> None:
        """Once for each kind: that a row is there already is nothing to speak of."""
        kind = type(why).__name__
        if not isinstance(why, IntegrityError) and kind not in self._noted:
            self._noted.add(kind)
            _log.warning("written by MLflow's client, for %s: %s", kind, redacted(str(why)))

    def _make_run(self, session: Session, new: NewRun) -> Run | None:
        if not new.name or new.tags.get(_NAME_TAG, new.name) != new.name:
            return None
        root = _artifact_root(session, new.experiment_id)
        data = [self._dataset_id(session, new.experiment_id, item) for item in new.inputs]
        if root is None or None in data:
            return None
        _, params, _ = check([], params_of(new.params), [])
        run_id = uuid.uuid4().hex
        tags = {**new.tags, _NAME_TAG: new.name}
        info = RunInfo(
            run_id=run_id, experiment_id=new.experiment_id, status="RUNNING",
            user_id=tags.get(_USER_TAG, "unknown"), start_time=new.time_ms, end_time=None,
            lifecycle_stage=LifecycleStage.ACTIVE, run_name=new.name,
            artifact_uri=_inside(root, run_id, "artifacts"),
        )  # fmt: skip
        row = {
            "run_uuid": run_id, "experiment_id": int(new.experiment_id), "name": new.name,
            "status": info.status, "user_id": info.user_id, "start_time": new.time_ms,
            "lifecycle_stage": info.lifecycle_stage, "artifact_uri": info.artifact_uri,
            "source_type": "UNKNOWN", "source_name": "", "entry_point_name": "",
            "source_version": "",
        }  # fmt: skip
        insert_rows(session, models.SqlRun.__table__, [row])
        insert_rows(session, models.SqlTag.__table__, _rows(tags_of(tags), run_uuid=run_id))
        insert_rows(session, models.SqlParam.__table__, _rows(params, run_uuid=run_id))
        inputs, marks = [], []
        for dataset_id, item in zip(data, new.inputs, strict=True):
            inputs.append(_edge("DATASET", dataset_id, "RUN", run_id, 0))
            marks += [
                {"input_uuid": inputs[-1]["input_uuid"], "name": tag.key, "value": tag.value}
                for tag in item.tags
            ]
        insert_rows(session, models.SqlInput.__table__, inputs)
        insert_rows(session, models.SqlInputTag.__table__, marks)
        return Run(info, RunData(params=params_of(new.params), tags=tags_of(tags)))

    def _dataset_id(self, session: Session, experiment_id: str, item: DatasetInput) -> str | None:
        """Of a data set that a run of the experiment reads already, else None."""
        key = experiment_id, item.dataset.name, item.dataset.digest
        if key not in self._datasets:
            table = models.SqlDataset.__table__.c
            found = session.execute(
                select(table.dataset_uuid).where(
                    table.experiment_id == int(experiment_id),
                    table.name == item.dataset.name,
                    table.digest == item.dataset.digest,
                )
            ).scalar()
            if found is None:
                return None
            self._datasets[key] = found
        return self._datasets[key]

    def _writing(
        self, run_id: str, metrics: Sequence[Metric], tags: Mapping[str, str],
        ending: Ending | None = None,
    ) -> Callable[[Session], bool]:  # fmt: skip
        """What writes all of it; it returns False where MLflow would not take it like that."""

        def write(session: Session) -> bool:
            _, _, marks = check(metrics, [], tags_of(tags))
            runs = models.SqlRun.__table__
            is_own = runs.c.run_uuid == run_id
            columns = runs.c.lifecycle_stage, runs.c.experiment_id
            found = session.execute(select(*columns).where(is_own)).one_or_none()
            if found is None or found.lifecycle_stage != LifecycleStage.ACTIVE:
                return False
            self._write_metrics(session, run_id, found.experiment_id, metrics)
            rows = _rows(marks, run_uuid=run_id)
            replace_rows(session, models.SqlTag.__table__, "run_uuid", "key", rows)
            if ending is not None:
                _link(session, run_id, ending.output)
                end = {"status": ending.status, "end_time": ending.time_ms}
                session.execute(update(runs).where(is_own).values(end))
            return True

        # A name among the tags would rename the run.
        return write if _NAME_TAG not in tags else lambda session: False

    def _write_metrics(
        self, session: Session, run_id: str, experiment_id: int, metrics: Sequence[Metric]
    ) -> None:
        points = []
        for metric in metrics:
            is_nan, value = self._store.sanitize_metric_value(metric.value)
            points.append(
                {"run_uuid": run_id, "key": metric.key, "value": value, "is_nan": is_nan,
                 "timestamp": metric.timestamp, "step": metric.step}
            )  # fmt: skip
        insert_rows(session, models.SqlMetric.__table__, points)
        _note_latest(session, run_id, points)
        of_models = [
            {"model_id": metric.model_id, "metric_name": metric.key,
             "metric_timestamp_ms": metric.timestamp, "metric_step": metric.step,
             "metric_value": point["value"], "experiment_id": experiment_id, "run_id": run_id,
             "dataset_name": metric.dataset_name, "dataset_digest": metric.dataset_digest}
            for metric, point in zip(metrics, points, strict=True)
            if metric.model_id is not None
        ]  # fmt: skip
        insert_rows(session, models.SqlLoggedModelMetric.__table__, of_models)


def _make_model(session: Session, new: NewModel) -> LoggedModel | None:
    root = _artifact_root(session, new.experiment_id)
    if root is None:
        return None
    model_id, now_ms = f"m-{uuid.uuid4().hex}", _now_ms()
    where = _inside(root, "models", model_id, "artifacts")
    own = {"model_id": model_id, "experiment_id": int(new.experiment_id)}
    row = {
        **own, "name": new.name, "artifact_location": where, "source_run_id": new.run_id,
        "creation_timestamp_ms": now_ms, "last_updated_timestamp_ms": now_ms,
        "status": LoggedModelStatus.PENDING.to_int(),
        "lifecycle_stage": LifecycleStage.ACTIVE,
    }  # fmt: skip
    insert_rows(session, models.SqlLoggedModel.__table__, [row])
    params = [{**own, "param_key": k, "param_value": v} for k, v in new.params.items()]
    insert_rows(session, models.SqlLoggedModelParam.__table__, params)
    tags = [{**own, "tag_key": k, "tag_value": v} for k, v in new.tags.items()]
    insert_rows(session, models.SqlLoggedModelTag.__table__, tags)
    return LoggedModel(
        experiment_id=new.experiment_id, model_id=model_id, name=new.name,
        artifact_location=where, creation_timestamp=now_ms, last_updated_timestamp=now_ms,
        source_run_id=new.run_id, status=LoggedModelStatus.PENDING, tags=dict(new.tags),
        params=dict(new.params),
    )  # fmt: skip


def _note_latest(session: Session, run_id: str, points: Sequence[dict[str, Any]]) -> None:
    """Keep each metric's last point by step, time and value, as MLflow shows it in its tables."""
    if not points:
        return
    table = models.SqlLatestMetric.__table__
    latest: dict[str, dict[str, Any]] = {}
    for point in points:
        before = latest.get(point["key"])
        if before is None or _age(point) > _age(before):
            latest[point["key"]] = point
    there = session.execute(select(table).where(table.c.run_uuid == run_id)).mappings().all()
    for row in there:
        if row["key"] in latest and _age(latest[row["key"]]) <= _age(row):
            del latest[row["key"]]
    replace_rows(session, table, "run_uuid", "key", list(latest.values()))


def _age(point: Any) -> tuple[Any, ...]:
    return point["step"], point["timestamp"], point["value"]


def _link(session: Session, run_id: str, output: Output | None) -> None:
    if output and not output.is_ready:
        table = models.SqlLoggedModel.__table__
        ready = LoggedModelStatus.READY.to_int()
        session.execute(
            update(table)
            .where(table.c.model_id == output.model_id)
            .values(status=ready, last_updated_timestamp_ms=_now_ms())
        )
    if output and not output.is_linked:
        edge = _edge("RUN_OUTPUT", run_id, "MODEL_OUTPUT", output.model_id, output.step)
        insert_rows(session, models.SqlInput.__table__, [edge])


def _edge(
    source_type: str, source_id: str | None, destination_type: str, destination_id: str, step: int
) -> dict[str, Any]:
    return {
        "input_uuid": uuid.uuid4().hex, "source_type": source_type, "source_id": source_id,
        "destination_type": destination_type, "destination_id": destination_id, "step": step,
    }  # fmt: skip


def _artifact_root(session: Session, experiment_id: str) -> str | None:
    """Where an experiment's files go; None where it is not there or was deleted."""
    table = models.SqlExperiment.__table__.c
    columns = table.artifact_location, table.lifecycle_stage
    found = session.execute(
        select(*columns).where(table.experiment_id == int(experiment_id))
    ).one_or_none()
    if found is None or found.lifecycle_stage != LifecycleStage.ACTIVE:
        return None
    return str(found.artifact_location)


def _inside(root: str, *names: str) -> str:
    return str(append_to_uri_path(root, *names))  # type: ignore[no-untyped-call]


def _rows(items: Sequence[Param | RunTag], **own: str) -> list[dict[str, Any]]:
    return [{"key": item.key, "value": item.value, **own} for item in items]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
