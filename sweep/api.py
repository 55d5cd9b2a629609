"""The library behind the commands: run a search, find its best configuration, train it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.config import parsers
from sweep.config.resolving import Resolved, resolve
from sweep.config.settings import PLACES, RunConfig
from sweep.databases import sqlite
from sweep.environment.launchers import foreign_set_aside
from sweep.environment.sources import unknown_name
from sweep.errors import (
    ConfigError,
    NotFoundError,
    SpaceError,
    UsageError,
    must_be_one_of,
)
from sweep.loading import collector_paused, end_if_being_read, in_names
from sweep.protocols import Listener
from sweep.reporting.bar import Bar, is_notebook
from sweep.space import Space, load_space, parse_space, with_changes

if TYPE_CHECKING:
    from sweep.appraisal import Confirmation
    from sweep.reporting.report.comparison import Compared
    from sweep.reporting.status import StudyStatus
    from sweep.reuse import Best
    from sweep.reuse.ensemble import Ensemble
    from sweep.reuse.reproducing import Reproduced
    from sweep.search.plan import Plan
    from sweep.search.study import Extras, Outcome
    from sweep.search.verbs import Steered

PLAN_TIME = "25s"
"""How long a plan trains."""


def run(
    *, listeners: Sequence[Listener] = (), config_file: str | None = None,
    progress: bool | None = None, **settings: Any,
) -> Outcome:  # fmt: skip
    """Run or continue a search, as `sweep run` does, without its output.

    Args:
        listeners: Are told of trials as they run (see `sweep.protocols.Listener`).
        config_file: YAML file with settings.
        progress: Draw a bar; None: in a notebook.
        **settings: Flags of `sweep run` with underscores, e.g. trials=50, timeout="10m". `module`,
            `data` and `callbacks` may be classes, functions and instances, `vary`, `set` and
            `trainer` mappings: vary={"model.lr": sweep.floats(1e-4, 1e-1, log=True)}. In place of
            a module, `build` may be a function of the parameters (a dict) that returns module,
            data and Trainer arguments, or the first of them; `objective` any function of
            parameters and `report` that returns a number. Instances, inner functions and what a
            notebook's cell defines are trained by the executor inline.

    Returns the outcome: the best trial and the counts. Raises SweepError (see `sweep.errors`).

    >>> outcome = sweep.run(trials=20, epochs=5)               # doctest: +SKIP
    """
    end_if_being_read()
    named = in_names(settings)
    resolved, space = prepare(named, Path(config_file) if config_file else None)
    if progress or (progress is None and is_notebook()):
        listeners = (*listeners, Bar())
    return search_with(resolved.config, space, listeners)


def best(study: str | None = None, *, trial: int | None = None, **where: Any) -> Best:
    """The best trial of `study`, or another: configuration, score, checkpoint, MLflow run id.

    Args:
        study: Its name; None: the only study there is.
        trial: Number of the trial to take instead of the best.
        **where: storage, tracking_uri and work_dir, if they are not the defaults.

    Raises NotFoundError for an unknown study or one without such a trial, ConfigError for any
    other argument.
    """
    from sweep.reuse import find_trial

    config = _place("best", where, "study", "trial")
    if trial is not None and (type(trial) is not int or trial < 0):
        raise ConfigError(f"trial must be a whole number >= 0, but got {trial!r}")
    return find_trial(study, trial, config)


def ensemble(
    study: str | None = None, n: int = 10, folder: str | Path | None = None, **where: Any
) -> Ensemble:
    """The mean of up to `n` of the study's models that is best on validation, exported as one.

    Args:
        study: Its name; None: the only study there is.
        n: Rounds of the selection (`sweep.trust.ensemble`).
        folder: For the exported model; None: `ensemble` in the study's folder.
        **where: storage, tracking_uri and work_dir, if they are not the defaults.

    Raises SweepError (see `sweep.reuse.ensemble.make_ensemble`).
    """
    from sweep.reuse.ensemble import make_ensemble

    config = _place("ensemble", where, "study", "n", "folder")
    target = None if folder is None else Path(folder)
    return make_ensemble(study, config, parsers.count(1)("n", n), target)


def reproduce(study: str | None, trial: int, **where: Any) -> Reproduced:
    """Train a recorded trial again, in a temporary folder; is its curve the same?

    The arguments of `prune`. Raises NotFoundError for an unknown trial, ConfigError for one
    without a curve.
    """
    from sweep.reuse.reproducing import reproduce_trial

    end_if_being_read()
    config = _place("reproduce", where, "study", "trial")
    return reproduce_trial(study, parsers.count(0)("trial", trial), config)


def status(study: str | None = None, **where: Any) -> StudyStatus:
    """How far a study is, whoever runs it, read from its storage.

    Args:
        study: Its name; None: the only study there is.
        **where: storage, tracking_uri and work_dir, if they are not the defaults.

    Raises NotFoundError for an unknown study, ConfigError for another program's.
    """
    from sweep.reporting.status import Watcher
    from sweep.reuse.best import opened

    with opened(study, _place("status", where, "study")) as (ledger, config):
        return Watcher(ledger, config).look()


def report(
    study: str | None = None, output: str | Path | None = None, *, fmt: str | None = None,
    samples: bool = True, log: bool = False, **where: Any,
) -> Path:  # fmt: skip
    """Write one page about `study`, as `sweep report` does; returns its file.

    Args:
        study: Its name; None: the only study there is.
        output: The file; None: STUDY-report.html in the current folder.
        fmt: html, md or png; None: by the file's ending, else html.
        samples: Show what the winner gets wrong, if its checkpoint and data are there.
        log: Store it in MLflow, too, as an artifact of the study's own run.
        **where: storage, tracking_uri and work_dir, if they are not the defaults.

    Raises NotFoundError for an unknown study, ConfigError for another form.
    """
    from sweep.reuse.page import write_page

    place = _place("report", where, "study", "output", "fmt", "samples", "log")
    path = Path(output) if output is not None else None
    made = write_page(study, place, output=path, fmt=fmt, has_samples=samples, is_stored=log)
    return made.path or Path()


def compared(names: Sequence[str], where: RunConfig) -> list[Compared]:
    """Studies, or trials as STUDY:N, to compare. Raises NotFoundError, and UsageError for one."""
    from sweep.reporting.report.comparison import of_trial
    from sweep.reporting.report.facts import StudyFacts, facts_of
    from sweep.reuse.best import opened

    given = list(dict.fromkeys(names))
    if len(given) < 2:
        raise UsageError("compare needs two or more: `sweep compare A B`, or trials as A:3 A:7")
    facts, found = dict[str, StudyFacts](), []
    for name in given:
        before, _, after = name.rpartition(":")
        study, number = (before, after) if before and after.isdigit() else (name, "")
        if study not in facts:
            with opened(study, where) as (ledger, config):
                facts[study] = facts_of(ledger, config)
        one = of_trial(name, facts[study], int(number) if number else None)
        if one is None:
            hint = f"`sweep trials {study}` shows those it has"
            raise NotFoundError(f"study {study!r} has no trial {number}: {hint}")
        found.append(one)
    return found


def stop(study: str | None = None, **where: Any) -> Steered:
    """Stop the study's search as Ctrl-C does, from another process; the arguments of `status`."""
    return _steer("stop", study, where)


