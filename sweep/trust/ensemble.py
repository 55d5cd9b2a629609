"""Greedy ensemble selection with replacement.

Caruana, Niculescu-Mizil, Crew, Ksikes: Ensemble selection from libraries of models. ICML 2004.

The ensemble's prediction is the mean of its members'. It begins with the best model; each round
adds the model, new or again, whose addition gives the best score:

    i_k = argmax_i  score( (P_{i_1} + ... + P_{i_{k-1}} + P_i) / k )

and the shortest of the best prefixes counts. A model that was added twice has twice the weight.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


def select(
    predictions: Array, score: Callable[[Array], float], most: int
) -> tuple[list[int], list[float]]:
    """The chosen models, in order and with repeats, and the score after each of them.

    Args:
        predictions: (M, n, ...): of M models for n samples.
        score: Of one such prediction (n, ...); more is better. NaN is worst.
        most: Rounds at most.
    """
    chosen: list[int] = []
    scores: list[float] = []
    total = np.zeros_like(predictions[0], dtype=np.float64)
    for k in range(1, most + 1):
        each = [score((total + one) / k) for one in predictions]
        best = int(np.argmax(np.nan_to_num(each, nan=-np.inf)))
        chosen.append(best)
        scores.append(each[best])
        total += predictions[best]
    n = int(np.argmax(np.nan_to_num(scores, nan=-np.inf))) + 1
    return chosen[:n], scores[:n]
