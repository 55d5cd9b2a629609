"""A search from beginning to end: stores, workers, driver, and what came out of it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sweep import hyperparameters as options
from sweep.config.notices import identity_changes
from sweep.config.settings import RunConfig
from sweep.data.catalog import is_custom
from sweep.environment.provenance import provenance
from sweep.environment.signals import stopping
from sweep.environment.sources import changes, defaults_of, source_tags
from sweep.errors import ConfigError, StudyFailedError, SweepError
from sweep.hyperparameters import DEFAULT_MODULE
from sweep.ledger.locks import lock_folder, owned_study, presence, store_lock
from sweep.ledger.ranking import ranking_of, study_end
from sweep.ledger.study import Ledger, create_study
from sweep.ledger.trials import LedgerTrial, best_trial
from sweep.loading import collector_paused, import_object, libraries_set_aside
from sweep.protocols import Exchange, Executor, Listener
from sweep.redact import redacted
from sweep.search.driver import Driver
from sweep.search.proposals import Proposals
from sweep.search.steering import Steering, extended
from sweep.search.tasks import begin_loading, make_task, sources_of
from sweep.search.upkeep import Upkeep
from sweep.search.warmstart import as_history, differences, to_retry
from sweep.space import Space, parse_space
from sweep.space.parameters import is_active
from sweep.trial import (
    EndReason,
    Orders,
    Report,
    StudyFinished,
    StudyInfo,
    WorkerReady,
    now_ms,
)

VOLATILE = ("storage", "study", "timeout_s")
"""Settings that are not kept with the study: its place and name, and the limit of one call."""

CHECK_S = 2.0
"""Time between two checks that the stores still exist; a check takes some 0.1 ms."""


@dataclass(frozen=True, repr=False)
class Outcome:
    """The result of a search."""

    study: StudyInfo
    end: StudyFinished
    n_new: int
    """Trials finished by this call."""
    best: LedgerTrial | None
    unsaved: tuple[str, ...] = ()
    """A sentence for each interrupted trial that must train epochs again."""
    n_to_retry: int = 0
    """Number of configurations that `sweep retry` would try."""

    def __repr__(self) -> str:
        """Study, new trials and the best one."""
        found = (
            f"best {self.best.value:.6g} by trial {self.best.number}" if self.best else "no best"
        )
        return f"<Outcome {self.study.name} {self.end.reason}: {self.n_new} new trials, {found}>"


@dataclass(frozen=True)
class Extras:
    """Optional inputs of a search."""

    carried: Sequence[Mapping[str, Any]] = ()
    """Trials of an older study for the sampler to learn from (see `sweep.search.warmstart`)."""
    again: Sequence[int] = ()
    """Numbers of failed trials whose configurations are tried again."""
    is_tracked: bool = False
    """MLflow records the search; `--keep` and `--disk-limit` are followed."""
    executor: Executor | None = None
    """An executor whose workers are loading already (see `sweep.search.tasks.begin_loading`)."""
    window_s: float | None = None
    """End the search so long after its first worker is ready: a calibration."""
    on_signal: Callable[[], object] | None = None
    """Called in the handler of the first SIGINT or SIGTERM: must not wait, nor take a lock."""


def search(
    config: RunConfig, space: Space, listeners: Sequence[Listener], extras: Extras = Extras()
) -> Outcome:
    """Run or continue a study until it has `config.trials` finished trials.

    Workers load torch while the driver opens the stores. Raises ConfigError for a study made
    with other settings, StudyLockedError, StoreError, DataError, StudyFailedError.
    """
    executor = extras.executor or begin_loading(config, space)
    asked, config = config, config.anchored()
    work_dir = Path(config.work_dir)
    with contextlib.ExitStack() as held:
        held.callback(executor.kill)
        confirm = held.enter_context(owned_study(work_dir, config.study_name, config.storage))
        executor.warm_up(make_task(asked, space))
        proposals = Proposals(space, config)  # a wrong sampler is said before a store is made
        first = first_configurations(config, space)
        upkeep = Upkeep(config, is_tracked=extras.is_tracked)
        listeners = [*upkeep.listeners, *listeners]
        with store_lock(lock_folder(work_dir, config.storage)):
            ledger, is_same_store = _open_ledger(asked, space, confirm)
            held.callback(ledger.close)
            asked = extended(asked, ledger)
            config = asked.anchored()
            trials = ledger.trials()
            _carry(ledger, extras.carried, trials)
            info = _study_info(asked, space, ledger, is_same_store)
            if info.n_done >= config.trials:
                upkeep.deliver(ledger)
                return _succeeded(_outcome(config, ledger, info))
            ledger.settle(False)
            changed = changes(sources_of(config), ledger.tags) if trials else []
            ledger.note_tags(info.tags)
            _open(listeners, info)
        check = presence(work_dir, config.study_name, config.storage, config.tracking_uri)
        driver = Driver(config, ledger, proposals, listeners, upkeep.retention)
        if config.executor != "inline":  # there the collector frees devices of earlier searches
            held.enter_context(libraries_set_aside())
        held.enter_context(stopping(partial(driver.request_stop, "interrupted"), extras.on_signal))
        with _explained(check), _closing(executor, driver, listeners):
            driver.say([*changed, *upkeep.reconcile(ledger, trials)])
            proposals.remember(as_history(space, ledger.carried()))
            driver.plan(trials, first, extras.again, has_baseline=space.has_defaults_first)
            driver.recall(config.study_dir)
            steering = Steering(driver, ledger, info.time_ms)
            executor.run(_checked(_bounded(driver, extras.window_s), check, steering.turn))
            driver.settle()
            steering.last_look()
            outcome = _outcome(config, ledger, info, driver)
            for listener in listeners:
                listener.write([outcome.end])
        check()
        upkeep.finish(ledger)
        ledger.settle(True)
        return _succeeded(outcome, driver.failure_message)


def _open(listeners: Sequence[Listener], info: StudyInfo) -> None:
    with collector_paused():  # MLflow is loaded here
        for listener in listeners:
            listener.open(info)


def _bounded(driver: Driver, window_s: float | None) -> Exchange:
    """The driver's exchange; it ends the search `window_s` seconds after the first greeting."""
    end = math.inf

    def bounded(reports: Sequence[Report], n_free: int) -> Orders:
        nonlocal end
        if end == math.inf and any(isinstance(r, WorkerReady) for r in reports):
            end = time.monotonic() + (window_s or math.inf)
        if time.monotonic() > end:
            driver.request_stop("timeout")
        return driver.exchange(reports, n_free)

    return bounded


