"""MLflow as a mirror: one function brings a trial's run up to its record.

The ledger and the trials' files are the truth. `Mirror.sync` compares a run with a trial's history
and writes its missing parts; a complete run is left alone. A live search, an outage, a refused
record, `sweep doctor --fix` and the start after a kill are this function, called at different
times.

Loads mlflow, as it is imported.
"""

from __future__ import annotations

import logging
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import yaml
from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, LoggedModelOutput, ViewType

from sweep.errors import NotFoundError, StoreError, must_be_one_of
from sweep.hyperparameters import DEFAULT_MODULE
from sweep.redact import redacted
from sweep.tracking import keys, pages
from sweep.tracking.artifacts import drop_files
from sweep.tracking.description import describe
from sweep.tracking.keys import DROPPED_TAG
from sweep.tracking.model import NOTE_TAG, ModelFolders, folders_of
from sweep.tracking.moved_folders import check_home
from sweep.tracking.run import RunLog, make_run
from sweep.tracking.run_content import CHECKPOINT, picture_of_trial, show
from sweep.tracking.store import find_or_make_experiment, opened, search_runs
from sweep.trial import Ranked, StudyFinished, StudyInfo, TrialHistory, TrialStarted

RANK_TAG = "sweep.rank"

_log = logging.getLogger("sweep.tracking")


