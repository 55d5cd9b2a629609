"""The best trial of a study, or any other, as something to use."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep import hyperparameters as options
from sweep.config.settings import RunConfig
from sweep.errors import NotFoundError
from sweep.hyperparameters import DEFAULT_MODULE
from sweep.ledger.study import Ledger, open_study
from sweep.ledger.trials import LedgerTrial, best_trial
from sweep.reuse.recipe import Recipe

if TYPE_CHECKING:
    import lightning
    import numpy as np

STORES = ("tracking_uri", "work_dir")
"""Settings that say where a study is, as --storage does."""


@dataclass(frozen=True, repr=False)
class Best:
    """One trial: configuration, score, and where its checkpoint and MLflow run are."""

    study: str
    trial: int
    config: Mapping[str, Any]
    """Hyperparameters."""
    score: float
    """The objective."""
    metrics: Mapping[str, float]
    """All metrics of the best epoch."""
    recipe: Recipe
    _where: RunConfig

    def __repr__(self) -> str:
        """Study, trial, score and configuration; no addresses."""
        values = ", ".join(f"{name}={value!r}" for name, value in self.config.items())
        return f"<Best {self.study} trial {self.trial}: {self.score:.6g} with {values}>"

    @property
    def checkpoint(self) -> Path:
        """The Lightning checkpoint of the best epoch. Raises NotFoundError where it is gone."""
        kept = self._where.study_dir / "trials" / f"{self.trial:05d}" / "best.ckpt"
        # The ledger's own path is absolute: in a copy of the folder it is the original's.
        if kept.is_file():
            return kept
        run_id = self.run_id
        if run_id is None:
            raise NotFoundError(f"the checkpoint of trial {self.trial} is gone: {kept}")
        from sweep.tracking import artifact_of

        uri = self._where.tracking_uri
        return artifact_of(uri, run_id, "checkpoint/best.ckpt", kept.parent)

    @property
    def run_id(self) -> str | None:
        """The trial's MLflow run, or None where MLflow does not have it."""
        from sweep.tracking import run_id_of

        return run_id_of(self._where.tracking_uri, self.study, self.trial)

    @property
    def model_uri(self) -> str | None:
        """`models:/m-...` of the trial's logged model, or None if MLflow has none.

        `mlflow.pytorch.load_model` and `mlflow.pyfunc.load_model` take it. Raises StoreError.
        """
        from sweep.tracking import model_uri_of

        run_id = self.run_id
        return None if run_id is None else model_uri_of(self._where.tracking_uri, run_id)

    def load(self) -> lightning.LightningModule:
        """A new copy of the trained module, on the CPU, in evaluation mode; `.train()` to go on.

        An MLPClassifier takes float32 samples (n, ...) with F values each and gives class logits
        (n, C). Raises NotFoundError if the checkpoint is gone.
        """
        from sweep.loading import import_object

        module = import_object(self.recipe.module, "module")
        loaded: lightning.LightningModule = module.load_from_checkpoint(
            self.checkpoint, map_location="cpu", weights_only=True
        )
        return loaded.eval()

    def predict(self, x: Any) -> np.ndarray[Any, Any]:
        """Classes (n,) int64 of samples, from 0; of a module of yours, what its forward gives.

        Probabilities (n, C) of an MLPClassifier are `load()(x).softmax(1)`.

        Args:
            x: Array or tensor (n, ...), its first axis counting samples, with the F values of a
                sample in any shape: (n, 1, 8, 8), (n, 8, 8) and (n, 64) are alike for digits.
                Pixels of the built-in data sets are floats from 0 to 1 of any precision, or uint8
                as in the data set's files (0 to 16 for digits, else 0 to 255), which are scaled.
                Samples for data of your own, or a module with loaders of its own, are taken as
                they are.

        Raises:
            DataError: Samples of another shape, type or scale, or a forward that gives no tensor.
            NotFoundError: The checkpoint is gone.
        """
        from sweep.reuse.prediction import predict

        return predict(self._module, self.recipe, x)

    @functools.cached_property
    def _module(self) -> lightning.LightningModule:
        """For `predict` alone: a user may train what `load` gives."""
        return self.load()


