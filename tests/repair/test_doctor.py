"""Damage done to a finished search on real stores: each is one sentence, and repaired."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from searches import INLINE, Call, mlflow_client, query
from searches import sweep as command

import sweep
from sweep.config.settings import RunConfig
from sweep.files.trial_files import TrialFiles, is_whole_checkpoint
from sweep.ledger.study import open_study
from sweep.ledger.trials import LedgerTrial

N_TRIALS, EPOCHS = 6, 3
CURVES = ("train_loss", "val_acc", "val_loss")


@pytest.fixture
def doctor(six: Path, call: Call) -> Any:
    """Run `sweep doctor six`: (exit code, sentences of what was found, or repaired)."""

    def run(*flags: str) -> tuple[int, list[str], list[str]]:
        code, out, errors = call("doctor", "six", *flags)
        assert errors == []
        *lines, total = out.splitlines()
        told: Mapping[str, list[str]] = {"found": [], "repaired": []}
        for line in lines:
            kind, _, sentence = line.partition(": ")
            told[kind].append(sentence)
        n = len(lines)
        assert total == f"six: {n} disagreements, {len(told['found'])} left"
        assert code == bool(told["found"])
        return code, told["found"], told["repaired"]

    return run


def folder_of(number: int) -> Path:
    return TrialFiles("mlruns/.sweep/six", number).folder


def trials() -> list[LedgerTrial]:
    ledger = open_study(RunConfig().storage, "six")
    found = ledger.trials()
    ledger.close()
    return found


def runs(here: Path) -> dict[str, Run]:
    """Runs by trial number; the study's own is "parent"."""
    client = mlflow_client(here)
    experiment = client.get_experiment_by_name("six")
    found = client.search_runs([experiment.experiment_id])
    roles = [run.data.tags["sweep.role"] for run in found]
    assert roles.count("study") == 1
    assert roles.count("trial") == N_TRIALS
    return {run.data.tags.get("sweep.trial", "parent"): run for run in found}


def curve(here: Path, run: Run, metric: str) -> list[tuple[int, float]]:
    history = mlflow_client(here).get_metric_history(run.info.run_id, metric)
    return sorted((point.step, point.value) for point in history)


def kept() -> list[int]:
    """Trials whose files are in the work folder, best first: five of six."""
    best_first = sorted(trials(), key=lambda t: (-(t.value or 0), t.number))
    return [t.number for t in best_first][:5]


def go_on(**settings: Any) -> Any:
    """The search once more, with more trials."""
    return sweep.run(study="six", **(INLINE | settings))


def set_state(number: int, state: str) -> None:
    """What a driver that was killed leaves."""
    query(Path("mlruns/optuna.db"), "UPDATE trials SET state = ? WHERE number = ?", state, number)


def test_a_finished_search_is_in_agreement(doctor: Any) -> None:
    """Nothing is found, with or without --fix."""
    assert doctor() == (0, [], [])
    assert doctor("--fix") == (0, [], [])


# files


def test_a_torn_verdict_of_a_killed_driver(six: Path, doctor: Any) -> None:
    """It is removed, and the trial is trained again to the same curve under its number."""
    number = kept()[0]
    before = trials()[number]
    verdict = folder_of(number) / "verdict.json"
    verdict.write_bytes(verdict.read_bytes()[:-20])
    set_state(number, "RUNNING")
    code, found, _ = doctor()
    assert code == 1
    assert f"{verdict} is torn" in found
    assert f"trial {number} is RUNNING, but its driver is gone; " in found[1]
    assert "trains it again" in found[1]
    assert doctor("--fix")[:2] == (0, [])
    assert not verdict.exists()
    assert doctor() == (0, [], [])
    assert go_on().n_new == 1
    after = trials()[number]
    assert (after.value, after.curve) == (before.value, before.curve)
    assert doctor() == (0, [], [])


def test_a_whole_verdict_of_a_killed_driver(six: Path, doctor: Any) -> None:
    """The next run records the trial without training it."""
    number = kept()[0]
    written = (folder_of(number) / "best.ckpt").stat().st_mtime_ns
    set_state(number, "RUNNING")
    (first, *_) = doctor("--fix")[2]
    assert first.endswith("it was trained to its end: the next `sweep run` records it")
    assert str(trials()[number].state) == "WAITING"
    assert runs(six)[str(number)].info.status == "SCHEDULED"
    assert go_on().n_new == 1
    assert (folder_of(number) / "best.ckpt").stat().st_mtime_ns == written
    assert runs(six)[str(number)].info.status == "FINISHED"
    assert doctor() == (0, [], [])


