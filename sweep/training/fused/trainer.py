"""The fused trainer: one Lightning Trainer for a worker's life, trials flow through it.

Lightning is given one step per epoch (1.7 ms of its overhead a minibatch would cost more than
the arithmetic); inside it the populations run their minibatches on data that stays on the
device. Device, precision and their plug-ins are Lightning's as usual.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor

from sweep.data.tensors import SearchData, epoch_order, load_search_data
from sweep.errors import ConfigError, must_be_one_of
from sweep.protocols import Exchange
from sweep.training.choice import FUSED_PRECISIONS, MOST_SLOTS, precision_of
from sweep.training.compiled.kernel import Kernel, load_kernel
from sweep.training.devices import lightning_devices, ready
from sweep.training.failures import classify
from sweep.training.fused.lanes import MOST_LANES, Lanes
from sweep.training.fused.population import Population
from sweep.training.fused.run import Run, open_run
from sweep.training.members import Samples, Scores
from sweep.training.quiet import hush_lightning, quiet_trainer
from sweep.training.resuming import Keeper, conclude, now_ms
from sweep.trial import Failure, Notice, Report, Task, TrialResult, TrialSpec

METRICS = ("val_acc", "val_loss", "train_loss")
DTYPES = dict(zip(FUSED_PRECISIONS, (torch.float32, torch.float64), strict=True))
MEMORY_SHARE = 0.5
"""Of the free memory: layouts are copied when trials change, and others use the device too."""
UNKNOWN_MEMORY = 4 << 30
"""Bytes taken to be free where the system does not say (not Linux, not CUDA)."""
IDLE_S = 0.01
SLOWER = "torch trains instead of the compiled kernel, in two to three times the time"


def population_size(task: Task, data: SearchData | Samples, device: torch.device) -> int:
    """How many trials to train at a time on `device`.

    What the task says, else what fits into half of the memory that is free now, at most
    `MOST_SLOTS`. A trial is counted at three hidden layers of 512 units: parameters, best
    epoch's, gradients and three optimizer states, and 6 activations per unit and sample.
    """
    if task.population is not None:
        return max(1, task.population)
    x = data.x if isinstance(data, Samples) else data.train.x
    size = 8 if precision_of(task) == "64-true" else 4
    n_weights = 512 * (x[0].numel() + 2 * 512 + 16)
    n_activations = 6 * 3 * 512 * max(task.batch_size, 512)
    per_trial = size * (6 * n_weights + n_activations)
    return max(1, min(MOST_SLOTS, int(MEMORY_SHARE * _free_memory(device) / per_trial)))


class FusedTrainer:
    """Trains trials of one task side by side; implements `sweep.trial.Trainer`.

    Args:
        task: What all trials share.
        data: The search data, or a function that loads it; None: what the task names.

    Raises:
        ConfigError: The task's metric or precision is not one that this trainer knows.
    """

    def __init__(
        self, task: Task, data: SearchData | Callable[[], SearchData] | None = None
    ) -> None:
        faults = []
        if task.metric not in METRICS:
            faults.append(must_be_one_of("metric", task.metric, METRICS))
        if precision_of(task) not in DTYPES:
            faults.append(must_be_one_of("precision", task.precision, DTYPES))
        if faults:
            raise ConfigError(faults)
        hush_lightning()
        self._task = task
        if data is None:
            data = load_search_data(task.data, task.data_dir, task.seed)
        self._data = data

    def train(self, exchange: Exchange) -> None:
        """Train what `exchange` orders, until it says is_last and nothing is left.

        Where memory runs out, half as many trials go on at a time, each from its last
        checkpoint (or its beginning); a trial for which there is no room alone fails.
        """
        n_threads = torch.get_num_threads()
        try:
            torch.set_num_threads(self._task.n_threads or n_threads)
            self._train(exchange)
        finally:
            torch.set_num_threads(n_threads)

    def _train(self, exchange: Exchange) -> None:
        data = self._data() if callable(self._data) else self._data
        populations = Populations(self._task, data, exchange)
        while True:
            try:
                self._fit(populations)
                return
            except (RuntimeError, MemoryError, OSError) as error:
                failure = classify(error)
                if failure.kind != "oom":
                    raise
            populations = populations.halved(failure)
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _fit(self, populations: Populations) -> None:
        trainer = quiet_trainer(
            self._task.work_dir,
            max_epochs=-1,
            accelerator=self._task.accelerator,
            devices=lightning_devices(self._task.devices),
            precision=precision_of(self._task),
        )
        trainer.fit(populations, _OneStepEpochs())


class Populations(lightning.LightningModule):
    """All populations of a worker: one for each minibatch size and alignment of epochs."""

    def __init__(
        self, task: Task, data: SearchData, exchange: Exchange, n_slots: int | None = None
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self._task, self._data, self._exchange = task, data, exchange
        self._n_slots = n_slots
        self._backlog: collections.deque[TrialSpec] = collections.deque()
        self._reports: list[Report] = []
        """Not handed over yet; they outlive an exception in the midst of an epoch's end."""
        self._running: dict[int, Run] = {}
        self._is_last = False
        self._scored: list[tuple[Population, dict[int, Scores]]] = []
        self._epoch_s = 0.0
        self._keeper = Keeper(task.checkpoint_interval_s)
        self._kernel: Kernel | None = None

    def configure_optimizers(self) -> list[Any]:
        """None: each trial has its own inside the populations."""
        return []

    def on_fit_start(self) -> None:
        """Put the data on the device and ask for the first trials."""
        data = self._data = self._data.to(self.device)
        self._samples = Samples(
            data.train.x, data.train.y, data.val.x, data.val.y,
            data.mean, data.std, data.info.n_classes,
        )  # fmt: skip
        self._size = self._n_slots or population_size(self._task, self._samples, self.device)
        is_first, n_threads = not self._reports, 1
        if is_first:
            self._reports = [ready(self._task, data, self._size, "fused")]
        if self.device.type == "cpu":
            n_threads = torch.get_num_threads()
            self._load_kernel(is_first)
        most = MOST_LANES if self._kernel is None else MOST_SLOTS
        self._lanes = Lanes(self._new_population, n_threads, most)
        self._settle()

    def _load_kernel(self, is_first: bool) -> None:
        loaded = load_kernel(DTYPES[precision_of(self._task)].itemsize)
        self._kernel = loaded.kernel
        if is_first and loaded.why_not:
            self._reports.append(Notice(now_ms(), f"{SLOWER}: {loaded.why_not}"))

    def halved(self, failure: Failure) -> Populations:
        """Half as many slots, with the trials of these populations still to be trained.

        What stands in memory is of no use: an epoch broke off in its midst.
        """
        n_slots = self._size // 2
        smaller = Populations(self._task, self._data, self._exchange, max(1, n_slots))
        smaller._is_last, smaller._keeper = self._is_last, self._keeper
        runs = list(self._running.values())
        if n_slots == 0:
            smaller._backlog.extend(self._backlog)
            smaller._reports = self._reports + [
                TrialResult(run.spec.number, "failed", run.epoch, failure=failure) for run in runs
            ]
            return smaller
        smaller._backlog.extend([run.as_it_was_kept() for run in runs] + list(self._backlog))
        said = f"out of memory with {self._size} trials at a time: going on with {n_slots}"
        smaller._reports = [*self._reports, Notice(now_ms(), said)]
        return smaller

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        """One epoch of every population."""
        began_s = time.perf_counter()
        self._scored = self._lanes.train_epoch(self._prepare)
        self._epoch_s = time.perf_counter() - began_s

    @torch.no_grad()
    def on_train_epoch_end(self) -> None:
        """Report the epoch, then do as ordered."""
        share_s = self._epoch_s / max(1, sum(len(scores) for _, scores in self._scored))
        for population, scores in self._scored:
            improved = [n for n, score in scores.items() if self._running[n].take(score)]
            population.keep_best(improved)
            for number, score in scores.items():
                run = self._running[number]
                if run.failure is not None:
                    self._reports += self._finish(number, "failed")
                    continue
                self._reports.append(run.report(score, share_s))
                if run.is_trained:
                    self._reports += self._finish(number, "finished")
        if self._running and self._keeper.is_due:
            # All at one boundary: resumed together, they make one population again.
            runs = self._running.values()
            self._reports += self._keeper.keep([run.write_resume_state for run in runs])
        self._settle()

    def _prepare(self) -> None:
        """Traced programs for what will be exported: torch takes its time for the first."""
        for run in self._running.values():
            with contextlib.suppress(Exception):  # what is wrong comes up when it is exported
                run.prepare(self._data.info.feature_shape)

    def _settle(self) -> None:
        """Exchange until no order is left to answer; then change the populations, once each."""
        while True:
            n_busy = len(self._running) + len(self._backlog)
            orders = self._exchange(tuple(self._reports), max(0, self._size - n_busy))
            self._reports = []
            self._is_last |= orders.is_last
            self._backlog.extend(orders.start)
            for stop in orders.stop:
                if stop.number in self._running:
                    self._reports += self._finish(stop.number, "stopped", stop.reason)
            while self._backlog and len(self._running) < self._size:
                self._reports += self._start(self._backlog.popleft())
            if not self._reports and (self._running or self._is_last):
                break
            if not self._reports and not orders.start:
                time.sleep(IDLE_S)
        for number, population in self._lanes.change().items():
            self._running[number].population = population
        self.trainer.should_stop = not self._running

    def _start(self, spec: TrialSpec) -> list[Report]:
        """Give a trial its place; a faulty one is reported instead."""
        try:
            run = open_run(spec, self._task, self._data)
        except Exception as error:  # whatever a configuration breaks is its own
            failure = classify(error)
            if failure.kind == "oom" and spec.resume_from is not None and self._size > 1:
                self._backlog.appendleft(spec)
                raise  # it fitted before: fewer at a time will
            failed = TrialResult(spec.number, "failed", 0, failure=failure)
            return [conclude(self._task, spec, (), failed)]
        if run.is_trained:
            return [*run.first_reports, run.close("finished", "", self._data.info.feature_shape)]
        self._running[spec.number] = run
        run.join(self._lanes.place(run.member, run.batch_size, run.wanted_epoch))
        return run.first_reports

    def _new_population(self, batch_size: int, epoch: int) -> Population:
        population = Population(
            self._samples, batch_size, self._task.epochs, self._order, epoch,
            DTYPES[precision_of(self._task)],
        )  # fmt: skip
        population.kernel = self._kernel
        return population

    def _finish(self, number: int, outcome: str, reason: str = "") -> list[Report]:
        """The trial's last word, after what is to be kept is kept. Raises DiskError."""
        run = self._running[number]
        said = self._keeper.keep([run.write_resume_state]) if reason == "interrupted" else []
        said.append(run.close(outcome, reason, self._data.info.feature_shape))
        del self._running[number]  # not before: where memory runs out, it is not lost
        self._lanes.leave(number)
        return said

    def _order(self, epoch: int) -> Tensor:
        return epoch_order(self._task.seed, epoch, len(self._samples.x))


class _OneStepEpochs:
    """What Lightning takes for a training set: one minibatch, the epoch itself."""

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Tensor]:
        yield torch.zeros(1)


def _free_memory(device: torch.device) -> int:
    """Bytes free on `device` now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        fields = Path("/proc/meminfo").read_text().split()
        return 1024 * int(fields[fields.index("MemAvailable:") + 1])
    except (OSError, ValueError):
        return UNKNOWN_MEMORY
