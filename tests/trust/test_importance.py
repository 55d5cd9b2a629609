"""Importance against known truths."""

from __future__ import annotations

import numpy as np

from sweep.trust.importance import Column, better_half, importances

N_SEARCHES = 60


def search(seed: int, n: int, effect: float = 1.0) -> tuple[dict[str, Column], list[float | None]]:
    """lr and optimizer count (unless `effect` is 0), four others do not; the rest is noise."""
    rng = np.random.default_rng(seed)
    lr, optimizer = rng.uniform(-4, -1, n), rng.integers(0, 3, n)
    axes = {
        "lr": Column(tuple(10**lr)),
        "optimizer": Column(tuple(map(float, optimizer)), is_choice=True),
        **{f"x{i}": Column(tuple(rng.uniform(0, 1, n))) for i in range(4)},
    }
    scores = effect * (-((lr + 2.2) ** 2) + 0.5 * (optimizer == 1)) + 0.3 * rng.normal(size=n)
    return axes, list(scores)


def test_what_matters_is_found_and_what_does_not_is_not() -> None:
    """At 100 trials: always the rate, nearly always the optimizer; a false alarm in few."""
    found = [{i.name: i for i in importances(*search(s, 100))} for s in range(N_SEARCHES)]
    assert all(one["lr"].is_sure for one in found)
    assert sum(one["optimizer"].is_sure for one in found) >= 0.9 * N_SEARCHES
    alarms = sum(any(one[f"x{i}"].is_sure for i in range(4)) for one in found)
    assert alarms <= 0.12 * N_SEARCHES  # 5 % are meant
    assert all(one["lr"].low <= one["lr"].share <= one["lr"].high for one in found)


def test_noise_alone_seldom_matters() -> None:
    """No parameter counts: an alarm in about one search of twenty, all parameters together."""
    alarms = [
        any(one.is_sure for one in importances(*search(s, 60, effect=0)))
        for s in range(N_SEARCHES)
    ]
    assert sum(alarms) <= 0.12 * N_SEARCHES


def test_noise_has_no_share_on_average() -> None:
    """Six bins of sixty trials explain a twelfth of any ranks; that much is taken off."""
    shares = [
        one.share for s in range(N_SEARCHES) for one in importances(*search(s, 60, effect=0))
    ]
    assert np.mean(shares) < 0.04


def test_the_share_is_that_of_the_variance() -> None:
    """Two independent parameters with variances 4 to 1 and no noise: shares of 0.8 and 0.2."""
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 2, 2000), rng.integers(0, 2, 2000)
    axes = {
        "a": Column(tuple(map(float, a)), is_choice=True),
        "b": Column(tuple(map(float, b)), is_choice=True),
    }
    found = {one.name: one.share for one in importances(axes, list(2.0 * a + b))}
    assert abs(found["a"] - 0.8) < 0.03  # four scores, about as frequent: even ranks
    assert abs(found["b"] - 0.2) < 0.03


def test_a_parameter_that_some_trials_lack_is_told_from_its_presence() -> None:
    """Trials without momentum are better: that is its importance, whatever its values."""
    rng = np.random.default_rng(2)
    has = rng.integers(0, 2, 80)
    values = tuple(float(rng.uniform()) if one else None for one in has)
    axes = {"momentum": Column(values)}
    (found,) = importances(axes, list(-1.0 * has + 0.1 * rng.normal(size=80)))
    assert found.is_sure
    assert found.share > 0.5


def test_a_choice_has_the_credit_for_what_it_brings_along() -> None:
    """Momentum is there for one optimizer alone, which is worse; its values do not count."""
    rng = np.random.default_rng(3)
    optimizer = rng.integers(0, 2, 60)
    values = tuple(float(rng.uniform()) if one else None for one in optimizer)
    axes = {
        "momentum": Column(values),
        "optimizer": Column(tuple(map(float, optimizer)), is_choice=True),
    }
    scores = list(-1.0 * optimizer + 0.3 * rng.normal(size=60))
    found = {one.name: one for one in importances(axes, scores)}
    assert found["optimizer"].share > 0.5
    assert found["momentum"].share < 0.1


def test_values_at_the_upper_end_do_not_vanish() -> None:
    """One or two layers, most of them two, as a sampler that learns draws them."""
    rng = np.random.default_rng(4)
    layers = np.array([1.0] * 9 + [2.0] * 11)
    axes = {"layers": Column(tuple(layers))}
    (found,) = importances(axes, list(3 * layers + 0.1 * rng.normal(size=20)))
    assert found.is_sure


def test_scores_without_noise_are_explained_in_full() -> None:
    """One parameter says all; the other one nothing, with no division by what is left."""
    layers = np.array([1.0, 2.0] * 10)
    axes = {
        "layers": Column(tuple(layers)),
        "x": Column(tuple(np.linspace(0.0, 1.0, 20))),
    }
    first, second = importances(axes, list(layers))
    assert (first.name, first.is_sure) == ("layers", True)
    assert first.share > 0.8
    assert (second.share, second.is_sure) == (0.0, False)


def test_few_scores_say_nothing() -> None:
    """Neither do equal ones, or trials without a score."""
    axes, scores = search(0, 11)
    assert importances(axes, scores) == []
    axes, scores = search(0, 50)
    assert importances(axes, [0.5] * 50) == []
    assert importances(axes, [None] * 50) == []


def test_the_better_half_has_the_better_half() -> None:
    """Worse scores become None; places stay."""
    assert better_half([1.0, None, 3.0, 2.0, 4.0]) == [None, None, 3.0, None, 4.0]
    assert better_half([None]) == [None]
