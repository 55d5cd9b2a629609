"""A traced step that is compiled once that pays.

Compiling takes half a minute and then saves half of each step's time, or more. It is not known
in advance how many steps will come: trials are pruned, and a group of other trials is another
step. So a step is compiled once it has run for as long as compiling takes, if twice as much is
left: that costs at most twice what the best choice in hindsight would (the ski rental problem;
Karlin, Manasse, Rudolph, Sleator: Competitive snoopy caching, Algorithmica 3, 1988).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from sweep.training.likeness import tensors_in

COMPILE_S = 30.0
"""Compiling a step on a CPU: 10 to 28 s were measured."""
NEAR = {torch.float64: 1e-8}
"""Largest difference of losses and gradients relative to the largest of a tensor, by type."""


class Program:
    """A step of a group.

    Args:
        traced: Called with lists of tensors, the second of which it may change; returns tuples,
            lists and dicts of tensors.
        say: Told once what compiling brought.
        compile_s: About how long compiling takes.
    """

    def __init__(
        self, traced: GraphModule, say: Callable[[str], None], compile_s: float = COMPILE_S
    ) -> None:
        self._traced, self._say, self._compile_s = traced, say, compile_s
        self._run: Callable[..., Any] = traced
        self._may_compile = True
        self._n_run, self._spent_s = 0, 0.0
        self.n_left = 0.0
        """Steps that are likely to come."""

    def __call__(self, *given: Any) -> Any:
        """Take the step."""
        if self._may_compile and self._pays():
            self._may_compile = False
            return self._compile(given)
        began_s = time.perf_counter()
        found = self._run(*given)
        self._spent_s += time.perf_counter() - began_s
        self._n_run += 1
        self.n_left -= 1
        return found

    def _pays(self) -> bool:
        if not self._n_run or self._spent_s < self._compile_s:
            return False
        return self.n_left * self._spent_s / self._n_run >= 2 * self._compile_s

    def _compile(self, given: Any) -> Any:
        """Take this step in both ways; keep the compiled one if it is equal."""
        copies = [[value.clone() for value in part] for part in given[:2]] + [*given[2:]]
        began_s = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the compiler's own making
                compiled = torch.compile(self._traced)
                theirs = compiled(*copies)
        except Exception as error:  # noqa: BLE001 - compilers raise anything
            self._say(f"steps are not compiled ({type(error).__name__})")
            return self._traced(*given)
        took_s = time.perf_counter() - began_s
        ours = self._traced(*given)
        both = zip(tensors_in((ours, given[1])), tensors_in((theirs, copies[1])), strict=True)
        if not all(_are_near(a, b) for a, b in both):
            self._say("steps are not compiled: the compiled one gives other numbers")
            return ours
        self._run = compiled
        self._say(f"steps that many trials share are compiled, in {took_s:.0f} s")
        return ours


def _are_near(ours: Tensor, theirs: Tensor) -> bool:
    if ours.shape != theirs.shape or not ours.numel():
        return ours.shape == theirs.shape
    a, b = ours.double(), theirs.double()
    is_finite = torch.isfinite(a)
    if not torch.equal(is_finite, torch.isfinite(b)):
        return False
    a, b = a[is_finite], b[is_finite]
    near = NEAR.get(ours.dtype, 1e-3)
    return not a.numel() or bool((a - b).abs().max() <= near * a.abs().max().clamp(min=1e-12))
