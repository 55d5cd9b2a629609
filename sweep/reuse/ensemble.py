"""An ensemble of a study's models, chosen on validation from what is stored; nothing is trained.

Classifiers' probabilities are averaged, other modules' outputs. Axes: M models, n samples,
C classes.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sweep.config.settings import RunConfig
from sweep.errors import ConfigError, NotFoundError, SweepError
from sweep.loading import one_line, raised_by_user_code
from sweep.objective import Objective
from sweep.reuse.best import Best, find_trial, opened
from sweep.reuse.export import Exported, Subject, export_subject
from sweep.reuse.loading import N_ROWS, task_of
from sweep.training.modules import has_own_loaders
from sweep.training.plain.fitting import draw_data_alike
from sweep.training.project.project import Built, Project
from sweep.trial import TrialSpec
from sweep.trust.ensemble import Array, select

MOST_MEMBERS = 10
"""Default of rounds, and so the most models in an ensemble."""
MOST_CANDIDATES = 50
"""The best trials of a study from which it is chosen."""
CHOSEN_HERE = "it was chosen on these very samples, so it looks better than it is"
JUDGED = (
    "models are judged by {} here: {} is computed by the module itself, for one model at a time"
)
SAME = 1e-3
"""A recorded score and ours are of the same metric if they differ by no more of it."""


@dataclass(frozen=True)
class Ensemble:
    """An exported ensemble."""

    study: str
    members: Sequence[tuple[int, int]]
    """(trial, how often it was chosen): its weight."""
    metric: str
    """What the selection looked at."""
    score: float
    best: float
    """The same of the best single model."""
    n_candidates: int
    n_samples: int
    """Of validation."""
    notes: tuple[str, ...]
    """Sentences for the user."""
    exported: Exported | None = None


class MeanOutput(nn.Module):
    """The weighted mean of modules' probabilities, or of their outputs.

    Args:
        members: M modules with the same input.
        weights: M numbers with a sum of 1.
        are_logits: Whether members give logits (n, C), of which softmax makes probabilities.
    """

    weights: Tensor

    def __init__(
        self, members: Sequence[nn.Module], weights: Sequence[float], *, are_logits: bool
    ) -> None:
        super().__init__()
        self.members, self.are_logits = nn.ModuleList(members), are_logits
        self.register_buffer("weights", torch.tensor(weights))

    def forward(self, x: Tensor) -> Tensor:
        """The mean for x (n, ...)."""
        outputs = [member(x) for member in self.members]
        if self.are_logits:
            outputs = [output.softmax(1) for output in outputs]
        parts = [w * output for w, output in zip(self.weights, outputs, strict=True)]
        return torch.stack(parts).sum(0)


def make_ensemble(
    study: str | None, where: RunConfig, most: int = MOST_MEMBERS, folder: Path | None = None
) -> Ensemble:
    """Choose an ensemble from the checkpoints that are kept, and export it as one model (.pt2).

    Args:
        study: Its name; None: the only one.
        where: Its stores.
        most: Rounds of the selection.
        folder: For the export; None: `ensemble` in the study's folder.

    Raises NotFoundError if fewer than two checkpoints are left, ConfigError for modules or data
    whose outputs cannot be averaged, DataError.
    """
    with opened(study, where) as (ledger, config):
        name, objective = ledger.name, Objective(config.metric, ledger.direction)
        scored = [t for t in ledger.trials() if t.value is not None and t.result.get("best_epoch")]
    scored.sort(key=lambda t: (-objective.goodness(t.value), t.number))
    found, gone = _candidates(name, [t.number for t in scored[:MOST_CANDIDATES]], where)
    if len(found) < 2:
        raise NotFoundError(
            f"an ensemble needs two checkpoints, but {name} has {len(found)} left: see --keep"
        )
    x, y = _validation(found[0][0], config)
    outputs = [_outputs(module, x, config.module) for _, module in found]
    judge = _Judge(config.metric, objective, outputs[0], y)
    predictions = np.stack([judge.prediction(output) for output in outputs])
    order, scores = select(predictions, judge.goodness, most)
    single = [judge.score(one) for one in predictions]
    is_own = all(
        math.isclose(one[0].score, score, rel_tol=SAME)
        for one, score in zip(found, single, strict=True)
    )
    counts = {found[at][0].trial: n for at, n in Counter(order).items()}
    notes = [CHOSEN_HERE] if is_own else [CHOSEN_HERE, JUDGED.format(judge.name, config.metric)]
    notes += [f"{gone} trials have no checkpoint any more"] if gone else []
    chosen = Ensemble(
        study=name, members=[*counts.items()], metric=config.metric if is_own else judge.name,
        score=judge.shown(scores[-1]), best=judge.shown(max(map(judge.goodness, predictions))),
        n_candidates=len(found), n_samples=len(x), notes=tuple(notes),
    )  # fmt: skip
    modules = [module for best, module in found if best.trial in counts]
    weights = [counts[best.trial] / len(order) for best, _ in found if best.trial in counts]
    mean = MeanOutput(modules, weights, are_logits=judge.are_logits).eval()
    return _exported(chosen, mean, x, config, folder or config.study_dir / "ensemble")


def _exported(
    chosen: Ensemble, mean: MeanOutput, x: Tensor, config: RunConfig, folder: Path
) -> Ensemble:
    facts = {
        "study": chosen.study, "module": config.module, "data": config.data,
        "metric": {"name": chosen.metric, "value": chosen.score, "on": "validation"},
        "members": {f"trial {number}": n for number, n in chosen.members},
        "gives": "mean probabilities" if mean.are_logits else "the mean of the members' outputs",
        "notes": chosen.notes,
    }  # fmt: skip
    subject = Subject(
        f"the ensemble of {config.module}", mean, x[:N_ROWS], "", lambda: mean, facts
    )
    exported = export_subject(subject, folder, "pt2")
    return dataclasses.replace(chosen, exported=exported)


def _candidates(
    study: str, numbers: Iterable[int], where: RunConfig
) -> tuple[list[tuple[Best, nn.Module]], int]:
    """Trials with their modules, and how many have no checkpoint any more."""
    found, gone = list[tuple[Best, nn.Module]](), 0
    for number in numbers:
        best = find_trial(study, number, where)
        try:
            found.append((best, best.load()))
        except NotFoundError:
            gone += 1
    return found, gone


def _validation(best: Best, config: RunConfig) -> tuple[Tensor, Tensor]:
    """Samples (n, ...) and targets (n, ...) of the search's validation split."""
    task = task_of(best.recipe, config, config.study_dir)
    built = Project(task).built(TrialSpec(0, best.recipe.model, 0))
    draw_data_alike(built, task.seed)
    try:
        batches = list(_validation_batches(built))
    except (SweepError, KeyboardInterrupt):
        raise
    except BaseException as error:  # also sys.exit
        why = one_line(raised_by_user_code(error), best.recipe.module)
        raise ConfigError(f"the validation data cannot be read: {why}") from error
    pairs = [tuple(b) for b in batches if isinstance(b, list | tuple)]
    if not pairs or len(pairs) < len(batches) or any(
        len(pair) != 2 or not all(isinstance(part, Tensor) for part in pair) for pair in pairs
    ):  # fmt: skip
        raise ConfigError(
            "an ensemble needs validation minibatches of two tensors, samples and targets, but "
            f"{best.recipe.data} gives others"
        )
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