def _checked(exchange: Exchange, check: Callable[[], None], turn: Callable[[], None]) -> Exchange:
    """`exchange`, each time after `turn`, and every CHECK_S seconds after `check`."""
    last = time.monotonic()

    def checked(reports: Sequence[Report], n_free: int) -> Orders:
        nonlocal last
        if time.monotonic() - last > CHECK_S:
            check()
            last = time.monotonic()
        turn()
        return exchange(reports, n_free)

    return checked


@contextlib.contextmanager
def _explained(check: Callable[[], None]) -> Iterator[None]:
    """Let `check` name a missing file in place of the errors that follow from it."""
    try:
        yield
    except (OSError, SweepError):
        check()
        raise


@contextlib.contextmanager
def _closing(executor: Executor, driver: Driver, listeners: Sequence[Listener]) -> Iterator[None]:
    """End workers and listeners after the block; the first error is raised.

    Records that cannot be delivered after an error are delivered by the next search.
    """
    with contextlib.ExitStack() as closed:
        for listener in listeners:
            closed.callback(listener.close)
        try:
            yield
        except BaseException:
            try:
                executor.kill()
            finally:
                driver.abandon()
            with contextlib.suppress(SweepError):
                closed.close()
            raise
    executor.kill()  # workers exited meanwhile