def prune(study: str | None, trial: int, **where: Any) -> Steered:
    """End an unfinished trial as PRUNED: at its next report, or once a next search takes it up.

    Raises NotFoundError for an unknown trial, ConfigError for one that has ended.
    """
    return _steer("prune", study, where, trial=parsers.count(0)("trial", trial))


def enqueue(study: str | None, values: Mapping[str, Any] | Sequence[str], **where: Any) -> Steered:
    """Train a configuration next, e.g. {"lr": 1e-3}; other values are drawn at random.

    The answer's `trial` is its number. Raises ConfigError with all values outside the space.
    """
    return _steer("enqueue", study, where, values=values)


def extend(study: str | None, trials: int, **where: Any) -> Steered:
    """Raise the number of trials that the study is to have in all.

    Raises ConfigError unless it is more than before.
    """
    return _steer("extend", study, where, trials=parsers.count(1)("trials", trials))


def _steer(verb: str, study: str | None, where: Mapping[str, Any], **given: Any) -> Steered:
    from sweep.reuse.best import opened
    from sweep.search import verbs

    with opened(study, _place(verb, where, "study", *given)) as (ledger, config):
        answer: Steered = getattr(verbs, verb)(ledger, config, *given.values())
        return answer


def _place(function: str, where: Mapping[str, Any], *others: str) -> RunConfig:
    """A RunConfig with the places in `where`. Raises ConfigError for other names in it."""
    wrong = [
        must_be_one_of(f"an argument of {function}", name, (*others, *PLACES))
        for name in where
        if name not in PLACES
    ]
    if wrong:
        raise ConfigError(wrong)
    return resolve(where).config


def prepare(flags: Mapping[str, Any], config_file: Path | None) -> tuple[Resolved, Space]:
    """The checked configuration and space; other settings come from a stored study."""
    resolved = resolve(flags, file=config_file, also=_faults_of_space)
    _see_that_they_exist(resolved.config)
    stored, space_text = _stored(resolved.config)
    if stored:
        resolved = resolve(flags, file=config_file, stored=stored)
    return resolved, _space_of(resolved, space_text)


