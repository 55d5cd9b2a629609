"""Checkpoints take bounded room: the best trials keep theirs, the others go.

Two places hold them: the study's work folder, which needs only what is to be resumed or is among
the best, and MLflow, where each trial keeps its checkpoint and model unless `--keep` or
`--disk-limit` says otherwise. Parameters and metrics are never deleted.

Here all files of a study are looked through: by `sweep gc`, and as a search begins and ends. While
it runs, `sweep.keeping.retention` decides trial by trial.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sweep.config.settings import RunConfig
from sweep.files.trial_folder import (
    TrialFiles,
    folder_bytes,
    remove_broken_off_writes,
    remove_resume_states,
)
from sweep.keeping.retention import KEPT_IN_WORK_DIR, goodness_of
from sweep.ledger.trials import LedgerTrial
from sweep.trial import Direction

MOST_SAID = 5
"""Trials that one line names."""


@dataclass(frozen=True)
class Removal:
    """Files that may go."""

    number: int | None
    """The trial, or None for a folder that belongs to none."""
    n_bytes: int
    where: str
    folder: Path | None = None
    """Set for files in the work folder; None: in MLflow."""
    kept_by: str = ""
    """What refers to the files: they stay."""


@dataclass(frozen=True)
class Tidied:
    """What a look through all files came to."""

    removals: Sequence[Removal] = ()
    stored: Mapping[int, int] = field(default_factory=dict)
    """Trial -> bytes that MLflow still holds, where `--keep` or `--disk-limit` asks for it."""

    @property
    def kept(self) -> str:
        """Which trials keep their files, and for what; empty where none does."""
        kept = [f"trial {r.number} stays: {r.kept_by}" for r in self.removals if r.kept_by]
        more = [f"{len(kept) - MOST_SAID} more"] if len(kept) > MOST_SAID else []
        return "; ".join([*kept[:MOST_SAID], *more])


def ranked(trials: Sequence[LedgerTrial], direction: Direction) -> list[int]:
    """Numbers of completed trials, best first."""
    rated = [(goodness_of(t.state, t.value, direction), t.number) for t in trials]
    scored = [(-goodness, number) for goodness, number in rated if goodness is not None]
    return [number for _, number in sorted(scored)]


def in_work_dir(
    config: RunConfig,
    trials: Sequence[LedgerTrial],
    kept: Sequence[int],
    *,
    orphans: bool = False,
) -> list[Removal]:
    """Folders of finished trials that are not among `kept`; with `orphans`, of unknown ones."""
    finished = {t.number for t in trials if t.state.is_finished}
    known = {t.number for t in trials}
    removals = []
    folders = config.study_dir / "trials"
    for folder in sorted(folders.iterdir()) if folders.is_dir() else []:
        if not folder.name.isdigit():
            continue
        number = int(folder.name)
        is_orphan = orphans and number not in known
        if is_orphan or (number in finished and number not in kept):
            n_bytes, where = folder_bytes(folder), str(folder)
            removals.append(Removal(None if is_orphan else number, n_bytes, where, folder))
    return removals


def in_mlflow(
    config: RunConfig,
    stored: Mapping[int, int],
    trials: Sequence[LedgerTrial],
    kept: Sequence[int],
) -> list[Removal]:
    """Checkpoints and models in MLflow of finished trials that are not among `kept`.

    `stored` is what MLflow holds: trial number -> bytes. Files that something refers to are named
    with what that is. Raises StoreError.
    """
    from sweep.tracking.disposal import kept_by

    finished = {t.number for t in trials if t.state.is_finished}
    poor = {n: size for n, size in stored.items() if n in finished and n not in kept}
    referred = kept_by(config.tracking_uri, config.study_name, poor) if poor else {}
    return [
        Removal(number, n_bytes, f"MLflow, trial {number}", kept_by=referred.get(number, ""))
        for number, n_bytes in sorted(poor.items())
    ]


def remove(config: RunConfig, removals: Sequence[Removal]) -> None:
    """Carry removals out, but for files that are kept by something.

    Raises StoreError where MLflow cannot be reached.
    """
    from sweep.tracking.disposal import drop_checkpoints

    removals = [removal for removal in removals if not removal.kept_by]
    in_store = [r.number for r in removals if r.folder is None and r.number is not None]
    if in_store:
        drop_checkpoints(config.tracking_uri, config.study_name, in_store)
    for removal in removals:
        if removal.folder is not None:
            shutil.rmtree(removal.folder, ignore_errors=True)


def stored(config: RunConfig) -> dict[int, int]:
    """What MLflow holds of a study: trial number -> bytes. Raises StoreError."""
    from sweep.tracking.disposal import stored_bytes

    return stored_bytes(config.tracking_uri, config.study_name)


def tidy(config: RunConfig, trials: Sequence[LedgerTrial], *, is_kept_up: bool = False) -> Tidied:
    """Remove what `--keep` and `--disk-limit` do not want, where everything was delivered.

    Where `is_kept_up`, `keeping.retention` did so for `--keep` trial by trial, and only a limit is
    a reason to look through MLflow (some 2 ms a trial). Raises StoreError where it is away.
    """
    best_first = ranked(trials, config.resolved_direction)
    kept_here = best_first[: min(KEPT_IN_WORK_DIR, config.keep or KEPT_IN_WORK_DIR)]
    is_bounded = config.disk_limit_gb is not None or (config.keep is not None and not is_kept_up)
    sizes = stored(config) if is_bounded else {}
    removals: list[Removal] = []
    if config.keep is not None:
        removals += in_mlflow(config, sizes, trials, best_first[: config.keep])
    left = {n: size for n, size in sizes.items() if n not in _gone(removals)}
    if config.disk_limit_gb is not None:
        beyond = _beyond(config, left, best_first, kept_here)
        removals += in_mlflow(config, {n: left[n] for n in beyond if n in left}, trials, ())
        left = {n: size for n, size in left.items() if n not in _gone(removals)}
        kept_here = [n for n in kept_here if n not in beyond]
    removals += in_work_dir(config, trials, kept_here)
    remove(config, removals)
    remove_broken_off_writes(config.study_dir)
    remove_resume_states(config.study_dir, (t.number for t in trials if t.state.is_finished))
    return Tidied(removals, left)


def _gone(removals: Sequence[Removal]) -> set[int | None]:
    return {r.number for r in removals if not r.kept_by}


def _beyond(
    config: RunConfig,
    stored: Mapping[int, int],
    best_first: Sequence[int],
    kept_here: Sequence[int],
) -> set[int]:
    """The worst trials whose files must go, here and in MLflow, for the rest to fit the limit.

    The best trial's stay whatever the limit.
    """
    here = {n: folder_bytes(TrialFiles(config.study_dir, n).folder) for n in kept_here}
    total = sum(stored.values()) + sum(here.values())
    unranked = [n for n in stored if n not in best_first]
    gone: set[int] = set()
    for number in [*unranked, *best_first[:0:-1]]:
        if total <= (config.disk_limit_gb or 0.0) * 1e9:
            break
        if number in stored or number in here:
            gone.add(number)
            total -= stored.get(number, 0) + here.get(number, 0)
    return gone