@pytest.mark.parametrize("damage", ["torn", "gone"])
def test_a_verdict_whose_checkpoint_is_lost(doctor: Any, damage: str) -> None:
    """Nothing is recorded that cannot be loaded: the trial is trained again."""
    number = kept()[0]
    best = folder_of(number) / "best.ckpt"
    best.unlink()
    if damage == "torn":
        best.write_bytes(b"PK\x03\x04 and no more")
    set_state(number, "RUNNING")
    _, found, _ = doctor()
    assert f"{folder_of(number) / 'verdict.json'} names a checkpoint that is torn or gone" in found
    assert go_on().n_new == 1  # without the doctor, too
    assert is_whole_checkpoint(best)
    assert doctor() == (0, [], [])


def test_a_torn_resume_state(doctor: Any) -> None:
    """It is removed; the trial starts again."""
    number = kept()[0]
    folder = folder_of(number)
    (folder / "verdict.json").unlink()
    last = folder / "last.ckpt"
    last.write_bytes((folder / "best.ckpt").read_bytes()[:-100])
    (folder / ".last.ckpt.123").write_bytes(b"half")
    set_state(number, "RUNNING")
    _, found, _ = doctor()
    assert f"{last} is torn" in found
    assert f"{folder / '.last.ckpt.123'} is what a broken-off write left" in found
    assert any("trains it again" in sentence for sentence in found)
    assert doctor("--fix")[:2] == (0, [])
    assert not last.exists()
    assert go_on().n_new == 1
    assert doctor() == (0, [], [])


def test_a_torn_checkpoint_comes_back_from_mlflow(doctor: Any) -> None:
    """Also one whose end is right: every checksum counts."""
    best = folder_of(kept()[0]) / "best.ckpt"
    whole = best.read_bytes()
    best.write_bytes(whole[:300] + b"garbage" + whole[307:])
    assert doctor() == (1, [f"{best} is torn"], [])
    assert doctor("--fix") == (0, [], [f"{best} is torn"])
    assert best.read_bytes() == whole


def test_a_folder_of_no_trial(doctor: Any, call: Call) -> None:
    """The doctor leaves it to `sweep gc`, which removes it."""
    stray = folder_of(77)
    stray.mkdir()
    (stray / "best.ckpt").write_bytes(b"x")
    code, found, _ = doctor("--fix")
    assert (code, found) == (
        1, [f"{stray} belongs to no trial of the study; `sweep gc` removes it"]
    )  # fmt: skip
    assert call("gc", "six", "--keep", "6")[0] == 0
    assert not stray.exists()
    assert doctor() == (0, [], [])


def test_a_deleted_work_folder(six: Path, doctor: Any) -> None:
    """All is in the stores: nothing disagrees, the best checkpoint comes from MLflow, and the
    search goes on."""
    shutil.rmtree("mlruns/.sweep")
    assert doctor() == (0, [], [])
    best = sweep.best("six")
    assert best.checkpoint.is_relative_to(six / "mlruns" / "1")
    assert is_whole_checkpoint(best.checkpoint)
    set_state(2, "RUNNING")
    shutil.rmtree("mlruns/.sweep")
    assert go_on(trials=7).n_new == 2
    assert doctor() == (0, [], [])


# Optuna against MLflow


def test_a_missing_artifact_comes_back(six: Path, doctor: Any) -> None:
    """From the work folder, byte by byte."""
    number = kept()[0]
    artifact = Path(runs(six)[str(number)].info.artifact_uri) / "checkpoint" / "best.ckpt"
    whole = artifact.read_bytes()
    artifact.unlink()
    (sentence,) = doctor()[1]
    assert sentence.startswith(f"trial {number}'s MLflow run ")
    assert sentence.endswith("lacks checkpoint/best.ckpt")
    assert doctor("--fix") == (0, [], [sentence])
    assert artifact.read_bytes() == whole


def test_a_lost_artifact_is_said_once(six: Path, doctor: Any) -> None:
    """Where no copy is left nothing is called repaired; the run says it from then on."""
    (number,) = set(range(N_TRIALS)) - set(kept())
    run = runs(six)[str(number)]
    shutil.rmtree(Path(run.info.artifact_uri) / "checkpoint")
    code, found, repaired = doctor("--fix")
    assert (code, repaired) == (1, [])
    assert found[0].endswith("no copy of its checkpoint is left, which the run says now")
    assert runs(six)[str(number)].data.tags["sweep.checkpoint_lost"] == "true"
    assert doctor() == (0, [], [])


