"""A trained model as a torch.export archive (.pt2): no class of ours is needed to load it.

torch.export takes 70 ms to trace a network and 9 ms to serialise it. Networks that differ in their
widths alone have archives that differ in a few numbers and in the weights, so one network of each
structure is traced and serialised, and the archives of the others are filled in: 1-2 ms.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.pt2_archive import PT2ArchiveReader, PT2ArchiveWriter

from sweep.training.mlp import MLPClassifier
from sweep.training.resuming import saved_bytes
from sweep.trial_files import replace_file

PROGRAM = "models/model.json"
WEIGHTS = "data/weights/"
WEIGHTS_TABLE = f"{WEIGHTS}model_weights_config.json"
OF_THE_WRITER = (".data/", "byteorder")
"""Records that torch's writer adds by itself."""
SHAPES = ("tensor_values", "tensor_meta")
"""Keys in an archive's JSON below which the sizes and strides of all tensors are."""
STRUCTURE = ("in_features", "n_classes", "activation", "input_mean", "input_std")
"""What decides an MLP's archive, beside its layers, their widths and weights."""


def export_model(path: str | Path, model: nn.Module, feature_shape: tuple[int, ...]) -> str:
    """Write `model` as a torch.export archive (.pt2) that takes any number of samples.

    `torch.export.load(path).module()(x)` gives what the model in evaluation mode gives for x
    (B, *feature_shape). Leaves the model in evaluation mode. Returns the path. Raises DiskError.
    """
    model.eval()
    template = _template_of(model, feature_shape) if type(model) is MLPClassifier else None
    if template is None:
        content = saved_bytes(_export(model, feature_shape), torch.export.save)
    else:
        content = saved_bytes(model, template.fill)
    replace_file(Path(path), content)
    return str(path)


def prepare_export(model: MLPClassifier, feature_shape: tuple[int, ...]) -> None:
    """Do now what the first `export_model` of a model like this one would take long for."""
    _template_of(model, feature_shape)


class Template:
    """The archive of one structure, with gaps where widths and weights go.

    Args:
        archive: What `torch.export.save` wrote for a network of that structure.
        widths: Of its hidden layers: no two alike, and none of them also something else's size.

    Raises:
        ValueError: A width is where none was expected.
        KeyError: A record or an entry is not where it was expected.
    """

    def __init__(self, archive: bytes | bytearray, widths: Sequence[int]) -> None:
        gaps = {width: f"<width {k}>" for k, width in enumerate(widths)}
        self._gaps = [json.dumps(gap) for gap in gaps.values()]
        reader = PT2ArchiveReader(io.BytesIO(archive))
        self._texts = {
            record: json.dumps(_with_gaps(json.loads(reader.read_string(record)), gaps))
            for record in (WEIGHTS_TABLE, PROGRAM)
        }
        table = json.loads(reader.read_string(WEIGHTS_TABLE))["config"]
        self._weights = {
            WEIGHTS + meta["path_name"]: name.removeprefix(f"{_Inference.MODEL}.")
            for name, meta in table.items()
        }
        self._others = {
            record: reader.read_bytes(record)
            for record in reader.get_file_names()
            if record not in {*self._texts, *self._weights}
            and not record.startswith(OF_THE_WRITER)
        }

    def fill(self, model: MLPClassifier, file: Any) -> None:
        """Write the archive of `model`, a network of this structure, to `file`."""
        weights = model.state_dict()
        with PT2ArchiveWriter(file) as writer:
            for record, name in self._weights.items():
                writer.write_bytes(record, _bytes(weights[name]))
            for record, text in self._texts.items():
                for gap, width in zip(self._gaps, model.hidden, strict=True):
                    text = text.replace(gap, str(width))
                writer.write_string(record, text)
            for record, content in self._others.items():
                writer.write_bytes(record, content)


_templates: dict[Hashable, Template | None] = {}


def _template_of(model: MLPClassifier, feature_shape: tuple[int, ...]) -> Template | None:
    """The template of the model's structure; None where torch's format is another one."""
    given = {name: model.hparams[name] for name in STRUCTURE}
    # Dropout does nothing here, whatever its probability, but its layers count in others' names.
    given["dropout"] = 0.5 if model.hparams["dropout"] > 0.0 else 0.0
    dtype = next(model.parameters()).dtype
    key = (len(model.hidden), *given.values(), feature_shape, dtype)
    if key not in _templates:
        # A prime above all other sizes: no product of those, as strides are, is equal to it.
        widths = _primes(len(model.hidden), max(*feature_shape, model.n_classes, 100))
        like = MLPClassifier(**given, hidden=widths).to(dtype).eval()
        archive = saved_bytes(_export(like, feature_shape), torch.export.save)
        try:
            _templates[key] = Template(archive, widths)
        except (KeyError, ValueError):
            _templates[key] = None
    return _templates[key]


def _primes(n: int, above: int) -> list[int]:
    found: list[int] = []
    number = above
    while len(found) < n:
        number += 1
        if all(number % divisor for divisor in range(2, math.isqrt(number) + 1)):
            found.append(number)
    return found


def _with_gaps(content: Any, gaps: Mapping[int, str], *, is_shape: bool = False) -> Any:
    """JSON with the numbers of `gaps` in tensors' shapes replaced."""
    if isinstance(content, dict):
        return {
            key: _with_gaps(value, gaps, is_shape=is_shape or key in SHAPES)
            for key, value in content.items()
        }
    if isinstance(content, list):
        return [_with_gaps(item, gaps, is_shape=is_shape) for item in content]
    if isinstance(content, int) and content in gaps:
        if not is_shape:
            raise ValueError(f"{content} is no width here")
        return gaps[content]
    return content


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()


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