def _see_that_they_exist(config: RunConfig) -> None:
    """Raises ConfigError for files and names of the user's that are not there; imports nothing."""
    named = {"--module": config.module, "--data": config.data} | {
        f"--callback {path}": path for path in config.callback
    }
    faults = [
        f"{flag.partition(' ')[0]} {path!r}{fault}"
        for flag, path in named.items()
        if ":" in path and (fault := unknown_name(path))
    ]
    if faults:
        raise ConfigError(faults)


def _faults_of_space(config: RunConfig) -> Sequence[str]:
    """Faults of the search space, to be told with those of the settings."""
    try:
        _loaded_space(config)
    except UsageError as error:
        return error.faults
    return ()


def _space_of(resolved: Resolved, kept: str) -> Space:
    """The space in flags, environment or file, else the one stored with the study."""
    config = resolved.config
    if kept and {resolved.origins[name] for name in ("space", "vary", "set")} <= {
        "study",
        "default",
    }:
        return parse_space(kept, config.space_name, is_mlp=config.is_mlp)
    return _loaded_space(config)


def _loaded_space(config: RunConfig) -> Space:
    """The space of `--space`, with `--vary` and `--set` on top. Raises SpaceError, ConfigError."""
    base = load_space(config.space_file, is_mlp=config.is_mlp) if config.space_file else None
    if base is not None and not config.vary and not config.set:
        return base
    if base is None and not config.vary:
        raise ConfigError(
            "nothing varies: say --vary NAME=LOW..HIGH or --vary NAME=A,B,C, or name a --space"
        )
    text = with_changes(base.text if base else "", config.vary, config.set)
    try:
        return parse_space(text, config.space_name, is_mlp=config.is_mlp)
    except SpaceError as error:  # its lines are of no file of the user's
        raise ConfigError(fault.partition(": ")[2] for fault in error.faults) from error


def check(
    flags: Mapping[str, Any], config_file: Path | None = None, write: Path | None = None
) -> list[str]:
    """Try one minibatch of a search over a user's module; returns what was found, in lines.

    With `write`, a first search space goes into that file, and nothing need vary yet. Raises
    ConfigError with all faults, SweepError.
    """
    from sweep.search.tasks import make_task

    space = None
    if write is None:
        resolved, space = prepare(flags, config_file)
        config = resolved.config
    else:
        config = resolve(flags, file=config_file).config
    if config.kind == "objective":
        raise ConfigError("an objective function has no minibatch to try: run a trial of it")
    if config.is_mlp:
        raise ConfigError("--module must name a module of yours: MLPClassifier needs no check")
    from sweep.training.project.report import report, write_space

    with foreign_set_aside():
        task = make_task(config, space)
        return write_space(task, write) if write is not None else report(task)


def plan(
    *, for_time: float | str = PLAN_TIME, max_devices: int | str = 1,
    price_per_hour: float | str | None = None, config_file: str | None = None, **settings: Any,
) -> Plan:  # fmt: skip
    """Estimate what a search would take, as `sweep plan` does: time, memory, disk and money.

    A few of its trials are trained in a temporary folder; no store is touched.

    Args:
        for_time: How long they train once a worker is ready: seconds, or "2m".
        max_devices: Estimate for the devices that the settings use, twice as many, ... up to this.
        price_per_hour: Of one device, in any currency.
        config_file: YAML file with settings.
        **settings: As for `sweep.run`.

    Raises SweepError (see `sweep.errors`).

    >>> sweep.plan(trials=200, epochs=20).estimates[0].time_s      # doctest: +SKIP
    """
    end_if_being_read()
    flags, file = in_names(settings), Path(config_file) if config_file else None
    return plan_with(
        flags, file, for_time=for_time, max_devices=max_devices, price_per_hour=price_per_hour
    )


def plan_with(
    flags: Mapping[str, Any], config_file: Path | None, *, for_time: float | str,
    max_devices: int | str, price_per_hour: float | str | None,
) -> Plan:  # fmt: skip
    """`plan`, from flags."""
    from sweep.search.calibration import calibrate
    from sweep.search.plan import plan_of

    for_s = parsers.duration("--for", for_time)
    n_devices = parsers.count(1)("--max-devices", max_devices)
    price = None if price_per_hour is None else parsers.price("--price-per-hour", price_per_hour)
    resolved, space = prepare(flags, config_file)
    with foreign_set_aside():
        measured = calibrate(resolved.config, space, for_s)
    return plan_of(resolved.config, space, measured, n_devices, price)


