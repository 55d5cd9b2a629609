"""MLflow against the ledger: each disagreement one sentence, and its repair.

An incomplete run is repaired by `Mirror.sync`. MLflow cannot change a parameter or a point: a run
with other values is replaced by a new one, and stays, marked as an orphan.

Loads mlflow, as it is imported.
"""

from __future__ import annotations

import functools
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sweep.repair.records import StudyRecords
from sweep.tracking.keys import DROPPED_TAG, SYSTEM
from sweep.tracking.uri import one_line, quiet, without_credentials
from sweep.trial import TrialHistory, TrialState

with quiet():
    from sweep.tracking import moved_folders
    from sweep.tracking.mirror import Mirror
    from sweep.tracking.run import STATUS, RunLog
    from sweep.tracking.run_content import CHECKPOINT, LOST_TAG, picture_of_trial
    from sweep.tracking.store import is_there, opened, routed

RECOVERED_TAG = "sweep.recovered"
"""On a run that was made again: from what."""

_VARYING_TAGS = frozenset({RECOVERED_TAG, DROPPED_TAG})
"""Tags that say what became of a run, not what the trial is."""

TOLERANCE = 1e-6
"""Relative difference of two curves that counts as agreement. An epoch that a kill took back is
trained again, and its last digits may depend on the trials beside it (float32, stacked)."""


_LARGEST = sys.float_info.max


@dataclass(frozen=True)
class Disagreement:
    """One sentence, and whether it is repaired."""

    sentence: str
    is_fixed: bool = False
    is_refused: bool = False
    """The repair was tried, and MLflow did not take it."""


Fault = tuple[str, Callable[[], str | None], int | None]
"""A disagreement, its repair, and its trial (None: the study's).

The repair returns a few words on anything it could not mend.
"""


def reconcile_addresses(tracking_uri: str, study: str, *, fix: bool) -> list[Disagreement]:
    """Whether MLflow's artifacts are in the folder of its store, or in one named by the user.

    Raises StoreError, and NotFoundError if the files did not come along.
    """
    if not is_there(tracking_uri):
        return []
    with opened(tracking_uri, create=fix) as client:
        experiment = client.get_experiment_by_name(study)
        if experiment is None or not (
            move := moved_folders.move_of(client.tracking_uri, experiment)
        ):
            return []
        if fix:
            moved_folders.rewrite(client.tracking_uri, experiment, move)
        return [Disagreement(move.sentence(study), fix)]


def reconcile_runs(
    tracking_uri: str,
    records: StudyRecords,
    *,
    fix: bool,
    is_live: bool = False,
    is_deep: bool = True,
    log_file: Path | None = None,
) -> list[Disagreement]:
    """Compare a study's MLflow runs with its trials; returns a sentence for each disagreement.

    Args:
        tracking_uri: As for MlflowTracker.
        records: The study as ledger and files have it.
        fix: Whether to repair. No run, param or metric is deleted: a run of no trial gets the tag
            sweep.orphan and the role "orphan". A trial refused by MLflow is left, and said.
        is_live: Whether a driver works on the study right now: then unfinished trials, and the
            study's own run, are left alone.
        is_deep: Whether parameters, every point, tags and files are compared; otherwise only if
            each finished trial has a run with a final status.
        log_file: File for MLflow's own messages.

    Raises StoreError.
    """
    study, states = records.study(), records.states()
    again = f"`sweep doctor {study.name} --fix` makes it again"
    absent = [Disagreement(f"MLflow has no experiment {study.name!r}: {again}")] if states else []
    if not fix and not is_there(tracking_uri):
        return absent
    with routed(log_file), opened(tracking_uri, create=fix) as client:
        mirror = Mirror(client, study)
        if mirror.experiment is None and not fix:
            return absent
        faults = _faults(mirror, records, is_live=is_live, is_deep=is_deep)
        said = [_settled(mirror, fault, fix=fix) for fault in faults]
        if not is_live and any(one.is_fixed for one in said):
            _end(mirror, records)  # ranks stand on the trials' runs
        return said


