"""MLflow against Optuna: each disagreement one sentence, and its repair. Loads mlflow on use."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sweep.tracking.aside import STUDY
from sweep.tracking.disposal import DROPPED_TAG
from sweep.tracking.uri import quiet
from sweep.trial import (
    EpochReport,
    StudyFinished,
    StudyInfo,
    TrialFinished,
    TrialStarted,
    TrialState,
)

if TYPE_CHECKING:
    from mlflow.entities import Run

    from sweep.tracking.store import Store
    from sweep.tracking.study import StudyRuns

STATUSES: Mapping[TrialState, tuple[str, ...]] = {
    TrialState.COMPLETE: ("FINISHED",),
    TrialState.PRUNED: ("KILLED",),
    TrialState.FAIL: ("FAILED",),
    TrialState.RUNNING: ("RUNNING", "SCHEDULED"),
    TrialState.WAITING: ("SCHEDULED",),
}
"""A trial's state -> what its run may say while no driver lives; a repair sets the first."""

LOST_TAG, RECOVERED_TAG = "sweep.checkpoint_lost", "sweep.recovered"
"""On a run: no copy of its checkpoint is left; what it was made again from."""


@dataclass(frozen=True)
class Disagreement:
    """One sentence, and whether it is repaired."""

    sentence: str
    is_fixed: bool = False


class Recollection(Protocol):
    """The records of a finished trial, as far as they are known."""

    @property
    def started(self) -> TrialStarted:
        """Its beginning."""
        ...

    @property
    def reports(self) -> Sequence[EpochReport]:
        """Its epochs."""
        ...

    @property
    def finished(self) -> TrialFinished:
        """Its end."""
        ...

    @property
    def lost(self) -> Sequence[str]:
        """What nothing remembers, e.g. "its checkpoint"."""
        ...


class Memory(Protocol):
    """What is known of a study outside MLflow; `sweep.recollection` has it."""

    def checkpoint(self, number: int) -> Path | None:
        """The kept checkpoint of a trial."""
        ...

    def study(self) -> StudyInfo:
        """The study as its driver opened it."""
        ...

    def trial(self, number: int) -> Recollection:
        """A finished trial."""
        ...

    def end(self) -> StudyFinished:
        """How far the study came."""
        ...


@dataclass(frozen=True)
class _Fault:
    """One disagreement; `repair` returns what could not be repaired, or an empty text."""

    sentence: str
    repair: Callable[[], str]


def reconcile_runs(
    tracking_uri: str,
    study: str,
    states: Mapping[int, TrialState],
    memory: Memory,
    *,
    fix: bool,
    is_live: bool = False,
    waiting: Collection[int] = (),
) -> list[Disagreement]:
    """Compare a study's MLflow runs with its trials; deliver what the spool holds first.

    Args:
        tracking_uri: As for MlflowTracker.
        study: The study's name.
        states: What Optuna says: trial number -> state.
        memory: Where missing runs and checkpoints are brought back from.
        fix: Whether to repair. Runs, params and metrics are never deleted: a run that belongs to
            no trial becomes KILLED, with the tag sweep.orphan and the role "orphan".
        is_live: Whether a driver works on the study right now: then what runs is left alone.
        waiting: Trials (or STUDY) whose records are still on their way: they are left alone, as
            a repair would keep the records from being taken.

    Returns one sentence for each disagreement, none where the two agree. Raises StoreError.
    """
    with quiet():
        from sweep.tracking.store import connect, in_one_line, is_there, silence

        silence()
        if not fix and not is_there(tracking_uri):
            return [Disagreement(_no_experiment(study))] if states else []
        store = connect(tracking_uri)
    with in_one_line(f"MLflow at {store.shown}"):
        found = _Comparison(store, study, states, memory)
        if not found.has_experiment and not fix:
            return [Disagreement(_no_experiment(study))] if states else []
        said = []
        for fault in found.faults(is_live=is_live, waiting=waiting):
            left = fault.repair() if fix else ""
            sentence = f"{fault.sentence}; {left}" if left else fault.sentence
            said.append(Disagreement(sentence, fix and not left))
        return said


def _no_experiment(study: str) -> str:
    return f"MLflow has no experiment {study!r}: `sweep doctor {study} --fix` makes it again"