def test_a_run_that_runs_for_ever(six: Path, doctor: Any) -> None:
    """A run that no driver ends gets its status, and the points, metrics and tags it lacks."""
    number = kept()[0]
    run = runs(six)[str(number)]
    loss = curve(six, run, "val_loss")
    where, db = "run_uuid = ?", six / "mlflow.db"
    query(db, f"UPDATE runs SET status='RUNNING', end_time=NULL WHERE {where}", run.info.run_id)
    query(db, f"DELETE FROM metrics WHERE step > 1 AND {where}", run.info.run_id)
    query(db, f"DELETE FROM latest_metrics WHERE key LIKE 'best_%' AND {where}", run.info.run_id)
    query(db, f"DELETE FROM tags WHERE key = 'sweep.best_epoch' AND {where}", run.info.run_id)
    (sentence,) = doctor()[1]
    assert sentence == (
        f"trial {number} is COMPLETE, but its MLflow run {run.info.run_id} says RUNNING"
    )
    assert doctor("--fix") == (0, [], [sentence])
    now = runs(six)[str(number)]
    assert now.info.run_id == run.info.run_id
    assert now.info.status == "FINISHED"
    assert curve(six, now, "val_loss") == loss
    assert now.data.metrics == run.data.metrics
    assert now.data.tags["sweep.best_epoch"] == run.data.tags["sweep.best_epoch"]
    assert doctor() == (0, [], [])


def test_a_study_that_runs_for_ever(six: Path, doctor: Any) -> None:
    """Its run is ended as the search would have ended it."""
    parent = runs(six)["parent"]
    db, of_run = six / "mlflow.db", parent.info.run_id
    query(db, "UPDATE runs SET status='RUNNING' WHERE run_uuid = ?", of_run)
    query(db, "DELETE FROM latest_metrics WHERE run_uuid = ?", of_run)
    (sentence,) = doctor()[1]
    assert sentence == f"the study's MLflow run {of_run} says RUNNING, but no driver lives"
    assert doctor("--fix") == (0, [], [sentence])
    assert runs(six)["parent"].info.status == "FINISHED"
    assert runs(six)["parent"].data.metrics == parent.data.metrics
    assert doctor() == (0, [], [])


def test_a_run_of_no_trial_is_put_aside(six: Path, doctor: Any) -> None:
    """It stays, with all it has, as an orphan that no table counts."""
    client = mlflow_client(six)
    tags = {**runs(six)["0"].data.tags, "sweep.trial": "40"}
    stray = client.create_run(runs(six)["0"].info.experiment_id, tags=tags)
    client.log_metric(stray.info.run_id, "val_acc", 0.5)
    (sentence,) = doctor()[1]
    assert sentence == f"MLflow has a trial 40 that Optuna does not know: {stray.info.run_id}"
    assert doctor("--fix")[:2] == (0, [])
    now = client.get_run(stray.info.run_id)
    assert (now.info.status, now.data.tags["sweep.role"]) == ("KILLED", "orphan")
    assert now.data.metrics == {"val_acc": 0.5}
    assert doctor() == (0, [], [])


def lose(here: Path, number: int) -> Run:
    """Take a run out of MLflow's tables and files, as if it had never been delivered."""
    run = runs(here)[str(number)]
    for table in ("latest_metrics", "metrics", "params", "tags", "runs"):
        query(here / "mlflow.db", f"DELETE FROM {table} WHERE run_uuid = ?", run.info.run_id)
    shutil.rmtree(run.info.artifact_uri)
    return run


def test_a_missing_run_is_made_again_from_the_verdict(six: Path, doctor: Any) -> None:
    """Params, every curve, times, status, checkpoint and model are those that were lost."""
    number = kept()[0]
    curves = {m: curve(six, runs(six)[str(number)], m) for m in CURVES}
    lost = lose(six, number)
    sentence = f"trial {number} is COMPLETE, but has no MLflow run"
    assert doctor()[1] == [sentence]
    assert doctor("--fix") == (0, [], [sentence])
    made = runs(six)[str(number)]
    assert made.data.params == lost.data.params
    assert {m: curve(six, made, m) for m in CURVES} == curves
    assert {k: v for k, v in made.data.metrics.items() if k.startswith("best_")} == {
        k: v for k, v in lost.data.metrics.items() if k.startswith("best_")
    }
    assert made.info.status == "FINISHED"
    assert made.info.run_name == lost.info.run_name
    kept_tags = {k: v for k, v in lost.data.tags.items() if k != "mlflow.user"}
    assert kept_tags.items() <= made.data.tags.items()
    assert made.data.tags["sweep.recovered"] == "made again from Optuna and the trial's files"
    assert (Path(made.info.artifact_uri) / "checkpoint" / "best.ckpt").is_file()
    assert made.outputs.model_outputs
    assert doctor() == (0, [], [])