def _settled(mirror: Mirror, fault: Fault, *, fix: bool) -> Disagreement:
    """The fault in words, after its repair if `fix`."""
    sentence, repair, number = fault
    if not fix:
        return Disagreement(sentence)
    try:
        mirror.make()
        left = repair()
    except Exception as error:
        without_credentials(error)
        if not mirror.answers(number):
            raise
        left = f"MLflow refuses the repair: {one_line(error)}"
        return Disagreement(f"{sentence}; {left}", is_refused=True)
    return Disagreement(f"{sentence}; {left}" if left else sentence, not left)


def _faults(
    mirror: Mirror, records: StudyRecords, *, is_live: bool, is_deep: bool
) -> Iterator[Fault]:
    """Disagreements by trial number, the study's own run last."""
    states, name = records.states(), mirror.study.name
    parents = mirror.parents  # before a repair makes one
    if mirror.is_hidden:
        yield f"MLflow's experiment {name!r} is deleted", mirror.make, None
    elif mirror.experiment is None and states:
        yield f"MLflow has no experiment {name!r}", mirror.make, None
    for run in mirror.unnumbered:
        yield _stray(run, "an MLflow run names no trial in its tag sweep.trial")
    for number in sorted(mirror.runs.keys() | states.keys()):
        state, runs = states.get(number), mirror.runs.get(number, [])
        if state is None:
            for run in runs:
                yield _stray(run, f"MLflow has a trial {number} that Optuna does not know")
        elif not runs and state.is_finished and number not in mirror.deleted:
            repair = functools.partial(_make_again, mirror, records, number, is_repair=is_deep)
            yield f"trial {number} is {state}, but has no MLflow run", repair, number
        elif runs and (state.is_finished or not is_live):
            for other in runs[1:]:
                yield _stray(other, f"trial {number} has a second MLflow run")
            yield from _of_trial(mirror, records, number, state, is_deep=is_deep)
    if is_live or not states:
        return
    if not parents:
        end = functools.partial(_end, mirror, records)
        yield "MLflow has no run of the study itself", end, None
    for run in parents:
        if run.status == "RUNNING":
            sentence = f"the study's MLflow run {run.run_id} says RUNNING, but no driver lives"
            yield sentence, functools.partial(_end, mirror, records, run), None


def _of_trial(
    mirror: Mirror, records: StudyRecords, number: int, state: TrialState, *, is_deep: bool
) -> Iterator[Fault]:
    """Differences of a trial's run from its record."""
    run = mirror.runs[number][0]
    wanted = STATUS.get(state, "SCHEDULED")
    if run.status != wanted and (run.status, state) != ("RUNNING", TrialState.RUNNING):
        sentence = f"trial {number} is {state}, but its MLflow run {run.run_id} says {run.status}"
        if state.is_finished and run.status in ("RUNNING", "SCHEDULED"):
            # It stopped half-way: it gets the rest.
            yield sentence, lambda: _sync(mirror, records.trial(number)), number
        else:
            yield sentence, functools.partial(_set_status, run, wanted), number
    elif state.is_finished and is_deep:
        known = records.trial(number)
        lacks, wrong = _differences(mirror, known, run)
        where = f"trial {number}'s MLflow run {run.run_id}"
        if wrong:
            sentence = f"{where} has other values than Optuna: {_some(wrong)}"
            yield sentence, functools.partial(_remake, mirror, known, run, sentence), number
        elif lacks:
            yield f"{where} lacks {_some(lacks)}", functools.partial(_sync, mirror, known), number


# repairs


def _stray(run: RunLog, sentence: str) -> Fault:
    def repair() -> None:
        run.log(tags={"sweep.orphan": sentence, "sweep.role": "orphan"})
        _set_status(run, "KILLED")

    return f"{sentence}: {run.run_id}", repair, None


def _set_status(run: RunLog, status: str) -> None:
    run.set_status(status, None if status == "SCHEDULED" else run.end_time or run.start_time)


