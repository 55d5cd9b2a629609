"""What --keep, --disk-limit and `sweep gc` leave, in real stores; a running search keeps to it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from searches import INLINE, Call, mlflow_client, query, stored_bytes

import sweep
from sweep.config.settings import RunConfig
from sweep.errors import UndeliveredError
from sweep.files.trial_files import TrialFiles, folder_bytes, is_whole_checkpoint
from sweep.ledger.study import open_study
from sweep.ledger.trials import LedgerTrial
from sweep.tracking.artifacts import run_id_of
from sweep.trial import Record, StudyInfo, TrialFinished

TRACKING = "sqlite:///mlflow.db"


class DiskWatch:
    """A listener that looks at the disk whenever a trial ends, and waits there for `is_within`.

    It holds up the thread that closes trials, so it counts only what that thread is done with: in
    the work folder, trials of which it was told before.
    """

    def __init__(self, study: str, is_within: Callable[[int, int, int], bool]) -> None:
        self.study, self._is_within = study, is_within
        self._closed: set[str] = set()
        self._told: set[str] = set()
        self.n_looks = self.n_exceeded = 0
        self.seen: tuple[int, int, int] | None = None
        """Closed trials in the work folder, checkpoints in MLflow, bytes of both."""

    def open(self, study: StudyInfo) -> None:
        pass

    def write(self, records: Sequence[Record]) -> None:
        ended = [r.number for r in records if isinstance(r, TrialFinished)]
        self._closed |= self._told
        self._told = {TrialFiles("", number).folder.name for number in ended}
        if not ended:
            return
        self.n_looks += 1
        deadline = time.monotonic() + 30
        while not self._is_within(*self._look()):
            if time.monotonic() > deadline:
                self.n_exceeded += 1
                return
            time.sleep(0.02)

    def close(self) -> None:
        pass

    def _look(self) -> tuple[int, int, int]:
        here, there = Path("mlruns/.sweep", self.study, "trials"), artifacts(self.study)
        closed = [folder for folder in here.iterdir() if folder.name in self._closed]
        stored = [name for _, _, names in os.walk(there) for name in names]
        n_bytes = sum(map(folder_bytes, closed)) + model_bytes(there)
        self.seen = len(closed), stored.count("best.ckpt"), n_bytes
        return self.seen


def artifacts(study: str) -> Path:
    (row,) = query(
        Path("mlflow.db"), "SELECT artifact_location FROM experiments WHERE name = ?", study
    )
    return Path(row[0])


def model_bytes(folder: Path) -> int:
    """Of checkpoints and models, without what else runs have."""
    return sum(
        folder_bytes(path)
        for path in [*folder.glob("*/artifacts/checkpoint"), *folder.glob("models/*")]
    )


def best_first(study: str = "six") -> list[int]:
    return [t.number for t in sorted(trials(study), key=lambda t: (-(t.value or 0), t.number))]


def trials(study: str = "six") -> list[LedgerTrial]:
    ledger = open_study(RunConfig().storage, study)
    found = ledger.trials()
    ledger.close()
    return found


def here(study: str = "six") -> list[int]:
    """Trials with files in the work folder."""
    return sorted(int(path.name) for path in Path("mlruns/.sweep", study, "trials").iterdir())


def there(study: str = "six") -> list[int]:
    """Trials with files in MLflow."""
    return sorted(stored_bytes(TRACKING, study))


def records_of_mlflow(here: Path, study: str = "six") -> dict[str, Any]:
    """Params, metrics and curves of all runs."""
    client = mlflow_client(here)
    experiment = client.get_experiment_by_name(study)
    return {
        run.info.run_id: (
            run.data.params,
            run.data.metrics,
            [(p.step, p.value) for p in client.get_metric_history(run.info.run_id, "val_acc")],
        )
        for run in client.search_runs([experiment.experiment_id])
    }


# sweep gc


def test_a_dry_run_shows_what_would_go(six: Path, call: Call) -> None:
    """A line for each place with its size, the sum, and nothing is touched."""
    before = here(), there(), model_bytes(artifacts("six"))
    code, out, errors = call("gc", "six", "--keep", "4", "--dry-run")
    assert (code, errors) == (0, [])
    *lines, total = out.splitlines()
    worst = best_first()[4:]
    shown = sorted(line.split("MB  ")[1] for line in lines)
    in_folder = [str(TrialFiles("mlruns/.sweep/six", n).folder) for n in worst if n in here()]
    assert shown == sorted([*(f"MLflow, trial {n}" for n in worst), *in_folder])
    assert float(total.split()[0]) == pytest.approx(
        sum(float(line.split()[0]) for line in lines), abs=0.01 * len(lines)
    )
    assert total.endswith("would be freed")
    assert (here(), there(), model_bytes(artifacts("six"))) == before


def test_gc_keeps_the_best_and_every_number(six: Path, call: Call) -> None:
    """Two of six keep their files in both places; params, metrics and curves are as before, the
    doctor is content, the best model loads, and a second time there is nothing to do."""
    before = records_of_mlflow(six)
    wanted = sorted(best_first()[:2])
    assert call("gc", "six", "--keep", "2")[0] == 0
    assert (here(), there()) == (wanted, wanted)
    assert records_of_mlflow(six) == before
    assert call("doctor", "six")[0] == 0
    assert sweep.best("six").load() is not None
    again = call("gc", "six", "--keep", "2")
    assert again[1] == "    0.00 MB freed\n"


def test_gc_knows_which_way_is_better(six: Path, call: Call) -> None:
    """Of a minimized study the smallest loss keeps its files."""
    sweep.run(study="loss", trials=3, epochs=2, space="mlp_small", metric="val_loss", **INLINE)
    best = min(trials("loss"), key=lambda t: t.value or 0.0).number
    assert best == sweep.best("loss").trial
    assert call("gc", "loss", "--keep", "1")[0] == 0
    assert (here("loss"), there("loss")) == ([best], [best])
    assert sweep.best("loss").load() is not None
    assert len(there("six")) == 6


def test_gc_leaves_what_a_trial_needs_to_go_on(six: Path, call: Call) -> None:
    """A trial that is not finished keeps its folder, however poor."""
    worst_here = [n for n in best_first() if n in here()][-1]
    query(six / "mlruns/optuna.db", "UPDATE trials SET state='WAITING' WHERE number=?", worst_here)
    assert call("gc", "six", "--keep", "1")[0] == 0
    assert here() == sorted([best_first()[0], worst_here])


def test_gc_brings_mlflow_up_first(six: Path, call: Call) -> None:
    """A run that MLflow still lacks needs the files that would go."""
    number = [n for n in best_first() if n in here()][-1]
    ledger = open_study(RunConfig().storage, "six")
    ledger.settle(False)
    ledger.close()
    run_id = run_id_of(TRACKING, "six", number)
    for table in ("latest_metrics", "metrics", "params", "tags", "runs"):
        query(six / "mlflow.db", f"DELETE FROM {table} WHERE run_uuid = ?", run_id)
    code, _, errors = call("gc", "six", "--keep", "1")
    assert (code, errors) == (0, [])
    assert len(records_of_mlflow(six)) == 7
    assert call("doctor", "six")[0] == 0
    assert here() == there() == [best_first()[0]]


def test_gc_of_a_study_that_runs_is_refused(six: Path, call: Call) -> None:
    """Exit code 5, and every file is there."""
    from sweep.ledger.locks import study_lock

    with study_lock(Path("mlruns/.sweep/six"), "six"):
        assert call("gc", "six", "--keep", "1")[0] == 5
    assert len(there()) == 6


def test_gc_without_mlflow_makes_no_store(six: Path, call: Call) -> None:
    """Where the store is gone only the work folder counts."""
    Path("mlflow.db").unlink()
    assert call("gc", "six", "--keep", "1")[0] == 0
    assert here() == best_first()[:1]
    assert not Path("mlflow.db").exists()


# while a search runs

LONG: dict[str, Any] = {
    "study": "long", "trials": 24, "epochs": 1, "space": "mlp_small", "sampler": "random",
    **INLINE, "population": 2,
}  # fmt: skip


def test_a_long_search_never_holds_more_than_it_keeps(six: Path, call: Call) -> None:
    """With --keep 2 the disk holds two, beside those that run or just ended."""
    watch = DiskWatch("long", lambda here, there, _: here <= 2 and there <= 2)
    sweep.run(keep=2, listeners=[watch], **LONG)
    assert watch.n_looks > 5
    assert watch.n_exceeded == 0, watch.seen
    assert here("long") == there("long") == sorted(best_first("long")[:2])
    assert call("doctor", "long")[0] == 0
    assert len(records_of_mlflow(six, "long")) == 25
    assert sweep.best("long").load() is not None


def test_a_long_search_empties_its_work_folder_as_it_goes(six: Path, call: Call) -> None:
    """Without --keep MLflow has all, the work folder the best five."""
    watch = DiskWatch("long", lambda here, _there, _: here <= 5)
    sweep.run(listeners=[watch], **LONG)
    assert watch.n_looks > 5
    assert watch.n_exceeded == 0, watch.seen
    assert len(there("long")) == 24
    assert here("long") == sorted(best_first("long")[:5])
    assert call("doctor", "long")[0] == 0


def test_a_long_search_stays_within_its_limit(six: Path, call: Call) -> None:
    """Some eight of 24 trials' files fit: never more than that, but for what MLflow adds."""
    one = max(stored_bytes(TRACKING, "six").values())
    limit = 8 * one
    watch = DiskWatch("long", lambda _here, _there, n_bytes: n_bytes <= limit + one)
    sweep.run(disk_limit_gb=limit / 1e9, listeners=[watch], **LONG)
    assert watch.n_looks > 5
    assert watch.n_exceeded == 0, watch.seen
    left = model_bytes(artifacts("long")) + folder_bytes(Path("mlruns/.sweep/long/trials"))
    assert limit / 3 < left <= limit
    assert best_first("long")[0] in there("long")
    assert set(there("long")) < set(range(24))
    assert call("doctor", "long")[0] == 0


