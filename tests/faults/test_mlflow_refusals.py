"""MLflow refuses records, loses runs or says otherwise than Optuna: said, and repaired."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
import tracking_records as records
from mlflow import MlflowClient
from mlflow_proxy import Answer, Proxy, error, refusing
from mlflow_servers import (
    FAST,
    PATIENT,
    Server,
    a_trial,
    bring_up,
    curves,
    runs_of,
    statuses,
    store_uri,
    whole_curve,
)
from searches import Call, inline
from waiting import wait_until

from sweep.errors import UndeliveredError
from sweep.repair.reconcile import reconcile_runs
from sweep.tracking import MlflowTracker
from sweep.tracking.artifacts import model_uri_of, run_id_of
from sweep.trial import TrialState, WorkerReady


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("always-500", (500, error("INTERNAL_ERROR"))),
        ("always-502", (502, "<html>Bad Gateway</html>")),
        ("always-403", (403, error("PERMISSION_DENIED"))),
        ("always-400", (400, error("INVALID_PARAMETER_VALUE"))),
    ],
)
def test_a_trial_that_is_refused_again_and_again_holds_up_no_other(
    server: Server, proxy: Proxy, tmp_path: Path, name: str, answer: Answer
) -> None:
    """It is tried five times, said in one line, and the others pass meanwhile. It is tried again
    by the next start, and arrives when it is taken."""
    proxy.rule = refusing(answer, trial=1)
    tracker = MlflowTracker(proxy.address, tmp_path / "log", pace=FAST)
    tracker.open(records.study_info(name))
    written = [records.started(1), *records.epochs(1, 1, 1), *a_trial(0)]
    tracker.write(written)
    wait_until(lambda: statuses(server, name).get("0") == "FINISHED")
    wait_until(lambda: proxy.n_refused == 5)
    assert not tracker.is_offline
    later = [*records.epochs(1, 2), records.finished(1, TrialState.PRUNED), *a_trial(2)]
    tracker.write(later)
    with pytest.raises(UndeliveredError) as caught:
        tracker.close()
    said = str(caught.value)
    assert said.startswith("MLflow lacks records of trial 1 (")
    assert f"`sweep doctor {name} --fix`" in said
    assert "\n" not in said
    assert statuses(server, name) == {"parent": "RUNNING", "0": "FINISHED", "2": "FINISHED"}
    assert proxy.n_refused == 5, "it is not asked for again and again"

    info = records.study_info(name)
    (left,) = bring_up(proxy.address, info, [*written, *later], is_live=True)
    assert left.startswith("trial 1 is PRUNED, but has no MLflow run; MLflow refuses the repair")
    proxy.rule = lambda call, body: None
    assert bring_up(proxy.address, info, [*written, *later], is_live=True) == []
    assert curves(store_uri(server), name) == {str(n): whole_curve(n) for n in range(3)}
    assert set(statuses(server, name).values()) == {"RUNNING", "FINISHED"}


def test_the_studys_own_run_may_be_refused(server: Server, proxy: Proxy, tmp_path: Path) -> None:
    """Trials pass while the study's run takes nothing; its end comes with the next repair."""
    study = "parent-refused"
    tracker = MlflowTracker(proxy.address, pace=FAST)
    tracker.open(records.study_info(study))
    parent = runs_of(store_uri(server), study)["parent"].info.run_id
    proxy.rule = lambda call, body: (500, "") if parent in body and "runs/log" in call else None
    ready = WorkerReady(records.DATASET, "cpu", 4, records.START_MS)
    tracker.write([ready, *a_trial(0), records.study_finished()])
    with pytest.raises(UndeliveredError, match=r"^MLflow lacks records of the study itself "):
        tracker.close()
    assert statuses(server, study) == {"parent": "RUNNING", "0": "FINISHED"}
    proxy.rule = lambda call, body: None
    written = [*a_trial(0), records.study_finished()]
    assert bring_up(proxy.address, records.study_info(study), written) == []
    assert statuses(server, study) == {"parent": "FINISHED", "0": "FINISHED"}


def test_a_run_that_the_user_deletes_is_let_go(server: Server, tmp_path: Path) -> None:
    """A trial whose run was deleted in MLflow while it trains makes no second run and no error;
    an experiment that is deleted and restored misses nothing."""
    study, uri = "deleted-run", store_uri(server)
    tracker = MlflowTracker(server.address, pace=PATIENT)
    tracker.open(records.study_info(study))
    tracker.write([records.started(0), records.started(1), *records.epochs(1, 1, 1)])
    wait_until(lambda: len(runs_of(uri, study)) == 3)
    client = MlflowClient(uri)
    client.delete_run(runs_of(uri, study)["0"].info.run_id)
    tracker.write([*records.epochs(0, 1), records.finished(0, TrialState.PRUNED), *a_trial(2)])
    wait_until(lambda: statuses(server, study).get("2") == "FINISHED")
    experiment_id = runs_of(uri, study)["1"].info.experiment_id
    client.delete_experiment(experiment_id)
    tracker.write([*records.epochs(1, 2), records.finished(1, TrialState.PRUNED), *a_trial(3)])
    wait_until(lambda: tracker.is_offline)
    client.restore_experiment(experiment_id)
    tracker.close()
    # Restoring an experiment brings back its deleted runs, too.
    assert statuses(server, study).items() >= {"1": "FINISHED", "3": "FINISHED"}.items()
    found = curves(uri, study)
    assert {n: found[n] for n in "123"} == {str(n): whole_curve(n) for n in (1, 2, 3)}


