"""The library behind the commands: run a search, find its best configuration, train it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.config import Resolved, RunConfig, resolve, vocabulary
from sweep.errors import ConfigError, NotFoundError, UndeliveredError, must_be_one_of
from sweep.space import Space, load_space, parse_space
from sweep.trial import Listener, Notice

if TYPE_CHECKING:
    from sweep.ledger import Ledger
    from sweep.reuse import Best
    from sweep.study import Extras, Outcome


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
    do, and why others do not. Raises NotFoundError where there is no such study.
    """
    from sweep.ledger import open_study
    from sweep.study import Extras
    from sweep.warmstart import carry

    old = resolve(flags, file=config_file).config
    ledger = open_study(old.storage, old.study_name)
    trials = ledger.trials()
    stored = {k: v for k, v in ledger.config.items() if k != "study"}
    space_text = ledger.space_text
    ledger.close()
    resolved = resolve({**flags, "study": new}, file=config_file, stored=stored)
    space = _space_of(resolved, space_text)
    maximize = resolved.config.resolved_direction == "maximize"
    carried = carry(space, trials, maximize=maximize)
    extras = Extras(carried=carried.trials)
    return resolved, space, extras, carried.told(new, old.study_name)


def retry(flags: Mapping[str, Any], failed: str | None) -> tuple[RunConfig, Space, Extras]:
    """A stored study with as many more trials as failed (with class `failed`), to try again."""
    import dataclasses

    from sweep.ledger import open_study
    from sweep.study import Extras
    from sweep.trial import TrialState

    resolved, space = prepare(flags, None)
    ledger = open_study(resolved.config.storage, resolved.config.study_name)
    trials = ledger.trials()
    ledger.close()
    again = [
        t.number
        for t in trials
        if t.state is TrialState.FAIL
        and failed in (None, (t.result.get("failure") or {}).get("kind"))
    ]
    n_finished = sum(t.state.is_finished for t in trials)
    n_trials = max(resolved.config.trials, n_finished) + len(again)
    config = dataclasses.replace(resolved.config, trials=n_trials)
    return config, space, Extras(again=again)


def search_with(
    config: RunConfig, space: Space, listeners: Sequence[Listener], extras: Extras | None = None
) -> Outcome:
    """Search with MLflow as the tracker, beside `listeners`.

    Records that an earlier run left are delivered first, MLflow is brought to agree with Optuna,
    and when all is delivered, checkpoints go that `--keep` and `--disk-limit` do not want.
    """
    import dataclasses

    from sweep import housekeeping
    from sweep.study import Extras, search
    from sweep.tracking import MlflowTracker, deliver_pending, reconcile_runs, waiting_numbers

    tracker = MlflowTracker(
        config.tracking_uri,
        config.study_dir / "sweep.log",
        log_model=config.log_models,
        study_dir=config.study_dir,
    )
    log_file = config.study_dir / "sweep.log"

    def deliver_first(ledger: Ledger) -> None:
        states = {t.number: t.state for t in ledger.trials()}
        is_done = sum(state.is_finished for state in states.values()) >= config.trials
        with contextlib.nullcontext() if is_done else contextlib.suppress(UndeliveredError):
            deliver_pending(
                config.tracking_uri, config.study_dir, log_file, log_model=config.log_models
            )
        if is_done and not ledger.is_settled:  # killed after its last trial
            waiting = waiting_numbers(config.study_dir)
            reconcile_runs(
                config.tracking_uri, config.study_name, states, fix=True, waiting=waiting
            )
            ledger.settle(True)

    def reconcile(ledger: Ledger) -> None:
        if tracker.warning is not None:
            for listener in listeners:
                listener.write([Notice(time.time_ns() // 1_000_000, tracker.warning)])
            return
        states = {t.number: t.state for t in ledger.trials()}
        waiting = waiting_numbers(config.study_dir)
        reconcile_runs(
            config.tracking_uri, config.study_name, states, fix=True, is_live=True, waiting=waiting
        )

    def tidy(ledger: Ledger) -> None:
        housekeeping.tidy(config, ledger.trials())

    extras = dataclasses.replace(
        extras or Extras(), before_open=deliver_first, after_open=reconcile, after_close=tidy
    )
    return search(config, space, [tracker, *listeners], extras)


def _stored(config: RunConfig) -> tuple[Mapping[str, Any], str]:
    """Configuration and space text that the named study was made with; empty for a new one."""
    from sweep.ledger import open_study

    with contextlib.suppress(NotFoundError):
        ledger = open_study(config.storage, config.study_name)
        try:
            if ledger.trials():  # else an attempt that came to nothing
                return ledger.config, ledger.space_text
        finally:
            ledger.close()
    return {}, ""
