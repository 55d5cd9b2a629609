"""sweep: Lightning trains, Optuna proposes, MLflow remembers.

The public door. Names are loaded when they are used, so that `import sweep` costs next to
nothing:

    sweep.run(trials=50, data="mnist")     a search; returns its Outcome
    sweep.plan(trials=50, data="mnist")    its time, memory, disk and money, beforehand
    sweep.best("mnist-mlp")                configuration, score, checkpoint, MLflow run id
    sweep.confirm("mnist-mlp")             the best trials again on fresh seeds
    sweep.ensemble, sweep.reproduce        several models as one; a trial trained again
    sweep.report("mnist-mlp")              one page that says what came out
    sweep.status, stop, prune,             look at a search that runs elsewhere, and steer it
        enqueue, extend
    sweep.MLPClassifier                    the LightningModule that a search trains
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sweep.errors import SweepError

if TYPE_CHECKING:
    from sweep.api import (
        best,
        confirm,
        enqueue,
        ensemble,
        extend,
        plan,
        prune,
        report,
        reproduce,
        run,
        status,
        stop,
    )
    from sweep.space.vary import floats, ints
    from sweep.training.mlp import MLPClassifier
    from sweep.training.plain.function import TrialStopped

__version__ = "0.1.0"
__all__ = [
    "MLPClassifier",
    "SweepError",
    "TrialStopped",
    "__version__",
    "best",
    "confirm",
    "enqueue",
    "ensemble",
    "extend",
    "floats",
    "ints",
    "plan",
    "prune",
    "report",
    "reproduce",
    "run",
    "status",
    "stop",
]

_LAZY = {
    "run": "sweep.api",
    "best": "sweep.api",
    "confirm": "sweep.api",
    "ensemble": "sweep.api",
    "reproduce": "sweep.api",
    "report": "sweep.api",
    "status": "sweep.api",
    "stop": "sweep.api",
    "prune": "sweep.api",
    "enqueue": "sweep.api",
    "extend": "sweep.api",
    "plan": "sweep.api",
    "MLPClassifier": "sweep.training.mlp",
    "floats": "sweep.space.vary",
    "ints": "sweep.space.vary",
    "TrialStopped": "sweep.training.plain.function",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'sweep' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