def test_a_passing_refusal_is_no_loss(server: Server, proxy: Proxy, tmp_path: Path) -> None:
    """Three errors of the server in a row: everything arrives, in order, without a word."""
    study, left = "passing", [3]
    refuse = refusing((500, error("INTERNAL_ERROR")), trial=1)

    def rule(call: str, body: str) -> Answer | None:
        refusal = refuse(call, body) if left[0] else None
        left[0] -= refusal is not None
        return refusal

    proxy.rule = rule
    tracker = MlflowTracker(proxy.address, pace=FAST)
    tracker.open(records.study_info(study))
    tracker.write([*a_trial(1), *a_trial(0)])
    tracker.close()
    assert left == [0]
    assert curves(store_uri(server), study) == {str(n): whole_curve(n) for n in range(2)}


@pytest.mark.parametrize("is_reading_fine", [False, True], ids=["all", "writes"])
def test_a_server_that_refuses_everything_is_away(
    server: Server, proxy: Proxy, tmp_path: Path, is_reading_fine: bool
) -> None:
    """With 503 for all, or for all that writes, nothing is set aside: it waits, and is delivered
    in the same session."""
    study = f"outage-{is_reading_fine}"
    tracker = MlflowTracker(proxy.address, pace=PATIENT)
    tracker.open(records.study_info(study))

    def rule(call: str, body: str) -> Answer | None:
        is_read = call.endswith(("/get", "/search", "get-by-name", "get-history"))
        return None if is_read and is_reading_fine else (503, error("TEMPORARILY_UNAVAILABLE"))

    proxy.rule = rule
    tracker.write([*a_trial(0), *a_trial(1)])
    wait_until(lambda: tracker.is_offline)
    wait_until(lambda: proxy.n_refused > 15)
    proxy.rule = lambda call, body: None
    tracker.close()
    assert curves(store_uri(server), study) == {str(n): whole_curve(n) for n in range(2)}


def test_a_search_with_a_refused_trial_is_finished_by_the_doctor(
    server: Server, proxy: Proxy, tmp_path: Path, call: Call
) -> None:
    """`sweep run` ends with exit code 7 and one line, `sweep doctor` says what is missing and
    --fix brings it, with its checkpoint and model."""
    command = ("--study", "doctored", "--trials", "3", "--epochs", "2", "--population", "1")
    where = ("--tracking-uri", proxy.address)
    proxy.rule = refusing((500, error("INTERNAL_ERROR")), trial=1)
    done = inline(tmp_path, "run", *command, *where)
    assert (done.returncode, len(done.stderr.splitlines())) == (7, 1)
    assert "MLflow lacks records of trial 1 (" in done.stderr
    code, out, _ = call("doctor", *where)
    assert (code, out.count("found: ")) == (1, 1)
    assert "trial 1 is COMPLETE, but has no MLflow run" in out
    code, out, _ = call("doctor", *where, "--fix")
    assert (code, out.count("found: "), "MLflow refuses the repair" in out) == (1, 1, True)
    proxy.rule = lambda call, body: None
    code, out, _ = call("doctor", *where, "--fix")
    assert (code, out.count("repaired: ")) == (0, 1)
    code, out, _ = call("doctor", *where)
    assert (code, out.strip()) == (0, "doctored: 0 disagreements, 0 left")
    run = runs_of(store_uri(server), "doctored")["1"]
    assert run.info.status == "FINISHED"
    assert model_uri_of(server.address, run.info.run_id) is not None
    assert "best_val_acc" in run.data.metrics


