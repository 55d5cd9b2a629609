"""Trials of any module that take their training steps together.

Each trial has a Lightning Trainer of its own, which does all that a fit has besides the training
steps of an epoch: setup, validation, checkpoints, callbacks, schedules by epoch, the end. The
group trains each epoch's minibatches but the last, for all its trials in one call; then the
Trainer finds itself before the last minibatch, with its counters and means where they would be,
and trains that one itself.

Axes: N trials, P weights of a trial, B samples of a minibatch.
"""

from __future__ import annotations

import contextlib
import copy
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch.utilities.data import extract_batch_size
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from sweep.training.failures import classify
from sweep.training.likeness import UnlikeError, copied, equal, shapes_of, tensors_of
from sweep.training.optimizers import clip_scales
from sweep.training.vmapped.compiling import Program
from sweep.training.vmapped.noise import CannotDrawError, Draw, drawn, listed, replaced
from sweep.training.vmapped.proof import see_that_padding_is_nothing
from sweep.training.vmapped.stack import Optimizers, Stack, kind_of
from sweep.training.vmapped.stand_in import CannotStackError, Logged, StandIn, Unlike, state_of
from sweep.training.vmapped.tidy import has_sizes_of_values, tidy
from sweep.training.vmapped.trainee import Means, Trainee, skip

LONG_EPOCH_S, PULSE_S = 10.0, 1.0
"""An epoch that has taken so long is interrupted this often for the driver's orders."""


