"""Predictions of a trained module for samples in any of the usual forms, as numpy arrays.

Axes: n samples, F values a sample, C classes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sweep.data import catalog as datasets
from sweep.errors import DataError
from sweep.hyperparameters import DEFAULT_MODULE
from sweep.reuse.recipe import Recipe
from sweep.training.modules import has_own_loaders

if TYPE_CHECKING:
    import lightning

AT_ONCE = 4096
"""Samples of a forward pass: large products, bounded memory."""
LOWEST, HIGHEST = -1.0, 2.0
"""Bounds of pixels from 0 to 1 with some noise; values beyond have another scale."""


def predict(module: lightning.LightningModule, recipe: Recipe, x: Any) -> np.ndarray[Any, Any]:
    """See `sweep.reuse.Best.predict`. Raises DataError."""
    is_own = recipe.data not in datasets.CATALOG or has_own_loaders(module)
    shape = (
        _feature_shape(module, recipe) if recipe.module == DEFAULT_MODULE or not is_own else None
    )
    samples = _samples(x, shape, None if is_own else recipe.data)
    samples = samples.to(next(module.parameters(), torch.empty(0)).dtype)
    with torch.no_grad():
        parts = [module(part) for part in torch.split(samples, AT_ONCE)]
    strange = next((part for part in parts if not isinstance(part, Tensor)), None)
    if strange is not None:
        raise DataError(
            f"predict needs a forward that gives a tensor, but that of {recipe.module} gives "
            f"{type(strange).__name__}: call load() and use the module itself"
        )
    output = torch.cat(parts)
    return (output.argmax(1) if recipe.module == DEFAULT_MODULE else output).numpy()


def _feature_shape(module: lightning.LightningModule, recipe: Recipe) -> tuple[int, ...]:
    """Of one sample."""
    if not datasets.is_custom(recipe.data):
        return (1, *datasets.CATALOG[recipe.data].image_shape)
    return (int(module.hparams["in_features"]),)


def _samples(x: Any, shape: tuple[int, ...] | None, name: str | None) -> Tensor:
    """(n, *shape), on the scale of the built-in data set `name`.

    Both are None for the user's own data or loaders: samples are not changed.
    """
    try:
        given = torch.as_tensor(x if isinstance(x, Tensor) else np.asarray(x)).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"x must be numbers, (n, ...): {error}") from error
    if shape is not None:
        n_values = math.prod(shape)
        if given.ndim < 2 or math.prod(given.shape[1:]) != n_values:
            raise DataError(
                f"x must be (n, {', '.join(map(str, shape))}) or (n, {n_values}), its first axis "
                f"counting samples, but got {tuple(given.shape)}"
            )
        given = given.reshape(len(given), *shape)
    scaled = given if name is None else _scaled(given, name)
    if scaled.is_floating_point() and not scaled.isfinite().all():
        raise DataError("x must be finite, but holds NaN or infinite values")
    return scaled


def _scaled(x: Tensor, name: str) -> Tensor:
    """Pixels from 0 to 1, as the networks of a built-in data set take them."""
    most = datasets.CATALOG[name].max_value
    rule = f"pixels of {name} are floats from 0 to 1, or uint8 from 0 to {most}"
    if not x.is_floating_point() and x.dtype != torch.uint8:
        raise DataError(f"{rule}, but got {str(x.dtype).removeprefix('torch.')}")
    lowest, highest = (LOWEST, HIGHEST) if x.is_floating_point() else (0, most)
    if len(x) and (x.min() < lowest or x.max() > highest):
        raise DataError(f"{rule}, but got {x.dtype} from {x.min():.4g} to {x.max():.4g}")
    return x if x.is_floating_point() else x.float() / most
