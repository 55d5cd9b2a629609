"""Trained models as files for use without sweep, compared with their checkpoint on the spot.

A file is written beside its place, loaded again as its reader would, and given 1, 7 and 1,000
rows; only if it answers as the checkpoint does is it moved into place.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sweep.environment.provenance import provenance
from sweep.errors import ConfigError, DiskError, SweepError, must_be_one_of, os_error_text
from sweep.loading import one_line, raised_by_user_code
from sweep.reuse.best import Best, opened
from sweep.reuse.loading import input_rows, untrained
from sweep.reuse.recipe import as_python
from sweep.training.exports import Example, export_model, export_onnx

N_ROWS_CHECKED = (1, 7, 1000)
NEAR = {torch.float64: 1e-9, torch.float32: 1e-4}
NEAR_HALF = 2e-2
"""Largest difference, relative to the largest output: the same sums in another order."""
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
ABOUT, README = "export.json", "README.md"

Forward = Callable[[Tensor], Any]


@dataclass(frozen=True)
class Exported:
    """An exported model."""

    file: Path
    differences: Mapping[int, float]
    """Number of rows -> largest absolute difference from what the checkpoint predicts."""


@dataclass(frozen=True)
class Subject:
    """A trained module to export."""

    name: str
    """For messages: its class."""
    module: nn.Module
    rows: Tensor
    """Some rows (n, ...) of its input."""
    build: str
    """Lines of Python that make the untrained module."""
    untrained: Callable[[], nn.Module]
    facts: Mapping[str, Any]
    """Where it comes from and how good it is, for ABOUT."""

    @property
    def example(self) -> Example:
        """A sample of its input."""
        return Example(tuple(self.rows.shape[1:]), self.rows.dtype)

    def first(self, n: int) -> Tensor:
        """`n` rows in the type of the weights; the first ones again where there are fewer."""
        x = self.rows[torch.arange(n) % len(self.rows)]
        weights = next(self.module.parameters(), x)
        return x.to(weights.dtype) if x.is_floating_point() else x


class Form(NamedTuple):
    """A format of exported models."""

    file: str
    write: Callable[[Path, Subject], None]
    read: Callable[[Path, Subject], Forward]
    usage: str
    """Lines of Python that load the file; {build} makes the untrained module."""


def export_trial(best: Best, folder: Path, to: str) -> Exported:
    """See `Best.export`."""
    form_of(to)
    module = best.load()
    with opened(best.study, best.where) as (ledger, config):
        dataset, metric = ledger.dataset, config.metric
        rows = input_rows(best.recipe, config, dataset)
    if rows is None:
        raise ConfigError(
            f"{best.recipe.module} cannot be exported: its minibatches do not begin with a tensor"
        )
    facts = {
        "study": best.study, "trial": best.trial, "module": best.recipe.module,
        "metric": {"name": metric, "value": best.score, "on": "validation"},
        "hyperparameters": dict(best.config), "data": best.recipe.data,
    }  # fmt: skip
    subject = Subject(
        best.recipe.module, module, rows.detach().cpu(), as_python(best.recipe).strip(),
        lambda: untrained(best.recipe, best.where), facts,
    )  # fmt: skip
    return export_subject(subject, folder, to)


def export_subject(subject: Subject, folder: Path, to: str) -> Exported:
    """Write a module into `folder`, with ABOUT and README beside it; see `Best.export`."""
    form = form_of(to)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix=".export-") as scratch:
            aside = Path(scratch, form.file)
            _written(form, aside, subject)
            differences = _differences(form, aside, subject, to)
            shutil.move(aside, folder / form.file)
        about = _about(subject, form, to, differences)
        (folder / ABOUT).write_text(json.dumps(about, indent=2, default=str) + "\n", "utf-8")
        (folder / README).write_text(_readme(subject, form, about), "utf-8")
    except OSError as error:
        raise DiskError(f"{folder} cannot be written: {os_error_text(error)}") from error
    return Exported(folder / form.file, differences)


def form_of(to: str) -> Form:
    """The format called `to`. Raises ConfigError, also if its packages are missing."""
    if to not in FORMS:
        raise ConfigError(must_be_one_of("--to", to, FORMS))
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if to == "onnx" and missing:
        raise ConfigError(
            f"--to onnx needs {', '.join(missing)}: pip install {' '.join(ONNX_PACKAGES)}"
        )
    return FORMS[to]


def _written(form: Form, path: Path, subject: Subject) -> None:
    try:
        # torch prints the graph of a first try that a second one replaces.
        with contextlib.redirect_stderr(io.StringIO()):
            form.write(path, subject)
    except (SweepError, OSError, KeyboardInterrupt):
        raise
    except BaseException as error:  # also sys.exit
        why = one_line(raised_by_user_code(error), subject.name)
        raise ConfigError(f"{subject.name} cannot be exported: {why}") from error


def _differences(form: Form, path: Path, subject: Subject, to: str) -> dict[int, float]:
    """See `Exported.differences`. Raises ConfigError if one is too large."""
    found = {}
    subject.module.eval()
    for n in N_ROWS_CHECKED:
        x = subject.first(n)
        with torch.no_grad():
            expected = _tensors(subject.module(x), subject.name)
            try:
                given = _tensors(form.read(path, subject)(x), subject.name)
            except (SweepError, KeyboardInterrupt):
                raise
            except BaseException as error:  # also sys.exit
                why = one_line(raised_by_user_code(error), subject.name)
                why = f"gives no predictions for {n} row{'s' * (n > 1)}: {why}"
                raise ConfigError(f"{subject.name} as {to} {why}") from error
        found[n] = largest_difference(expected, given)
        if not found[n] <= _tolerance(expected):
            raise ConfigError(
                f"{subject.name} as {to} differs from its checkpoint by "
                f"{in_words({n: found[n]})}: it was not written. Does its forward depend on "
                "chance, or on the number of rows?"
            )
    return found


def largest_difference(a: list[Tensor], b: list[Tensor]) -> float:
    """Largest absolute difference of two lists of tensors; infinite for other shapes or NaN."""
    if [x.shape for x in a] != [x.shape for x in b]:
        return math.inf
    found = [0.0]
    for x, y in zip(a, b, strict=True):
        x, y = x.double(), y.double()
        is_same = (x == y) | (x.isnan() & y.isnan())
        gap = torch.where(is_same, 0.0, (x - y).abs()).nan_to_num(math.inf)
        found.append(float(gap.max()) if gap.numel() else 0.0)
    return max(found)


def _tolerance(expected: list[Tensor]) -> float:
    scale = [float(x.double().abs().nan_to_num(0.0).max()) for x in expected if x.numel()]
    near = [NEAR.get(x.dtype, NEAR_HALF if x.is_floating_point() else 0.0) for x in expected]
    return max(near, default=0.0) * max(scale, default=1.0)


def _tensors(output: Any, name: str) -> list[Tensor]:
    """The tensors in what a forward returned, in order. Raises ConfigError for anything else."""
    if isinstance(output, Tensor):
        return [output]
    parts = output.values() if isinstance(output, Mapping) else output
    if not isinstance(output, Mapping | list | tuple):
        kind = type(output).__name__
        raise ConfigError(f"{name} cannot be exported: its forward gives {kind}, not tensors")
    return [tensor for part in parts for tensor in _tensors(part, name)]


def _to_pt2(path: Path, subject: Subject) -> None:
    export_model(path, subject.module, subject.example)


def _to_onnx(path: Path, subject: Subject) -> None:
    export_onnx(path, subject.module, subject.example)


def _to_state_dict(path: Path, subject: Subject) -> None:
    torch.save(subject.module.state_dict(), path)


def _from_pt2(path: Path, subject: Subject) -> Forward:
    return torch.export.load(path).module()


def _from_onnx(path: Path, subject: Subject) -> Forward:
    runtime = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda x: [torch.from_numpy(y) for y in session.run(None, {"input": x.numpy()})]


def _from_state_dict(path: Path, subject: Subject) -> Forward:
    module = subject.untrained()
    module.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return module.eval()


FORMS: Mapping[str, Form] = {
    "pt2": Form(
        "model.pt2", _to_pt2, _from_pt2,
        "import torch\n\nmodel = torch.export.load('model.pt2').module()",
    ),
    "onnx": Form(
        "model.onnx", _to_onnx, _from_onnx,
        "import onnxruntime\n\nsession = onnxruntime.InferenceSession('model.onnx')\n"
        "model = lambda x: session.run(None, {{'input': x}})[0]  # x: a numpy array",
    ),
    "state-dict": Form(
        "weights.pt", _to_state_dict, _from_state_dict,
        "import torch\n\n{build}\n"
        "model.load_state_dict(torch.load('weights.pt', weights_only=True))\nmodel.eval()",
    ),
}  # fmt: skip
"""The formats by name."""


def _about(
    subject: Subject, form: Form, to: str, differences: Mapping[int, float]
) -> dict[str, Any]:
    x = subject.first(2)
    with torch.no_grad():
        outputs = _tensors(subject.module(x), subject.name)
    return {
        "format": to, "file": form.file, **subject.facts,
        "input": _described(x), "output": [_described(y) for y in outputs],
        "largest_difference_from_checkpoint": dict(differences),
        "made_with": {k: v for k, v in provenance().items() if "version" in k or "git" in k},
    }  # fmt: skip


def in_words(differences: Mapping[int, float]) -> str:
    """`Exported.differences` on a line.

    >>> in_words({1: 0.0, 1000: 2.4e-6})
    '0 for 1 row, 2e-06 for 1,000 rows'
    """
    return ", ".join(f"{d:.1g} for {n:,} row{'s' * (n > 1)}" for n, d in differences.items())


def _described(x: Tensor) -> dict[str, Any]:
    return {"shape": ["n", *x.shape[1:]], "dtype": str(x.dtype).removeprefix("torch.")}


def _readme(subject: Subject, form: Form, about: Mapping[str, Any]) -> str:
    metric, given = about["metric"], about["input"]
    shape = ", ".join(map(str, given["shape"]))
    outputs = "; ".join(
        f"{y['dtype']} ({', '.join(map(str, y['shape']))})" for y in about["output"]
    )
    checked = in_words(about["largest_difference_from_checkpoint"])
    which = f"trial {about['trial']}" if "trial" in about else "an ensemble"
    if members := about.get("members"):
        which += " of " + ", ".join(f"{m} x{n}" if n > 1 else m for m, n in members.items())
    notes = [f"{about['gives']}; {'; '.join(about['notes'])}."] if members else []
    lines = [
        f"# {form.file}: {which}, study {about['study']}", "",
        f"{metric['name']} {metric['value']:.6g} on {metric['on']}.", *notes, "",
        "```python", form.usage.format(build=subject.build), "```", "",
        f"It takes {given['dtype']} ({shape}), any number n of rows, and gives {outputs}.",
        f"Checked as it was written: largest difference from the checkpoint {checked}.",
        f"All facts, for programs: {ABOUT}.", "",
    ]  # fmt: skip
    return "\n".join(lines)
