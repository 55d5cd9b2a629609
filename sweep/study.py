"""A search from beginning to end: stores, workers, driver, and what came out of it."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from sweep import options
from sweep.config import DEFAULT_MODULE, RunConfig, identity_changes, vocabulary
from sweep.driver import Driver
from sweep.endings import now_ms
from sweep.errors import ConfigError, StudyFailedError, SweepError
from sweep.executors import begin_loading, make_task
from sweep.imports import collector_paused, libraries_set_aside
from sweep.ledger import Ledger, LedgerTrial, best_trial, create_study
from sweep.proposals import Proposals
from sweep.provenance import provenance
from sweep.recollection import study_end
from sweep.recovery import lock_folder, owned_study, store_lock
from sweep.redact import redacted
from sweep.retention import KeepEverything, Retention
from sweep.space import Space, parse_space
from sweep.training import foreseen_slots, path_of
from sweep.trial import EndReason, Executor, Listener, Record, StudyFinished, StudyInfo
from sweep.warmstart import as_history, differences

VOLATILE = ("storage", "study")
"""Settings that are not kept with the study: they say where it is, not what it is."""


SAME_SIGNAL_S = 0.5
"""A second signal this soon is the same one, sent to the process and to its group."""


@dataclass(frozen=True)
class Outcome:
    """What a search came to."""

    study: StudyInfo
    end: StudyFinished
    n_new: int
    """Trials that this call finished."""
    best: LedgerTrial | None


class Listeners:
    """Several listeners as one."""

    def __init__(self, members: Sequence[Listener]) -> None:
        self._members = tuple(members)

    def open(self, study: StudyInfo) -> None:
        """Open each; the first that fails says why."""
        with collector_paused():  # MLflow is loaded here
            for member in self._members:
                member.open(study)

    def write(self, records: Sequence[Record]) -> None:
        """Hand the records to each."""
        if records:
            for member in self._members:
                member.write(records)

    def close(self) -> None:
        """Close all, also where one raises."""
        with contextlib.ExitStack() as stack:
            for member in reversed(self._members):
                stack.callback(member.close)


Hook = Callable[[Ledger], object]


def _nothing(*_: Any) -> None:
    """A hook that does nothing."""


@dataclass(frozen=True)
class Extras:
    """What a search may start with beside its configuration."""

    carried: Sequence[Mapping[str, Any]] = ()
    """Trials of an older study that teach the sampler (see `sweep.warmstart`)."""
    again: Sequence[int] = ()
    """Numbers of failed trials whose configurations are to be tried again."""
    retention: Retention = KeepEverything()
    """Says whose checkpoints stay."""
    executor: Executor | None = None
    """Whose workers load already (see `sweep.executors.begin_loading`)."""
    before_open: Hook = _nothing
    """Called under the study's lock before the listeners open, whether there is work or not."""
    after_open: Hook = _nothing
    """Called before the first trial of a study that goes on."""
    after_close: Hook = _nothing
    """Called under the lock when the listeners delivered everything."""
    on_signal: Callable[[], object] = _nothing
    """Called in the handler of the first SIGINT or SIGTERM: must not wait, nor take a lock."""


def search(
    config: RunConfig, space: Space, listeners: Sequence[Listener], extras: Extras = Extras()
) -> Outcome:
    """Run or continue a study until it has `config.trials` finished trials.

    Workers load torch while the driver opens the stores. Raises ConfigError for a study made
    with other settings, StudyLockedError, StoreError, DataError, StudyFailedError.
    """
    executor, task = extras.executor or begin_loading(config), make_task(config)
    listener = Listeners(listeners)
    work_dir = Path(config.work_dir)
    with contextlib.ExitStack() as held:
        held.callback(executor.kill)
        confirm = held.enter_context(owned_study(work_dir, config.study_name, config.storage))
        ledger: Ledger | None = None
        try:
            executor.warm_up(task)
            proposals = _proposals(config, space)  # a wrong sampler is said before a store is made
            with store_lock(lock_folder(work_dir, config.storage)):
                ledger = _open_ledger(config, space)
                ledger.confirm = confirm
                trials = ledger.trials()
                _carry(ledger, extras.carried, trials)
                info = _study_info(config, space, trials)
                extras.before_open(ledger)
                if info.n_done >= config.trials:
                    return _outcome(config, ledger, info, "done")
                ledger.settle(False)
                listener.open(info)
            driver = Driver(config, ledger, proposals, listener, extras.retention, path_of(task))
            held.enter_context(_set_aside(config))
            with _closing(executor, driver, listener):
                if trials:
                    extras.after_open(ledger)
                proposals.remember(as_history(space, ledger.carried()))
                driver.plan(trials, first_configurations(config, space), extras.again)
                driver.recall(config.study_dir)
                with _stop_on_signals(driver, extras.on_signal):
                    driver.prepare(foreseen_slots(task))
                    executor.run(driver.exchange)
                driver.settle()
                outcome = _outcome(config, ledger, info, driver.reason)
                listener.write([outcome.end])
            extras.after_close(ledger)
            ledger.settle(True)
            _raise_if_failed(outcome, driver)
            return outcome
        finally:
            executor.kill()
            if ledger is not None:
                ledger.close()


def _set_aside(config: RunConfig) -> contextlib.AbstractContextManager[None]:
    """Inline, the collector has to see what an earlier search left on the device."""
    return contextlib.nullcontext() if config.executor == "inline" else libraries_set_aside()


