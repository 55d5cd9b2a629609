"""Hyperparameters of MLPClassifier: names, legal words, defaults. Free of torch.

Search spaces, configs and the model check names against these tables, so a misspelt optimizer is
reported before any training, by a process that never loads torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

DEFAULT_MODULE = "sweep.training.mlp:MLPClassifier"
"""The LightningModule of a search without `--module`."""

MLP_METRICS = ("val_acc", "val_loss", "train_loss")
"""Metrics of MLPClassifier, logged each epoch."""


@dataclass(frozen=True, slots=True)
class Optimizer:
    """A class of `torch.optim`, under its name there."""

    arguments: tuple[str, ...]
    """Arguments besides `lr`; beta1 and beta2 are the two `betas`."""
    defaults: Mapping[str, float] = field(default_factory=dict)
    """Torch's defaults, if unlike those of the other optimizers."""
    kernel_rule: int | None = None
    """Code in kernel.c; None: trained by torch only."""


@dataclass(frozen=True, slots=True)
class Activation:
    """Activation function of the hidden layers."""

    layer: str
    """Class in `torch.nn`."""
    kernel_number: int | None = None
    """Code in kernel.c; None: trained by torch only."""


_ADAM = ("weight_decay", "beta1", "beta2", "eps")
OPTIMIZERS: Mapping[str, Optimizer] = MappingProxyType(
    {
        "SGD": Optimizer(("momentum", "weight_decay", "dampening", "nesterov"), kernel_rule=0),
        "Adam": Optimizer(_ADAM, kernel_rule=1),
        "AdamW": Optimizer(_ADAM, {"weight_decay": 0.01}, kernel_rule=2),
        "NAdam": Optimizer(_ADAM, kernel_rule=4),
        "RMSprop": Optimizer(
            ("momentum", "weight_decay", "alpha", "eps", "centered"), kernel_rule=3
        ),
    }
)

OPTIMIZER_ARGUMENTS: tuple[str, ...] = tuple(
    dict.fromkeys(name for optimizer in OPTIMIZERS.values() for name in optimizer.arguments)
)
"""Arguments of any of the optimizers."""

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
"""Learning-rate schedules."""

TRAINING_ARGUMENTS: tuple[str, ...] = ("batch_size",)
"""Hyperparameters of the trainer: legal with any module, never passed to its constructor."""

REFERENCE: Mapping[str, Any] = MappingProxyType(
    {"hidden": (128, 64), "optimizer": "SGD", "lr": 0.01}
)
"""The baseline, trial 0 of each search: 784-128-64-10 on MNIST, plain SGD."""


def optimizer_arguments(optimizer: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments for `torch.optim.<optimizer>`, taken from flat hyperparameters.

    `lr` and the optimizer's own arguments, without those that are None; beta1 and beta2 become
    `betas`. Raises KeyError for an unknown optimizer.
    """
    names = OPTIMIZERS[optimizer].arguments
    chosen = {n: given[n] for n in ("lr", *names) if given.get(n) is not None}
    if "beta1" in chosen or "beta2" in chosen:
        chosen["betas"] = (chosen.pop("beta1", 0.9), chosen.pop("beta2", 0.999))
    return chosen
