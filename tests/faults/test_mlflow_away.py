"""MLflow goes away and comes back: real servers that are killed, real processes, real stores."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tracking_records as records
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow_proxy import Answer, Door, Proxy, error, proxy_of, refusing
from searches import TESTS, Call, inline
from waiting import wait_until

from sweep.errors import StoreError, UndeliveredError
from sweep.repair.reconcile import reconcile_runs
from sweep.tracking import MlflowTracker, Pace
from sweep.tracking.artifacts import artifact_of, model_uri_of, run_id_of
from sweep.trial import (
    Failure,
    Record,
    StudyInfo,
    TrialState,
    WorkerReady,
)

FAST = Pace(flush_s=0.05, first_retry_s=0.05, retry_s=0.2, grace_s=0.5)
PATIENT = Pace(flush_s=0.05, first_retry_s=0.05, retry_s=0.2, grace_s=30.0)


class Server:
    """An `mlflow server` on one port and one store, to be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        env = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
        env |= {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        command = ["server", "--backend-store-uri", "sqlite:///store.db", "--workers", "1"]
        log_file = self.folder / "server.log"
        with log_file.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", *command, "--port", str(self.port)],
                cwd=self.folder, env=env, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        records._wait_for(self.address, self._process, log_file)

    def kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)
            self._process = None


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    """A store with no study in a folder of its own."""
    return Path(shutil.copyfile(empty_store, tmp_path_factory.mktemp("store") / "store.db"))


@pytest.fixture(scope="module")
def server(store: Path) -> Iterator[Server]:
    """One server for the module; a test that kills it starts it again."""
    server = Server(store.parent)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def store_uri(server: Server) -> str:
    return f"sqlite:///{server.folder}/store.db"


def runs_of(uri: str, study: str) -> dict[str, Run]:
    """Each run of a study under its number; two of one number fail."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(study)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    by_number = {run.data.tags.get("sweep.trial", "parent"): run for run in found}
    assert len(by_number) == len(found), "two runs of one trial"
    return by_number


def curves(uri: str, study: str) -> dict[str, list[tuple[int, float]]]:
    """Every trial's val_acc as (epoch, value), in the order of the store."""
    client = MlflowClient(uri)
    return {
        number: [(p.step, p.value) for p in client.get_metric_history(run.info.run_id, "val_acc")]
        for number, run in runs_of(uri, study).items()
        if number != "parent"
    }


def whole_curve(number: int, last: int = records.N_EPOCHS) -> list[tuple[int, float]]:
    return [(e, records.metrics(number, e)["val_acc"]) for e in range(1, last + 1)]


def a_trial(number: int) -> list[Record]:
    return [
        records.started(number),
        *records.epochs(number),
        records.finished(number, TrialState.PRUNED),
    ]


def bring_up(uri: str, study: StudyInfo, written: list[Record], **how: Any) -> list[str]:
    """What the next search does: MLflow brought up to what the ledger has; what is left."""
    memory = records.Remembered(study, written)
    found = reconcile_runs(uri, memory, fix=True, is_deep=False, **how)
    return [one.sentence for one in found if not one.is_fixed]


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
def proxy(server: Server) -> Iterator[Proxy]:
    """A proxy before the server that refuses nothing yet."""
    with proxy_of(server.address) as proxy:
        yield proxy


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


def statuses(server: Server, study: str) -> dict[str, str]:
    return {number: run.info.status for number, run in runs_of(store_uri(server), study).items()}


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
