"""MLflow goes away and comes back: real servers that are killed, real processes, real stores."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import tracking_records as records
from mlflow import MlflowClient
from mlflow_proxy import Answer, Door, Proxy, error
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
from searches import TESTS
from waiting import wait_until

from sweep.errors import StoreError, UndeliveredError
from sweep.repair.reconcile import reconcile_runs
from sweep.tracking import MlflowTracker, Pace
from sweep.tracking.artifacts import artifact_of, model_uri_of
from sweep.trial import Failure, TrialState, WorkerReady


def test_a_server_killed_and_started_two_trials_later_misses_nothing(
    server: Server, tmp_path: Path
) -> None:
    """No point is missing, none doubled, all in order, though the server was killed in the midst
    of the records and two trials went by without it."""
    study = "killed-server"
    tracker = MlflowTracker(server.address, tmp_path / "log", pace=PATIENT)
    tracker.open(records.study_info(study))
    assert tracker.warning is None
    tracker.write(a_trial(0))
    tracker.write([records.started(1), *records.epochs(1, 1, 1)])
    server.kill()
    tracker.write(records.epochs(1, 2))
    tracker.write([records.finished(1, TrialState.PRUNED), *a_trial(2)])
    wait_until(lambda: tracker.is_offline)
    assert "does not answer" in str(tracker.warning)
    assert "kept in the Optuna storage" in str(tracker.warning)
    server.start()
    tracker.write(a_trial(3))
    tracker.write([records.study_finished()])
    tracker.close()
    uri = store_uri(server)
    assert curves(uri, study) == {str(n): whole_curve(n) for n in range(4)}
    assert [runs_of(uri, study)[str(n)].info.status for n in range(4)] == ["FINISHED"] * 4
    assert runs_of(uri, study)["parent"].info.status == "FINISHED"
    assert "answers again" in (tmp_path / "log").read_text()


@pytest.fixture
def door(server: Server) -> Iterator[Door]:
    """A way to the server that a test may close: starting a server anew takes many seconds."""
    door = Door(server.address)
    yield door
    door.close()


def test_an_answer_that_is_lost_makes_no_second_run(
    server: Server, proxy: Proxy, tmp_path: Path
) -> None:
    """Where the server did what it was asked but its answer was lost on the way, the trial has
    one run and one point an epoch all the same."""
    study = "lost-answers"
    tracker = MlflowTracker(proxy.address, pace=PATIENT)
    tracker.open(records.study_info(study))
    proxy.to_lose.update({"runs/create": 1, "runs/log-batch": 2, "runs/update": 1})
    tracker.write([*a_trial(0), *a_trial(1)])
    tracker.close()
    assert not any(proxy.to_lose.values())
    assert curves(store_uri(server), study) == {str(n): whole_curve(n) for n in range(2)}


def test_an_answer_that_is_lost_before_an_outage_makes_no_second_run(
    server: Server, proxy: Proxy, tmp_path: Path
) -> None:
    """The runs are read again once the server is back."""
    study, left = "lost-then-away", {"calls": 3}

    def away(call: str, body: str) -> Answer | None:
        if proxy.to_lose.get("runs/create") != 0 or not left["calls"]:
            return None
        left["calls"] -= 1
        return 503, error("TEMPORARILY_UNAVAILABLE")

    tracker = MlflowTracker(proxy.address, pace=PATIENT)
    tracker.open(records.study_info(study))
    proxy.to_lose.update({"runs/create": 1})
    proxy.rule = away
    tracker.write(a_trial(0))
    tracker.close()
    assert (left["calls"], proxy.to_lose["runs/create"]) == (0, 0)
    assert curves(store_uri(server), study) == {"0": whole_curve(0)}


def test_a_known_study_starts_without_its_server_and_the_next_run_delivers(
    server: Server, door: Door, tmp_path: Path
) -> None:
    """A new study needs the server. One that MLflow knows goes on without it, says so, ends with
    UndeliveredError, and the next run brings every trial, the parent RUNNING at its end."""
    study = "offline"
    door.close()
    tracker = MlflowTracker(door.address, pace=FAST)
    with pytest.raises(StoreError, match="cannot be reached"):
        tracker.open(records.study_info(study))
    tracker.close()
    door.open()
    tracker = MlflowTracker(door.address, pace=PATIENT)
    tracker.open(records.study_info(study))
    first = [*a_trial(0), records.started(1), *records.epochs(1, 1, 1)]
    tracker.write(first)
    tracker.close()
    door.close()
    tracker = MlflowTracker(door.address, pace=FAST)
    tracker.open(records.study_info(study, is_known=True))
    assert tracker.is_offline
    # The checkpoint was of no epoch: the first is trained, and reported, again.
    again = [records.started(1), *records.epochs(1, 1, delay=7)]
    again += [records.finished(1, TrialState.PRUNED), *a_trial(2)]
    tracker.write([*again, records.study_finished(reason="interrupted")])
    with pytest.raises(
        UndeliveredError, match=r"^MLflow lacks records of trials 1, 2 and the study "
    ):
        tracker.close()
    door.open()
    info = records.study_info(study, is_known=True)
    tracker = MlflowTracker(door.address, pace=PATIENT)
    tracker.open(info)
    assert not tracker.is_offline
    assert bring_up(door.address, info, [*first, *again], is_live=True) == []
    tracker.write(a_trial(3))
    tracker.close()
    uri = store_uri(server)
    assert curves(uri, study) == {str(n): whole_curve(n) for n in range(4)}
    assert runs_of(uri, study)["parent"].info.status == "RUNNING"


def test_what_waits_is_delivered_without_a_search(
    server: Server, door: Door, tmp_path: Path, model: records.Trained
) -> None:
    """Results, files and models of a study that is done come with a repair, once."""
    study = "pending"
    tracker = MlflowTracker(door.address, pace=FAST)
    tracker.open(records.study_info(study, dataset=None))
    tracker.write([WorkerReady(records.DATASET, "cpu", 4, records.START_MS)])
    wait_until(lambda: "sweep.device" in runs_of(store_uri(server), study)["parent"].data.tags)
    door.close()
    written = [records.started(0), *records.epochs(0)]
    written += [records.finished(0, TrialState.COMPLETE, model), records.study_finished()]
    tracker.write(written)
    with pytest.raises(UndeliveredError, match="lacks records of trial 0 and the study itself"):
        tracker.close()
    info = records.study_info(study)
    with pytest.raises(StoreError):
        bring_up(door.address, info, written)
    door.open()
    assert bring_up(door.address, info, written) == []
    memory = records.Remembered(info, written)
    assert reconcile_runs(door.address, memory, fix=False) == []
    uri = store_uri(server)
    runs = runs_of(uri, study)
    assert (runs["0"].info.status, runs["parent"].info.status) == ("FINISHED", "FINISHED")
    assert curves(uri, study) == {"0": whole_curve(0)}
    assert model_uri_of(door.address, runs["0"].info.run_id) is not None
    file = artifact_of(
        door.address, runs["0"].info.run_id, "checkpoint/best.ckpt", tmp_path / "got"
    )
    assert file.read_bytes() == Path(model.checkpoint).read_bytes()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> records.Trained:
    folder = tmp_path_factory.mktemp("model")
    return records.trained(folder)


@pytest.mark.parametrize("after_s", [0.0, 0.3])
def test_a_killed_driver_leaves_its_records(store: Path, tmp_path: Path, after_s: float) -> None:
    """Whatever moment a driver is killed at, the next one brings each trial that the ledger has,
    one run a trial, one point an epoch, each run with its own end."""
    uri = f"sqlite:///{tmp_path}/store.db"
    shutil.copyfile(store, tmp_path / "store.db")
    code = """if True:
        import os, signal, sys, time
        sys.path.insert(0, sys.argv[1])
        import tracking_records as r
        from sweep.tracking import MlflowTracker, Pace
        from sweep.trial import TrialState
        tracker = MlflowTracker(sys.argv[2], pace=Pace(flush_s=0.1))
        tracker.open(r.study_info("killed"))
        for n in range(12):
            tracker.write([r.started(n), *r.epochs(n), r.finished(n, TrialState.PRUNED)])
        time.sleep(float(sys.argv[3]))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run(
        [sys.executable, "-c", code, str(TESTS), uri, str(after_s)],
        env={**os.environ, "PYTHONPATH": str(TESTS.parent)}, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    written = [record for n in range(12) for record in a_trial(n)]
    assert bring_up(uri, records.study_info("killed"), written) == []
    runs = runs_of(uri, "killed")
    assert curves(uri, "killed") == {str(n): whole_curve(n) for n in range(12)}
    ends = {runs[str(n)].info.end_time for n in range(12)}
    assert ends == {records.START_MS + 60_000 + n for n in range(12)}
    assert {runs[str(n)].info.status for n in range(12)} == {"FINISHED"}
    assert runs["parent"].info.status == "FINISHED"
    memory = records.Remembered(records.study_info("killed"), written)
    assert reconcile_runs(uri, memory, fix=False) == []


def test_an_end_that_is_told_twice_is_there_once(store: Path, tmp_path: Path) -> None:
    """A trial whose end is told again, with another time and without its files, keeps its points,
    its end and its checkpoint."""
    uri = f"sqlite:///{tmp_path}/store.db"
    shutil.copyfile(store, tmp_path / "store.db")
    checkpoint = tmp_path / "best.ckpt"
    checkpoint.write_bytes(b"weights")
    end = replace(records.finished(0, TrialState.COMPLETE), checkpoint=str(checkpoint))
    written = [records.started(0), *records.epochs(0), end]
    for again in range(2):
        tracker = MlflowTracker(uri)
        tracker.open(records.study_info("twice"))
        tracker.write([*written[:-1], replace(end, time_ms=end.time_ms + again)])
        tracker.close()
        checkpoint.unlink(missing_ok=True)
    client, run = MlflowClient(uri), runs_of(uri, "twice")["0"]
    for key in run.data.metrics:
        steps = [point.step for point in client.get_metric_history(run.info.run_id, key)]
        assert len(steps) == len(set(steps)), key
    kept = artifact_of(uri, run.info.run_id, "checkpoint/best.ckpt", tmp_path)
    assert kept.read_bytes() == b"weights"


def test_a_password_is_nowhere(server: Server, door: Door, tmp_path: Path) -> None:
    """With user and password in the address, and the server gone in between, no log, no message
    and nothing in the store has either."""
    secret = "hunter2-secret"
    address = door.address.replace("//", f"//heimlich:{secret}@")
    study = "secret"
    pace = Pace(flush_s=0.05, first_retry_s=0.05, retry_s=0.2, grace_s=0.3)
    tracker = MlflowTracker(address, tmp_path / "log", pace=pace)
    tracker.open(records.study_info(study))
    failure = Failure("exception", f"no answer from {address}/x", f"Traceback {address}/x\n")
    failed = replace(records.finished(0, TrialState.FAIL), failure=failure)
    tracker.write([records.started(0), failed])
    logging.getLogger("mlflow").warning("MLflow itself speaks of %s", address)
    wait_until(lambda: statuses(server, study).get("0") == "FAILED")
    door.close()
    tracker.write([*a_trial(1), records.started(2), replace(failed, number=2)])
    wait_until(lambda: tracker.is_offline)
    said = [str(tracker.warning)]
    with pytest.raises(UndeliveredError) as caught:
        tracker.close()
    said.append("".join(traceback.format_exception(caught.value)))
    tracker = MlflowTracker(address, tmp_path / "log", pace=FAST)
    tracker.open(records.study_info(study, is_known=True))
    said.append(str(tracker.warning))
    with pytest.raises(UndeliveredError) as caught:
        tracker.close()
    said.append("".join(traceback.format_exception(caught.value)))
    door.open()
    written = [records.started(0), failed, *a_trial(1)]
    bring_up(address, records.study_info(study), written, log_file=tmp_path / "log")
    files = [f for f in (tmp_path, server.folder) for f in f.rglob("*") if f.is_file()]
    assert {"log", "store.db", "traceback.txt"} <= {f.name for f in files}
    for file in files:
        assert secret.encode() not in file.read_bytes(), file
        assert b"heimlich" not in file.read_bytes(), file
    assert not [line for line in said if secret in line or "heimlich" in line]
