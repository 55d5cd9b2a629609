"""Names tell directions or they do not; numbers beat what is no number."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweep.objective import Objective, told_direction
from sweep.trial import TrialState

UP = """
val_acc val_accuracy acc/val val_f1 val_f1_macro val_AUC valAUROC val_r2 mAP map50 val_mIoU dice
val_acc_epoch val_accuracy/dataloader_idx_0 precision@10 recall_at_5 acc5 bleu4 rougeL PSNR ssim
macro-f1 validation.score top5_accuracy val_log_likelihood
"""
DOWN = """
val_loss val_rmse val_mae loss/val perplexity val_loss_epoch val_loss/dataloader_idx_0 val_nll
val_mse wer CER fid val_MAPE ppl word_error_rate val_bce BCELoss valLoss test_loss_step
val_cross_entropy val_err val_mean_absolute_error EER loss2 val_huber
"""
UNTOLD = """
loss_score val_distance metric x epoch val_dataloader_idx_0 neg_mean_squared_error one_minus_acc
accuracy_gap val_entropy reward_loss loss_ratio blossom accent terror mapping val
"""


@pytest.mark.parametrize(
    ("metric", "direction"),
    [
        *((m, "maximize") for m in UP.split()),
        *((m, "minimize") for m in DOWN.split()),
        *((m, None) for m in UNTOLD.split()),
    ],
)
def test_a_name_tells_its_direction_or_nothing(metric: str, direction: str | None) -> None:
    """Any part of a name may tell; parts that disagree, or turn the meaning, tell nothing."""
    assert told_direction(metric) == direction


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@given(a=st.floats(allow_nan=False, allow_infinity=False))
def test_no_number_is_worse_than_nan_or_infinity(direction: str, a: float) -> None:
    """Every number beats NaN and both infinities, in both directions, and is beaten by none."""
    objective = Objective("m", direction)  # type: ignore[arg-type]
    for bad in (math.nan, math.inf, -math.inf):
        assert objective.better(a, bad)
        assert not objective.better(bad, a)
        assert not objective.better(bad, bad)
    assert not objective.better(a, a)


def test_better_is_larger_or_smaller() -> None:
    """As the direction says."""
    up, down = Objective("m", "maximize"), Objective("m", "minimize")
    assert up.better(2.0, 1.0)
    assert down.better(1.0, 2.0)
    assert (up.extreme, down.extreme) == ("highest", "lowest")


@dataclass(frozen=True)
class Trial:
    """A trial, as far as ranking needs one."""

    number: int
    value: float | None
    state: TrialState = TrialState.COMPLETE


def test_the_best_trial_is_complete_finite_and_the_earliest() -> None:
    """No pruned trial, no missing and no infinite value wins; ties go to the first."""
    trials = [
        Trial(0, math.inf), Trial(1, 0.5), Trial(2, 0.9), Trial(3, 0.9), Trial(4, None),
        Trial(5, 2.0, TrialState.PRUNED), Trial(6, 0.5),
    ]  # fmt: skip
    assert Objective("m", "maximize").best(trials) is trials[2]
    assert Objective("m", "minimize").best(trials) is trials[1]
    assert Objective("m", "minimize").best(trials[4:6]) is None