def test_a_missing_run_is_made_again_from_the_ledger(six: Path, doctor: Any) -> None:
    """Without its folder: params and all curves; what is not there any more is named, in the
    sentence and in the run."""
    (number,) = set(range(N_TRIALS)) - set(kept())
    curves = {m: curve(six, runs(six)[str(number)], m) for m in CURVES}
    lost = lose(six, number)
    code, found, _ = doctor("--fix")
    assert code == 1
    assert found == [
        f"trial {number} is COMPLETE, but has no MLflow run; made again, but for its checkpoint "
        "and its model"
    ]
    made = runs(six)[str(number)]
    assert made.data.params == lost.data.params
    assert {m: curve(six, made, m) for m in CURVES} == curves
    assert made.data.metrics == lost.data.metrics
    assert "without its checkpoint and its model" in made.data.tags["sweep.recovered"]
    assert doctor() == (0, [], [])


def test_a_store_that_is_gone_is_made_again(six: Path, doctor: Any, call: Call) -> None:
    """With all runs, by another process; looking alone makes no empty store."""
    Path("mlflow.db").unlink()
    code, found, _ = doctor()
    assert (code, found) == (
        1, ["MLflow has no experiment 'six': `sweep doctor six --fix` makes it again"]
    )  # fmt: skip
    assert call("best", "six")[0] == 0
    assert not Path("mlflow.db").exists()
    fixed = command(six, "doctor", "six", "--fix")
    assert "made again" in fixed.stdout, fixed.stderr
    statuses = query(six / "mlflow.db", "SELECT status FROM runs")
    assert statuses == [("FINISHED",)] * (1 + N_TRIALS)


def test_all_runs_of_a_deleted_experiment_are_made_again(six: Path, doctor: Any) -> None:
    """As if the store were new: parent, trials, their curves; then the two agree."""
    before = {n: (r.info.status, r.data.params) for n, r in runs(six).items() if n != "parent"}
    objective = {n: curve(six, runs(six)[n], "val_acc") for n in before}
    db = six / "mlflow.db"
    query(db, "UPDATE experiments SET name = 'another' WHERE name = 'six'")
    _, found, repaired = doctor("--fix")
    assert repaired[0] == "MLflow has no experiment 'six'"
    assert len(found + repaired) == 1 + N_TRIALS + 1
    assert repaired[-1] == "MLflow has no run of the study itself"
    after = {n: (r.info.status, r.data.params) for n, r in runs(six).items() if n != "parent"}
    assert after == before
    assert {n: curve(six, runs(six)[n], "val_acc") for n in before} == objective
    assert runs(six)["parent"].info.status == "FINISHED"
    assert doctor() == (0, [], [])


def test_an_optuna_trial_left_running_goes_on(six: Path, doctor: Any) -> None:
    """Without any file it waits for the next run, which trains it under its number."""
    before = trials()[3]
    shutil.rmtree(folder_of(3), ignore_errors=True)
    set_state(3, "RUNNING")
    code, found, repaired = doctor("--fix")
    assert (code, found) == (0, [])
    assert repaired[0] == (
        "trial 3 is RUNNING, but its driver is gone; the next `sweep run` trains it again"
    )
    assert str(trials()[3].state) == "WAITING"
    assert go_on().n_new == 1
    assert trials()[3].value == before.value
    assert len(trials()) == N_TRIALS
    assert doctor() == (0, [], [])


def test_a_live_search_is_left_alone(six: Path, call: Call) -> None:
    """While a driver holds the study, the doctor is refused."""
    from sweep.ledger.locks import study_lock

    with study_lock(Path("mlruns/.sweep/six"), "six"):
        code, _, errors = call("doctor", "six", "--fix")
    assert code == 5
    assert "is being run by process" in errors[0]


def test_an_unknown_study(six: Path, call: Call) -> None:
    """Exit code 2 and the nearest name."""
    code, _, errors = call("doctor", "sxi")
    assert (code, len(errors)) == (2, 1)
    assert "did you mean six?" in errors[0]


def test_the_verdict_of_another_study_of_that_name(six: Path, doctor: Any) -> None:
    """A verdict of another configuration is not spoken of as this trial's."""
    number = kept()[0]
    where = "key = 'sweep:hyperparameters' AND trial_id = ?"
    other = """replace(value_json, '"lr": ', '"lr": 1')"""
    db = six / "mlruns" / "optuna.db"
    query(db, f"UPDATE trial_user_attributes SET value_json = {other} WHERE {where}", number + 1)
    set_state(number, "RUNNING")
    assert any("trains it again" in sentence for sentence in doctor()[1])
