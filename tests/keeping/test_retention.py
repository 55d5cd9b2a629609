"""Whose files stay while a search runs: ranks, threads' words in any order, limits."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweep.config.settings import RunConfig
from sweep.files.trial_files import TrialFiles
from sweep.keeping.retention import KEPT_IN_WORK_DIR, KeepBest, which_go
from sweep.trial import TrialFinished, TrialState

DROPPED = "sweep.checkpoint_dropped"


class Shelf:
    """A KeepBest, and trials whose folders hold a file of so many bytes."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.config = RunConfig(study="shelf", work_dir=str(folder), **settings)
        self.retention = KeepBest(self.config)
        self.dropped: list[int] = []

    def folder(self, number: int) -> Path:
        return TrialFiles(self.config.study_dir, number).folder

    def finish(
        self, number: int, value: float | None, state: TrialState = TrialState.COMPLETE,
        n_bytes: int = 1000,
    ) -> TrialFinished:  # fmt: skip
        """The trial ends; what the driver would tell the tracker of it."""
        self.folder(number).mkdir(parents=True)
        checkpoint = self.folder(number) / "best.ckpt"
        checkpoint.write_bytes(b"x" * n_bytes)
        ended = TrialFinished(number, state, 1, value, 1, {}, 1, str(checkpoint), None)
        return self.retention.finish(ended)

    def stored(self, number: int) -> None:
        """MLflow has the trial's files, and drops what it is to drop."""
        self.dropped += self.retention.stored(number)

    def done(self, number: int, value: float, n_bytes: int = 1000, **more: Any) -> TrialFinished:
        """The trial ends, is closed, and delivered where it has files."""
        record = self.finish(number, value, n_bytes=n_bytes, **more)
        self.retention.closed(number)
        if record.checkpoint is not None:
            self.stored(number)
        return record

    def here(self) -> list[int]:
        return sorted(int(path.name) for path in self.folder(0).parent.iterdir())


@given(
    st.lists(st.integers(1, 9), max_size=30), st.none() | st.integers(1, 7), st.integers(0, 200)
)
def test_the_rule_drops_the_worst_and_fits_the_limit(
    sizes: list[int], keep: int | None, limit: int
) -> None:
    """Whatever files there are: the best stay, in one unbroken row from the best one, those
    without a score go first, and all that stays fits, but for the best one alone."""
    worst_first = [number for number in range(len(sizes)) if number % 4]
    stored = dict(enumerate(sizes))
    gone_here, gone = which_go(worst_first, stored, stored, keep, limit)
    left_here, left = stored.keys() - gone_here, stored.keys() - gone
    assert left_here <= {*worst_first[-min(KEPT_IN_WORK_DIR, keep or KEPT_IN_WORK_DIR) :]}
    ranked = left & {*worst_first}
    assert ranked == {*worst_first[len(worst_first) - len(ranked) :]}
    assert keep is None or len(left) <= keep
    if ranked < {*worst_first} and keep is None:
        assert left == ranked, "those without a score go first"
    n_bytes = sum(stored[n] for n in left_here) + sum(stored[n] for n in left)
    assert n_bytes <= limit or left == {*worst_first[-1:]}
    assert which_go(worst_first, stored, stored, None) == (
        stored.keys() - {*worst_first[-KEPT_IN_WORK_DIR:]}, set(),
    )  # fmt: skip


def test_a_trial_outside_the_best_hands_over_no_checkpoint(tmp_path: Path) -> None:
    """With --keep 2 the third best is never stored, and one that is pushed out is dropped."""
    shelf = Shelf(tmp_path, keep=2)
    assert shelf.done(0, 0.5).checkpoint is not None
    assert shelf.done(1, 0.6).checkpoint is not None
    third = shelf.done(2, 0.4)
    assert (third.checkpoint, third.model_file) == (None, None)
    assert third.tags[DROPPED] == "true"
    assert shelf.dropped == []
    assert shelf.done(3, 0.7).checkpoint is not None
    assert shelf.dropped == [0]
    assert shelf.here() == [1, 3]