class _Comparison:
    """The runs of one study beside its trials."""

    def __init__(
        self, store: Store, study: str, states: Mapping[int, TrialState], memory: Memory
    ) -> None:
        from mlflow.entities import ViewType

        from sweep.tracking.store import search_runs

        self._store, self._study = store, study
        self._states, self._memory = states, memory
        self._runs: dict[int, list[Run]] = defaultdict(list)
        self._parents: list[Run] = []
        self._deleted: set[int] = set()
        self._sink_or_none: StudyRuns | None = None
        experiment = store.client.get_experiment_by_name(study)
        self.has_experiment = experiment is not None
        if experiment is None:
            return
        tags = {"sweep.study": study}
        for run in search_runs(store, experiment.experiment_id, tags, ViewType.ALL):
            role, number = run.data.tags.get("sweep.role"), run.data.tags.get("sweep.trial", "")
            is_deleted = run.info.lifecycle_stage == "deleted"
            if role == "trial" and number.isdigit() and is_deleted:
                self._deleted.add(int(number))  # by the user, in the UI: not missing
            elif role == "trial" and number.isdigit():
                self._runs[int(number)].append(run)
            elif role == "study" and not is_deleted:
                self._parents.append(run)

    def faults(self, *, is_live: bool, waiting: Collection[int]) -> Iterator[_Fault]:
        """What does not agree, by trial number, the study's own run last."""
        if not self.has_experiment and self._states:
            yield _Fault(f"MLflow has no experiment {self._study!r}", self._make_experiment)
        for number in sorted((self._runs.keys() | self._states.keys()) - set(waiting)):
            state, runs = self._states.get(number), self._runs.get(number, [])
            if state is None:
                for run in runs:
                    yield self._stray(
                        run, f"MLflow has a trial {number} that Optuna does not know"
                    )
            elif not runs:
                if state.is_finished and number not in self._deleted:
                    yield self._missing(number, state)
            elif not (is_live and not state.is_finished):
                yield from self._of_trial(number, state, runs)
        if not is_live and self._states and STUDY not in waiting:
            yield from self._of_study()

    def _of_trial(self, number: int, state: TrialState, runs: list[Run]) -> Iterator[_Fault]:
        wanted = STATUSES[state]
        # The one to keep: of the right status, else the one with most in it, else the oldest.
        best, *others = sorted(
            runs,
            key=lambda r: (
                r.info.status not in wanted, -len(r.data.metrics), r.info.start_time, r.info.run_id
            ),
        )  # fmt: skip
        for run in others:
            yield self._stray(run, f"trial {number} has a second MLflow run")
        if best.info.status not in wanted:
            yield _Fault(
                f"trial {number} is {state}, but its MLflow run {best.info.run_id} says "
                f"{best.info.status}",
                lambda: self._end_trial(best, number, state),
            )
        has_no_file = DROPPED_TAG in best.data.tags or LOST_TAG in best.data.tags
        if state is TrialState.COMPLETE and not has_no_file and not self._has_checkpoint(best):
            yield _Fault(
                f"trial {number} is COMPLETE, but its MLflow run {best.info.run_id} has no "
                "checkpoint/best.ckpt",
                lambda: self._store_checkpoint(best, number),
            )

    def _of_study(self) -> Iterator[_Fault]:
        if not self._parents:
            yield _Fault("MLflow has no run of the study itself", self._end_study)
        for run in self._parents:
            if run.info.status == "RUNNING":
                yield _Fault(
                    f"the study's MLflow run {run.info.run_id} says RUNNING, but no driver lives",
                    lambda run=run: self._end_study(run),  # type: ignore[misc]
                )

    def _stray(self, run: Run, sentence: str) -> _Fault:
        def repair() -> str:
            for key, value in {"sweep.orphan": sentence, "sweep.role": "orphan"}.items():
                self._store.client.set_tag(run.info.run_id, key, value)
            return self._set_status(run, "KILLED")

        return _Fault(f"{sentence}: {run.info.run_id}", repair)

    def _missing(self, number: int, state: TrialState) -> _Fault:
        def repair() -> str:
            known = self._memory.trial(number)
            tags = {RECOVERED_TAG: _recovered(known.lost)}
            if state is TrialState.COMPLETE and known.finished.checkpoint is None:
                tags[LOST_TAG] = "true"
            self._tell(known, tags)
            return f"made again, but for {' and '.join(known.lost)}" if known.lost else ""

        return _Fault(f"trial {number} is {state}, but has no MLflow run", repair)

    def _end_trial(self, run: Run, number: int, state: TrialState) -> str:
        """A run that stopped half-way gets the rest; another one only its status."""
        if state.is_finished and run.info.status in ("RUNNING", "SCHEDULED"):
            self._tell(self._memory.trial(number), {})
            return ""
        return self._set_status(run, STATUSES[state][0])

    def _tell(self, known: Recollection, tags: Mapping[str, str]) -> None:
        """Tell a trial's records once more: what the run has already stays as it is."""
        self._sink().apply(known.started, ())
        ended = replace(known.finished, tags={**known.finished.tags, **tags})
        self._sink().apply(ended, known.reports)

    def _sink(self) -> StudyRuns:
        """Where records of lost runs go. Makes the experiment and its parent run at need."""
        from sweep.tracking.study import StudyRuns

        if self._sink_or_none is None:
            self._sink_or_none = StudyRuns(
                self._store, self._memory.study(), log_models=True, is_catching_up=True
            )
        return self._sink_or_none

    def _make_experiment(self) -> str:
        self._sink()
        return ""

    def _end_study(self, run: Run | None = None) -> str:
        sink = self._sink()
        sink.apply(self._memory.end(), ())
        if run is not None and run.info.run_id != sink.parent.run_id:
            self._set_status(run, "KILLED")
        return ""

    def _set_status(self, run: Run, status: str) -> str:
        if status in ("RUNNING", "SCHEDULED"):
            self._store.client.update_run(run.info.run_id, status=status)
        else:
            end_ms = run.info.end_time or int(time.time() * 1000)
            self._store.client.set_terminated(run.info.run_id, status, end_ms)
        return ""

    def _has_checkpoint(self, run: Run) -> bool:
        from sweep.tracking.disposal import files_of

        files = files_of(self._store, run.info.artifact_uri).list_artifacts("checkpoint")
        return any(file.path == "checkpoint/best.ckpt" for file in files)

    def _store_checkpoint(self, run: Run, number: int) -> str:
        from sweep.tracking.run import RunLog

        file = self._memory.checkpoint(number)
        if file is None or not file.is_file():
            self._store.client.set_tag(run.info.run_id, LOST_TAG, "true")
            return "no copy of it is left, which the run says now"
        RunLog(self._store, run, is_new=False).log_file(file, "checkpoint/best.ckpt")
        return ""


def _recovered(lost: Sequence[str]) -> str:
    """What the tag says of a run that was made again."""
    without = f", without {' and '.join(lost)}" if lost else ""
    return f"made again from Optuna and the trial's files{without}"
