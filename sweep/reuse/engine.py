"""`sweep train` by the engine of the search: one MLPClassifier, a population of its own."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from sweep.data.tensors import FinalData, epoch_order
from sweep.errors import StudyFailedError
from sweep.protocols import Exchange
from sweep.training.choice import precision_of
from sweep.training.compiled.kernel import load_kernel
from sweep.training.failures import classify, not_finite
from sweep.training.fused.lanes import Lanes
from sweep.training.fused.population import Population, nothing
from sweep.training.fused.run import Run
from sweep.training.fused.trainer import DTYPES, SLOWER
from sweep.training.members import Samples
from sweep.training.mlp import MLPClassifier
from sweep.training.resuming import Keeper, load_resume_file, now_ms, unusable
from sweep.trial import Notice, Report, Task, TrialSpec


def train_alone(
    model: MLPClassifier, task: Task, spec: TrialSpec, data: FinalData, exchange: Exchange
) -> Run:
    """Train all epochs of `spec`, from its resume state if it has one, or until told to stop.

    The state after the last epoch is kept, too. Raises StudyFailedError if a loss is not finite.

    Args:
        model: The network with its initial weights, in float32; converted to `task.precision`.
        task: What to train for how long, and where resume state goes.
        spec: The training as a trial.
        data: On the device that trains.
        exchange: Takes an epoch's report, and says if this was the last.
    """
    run = _open(model.to(DTYPES[precision_of(task)]), task, spec, len(data.train))
    said, keeper = list(run.first_reports), Keeper(task.checkpoint_interval_s)
    if run.is_trained:
        exchange(said, 0)
        return run
    with _lanes(task, data, said) as lanes:
        run.join(lanes.place(run.member, run.batch_size, run.wanted_epoch))
        lanes.change()
        exchange(said, 0)
        is_stopped = False
        while not (run.is_trained or is_stopped):
            began_s = time.perf_counter()
            scores = lanes.train_epoch(nothing)[0][1][spec.number]
            if not math.isfinite(scores.train_loss):
                failure = not_finite(run.epoch, "train_loss", scores.train_loss)
                raise StudyFailedError(f"the training failed: {failure.message}")
            epoch_s = time.perf_counter() - began_s
            report = run.report(scores, epoch_s, ["train_loss"])
            is_stopped = bool(exchange([report], 0).stop)
            if run.is_trained or is_stopped or keeper.is_due:
                exchange(keeper.keep([run.write_resume_state]), 0)
    return run


def _open(model: MLPClassifier, task: Task, spec: TrialSpec, n_train: int) -> Run:
    """The run, at its last checkpoint; one that cannot be used is said in its first reports."""
    untouched = copy.deepcopy(model)
    run = Run(spec, task, model, n_train)
    if spec.resume_from is None:
        return run
    try:
        run.resume(load_resume_file(spec, "fused"))
    except Exception as error:  # also values that only look like a resume state
        if classify(error).kind == "oom":
            raise
        run = Run(spec, task, untouched, n_train)
        run.first_reports = [unusable(spec, error)]
    return run


@contextmanager
def _lanes(task: Task, data: FinalData, said: list[Report]) -> Iterator[Lanes]:
    """One lane; torch's threads and default type are as before at the end.

    Adds to `said` why it is slow.
    """
    x, y = data.train.x, data.train.y
    # A population validates each epoch: on one training sample, the test split is not for that.
    samples = Samples(x, y, x[:1], y[:1], data.mean, data.std, data.info.n_classes)
    dtype, device = DTYPES[precision_of(task)], x.device
    kernel = None
    if device.type == "cpu":
        loaded = load_kernel(dtype.itemsize)
        kernel = loaded.kernel
        if loaded.why_not:
            said.append(Notice(now_ms(), f"{SLOWER}: {loaded.why_not}"))

    def order(epoch: int) -> Tensor:
        return epoch_order(task.seed, epoch, len(y))

    def new_population(batch_size: int, epoch: int) -> Population:
        population = Population(samples, batch_size, task.epochs, order, epoch, dtype)
        population.kernel = kernel
        return population

    n_threads, default = torch.get_num_threads(), torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)  # of dropout's draws, as in a Trainer of this precision
        most = task.n_threads or n_threads if device.type == "cpu" else 1
        yield Lanes(new_population, most, most=1)
    finally:
        torch.set_default_dtype(default)
        torch.set_num_threads(n_threads)
