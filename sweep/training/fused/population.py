"""A population: trials with the same minibatches.

On a CPU the compiled kernel, if available, trains the trials it supports (`compiled`); the others
are stacked (`stacked`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Executor, wait

import torch

from sweep.data.tensors import TensorData
from sweep.training.compiled.kernel import Kernel
from sweep.training.compiled.trials import CompiledTrials, is_for_kernel
from sweep.training.members import Job, Linears, Member, Scores
from sweep.training.stacked.trials import StackedTrials


class Population:
    """Trials with the same minibatches of `batch_size` samples.

    Args:
        data: Training and validation samples; their device is the population's.
        batch_size: B; the last minibatch of an epoch may be smaller.
        n_epochs: Epochs of a whole trial, the length of schedules.
        epoch: Population epoch to start with.
        dtype: Of weights and activations.
        kernel: Trains the trials it supports; None: all trials are stacked.
        n_lanes: Lanes to divide the trials of an epoch into.
        is_exact: Stack no trial with others: the size of a tensor changes how sums are rounded.
    """

    def __init__(
        self,
        data: TensorData,
        batch_size: int,
        n_epochs: int,
        epoch: int = 0,
        dtype: torch.dtype = torch.float32,
        kernel: Kernel | None = None,
        n_lanes: int = 1,
        *,
        is_exact: bool = False,
    ) -> None:
        self.batch_size, self.epoch, self._data = batch_size, epoch, data
        self._given, self._kernel = (data, batch_size, n_epochs, dtype, n_lanes), kernel
        self._is_exact = is_exact
        self._parts: list[CompiledTrials | StackedTrials] = []
        self._part_of: dict[int, CompiledTrials | StackedTrials] = {}
        self._joining: dict[int, Member] = {}
        self._leaving: set[int] = set()

    @property
    def is_empty(self) -> bool:
        """Whether it has no trials, joining ones included."""
        return not self._joining and not self._part_of.keys() - self._leaving

    def join(self, member: Member) -> None:
        """Add a trial when the next epoch begins."""
        self._joining[member.number] = member

    def leave(self, number: int) -> None:
        """Remove a trial when the next epoch begins, or at once if it has not joined yet."""
        if self._joining.pop(number, None) is None and number in self._part_of:
            self._leaving.add(number)

    def start_epoch(self) -> list[Job]:
        """Single-threaded jobs for the next epoch of every trial."""
        self.change(self._leaving, list(self._joining.values()))
        self._leaving, self._joining = set(), {}
        order = self._data.order(self.epoch).to(self._data.train.x.device)
        self.epoch += 1
        return [job for part in self._parts for job in part.start_epoch(order)]

    def train_epoch(self) -> dict[int, Scores]:
        """Train and validate one epoch of every trial in this thread; scores by trial number."""
        return {n: scores for job in self.start_epoch() for n, scores in job.run().items()}

    def change(self, leaving: Collection[int] = (), joining: Sequence[Member] = ()) -> None:
        """Remove trials (by number) and add others now; the rest keep their exact state."""
        if not leaving and not joining:
            return
        if not self._parts:
            compiled = [] if self._kernel is None else [CompiledTrials(self._kernel, *self._given)]
            self._parts = [*compiled, StackedTrials(*self._given)]
        for part in self._parts:
            is_kernels = isinstance(part, CompiledTrials)
            own = [m for m in joining if is_kernels == self._is_compiled(m)]
            part.change(set(leaving), own if is_kernels or not self._is_exact else [])
        if self._is_exact:
            alone = [StackedTrials(*self._given) for _ in joining]
            for part, member in zip(alone, joining, strict=True):
                part.change(set(), [] if self._is_compiled(member) else [member])
            kernels = [part for part in self._parts if isinstance(part, CompiledTrials)]
            stacks = [part for part in (*self._parts, *alone) if part not in kernels]
            self._parts = [*kernels, *(part for part in stacks if part.members)]
        self._part_of = {m.number: part for part in self._parts for m in part.members}

    def keep_best(self, number: int) -> None:
        """Keep the trial's current weights as its best."""
        self._part_of[number].keep_best(number)

    def has(self, number: int) -> bool:
        """Whether the population has the trial's weights: it has joined and is not leaving."""
        return number in self._part_of and number not in self._leaving

    def weights(self, number: int) -> Linears:
        """Views of a trial's weights; the next epoch overwrites them."""
        return self._part_of[number].weights(number)

    def best_weights(self, number: int) -> Linears:
        """Views of the weights at the last `keep_best` (zeros before)."""
        return self._part_of[number].best_weights(number)

    def states(self, number: int) -> list[Linears]:
        """Views of a trial's optimizer state."""
        return self._part_of[number].states(number)

    def _is_compiled(self, member: Member) -> bool:
        return self._kernel is not None and is_for_kernel(member, self._data, self.batch_size)


def run_jobs(
    jobs: Sequence[Job], pool: Executor, n_lanes: int, n_threads: int,
    meanwhile: Callable[[], None] = lambda: None,
) -> dict[int, Scores]:  # fmt: skip
    """Run jobs in parallel, the longest first; scores by trial number.

    Divides torch's threads among the jobs. Also changes torch's thread count in the calling
    thread; the caller must restore it.

    Args:
        jobs: Jobs of one epoch.
        pool: `n_lanes` threads.
        n_lanes: Jobs to run at a time.
        n_threads: CPU threads for all jobs together.
        meanwhile: Called once while several jobs run.

    Raises a job's error after all jobs have ended.
    """
    n_each = max(1, n_threads // max(1, min(len(jobs), n_lanes)))
    if n_lanes > 1:
        # Work between epochs is small: a second thread helping with it would spin afterwards.
        torch.set_num_threads(n_each)
    if n_lanes == 1 or len(jobs) == 1:
        return {n: scores for job in jobs for n, scores in job.run().items()}
    longest_first = sorted(jobs, key=lambda job: job.cost, reverse=True)
    running = [pool.submit(_run, job, n_each) for job in longest_first]
    meanwhile()
    wait(running)
    return {n: scores for ended in running for n, scores in ended.result().items()}


def _run(job: Job, n_threads: int) -> dict[int, Scores]:
    torch.set_num_threads(n_threads)  # of this thread
    return job.run()
