"""MLflow against Optuna: each disagreement one sentence, and its repair. Loads mlflow on use."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.tracking.aside import STUDY
from sweep.tracking.disposal import DROPPED_TAG
from sweep.tracking.uri import quiet
from sweep.trial import TrialState

if TYPE_CHECKING:
    from mlflow.entities import Run

    from sweep.tracking.store import Store

STATUSES: Mapping[TrialState, tuple[str, ...]] = {
    TrialState.COMPLETE: ("FINISHED",),
    TrialState.PRUNED: ("KILLED",),
    TrialState.FAIL: ("FAILED",),
    TrialState.RUNNING: ("RUNNING", "SCHEDULED"),
    TrialState.WAITING: ("SCHEDULED",),
}
"""A trial's state -> what its run may say while no driver lives; a repair sets the first."""

CheckpointOf = Callable[[int], Path | None]


@dataclass(frozen=True)
class _Fault:
    """One disagreement."""

    sentence: str
    repair: Callable[[], object]


def reconcile_runs(
    tracking_uri: str,
    study: str,
    states: Mapping[int, TrialState],
    fix: bool,
    *,
    is_live: bool = False,
    checkpoint_of: CheckpointOf = lambda number: None,
    waiting: Collection[int] = (),
) -> list[str]:
    """Compare a study's MLflow runs with its trials; deliver what the spool holds first.

    Args:
        tracking_uri: As for MlflowTracker.
        study: The study's name.
        states: What Optuna says: trial number -> state.
        fix: Whether to repair. Runs, params and metrics are never deleted: a run that belongs to
            no trial becomes KILLED, with the tag sweep.orphan and the role "orphan".
        is_live: Whether a driver works on the study right now: then what runs is left alone.
        checkpoint_of: The kept checkpoint of a trial, to store where its run lacks it.
        waiting: Trials (or STUDY) whose records are still on their way: they are left alone, as
            a repair would keep the records from being taken.

    Returns one sentence for each disagreement, none where the two agree. Raises StoreError.
    """
    with quiet():
        from sweep.tracking.store import connect, in_one_line, silence

        silence()
        store = connect(tracking_uri)
    with in_one_line(f"MLflow at {store.shown}"):
        experiment = store.client.get_experiment_by_name(study)
        if experiment is None:
            return [f"MLflow has no experiment {study!r}: `sweep run` makes it"] if states else []
        found = _Comparison(store, study, experiment.experiment_id, states, checkpoint_of)
        faults = list(found.faults(is_live=is_live, waiting=waiting))
        if fix:
            for fault in faults:
                fault.repair()
    return [fault.sentence for fault in faults]


class _Comparison:
    """The runs of one study beside its trials."""

    def __init__(
        self,
        store: Store,
        study: str,
        experiment_id: str,
        states: Mapping[int, TrialState],
        checkpoint_of: CheckpointOf,
    ) -> None:
        from mlflow.entities import ViewType

        from sweep.tracking.store import search_runs

        self._store, self._study, self._experiment_id = store, study, experiment_id
        self._states, self._checkpoint_of = states, checkpoint_of
        self._runs: dict[int, list[Run]] = defaultdict(list)
        self._parents: list[Run] = []
        self._deleted: set[int] = set()
        for run in search_runs(store, experiment_id, {"sweep.study": study}, ViewType.ALL):
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
        if not is_live and STUDY not in waiting:
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
                lambda: self._set_status(best, wanted[0]),
            )
        is_dropped = DROPPED_TAG in best.data.tags
        if state is TrialState.COMPLETE and not is_dropped and not self._has_checkpoint(best):
            yield _Fault(
                f"trial {number} is COMPLETE, but its MLflow run {best.info.run_id} has no "
                "checkpoint/best.ckpt",
                lambda: self._store_checkpoint(best, number),
            )

    def _of_study(self) -> Iterator[_Fault]:
        n_finished = sum(state.is_finished for state in self._states.values())
        for run in self._parents:
            if run.info.status != "RUNNING":
                continue
            wanted = run.data.tags.get("sweep.n_trials", "")
            is_done = wanted.isdigit() and n_finished >= int(wanted)
            status = "FINISHED" if is_done else "KILLED"
            yield _Fault(
                f"the study's MLflow run {run.info.run_id} says RUNNING, but no driver lives",
                lambda run=run, status=status: self._set_status(run, status),  # type: ignore[misc]
            )

    def _stray(self, run: Run, sentence: str) -> _Fault:
        def repair() -> None:
            for key, value in {"sweep.orphan": sentence, "sweep.role": "orphan"}.items():
                self._store.client.set_tag(run.info.run_id, key, value)
            self._set_status(run, "KILLED")

        return _Fault(f"{sentence}: {run.info.run_id}", repair)

    def _missing(self, number: int, state: TrialState) -> _Fault:
        def repair() -> None:
            from sweep.tracking.store import source_tags

            tags = {
                **source_tags(),
                "sweep.study": self._study,
                "sweep.role": "trial",
                "sweep.trial": str(number),
                "sweep.recovered": "its records never reached MLflow",
            }
            if self._parents:
                tags["mlflow.parentRunId"] = self._parents[0].info.run_id
            made = self._store.client.create_run(
                self._experiment_id, int(time.time() * 1000), tags, f"t{number:03d}"
            )
            self._store_checkpoint(made, number)
            self._set_status(made, STATUSES[state][0])

        return _Fault(f"trial {number} is {state}, but has no MLflow run", repair)

    def _set_status(self, run: Run, status: str) -> None:
        if status in ("RUNNING", "SCHEDULED"):
            self._store.client.update_run(run.info.run_id, status=status)
        else:
            end_ms = run.info.end_time or int(time.time() * 1000)
            self._store.client.set_terminated(run.info.run_id, status, end_ms)

    def _has_checkpoint(self, run: Run) -> bool:
        files = self._store.client.list_artifacts(run.info.run_id, "checkpoint")
        return any(file.path == "checkpoint/best.ckpt" for file in files)

    def _store_checkpoint(self, run: Run, number: int) -> None:
        from sweep.tracking.run import RunLog

        file = self._checkpoint_of(number)
        if file is not None and file.is_file():
            RunLog(self._store, run, is_new=False).log_file(file, "checkpoint/best.ckpt")
