"""Which parameters matter: an additive model of the scores, and how sure it is.

The scores' ranks y (variance 1) are fitted by a sum of step functions, one a parameter, that are
constant in bins of equal counts (or for each choice, and for trials without the parameter), by
ridge regression. A parameter's importance is the share of the variance that its function has:
the main effect of functional ANOVA (Hutter, Hoos, Leyton-Brown 2014), without interactions. The
ridge's strength is the one that predicts left-out trials best.

What noise alone gives: errors of left-out trials, shuffled, in place of the ranks (a permutation
of residuals, as by ter Braak 1992). Its mean is taken off the importance; the share of shuffles
that reach the importance is the p-value. The interval is from such errors drawn with replacement
and added to the fit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sweep.reporting.report.axes import Axis

Array = np.ndarray[Any, np.dtype[np.float64]]
MIN_TRIALS = 12
"""Below, nothing is said."""
N_DRAWS = 1000
STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
LEVEL = 0.05
"""Of all parameters together (Bonferroni): the chance that one which does not matter seems to."""


@dataclass(frozen=True, slots=True)
class Importance:
    """The share of the differences between trials that one parameter explains by itself."""

    name: str
    share: float
    low: float
    high: float
    """95 % interval."""
    p_noise: float
    """Chance of such a share if the parameter did not matter, times the number of parameters."""

    @property
    def is_sure(self) -> bool:
        """Whether it can be told from noise."""
        return self.p_noise <= LEVEL


def importances(axes: Sequence[Axis], goodness: Sequence[float | None]) -> list[Importance]:
    """Importance of each axis, largest first; empty if there are too few scores.

    `goodness` has a number for each trial, larger for a better one; None: it has no score.
    """
    scored = [at for at, value in enumerate(goodness) if value is not None]
    scores = np.array([goodness[at] for at in scored], dtype=float)
    if len(scored) < MIN_TRIALS or np.ptp(scores) == 0:
        return []
    blocks = [_steps(axis, scored, _teller_of(axis, axes, scored)) for axis in axes]
    kept = [(axis.name, block) for axis, block in zip(axes, blocks, strict=True) if block.size]
    if not kept:
        return []
    y = _ranks(scores)
    x = np.concatenate([block for _, block in kept], axis=1)
    n_trials = len(y)
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    rests = {strength: _left_out(u, s, y, strength) for strength in STRENGTHS}
    strength = min(rests, key=lambda one: float(np.mean(rests[one] ** 2)))
    back = (vt.T * (s / (s**2 + strength))) @ u.T  # (columns, trials): y -> coefficients
    fit = x @ (back @ y)
    rest = rests[strength] - rests[strength].mean()
    rng = np.random.default_rng(0)
    n_shuffles = max(N_DRAWS, math.ceil(2 * len(kept) / LEVEL))  # else none could be sure
    shuffled = np.array([rng.permutation(rest) for _ in range(n_shuffles)]).T
    drawn = fit[:, None] + rest[rng.integers(0, n_trials, (n_trials, N_DRAWS))]
    results, at = [], 0
    for name, block in kept:
        rows = back[at : at + block.shape[1]]
        at += block.shape[1]
        share, noise, again = (_shares(block, rows @ t) for t in (y[:, None], shuffled, drawn))
        floor = float(noise.mean())
        low, high = np.clip(np.quantile(again, (0.025, 0.975)) - [2 * floor, floor], 0.0, 1.0)
        value = float(np.clip(share[0] - floor, 0.0, 1.0))
        p_value = (1 + int((noise >= share[0]).sum())) / (n_shuffles + 1)
        p_noise = min(1.0, p_value * len(kept))
        low, high = min(float(low), value), max(float(high), value)
        results.append(Importance(name, value, low, high, p_noise))
    return sorted(results, key=lambda one: (-one.share, one.name))


def better_half(goodness: Sequence[float | None]) -> list[float | None]:
    """`goodness` without the worse half of the scores."""
    scores = sorted(value for value in goodness if value is not None)
    bound = scores[len(scores) // 2] if scores else 0.0
    return [value if value is not None and value >= bound else None for value in goodness]


def _teller_of(axis: Axis, axes: Sequence[Axis], scored: Sequence[int]) -> Axis | None:
    """A choice that decides which trials have the parameter, such as the optimizer of momentum."""
    has = [axis.values[at] is not None for at in scored]
    for other in axes if not all(has) else ():
        pairs = {(other.values[at], one) for at, one in zip(scored, has, strict=True)}
        if other is not axis and other.choices and len(pairs) == len({v for v, _ in pairs}):
            return other
    return None


def _steps(axis: Axis, scored: Sequence[int], teller: Axis | None) -> Array:
    """Columns of one parameter, centred: (trials, bins); without any if it does not vary.

    What it means that a trial lacks the parameter is the `teller`'s share, if there is one.
    """
    values = np.array([axis.values[at] for at in scored], dtype=float)  # None becomes NaN
    there = values[~np.isnan(values)]
    if axis.choices and not axis.is_ordered:
        codes = values
    else:
        n_bins = int(np.clip(len(there) // 10, 2, 6))
        cuts = np.arange(1, n_bins) / n_bins
        edges = np.unique(np.quantile(there, cuts)) if len(there) else there
        known = np.unique(there)
        if len(known) <= n_bins:  # few values: each is a bin
            edges = known[:-1]
        edges = edges[edges < known[-1]] if len(known) else edges  # else its bin has all
        if not len(edges):
            edges = known[-2:-1]
        codes = np.where(np.isnan(values), np.nan, np.searchsorted(edges, values, side="left"))
    is_there = ~np.isnan(codes)
    codes = np.where(is_there, codes, -1)
    used = np.unique(codes[is_there] if teller is not None else codes)
    columns: Array = (codes[:, None] == used[None, :]).astype(float)
    if teller is None:
        centred: Array = columns - columns.mean(0)
    else:  # within the trials that have it
        centred = np.where(is_there[:, None], columns - columns[is_there].mean(0), 0.0)
    return centred if len(used) > 1 else centred[:, :0]


def _ranks(scores: Array) -> Array:
    """Ranks with mean 0 and variance 1; equal scores share one."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    centred: Array = (ranks - ranks.mean()) / ranks.std()
    return centred


def _left_out(u: Array, s: Array, y: Array, strength: float) -> Array:
    """The error of each trial's prediction by the others (closed form)."""
    shrink = s**2 / (s**2 + strength)
    leverage = np.minimum(np.sum(u**2 * shrink, axis=1) + 1 / len(y), 0.999)
    errors: Array = (y - u @ (shrink * (u.T @ y))) / (1 - leverage)
    return errors


def _shares(block: Array, coefficients: Array) -> Array:
    """Variance of the parameter's function, for each column of coefficients."""
    covariance = block.T @ block / len(block)
    shares: Array = np.sum(coefficients * (covariance @ coefficients), axis=0)
    return shares
