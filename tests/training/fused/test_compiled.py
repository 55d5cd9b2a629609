"""The compiled kernel where it differs from small cases of `test_population`: sizes, types, order.

Its results are compared with a bare loop by autograd and torch.optim.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from test_population import (
    BATCH,
    MEAN,
    MIX,
    N_EPOCHS,
    STD,
    Setting,
    distance,
    linears,
    make_data,
    member,
    need_kernel,
    train_fused,
    train_plain,
    weight_distance,
)

from sweep.data.tensors import Split
from sweep.testing import example_data
from sweep.training.compiled.kernel import load_kernel
from sweep.training.compiled.trials import CompiledTrials, is_for_kernel
from sweep.training.mlp import MLPClassifier
from sweep.training.optimizers import SGD

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module", autouse=True)
def setting():
    need_kernel()
    return Setting(make_data(), True)


class Counting:
    """A kernel that says how often it was called."""

    def __init__(self, kernel):
        self._kernel, self.n = kernel, 0
        self.evaluate = kernel.evaluate

    def train(self, *given):
        self.n += 1
        self._kernel.train(*given)


def assert_equals_plain(setting, trials, batch, tolerance=1e-7, dtype=torch.float64):
    population = setting.population(dtype, batch=batch)
    curves, population = train_fused(setting, trials, dtype, population)
    for number, given in trials.items():
        rows, model = train_plain(setting, number, given, dtype, batch=batch)
        assert distance(curves[number], rows) < tolerance, given
        assert weight_distance(population.weights(number), model) < tolerance, given


@pytest.mark.parametrize("batch", [1, 7, 64, 100, 149, 150])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_any_minibatch(setting, batch, dtype):
    """Of less than a vector, of several panels, with a last one of a single sample."""
    tolerance = 1e-7 if dtype == torch.float64 else 1e-3
    assert_equals_plain(setting, {k: MIX[k] for k in (1, 3, 5, 7)}, batch, tolerance, dtype)


def test_an_optimizer_without_a_formula_goes_to_the_next_engine(setting):
    """Whether its rule or its record has none: it is trained as tensors, beside the others."""

    class OfTorchAlone(SGD):
        def kernel_fields(self, n_steps):
            return None

    class WithoutNumber(SGD):
        def kernel_fields(self, n_steps):
            return {**super().kernel_fields(n_steps), "rule": None}

    for kind in (OfTorchAlone, WithoutNumber):
        given = {"hidden": (12, 6), "lr": 0.05}
        odd, other = member(0, given), member(1, given)
        odd.rule = kind()
        population = setting.population()
        population.change(joining=[odd, other])
        curves = {0: [], 1: []}
        for _ in range(2):
            for number, scores in population.train_epoch().items():
                curves[number].append((scores.train_loss, scores.val_loss, scores.val_acc))
        rows, _ = train_plain(setting, 0, given, torch.float64)
        assert distance(curves[0], rows[:2]) < 1e-7


@pytest.mark.parametrize("width", [1, 5, 6, 7, 15, 16, 17, 64, 65])
def test_any_width(setting, width):
    """Every remainder of rows and of vectors, in every product."""
    trials = {
        0: {"hidden": (width, width + 1), "optimizer": "Adam", "lr": 1e-3},
        1: {"hidden": (width,), "lr": 0.05, "momentum": 0.9, "clip_norm": 0.2},
    }
    assert_equals_plain(setting, trials, BATCH)


@pytest.mark.parametrize("clip_norm", [None, 0.1])
def test_more_features_than_a_chunk(clip_norm):
    """Wide data are multiplied in parts, and a row's gradient is used up in parts."""
    small = make_data()
    generator = torch.Generator().manual_seed(1)
    mix = torch.rand(64, 2500, generator=generator) / 8
    train, val = ((split.x.flatten(1) @ mix, split.y) for split in (small.train, small.val))
    data = example_data(train, val, mean=MEAN, std=STD, seed=7)
    setting = Setting(data, True)
    population = setting.population()
    model = MLPClassifier(
        2500, 10, seed=0, input_mean=MEAN, input_std=STD, hidden=(9,), optimizer="Adam", lr=1e-3
    )
    joining = member(0, {"hidden": (9,), "optimizer": "Adam", "lr": 1e-3})
    joining.clip_norm = clip_norm
    joining.weights = linears(model)
    population.change(joining=[joining])
    stacked = Setting(data, False).population()
    again = member(0, {"hidden": (9,), "optimizer": "Adam", "lr": 1e-3})
    again.clip_norm, again.weights = clip_norm, linears(model)
    stacked.change(joining=[again])
    for _ in range(2):
        ours, theirs = population.train_epoch()[0], stacked.train_epoch()[0]
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-9)
        assert ours.val_loss == pytest.approx(theirs.val_loss, rel=1e-9)
    for (w, _), (right, _) in zip(population.weights(0), stacked.weights(0), strict=True):
        torch.testing.assert_close(w, right, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float64, torch.int32])
