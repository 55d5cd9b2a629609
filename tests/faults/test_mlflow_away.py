"""MLflow goes away and comes back: real servers that are killed, real processes, real stores."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

import tracking_records as records  # noqa: E402
from mlflow_proxy import Answer, Proxy, error, proxy_of, refusing  # noqa: E402
from searches import Call, sweep  # noqa: E402

from sweep.errors import StoreError, UndeliveredError  # noqa: E402
from sweep.recollection import Recollection  # noqa: E402
from sweep.tracking import (  # noqa: E402
    MlflowTracker,
    Pace,
    artifact_of,
    deliver_pending,
    model_uri_of,
    reconcile_runs,
    run_id_of,
    waiting_numbers,
)
from sweep.tracking.disposal import DROPPED_TAG  # noqa: E402
from sweep.tracking.spool import Spool  # noqa: E402
from sweep.trial import (  # noqa: E402
    CheckpointDropped,
    Failure,
    Record,
    StudyFinished,
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
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with no study, made once."""
    folder = tmp_path_factory.mktemp("store")
    tracker = MlflowTracker(f"sqlite:///{folder}/store.db")
    tracker.open(records.study_info("other"))
    tracker.close()
    return folder / "store.db"


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


def wait_until(condition: Any, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def test_a_server_killed_and_started_two_trials_later_misses_nothing(
    server: Server, tmp_path: Path
) -> None:
    """No point is missing, none doubled, all in order, though the server was killed in the midst
    of the records and two trials went by without it."""
    study = "killed-server"
    tracker = MlflowTracker(server.address, tmp_path / "log", study_dir=tmp_path, pace=PATIENT)
    tracker.open(records.study_info(study))
    assert tracker.warning is None
    tracker.write(a_trial(0))
    tracker.write([records.started(1), *records.epochs(1, 1, 1)])
    server.kill()
    tracker.write(records.epochs(1, 2))
    tracker.write([records.finished(1, TrialState.PRUNED), *a_trial(2)])
    wait_until(lambda: tracker.is_offline)
    assert "does not answer" in str(tracker.warning)
    assert str(tmp_path / "spool.jsonl") in str(tracker.warning)
    server.start()
    tracker.write(a_trial(3))
    tracker.write([records.study_finished()])
    tracker.close()
    uri = store_uri(server)
    assert curves(uri, study) == {str(n): whole_curve(n) for n in range(4)}
    assert [runs_of(uri, study)[str(n)].info.status for n in range(4)] == ["KILLED"] * 4
    assert runs_of(uri, study)["parent"].info.status == "FINISHED"
    assert (tmp_path / "spool.jsonl").stat().st_size == 0
    assert "answers again" in (tmp_path / "log").read_text()


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    """A proxy before the server that refuses nothing yet."""
    with proxy_of(server.address) as proxy:
        yield proxy


def test_an_answer_that_is_lost_makes_no_second_run(
    server: Server, proxy: Proxy, tmp_path: Path
) -> None:
    """Where the server did what it was asked but its answer was lost on the way, the trial has
    one run and one point an epoch all the same."""
    study = "lost-answers"
    tracker = MlflowTracker(proxy.address, study_dir=tmp_path, pace=PATIENT)
    tracker.open(records.study_info(study))
    proxy.to_lose.update({"runs/create": 1, "runs/log-batch": 2, "runs/update": 1})
    tracker.write([*a_trial(0), *a_trial(1)])
    tracker.close()
    assert not any(proxy.to_lose.values())
    assert curves(store_uri(server), study) == {str(n): whole_curve(n) for n in range(2)}


def test_a_known_study_starts_without_its_server_and_the_next_run_delivers(
    server: Server, tmp_path: Path
) -> None:
    """A new study needs the server. One that was opened before goes on without it, says so, ends
    with UndeliveredError, and the next run brings every record, the parent RUNNING at its end."""
    study = "offline"
    server.kill()
    tracker = MlflowTracker(server.address, study_dir=tmp_path, pace=FAST)
    with pytest.raises(StoreError, match="cannot be reached"):
        tracker.open(records.study_info(study))
    tracker.close()
    server.start()
    tracker = MlflowTracker(server.address, study_dir=tmp_path, pace=PATIENT)
    tracker.open(records.study_info(study))
    tracker.write([*a_trial(0), records.started(1), *records.epochs(1, 1, 1)])
    tracker.close()
    server.kill()
    tracker = MlflowTracker(server.address, study_dir=tmp_path, pace=FAST)
    tracker.open(records.study_info(study, time_ms=records.START_MS + 1))
    assert tracker.is_offline
    # The checkpoint was of no epoch: the first is trained, and reported, again.
    tracker.write([records.started(1), *records.epochs(1, 1, delay=7)])
    tracker.write([records.finished(1, TrialState.PRUNED), *a_trial(2)])
    tracker.write([records.study_finished(reason="interrupted")])
    with pytest.raises(UndeliveredError, match=r"12 records for MLflow wait in .*spool\.jsonl"):
        tracker.close()
    server.start()
    tracker = MlflowTracker(server.address, study_dir=tmp_path, pace=PATIENT)
    tracker.open(records.study_info(study, time_ms=records.START_MS + 2))
    assert not tracker.is_offline
    tracker.write(a_trial(3))
    tracker.close()
    uri = store_uri(server)
    assert curves(uri, study) == {str(n): whole_curve(n) for n in range(4)}
    assert runs_of(uri, study)["parent"].info.status == "RUNNING"
    # Another store is no place where this study was opened.
    elsewhere = MlflowTracker("http://127.0.0.1:9", study_dir=tmp_path, pace=FAST)
    with pytest.raises(StoreError, match="cannot be reached"):
        elsewhere.open(records.study_info(study))


def test_what_waits_is_delivered_without_a_search(
    server: Server, tmp_path: Path, model: records.Trained
) -> None:
    """deliver_pending brings results, files and models of a study that is done, leaves the parent
    as its last record says, and returns their number; then there is nothing to do."""
    study = "pending"
    tracker = MlflowTracker(server.address, study_dir=tmp_path, pace=FAST)
    tracker.open(records.study_info(study, dataset=None))
    tracker.write([WorkerReady(records.DATASET, "cpu", 4, records.START_MS)])
    wait_until(lambda: (tmp_path / "spool.cursor").exists())
    server.kill()
    tracker.write([records.started(0), *records.epochs(0)])
    tracker.write([records.finished(0, TrialState.COMPLETE, model), records.study_finished()])
    with pytest.raises(UndeliveredError):
        tracker.close()
    with pytest.raises(UndeliveredError, match="6 records for MLflow wait"):
        deliver_pending(server.address, tmp_path, pace=FAST)
    server.start()
    assert deliver_pending(server.address, tmp_path, pace=PATIENT) == 6
    assert deliver_pending(server.address, tmp_path, pace=PATIENT) == 0
    assert deliver_pending(server.address, tmp_path / "nothing") == 0
    uri = store_uri(server)
    runs = runs_of(uri, study)
    assert (runs["0"].info.status, runs["parent"].info.status) == ("FINISHED", "FINISHED")
    assert curves(uri, study) == {"0": whole_curve(0)}
    assert model_uri_of(server.address, runs["0"].info.run_id) is not None
    file = artifact_of(
        server.address, runs["0"].info.run_id, "checkpoint/best.ckpt", tmp_path / "got"
    )
    assert file.read_bytes() == Path(model.checkpoint).read_bytes()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> records.Trained:
    folder = tmp_path_factory.mktemp("model")
    return records.trained(folder)


@pytest.mark.parametrize("after_s", [0.0, 0.3])
def test_a_killed_driver_leaves_its_records(store: Path, tmp_path: Path, after_s: float) -> None:
    """Whatever moment a driver is killed at, the next one brings each record that was written,
    one run a trial, one point an epoch; a run that is done keeps status and end."""
    uri = f"sqlite:///{tmp_path}/store.db"
    shutil.copyfile(store, tmp_path / "store.db")
    code = """if True:
        import os, signal, sys, time
        sys.path.insert(0, sys.argv[1])
        import tracking_records as r
        from pathlib import Path
        from sweep.tracking import MlflowTracker, Pace
        from sweep.trial import TrialState
        tracker = MlflowTracker(sys.argv[2], study_dir=Path(sys.argv[3]), pace=Pace(flush_s=0.1))
        tracker.open(r.study_info("killed"))
        for n in range(12):
            tracker.write([r.started(n), *r.epochs(n), r.finished(n, TrialState.PRUNED)])
        time.sleep(float(sys.argv[4]))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run(
        [sys.executable, "-c", code, str(TESTS), uri, str(tmp_path / "study"), str(after_s)],
        env={**os.environ, "PYTHONPATH": str(TESTS.parent)}, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    tracker = MlflowTracker(uri, study_dir=tmp_path / "study")
    tracker.open(records.study_info("killed", time_ms=records.START_MS + 1))
    tracker.write([records.study_finished()])
    tracker.close()
    runs = runs_of(uri, "killed")
    assert curves(uri, "killed") == {str(n): whole_curve(n) for n in range(12)}
    ends = {runs[str(n)].info.end_time for n in range(12)}
    assert ends == {records.START_MS + 60_000 + n for n in range(12)}
    assert {runs[str(n)].info.status for n in range(12)} == {"KILLED"}
    assert runs["parent"].info.status == "FINISHED"


@pytest.mark.parametrize("n_delivered", [0, 4])
def test_a_cursor_that_lags_doubles_nothing(store: Path, tmp_path: Path, n_delivered: int) -> None:
    """Records that are delivered a second time, after a trial failed and was tried again and its
    files are gone, change neither status nor end nor curve and are no loss."""
    uri = f"sqlite:///{tmp_path}/store.db"
    shutil.copyfile(store, tmp_path / "store.db")
    checkpoint = tmp_path / "best.ckpt"
    checkpoint.write_bytes(b"weights")
    retried = records.finished(0, TrialState.COMPLETE)
    written = [
        records.started(0), *records.epochs(0, 1, 2), records.finished(0, TrialState.FAIL),
        records.started(0), *records.epochs(0, 1, 3, delay=9),
        replace(retried, time_ms=10**13, checkpoint=str(checkpoint)),
    ]  # fmt: skip
    tracker = MlflowTracker(uri, study_dir=tmp_path / "study")
    tracker.open(records.study_info("lag"))
    tracker.write(written)
    tracker.close()
    before = state_of(uri, "lag")
    checkpoint.unlink()
    spool = Spool(tmp_path / "study")
    spool.append(written[n_delivered:])
    spool.close()
    tracker = MlflowTracker(uri, study_dir=tmp_path / "study")
    tracker.open(records.study_info("lag", time_ms=records.START_MS + 1))
    tracker.close()
    assert state_of(uri, "lag") == before
    assert before[0]["0"][:2] == ("FINISHED", 10**13)


def state_of(uri: str, study: str) -> Any:
    runs = runs_of(uri, study)
    values = {k: (r.info.status, r.info.end_time, r.info.run_id) for k, r in runs.items()}
    return values, curves(uri, study)


def test_a_password_is_nowhere(server: Server, tmp_path: Path) -> None:
    """With user and password in the address, and the server gone in between, no file of the
    study, no log and nothing in the store has either."""
    secret = "hunter2-secret"
    address = server.address.replace("//", f"//heimlich:{secret}@")
    study = "secret"
    pace = Pace(flush_s=0.05, first_retry_s=0.05, retry_s=0.2, grace_s=0.3)
    tracker = MlflowTracker(address, tmp_path / "log", study_dir=tmp_path / "s", pace=pace)
    tracker.open(records.study_info(study))
    failure = Failure("exception", f"no answer from {address}/x", f"Traceback {address}/x\n")
    failed = replace(records.finished(0, TrialState.FAIL), failure=failure)
    tracker.write([records.started(0), failed])
    logging.getLogger("mlflow").warning("MLflow itself speaks of %s", address)
    wait_until(lambda: (tmp_path / "s" / "spool.cursor").exists())
    server.kill()
    tracker.write([*a_trial(1), replace(failed, number=1)])
    wait_until(lambda: tracker.is_offline)
    said = [str(tracker.warning)]
    with pytest.raises(UndeliveredError) as caught:
        tracker.close()
    said.append("".join(traceback.format_exception(caught.value)))
    tracker = MlflowTracker(address, tmp_path / "log", study_dir=tmp_path / "s", pace=FAST)
    tracker.open(records.study_info(study))
    said.append(str(tracker.warning))
    with pytest.raises(UndeliveredError) as caught:
        tracker.close()
    said.append("".join(traceback.format_exception(caught.value)))
    files = [f for f in (tmp_path, server.folder) for f in f.rglob("*") if f.is_file()]
    assert {"spool.jsonl", "tracking.json", "log", "store.db", "traceback.txt"} <= {
        f.name for f in files
    }
    server.start()
    deliver_pending(address, tmp_path / "s", tmp_path / "log", pace=PATIENT)
    files += [f for f in (tmp_path, server.folder) for f in f.rglob("*") if f.is_file()]
    for file in files:
        if file.is_file():
            assert secret.encode() not in file.read_bytes(), file
            assert b"heimlich" not in file.read_bytes(), file
    assert not [line for line in said if secret in line or "heimlich" in line]
    modes = {f.name: oct(f.stat().st_mode & 0o777) for f in (tmp_path / "s").iterdir()}
    assert set(modes.values()) == {"0o600"}


def statuses(server: Server, study: str) -> dict[str, str]:
    return {number: run.info.status for number, run in runs_of(store_uri(server), study).items()}


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("always-500", (500, error("INTERNAL_ERROR"))),
        ("always-502", (502, "<html>Bad Gateway</html>")),
        ("always-403", (403, error("PERMISSION_DENIED"))),
    ],
)
def test_a_trial_that_is_refused_again_and_again_holds_up_no_other(
    server: Server, proxy: Proxy, tmp_path: Path, name: str, answer: Answer
) -> None:
    """Its records are set aside, in order and once each, and said in one line; the others pass
    meanwhile. They are tried again by the next delivery, and arrive when they are taken."""
    refused = tmp_path / "refused.jsonl"
    proxy.rule = refusing(answer, trial=1)
    tracker = MlflowTracker(proxy.address, tmp_path / "log", study_dir=tmp_path, pace=FAST)
    tracker.open(records.study_info(name))
    tracker.write([records.started(1), *records.epochs(1, 1, 1), *a_trial(0)])
    wait_until(lambda: statuses(server, name).get("0") == "KILLED")
    wait_until(refused.is_file)
    assert not tracker.is_offline
    ended = [records.finished(1, TrialState.PRUNED), CheckpointDropped(1, records.START_MS)]
    tracker.write([*records.epochs(1, 2), *ended, *a_trial(2)])
    with pytest.raises(UndeliveredError) as caught:
        tracker.close()
    said = str(caught.value)
    assert said.startswith(f"6 records of trial 1 that MLflow refused wait in {refused}: ")
    assert "\n" not in said
    assert refused.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "spool.jsonl").stat().st_size == 0
    assert statuses(server, name) == {"parent": "RUNNING", "0": "KILLED", "2": "KILLED"}

    n_refused = proxy.n_refused
    assert n_refused == 5, "later records of the trial went straight to the file"
    with pytest.raises(UndeliveredError, match="6 records of trial 1 that MLflow refused"):
        deliver_pending(proxy.address, tmp_path, pace=FAST)
    assert proxy.n_refused == n_refused + 2
    tracker = MlflowTracker(proxy.address, tmp_path / "log", study_dir=tmp_path, pace=FAST)
    tracker.open(records.study_info(name, time_ms=records.START_MS + 1))
    tracker.write(a_trial(3))
    with pytest.raises(UndeliveredError, match="6 records of trial 1 that MLflow refused"):
        tracker.close()
    assert proxy.n_refused == n_refused + 2, "it waits for the next delivery"

    proxy.rule = lambda call, body: None
    assert deliver_pending(proxy.address, tmp_path, pace=FAST) == 6
    assert deliver_pending(proxy.address, tmp_path, pace=FAST) == 0
    assert not refused.exists()
    assert curves(store_uri(server), name) == {str(n): whole_curve(n) for n in range(4)}
    assert set(statuses(server, name).values()) == {"RUNNING", "KILLED"}
    assert DROPPED_TAG in runs_of(store_uri(server), name)["1"].data.tags


def test_the_studys_own_records_may_be_refused(
    server: Server, proxy: Proxy, tmp_path: Path
) -> None:
    """Trials pass while the study's run takes nothing; its end comes with the next delivery."""
    study = "parent-refused"
    tracker = MlflowTracker(proxy.address, study_dir=tmp_path, pace=FAST)
    tracker.open(records.study_info(study))
    parent = tracker.parent_run_id
    proxy.rule = lambda call, body: (500, "") if parent in body and "runs/log" in call else None
    ready = WorkerReady(records.DATASET, "cpu", 4, records.START_MS)
    tracker.write([ready, *a_trial(0), records.study_finished()])
    with pytest.raises(UndeliveredError, match="2 records of the study that MLflow refused"):
        tracker.close()
    assert statuses(server, study) == {"parent": "RUNNING", "0": "KILLED"}
    proxy.rule = lambda call, body: None
    assert deliver_pending(proxy.address, tmp_path, pace=FAST) == 2
    assert statuses(server, study) == {"parent": "FINISHED", "0": "KILLED"}


def test_records_in_both_files_count_once(server: Server, tmp_path: Path) -> None:
    """A driver that was killed after it set records aside leaves them in the spool as well."""
    study = "both"
    tracker = MlflowTracker(server.address, study_dir=tmp_path, pace=FAST)
    tracker.open(records.study_info(study))
    tracker.close()
    for name, written in (
        ("refused.jsonl", a_trial(1)),
        ("spool.jsonl", [*a_trial(0), *a_trial(1)]),
    ):
        spool = Spool(tmp_path, name=name)
        spool.append(written)
        spool.close()
    assert waiting_numbers(tmp_path) == {0, 1}
    assert deliver_pending(server.address, tmp_path, pace=FAST) == 15
    assert curves(store_uri(server), study) == {str(n): whole_curve(n) for n in range(2)}
    assert statuses(server, study) == {"parent": "RUNNING", "0": "KILLED", "1": "KILLED"}
    assert waiting_numbers(tmp_path) == set()


def test_a_record_that_no_store_takes_is_dropped(
    server: Server, proxy: Proxy, tmp_path: Path
) -> None:
    """What MLflow calls an invalid value is asked for once, counted, and never tried again."""
    study = "invalid"
    proxy.rule = refusing((400, error("INVALID_PARAMETER_VALUE")), trial=1)
    tracker = MlflowTracker(proxy.address, study_dir=tmp_path, pace=FAST)
    tracker.open(records.study_info(study))
    tracker.write([records.started(1), *a_trial(0)])
    with pytest.raises(UndeliveredError, match=r"^1 record could not be delivered to MLflow: "):
        tracker.close()
    assert proxy.n_refused == 1
    assert [f.name for f in tmp_path.iterdir() if f.stat().st_size] == ["tracking.json"]
    assert statuses(server, study)["0"] == "KILLED"


def test_a_passing_refusal_is_no_loss(server: Server, proxy: Proxy, tmp_path: Path) -> None:
    """Three errors of the server in a row: everything arrives, in order, without a word."""
    study, left = "passing", [3]
    refuse = refusing((500, error("INTERNAL_ERROR")), trial=1)

    def rule(call: str, body: str) -> Answer | None:
        refusal = refuse(call, body) if left[0] else None
        left[0] -= refusal is not None
        return refusal

    proxy.rule = rule
    tracker = MlflowTracker(proxy.address, study_dir=tmp_path, pace=FAST)
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
    tracker = MlflowTracker(proxy.address, study_dir=tmp_path, pace=PATIENT)
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
    """`sweep run` ends with exit code 7 and one line, `sweep doctor` says what waits and --fix
    brings it, with its checkpoint and model; no repair comes before the records."""
    command = ("--study", "doctored", "--trials", "3", "--epochs", "2", "--population", "1")
    where = ("--tracking-uri", proxy.address)
    proxy.rule = refusing((500, error("INTERNAL_ERROR")), trial=1)
    done = sweep(tmp_path, "run", *command, *where)
    assert (done.returncode, len(done.stderr.splitlines())) == (7, 1)
    assert "records of trial 1 that MLflow refused" in done.stderr
    code, out, _ = call("doctor", *where)
    assert (code, out.count("found: ")) == (1, 1)
    assert "refused.jsonl: 4" in out
    code, out, _ = call("doctor", *where, "--fix")
    assert (code, out.count("found: "), "that MLflow refused" in out) == (1, 1, True)
    proxy.rule = lambda call, body: None
    code, out, _ = call("doctor", *where, "--fix")
    assert (code, out.splitlines()[0]) == (
        0,
        "repaired: 4 records waited to be delivered to MLflow",
    )
    code, out, _ = call("doctor", *where)
    assert (code, out.strip()) == (0, "doctored: 0 disagreements, 0 left")
    run = runs_of(store_uri(server), "doctored")["1"]
    assert run.info.status == "FINISHED"
    assert model_uri_of(server.address, run.info.run_id) is not None
    assert "best_val_acc" in run.data.metrics


@dataclass(frozen=True)
class Toy:
    """What is known of the toy study beside MLflow: records, and one kept checkpoint."""

    kept: Path

    def checkpoint(self, number: int) -> Path | None:
        return self.kept if number == 5 else None

    def study(self) -> StudyInfo:
        return records.study_info("toy")

    def trial(self, number: int) -> Recollection:
        state = TrialState.FAIL if number == 1 else TrialState.PRUNED
        told = records.finished(number, state)
        return Recollection(records.started(number), records.epochs(number), told, ["its mind"])

    def end(self) -> StudyFinished:
        return records.study_finished()


def test_every_disagreement_is_said_and_repaired(store: Path, tmp_path: Path) -> None:
    """Ten kinds of disagreement with Optuna are each one sentence; after a repair there is none,
    and no run, param or metric is gone."""
    uri = f"sqlite:///{tmp_path}/store.db"
    shutil.copyfile(store, tmp_path / "store.db")
    checkpoint = tmp_path / "kept.ckpt"
    checkpoint.write_bytes(b"weights")
    tracker = MlflowTracker(uri)
    tracker.open(records.study_info("toy"))
    tracker.write([
        *a_trial(0),
        records.started(1), *records.epochs(1),
        *a_trial(2),
        *a_trial(3),
        records.started(5), records.finished(5, TrialState.COMPLETE),
        records.started(6),
        *a_trial(7),
        records.started(8),
    ])  # fmt: skip
    tracker.close()
    client = MlflowClient(uri)
    first = runs_of(uri, "toy")
    experiment_id = first["0"].info.experiment_id
    tags = {**first["3"].data.tags}
    second = client.create_run(experiment_id, tags=tags)
    client.delete_run(first["7"].info.run_id)
    states = {
        0: TrialState.PRUNED,
        1: TrialState.FAIL,  # RUNNING in MLflow
        3: TrialState.PRUNED,  # twice
        4: TrialState.PRUNED,  # missing; 2 is an orphan
        5: TrialState.COMPLETE,  # without a checkpoint
        6: TrialState.WAITING,  # RUNNING in MLflow
        7: TrialState.PRUNED,  # deleted by the user: no fault
        8: TrialState.RUNNING,
    }
    memory = Toy(checkpoint)

    def sentences(**how: bool) -> list[str]:
        found = reconcile_runs(uri, "toy", states, memory, **how)
        assert {one.is_fixed for one in found} <= {how["fix"]}
        return [one.sentence for one in found]

    said = sentences(fix=False)
    expected = [
        f"trial 1 is FAIL, but its MLflow run {first['1'].info.run_id} says RUNNING",
        f"MLflow has a trial 2 that Optuna does not know: {first['2'].info.run_id}",
        f"trial 3 has a second MLflow run: {second.info.run_id}",
        "trial 4 is PRUNED, but has no MLflow run",
        f"trial 5 is COMPLETE, but its MLflow run {first['5'].info.run_id} has no "
        "checkpoint/best.ckpt",
        f"trial 6 is WAITING, but its MLflow run {first['6'].info.run_id} says RUNNING",
        f"the study's MLflow run {first['parent'].info.run_id} says RUNNING, but no driver lives",
    ]
    assert said == expected
    assert sentences(fix=False) == expected
    live = sentences(fix=False, is_live=True)
    assert live == [s for s in expected if "trial 6" not in s and "no driver lives" not in s]
    fixed = reconcile_runs(uri, "toy", states, memory, fix=True)
    (partly,) = [one.sentence for one in fixed if not one.is_fixed]
    assert partly == f"{expected[3]}; made again, but for its mind"
    assert [one.sentence.partition(";")[0] for one in fixed] == expected
    assert sentences(fix=False) == []
    now = {run.info.run_id: run for run in client.search_runs([experiment_id])}
    for number, run in first.items():
        if number != "7":
            assert now[run.info.run_id].data.params == run.data.params
            assert run.data.metrics.items() <= now[run.info.run_id].data.metrics.items()
    assert now[second.info.run_id].info.status == "KILLED"
    assert now[second.info.run_id].data.tags["sweep.role"] == "orphan"
    assert now[first["2"].info.run_id].info.status == "KILLED"
    assert now[first["1"].info.run_id].info.status == "FAILED"
    assert now[first["parent"].info.run_id].info.status == "FINISHED"
    assert run_id_of(uri, "toy", 2) is None
    made = run_id_of(uri, "toy", 4)
    assert made is not None
    assert now[made].data.tags["mlflow.parentRunId"] == first["parent"].info.run_id
    assert now[made].data.tags["sweep.recovered"].endswith("without its mind")
    points = client.get_metric_history(made, "val_acc")
    assert [(point.step, point.value) for point in points] == whole_curve(4)
    assert reconcile_runs(uri, "no-such", {}, memory, fix=True) == []
    (said_of_none,) = reconcile_runs(uri, "no-such", states, memory, fix=False)
    assert "no experiment 'no-such'" in said_of_none.sentence
