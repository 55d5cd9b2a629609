"""MLflow as a mirror: one function brings a trial's run up to its record.

The ledger and the trials' files are the truth. `Mirror.sync` compares a run with a trial's history
and writes what the run lacks; a run that lacks nothing is left alone. A live search, a store that
was away, a refused record, `sweep doctor --fix` and the start after a kill are that function,
called at different times.

Order within a run: tags (with the run itself), parameters and curves, files, model, summary, and
the final status last. So a run with a final status lacks nothing.

Imports mlflow: only the driver may load this module.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from mlflow.entities import LifecycleStage, LoggedModelOutput, Metric, Run

from sweep.hyperparameters import DEFAULT_MODULE
from sweep.redact import redacted
from sweep.tracking import keys, overview
from sweep.tracking.disposal import DROPPED_TAG, drop_files
from sweep.tracking.model import ModelFolders, ModelLabel, log_model
from sweep.tracking.run import (
    STATUS,
    NewRun,
    RunLog,
    curve_points,
    dataset_inputs,
    dataset_name,
    make_run,
)
from sweep.tracking.store import Store, find_or_make_experiment, search_runs, source_tags
from sweep.trial import (
    DEVICE_TAG,
    DatasetInfo,
    Ranked,
    StudyFinished,
    StudyInfo,
    TrialFinished,
    TrialHistory,
    TrialStarted,
    TrialState,
)

CHECKPOINT, TRACEBACK = "checkpoint/best.ckpt", "traceback.txt"
LOST_TAG = "sweep.checkpoint_lost"
"""On the run of a completed trial: no copy of its checkpoint is left."""
STATE_TAG, RANK_TAG = "sweep.state", "sweep.rank"

_FIXED = ("data", "epochs", "batch_size")
"""Settings that each trial shows beside its hyperparameters."""
_MAX_MESSAGE = 500
"""Longest failure message that is kept as a tag; all of it is in traceback.txt."""

_log = logging.getLogger("sweep.tracking")


class Mirror:
    """A study's runs in MLflow: an experiment, a parent run, and a child run a trial.

    Args:
        store: The open store.
        study: As its driver opened it.
        log_models: Whether completed trials get a logged model.
    """

    def __init__(self, store: Store, study: StudyInfo, *, log_models: bool) -> None:
        self._store, self._study, self._log_models = store, study, log_models
        self.lost: list[str] = []
        """Sentences about files that were gone before MLflow had them."""
        experiment, is_new = find_or_make_experiment(store, study.name)
        self.experiment_id: str = experiment.experiment_id
        self._dataset: DatasetInfo | None = None
        self._folders: ModelFolders | None = None
        self.read(study.dataset)
        self._runs: dict[int, RunLog] = {}
        self._unsure: set[int] = set()
        """Trials that may have a run: a call that could have made one failed."""
        self._keys: dict[int, keys.Keys] = {}
        self._ranks: dict[int, int] = {}
        self._is_described = False
        """Whether the parent has the study's files; an older search may have died over them."""
        parent = None if is_new else self._load()
        self.parent = parent or self._make_parent()

    # runs

    def _load(self) -> RunLog | None:
        """Find the study's runs; returns its parent run."""
        parent: RunLog | None = None
        for run in search_runs(self._store, self.experiment_id, {"sweep.study": self._study.name}):
            role, number = run.data.tags.get("sweep.role"), keys.trial_number(run.data.tags)
            if role == "study":
                parent = RunLog(self._store, run, is_new=False)
            elif role == "trial" and number is not None:
                self._take(number, RunLog(self._store, run, is_new=False))
        return parent

    def _take(self, number: int, run: RunLog) -> None:
        """Of two runs of one trial, the one that went further counts (doctor names the other)."""
        if number not in self._runs or self._runs[number].status not in ("FINISHED", "FAILED"):
            self._runs[number] = run
        if (rank := run.tags.get(RANK_TAG, "")).isdigit():
            self._ranks[number] = int(rank)

    def _make_parent(self) -> RunLog:
        study = self._study
        tags = keys.tags({**_study_tags(study), **source_tags()})
        return make_run(self._store, NewRun(self.experiment_id, study.name, study.time_ms, tags))

    def run_of(self, number: int) -> RunLog | None:
        """The run of a trial, where there is one."""
        if number not in self._runs and number in self._unsure:
            tags = {"sweep.study": self._study.name, "sweep.trial": str(number)}
            for run in search_runs(self._store, self.experiment_id, tags):
                if run.data.tags.get("sweep.role") == "trial":
                    self._take(number, RunLog(self._store, run, is_new=False))
            self._unsure.discard(number)
        return self._runs.get(number)

    def _ranked_run(self, number: int) -> RunLog | None:
        """The run of a finished trial, which a repair may have made since the runs were read."""
        if number not in self._runs:
            self._unsure.add(number)
        return self.run_of(number)

    def forget(self, number: int) -> None:
        """A call for this trial failed: ask the store what it has before the next one."""
        self._runs.pop(number, None)
        self._keys.pop(number, None)
        self._unsure.add(number)

    def _run_for(self, started: TrialStarted) -> RunLog:
        run = self.run_of(started.number)
        if run is None:
            self._unsure.add(started.number)
            run = self._runs[started.number] = self._make_run(started)
            self._unsure.discard(started.number)
        return run

    def _make_run(self, started: TrialStarted) -> RunLog:
        tags = {
            **started.tags,
            **_tags(self._study, "trial"),
            **source_tags(),
            "sweep.trial": str(started.number),
            STATE_TAG: str(TrialState.RUNNING),
            "mlflow.parentRunId": self.parent.run_id,
        }
        new = NewRun(self.experiment_id, started.name, started.time_ms, keys.tags(tags))
        return make_run(self._store, new)

    def is_deleted(self, number: int) -> bool:
        """Whether the user deleted the trial's run in MLflow, and not the whole experiment."""
        run = self._runs.get(number)
        return run is not None and self._is_active() and self._is_gone(run)

    def _is_active(self) -> bool:
        stage = self._store.client.get_experiment(self.experiment_id).lifecycle_stage
        return bool(stage == LifecycleStage.ACTIVE)

    def _is_gone(self, run: RunLog) -> bool:
        info = self._store.client.get_run(run.run_id).info
        return bool(info.lifecycle_stage == LifecycleStage.DELETED)

    def ping(self) -> None:
        """Ask the store for the experiment. Raises whatever it raises."""
        self._store.client.get_experiment(self.experiment_id)

    def answers(self) -> bool:
        """Whether the store takes a write for the study's own run just now.

        If the user deleted that run, the study gets a new one.
        """
        try:
            if self._is_active() and self._is_gone(self.parent):
                self.parent = self._make_parent()
            self._store.client.set_tag(self.parent.run_id, "sweep.role", "study")
        except Exception:  # noqa: BLE001 - whatever it is, that is no answer
            return False
        return True

    # trials

    def begin(self, started: TrialStarted) -> int:
        """Show that a trial runs, its parameters not yet: a call for them alone costs 10 ms.

        Returns the bytes of its files: none.
        """
        run = self._run_for(started)
        run.reopen()
        run.log_datasets(self._inputs)
        return 0

    def sync(self, history: TrialHistory) -> int:
        """Bring the run of a trial up to `history`; returns the bytes of the files it has then.

        Only what is missing is written, so a second call costs no write, and a call that was
        broken off at any point is completed by the next one. Raises whatever MLflow raises.
        """
        run, finished = self._run_for(history.started), history.finished
        is_final = finished is not None and finished.state.is_finished
        if finished is None:
            run.reopen()
        params = params_of(self._study, history)
        names = self._keys.setdefault(history.started.number, metric_keys(self._study))
        points = curve_points(history.reports, names)
        run.log_datasets(self._inputs)
        own_tags = dict(keys.tags(history.started.tags))
        if not is_final:
            state = TrialState.RUNNING if finished is None else TrialState.WAITING
            run.log(points, params, {**own_tags, STATE_TAG: str(state)})
            if finished is not None:
                run.pause()
            return 0
        assert finished is not None
        n_bytes, is_lost = self._store_files(run, finished)
        link, model_bytes = self._store_model(run, finished, params)
        tags = {**own_tags, **outcome_tags(finished)} | ({LOST_TAG: "true"} if is_lost else {})
        run.log([*points, *_summary(self._study, finished, link)], params, tags)
        run.end(STATUS[finished.state], finished.time_ms)
        self._keys.pop(finished.number, None)
        run.forget()
        return n_bytes + model_bytes

    def replace_run(self, history: TrialHistory, old: Run) -> None:
        """Give a finished trial a new run in place of `old`; checkpoint and model come along."""
        before, finished = RunLog(self._store, old, is_new=False), history.finished
        assert finished is not None
        run = self._runs[finished.number] = self._make_run(history.started)
        with tempfile.TemporaryDirectory() as scratch:
            if finished.checkpoint is None and CHECKPOINT in before.files("checkpoint"):
                finished = replace(finished, checkpoint=before.fetch(CHECKPOINT, scratch))
            outputs = old.outputs.model_outputs if old.outputs else []
            if outputs and finished.model_file is None:
                self._store.client.log_outputs(run.run_id, outputs)
            self.sync(replace(history, finished=finished))

    def _store_files(self, run: RunLog, finished: TrialFinished) -> tuple[int, bool]:
        """Store checkpoint and traceback; returns the checkpoint's bytes, and if it is lost."""
        run.remove_broken_off_uploads()
        if finished.failure and finished.failure.traceback:
            run.log_text(redacted(finished.failure.traceback), TRACEBACK)
        if finished.checkpoint is None or DROPPED_TAG in run.tags:
            return 0, False
        if not Path(finished.checkpoint).is_file():
            if run.may_have_model and CHECKPOINT in run.files("checkpoint"):
                return 0, False
            self._note_lost(finished.number, finished.checkpoint)
            return 0, finished.state is TrialState.COMPLETE
        run.log_file(finished.checkpoint, CHECKPOINT)
        return Path(finished.checkpoint).stat().st_size, False

    def _store_model(
        self, run: RunLog, finished: TrialFinished, params: Mapping[str, str]
    ) -> tuple[dict[str, Any], int]:
        """Log the trial's model; returns what ties a metric to it, and its bytes."""
        is_wanted = self._folders is not None and finished.state is TrialState.COMPLETE
        if not is_wanted or finished.model_file is None or DROPPED_TAG in run.tags:
            return {}, 0
        archive = Path(finished.model_file)
        if not archive.is_file():
            if not run.may_have_model:
                self._note_lost(finished.number, finished.model_file)
            return {}, 0
        assert self._folders is not None
        assert self._dataset is not None
        label = ModelLabel(
            name="model",
            step=finished.best_epoch or finished.n_epochs,
            params=params,
            tags={"sweep.study": self._study.name[: keys.MAX_TAG],
                  "sweep.trial": str(finished.number)},
        )  # fmt: skip
        model_id = log_model(self._store, run, self._folders, archive, label)
        name = dataset_name(self._dataset, "val")
        data = {"dataset_name": name, "dataset_digest": self._dataset.digest}
        n_bytes = archive.stat().st_size + self._folders.n_bytes
        return {"model_id": model_id, "run_id": run.run_id, **data}, n_bytes

    def _note_lost(self, number: int, file: str) -> None:
        sentence = f"{file} of trial {number} was gone before MLflow had it"
        if sentence not in self.lost:
            self.lost.append(sentence)
            _log.error("%s", sentence)

    def drop_files(self, number: int) -> None:
        """Delete a finished trial's checkpoint and model in MLflow."""
        run = self._ranked_run(number)
        if run is None:
            return
        if keeper := drop_files(self._store, run.place):
            _log.warning("trial %d stays: %s", number, keeper)
        else:
            run.tags[DROPPED_TAG] = "true"

    # the study

    def read(self, dataset: DatasetInfo | None) -> None:
        """Name the data that trials read; None: not known yet."""
        if dataset == self._dataset and dataset is not None:
            return
        self._dataset = dataset
        self._inputs = dataset_inputs(dataset)
        if dataset is not None and self._log_models:
            module = str(self._study.config.get("module", DEFAULT_MODULE))
            self._folders = ModelFolders(dataset, module)

    def sync_study(
        self,
        study: StudyInfo,
        end: StudyFinished | None = None,
        ranking: Sequence[Ranked] = (),
        device: str | None = None,
    ) -> None:
        """Bring experiment and parent run up to the study: settings, description, ranks, end."""
        is_new_text = study.config != self._study.config or not self._is_described
        self._study = study
        self.read(study.dataset or self._dataset)
        if end is None:
            self.parent.reopen()
        text = overview.describe(study, end, ranking)
        tags = keys.tags({**_study_tags(study), "mlflow.note.content": text})
        if device is not None:
            tags[DEVICE_TAG] = device
        self.parent.log_datasets(self._inputs)
        if is_new_text:
            self.parent.remove_broken_off_uploads()
            config = yaml.safe_dump(_plain(study.config), sort_keys=False)
            self.parent.log_text(config, "config.yaml")
            self.parent.log_text(study.space_text, "space.yaml")
            self._is_described = True
        self._rank(ranking, is_baseline=end is not None and end.baseline_value is not None)
        if end is not None:
            tags |= self._end_tags(end)
            self._link_best(end)
        self.parent.log(tags=tags)
        client = self._store.client
        client.set_experiment_tag(self.experiment_id, "mlflow.note.content", text)
        if end is not None:
            status = {"interrupted": "KILLED", "failed": "FAILED"}.get(end.reason, "FINISHED")
            self.parent.end(status, end.time_ms)

    def _link_best(self, end: StudyFinished) -> None:
        """Make the best trial's model an output of the parent.

        MLflow's page files a run without a model under "Evaluation runs" unless it is switched to
        model training.
        """
        run = self._ranked_run(end.best_number) if end.best_number is not None else None
        if run is None:
            return
        client, of_run = self._store.client, f"source_run_id = '{run.run_id}'"
        models = client.search_logged_models([self.experiment_id], of_run, max_results=1)
        outputs = client.get_run(self.parent.run_id).outputs
        linked = {output.model_id for output in outputs.model_outputs} if outputs else set()
        new = [LoggedModelOutput(m.model_id, 0) for m in models if m.model_id not in linked]
        if new:
            client.log_outputs(self.parent.run_id, new)

    def _end_tags(self, end: StudyFinished) -> dict[str, str]:
        tags = {"sweep.reason": str(end.reason)}
        tags |= {f"sweep.n_{name.lower()}": str(n) for name, n in end.n_by_state.items()}
        if end.best_number is not None:
            run = self._ranked_run(end.best_number)
            tags["sweep.best_trial"] = str(end.best_number)
            tags["sweep.best_run"] = run.run_id if run else ""
        if end.best_value is not None:
            tags["sweep.best_value"] = repr(end.best_value)
        if end.baseline_value is not None:
            tags["sweep.baseline_value"] = repr(end.baseline_value)
        return tags

    def _rank(self, ranking: Sequence[Ranked], *, is_baseline: bool) -> None:
        """Number the best trials; those that fell out of the ranking lose their tag."""
        ranks = {ranked.number: rank for rank, ranked in enumerate(ranking, 1)}
        for number in sorted(self._ranks.keys() - ranks.keys()):
            if (run := self.run_of(number)) is not None:
                self._store.client.delete_tag(run.run_id, RANK_TAG)
                run.tags.pop(RANK_TAG, None)
            del self._ranks[number]
        for number, rank in ranks.items():
            run = self._ranked_run(number)
            if run is None:
                continue
            tags = {RANK_TAG: str(rank)}
            if rank == 1 or "sweep.best" in run.tags:
                tags["sweep.best"] = "true" if rank == 1 else "false"
            run.log(tags=tags)
            self._ranks[number] = rank
        if is_baseline and (run := self._ranked_run(0)) is not None:
            run.log(tags={"sweep.baseline": "true"})


