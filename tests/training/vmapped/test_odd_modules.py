"""What a step of many trials cannot do as each alone, each does alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import odd_modules
import projects
import pytest
import torch
from own_fits import EPOCHS, STUDY_SEED, alone, curve_of, in_population
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from sweep.testing import ScriptedExchange, example_task
from sweep.training.lightning_trainer import hush_lightning
from sweep.training.plain.trainer import PlainTrainer
from sweep.training.resuming import seed_everything
from sweep.training.vmapped.tidy import has_sizes_of_values, tidy
from sweep.trial import Notice, TrialSpec

TOGETHER, EACH = "vmapped", "side by side"
RUNGS = {
    "Scaled": TOGETHER, "OnViews": TOGETHER, "Masked": TOGETHER, "ByClosure": EACH, "Nested": EACH,
    "Replaced": EACH, "Hooked": EACH, "Averaged": EACH, "InPlace": EACH, "LogsWeights": TOGETHER,
    "AsksForValues": TOGETHER,
}  # fmt: skip
GIVEN = ({"lr": 0.05, "scale": 1.0}, {"lr": 0.02, "scale": 3.0}, {"lr": 0.03, "scale": 0.5})


def trained(
    folder: Path, name: str, given: Sequence[Mapping[str, Any]], log_models: str = "none"
) -> ScriptedExchange:
    """Trials side by side, in float64."""
    hush_lightning()
    task = example_task(
        folder, module=f"odd_modules:{name}", data="projects:Points", metric="val_loss",
        epochs=EPOCHS, direction="minimize", population=3, log_models=log_models, names=("lr",),
        seed=STUDY_SEED, precision="64-true",
    )  # fmt: skip
    exchange = ScriptedExchange([TrialSpec(n, one, seed=n) for n, one in enumerate(given)])
    PlainTrainer(task).train(exchange)
    return exchange


def see_that_it_is_as_alone(
    exchange: ScriptedExchange, name: str, number: int, given: Mapping[str, Any], folder: Path
) -> None:
    """Its metrics are those of a Trainer alone."""
    seed_everything(number)
    module, data = getattr(odd_modules, name)(**given), projects.Points()
    in_population(module, data, 0)
    wanted = alone(module, data, folder, "64-true")
    found = curve_of(exchange, number)
    assert len(found) == EPOCHS
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours["val_loss"] == pytest.approx(theirs["val_loss"], rel=1e-10), given
        assert ours == pytest.approx(theirs, rel=1e-5), given  # means are in float32


@pytest.mark.parametrize("name", RUNGS)
def test_each_trial_has_the_curve_of_a_trainer_alone(tmp_path: Path, name: str) -> None:
    """Whatever its module's habits are."""
    exchange = trained(tmp_path, name, GIVEN)
    said = [report.message for report in exchange.reports if isinstance(report, Notice)]
    assert exchange.results()[1].notes["sweep.trainer"] == RUNGS[name], said
    for number, given in enumerate(GIVEN):
        see_that_it_is_as_alone(exchange, name, number, given, tmp_path)


def test_models_hold_one_trials_weights(tmp_path: Path) -> None:
    """torch.export warns of parts of one memory; warnings are errors here."""
    exchange = trained(tmp_path, "Scaled", GIVEN, log_models="all")
    said = [report.message for report in exchange.reports if isinstance(report, Notice)]
    for result in exchange.results().values():
        assert result.notes["sweep.trainer"] == TOGETHER
        assert result.has_model, said


@pytest.mark.parametrize("name", ["Bounded", "Counting"])
def test_one_that_raises_an_error_fails_alone(tmp_path: Path, name: str) -> None:
    """Its neighbours go on as a Trainer alone would."""
    given = [{"lr": 0.05}, {"lr": 1e200}, {"lr": 0.02}]
    exchange = trained(tmp_path, name, given)
    results = exchange.results()
    assert results[1].failure is not None
    for number in (0, 2):
        assert results[number].failure is None, results[number]
        see_that_it_is_as_alone(exchange, name, number, given[number], tmp_path)


STEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "columns": lambda x: x[:, 0] + 10 * x[:, 1],
    "rows times one": lambda x: 1.0 * x[0] + 10 * (1.0 * x[1]),
    "views of products": lambda x: (1.0 * x[1]).view(3, 1) + (1.0 * x[2]).view(3, 1) * 5,
    "there and back": lambda x: x.t().t() + x.view(9).view(3, 3) + x.detach().t(),
    "changed in place": lambda x: (1.0 * x).add_(x.t()) + 1.0 * x,
    "product and sum": lambda x: torch.bmm(x[None], x[None]) + x[None, :1],
    "product used twice": lambda x: (y := torch.bmm(x[None], x[None])) + x[None, :1] + y,
    "product transposed": lambda x: torch.bmm(x[None], x.t()[None] + x).transpose(1, 2) + x,
    "product by memory": lambda x: torch.bmm(x[None], x[None] + 1).mT.as_strided((9,), (1,)),
    "slices": lambda x: x[1:] * x[:-1] + x[0:2] * x[1:3],
}


@pytest.mark.parametrize("name", STEPS)
def test_a_tidy_graph_gives_the_same(name: str) -> None:
    """Views of one memory at other places are other tensors."""
    x = torch.arange(9, dtype=torch.float64).view(3, 3) + 1
    traced = tidy(make_fx(STEPS[name], tracing_mode="fake")(x))
    assert torch.equal(traced(x.clone()), STEPS[name](x.clone()))


@pytest.mark.parametrize(
    ("step", "depends"),
    [
        (lambda x: x[x > 3].sum(), True),
        (lambda x: torch.nonzero(x).sum(), True),
        (lambda x: x.masked_select(x > 3).sum(), True),
        (lambda x: x[torch.tensor([0, 2])].sum(), False),
        (lambda x: torch.where(x > 3, x, 0).sum(), False),
    ],
)
def test_sizes_that_depend_on_values_are_seen(
    step: Callable[[Tensor], Tensor], depends: bool
) -> None:
    """A traced step would keep the first minibatch's size."""
    traced = make_fx(step, tracing_mode="real")(torch.arange(9.0).view(3, 3))
    assert has_sizes_of_values(traced) is depends
