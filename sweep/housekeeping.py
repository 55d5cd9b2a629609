"""Checkpoints take bounded room: the best trials keep theirs, the others go.

Two places hold them: the study's work folder, which needs only what is to be resumed or is among
the best, and MLflow, where each completed trial keeps its checkpoint and model unless `--keep` or
`--disk-limit` says otherwise. Parameters and metrics are never deleted.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sweep.config import RunConfig
from sweep.ledger import LedgerTrial
from sweep.trial import TrialState

KEPT_IN_WORK_DIR = 5
"""Best trials whose files stay in the work folder; MLflow has copies of the others."""


@dataclass(frozen=True)
class Removal:
    """Files that may go."""

    number: int | None
    """The trial, or None for a folder that belongs to none."""
    n_bytes: int
    where: str
    folder: Path | None = None
    """Set for files in the work folder; None: in MLflow."""


def ranked(trials: Sequence[LedgerTrial], *, maximize: bool) -> list[int]:
    """Numbers of completed trials, best first."""
    done = [t for t in trials if t.state is TrialState.COMPLETE and t.value is not None]
    sign = -1.0 if maximize else 1.0
    return [t.number for t in sorted(done, key=lambda t: (sign * (t.value or 0.0), t.number))]


def in_work_dir(
    config: RunConfig, trials: Sequence[LedgerTrial], keep: int, *, orphans: bool = False
) -> list[Removal]:
    """Folders of finished trials that are not among the best `keep`."""
    maximize = config.resolved_direction == "maximize"
    kept = set(ranked(trials, maximize=maximize)[:keep])
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
            where = str(folder)
            removals.append(Removal(None if is_orphan else number, _size(folder), where, folder))
    return removals


def in_mlflow(config: RunConfig, trials: Sequence[LedgerTrial], keep: int) -> list[Removal]:
    """Checkpoints and models in MLflow of completed trials outside the best `keep`."""
    from sweep.tracking.disposal import stored_bytes

    maximize = config.resolved_direction == "maximize"
    kept = set(ranked(trials, maximize=maximize)[:keep])
    sizes = stored_bytes(config.tracking_uri, config.study_name)
    finished = {t.number for t in trials if t.state.is_finished}
    return [
        Removal(number, size, f"MLflow, trial {number}")
        for number, size in sorted(sizes.items())
        if number in finished and number not in kept
    ]


def remove(config: RunConfig, removals: Sequence[Removal]) -> None:
    """Carry removals out. Raises StoreError where MLflow cannot be reached."""
    from sweep.tracking.disposal import drop_checkpoints

    in_store = [r.number for r in removals if r.folder is None and r.number is not None]
    if in_store:
        drop_checkpoints(config.tracking_uri, config.study_name, in_store)
    for removal in removals:
        if removal.folder is not None:
            shutil.rmtree(removal.folder, ignore_errors=True)


def tidy(config: RunConfig, trials: Sequence[LedgerTrial]) -> list[Removal]:
    """What a search removes when everything was delivered: as --keep and --disk-limit say."""
    keep_here = min(KEPT_IN_WORK_DIR, config.keep or KEPT_IN_WORK_DIR)
    removals = in_work_dir(config, trials, keep_here)
    if config.keep is not None:
        removals += in_mlflow(config, trials, config.keep)
    if config.disk_limit_gb is not None:
        removals += _beyond(config, trials, removals, config.disk_limit_gb * 1e9)
    remove(config, removals)
    return removals


def _beyond(
    config: RunConfig, trials: Sequence[LedgerTrial], gone: Sequence[Removal], limit: float
) -> list[Removal]:
    """The worst trials' files in MLflow that must go for the study to fit into `limit` bytes.

    The best trial's stay whatever the limit.
    """
    taken = {r.number for r in gone if r.folder is None}
    stored = {r.number: r for r in in_mlflow(config, trials, 0) if r.number not in taken}
    total = sum(r.n_bytes for r in stored.values())
    order = ranked(trials, maximize=config.resolved_direction == "maximize")
    worst_first = [n for n in stored if n not in order] + order[:0:-1]
    beyond = []
    for number in worst_first:
        if total <= limit:
            break
        if number in stored:
            beyond.append(stored[number])
            total -= stored[number].n_bytes
    return beyond


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total
