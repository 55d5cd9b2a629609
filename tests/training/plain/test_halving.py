"""Where memory runs out, fewer trials of a user's module go on; none loses an epoch it kept."""

from __future__ import annotations

from pathlib import Path

import projects
import pytest
from own_fits import EPOCHS, STUDY_SEED, alone, in_population

from sweep.testing import ScriptedExchange, example_task
from sweep.training.lightning_trainer import hush_lightning
from sweep.training.plain.trainer import PlainTrainer
from sweep.training.resuming import seed_everything
from sweep.trial import Notice, TrialSpec


def test_half_as_many_go_on_from_where_they_were(tmp_path: Path) -> None:
    """Four do not fit in their third epoch: two train to the end, then the others."""
    hush_lightning()
    specs = [TrialSpec(n, {"lr": 0.01 * (n + 1)}, seed=n) for n in range(4)]
    task = example_task(
        tmp_path, module="projects:Greedy", data="projects:Points", metric="val_loss",
        epochs=EPOCHS, direction="minimize", population=4, log_models="none", names=("lr",),
        seed=STUDY_SEED, precision="64-true", checkpoint_interval_s=0.0,
    )  # fmt: skip
    exchange = ScriptedExchange(specs)
    PlainTrainer(task).train(exchange)
    said = [r.message for r in exchange.reports if isinstance(r, Notice)]
    assert "out of memory with 4 trials at a time: going on with 2" in said
    for spec in specs:
        result, reports = exchange.results()[spec.number], exchange.epochs(spec.number)
        assert result.failure is None
        assert [r.epoch for r in reports if not r.is_replay] == [1, 2, 3, 4]
        seed_everything(spec.seed)
        module, data = projects.Line(**spec.hyperparameters), projects.Points()
        in_population(module, data, 0)
        wanted = [m["val_loss"] for m in alone(module, data, tmp_path, "64-true")]
        found = {r.epoch: r.metrics["val_loss"] for r in reports}
        assert [found[n + 1] for n in range(EPOCHS)] == pytest.approx(wanted, rel=1e-10)
