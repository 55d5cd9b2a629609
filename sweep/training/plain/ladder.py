"""How many trials of a module train at a time, and how: decided before the first by trying it.

A module's own steps are timed, with all threads and with one, and so are its loader and the steps
of a group. The first steps of a trial in a group are compared with the same trial's alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from sweep.loading import raised_by_user_code
from sweep.training.engine_choice import MOST_SLOTS, precision_of
from sweep.training.mlflow_calls import FluentCalls
from sweep.training.plain.engine import PlainEngine
from sweep.training.process_state import settings
from sweep.training.project.project import Project
from sweep.training.slot_loop import Slots
from sweep.trial import EpochReport, Orders, Report, Task, TrialResult, TrialSpec

N_TRIED, N_STEPS = 4, 4
"""Trials and steps of a group that are compared with a trial alone."""
N_TIMED = 16
"""Minibatches for each measurement."""
MEASURED_AT = 2
"""The step in which memory is measured."""
LONGEST_STEP_S = 0.5
"""Modules whose steps take longer are not tried in groups: it would take too long."""
NEAR = {"64-true": 1e-6, "32-true": 1e-3}
"""Largest difference relative to the largest weight: an optimizer that divides by gradients of
1e-17 amplifies rounding, while a wrong formula differs in the first digits."""
NEAR_METRIC = 1e-3
"""Lightning and torchmetrics add up in float32."""
LONGEST_S = 8.0
"""Time for the trial alone: slower modules are not measured further."""
LOADER_SHARE = 0.1
"""Enough trials share a minibatch if loading it takes so much of their time."""
ONE = "one trial at a time: {} (its folder, import path or settings of libraries)"
GAIN = 1.15
"""Several workers must be so much faster than one, and one thread than all."""
TRYING_S = 3.0
"""About what trying groups takes: a search whose steps take less in all gains nothing by it."""
MANY = 1000
"""Trials of a search without a number of them, and minibatches of an epoch of unknown length."""


@dataclass(frozen=True)
class Ladder:
    """What a search of a module does."""

    n_slots: int
    """Trials at a time in a worker."""
    n_workers: int
    """Workers, each with its share of the threads."""
    said: str
    """A line for the user."""
    may_share_steps: bool = True
    """Whether trials may take their steps together."""
    is_shared: bool = True
    """Whether the order of the data is the population epoch's, not the trial's own."""
    n_threads: int | None = None
    """Of each worker, by measurement; None: as they are."""


class Given:
    """Hands out trials and collects reports, as a driver would."""

    def __init__(self, specs: Sequence[TrialSpec]) -> None:
        self._left = list(specs)
        self.reports: list[Report] = []

    def __call__(self, reports: Sequence[Report], n_free: int) -> Orders:
        """See `sweep.protocols.Exchange`."""
        self.reports += reports
        start, self._left = self._left[:n_free], self._left[max(0, n_free) :]
        return Orders(start=tuple(start), is_last=not self._left)

    def values_of(self, metric: str) -> dict[int, float]:
        """By trial, after its first epoch."""
        reports = [r for r in self.reports if isinstance(r, EpochReport)]
        return {r.number: r.metrics[metric] for r in reports if metric in r.metrics}

    def failed(self) -> bool:
        """Whether a trial failed."""
        return any(isinstance(r, TrialResult) and r.failure is not None for r in self.reports)


def climb(task: Task, project: Project) -> Ladder:
    """Decide by trying. Changes settings of the process, as any user code may.

    Errors of the user's code are left to the trials.
    """
    n_threads = torch.get_num_threads()
    base = task.probes[0][1] if task.probes else {}
    others = [values for _, values in task.probes[1:]] or [base]
    specs = [
        TrialSpec(k, base if k < 2 else others[k % len(others)], seed=k) for k in range(N_TRIED)
    ]
    before = settings()
    try:
        alone = trained_alone(task, project, specs[0])
        torch.set_num_threads(n_threads)
        if alone is None:
            return Ladder(task.population or 1, 1, "")
        if settings() != before:
            return Ladder(1, 1, ONE.format("it changes the process"), may_share_steps=False)
        # One thread a worker, if that trains more: the group is timed as it would be then.
        may_split = task.may_add_workers and alone.is_on_cpu and n_threads > 1
        is_split = may_split and n_threads * alone.step_s > GAIN * alone.step_of_one_thread_s
        if _threads_of_one(task, alone, n_threads) < n_threads:  # once may be chance
            alone = alone.at_its_best(trained_alone(task, project, specs[0]) or alone)
            torch.set_num_threads(n_threads)
        n_used = 1 if is_split else _threads_of_one(task, alone, n_threads)
        shared = _Shared(math.inf, "")
        if _is_short(task, alone):
            shared = _Shared(math.inf, "all of them take less time than trying to share them")
        elif alone.step_with(n_used) >= LONGEST_STEP_S:
            shared = _Shared(math.inf, "they are too long for trying to share them")
        elif task.population != 1:
            torch.set_num_threads(n_used)
            shared = _shared(task, project, specs)
            if 0.5 < shared.step_s / alone.step_with(n_used) < 2.0:  # too near to tell
                torch.set_num_threads(n_threads)
                again = trained_alone(task, project, specs[0]) or alone
                torch.set_num_threads(n_used)
                shared = dataclasses.replace(shared, step_s=min(
                    shared.step_s, _time_of_group(task, project, shared.timed)))  # fmt: skip
                alone = alone.at_its_best(again)
    finally:
        torch.set_num_threads(n_threads)
    return _decided(task, alone, shared, n_threads if is_split else 1, n_threads)


def _threads_of_one(task: Task, alone: Alone, n_threads: int) -> int:
    """Threads of a worker that is the only one: beside other programs one may do more than all."""
    may_choose = alone.is_on_cpu and task.n_threads is None
    is_one_faster = alone.step_s > GAIN * alone.step_of_one_thread_s
    return 1 if may_choose and is_one_faster else n_threads


def _is_short(task: Task, alone: Alone) -> bool:
    """Whether all steps of a search take less time than trying to share them."""
    if task.n_trials is None or task.population is not None:
        return False
    return task.n_trials * task.epochs * alone.n_batches * alone.step_s < TRYING_S


def _decided(task: Task, alone: Alone, shared: _Shared, n_workers: int, n_threads: int) -> Ladder:
    """What a search does, given the times of steps; at most `n_workers` workers."""
    n_alone = _threads_of_one(task, alone, n_threads)
    each_s = alone.step_with(1 if n_workers > 1 else n_alone)
    may_share = each_s >= shared.step_s  # side by side, a step has its turn to pay for, too
    n_workers = max(1, min(n_workers, _most(task, alone)))
    if may_share:  # each with a group as large as the one that was timed
        n_workers = min(n_workers, MOST_SLOTS // N_TRIED)
    costs_s = [shared.step_s if may_share else alone.step_with(n) for n in (n_alone, 1)]
    if n_workers > 1:
        of_one, of_all = (
            _seconds(task, alone, costs_s[0], 1), _seconds(task, alone, costs_s[1], n_workers)
        )  # fmt: skip
        if of_one < GAIN * of_all:
            n_workers = 1
    cost_s = costs_s[n_workers > 1]
    if may_share:
        n_slots = MOST_SLOTS
        how = (
            f"vmapped: trials share steps, {1000 * cost_s:.2f} ms a trial "
            f"(alone {1000 * each_s:.2f})"
        )
    else:
        why = shared.why_not or "a step of its own takes no longer"
        n_slots = min(MOST_SLOTS, max(1, math.ceil(alone.load_s / (LOADER_SHARE * cost_s))))
        how = f"side by side: {n_slots} share a minibatch, steps one by one: {why}"
    n_slots = max(1, min(n_slots, MOST_SLOTS // n_workers, _most(task, alone) // n_workers))
    if task.n_trials:
        n_slots = max(1, min(n_slots, -(-task.n_trials // n_workers)))
    n_slots = task.population or n_slots
    if n_workers > 1:
        how += f"; {n_workers} workers of {one_or(n_threads // n_workers)} each"
    elif n_alone < n_threads:
        how += f"; {one_or(n_alone)}, which is faster just now than {n_threads}"
    n_each = n_threads // n_workers if n_workers > 1 else n_alone
    return Ladder(n_slots, n_workers, how, may_share, n_threads=n_each)


@dataclass
class Alone:
    """What a trial alone takes, in seconds and bytes."""

    step_s: float
    step_of_one_thread_s: float
    load_s: float
    """Of a minibatch."""
    start_s: float
    """Until a worker is ready."""
    n_batches: float
    """Of an epoch."""
    n_bytes: int
    is_on_cpu: bool

    def step_with(self, n_threads: int) -> float:
        """Of a step with one thread, or (any other number) with all."""
        return self.step_of_one_thread_s if n_threads == 1 else self.step_s

    def at_its_best(self, other: Alone) -> Alone:
        """The shorter times of two measurements: others share this machine."""
        return dataclasses.replace(
            self, step_s=min(self.step_s, other.step_s), load_s=min(self.load_s, other.load_s),
            step_of_one_thread_s=min(self.step_of_one_thread_s, other.step_of_one_thread_s),
        )  # fmt: skip


@dataclass
class _Shared:
    """Of a group."""

    step_s: float
    """For each trial, in seconds."""
    why_not: str
    timed: Sequence[TrialSpec] = ()
    """The trials that were timed."""


def one_or(n: int) -> str:
    """ "one thread" or "2 threads"."""
    return "one thread" if n == 1 else f"{n} threads"


def _seconds(task: Task, alone: Alone, each_s: float, n_workers: int) -> float:
    """About how long all trials take.

    Each worker loads every minibatch for its trials, and all but the first have to start.
    """
    n_trials = task.n_trials or MANY
    n_rounds = math.ceil(n_trials / MOST_SLOTS)  # a worker has its share of the slots
    a_step_s = n_rounds * alone.load_s + math.ceil(n_trials / n_workers) * each_s
    return task.epochs * alone.n_batches * a_step_s + (n_workers > 1) * alone.start_s


def trained_alone(task: Task, project: Project, spec: TrialSpec) -> Alone | None:
    """What a trial alone takes; None if it fails."""
    clock, n_threads = _Clock(), torch.get_num_threads()
    start_s = time.process_time()  # up to now this process has imported, and little else
    tried = train_a_little(task, project, [spec], 1, N_TIMED, [clock])
    if tried is None or not clock.ends_s:
        return None
    loads = tried.engine.streams.loads
    load_s = statistics.median([seconds for _, seconds in loads] or [0.0])
    step_s = lower_quartile(clock.steps_s(range(clock.n_with_all), loads) or clock.first_s)
    with_one = clock.steps_s(range(clock.n_with_all, N_TIMED), loads)
    one_s = lower_quartile(with_one) if with_one else math.inf
    return Alone(
        step_s, step_s if n_threads == 1 else one_s, load_s, start_s,
        _limited(clock.n_batches, task), clock.n_bytes, not clock.is_cuda,
    )  # fmt: skip


def lower_quartile(times_s: Sequence[float]) -> float:
    """Of several times: what else the machine does makes some of them longer, and none shorter."""
    return sorted(times_s)[len(times_s) // 4]


def _limited(n_batches: float, task: Task) -> float:
    """Minibatches of an epoch, with the Trainer's own limit."""
    limit = task.config.get("trainer", {}).get("limit_train_batches", 1.0)
    if not isinstance(limit, int | float):
        return n_batches
    return min(n_batches, limit) if isinstance(limit, int) else n_batches * limit


