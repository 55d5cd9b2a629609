"""A trained model as a torch.export archive (.pt2): no class of ours is needed to load it.

Tracing a network takes 60-70 ms, saving it 9 ms. Networks of one structure have the same graph but
for their widths and input statistics, so one of them is traced and serves them all (`_Traced`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from sweep.errors import DiskError
from sweep.files.trial_folder import replace_file
from sweep.hyperparameters import DEFAULT_MODULE
from sweep.loading import one_line, raised_by_user_code
from sweep.training.mlp import MLPClassifier
from sweep.training.modules import sample_shape
from sweep.training.resuming import saved_bytes

AXES, MOST = ("batch", "values"), 2**31 - 1
"""Of what an exported graph takes: axes, and the largest size of each."""
STATISTICS = (0.30719, 0.48611)
"""Mean and standard deviation that a structure is traced with: numbers that are nothing else."""
STRUCTURE = ("in_features", "n_classes", "activation")
"""What decides an MLP's graph, beside its layers: what they are, not how wide they are."""


def export_model(path: str | Path, model: nn.Module, feature_shape: tuple[int, ...]) -> str:
    """Write `model` as a torch.export archive (.pt2) that takes any number of samples.

    `torch.export.load(path).module()(x)` gives what the model in evaluation mode gives for x
    (B, *feature_shape), of any float type; also for flat rows (B, F), unless a module of the
    user's cannot be traced that way. Leaves the model in evaluation mode. Returns the path.
    Raises DiskError.
    """
    model.eval()
    if type(model) is MLPClassifier:
        program = _traced_structure(model, feature_shape).program_of(model)
    else:
        program = _export(model, feature_shape)
    replace_file(Path(path), saved_bytes(program, torch.export.save))
    return str(path)


def try_export(
    path: Path, module: lightning.LightningModule, of_data: tuple[int, ...], name: str
) -> tuple[str | None, str]:
    """`export_model` for samples of the module's own loaders or of shape `of_data`.

    Returns (path, ""), or (None, one line) for a module of the user's, called `name`, which
    `torch.export` cannot take. Raises DiskError, and whatever the built-in module raises.
    """
    try:
        return export_model(path, module, sample_shape(module, of_data)), ""
    except DiskError:
        raise
    except BaseException as error:
        why = raised_by_user_code(error)
        if name == DEFAULT_MODULE:
            raise
        return None, one_line(why, name)


def prepare_export(model: MLPClassifier, feature_shape: tuple[int, ...]) -> None:
    """Do now what the first `export_model` of a model like this one would take long for."""
    _traced_structure(model, feature_shape)


class _Traced:
    """The graph of one structure of MLPClassifier, traced once; not for several threads."""

    def __init__(
        self, given: Mapping[str, Any], n_hidden: int, feature_shape: tuple[int, ...],
        dtype: torch.dtype,
    ) -> None:  # fmt: skip
        self._widths = unmistakable(n_hidden, {*feature_shape, given["n_classes"]})
        mean, std = STATISTICS
        like = MLPClassifier(**given, hidden=self._widths, input_mean=mean, input_std=std)
        self._program = _export(like.to(dtype).eval(), feature_shape)
        nodes = self._program.graph.nodes
        self._nodes = [(node, node.args, node.meta.get("val")) for node in nodes]

    def program_of(self, model: MLPClassifier) -> ExportedProgram:
        """The program of `model`, valid until the next call."""
        sizes = dict(zip(self._widths, model.hidden, strict=True))
        constants = dict(zip(STATISTICS, _statistics(model), strict=True))
        for node, args, value in self._nodes:
            if any(arg in STATISTICS for arg in args if isinstance(arg, float)):
                node.args = tuple(constants.get(a, a) if isinstance(a, float) else a for a in args)
            if isinstance(value, Tensor):
                node.meta["val"] = _resized(value, sizes)
        for name, weights in model.named_parameters():
            self._program.state_dict[f"{_Inference.MODEL}.{name}"] = weights
        return self._program


