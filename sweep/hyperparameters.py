"""What a hyperparameter may be called: the vocabulary of MLPClassifier, free of torch.

Search spaces, configs and the model itself check names against these tables, so that a wrong
word is found before anything is trained, in a process that never loads torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

DEFAULT_MODULE = "sweep.training.mlp:MLPClassifier"
"""The network that sweep brings along."""

MLP_METRICS = ("val_acc", "val_loss", "train_loss")
"""What it logs at each epoch."""

OPTIMIZER_ARGUMENTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "SGD": ("momentum", "weight_decay", "dampening", "nesterov"),
        "Adam": ("weight_decay", "beta1", "beta2", "eps"),
        "AdamW": ("weight_decay", "beta1", "beta2", "eps"),
        "RMSprop": ("momentum", "weight_decay", "alpha", "eps", "centered"),
    }
)
"""Optimizer name -> arguments it takes beside `lr`. beta1 and beta2 are torch's `betas`."""

ACTIVATIONS: tuple[str, ...] = ("relu", "gelu", "silu", "tanh", "leaky_relu", "elu")
"""Names that `activation` may take."""

SCHEDULES: tuple[str, ...] = ("constant", "cosine", "step", "one_cycle")
"""Learning-rate schedules that `schedule` may take."""

MODEL_ARGUMENTS: tuple[str, ...] = (
    "hidden",
    "activation",
    "dropout",
    "optimizer",
    "lr",
    "momentum",
    "dampening",
    "nesterov",
    "weight_decay",
    "beta1",
    "beta2",
    "eps",
    "alpha",
    "centered",
    "schedule",
    "clip_norm",
)
"""Hyperparameters of MLPClassifier."""

TRAINING_ARGUMENTS: tuple[str, ...] = ("batch_size",)
"""Hyperparameters that the trainer reads, for any module."""

REFERENCE: Mapping[str, Any] = MappingProxyType(
    {"hidden": (128, 64), "optimizer": "SGD", "lr": 0.01}
)
"""The network that every search starts from (trial 0): 784-128-64-10 on MNIST, plain SGD."""


def optimizer_arguments(optimizer: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments for `torch.optim.<optimizer>` out of flat hyperparameters.

    Returns a new dict with `lr` and whatever of OPTIMIZER_ARGUMENTS is given and not None;
    beta1 and beta2 become `betas`. Raises KeyError for an optimizer not in the table.
    """
    names = OPTIMIZER_ARGUMENTS[optimizer]
    chosen = {n: given[n] for n in ("lr", *names) if given.get(n) is not None}
    if "beta1" in chosen or "beta2" in chosen:
        chosen["betas"] = (chosen.pop("beta1", 0.9), chosen.pop("beta2", 0.999))
    return chosen
