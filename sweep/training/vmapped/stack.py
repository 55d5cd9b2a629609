"""Weights, buffers and optimizers of many trials as one tensor each.

Each trial's module keeps its parameters: they are views into the stack, so that validation,
checkpoints and the trial's own optimizer work on them as ever.

Axes: N trials, P weights of a trial.
"""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor

from sweep.hyperparameters import OPTIMIZERS
from sweep.training.compiled.kernel import Kernel, Trial, load_kernel
from sweep.training.optimizers import MOMENTUM_DECAY, OptimizerRule, make_rule
from sweep.training.vmapped.padding import Padding, axes_of, corner, table_of
from sweep.training.vmapped.stand_in import CannotStackError

VALUE_BYTES = {torch.float32: 4, torch.float64: 8}
LEAST_EPS = 1e-30
"""Padded weights have gradients of zero, which Adam divides by the root of zero plus its eps."""
NEVER = ("maximize", "amsgrad", "differentiable", "capturable")
"""Settings of torch's optimizers that no rule has."""


class Stack:
    """The weights and buffers of N modules, padded to one shape with zeros.

    Args:
        modules: Their parameters and buffers become views of the stack.
        order: Names of the trained parameters, those of a parameter group side by side.
    """

    def __init__(self, modules: Sequence[lightning.LightningModule], order: Sequence[str]) -> None:
        named = [dict(module.named_parameters()) for module in modules]
        self.order = list(order)
        self._own = [{name: p.shape for name, p in parameters.items()} for parameters in named]
        shapes = {name: [own[name] for own in self._own] for name in named[0]}
        self.axes = {name: axes for name, of in shapes.items() if any(axes := axes_of(of))}
        """Own sizes of the axes of those that are padded."""
        whole = {name: torch.Size(map(max, zip(*of, strict=True))) for name, of in shapes.items()}
        self._shapes = [whole[name] for name in order]
        self._sizes = [shape.numel() for shape in self._shapes]
        like = named[0][self.order[0]].detach()
        self.weights = like.new_zeros(len(modules), sum(self._sizes))
        """Trained parameters (N, P)."""
        self.named = self.views(self.weights)
        self._grads = torch.zeros_like(self.weights)
        self._grad_views = self.views(self._grads)
        for k, parameters in enumerate(named):
            for name, view in self.of_trial(k, self.weights[k]).items():
                view.copy_(parameters[name].detach())
        self.others = {
            name: torch.stack([parameters[name].detach() for parameters in named])
            for name in named[0]
            if name not in self.named
        } | {
            name: torch.stack([dict(m.named_buffers())[name] for m in modules])
            for name, _ in modules[0].named_buffers()
        }
        """Frozen parameters and buffers, (N, ...) each."""
        self._tensors = [dict(itertools.chain(m.named_parameters(), m.named_buffers()))
                         for m in modules]  # fmt: skip
        for k, tensors in enumerate(self._tensors):
            for name, stacked in (self.named | self.others).items():
                own = corner(stacked[k], tensors[name].shape) if name in self.axes else stacked[k]
                tensors[name].data = own
        widths = {sizes for axes in self.axes.values() for sizes in axes if sizes is not None}
        self.tables: dict[Any, Tensor] = {sizes: table_of(sizes, like) for sizes in widths}
        """Of the padded axes, (N, 4, W) each."""

    @property
    def given(self) -> list[Tensor]:
        """What a step is given besides trained parameters: the others, and tables of padding."""
        return [*self.others.values(), *self.tables.values()]

    def split(self, tensors: Mapping[Any, Tensor]) -> tuple[dict[str, Tensor], Padding]:
        """Weights and buffers of one trial, and their padding, of all that a step is given."""
        padded = [(tensors[name], axes) for name, axes in self.axes.items()]
        padding = Padding(padded, {sizes: tensors[sizes] for sizes in self.tables})
        return {n: tensor for n, tensor in tensors.items() if n not in self.tables}, padding

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """(N, P) as (N, ...) by name."""
        parts: Any = torch.split(flat, self._sizes, 1)
        return {
            name: part.unflatten(1, shape) if shape else part.squeeze(1)
            for name, part, shape in zip(self.order, parts, self._shapes, strict=True)
        }

    def of_trial(self, k: int, row: Tensor) -> dict[str, Tensor]:
        """(P,) of trial k, without padding, by name."""
        found = {name: view[0] for name, view in self.views(row[None]).items()}
        return {
            name: corner(view, self._own[k][name]) if name in self.axes else view
            for name, view in found.items()
        }

    def flat(self, grads: Sequence[Tensor]) -> Tensor:
        """Gradients (N, ...) in the order of the trained parameters, as (N, P), until the next."""
        for name, grad in zip(self.order, grads, strict=True):
            self._grad_views[name].copy_(grad)
        return self._grads

    def offsets(self, names: Sequence[str]) -> slice:
        """Where these neighbours among the trained parameters are in P."""
        ends = list(itertools.accumulate(self._sizes, initial=0))
        at = [self.order.index(name) for name in names]
        return slice(ends[min(at)], ends[max(at) + 1])

    @property
    def is_intact(self) -> bool:
        """Whether the modules' tensors still are views of the stack."""
        return all(
            tensors[name].data_ptr() == stacked[k].data_ptr()
            for k, tensors in enumerate(self._tensors)
            for name, stacked in (self.named | self.others).items()
        )


