"""A trained model as a torch.export archive (.pt2): no class of ours is needed to load it."""

from __future__ import annotations

import contextlib
import math
import platform
from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from sweep.cache import cache_file
from sweep.training import mlp
from sweep.training.mlp import MLPClassifier
from sweep.training.resuming import saved_bytes
from sweep.training.templates import (
    Template,
    UnknownFormatError,
    sources_digest,
    unmistakable,
)
from sweep.trial_files import replace_file

AXES, MOST = ("batch", "values"), 2**31 - 1
"""Of what an exported graph takes: axes, and the largest size of each."""
STATISTICS = (0.30719, 0.48611)
"""Mean and standard deviation that a template is made with: numbers that are nothing else."""
STRUCTURE = ("in_features", "n_classes", "activation")
"""What decides an MLP's template, beside its layers: what they are, not how wide they are."""


def export_model(path: str | Path, model: nn.Module, feature_shape: tuple[int, ...]) -> str:
    """Write `model` as a torch.export archive (.pt2) that takes any number of samples.

    `torch.export.load(path).module()(x)` gives what the model in evaluation mode gives for x
    (B, *feature_shape), of any float type; also for flat rows (B, F), unless a module of the
    user's cannot be traced that way. Leaves the model in evaluation mode. Returns the path.
    Raises DiskError.
    """
    model.eval()
    template = None
    if type(model) is MLPClassifier:
        template = _template_of(model, feature_shape)
        numbers = (float(model.input_mean), float(model.input_std), *model.hidden)
    if template is None:
        content = saved_bytes(_export(model, feature_shape), torch.export.save)
    else:
        content = saved_bytes(model.state_dict(), partial(template.fill, numbers=numbers))
    replace_file(Path(path), content)
    return str(path)


def prepare_export(model: MLPClassifier, feature_shape: tuple[int, ...]) -> None:
    """Do now what the first `export_model` of a model like this one would take long for."""
    _template_of(model, feature_shape)


_CODE = sources_digest([__file__, mlp.__file__])
"""Now: what is traced is what was loaded, whatever becomes of the files."""
_templates: dict[Hashable, Template | None] = {}


def _template_of(model: MLPClassifier, feature_shape: tuple[int, ...]) -> Template | None:
    """The template of the model's structure; None where torch's format is another one."""
    given = {name: model.hparams[name] for name in STRUCTURE}
    # Dropout does nothing here, whatever its probability, but its layers count in others' names.
    given["dropout"] = 0.5 if model.hparams["dropout"] > 0.0 else 0.0
    dtype = next(model.parameters()).dtype
    key = (len(model.hidden), *given.values(), feature_shape, dtype)
    if key not in _templates:
        widths = unmistakable(len(model.hidden), {*feature_shape, model.n_classes})
        numbers = (*STATISTICS, *widths)
        made_by = (platform.python_version(), torch.__version__, _CODE, key)
        file = cache_file("templates", *made_by) if _CODE else None
        template = Template.kept(file)
        if template is None:
            archive = _make(given, numbers, feature_shape, dtype)
            with contextlib.suppress(UnknownFormatError):
                template = Template.of(archive, numbers, f"{_Inference.MODEL}.")
            if template is not None:
                template.keep(file)
        _templates[key] = template
    return _templates[key]


def _make(
    given: Mapping[str, Any],
    numbers: Sequence[float],
    feature_shape: tuple[int, ...],
    dtype: torch.dtype,
) -> bytearray:
    """The archive that a template is made of."""
    mean, std, *widths = numbers
    like = MLPClassifier(
        **given, hidden=[int(width) for width in widths], input_mean=mean, input_std=std
    )
    return saved_bytes(_export(like.to(dtype).eval(), feature_shape), torch.export.save)


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
