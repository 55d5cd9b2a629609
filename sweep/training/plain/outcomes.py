"""Outcomes of a user's module: what its validation said of each minibatch, or of each sample."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor
from torchmetrics import Metric

from sweep.files.outcomes import OUTCOMES

UNKNOWN = "is not logged in validation_step, where sweep could see what each minibatch adds to it"
OF_OBJECT = "is a metric object whose values by minibatch are not known: call it, do not update it"
NO_SIZE = "is logged for minibatches of unknown size: say self.log(..., batch_size=...)"
SEVERAL_DEVICES = "was computed on several devices"


class ValidationOutcomes:
    """Watches one validation after the other, through the module's own `log`.

    Axes: B samples of a minibatch, U units of a validation.

    Args:
        metric: Name of the objective's metric.
    """

    def __init__(self, metric: str) -> None:
        self._metric = metric
        self._hooks: list[Any] = []
        self._module: Any = None
        self._clear()

    def _clear(self) -> None:
        self._values: list[Tensor] = []
        self._sizes: list[int] = []
        self._by_sample = True
        self._why = ""
        self._said: Any = None
        self._size: int | None = None
        self._of_call: dict[int, Any] = {}

    def begin(self, module: lightning.LightningModule) -> None:
        """Watch the validation that begins now."""
        self.end()
        self._clear()
        self._module, log = module, module.log

        def watched(name: str, value: Any, *args: Any, **kwargs: Any) -> Any:
            if name == self._metric:
                self._said, self._size = value, kwargs.get("batch_size")
            return log(name, value, *args, **kwargs)

        # on the instance, while it validates: copies made in training have the class's own
        vars(module)["log"] = watched
        for part in module.modules():
            if isinstance(part, Metric):
                self._hooks.append(part.register_forward_hook(self._called))

    def end(self) -> None:
        """Watch no longer."""
        for hook in self._hooks:
            hook.remove()
        if self._module is not None:
            vars(self._module).pop("log", None)
        self._hooks, self._module = [], None

    def _called(self, metric: Metric, given: Any, value: Any) -> None:
        self._of_call[id(metric)] = value

    def batch(self, outputs: Any, batch: Any) -> None:
        """Take what was said of a minibatch."""
        said, size = self._said, self._size
        self._said = self._size = None
        if isinstance(said, Metric):
            said = self._of_call.get(id(said))
            self._why = self._why or ("" if said is not None else OF_OBJECT)
        self._of_call = {}
        own = outputs.get(OUTCOMES) if isinstance(outputs, Mapping) else None
        given = own.get(self._metric) if isinstance(own, Mapping) else None
        if isinstance(given, Tensor) and given.dim() == 1 and self._by_sample:
            self._values.append(given.detach())
            self._sizes.append(len(given))
            return
        if said is None or self._why or (self._values and self._by_sample):
            self._why = self._why or UNKNOWN
            return
        self._by_sample = False
        try:
            with warnings.catch_warnings(action="ignore"):  # that a size is a guess
                n_samples = int(size or extract_batch_size(batch))
            self._values.append(torch.as_tensor(said).detach().reshape(()))
        except Exception:  # noqa: BLE001 - a by-product: no reason to fail a trial
            self._why = NO_SIZE
            return
        self._sizes.append(n_samples)

    def taken(self, n_devices: int) -> tuple[Any, Any, str]:
        """(values (U,), samples of each unit (U,) or None, why they are unknown)."""
        if n_devices > 1:
            return None, None, SEVERAL_DEVICES
        if self._why or not self._values:
            return None, None, self._why or UNKNOWN
        found = self._joined()
        self._clear()  # a later report without a validation has none
        return found

    def _joined(self) -> tuple[Any, Any, str]:
        if self._by_sample:
            joined = torch.cat(self._values).cpu()
            return (joined if joined.dtype == torch.bool else joined.float()).numpy(), None, ""
        values = torch.stack([value.float() for value in self._values]).cpu().numpy()
        return values, np.array(self._sizes), ""