def test_every_disagreement_is_said_and_repaired(store: Path, tmp_path: Path) -> None:
    """Fifteen kinds of disagreement with Optuna are each one sentence; after a repair there is
    none, and no run, param or metric is gone."""
    uri = f"sqlite:///{tmp_path}/store.db"
    shutil.copyfile(store, tmp_path / "store.db")
    checkpoint = tmp_path / "best.ckpt"
    checkpoint.write_bytes(b"weights")
    info = records.study_info("toy")
    complete = replace(records.finished(5, TrialState.COMPLETE), checkpoint=str(checkpoint))
    tracker = MlflowTracker(uri)
    tracker.open(info)
    tracker.write([
        *a_trial(0),
        records.started(1), *records.epochs(1),
        *a_trial(2),
        *a_trial(3),
        records.started(5), *records.epochs(5), complete,
        records.started(6),
        *a_trial(7),
        records.started(8),
        *[record for n in range(9, 14) for record in a_trial(n)],
    ])  # fmt: skip
    tracker.close()
    client = MlflowClient(uri)
    first = runs_of(uri, "toy")
    ids = {number: run.info.run_id for number, run in first.items()}
    experiment_id = first["0"].info.experiment_id
    second = client.create_run(experiment_id, tags={**first["3"].data.tags})
    client.delete_run(ids["7"])
    shutil.rmtree(Path(first["5"].info.artifact_uri) / "checkpoint")
    client.delete_tag(ids["13"], "sweep.trial")
    client.set_tag(ids["12"], "sweep.state", "COMPLETE")
    query = "DELETE FROM {} WHERE run_uuid = ? AND key = ?"
    with contextlib.closing(sqlite3.connect(tmp_path / "store.db")) as connection, connection:
        connection.execute(query.format("params"), (ids["9"], "lr"))
        connection.execute(query.format("metrics"), (ids["10"], "val_loss"))
        connection.execute(
            "UPDATE metrics SET value = 0.99 WHERE run_uuid = ? AND key = 'best_val_acc'",
            (ids["11"],),
        )
    failed = replace(records.finished(1, TrialState.FAIL), number=1)
    memory = records.Remembered(info, [
        *a_trial(0),
        records.started(1), *records.epochs(1), failed,  # RUNNING in MLflow
        *a_trial(3),  # twice
        *a_trial(4),  # missing; 2 is an orphan
        records.started(5), *records.epochs(5), complete,  # without a checkpoint
        records.started(6), records.finished(6, TrialState.WAITING),  # RUNNING in MLflow
        *a_trial(7),  # deleted by the user: no fault
        records.started(8),
        *[record for n in range(9, 14) for record in a_trial(n)],
    ])  # fmt: skip

    def sentences(**how: bool) -> list[str]:
        found = reconcile_runs(uri, memory, **how)
        assert {one.is_fixed for one in found} <= {how["fix"]}
        return [one.sentence for one in found]

    expected = [
        f"an MLflow run names no trial in its tag sweep.trial: {ids['13']}",
        f"trial 1 is FAIL, but its MLflow run {ids['1']} says RUNNING",
        f"MLflow has a trial 2 that Optuna does not know: {ids['2']}",
        f"trial 3 has a second MLflow run: {second.info.run_id}",
        "trial 4 is PRUNED, but has no MLflow run",
        f"trial 5's MLflow run {ids['5']} lacks checkpoint/best.ckpt",
        f"trial 6 is WAITING, but its MLflow run {ids['6']} says RUNNING",
        f"trial 9's MLflow run {ids['9']} lacks the parameter lr",
        f"trial 10's MLflow run {ids['10']} lacks 3 of 3 points of val_loss",
        f"trial 11's MLflow run {ids['11']} has other values than Optuna: best_val_acc at step 3 "
        "is 0.99, not 0.69",
        f"trial 12's MLflow run {ids['12']} lacks the tag sweep.state",
        "trial 13 is PRUNED, but has no MLflow run",
        f"the study's MLflow run {ids['parent']} says RUNNING, but no driver lives",
    ]
    assert sentences(fix=False) == expected
    assert sentences(fix=False) == expected
    live = sentences(fix=False, is_live=True)
    assert live == [s for s in expected if "trial 6" not in s and "no driver lives" not in s]
    assert sentences(fix=True) == expected
    assert sentences(fix=False) == []
    now = {run.info.run_id: run for run in client.search_runs([experiment_id])}
    for number, run in first.items():
        if number != "7":
            assert now[run.info.run_id].data.params.items() >= run.data.params.items() - {
                ("lr", "0.0012")
            }
            assert run.data.metrics.keys() <= now[run.info.run_id].data.metrics.keys()
    assert now[second.info.run_id].data.tags["sweep.role"] == "orphan"
    assert now[ids["2"]].info.status == "KILLED"
    assert now[ids["1"]].info.status == "FAILED"
    assert now[ids["parent"]].info.status == "FINISHED"
    assert now[ids["11"]].data.tags["sweep.role"] == "orphan"
    assert now[ids["9"]].data.params["lr"] == "0.0012"
    assert run_id_of(uri, "toy", 2) is None
    made = run_id_of(uri, "toy", 4)
    assert made is not None
    assert now[made].data.tags["mlflow.parentRunId"] == ids["parent"]
    assert now[made].data.tags["sweep.recovered"] == "made again from Optuna and the trial's files"
    points = client.get_metric_history(made, "val_acc")
    assert [(point.step, point.value) for point in points] == whole_curve(4)
    nothing = records.Remembered(records.study_info("no-such"), [])
    assert reconcile_runs(uri, nothing, fix=False) == []
    unknown = records.Remembered(records.study_info("no-such"), a_trial(0))
    (said_of_none,) = reconcile_runs(uri, unknown, fix=False)
    assert "no experiment 'no-such'" in said_of_none.sentence