class Mirror:
    """A study's runs in MLflow: an experiment, a parent run, and a child run a trial.

    Only `make` and the methods after it write.

    Args:
        client: Of an open store.
        study: As its driver opened it.
    """

    def __init__(self, client: MlflowClient, study: StudyInfo) -> None:
        self.client, self.study = client, study
        self.lost: list[str] = []
        """Sentences about files that were gone before MLflow had them."""
        self.runs: dict[int, list[RunLog]] = {}
        """Trial -> its runs; the first one is kept, others are `sweep doctor`'s."""
        self.parents: list[RunLog] = []
        self.unnumbered: list[RunLog] = []
        """Runs of trials without a number: somebody wrote into their tags."""
        self.deleted: set[int] = set()
        """Trials whose runs the user deleted."""
        self._let_go: set[int] = set()
        """Those of them that were deleted since the mirror was made."""
        self._folders: ModelFolders | None = None
        self._described: Mapping[str, Any] | None = None
        """The settings that the parent's files have; an older search may have died over them."""
        self.experiment = client.get_experiment_by_name(study.name)
        if self.experiment is not None:
            check_home(client.tracking_uri, self.experiment)
            self.read()

    @property
    def is_hidden(self) -> bool:
        """Whether the user deleted the experiment."""
        stage = self.experiment.lifecycle_stage if self.experiment is not None else ""
        return bool(stage == LifecycleStage.DELETED)

    def make(self) -> None:
        """Make or restore experiment and parent run, if they are missing."""
        if self.experiment is None or self.is_hidden:
            self.experiment = find_or_make_experiment(self.client, self.study.name)
            self.read()
        if not self.parents:
            tags = keys.tags(_study_tags(self.study))
            self.parents = [self._make_run(self.study.name, self.study.time_ms, tags)]

    def read(self, number: int | None = None) -> None:
        """Read the study's runs, or those of trial `number`.

        At the beginning and after a failed call. Raises StoreError if the user deleted the
        experiment meanwhile.
        """
        assert self.experiment is not None
        where = self.experiment.experiment_id
        stage = self.client.get_experiment(where).lifecycle_stage
        if stage == LifecycleStage.DELETED and not self.is_hidden:
            raise StoreError(f"MLflow's experiment {self.study.name!r} is deleted")
        known = {run.run_id for runs in self.runs.values() for run in runs}
        runs: dict[int, list[RunLog]] = defaultdict(list)
        parents, unnumbered = list[RunLog](), list[RunLog]()
        tags = {"sweep.study": self.study.name}
        if number is not None:
            tags |= {"sweep.role": "trial", "sweep.trial": str(number)}
        for found in search_runs(self.client, [where], tags, ViewType.ALL):
            role, trial = found.data.tags.get("sweep.role"), keys.trial_number(found.data.tags)
            is_deleted = found.info.lifecycle_stage == "deleted" and not self.is_hidden
            run = RunLog(self.client, found)
            if role == "study" and not is_deleted:
                parents.append(run)
            elif role == "trial" and trial is None and not is_deleted:
                unnumbered.append(run)
            elif role == "trial" and trial is not None and is_deleted:
                self.deleted.add(trial)
                self._let_go |= {trial} if run.run_id in known else set()
            elif role == "trial" and trial is not None:
                runs[trial].append(run)
        # The one to keep: the one that ended, else the one with most in it, else the oldest.
        in_order = {trial: sorted(of_one, key=_in_order) for trial, of_one in runs.items()}
        if number is None:
            self.parents, self.unnumbered, self.runs = parents, unnumbered, in_order
        else:
            self.runs.pop(number, None)
            self.runs |= in_order

    @property
    def parent(self) -> RunLog:
        """The study's own run, the oldest of several. Only after `make`."""
        return self.parents[-1]

    def run_of(self, number: int) -> RunLog | None:
        """The run of a finished trial. A repair may have made it since the runs were read."""
        if number not in self.runs and number not in self.deleted:
            self.read()
        return self.runs[number][0] if number in self.runs else None

    def answers(self, number: int | None = None) -> bool:
        """Whether the store takes a write just now.

        The runs of trial `number`, or all runs of the study, are read again: the answer of a
        failed call may have been lost. If the user deleted the study's own run, it gets a new one.
        """
        try:
            self.read(number)
            if number is not None:
                own = self.client.get_run(self.parent.run_id)
                is_deleted = own.info.lifecycle_stage == LifecycleStage.DELETED
                self.parents = [] if is_deleted else [RunLog(self.client, own)]
            self.make()
            self.client.set_tag(self.parent.run_id, "sweep.role", "study")
        except Exception:  # noqa: BLE001 - whatever it is, that is no answer
            return False
        return True

    # trials

    def begin(self, started: TrialStarted) -> None:
        """Show a running trial, without parameters yet: a call for them alone costs 10 ms."""
        if started.number not in self._let_go:
            run = self._run_for(TrialHistory(started))
            run.log_datasets(self.study.dataset)
            run.set_status("RUNNING")

    def sync(self, history: TrialHistory) -> None:
        """Bring the run of a trial up to `history`. Raises whatever MLflow raises.

        A run deleted by the user meanwhile is let go.
        """
        number = history.started.number
        if number not in self._let_go:
            self._show(self._run_for(history), history)

    def replace_run(self, history: TrialHistory, old: RunLog) -> None:
        """Give a finished trial a new run in place of `old`; checkpoint and model come along."""
        finished = history.finished
        assert finished is not None
        if DROPPED_TAG in old.tags:
            finished = replace(finished, tags={**finished.tags, DROPPED_TAG: "true"})
        self.runs[finished.number] = []
        run = self._run_for(history)
        with tempfile.TemporaryDirectory() as scratch:
            if finished.checkpoint is None and old.size_of(CHECKPOINT) is not None:
                finished = replace(finished, checkpoint=old.fetch(CHECKPOINT, scratch))
            if old.model_ids and finished.model_file is None:
                outputs = [LoggedModelOutput(model_id, 0) for model_id in old.model_ids]
                self.client.log_outputs(run.run_id, outputs)
            self._show(run, replace(history, finished=finished))

    def drop_files(self, numbers: Sequence[int]) -> None:
        """Delete checkpoints and models of finished trials in MLflow."""
        runs = {n: run for n in numbers if (run := self.run_of(n)) is not None}
        keepers = drop_files(self.client, [run.run_id for run in runs.values()])
        for number, run in runs.items():
            if keeper := keepers.get(run.run_id):
                _log.warning("trial %d stays: %s", number, keeper)
            else:
                run.tags[DROPPED_TAG] = "true"

    def _run_for(self, history: TrialHistory) -> RunLog:
        number = history.started.number
        if not self.runs.get(number):
            picture = picture_of_trial(self.study, history)
            tags = {**picture.tags, "mlflow.parentRunId": self.parent.run_id}
            self.runs[number] = [self._make_run(picture.name, picture.start_ms, tags)]
        return self.runs[number][0]

    def _make_run(self, name: str, time_ms: int, tags: Mapping[str, str]) -> RunLog:
        assert self.experiment is not None
        return make_run(self.client, self.experiment.experiment_id, name, time_ms, tags)

    def _show(self, run: RunLog, history: TrialHistory) -> None:
        study, finished = self.study, history.finished
        module = str(study.config.get("module", DEFAULT_MODULE))
        is_same = self._folders is not None and module == DEFAULT_MODULE
        if not is_same and finished is not None and finished.model_file is not None:
            self._folders = folders_of(finished.model_file, study.dataset, module)
        for file in show(run, picture_of_trial(study, history), study.dataset, self._folders):
            number = history.started.number
            self.lost.append(f"{file} of trial {number} was gone before MLflow had it")
            _log.error("%s", self.lost[-1])

    # the study

    def sync_study(
        self, study: StudyInfo, end: StudyFinished | None = None, ranking: Sequence[Ranked] = (),
    ) -> None:  # fmt: skip
        """Bring experiment and parent run up to the study: settings, description, ranks, end."""
        assert self.experiment is not None
        self.study, where = study, self.experiment.experiment_id
        text = describe(study, end, ranking, pages.page_of(where))
        self.parent.log_datasets(study.dataset)
        if study.config != self._described:
            self.parent.remove_broken_off_uploads()
            config = yaml.safe_dump(_plain(study.config), sort_keys=False)
            self.parent.log_text(config, "config.yaml")
            self.parent.log_text(study.space_text, "space.yaml")
            self._described = study.config
        self._rank(ranking)
        tags = keys.tags({**_study_tags(study), NOTE_TAG: text})
        if end is not None:
            tags |= self._end_tags(end)
            self._link_best(end)
        self.parent.log(tags=tags)
        if pages.VIEW_TAG not in self.experiment.tags:  # once: it is the user's to change
            self.client.set_experiment_tag(where, pages.VIEW_TAG, pages.view_of(study))
            self.experiment = self.client.get_experiment(where)
        self.client.set_experiment_tag(where, NOTE_TAG, tags[NOTE_TAG])
        if end is None:
            self.parent.set_status("RUNNING")
        else:
            status = {"interrupted": "KILLED", "failed": "FAILED"}.get(end.reason, "FINISHED")
            self.parent.set_status(status, end.time_ms)

    def _link_best(self, end: StudyFinished) -> None:
        """Make the best trial's model an output of the parent.

        MLflow's page files a run without a model under "Evaluation runs" unless it is switched to
        model training.
        """
        best = self.run_of(end.best_number) if end.best_number is not None else None
        new = [m for m in best.model_ids if m not in self.parent.model_ids] if best else []
        if new:
            outputs = [LoggedModelOutput(model_id, 0) for model_id in new]
            self.client.log_outputs(self.parent.run_id, outputs)
            self.parent.model_ids += new

    def _end_tags(self, end: StudyFinished) -> dict[str, str]:
        tags = {"sweep.reason": str(end.reason)}
        tags |= {f"sweep.n_{name.lower()}": str(n) for name, n in end.n_by_state.items()}
        if end.best_number is not None:
            run = self.run_of(end.best_number)
            tags["sweep.best_trial"] = str(end.best_number)
            tags["sweep.best_run"] = run.run_id if run else ""
        if end.best_value is not None:
            tags["sweep.best_value"] = repr(end.best_value)
        if end.baseline_value is not None:
            tags["sweep.baseline_value"] = repr(end.baseline_value)
            if (baseline := self.run_of(0)) is not None:
                baseline.log(tags={"sweep.baseline": "true"})
        return tags

    def _rank(self, ranking: Sequence[Ranked]) -> None:
        """Number the best trials; all others lose their tag."""
        ranks = {ranked.number: str(rank) for rank, ranked in enumerate(ranking, 1)}
        if ranks.keys() - self.runs.keys() - self.deleted:
            self.read()
        for number, (run, *_) in self.runs.items():
            rank = ranks.get(number)
            if rank is None and RANK_TAG in run.tags:
                self.client.delete_tag(run.run_id, RANK_TAG)
                del run.tags[RANK_TAG]
            elif rank is not None:
                tags = {RANK_TAG: rank}
                if rank == "1" or "sweep.best" in run.tags:
                    tags["sweep.best"] = "true" if rank == "1" else "false"
                run.log(tags=tags)