def test_a_continued_search_keeps_less_from_its_start(six: Path, call: Call) -> None:
    """--keep 1 on a study that kept all: what is too much goes before the first trial ends."""
    watch = DiskWatch("six", lambda _here, there, _: there <= 2)
    before = {n: t.value for n, t in enumerate(trials())}
    sweep.run(study="six", trials=8, keep=1, listeners=[watch], **INLINE)
    assert watch.n_exceeded == 0, watch.seen
    assert here() == there() == best_first()[:1]
    assert {n: t.value for n, t in enumerate(trials()) if n < 6} == before
    assert call("doctor", "six")[0] == 0


def test_a_search_killed_after_its_last_trial_is_tidied(six: Path) -> None:
    """The next run has nothing to train, but still removes what --keep does not want."""
    ledger = open_study(RunConfig().storage, "six")
    ledger.settle(False)
    ledger.close()
    assert sweep.run(study="six", trials=6, keep=2, **INLINE).n_new == 0
    assert here() == there() == sorted(best_first()[:2])


def test_what_a_kill_left_beside_a_verdict_goes(six: Path) -> None:
    """A resume state of a trial that ended and a half-written cursor are gone after the next run,
    also where it has nothing to train; the checkpoint stays."""
    folder = TrialFiles("mlruns/.sweep/six", best_first()[0]).folder
    (folder / "last.ckpt").write_bytes(b"of epoch 2")
    aside = Path("mlruns/.sweep/six/.spool.cursor.77")
    aside.write_text("{}")
    ledger = open_study(RunConfig().storage, "six")
    ledger.settle(False)
    ledger.close()
    sweep.run(study="six", trials=6, **INLINE)
    assert not aside.exists()
    assert {file.name for file in folder.iterdir()} == {"best.ckpt", "model.pt2", "verdict.json"}