def find_best(study: str | None, where: RunConfig) -> Best:
    """The best completed trial of `study` (the only study, where None). Raises NotFoundError."""
    with contextlib.closing(open_study(where.storage, study or only_study(where))) as ledger:
        trial = best_trial(ledger.trials(), ledger.direction)
        if trial is None:
            raise NotFoundError(
                f"study {ledger.name!r} has no completed trial yet: "
                f"`sweep run --study {ledger.name}` continues it"
            )
        return _as_best(ledger, trial, where)


def find_trial(study: str | None, number: int, where: RunConfig) -> Best:
    """Trial `number` of `study`. Raises NotFoundError where there is none that completed."""
    with contextlib.closing(open_study(where.storage, study or only_study(where))) as ledger:
        for trial in ledger.trials():
            if trial.number == number and trial.value is not None:
                return _as_best(ledger, trial, where)
        raise NotFoundError(
            f"study {ledger.name!r} has no scored trial {number}: "
            f"`sweep trials {ledger.name}` shows those it has"
        )


def checkpoint_place(trial: LedgerTrial, where: RunConfig) -> str | None:
    """Where a trial's checkpoint is: a path of this machine, `runs:/ID/...` in MLflow, or nowhere.

    `where` is the study's own configuration (see `located`). MLflow is asked only where the work
    folder has no copy, which is so for all but the best few. Raises StoreError.
    """
    here = [where.study_dir / "trials" / f"{trial.number:05d}" / "best.ckpt"]
    if trial.result.get("checkpoint"):
        here.append(Path(trial.result["checkpoint"]))
    for path in here:
        if path.is_file():
            return str(path)
    if trial.result.get("best_epoch") is None:
        return None
    from sweep.tracking import artifact_place, run_id_of

    run_id = run_id_of(where.tracking_uri, where.study_name, trial.number)
    return run_id and artifact_place(where.tracking_uri, run_id, "checkpoint/best.ckpt")


def only_study(where: RunConfig) -> str:
    """The one study there is. Raises NotFoundError where there are none, or several."""
    from sweep.ledger.study import list_studies

    studies = list_studies(where.storage)
    begun = [s for s in studies if any(s.n_by_state.values())]  # others came to nothing
    names = [s.name for s in begun or studies]
    if len(names) == 1:
        return names[0]
    if not names:
        raise NotFoundError("no studies here yet: try `sweep run`")
    raise NotFoundError(f"which study? one of {', '.join(names)}")


def recipe_of(ledger: Ledger, trial: LedgerTrial, run_id: str | None) -> Recipe:
    """The recipe that trains `trial` again."""
    config = ledger.config
    module = config.get("module", DEFAULT_MODULE)
    hyperparameters = dict(trial.hyperparameters)
    batch_size = hyperparameters.pop("batch_size", config.get("batch_size", 64))
    metrics = trial.result.get("metrics", {})
    return Recipe(
        model={k: v for k, v in hyperparameters.items() if k not in options.TRAINING_ARGUMENTS},
        data=config.get("data", "digits"),
        module=module,
        epochs=trial.result.get("best_epoch") or config.get("epochs", 10),
        batch_size=batch_size,
        seed=config.get("seed", 0),
        precision=config.get("precision", "32-true"),
        study=ledger.name,
        trial=trial.number,
        run_id=run_id,
        score={k: v for k, v in metrics.items() if k != "epoch_s"},
        data_arguments=ledger.data_arguments if module == DEFAULT_MODULE else {},
    )


def _as_best(ledger: Ledger, trial: LedgerTrial, where: RunConfig) -> Best:
    if trial.value is None:
        raise NotFoundError(f"trial {trial.number} of {ledger.name!r} has no score")
    where = located(where, ledger)
    return Best(
        study=ledger.name,
        trial=trial.number,
        config=dict(trial.hyperparameters),
        score=trial.value,
        metrics=trial.result.get("metrics", {}),
        recipe=recipe_of(ledger, trial, None),
        _where=where,
    )


def located(where: RunConfig, ledger: Ledger) -> RunConfig:
    """The study's own settings, in the stores of `where`.

    Its folder and its MLflow store are the study's, too, unless `where` names others.
    """
    default, kept = RunConfig(), ledger.config
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(RunConfig):
        is_named = getattr(where, field.name) != getattr(default, field.name)
        if field.name in kept and not (field.name in STORES and is_named):
            changes[field.name] = kept[field.name]
    changes |= {"study": ledger.name, "direction": ledger.direction}
    return dataclasses.replace(where, **changes)
