"""Searches in this process: what `sweep.run` returns, keeps, refuses and continues."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

import sweep
from sweep import hyperparameters as options
from sweep.api import prepare
from sweep.config.settings import RunConfig
from sweep.errors import ConfigError, StudyFailedError, StudyLockedError, UndeliveredError
from sweep.ledger.locks import study_lock
from sweep.ledger.study import open_study
from sweep.redact import redacted
from sweep.search.study import first_configurations, search, stored_config
from sweep.space import load_space, parse_space
from sweep.testing import RecordingListener
from sweep.trial import TrialFinished, TrialStarted, WorkerReady

SMALL: dict[str, Any] = {
    "executor": "inline", "epochs": 2, "threads": 1, "population": 1, "space": "mlp_small",
}  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def run(listener: RecordingListener | None = None, **settings: Any) -> Any:
    """A search without MLflow, in the current folder."""
    config = RunConfig(**(SMALL | settings))
    return search(config, load_space(config.space), [listener] if listener else [])


@pytest.mark.usefixtures("here")
def test_a_search_and_its_continuation() -> None:
    """Three trials with the reference network first, then two more, then none."""
    listener = RecordingListener()
    outcome = run(listener, trials=3)
    assert (outcome.n_new, outcome.end.reason) == (3, "done")
    assert outcome.end.n_by_state == {"COMPLETE": 3}
    assert isinstance(listener.records[0], WorkerReady)
    assert listener.of(TrialStarted)[0].hyperparameters == dict(options.REFERENCE)
    assert outcome.end.baseline_value == listener.finished()[0].value
    assert outcome.end.best_value == max(r.value or 0 for r in listener.finished().values())
    assert listener.records[-1] == outcome.end
    assert listener.is_closed
    again = run(trials=5)
    assert (again.n_new, again.study.n_done) == (2, 3)
    assert outcome.best is not None
    best = (again.study.best_number, again.study.best_value)
    assert best == (outcome.best.number, outcome.best.value)
    done = RecordingListener()
    assert run(done, trials=5).n_new == 0
    assert done.study is None, "nothing to do: nobody has to be told"


@pytest.mark.usefixtures("here")
def test_the_study_keeps_what_it_was_made_with() -> None:
    """Other settings or another space are refused by name; more trials are not."""
    run(trials=1)
    with pytest.raises(ConfigError, match="--epochs was 2 and is now 3"):
        run(trials=2, epochs=3)
    other = parse_space("# A line.\nparameters:\n  lr: {float: [0.1, 0.2]}\n", "mlp_small")
    with pytest.raises(ConfigError, match=r"exists with other settings .*search space"):
        search(RunConfig(**SMALL, trials=2), other, [])
    kept = open_study("sqlite:///mlruns/optuna.db", "digits-mlp_small")
    assert (kept.config["epochs"], kept.config["space"]) == (2, "mlp_small")
    assert "choices: [SGD, Adam]" in kept.space_text


def test_a_second_driver_is_refused(here: Path) -> None:
    """While one search runs, the same study cannot be run again."""
    config = RunConfig(**SMALL)
    with study_lock(config.study_dir, config.study_name), pytest.raises(StudyLockedError):
        run(trials=1)
    assert not (here / "mlruns" / "optuna.db").exists()


@pytest.mark.usefixtures("here")
def test_a_search_may_run_in_a_thread() -> None:
    """Notebooks and servers do: signals are left alone there."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(run(trials=1)))
    thread.start()
    thread.join()
    assert found[0].n_new == 1


def signalled(number: signal.Signals, **arguments: object) -> Any:
    """A search in this process that gets a signal in the third epoch of its first trial."""
    fixed = "".join(f"  {k}: {v}\n" for k, v in {"number": int(number), **arguments}.items())
    text = f"# A line.\nparameters:\n  width: {{int: [4, 8]}}\nfixed:\n{fixed}"
    config = RunConfig(
        **(SMALL | {"module": "user_code:Signalled", "metric": "val_f1", "study": "s"}),
        trials=2,
    )  # fmt: skip
    config = dataclasses.replace(config, epochs=4)
    return search(config, parse_space(text, "s", is_mlp=False), [])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_stops_an_inline_search_at_the_epochs_end(
    here: Path, number: signal.Signals
) -> None:
    """Lightning does not break the epoch off; three epochs are saved, and the search goes on."""
    outcome = signalled(number)
    assert (outcome.end.reason, outcome.unsaved) == ("interrupted", ())
    assert outcome.end.n_by_state == {"WAITING": 1}
    trials = open_study("sqlite:///mlruns/optuna.db", "s").trials()
    assert [t.result["n_epochs"] for t in trials] == [3]
    assert (here / "mlruns/.sweep/s/trials/00000/last.ckpt").is_file()
    assert signalled(number).end.n_by_state == {"COMPLETE": 2}


@pytest.mark.usefixtures("here")
def test_a_second_signal_ends_an_inline_search_at_once() -> None:
    """With KeyboardInterrupt: Lightning would make sys.exit(1) of it, and ignore Ctrl-C after."""
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signalled(signal.SIGINT, again_after_s=0.7)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.usefixtures("here")
def test_a_time_limit_belongs_to_the_call() -> None:
    """The next call has none; a study that a limit was stored with is continued without it."""
    outcome = run(trials=2, timeout_s=1e-9)
    assert (outcome.end.reason, outcome.n_new) == ("timeout", 0)
    ledger = open_study("sqlite:///mlruns/optuna.db", "digits-mlp_small")
    assert "timeout_s" not in ledger.config
    ledger.describe(stored_config(RunConfig(**SMALL, trials=2)) | {"timeout_s": 1e-9}, "")
    ledger.close()
    resolved, _ = prepare({"study": "digits-mlp_small", "space": "mlp_small"}, None)
    assert resolved.config.timeout_s is None
    assert run(trials=2).end.reason == "done"


