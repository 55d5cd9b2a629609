"""What a hyperparameter may be called: the vocabulary of MLPClassifier, free of torch.

Search spaces, configs and the model itself check names against these tables, so that a wrong
word is found before anything is trained, in a process that never loads torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

DEFAULT_MODULE = "sweep.training.mlp:MLPClassifier"
"""The network that sweep brings along."""

MLP_METRICS = ("val_acc", "val_loss", "train_loss")
"""What it logs at each epoch."""


@dataclass(frozen=True, slots=True)
class Optimizer:
    """An optimizer of `torch.optim`, where it has the same name."""

    arguments: tuple[str, ...]
    """What it takes beside `lr`; beta1 and beta2 are torch's `betas`."""
    defaults: Mapping[str, float] = field(default_factory=dict)
    """Arguments whose default in torch is another one than for the other optimizers."""
    kernel_rule: int | None = None
    """Its number in kernel.c; None: it has no formula there."""


@dataclass(frozen=True, slots=True)
class Activation:
    """An activation of MLPClassifier's hidden layers."""

    layer: str
    """The class in `torch.nn`."""
    kernel_number: int | None = None
    """Its number in kernel.c; None: it has no formula there."""


OPTIMIZERS: Mapping[str, Optimizer] = MappingProxyType(
    {
        "SGD": Optimizer(("momentum", "weight_decay", "dampening", "nesterov"), kernel_rule=0),
        "Adam": Optimizer(("weight_decay", "beta1", "beta2", "eps"), kernel_rule=1),
        "AdamW": Optimizer(
            ("weight_decay", "beta1", "beta2", "eps"), {"weight_decay": 0.01}, kernel_rule=2
        ),
        "NAdam": Optimizer(("weight_decay", "beta1", "beta2", "eps"), kernel_rule=4),
        "RMSprop": Optimizer(
            ("momentum", "weight_decay", "alpha", "eps", "centered"), kernel_rule=3
        ),
    }
)

OPTIMIZER_ARGUMENTS: tuple[str, ...] = tuple(
    dict.fromkeys(name for optimizer in OPTIMIZERS.values() for name in optimizer.arguments)
)
"""Arguments of all optimizers."""

ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {
        "relu": Activation("ReLU", 0),
        "gelu": Activation("GELU", 5),
        "silu": Activation("SiLU", 3),
        "tanh": Activation("Tanh", 2),
        "leaky_relu": Activation("LeakyReLU", 1),
        "elu": Activation("ELU", 4),
    }
)

SCHEDULES: tuple[str, ...] = ("constant", "cosine", "step", "one_cycle")
"""Learning-rate schedules that `schedule` may take."""

MODEL_ARGUMENTS: tuple[str, ...] = (
    "hidden", "activation", "dropout", "optimizer", "lr", *OPTIMIZER_ARGUMENTS, "schedule",
    "clip_norm",
)  # fmt: skip
"""Hyperparameters of MLPClassifier."""

TRAINING_ARGUMENTS: tuple[str, ...] = ("batch_size",)
"""Hyperparameters that the trainer reads, for any module."""

REFERENCE: Mapping[str, Any] = MappingProxyType(
    {"hidden": (128, 64), "optimizer": "SGD", "lr": 0.01}
)
"""The network that every search starts from (trial 0): 784-128-64-10 on MNIST, plain SGD."""


def optimizer_arguments(optimizer: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments for `torch.optim.<optimizer>` out of flat hyperparameters.

    Returns a new dict with `lr` and whatever the optimizer takes that is given and not None;
    beta1 and beta2 become `betas`. Raises KeyError for an unknown optimizer.
    """
    names = OPTIMIZERS[optimizer].arguments
    chosen = {n: given[n] for n in ("lr", *names) if given.get(n) is not None}
    if "beta1" in chosen or "beta2" in chosen:
        chosen["betas"] = (chosen.pop("beta1", 0.9), chosen.pop("beta2", 0.999))
    return chosen
