"""The best trial of a study, or any other, as something to use."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from sweep.config.lightning_file import sections_of
from sweep.config.settings import PLACES, RunConfig
from sweep.errors import ConfigError, NotFoundError
from sweep.files.trial_files import BEST, TrialFiles
from sweep.ledger.confirmation import confirmed_winner, study_of_round
from sweep.ledger.locks import owned_study
from sweep.ledger.study import Ledger, list_studies, open_study
from sweep.ledger.trials import LedgerTrial, best_trial, tuples
from sweep.reuse.recipe import Recipe
from sweep.trial import EPOCHS_DONE

if TYPE_CHECKING:
    import lightning
    import numpy as np

    from sweep.reuse.export import Exported
    from sweep.tracking.registry import Registered


@dataclass(frozen=True, repr=False)
class Best:
    """One trial: configuration, score, checkpoint and MLflow run."""

    study: str
    trial: int
    config: Mapping[str, Any]
    """Hyperparameters."""
    score: float
    """The objective."""
    metrics: Mapping[str, float]
    """All metrics of the best epoch."""
    recipe: Recipe
    where: RunConfig

    def __repr__(self) -> str:
        """Study, trial, score and configuration; no addresses."""
        values = ", ".join(f"{name}={value!r}" for name, value in self.config.items())
        return f"<Best {self.study} trial {self.trial}: {self.score:.6g} with {values}>"

    @property
    def checkpoint(self) -> Path:
        """The Lightning checkpoint of the best epoch.

        Raises NotFoundError if it is gone, ConfigError for an objective function.
        """
        if self.recipe.kind == "objective":
            raise ConfigError(f"{self.recipe.module} is an objective function: it leaves no model")
        kept = TrialFiles(self.where.study_dir, self.trial).path(BEST)
        if kept.is_file():
            return kept
        run_id = self.run_id
        if run_id is None:
            raise NotFoundError(f"the checkpoint of trial {self.trial} is gone: {kept}")
        from sweep.tracking import artifacts

        uri = self.where.tracking_uri
        return artifacts.artifact_of(uri, run_id, "checkpoint/best.ckpt", kept.parent)

    @property
    def run_id(self) -> str | None:
        """The id of the trial's MLflow run, or None if MLflow has none."""
        from sweep.tracking import artifacts

        return artifacts.run_id_of(self.where.tracking_uri, self.study, self.trial)

    @property
    def model_uri(self) -> str | None:
        """`models:/m-...` of the trial's logged model, or None if MLflow has none.

        `mlflow.pytorch.load_model` and `mlflow.pyfunc.load_model` take it. Raises StoreError.
        """
        from sweep.tracking import artifacts

        run_id = self.run_id
        return None if run_id is None else artifacts.model_uri_of(self.where.tracking_uri, run_id)

    def log_model(self) -> str:
        """Log the trial's model to its MLflow run, unless it has one; returns its `model_uri`.

        For trials that got none as they ended (`--log-models`).

        Raises:
            NotFoundError: The checkpoint or the run is gone.
            ConfigError: The module cannot be exported.
            StoreError: MLflow does not answer.
        """
        uri = self.model_uri
        if uri is None:
            self._export()
            uri = self.model_uri
        if uri is None:
            raise NotFoundError(f"MLflow has no model of trial {self.trial}: its run may be gone")
        return uri

    def _export(self) -> None:
        """Export the module, and bring the trial's run up to it."""
        from sweep.repair.records import StudyRecords
        from sweep.reuse.loading import input_rows
        from sweep.tracking import mirror
        from sweep.training.exports import Example, try_export

        where, module = self.where, self.load()
        with opened(self.study, where) as (ledger, config), TemporaryDirectory() as folder:
            known = StudyRecords(config, ledger)
            info, history = known.study(), known.trial(self.trial)
            assert history.finished is not None
            example = Example.of(input_rows(self.recipe, config, info.dataset))
            file, why = try_export(Path(folder) / "model.pt2", module, example, config.module)
            if file is None:
                raise ConfigError(f"{config.module} cannot be exported: {why}")
            finished = dataclasses.replace(history.finished, model_file=file)
            told = dataclasses.replace(history, finished=finished)
            mirror.sync_trial(config.tracking_uri, info, told)

    def load(self) -> lightning.LightningModule:
        """A new copy of the trained module, on the CPU, in evaluation mode; `.train()` to go on.

        An MLPClassifier takes float32 samples (n, ...) with F values each and gives class logits
        (n, C). Raises NotFoundError if the checkpoint is gone.
        """
        from sweep.reuse.loading import load

        return load(self.recipe, self.where, self.checkpoint)

    def export(self, folder: str | Path, to: str = "pt2") -> Exported:
        """Write the model into `folder`, once it gives what the checkpoint gives.

        Args:
            folder: Made if it is missing.
            to: "pt2" (torch.export), "onnx", or "state-dict".

        Raises ConfigError if it cannot be exported, or predicts something else; NotFoundError if
        the checkpoint is gone; DiskError.
        """
        from sweep.reuse.export import export_trial

        return export_trial(self, Path(folder), to)

    def register(self, name: str) -> Registered:
        """Make the model a version of the registered model `name` in MLflow.

        Its alias is `champion` if its score beats that of the present champion, in the same
        metric, kind and data; else `challenger`.

        Raises ConfigError for a name that MLflow refuses, and what `log_model` raises.
        """
        from sweep.reuse.registering import register_trial

        return register_trial(self, name)

    def data(self) -> Any:
        """The data of the trial's training: a new LightningDataModule, or whatever the user's
        function returns; SweepData for a built-in data set; None for a module's own loaders.
        """
        from sweep.reuse.loading import data_of_recipe

        return data_of_recipe(self.recipe, self.where)

    def predict(self, x: Any) -> np.ndarray[Any, Any]:
        """Classes (n,) int64 of samples, from 0; for your own module, the output of its forward.

        Probabilities (n, C) of an MLPClassifier are `load()(x).softmax(1)`.

        Args:
            x: Array or tensor (n, ...) with the F values of a sample in any shape: (n, 1, 8, 8),
                (n, 8, 8) and (n, 64) are alike for digits. Pixels of the built-in data sets are
                floats from 0 to 1 of any precision, or uint8 as in the data set's files (0 to 16
                for digits, else 0 to 255), which are scaled. Samples for your own data, or for a
                module with its own loaders, are not changed.

        Raises:
            DataError: Samples of another shape, type or scale, or a forward that gives no tensor.
            NotFoundError: The checkpoint is gone.
        """
        from sweep.reuse.prediction import predict

        return predict(self._module, self.recipe, x)

    @functools.cached_property
    def _module(self) -> lightning.LightningModule:
        """For `predict` alone: a user may train the module from `load`."""
        return self.load()