def _sync(mirror: Mirror, known: TrialHistory) -> str:
    """Bring a run up to the record of a finished trial."""
    finished, is_lost = known.finished, _is_checkpoint_lost(known)
    assert finished is not None
    if is_lost:
        finished = replace(finished, tags={**finished.tags, LOST_TAG: "true"})
    mirror.sync(replace(known, finished=finished))
    return "no copy of its checkpoint is left, which the run says now" if is_lost else ""


def _make_again(mirror: Mirror, records: StudyRecords, number: int, *, is_repair: bool) -> str:
    known = records.trial(number)
    finished, without = known.finished, " and ".join(known.lost)
    if finished and (is_repair or without):  # else the search had no time to tell MLflow
        source = "made again from Optuna and the trial's files"
        tag = f"{source}, without {without}" if without else source
        finished = replace(finished, tags={**finished.tags, RECOVERED_TAG: tag})
    _sync(mirror, replace(known, finished=finished))
    return f"made again, but for {without}" if without else ""


def _remake(mirror: Mirror, known: TrialHistory, run: RunLog, why: str) -> None:
    """Replace a run with wrong values by a new one; its files come along."""
    mirror.replace_run(known, run)
    _stray(run, why)[1]()


def _end(mirror: Mirror, records: StudyRecords, run: RunLog | None = None) -> None:
    """Bring description, ranks and end of the study up to its trials."""
    end = records.end()
    mirror.sync_study(records.study(), end, end.ranking)
    if run is not None and run.run_id != mirror.parent.run_id:
        _set_status(run, "KILLED")


# comparison


def _differences(mirror: Mirror, known: TrialHistory, run: RunLog) -> tuple[list[str], list[str]]:
    """Missing and differing parts of a finished trial's run, in a few words each."""
    picture = picture_of_trial(mirror.study, known)
    lacks = [f"the parameter {name}" for name in picture.params if name not in run.params]
    wrong = [
        f"the parameter {name} is {run.params[name]!r}, not {value!r}"
        for name, value in picture.params.items()
        if run.params.get(name, value) != value
    ]
    tags = {k: v for k, v in picture.tags.items() if k not in _VARYING_TAGS}
    lacks += [f"the tag {name}" for name, value in tags.items() if run.tags.get(name) != value]
    curves: dict[str, dict[int, float]] = defaultdict(dict)
    for point in [*picture.points, *picture.summary]:
        curves[point.key].setdefault(point.step, point.value)
    for key, curve in curves.items():
        missing, others = _compare_curve(key, curve, [(p.step, p.value) for p in run.history(key)])
        lacks += missing
        wrong += others
    if DROPPED_TAG not in run.tags and LOST_TAG not in run.tags:
        has_one = picture.checkpoint is not None or _is_checkpoint_lost(known)
        is_complete = known.finished and known.finished.state is TrialState.COMPLETE
        if is_complete and has_one and run.size_of(CHECKPOINT) is None:
            lacks.append(CHECKPOINT)
        if picture.model_file is not None and not run.model_ids:
            lacks.append("its model")
    return lacks, wrong


def _compare_curve(
    key: str, curve: Mapping[int, float], points: Iterable[tuple[int, float]]
) -> tuple[list[str], list[str]]:
    """Points of `curve` (step -> value) missing in MLflow, and the first difference."""
    there: dict[int, list[float]] = defaultdict(list)
    for step, value in points:
        there[step].append(value)
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


def _is_checkpoint_lost(known: TrialHistory) -> bool:
    """Whether the work folder has lost the checkpoint of a completed trial."""
    finished = known.finished
    is_complete = finished is not None and finished.state is TrialState.COMPLETE
    return is_complete and "its checkpoint" in known.lost


def _agree(a: float, b: float) -> bool:
    """Whether `a` is how MLflow shows `b`; it has the largest floats for infinities."""
    if math.isnan(a) or math.isnan(b):
        return math.isnan(a) and math.isnan(b)
    a, b = (max(-_LARGEST, min(_LARGEST, value)) for value in (a, b))
    return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=1e-12)


def _some(what: Sequence[str]) -> str:
    """At most three of `what`, and the number of others."""
    more = f" and {len(what) - 3} more" if len(what) > 3 else ""
    return ", ".join(what[:3]) + more
