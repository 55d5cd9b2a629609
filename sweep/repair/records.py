"""A study's records, made again from the ledger and the trials' files for runs lost in MLflow."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from sweep.config.settings import RunConfig
from sweep.files.trial_files import BEST, LOGGED, MODEL, TrialFiles
from sweep.ledger.ranking import study_end
from sweep.ledger.study import Ledger
from sweep.ledger.trials import RESULT_FIELDS, LedgerTrial
from sweep.space import run_name
from sweep.trial import (
    EndReason,
    Failure,
    StudyFinished,
    StudyInfo,
    TrialFinished,
    TrialHistory,
    TrialSpec,
    TrialStarted,
    TrialState,
    derive_seed,
    now_ms,
)


class StudyRecords:
    """The records of a study, from its ledger and files."""

    def __init__(self, config: RunConfig, ledger: Ledger) -> None:
        self._config, self._space_text = config, ledger.space_text
        self._stored = ledger.config
        self._direction, self._tags, self._dataset = ledger.direction, ledger.tags, ledger.dataset
        self._trials = {trial.number: trial for trial in ledger.trials()}

    def states(self) -> dict[int, TrialState]:
        """The state of each trial, by number."""
        return {number: trial.state for number, trial in self._trials.items()}

    def study(self) -> StudyInfo:
        """The study as its driver opened it last."""
        config = self._config
        times = [_ms(trial.frozen.datetime_start) for trial in self._trials.values()]
        return StudyInfo(
            name=config.study_name,
            n_trials=max(config.trials, sum(t.state.is_finished for t in self._trials.values())),
            metric=config.metric,
            direction=self._direction,
            epochs=config.epochs,
            config=self._stored,
            space_name=config.space_name,
            space_text=self._space_text,
            time_ms=min(times, default=0),
            tags=self._tags,
            dataset=self._dataset,
        )

    def end(self) -> StudyFinished:
        """The end of the search so far."""
        trials = list(self._trials.values())
        n_finished = sum(trial.state.is_finished for trial in trials)
        time_ms = max((_end_ms(trial) for trial in trials), default=0) or now_ms()
        reason: EndReason = "done" if n_finished >= self._config.trials else "interrupted"
        return study_end(self._config, trials, reason, time_ms)

    def trial(self, number: int) -> TrialHistory:
        """The record of a finished trial: from the ledger and the files in its folder."""
        trial, config = self._trials[number], self._config
        spec, files = spec_of(config, trial), TrialFiles(config.study_dir, number)
        verdict = files.verdict(spec)
        result = trial.result
        time_ms = result.get("time_ms") or _end_ms(trial)
        # Other files may be another configuration's, which had the number before.
        checkpoint = files.whole(BEST) if result.get("has_checkpoint", True) else None
        has_model = result.get("has_model", True) and files.size(MODEL) > 0
        failure = _failure(result.get("failure"), verdict[1].failure if verdict else None)
        reports = trial.reports or (verdict[0] if verdict else [])
        finished = TrialFinished(
            number, trial.state, time_ms, trial.value, result.get("best_epoch"),
            result.get("metrics", {}), result.get("n_epochs", len(trial.curve)),
            checkpoint=str(checkpoint) if checkpoint else None,
            model_file=str(files.path(MODEL)) if has_model else None,
            failure=failure,
            tags={k: str(v) for k, v in result.items() if k not in RESULT_FIELDS},
            has_logged=files.has_logged,
        )  # fmt: skip
        started = TrialStarted(
            number, result.get("name") or run_name(number, trial.hyperparameters),
            trial.hyperparameters, trial.params, _ms(trial.frozen.datetime_start) or time_ms,
            {"sweep.seed": str(spec.seed)}, trial.settings, str(files.path(LOGGED)),
        )  # fmt: skip
        return TrialHistory(started, reports, finished, self._lost(finished))

    def _lost(self, finished: TrialFinished) -> list[str]:
        lost = []
        if finished.failure is not None and not finished.failure.traceback:
            lost.append("its traceback")
        result = self._trials[finished.number].result
        had_files = result.get("has_checkpoint", False)
        had_model = had_files and finished.state is TrialState.COMPLETE
        if had_files and finished.checkpoint is None:
            lost.append("its checkpoint")
        if result.get("has_model", had_model) and finished.model_file is None:
            lost.append("its model")
        return lost


def spec_of(config: RunConfig, trial: LedgerTrial) -> TrialSpec:
    """The trial as its worker got it."""
    seed = derive_seed(trial.settings.get("seed", config.seed), "init", trial.number)
    return TrialSpec(trial.number, trial.hyperparameters, seed)


def _failure(kept: Mapping[str, Any] | None, said: Failure | None) -> Failure | None:
    if said is not None or kept is None:
        return said
    return Failure(kept["kind"], kept["message"], kept.get("traceback", ""))


def _end_ms(trial: LedgerTrial) -> int:
    return _ms(trial.frozen.datetime_complete) or _ms(trial.frozen.datetime_start)


def _ms(time: datetime.datetime | None) -> int:
    """Unix time in milliseconds; 0 for None."""
    return int(time.timestamp() * 1000) if time is not None else 0
