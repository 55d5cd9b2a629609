"""MLPClassifier, the default LightningModule of a search.

Axes: B samples of a minibatch, F input features, H units of a layer, C classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.classification import MulticlassAccuracy

from sweep import hyperparameters as options
from sweep.errors import must_be_one_of
from sweep.files.outcomes import OUTCOMES
from sweep.trial import derive_seed


class SeededDropout(nn.Module):
    """Dropout whose masks depend on (seed, epoch, step) only.

    `torch.nn.Dropout` draws from the global generator, so a trial's masks would depend on earlier
    trials; here a trial trained again alone gets the same masks. Masks are drawn as (H, B), the
    layout of the fused trainer, then transposed.
    """

    def __init__(self, p: float, seed: int) -> None:
        super().__init__()
        self.p, self.seed = p, seed
        self._generator: torch.Generator | None = None

    def start_epoch(self, epoch: int, device: torch.device) -> None:
        """Restart the stream of masks for training epoch `epoch` (from 0) on `device`."""
        self._generator = torch.Generator(device)
        self._generator.manual_seed(derive_seed(self.seed, "dropout", epoch))

    def forward(self, x: Tensor) -> Tensor:
        """In training mode, zero units of `x` (B, H) with probability p, scale by 1/(1-p)."""
        if not self.training or self.p == 0.0:
            return x
        if self._generator is None or self._generator.device != x.device:
            self.start_epoch(0, x.device)
        draws = torch.rand(x.shape[1], x.shape[0], generator=self._generator, device=x.device)
        return x * (draws >= self.p).to(x.dtype).T / (1.0 - self.p)


class MLPClassifier(lightning.LightningModule):
    """Multi-layer perceptron for classification: flatten, standardise, hidden layers, logits.

    Takes pixels as stored (0 to 1); standardisation with `input_mean` and `input_std` is part of
    the model, so a checkpoint is self-contained.

    Args:
        in_features: F, the product of one sample's shape.
        n_classes: C.
        hidden: Units of each hidden layer; an empty sequence is a linear classifier.
        activation: One of `sweep.hyperparameters.ACTIVATIONS`.
        dropout: Probability of dropping a hidden unit, 0 <= p < 1.
        optimizer: One of `sweep.hyperparameters.OPTIMIZERS`.
        lr: Learning rate.
        schedule: One of `sweep.hyperparameters.SCHEDULES`, over the Trainer's `max_epochs`.
        clip_norm: Largest gradient 2-norm over all parameters; None: no clipping.
        input_mean: Mean of the training pixels.
        input_std: Standard deviation of the training pixels.
        seed: Seed of initial weights and dropout masks.
        **optimizer_arguments: Further arguments of the optimizer, under the names of
            `sweep.hyperparameters.OPTIMIZERS`; None means torch's default.

    Raises:
        ValueError: An unknown name, an argument unknown to the optimizer, or an eps of 0.
    """

    def __init__(
        self,
        in_features: int = 784,
        n_classes: int = 10,
        hidden: Sequence[int] = (128, 64),
        activation: str = "relu",
        dropout: float = 0.0,
        optimizer: str = "SGD",
        lr: float = 0.01,
        schedule: str = "constant",
        clip_norm: float | None = None,
        input_mean: float = 0.0,
        input_std: float = 1.0,
        seed: int = 0,
        **optimizer_arguments: float | bool | None,
    ) -> None:
        super().__init__()
        _check_names(optimizer, activation, schedule, optimizer_arguments)
        hidden = [int(width) for width in hidden]
        self.save_hyperparameters()
        self.in_features, self.n_classes, self.hidden = in_features, n_classes, hidden
        self.optimizer_name, self.schedule, self.clip_norm = optimizer, schedule, clip_norm
        self.optimizer_arguments = options.optimizer_arguments(
            optimizer, {"lr": lr, **optimizer_arguments}
        )
        self.input_mean, self.input_std = input_mean, input_std
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = _stack([in_features, *hidden, n_classes], activation, dropout, seed)
        self.accuracy = MulticlassAccuracy(n_classes, average="micro")
        self._loss_sum: dict[str, Tensor] = {}
        self._n_samples: dict[str, int] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Class logits (B, C) of samples (B, ...) with F values each, as stored (0 to 1)."""
        logits: Tensor = self.layers((x.flatten(1) - self.input_mean) / self.input_std)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Mean cross entropy of the minibatch."""
        loss = functional.cross_entropy(self(batch[0]), batch[1])
        self._add("train", loss.detach(), len(batch[1]))
        return loss

    def validation_step(
        self, batch: tuple[Tensor, Tensor], batch_idx: int
    ) -> dict[str, dict[str, Tensor]]:
        """Adds the minibatch to val_loss and val_acc; returns both (B,) for each sample."""
        return {OUTCOMES: self._evaluate("val", batch)}

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Adds the minibatch to test_loss and test_acc."""
        self._evaluate("test", batch)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Class probabilities (B, C)."""
        x = batch[0] if isinstance(batch, list | tuple) else batch
        return self(x).softmax(1)  # type: ignore[no-any-return]

    def configure_optimizers(self) -> Any:
        """The torch optimizer, with a scheduler unless the schedule is constant."""
        optimizer = self.make_optimizer()
        if self.schedule == "constant":
            return optimizer
        trainer = self.trainer
        n_steps = int(trainer.estimated_stepping_batches) if self.schedule == "one_cycle" else 0
        return [optimizer], [self.make_scheduler(optimizer, trainer.max_epochs or 1, n_steps)]

    def make_optimizer(self) -> torch.optim.Optimizer:
        """The torch optimizer of all parameters."""
        make = getattr(torch.optim, self.optimizer_name)
        return make(self.parameters(), **self.optimizer_arguments)  # type: ignore[no-any-return]

    def make_scheduler(
        self, optimizer: torch.optim.Optimizer, n_epochs: int, n_steps: int
    ) -> dict[str, Any] | None:
        """Lightning's scheduler configuration for a training of `n_epochs` epochs and `n_steps`
        steps in all; None for a constant learning rate."""
        schedulers = torch.optim.lr_scheduler
        if self.schedule == "constant":
            return None
        if self.schedule == "cosine":
            return {"scheduler": schedulers.CosineAnnealingLR(optimizer, T_max=n_epochs)}
        if self.schedule == "step":
            every = max(1, n_epochs // 3)
            return {"scheduler": schedulers.StepLR(optimizer, step_size=every, gamma=0.1)}
        one_cycle = schedulers.OneCycleLR(
            optimizer,
            max_lr=self.optimizer_arguments["lr"],
            total_steps=max(1, n_steps),
            cycle_momentum=False,
        )
        return {"scheduler": one_cycle, "interval": "step"}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clip to `clip_norm` if set, else as configured in the Trainer."""
        if self.clip_norm is not None:
            gradient_clip_val, gradient_clip_algorithm = self.clip_norm, "norm"
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_train_epoch_start(self) -> None:
        """Restart losses and dropout masks."""
        self._reset("train")
        for module in self.layers:
            if isinstance(module, SeededDropout):
                module.start_epoch(self.current_epoch, self.device)

    def on_validation_epoch_start(self) -> None:
        """Restart losses."""
        self._reset("val")

    def on_test_epoch_start(self) -> None:
        """Restart losses."""
        self._reset("test")

    def on_train_epoch_end(self) -> None:
        """Log train_loss: once an epoch, since one `self.log` a step costs 5 ms."""
        self.log("train_loss", self._loss_sum["train"] / max(1, self._n_samples["train"]))

    def on_validation_epoch_end(self) -> None:
        """Log val_loss and val_acc."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Log test_loss and test_acc."""
        self._log_evaluation("test")

    def _evaluate(self, split: str, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        logits = self(batch[0])
        losses = functional.cross_entropy(logits, batch[1], reduction="none")
        self._add(split, losses.mean(), len(batch[1]))
        self.accuracy.update(logits, batch[1])
        return {f"{split}_loss": losses, f"{split}_acc": logits.argmax(1) == batch[1]}

    def _log_evaluation(self, split: str) -> None:
        self.log(f"{split}_loss", self._loss_sum[split] / max(1, self._n_samples[split]))
        self.log(f"{split}_acc", self.accuracy.compute())
        self.accuracy.reset()

    def _reset(self, split: str) -> None:
        self._loss_sum[split] = torch.zeros((), device=self.device)
        self._n_samples[split] = 0

    def _add(self, split: str, mean_loss: Tensor, n_samples: int) -> None:
        self._loss_sum[split] = self._loss_sum[split] + mean_loss * n_samples
        self._n_samples[split] += n_samples


def _stack(widths: list[int], activation: str, dropout: float, seed: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    *hidden_pairs, last = itertools.pairwise(widths)
    for index, (n_in, n_out) in enumerate(hidden_pairs):
        layers += [nn.Linear(n_in, n_out), getattr(nn, options.ACTIVATIONS[activation].layer)()]
        if dropout > 0.0:
            layers.append(SeededDropout(dropout, derive_seed(seed, "layer", index)))
    return nn.Sequential(*layers, nn.Linear(*last))


def _check_names(
    optimizer: str, activation: str, schedule: str, optimizer_arguments: dict[str, Any]
) -> None:
    if optimizer not in options.OPTIMIZERS:
        raise ValueError(must_be_one_of("optimizer", optimizer, options.OPTIMIZERS))
    if activation not in options.ACTIVATIONS:
        raise ValueError(must_be_one_of("activation", activation, options.ACTIVATIONS))
    if schedule not in options.SCHEDULES:
        raise ValueError(must_be_one_of("schedule", schedule, options.SCHEDULES))
    if optimizer_arguments.get("eps") == 0.0:
        raise ValueError("eps must be above 0: a unit that never fires would divide 0 by 0")
    allowed = options.OPTIMIZERS[optimizer].arguments
    for name, value in optimizer_arguments.items():
        if value is not None and name not in allowed:
            raise ValueError(must_be_one_of(f"an argument of {optimizer}", name, allowed))