@contextlib.contextmanager
def _closing(executor: Executor, driver: Driver, listener: Listener) -> Iterator[None]:
    """End workers and listeners after the block; what goes wrong first is what is raised.

    What could not be delivered then, the next run delivers.
    """
    try:
        yield
    except BaseException:
        executor.kill()
        driver.abandon()
        with contextlib.suppress(SweepError):
            listener.close()
        raise
    listener.close()  # workers leave meanwhile
    executor.kill()


def first_configurations(
    config: RunConfig, space: Space
) -> list[tuple[Mapping[str, Any], Mapping[str, Any] | None]]:
    """Configurations to train before the sampler is asked, with Optuna's parameters.

    The reference network comes first; its parameters are None where the space lacks it.
    """
    first: list[tuple[Mapping[str, Any], Mapping[str, Any] | None]] = []
    if config.baseline and config.module == DEFAULT_MODULE:
        first.append((dict(options.REFERENCE), _reference_params(config, space)))
    for configuration in space.first:
        first.append((configuration, space.params_for(configuration)))
    return first


def _reference_params(config: RunConfig, space: Space) -> Mapping[str, Any] | None:
    """The reference network in the space's terms; None where the space fixes something else.

    It is trained as it is: a sampler must not learn its score for a configuration with, say,
    the dropout that the space fixes.
    """
    reference = options.REFERENCE
    if any(space.fixed[name] != reference.get(name, space.fixed[name]) for name in space.fixed):
        return None
    plain = {"activation": "relu", "schedule": "constant", "batch_size": config.batch_size}
    if any(space.fixed[n] != plain.get(n, 0.0) for n in space.fixed if n not in reference):
        return None
    return space.params_for(dict(reference), {"batch_size": config.batch_size})


def stored_config(config: RunConfig) -> dict[str, Any]:
    """The configuration as it is kept with the study: plain values, no credentials.

    A tracking URI that had some says `***` in their place: who goes on with the study is asked
    for them, instead of being given another MLflow store.
    """
    values = {k: v for k, v in dataclasses.asdict(config).items() if k not in VOLATILE}
    return values | {"tracking_uri": redacted(config.tracking_uri)}


def _open_ledger(config: RunConfig, space: Space) -> Ledger:
    ledger, is_new = create_study(config.storage, config.study_name, config.resolved_direction)
    if is_new or not ledger.config:
        ledger.describe(stored_config(config), space.text)
        return ledger
    changes = identity_changes(config, ledger.config)
    changes += _space_changes(config, space, ledger.space_text)
    if changes:
        raise ConfigError(
            f"study {config.study_name!r} exists with other settings ({'; '.join(changes)}): "
            "leave them out to continue it, name another search with --study, or start one from "
            "its trials with --fork NEW"
        )
    if ledger.config != stored_config(config):
        ledger.describe(stored_config(config), space.text)
    return ledger


def _carry(
    ledger: Ledger, carried: Sequence[Mapping[str, Any]], trials: Sequence[LedgerTrial]
) -> None:
    """Keep trials of an older study with a new one, once. Raises ConfigError for an old one."""
    if not carried or ledger.carried():
        return
    if trials:
        raise ConfigError(
            f"study {ledger.name!r} has trials of its own: --fork NEW makes a new study"
        )
    ledger.carry(carried)


def _space_changes(config: RunConfig, space: Space, before: str) -> list[str]:
    """What is different in the search space; comments and layout are not."""
    if space.text == before:
        return []
    old = parse_space(before, space.name, vocabulary=vocabulary(config))
    return [f"in the search space, {line}" for line in differences(old, space)]


def _proposals(config: RunConfig, space: Space) -> Proposals:
    return Proposals(
        space, config.sampler, config.pruner, config.resolved_direction, config.seed,
        config.epochs,
    )  # fmt: skip


def _study_info(config: RunConfig, space: Space, trials: Sequence[LedgerTrial]) -> StudyInfo:
    best = best_trial(trials, config.resolved_direction)
    shown = stored_config(config) | {"storage": redacted(config.storage)}
    return StudyInfo(
        name=config.study_name,
        n_trials=config.trials,
        metric=config.metric,
        direction=config.resolved_direction,
        epochs=config.epochs,
        config=shown,
        space_name=space.name,
        space_text=space.text,
        time_ms=now_ms(),
        tags=provenance(),
        n_done=sum(t.state.is_finished for t in trials),
        best_value=best.value if best else None,
        best_number=best.number if best else None,
    )


def _raise_if_failed(outcome: Outcome, driver: Driver) -> None:
    if driver.reason == "failed":
        raise StudyFailedError(driver.failure_message)
    if driver.reason in ("done", "exhausted") and outcome.best is None:
        n_trials, name = sum(outcome.end.n_by_state.values()), outcome.study.name
        raise StudyFailedError(
            f"none of the {n_trials} trials succeeded: `sweep trials {name}` shows why"
        )


def _outcome(config: RunConfig, ledger: Ledger, info: StudyInfo, reason: EndReason) -> Outcome:
    trials = ledger.trials()
    best = best_trial(trials, config.resolved_direction)
    end = study_end(config, trials, reason, now_ms())
    n_finished = sum(t.state.is_finished for t in trials)
    return Outcome(info, end, n_finished - info.n_done, best)


@contextlib.contextmanager
def _stop_on_signals(driver: Driver, on_signal: Callable[[], object]) -> Iterator[None]:
    """The first SIGINT or SIGTERM stops at the next epoch boundary, the second at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first: list[float] = []

    def stop(signum: int, frame: FrameType | None) -> None:
        if first and time.monotonic() - first[0] > SAME_SIGNAL_S:
            raise KeyboardInterrupt
        driver.request_stop("interrupted")
        if not first:
            on_signal()
        first.append(time.monotonic())

    previous = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