def _shared(task: Task, project: Project, specs: Sequence[TrialSpec]) -> _Shared:
    """A group, timed and compared with a trial alone."""
    precision = precision_of(task)
    exact = "64-true" if precision == "32-true" else precision
    failed = _Shared(math.inf, "it could not be tried")
    found: list[_Tried] = []
    for n_slots in (1, len(specs)):
        tried = train_a_little(
            dataclasses.replace(task, precision=exact), project, specs, n_slots, N_STEPS + 1
        )
        if tried is None:
            return failed
        found.append(tried)
    alone, together = found
    if not together.engine.has_shared_steps:
        return _Shared(math.inf, together.engine.why_alone or failed.why_not)
    if task.proof and (differs := _difference(alone, together, exact)):
        return _Shared(math.inf, differs)
    # Trials of other shapes are no help: in a search over widths, hardly two are alike.
    are_alike = all(n == len(specs) for n, _ in together.engine.group_seconds)
    timed = specs if are_alike else specs[:1]
    step_s = _time_of_group(task, project, timed)
    return _Shared(step_s, "", timed) if step_s < math.inf else failed


def _time_of_group(task: Task, project: Project, specs: Sequence[TrialSpec]) -> float:
    """Seconds of a step, for each trial; infinite if it cannot be tried."""
    tried = train_a_little(task, project, specs, max(2, len(specs)), N_TIMED)
    if tried is None or not tried.engine.group_seconds:
        return math.inf
    each = [seconds / n for n, seconds in tried.engine.group_seconds]
    return lower_quartile(each[len(each) // 2 :])


def train_a_little(
    task: Task, project: Project, specs: Sequence[TrialSpec], n_slots: int, n_batches: int,
    callbacks: Sequence[Callback] = (),
) -> _Tried | None:  # fmt: skip
    """Train a few minibatches; None if a trial failed."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        small = dataclasses.replace(
            task, work_dir=folder, log_file=f"{folder}/log", epochs=1, log_models="none",
            checkpoint_interval_s=math.inf, population=n_slots,
        )  # fmt: skip
        limits = {
            "max_epochs": 1, "max_steps": -1, "limit_train_batches": n_batches,
            "limit_val_batches": 1, "num_sanity_val_steps": 0, "logger": False,
        }  # fmt: skip
        calls = FluentCalls(folder)
        stack.callback(calls.remove)
        given = Given(specs)
        slots = Slots(small, given)
        engine = PlainEngine(
            small, project, slots, calls, is_shared=True, in_turns=n_slots > 1,
            trial_run=(limits, callbacks),
        )  # fmt: skip
        try:
            slots.n_slots = n_slots
            slots.begin(engine)
            while slots.running:
                if n_slots == 1:
                    (run,) = slots.running.values()
                    engine.fit(run)
                    slots.conclude(run)
                else:
                    for number, error in engine.advance():
                        if error is not None:
                            raise error
                        slots.conclude(slots.running[number])
                slots.turn_over()
        except BaseException as error:  # noqa: BLE001 - user code: a trial will tell
            raised_by_user_code(error)
            return None
        finally:
            engine.end()
        return None if given.failed() else _Tried(engine, given.values_of(task.metric))


@dataclass
class _Tried:
    """What a few minibatches came to."""

    engine: PlainEngine
    metrics: Mapping[int, float]
    """The objective's metric, by trial."""


def _difference(alone: _Tried, together: _Tried, precision: str) -> str:
    """How trials' weights and metrics differ; "": they do not."""
    near = NEAR.get(precision, NEAR["32-true"])
    for number, weights in alone.engine.last_weights.items():
        for name, value in weights.items():
            other = together.engine.last_weights[number][name]
            ours, theirs = (torch.view_as_real(v) if v.is_complex() else v.double()
                            for v in (value, other))  # fmt: skip
            size = max(1e-12, float(ours.abs().max())) if ours.numel() else 1.0
            gap = float((ours - theirs).abs().max()) if ours.numel() else 0.0
            if not gap / size <= near and torch.isfinite(ours).all():
                return (
                    f"{name} differs from a trial's alone after {N_STEPS + 1} steps by "
                    f"{gap / size:.1g}"
                )
    for number, own in alone.metrics.items():
        found = together.metrics.get(number, math.inf)
        is_same = math.isclose(own, found, rel_tol=NEAR_METRIC, abs_tol=1e-6)
        if math.isfinite(own) and not is_same:
            return f"the metric is {found:.6g}, but {own:.6g} of a trial alone"
    return ""


class _Clock(Callback):
    """Times the steps of a fit: the first half with all threads, the others with one.

    On a busy machine, steps with all threads may take a hundred times as long: half of the time
    is left for those with one.
    """

    def __init__(self) -> None:
        self.starts_s: list[float] = []
        self.ends_s: list[float] = []
        """Of the steps, without loading."""
        self.n_bytes, self.is_cuda, self.n_with_all = 0, False, N_TIMED // 2
        self.n_batches: float = MANY
        self._first_s = time.monotonic()
        self._hooks: Any = None

    def steps_s(self, indices: range, loads: Iterable[tuple[float, float]]) -> list[float]:
        """How long the steps of these indices took, without the loads within; but not the first
        of a kind, and not the one in which memory is measured."""
        return [
            end_s - start_s - sum(seconds for at_s, seconds in loads if start_s < at_s <= end_s)
            for i, (start_s, end_s) in enumerate(itertools.pairwise(self.starts_s))
            if i in indices and i not in (0, MEASURED_AT, self.n_with_all)
        ]

    @property
    def first_s(self) -> list[float]:
        """How long the first step took: in short epochs there are few others."""
        return [self.ends_s[0] - self.starts_s[0]]

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Note how long an epoch is."""
        found = trainer.train_dataloader
        loaders = found.values() if isinstance(found, Mapping) else found
        loaders = loaders if isinstance(found, Mapping | list | tuple) else [found]
        with contextlib.suppress(Exception):  # streams; user code may raise anything
            self.n_batches = max(len(loader) for loader in loaders)

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the time; in one step measure what it keeps for its backward pass."""
        if batch_idx == MEASURED_AT:
            seen: dict[int, int] = {}

            def pack(tensor: Tensor) -> Tensor:
                storage = tensor.untyped_storage()
                seen[storage.data_ptr()] = storage.nbytes()
                return tensor

            self._seen = seen
            self._hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
            self._hooks.__enter__()
        elif batch_idx <= self.n_with_all and (
            batch_idx == self.n_with_all or time.monotonic() - self._first_s > LONGEST_S / 2
        ):
            self.n_with_all = batch_idx
            torch.set_num_threads(1)
        self.is_cuda = pl_module.device.type == "cuda"
        if self.is_cuda:
            torch.cuda.synchronize()
        self.starts_s.append(time.perf_counter())

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the measured memory; end a slow module's fit."""
        if self.is_cuda:
            torch.cuda.synchronize()
        self.ends_s.append(time.perf_counter())
        if self._hooks is not None:
            self._hooks.__exit__(None, None, None)
            self._hooks = None
            weights = sum(p.numel() * p.element_size() for p in pl_module.parameters())
            self.n_bytes = 6 * weights + 2 * sum(self._seen.values())
        trainer.should_stop |= time.monotonic() - self._first_s > LONGEST_S


def _most(task: Task, alone: Alone) -> int:
    """Trials that fit into half of the free memory, all workers together."""
    from sweep.training.fused.trainer import MEMORY_SHARE, free_memory

    if not alone.n_bytes:
        return MOST_SLOTS
    is_cuda = task.accelerator != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if is_cuda else "cpu")
    return max(1, int(MEMORY_SHARE * free_memory(device) / alone.n_bytes))