def params_of(study: StudyInfo, history: TrialHistory) -> dict[str, str]:
    """The parameters that a trial's run shows."""
    started, config = history.started, history.started.settings or study.config
    fixed = {name: config[name] for name in _FIXED if config.get(name) is not None}
    return keys.trial_params(started.hyperparameters, started.params, fixed)


def points_of(study: StudyInfo, history: TrialHistory) -> dict[str, dict[int, float]]:
    """All points that the run of a finished trial shows: metric key -> step -> value."""
    points = curve_points(history.reports, metric_keys(study))
    points += _summary(study, history.finished, {}) if history.finished else []
    curves: dict[str, dict[int, float]] = {}
    for point in points:
        curves.setdefault(point.key, {}).setdefault(point.step, point.value)
    return curves


def metric_keys(study: StudyInfo) -> keys.Keys:
    """Keys for the metrics of one trial of `study`."""
    return keys.metric_keys(study.metric)


def _summary(study: StudyInfo, finished: TrialFinished, link: Mapping[str, Any]) -> list[Metric]:
    """The objective at the best epoch, linked to the model and the validation data."""
    if finished.value is None:
        return []
    step, name = finished.best_epoch or finished.n_epochs, keys.best_key(study.metric)
    return [Metric(name, float(finished.value), finished.time_ms, step, **link)]


def _tags(study: StudyInfo, role: str) -> dict[str, str]:
    return {"sweep.study": study.name, "sweep.role": role}


def _study_tags(study: StudyInfo) -> dict[str, str]:
    tags = {
        **study.tags,
        **_tags(study, "study"),
        "sweep.space": study.space_name,
        "sweep.metric": study.metric,
        "sweep.direction": study.direction,
        "sweep.n_trials": str(study.n_trials),
    }
    if commit := study.tags.get("git_commit", study.tags.get("git.commit")):
        tags["mlflow.source.git.commit"] = commit
    return tags


def outcome_tags(finished: TrialFinished) -> dict[str, str]:
    """The tags of a finished trial's run."""
    tags = {
        **finished.tags,
        STATE_TAG: str(finished.state),
        "sweep.n_epochs": str(finished.n_epochs),
    }
    if finished.best_epoch is not None:
        tags["sweep.best_epoch"] = str(finished.best_epoch)
    if finished.failure:
        tags["sweep.failure"] = finished.failure.kind
        tags["sweep.failure_message"] = redacted(finished.failure.message)[:_MAX_MESSAGE]
    return keys.tags(tags)


def _plain(value: Any) -> Any:
    """Tuples and mappings as YAML knows them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
