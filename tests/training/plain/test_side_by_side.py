"""Trials side by side: each is the fit of a Trainer alone that sees the same minibatches."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from own_fits import (
    EPOCHS,
    METRICS,
    PROJECTS,
    STUDY_SEED,
    alone,
    built_by_hand,
    curve_of,
    in_population,
)

from sweep.files.trial_files import RESUME_STATE, TrialFiles
from sweep.testing import ScriptedExchange, example_task
from sweep.training.lightning_trainer import hush_lightning
from sweep.training.plain.trainer import PlainTrainer
from sweep.training.resuming import seed_everything
from sweep.trial import TrialSpec

CHAOTIC = ("cnn",)
"""A bias before BatchNorm has no gradient but rounding, some 1e-17, which AdamW divides by its eps
of 1e-8: with an eps of 1e-3 this case is equal to 1e-10, too."""


def trained(
    folder: Path, case: str, specs: list[TrialSpec], stops: dict[int, int], population: int = 3,
    reason: Any = "pruned",
) -> ScriptedExchange:  # fmt: skip
    """Trials side by side."""
    name, of_data, given = PROJECTS[case]
    task = example_task(
        folder, module=name, data=of_data or "module",
        metric=METRICS.get(case, "val_loss"), direction="minimize", epochs=EPOCHS,
        population=population, names=tuple(given), log_models="none", seed=STUDY_SEED,
        precision="64-true",
    )  # fmt: skip
    exchange = ScriptedExchange(specs, stops, reason)
    PlainTrainer(task).train(exchange)
    return exchange


@pytest.mark.parametrize("case", PROJECTS)
def test_each_trial_is_a_fit_of_its_own(tmp_path: Path, case: str) -> None:
    """The same curve, bit for bit, though a neighbour is pruned and another joins half-way; so
    it is if all are interrupted and resumed."""
    hush_lightning()
    given = PROJECTS[case][2]
    specs = [TrialSpec(number, given, 11 + number) for number in range(5)]
    whole = trained(tmp_path / "whole", case, specs, {1: 1, 2: 3})
    starts = {}
    print(
        case,
        {n: whole.results()[n].notes["sweep.trainer"] for n in range(5)},
        [r.message for r in whole.reports if hasattr(r, "message")],
    )
    for spec in specs:
        result = whole.results()[spec.number]
        assert result.failure is None, result.failure.traceback
        starts[spec.number] = whole.epochs(spec.number)[0].start_epoch
        seed_everything(spec.seed)
        module, data = built_by_hand(case)
        in_population(module, data, starts[spec.number])
        expected = alone(module, data, tmp_path, precision="64-true")
        found = curve_of(whole, spec.number)
        assert len(found) == min({1: 1, 2: 3}.get(spec.number, EPOCHS), len(expected))
        for epoch, (ours, theirs) in enumerate(zip(found, expected, strict=False)):
            rel = 1e-6 if case in CHAOTIC else 1e-10
            assert ours == pytest.approx({k: theirs[k] for k in ours}, rel=rel), (
                spec.number, epoch,
            )  # fmt: skip
    if case != "plateau, stopping, rates":  # it stops by itself
        assert starts == {0: 0, 1: 0, 2: 0, 3: 1, 4: 3}

    first = specs[:3]
    together = trained(tmp_path / "together", case, first, {})
    if all(len(together.epochs(spec.number)) == EPOCHS for spec in first):
        trained(tmp_path / "parts", case, first, dict.fromkeys(range(3), 2), reason="interrupted")
        assert TrialFiles(tmp_path / "parts" / "example", 2).size(RESUME_STATE) > 0
        resumed = [dataclasses.replace(spec, is_resumed=True) for spec in first]
        again = trained(tmp_path / "parts", case, resumed, {})
        for spec in first:
            assert curve_of(again, spec.number) == curve_of(together, spec.number)
