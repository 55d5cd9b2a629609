"""What refers to a trial's files keeps them from `sweep gc`, `--keep` and `--disk-limit`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from searches import INLINE, Call, mlflow_client, stored_bytes

import sweep
from sweep.ledger.study import open_study
from sweep.tracking.artifacts import drop_files

TRACKING = "sqlite:///mlflow.db"


class Place:
    """The search `six` as MLflow has it, and its poorer trials, best first."""

    def __init__(self, here: Path) -> None:
        self.here, self.client = here, mlflow_client(here)
        self.experiment = self.client.get_experiment_by_name("six").experiment_id
        self.runs: dict[int, Any] = {
            int(run.data.tags["sweep.trial"]): run
            for run in self.client.search_runs([self.experiment])
            if run.data.tags["sweep.role"] == "trial"
        }
        models = self.client.search_logged_models([self.experiment])
        self.models = {
            number: next(m for m in models if m.source_run_id == run.info.run_id)
            for number, run in self.runs.items()
        }
        ledger = open_study("sqlite:///mlruns/optuna.db", "six")
        trials = sorted(ledger.trials(), key=lambda t: (-(t.value or 0), t.number))
        ledger.close()
        self.poor = [trial.number for trial in trials[1:]]

    def register(self, number: int, client: Any = None) -> str:
        client = client or self.client
        client.create_registered_model("prod")
        # MLflow looks a model up in the default store, whatever the client's.
        before = mlflow.get_tracking_uri()
        with pytest.MonkeyPatch.context() as patch:  # it sets a variable, too
            patch.setenv("MLFLOW_TRACKING_URI", "")
            mlflow.set_tracking_uri(f"sqlite:///{self.here}/mlflow.db")
            client.create_model_version("prod", f"models:/{self.models[number].model_id}")
            mlflow.set_tracking_uri(before)
        client.set_registered_model_alias("prod", "champion", 1)
        return "models:/prod/1"

    def register_files(self, number: int) -> str:
        self.client.create_registered_model("files")
        self.client.create_model_version("files", self.models[number].artifact_location)
        return "models:/files/1"

    def register_run(self, number: int) -> str:
        self.client.create_registered_model("run")
        run_id = self.runs[number].info.run_id
        self.client.create_model_version("run", self.models[number].artifact_location, run_id)
        return "models:/run/1"

    def tag(self, number: int) -> str:
        self.client.set_tag(self.runs[number].info.run_id, "paper", "figure 3")
        return "its tag paper"

    def tag_model(self, number: int) -> str:
        self.client.set_logged_model_tags(self.models[number].model_id, {"stage": "candidate"})
        return "its tag stage"

    def parent(self, number: int) -> str:
        elsewhere = self.client.create_experiment("elsewhere")
        tags = {"mlflow.parentRunId": self.runs[number].info.run_id}
        run = self.client.create_run(elsewhere, tags=tags, run_name="child")
        return f"run child ({run.info.run_id})"

    def name(self, number: int) -> str:
        run = self.client.create_run("0", run_name="tuned")
        self.client.log_param(run.info.run_id, "from", f"runs:/{self.runs[number].info.run_id}/x")
        return f"run tuned ({run.info.run_id})"

    def read(self, number: int) -> str:
        from mlflow.entities import LoggedModelInput

        run = self.client.create_run("0", run_name="eval")
        model = LoggedModelInput(self.models[number].model_id)
        self.client.log_inputs(run.info.run_id, models=[model])
        return f"run eval ({run.info.run_id})"

    def train(self, number: int) -> str:
        tags = {
            "sweep.role": "train",
            "sweep.study": "six",
            "sweep.from_trial": str(number),
        }
        run = self.client.create_run(self.experiment, tags=tags, run_name="final")
        return f"run final ({run.info.run_id})"


WAYS: tuple[tuple[Callable[[Place, int], str], ...], ...] = (
    (Place.register, Place.tag, Place.parent, Place.read),
    (Place.register_files, Place.register_run, Place.tag_model, Place.name, Place.train),
)


@pytest.mark.parametrize("ways", WAYS)
def test_what_something_refers_to_stays_and_is_said(
    six: Path, call: Call, ways: tuple[Callable[[Place, int], str], ...]
) -> None:
    """gc names each trial that stays and what keeps it, also in a dry run, and deletes the rest;
    `--keep` and `--disk-limit` of a search that goes on keep to it, and say it."""
    place = Place(six)
    kept = dict(zip(place.poor, ways, strict=False))
    said = {f"trial {n} stays: {way(place, n)}" for n, way in kept.items()}
    for arguments in (["--dry-run"], []):
        code, out, errors = call("gc", "six", "--keep", "1", *arguments)
        assert (code, errors) == (0, [])
        assert {line for line in out.splitlines() if "stays" in line} == said
    alive = {*kept, *place.runs} - {*place.poor} | {*kept}
    assert {*stored_bytes(TRACKING, "six")} == alive
    code, out, errors = call(
        "run", "--study", "six", "--trials", "7", "--keep", "1", "--disk-limit", "0.00001",
        "--executor", "inline", "--population", "1", "--threads", "1",
    )  # fmt: skip
    assert (code, errors) == (0, [])
    assert all(line in out for line in said)
    assert {*stored_bytes(TRACKING, "six")} >= {*kept}


def test_nothing_is_deleted_while_a_registry_does_not_answer(
    six: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every trial stays, with the reason; a registry of another address is asked, too."""
    place = Place(six)
    before = stored_bytes(TRACKING, "six")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://127.0.0.1:1")
    code, out, _ = call("gc", "six", "--keep", "1")
    assert code == 0
    assert out.count("stays: the model registry cannot be reached") == len(place.poor)
    assert stored_bytes(TRACKING, "six") == before
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "sqlite:///registry.db")
    code, out, _ = call("gc", "six", "--keep", "4", "--dry-run")
    assert "stays" not in out
    assert not Path("registry.db").exists()
    from mlflow import MlflowClient

    other = MlflowClient(f"sqlite:///{six}/mlflow.db", registry_uri=f"sqlite:///{six}/registry.db")
    kept = place.register(place.poor[-1], other)
    code, out, _ = call("gc", "six", "--keep", "4")
    assert f"trial {place.poor[-1]} stays: {kept}" in out


def test_a_trial_that_is_dropped_by_a_running_search_may_stay(six: Path) -> None:
    """`drop_files`, by which `--keep` works trial by trial, returns what keeps a run's files."""
    from sweep.tracking.store import connect

    place, store = Place(six), connect(f"sqlite:///{six}/mlflow.db")
    first, second = place.poor[:2]
    kept = place.register(first)
    run_ids = [place.runs[number].info.run_id for number in (first, second)]
    assert drop_files(store, run_ids) == {run_ids[0]: kept}
    assert {*stored_bytes(TRACKING, "six")} == {*place.runs} - {second}
    sweep.run(study="six", trials=7, **INLINE)