def test_an_outdone_trial_stays_until_its_successor_is_stored(tmp_path: Path) -> None:
    """A kill before that leaves the ledger's best trial with its files in MLflow."""
    shelf = Shelf(tmp_path, keep=1)
    shelf.done(0, 0.5)
    shelf.finish(1, 0.6)
    shelf.finish(2, None, TrialState.FAIL)
    shelf.retention.closed(2)
    shelf.stored(2)
    assert shelf.dropped == []
    shelf.retention.closed(1)
    shelf.stored(1)
    assert shelf.dropped == [0]


def test_a_trial_that_went_for_want_of_room_keeps_its_rank(tmp_path: Path) -> None:
    """A worse one does not take its place among the best."""
    shelf = Shelf(tmp_path, keep=3, disk_limit_gb=6e-6)
    for number, value in enumerate((0.9, 0.8, 0.7)):
        shelf.done(number, value)
    shelf.done(3, 0.75, n_bytes=3000)
    late = shelf.done(4, 0.1, n_bytes=1)
    assert late.checkpoint is None


def test_a_smaller_loss_is_the_better_one(tmp_path: Path) -> None:
    """Ranks follow the direction."""
    shelf = Shelf(tmp_path, keep=1, metric="val_loss")
    for number, value in enumerate((0.5, 0.4, 0.6)):
        shelf.done(number, value)
    assert shelf.here() == [1]


def test_not_a_number_and_unfinished_trials(tmp_path: Path) -> None:
    """NaN is worse than any number; a pruned trial keeps nothing; an interrupted one all."""
    shelf = Shelf(tmp_path, keep=1)
    shelf.done(0, math.nan)
    assert shelf.done(1, -5.0).checkpoint is not None
    assert shelf.done(2, 1.0, state=TrialState.PRUNED).checkpoint is None
    waiting = shelf.finish(3, 1.0, TrialState.WAITING)
    shelf.retention.closed(3)
    assert waiting.checkpoint is not None
    assert shelf.here() == [1, 3]


@pytest.mark.parametrize("order", [*itertools.permutations(["closed", "stored", "outdone"])])
def test_a_folder_goes_when_nobody_needs_it(tmp_path: Path, order: tuple[str, ...]) -> None:
    """Only after the ledger and MLflow have it, and five better ones are there."""
    shelf = Shelf(tmp_path)
    shelf.finish(0, 0.1)
    for step in order:
        assert 0 in shelf.here()
        if step == "closed":
            shelf.retention.closed(0)
        elif step == "stored":
            shelf.retention.stored(0)
        else:
            for number in range(1, 6):
                shelf.finish(number, 0.9)
    if order[-1] == "outdone":
        shelf.retention.closed(5)  # any later word of a thread behind
    assert shelf.here() == [1, 2, 3, 4, 5]


def test_a_limit_drops_the_worst_first_and_never_the_best(tmp_path: Path) -> None:
    """2.5 kB hold one trial of 1 kB in both places: poorer ones hand nothing over."""
    shelf = Shelf(tmp_path, disk_limit_gb=2.5e-6)
    told = [shelf.done(n, value) for n, value in enumerate((0.5, 0.9, 0.4, 0.6, 0.7))]
    assert [record.number for record in told if record.checkpoint is not None] == [0, 1]
    assert shelf.dropped == [0]
    assert shelf.here() == [1]
    tiny = Shelf(tmp_path / "tiny", disk_limit_gb=1e-9)
    for number, value in enumerate((0.5, 0.9, 0.4)):
        tiny.done(number, value)
    assert 1 not in tiny.dropped


def test_a_limit_counts_what_is_on_its_way(tmp_path: Path) -> None:
    """Of trials that end before MLflow has taken one of them, those fit the limit that stay."""
    shelf = Shelf(tmp_path, disk_limit_gb=5.5e-6)
    for number in range(8):
        shelf.finish(number, number / 10)
    for number in range(8):
        shelf.retention.closed(number)
        shelf.stored(number)
    left = set(range(8)) - set(shelf.dropped)
    assert left == {6, 7}
    assert shelf.here() == [6, 7]


