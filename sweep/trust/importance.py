"""Which parameters matter: how much of the scores' ranks each explains, and how sure that is.

The trials are put into bins of a parameter (about equal counts; each choice; trials without the
parameter). With ranks y of mean 0 and variance 1 in n trials, and bins g of n_g trials,

    share = sum_g n_g mean_g(y)^2 / n

is the variance of the ranks that the bins explain (eta squared of a one-way analysis of variance).
Parameters are taken one after the other, the one that stands out most first; the means of its bins
are taken off the ranks before the next one is looked for (forward selection). So parameters that
move together, as with a sampler that learns, do not count twice: the first has the credit.

What noise alone gives: the remaining ranks, shuffled. The mean of such shares is taken off. The
p-value is the share of shuffles in which any remaining parameter stands out as much, in standard
deviations of its own shuffled shares (Westfall, Young, "Resampling-based multiple testing", 1993):
with 5 %, one study of twenty without any effect has a false alarm. The interval is from trials
drawn with replacement.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]
MIN_TRIALS = 12
"""Below, nothing is said."""
N_DRAWS = 1000
NOTHING = 1e-12
LEVEL = 0.05
"""Of all parameters together (Bonferroni): the chance that one which does not matter seems to."""


@dataclass(frozen=True, slots=True)
class Column:
    """The values of one parameter, one a trial."""

    values: Sequence[float | None]
    """None: the trial lacks it; choices are numbered."""
    is_choice: bool = False
    """Whether the numbers have no order."""


@dataclass(frozen=True, slots=True)
class Importance:
    """The share of the differences between trials that one parameter explains by itself."""

    name: str
    share: float
    low: float
    high: float
    """95 % interval."""
    p_noise: float
    """Chance that any parameter has such a share if none matters."""

    @property
    def is_sure(self) -> bool:
        """Whether it can be told from noise."""
        return self.p_noise <= LEVEL


def importances(
    columns: Mapping[str, Column], goodness: Sequence[float | None]
) -> list[Importance]:
    """Importance of each parameter, largest first; empty if there are too few scores.

    `goodness` has a number for each trial, larger for a better one; None: it has no score.
    """
    scored = [at for at, value in enumerate(goodness) if value is not None]
    scores = np.array([goodness[at] for at in scored], dtype=float)
    if len(scored) < MIN_TRIALS or np.ptp(scores) == 0:
        return []
    all_ = {
        name: _bins(column, scored, _teller_of(column, columns.values(), scored))
        for name, column in columns.items()
    }
    bins = {name: codes for name, codes in all_.items() if len(np.unique(codes[codes >= 0])) > 1}
    rng, y, results = np.random.default_rng(0), _ranks(scores), list[Importance]()
    while bins:
        shuffled = np.array([rng.permutation(y) for _ in range(N_DRAWS)]).T
        drawn = rng.multinomial(len(y), np.full(len(y), 1 / len(y)), N_DRAWS).T.astype(float)
        noise = {name: _shares(codes, shuffled) for name, codes in bins.items()}
        if min(one.std() for one in noise.values()) < NOTHING:  # all is explained
            results += [Importance(name, 0.0, 0.0, 0.0, 1.0) for name in bins]
            break
        most = np.max([(one - one.mean()) / one.std() for one in noise.values()], axis=0)
        found = list[tuple[float, Importance]]()
        for name, codes in bins.items():
            share, floor = float(_shares(codes, y[:, None])[0]), float(noise[name].mean())
            stands_out = (share - floor) / float(noise[name].std())
            p_noise = (1 + int((most >= stands_out).sum())) / (N_DRAWS + 1)
            again = np.quantile(_shares(codes, y[:, None], drawn), (0.025, 0.975))
            value = float(np.clip(share - floor, 0.0, 1.0))
            low, high = np.clip(again - [2 * floor, floor], 0.0, 1.0)
            low, high = min(float(low), value), max(float(high), value)
            found.append((stands_out, Importance(name, value, low, high, p_noise)))
        _, first = max(found, key=lambda one: (one[0], one[1].name))
        if not first.is_sure:
            results += [one for _, one in found]
            break
        results.append(first)
        y = y - _means(bins.pop(first.name), y)
    return sorted(results, key=lambda one: (-one.share, one.name))


def better_half(goodness: Sequence[float | None]) -> list[float | None]:
    """`goodness` without the worse half of the scores."""
    scores = sorted(value for value in goodness if value is not None)
    bound = scores[len(scores) // 2] if scores else 0.0
    return [value if value is not None and value >= bound else None for value in goodness]


def _teller_of(column: Column, columns: Iterable[Column], scored: Sequence[int]) -> Column | None:
    """A choice that decides which trials have the parameter, such as the optimizer of momentum."""
    has = [column.values[at] is not None for at in scored]
    for other in columns if not all(has) else ():
        pairs = {(other.values[at], one) for at, one in zip(scored, has, strict=True)}
        if other is not column and other.is_choice and len(pairs) == len({v for v, _ in pairs}):
            return other
    return None


def _bins(column: Column, scored: Sequence[int], teller: Column | None) -> Array:
    """The bin of each trial (n,), from 0; -1: left out, for it lacks the parameter.

    That a trial lacks it is the `teller`'s share, if there is one, else a bin of its own.
    """
    values = np.array([column.values[at] for at in scored], dtype=float)  # None becomes NaN
    there = values[~np.isnan(values)]
    known = np.unique(there)
    n_bins = int(np.clip(len(there) // 10, 2, 6))
    if column.is_choice or len(known) <= n_bins:
        edges = known[:-1]
    else:
        edges = np.unique(np.quantile(there, np.arange(1, n_bins) / n_bins))
        edges = edges[edges < known[-1]]  # else its bin has all
        edges = edges if len(edges) else known[-2:-1]
    codes = np.searchsorted(edges, values, side="left").astype(float)
    absent = -1.0 if teller is not None else float(len(known))
    return np.where(np.isnan(values), absent, codes)


def _ranks(scores: Array) -> Array:
    """Ranks with mean 0 and variance 1; equal scores share one."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    centred: Array = (ranks - ranks.mean()) / ranks.std()
    return centred


def _shares(codes: Array, y: Array, weights: Array | None = None) -> Array:
    """The share of each column of y (n, N) that bins explain, (N,); `weights` (n, N) of trials."""
    is_in = codes >= 0
    members = (codes[:, None] == np.unique(codes[is_in])[None, :]).astype(float)  # (n, bins)
    w = np.ones_like(y) if weights is None else weights
    sums, counts = members.T @ (w * y), members.T @ w
    between = (sums**2 / np.maximum(counts, 1e-9)).sum(0)
    shares: Array = (between - sums.sum(0) ** 2 / np.maximum(counts.sum(0), 1e-9)) / len(y)
    return shares


def _means(codes: Array, y: Array) -> Array:
    """The mean of each trial's bin (n,); 0 for those left out."""
    found = np.zeros_like(y)
    for code in np.unique(codes[codes >= 0]):
        found[codes == code] = y[codes == code].mean()
    return found