@pytest.mark.usefixtures("here")
def test_a_limit_that_comes_too_late_stopped_nothing() -> None:
    """Where all trials are finished the search is done, whatever asked it to stop meanwhile."""

    class Late(RecordingListener):
        def write(self, records: Any) -> None:
            super().write(records)
            if any(isinstance(record, TrialFinished) for record in records):
                os.kill(os.getpid(), signal.SIGTERM)

    outcome = run(Late(), trials=1)
    assert (outcome.end.reason, outcome.end.n_by_state) == ("done", {"COMPLETE": 1})


@pytest.mark.usefixtures("here")
def test_a_search_without_a_success_has_failed() -> None:
    """Trials that all diverge end in one line that says where to look."""
    space = "# A line.\nparameters:\n  lr: {float: [1e11, 1e12]}\nfixed:\n  optimizer: SGD\n"
    config = RunConfig(**(SMALL | {"study": "hot", "trials": 2, "baseline": False}))
    with pytest.raises(
        StudyFailedError, match="none of the 2 trials succeeded: `sweep trials hot`"
    ):
        search(config, parse_space(space, "hot"), [])


@pytest.mark.usefixtures("here")
def test_identical_failures_end_the_search_with_their_message() -> None:
    """A bug in the user's module stops it after --max-failures trials."""
    space = parse_space(
        "# A line.\nparameters:\n  width: {int: [4, 8]}\nfixed:\n  mode: raise\n",
        "bad",
        is_mlp=False,
    )
    config = RunConfig(
        **(SMALL | {"trials": 50, "max_failures": 2, "module": "user_code:Model", "study": "bad",
                    "metric": "val_f1"})
    )  # fmt: skip
    said = r"2 identical failures in a row: ZeroDivisionError.*user_code.py:\d+.*sweep retry bad"
    with pytest.raises(StudyFailedError, match=said):
        search(config, space, [])


@pytest.mark.usefixtures("here")
def test_a_metric_that_the_module_does_not_log_is_named() -> None:
    """Before the first trial, with what there is; it is the error that is said where records
    cannot be delivered then, either."""

    class Away(RecordingListener):
        def close(self) -> None:
            super().close()
            raise UndeliveredError("MLflow is away")

    listener = Away()
    space = parse_space("# A line.\nparameters:\n  width: {int: [4, 8]}\n", "m", is_mlp=False)
    own = {"module": "user_code:Model", "metric": "val_f1_score", "study": "m", "trials": 2}
    config = RunConfig(**(SMALL | own))
    with pytest.raises(ConfigError, match=r"--metric must be one of .*val_f1.*did you mean"):
        search(config, space, [listener])
    assert listener.is_closed


def test_the_reference_network_speaks_the_spaces_language() -> None:
    """Trial 0 has Optuna parameters where the space holds it, and none where it cannot."""
    config = RunConfig()
    text = load_space("mlp").text.replace("fixed: {schedule: cosine}", "")
    reference, params = first_configurations(config, parse_space(text, "constant"))[0]
    assert reference == dict(options.REFERENCE)
    assert params is not None
    assert params["momentum"] == 0.0
    narrow = parse_space("# A line.\nparameters:\n  lr: {float: [0.1, 0.2]}\n", "narrow")
    assert first_configurations(config, narrow)[0][1] is None
    without = first_configurations(RunConfig(baseline=False), load_space("mlp"))
    assert dict(options.REFERENCE) not in [configuration for configuration, _ in without]


def test_credentials_are_not_kept() -> None:
    """Neither the storage nor a tracking URI with a password goes into the study."""
    config = RunConfig(
        storage="postgresql://me:secret@db/optuna", tracking_uri="https://me:secret@host"
    )
    assert "secret" not in str(stored_config(config))
    assert redacted(f"{config.storage} {config.tracking_uri}") == (
        "postgresql://***@db/optuna https://***@host"
    )


@pytest.mark.usefixtures("here")
def test_listeners_are_all_closed() -> None:
    """One that fails to close does not keep the others open."""

    class Failing(RecordingListener):
        def close(self) -> None:
            raise OSError("full")

    first, last = RecordingListener(), RecordingListener()
    config = RunConfig(**SMALL, trials=1)
    with pytest.raises(OSError, match="full"):
        search(config, load_space(config.space), [first, Failing(), last])
    assert first.is_closed
    assert last.is_closed
    assert first.records == last.records


def test_python_says_which_setting_is_wrong() -> None:
    """A misspelt argument of sweep.run is answered with the nearest one."""
    with pytest.raises(ConfigError, match="did you mean trials"):
        sweep.run(trails=3)


def test_the_public_door() -> None:
    """The names that sweep promises, and nothing that is not there."""
    assert {"run", "best", "MLPClassifier", "SweepError"} <= set(dir(sweep))
    with pytest.raises(AttributeError, match="no attribute 'bset'"):
        sweep.bset  # noqa: B018
