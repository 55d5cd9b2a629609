"""Do Optuna, MLflow and the files agree? Say each disagreement in a sentence, and repair it."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sweep.config import RunConfig
from sweep.errors import UndeliveredError
from sweep.ledger import Ledger, LedgerTrial
from sweep.trial import TrialState
from sweep.trial_files import read_verdict, resume_point, trial_folder


@dataclass(frozen=True)
class Finding:
    """One disagreement."""

    sentence: str
    is_fixed: bool = False


def examine(config: RunConfig, ledger: Ledger, *, fix: bool) -> list[Finding]:
    """All disagreements of a study that no driver owns now; repaired where `fix`.

    Parameters and metrics are never deleted. Raises StoreError where a store cannot be read.
    """
    from sweep.tracking import reconcile_runs, waiting_numbers

    trials = ledger.trials()
    findings = list(_check_records(config, fix=fix))
    findings += _check_states(config, ledger, trials, fix=fix)
    findings += _check_files(config, trials, fix=fix)
    states = {t.number: t.state for t in ledger.trials()}

    def checkpoint_of(number: int) -> Path | None:
        path = trial_folder(config.study_dir, number) / "best.ckpt"
        return path if zipfile.is_zipfile(path) else None

    sentences = reconcile_runs(
        config.tracking_uri, config.study_name, states, fix=fix, checkpoint_of=checkpoint_of,
        waiting=waiting_numbers(config.study_dir),
    )  # fmt: skip
    return findings + [Finding(sentence, fix) for sentence in sentences]


def _check_records(config: RunConfig, *, fix: bool) -> Iterable[Finding]:
    """Records that wait for MLflow: delivered now, where it takes them."""
    from sweep.tracking import deliver_pending, waiting

    if fix:
        try:
            if n := deliver_pending(config.tracking_uri, config.study_dir):
                yield Finding(f"{n} records waited to be delivered to MLflow", is_fixed=True)
        except UndeliveredError as error:
            yield Finding(str(error))
        return
    for path, entries in waiting(config.study_dir).items():
        yield Finding(f"records wait for MLflow in {path}: {len(entries)}")


def _check_states(
    config: RunConfig, ledger: Ledger, trials: Sequence[LedgerTrial], *, fix: bool
) -> Iterable[Finding]:
    """RUNNING trials belong to a dead driver: they wait for the next run."""
    for trial in trials:
        if trial.state is not TrialState.RUNNING:
            continue
        folder = trial_folder(config.study_dir, trial.number)
        if read_verdict(folder) is not None:
            then = "it was trained to its end: the next `sweep run` records it"
        elif resume_point(folder) is not None:
            then = "the next `sweep run` continues it from its checkpoint"
        else:
            then = "the next `sweep run` trains it again"
        if fix:
            ledger.interrupt_trial(trial.number)
        yield Finding(f"trial {trial.number} is RUNNING, but its driver is gone; {then}", fix)


def _check_files(
    config: RunConfig, trials: Sequence[LedgerTrial], *, fix: bool
) -> Iterable[Finding]:
    known = {trial.number for trial in trials}
    folders = config.study_dir / "trials"
    for folder in sorted(folders.iterdir()) if folders.is_dir() else []:
        if folder.name.isdigit() and int(folder.name) not in known:
            # Not removed: a store that was put back from a copy may not know it yet.
            yield Finding(f"{folder} belongs to no trial of the study; `sweep gc` removes it")
        for part in folder.glob(".*"):
            if fix:
                part.unlink(missing_ok=True)
            yield Finding(f"{part} is what a broken-off write left", fix)
    for trial in trials:
        path = trial_folder(config.study_dir, trial.number) / "best.ckpt"
        if trial.state is TrialState.COMPLETE and path.exists() and not zipfile.is_zipfile(path):
            restored = fix and _restore(config, trial.number, path)
            yield Finding(f"{path} is torn", restored)


def _restore(config: RunConfig, number: int, path: Path) -> bool:
    """Put MLflow's copy of a checkpoint in place of a torn one."""
    import shutil
    import tempfile

    from sweep.errors import SweepError
    from sweep.tracking import artifact_of, run_id_of

    run_id = run_id_of(config.tracking_uri, config.study_name, number)
    if run_id is None:
        return False
    with tempfile.TemporaryDirectory() as scratch:
        try:
            kept = artifact_of(config.tracking_uri, run_id, "checkpoint/best.ckpt", Path(scratch))
        except SweepError:
            return False
        if not zipfile.is_zipfile(kept):
            return False
        aside = path.with_name(".best.ckpt.restored")
        shutil.copyfile(kept, aside)
        aside.replace(path)
    return True