def _statistics(model: MLPClassifier) -> tuple[float, float]:
    return float(model.input_mean), float(model.input_std)


def _resized(value: Tensor, sizes: Mapping[int, int]) -> Tensor:
    """A tensor of the graph, without data, in the sizes of another network."""
    shape, stride = (
        [sizes.get(n, n) if isinstance(n, int) else n for n in numbers]
        for numbers in (value.shape, value.stride())
    )
    if shape == [*value.shape]:
        return value
    return value.new_empty_strided(shape, stride).requires_grad_(value.requires_grad)


_structures: dict[Hashable, _Traced] = {}


def _traced_structure(model: MLPClassifier, feature_shape: tuple[int, ...]) -> _Traced:
    given = {name: model.hparams[name] for name in STRUCTURE}
    # Dropout does nothing here, whatever its probability, but its layers count in others' names.
    given["dropout"] = 0.5 if model.hparams["dropout"] > 0.0 else 0.0
    dtype = next(model.parameters()).dtype
    key = (len(model.hidden), *given.values(), feature_shape, dtype)
    if key not in _structures:
        _structures[key] = _Traced(given, len(model.hidden), feature_shape, dtype)
    return _structures[key]


def unmistakable(n: int, others: Collection[int]) -> Sequence[int]:
    """`n` primes above 100 that are none of `others`, nor a product of them, as strides are."""
    found: list[int] = []
    number = 100
    while len(found) < n:
        number += 1
        is_prime = all(number % divisor for divisor in range(2, math.isqrt(number) + 1))
        if is_prime and number not in others:
            found.append(number)
    return found


def _export(model: nn.Module, feature_shape: tuple[int, ...]) -> ExportedProgram:
    """The forward pass as a graph for any number of samples; for flat rows, too, if `model` can be
    traced that way."""
    try:
        # Neither 0 nor 1 rows, nor 1 value: torch would take those sizes for fixed ones.
        sizes = {k: torch.export.Dim(name, min=1, max=MOST) for k, name in enumerate(AXES)}
        return _traced(_AnyShape(model, feature_shape), (3, 2 + math.prod(feature_shape)), sizes)
    except Exception:
        if isinstance(model, MLPClassifier):
            raise
        # A user's module may decide by the number of samples, which is not known there.
        sizes = {0: torch.export.Dim(AXES[0], min=1)}
        return _traced(_Inference(model), (2, *feature_shape), sizes)


def _traced(inference: nn.Module, shape: tuple[int, ...], sizes: Any) -> ExportedProgram:
    example = torch.zeros(shape, device=next(inference.parameters()).device)
    return torch.export.export(inference, (example,), dynamic_shapes=(sizes,), strict=False)


class _Inference(nn.Module):
    """Only the forward pass: a LightningModule brings its trainer and metrics along.

    The graph casts x to the type of the weights.
    """

    MODEL = "model"
    """The name under which weights are found."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """The model's output."""
        # A sum over one element: unlike `to`, it does not fix the input's type in the graph.
        x = x.unsqueeze(0).sum(0, dtype=next(self.model.parameters()).dtype)
        output: Tensor = self.model(x)
        return output


class _AnyShape(_Inference):
    """Also reshapes x to (B, *feature_shape): its first axis counts samples.

    A graph has a fixed number of axes unless sizes come from the data: `masked_select` yields
    such a size, so that neither x.reshape nor x.shape constrains the input.
    """

    def __init__(self, model: nn.Module, feature_shape: tuple[int, ...]) -> None:
        super().__init__(model)
        self._feature_shape = feature_shape

    def forward(self, x: Tensor) -> Tensor:
        """The model's output for x (B, ...) with as many values each as feature_shape has."""
        values = x.masked_select(torch.ones_like(x, dtype=torch.bool))
        rows = torch.arange(x.shape[0])
        n_rows = rows.masked_select(rows >= 0).shape[0]
        n_values = math.prod(self._feature_shape) * n_rows
        torch._check(values.shape[0] == n_values)  # type: ignore[no-untyped-call]
        return super().forward(values.reshape(n_rows, *self._feature_shape))