def test_types_of_inputs(dtype):
    """Pixels are read as they are stored; what the kernel does not read is converted once."""
    small = make_data()
    x, x_val = ((255 * split.x).to(dtype) for split in (small.train, small.val))
    mean, std = 255 * MEAN, 255 * STD
    data = example_data((x, small.train.y), (x_val, small.val.y), mean=mean, std=std)
    curves = []
    for is_compiled in (True, False):
        curve, _ = train_fused(Setting(data, is_compiled), {0: MIX[3]})
        curves.append(curve[0])
    assert distance(*curves) < 1e-7


def test_neighbours_do_not_matter_to_the_last_bit(setting):
    """In float32, alone and among others: not near, equal."""
    trials = dict(enumerate(MIX))
    together, population = train_fused(setting, trials, torch.float32)
    for number, given in trials.items():
        alone, own = train_fused(setting, {number: given}, torch.float32)
        assert together[number] == alone[number]
        for pair, other in zip(population.weights(number), own.weights(number), strict=True):
            assert all(map(torch.equal, pair, other))


def test_an_epoch_in_several_calls(setting):
    """Learning rates, steps taken and dropout's stream go on from one call to the next."""
    given = {"hidden": (40, 30), "optimizer": "Adam", "lr": 1e-2, "schedule": "one_cycle"}
    trials = {0: given, 1: given | {"dropout": 0.4}}
    kernel = Counting(load_kernel(8).kernel)
    several = CompiledTrials(kernel, setting.data, BATCH, N_EPOCHS, torch.float64)
    several.work_a_call = 2.5 * 6 * BATCH * 2 * (64 * 40 + 40 * 30 + 30 * 10)
    several.change(set(), [member(number, own) for number, own in trials.items()])
    curves = {number: [] for number in trials}
    for epoch in range(N_EPOCHS):
        (job,) = several.start_epoch(setting.data.order(epoch))
        for number, s in job.run().items():
            curves[number].append((s.train_loss, s.val_loss, s.val_acc))
    assert kernel.n == 3 * N_EPOCHS  # of 5 minibatches, 2 a call
    for number, own in trials.items():
        rows, model = train_plain(setting, number, own, torch.float64)
        assert distance(curves[number], rows) < 1e-7
        assert weight_distance(several.weights(number), model) < 1e-7


def test_an_integer_learning_rate(setting):
    """A space may offer lr: {choices: [0.1, 1]}."""
    assert_equals_plain(setting, {0: {"hidden": (8,), "lr": 1}}, BATCH)


@pytest.mark.parametrize("clip_norm", [0, 1e-3, 1e9])
def test_any_norm_to_clip_to(setting, clip_norm):
    """Clipping to 0 stops a trial, as in torch; it does not switch clipping off."""
    assert_equals_plain(setting, {0: {"hidden": (8,), "lr": 0.1, "clip_norm": clip_norm}}, BATCH)


def test_what_is_large_is_left_to_torch(setting):
    """Its threads and products of many rows are as fast there."""
    members = [member(k, {"hidden": hidden}) for k, hidden in enumerate(((3500, 3500), (20, 20)))]
    assert [is_for_kernel(each, setting.data, BATCH) for each in members] == [False, True]
    population = setting.population(torch.float32)
    population.change(joining=members)
    assert len(population.start_epoch()) == 2  # the kernel's, and torch's


