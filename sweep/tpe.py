"""Optuna's TPE in less time: one of its functions, evaluated by scipy.

TPE wants the logarithm of the normal distribution function at each end of each of its kernels.
Optuna does without scipy and computes it value by value in Python: half of a proposal's time once
there are many trials. `scipy.special.log_ndtr` is the same function in C; proposals are the same
to rounding. The function's name is Optuna's own affair: where none has it, nothing changes.
"""

from __future__ import annotations

import functools
from typing import Any

WORTH_SCIPY = 64
"""Trials from which it pays to load scipy.special (0.2 s, once)."""
_NAME = "_log_ndtr"


@functools.cache
def evaluate_in_c() -> bool:
    """Let TPE call scipy's function from now on, in this process; whether it does."""
    try:
        from optuna.samplers._tpe import _truncnorm
        from scipy.special import log_ndtr
    except ImportError:
        return False
    module: Any = _truncnorm
    if not callable(getattr(module, _NAME, None)):
        return False
    setattr(module, _NAME, log_ndtr)
    return True
