"""MLflow against the ledger: each disagreement one sentence, and its repair. Loads mlflow on use.

The repair of whatever a run lacks is `Mirror.sync`. What MLflow cannot take back (a parameter or a
point that says something else) is repaired by a new run; the old one stays, marked as an orphan.
"""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sweep.tracking.disposal import DROPPED_TAG
from sweep.tracking.keys import SYSTEM
from sweep.tracking.tracker import routed
from sweep.tracking.uri import one_line, quiet, without_credentials
from sweep.trial import Recollection, StudyFinished, StudyInfo, TrialHistory, TrialState

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run

    from sweep.tracking.mirror import Mirror
    from sweep.tracking.run import RunLog
    from sweep.tracking.store import Store

STATUSES: Mapping[TrialState, tuple[str, ...]] = {
    TrialState.COMPLETE: ("FINISHED",),
    TrialState.PRUNED: ("FINISHED", "KILLED"),  # KILLED: up to sweep 0.1
    TrialState.FAIL: ("FAILED",),
    TrialState.RUNNING: ("RUNNING", "SCHEDULED"),
    TrialState.WAITING: ("SCHEDULED",),
}
"""A trial's state -> what its run may say while no driver lives; a repair sets the first."""

RECOVERED_TAG = "sweep.recovered"
"""On a run that was made again: from what."""

_VARYING_TAGS = frozenset({RECOVERED_TAG, DROPPED_TAG})
"""Tags that say what became of a run, not what the trial is."""

TOLERANCE = 1e-6
"""Relative difference of two curves that counts as agreement. An epoch that a kill took back is
trained again, and its last digits may depend on the trials beside it (float32, stacked)."""


@dataclass(frozen=True)
class Disagreement:
    """One sentence, and whether it is repaired."""

    sentence: str
    is_fixed: bool = False
    is_refused: bool = False
    """The repair was tried, and MLflow did not take it."""


class Memory(Protocol):
    """What ledger and files know of a study; `sweep.repair.recollection` has it."""

    def states(self) -> Mapping[int, TrialState]:
        """The state of each trial."""
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
    memory: Memory,
    *,
    fix: bool,
    is_live: bool = False,
    is_deep: bool = True,
    log_file: Path | None = None,
) -> list[Disagreement]:
    """Compare a study's MLflow runs with its trials.

    Args:
        tracking_uri: As for MlflowTracker.
        memory: The study as ledger and files have it.
        fix: Whether to repair. No run, param or metric is deleted: a run that belongs to no trial
            gets the tag sweep.orphan and the role "orphan". A trial that MLflow refuses is left,
            and said.
        is_live: Whether a driver works on the study right now: then unfinished trials, and the
            study's own run, are left alone.
        is_deep: Whether parameters, every point, tags and files are compared; otherwise only that
            each finished trial has a run with a final status.
        log_file: Where MLflow's own messages go.

    Returns one sentence for each disagreement, none where the two agree. Raises StoreError.
    """
    study, states = memory.study().name, memory.states()
    with quiet():
        from sweep.tracking.store import connect, in_one_line, is_there, silence

        silence()
    absent = [Disagreement(_no_experiment(study))] if states else []
    if not fix and not is_there(tracking_uri):
        return absent
    with routed(log_file) if log_file else contextlib.nullcontext():
        store = connect(tracking_uri)
        with in_one_line(f"MLflow at {store.shown}"):
            found = _Comparison(store, memory, is_deep=is_deep)
            if not found.has_experiment and not fix:
                return absent
            said = [_settled(found, fault, fix=fix) for fault in found.faults(is_live=is_live)]
            if not is_live and any(one.is_fixed for one in said):
                found.sync_study()  # ranks stand on the trials' runs
            return said


def _settled(found: _Comparison, fault: _Fault, *, fix: bool) -> Disagreement:
    """The fault as it is said, after its repair where that is asked for."""
    left, is_refused = "", False
    if fix:
        try:
            left = fault.repair()
        except Exception as error:
            without_credentials(error)
            if not found.answers():
                raise
            left, is_refused = f"MLflow refuses the repair: {one_line(error)}", True
    sentence = f"{fault.sentence}; {left}" if left else fault.sentence
    return Disagreement(sentence, fix and not left, is_refused)


def _no_experiment(study: str) -> str:
    return f"MLflow has no experiment {study!r}: `sweep doctor {study} --fix` makes it again"