def test_a_class_that_does_not_exist():
    """It is an index in the kernel, and must not be one past the end."""
    small = make_data()
    for wrong in (10, -1):
        y = small.train.y.clone()
        y[7] = wrong
        data = dataclasses.replace(small, train=Split(small.train.x, y))
        population = Setting(data, True).population()
        with pytest.raises(IndexError, match=f"classes must be 0 to 9, but y holds {wrong}"):
            population.change(joining=[member(0, MIX[0])])


def test_too_deep_for_the_kernel(setting):
    """A network of more layers than it has room for is stacked, beside others that are not."""
    deep = {"hidden": (6,) * 9, "optimizer": "Adam", "lr": 1e-2}
    members = [member(k, given) for k, given in enumerate((deep, MIX[0]))]
    assert [is_for_kernel(each, setting.data, BATCH) for each in members] == [False, True]
    curves, _ = train_fused(setting, {0: deep, 1: MIX[0]})
    for number, given in ((0, deep), (1, MIX[0])):
        rows, _ = train_plain(setting, number, given, torch.float64)
        assert distance(curves[number], rows) < 1e-7


def clones(linears):
    return [(weight.clone(), bias.clone()) for weight, bias in linears]


def test_a_state_goes_on_elsewhere(setting):
    """What a trial takes along to another population is all that it needs."""
    trials = {k: MIX[k] for k in (3, 4, 5, 7)}
    whole, _ = train_fused(setting, trials)
    first, second = setting.population(), setting.population()
    members = [member(number, given) for number, given in trials.items()]
    first.change(joining=members)
    first.train_epoch()
    for each in members:
        each.weights = clones(first.weights(each.number))
        each.states = [clones(linears) for linears in first.states(each.number)]
    first.change(leaving=trials)
    assert first.is_empty
    second.change(joining=members)
    second.epoch = 1
    for epoch in (1, 2):
        for number, score in second.train_epoch().items():
            got = score.train_loss, score.val_loss, score.val_acc
            assert got == whole[number][epoch]


NARROWER = {
    "-mno-avx512f": {"float64": 1e-7, "float32": 1e-3},
    "-mno-avx -mno-avx2 -mno-avx512f -mno-fma": {"float64": 1e-7},
    "-DPLAIN": {"float32": 1e-3},
}
"""Flags -> how near each type comes to the plain path."""


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Flags -> how training with them ended: forks of one process, which has loaded all and has
    the curves of the plain path."""
    if os.uname().machine != "x86_64":
        pytest.skip("these are flags of x86-64")
    code = f"""
        import os, sys, traceback
        sys.path.insert(0, {str(HERE)!r})
        import torch
        import test_population as t
        from sweep.training.compiled.kernel import load_kernel
        torch.set_num_threads(1)
        setting = t.Setting(t.make_data(), True)
        right = {{
            name: [t.train_plain(setting, number, given, getattr(torch, name), batch=50)[0]
                   for number, given in enumerate(t.MIX)]
            for name in ("float64", "float32")
        }}

        def compare(flags, nearness):
            os.environ["CC"] = "cc " + flags
            os.environ["XDG_CACHE_HOME"] = os.path.abspath(flags.replace(" ", ""))
            for name, near in nearness.items():
                dtype = getattr(torch, name)
                loaded = load_kernel(dtype.itemsize)
                assert loaded.kernel, loaded.why_not
                population = setting.population(dtype, batch=50)
                curves, _ = t.train_fused(setting, dict(enumerate(t.MIX)), None, population)
                for number, given in enumerate(t.MIX):
                    assert t.distance(curves[number], right[name][number]) < near, (dtype, given)

        for flags, nearness in {NARROWER!r}.items():
            if not (child := os.fork()):
                try:
                    compare(flags, nearness)
                    os._exit(0)
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
            print(os.waitpid(child, 0)[1])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True, text=True, cwd=tmp_path_factory.mktemp("narrower"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(zip(NARROWER, done.stdout.split(), strict=True)), done.stderr


@pytest.mark.parametrize("flags", NARROWER)
def test_narrower_vectors(flags, ended):
    """Processors without AVX-512, or without AVX, get another tile and the same results."""
    codes, said = ended
    assert codes[flags] == "0", said
