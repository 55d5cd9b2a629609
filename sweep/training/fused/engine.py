"""The engine for many MLPs at once: each open trial is a member of a population.

An epoch is divided into single-threaded jobs: threads inside every operation would synchronise
hundreds of times a step. Trials join and leave between epochs. A trial's module stays on the CPU
and serves to write checkpoints.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sweep.data.tensors import TensorData
from sweep.training.checkpoints import checkpoint_of
from sweep.training.compiled.kernel import Kernel
from sweep.training.engine_choice import FUSED_PRECISIONS, MOST_SLOTS, precision_of
from sweep.training.exports import Example, prepare_export
from sweep.training.failures import classify
from sweep.training.fused.population import Population, run_jobs
from sweep.training.members import Linears, Member
from sweep.training.mlp import MLPClassifier
from sweep.training.modules import build_mlp
from sweep.training.optimizers import OptimizerRule, learning_rates, make_rule
from sweep.training.resuming import load_resume_file, start_over
from sweep.training.run import RESUME_KEY, Run
from sweep.trial import Report, Task

MOST_LANES = 4
"""Most lanes of stacked trials, a judgement: further threads would wait for the GIL. The compiled
kernel releases it."""
DTYPES = dict(zip(FUSED_PRECISIONS, (torch.float32, torch.float64), strict=True))


@dataclass
class _Open:
    """A trial in a slot: its module, and its population (None: it is fully trained)."""

    run: Run
    model: MLPClassifier
    member: Member
    population: Population | None = None

    @property
    def home(self) -> Population | None:
        """The population with the trial's weights; None: they are still in the module."""
        population = self.population
        return population if population and population.has(self.run.spec.number) else None