class _KernelCalls:
    """Optimizer steps by kernel.c.

    Args:
        trials: (fields of `Trial`, learning rate, part of P, k) of each.
        n_steps: Steps with these rates.
    """

    def __init__(
        self, trials: Sequence[tuple[dict[str, Any], float, slice, int]], n_steps: int
    ) -> None:
        self._rates = np.array([[rate] * n_steps for _, rate, _, _ in trials])
        row = self._rates.strides[0]
        self._trials = (Trial * len(trials))(
            *[
                Trial(rates=self._rates.ctypes.data + i * row, **fields)
                for i, (fields, *_) in enumerate(trials)
            ]
        )
        self._parts = [(k, part.start) for _, _, part, k in trials]
        sizes = [part.stop - part.start for _, _, part, _ in trials]
        self._sizes = (ctypes.c_int64 * len(sizes))(*sizes)

    def step(self, kernel: Kernel, grads: Tensor, step: int) -> None:
        """Take a step with gradients (N, P)."""
        first, row, size = grads.data_ptr(), grads.stride(0), grads.element_size()
        pointers = [first + size * (k * row + start) for k, start in self._parts]
        kernel.update(
            self._trials, (ctypes.c_void_p * len(pointers))(*pointers), self._sizes, step
        )


class Optimizers:
    """The optimizers of N trials: one update for all of a kind.

    Optimizers without a rule (see `sweep.training.optimizers`) take their own steps, one by one.

    Args:
        stack: What they train.
        modules: Of the trials.
        optimizers: `torch.optim` objects, one a trial, over parameters that are views of `stack`.
            Those of a kind (`kind_of`) must be neighbours.
    """

    def __init__(
        self, stack: Stack, modules: Sequence[lightning.LightningModule],
        optimizers: Sequence[torch.optim.Optimizer],
    ) -> None:  # fmt: skip
        self._stack, self._optimizers = stack, list(optimizers)
        self._kernel: Kernel | None = None
        if stack.weights.device.type == "cpu" and stack.weights.dtype in VALUE_BYTES:
            self._kernel = load_kernel(VALUE_BYTES[stack.weights.dtype]).kernel
        names = {id(p): name for name, p in modules[0].named_parameters()}
        self._parameters = [dict(module.named_parameters()) for module in modules]
        self._groups = [
            [names[id(p)] for p in group["params"] if names[id(p)] in stack.named]
            for group in optimizers[0].param_groups
        ]
        self._kinds: dict[Any, list[int]] = {}
        self._own: list[int] = []
        for k in range(len(self._optimizers)):
            if len(self._counts(k)) > 1:  # some were unfrozen later
                raise CannotStackError("its weights have taken different numbers of steps")
        for k, optimizer in enumerate(optimizers):
            if (kind := kind_of(optimizer)) is None:
                self._own.append(k)
                continue
            self._kinds.setdefault(kind, []).append(k)
            if stack.axes and any(g.get("eps", 1) < LEAST_EPS for g in optimizer.param_groups):
                raise CannotStackError("its optimizer would divide by zero in the padding")
        self.n_taken = [self._steps_taken(k) for k in range(len(self._optimizers))]
        self._states = {
            kind: self._gathered(kind, numbers) for kind, numbers in self._kinds.items()
        }

    def begin(self, n_steps: int, *, is_constant: bool) -> None:
        """Prepare the next steps; `is_constant`: no schedule changes a setting within them."""
        self._n_planned = n_steps if is_constant else 1
        self._plan()

    def step(self, grads: Tensor) -> None:
        """Take a step with gradients (N, P)."""
        if self._n_stepped == self._n_planned:
            self._plan()
        for kind, numbers in self._kinds.items():
            own = slice(numbers[0], numbers[-1] + 1)
            for index, names in enumerate(self._groups):
                if (kind, index) in self._rules:
                    self._step_group(kind, index, own, self._stack.offsets(names), grads)
        if self._calls is not None and self._kernel is not None:
            self._calls.step(self._kernel, grads, self._n_stepped)
        for k in self._own:
            for name, grad in self._stack.of_trial(k, grads[k]).items():
                self._parameters[k][name].grad = grad
            self._optimizers[k].step()
        self._n_stepped += 1
        self.n_taken = [n + 1 for n in self.n_taken]

    def _plan(self) -> None:
        self._n_stepped = 0
        self._rules: dict[Any, tuple[OptimizerRule, dict[str, Tensor]]] = {}
        fields = []
        for kind, numbers in self._kinds.items():
            for index, names in enumerate(self._groups):
                if not names:
                    continue
                found = self._for_kernel(kind, index, numbers) if self._kernel else None
                if found is None:
                    self._rules[kind, index] = self._coefficients(index, numbers)
                else:
                    fields += found
        self._calls = _KernelCalls(fields, self._n_planned) if fields else None

    def _for_kernel(
        self, kind: Any, index: int, numbers: Sequence[int]
    ) -> list[tuple[dict[str, Any], float, slice, int]] | None:
        """(fields of its `Trial`, learning rate, its part of P, k) of each trial; None: kernel.c
        has not the rule."""
        found = []
        part = self._stack.offsets(self._groups[index])
        for position, k in enumerate(numbers):
            group, cls = self._optimizers[k].param_groups[index], type(self._optimizers[k])
            rule = rule_of(group, cls)
            fields = rule.kernel_fields(self.n_taken[k]) if rule is not None else None
            if fields is None or rule is None:
                return None
            states = [state[position, part].data_ptr() for state in self._states[kind]]
            pointers = (ctypes.c_void_p * 3)(*states[: rule.n_states])
            whole = {
                **fields, "states": pointers, "n_steps": self.n_taken[k], "clip_norm": math.inf,
                "params": self._stack.weights[k, part].data_ptr(),
            }  # fmt: skip
            found.append((whole, float(group["lr"]), part, k))
        return found

    def _step_group(self, kind: Any, index: int, own: slice, part: slice, grads: Tensor) -> None:
        rule, tables = self._rules[kind, index]
        states = [state[:, part].unsqueeze(1) for state in self._states[kind][: rule.n_states]]
        at = {name: table[self._n_stepped] for name, table in tables.items()}
        weights = self._stack.weights[own, part].unsqueeze(1)
        rule.step(weights, grads[own, part].unsqueeze(1), states, at)

    @property
    def is_intact(self) -> bool:
        """Whether the trials' optimizers still have their states here; takes over their counts."""
        self.n_taken = [self._steps_taken(k) for k in range(len(self._optimizers))]
        if any(len(self._counts(k)) > 1 for k in range(len(self._optimizers))):
            return False
        for kind, numbers in self._kinds.items():
            if any(kind_of(self._optimizers[k]) != kind for k in numbers):
                return False
            for index, state_name in enumerate(self._state_names(numbers[0])):
                for row, k in zip(self._states[kind][index], numbers, strict=True):
                    for name, view in self._stack.of_trial(k, row).items():
                        state = self._optimizers[k].state.get(self._parameters[k][name], {})
                        found = state.get(state_name)
                        if found is None or found.data_ptr() != view.data_ptr():
                            return False
        return all(kind_of(self._optimizers[k]) is None for k in self._own)

    def hand_back(self) -> None:
        """Put the states into the trials' own optimizers: as views, so that both go on."""
        for kind, numbers in self._kinds.items():
            for position, k in enumerate(numbers):
                self._hand_back(kind, position, k)

    def _hand_back(self, kind: Any, position: int, k: int) -> None:
        optimizer = self._optimizers[k]
        rules = [rule_of(group, type(optimizer)) for group in optimizer.param_groups]
        for names, rule in zip(self._groups, rules, strict=True):
            assert rule is not None
            for index, state_name in enumerate(rule.state_names):
                views = self._stack.of_trial(k, self._states[kind][index][position])
                for name in names:
                    state = optimizer.state[self._parameters[k][name]]
                    state[state_name] = views[name]
            scalars = rule.torch_scalars(self.n_taken[k]) if rule.state_names else {}
            for name in names:
                state = optimizer.state[self._parameters[k][name]]
                for scalar, value in scalars.items():
                    state[scalar] = torch.tensor(value, dtype=torch.float32)

    def _state_names(self, k: int) -> tuple[str, ...]:
        """Of all parameter groups: those of one are the first of another's."""
        cls = type(self._optimizers[k])
        rules = [rule_of(group, cls) for group in self._optimizers[k].param_groups]
        return max((rule.state_names for rule in rules if rule is not None), key=len)

    def _counts(self, k: int) -> set[int]:
        """Steps that the optimizer counts for its trained parameters."""
        states = [self._optimizers[k].state.get(self._parameters[k][n], {})
                  for n in self._stack.order]  # fmt: skip
        is_counting = any("step" in state for state in states)
        return {int(state.get("step", 0)) for state in states} if is_counting else {0}

    def _steps_taken(self, k: int) -> int:
        states = self._optimizers[k].state
        for name in self._stack.order:
            state = states.get(self._parameters[k][name], {})
            if "step" in state:
                return int(state["step"])
            if state.get("momentum_buffer") is not None:
                return 1  # SGD counts none: after the first all steps are alike
        return 0

    def _gathered(self, kind: Any, numbers: Sequence[int]) -> list[Tensor]:
        """Each state tensor of these trials, (n, P)."""
        names = self._state_names(numbers[0])
        weights = self._stack.weights
        found = [weights.new_zeros((len(numbers), weights.shape[1])) for _ in names]
        for tensor, state_name in zip(found, names, strict=True):
            for row, k in zip(tensor, numbers, strict=True):
                for name, view in self._stack.of_trial(k, row).items():
                    state = self._optimizers[k].state.get(self._parameters[k][name], {})
                    if state.get(state_name) is not None:
                        view.copy_(state[state_name])
        return found

    def _coefficients(
        self, index: int, numbers: Sequence[int]
    ) -> tuple[OptimizerRule, dict[str, Tensor]]:
        """The rule of a parameter group; coefficients (n_steps, n, 1, 1) of the next steps."""
        rules, columns = [], dict[str, list[Any]]()
        for k in numbers:
            group, cls = self._optimizers[k].param_groups[index], type(self._optimizers[k])
            rules.append(rule_of(group, cls))
            rates = np.full(self._n_planned, float(group["lr"]))
            rule = rules[-1]
            assert rule is not None
            for name, values in rule.coefficients(self.n_taken[k], rates).items():
                columns.setdefault(name, []).append(np.broadcast_to(values, self._n_planned))
        weights = self._stack.weights
        found = {
            name: torch.from_numpy(np.stack(column, 1)).to(weights.device, weights.dtype)
            for name, column in columns.items()
        }
        assert rules[0] is not None
        return rules[0], {name: table[:, :, None, None] for name, table in found.items()}