def first_configurations(
    config: RunConfig, space: Space
) -> list[tuple[Mapping[str, Any], Mapping[str, Any] | None]]:
    """Configurations to train before the sampler is asked, with Optuna's parameters.

    The baseline comes first: the reference network, or the constructors' defaults; its parameters
    are None if the space lacks it. Raises ConfigError for a parameter without a default.
    """
    reference: list[tuple[Mapping[str, Any], Mapping[str, Any] | None]] = []
    if config.baseline and config.is_mlp:
        reference = [(dict(options.REFERENCE), _reference_params(config, space))]
    elif space.has_defaults_first:
        values = default_configuration(config, space)
        reference = [(values, space.params_for(values))]
    return [*reference, *((values, space.params_for(values)) for values in space.first)]


def default_configuration(config: RunConfig, space: Space) -> dict[str, Any]:
    """The fixed values, and the constructors' defaults of all that varies.

    They are read from the source files, not run. Raises ConfigError for a parameter without one.
    """
    known = {
        "model": defaults_of(config.module),
        "data": defaults_of(config.data) if is_custom(config.data) else {},
    }
    found, faults = dict(space.fixed), list[str]()
    for parameter in space.parameters:
        if not is_active(parameter, found):
            continue
        section, _, name = parameter.name.rpartition(".")
        places = known.values() if not section else [known.get(section, {})]
        given = [place[name] for place in places if name in place]
        if given:
            found[parameter.name] = tuple(given[0]) if isinstance(given[0], list) else given[0]
        else:
            faults.append(
                f"first: defaults: {parameter.name} has no plain default in the source of module "
                "or data: write first: as a list of configurations"
            )
    if faults:
        raise ConfigError(faults)
    return found


def _reference_params(config: RunConfig, space: Space) -> Mapping[str, Any] | None:
    """Optuna's parameters of the reference network; None if the space fixes another value.

    The reference network is trained unchanged: a sampler must not learn its score for, say, a
    network with the space's fixed dropout.
    """
    reference = options.REFERENCE
    if any(space.fixed[name] != reference.get(name, space.fixed[name]) for name in space.fixed):
        return None
    plain = {"activation": "relu", "schedule": "constant", "batch_size": config.batch_size}
    if any(space.fixed[n] != plain.get(n, 0.0) for n in space.fixed if n not in reference):
        return None
    return space.params_for(dict(reference), {"batch_size": config.batch_size})


def stored_config(config: RunConfig) -> dict[str, Any]:
    """The study's configuration in plain values, without credentials.

    A tracking URI keeps `***` in their place: whoever continues the study is asked for them,
    instead of getting another MLflow store.
    """
    values = {k: v for k, v in dataclasses.asdict(config).items() if k not in VOLATILE}
    return values | {
        "tracking_uri": redacted(config.tracking_uri), "direction": config.resolved_direction,
    }  # fmt: skip


def _open_ledger(
    config: RunConfig, space: Space, confirm: Callable[[], object]
) -> tuple[Ledger, bool]:
    """The study in the storage; whether an earlier search used the same MLflow store.

    Raises ConfigError for other settings than before, once a trial has a score.
    """
    anchored, direction = config.anchored(), config.resolved_direction
    ledger, is_new = create_study(anchored.storage, config.study_name, direction, confirm)
    if is_new or not ledger.config:
        ledger.describe(stored_config(config), space.text)
        return ledger, False
    changes = identity_changes(config, ledger.config | {"direction": ledger.direction})
    changes += _space_changes(config, space, ledger.space_text)
    # With a wrong --metric the first trial ends unscored, and continues with the right one.
    by_unfinished = not all(line.startswith(("--metric ", "--direction ")) for line in changes)
    if changes and ledger.is_bound(by_unfinished=by_unfinished):
        ledger.close()
        _see_that_they_import(config)
        raise ConfigError(
            f"study {config.study_name!r} exists with other settings ({'; '.join(changes)}): "
            f"leave {'it' if len(changes) == 1 else 'them'} out to continue it, name another "
            "search with --study, or start one that learns from its trials with --fork NEW"
        )
    if changes:
        ledger.start_over(direction)
    before, now = ledger.config, stored_config(config)
    # --trials may be less than the study has; the stored total never is.
    now["trials"] = max(config.trials, _n_finished(ledger.trials()))
    if before != now:
        ledger.describe(now, space.text)
    return ledger, before.get("tracking_uri") == now["tracking_uri"]


