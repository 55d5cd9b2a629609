"""`sweep confirm`: finalists on fresh seeds, and the test split once."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import sweep
from sweep.errors import ConfigError, NotFoundError, StudyInterrupted
from sweep.ledger.confirmation import CONFIRMED, TEST_OPENED, confirmation_in, tags_of
from sweep.ledger.study import open_study
from sweep.reporting.confirmations import race_lines
from sweep.testing import RecordingListener
from sweep.trial import EpochReport, Record
from sweep.trust.words import confirmation_lines

STUDY = "toy"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a study of five trials."""
    found = tmp_path_factory.mktemp("confirmed")
    with contextlib.chdir(found):
        sweep.run(study=STUDY, trials=5, epochs=30, executor="inline", log_models="none")
        yield found


def n_trials(study: str) -> int:
    """Trials of a study."""
    with contextlib.closing(open_study("sqlite:///mlruns/optuna.db", study)) as ledger:
        return len(ledger.trials())


def tags() -> dict[str, str]:
    """The tags of the study."""
    with contextlib.closing(open_study("sqlite:///mlruns/optuna.db", STUDY)) as ledger:
        return ledger.tags


class Interrupting(RecordingListener):
    """Presses Ctrl-C at the first epoch of the second round."""

    def __init__(self, made: list[Interrupting]) -> None:
        super().__init__()
        made.append(self)
        self._is_due = len(made) == 2

    def write(self, records: Sequence[Record]) -> None:
        super().write(records)
        if self._is_due and any(isinstance(record, EpochReport) for record in records):
            self._is_due = False
            os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupted_race_goes_on_and_is_kept(folder: Path) -> None:
    """Three finalists and the reference on three seeds: 4, 3 and 3 trainings, each once, whatever
    interrupts them; the result is in the ledger, and the same when it is asked again."""
    made: list[Interrupting] = []
    with pytest.raises(StudyInterrupted, match="the same `sweep confirm` goes on"):
        sweep.confirm(STUDY, top=3, seeds=3, listeners=lambda: [Interrupting(made)])
    assert CONFIRMED not in tags()
    found = sweep.confirm(STUDY, top=3, seeds=3)
    assert [n_trials(f"{STUDY}-confirm-{n}") for n in (1, 2, 3)] == [4, 3, 3]
    assert found.n_trained == 10
    counts = [sum(map(math.isfinite, one.scores)) for one in found.finalists]
    assert sorted(counts) == [1, 3, 3]
    assert found.winner in {one.trial for one in found.finalists}
    assert found.value.low < found.value.value < found.value.high <= 1.0
    assert found.reference is not None
    assert all(map(math.isfinite, found.reference.scores))
    assert found.gain is not None
    assert set(found.test) == set(found.reference_test) == {"test_loss", "test_acc"}
    assert found.test["test_acc"].value > found.reference_test["test_acc"].value
    kept = confirmation_in(tags())
    assert kept is not None
    assert (kept.winner, kept.value, kept.test) == (found.winner, found.value, found.test)
    assert TEST_OPENED in tags()
    assert sweep.best(STUDY).trial == found.winner
    opened = tags()[TEST_OPENED]
    again = sweep.confirm(top=3, seeds=3)  # its rounds are no studies to choose from
    assert (again.value, again.test) == (found.value, found.test)
    assert tags()[TEST_OPENED] == opened  # the split is opened once
    assert n_trials(f"{STUDY}-confirm-3") == 3
    said = "\n".join([*race_lines(found), *confirmation_lines(found, "maximize")])
    assert "(the reference)" in said
    assert "Test split, test_loss" in said


def test_mlflow_has_the_confirmation(folder: Path) -> None:
    """As tags of the study's own run."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name(STUDY)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`sweep.role` = 'study'")
    assert CONFIRMED in runs[0].data.tags
    assert TEST_OPENED in runs[0].data.tags


def test_a_study_that_has_grown_is_not_confirmed(folder: Path) -> None:
    """A winner without the best score counts, until there are more trials."""
    found = confirmation_in(tags())
    assert found is not None
    with contextlib.closing(open_study("sqlite:///mlruns/optuna.db", STUDY)) as ledger:
        ledger.note_tags(tags_of(dataclasses.replace(found, winner=0)))
    assert sweep.best(STUDY).trial == 0
    outcome = sweep.run(study=STUDY, trials=6, executor="inline")
    assert outcome.best is not None
    assert sweep.best(STUDY).trial == outcome.best.number != 0


@pytest.mark.parametrize("given", [{"top": 1}, {"seeds": 1}, {"top": "many"}])
def test_a_race_needs_two(folder: Path, given: dict[str, Any]) -> None:
    """Finalists, and seeds."""
    with pytest.raises(ConfigError, match=next(iter(given))):
        sweep.confirm(STUDY, **given)


def test_one_trial_is_nothing_to_choose_from(folder: Path) -> None:
    """It says so."""
    sweep.run(
        study="one", trials=1, epochs=1, executor="inline", log_models="none", baseline=False
    )
    with pytest.raises(NotFoundError, match="nothing to choose from"):
        sweep.confirm("one")