def sync_trial(tracking_uri: str, study: StudyInfo, history: TrialHistory) -> None:
    """Write whatever a trial's run lacks of `history`, now. Raises StoreError."""
    with opened(tracking_uri, create=True) as client:
        mirror = Mirror(client, study)
        mirror.make()
        mirror.sync(history)


def sync_study(tracking_uri: str, study: StudyInfo, end: StudyFinished) -> None:
    """Bring a study's own run up to its record, now. Raises StoreError."""
    with opened(tracking_uri, create=True) as client:
        mirror = Mirror(client, study)
        mirror.make()
        mirror.sync_study(study, end, end.ranking)


def page_of_study(tracking_uri: str, name: str) -> str:
    """The address of a study's trials on MLflow's pages, without host.

    Raises NotFoundError if MLflow has no such study, StoreError.
    """
    with opened(tracking_uri) as client:
        experiment = client.get_experiment_by_name(name)
        if experiment is None or experiment.lifecycle_stage == LifecycleStage.DELETED:
            others = [e.name for e in client.search_experiments() if e.name != "Default"]
            known = f": {must_be_one_of('study', name, others)}" if others else ""
            raise NotFoundError(f"MLflow at {redacted(tracking_uri)} has no study {name!r}{known}")
        has_view = pages.VIEW_TAG in experiment.tags
        return pages.page_of(str(experiment.experiment_id), has_view=has_view)


