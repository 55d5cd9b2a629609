"""The objective: a metric, its direction, and the better of two scores."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from sweep.trial import Direction, TrialState

_UP = re.compile(
    "acc|accuracy|accuracies|f1|fscore|fbeta|auc|auroc|auprc|aucpr|rocauc|roc|ap|map|"
    "miou|iou|iu|dice|jaccard|precision|recall|sensitivity|specificity|tpr|tnr|npv|ppv|"
    "r2|score|bleu|rouge|meteor|chrf|cider|psnr|ssim|ndcg|mrr|mcc|kappa|correlation|"
    "pearson|spearman|reward|likelihood"
)
_DOWN = re.compile(
    "loss|losses|logloss|error|err|errors|rmse|mse|mae|mape|smape|wmape|mase|msle|rmsle|"
    "sse|huber|nll|bce|crossentropy|xent|ppl|perplexity|bpc|bpb|wer|cer|fid|kid|lpips|"
    "eer|ece|brier|fpr|fnr|regret|hausdorff|deviance"
)
_TURNING = re.compile(
    "neg|negative|negated|minus|inverse|inv|inverted|reciprocal|one|complement|delta|"
    "diff|difference|gap|ratio|reduction|drop|gain|improvement|decrease|increase|change"
)
"""Words that reverse others: a larger neg_mean_squared_error is better."""


class Scored(Protocol):
    """A trial, as far as ranking needs one."""

    @property
    def number(self) -> int: ...  # noqa: D102
    @property
    def state(self) -> TrialState: ...  # noqa: D102
    @property
    def value(self) -> float | None: ...  # noqa: D102


T = TypeVar("T", bound=Scored)


@dataclass(frozen=True, slots=True)
class Objective:
    """A metric and its direction. NaN and infinities are worse than every number."""

    metric: str
    direction: Direction

    @property
    def extreme(self) -> str:
        """The word for the best value: highest or lowest."""
        return "highest" if self.direction == "maximize" else "lowest"

    def better(self, a: float, b: float) -> bool:
        """Whether `a` is strictly better than `b`.

        >>> Objective("val_loss", "minimize").better(0.1, float("-inf"))
        True
        """
        if not (math.isfinite(a) and math.isfinite(b)):
            return math.isfinite(a) and not math.isfinite(b)
        return a > b if self.direction == "maximize" else a < b

    def goodness(self, value: float | None) -> float:
        """A number, larger for a better value; -inf for None, NaN and infinities."""
        if value is None or not math.isfinite(value):
            return -math.inf
        return value if self.direction == "maximize" else -value

    def best(self, trials: Iterable[T]) -> T | None:
        """The completed trial with the best value; the earliest of equals; None without any."""
        done = [t for t in trials if t.state is TrialState.COMPLETE and t.value is not None]
        return min(done, key=lambda t: (-self.goodness(t.value), t.number), default=None)


def told_direction(metric: str) -> Direction | None:
    """The direction by the parts of a metric's name; None if they tell none, or disagree.

    >>> told_direction("val_loss/dataloader_idx_0"), told_direction("val_f1_macro")
    ('minimize', 'maximize')
    >>> told_direction("reward_loss"), told_direction("val_distance")
    (None, None)
    """
    words = [word for part in re.split(r"[^A-Za-z0-9]+", metric) for word in _words(part)]
    is_up = any(map(_UP.fullmatch, words))
    is_down = any(map(_DOWN.fullmatch, words)) or "cross entropy" in " ".join(words)
    if any(map(_TURNING.fullmatch, words)) or is_up == is_down:
        return None
    return "maximize" if is_up else "minimize"


def _words(part: str) -> list[str]:
    """`part` in lower case as a word, without a number at its end, or as its camel-case words."""
    whole = part.lower()
    for word in (whole, whole.rstrip("0123456789")):
        if any(known.fullmatch(word) for known in (_UP, _DOWN, _TURNING)):
            return [word]
    pieces = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", part)
    return [piece.lower() for piece in pieces]
