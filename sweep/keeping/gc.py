"""All files of a study at once, by the rule of `sweep.keeping.retention`.

By `sweep gc`, and as a search begins and ends; while it runs it decides trial by trial.
Loads mlflow, as it is imported.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sweep.config.settings import RunConfig
from sweep.files.trial_files import (
    folder_bytes,
    remove_broken_off_writes,
    remove_resume_states,
)
from sweep.keeping.retention import goodness_of, limit_of, which_go
from sweep.ledger.trials import LedgerTrial
from sweep.tracking import artifacts

MOST_SAID = 5
"""Trials that one line names."""


@dataclass(frozen=True)
class Removal:
    """Files to remove: a folder, or a trial's files in MLflow."""

    number: int | None
    """The trial, or None for a folder that belongs to none."""
    n_bytes: int
    where: str
    files: Path | artifacts.Stored
    kept_by: str = ""
    """What refers to the files: they stay."""


def to_remove(
    config: RunConfig, trials: Sequence[LedgerTrial], stored: Mapping[int, artifacts.Stored],
    keep: int | None, limit: float = math.inf, *, orphans: bool = False,
) -> list[Removal]:  # fmt: skip
    """Files of finished trials beyond `keep` and `limit`, by `which_go`.

    `stored` is MLflow's part. Files in use elsewhere are listed with their user. With `orphans`,
    folders of unknown trials are among them. Raises StoreError.
    """
    known = {trial.number for trial in trials}
    finished = {t.number for t in trials if t.state.is_finished}
    above = config.study_dir / "trials"
    folders = sorted(f for f in (above.iterdir() if above.is_dir() else []) if f.name.isdigit())
    here = {int(f.name): folder_bytes(f) for f in folders if int(f.name) in finished}
    sizes = {number: one.n_bytes for number, one in stored.items() if number in finished}
    scores = sorted(filter(None, (goodness_of(config, trial) for trial in trials)))
    gone_here, gone = which_go([-n for _, n in scores], here, sizes, keep, limit)
    removals = []
    for folder in folders:
        number = int(folder.name)
        if number in gone_here:
            removals.append(Removal(number, here[number], str(folder), folder))
        elif orphans and number not in known:
            removals.append(Removal(None, folder_bytes(folder), str(folder), folder))
    kept = artifacts.keepers_of([stored[number] for number in gone])
    return removals + [
        Removal(
            number, sizes[number], f"MLflow, trial {number}", stored[number],
            kept.get(stored[number].run.info.run_id, ""),
        )
        for number in sorted(gone)
    ]  # fmt: skip


def remove(removals: Sequence[Removal]) -> None:
    """Carry removals out, but for files in use elsewhere.

    Raises StoreError if MLflow cannot be reached; then no folder is gone.
    """
    wanted = [removal.files for removal in removals if not removal.kept_by]
    for files in wanted:
        if isinstance(files, artifacts.Stored):
            artifacts.drop(files)
    for files in wanted:
        if isinstance(files, Path):
            shutil.rmtree(files, ignore_errors=True)


def tidy(
    config: RunConfig, trials: Sequence[LedgerTrial], *, is_kept_up: bool = False
) -> tuple[dict[int, int], str]:
    """Remove files beyond `--keep` and `--disk-limit`, once everything was delivered.

    If `is_kept_up`, the search did so for `--keep` trial by trial, and only a limit is a reason to
    look through MLflow (some 2 ms a trial). Returns the bytes left in MLflow by trial, if it was
    looked through, and one line about trials in use elsewhere. Raises StoreError.
    """
    is_bounded = config.disk_limit_gb is not None or (config.keep is not None and not is_kept_up)
    where = config.tracking_uri, config.study_name
    stored = artifacts.stored_files(*where) if is_bounded else {}
    removals = to_remove(config, trials, stored, config.keep, limit_of(config))
    remove(removals)
    remove_broken_off_writes(config.study_dir)
    remove_resume_states(config.study_dir, (t.number for t in trials if t.state.is_finished))
    kept = [f"trial {r.number} stays: {r.kept_by}" for r in removals if r.kept_by]
    more = [f"{len(kept) - MOST_SAID} more"] if len(kept) > MOST_SAID else []
    gone = {r.number for r in removals if isinstance(r.files, artifacts.Stored) and not r.kept_by}
    left = {number: one.n_bytes for number, one in stored.items() if number not in gone}
    return left, "; ".join([*kept[:MOST_SAID], *more])
