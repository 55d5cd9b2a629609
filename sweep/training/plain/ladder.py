"""How many trials of a module train at a time, and how: decided before the first by trying it.

A module's own steps are timed, with all threads and with one, and so are its loader and the steps
of a group. The first steps of a trial in a group are compared with the same trial's alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
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
from sweep.trial import Orders, Report, Task, TrialResult, TrialSpec

N_TRIED, N_STEPS = 4, 4
"""Trials and steps of a group that are compared with a trial alone."""
N_TIMED = 16
"""Minibatches for each measurement."""
LONGEST_STEP_S = 0.5
"""Modules whose steps take longer are not tried in groups: it would take too long."""
NEAR = {"64-true": 1e-6, "32-true": 1e-3}
"""Largest difference relative to the largest weight: an optimizer that divides by gradients of
1e-17 amplifies rounding, while a wrong formula differs in the first digits."""
LONGEST_S = 8.0
"""Time for the trial alone: slower modules are not measured further."""
LOADER_SHARE = 0.1
"""Enough trials share a minibatch if loading it takes so much of their time."""
ONE = "one trial at a time: {} (its folder, import path or settings of libraries)"
GAIN = 1.15
"""Several workers, or a group, must be so much faster."""


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
        alone = _timed(task, project, specs[0])
        torch.set_num_threads(n_threads)
        if alone is None:
            return Ladder(task.population or 1, 1, "")
        if settings() != before:
            return Ladder(1, 1, ONE.format("it changes the process"), may_share_steps=False)
        n_workers = _workers(task, alone, n_threads)
        shared = None
        if task.population != 1 and alone.step_s < LONGEST_STEP_S:
            torch.set_num_threads(1 if n_workers > 1 else n_threads)
            shared = _shared(task, project, specs)
    finally:
        torch.set_num_threads(n_threads)
    each_s = alone.step_of_one_thread_s if n_workers > 1 else alone.step_s
    if shared is not None and not shared.why_not and each_s >= GAIN * shared.step_s:
        n_slots = MOST_SLOTS
        how = (
            f"vmapped: trials share steps, {1000 * shared.step_s:.2f} ms a trial "
            f"(alone {1000 * each_s:.2f})"
        )
        may_share = True
    else:
        why = "a step of its own takes no longer" if shared is None else shared.why_not
        why = why or "a step of its own takes no longer"
        n_slots = min(MOST_SLOTS, max(1, math.ceil(alone.load_s / (LOADER_SHARE * each_s))))
        how = f"side by side: {n_slots} share a minibatch, steps one by one: {why}"
        may_share = False
    n_slots = max(1, min(_most(task, alone), n_slots // n_workers or 1))
    if task.n_trials:
        n_slots = max(1, min(n_slots, -(-task.n_trials // n_workers)))
    n_slots = task.population or n_slots
    if n_workers > 1:
        how += f"; {n_workers} workers of one thread each"
    return Ladder(n_slots, n_workers, how, may_share)


@dataclass
class _Alone:
    """Of a trial alone, in seconds and bytes."""

    step_s: float
    step_of_one_thread_s: float
    load_s: float
    n_bytes: int
    is_on_cpu: bool = True


@dataclass
class _Shared:
    """Of a group."""

    step_s: float
    """For each trial, in seconds."""
    why_not: str


def _workers(task: Task, alone: _Alone, n_threads: int) -> int:
    """Workers of one thread each, or one with all."""
    if not task.may_add_workers or n_threads < 2 or not alone.is_on_cpu:
        return 1
    gain = n_threads * alone.step_s / alone.step_of_one_thread_s
    return n_threads if gain > GAIN else 1


def _timed(task: Task, project: Project, spec: TrialSpec) -> _Alone | None:
    """A trial alone; None if it fails."""
    clock, n_threads = _Clock(), torch.get_num_threads()
    engine = _trained(task, project, [spec], 1, N_TIMED, [clock])
    if engine is None or not clock.seconds:
        return None
    with_all, with_one = clock.seconds[: clock.switched_at], clock.seconds[clock.switched_at :]
    step_s = statistics.median(with_all[1:] or with_all)
    one_s = statistics.median(with_one) if with_one and n_threads > 1 else math.inf
    return _Alone(step_s, one_s, statistics.median(engine.streams.seconds or [0.0]),
                  clock.n_bytes, not clock.is_cuda)  # fmt: skip


def _shared(task: Task, project: Project, specs: Sequence[TrialSpec]) -> _Shared | None:
    """A group, timed and compared with a trial alone; None if it cannot be tried."""
    precision = precision_of(task)
    exact = "64-true" if precision == "32-true" else precision
    found: dict[str, Any] = {}
    for name, given in (("alone", specs[:1]), ("together", specs)):
        engine = _trained(
            dataclasses.replace(task, precision=exact), project, given, len(given), N_STEPS + 1
        )
        if engine is None:
            return None
        found[name] = engine
        if name == "together" and not engine.has_shared_steps:
            return _Shared(math.inf, engine.why_alone or "it could not be tried")
    if task.proof and (differs := _difference(found["alone"], found["together"], exact)):
        return _Shared(math.inf, differs)
    engine = _trained(task, project, specs, len(specs), N_TIMED)
    if engine is None or not engine.group_seconds:
        return None
    each = [seconds / n for n, seconds in engine.group_seconds]
    return _Shared(statistics.median(each[len(each) // 2 :]), "")


def _trained(
    task: Task, project: Project, specs: Sequence[TrialSpec], n_slots: int, n_batches: int,
    callbacks: Sequence[Callback] = (),
) -> Any:  # fmt: skip
    """Train a few minibatches; the engine, with weights of the trials; None if one failed."""
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
        return None if given.failed() else engine


def _difference(alone: Any, together: Any, precision: str) -> str:
    """How the first trial's weights and metrics differ; "": they do not."""
    near = NEAR.get(precision, NEAR["32-true"])
    for name, value in alone.last_weights.items():
        other = together.last_weights[name]
        size = max(1e-12, float(value.abs().max())) if value.numel() else 1.0
        gap = float((value.double() - other.double()).abs().max()) / size if value.numel() else 0
        if not gap <= near and torch.isfinite(value).all():
            return f"{name} differs from a trial's alone after {N_STEPS + 1} steps by {gap:.1g}"
    return ""


