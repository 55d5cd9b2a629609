"""What the best of many scores is worth: the whole choice repeated on parts of the samples.

The best of N scores on one validation set is too good: the highest of N noisy scores is one whose
noise was kind. So the choice is repeated: draw a share f of the validation samples, choose the
best column of all trials and epochs on those, and take the chosen column's outcomes on the samples
that were not drawn, which had no part in the choice. No model is trained. For sample i

    e_i(f) = mean over draws b without i of x[c(b), i],    c(b) = argmax_c sum_{j in b} x[c, j]

and v(f), the mean of e_i(f), is the score of what is chosen on f of the samples. On fewer samples
the choice is worse, about in proportion to 1 / f, so that the choice on all samples is worth

    v(1) = 2 v(2/3) - v(1/2)

(Richardson's extrapolation in 1 / f). It varies more than v(1/2), around which the interval is.

Source: Tsamardinos, Greasidou, Borboudakis, "Bootstrapping the out-of-sample predictions for
efficient and accurate cross-validation", Machine Learning 107 (2018), 1895-1922, algorithm 5, with
draws without replacement in place of the bootstrap's (which hold about as much as a half, and
cannot hold more); averaged by sample as in Efron and Tibshirani, "Improvements on
cross-validation: the .632+ bootstrap method", JASA 92 (1997), equation 17.

Axes: C columns to choose from (trial and epoch), U units (samples, or samples known by their mean
only), B draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

N_DRAWS = 300
"""Of each share."""
MOST_COLUMNS = 1000
"""Columns to choose from, the best: those below have no chance in any draw."""


@dataclass(frozen=True, eq=False, slots=True)
class Draws:
    """Units that take part in a choice, (B, U) bool, the same for all that is compared."""

    half: Array
    two_thirds: Array


def best_columns(values: Array, sizes: Array, n: int = MOST_COLUMNS) -> Array:
    """Indices of the n best columns of `values` (C, U), larger is better, in their order."""
    import numpy as np

    if len(values) <= n:
        return np.arange(len(values))
    return np.sort(np.argsort(-(values @ sizes), kind="stable")[:n])


def draws(n_units: int, n_draws: int = N_DRAWS, seed: int = 0) -> Draws:
    """Random halves and two thirds of the units.

    Seeded, so that the same study has the same result.
    """
    import numpy as np

    random = np.random.default_rng(seed)
    order = np.argsort(random.random((n_draws, n_units), np.float32), axis=1)
    place = np.empty_like(order)
    np.put_along_axis(place, order, np.arange(n_units)[None, :], axis=1)
    return Draws(place < round(n_units / 2), place < round(n_units * 2 / 3))


@dataclass(frozen=True, eq=False, slots=True)
class Fair:
    """Each unit's mean outcome in the choices that it had no part in, (U,)."""

    of_half: Array
    """e_i(1/2)"""
    of_all: Array
    """2 e_i(2/3) - e_i(1/2)"""


def out_of_choice(values: Array, sizes: Array, drawn: Draws) -> Fair:
    """Repeat the choice among `values` (C, U), larger is better, of units of `sizes` (U,)."""
    half, two_thirds = (_left_out(values, sizes, part) for part in (drawn.half, drawn.two_thirds))
    return Fair(half, 2 * two_thirds - half)


def _left_out(values: Array, sizes: Array, drawn: Array) -> Array:
    import numpy as np

    scores = (drawn * sizes).astype(np.float32) @ values.T.astype(np.float32)  # (B, C)
    chosen = scores.argmax(1)  # the earliest of equals, as in a search
    total, n_out = np.zeros(values.shape[1]), (~drawn).sum(0)
    for column in np.unique(chosen):  # few: no (B, U) array of floats
        total += (~drawn[chosen == column]).sum(0) * values[column]
    # A unit in every draw (one in 1e50) has its mean over all choices.
    always = values[chosen].mean(0) if (n_out == 0).any() else 0.0
    return np.where(n_out > 0, total / np.maximum(1, n_out), always)
