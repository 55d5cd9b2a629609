import os
import time

import pytest
from harness import Plan, soak

SEED = int(os.environ.get("SWEEP_SOAK_SEED", time.time_ns() % 1_000_000))


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("population", "n_kills", "keep"), [("auto", 15, 2), ("1", 10, None)])
def test_a_search_that_is_killed_at_any_instant_ends_whole(population, n_kills, keep, tmp_path):
    """Whatever is killed, N trials end up in both stores, once each, with whole curves; the best
    K of --keep have their files, no other has, and the doctor finds nothing."""
    print(f"seed {SEED} (SWEEP_SOAK_SEED repeats it)")
    done = soak(Plan(SEED, n_kills, population=population, keep=keep), tmp_path)
    print("\n".join(done.kills))
    assert len(done.kills) == n_kills
    assert not done.violations, (SEED, done.violations, done.kills)
