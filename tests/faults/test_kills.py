"""A search that is killed at any instant, and goes on."""

import os
import time

import pytest
from harness import Plan, soak, unsaved
from searches import query

SEED = int(os.environ.get("SWEEP_SOAK_SEED", time.time_ns() % 1_000_000))


@pytest.mark.parametrize(("population", "n_kills", "keep"), [("auto", 2, 2), ("mixed", 2, None)])
def test_a_search_that_is_killed_at_any_instant_ends_whole(population, n_kills, keep, tmp_path):
    """Whatever is killed, N trials end up in both stores, once each, with whole curves; the best
    K of --keep have their files, no other has, and the doctor finds nothing (`make soak` kills
    hundreds of times)."""
    print(f"seed {SEED} (SWEEP_SOAK_SEED repeats it)")
    done = soak(Plan(SEED, n_kills, population=population, keep=keep), tmp_path)
    print("\n".join(done.kills))
    assert len(done.kills) == n_kills
    assert not done.violations, (SEED, done.violations, done.kills)


def test_epochs_without_a_resume_file_count_as_lost(six):
    """An interrupted trial whose curve Optuna has, but no file to go on from, is not saved."""
    assert unsaved(six, "six") == []
    query(six / "mlruns" / "optuna.db", "UPDATE trials SET state = 'WAITING' WHERE number = 2")
    assert unsaved(six, "six") == ["trial 2 has 3 epochs, its resume file 0"]
