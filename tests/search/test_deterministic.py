"""`--deterministic`: the same configurations and curves, whoever trains them and when they end."""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from searches import FREE_SPACE, ScriptedStudy, Search, in_this_process, score

from sweep.ledger.study import open_study
from sweep.testing import DATASET, ScriptedTrainer
from sweep.trial import (
    Failure,
    Orders,
    Report,
    TrialResult,
    TrialSpec,
    WorkerReady,
    now_ms,
)

FAILED = Failure("nan", "the loss is nan")

Outcome = list[tuple[int, str, Mapping[str, Any], list[float]]]


def noisy(spec: TrialSpec) -> list[dict[str, float]]:
    """Six epochs that rise to `score`, with ties for no pruner."""
    rng = random.Random(spec.number)
    return [{"val_acc": score(spec) * (1 - 0.5**k) + 1e-3 * rng.random()} for k in range(1, 7)]


def outcome(search: Search) -> Outcome:
    """Number, state, configuration and curve of each trial."""
    return [
        (t.number, str(t.state), t.hyperparameters, [r.metrics["val_acc"] for r in t.reports])
        for t in search.trials
    ]


def searched(folder: Path, n_slots: int, **settings: Any) -> Outcome:
    """By one worker with `n_slots` at a time."""
    given = {"trials": 34, "epochs": 6, "deterministic": True, "pruner": "median"} | settings
    search = ScriptedStudy(folder, FREE_SPACE).run(noisy, n_slots=n_slots, **given)
    return outcome(search)


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "qmc"])
def test_slots_do_not_matter(tmp_path: Path, sampler: str) -> None:
    """Three trials at a time, or forty: nothing differs; some are pruned."""
    found = []
    for n_slots in (3, 40):
        (folder := tmp_path / str(n_slots)).mkdir()
        found.append(searched(folder, n_slots, sampler=sampler, trials=34))
    assert found[0] == found[1]
    assert {state for _, state, _, _ in found[0]} == {"COMPLETE", "PRUNED"}


def test_a_generation_trains_at_once(tmp_path: Path) -> None:
    """Sixteen trials depend on no other of them; the next one waits for all."""
    study = ScriptedStudy(tmp_path, FREE_SPACE)
    search = study.prepare(study.config(trials=34, epochs=6, deterministic=True))
    ready = WorkerReady(DATASET, "scripted", 40, now_ms())
    assert len(search.driver.exchange([ready], 40).start) == 16
    assert search.driver.exchange([TrialResult(0, "failed", 0, failure=FAILED)], 25).start == ()
    search.leave()


def test_without_it_they_do(tmp_path: Path) -> None:
    """What the setting is for."""
    found = []
    for n_slots in (1, 40):
        (folder := tmp_path / str(n_slots)).mkdir()
        found.append(searched(folder, n_slots, deterministic=False))
    assert found[0] != found[1]


@pytest.mark.parametrize("pruner", ["asha", "hyperband"])
def test_a_search_that_is_continued_is_the_same(tmp_path: Path, pruner: str) -> None:
    """In two parts, with other numbers of slots: as in one."""
    (whole := tmp_path / "whole").mkdir()
    (parts := tmp_path / "parts").mkdir()
    searched(parts, 7, trials=21, pruner=pruner)
    assert searched(parts, 2, pruner=pruner) == searched(whole, 1, pruner=pruner)


class Shuffled:
    """A driver's end whose workers wait for no one: reports of trials come in any order."""

    def __init__(self, search: Search, n_workers: int, seed: int) -> None:
        self._search, self._rng, self._n = search, random.Random(seed), n_workers

    def run(self) -> None:
        """Each worker is a trainer of one slot; who speaks next is drawn."""
        waiting: list[Any] = [self._steps() for _ in range(self._n)]
        while waiting:
            worker = self._rng.choice(waiting)
            try:
                next(worker)
            except StopIteration:
                waiting.remove(worker)

    def _steps(self) -> Any:
        import queue
        import threading

        asked: queue.Queue[Any] = queue.Queue()
        answers: queue.Queue[Orders] = queue.Queue()

        def exchange(reports: Sequence[Report], n_free: int) -> Orders:
            asked.put((reports, n_free))
            return answers.get()

        def train() -> None:
            ScriptedTrainer(noisy).train(exchange)
            asked.put(None)

        thread = threading.Thread(target=train)
        thread.start()
        while (message := asked.get()) is not None:
            yield
            answers.put(self._search.driver.exchange(*message))
        thread.join()


def test_the_order_of_reports_does_not_matter(tmp_path: Path) -> None:
    """Five workers, each at its own speed."""
    found = []
    for seed in (1, 2):
        (folder := tmp_path / str(seed)).mkdir()
        study = ScriptedStudy(folder, FREE_SPACE)
        search = study.prepare(
            study.config(trials=34, epochs=6, deterministic=True, pruner="median")
        )
        Shuffled(search, 5, seed).run()
        search.leave()
        found.append(outcome(search))
    (folder := tmp_path / "one").mkdir()
    assert found[0] == found[1] == searched(folder, 1)


def curves(folder: Path) -> list[Any]:
    """All that must be equal, of a real search."""
    trials = open_study(f"sqlite:///{folder}/mlruns/optuna.db", "s").trials()
    return [
        (
            str(t.state),
            t.hyperparameters,
            [{k: v for k, v in r.metrics.items() if k != "epoch_s"} for r in t.reports],
        )
        for t in trials
    ]


@pytest.mark.parametrize("own", [False, True], ids=["mlp", "own module"])
def test_workers_do_not_matter(tmp_path: Path, empty_store: Path, *, own: bool) -> None:
    """Real ones: two of two trials each, or this process with many, give the same bits."""
    found = []
    project = ["--module", str(Path(__file__).parents[1] / "user_code.py") + ":Model", "--metric",
               "val_f1", "--vary", "width=4,8,16,32"]  # fmt: skip
    for executor, n_workers, n_slots in (("inline", "1", "auto"), ("process", "2", "2")):
        (folder := tmp_path / n_workers).mkdir()
        shutil.copyfile(empty_store, folder / "mlflow.db")
        done = in_this_process(
            folder, {"SWEEP_EXECUTOR": executor}, "run", "--study", "s", "--trials",
            "4" if own else "18", "--epochs", "2", "--deterministic", "--workers", n_workers,
            "--population", n_slots, "--pruner", "median", "--log-models", "none",
            *(project if own else []),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found.append(curves(folder))
    assert found[0] == found[1]
