"""What a trial's model gets wrong: confusion matrix and the mistakes it is most sure of.

For classifiers whose checkpoint and data are on this machine: an MLPClassifier, or a module of the
user's over a built-in data set. Computed once and kept in the study's folder, so that torch is
loaded the first time only. Validation samples alone: the test split stays sealed.
"""

from __future__ import annotations

import base64
import contextlib
import json
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from sweep.config.settings import RunConfig
from sweep.data import catalog as datasets
from sweep.errors import DiskError
from sweep.files.trial_files import BEST, TrialFiles, replace_file
from sweep.ledger.trials import LedgerTrial
from sweep.space import canonical_key

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from sweep.reuse.best import Best

FILE = "report-samples.json"
N_WORST = 12
MAX_CLASSES = 100
MAX_SAMPLES = 50_000
"""Samples that are looked at; more would take seconds."""
LARGEST_IMAGE = 64
"""Pixels a side of a picture; larger ones are thinned."""


def samples_of(
    config: RunConfig, trial: LedgerTrial | None, find: Callable[[int], Best]
) -> dict[str, Any] | None:
    """Confusion matrix and worst mistakes of `trial`; None if they cannot be had here.

    `find` gives the trial as something to load. Keys of the result: trial, split, classes,
    confusion (rows are true classes), n_wrong, and worst, a list of {image, true, said, sure}.
    """
    if trial is None or not _is_possible(config, trial.number):
        return None
    key = [trial.number, canonical_key(trial.hyperparameters), trial.value]
    kept = config.study_dir / FILE
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        body = json.loads(kept.read_text(encoding="utf-8"))
        if body["key"] == key:
            samples: dict[str, Any] | None = body["samples"]
            return samples
    try:
        found = _look(config, trial, find(trial.number))
    except Exception:  # noqa: BLE001 - the user's code, files that are gone: the page does without
        return None
    with contextlib.suppress(DiskError):
        replace_file(kept, json.dumps({"key": key, "samples": found}).encode())
    return found


def _is_possible(config: RunConfig, number: int) -> bool:
    """Whether checkpoint and data are on this machine; torch is not loaded."""
    if config.kind != "module" or not TrialFiles(config.study_dir, number).size(BEST):
        return False
    if datasets.is_custom(config.data):
        return config.is_mlp
    if config.data not in datasets.CATALOG:
        return False
    return datasets.status(config.data, config.data_dir).is_ready


def _look(config: RunConfig, trial: LedgerTrial, best: Best) -> dict[str, Any] | None:
    """Predict the validation samples, and sort the mistakes by confidence."""
    import torch

    from sweep.data.tensors import load_search_data

    seed = trial.settings.get("seed", config.seed)
    data = load_search_data(config.data, config.data_dir, seed)
    split, n_classes = data.judged, data.info.n_classes
    x, y = split.x[:MAX_SAMPLES], split.y[:MAX_SAMPLES]
    if n_classes > MAX_CLASSES:
        return None
    module = best.load()
    with torch.no_grad():
        logits = torch.cat([module(part) for part in torch.split(x, 4096)])
    if logits.shape != (len(y), n_classes):
        return None
    chance = logits.double().softmax(1)
    sure, said = chance.max(1)
    counts = torch.bincount(y * n_classes + said, minlength=n_classes**2)
    wrong = (said != y).nonzero()[:, 0]
    order = wrong[torch.argsort(-sure[wrong], stable=True)][:N_WORST]
    is_image = not datasets.is_custom(config.data) or _is_image(data.info.feature_shape)
    worst = [
        {"image": _png(x[at]) if is_image else "", "true": int(y[at]), "said": int(said[at]),
         "sure": round(float(sure[at]), 4)}
        for at in order.tolist()
    ]  # fmt: skip
    return {
        "trial": trial.number,
        "split": "the validation samples",
        "classes": [str(number) for number in range(n_classes)],
        "confusion": counts.reshape(n_classes, n_classes).tolist(),
        "n_wrong": len(wrong),
        "worst": worst,
    }


def _is_image(shape: Sequence[int]) -> bool:
    return len(shape) == 3 and shape[0] in (1, 3) and min(shape[1:]) >= 4


def _png(sample: Tensor) -> str:
    """A sample (1 or 3, height, width) as a PNG in a data: address; dark to bright."""
    step = max(1, max(sample.shape[1:]) // LARGEST_IMAGE)
    thin = sample[:, ::step, ::step].float()
    low, high = float(thin.min()), float(thin.max())
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    pixels = ((thin - low) / ((high - low) or 1.0) * 255).round().byte().permute(1, 2, 0).numpy()
    return f"data:image/png;base64,{base64.b64encode(png_bytes(pixels)).decode()}"


def png_bytes(pixels: np.ndarray[Any, Any]) -> bytes:
    """A PNG file of (height, width, 1 or 3) bytes (PNG specification, sections 5 and 11)."""
    height, width, n_channels = pixels.shape
    rows = b"".join(b"\0" + pixels[row].tobytes() for row in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if n_channels == 1 else 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )
