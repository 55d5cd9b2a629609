"""Trained models as torch.export archives (.pt2), loadable without sweep.

Tracing a network takes 60-70 ms, saving it 9 ms. The graphs of networks of one structure differ
only in widths and input statistics, so one trace serves all of them (`_Traced`).
"""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from sweep.errors import DiskError
from sweep.files.trial_files import replace_file
from sweep.hyperparameters import DEFAULT_MODULE
from sweep.loading import one_line, raised_by_user_code
from sweep.training.mlp import MLPClassifier
from sweep.training.resuming import saved_bytes

AXES, MOST = ("batch", "values"), 2**31 - 1
"""Names of the axes of an exported graph's input, and the largest size of an axis."""
STATISTICS = (0.30719, 0.48611)
"""Placeholder mean and standard deviation for tracing: no other constant has these values."""
STRUCTURE = ("in_features", "n_classes", "activation")
"""Hyperparameters with an effect on an MLP's graph, beside the number of layers and dropout."""


@dataclass(frozen=True)
class Example:
    """One sample of a module's input: the first tensor of its minibatches."""

    shape: tuple[int, ...]
    """Without the axis of samples."""
    dtype: torch.dtype = torch.float32

    @classmethod
    def of(cls, batch: Any) -> Example | None:
        """Of a minibatch; None if it does not begin with a tensor."""
        x = batch[0] if isinstance(batch, list | tuple) and batch else batch
        return cls(tuple(x.shape[1:]), x.dtype) if isinstance(x, Tensor) and x.ndim else None


def export_model(path: str | Path, model: nn.Module, example: Example) -> str:
    """Write `model` as a torch.export archive (.pt2) for any number of samples.

    `torch.export.load(path).module()(x)` equals the model in evaluation mode for x
    (B, *example.shape), of any float type if the example is of one. It also accepts flat rows
    (B, F), unless tracing a user's module with a reshape fails. Leaves the model in evaluation
    mode. Returns the path. Raises DiskError.
    """
    model.eval()
    if type(model) is MLPClassifier:
        program = _traced_structure(model, example.shape).program_of(model)
    elif example.dtype.is_floating_point:
        program = _export(model, example.shape)
    else:  # such as token ids, which the graph must not turn into floats
        x = torch.zeros((2, *example.shape), dtype=example.dtype, device=_device(model))
        sizes = {0: torch.export.Dim(AXES[0], min=1)}
        program = torch.export.export(_Given(model), (x,), dynamic_shapes=(sizes,), strict=False)
    replace_file(Path(path), saved_bytes(program, torch.export.save))
    return str(path)


def export_onnx(path: Path, model: nn.Module, example: Example) -> None:
    """Write `model` as an ONNX file of one input (B, *example.shape), for any number of samples.

    Leaves the model in evaluation mode. Needs the packages `onnx` and `onnxscript`.
    """
    dtype = example.dtype
    if dtype.is_floating_point:
        dtype = next((weights.dtype for weights in model.parameters()), dtype)
    x = torch.zeros((2, *example.shape), dtype=dtype)
    sizes = ({0: torch.export.Dim(AXES[0], min=1)},)
    given = _Given(model.eval())
    program = torch.export.export(given, (x,), dynamic_shapes=sizes, strict=False)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings():  # of torch's own code, and that there is no torchvision
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            torch.onnx.export(
                program, (), path, input_names=["input"], output_names=["output"], dynamo=True,
                external_data=False, verbose=False,
            )  # fmt: skip
        finally:
            logger.setLevel(level)


def try_export(
    path: Path, module: lightning.LightningModule, example: Example | None, name: str
) -> tuple[str | None, str]:
    """`export_model`; an `example` of None is a reason against it.

    Returns (path, ""), or (None, one line) if `torch.export` fails for the user's module `name`.
    Raises DiskError, and any error of the built-in module.
    """
    if example is None:
        return None, "its minibatches do not begin with a tensor"
    try:
        archive = export_model(path, module, example)
        if name != DEFAULT_MODULE:
            replace_file(path.with_suffix(".json"), _interface(module, example).encode())
        return archive, ""
    except DiskError:
        raise
    except BaseException as error:
        why = raised_by_user_code(error)
        if name == DEFAULT_MODULE:
            raise
        return None, one_line(why, name)


def _interface(module: lightning.LightningModule, example: Example) -> str:
    """What goes in and what comes out, for MLflow's signature, as JSON."""
    x = torch.zeros((2, *example.shape), dtype=example.dtype, device=_device(module))
    with torch.no_grad():
        y = module(x)
    tensors = {"input": x} | ({"output": y} if isinstance(y, Tensor) and y.ndim else {})
    parts = {
        name: {"shape": [*value.shape[1:]], "dtype": str(value.dtype).removeprefix("torch.")}
        for name, value in tensors.items()
    }
    return json.dumps(parts)


def prepare_export(model: MLPClassifier, feature_shape: tuple[int, ...]) -> None:
    """Trace the structure of `model` now, so its first `export_model` is quick."""
    _traced_structure(model, feature_shape)


class _Traced:
    """The graph of one structure of MLPClassifier, traced once. Not thread-safe."""

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
    """A fake tensor of the graph, resized to another network's layers."""
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
    # Dropout is inactive in evaluation mode, but its layers shift the indices in weights' names.
    given["dropout"] = 0.5 if model.hparams["dropout"] > 0.0 else 0.0
    dtype = next(model.parameters()).dtype
    key = (len(model.hidden), *given.values(), feature_shape, dtype)
    if key not in _structures:
        _structures[key] = _Traced(given, len(model.hidden), feature_shape, dtype)
    return _structures[key]


def unmistakable(n: int, others: Collection[int]) -> Sequence[int]:
    """`n` primes above 100, not among `others`: strides, products of sizes, cannot equal them."""
    found: list[int] = []
    number = 100
    while len(found) < n:
        number += 1
        is_prime = all(number % divisor for divisor in range(2, math.isqrt(number) + 1))
        if is_prime and number not in others:
            found.append(number)
    return found


def _export(model: nn.Module, feature_shape: tuple[int, ...]) -> ExportedProgram:
    """The forward pass as a graph for any number of samples; for flat rows, too, if tracing with
    a reshape succeeds."""
    try:
        # 3 rows and at least 3 values: torch.export would take sizes 0 and 1 for constants.
        sizes = {k: torch.export.Dim(name, min=1, max=MOST) for k, name in enumerate(AXES)}
        return _traced(_AnyShape(model, feature_shape), (3, 2 + math.prod(feature_shape)), sizes)
    except Exception:
        if isinstance(model, MLPClassifier):
            raise
        # A user's module may branch on the number of samples, unknown to _AnyShape's trace.
        sizes = {0: torch.export.Dim(AXES[0], min=1)}
        return _traced(_Inference(model), (2, *feature_shape), sizes)


def _traced(inference: nn.Module, shape: tuple[int, ...], sizes: Any) -> ExportedProgram:
    example = torch.zeros(shape, device=_device(inference))
    return torch.export.export(inference, (example,), dynamic_shapes=(sizes,), strict=False)


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


class _Given(nn.Module):
    """The forward pass alone, for x as it is."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        """The model's output."""
        return self.model(x)


class _Inference(nn.Module):
    """The forward pass alone, without a LightningModule's trainer and metrics.

    The graph casts x to the type of the weights.
    """

    MODEL = "model"
    """Prefix of the weights' names."""

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
    """Also reshapes x (B, ...) to (B, *feature_shape).

    A graph has a fixed number of axes unless sizes are data-dependent: `masked_select` yields
    such a size, so neither x.reshape nor x.shape constrains the input.
    """

    def __init__(self, model: nn.Module, feature_shape: tuple[int, ...]) -> None:
        super().__init__(model)
        self._feature_shape = feature_shape

    def forward(self, x: Tensor) -> Tensor:
        """The model's output for x (B, ...) with prod(feature_shape) values per sample."""
        values = x.masked_select(torch.ones_like(x, dtype=torch.bool))
        rows = torch.arange(x.shape[0])
        n_rows = rows.masked_select(rows >= 0).shape[0]
        n_values = math.prod(self._feature_shape) * n_rows
        torch._check(values.shape[0] == n_values)  # type: ignore[no-untyped-call]
        return super().forward(values.reshape(n_rows, *self._feature_shape))
