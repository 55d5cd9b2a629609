"""`sweep plan`: real calibrations, of which nothing is left."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from searches import Call, children_of, is_alive, start_sweep
from waiting import PATIENCE_S, wait_until

import sweep as library

FUNCTIONS = """
import time


def good(params, report):
    report(params["x"])
    return params["x"] ** 2


def bad(params, report):
    raise ValueError(f"no such thing as {params['x']}")


def vain(params, report):
    for epoch in range(report.epochs):
        time.sleep(0.2)
        report(float("nan") if epoch else params["x"])


def mixed(params, report):
    for epoch in range(report.epochs):
        report(float("nan") if epoch and params["x"] < 0.5 else params["x"])


def slow(params, report):
    for epoch in range(report.epochs):
        time.sleep(0.1)
        report(params["x"])
"""


def test_a_plan_says_what_a_search_takes_and_leaves_nothing(call: Call, tmp_path: Path) -> None:
    """All of a small search is measured: time, memory, files and money; the folder is empty."""
    code, out, err = call(
        "plan", "--executor", "inline", "--population", "1", "--threads", "1", "--space",
        "mlp_small", "--trials", "6", "--epochs", "2", "--for", "10m", "--log-models", "none",
        "--max-devices", "2", "--price-per-hour", "3.60", "--format", "json",
    )  # fmt: skip
    assert (code, err) == (0, [])
    found: dict[str, Any] = json.loads(out)
    measured, (one, two) = found["measured"], found["estimates"]
    assert (found["study"], found["trials"], found["epochs"]) == ("digits-mlp_small", 6, 2)
    assert (measured["is_whole"], measured["n_ended"], measured["work"]) == (True, 6, 6.0)
    assert measured["engines"] == ["plain"]
    assert measured["worker_bytes"] > 1e8
    assert measured["file_bytes"]["best.ckpt"] > 1000
    assert found["mlflow_bytes"] > found["work_dir_bytes"] > 0
    assert found["database_bytes"] > 1000
    assert one["time_s"] == pytest.approx(measured["total_s"])
    assert one["cost"] == pytest.approx(one["time_s"] / 1000)
    assert (two["devices"], two["workers"], two["basis"][:7]) == (2, 2, "assumed")
    assert [*tmp_path.iterdir()] == []


def test_ctrl_c_ends_a_plan(tmp_path: Path) -> None:
    """Exit code 130, one line, no worker, no folder."""
    (tmp_path / "tmp").mkdir()
    cache = str(tmp_path.parent / "inductor")  # torch's own, else a folder of TMPDIR
    env = {"TMPDIR": str(tmp_path / "tmp"), "TORCHINDUCTOR_CACHE_DIR": cache}
    long = ("plan", "--epochs", "100000", "--for", "10m", "--checkpoint-interval", "0.5s",
            "--population", "1", "--workers", "1")  # fmt: skip
    process = start_sweep(tmp_path, *long, env=env)
    wait_until(lambda: any(tmp_path.rglob("last.ckpt")), "no trial was trained")
    workers = children_of(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, len(err.splitlines())) == (130, 1)
    assert "interrupted: nothing is kept" in err
    wait_until(lambda: not any(map(is_alive, workers)), "a worker is left")
    assert [p.name for p in tmp_path.rglob("*")] == ["tmp"]


def test_a_plan_stops_at_its_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second of a search of minutes, from Python; the estimate is for all of it."""
    (tmp_path / "f.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    plan = library.plan(
        module="f.py:slow", kind="objective", vary={"x": "0.0..1.0"}, trials=200, epochs=5,
        executor="inline", for_time="2s",
    )  # fmt: skip
    assert not plan.measured.is_whole
    assert 2 < plan.measured.n_ended < 10
    assert plan.estimates[0].time_s > 200 * 0.5
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "__pycache__") == ["f.py"]


def test_a_failed_trial_counts_for_what_it_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch of ten, not a whole trial; how many failed is said, and why."""
    (tmp_path / "f.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    plan = library.plan(
        module="f.py:mixed", kind="objective", vary={"x": "0.0..1.0"}, trials=8, epochs=10,
        executor="inline", sampler="random", for_time="1m",
    )  # fmt: skip
    found = plan.measured
    assert found.n_failed > 0 < found.n_ended == 8 - found.n_failed
    assert found.n_ended < found.work <= found.n_ended + 0.2 * found.n_failed
    assert plan.notes[0].startswith(f"{found.n_failed} of 8 trials failed: ")


@pytest.mark.parametrize(
    ("flags", "code", "line"),
    [
        (("--for", "0s"), 2, "--for must be a positive time"),
        (("--max-devices", "0"), 2, "--max-devices must be a whole number >= 1"),
        (("--price-per-hour", "free"), 2, "--price-per-hour must be a positive amount"),
        (("--module", "f.py:godo", "--kind", "objective"), 2, "did you mean good?"),
        (("--module", "f.py:bad", "--kind", "objective"), 6, "the first trials fail: "),
        (("--module", "f.py:vain", "--kind", "objective", "--for", "1s"), 6, "trials fail: "),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_plan_that_cannot_be_made_is_one_line(
    call: Call, tmp_path: Path, flags: tuple[str, ...], code: int, line: str
) -> None:
    """As in `sweep run`."""
    (tmp_path / "f.py").write_text(FUNCTIONS)
    own = ("--vary", "x=0.0..1.0") if "--module" in flags else ()
    got, out, err = call("plan", "--executor", "inline", "--population", "1", *own, *flags)
    assert got == code, (out, err)
    assert line in "".join(err)
    assert len(err) == 1
