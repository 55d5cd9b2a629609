"""Sentences about trials: what to widen, when to stop, which choice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState as OptunaState
from optuna.trial import create_trial

from sweep.appraisal import Appraisal, Interval
from sweep.ledger.trials import LedgerTrial
from sweep.objective import Objective
from sweep.reporting.report import findings
from sweep.reporting.report.axes import axes_of
from sweep.trial import TrialState

ACCURACY = Objective("val_acc", "maximize")
LOSS = Objective("val_loss", "minimize")
SPACE: dict[str, BaseDistribution] = {
    "lr": FloatDistribution(1e-4, 1.0, log=True),
    "hidden": IntDistribution(32, 512),
    "optimizer": CategoricalDistribution(["SGD", "Adam"]),
    "batch": CategoricalDistribution([32, 64, 128]),
}


def trial(
    number: int, value: float | None, params: dict[str, Any], *, best_epoch: int = 5,
    state: TrialState = TrialState.COMPLETE, curve: dict[int, float] | None = None,
) -> LedgerTrial:  # fmt: skip
    known = {name: SPACE[name] for name in params}
    frozen = create_trial(state=OptunaState.RUNNING, params=params, distributions=known)
    return LedgerTrial(
        number, state, value, params, params, {"best_epoch": best_epoch}, curve or {}, 0, frozen
    )


def spread(place: str, best: list[Any], others: list[Any], **more: Any) -> list[LedgerTrial]:
    """The best three with the values `best`, ten worse ones with `others` in turn."""
    values = [*best, *(others[i % len(others)] for i in range(10))]
    return [trial(i, 1 - i / 100, {place: value}, **more) for i, value in enumerate(values)]


def bounds(trials: list[LedgerTrial], objective: Objective = ACCURACY) -> str:
    return " ".join(findings.about_bounds(axes_of(trials), trials, objective))


def test_a_range_whose_end_is_best_is_to_be_widened() -> None:
    """At its upper end, at its lower one, on the space's scale; numbers as choices, too."""
    upper = spread("hidden", [505, 512, 500], [40, 300])
    assert bounds(upper).startswith("The best three lie at the upper end of `hidden`")
    assert "(505, 512 and 500 of 32 to 512): widen it." in bounds(upper)
    trials = spread("hidden", [505, 512, 500], [40, 300])
    (said,) = findings.about_bounds(axes_of(trials), trials, ACCURACY, {"lr"})
    assert said.endswith("widen it, though its effect cannot be told from noise.")
    assert findings.about_bounds(axes_of(trials), trials, ACCURACY, {"hidden"}) == [bounds(trials)]
    assert "lower end of `lr`" in bounds(spread("lr", [1e-4, 2e-4, 1.5e-4], [0.01, 1.0]))
    assert "upper end of `batch`" in bounds(spread("batch", [128, 128, 128], [32, 64]))


def test_a_range_is_wide_enough_otherwise() -> None:
    """Best in the middle, one of three elsewhere, few trials, or no order among the choices."""
    assert "none needs to be wider" in bounds(spread("hidden", [250, 300, 260], [40, 512]))
    assert "none needs to be wider" in bounds(spread("hidden", [505, 512, 250], [40, 300]))
    assert "none needs" in bounds(spread("lr", [0.05, 0.04, 0.06], [1e-3, 1.0]))
    assert "none needs" in bounds(spread("optimizer", ["Adam"] * 3, ["SGD"]))
    assert bounds(spread("hidden", [505, 512, 500], [40])[:5]) == ""


def test_the_best_are_the_lowest_where_the_lowest_is_best() -> None:
    """A loss: the trials that are last by value."""
    trials = spread("hidden", [40, 300, 200], [510])
    assert "upper end of `hidden`" in bounds(trials, LOSS)


def test_epochs_after_which_nothing_improved() -> None:
    """Said if no trial did; the other way round if the best ones were not done."""
    done = spread("hidden", [40, 50, 60], [300], best_epoch=6)
    (said,) = findings.about_epochs(done, ACCURACY, 10)
    assert said == "No trial improved after epoch 6 of 10: 6 epochs are enough."
    rising = spread("hidden", [40, 50, 60], [300], best_epoch=10)
    (said,) = findings.about_epochs(rising, ACCURACY, 10)
    assert said.startswith("5 of the best five were at their best in the last epoch (10)")
    late = [*done[:10], *(trial(i, 0.1, {"hidden": 40}, best_epoch=10) for i in range(10, 13))]
    (said,) = findings.about_epochs(late, ACCURACY, 10)
    assert said.startswith("None of the best five improved after epoch 6 of 10")
    assert findings.about_epochs(done[:3], ACCURACY, 10) == []