def layout_of(module: lightning.LightningModule, optimizer: torch.optim.Optimizer) -> Any:
    """Names of an optimizer's parameters, by parameter group."""
    names = {id(p): name for name, p in module.named_parameters()}
    groups = optimizer.param_groups
    return tuple(tuple(names.get(id(p)) for p in group["params"]) for group in groups)


def kind_of(optimizer: torch.optim.Optimizer) -> Any:
    """Optimizers of one kind take their steps together; None: this one takes its own."""
    kinds = []
    for group in optimizer.param_groups:
        if (rule := rule_of(group, type(optimizer))) is None:
            return None
        kinds.append(rule.kind)
    return type(optimizer).__name__, *kinds


def rule_of(group: Mapping[str, Any], cls: type) -> OptimizerRule | None:
    """The rule that equals an optimizer with these settings; None: there is none."""
    name = cls.__name__
    if getattr(torch.optim, name, None) is not cls or name not in OPTIMIZERS:
        return None
    if name != "AdamW" and group.get("decoupled_weight_decay"):
        return None
    if any(group.get(setting) for setting in NEVER) or isinstance(group["lr"], Tensor):
        return None
    wanted = OPTIMIZERS[name].arguments
    given = {setting: group[setting] for setting in wanted if setting in group}
    if "betas" in group:
        given["betas"] = tuple(map(float, group["betas"]))
    if group.get("momentum_decay", MOMENTUM_DECAY) != MOMENTUM_DECAY:
        return None
    return make_rule(name, given)