class _Comparison:
    """The runs of one study beside its trials."""

    def __init__(self, store: Store, memory: Memory, *, is_deep: bool) -> None:
        from mlflow.entities import ViewType

        from sweep.tracking.keys import trial_number
        from sweep.tracking.store import search_runs

        self._store, self._memory, self._is_deep = store, memory, is_deep
        self._info, self._states = memory.study(), memory.states()
        self._runs: dict[int, list[Run]] = defaultdict(list)
        self._parents: list[Run] = []
        self._unnumbered: list[Run] = []
        self._deleted: set[int] = set()
        self._mirror_or_none: Mirror | None = None
        experiment = store.client.get_experiment_by_name(self._info.name)
        self.has_experiment = experiment is not None
        if experiment is None:
            return
        self._is_hidden = experiment.lifecycle_stage == "deleted"
        tags = {"sweep.study": self._info.name}
        for run in search_runs(store, experiment.experiment_id, tags, ViewType.ALL):
            role, number = run.data.tags.get("sweep.role"), trial_number(run.data.tags)
            is_deleted = run.info.lifecycle_stage == "deleted" and not self._is_hidden
            if role == "trial" and number is None and not is_deleted:
                self._unnumbered.append(run)
            elif role == "trial" and number is not None and is_deleted:
                self._deleted.add(number)  # by the user, in the UI: not missing
            elif role == "trial" and number is not None:
                self._runs[number].append(run)
            elif role == "study" and not is_deleted:
                self._parents.append(run)

    def faults(self, *, is_live: bool) -> Iterator[_Fault]:
        """What does not agree, by trial number, the study's own run last."""
        if not self.has_experiment:
            if self._states:
                yield _Fault(f"MLflow has no experiment {self._info.name!r}", self._make)
        elif self._is_hidden:
            yield _Fault(f"MLflow's experiment {self._info.name!r} is deleted", self._make)
        for run in self._unnumbered:
            yield self._stray(run, "an MLflow run names no trial in its tag sweep.trial")
        for number in sorted(self._runs.keys() | self._states.keys()):
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
        if not is_live and self._states:
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
        run_id = best.info.run_id
        if best.info.status not in wanted:
            yield _Fault(
                f"trial {number} is {state}, but its MLflow run {run_id} says {best.info.status}",
                lambda: self._end_trial(best, number, state),
            )
        elif state.is_finished and self._is_deep:
            yield from self._content(number, best)

    def _content(self, number: int, run: Run) -> Iterator[_Fault]:
        """What the run of a finished trial lacks, and what it has otherwise."""
        known = self._memory.trial(number)
        lacks, wrong = _differences(self._store, self._info, known, run)
        where = f"trial {number}'s MLflow run {run.info.run_id}"
        if wrong:
            sentence = f"{where} has other values than Optuna: {_some(wrong)}"
            yield _Fault(sentence, lambda: self._remake(known, run, sentence))
        elif lacks:
            yield _Fault(f"{where} lacks {_some(lacks)}", lambda: self._complete(known))

    def _complete(self, known: Recollection) -> str:
        is_lost = _is_checkpoint_lost(known)
        self._sync(known.history, {"sweep.checkpoint_lost": "true"} if is_lost else None)
        return "no copy of its checkpoint is left, which the run says now" if is_lost else ""

    def _remake(self, known: Recollection, run: Run, why: str) -> str:
        """A new run in place of one that MLflow cannot correct; its files come along."""
        self._mirror().replace_run(known.history, run)
        return self._stray(run, why).repair()

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
            # As a search begins, an older one only had no time to tell MLflow.
            is_repair = self._is_deep or known.lost
            tags = {RECOVERED_TAG: _recovered(known.lost)} if is_repair else {}
            if _is_checkpoint_lost(known):
                tags["sweep.checkpoint_lost"] = "true"
            self._sync(known.history, tags)
            return f"made again, but for {' and '.join(known.lost)}" if known.lost else ""

        return _Fault(f"trial {number} is {state}, but has no MLflow run", repair)

    def _end_trial(self, run: Run, number: int, state: TrialState) -> str:
        """A run that stopped half-way gets the rest; another one only its status."""
        if state.is_finished and run.info.status in ("RUNNING", "SCHEDULED"):
            self._sync(self._memory.trial(number).history)
            return ""
        return self._set_status(run, STATUSES[state][0])

    def _sync(self, history: TrialHistory, tags: Mapping[str, str] | None = None) -> None:
        finished = history.finished
        if tags and finished is not None:
            finished = replace(finished, tags={**finished.tags, **tags})
        self._mirror().sync(replace(history, finished=finished))

    def _mirror(self) -> Mirror:
        """The mirror of this study. Makes experiment and parent run at need, or restores them."""
        from sweep.tracking.mirror import Mirror

        if self._mirror_or_none is None:
            self._mirror_or_none = Mirror(self._store, self._info, log_models=True)
        return self._mirror_or_none

    def answers(self) -> bool:
        """Whether the store answers a question just now."""
        try:
            self._store.client.get_experiment_by_name(self._info.name)
        except Exception:  # noqa: BLE001 - whatever it is, that is no answer
            return False
        return True

    def _make(self) -> str:
        self._mirror()
        return ""

    def sync_study(self) -> None:
        """Bring description, ranks and end of the study up to its trials."""
        end = self._memory.end()
        self._mirror().sync_study(self._info, end, end.ranking)

    def _end_study(self, run: Run | None = None) -> str:
        mirror = self._mirror()
        self.sync_study()
        if run is not None and run.info.run_id != mirror.parent.run_id:
            self._set_status(run, "KILLED")
        return ""

    def _set_status(self, run: Run, status: str) -> str:
        if status in ("RUNNING", "SCHEDULED"):
            self._store.client.update_run(run.info.run_id, status=status)
        else:
            end_ms = run.info.end_time or run.info.start_time
            self._store.client.set_terminated(run.info.run_id, status, end_ms)
        return ""


