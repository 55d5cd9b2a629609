"""How records get into a store: late, cut short, all the same; and what is no store."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import tracking_records as records
from mlflow import MlflowClient
from searches import TESTS
from tracking_runs import runs_of, track
from waiting import wait_until

from sweep.databases import sqlite
from sweep.errors import DiskError, StoreError, UndeliveredError
from sweep.repair.reconcile import reconcile_runs
from sweep.tracking import MlflowTracker, Pace
from sweep.tracking.artifacts import artifact_of
from sweep.tracking.store import route_logs
from sweep.tracking.uri import DEFAULT_URI, one_line
from sweep.trial import Ranked, StudyFinished, TrialState


def test_a_continued_trial_goes_on_under_its_run(uri: str) -> None:
    """After a restart a trial keeps its run id, is RUNNING, and has one point an epoch."""
    track(uri, [records.started(0), *records.epochs(0, 1, 2)])
    first = runs_of(uri)["0"]
    assert first.info.status == "RUNNING"
    # The checkpoint was of epoch 1: epoch 2 is trained, and reported, again.
    track(uri, [records.started(0), *records.epochs(0, 2, 3, delay=5000)], n_trials=9)
    runs = runs_of(uri)
    assert sorted(runs) == ["0", "parent"]
    assert runs["0"].info.run_id == first.info.run_id
    history = MlflowClient(uri).get_metric_history(first.info.run_id, "val_acc")
    assert [point.step for point in history] == [1, 2, 3]
    track(uri, [records.started(0), records.finished(0, TrialState.WAITING)])
    assert runs_of(uri)["0"].info.status == "SCHEDULED"
    track(uri, [records.started(0)])
    assert runs_of(uri)["0"].info.status == "RUNNING"


def test_a_study_run_that_was_cut_short_is_completed(uri: str) -> None:
    """Its driver died after making it on a server: settings and data come with the next one."""
    client = MlflowClient(uri)
    experiment_id = client.create_experiment("toy-study")
    tags = {"sweep.study": "toy-study", "sweep.role": "study"}
    made = client.create_run(experiment_id, tags=tags, run_name="toy-study")
    track(uri, [records.started(0)])
    parent = runs_of(uri)["parent"]
    assert parent.info.run_id == made.info.run_id
    assert artifact_of(uri, parent.info.run_id, "config.yaml", Path("none")).is_file()
    assert [i.dataset.name for i in parent.inputs.dataset_inputs] == ["toy-train", "toy-val"]


def test_a_deleted_experiment_comes_back(uri: str) -> None:
    """A study whose experiment was deleted in the UI goes on in it."""
    track(uri, [records.started(0)])
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("toy-study")
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    track(uri, [])
    assert sorted(runs_of(uri)) == ["0", "parent"]


def test_a_default_store_is_where_mlflow_ui_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sqlite:///mlflow.db makes ./mlflow.db and ./mlruns/<experiment>."""
    monkeypatch.chdir(tmp_path)
    track(DEFAULT_URI, [])
    experiment = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").get_experiment_by_name(
        "toy-study"
    )
    assert experiment is not None
    assert Path(experiment.artifact_location) == tmp_path / "mlruns" / experiment.experiment_id


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("./mlruns", "no file stores"),
        ("file:///tmp/mlruns", "no file stores"),
        ("", "no file stores"),
        ("sqlite:mlflow.db", "three slashes"),
        ("gopher://host/x", "gopher"),
        ("http://me:secret@127.0.0.1:9", "***@127.0.0.1:9"),
    ],
)
def test_a_store_that_is_none_is_one_line(
    bad: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong address, or nobody there, raises StoreError: one line, no password."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker = MlflowTracker(bad)
    with pytest.raises(StoreError) as caught:
        tracker.open(records.study_info())
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    tracker.close()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """A text file, a folder in the way, and a file in place of the folder: StoreError each."""
    (tmp_path / "text.db").write_text("not a database, but long enough to look at\n" * 20)
    (tmp_path / "folder.db").mkdir()
    for name in ("text.db", "folder.db"):
        with pytest.raises(StoreError, match=f"{name} cannot be used as a database"):
            MlflowTracker(f"sqlite:///{tmp_path}/{name}").open(records.study_info())
    with pytest.raises(DiskError, match="cannot make the folder"):
        MlflowTracker(f"sqlite:///{tmp_path}/text.db/mlflow.db").open(records.study_info())


def test_what_cannot_be_delivered_is_counted(uri: str, tmp_path: Path) -> None:
    """A missing checkpoint is said at the end; the trial is FINISHED all the same."""
    gone = records.Trained(str(tmp_path / "gone.ckpt"), str(tmp_path / "gone.pt2"))
    written = [records.started(0), records.finished(0, TrialState.COMPLETE, gone)]
    with pytest.raises(UndeliveredError, match=r"gone\.ckpt of trial 0 was gone before MLflow"):
        track(uri, written)
    assert runs_of(uri)["0"].info.status == "FINISHED"
    assert runs_of(uri)["0"].data.tags["sweep.checkpoint_lost"] == "true"


def test_points_are_gathered_until_a_flush(uri: str) -> None:
    """A run begins at once; its points come with the next flush, or with the trial's end."""
    tracker = MlflowTracker(uri, pace=Pace(flush_s=1.0))
    tracker.open(records.study_info())
    time.sleep(1.1)
    tracker.write([records.started(0), records.started(1)])
    wait_until(lambda: len(runs_of(uri)) == 3)
    tracker.write([*records.epochs(0, 1, 1), *records.epochs(1, 1, 1)])
    tracker.write([records.finished(1, TrialState.PRUNED)])
    wait_until(lambda: runs_of(uri)["1"].info.status == "FINISHED")
    assert "val_acc" in runs_of(uri)["1"].data.metrics
    wait_until(lambda: "val_acc" in runs_of(uri)["0"].data.metrics)
    tracker.close()


def test_a_locked_database_is_waited_for(uri: str) -> None:
    """Records written while another process holds the database are there once it lets go."""
    tracker = MlflowTracker(uri)
    tracker.open(records.study_info())
    with contextlib.closing(
        sqlite3.connect(sqlite.path_of(uri) or "", isolation_level=None)
    ) as other:
        other.execute("BEGIN EXCLUSIVE")
        tracker.write([records.started(0), *records.epochs(0)])
        time.sleep(0.5)
        assert "0" not in runs_of(uri)
        other.execute("ROLLBACK")
    tracker.close()
    assert len(runs_of(uri)["0"].data.metrics) == 4


def test_nothing_is_printed_and_logs_go_to_the_file(tmp_path: Path) -> None:
    """A fresh store, migrations and all, leaves stdout and stderr empty, loads no torch, and
    makes two things: mlflow.db and mlruns."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import tracking_records as r\n"
        "from pathlib import Path\n"
        "from sweep.tracking import MlflowTracker\n"
        "assert 'mlflow' not in sys.modules\n"
        "t = MlflowTracker('sqlite:///mlflow.db', Path('sub/log'))\n"
        "t.open(r.study_info()); t.write(r.search(None)); t.close()\n"
        "assert 'torch' not in sys.modules\n"
    )
    env = {
        "PYTHONPATH": str(TESTS.parent),
        "XDG_CACHE_HOME": str(tmp_path / "sub"),
    }  # an empty one
    done = subprocess.run(
        [sys.executable, "-c", code, str(TESTS)],
        cwd=tmp_path, env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "mlruns", "sub"]
    assert "Updating database tables" in (tmp_path / "sub" / "log").read_text()


def test_a_log_that_cannot_be_opened_stops_nothing(tmp_path: Path) -> None:
    """A message whose file cannot be made (a full disk, a folder that went) is lost, no more."""
    route_logs(tmp_path / "gone" / "sweep.log")
    try:
        (tmp_path / "gone").rmdir()
        logging.getLogger("sweep.tracking").warning("nobody reads this")
        (tmp_path / "gone").mkdir()
        logging.getLogger("sweep.tracking").warning("but this")
    finally:
        route_logs(None)
    assert (tmp_path / "gone" / "sweep.log").read_text().endswith("sweep.tracking: but this\n")


def test_the_end_comes_after_the_trials_that_it_names(uri: str, model: records.Trained) -> None:
    """A study that ends while trials are being synced names its best trial's run and model."""
    late = [*records.epochs(0), records.finished(0, TrialState.COMPLETE, model)]
    is_stored = threading.Event()

    def on_stored(number: int) -> list[int]:
        if number == 1:
            tracker.write([*late, ranked_end()])
            is_stored.set()
        return []

    tracker = MlflowTracker(uri, on_stored=on_stored)
    tracker.open(records.study_info())
    tracker.write([records.started(0), records.started(1)])
    tracker.write([*records.epochs(1), records.finished(1, TrialState.COMPLETE)])
    assert is_stored.wait(60)
    tracker.close()
    assert_best_is_named(uri)


def test_a_run_that_a_repair_made_is_ranked(uri: str, model: records.Trained) -> None:
    """A search whose mirror was made before the repair of an older one names that one's best."""
    written = [r for r in records.search(model) if getattr(r, "number", 0) == 0]
    memory = records.Remembered(records.study_info(), written)
    tracker = MlflowTracker(uri)
    tracker.open(records.study_info())
    reconcile_runs(uri, memory, fix=True, is_live=True, is_deep=False)
    tracker.write([ranked_end()])
    tracker.close()
    assert_best_is_named(uri)


def ranked_end() -> StudyFinished:
    ranking = [Ranked(0, records.started(0).name, 0.8)]
    return records.study_finished(ranking=ranking)


def assert_best_is_named(uri: str) -> None:
    runs = runs_of(uri)
    best, parent = runs["0"], runs["parent"]
    assert parent.data.tags["sweep.best_run"] == best.info.run_id
    assert best.data.tags["sweep.rank"] == "1"
    assert best.data.tags["sweep.best"] == "true"
    assert parent.outputs.model_outputs[0].model_id == best.outputs.model_outputs[0].model_id


def test_broken_off_uploads_go_with_the_next_try(uri: str, model: records.Trained) -> None:
    """What MLflow wrote aside for a run whose driver was killed is removed as the run goes on."""
    track(uri, [records.started(0), *records.epochs(0)])
    runs, left = runs_of(uri), []
    for run in runs.values():
        folder = Path(run.info.artifact_uri.removeprefix("file://"))
        for place in (folder, folder / "checkpoint"):
            place.mkdir(parents=True, exist_ok=True)
            left.append(place / ".artifact.uploading.x1y2")
            left[-1].write_bytes(b"half")
    end = [records.finished(0, TrialState.COMPLETE, model), records.study_finished()]
    track(uri, [records.started(0), *records.epochs(0), *end])
    assert not [path for path in left if path.exists()]
    assert (left[0].parent / "config.yaml").exists() or (left[2].parent / "config.yaml").exists()


def test_only_our_database_is_tuned(tmp_path: Path) -> None:
    """After listen() connections to that file use WAL, those to another keep the defaults."""
    from sqlalchemy import create_engine, text

    sqlite.listen(f"sqlite:///{tmp_path}/ours.db")
    modes = {}
    for name in ("ours.db", "other.db"):
        engine = create_engine(f"sqlite:///{tmp_path}/{name}")
        with engine.connect() as connection:
            mode = connection.execute(text("PRAGMA journal_mode")).scalar()
            modes[name] = (mode, connection.execute(text("PRAGMA synchronous")).scalar())
        engine.dispose()
    assert modes == {"ours.db": ("wal", 1), "other.db": ("delete", 2)}


def test_errors_are_one_line_without_credentials() -> None:
    """Only the first line is kept, and no password."""
    line = one_line(ValueError("\nno http://me:pw@host/x\nmore"))
    assert line == "no http://***@host/x"
    assert one_line(KeyError()) == "KeyError"
