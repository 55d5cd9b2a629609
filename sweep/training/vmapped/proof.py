"""Whether the padded step of a group is each trial's own: seen with a group's first minibatch.

`padding.py` allows what it knows. This sees what it cannot: calls that torch does not show, as
those of an extension in C++.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from sweep.training.likeness import UnlikeError
from sweep.training.vmapped.compiling import NEAR
from sweep.training.vmapped.noise import Draw, drawing_from, drawn
from sweep.training.vmapped.padding import corner
from sweep.training.vmapped.stack import Stack
from sweep.training.vmapped.stand_in import CannotStackError, StandIn, state_of


def see_that_padding_is_nothing(
    modules: Sequence[lightning.LightningModule], stack: Stack, numbers: Sequence[Tensor],
    draws: Sequence[Draw], call: Callable[..., Any], batch: Any,
) -> None:  # fmt: skip
    """Raises CannotStackError if loss or gradients of a padded trial are not its own.

    Args:
        modules: Of the trials.
        stack: Of their weights.
        numbers: That differ between the trials.
        draws: The random calls of their step.
        call: Takes a step: (losses, gradients, ...).
        batch: A minibatch.
    """
    device = stack.weights.device
    noises = drawn(draws, [torch.Generator(device).manual_seed(k) for k in range(len(modules))])
    given = [value.clone() for value in stack.given]
    losses, grads, *_ = call(list(stack.named.values()), given, numbers, noises, batch, 0)
    for k, module in enumerate(modules):
        loss, own = _alone(module, stack.order, torch.Generator(device).manual_seed(k), batch)
        if not torch.isfinite(loss):
            continue
        largest = max(float(grad.abs().max()) for grad in own)
        near = NEAR.get(loss.dtype, 1e-3)
        gaps = [float((losses[k] - loss).abs() / loss.abs().clamp(min=1e-12))]
        for whole, grad in zip(grads, own, strict=True):
            inner = corner(whole[k], grad.shape)
            gaps.append(float((inner - grad).abs().max()) / max(largest, 1e-12))
            if whole[k].count_nonzero() != inner.count_nonzero():
                raise CannotStackError("the padding of its weights has gradients")
        if not max(gaps) <= near:
            raise CannotStackError("a padded step is not the trial's own")


def _alone(
    module: lightning.LightningModule, order: Sequence[str], generator: torch.Generator, batch: Any
) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients of a trial's own step."""
    try:
        stand_in = StandIn([module], [state_of(module)])
    except UnlikeError as error:
        raise CannotStackError(str(error)) from error
    tensors = {
        name: tensor.detach().clone().requires_grad_(isinstance(tensor, nn.Parameter))
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]
    }
    stand_in.follow(module)
    with torch.enable_grad(), drawing_from(generator):
        loss = stand_in.step(tensors, [], batch, 0)
        grads = torch.autograd.grad(loss, [tensors[name] for name in order])
    return loss.detach(), list(grads)
