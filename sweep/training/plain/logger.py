"""`self.logger` of a module in a trial: values by step and files, for the trial's MLflow run.

They go into the trial's files; the driver's mirror shows them in the trial's run. Metrics of whole
epochs are not kept here: the engine reports them.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.loggers.logger import DummyLogger

from sweep.files.trial_files import LOGGED, STEPS, TrialFiles
from sweep.trial import now_ms


class TrialLogger(DummyLogger):
    """Takes every call of Lightning's loggers; keeps values by step and files.

    Args:
        files: Of the trial.
        step: Where the trial goes on: later values of an earlier try are dropped.
    """

    def __init__(self, files: TrialFiles, step: int = 0) -> None:
        super().__init__()
        self._files, self._rows = files, list[str]()
        self._writer = _Experiment(self, files.path(LOGGED))
        self.trainer: lightning.Trainer | None = None
        self.is_in_step = False
        """Whether a training step runs: Lightning's other calls bring epochs' metrics."""
        earlier = files.steps()
        if earlier:
            kept = (f"{json.dumps(row)}\n" for row in earlier if row[1] <= step)
            files.put(STEPS, "".join(kept).encode())

    @property
    def experiment(self) -> Any:
        """Takes the calls of TensorBoard's and MLflow's writers."""
        return self._writer

    @property
    def save_dir(self) -> str:
        """The trial's folder."""
        return str(self._files.folder)

    @property
    def root_dir(self) -> str:
        """The trial's folder."""
        return self.save_dir

    @property
    def log_dir(self) -> str:
        """The trial's folder."""
        return self.save_dir

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Keep values by step: each under NAME_step where an epoch has a metric NAME."""
        trainer = self.trainer
        known = {} if trainer is None else trainer.callback_metrics
        at = step if step is not None else (trainer.global_step if trainer else 0)
        found = {}
        for name, value in metrics.items():
            number = _number(value)
            if name == "epoch" or number is None or (name in known and not self.is_in_step):
                continue
            found[name if name.endswith("_step") or name not in known else f"{name}_step"] = number
        if found:
            self._rows.append(json.dumps([now_ms(), int(at), found]))

    def write(self) -> None:
        """Append what was collected to the trial's files. Raises DiskError."""
        if self._rows:
            rows, self._rows = self._rows, []
            self._files.append(STEPS, "".join(f"{row}\n" for row in rows).encode())


class _Experiment:
    """`self.logger.experiment`: takes the calls of TensorBoard's and MLflow's writers.

    Scalars are kept as values by step, figures, images and texts as files; all other calls are
    accepted and dropped.
    """

    def __init__(self, logger: TrialLogger, folder: Path) -> None:
        self._logger, self._folder = logger, folder

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Any other call does nothing."""
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: None

    def add_scalar(self, tag: str, scalar_value: Any, global_step: int | None = None, *_: Any,
                   **__: Any) -> None:  # fmt: skip
        """A value, as TensorBoard's writer takes it."""
        self._logger.log_metrics({tag: scalar_value}, global_step)

    def add_scalars(self, main_tag: str, tag_scalar_dict: Mapping[str, Any],
                    global_step: int | None = None, *_: Any) -> None:  # fmt: skip
        """Several values."""
        named = {f"{main_tag}/{tag}": value for tag, value in tag_scalar_dict.items()}
        self._logger.log_metrics(named, global_step)

    def add_figure(self, tag: str, figure: Any, global_step: int | None = None, *_: Any,
                   **__: Any) -> None:  # fmt: skip
        """A matplotlib figure, as PNG."""
        self._save(figure.savefig, tag, global_step, "png")

    def add_image(self, tag: str, img_tensor: Any, global_step: int | None = None, *_: Any,
                  dataformats: str = "CHW", **__: Any) -> None:  # fmt: skip
        """An image as PNG: (C, H, W), or as `dataformats` says; floats from 0 to 1 or uint8."""
        image = _as_image(img_tensor, dataformats)
        if image is not None:
            self._save(image.save, tag, global_step, "png")

    def add_text(self, tag: str, text_string: str, global_step: int | None = None,
                 *_: Any) -> None:  # fmt: skip
        """A text."""
        self._save(lambda path: Path(path).write_text(text_string), tag, global_step, "txt")

    def log_artifact(self, *where: Any, **_: Any) -> None:
        """A copy of a file; MLflow's client puts the run's id first."""
        file = Path(where[-1] if len(where) < 3 else where[1])
        if file.is_file():
            self._save(lambda path: shutil.copyfile(file, path), file.stem, None, file.suffix[1:])

    def _save(
        self, save: Callable[[Path], object], tag: str, step: int | None, ending: str
    ) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        name = re.sub(r"[^\w.-]+", "_", tag)
        save(self._folder / f"{name}{'' if step is None else f'-{step}'}.{ending}")


def _as_image(value: Any, dataformats: str) -> Any:
    """A PIL image; None without PIL, which matplotlib and torchvision bring along."""
    try:
        from PIL import Image
    except ImportError:
        return None
    import numpy as np

    pixels = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    if dataformats.startswith("C"):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.dtype != np.uint8:
        pixels = (pixels.clip(0.0, 1.0) * 255).round().astype(np.uint8)
    return Image.fromarray(pixels.squeeze())


def _number(value: Any) -> float | None:
    try:
        number = float(value.detach() if hasattr(value, "detach") else value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