def _validation_batches(built: Built) -> Any:
    given = built.data.fit_arguments(built.batch_size) if built.data is not None else {}
    datamodule = given.get("datamodule")
    if datamodule is not None:
        datamodule.prepare_data()
        datamodule.setup("fit")
        return datamodule.val_dataloader()
    if has_own_loaders(built.module):
        return built.module.val_dataloader()
    return given.get("val_dataloaders") or ()


def _outputs(module: nn.Module, x: Tensor, name: str) -> Tensor:
    """What a module gives for x (n, ...). Raises ConfigError if that is no tensor (n, ...)."""
    weights = next(module.parameters(), x)
    given = x.to(weights.dtype) if x.is_floating_point() else x
    with torch.no_grad():
        parts = [module(part) for part in torch.split(given, 4096)]
    if not all(isinstance(part, Tensor) and part.ndim for part in parts):
        raise ConfigError(f"an ensemble needs a forward of {name} that gives one tensor")
    output = torch.cat(parts).double()
    if len(output) != len(x):
        raise ConfigError(f"an ensemble needs one output of {name} a sample")
    return output


class _Judge:
    """How predictions are scored: accuracy or log loss of classes, a mean error of numbers.

    The study's own metric is computed by its module, one model at a time; for a mean of models
    the nearest of these is taken.
    """

    def __init__(self, metric: str, objective: Objective, output: Tensor, y: Tensor) -> None:
        self.y = y
        is_integer = not y.is_floating_point()
        self.is_classifier = is_integer and y.ndim == 1 and output.ndim == 2
        if not self.is_classifier and output.reshape(-1).shape != y.reshape(-1).shape:
            raise ConfigError(
                "an ensemble needs class scores (n, C) with targets (n,), or outputs in the shape "
                f"of the targets, but got {tuple(output.shape)} and {tuple(y.shape)}"
            )
        is_probability = bool((output >= 0).all() and ((output.sum(-1) - 1).abs() < 1e-3).all())
        self.are_logits = self.is_classifier and not is_probability
        words = metric.lower()
        if self.is_classifier:
            is_up = objective.direction == "maximize"
            self.name, self._score = ("accuracy", _accuracy) if is_up else ("log loss", _log_loss)
        elif "mae" in words or "l1" in words or "absolute" in words:
            self.name, self._score = "mean absolute error", _absolute_error
        elif "rmse" in words:
            self.name, self._score = "root mean squared error", _root_squared_error
        else:
            self.name, self._score = "mean squared error", _squared_error

    def prediction(self, output: Tensor) -> Array:
        """What is averaged: probabilities (n, C), or the output in the targets' shape."""
        if self.are_logits:
            return np.asarray(output.softmax(1).numpy())
        return np.asarray((output if self.is_classifier else output.reshape(self.y.shape)).numpy())

    def score(self, prediction: Array) -> float:
        """`name` of a prediction."""
        return float(self._score(prediction, self.y.numpy()))

    def goodness(self, prediction: Array) -> float:
        """The same, where more is better."""
        return self.shown(self.score(prediction))

    def shown(self, score: float) -> float:
        """A goodness as a score, and back."""
        return score if self.name == "accuracy" else -score


def _accuracy(p: Array, y: Any) -> float:
    return float((p.argmax(1) == y).mean())


def _log_loss(p: Array, y: Any) -> float:
    return float(-np.log(np.maximum(p[np.arange(len(y)), y], 1e-12)).mean())


def _squared_error(p: Array, y: Any) -> float:
    return float(((p - y) ** 2).mean())


def _root_squared_error(p: Array, y: Any) -> float:
    return math.sqrt(_squared_error(p, y))


def _absolute_error(p: Array, y: Any) -> float:
    return float(abs(p - y).mean())