@pytest.mark.parametrize(("has_model", "n_kept"), [(True, 2), (False, 4)])
def test_a_model_counts_where_there_is_one(tmp_path: Path, has_model: bool, n_kept: int) -> None:
    """Here it is as large as the checkpoint."""
    config = RunConfig(study="models", work_dir=str(tmp_path), disk_limit_gb=4.5e-6)
    retention = KeepBest(config)
    files = [tmp_path / name for name in ("best.ckpt", "model.pt2")]
    for file in files:
        file.write_bytes(b"x" * 1000)
    dropped: list[int] = []
    for number in range(5):
        ended = TrialFinished(
            number,
            TrialState.COMPLETE,
            1,
            number / 10,
            1,
            {},
            1,
            str(files[0]),
            str(files[1]) if has_model else None,
        )
        retention.finish(ended)
        dropped += retention.stored(number)
    assert 5 - len(dropped) == n_kept


def test_pruned_trials_go_first_where_there_is_a_limit(tmp_path: Path) -> None:
    """Their checkpoints are stored, and the first to make room."""
    shelf = Shelf(tmp_path, disk_limit_gb=5.5e-6)
    shelf.done(0, 0.9, state=TrialState.PRUNED)
    shelf.done(1, 0.1)
    shelf.done(2, 0.2)
    assert shelf.dropped == []
    shelf.done(3, 0.3)
    shelf.done(4, 0.4)
    assert shelf.dropped[0] == 0


def test_folders_of_an_earlier_run_wait_for_its_records(tmp_path: Path) -> None:
    """What is not delivered yet stays, though better trials end."""
    from searches import ScriptedStudy

    study = ScriptedStudy(tmp_path)
    trials = study.run(trials=7, sampler="random").trials
    shelf = Shelf(tmp_path / "shelf")
    for trial in trials:
        shelf.folder(trial.number).mkdir(parents=True)
    shelf.retention.recall(trials, {}, is_delivered=False)
    for number in range(7, 13):
        shelf.done(number, 2.0)
    assert set(range(7)) <= set(shelf.here())
    for number in range(7):
        shelf.retention.stored(number)
    assert shelf.here() == list(range(7, 12))


def test_a_trial_of_an_earlier_run_keeps_its_rank(tmp_path: Path) -> None:
    """The best one, delivered only now, is not the first to go."""
    from searches import ScriptedStudy

    study = ScriptedStudy(tmp_path)
    trials = study.run(trials=3, sampler="random").trials
    best = max(trials, key=lambda t: t.value or 0.0)
    shelf = Shelf(tmp_path / "shelf", disk_limit_gb=4.5e-6)
    for trial in trials:
        shelf.folder(trial.number).mkdir(parents=True)
        (shelf.folder(trial.number) / "best.ckpt").write_bytes(b"x" * 500)
    shelf.retention.recall(trials, {}, is_delivered=False)
    for trial in trials:
        shelf.retention.stored(trial.number)
    shelf.done(3, (best.value or 0.0) - 1e-6)
    assert shelf.dropped
    assert best.number not in shelf.dropped
    assert best.number in shelf.here()


class Counted(float):
    """A score that counts how often one is compared with another."""

    n_comparisons = 0

    def __lt__(self, other: float) -> bool:
        Counted.n_comparisons += 1
        return float(self) < float(other)

    def __eq__(self, other: object) -> bool:
        Counted.n_comparisons += 1
        return float(self) == other

    def __hash__(self) -> int:
        return float.__hash__(self)


@pytest.mark.parametrize("are_rising", [False, True])
@pytest.mark.parametrize("limits", [{"keep": 10}, {"disk_limit_gb": 0.001}, {}])
def test_a_decision_looks_at_few_other_trials(
    tmp_path: Path, limits: dict[str, Any], are_rising: bool
) -> None:
    """Each of 10,000 trials is compared with others fewer than 200 times, not 10,000 times."""
    retention = KeepBest(RunConfig(study="many", work_dir=str(tmp_path), **limits))
    rng = random.Random(0)
    scores = [rng.random() for _ in range(10_000)]
    first = Counted.n_comparisons
    for number, score in enumerate(sorted(scores) if are_rising else scores):
        ended = TrialFinished(
            number, TrialState.COMPLETE, 1, Counted(score), 1, {}, 1, "best.ckpt"
        )
        before = Counted.n_comparisons
        told = retention.finish(ended)
        assert Counted.n_comparisons - before < 200
        retention.closed(number)
        if told.checkpoint is not None:
            retention.stored(number)
    assert Counted.n_comparisons > first + 10_000  # they are counted
