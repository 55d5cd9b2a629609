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
_is_in_c = False


@functools.cache
def _functions() -> tuple[Any, Any, Any] | None:
    """Optuna's module, its function and scipy's; None where one is missing."""
    try:
        from optuna.samplers._tpe import _truncnorm
        from scipy.special import log_ndtr
    except ImportError:
        return None
    module: Any = _truncnorm
    own = getattr(module, _NAME, None)
    return (module, own, log_ndtr) if callable(own) else None


def evaluate_in_c(is_wanted: bool = True) -> bool:
    """Let TPE call scipy's function, or its own again, in this process; whether it is scipy's.

    The last digits differ, so an earlier study of this process must not decide.
    """
    global _is_in_c
    if is_wanted == _is_in_c or (found := _functions()) is None:
        return _is_in_c
    module, own, in_c = found
    setattr(module, _NAME, in_c if is_wanted else own)
    _is_in_c = is_wanted
    return _is_in_c