def test_a_checkpoint_that_mlflow_refuses_is_not_thrown_away(six: Path, call: Call) -> None:
    """Its folder stays however poor the trial is by now, until MLflow has taken it."""
    number = [n for n in best_first() if n in here()][-1]
    content = (TrialFiles("mlruns/.sweep/six", number).folder / "best.ckpt").read_bytes()
    run_id = run_id_of(TRACKING, "six", number)
    client = mlflow_client(six)
    lost = Path(client.get_run(run_id).info.artifact_uri, "checkpoint", "best.ckpt")
    client.update_run(run_id, "RUNNING")
    lost.unlink()
    lost.parent.rmdir()
    lost.parent.write_text("in the way")
    ledger = open_study(RunConfig().storage, "six")
    ledger.settle(False)
    ledger.close()
    with pytest.raises(UndeliveredError, match="trial"):
        sweep.run(study="six", trials=12, **INLINE)
    assert number in here()
    assert number not in best_first()[:5], "others did better"
    lost.parent.unlink()
    sweep.run(study="six", trials=12, **INLINE)
    assert lost.read_bytes() == content
    assert number not in here()
    assert call("doctor", "six")[0] == 0


def test_a_pruned_trial_keeps_nothing_under_keep(six: Path, call: Call) -> None:
    """Trials that a pruner ended leave no checkpoint, and nobody misses it."""
    sweep.run(
        study="pruned", trials=12, epochs=4, space="mlp_small", pruner="median", keep=1,
        sampler="random", **(INLINE | {"population": 2}),
    )  # fmt: skip
    assert any(str(t.state) == "PRUNED" for t in trials("pruned"))
    (best,) = here("pruned")
    assert there("pruned") == [best]
    assert is_whole_checkpoint(TrialFiles("mlruns/.sweep/pruned", best).folder / "best.ckpt")
    assert call("doctor", "pruned")[0] == 0
