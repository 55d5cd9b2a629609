"""Workers whose memory grows are replaced; their trials go on as if nothing had happened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import leaky
import optuna
import pytest
from harness import Plan, check
from searches import in_this_process

from sweep.testing import ScriptedExchange, example_task
from sweep.training import make_trainer
from sweep.trial import TrialSpec, derive_seed

PLAIN, FUSED = Plan(0, 0, n_trials=2, epochs=3), Plan(0, 0, n_trials=6, epochs=40)


@pytest.mark.usefixtures("ready_store")
@pytest.mark.parametrize(
    ("plan", "flags", "without_leak"),
    [
        (
            PLAIN,
            ("--module", "leaky:Leaky", "--space", "leaky.yaml"),
            {"module": "leaky:Model", "data": "digits"},
        ),
        (
            FUSED,
            ("--data", "leaky:leaky_blobs", "--checkpoint-interval", "0.1"),
            {"data": "leaky:blobs"},
        ),
    ],
    ids=["plain", "fused"],
)
def test_a_worker_that_grows_is_replaced(
    tmp_path: Path, plan: Plan, flags: tuple[str, ...], without_leak: dict[str, Any]
) -> None:
    """Same numbers, same runs, the curves of a trainer that does not leak; nothing failed."""
    (tmp_path / "leaky.py").write_text(Path(leaky.__file__).read_text())
    (tmp_path / "leaky.yaml").write_text(leaky.SPACE)
    done = in_this_process(
        tmp_path, {}, "run", "--study", "grown", "--trials", str(plan.n_trials), "--epochs",
        str(plan.epochs), "--no-baseline", "--threads", "1", *flags, "--worker-memory",
        str(leaky.LIMIT_GB),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert check(tmp_path, "grown", plan) == []
    notices = [line for line in done.stdout.splitlines() if line.startswith("notice=")]
    replaced = [line for line in notices if "--worker-memory" in line]
    assert replaced, done.stdout
    reason = 'over --worker-memory 0.85: its trials go on in a new one"'
    assert all(line.endswith(reason) for line in replaced)
    # Beside it: what is being loaded, why the path is the plain one, and that exports are slow.
    assert len(notices) - len(replaced) <= 3

    storage = f"sqlite:///{tmp_path}/mlruns/optuna.db"
    trials = optuna.load_study(study_name="grown", storage=storage).trials
    specs = [
        TrialSpec(t.number, hyperparameters(t), derive_seed(0, "init", t.number)) for t in trials
    ]
    exchange = ScriptedExchange(specs)
    make_trainer(example_task(tmp_path, epochs=plan.epochs, **without_leak)).train(exchange)
    for trial in trials:
        whole = exchange.curve(trial.number, "val_acc")
        assert list(trial.intermediate_values.values()) == whole


def hyperparameters(trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    """As a trainer gets them."""
    return dict(trial.user_attrs["sweep:hyperparameters"])
