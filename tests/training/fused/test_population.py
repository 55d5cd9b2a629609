"""The fused step against a bare loop over MLPClassifier, and what neighbours may not do.

Axes: E epochs.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from sweep.data.tensors import TensorData
from sweep.hyperparameters import ACTIVATIONS, SCHEDULES
from sweep.testing import example_data
from sweep.training.compiled.kernel import load_kernel
from sweep.training.fused.population import Population
from sweep.training.members import Member
from sweep.training.mlp import MLPClassifier, SeededDropout
from sweep.training.optimizers import learning_rates, make_rule

N_TRAIN, N_VAL, N_FEATURES, BATCH, N_EPOCHS = 150, 40, 64, 32, 3
MEAN, STD = 0.4, 0.3

MIX = [
    {"hidden": (20,), "lr": 0.1},
    {"hidden": (), "optimizer": "RMSprop", "lr": 1e-3},
    {"hidden": (), "optimizer": "SGD", "lr": 1e-1, "momentum": 0.9},
    {"hidden": (32, 16), "lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3},
    {"hidden": (64, 33), "optimizer": "Adam", "lr": 1e-3, "beta1": 0.8, "activation": "elu"},
    {"hidden": (16, 48), "optimizer": "RMSprop", "lr": 1e-3, "momentum": 0.5, "dropout": 0.5},
    {"hidden": (7, 9, 11), "optimizer": "Adam", "lr": 1e-2, "activation": "gelu"},
    {"hidden": (24, 8, 24), "optimizer": "AdamW", "lr": 1e-2, "dropout": 0.2, "clip_norm": 0.5},
    {"hidden": (24, 12), "optimizer": "NAdam", "lr": 1e-3, "weight_decay": 1e-3},
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks this small run faster on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclasses.dataclass(frozen=True)
class Setting:
    """Data, and who trains: stacked tensors or the compiled kernel."""

    data: TensorData
    is_compiled: bool

    def population(self, dtype=torch.float64, batch=BATCH):
        """An empty one."""
        kernel = load_kernel(dtype.itemsize).kernel if self.is_compiled else None
        assert kernel is not None or not self.is_compiled
        return Population(self.data, batch, N_EPOCHS, dtype=dtype, kernel=kernel)


def make_data():
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 10, (N_TRAIN + N_VAL,), generator=generator)
    # Classes that can be learnt, so that losses move.
    centers = torch.rand(10, 8, 8, generator=generator)
    x = (centers[y] + 0.3 * torch.randn(len(y), 8, 8, generator=generator)).clamp(0, 1)
    train, val = (x[:N_TRAIN], y[:N_TRAIN]), (x[N_TRAIN:], y[N_TRAIN:])
    return example_data(train, val, mean=MEAN, std=STD, seed=7)


def need_kernel():
    """Skip where there cannot be one; where it is made and wrong, fail."""
    loaded = load_kernel(8)
    may_be_missing = not loaded.why_not or "no C compiler" in loaded.why_not
    if loaded.kernel is None and may_be_missing:
        pytest.skip(loaded.why_not or "the kernel is switched off")
    assert loaded.kernel is not None, loaded.why_not


@pytest.fixture(scope="module")
def stacked():
    return Setting(make_data(), False)


@pytest.fixture(scope="module", params=["stacked", "compiled"])
def setting(request):
    is_compiled = request.param == "compiled"
    if is_compiled:
        need_kernel()
    return Setting(make_data(), is_compiled)


def build(seed, hyperparameters):
    return MLPClassifier(
        N_FEATURES, 10, seed=seed, input_mean=MEAN, input_std=STD, **hyperparameters
    )


def linears(model):
    layers = [layer for layer in model.layers if isinstance(layer, nn.Linear)]
    return [(layer.weight.detach(), layer.bias.detach()) for layer in layers]


def member(number, hyperparameters):
    """The trial `number`, whose seed is its number."""
    model = build(number, hyperparameters)
    arguments = model.optimizer_arguments
    return Member(
        number,
        tuple(model.hidden),
        model.hparams["activation"],
        make_rule(model.optimizer_name, arguments),
        arguments["lr"],
        linears(model),
        model.schedule,
        model.clip_norm,
        model.hparams["dropout"],
        number,
    )


def train_plain(setting, number, hyperparameters, dtype, first_epoch=0, batch=BATCH):
    """Metrics of each epoch (E, 3) and the model, by autograd and torch.optim alone."""
    model = build(number, hyperparameters).to(dtype)
    optimizer = getattr(torch.optim, model.optimizer_name)(
        model.parameters(), **model.optimizer_arguments
    )
    n_steps = -(-N_TRAIN // batch)
    rows = []
    for epoch in range(N_EPOCHS):
        rates = learning_rates(
            model.schedule, model.optimizer_arguments["lr"], epoch, N_EPOCHS, n_steps
        )
        for layer in model.layers:
            if isinstance(layer, SeededDropout):
                layer.start_epoch(epoch, torch.device("cpu"))
        model.train()
        total = 0.0
        for lr, index in zip(
            rates, setting.data.order(first_epoch + epoch).split(batch), strict=True
        ):
            optimizer.param_groups[0]["lr"] = lr
            loss = functional.cross_entropy(
                model(setting.data.train.x[index].to(dtype)), setting.data.train.y[index]
            )
            optimizer.zero_grad()
            loss.backward()
            if model.clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), model.clip_norm)
            optimizer.step()
            total += loss.item() * len(index)
        model.eval()
        with torch.no_grad():
            logits = model(setting.data.val.x.to(dtype))
            val_loss = functional.cross_entropy(logits, setting.data.val.y).item()
            val_acc = (logits.argmax(1) == setting.data.val.y).float().mean().item()
        rows.append((total / N_TRAIN, val_loss, val_acc))
    return rows, model


def train_fused(setting, trials, dtype=torch.float64, population=None):
    """Metrics of each epoch by number, and the population."""
    if population is None:
        population = setting.population(dtype)
    population.change(joining=[member(number, given) for number, given in trials.items()])
    curves = {number: [] for number in trials}
    for _ in range(N_EPOCHS):
        for number, s in population.train_epoch().items():
            curves.setdefault(number, []).append((s.train_loss, s.val_loss, s.val_acc))
    return curves, population


def distance(curve, other):
    """Largest relative difference between two curves."""
    pairs = zip(itertools.chain(*curve), itertools.chain(*other), strict=True)
    return max(abs(a - b) / max(abs(b), 1e-12) for a, b in pairs)


def weight_distance(weights, model):
    """Largest relative difference (2-norm) of a weight or bias."""
    pairs = zip(itertools.chain(*weights), itertools.chain(*linears(model)), strict=True)
    return max(((a - b).norm() / b.norm().clamp_min(1e-12)).item() for a, b in pairs)


def assert_equals_plain(setting, trials, tolerance=1e-7, dtype=torch.float64, population=None):
    curves, population = train_fused(setting, trials, dtype, population)
    for number, hyperparameters in trials.items():
        rows, model = train_plain(setting, number, hyperparameters, dtype)
        assert distance(curves[number], rows) < tolerance, hyperparameters
        assert weight_distance(population.weights(number), model) < tolerance, hyperparameters


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("hidden", [(), (20,), (24, 12), (18, 30, 9)])
def test_optimizers_by_schedule_and_depth(setting, schedule, hidden):
    """Every optimizer under every schedule at every depth equals the plain path in float64."""
    base = {"hidden": hidden, "schedule": schedule}
    optimizers = [
        {"optimizer": "SGD", "lr": 0.05},
        {"optimizer": "SGD", "lr": 0.02, "momentum": 0.9, "dampening": 0.2, "weight_decay": 1e-2},
        {"optimizer": "SGD", "lr": 0.02, "momentum": 0.8, "nesterov": True},
        {"optimizer": "Adam", "lr": 3e-3, "weight_decay": 1e-3},
        {"optimizer": "AdamW", "lr": 3e-3, "beta2": 0.99},
        {"optimizer": "RMSprop", "lr": 1e-3},
        {"optimizer": "RMSprop", "lr": 1e-3, "momentum": 0.9, "alpha": 0.9},
        {"optimizer": "RMSprop", "lr": 1e-3, "centered": True, "weight_decay": 1e-3},
    ]
    assert_equals_plain(setting, {k: base | given for k, given in enumerate(optimizers)})


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_with_dropout_and_clipping(setting, activation):
    """Every activation, alone, with dropout and with clipping, equals the plain path."""
    base = {"hidden": (20, 14), "activation": activation, "optimizer": "Adam", "lr": 3e-3}
    given = [{}, {"dropout": 0.3}, {"clip_norm": 0.3}, {"dropout": 0.6, "clip_norm": 0.1}]
    assert_equals_plain(setting, {k: base | extra for k, extra in enumerate(given)})


def test_mixed_population_in_float32(setting):
    """In float32 a mixed population stays within 1e-3 of the plain path."""
    assert_equals_plain(setting, dict(enumerate(MIX)), tolerance=1e-3, dtype=torch.float32)


def test_mixed_population_in_float64(setting):
    """Depths, widths, activations, optimizers and dropout may differ between neighbours."""
    assert_equals_plain(setting, dict(enumerate(MIX)))


def test_trials_of_one_kind_keep_their_own_numbers(setting):
    """Side by side in one stack, each takes the steps of its own rate, decay and betas."""
    base = {"hidden": (12, 9), "optimizer": "Adam"}
    own = [
        {"lr": 1e-3},
        {"lr": 2e-2, "beta1": 0.7},
        {"lr": 5e-3, "weight_decay": 0.1, "eps": 1e-3},
    ]
    assert_equals_plain(setting, {k: base | given for k, given in enumerate(own)})


def test_a_trial_that_comes_back_at_once_begins_anew(setting):
    """It leaves and joins under its number at one boundary: what it brings along counts."""
    population = setting.population()
    first = {"hidden": (12,), "optimizer": "Adam"}
    population.change(joining=[member(0, first), member(1, first)])
    population.train_epoch()
    population.change([0], [member(0, first)])
    for (weight, bias), (w, b) in zip(
        population.weights(0), member(0, first).weights, strict=True
    ):
        assert torch.equal(weight, w)
        assert torch.equal(bias, b)
    assert not any(torch.count_nonzero(w) for state in population.states(0) for w, _ in state)


@pytest.mark.parametrize(
    ("field", "value"),
    [("lr", 1.001e-2), ("weight_decay", 2e-3), ("beta1", 0.91), ("eps", 2e-8), ("dropout", 0.31)],
)
def test_a_swapped_scalar_is_seen(setting, field, value):
    """The comparison is sharp: one scalar a little off breaks the 1e-7 bound."""
    right = {"hidden": (16, 8), "optimizer": "Adam", "lr": 1e-2, "beta1": 0.9, "eps": 1e-8}
    right |= {"weight_decay": 1e-3, "dropout": 0.3}
    curves, _ = train_fused(setting, {0: right | {field: value}})
    rows, _ = train_plain(setting, 0, right, torch.float64)
    assert distance(curves[0], rows) > 1e-7


def test_padding_stays_zero(stacked):
    """After training, every value that belongs to no trial is exactly zero."""
    population = stacked.population()
    train_fused(stacked, dict(enumerate(MIX)), population=population)
    for number in range(len(MIX)):
        for weight, bias in population.weights(number):
            weight.zero_()
            bias.zero_()
    # Padded units would be counted by a wider trial that takes the place of a narrower one.
    widest = {"hidden": (64, 48), "lr": 0.1}
    alone, _ = train_fused(stacked, {99: widest})
    population.epoch = 0
    population.change(range(len(MIX)))
    both, _ = train_fused(stacked, {99: widest}, population=population)
    assert both[99] == alone[99]


def test_neighbours_do_not_matter(setting):
    """A trial alone and the same trial among others, one diverging, give the same curve."""
    trials = {k: MIX[k] for k in (4, 6, 7)}
    poison = {20: {"hidden": (40, 40), "lr": 1e30}, 21: {"hidden": (), "lr": float("inf")}}
    together, _ = train_fused(setting, trials | poison)
    assert any(value != value for value in together[20][-1])
    for number, hyperparameters in trials.items():
        alone, _ = train_fused(setting, {number: hyperparameters})
        assert distance(together[number], alone[number]) < 1e-10


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_what_is_not_a_number_is_seen(setting, activation, layer):
    """No activation hides a NaN weight from the losses."""
    given = {"hidden": (8, 6), "activation": activation}
    broken = member(0, given)
    weight, bias = broken.weights[layer]
    broken.weights[layer] = weight.clone().index_fill_(0, torch.tensor([1]), float("nan")), bias
    population = setting.population()
    population.change(joining=[broken, member(1, given)])
    scores = population.train_epoch()
    assert math.isnan(scores[0].train_loss)
    assert math.isnan(scores[0].val_loss)
    assert math.isfinite(scores[1].train_loss + scores[1].val_loss)


def test_leaving_and_joining_change_nothing(setting):
    """Trials that stay keep their curve when others leave and slots are filled again."""
    population = setting.population()
    population.change(joining=[member(k, given) for k, given in enumerate(MIX)])
    curves = {k: [] for k in range(12)}
    newcomers = {10: {"hidden": (90, 40), "optimizer": "Adam"}, 11: {"hidden": (5,), "lr": 0.1}}

    def epoch():
        for number, s in population.train_epoch().items():
            curves[number].append((s.train_loss, s.val_loss, s.val_acc))

    epoch()
    population.change([0, 4, 6], [member(k, given) for k, given in newcomers.items()])
    epoch()
    population.change([2])
    epoch()
    population.change([1, 3, 5, 7])
    epoch()
    for number in (1, 3, 5, 7):
        rows, _ = train_plain(setting, number, MIX[number], torch.float64)
        assert distance(curves[number], rows) < 1e-7
    for number, hyperparameters in newcomers.items():
        rows, model = train_plain(setting, number, hyperparameters, torch.float64, first_epoch=1)
        assert distance(curves[number], rows) < 1e-7
        assert weight_distance(population.weights(number), model) < 1e-7


def test_best_weights_are_those_of_the_kept_epoch(setting):
    """keep_best keeps one epoch's weights through later epochs and a new layout."""
    population = setting.population(torch.float32)
    population.change(joining=[member(k, given) for k, given in enumerate(MIX)])
    population.train_epoch()
    population.keep_best(4)
    kept = [(w.clone(), b.clone()) for w, b in population.weights(4)]
    population.change([5, 1, 3], [member(30, {"hidden": (100, 77), "optimizer": "Adam"})])
    population.train_epoch()
    for (weight, bias), (w, b), (now, _) in zip(
        population.best_weights(4), kept, population.weights(4), strict=True
    ):
        assert torch.equal(weight, w)
        assert torch.equal(bias, b)
        assert not torch.equal(weight, now)
