"""The library behind the commands: run a search, find its best configuration, train it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep import sqlite
from sweep.config import Resolved, RunConfig, resolve, vocabulary
from sweep.errors import ConfigError, NotFoundError, UndeliveredError, must_be_one_of
from sweep.imports import collector_paused
from sweep.space import Space, load_space, parse_space
from sweep.trial import Executor, Listener, Notice

if TYPE_CHECKING:
    from sweep.ledger import Ledger
    from sweep.retention import KeepBest
    from sweep.reuse import Best
    from sweep.study import Extras, Outcome
    from sweep.tracking import MlflowTracker


def run(
    *, listeners: Sequence[Listener] = (), config_file: str | None = None, **settings: Any
) -> Outcome:
    """Run or continue a search, as `sweep run` does, without printing anything.

    Args:
        listeners: Who else wants to hear of trials as they go (see `sweep.trial.Listener`).
        config_file: YAML file with settings.
        **settings: Fields of `sweep.config.RunConfig`, e.g. trials=50, data="mnist".

    Returns the outcome: the best trial and the counts. Raises what `sweep.errors` lists.

    >>> outcome = sweep.run(trials=20, epochs=5)               # doctest: +SKIP
    """
    from dataclasses import fields

    known = [field.name for field in fields(RunConfig)]
    wrong = [must_be_one_of("a setting", name, known) for name in settings if name not in known]
    if wrong:
        raise ConfigError(wrong)
    resolved, space = prepare(settings, Path(config_file) if config_file else None)
    return search_with(resolved.config, space, listeners)


def best(study: str, **where: Any) -> Best:
    """The best trial of `study`: configuration, score, checkpoint, MLflow run id.

    `where` are storage, tracking_uri and work_dir, where they are not the defaults. Raises
    NotFoundError for an unknown study or one without a completed trial.
    """
    from sweep.reuse import find_best

    return find_best(study, resolve(where).config)


def prepare(flags: Mapping[str, Any], config_file: Path | None) -> tuple[Resolved, Space]:
    """The checked configuration and space; a stored study fills in what is not said."""
    resolved = resolve(flags, file=config_file)
    stored, space_text = _stored(resolved.config)
    if stored:
        resolved = resolve(flags, file=config_file, stored=stored)
    return resolved, _space_of(resolved, space_text)


def _space_of(resolved: Resolved, kept: str) -> Space:
    """The space that was asked for; the text kept with the study where none was."""
    config = resolved.config
    words = vocabulary(config)
    if kept and resolved.origins["space"] in ("study", "default"):
        return parse_space(kept, Path(config.space).stem, vocabulary=words)
    return load_space(config.space, words)


def fork(
    flags: Mapping[str, Any], config_file: Path | None, new: str
) -> tuple[Resolved, Space, Extras, list[str]]:
    """A search called `new` with the settings of the study in `flags`, less what `flags` change.

    It starts with the old study's trials that lie inside its space; the last item says how many
    do, and why others do not. Raises NotFoundError where there is no such study, ConfigError where
    `new` is its own name.
    """
    from sweep.ledger import open_study
    from sweep.study import Extras
    from sweep.warmstart import carry, incomparable

    old = resolve(flags, file=config_file).config
    if new == old.study_name:
        raise ConfigError(f"--fork NEW must be another name than that of the study, {new!r}")
    ledger = open_study(old.storage, old.study_name)
    trials = ledger.trials()
    stored = {k: v for k, v in ledger.config.items() if k != "study"}
    space_text, direction = ledger.space_text, ledger.direction
    ledger.close()
    resolved = resolve({**flags, "study": new}, file=config_file, stored=stored)
    space = _space_of(resolved, space_text)
    strange = incomparable(resolved.config, stored, direction)
    maximize = resolved.config.resolved_direction == "maximize"
    carried = carry(space, trials, maximize=maximize, strange=strange)
    extras = Extras(carried=carried.trials)
    return resolved, space, extras, carried.told(new, old.study_name)


def retry(flags: Mapping[str, Any], failed: str | None) -> tuple[RunConfig, Space, Extras]:
    """A stored study with room for its failed trials (with class `failed`), to try them again.

    A configuration is tried once more, however often it failed; not at all where another try
    succeeded. One whose try was interrupted goes on with that.
    """
    import dataclasses

    from sweep.ledger import open_study
    from sweep.space import canonical_key
    from sweep.study import Extras
    from sweep.trial import TrialState

    resolved, space = prepare(flags, None)
    ledger = open_study(resolved.config.storage, resolved.config.study_name)
    trials = ledger.trials()
    ledger.close()
    again = {
        canonical_key(t.hyperparameters): t.number
        for t in trials
        if t.state is TrialState.FAIL
        and failed in (None, (t.result.get("failure") or {}).get("kind"))
    }
    begun = set()
    for trial in trials:
        key = canonical_key(trial.hyperparameters)
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
            again.pop(key, None)
        elif not trial.state.is_finished:
            begun.add(key)
    n_trials = max(resolved.config.trials, len(trials) + len(again.keys() - begun))
    config = dataclasses.replace(resolved.config, trials=n_trials)
    return config, space, Extras(again=tuple(again.values()))


def search_with(
    config: RunConfig, space: Space, listeners: Sequence[Listener], extras: Extras | None = None,
    on_signal: Callable[[], object] = lambda: None,
) -> Outcome:  # fmt: skip
    """Search with MLflow as the tracker, beside `listeners`.

    Records that an earlier run left are delivered first and MLflow is brought to agree with
    Optuna. Checkpoints that `--keep` and `--disk-limit` do not want go as trials end. `on_signal`
    is called as the first Ctrl-C or SIGTERM comes, in its handler.
    """
    from sweep.executors import begin_loading

    executor = begin_loading(config)
    try:
        return _search(config, space, listeners, executor, extras, on_signal)
    finally:
        executor.kill()


def _search(
    config: RunConfig, space: Space, listeners: Sequence[Listener], executor: Executor,
    extras: Extras | None, on_signal: Callable[[], object],
) -> Outcome:  # fmt: skip
    """Apart, because what it imports loads Optuna: workers load beside it."""
    import dataclasses

    with collector_paused():
        from sweep.retention import KeepBest
        from sweep.study import Extras, search
        from sweep.tracking import MlflowTracker

    retention = KeepBest(config)
    tracker = MlflowTracker(
        config.tracking_uri,
        config.study_dir / "sweep.log",
        log_model=config.log_models,
        study_dir=config.study_dir,
        on_stored=retention.stored,
    )
    upkeep = _Upkeep(config, listeners, tracker, retention)
    extras = dataclasses.replace(
        extras or Extras(),
        retention=retention,
        executor=executor,
        before_open=upkeep.deliver,
        after_open=upkeep.reconcile,
        after_close=upkeep.finish,
        on_signal=on_signal,
    )
    return search(config, space, [tracker, *listeners], extras)


class _Upkeep:
    """What a search does about its stores before and after its trials."""

    def __init__(
        self,
        config: RunConfig,
        listeners: Sequence[Listener],
        tracker: MlflowTracker,
        retention: KeepBest,
    ) -> None:
        self._config, self._listeners = config, listeners
        self._tracker, self._retention = tracker, retention
        self._is_delivered = False

    def deliver(self, ledger: Ledger) -> None:
        """Deliver what an earlier run left; close a study that was killed after its last trial.

        Raises UndeliveredError for a study that has nothing else to do.
        """
        from sweep.tracking import deliver_pending

        config = self._config
        n_finished = sum(trial.state.is_finished for trial in ledger.trials())
        is_done = n_finished >= config.trials
        with contextlib.nullcontext() if is_done else contextlib.suppress(UndeliveredError):
            deliver_pending(
                config.tracking_uri,
                config.study_dir,
                config.study_dir / "sweep.log",
                log_model=config.log_models,
            )
            self._is_delivered = True
        if is_done and not ledger.is_settled:
            self._agree(ledger)
            self.tidy(ledger)
            ledger.settle(True)

    def reconcile(self, ledger: Ledger) -> None:
        """Bring MLflow to agree with Optuna, and files within their bounds."""
        trials = ledger.trials()
        stored: Mapping[int, int] = {}
        if self._tracker.warning is not None:
            self._is_delivered = False
            for listener in self._listeners:
                listener.write([Notice(time.time_ns() // 1_000_000, self._tracker.warning)])
        else:
            self._agree(ledger, is_live=True)
        if self._is_delivered:
            stored = self.tidy(ledger)
        self._retention.recall(trials, stored, is_delivered=self._is_delivered)

    def tidy(self, ledger: Ledger) -> Mapping[int, int]:
        """Look through all files once; returns trial -> bytes that MLflow holds, where asked."""
        from sweep import housekeeping

        return housekeeping.tidy(self._config, ledger.trials()).stored

    def finish(self, ledger: Ledger) -> None:
        """The same when all is delivered; what the retention saw to needs no second look."""
        from sweep import housekeeping

        housekeeping.tidy(self._config, ledger.trials(), is_kept_up=self._is_delivered)

    def _agree(self, ledger: Ledger, *, is_live: bool = False) -> None:
        from sweep.recollection import Recollections
        from sweep.tracking import reconcile_runs, waiting_numbers

        config, memory = self._config, Recollections(self._config, ledger)
        reconcile_runs(
            config.tracking_uri, config.study_name, memory.states(), memory, fix=True,
            is_live=is_live, waiting=waiting_numbers(config.study_dir),
        )  # fmt: skip


def _stored(config: RunConfig) -> tuple[Mapping[str, Any], str]:
    """Configuration and space text that the named study was made with; empty for a new one."""
    path = sqlite.path_of(config.storage)
    if path is not None and not path.exists():
        return {}, ""  # without Optuna, whose import takes as long as a tenth of the workers'
    from sweep.ledger import open_study

    with contextlib.suppress(NotFoundError):
        ledger = open_study(config.storage, config.study_name)
        try:
            if ledger.trials():  # else an attempt that came to nothing
                return ledger.config, ledger.space_text
        finally:
            ledger.close()
    return {}, ""