def _see_that_they_import(config: RunConfig) -> None:
    """Raise ConfigError if the user's module or data function cannot be imported.

    A mistyped name is a better message than other settings. Before a search only files are looked
    at (`environment.sources.unknown_name`), which knows no module that is nowhere.
    """
    if config.module != DEFAULT_MODULE:
        import_object(config.module, "--module")
    if is_custom(config.data):
        import_object(config.data, "data")


def _carry(
    ledger: Ledger, carried: Sequence[Mapping[str, Any]], trials: Sequence[LedgerTrial]
) -> None:
    """Keep trials of an older study with a new one. Raises ConfigError if it has own trials."""
    if not carried or ledger.carried():
        return
    if trials:
        raise ConfigError(
            f"study {ledger.name!r} has trials of its own: --fork NEW makes a new study"
        )
    ledger.carry(carried)


def _space_changes(config: RunConfig, space: Space, before: str) -> list[str]:
    """A sentence for each changed hyperparameter of the search space."""
    if space.text == before:
        return []
    old = parse_space(before, space.name, is_mlp=config.is_mlp)
    return [f"in the search space, {line}" for line in differences(old, space)]


def _study_info(config: RunConfig, space: Space, ledger: Ledger, is_same_store: bool) -> StudyInfo:
    trials = ledger.trials()
    best = best_trial(trials, config.resolved_direction)
    return StudyInfo(
        name=config.study_name,
        n_trials=max(config.trials, _n_finished(trials)),
        metric=config.metric,
        direction=config.resolved_direction,
        epochs=config.epochs,
        config=stored_config(config) | {"storage": redacted(config.storage)},
        space_name=space.name,
        space_text=space.text,
        time_ms=now_ms(),
        tags=provenance() | source_tags(sources_of(config)),
        dataset=ledger.dataset,
        n_done=_n_finished(trials),
        best_value=best.value if best else None,
        best_number=best.number if best else None,
        ranking=ranking_of(trials, config.objective),
        is_known=is_same_store and bool(trials),
    )


def _n_finished(trials: Sequence[LedgerTrial]) -> int:
    return sum(t.state.is_finished for t in trials)


def _succeeded(outcome: Outcome, failure: str = "") -> Outcome:
    """`outcome`. Raises StudyFailedError if the search failed, or none of its trials succeeded."""
    n_trials, name = sum(outcome.end.n_by_state.values()), outcome.study.name
    if outcome.end.reason == "failed":
        raise StudyFailedError(
            f"{failure}; once it is mended, `sweep retry {name}` tries them again"
        )
    if outcome.end.reason in ("done", "exhausted") and outcome.best is None and n_trials:
        raise StudyFailedError(
            f"none of the {n_trials} trials succeeded: `sweep trials {name}` shows why, "
            f"`sweep retry {name}` tries them again"
        )
    return outcome


def _outcome(
    config: RunConfig, ledger: Ledger, info: StudyInfo, driver: Driver | None = None
) -> Outcome:
    """`driver` None: there was nothing to do."""
    reason: EndReason = driver.reason if driver else "done"
    if driver and driver.n_trials > config.trials:  # a user extended the search
        config = dataclasses.replace(config, trials=driver.n_trials)
        info = dataclasses.replace(info, n_trials=driver.n_trials)
    trials = ledger.trials()
    best = best_trial(trials, config.resolved_direction)
    n_finished = _n_finished(trials)
    if reason in ("timeout", "interrupted") and n_finished >= config.trials:
        reason = "done"  # the stop came too late
    end = study_end(config, trials, reason, now_ms())
    return Outcome(
        info, end, n_finished - info.n_done, best, tuple(driver.unsaved) if driver else (),
        len(to_retry(trials)),
    )  # fmt: skip