def test_what_the_last_epochs_brought() -> None:
    """On average of the best five, against what the score can be told to; of a loss, too."""
    appraisal = Appraisal(0.99, 0, Interval(0.97, 0.95, 0.98))

    def said(objective: Objective, sign: int, appraisal: Appraisal | None) -> list[str]:
        curves = [{6: 0.9 - sign * 0.02, 7: 0.9 + sign * 0.01 * i} for i in range(3)]
        trials = [
            trial(i, curve[7], {"hidden": 40}, curve=curve) for i, curve in enumerate(curves * 2)
        ]
        return findings.about_last_epochs(trials, objective, 8, appraisal)

    (rising,) = said(ACCURACY, 1, appraisal)
    assert rising == (
        "Epochs 7 to 8 brought the best five 3.20 points on average, more than the score is "
        "uncertain by: more epochs should gain."
    )
    assert said(LOSS, -1, None) == ["Epochs 7 to 8 brought the best five 0.032 on average."]
    (flat,) = said(ACCURACY, 1, replace(appraisal, corrected=Interval(0.97, 0.9, 1.0)))
    assert flat.endswith("less than the score is uncertain by: more epochs would gain little.")
    assert findings.about_last_epochs([], ACCURACY, 8, None) == []


def test_when_to_stop() -> None:
    """Against what the score can be told to; nothing of that where it cannot."""
    trials = spread("hidden", [40, 50, 60], [300])
    appraisal = Appraisal(0.99, 0, Interval(0.97, 0.95, 0.98), more=(13, 0.002))

    def said(appraisal: Appraisal | None, best: int = 0) -> list[str]:
        return findings.about_stopping(trials[best], trials, appraisal, ACCURACY.direction)

    found, advice = said(appraisal)
    assert found == "The best score came from trial 0; none of the 12 after it beat it."
    assert advice == (
        "13 more trials like these would gain about 0.20 points, less than the score is uncertain "
        "by (1.50 points): stop here, and confirm the best."
    )
    (_, advice) = said(replace(appraisal, more=(13, 0.02)))
    assert advice.endswith(
        "2.00 points, more than the score is uncertain by (1.50 points): going on pays."
    )
    assert said(replace(appraisal, corrected=None), 12) == [
        "The best score came from trial 12, the last one."
    ]
    assert said(None, 11)[0].endswith("trial 11; the one after it did not beat it.")


def test_choices_come_with_best_and_median() -> None:
    """The best first; pruned trials do not count."""
    trials = [
        trial(0, 0.9, {"optimizer": "SGD"}), trial(1, 0.99, {"optimizer": "Adam"}),
        trial(2, 0.7, {"optimizer": "SGD"}), trial(3, 0.93, {"optimizer": "Adam"}),
        trial(4, 1.0, {"optimizer": "SGD"}, state=TrialState.PRUNED),
    ]  # fmt: skip
    (said,) = findings.about_choices(axes_of(trials), trials, ACCURACY)
    assert said == (
        "Best score by `optimizer`: `Adam` 0.9900 (median 0.9600 of 2), `SGD` 0.9000 "
        "(median 0.8000 of 2, 1 more pruned)."
    )


def test_axes_are_what_varies() -> None:
    """With the bounds and the scale of the space; a trial without a parameter has None."""
    trials = [
        trial(0, 0.5, {"lr": 0.01, "optimizer": "Adam", "batch": 64}),
        trial(1, 0.5, {"lr": 0.02, "optimizer": "Adam"}),
        trial(2, 0.5, {"lr": 0.02, "optimizer": "Adam", "batch": 32}),
    ]
    lr, batch = axes_of(trials)
    assert (lr.name, lr.is_log, lr.low, lr.high) == ("lr", True, 1e-4, 1.0)
    assert lr.place(0.01) == 0.5
    assert (batch.choices, batch.values, batch.is_ordered) == (
        ("32", "64", "128"),
        (1.0, None, 0.0),
        True,
    )


def test_an_end_without_a_good_trial_is_to_be_narrowed() -> None:
    """Eight of twenty trials and more have rates above 0.1, none in the better half; a good one
    among them, or fewer, and nothing is said."""

    def said(rates: list[float]) -> str:
        trials = [trial(i, 1 - i / 100, {"lr": rate}) for i, rate in enumerate(rates)]
        return " ".join(findings.about_useless_ends(axes_of(trials), trials, ACCURACY))

    good = [0.01, 0.02, 0.03, 0.04, 0.1, 0.06, 0.07, 0.08, 0.09, 0.05]
    poor = [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert "None of the 8 trials with `lr` above 0.1 is among" in said([*good, 1e-3, *poor])
    assert "above" not in said([0.95, *good, 1e-3, *poor])
    assert "above" not in said([*good, 1e-3, *poor[:5]])


def test_lists_that_optuna_did_not_draw_are_on_the_axes() -> None:
    """The baseline has layers, though not from the space."""
    known = {
        "hidden.n_layers": IntDistribution(1, 2), "hidden.0": IntDistribution(8, 64),
        "hidden.1": IntDistribution(8, 64),
    }  # fmt: skip
    first, second = ({"hidden.n_layers": 2, "hidden.0": 9, "hidden.1": 8}, {})
    trials = [
        LedgerTrial(
            number, TrialState.COMPLETE, 0.5, params, {"hidden": layers}, {}, {}, 0,
            create_trial(
                state=OptunaState.RUNNING, params=params,
                distributions={name: known[name] for name in params},
            ),
        )
        for number, (params, layers) in enumerate([(first, (9, 8)), (second, (64,))])
    ]  # fmt: skip
    axes = {axis.name: axis.values for axis in axes_of(trials)}
    assert axes == {"hidden.n_layers": (2.0, 1.0), "hidden.0": (9.0, 64.0)}
