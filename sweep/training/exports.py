"""A trained model as a torch.export archive (.pt2): no class of ours is needed to load it."""

from __future__ import annotations

import contextlib
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

STATISTICS = (0.30719, 0.48611)
"""Mean and standard deviation that a template is made with: numbers that are nothing else."""
STRUCTURE = ("in_features", "n_classes", "activation")
"""What decides an MLP's template, beside its layers: what they are, not how wide they are."""


def export_model(path: str | Path, model: nn.Module, feature_shape: tuple[int, ...]) -> str:
    """Write `model` as a torch.export archive (.pt2) that takes any number of samples.

    `torch.export.load(path).module()(x)` gives what the model in evaluation mode gives for x
    (B, *feature_shape). Leaves the model in evaluation mode. Returns the path. Raises DiskError.
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
    like = next(model.parameters())
    # Two rows: with one the batch dimension would be specialised to 1.
    example = torch.zeros(2, *feature_shape, device=like.device, dtype=like.dtype)
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(
        _Inference(model), (example,), dynamic_shapes=({0: batch},), strict=False
    )


class _Inference(nn.Module):
    """Only the forward pass: a LightningModule brings its trainer and metrics along."""

    MODEL = "model"
    """The name under which weights are found."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """The model's output."""
        output: Tensor = self.model(x)
        return output
