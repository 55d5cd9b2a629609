"""TPE with scipy's log_ndtr proposes what TPE proposes."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
from optuna.samplers._tpe import _truncnorm
from scipy.special import log_ndtr

PROPOSE = """
    import random
    import sys
    import warnings
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
    from sweep.tpe import evaluate_in_c

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    if sys.argv[1] == "c":
        assert evaluate_in_c()
    space = {
        "optimizer": CategoricalDistribution(["SGD", "Adam"]),
        "lr": FloatDistribution(1e-4, 0.3, log=True),
        "momentum": FloatDistribution(0.0, 0.95),
        "width": IntDistribution(32, 512, log=True),
    }
    random.seed(0)
    sampler = optuna.samplers.TPESampler(seed=3, multivariate=True, group=True, constant_liar=True)
    study = optuna.create_study(sampler=sampler)
    for _ in range(80):
        params = {
            "optimizer": random.choice(["SGD", "Adam"]), "lr": 10 ** random.uniform(-4, -0.6),
            "momentum": random.uniform(0, 0.95), "width": random.randint(32, 512),
        }
        value = abs(params["lr"] - 0.01) + params["momentum"] / 10
        study.add_trial(optuna.trial.create_trial(params=params, distributions=space, value=value))
    for _ in range(10):
        trial = study.ask(space)
        print(*(trial.params[name] for name in sorted(space)))
"""


def proposals(how: str) -> list[list[str]]:
    """Ten of a study with 80 trials, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROPOSE), how],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [line.split() for line in done.stdout.splitlines()]


def test_the_function_is_the_same() -> None:
    """From one tail to the other; near 0, on the right, Optuna's has fewer digits."""
    at = np.concatenate([-np.logspace(3, -3, 300), np.logspace(-3, 1.5, 300)])
    right = np.array([_truncnorm._log_ndtr_single(float(a)) for a in at])
    np.testing.assert_allclose(log_ndtr(at), right, rtol=1e-12, atol=1e-15)


def test_proposals_are_the_same() -> None:
    """To rounding."""
    ours, theirs = proposals("c"), proposals("python")
    assert len(ours) == 10
    for a, b in zip(ours, theirs, strict=True):
        assert [a[2], a[3]] == [b[2], b[3]]
        np.testing.assert_allclose([float(a[0]), float(a[1])], [float(b[0]), float(b[1])], 1e-9)