@contextlib.contextmanager
def opened(study: str | None, where: RunConfig) -> Iterator[tuple[Ledger, RunConfig]]:
    """The ledger of `study` (None: the only one) and the study's own settings (see `located`)."""
    with contextlib.closing(open_study(where.storage, study or only_study(where))) as ledger:
        yield ledger, located(where, ledger)


@contextlib.contextmanager
def owned(study: str | None, where: RunConfig) -> Iterator[tuple[Ledger, RunConfig]]:
    """The same, under the study's lock. Raises StudyLockedError while a search runs."""
    with (
        opened(study, where) as (ledger, config),
        owned_study(Path(config.work_dir), config.study_name, config.storage),
    ):
        yield ledger, config


def find_trial(study: str | None, number: int | None, where: RunConfig) -> Best:
    """Trial `number` of `study` (None: the only one).

    None: the winner of its confirmation, if it was confirmed, else the trial with the best score.

    Raises NotFoundError if there is no such trial, or if it did not complete.
    """
    with opened(study, where) as (ledger, config):
        scored = [trial for trial in ledger.trials() if trial.value is not None]
        if number is None:
            number = confirmed_winner(ledger)
        if number is None:
            trial = best_trial(scored, ledger.direction)
            fault = "no completed trial yet", f"`sweep run --study {ledger.name}` continues it"
        else:
            trial = next((one for one in scored if one.number == number), None)
            fault = f"no scored trial {number}", f"`sweep trials {ledger.name}` shows those it has"
        if trial is None or trial.value is None:
            raise NotFoundError(f"study {ledger.name!r} has {fault[0]}: {fault[1]}")
        return Best(
            study=ledger.name,
            trial=trial.number,
            config=dict(trial.hyperparameters),
            score=trial.value,
            metrics=trial.result.get("metrics", {}),
            recipe=recipe_of(ledger, config, trial),
            where=config,
        )