class _Clock(Callback):
    """Times the steps of a fit: the first half with all threads, the others with one."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.switched_at, self.n_bytes, self.is_cuda = 0, 0, False
        self._first_s = time.monotonic()
        self._hooks: Any = None

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock; in one step measure what it keeps for its backward pass instead."""
        if batch_idx == 2:
            seen: dict[int, int] = {}

            def pack(tensor: Tensor) -> Tensor:
                storage = tensor.untyped_storage()
                seen[storage.data_ptr()] = storage.nbytes()
                return tensor

            self._seen = seen
            self._hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
            self._hooks.__enter__()
        elif batch_idx == N_TIMED // 2:
            self.switched_at = len(self.seconds)
            torch.set_num_threads(1)
        self.is_cuda = pl_module.device.type == "cuda"
        self._synchronise()
        self._began_s = time.perf_counter()

    def _synchronise(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop it."""
        if self._hooks is not None:
            self._hooks.__exit__(None, None, None)
            self._hooks = None
            weights = sum(p.numel() * p.element_size() for p in pl_module.parameters())
            self.n_bytes = 6 * weights + 2 * sum(self._seen.values())
        elif batch_idx not in (0, N_TIMED // 2):
            self._synchronise()
            self.seconds.append(time.perf_counter() - self._began_s)
        if batch_idx < N_TIMED // 2:
            self.switched_at = len(self.seconds)
        trainer.should_stop |= time.monotonic() - self._first_s > LONGEST_S


def _most(task: Task, alone: _Alone) -> int:
    """Trials that fit into half of the free memory, all workers together."""
    from sweep.training.fused.trainer import MEMORY_SHARE, free_memory

    if not alone.n_bytes:
        return MOST_SLOTS
    is_cuda = task.accelerator != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if is_cuda else "cpu")
    return max(1, int(MEMORY_SHARE * free_memory(device) / alone.n_bytes))
