import time

import pytest
import torch

from sweep.training.fused.threads import BLOCK, ThreadTuner


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def train(tuner: ThreadTuner, n_steps: int, step_s: dict[int, float]) -> list[int]:
    """Steps that take as long as `step_s` says for the threads in use; which those were."""
    used = []
    for _ in range(n_steps):
        tuner.step()
        used.append(torch.get_num_threads())
        time.sleep(step_s[used[-1]])
    return used


@pytest.mark.parametrize(("fast", "step_s"), [(2, {1: 4e-3, 2: 1e-3}), (1, {1: 1e-3, 2: 4e-3})])
def test_the_faster_number_of_threads_trains(fast, step_s):
    """Both are tried, then the faster one is kept."""
    used = train(ThreadTuner(2), 4 * BLOCK, step_s)
    assert set(used) == {1, 2}
    assert set(used[-BLOCK:]) == {fast}


def test_hopeless_threads_are_given_up_at_once():
    """Threads that take longer for one step than one thread for a block get no second step."""
    used = train(ThreadTuner(2), 3 * BLOCK, {1: 1e-3, 2: 5e-2})
    assert used.count(2) == 1


def test_one_thread_is_never_measured():
    """With nothing to choose from, nothing is touched."""
    torch.set_num_threads(2)
    assert set(train(ThreadTuner(1), BLOCK, {2: 0.0})) == {2}