def _differences(
    store: Store, study: StudyInfo, known: Recollection, run: Run
) -> tuple[list[str], list[str]]:
    """What `run` lacks of a finished trial, and what it has otherwise, in a few words each."""
    from sweep.tracking.mirror import outcome_tags, params_of, points_of
    from sweep.tracking.run import RunLog

    log, finished = RunLog(store, run, is_new=False), known.history.finished
    assert finished is not None
    params = params_of(study, known.history)
    lacks = [f"the parameter {name}" for name in params if name not in log.params]
    wrong = [
        f"the parameter {name} is {log.params[name]!r}, not {value!r}"
        for name, value in params.items()
        if log.params.get(name, value) != value
    ]
    tags = {k: v for k, v in outcome_tags(finished).items() if k not in _VARYING_TAGS}
    lacks += [f"the tag {name}" for name, value in tags.items() if log.tags.get(name) != value]
    for key, curve in points_of(study, known.history).items():
        missing, others = _compare_curve(key, curve, log.history(key))
        lacks += missing
        wrong += others
    return lacks + _missing_files(known, log, run), wrong


def _compare_curve(
    key: str, curve: Mapping[int, float], points: Sequence[Metric]
) -> tuple[list[str], list[str]]:
    """What MLflow's `points` lack of `curve` (step -> value), and the first that differs."""
    there: dict[int, list[float]] = defaultdict(list)
    for point in points:
        there[point.step].append(point.value)
    n_missing = sum(step not in there for step in curve)
    lacks = [f"{n_missing} of {len(curve)} points of {key}"] if n_missing else []
    n_doubled = sum(len(values) > 1 for step, values in there.items() if step in curve)
    wrong = [f"{n_doubled} steps of {key} have more than one point"] if n_doubled else []
    if key.startswith(SYSTEM):
        return lacks, wrong  # an epoch that is trained again takes another time
    for step, value in curve.items():
        if step in there and not _agree(there[step][0], value):
            wrong.append(f"{key} at step {step} is {there[step][0]:.9g}, not {value:.9g}")
            break
    return lacks, wrong


def _missing_files(known: Recollection, log: RunLog, run: Run) -> list[str]:
    from sweep.tracking.mirror import CHECKPOINT, LOST_TAG

    finished = known.history.finished
    assert finished is not None
    lacks = []
    is_gone = DROPPED_TAG in log.tags or LOST_TAG in log.tags
    has_one = finished.checkpoint is not None or _is_checkpoint_lost(known)
    if finished.state is TrialState.COMPLETE and has_one and not is_gone:
        lacks += [] if CHECKPOINT in log.files("checkpoint") else [CHECKPOINT]
    if finished.model_file is not None and not is_gone:
        outputs = run.outputs.model_outputs if run.outputs else []
        lacks += [] if outputs else ["its model"]
    return lacks


def _is_checkpoint_lost(known: Recollection) -> bool:
    """Whether a completed trial had a checkpoint of which the work folder has no copy."""
    finished = known.history.finished
    is_complete = finished is not None and finished.state is TrialState.COMPLETE
    return is_complete and "its checkpoint" in known.lost


def _agree(a: float, b: float) -> bool:
    from sweep.tracking.run import same_value

    return same_value(a, b) or math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=1e-12)


def _some(what: Sequence[str]) -> str:
    """At most three of `what`, and how many more there are."""
    more = f" and {len(what) - 3} more" if len(what) > 3 else ""
    return ", ".join(what[:3]) + more


def _recovered(lost: Sequence[str]) -> str:
    """What the tag says of a run that was made again."""
    without = f", without {' and '.join(lost)}" if lost else ""
    return f"made again from Optuna and the trial's files{without}"