class FusedEngine:
    """Trains MLPClassifiers in populations.

    Args:
        task: Settings of the study.
        data: On the training device.
        kernel: The compiled kernel; None on other devices than CPUs or if unavailable.
        n_threads: CPU threads for training; 1 on another device.
        metrics: Names of the metrics to report of each epoch.
    """

    def __init__(
        self, task: Task, data: TensorData, kernel: Kernel | None, n_threads: int,
        metrics: Sequence[str],
    ) -> None:  # fmt: skip
        self._task, self._data, self._kernel, self._metrics = task, data, kernel, metrics
        self._dtype = DTYPES[precision_of(task)]
        self._open: dict[int, _Open] = {}
        self._populations: list[Population] = []
        self._n_threads = n_threads
        self._n_lanes = max(1, min(n_threads, MOST_LANES if kernel is None else MOST_SLOTS))
        self._pool = ThreadPoolExecutor(self._n_lanes, "lane")

    def rung(self, run: Run) -> str:
        """See `sweep.training.slot_loop.Engine`."""
        return "fused"

    def open(self, run: Run) -> Sequence[Report]:
        """Add a trial to a population, from the next epoch on.

        Raises ValueError or TypeError for hyperparameters unknown to MLPClassifier, and
        out-of-memory errors.
        """
        opened, said = self._new(run), list[Report]()
        if run.spec.is_resumed:
            try:
                self._restore(run, opened, load_resume_file(run))
                said += run.history
            except Exception as error:  # also from malformed values in a resume file
                if classify(error).kind == "oom":
                    raise
                opened, said = self._new(run), [start_over(run, error)]
        if not run.is_trained:
            is_bound = run.epoch > 0 or run.spec.start_epoch is not None
            wanted = run.start_epoch + run.epoch if is_bound else None
            opened.population = self._population(_batch_size(run), wanted)
            opened.population.join(opened.member)
            run.start_epoch = opened.population.epoch - run.epoch
        self._open[run.spec.number] = opened
        return said

    def train_epoch(self) -> tuple[dict[int, dict[str, float]], dict[int, tuple[Any, None, str]]]:
        """Train and validate one epoch of every trial; metrics and outcomes by trial number."""
        self._populations = [p for p in self._populations if not p.is_empty]
        jobs = [job for population in self._populations for job in population.start_epoch()]
        metrics, outcomes = {}, dict[int, tuple[Any, None, str]]()
        scores = run_jobs(jobs, self._pool, self._n_lanes, self._n_threads, self._prepare_exports)
        for number, score in scores.items():
            metrics[number] = {name: getattr(score, name) for name in self._metrics}
            said = score.by_sample(self._task.metric)
            if said is not None:
                said = said if said.dtype == torch.bool else said.float()
                outcomes[number] = said.numpy(), None, ""
            run = self._open[number].run
            run.n_steps = (run.epoch + 1) * self._n_steps(run)
        return metrics, outcomes

    def keep_best(self, numbers: Sequence[int]) -> None:
        """Keep the current weights of these trials as their best."""
        for number in numbers:
            if (population := self._open[number].population) is not None:
                population.keep_best(number)

    def state(self, run: Run) -> dict[str, Any] | None:
        """A checkpoint as Lightning would write it after the same epochs; None for a trial not
        trained since it was opened."""
        opened, number = self._open[run.spec.number], run.spec.number
        if (home := opened.home) is None:
            return None
        best = _named(opened.model, home.best_weights(number))
        checkpoint = checkpoint_of(self.module(run, "last"), {}, run.epoch, run.n_steps)
        states = home.states(number)
        optimizer, schedulers = self._optimizer_state(run, opened, states)
        return checkpoint | {
            "optimizer_states": [optimizer],
            "lr_schedulers": schedulers,
            "loops": {"fit_loop": _progress(run.epoch, self._n_steps(run))},
            RESUME_KEY: run.state({name: _own(value) for name, value in best.items()}),
        }

    def module(self, run: Run, which: Literal["best", "last"]) -> MLPClassifier:
        """The trial's module; the next call for the same trial overwrites its weights."""
        opened, number = self._open[run.spec.number], run.spec.number
        if (home := opened.home) is not None:
            found = home.best_weights if which == "best" else home.weights
            _copy(found(number), _linears(opened.model))
        elif which == "best":
            _copy(opened.member.best, _linears(opened.model))
        return opened.model

    def example(self, run: Run) -> Example:
        """A sample of the data."""
        return Example(self._data.info.feature_shape)

    def checkpoint_arguments(self, run: Run) -> Mapping[str, Any]:
        """None: they are all among the network's saved hyperparameters."""
        return {}

    def close(self, number: int) -> None:
        """Remove the trial from its population."""
        opened = self._open.pop(number, None)
        if opened is not None and opened.population is not None:
            opened.population.leave(number)

    def _new(self, run: Run) -> _Open:
        spec, default = run.spec, torch.get_default_dtype()
        # Initial weights are drawn in float32 and then converted, as Lightning does it.
        torch.set_default_dtype(torch.float32)
        try:
            model = build_mlp(spec.hyperparameters, self._data.info, spec.seed)
        finally:
            torch.set_default_dtype(default)
        model.to(self._dtype)
        arguments = model.optimizer_arguments
        member = Member(
            spec.number,
            tuple(model.hidden),
            model.hparams["activation"],
            make_rule(model.optimizer_name, arguments),
            arguments["lr"],
            _linears(model),
            model.schedule,
            model.clip_norm,
            model.hparams["dropout"],
            model.hparams["seed"],
        )
        return _Open(run, model, member)

    def _restore(self, run: Run, opened: _Open, checkpoint: Mapping[str, Any]) -> None:
        """Restore a trial from a resume file. Raises for mismatched values."""
        model, member, state = opened.model, opened.member, checkpoint[RESUME_KEY]
        model.load_state_dict(checkpoint["state_dict"])
        member.states = _rule_states(
            member.rule, checkpoint["optimizer_states"][0]["state"], _linears(model)
        )
        if state["best"] is not None:
            member.best = [
                (torch.empty_like(weight), torch.empty_like(bias))
                for weight, bias in _linears(model)
            ]
            weights = state["best"]["weights"]
            for name, value in _named(model, member.best).items():
                value.copy_(_like(weights[name], value))
        run.resume(checkpoint)
        member.epoch = run.epoch

    def _optimizer_state(
        self, run: Run, opened: _Open, states: Sequence[Linears]
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """State of torch's optimizer and schedulers after the trial's epochs."""
        model, member = opened.model, opened.member
        n_epochs, n_steps = self._task.epochs, self._n_steps(run)
        optimizer = model.make_optimizer()
        found = model.make_scheduler(optimizer, n_epochs, n_epochs * n_steps)
        rate = learning_rates(member.schedule, member.lr, run.epoch, n_epochs, n_steps)[0]
        optimizer.param_groups[0]["lr"] = rate
        schedulers = []
        if found is not None:
            is_a_step, scheduler = found.get("interval") == "step", found["scheduler"]
            n_taken = run.n_steps if is_a_step else run.epoch
            progress = {"last_epoch": n_taken, "_step_count": n_taken + 1, "_last_lr": [rate]}
            schedulers = [scheduler.state_dict() | progress]
        tensors = [[_own(t) for pair in linears for t in pair] for linears in states]
        names, scalars = member.rule.state_names, member.rule.torch_scalars(run.n_steps)
        state = {
            index: {name: torch.tensor(value) for name, value in scalars.items()}
            | {name: tensors[k][index] for k, name in enumerate(names)}
            for index in range(2 * len(_linears(model)))
            if names
        }
        return {**optimizer.state_dict(), "state": state}, schedulers

    def _prepare_exports(self) -> None:
        """Trace graphs for export while other threads train: torch's first trace is slow."""
        for opened in self._open.values():
            with contextlib.suppress(Exception):  # the export itself will raise it
                prepare_export(opened.model, self._data.info.feature_shape)

    def _n_steps(self, run: Run) -> int:
        """Steps per epoch."""
        return -(-len(self._data.train) // _batch_size(run))

    def _population(self, batch_size: int, epoch: int | None) -> Population:
        """A population with this minibatch size at population epoch `epoch` (None: any), made if
        there is none."""
        for population in self._populations:
            if population.batch_size == batch_size and epoch in (None, population.epoch):
                return population
        made = Population(
            self._data, batch_size, self._task.epochs, epoch or 0, self._dtype, self._kernel,
            self._n_lanes, is_exact=self._task.is_deterministic,
        )  # fmt: skip
        self._populations.append(made)
        return made


def _batch_size(run: Run) -> int:
    size = run.spec.hyperparameters.get("batch_size") or run.task.batch_size
    if size < 1:
        raise ValueError(f"batch_size must be at least 1, but got {size}")
    return int(size)


def _progress(n_epochs: int, n_steps: int) -> dict[str, Any]:
    """State of Lightning's fit loop after `n_epochs` epochs of `n_steps` steps each."""

    def counts(n: int, *names: str) -> dict[str, int]:
        return dict.fromkeys(("ready", "completed", *names), n)

    def counted(*names: str) -> dict[str, Any]:
        return {"total": counts(n_epochs * n_steps, *names), "current": counts(n_steps, *names)}

    epochs = counts(n_epochs, "started", "processed")
    optimizer = {"step": counted(), "zero_grad": counted("started")}
    return {
        "epoch_progress": {"total": epochs, "current": dict(epochs)},
        "epoch_loop.state_dict": {"_batches_that_stepped": n_epochs * n_steps},
        "epoch_loop.batch_progress": counted("started", "processed") | {"is_last_batch": True},
        "epoch_loop.automatic_optimization.optim_progress": {"optimizer": optimizer},
    }


def _rule_states(
    rule: OptimizerRule, state: Mapping[int, Mapping[str, Any]], like: Linears
) -> list[Linears]:
    """A rule's state tensors from torch's optimizer state. Raises KeyError if one is missing,
    ValueError for another shape."""
    found: list[Linears] = []
    for k, name in enumerate(rule.state_names):
        flat = []
        for index, tensor in enumerate(t for pair in like for t in pair):
            # torch always creates the first one, others depending on the optimizer's arguments.
            given = state[index][name] if k == 0 else state[index].get(name)
            flat.append(torch.zeros_like(tensor) if given is None else _like(given, tensor))
        found.append(list(zip(flat[::2], flat[1::2], strict=True)))
    return found


def _like(given: Tensor, tensor: Tensor) -> Tensor:
    if given.shape != tensor.shape:
        raise ValueError("its layers have other shapes")
    return given.to(tensor.dtype)


def _linears(model: MLPClassifier) -> Linears:
    """Views of the model's own weights."""
    return [(weight.detach(), bias.detach()) for _, weight, bias in _layers(model)]


def _layers(model: MLPClassifier) -> list[tuple[str, Tensor, Tensor]]:
    return [
        (f"layers.{index}", layer.weight, layer.bias)
        for index, layer in enumerate(model.layers)
        if isinstance(layer, nn.Linear)
    ]


def _named(model: MLPClassifier, linears: Linears) -> dict[str, Tensor]:
    """`linears` under their names in the module's state_dict."""
    return {
        f"{name}.{part}": value
        for (name, _, _), pair in zip(_layers(model), linears, strict=True)
        for part, value in zip(("weight", "bias"), pair, strict=True)
    }


def _own(tensor: Tensor) -> Tensor:
    """A copy on the CPU: saving a view would save the population's whole buffer."""
    return tensor.cpu().clone()


def _copy(given: Linears, own: Linears) -> None:
    for pair, mine in zip(given, own, strict=True):
        mine[0].copy_(pair[0])
        mine[1].copy_(pair[1])
