"""A search from beginning to end: stores, workers, driver, and what came out of it."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweep import hyperparameters as options
from sweep.config.settings import RunConfig, identity_changes
from sweep.data.catalog import is_custom
from sweep.environment.provenance import provenance
from sweep.environment.signals import stopping
from sweep.errors import ConfigError, StudyFailedError, SweepError
from sweep.executors import begin_loading, make_task
from sweep.hyperparameters import DEFAULT_MODULE
from sweep.keeping.retention import KeepBest
from sweep.ledger.locks import lock_folder, owned_study, presence, store_lock
from sweep.ledger.ranking import ranking_of, study_end
from sweep.ledger.study import Ledger, create_study
from sweep.ledger.trials import LedgerTrial, best_trial
from sweep.loading import collector_paused, import_object, libraries_set_aside
from sweep.objective import Objective
from sweep.protocols import Exchange, Executor, Listener
from sweep.redact import redacted
from sweep.search.driver import Driver
from sweep.search.proposals import Proposals
from sweep.search.warmstart import as_history, differences, to_retry
from sweep.space import Space, parse_space
from sweep.trial import EndReason, Orders, Record, Report, StudyFinished, StudyInfo, now_ms

VOLATILE = ("storage", "study", "timeout_s")
"""Settings that are not kept with the study: where it is, and what one call is given."""

CHECK_S = 2.0
"""How often a search sees whether its stores were removed: a check takes some 0.1 ms."""


@dataclass(frozen=True, repr=False)
class Outcome:
    """What a search came to."""

    study: StudyInfo
    end: StudyFinished
    n_new: int
    """Trials that this call finished."""
    best: LedgerTrial | None
    unsaved: tuple[str, ...] = ()
    """A sentence for each interrupted trial that has to train epochs again."""
    n_to_retry: int = 0
    """Configurations that `sweep retry` would try."""

    def __repr__(self) -> str:
        """Study, new trials and the best one."""
        found = (
            f"best {self.best.value:.6g} by trial {self.best.number}" if self.best else "no best"
        )
        return f"<Outcome {self.study.name} {self.end.reason}: {self.n_new} new trials, {found}>"


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
    """Trials of an older study that teach the sampler (see `sweep.search.warmstart`)."""
    again: Sequence[int] = ()
    """Numbers of failed trials whose configurations are to be tried again."""
    retention: KeepBest | None = None
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
    executor = extras.executor or begin_loading(config, space)
    task, asked, config = make_task(config, space), config, config.anchored()
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
                ledger, is_same_store = _open_ledger(asked, space)
                ledger.confirm = confirm
                trials = ledger.trials()
                _carry(ledger, extras.carried, trials)
                info = _study_info(asked, space, trials)
                is_known = is_same_store and bool(trials)
                info = dataclasses.replace(info, is_known=is_known, dataset=ledger.dataset)
                extras.before_open(ledger)
                if info.n_done >= config.trials:
                    outcome = _outcome(config, ledger, info, "done")
                    _raise_if_none_succeeded(outcome)
                    return outcome
                ledger.settle(False)
                ledger.note_tags(info.tags)
                listener.open(info)
            check = presence(work_dir, config.study_name, config.storage, config.tracking_uri)
            driver = Driver(config, ledger, proposals, listener, extras.retention)
            held.enter_context(_set_aside(config))
            held.enter_context(
                stopping(lambda: driver.request_stop("interrupted"), extras.on_signal)
            )
            with _explained(check), _closing(executor, driver, listener):
                if trials:
                    extras.after_open(ledger)
                proposals.remember(as_history(space, ledger.carried()))
                driver.plan(trials, first_configurations(config, space), extras.again)
                driver.recall(config.study_dir)
                executor.run(_checked(driver.exchange, check))
                driver.settle()
                outcome = _outcome(config, ledger, info, driver.reason, driver.unsaved)
                listener.write([outcome.end])
            check()
            extras.after_close(ledger)
            ledger.settle(True)
            _raise_if_failed(outcome, driver)
            return outcome
        finally:
            executor.kill()
            if ledger is not None:
                ledger.close()


def _checked(exchange: Exchange, check: Callable[[], None]) -> Exchange:
    """`exchange` that sees every CHECK_S seconds whether the stores are still there."""
    last = time.monotonic()

    def checked(reports: Sequence[Report], n_free: int) -> Orders:
        nonlocal last
        if time.monotonic() - last > CHECK_S:
            check()
            last = time.monotonic()
        return exchange(reports, n_free)

    return checked


def _set_aside(config: RunConfig) -> contextlib.AbstractContextManager[None]:
    """Inline, the collector has to see what an earlier search left on the device."""
    return contextlib.nullcontext() if config.executor == "inline" else libraries_set_aside()


@contextlib.contextmanager
def _explained(check: Callable[[], None]) -> Iterator[None]:
    """Where a file is gone, `check` says so in place of an error that only follows from it."""
    try:
        yield
    except (OSError, SweepError):
        check()
        raise


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
    return values | {
        "tracking_uri": redacted(config.tracking_uri), "direction": config.resolved_direction,
    }  # fmt: skip


def _open_ledger(config: RunConfig, space: Space) -> tuple[Ledger, bool]:
    """The study in the storage, and whether its runs are to be in the same MLflow store as before.

    A study keeps its settings once a trial has a score.
    """
    anchored, direction = config.anchored(), config.resolved_direction
    ledger, is_new = create_study(anchored.storage, config.study_name, direction)
    if is_new or not ledger.config:
        ledger.describe(stored_config(config), space.text)
        return ledger, False
    changes = identity_changes(config, ledger.config | {"direction": ledger.direction})
    changes += _space_changes(config, space, ledger.space_text)
    # With a wrong --metric the first trial is ended unscored, and goes on with the right one.
    by_unfinished = not all(line.startswith(("--metric ", "--direction ")) for line in changes)
    if changes and ledger.is_bound(by_unfinished=by_unfinished):
        _see_that_they_exist(config)
        raise ConfigError(
            f"study {config.study_name!r} exists with other settings ({'; '.join(changes)}): "
            f"leave {'it' if len(changes) == 1 else 'them'} out to continue it, name another "
            "search with --study, or start one that learns from its trials with --fork NEW"
        )
    if changes:
        ledger.start_over(direction)
    before, now = ledger.config, stored_config(config)
    # --trials may be less than there are: the study's total is not.
    now["trials"] = max(config.trials, _n_finished(ledger.trials()))
    if before != now:
        ledger.describe(now, space.text)
    return ledger, before.get("tracking_uri") == now["tracking_uri"]


def _see_that_they_exist(config: RunConfig) -> None:
    """Raise ConfigError if the user's module or data function is a name of nothing.

    That is said first: a study that has other settings is no reason to mistype it again.
    """
    if config.module != DEFAULT_MODULE:
        import_object(config.module, "--module")
    if is_custom(config.data):
        import_object(config.data, "data")


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
    old = parse_space(before, space.name, is_mlp=config.is_mlp)
    return [f"in the search space, {line}" for line in differences(old, space)]


def _proposals(config: RunConfig, space: Space) -> Proposals:
    return Proposals(
        space, config.sampler, config.pruner, config.resolved_direction, config.seed,
        config.epochs, config.history,
    )  # fmt: skip


def _study_info(config: RunConfig, space: Space, trials: Sequence[LedgerTrial]) -> StudyInfo:
    best = best_trial(trials, config.resolved_direction)
    shown = stored_config(config) | {"storage": redacted(config.storage)}
    return StudyInfo(
        name=config.study_name,
        n_trials=max(config.trials, _n_finished(trials)),
        metric=config.metric,
        direction=config.resolved_direction,
        epochs=config.epochs,
        config=shown,
        space_name=space.name,
        space_text=space.text,
        time_ms=now_ms(),
        tags=provenance(),
        n_done=_n_finished(trials),
        best_value=best.value if best else None,
        best_number=best.number if best else None,
        ranking=ranking_of(trials, Objective(config.metric, config.resolved_direction)),
    )


def _n_finished(trials: Sequence[LedgerTrial]) -> int:
    return sum(t.state.is_finished for t in trials)


def _raise_if_failed(outcome: Outcome, driver: Driver) -> None:
    if driver.reason == "failed":
        hint = f"once it is mended, `sweep retry {outcome.study.name}` tries them again"
        raise StudyFailedError(f"{driver.failure_message}; {hint}")
    if driver.reason in ("done", "exhausted"):
        _raise_if_none_succeeded(outcome)


def _raise_if_none_succeeded(outcome: Outcome) -> None:
    n_trials, name = sum(outcome.end.n_by_state.values()), outcome.study.name
    if outcome.best is None and n_trials:
        raise StudyFailedError(
            f"none of the {n_trials} trials succeeded: `sweep trials {name}` shows why, "
            f"`sweep retry {name}` tries them again"
        )


def _outcome(
    config: RunConfig, ledger: Ledger, info: StudyInfo, reason: EndReason,
    unsaved: Sequence[str] = (),
) -> Outcome:  # fmt: skip
    trials = ledger.trials()
    best = best_trial(trials, config.resolved_direction)
    n_finished = _n_finished(trials)
    if reason in ("timeout", "interrupted") and n_finished >= config.trials:
        reason = "done"  # it came too late to stop anything
    end = study_end(config, trials, reason, now_ms())
    return Outcome(
        info, end, n_finished - info.n_done, best, tuple(unsaved), len(to_retry(trials))
    )
