"""Several searches that start at once in a folder that has no stores yet."""

from pathlib import Path

from harness import Plan, check
from searches import start_sweep

N = 3


def test_searches_in_one_fresh_folder_all_finish(tmp_path: Path) -> None:
    """Started in the same instant on stores that do not exist yet, each ends whole."""
    plan = Plan(seed=0, n_kills=0, n_trials=2, epochs=2)
    processes = [
        start_sweep(
            tmp_path, "run", "--study", f"crowd{i}", "--trials", "2", "--epochs", "2",
            "--threads", "1", "--executor", "inline",
        )
        for i in range(N)
    ]  # fmt: skip
    results = [process.communicate(timeout=500) for process in processes]
    assert [process.returncode for process in processes] == [0] * N, results
    assert [check(tmp_path, f"crowd{i}", plan) for i in range(N)] == [[]] * N