class Group:
    """Takes training steps of N trials, whose widths may differ (see `padding`).

    Args:
        members: At their epoch's beginning, with modules of one shape or of near ones.
        n_steps: Steps of the epoch that it is to take.
        n_taken: How many of them were taken already.
        say: Told what compiling its steps brought.

    Raises CannotStackError: each trial must train for itself.
    """

    def __init__(
        self, members: Sequence[Trainee], n_steps: int, n_taken: int, say: Callable[[str], None]
    ) -> None:
        self._n_steps, self._say = n_steps - n_taken, say
        self._is_traced = False
        self._plans: dict[Any, _Plan] = {}
        """By the shapes of minibatches."""
        self.members = sorted(members, key=lambda m: str(kind_of(m.trainer.optimizers[0])))
        self._modules = [member.module for member in self.members]
        self._optimizers = [member.trainer.optimizers[0] for member in self.members]
        lead = self._modules[0]
        names = {id(p): name for name, p in lead.named_parameters()}
        order = [
            names[id(p)]
            for group in self._optimizers[0].param_groups
            for p in group["params"]
            if p.requires_grad
        ]
        self._order = order
        self._states: list[Any] = []
        self._restack()
        self._begin_anew()

    def begin(self, n_steps: int) -> None:
        """Begin an epoch. Raises CannotStackError."""
        self._n_steps = n_steps
        self._begin_anew()

    def _see_alike(self) -> None:
        try:
            states = [state_of(module) for module in self._modules]
        except UnlikeError as error:
            raise CannotStackError(str(error)) from error
        modes = [part.training for part in self._modules[0].modules()]
        if [*states, modes] != self._states:
            self._states, self._plans = [*states, modes], {}
            self._stand_in = StandIn(self._modules, states)
        self._stand_in.follow(self._modules[0])

    def _restack(self) -> None:
        self._stack = Stack(self._modules, self._order)
        self._updates = Optimizers(self._stack, self._modules, self._optimizers)

    def _begin_anew(self) -> None:
        self._see_alike()
        if not self._stack.is_intact or not self._updates.is_intact:
            self._restack()
        by_step = [c for m in self.members for c in m.trainer.lr_scheduler_configs
                   if c.interval == "step"]  # fmt: skip
        self._updates.begin(self._n_steps, is_constant=not by_step)
        self._has_schedules = bool(by_step)
        self._means, self._n_given, self._n_stepped = Means(), 0, 0
        self.errors: dict[int, Exception] = {}
        """What a member's own metric raised, by its position."""
        self._began_s = self._paused_s = time.monotonic()
        self._set_generators()
        trainers = [member.trainer for member in self.members]
        norms = [
            torch.inf if not _is_clipped(t) or t.gradient_clip_algorithm == "value"
            else float(t.gradient_clip_val)
            for t in trainers
        ]  # fmt: skip
        clips = [
            float(t.gradient_clip_val)
            if _is_clipped(t) and t.gradient_clip_algorithm == "value"
            else torch.inf
            for t in trainers
        ]  # fmt: skip
        column = partial(torch.tensor, dtype=self._stack.weights.dtype,
                         device=self._stack.weights.device)  # fmt: skip
        self._norms = column(norms)[:, None, None] if min(norms) < torch.inf else None
        self._clips = column(clips)[:, None] if min(clips) < torch.inf else None
        if self._clips is not None and self._stack.axes:
            # Infinite gradients go on as finite ones, but zero times infinity is no number.
            raise CannotStackError("gradients of padded weights are clipped by value")
        self._numbers = [column(values) for values in self._stand_in.numbers]
        for plan in self._plans.values():
            self._tell_what_is_left(plan)

    def _tell_what_is_left(self, plan: _Plan) -> None:
        if plan.program is not None:
            n_epochs = min((m.trainer.max_epochs or 0) - m.trainer.current_epoch
                           for m in self.members)  # fmt: skip
            plan.program.n_left = n_epochs * self._n_steps

    def step(self, batch: Any, batch_idx: int) -> None:
        """Train one minibatch. Raises CannotStackError, before anything is changed."""
        trainer = self.members[0].trainer
        batch = move_data_to_device(batch, trainer.strategy.root_device)
        batch = trainer.precision_plugin.convert_input(batch)
        with trainer.precision_plugin.train_step_context():
            plan = self._plan_for(batch, batch_idx)
            before = [generator.get_state() for generator in self._generators]
            noises = drawn(plan.draws, self._generators)
            try:
                found = self._losses_and_flat(plan, batch, batch_idx, noises)
            except CannotStackError:
                for generator, state in zip(self._generators, before, strict=True):
                    generator.set_state(state)
                raise
        losses, flat, logged, calls = found
        with torch.no_grad():
            if self._norms is not None:
                flat.mul_(clip_scales([flat.unsqueeze(1)], self._norms).squeeze(1))
            if self._clips is not None:
                flat.clamp_(-self._clips, self._clips)
            self._updates.step(flat)
            self._n_stepped += 1
            record = self._stand_in.logged if plan.program is None else plan.logged
            self._note(record, batch, batch_idx, losses, logged, calls)
        if self._has_schedules:
            with _quiet():
                self._step_schedules(batch_idx)

    def _losses_and_flat(
        self, plan: _Plan, batch: Any, batch_idx: int, noises: list[Tensor]
    ) -> tuple[Tensor, Tensor, dict[str, Tensor], list[tuple[Tensor, ...]]]:
        """Losses (N,), gradients (N, P), what was logged, and calls of metrics."""
        stack = self._stack
        trained = list(stack.named.values())
        given = (
            self._unstacked(trained), self._unstacked(stack.given),
            self._unstacked(self._numbers), self._unstacked(noises),
        )  # fmt: skip
        buffers = [stack.others[name] for name, _ in self._modules[0].named_buffers()]
        before = [value.clone() for value in buffers]
        try:
            with torch.no_grad():
                if plan.program is None:
                    found = self._call(*given, batch, batch_idx)
                else:
                    found = plan.program(*given, tensors_of(batch))
                losses, grads, logged, calls = found
                return losses, stack.flat(grads), logged, calls
        except BaseException as error:
            for value, old in zip(buffers, before, strict=True):
                value.copy_(old)
            if not isinstance(error, Exception) or classify(error).kind == "oom":
                raise
            # One trial's values may have raised it: alone, only that one fails.
            raise CannotStackError(first_line(error)) from error

    def _call(
        self, trained: Sequence[Tensor], others: Sequence[Tensor], numbers: Sequence[Tensor],
        noises: Sequence[Tensor], batch: Any, batch_idx: Any,
    ) -> tuple[Tensor, list[Tensor], dict[str, Tensor], list[tuple[Tensor, ...]]]:  # fmt: skip
        """Forward and backward pass of all trials, given `_unstacked` tensors.

        Raises CannotStackError.
        """
        stand_in, stack = self._stand_in, self._stack
        trained = [value.detach().requires_grad_() for value in trained]
        names = [*stack.named, *stack.others, *stack.tables]
        named = dict(zip(names, [*trained, *others], strict=True))

        def one(
            tensors: Mapping[Any, Tensor], numbers: Sequence[Tensor], noises: Sequence[Tensor]
        ) -> Any:
            weights, padding = stack.split(tensors)
            values_of = self._values_of(numbers)
            with replaced(noises, values_of, padding, is_traced=self._is_traced):
                loss = stand_in.step(weights, numbers, batch, batch_idx)
            logged = stand_in.logged
            return loss, dict(logged.values), [arguments for _, arguments in logged.calls]

        try:
            with torch.enable_grad():
                call = one if self._is_alone else torch.func.vmap(one, randomness="error")
                losses, logged, calls = call(named, list(numbers), list(noises))
                grads = torch.autograd.grad(losses.sum(), trained, allow_unused=True)
        except CannotStackError:
            raise
        except Exception as error:
            if classify(error).kind == "oom":
                raise
            raise CannotStackError(first_line(error)) from error
        for name, grad in zip(stack.named, grads, strict=True):
            if grad is None:
                raise CannotStackError(f"{name} has no part in the loss")
        if self._is_alone:
            logged, calls = apply_to_collection((logged, calls), Tensor, lambda value: value[None])
        return losses.detach().reshape(-1), list(grads), logged, calls

    @property
    def _is_alone(self) -> bool:
        return len(self.members) == 1

    def _unstacked(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """What a step is given: (N, ...) each, or one trial's own, which then has the operations
        that the trial alone has."""
        return [tensor[0] for tensor in tensors] if self._is_alone else list(tensors)

    def _graph_of(self, draws: Sequence[Draw], batch: Any) -> Any:
        """The step as torch's own operations alone, which take a third less time than Python's way
        to them; None if it depends on more than tensors."""
        stack = self._stack
        if tensors_of(batch) is None:
            return None
        index = Unlike((("attribute", "batch_idx"),))

        def step(
            trained: list[Tensor], others: list[Tensor], numbers: list[Tensor],
            noises: list[Tensor], tensors: list[Tensor],
        ) -> Any:  # fmt: skip
            given = iter(tensors)
            made = apply_to_collection(batch, Tensor, lambda _: next(given))
            return self._call(trained, others, numbers, noises, made, index)

        copies = [value.clone() for value in stack.given]
        noises = drawn(draws, [torch.Generator(weight.device) for weight in stack.weights])
        parts = stack.named.values(), copies, self._numbers, noises
        given = *[self._unstacked(list(part)) for part in parts], tensors_of(batch)
        for mode in ("fake", "real"):  # fake tensors are faster, but know no constants
            try:
                self._is_traced = True
                traced = make_fx(step, tracing_mode=mode)(*given)
                if has_sizes_of_values(traced):
                    return None
                return tidy(traced) if mode == "fake" else traced
            except CannotStackError:
                continue
            except Exception as error:
                if classify(error).kind == "oom":
                    raise
            finally:
                self._is_traced = False
        return None

    def _values_of(self, numbers: Sequence[Any]) -> Callable[[Any], Any]:
        known = list(zip(numbers, self._stand_in.numbers, strict=True))

        def values_of(argument: Any) -> Any:
            for number, values in known:
                if argument is number:
                    return values
            return None

        return values_of

    def _plan_for(self, batch: Any, batch_idx: int) -> _Plan:
        """How to take a step with such a minibatch. Raises CannotStackError."""
        key = shapes_of(batch)
        if key not in self._plans:
            given = copied(batch)
            draws = self._listed(given, batch_idx)
            if self._stack.axes:
                see_that_padding_is_nothing(
                    self._modules, self._stack, self._numbers, draws, self._call, given
                )
            graph = self._graph_of(draws, given)
            if not equal(given, batch):  # other trials are to have it as it was
                raise CannotStackError("its step changes its minibatch")
            program = None if graph is None else Program(graph, self._say)
            self._plans[key] = _Plan(draws, program, copy.copy(self._stand_in.logged))
            self._tell_what_is_left(self._plans[key])
        return self._plans[key]

    def _listed(self, batch: Any, batch_idx: int) -> list[Draw]:
        """The random calls of a step: listed in a step of one trial."""
        stand_in, stack = self._stand_in, self._stack
        whole = stack.named | stack.others | stack.tables
        first = {name: stacked[0].detach().clone() for name, stacked in whole.items()}
        numbers = [_Number(values[0]) for values in stand_in.numbers]
        before = _generator_states()
        draws: list[Draw] = []

        def step() -> None:
            tensors, padding = stack.split(first)
            with torch.no_grad(), listed(self._values_of(numbers), padding) as found:
                stand_in.step(tensors, numbers, batch, batch_idx)
            draws[:] = found

        try:
            stand_in.see_that_it_keeps_nothing(step)
        except CannotDrawError as error:
            raise CannotStackError(str(error)) from error
        except CannotStackError:
            raise
        except Exception as error:
            raise CannotStackError(first_line(error)) from error
        if not equal(before, _generator_states()):
            torch.set_rng_state(before[0])
            if len(before) > 1:
                torch.cuda.set_rng_state_all(before[1:])
            raise CannotStackError("its step draws random numbers in a way of its own")
        return draws

    def _note(
        self, record: Logged, batch: Any, batch_idx: int, losses: Tensor,
        logged: Mapping[str, Tensor], calls: Sequence[tuple[Tensor, ...]],
    ) -> None:  # fmt: skip
        """Keep what the step logged, for the trials' own Trainers."""
        size = None
        for name, how in record.how.items():
            if name in record.metrics:
                continue
            if how.get("on_epoch"):
                if size is None:
                    size = extract_batch_size(batch)
                value = logged.get(name)
                if value is None:
                    value = torch.full_like(losses, record.constants[name])
                self._means.add(name, value, how, int(how.get("batch_size") or size))
        for (name, _), arguments in zip(record.calls, calls, strict=True):
            for k, member in enumerate(self.members):
                metric: Any = member.module.get_submodule(name)
                try:
                    metric.update(*[argument[k] for argument in arguments])
                except Exception as error:  # noqa: BLE001 - this trial's alone
                    self.errors.setdefault(k, error)
        self._log_by_step(record, batch_idx, logged)

    def _log_by_step(self, record: Logged, batch_idx: int, logged: Mapping[str, Tensor]) -> None:
        rows: dict[str, list[float]] | None = None
        for k, member in enumerate(self.members):
            n_before = member.trainer.global_step + self._n_stepped - 1 - self._n_given
            if (n_before + 1) % max(1, member.trainer.log_every_n_steps):
                continue
            if rows is None:
                rows = {name: value.tolist() for name, value in logged.items()}
            found = {
                name + ("_step" if how.get("on_epoch") else ""): (
                    rows[name][k] if name in rows else record.constants[name]
                )
                for name, how in record.how.items()
                if how.get("on_step", True) is not False and how.get("logger", True) is not False
                and name not in record.metrics
            }  # fmt: skip
            if found:
                member.log_by_step(found, n_before)

    def _step_schedules(self, batch_idx: int) -> None:
        for member in self.members:
            for config in member.trainer.lr_scheduler_configs:
                if config.interval == "step" and (batch_idx + 1) % config.frequency == 0:
                    config.scheduler.step()

    def _set_generators(self) -> None:
        """A generator for each trial: its own on the CPU, one seeded by it on another device."""
        self._on_cpu = []
        for member in self.members:
            generator = torch.Generator()
            generator.set_state(member.generator)
            self._on_cpu.append(generator)
        self._generators = self._on_cpu
        device = self._stack.weights.device
        if device.type != "cpu":
            self._generators = []
            for generator in self._on_cpu:
                seed = int(torch.randint(2**62, (), generator=generator))
                self._generators.append(torch.Generator(device).manual_seed(seed))

    @property
    def has_stepped(self) -> bool:
        """Whether any step of this epoch was taken."""
        return self._n_stepped > 0

    @property
    def is_pulse_due(self) -> bool:
        """Whether a long epoch should be interrupted for the driver's orders."""
        now_s = time.monotonic()
        return now_s - self._began_s >= LONG_EPOCH_S and now_s - self._paused_s >= PULSE_S

    def hand_over(self, *, is_pause: bool = False) -> None:
        """Put the trials' Trainers where they would be after the steps of this epoch so far.

        `is_pause`: only to look around; what was logged is kept for the end.
        """
        n_new, self._n_given = self._n_stepped - self._n_given, self._n_stepped
        if n_new:
            self._updates.hand_back()
        for k, member in enumerate(self.members):
            if n_new:
                member.generator = self._on_cpu[k].get_state()
                skip(member.trainer, n_new)
                member.n_ahead += n_new
            if not is_pause:
                self._means.give(k, member)
        self._paused_s = time.monotonic()

    def go_on_from(self, other: Group) -> None:
        """Take over what some of another group's trials have logged in this epoch."""
        positions = [other.members.index(member) for member in self.members]
        self.errors = {k: other.errors[p] for k, p in enumerate(positions) if p in other.errors}
        self._means = other._means.of(positions)
        self._on_cpu = [other._on_cpu[position] for position in positions]
        self._generators = [other._generators[position] for position in positions]
        self._began_s = other._began_s


@dataclass(frozen=True)
class _Plan:
    """How to take a step with minibatches of certain shapes."""

    draws: list[Draw]
    program: Program | None
    """The step as torch's operations alone, if it is so."""
    logged: Logged
    """What the step logs."""


class _Number(float):
    """A trial's number, to be told from others of the same value."""


def _is_clipped(trainer: Any) -> bool:
    return trainer.gradient_clip_val is not None and trainer.gradient_clip_val > 0


def _generator_states() -> list[Tensor]:
    """Of torch's global generators, the CPU's first."""
    others = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return [torch.get_rng_state(), *others]


def first_line(error: BaseException) -> str:
    """What an error says, in short."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:120]


@contextlib.contextmanager
def _quiet() -> Any:
    """Without torch's warning that a schedule's step comes before an optimizer's."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*lr_scheduler\.step\(\).*")
        yield
