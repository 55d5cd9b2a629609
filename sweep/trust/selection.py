"""What the best of many scores is worth: the bootstrap of the whole choice.

The best of N scores on one validation set is too good: the highest of N noisy scores is one whose
noise was kind. BBC (bootstrap bias corrected) repeats the choice: draw the validation samples with
replacement, choose the best column of all trials and epochs on those drawn, and take the chosen
column's outcomes on the samples that were not drawn, which had no part in the choice. For sample i

    e_i = mean over draws b without i of x[c(b), i],    c(b) = argmax_c sum_j w[b, j] x[c, j]

and the corrected score is the mean of e_i. No model is trained.

Source: Tsamardinos, Greasidou, Borboudakis, "Bootstrapping the out-of-sample predictions for
efficient and accurate cross-validation", Machine Learning 107 (2018), 1895-1922, algorithm 5;
averaged by sample as in Efron and Tibshirani, "Improvements on cross-validation: the .632+
bootstrap method", JASA 92 (1997), equation 17.

Axes: C columns to choose from (trial and epoch), U units (samples, or samples known by their mean
only), B draws.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

N_DRAWS = 500
MOST_COLUMNS = 1000
"""Columns to choose from, the best: those below have no chance in any draw."""


def best_columns(values: Array, sizes: Array, n: int = MOST_COLUMNS) -> Array:
    """Indices of the n best columns of `values` (C, U), larger is better, in their order."""
    import numpy as np

    if len(values) <= n:
        return np.arange(len(values))
    return np.sort(np.argsort(-(values @ sizes), kind="stable")[:n])


def draws(n_units: int, n_draws: int = N_DRAWS, seed: int = 0) -> Array:
    """(B, U): how often each unit is drawn, U of U with replacement.

    Seeded, so that the same study has the same result.
    """
    import numpy as np

    drawn = np.random.default_rng(seed).integers(n_units, size=(n_draws, n_units))
    places = drawn + n_units * np.arange(n_draws)[:, None]
    return np.bincount(places.ravel(), minlength=n_draws * n_units).reshape(n_draws, n_units)


def out_of_choice(values: Array, sizes: Array, drawn: Array) -> Array:
    """(U,): e_i, each unit's mean outcome in the choices that it had no part in.

    Args:
        values: (C, U) outcomes, larger is better.
        sizes: (U,) samples in each unit.
        drawn: (B, U), from `draws`.
    """
    import numpy as np

    scores = (drawn * sizes).astype(np.float32) @ values.T.astype(np.float32)  # (B, C)
    chosen = scores.argmax(1)  # the earliest of equals, as in a search
    is_out = drawn == 0
    total, n_out = np.zeros(values.shape[1]), is_out.sum(0)
    for column in np.unique(chosen):  # few: no (B, U) array of floats
        total += is_out[chosen == column].sum(0) * values[column]
    # A unit in every draw (one in 1e100) has its mean over all choices.
    always = values[chosen].mean(0) if (n_out == 0).any() else 0.0
    return np.where(n_out > 0, total / np.maximum(1, n_out), always)
