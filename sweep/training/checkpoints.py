"""What a trial leaves behind: an ordinary Lightning checkpoint and a torch.export archive."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from sweep.training.mlp import MLPClassifier
from sweep.training.resuming import saved_bytes
from sweep.trial_files import replace_file


def write_checkpoint(
    path: str | Path,
    model: lightning.LightningModule,
    epoch: int,
    global_step: int,
    extra: Mapping[str, Any] | None = None,
) -> str:
    """Write `model` as a checkpoint that `type(model).load_from_checkpoint(path)` opens.

    Plain values and tensors only, so that it loads with `weights_only=True`. Written aside,
    flushed and renamed: a file of that name is always whole. `epoch` counts from 0 like
    Lightning's; `extra` adds keys beside Lightning's own. Returns the path. Raises DiskError.
    """
    checkpoint: dict[str, Any] = {
        "epoch": epoch,
        "global_step": global_step,
        "pytorch-lightning_version": lightning.__version__,
        "state_dict": {name: value.detach().cpu() for name, value in model.state_dict().items()},
        "loops": {},
        "callbacks": {},
        "optimizer_states": [],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {name: _plain(value) for name, value in model.hparams.items()},
        **(extra or {}),
    }
    replace_file(Path(path), saved_bytes(checkpoint))
    return str(path)


def export_model(path: str | Path, model: nn.Module, feature_shape: tuple[int, ...]) -> str:
    """Write `model` as a torch.export archive (.pt2) that takes any number of samples.

    `torch.export.load(path).module()(x)` gives what the model in evaluation mode gives for x
    (B, *feature_shape). Leaves the model in evaluation mode. Returns the path. Raises DiskError.
    """
    model.eval()
    if isinstance(model, MLPClassifier):
        program = _export_mlp(model, feature_shape)
    else:
        program = _export(model, feature_shape)
    replace_file(Path(path), saved_bytes(program, torch.export.save))
    return str(path)


def prepare_export(model: MLPClassifier, feature_shape: tuple[int, ...]) -> None:
    """Do now what the first `export_model` of a model like this one would take long for."""
    model.eval()
    if _key(model, feature_shape) not in _programs:
        saved_bytes(_export_mlp(model, feature_shape), torch.export.save)


def _export(model: nn.Module, feature_shape: tuple[int, ...]) -> ExportedProgram:
    like = next(model.parameters())
    # Two rows: with one the batch dimension would be specialised to 1.
    example = torch.zeros(2, *feature_shape, device=like.device, dtype=like.dtype)
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(
        _Inference(model), (example,), dynamic_shapes=({0: batch},), strict=False
    )


def _export_mlp(model: MLPClassifier, feature_shape: tuple[int, ...]) -> ExportedProgram:
    """An MLP's program, traced once for all MLPs that differ in widths and weights only.

    Tracing takes 75 ms; putting other weights into a traced program 1.5 ms.
    """
    key = _key(model, feature_shape)
    if key not in _programs:
        _programs[key] = _export(model, feature_shape)
    elif not _put_weights(_programs[key], model):
        return _export(model, feature_shape)
    return _programs[key]


def _key(model: MLPClassifier, feature_shape: tuple[int, ...]) -> Hashable:
    """What MLPs have in common that share a traced program."""
    like = next(model.parameters())
    return (
        len(model.hidden), model.hparams["activation"], model.hparams["dropout"] > 0.0,
        feature_shape, model.input_mean, model.input_std, like.dtype, like.device,
    )  # fmt: skip


_programs: dict[Hashable, ExportedProgram] = {}


def _put_weights(program: ExportedProgram, model: MLPClassifier) -> bool:
    """Make `program` the one of `model`; False where its graph is not the known one.

    A traced graph holds weights by name and the shape of every value. After the first linear
    layer all shapes are (batch, outputs), so they are set without running the graph again.
    """
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    names = program.graph_signature.inputs_to_parameters
    if set(names.values()) != set(weights):
        return False
    reshaped: set[Node] = set()
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in names:
            _reshape(node, tuple(weights[names[node.name]].shape))
        elif node.op == "call_function" and node.target is torch.ops.aten.linear.default:
            n_outputs = weights[names[node.args[1].name]].shape[0]
            _reshape(node, (node.meta["val"].shape[0], n_outputs))
            reshaped.add(node)
        elif node.op == "call_function" and reshaped.intersection(node.all_input_nodes):
            if len(node.all_input_nodes) != 1:
                return False
            node.meta["val"] = node.args[0].meta["val"]  # activations are elementwise
            node.meta.pop("tensor_meta", None)
            reshaped.add(node)
    program._state_dict = {name: nn.Parameter(value) for name, value in weights.items()}
    return True


def _reshape(node: Node, shape: tuple[Any, ...]) -> None:
    value = node.meta["val"]
    with value.fake_mode:
        other = torch.empty(shape, dtype=value.dtype, device=value.device)
        node.meta["val"] = nn.Parameter(other) if isinstance(value, nn.Parameter) else other
    node.meta.pop("tensor_meta", None)


class _Inference(nn.Module):
    """Only the forward pass: a LightningModule brings its trainer and metrics along."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """The model's output."""
        output: Tensor = self.model(x)
        return output


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