def store_texts(tracking_uri: str, name: str, texts: Mapping[str, str]) -> bool:
    """Store files with a finished study's own run: path of the artifact -> content.

    Returns whether MLflow has such a run. Raises StoreError.
    """
    with opened(tracking_uri) as client:
        experiment = client.get_experiment_by_name(name)
        where = [experiment.experiment_id] if experiment is not None else []
        tags = {"sweep.study": name, "sweep.role": "study"}
        runs = list(search_runs(client, where, tags)) if where else []
        for artifact, content in texts.items() if runs else ():
            RunLog(client, runs[-1]).log_text(content, artifact)
        return bool(runs)


def _in_order(run: RunLog) -> tuple[bool, int, int, str]:
    return run.status not in ("FINISHED", "FAILED"), -run.n_metrics, run.start_time, run.run_id


def _study_tags(study: StudyInfo) -> dict[str, str]:
    tags = {
        **study.tags,
        "sweep.study": study.name,
        "sweep.role": "study",
        "sweep.space": study.space_name,
        "sweep.metric": study.metric,
        "sweep.direction": study.direction,
        "sweep.n_trials": str(study.n_trials),
    }
    if commit := study.tags.get("git_commit", study.tags.get("git.commit")):
        tags["mlflow.source.git.commit"] = commit
    return tags


def _plain(value: Any) -> Any:
    """Tuples and mappings as YAML knows them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