def checkpoint_place(trial: LedgerTrial, where: RunConfig) -> str | None:
    """The place of a trial's checkpoint: a path, `runs:/ID/...` in MLflow, or None.

    `where` is the study's own configuration (see `located`). MLflow is asked only if the work
    folder has no copy, as for all but the best few. Raises StoreError.
    """
    files = TrialFiles(where.study_dir, trial.number)
    if files.size(BEST):
        return str(files.path(BEST))
    if trial.result.get("best_epoch") is None:
        return None
    from sweep.tracking import artifacts

    run_id = artifacts.run_id_of(where.tracking_uri, where.study_name, trial.number)
    return run_id and artifacts.artifact_place(where.tracking_uri, run_id, "checkpoint/best.ckpt")


def only_study(where: RunConfig) -> str:
    """The name of the only study. Raises NotFoundError for none or several."""
    studies = list_studies(where.storage)
    begun = [s for s in studies if any(s.n_by_state.values())]  # others came to nothing
    names = [s.name for s in begun or studies]
    names = [name for name in names if study_of_round(name) not in names]
    if len(names) == 1:
        return names[0]
    if not names:
        raise NotFoundError("no studies here yet: try `sweep run`")
    raise NotFoundError(f"which study? one of {', '.join(names)}")


def recipe_of(ledger: Ledger, config: RunConfig, trial: LedgerTrial) -> Recipe:
    """The recipe that trains `trial` of a study with the settings `config` again."""
    given, result = dict(trial.hyperparameters), trial.result
    metrics, n_reports = result.get("metrics", {}), result.get("best_epoch") or config.epochs
    return Recipe(
        model={k: v for k, v in given.items() if not config.is_mlp or k != "batch_size"},
        data=config.data,
        module=config.module,
        kind=config.kind,
        epochs=max(1, math.ceil(metrics.get(EPOCHS_DONE, n_reports))),
        batch_size=given.get("batch_size", config.batch_size),
        seed=config.seed,
        precision=config.precision,
        config=sections_of(Path(config.lightning)) if config.lightning else {},
        callbacks=tuple(config.callback),
        study=ledger.name,
        trial=trial.number,
        score={k: v for k, v in metrics.items() if k not in ("epoch_s", EPOCHS_DONE)},
        data_arguments=ledger.data_arguments if config.is_mlp else {},
    )


def located(where: RunConfig, ledger: Ledger) -> RunConfig:
    """The study's own settings, in the storage of `where`.

    Work folder and MLflow store are the study's too, unless `where` names others.
    """
    default, known = RunConfig(), {field.name for field in dataclasses.fields(RunConfig)}
    named = {name for name in PLACES if getattr(where, name) != getattr(default, name)}
    kept = {k: tuples(v) for k, v in ledger.config.items() if k in known - named}
    return dataclasses.replace(
        where, **kept | {"study": ledger.name, "direction": ledger.direction}
    )
