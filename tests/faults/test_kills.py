import os
import time

import pytest
from harness import Plan, soak

SEED = int(os.environ.get("SWEEP_SOAK_SEED", time.time_ns() % 1_000_000))


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("population", "n_kills"), [("auto", 15), ("1", 10)])
def test_a_search_that_is_killed_at_any_instant_ends_whole(population, n_kills, tmp_path):
    """Whatever is killed, N trials end up in both stores, once each, with whole curves."""
    print(f"seed {SEED} (SWEEP_SOAK_SEED repeats it)")
    done = soak(Plan(SEED, n_kills, population=population), tmp_path)
    print("\n".join(done.kills))
    assert len(done.kills) == n_kills
    assert not done.violations, (SEED, done.violations, done.kills)
