"""The arithmetic of a plan, from a calibration given by hand."""

from __future__ import annotations

from typing import Any

import pytest

from sweep.config.settings import RunConfig
from sweep.search.calibration import Calibration, seconds_of_a_trial
from sweep.search.plan import Plan, plan_of
from sweep.space import parse_space

SPACE = "# A line.\nparameters:\n  lr: {float: [1e-4, 0.1], log: true}\nfixed: {hidden: [8]}\n"


def plan(changes: dict[str, Any], max_devices: int = 1, **settings: Any) -> Plan:
    """Of 100 trials, of which 10 trained in 20 s, after 5 s of start and before 1 s of end."""
    values: dict[str, Any] = {
        "device": "cpu", "engines": ("fused",), "n_slots": 4, "n_workers": 1, "n_devices": 1,
        "said": (),
        "total_s": 26.0, "start_s": 5.0, "measured_s": 20.0, "late_s": 0.0, "trial_s": 2.0,
        "end_s": 1.0, "work": 10.0, "slowest_s": 8.0, "spread": 0.2, "n_ended": 8,
        "n_failed": 0, "failure": "",
        "is_whole": False, "worker_bytes": 500_000_000, "trial_bytes": 1_000_000,
        "file_bytes": {"best.ckpt": 1e6, "model.pt2": 2e6, "last.ckpt": 3e6}, "record_bytes": 1e4,
    }  # fmt: skip
    config = RunConfig(**({"trials": 100, "epochs": 10, "baseline": False} | settings))
    space = parse_space(SPACE, "one")
    return plan_of(config, space, Calibration(**(values | changes)), max_devices, 3600.0)


def test_trials_go_on_as_fast_as_they_were_measured() -> None:
    """6 s besides, 2 s a trial; with several devices each has its share and its own start."""
    found = plan({}, max_devices=4)
    assert [e.time_s for e in found.estimates] == [206.0, 106.0, 74.0, 56.0]
    assert [e.cost for e in found.estimates] == [206.0, 212.0, 222.0, 224.0]
    one = found.estimates[0]
    assert (one.low_s, one.high_s) == pytest.approx((0.8 * 206, 1.2 * 206))
    assert found.epochs_per_s == 5.0


def test_all_devices_that_were_used_are_billed() -> None:
    """Eight GPUs with a worker each; the next row has sixteen, and 20 are no third."""
    found = plan({"n_workers": 8, "n_devices": 8}, max_devices=20)
    assert [(e.devices, e.workers) for e in found.estimates] == [(8, 8), (16, 16)]
    one, two = found.estimates
    assert (one.time_s, one.cost) == (6 + 13 * 2.0, 8 * one.time_s)
    assert (two.cost, two.basis) == (16 * two.time_s, "assumed: each 8 as fast as these")
    assert len(plan({"n_workers": 8, "n_devices": 8}).estimates) == 1


def test_a_few_trials_take_as_long_as_the_slowest() -> None:
    """Two workers share three trials: one has two of them; none is faster than it was alone."""
    two = {"n_workers": 2, "slowest_s": 2.0}
    assert plan(two, trials=3).estimates[0].time_s == 6.0 + 2 * 2.0
    assert plan({"slowest_s": 30.0}, trials=2).estimates[0].time_s == 36.0


def test_workers_that_came_later_cost_time_once() -> None:
    """Of two workers one came 10 s late; then each trains 50 trials."""
    late = {"n_workers": 2, "late_s": 5.0}
    assert plan(late).estimates[0].time_s == 6.0 + 5.0 + 50 * 2.0


def test_what_was_measured_whole_is_not_estimated() -> None:
    """The time is its own, the uncertainty that of one run to the next."""
    one = plan({"is_whole": True, "spread": 0.5}, trials=10).estimates[0]
    assert (one.time_s, one.basis) == (26.0, "measured to its end")
    assert (one.low_s, one.high_s) == pytest.approx((26 * 0.9, 26 * 1.1))


def test_disk_follows_keep_and_log_models() -> None:
    """The best five in the work folder with four resume files; K checkpoints in MLflow."""
    found = plan({})
    assert found.work_dir_bytes == 5 * 3e6 + 4 * 3e6
    assert (found.mlflow_bytes, found.database_bytes) == (100 * 3e6, 100 * 1e4)
    assert plan({}, keep=10, log_models="none").mlflow_bytes == 10 * 1e6
    assert 100e6 + 20e6 < plan({}, log_models="best:10").mlflow_bytes < 100e6 + 80e6


def test_what_the_numbers_leave_out_is_said() -> None:
    """A pruner, a time limit, a trial's time limit, a space without so many configurations."""
    failed = {"n_ended": 0, "n_failed": 2, "failure": "x is nan"}
    found = plan(failed, pruner="asha", timeout_s=60.0, trial_timeout_s=5.0)
    assert [note.partition(":")[0].partition(" ")[0] for note in found.notes] == [
        "an", "--timeout", "a", "2", "no",
    ]  # fmt: skip
    assert "about 4 calls" in found.notes[1]
    assert plan({}).notes == ()


def test_the_ends_of_trials_belong_to_those_that_ended() -> None:
    """20 s, of which 12 in training: 8 trials, and half of each of 8 others."""
    assert seconds_of_a_trial(20.0, 12.0, 12.0, n_ended=8, n_at_once=8) == 1.0 + 8 / 8
    assert seconds_of_a_trial(20.0, 12.0, 10.0, n_ended=2, n_at_once=8) == 2.0
    assert seconds_of_a_trial(20.0, 30.0, 10.0, n_ended=8, n_at_once=8) == 2.0