def fork(
    flags: Mapping[str, Any], config_file: Path | None, new: str
) -> tuple[Resolved, Space, Extras, list[str]]:
    """A search called `new` with the settings of the study in `flags`, less what `flags` change.

    It starts with the old study's trials inside its space; the last item counts them, and gives
    the reasons for the others. Raises NotFoundError for an unknown study, ConfigError if `new` is
    its own name.
    """
    from sweep.ledger.study import open_study
    from sweep.search.study import Extras
    from sweep.search.warmstart import carried_lines, carry, incomparable

    old = resolve(flags, file=config_file).config
    if new == old.study_name:
        raise ConfigError(f"--fork NEW must be another name than that of the study, {new!r}")
    with contextlib.closing(open_study(old.storage, old.study_name)) as ledger:
        trials, space_text = ledger.trials(), ledger.space_text
        stored, direction = ledger.config, ledger.direction
    resolved = resolve({**flags, "study": new}, file=config_file, stored=stored)
    space = _space_of(resolved, space_text)
    strange = incomparable(resolved.config, stored, direction)
    carried, reasons = carry(space, trials, resolved.config.objective, strange)
    lines = carried_lines(len(carried), reasons, new, old.study_name)
    return resolved, space, Extras(carried=carried), lines


def retry(flags: Mapping[str, Any], failed: str | None) -> tuple[RunConfig, Space, Extras]:
    """A stored study with room for its failed trials (with class `failed`), to try them again.

    A configuration is tried once more, however often it failed; not at all if another try
    succeeded. An interrupted try of it is continued.
    """
    from sweep.ledger.study import open_study
    from sweep.search.study import Extras
    from sweep.search.warmstart import to_retry
    from sweep.space import canonical_key

    resolved, space = prepare(flags, None)
    where = resolved.config.storage, resolved.config.study_name
    with contextlib.closing(open_study(*where)) as ledger:
        trials = ledger.trials()
    again = to_retry(trials, failed)
    begun = {canonical_key(t.hyperparameters) for t in trials if not t.state.is_finished}
    n_trials = max(resolved.config.trials, len(trials) + len(again.keys() - begun))
    config = dataclasses.replace(resolved.config, trials=n_trials)
    return config, space, Extras(again=tuple(again.values()))


def confirm(
    study: str | None = None, *, top: int = 5, seeds: int = 5, test: bool = True,
    listeners: Callable[[], Sequence[Listener]] = tuple, **where: Any,
) -> Confirmation:  # fmt: skip
    """Train the best trials of a study again on fresh seeds; say what the best of them is worth.

    Args:
        study: Its name; None: the only one.
        top: Finalists; half of them drop out after each seed, down to two.
        seeds: Fresh seeds of split, order and weights.
        test: Open the test split once the winner is chosen.
        listeners: Makes those that are told of the trials of one seed.
        **where: As for `best`.

    Raises NotFoundError without two completed trials; what `run` raises.
    """
    end_if_being_read()
    config = _place("confirm", where, "study", "top", "seeds", "test")
    from sweep.reuse.confirming import confirm as confirmed

    n_finalists, n_seeds = (parsers.count(2)(*one) for one in (("top", top), ("seeds", seeds)))

    def search(config: RunConfig, space: Space, extras: Extras) -> Outcome:
        return search_with(config, space, listeners(), extras)

    return confirmed(study, config, search, top=n_finalists, n_seeds=n_seeds, is_tested=test)


def search_with(
    config: RunConfig, space: Space, listeners: Sequence[Listener], extras: Extras | None = None,
    on_signal: Callable[[], object] = lambda: None,
) -> Outcome:  # fmt: skip
    """Search with MLflow as the tracker, beside `listeners`.

    First MLflow is brought to agree with Optuna. Checkpoints beyond `--keep` and `--disk-limit`
    are deleted as trials end. `on_signal` is called in the handler of the first Ctrl-C or SIGTERM.
    """
    import dataclasses

    from sweep.search.tasks import begin_loading

    with foreign_set_aside():
        executor = begin_loading(config, space)
        try:
            with collector_paused():  # loads Optuna, while the workers load their libraries
                from sweep.search.study import Extras, search
            extras = dataclasses.replace(
                extras or Extras(), is_tracked=True, executor=executor, on_signal=on_signal
            )
            outcome = search(config, space, listeners, extras)
            from sweep.reuse.page import store_page_of

            store_page_of(outcome, config)
            return outcome
        finally:
            executor.kill()


def _stored(config: RunConfig) -> tuple[Mapping[str, Any], str]:
    """Stored configuration and space text of the named study; empty for a new one."""
    path = sqlite.path_of(config.storage)
    if path is not None and not path.exists():
        return {}, ""  # without Optuna, whose import takes as long as a tenth of the workers'
    from sweep.ledger.study import open_study

    with (
        contextlib.suppress(NotFoundError),
        contextlib.closing(open_study(config.storage, config.study_name)) as ledger,
    ):
        if ledger.trials():  # else an attempt that came to nothing
            return ledger.config, ledger.space_text
    return {}, ""
