"""Do Optuna, MLflow and the files agree? Say each disagreement in a sentence, and repair it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from sweep.config.settings import RunConfig
from sweep.errors import SweepError
from sweep.files.trial_files import BEST, RESUME_STATE, VERDICT, TrialFiles, is_whole_checkpoint
from sweep.ledger.study import Ledger
from sweep.ledger.trials import LedgerTrial
from sweep.repair.reconcile import Disagreement, reconcile_addresses, reconcile_runs
from sweep.repair.records import StudyRecords, spec_of
from sweep.tracking import artifacts
from sweep.trial import TrialState


def examine(config: RunConfig, ledger: Ledger, *, fix: bool) -> list[Disagreement]:
    """All disagreements of a study without a driver; repaired if `fix`.

    `config` is the study's own. Parameters and metrics are never deleted. Raises StoreError if a
    store cannot be read.
    """
    found = reconcile_addresses(config.tracking_uri, config.study_name, fix=fix)
    if not all(disagreement.is_fixed for disagreement in found):
        return found  # what MLflow's runs say of their files is of another folder
    trials = ledger.trials()
    found += _check_files(config, trials, fix=fix)
    found += _check_states(config, ledger, trials, fix=fix)
    return found + reconcile_runs(config.tracking_uri, StudyRecords(config, ledger), fix=fix)


def _check_states(
    config: RunConfig, ledger: Ledger, trials: Sequence[LedgerTrial], *, fix: bool
) -> Iterable[Disagreement]:
    """RUNNING trials belong to a dead driver: they wait for the next run."""
    for trial in trials:
        if trial.state is not TrialState.RUNNING or trial.is_foreign:
            continue
        files = TrialFiles(config.study_dir, trial.number)
        if files.usable_verdict(spec_of(config, trial)) is not None:
            then = "it was trained to its end: the next `sweep run` records it"
        elif files.whole(RESUME_STATE) is not None:
            then = "the next `sweep run` continues it from its checkpoint"
        else:
            then = "the next `sweep run` trains it again"
        if fix:
            ledger.set_state(trial.number, TrialState.WAITING)
        yield Disagreement(f"trial {trial.number} is RUNNING, but its driver is gone; {then}", fix)


def _check_files(
    config: RunConfig, trials: Sequence[LedgerTrial], *, fix: bool
) -> Iterable[Disagreement]:
    by_number = {trial.number: trial for trial in trials}
    folders = config.study_dir / "trials"
    for folder in sorted(folders.iterdir()) if folders.is_dir() else []:
        trial = by_number.get(int(folder.name)) if folder.name.isdigit() else None
        if trial is None:
            # Not removed: a store that was put back from a copy may not know it yet.
            yield Disagreement(f"{folder} belongs to no trial of the study; `sweep gc` removes it")
        for part in filter(Path.is_file, folder.glob(".*")):
            yield _removed(part, "is what a broken-off write left", fix=fix)
        if trial is not None:
            yield from _check_folder(config, trial, fix=fix)


def _check_folder(config: RunConfig, trial: LedgerTrial, *, fix: bool) -> Iterable[Disagreement]:
    """Torn files: nobody would use them, but they look as if somebody could."""
    files = TrialFiles(config.study_dir, trial.number)
    verdict, resume, best = (files.path(name) for name in (VERDICT, RESUME_STATE, BEST))
    said = files.verdict()
    if verdict.is_file() and said is None:
        yield _removed(verdict, "is torn", fix=fix)
    elif said and not trial.state.is_finished and not files.has_all_of(said[1]):
        yield _removed(verdict, "names a checkpoint that is torn or gone", fix=fix)
    if resume.is_file() and not is_whole_checkpoint(resume):
        yield _removed(resume, "is torn", fix=fix)
    if best.is_file() and not is_whole_checkpoint(best):
        if trial.state is TrialState.COMPLETE:
            yield Disagreement(f"{best} is torn", fix and _restore(config, trial.number, best))
        else:
            yield _removed(best, "is torn", fix=fix)


def _removed(path: Path, what: str, *, fix: bool) -> Disagreement:
    if fix:
        path.unlink(missing_ok=True)
    return Disagreement(f"{path} {what}", fix)


def _restore(config: RunConfig, number: int, path: Path) -> bool:
    """Put MLflow's copy of a checkpoint in place of a torn one."""
    run_id = artifacts.run_id_of(config.tracking_uri, config.study_name, number)
    if run_id is None:
        return False
    with tempfile.TemporaryDirectory() as scratch:
        try:
            kept = artifacts.artifact_of(
                config.tracking_uri, run_id, "checkpoint/best.ckpt", Path(scratch)
            )
        except SweepError:
            return False
        if not is_whole_checkpoint(kept):
            return False
        aside = path.with_name(".best.ckpt.restored")
        shutil.copyfile(kept, aside)
        aside.replace(path)
    return True
